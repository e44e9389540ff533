"""Long computations over many rows, cut into shards of consecutive rows.

`run` and `write` call a function for one range of rows after another and save each result as a shard. A shard is
complete or absent, so an interrupted computation continues with the rows that are not finished. The name of a shard's
file holds its rows and no number, so a later run may use another shard size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from searle_lib.store import bars, tensors

Work = Callable[[int, int], dict[str, Tensor]]


@dataclass(frozen=True)
class Rows:
    """Rows of a tensor [N, ...] whose shards stay in their files, mapped into memory and read on demand.

    Args:
        starts: [S + 1] int64, the first row of each shard, then N.
        parts: the S shards.
    """

    starts: Tensor
    parts: tuple[Tensor, ...]

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Return the rows [n, ...] with the numbers `rows` [n] int64."""
        shards = torch.searchsorted(self.starts, rows.contiguous(), right=True) - 1
        values = torch.empty(len(rows), *self.parts[0].shape[1:], dtype=self.parts[0].dtype)
        for shard in shards.unique().tolist():
            places = (shards == shard).nonzero().squeeze(1)
            values[places] = self.parts[shard][rows[places] - self.starts[shard]]
        return values


def run(folder: Path, rows: int, size: int, work: Work, desc: str = "") -> dict[str, Tensor]:
    """Compute tensors over all rows and return them, in row order.

    Args:
        folder: where shards are saved. Ranges that it already holds are not computed again.
        rows: the number of rows.
        size: rows per shard.
        work: `work(first, end)` returns the tensors of a range, each with end - first rows.
        desc: the name of the progress bar; the rows move the bar of the stage if it has this name.
    """
    write(folder, rows, size, work, desc)
    parts = [load_file(path) for path, _, _ in _shards(folder)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}


def write(folder: Path, rows: int, size: int, work: Work, desc: str = "") -> None:
    """Compute as `run` does, but return nothing: for tensors too large for memory. `memory_map` reads the shards."""
    folder.mkdir(parents=True, exist_ok=True)
    finished = _discard_damaged(folder, rows)
    with bars.bar(rows, desc, sum(end - first for first, end in finished)) as bar:
        for first, end in _gaps(finished, rows):
            for start in range(first, end, size):
                stop = min(start + size, end)
                done = bar.n
                tensors.save(work(start, stop), folder / f"rows-{start:09d}-{stop:09d}.safetensors")
                bar.update(done + stop - start - bar.n)  # less the rows that `work` itself has reported
                bars.log(f"{desc}: saved rows {start:,} to {stop - 1:,} of {rows:,}")


def memory_map(folder: Path) -> dict[str, Rows]:
    """Return the tensors that `write` computed, by name; only the rows that are read take memory."""
    shards = _shards(folder)
    starts = torch.tensor([first for _, first, _ in shards] + [shards[-1][2]])
    parts = [load_file(path) for path, _, _ in shards]
    return {name: Rows(starts, tuple(part[name] for part in parts)) for name in parts[0]}


def _shards(folder: Path) -> list[tuple[Path, int, int]]:
    """Return the file, the first row and the end of each finished shard, in row order."""
    return sorted((path, *map(int, path.stem.split("-")[1:])) for path in folder.glob("rows-*-*.safetensors"))


def _discard_damaged(folder: Path, rows: int) -> list[tuple[int, int]]:
    """Remove shards that cannot be read or do not hold the rows of their name; return the rows of the others."""
    finished, done = [], 0
    for path, first, end in _shards(folder):
        content = tensors.load(path) if done <= first < end <= rows else None
        if content and all(len(value) == end - first for value in content[0].values()):
            finished.append((first, end))
            done = end
        else:
            path.unlink()
    return finished


def _gaps(finished: list[tuple[int, int]], rows: int) -> list[tuple[int, int]]:
    edges = [0, *(edge for shard in finished for edge in shard), rows]
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return [(first, end) for first, end in pairs if first < end]
