"""What runs again after a change, what is skipped, and what is said when a notebook runs by hand on other records."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from projects import NOTEBOOKS, ROOT, artefacts, command, environment, lines, papermill, pickle_network, process, run

UNCHANGED = dict.fromkeys(NOTEBOOKS, "unchanged")

pytestmark = pytest.mark.slow


@pytest.fixture
def project(quick, tmp_path):
    """A copy of a project whose study has run once, to change."""
    return shutil.copytree(quick[0], tmp_path / "project", symlinks=True)


def record(project, notebook, study="quick"):
    return json.loads((project / f"reports/{study}/records/{notebook}.json").read_text())


def trainings(project):
    return artefacts(project, "oti") | artefacts(project, "phi-training") | artefacts(project, "fti4cir-training")


def page(project, notebook):
    return (project / f"reports/quick/{notebook}.html").read_text()


def test_nothing_runs_when_nothing_has_changed(project):
    table = project / "reports/quick/results.csv"
    before = (table.stat().st_mtime_ns, artefacts(project, ""))
    started = time.monotonic()
    assert run(project) == UNCHANGED
    assert time.monotonic() - started < 15  # under 5 s on an idle machine
    assert (table.stat().st_mtime_ns, artefacts(project, "")) == before


def test_again_runs_what_is_unchanged_and_leaves_the_same_digest(project):
    before = record(project, "01_phrases")
    assert run(project, "--only", "01_phrases", "--again") == {"01_phrases": "done"}
    after = record(project, "01_phrases")
    assert after["execution"]["date"] > before["execution"]["date"]
    assert {k: v for k, v in after.items() if k != "execution"} == {k: v for k, v in before.items() if k != "execution"}
    assert run(project) == UNCHANGED


def test_a_changed_parameter_runs_exactly_the_notebooks_that_depend_on_it(project):
    said = run(project, "-p", "oti_steps=5")
    assert [name for name, what in said.items() if what == "done"] == ["03_oti", "04_phi", "06_retrieval", "07_results"]
    before = trainings(project)
    run(project)  # back to the old value: every artefact is found again
    assert trainings(project) == before


def test_a_parameter_that_only_changes_speed_runs_nothing(project):
    assert run(project, "-p", "oti_batch_size=3", "-p", "workers=1", "-p", "phi_save_every=2") == UNCHANGED


@pytest.mark.parametrize(
    "changes",
    [
        ["datasets=[circo]", "evaluate=[test]"],
        ["datasets=[fashioniq]", "fashioniq_gallery=union"],
    ],
)
def test_evaluating_something_else_trains_and_inverts_nothing_again(project, changes):
    before = trainings(project)
    run(project, *[part for change in changes for part in ("-p", change)])
    assert trainings(project) == before


def test_fewer_methods_run_retrieval_and_results_alone(project):
    before = trainings(project)
    said = run(project, "-p", "methods=[Image-only, SEARLE]")
    assert trainings(project) == before
    assert said["05_fti4cir"] == "skipped, since methods does not hold FTI4CIR"
    assert [name for name, what in said.items() if what == "done"] == ["06_retrieval", "07_results"]
    assert set(pd.read_csv(project / "reports/quick/results.csv")["method"]) == {"Image-only", "SEARLE"}


def test_a_study_without_cirr_can_be_trained(project):
    run(project, "-p", "datasets=[circo]", "-p", "methods=[SEARLE]", "-p", "phi_epochs=1")
    assert set(pd.read_csv(project / "reports/quick/results.csv")["dataset"]) == {"CIRCO"}
    assert list(pd.read_csv(project / "reports/quick/phi_log.csv").columns) == ["epoch", "distil", "gpt"]


def test_a_study_that_brings_both_networks_trains_nothing(project, tiny):
    pickle_network(project / "model_60.pth", tiny.dimension, tiny.patch_width)
    assert command(project, "export", "params/quick.yaml", "--to", "exported").returncode == 0
    (phi,) = (project / "exported").rglob("phi_*.pt")
    before = trainings(project)
    methods = "methods=[Image-only, SEARLE, FTI4CIR]"
    brought = ("-p", "study=brought", "-p", f"phi_checkpoint={phi}", "-p", "fti_weights=model_60.pth", "-p", methods)
    said = run(project, *brought)
    assert [name for name, what in said.items() if what == "done"] == NOTEBOOKS[1:2] + NOTEBOOKS[3:]
    assert trainings(project) == before
    table = pd.read_csv(project / "reports/brought/results.csv")
    assert set(table["method"]) == {"Image-only", "SEARLE", "FTI4CIR"}
    trained = pd.read_csv(project / "reports/quick/results.csv")
    keys = ["method", "dataset", "category", "metric", "value"]
    assert same(table[keys], trained[keys], "SEARLE") and not same(table[keys], trained[keys], "FTI4CIR")
    again = run(project, *brought)
    assert {name: "unchanged" if what == "done" else what for name, what in said.items()} == again


def same(one, other, method):
    """Whether two tables of results agree on a method."""
    one, other = (table[table["method"] == method].reset_index(drop=True) for table in (one, other))
    return one.equals(other)


def test_a_checkpoint_chosen_on_a_split_is_not_reported_there(project):
    before = trainings(project)
    run(project, "-p", "fti_checkpoint=cirr")
    table = pd.read_csv(project / "reports/quick/results.csv")
    assert set(table[table["method"] == "FTI4CIR"]["dataset"]) == {"FashionIQ", "CIRCO"}
    assert trainings(project) == before


def test_edited_code_runs_what_reaches_it_and_an_edited_comment_runs_nothing(project):
    def run(project):
        return lines(process(project, "run", "params/quick.yaml").stdout)  # a process that imports the edited copy

    library = shutil.copytree(ROOT / "searle_lib", project / "searle_lib")
    assert run(project) == UNCHANGED
    file = library / "reporting/tables.py"
    edited = file.read_text().replace("""Show a benchmark's results""", """Show the results of a benchmark""", 1)
    assert edited != file.read_text()
    file.write_text(f"{edited}\n# more\n")
    assert run(project) == UNCHANGED
    file = library / "evaluation/composers.py"
    before = artefacts(project, "rankings")
    file.write_text(file.read_text().replace('PROMPT = "a photo of $ that {}"', 'PROMPT = "a picture of $ that {}"'))
    said = run(project)
    assert said["06_retrieval"] == said["07_results"] == "done" and said["03_oti"] == "unchanged"
    new = {path.name.rpartition("-")[0] for path in artefacts(project, "rankings").keys() - before.keys()}
    assert new == {"Text-only", "Image+Text", "SEARLE", "SEARLE-OTI"}  # those that read sentences; FTI4CIR has its own


