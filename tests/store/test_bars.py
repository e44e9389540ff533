"""Bars for the runner: what the file says while a stage moves, and that a notebook of a person keeps its own bars."""

import json

import pytest
import torch

from searle_lib.store import bars, shards


@pytest.fixture
def report(tmp_path, monkeypatch):
    """The file of a runner, and what it says now."""
    monkeypatch.setenv(bars.FILE, str(tmp_path / "1.bars"))
    monkeypatch.setattr(bars, "_report", {"ended": [], "notes": [], "current": None})
    monkeypatch.setattr(bars, "REWRITE", -1.0)  # seconds
    return lambda: json.loads((tmp_path / "1.bars").read_text())


def test_the_file_says_how_far_the_bar_is_and_nothing_is_printed(report, capsys):
    with bars.bar(100, "OTI cirr/val", done=40) as bar:
        bar.update(20)
        current = report()["current"]
        assert (current["desc"], current["n"], current["total"], current["first"]) == ("OTI cirr/val", 60, 100, 40)
        bars.say("memory ran short.")
        assert report()["current"]["n"] == 60
    assert report()["current"] is None and report()["ended"][0]["n"] == 60 and report()["notes"] == [
        "memory ran short."
    ]  # fmt: skip
    assert capsys.readouterr() == ("memory ran short.\n", "")


def test_the_file_is_rewritten_once_a_second_at_most(report, monkeypatch):
    monkeypatch.setattr(bars, "REWRITE", 1.0)
    with bars.bar(1000, "phrases") as bar:
        for _ in range(1000):
            bar.update()
        assert report()["current"]["n"] == 1
    assert report()["ended"][0]["n"] == 1000


def test_a_bar_moves_within_a_shard_and_ends_at_its_total(report, tmp_path):
    positions = []

    def work(first, end):
        bars.advance(2)  # of the four rows of a shard, or two of the last one
        positions.append(report()["current"]["n"])
        return {"rows": torch.arange(first, end)}

    shards.run(tmp_path / "shards", 10, 4, work, "rows")
    assert positions == [2, 6, 10] and report()["ended"][0]["n"] == 10


def test_a_file_that_cannot_be_written_stops_no_stage(monkeypatch, tmp_path):
    monkeypatch.setenv(bars.FILE, str(tmp_path / "gone" / "1.bars"))
    with bars.bar(3, "phrases") as bar:
        bar.update(3)
    assert bar.n == 3 and not (tmp_path / "gone").exists()


def test_outside_of_a_run_tqdm_draws_the_bar(monkeypatch, capsys):
    monkeypatch.delenv(bars.FILE, raising=False)
    with bars.bar(10, "phrases", done=5) as bar:
        bar.update(5)
    assert "phrases: 100%" in capsys.readouterr().err
