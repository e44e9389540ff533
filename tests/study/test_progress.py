"""The line of a notebook that runs, and the log of its study."""

import io
import json
import re
import time

import pytest
from rich.console import Console

from searle_lib.study import progress
from searle_lib.study.progress import Progress, describe

BAR = {"desc": "OTI imagenet/test", "total": 100_000, "n": 41_200, "initial": 1_200, "seconds": 40_000 / 26}


def report(folder, **changes):
    (folder / "1.bars").write_text(json.dumps({"ended": [], "notes": [], "log": [], "current": None} | changes))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "OTI imagenet/test  41,200 / 100,000  26/s  37 min left"),
        ({"n": 1_200}, "OTI imagenet/test  1,200 / 100,000"),
        ({"initial": 41_197, "seconds": 60}, "OTI imagenet/test  41,200 / 100,000  3/min  13 d left"),
        ({"initial": 41_196, "seconds": 7200}, "OTI imagenet/test  41,200 / 100,000  2/h  1225 d left"),
        ({"n": 99_000, "seconds": 97_800}, "OTI imagenet/test  99,000 / 100,000  1/s  16 min left"),
    ],
)
def test_a_bar_says_done_total_rate_and_the_time_left(changes, text):
    assert describe(BAR | changes) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.6, "1 min"), (305, "5 min 5 s"), (7500, "2 h 5 min"), (270_000, "3 d 3 h")]
)
def test_a_duration_has_two_units_at_most(seconds, text):
    assert describe(BAR | {"seconds": seconds or 0.1}, ended=True).endswith(f"took {text}")


def test_the_line_shows_the_bar_and_else_the_heading(tmp_path):
    console = Console(file=io.StringIO(), width=120)
    line = Progress("03_oti", tmp_path / "1.bars", tmp_path / "run.log", console)
    line.show("What does one pseudo-word know?")
    assert re.fullmatch(r"03_oti +0\.0 s  What does one pseudo-word know\?", str(line.line()))
    report(tmp_path, current=BAR)
    assert re.fullmatch(r"03_oti +OTI imagenet/test  41,200 / 100,000  26/s  37 min left", str(line.line()))


def test_without_a_terminal_a_line_is_printed_every_minute_and_the_log_has_all(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "LOG_EVERY", 0.2)
    console, printed = Console(file=(file := io.StringIO()), width=120), []
    with Progress("03_oti", tmp_path / "1.bars", tmp_path / "run.log", console) as line:
        report(tmp_path, current=BAR)
        time.sleep(0.5)
        printed = file.getvalue().splitlines()
        report(tmp_path, ended=[BAR | {"n": 100_000}], notes=["memory ran short."], log=["saved rows 0 to 99 of 100"])
    line.end("done")
    assert 1 <= len(printed) <= 3 and "41,200 / 100,000  26/s" in printed[0]
    assert "03_oti          memory ran short.\n" in file.getvalue() and file.getvalue().endswith("s  done\n")
    log = [re.sub(r"^[\d-]{10} [\d:]{8}  ", "", text) for text in (tmp_path / "run.log").read_text().splitlines()]
    assert log[0] == "03_oti        begins" and re.fullmatch(r"03_oti        \d\.\d s  done", log[-1])
    assert log[1] == "03_oti        OTI imagenet/test  41,200 / 100,000  26/s  37 min left"
    assert log[-4] == "03_oti        saved rows 0 to 99 of 100" and "saved rows" not in file.getvalue()
    assert log[-3].startswith("03_oti        OTI imagenet/test  100,000 / 100,000  64/s  took 25 min")
    assert log[-2] == "03_oti        memory ran short."
