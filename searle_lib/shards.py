"""Long work over many rows, cut into shards that are each finished or absent, so that a cut-off run goes on.

A shard's file is named for the rows it holds, not for its number, so another batch size or shard size takes up
what an earlier run left.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from searle_lib.artefacts import written_aside

Work = Callable[[int, int], dict[str, Tensor]]


def run(folder: Path, rows: int, size: int, work: Work, desc: str = "") -> dict[str, Tensor]:
    """Tensors over all rows, in order: `work(first, end)` gives those of a range, each with end - first rows.

    Finished shards lie in `folder`; ranges already there are not computed again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done = _finished(folder)
    with tqdm(total=rows, desc=desc, mininterval=2) as bar:
        bar.update(sum(end - first for first, end in done))
        for first, end in _gaps(done, rows):
            for start in range(first, end, size):
                stop = min(start + size, end)
                _save(work(start, stop), folder / f"rows-{start:09d}-{stop:09d}.safetensors")
                bar.update(stop - start)
    parts = [load_file(folder / f"rows-{first:09d}-{end:09d}.safetensors") for first, end in _finished(folder)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}


def clear(folder: Path) -> None:
    """Remove finished shards once what they held stands in an artefact."""
    shutil.rmtree(folder)


def _finished(folder: Path) -> list[tuple[int, int]]:
    return sorted(tuple(map(int, path.stem.split("-")[1:])) for path in folder.glob("rows-*-*.safetensors"))


def _gaps(done: list[tuple[int, int]], rows: int) -> list[tuple[int, int]]:
    edges = [0, *(edge for shard in done for edge in shard), rows]
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return [(first, end) for first, end in pairs if first < end]


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    with written_aside(path) as aside:
        save_file({name: value.contiguous() for name, value in tensors.items()}, aside)