def test_an_earlier_notebook_rerun_by_hand_is_told_to_those_that_depend_on_it(project):
    done = papermill(project, "03_oti", "-f", "params/quick.yaml", "-p", "oti_steps", "5")
    assert done.returncode == 0, done.stderr
    stale = "04_phi was made with oti_steps 4, but 03_oti now has 5; run 04_phi again."
    assert "This page is older than the last run of 03_oti" in page(project, "03_oti")
    for notebook in ("04_phi", "06_retrieval", "07_results"):
        assert "This page shows an earlier state" in page(project, notebook), notebook
    assert '<p class="stale">' not in page(project, "05_fti4cir")
    done = papermill(project, "06_retrieval", "-p", "study", "quick")
    assert done.returncode == 0, done.stderr  # the methods whose records are whole are evaluated
    cells = json.loads((project / "06_retrieval.by-hand.ipynb").read_text())["cells"]
    printed = "".join("".join(o.get("text", "")) for cell in cells for o in cell.get("outputs", []))
    assert f"SEARLE is left out: {stale}" in printed and "SEARLE-OTI is left out" not in printed
    assert "rankings/circo/val/SEARLE-OTI" in record(project, "06_retrieval")["made"]
    assert "rankings/circo/val/SEARLE" not in record(project, "06_retrieval")["made"]
    assert page(project, "07_results") and (project / "reports/quick/results.csv").is_file()
    done = command(project, "run", "params/quick.yaml", "--only", "06_retrieval")
    assert done.returncode == 1 and "03_oti ran with oti_steps 5 and params/quick.yaml says 4" in done.stderr
    done = command(project, "run", "params/quick.yaml", "--only", "06_retrieval", "-p", "oti_steps=5")
    assert done.returncode == 1 and "-p oti_steps is used by 03_oti, and none of them is to run" in done.stderr
    run(project)  # makes everything whole again
    assert all("This page" not in page(project, notebook) for notebook in NOTEBOOKS)


