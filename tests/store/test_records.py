"""Records of a chain of three notebooks: when one may be read, and the sentence that says why not."""

import os
import shutil

import pytest
from conftest import leave_record, study_of

from searle_lib.store.records import MissingInput, StaleInput

FIRST, SECOND, THIRD = "01_phrases", "02_concepts", "03_oti"


def hello(folder):
    (folder / "hello.txt").write_text("hello")


def run_first(folder, code="code", seconds=1.0, study="tiny", seed=42, **settings):
    first = study_of(folder, FIRST, study, seed=seed)
    first.keep("phrases", {"seed": seed}, hello)
    return leave_record(first, code, seconds, **settings)


def run_second(folder, code="code", depth=250, vocabulary="names.csv"):
    second = study_of(folder, SECOND, depth=depth, vocabulary=vocabulary)
    second.keep("concepts/cirr", {"of": second.artefact(FIRST, "phrases").key, "depth": depth}, hello)
    return leave_record(second, code)


def run_third(folder, steps=350):
    third = study_of(folder, THIRD, steps=steps)
    third.keep("oti/cirr", {"of": third.artefact(SECOND, "concepts/cirr").key, "steps": steps}, hello)
    return leave_record(third)


def run_chain(folder):
    return run_first(folder), run_second(folder), run_third(folder)


def read(folder, notebook, reader="04_phi"):
    return study_of(folder, reader).read(notebook)


def file_of(folder, notebook, study="tiny"):
    return folder / "reports" / study / "records" / f"{notebook}.json"


def refusal(folder, notebook, kind):
    """The sentence with which a record is refused to 04_phi."""
    with pytest.raises(kind) as problem:
        read(folder, notebook)
    return str(problem.value)


# Reading and writing


def test_a_record_is_read_back_as_it_was_written(tmp_path):
    written = run_chain(tmp_path)
    assert tuple(read(tmp_path, notebook) for notebook in (FIRST, SECOND, THIRD)) == written


def test_a_record_names_the_digests_of_those_that_were_read(tmp_path):
    first, second, third = run_chain(tmp_path)
    assert (first.read, second.read, third.read) == ({}, {FIRST: first.digest}, {SECOND: second.digest})


def test_an_identical_rerun_has_the_same_digest_whatever_its_execution(tmp_path):
    before = run_first(tmp_path, seconds=1.0, workers=2)
    after = run_first(tmp_path, seconds=99.0, workers=8)
    assert before.execution != after.execution and before.digest == after.digest


@pytest.mark.parametrize("change", [{"seed": 1}, {"code": "edited"}])
def test_another_parameter_or_other_code_is_another_digest(tmp_path, change):
    assert run_first(tmp_path).digest != run_first(tmp_path, **change).digest


def test_another_artefact_is_another_digest(tmp_path):
    before = run_first(tmp_path)
    first = study_of(tmp_path, FIRST, seed=42)
    first.keep("phrases", {"seed": 42, "code": "edited"}, hello)
    assert leave_record(first).digest != before.digest


def test_an_identical_rerun_leaves_those_that_were_made_from_it_whole(tmp_path):
    run_chain(tmp_path)
    run_first(tmp_path, seconds=99.0)
    assert read(tmp_path, THIRD).notebook == THIRD


def test_a_records_values_hold_the_parameters_that_change_no_result_too(tmp_path):
    run_first(tmp_path, workers=8)
    assert read(tmp_path, FIRST).values == {"seed": 42, "workers": 8}


def test_a_record_takes_the_place_of_the_earlier_one_and_never_overwrites_it(tmp_path):
    run_first(tmp_path)
    file = file_of(tmp_path, FIRST)
    os.link(file, tmp_path / "same")  # holds what is overwritten, and not what is renamed
    before = file.read_text()
    run_first(tmp_path, seed=1)
    assert (tmp_path / "same").read_text() == before != file.read_text()
    assert {path.name for path in file.parent.iterdir()} == {f"{FIRST}.json", "earlier"}


def test_an_earlier_record_is_kept_only_where_it_differs(tmp_path):
    run_first(tmp_path)
    run_first(tmp_path, seconds=2.0)
    assert not (file_of(tmp_path, FIRST).parent / "earlier").exists()


