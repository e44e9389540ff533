"""Long computations over many rows, cut into shards of consecutive rows.

`run` and `write` let an executor call a function for ranges of rows, and each result is saved as a shard. A shard is
complete or absent, so an interrupted computation continues with the rows that are not finished. The name of a shard's
file holds its rows and no number, so a later run may use another shard size.
"""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from searle_lib.store import bars, tensors
from searle_lib.store.executors import SERIAL, Executor, Range

Work = Callable[[int, int], dict[str, Tensor]]


@dataclass(frozen=True)
class Shards:
    """The shards in a folder, of `size` rows each, as an executor saves them."""

    folder: Path
    size: int

    def has(self, first: int, end: int) -> bool:
        """Return whether a range is saved."""
        return shard_file(self.folder, first, end).is_file()

    def __call__(self, result: dict[str, Tensor], first: int, end: int) -> None:
        """Save the tensors of a range. The file is complete or absent."""
        tensors.save(result, shard_file(self.folder, first, end))


@dataclass(frozen=True)
class Rows:
    """Rows of a tensor [N, ...] whose shards stay in their files, mapped into memory and read on demand.

    Another process gets the name of the folder, and maps the files itself.

    Args:
        folder: of the shards.
        name: of the tensor.
        starts: [S + 1] int64, the first row of each shard, then N.
        parts: the S shards.
    """

    folder: Path
    name: str
    starts: Tensor
    parts: tuple[Tensor, ...]

    def __reduce__(self) -> tuple:
        return _rows_of, (self.folder, self.name)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """Return the rows [n, ...] with the numbers `rows` [n] int64, or consecutive rows."""
        if isinstance(rows, slice):
            return self._read(*rows.indices(len(self))[:2])
        shards = torch.searchsorted(self.starts, rows.contiguous(), right=True) - 1
        values = torch.empty(len(rows), *self.parts[0].shape[1:], dtype=self.parts[0].dtype)
        for shard in shards.unique().tolist():
            places = (shards == shard).nonzero().squeeze(1)
            values[places] = self.parts[shard][rows[places] - self.starts[shard]]
        return values

    def to(self, device: torch.device | str) -> Tensor:
        """Return all rows on a device."""
        return self[:].to(device)

    def _read(self, first: int, end: int) -> Tensor:
        """Return the rows first to end - 1; their files are mapped for this call alone, so no page stays in memory."""
        values = [self.parts[0][:0]]
        for start, stop in pairwise(self.starts.tolist()):
            if start < end and first < stop:
                with safe_open(shard_file(self.folder, start, stop), framework="pt") as file:
                    values.append(file.get_slice(self.name)[max(first - start, 0) : min(end, stop) - start])
        return torch.cat(values)


def run(
    folder: Path, rows: int, size: int, work: Work, desc: str = "", executor: Executor = SERIAL
) -> dict[str, Tensor]:
    """Compute tensors over all rows and return them, in row order.

    Args:
        folder: where shards are saved. Ranges that it already holds are not computed again.
        rows: the number of rows.
        size: rows per shard.
        work: `work(first, end)` returns the tensors of a range, each with end - first rows.
        desc: the name of the progress bar; the rows move the bar of the stage if it has this name.
        executor: computes the ranges.
    """
    write(folder, rows, size, work, desc, executor)
    parts = [load_file(path) for path, _, _ in _shards(executor.place(folder))]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}


def write(folder: Path, rows: int, size: int, work: Work, desc: str = "", executor: Executor = SERIAL) -> None:
    """Compute as `run` does, but return nothing: for tensors too large for memory. `memory_map` reads the shards."""
    save = Shards(executor.place(folder), size)
    save.folder.mkdir(parents=True, exist_ok=True)
    finished = _discard_damaged(save.folder, rows)
    with bars.bar(rows, desc, sum(end - first for first, end in finished)) as bar:
        done = bar.n
        with closing(executor.map(work, _ranges(finished, rows, size), save)) as computed:
            for (first, end), _ in computed:
                bar.update(done + end - first - bar.n)  # less the rows that `work` itself has reported
                done = bar.n
                bars.log(f"{desc}: saved rows {first:,} to {end - 1:,} of {rows:,}")


def shard_file(folder: Path, first: int, end: int) -> Path:
    """Return the file of a range of rows."""
    return folder / f"rows-{first:09d}-{end:09d}.safetensors"


def memory_map(folder: Path) -> dict[str, Rows]:
    """Return the tensors that `write` computed, by name; only the rows that are read take memory."""
    shards = _shards(folder)
    starts = torch.tensor([first for _, first, _ in shards] + [shards[-1][2]])
    parts = [load_file(path) for path, _, _ in shards]
    return {name: Rows(folder, name, starts, tuple(part[name] for part in parts)) for name in parts[0]}


@lru_cache(maxsize=4)
def _mapped(folder: Path) -> dict[str, Rows]:
    return memory_map(folder)


def _rows_of(folder: Path, name: str) -> Rows:
    """Return the rows of a tensor in the process of a worker."""
    return _mapped(folder if _shards(folder) else fetch(folder))[name]


def fetch(folder: Path) -> Path:
    """Return where this process finds a folder of shards that another machine has; a worker of a cluster copies it."""
    raise FileNotFoundError(f"{folder} is not here; put artefact_root on a disk that all nodes share.")


def _shards(folder: Path) -> list[tuple[Path, int, int]]:
    """Return the file, the first row and the end of each finished shard, in row order."""
    return sorted((path, *map(int, path.stem.split("-")[1:])) for path in folder.glob("rows-*-*.safetensors"))


def _discard_damaged(folder: Path, rows: int) -> list[Range]:
    """Remove shards that cannot be read or do not hold the rows of their name; return the rows of the others."""
    finished, done = [], 0
    for path, first, end in _shards(folder):
        content = tensors.load(path) if done <= first < end <= rows else None
        if content and all(len(value) == end - first for value in content[0].values()):
            finished.append((first, end))
            done = end
        else:
            path.unlink(missing_ok=True)
    return finished


def _ranges(finished: list[Range], rows: int, size: int) -> list[Range]:
    """Return the ranges of at most `size` rows that are not finished."""
    edges = [0, *(edge for shard in finished for edge in shard), rows]
    gaps = zip(edges[::2], edges[1::2], strict=True)
    return [(start, min(start + size, end)) for first, end in gaps for start in range(first, end, size)]
