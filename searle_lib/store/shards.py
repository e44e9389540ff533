"""Long work over many rows, cut into shards that are each finished or absent, so that a cut-off run goes on.

A shard's file is named for the rows it holds, not for its number, so another batch size or shard size takes up
what an earlier run left.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from searle_lib.store.artefacts import written_aside

Work = Callable[[int, int], dict[str, Tensor]]


@dataclass(frozen=True)
class Rows:
    """Rows [N, ...] of a tensor whose shards stay in their files, mapped into memory and read where they are asked for.

    starts [S + 1] are the first rows of the shards and N.
    """

    starts: Tensor
    parts: tuple[Tensor, ...]

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, rows: Tensor) -> Tensor:
        """The rows [n, ...] with the numbers rows [n] int64."""
        shard = torch.searchsorted(self.starts, rows.contiguous(), right=True) - 1
        found = torch.empty(len(rows), *self.parts[0].shape[1:], dtype=self.parts[0].dtype)
        for number in shard.unique().tolist():
            here = (shard == number).nonzero().squeeze(1)
            found[here] = self.parts[number][rows[here] - self.starts[number]]
        return found


def run(folder: Path, rows: int, size: int, work: Work, desc: str = "") -> dict[str, Tensor]:
    """Tensors over all rows, in order: `work(first, end)` gives those of a range, each with end - first rows.

    Finished shards lie in `folder`; ranges already there are not computed again.
    """
    write(folder, rows, size, work, desc)
    parts = [load_file(path) for path, _, _ in _finished(folder)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}


def write(folder: Path, rows: int, size: int, work: Work, desc: str = "") -> None:
    """As `run`, for tensors too large for memory: the shards are what stays, to be read with `mapped`."""
    folder.mkdir(parents=True, exist_ok=True)
    done = [(first, end) for _, first, end in _finished(folder)]
    with tqdm(total=rows, desc=desc, mininterval=2) as bar:
        bar.update(sum(end - first for first, end in done))
        for first, end in _gaps(done, rows):
            for start in range(first, end, size):
                stop = min(start + size, end)
                _save(work(start, stop), folder / f"rows-{start:09d}-{stop:09d}.safetensors")
                bar.update(stop - start)


def mapped(folder: Path) -> dict[str, Rows]:
    """The tensors that `write` left, by name, in the memory of what is read of them."""
    found = _finished(folder)
    starts = torch.tensor([first for _, first, _ in found] + [found[-1][2]])
    parts = [load_file(path) for path, _, _ in found]
    return {name: Rows(starts, tuple(part[name] for part in parts)) for name in parts[0]}


def clear(folder: Path) -> None:
    """Remove finished shards once what they held stands in an artefact."""
    shutil.rmtree(folder)


def _finished(folder: Path) -> list[tuple[Path, int, int]]:
    return sorted((path, *map(int, path.stem.split("-")[1:])) for path in folder.glob("rows-*-*.safetensors"))


def _gaps(done: list[tuple[int, int]], rows: int) -> list[tuple[int, int]]:
    edges = [0, *(edge for shard in done for edge in shard), rows]
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return [(first, end) for first, end in pairs if first < end]


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    with written_aside(path) as aside:
        save_file({name: value.contiguous() for name, value in tensors.items()}, aside)