def test_what_is_read_is_noted_once_for_the_notebooks_own_record(tmp_path):
    _, second, _ = run_chain(tmp_path)
    reader = study_of(tmp_path, "04_phi")
    for _ in range(2):
        reader.artefact(SECOND, "concepts/cirr")
    assert reader.digests == {SECOND: second.digest}


def test_a_chain_holds_a_record_and_all_it_was_made_from(tmp_path):
    first, second, third = run_chain(tmp_path)
    assert study_of(tmp_path, "04_phi").chain(THIRD) == {FIRST: first, SECOND: second, THIRD: third}


# Artefacts


def test_an_artefact_is_found_by_its_name_with_its_key(tmp_path):
    first = study_of(tmp_path, FIRST, seed=42)
    kept = first.keep("phrases", {"seed": 42}, hello)
    leave_record(first)
    assert study_of(tmp_path, SECOND).artefact(FIRST, "phrases") == kept


def test_artefacts_of_a_kind_are_found_by_the_rest_of_their_names_in_order(tmp_path):
    second = study_of(tmp_path, SECOND)
    kept = {name: second.keep(f"concepts/{name}", {}, hello) for name in ("imagenet/test", "cirr/val/references")}
    second.keep("concepts-of-another-kind", {}, hello)
    leave_record(second)
    found = study_of(tmp_path, THIRD).artefacts(SECOND, "concepts")
    assert found == kept and list(found) == list(kept)


def test_what_is_kept_inside_the_making_of_another_artefact_is_not_listed(tmp_path):
    study = study_of(tmp_path, THIRD)
    study.keep("oti/cirr", {}, lambda folder: study.keep("phrase-bank", {}, hello) and hello(folder))
    study.keep("oti/circo", {}, hello)
    assert list(study.made) == ["oti/cirr", "oti/circo"]


def test_what_is_kept_after_a_making_that_failed_is_listed(tmp_path):
    study = study_of(tmp_path, THIRD)

    def fail(folder):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        study.keep("oti/cirr", {}, fail)
    study.keep("oti/circo", {}, hello)
    assert list(study.made) == ["oti/circo"]


def test_an_artefact_that_is_found_is_listed_as_one_that_is_made(tmp_path):
    made, found = (study_of(tmp_path, THIRD) for _ in range(2))
    for study in (made, found):
        study.keep("oti/cirr", {}, lambda folder, study=study: study.keep("phrase-bank", {}, hello) and hello(folder))
    assert made.made == found.made != {}


# Refusals


def test_a_missing_record_is_asked_for_in_one_sentence(tmp_path):
    said = "04_phi needs the record of 03_oti in study tiny; run 03_oti first."
    assert refusal(tmp_path, THIRD, MissingInput) == said


def test_a_command_that_needs_a_missing_record_says_so(tmp_path):
    with pytest.raises(MissingInput, match=r"^this needs the record of 03_oti in study tiny; run 03_oti first\.$"):
        read(tmp_path, THIRD, reader="")


def test_a_missing_record_further_down_is_asked_for_by_the_notebook_that_was_made_from_it(tmp_path):
    run_chain(tmp_path)
    file_of(tmp_path, FIRST).unlink()
    said = "02_concepts needs the record of 01_phrases in study tiny; run 01_phrases first."
    assert refusal(tmp_path, THIRD, MissingInput) == said


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", '{"notebook": "03_oti"}', "\x00"])
def test_a_damaged_record_is_named_by_its_file(tmp_path, damage):
    run_chain(tmp_path)
    file_of(tmp_path, THIRD).write_text(damage)
    said = f"record {file_of(tmp_path, THIRD)} is damaged; delete it and run 03_oti again."
    assert refusal(tmp_path, THIRD, MissingInput) == said


def test_a_damaged_record_further_down_is_named_by_its_file(tmp_path):
    run_chain(tmp_path)
    file_of(tmp_path, FIRST).write_text("{")
    said = f"record {file_of(tmp_path, FIRST)} is damaged; delete it and run 01_phrases again."
    assert refusal(tmp_path, THIRD, MissingInput) == said


