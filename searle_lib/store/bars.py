"""Progress bars of the long stages.

A stage opens a bar with `bar` and moves it. In a notebook that a person runs, tqdm draws the bar. In a kernel of
`searle run` the bar goes to the file that the variable SEARLE_PROGRESS names, where the runner reads it, so a saved
notebook holds no bar. The file holds JSON: `ended`, a list of bars; `notes`, a list of sentences; and `current`, the
bar that moves, or null.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tqdm.auto import tqdm

FILE = "SEARLE_PROGRESS"
REWRITE = 1.0  # seconds between two writings of the file

_open: list = []  # the bars that move, the innermost last
_report: dict = {"ended": [], "notes": [], "current": None}


@dataclass
class ReportedBar:
    """A bar for the runner, with the part of tqdm's interface that stages use.

    Args:
        desc: what the bar counts.
        total: how many rows there are.
        n: how many are done.
        first: how many were done when the bar was opened.
        seconds: from then until the bar moved last.
    """

    desc: str
    total: int
    n: int
    first: int
    seconds: float = 0.0
    _started: float = field(default_factory=time.monotonic)
    _written: float = 0.0

    def update(self, count: int = 1) -> None:
        """Move the bar, and rewrite the file unless that was done within the last second."""
        self.n += count
        self.seconds = time.monotonic() - self._started
        if time.monotonic() - self._written > REWRITE:
            self._written = time.monotonic()
            _write(self)

    def __enter__(self) -> "ReportedBar":
        _write(self)
        return self

    def __exit__(self, *problem: object) -> None:
        _report["ended"].append(self._facts())
        _write(None)

    def _facts(self) -> dict:
        return {name: value for name, value in asdict(self).items() if not name.startswith("_")}


@contextlib.contextmanager
def bar(total: int, desc: str, done: int = 0) -> Iterator[ReportedBar | tqdm]:
    """Open a progress bar.

    Args:
        total: how many rows there are.
        desc: what the bar counts.
        done: how many rows an earlier run has finished.
    """
    new = ReportedBar(desc, total, done, done) if FILE in os.environ else None
    with new or tqdm(total=total, initial=done, desc=desc, mininterval=2) as opened:
        _open.append(opened)
        try:
            yield opened
        finally:
            _open.remove(opened)


def advance(count: int) -> None:
    """Move the innermost open bar, if there is one: for rows that are computed and not saved yet."""
    if _open:
        _open[-1].update(count)


def say(sentence: str) -> None:
    """Print a sentence in the notebook, and in the terminal of `searle run`."""
    print(sentence)
    _report["notes"].append(sentence)
    _write(_open[-1] if _open else None)


def _write(current: ReportedBar | tqdm | None) -> None:
    if FILE not in os.environ:
        return
    _report["current"] = current and current._facts()
    file = Path(os.environ[FILE])
    with contextlib.suppress(OSError):  # a bar that cannot be written must not stop a stage
        file.with_suffix(".new").write_text(json.dumps(_report))
        file.with_suffix(".new").replace(file)
