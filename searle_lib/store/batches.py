"""Batches whose size is only a matter of speed: when memory runs short, they are halved and computed again.

A stage makes one `BatchSize` and computes its rows with it. A size that was too large is not tried again.
"""

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch

from searle_lib.store import bars

SIGNS = ("allocate memory", "out of memory", "ALLOC_FAILED")  # of short memory, in the words of a RuntimeError

Result = TypeVar("Result")


@dataclass
class BatchSize:
    """How many rows are computed at once.

    Args:
        size: the number of rows.
        name: what a sentence calls it: the parameter that sets it, if there is one.
    """

    size: int
    name: str

    def attempt(self, compute: Callable[[int], Result]) -> Result:
        """Return compute(size); while memory is too short for it, halve the size and say so once.

        Raises what `compute` raises, and the error of short memory if even one row is too much.
        """
        before = self.size
        while True:
            try:
                result = compute(self.size)
            except (MemoryError, RuntimeError) as problem:
                if self.size <= 1 or not _is_memory_short(problem):
                    raise
                self.size //= 2
            else:
                break
            gc.collect()  # only here, where the error no longer holds the tensors of its frames
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        if self.size < before:
            bars.say(f"memory ran short: {self.name} is {self.size} from here on, not {before}; no result changes.")
        return result

    def over(self, first: int, end: int, compute: Callable[[range], Result]) -> Iterator[Result]:
        """Yield compute(rows) for one batch of the rows first to end - 1 after another, and move the open bar.

        Raises as `attempt` does.
        """
        while first < end:
            yield self.attempt(lambda size, first=first: compute(range(first, min(first + size, end))))
            computed = min(self.size, end - first)
            bars.advance(computed)
            first += computed


def _is_memory_short(problem: Exception) -> bool:
    short = isinstance(problem, MemoryError | torch.OutOfMemoryError)
    return short or any(sign in str(problem) for sign in SIGNS)
