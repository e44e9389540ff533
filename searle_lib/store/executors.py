"""Who computes the row ranges of a stage: this process, the workers of a Ray cluster, or one job of an array.

A stage hands `shards` a function `work(first, end)` and does not know who calls it. Every executor gets the same ranges
and the same function, so the shards hold the same bytes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

Range = tuple[int, int]  # the first row, and the one after the last
Work = Callable[[int, int], Any]

EXECUTORS = ("serial", "ray")


class PartComputed(RuntimeError):
    """A job of an array has computed its part; the sentence says what comes next."""


class Save(Protocol):
    """Where results are saved: a folder of shards of `size` rows."""

    folder: Path
    size: int

    def __call__(self, result: Any, first: int, end: int) -> None:
        """Save the result of a range. It is complete or absent."""

    def has(self, first: int, end: int) -> bool:
        """Return whether the result of a range is saved."""


class Executor(ABC):
    """Computes ranges of rows."""

    @abstractmethod
    def map(self, work: Work, ranges: Sequence[Range], save: Save | None = None) -> Iterator[tuple[Range, Any]]:
        """Yield each range with work(first, end), in any order; with None, as soon as `save` has saved the result."""

    def place(self, folder: Path) -> Path:
        """Return where the shards of a folder are."""
        return folder

    def require_whole(self, what: str) -> None:  # noqa: B027
        """Raise PartComputed if this process computes no more than a part of a stage; `what` cannot be cut."""

    def close(self) -> None:  # noqa: B027
        """End the workers, if there are some, and leave their cluster."""


class Serial(Executor):
    """Computes in this process, one range after another."""

    def map(self, work: Work, ranges: Sequence[Range], save: Save | None = None) -> Iterator[tuple[Range, Any]]:
        for first, end in ranges:
            result = work(first, end)
            if save:
                save(result, first, end)
            yield (first, end), None if save else result


SERIAL = Serial()


@dataclass(frozen=True)
class Part(Serial):
    """Computes one of several parts of the shards, and nothing else: a job of an array.

    The jobs share no lock. Each builds what it needs in a folder of its own, and adds its shards to those of the store.

    Args:
        part: which part, from 1.
        of: how many parts there are.
        root: the folder of what this job builds for itself.
        shared: the folder of the store for each folder below `root`; its shards belong to all jobs.
    """

    part: int
    of: int
    root: Path
    shared: dict[Path, Path] = field(default_factory=dict)

    def map(self, work: Work, ranges: Sequence[Range], save: Save | None = None) -> Iterator[tuple[Range, Any]]:
        if save is None:
            yield from super().map(work, ranges)
            return
        own = [(first, end) for first, end in ranges if first // save.size % self.of == self.part - 1]
        for first, end in own:
            if not save.has(first, end):
                save(work(first, end), first, end)
            yield (first, end), None
        missing = sum(not save.has(first, end) for first, end in ranges)
        if missing:
            raise PartComputed(
                f"part {self.part} of {self.of} of {save.folder} is computed ({len(own):,} shards); the other jobs "
                f"have {missing:,} shards left. Run the study when they are done."
            )

    def place(self, folder: Path) -> Path:
        own = next(own for own in (folder, *folder.parents) if own in self.shared)
        return self.shared[own] / folder.relative_to(own)

    def require_whole(self, what: str) -> None:
        raise PartComputed(f"all shards are computed, and {what} is not cut into parts; run the study.")


def of_parameters(values: Mapping[str, Any]) -> Executor:
    """Return the executor that a notebook's parameters name. Raises ValueError for ray without the package."""
    if values.get("executor", "serial") == "serial":
        return SERIAL
    try:
        from searle_lib.store.ray_cluster import Ray
    except ImportError as problem:
        raise ValueError("executor is ray, and the package ray is not installed; run: pip install ray.") from problem
    return Ray(values["ray_address"], values["ray_gpus"], values["device"])
