"""What a person sees of a notebook that runs: its line in the terminal, and the log of the study.

The line shows the bar of the stage that runs, or else the heading above the running cell. A line of the log is written
when a notebook begins and ends, when a bar ends, and every minute. Without a terminal, the line of every minute is
printed too.
"""

import contextlib
import json
import threading
import time
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from searle_lib.study import interruption

LOG = "run.log"
LOG_EVERY = 60.0  # seconds
NOTHING = {"ended": [], "notes": [], "log": [], "current": None}
UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


class Progress:
    """The progress of one notebook, shown while the block runs.

    Args:
        name: the notebook's name.
        bars: the file where its kernel reports bars.
        log: the study's log.
        console: the terminal, or what stands for it.
    """

    def __init__(self, name: str, bars: Path, log: Path, console: Console):
        self.name, self.bars, self.log, self.console = name, bars, log, console
        self.activity, self.started = "starting its kernel", time.monotonic()
        self._logged = {"ended": 0, "notes": 0, "log": 0}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._log_every_minute, daemon=True)
        self._live = Live(get_renderable=self.line, console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> "Progress":
        self._write("begins")
        self._thread.start()
        self._live.start()
        interruption.cleanups.append(self._log_interruption)
        return self

    def __exit__(self, *problem: object) -> None:
        interruption.cleanups.remove(self._log_interruption)
        self._live.stop()
        self._ended.set()
        self._thread.join()
        self._write_new(self._read())

    def show(self, activity: str) -> None:
        """Set what the line shows while no bar moves."""
        self.activity = activity

    def line(self) -> Text:
        """Return the line as it is now: the bar, or the elapsed time and the activity."""
        current = self._read()["current"]
        shown = f"  {describe(current)}" if current else f"{self.elapsed}  {self.activity}"
        return Text(f"{self.name:<14}{shown}", no_wrap=True)

    @property
    def elapsed(self) -> str:
        """The seconds since the start, for the line."""
        return f"{time.monotonic() - self.started:6.1f} s"

    def end(self, outcome: str) -> None:
        """Log how the notebook ended, and print it if it is done."""
        self._write(f"{self.elapsed.strip()}  {outcome}")
        if outcome == "done":
            self.console.print(f"{self.name:<14}{self.elapsed}  {outcome}")

    def _log_every_minute(self) -> None:
        due = self.started + LOG_EVERY
        while not self._ended.wait(min(1.0, LOG_EVERY)):
            report = self._read()
            self._write_new(report)
            if time.monotonic() >= due:
                due += LOG_EVERY
                line = str(self.line())
                self._write(line.removeprefix(self.name).strip())
                if not self.console.is_terminal:
                    self.console.print(line, soft_wrap=True)

    def _log_interruption(self) -> None:
        self._write(f"{self.elapsed.strip()}  stopped")

    def _write_new(self, report: dict) -> None:
        """Log what the kernel has reported since the last call, and print its notes."""
        for sentence in report["log"][self._logged["log"] :]:
            self._write(sentence)
        for bar in report["ended"][self._logged["ended"] :]:
            self._write(describe(bar, ended=True))
        for note in report["notes"][self._logged["notes"] :]:
            self._write(note)
            self.console.print(f"{self.name:<14}  {note}")
        self._logged = {name: len(report[name]) for name in self._logged}

    def _read(self) -> dict:
        try:
            return json.loads(self.bars.read_text(encoding="utf-8"))
        except OSError:  # no bar was opened so far
            return NOTHING

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError), self.log.open("a", encoding="utf-8") as file:  # a log must not stop a run
            file.write(f"{datetime.now():%Y-%m-%d %H:%M:%S}  {self.name:<14}{text}\n")


def describe(bar: dict, ended: bool = False) -> str:
    """Return a bar as text: what it counts, done, total, rate, and the time left, or for an ended bar the time taken.

    Args:
        bar: a bar as its kernel reports it.
        ended: whether it does not move any more.
    """
    parts = [bar["desc"], f"{bar['n']:,} / {bar['total']:,}"]
    computed, seconds = bar["n"] - bar["initial"], bar["seconds"]
    if computed and seconds:
        parts.append(_rate(computed / seconds))
        remaining = (bar["total"] - bar["n"]) * seconds / computed
        parts.append(f"took {_duration(seconds)}" if ended else f"{_duration(remaining)} left")
    return "  ".join([*parts, *filter(None, [bar.get("workers")])])


def _rate(each_second: float) -> str:
    """Return a rate in the smallest unit of time that gives at least one: 26/s, 3/min, 2/h."""
    if each_second >= 1:
        return f"{each_second:,.0f}/s"
    return f"{each_second * 60:,.0f}/min" if each_second * 60 >= 1 else f"{each_second * 3600:,.0f}/h"


def _duration(seconds: float) -> str:
    """Return a duration in its two largest units below ten of the first, else in one: 38 min, 2 h 5 min, 12 h."""
    rest = round(seconds)
    for (unit, size), (smaller, part) in pairwise(UNITS):
        if rest >= size:
            count, more = rest // size, rest % size // part
            return f"{count} {unit} {more} {smaller}" if more and count < 10 else f"{count} {unit}"
    return f"{rest} s"