def test_files_for_the_servers_are_refused_when_the_parameters_say_something_else(project):
    for change in ("oti_steps=5", "phi_epochs=3", "seed=1", "fti_without=subject", "phrases_per_concept=5"):
        done = command(project, "submit", "params/quick.yaml", "-p", change)
        name, _, value = change.partition("=")
        assert done.returncode == 1 and re.search(
            rf"ran with {name} .* and params/quick.yaml says {value}", done.stderr
        )


def test_a_missing_and_a_damaged_artefact_are_named_with_their_notebook_and_made_again(project):
    made = record(project, "02_concepts")["made"]["embeddings/cirr/val"]
    folder = project / "data/artefacts" / made
    (folder / "embeddings.safetensors").write_bytes(b"no tensors")
    done = command(project, "run", "params/quick.yaml", "--only", "06_retrieval", "--again")
    assert done.returncode == 1
    assert re.search(rf"artefact {folder} is damaged \(.*\); delete that folder and run 02_concepts again", done.stderr)
    shutil.rmtree(folder)
    done = command(project, "run", "params/quick.yaml", "--only", "07_results", "--again")
    assert done.returncode == 1 and f"02_concepts's artefact {folder} is gone; run 02_concepts again." in done.stderr
    said = run(project)
    assert said["02_concepts"] == "done" and said["03_oti"] == said["06_retrieval"] == "unchanged"


def test_two_studies_on_one_store_leave_each_other_alone(project):
    before = artefacts(project, "")
    said = run(project, "-p", "study=whatif", "-p", "oti_steps=5", "-p", "methods=[SEARLE-OTI]")
    assert [name for name, what in said.items() if what == "done"] == [*NOTEBOOKS[:3], *NOTEBOOKS[5:]]
    assert artefacts(project, "phrases").keys() == {path for path in before if path.name.startswith("phrases-")}
    assert run(project) == UNCHANGED
    assert record(project, "03_oti", "whatif")["parameters"]["oti_steps"] == 5


@pytest.mark.skipif(os.name != "posix", reason="needs kill -9")
def test_a_kill_between_artefact_and_record_costs_nothing_but_the_rest_of_the_notebook(project):
    ran = subprocess.Popen(
        [sys.executable, "-m", "searle_lib", "run", "params/quick.yaml", "-p", "phi_epochs=3"],
        cwd=project, env=environment(project), start_new_session=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    old = set(artefacts(project, "phi-training"))
    while set(artefacts(project, "phi-training")) == old:
        assert ran.poll() is None
        time.sleep(0.02)
    os.killpg(ran.pid, signal.SIGKILL)
    ran.wait()
    assert record(project, "04_phi")["parameters"]["phi_epochs"] == 2
    before = artefacts(project, "phi-training")
    said = run(project, "-p", "phi_epochs=3")
    assert said["03_oti"] == "unchanged" and said["04_phi"] == "done"
    assert artefacts(project, "phi-training") == before
