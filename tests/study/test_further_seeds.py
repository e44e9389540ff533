"""A study with further seeds: which studies run, what they share, and what depends on them."""

import json
import re
import shutil

import pandas as pd
import pytest
from projects import NOTEBOOKS, ROOT, artefacts, command, lines

from searle_lib.study import parameters, run

SHARED = {"benchmarks", "clip", "concepts", "embeddings", "patches"}  # kinds of artefacts without chance
COMPOSING = {"SEARLE", "SEARLE-OTI", "FTI4CIR"}


def printed_by_study(printed):
    """What a run printed of each notebook, by the headings of the seeds; what comes before the first by ""."""
    first, *rest = re.split(r"^seed \d+: study (.+)$", printed, flags=re.M)
    return {"": lines(first)} | {name: lines(text) for name, text in zip(rest[::2], rest[1::2], strict=True)}


def record(project, study, notebook):
    return json.loads((project / f"reports/{study}/records/{notebook}.json").read_text())


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ([-1], r"seeds in -p is \[-1\]; it must be greater than or equal to 0"),
        (["a"], r"seeds in -p is \['a'\]; it must be a valid integer"),
        ([True], r"seeds in -p is \[True\]; it must be a valid integer"),
        (1, r"seeds in -p is 1, a int, but must be of type list"),
    ],
)
def test_a_seed_that_is_no_seed_is_refused(value, sentence):
    declarations = parameters.read_declarations(sorted((ROOT / "notebooks").glob("0*.ipynb")))
    with pytest.raises(ValueError, match=sentence):
        parameters.check("seeds", value, declarations, "-p")
    assert parameters.check("seeds", [3, 0], declarations, "-p") == [3, 0]
    assert parameters.check("seeds", [], declarations, "-p") == []


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("seeds=[1, 42]", "seeds in params/mini.yaml holds 42, which is the study's own seed; name other seeds."),
        ("seeds=[1, 1]", "seeds in params/mini.yaml holds 1 twice; name each seed once."),
    ],
)
def test_a_seed_that_repeats_a_training_is_refused_before_anything_runs(override, sentence, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        run.read_values(ROOT.joinpath("params/mini.yaml").relative_to(ROOT), [override])


@pytest.fixture(scope="module")
def project(quick, tmp_path_factory):
    """A copy of the quick study's project that has run once more with one further seed, and what that run printed."""
    folder = shutil.copytree(quick[0], tmp_path_factory.mktemp("seeds") / "project", symlinks=True)
    before = artefacts(folder, "")
    ran = command(folder, "run", "params/quick.yaml", "-p", "seeds=[1]")
    assert ran.returncode == 0, ran.stderr
    return folder, printed_by_study(ran.stdout), before


@pytest.mark.slow
def test_a_further_seed_runs_a_study_of_its_own_before_07_results(project):
    folder, printed, _ = project
    assert list(printed) == ["", "quick-seed1", "quick"]
    assert printed[""] == dict.fromkeys(NOTEBOOKS[:-1], "unchanged")
    assert printed["quick-seed1"] == dict.fromkeys(NOTEBOOKS, "done")
    assert printed["quick"] == {"07_results": "done"}
    assert record(folder, "quick-seed1", "04_phi")["parameters"]["seed"] == 1
    assert (folder / "reports/quick-seed1/index.html").is_file()


@pytest.mark.slow
def test_what_does_not_depend_on_chance_is_not_made_again(project):
    folder, _, before = project
    after = artefacts(folder, "")
    assert {path: after[path] for path in before} == before
    new = {path.relative_to(folder / "data/artefacts") for path in set(after) - set(before)}
    kinds = {re.sub(r"-[0-9a-f]{10}$", "", path.parts[0]) for path in new}
    assert {"oti", "phi-training", "fti4cir-training"} <= kinds and not SHARED & kinds
    assert {path.name.rpartition("-")[0] for path in new if path.parts[0] == "rankings"} == COMPOSING
    same = record(folder, "quick", "02_concepts")["made"]
    assert record(folder, "quick-seed1", "02_concepts")["made"] == same
    assert {name.partition("/")[0] for name in same} >= {"clip", "embeddings"}


@pytest.mark.slow
def test_the_seeds_differ_only_in_methods_that_depend_on_chance(project):
    folder, _, _ = project
    tables = [pd.read_csv(folder / "reports" / name / "results.csv") for name in ("quick", "quick-seed1")]
    differs = tables[0]["value"] != tables[1]["value"]
    assert set(tables[0]["method"][differs]) == COMPOSING


@pytest.mark.slow
def test_07_results_reports_the_spread_and_its_record_depends_on_the_other_study(project):
    folder, _, _ = project
    assert "quick-seed1/07_results" in record(folder, "quick", "07_results")["read"]
    page = (folder / "reports/quick/07_results.html").read_text()
    assert "Over 2 seeds (42, 1) a main number varies by at most" in page


@pytest.mark.slow
def test_nothing_runs_again_until_a_study_of_a_seed_changes(project, tmp_path):
    folder = shutil.copytree(project[0], tmp_path / "project", symlinks=True)
    ran = command(folder, "run", "params/quick.yaml", "-p", "seeds=[1]")
    unchanged = dict.fromkeys(NOTEBOOKS, "unchanged")
    last = {"07_results": "unchanged"}
    expected = {"": dict.fromkeys(NOTEBOOKS[:-1], "unchanged"), "quick-seed1": unchanged, "quick": last}
    assert printed_by_study(ran.stdout) == expected
    ran = command(
        folder, "run", "params/quick.yaml", "-p", "seeds=[1]", "-p", "sheet_queries=2", "--from", "07_results"
    )
    printed = printed_by_study(ran.stdout)
    assert printed["quick-seed1"] == unchanged | {"07_results": "done"} and printed["quick"] == {"07_results": "done"}


@pytest.mark.slow
def test_two_studies_are_compared_by_folder_and_by_parameter_file(project):
    folder, _, _ = project
    ran = command(folder, "compare", "params/quick.yaml", "reports/quick-seed1")
    assert ran.returncode == 0, ran.stderr
    assert "95 % interval" in ran.stdout and "no main number differs" in ran.stdout
    page = folder / "reports" / "compare-quick-quick-seed1.html"
    assert ran.stdout.endswith(f"{page}\n")
    text = re.sub(r"<[^>]+>", " ", page.read_text())
    assert re.search(r"seed\s+42\s+1\s+01_phrases", text)
    strict = command(folder, "compare", "reports/quick", "reports/quick-seed1", "--tolerance", "0.05")
    assert strict.returncode == 1 and strict.stdout.endswith("some numbers differ by more than 0.05 points.\n")


@pytest.mark.slow
def test_seeds_without_07_results_are_refused(project):
    ran = command(project[0], "run", "params/quick.yaml", "-p", "seeds=[2]", "--only", "03_oti")
    assert ran.returncode == 1 and ran.stderr.startswith("error: -p seeds is used by 07_results, and none of them is")
