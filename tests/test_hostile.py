"""Broken and hostile files are read, or refused in one sentence that names a file; `bench.hostile` tries more."""

import pytest

from bench import hostile

FAULTS = ["traceback", "no name", "hang", "crash", "over 2 GB"]


@pytest.mark.slow
def test_two_thousand_broken_files_are_read_or_refused_in_one_sentence(world, tmp_path):
    table = hostile.attack(hostile.write_seeds(tmp_path / "seeds", world), inputs=2_000)
    assert not table[FAULTS].to_numpy().any(), table[FAULTS].loc[table[FAULTS].any(axis=1)].to_string()
    assert table[["read", "refused"]].to_numpy().sum() == 2_000
    assert (table["refused"] > 0).all()  # each reader was truly attacked


def test_a_reader_that_fails_is_counted(tmp_path, monkeypatch):
    """The oracle of the harness: errors that are no sentence, and sentences without a file."""

    def outcome(problem):
        def fail(folder):
            raise problem

        return hostile._outcome(hostile.Reader((), None, fail), tmp_path, {"x.json"})[0]

    assert outcome(KeyError("id")) == outcome(TypeError("no")) == "traceback"
    assert outcome(ValueError("not valid")) == outcome(ValueError("a/y.json is bad; do this.")) == "no name"
    assert outcome(ValueError("a/x.json is \x1b bad; do this.")) == "no name"
    assert outcome(ValueError("a/x.json is bad; do this.")) == "refused"
