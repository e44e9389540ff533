"""What the command and the notebooks refuse, in one sentence, before anything is computed."""

import json
import re
import shutil
import subprocess
import sys

import pytest
from projects import ROOT, command, make_project, papermill

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(world, tmp_path_factory):
    """A project whose study has not run."""
    return make_project(tmp_path_factory.mktemp("project"), world)


@pytest.mark.parametrize("notebook", ["03_oti", "07_results"])
def test_a_notebook_that_runs_too_early_says_which_one_to_run(world, tmp_path, notebook):
    folder = make_project(tmp_path / "project", world)
    ran = command(folder, "run", "params/quick.yaml", "--only", notebook)
    assert ran.returncode == 1
    needed = {"07_results": "06_retrieval"}.get(notebook, "02_concepts")
    sentence = f"error: {notebook} stopped: {notebook} needs the record of {needed} in study quick; run {needed}"
    assert ran.stderr.strip().splitlines()[-1].startswith(sentence), ran.stderr
    reports = folder / "reports" / "quick"
    assert sorted(path.name for path in reports.iterdir()) == [f"{notebook}.failed.ipynb", "run.log"]
    assert not list((folder / "data").rglob("*.safetensors"))  # nothing was computed that another notebook makes


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-p", "oti_stesp=5"], "unknown parameter oti_stesp in -p; did you mean oti_steps"),
        (["-p", "oti_steps=many"], "oti_steps in -p is 'many', a str, but must be of type int"),
        (["--only", "05_pic2word"], "there is no notebook 05_pic2word; choose one of 01_phrases, 02_concepts"),
        (["--from", "oti"], "there is no notebook oti; choose one of"),
        (["--only", "07_results", "-p", "oti_steps=5"], "-p oti_steps is used by 03_oti, and none"),
        (["-p", "methods=[SEARL]"], "methods in -p holds 'SEARL'; it must be Image-only or"),
        (["-p", "datasets=[]"], "datasets in -p is empty; name at least one of fashioniq, cirr, circo"),
        (["-p", "phi_validate_every=1"], "unknown parameter phi_validate_every in -p; did you mean"),
    ],
)
def test_the_command_refuses_bad_input_before_anything_runs(project, arguments, sentence):
    ran = command(project, "run", "params/quick.yaml", *arguments)
    assert ran.returncode == 1
    assert ran.stderr.startswith(f"error: {sentence}") and len(ran.stderr.strip().splitlines()) == 1
    assert not (project / "data").exists() and not list(project.glob("reports/*/*"))


def test_a_report_folder_that_cannot_be_made_is_refused_before_anything_runs(world, tmp_path):
    folder = make_project(tmp_path / "project", world)
    (folder / "reports").write_text("a file")
    ran = command(folder, "run", "params/quick.yaml")
    assert ran.returncode == 1 and len(ran.stderr.strip().splitlines()) == 1
    assert "reports is a file" in ran.stderr and "report_root" in ran.stderr
    assert not (folder / "data").exists()


def test_a_missing_image_stops_the_study_with_its_name(world, tmp_path):
    broken = shutil.copytree(world, tmp_path / "data")
    listed = sorted((broken / "CIRR" / "dev").iterdir())[5]
    listed.unlink()
    folder = make_project(tmp_path / "project", broken)
    ran = command(folder, "run", "params/quick.yaml", "--only", "02_concepts")
    assert ran.returncode == 1
    assert f"image {listed.stem} is listed but {listed} does not exist; download it" in ran.stderr


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            ["-p", "oti_step", "50"],
            "unknown parameter oti_step in papermill's values for 03_oti; did you mean oti_steps",
        ),
        (["-p", "oti_steps", "fifty"], "oti_steps in 03_oti is 'fifty', a str, but must be of type int"),
        (["-p", "oti_steps", "0"], "oti_steps in 03_oti is 0; it must be greater than 0"),
    ],
)
def test_plain_papermill_with_a_wrong_value_is_refused_by_the_notebook_in_one_sentence(project, values, sentence):
    done = papermill(project, "03_oti", "-p", "study", "quick", *values)
    assert done.returncode != 0
    cells = json.loads((project / "03_oti.by-hand.ipynb").read_text())["cells"]
    (error,) = [o for cell in cells for o in cell.get("outputs", []) if o["output_type"] == "error"]
    assert error["evalue"].startswith(sentence)
    assert len(error["traceback"]) == 1 and error["traceback"][0].startswith(f"ValueError: {sentence}")


def test_an_error_that_is_no_refusal_keeps_its_traceback(project, tmp_path):
    notebook = json.loads((project / "notebooks" / "01_phrases.ipynb").read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    code[2]["source"] = ["1 / 0"]
    other = shutil.copytree(project, tmp_path / "other", ignore=shutil.ignore_patterns("data", "reports"))
    (other / "notebooks" / "01_phrases.ipynb").write_text(json.dumps(notebook))
    assert papermill(other, "01_phrases", "-f", "params/quick.yaml").returncode != 0
    cells = json.loads((other / "01_phrases.by-hand.ipynb").read_text())["cells"]
    (error,) = [o for cell in cells for o in cell.get("outputs", []) if o["output_type"] == "error"]
    assert error["ename"] == "ZeroDivisionError" and "1 / 0" in re.sub(
        r"\x1b\[[\d;]*m", "", "".join(error["traceback"])
    )


def test_papermill_prints_a_notebooks_parameters_as_a_manual():
    arguments = ["-m", "papermill", "--help-notebook", "notebooks/03_oti.ipynb"]
    ran = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0
    output = " ".join(ran.stdout.split())
    assert "oti_steps: int (default 60) optimisation steps an image (SEARLE, oti-steps: 350)" in output


@pytest.mark.parametrize(
    ("line", "sentence"),
    [("oti_steps: 5\noti_steps: 6", "sets oti_steps twice"), ("- a list", "must hold one `name: value` per line")],
)
def test_a_parameter_file_that_is_none_is_refused(project, line, sentence):
    (project / "params" / "bad.yaml").write_text(line)
    done = command(project, "run", "params/bad.yaml")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and re.search(sentence, done.stderr)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["validate", "gone.json", "--data-root", "."], "gone.json does not exist"),
        (["score", "gone.json", "--dataset", "circo", "--data-root", "."], "gone.json does not exist"),
        (["check", "params/gone.yaml"], "parameter file params/gone.yaml does not exist"),
        (
            ["export", "params/quick.yaml", "--to", "out", "-p", "study=never"],
            "needs the record of 06_retrieval in study",
        ),
        (
            ["submit", "params/quick.yaml", "-p", "study=never"],
            "needs the record of 06_retrieval in study never; run 06",
        ),
    ],
)
def test_every_command_refuses_what_it_cannot_use_in_one_sentence(project, arguments, sentence):
    done = command(project, *arguments)
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: ") and re.search(sentence, done.stderr)
