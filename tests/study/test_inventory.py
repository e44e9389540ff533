"""What a store with two studies holds, and what `artefacts prune` removes of it."""

import pytest
from conftest import leave_record, study_of

from searle_lib.__main__ import main
from searle_lib.store.artefacts import Store
from searle_lib.store.records import MissingInput
from searle_lib.study import inventory


def write(folder):
    (folder / "a.txt").write_text("a" * 1_000_000)


@pytest.fixture
def project(tmp_path):
    """A folder with two studies on one store, which share an artefact; one artefact served to make another."""
    for name in ("one", "two"):
        study = study_of(tmp_path, "03_oti", name)
        study.keep("phrases", {}, write)
        study.keep(
            "oti/cirr", {"of": name}, lambda folder, study=study: study.store.keep("bank", {}, write) and write(folder)
        )
        leave_record(study)
    (tmp_path / "artefacts/oti/circo-0123456789.partial").mkdir()
    return tmp_path


def read(project):
    return inventory.read(Store(project / "artefacts"), project / "reports")


def test_every_artefact_is_listed_with_its_size_its_notebook_and_its_studies(project):
    entries = [(e.name.rpartition("-")[0], e.bytes > 1_000_000, e.notebook, e.studies) for e in read(project)]
    assert sorted(entries) == [
        ("bank", True, "03_oti", ()),
        ("oti/circo", False, "", ()),
        ("oti/cirr", True, "03_oti", ("one",)),
        ("oti/cirr", True, "03_oti", ("two",)),
        ("phrases", True, "03_oti", ("one", "two")),
    ]
    text = inventory.table(read(project))
    assert text.startswith("all artefacts: 5, 4.0 MB\n")
    assert "one, two: 1, 1.0 MB\n         1.0 MB  phrases-" in text and "named by no record: 2, 1.0 MB" in text


def test_prune_removes_what_no_record_names_and_nothing_else(project):
    store, before = Store(project / "artefacts"), read(project)
    removed = inventory.prune(store, inventory.unnamed(before))
    assert [entry.name.rpartition("-")[0] for entry in removed] == ["bank", "oti/circo"]
    assert read(project) == [entry for entry in before if entry.studies]
    for name in ("one", "two"):
        assert not study_of(project, name=name).problem("03_oti")
    (project / "reports/two/records/03_oti.json").unlink()
    (removed,) = inventory.prune(store, inventory.unnamed(read(project)))
    assert removed.name.startswith("oti/cirr") and len(read(project)) == 2


def test_an_artefact_that_a_process_builds_is_not_removed(project):
    def build(folder):
        write(folder)
        removed = inventory.prune(Store(store.root), inventory.unnamed(read(project)))
        assert [entry.name.rpartition("-")[0] for entry in removed] == ["bank", "oti/circo"]

    store = Store(project / "artefacts", "03_oti")
    kept = store.keep("new", {}, build)
    assert (kept.folder / "a.txt").exists()


def test_a_damaged_record_is_refused_since_it_may_name_any_artefact(project):
    file = project / "reports/one/records/03_oti.json"
    file.write_text("{")
    with pytest.raises(MissingInput, match=rf"record {file} is damaged; delete it and run 03_oti again"):
        read(project)


@pytest.mark.parametrize(("answer", "status"), [("n", 1), ("", 1), (None, 1), ("y", 0)])
def test_prune_asks(project, monkeypatch, capsys, answer, status):
    def reply(question):
        if answer is None:
            raise EOFError
        return answer

    monkeypatch.setattr("searle_lib.__main__._read_study", lambda options: ({}, study_of(project)))
    monkeypatch.setattr("builtins.input", reply)
    assert main(["artefacts", "prune", "params/one.yaml"]) == status
    printed = capsys.readouterr().out
    assert ("removed 2 artefacts, 1.0 MB." in printed) == (status == 0)
    assert len(read(project)) == (3 if status == 0 else 5)


def test_list_and_an_answered_prune_ask_nothing(project, monkeypatch, capsys):
    monkeypatch.setattr("searle_lib.__main__._read_study", lambda options: ({}, study_of(project)))
    assert main(["artefacts", "list", "params/one.yaml"]) == 0 and len(read(project)) == 5
    assert main(["artefacts", "prune", "params/one.yaml", "--yes"]) == 0 and len(read(project)) == 3
