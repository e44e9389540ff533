"""Read tables of texts that others wrote as CSV, within bounds."""

from pathlib import Path

import pandas as pd

MAX_HEADER = 1 << 16  # bytes of the first line
MAX_CELLS = 2_000_000  # beyond it, a cell must have MIN_BYTES on average; the authors' concepts have 10
MIN_BYTES = 6


def read_table(path: Path) -> pd.DataFrame:
    """Return the cells of a CSV file as texts, inside `reading` of `store`.

    Raises:
        ValueError: if the file is not a table in UTF-8, has a row longer than its header, or too many cells.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if len(file.readline(MAX_HEADER)) == MAX_HEADER:
            raise ValueError(f"its first line has more than {MAX_HEADER:,} bytes")
        cells = sum(part.count(b",") + part.count(b"\n") for part in iter(lambda: file.read(1 << 20), b""))
    if cells > max(MAX_CELLS, size // MIN_BYTES):
        raise ValueError(f"it has {cells:,} cells, most of them empty")
    table = pd.read_csv(path, dtype=str, keep_default_na=False, compression=None)
    if not isinstance(table.index, pd.RangeIndex):
        raise ValueError("its rows have more cells than its header")
    return table