@pytest.mark.parametrize(("notebook", "name"), [(FIRST, "phrases"), (SECOND, "concepts/cirr"), (THIRD, "oti/cirr")])
def test_an_artefact_that_is_gone_is_named_by_its_folder_wherever_it_is_in_the_chain(tmp_path, notebook, name):
    records = {record.notebook: record for record in run_chain(tmp_path)}
    folder = tmp_path / "artefacts" / records[notebook].made[name]
    shutil.rmtree(folder)
    said = f"{notebook}'s artefact {folder} is gone; run {notebook} again."
    assert refusal(tmp_path, THIRD, MissingInput) == said


def test_an_artefact_that_a_notebook_did_not_make_is_named_with_what_to_change(tmp_path):
    run_chain(tmp_path)
    with pytest.raises(MissingInput) as problem:
        study_of(tmp_path, "06_retrieval").artefact(THIRD, "oti/circo/val/references")
    assert str(problem.value) == (
        "06_retrieval needs oti/circo/val/references, which 03_oti has not made; check datasets, evaluate and "
        "images_to_invert of 02_concepts, and run it and 03_oti again."
    )


def test_a_parameter_that_changed_one_level_down_is_told_with_both_values(tmp_path):
    run_chain(tmp_path)
    run_second(tmp_path, depth=100)
    said = "03_oti was made with depth 250, but 02_concepts now has 100; run 03_oti again."
    assert refusal(tmp_path, THIRD, StaleInput) == said


def test_several_parameters_that_changed_are_told_together(tmp_path):
    run_chain(tmp_path)
    run_second(tmp_path, depth=100, vocabulary="")
    said = '03_oti was made with depth 250, vocabulary names.csv, but 02_concepts now has 100, ""; run 03_oti again.'
    assert refusal(tmp_path, THIRD, StaleInput) == said


def test_a_parameter_that_changed_two_levels_down_stops_the_notebook_between_first(tmp_path):
    run_chain(tmp_path)
    run_first(tmp_path, seed=7)
    said = "02_concepts was made with seed 42, but 01_phrases now has 7; run 02_concepts again."
    assert refusal(tmp_path, THIRD, StaleInput) == said


def test_a_parameter_that_changed_two_levels_down_is_told_when_the_notebook_between_has_run_again(tmp_path):
    run_chain(tmp_path)
    run_first(tmp_path, seed=7)
    run_second(tmp_path)
    said = "03_oti was made with seed 42, but 01_phrases now has 7; run 03_oti again."
    assert refusal(tmp_path, THIRD, StaleInput) == said


def test_code_that_changed_is_told_with_its_notebook(tmp_path):
    run_chain(tmp_path)
    run_second(tmp_path, code="edited")
    said = "03_oti was made from 02_concepts before its code changed; run 03_oti again."
    assert refusal(tmp_path, THIRD, StaleInput) == said


def test_code_that_changed_two_levels_down_is_told_with_its_notebook(tmp_path):
    run_chain(tmp_path)
    run_first(tmp_path, code="edited")
    run_second(tmp_path)
    said = "03_oti was made from 01_phrases before its code changed; run 03_oti again."
    assert refusal(tmp_path, THIRD, StaleInput) == said


def test_artefacts_that_changed_while_parameters_and_code_did_not_are_told(tmp_path):
    run_chain(tmp_path)
    second = study_of(tmp_path, SECOND, depth=250, vocabulary="names.csv")
    second.artefact(FIRST, "phrases")
    second.keep("concepts/cirr", {"of": "images that were replaced"}, hello)
    leave_record(second)
    said = "03_oti was made from other artefacts than 02_concepts has made since; run 03_oti again."
    assert refusal(tmp_path, THIRD, StaleInput) == said


def test_a_change_whose_earlier_record_is_lost_is_told_without_its_reason(tmp_path):
    run_chain(tmp_path)
    run_second(tmp_path, depth=100)
    shutil.rmtree(file_of(tmp_path, SECOND).parent / "earlier")
    said = "03_oti was made from an earlier run of 02_concepts; run 03_oti again."
    assert refusal(tmp_path, THIRD, StaleInput) == said


