"""Progress bars of the long stages.

A stage opens a bar with `bar` and moves it; a stage with several lists opens one for all with `over_lists`. In a
notebook that a person runs, tqdm draws the bar. In a kernel of `searle run` the bar goes to the file that the variable
SEARLE_PROGRESS names, where the runner reads it, so a saved notebook holds no bar. The file holds JSON: `ended`, a list
of bars; `notes` and `log`, lists of sentences; and `current`, the bar that moves, or null.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from searle_lib.store.executors import PartComputed

if TYPE_CHECKING:
    from tqdm.auto import tqdm

Result = TypeVar("Result")

FILE = "SEARLE_PROGRESS"
REWRITE = 1.0  # seconds between two writings of the file

_open: list = []  # the bars that move, the innermost last
_report: dict = {"ended": [], "notes": [], "log": [], "current": None}


@dataclass
class ReportedBar:
    """A bar for the runner, with the part of tqdm's interface that stages use.

    Args:
        desc: what the bar counts.
        total: how many rows there are.
        n: how many are done.
        initial: how many of these an earlier run has done.
        workers: how many workers compute, "" without an executor that has some.
        seconds: from the opening of the bar until it moved last, less the seconds of bars that were opened meanwhile.
        start_t: when it was opened.
    """

    desc: str
    total: int
    n: int
    initial: int
    workers: str = ""
    seconds: float = 0.0
    start_t: float = field(default_factory=time.monotonic)
    _written: float = 0.0

    def update(self, count: int = 1) -> None:
        """Move the bar, and rewrite the file unless that was done within the last second."""
        self.n += count
        self.seconds = time.monotonic() - self.start_t
        if time.monotonic() - self._written > REWRITE:
            self._written = time.monotonic()
            _write(self)

    def set_description_str(self, desc: str) -> None:
        """Change what the bar counts."""
        self.desc = desc
        _write(self)

    def set_postfix_str(self, workers: str) -> None:
        """Change what stands behind the numbers."""
        self.workers = workers
        _write(self)

    def __enter__(self) -> "ReportedBar":
        _write(self)
        return self

    def __exit__(self, *problem: object) -> None:
        _report["ended"].append(self._facts())

    def _facts(self) -> dict:
        return {name: value for name, value in asdict(self).items() if not name.startswith("_")}


@contextlib.contextmanager
def bar(total: int, desc: str, done: int = 0) -> Iterator["ReportedBar | tqdm"]:
    """Open a progress bar. If the innermost open bar has the same name, its rows are part of that bar.

    Args:
        total: how many rows there are.
        desc: what the bar counts.
        done: how many rows an earlier run has finished.
    """
    if _open and _open[-1].desc == desc:
        _skip(_open[-1], done)
        yield _open[-1]
        return
    started, opened = time.monotonic(), _new(total, desc, done)
    _open.append(opened)
    try:
        with opened:
            yield opened
    finally:
        _open.remove(opened)
        for outer in _open:
            outer.start_t += time.monotonic() - started  # else its rate would be too low
        _write(_open[-1] if _open else None)


def over_lists(desc: str, sizes: Mapping[str, int], compute: Callable[[str], Result]) -> dict[str, Result]:
    """Compute several lists of rows under one bar for all of them, so that its time left is that of the whole stage.

    Args:
        desc: what the bar counts. With the name of the list behind it, it names the bar while a list is computed.
        sizes: the number of rows of each list, by name.
        compute: `compute(name)` returns the result of a list. An earlier run has computed the rows that it does not
            count.

    Returns:
        The results by name.

    Raises PartComputed, if a job of an array has computed its part of each list.
    """
    results, end, parts = {}, 0, []
    with bar(sum(sizes.values()), desc) as stage:
        for name, size in sizes.items():
            stage.set_description_str(f"{desc} {name}")
            try:
                results[name] = compute(name)
            except PartComputed as computed:
                parts.append(str(computed))
            end += size
            _skip(stage, end - stage.n)
        stage.set_description_str(desc)
    if parts:
        raise PartComputed("\n".join(parts))
    return results


def advance(count: int) -> None:
    """Move the innermost open bar, if there is one: for rows that are computed and not saved yet."""
    if _open:
        _open[-1].update(count)


def count_workers(alive: int) -> None:
    """Show in the innermost open bar how many workers compute."""
    if _open:
        _open[-1].set_postfix_str(f"{alive} worker{'s' * (alive != 1)}")


def take_notes() -> list[str]:
    """Return the sentences of `say` since the last call: a worker hands them to its driver, which says them."""
    notes, _report["notes"] = _report["notes"], []
    return notes


def say(sentence: str) -> None:
    """Print a sentence in the notebook, and in the terminal of `searle run`."""
    print(sentence)
    _report["notes"].append(sentence)
    _write(_open[-1] if _open else None)


def log(sentence: str) -> None:
    """Write a sentence into `run.log` of `searle run`, when the open bar is written next."""
    _report["log"].append(sentence)


def _new(total: int, desc: str, done: int) -> "ReportedBar | tqdm":
    if FILE in os.environ:
        return ReportedBar(desc, total, done, done)
    from tqdm.auto import tqdm  # takes a while, and most commands draw no bar

    return tqdm(total=total, initial=done, desc=desc, mininterval=2)


def _skip(moved: "ReportedBar | tqdm", count: int) -> None:
    """Move a bar by rows of an earlier run, which say nothing about its rate."""
    moved.initial = getattr(moved, "initial", 0) + count  # a bar of tqdm that is switched off has none
    moved.update(count)


def _write(current: "ReportedBar | tqdm | None") -> None:
    if FILE not in os.environ:
        return
    _report["current"] = current and current._facts()
    file = Path(os.environ[FILE])
    with contextlib.suppress(OSError):  # a bar that cannot be written must not stop a stage
        file.with_suffix(".new").write_text(json.dumps(_report))
        file.with_suffix(".new").replace(file)
