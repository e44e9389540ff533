"""Bars for the runner: what the file says while a stage moves, and that a notebook of a person keeps its own bars."""

import json
import time

import pytest
import torch

from searle_lib.store import bars, contents, shards
from searle_lib.store.artefacts import Store


@pytest.fixture
def report(tmp_path, monkeypatch):
    """The file of a runner, and what it says now."""
    monkeypatch.setenv(bars.FILE, str(tmp_path / "1.bars"))
    monkeypatch.setattr(bars, "_report", {"ended": [], "notes": [], "log": [], "current": None})
    monkeypatch.setattr(bars, "REWRITE", -1.0)  # seconds
    return lambda: json.loads((tmp_path / "1.bars").read_text())


def test_the_file_says_how_far_the_bar_is_and_nothing_is_printed(report, capsys):
    with bars.bar(100, "OTI cirr/val", done=40) as bar:
        bar.update(20)
        current = report()["current"]
        assert (current["desc"], current["n"], current["total"], current["initial"]) == ("OTI cirr/val", 60, 100, 40)
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


def test_one_bar_counts_all_lists_of_a_stage_and_its_rate_only_the_rows_that_this_run_computes(report, tmp_path):
    places = []

    def compute(name):
        def work(first, end):
            with bars.bar(1, "phrase features"):  # another bar, of something that the stage needs first
                bars.advance(1)
            current = report()["current"]
            places.append((current["desc"], current["n"], current["initial"], current["total"]))
            return {"rows": torch.arange(first, end)}

        return (
            sizes[name]
            if name == "made"
            else len(shards.run(tmp_path / name, sizes[name], 4, work, f"OTI {name}")["rows"])
        )

    sizes = {"a": 6, "made": 30, "b": 8}
    shards.run(tmp_path / "b", 8, 4, lambda first, end: {"rows": torch.arange(first, end)}, "OTI b")
    (tmp_path / "b" / "rows-000000004-000000008.safetensors").unlink()
    assert bars.over_lists("OTI", sizes, compute) == {"a": 6, "made": 30, "b": 8}
    assert places == [("OTI a", 0, 0, 44), ("OTI a", 4, 0, 44), ("OTI b", 40, 34, 44)]
    (stage,) = (bar for bar in report()["ended"] if bar["desc"] == "OTI")
    assert (stage["n"], stage["initial"], stage["total"]) == (44, 34, 44)


def test_the_seconds_of_an_inner_bar_are_not_of_the_outer_one(report):
    with bars.bar(4, "OTI") as outer:
        with bars.bar(1, "phrase features") as inner:
            time.sleep(0.3)
            inner.update()
        assert report()["current"]["desc"] == "OTI"
        outer.update(4)
    assert report()["ended"][0]["seconds"] >= 0.3 > 0.2 > report()["ended"][1]["seconds"]


def test_hashing_has_a_bar_unless_no_file_has_changed(report, tmp_path):
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_text(path.name)
    for _ in range(2):
        contents.hash_files(paths, tmp_path / "cache")
    assert [(bar["desc"], bar["n"], bar["total"]) for bar in report()["ended"]] == [("hashing files", 3, 3)]


def test_a_damaged_artefact_that_a_notebook_makes_again_is_named_in_the_terminal(report, tmp_path):
    store = Store(tmp_path, "03_oti")
    kept = store.keep("words", {}, lambda folder: (folder / "words.txt").write_text("all"))
    (kept.folder / "words.txt").write_text("al")
    store.keep("words", {}, lambda folder: (folder / "words.txt").write_text("all"))
    assert report()["notes"] == [
        f"artefact {kept.folder} is damaged (words.txt has 2 of 3 bytes); it is made again now."
    ]


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