def test_a_problem_is_the_sentence_that_reading_raises_and_nothing_where_there_is_none(tmp_path):
    run_chain(tmp_path)
    study = study_of(tmp_path, "06_retrieval")
    assert study.problem(THIRD) == "" and study.digests == {}
    run_second(tmp_path, depth=100)
    assert study.problem(THIRD) == refusal(tmp_path, THIRD, StaleInput)


# Back again, and other studies


def test_going_back_to_the_old_parameter_makes_the_chain_whole_again(tmp_path):
    run_chain(tmp_path)
    run_first(tmp_path, seed=7)
    assert study_of(tmp_path).problem(THIRD)
    run_first(tmp_path)
    assert study_of(tmp_path).problem(THIRD) == ""


def test_where_only_the_first_has_gone_back_the_one_between_is_to_run_again(tmp_path):
    run_chain(tmp_path)
    run_first(tmp_path, seed=7)
    run_second(tmp_path)
    run_first(tmp_path)
    said = "02_concepts was made with seed 7, but 01_phrases now has 42; run 02_concepts again."
    assert refusal(tmp_path, THIRD, StaleInput) == said
    run_second(tmp_path)
    assert study_of(tmp_path).problem(THIRD) == ""


def test_a_record_of_another_study_on_the_same_store_is_not_touched(tmp_path):
    run_first(tmp_path)
    other = run_first(tmp_path, study="other")
    before = file_of(tmp_path, FIRST, "other").read_bytes()
    run_first(tmp_path, seed=7)
    assert file_of(tmp_path, FIRST, "other").read_bytes() == before
    assert study_of(tmp_path, SECOND, "other").read(FIRST) == other


def test_two_studies_with_the_same_parameters_share_their_artefacts(tmp_path):
    assert run_first(tmp_path).made == run_first(tmp_path, study="other").made
    assert len(list((tmp_path / "artefacts").glob("phrases-*"))) == 1


@pytest.mark.parametrize(
    ("given", "expected"), [("here.txt", True), ("gone.txt", False), ("ViT-B/32", False), ("", False)]
)
def test_a_path_is_completed_where_the_project_has_such_a_file(tmp_path, given, expected):
    (tmp_path / "here.txt").touch()
    assert study_of(tmp_path).path(given) == (str(tmp_path / given) if expected else given)


# What a notebook leaves is one transaction


def test_a_notebook_that_stops_between_two_report_files_leaves_no_record_of_other_files(tmp_path):
    first = run_first(tmp_path)
    second_run = study_of(tmp_path, FIRST, seed=1)
    file = second_run.report("results.csv")
    file.write_text("numbers of seed 1")  # and here it stops
    assert file == tmp_path / "reports/tiny/results.csv"
    assert study_of(tmp_path).problem(FIRST) == f"this needs the record of {FIRST} in study tiny; run {FIRST} first."
    assert run_first(tmp_path) == first
    assert not list((tmp_path / "reports/tiny/records/earlier").iterdir())


def test_a_damaged_record_is_withdrawn_too(tmp_path):
    run_first(tmp_path)
    file_of(tmp_path, FIRST).write_text("{")
    study_of(tmp_path, FIRST).report("results.csv")
    assert not file_of(tmp_path, FIRST).exists()


def test_a_withdrawn_record_still_explains_what_changed(tmp_path):
    run_chain(tmp_path)
    study_of(tmp_path, FIRST, seed=1).report("log.csv")
    run_first(tmp_path, seed=1)
    assert refusal(tmp_path, SECOND, StaleInput).startswith(f"{SECOND} was made with seed 42, but {FIRST} now has 1")


def test_a_damaged_artefact_is_a_problem_of_its_notebook_and_of_those_that_read_it(tmp_path):
    run_chain(tmp_path)
    (file,) = (tmp_path / "artefacts").glob("phrases-*/hello.txt")
    file.write_text("hellO")
    said = f"artefact {file.parent} is damaged (hello.txt has changed since it was written); delete that folder and run"
    for notebook in (FIRST, SECOND, THIRD):
        assert study_of(tmp_path).problem(notebook) == f"{said} {FIRST} again."
    (file.parent / "manifest.json").unlink()
    assert (
        study_of(tmp_path)
        .problem(THIRD)
        .endswith(f"damaged (manifest.json is gone); delete that folder and run {FIRST} again.")
    )
