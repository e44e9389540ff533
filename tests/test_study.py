"""The notebooks run for real on a small drawn world, by the command, by papermill, and opened in a browser."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml
from conftest import OPTIONAL

from searle_lib import workspace

ROOT = Path(__file__).parents[1]
QUICK = {
    "study": "quick",
    "world": "real",
    "phrases_per_concept": 4,
    "oti_steps": 4,
    "phi_epochs": 2,
    "phi_batch_size": 8,
    "phi_save_every": 1,
    "fti_epochs": 2,
    "fti_batch_size": 8,
    "fti_validate_every": 1,
    "fti_save_every": 1,
    "bootstrap_resamples": 50,
    "sheet_queries": 1,
}


def command(project, *arguments):
    """Run `python -m searle_lib` in a project folder, with every optional package hidden from it and its kernels."""
    (project / "hidden").mkdir(exist_ok=True)
    hide = f"import sys\nfor name in {OPTIONAL}: sys.modules[name] = None\n"
    (project / "hidden" / "sitecustomize.py").write_text(hide)
    environment = os.environ | {"COLUMNS": "200", "PYTHONPATH": str(project / "hidden")}
    return subprocess.run(
        [sys.executable, "-m", "searle_lib", *arguments], cwd=project, env=environment, capture_output=True, text=True
    )


def make_project(folder, world):
    shutil.copytree(ROOT / "notebooks", folder / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    (folder / "params").mkdir(parents=True)
    places = {
        "data_root": str(world),
        "clip_model": str(world / "models" / "tiny-clip.pt"),
        "language_model": str(world / "models" / "tiny-gpt-neo"),
        "vocabulary": str(world / "oidv7-class-descriptions.csv"),
        "captions_file": str(world / "ImageNet1K" / "blip_pairs.json"),
    }
    mini = yaml.safe_load((ROOT / "params" / "mini.yaml").read_text())
    (folder / "params" / "quick.yaml").write_text(yaml.safe_dump(mini | QUICK | places))
    return folder


@pytest.fixture(scope="module")
def project(world, tmp_path_factory):
    """A project of its own whose study has run once, with what that run printed."""
    folder = make_project(tmp_path_factory.mktemp("project"), world)
    ran = command(folder, "run", "params/quick.yaml")
    assert ran.returncode == 0, ran.stderr
    return folder, ran.stdout


def snapshot(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_the_command_prints_a_line_a_notebook_the_main_table_and_the_index(project):
    folder, printed = project
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        assert re.search(rf"^{path.stem} +\d+\.\d s  done$", printed, re.M), printed
    assert "SEARLE-OTI" in printed and "CIRCO mAP@10" in printed
    assert printed.rstrip().endswith(str(folder / "reports" / "quick" / "index.html"))


def test_results_hold_every_benchmark_method_and_metric(project):
    folder, _ = project
    table = pd.read_csv(folder / "reports" / "quick" / "results.csv")
    assert set(table["study"]) == {"quick"} and set(table["backbone"]) == {"tiny-clip"}
    assert set(table["method"]) == {"Image-only", "Text-only", "Image+Text", "SEARLE", "SEARLE-OTI", "FTI4CIR"}
    per_method = table[table["method"] == "SEARLE"]
    found = set(zip(per_method["dataset"], per_method["category"], per_method["metric"], strict=True))
    for category in ("dress", "shirt", "toptee", "average"):
        assert {("FashionIQ", category, m) for m in ("R@10", "R@50", "mAP@10", "mAP@50")} <= found
    assert {("CIRR", "all", f"R@{k}") for k in (1, 5, 10, 50)} <= found
    assert {("CIRR", "subset", f"Rsubset@{k}") for k in (1, 2, 3)} <= found
    assert {("CIRCO", "all", f"mAP@{k}") for k in (5, 10, 25, 50)} <= found
    assert (table["ci_low"] <= table["value"]).all() and (table["value"] <= table["ci_high"]).all()
    assert not table.duplicated(["dataset", "split", "category", "method", "metric"]).any()


def test_submission_files_are_there_for_every_method(project):
    folder, _ = project
    files = sorted(path.name for path in (folder / "reports" / "quick" / "submissions").glob("*.json"))
    assert len(files) == 18 and "cirr-test1-subset-SEARLE.json" in files and "circo-test-SEARLE-OTI.json" in files


def test_a_second_run_computes_nothing_and_leaves_the_same_bytes(project):
    folder, _ = project
    before, table = snapshot(folder / "data"), (folder / "reports/quick/results.csv").read_bytes()
    again = command(folder, "run", "params/quick.yaml")
    assert again.returncode == 0, again.stderr
    assert snapshot(folder / "data") == before
    assert (folder / "reports/quick/results.csv").read_bytes() == table


def test_without_artefacts_the_same_numbers_come_again(project, world, tmp_path):
    folder, _ = project
    other = make_project(tmp_path / "other", world)
    ran = command(other, "run", "params/quick.yaml")
    assert ran.returncode == 0, ran.stderr
    assert (other / "reports/quick/results.csv").read_bytes() == (folder / "reports/quick/results.csv").read_bytes()


def test_papermill_runs_a_notebook_with_a_parameter_file_and_a_changed_value(project, tmp_path):
    folder, _ = project
    shutil.copytree(folder / "data" / "artefacts", tmp_path / "artefacts")
    arguments = ["notebooks/03_oti.ipynb", str(tmp_path / "out.ipynb"), "-f", "params/quick.yaml"]
    arguments += ["-p", "oti_steps", "2", "-p", "artefact_root", str(tmp_path / "artefacts")]
    ran = subprocess.run([sys.executable, "-m", "papermill", *arguments], cwd=folder, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert len(list((tmp_path / "artefacts" / "oti").glob("imagenet-test-*"))) == 2


def test_papermill_prints_a_notebooks_parameters_as_a_manual():
    arguments = ["-m", "papermill", "--help-notebook", "notebooks/03_oti.ipynb"]
    ran = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0
    said = " ".join(ran.stdout.split())
    assert "oti_steps: int (default 60) optimisation steps an image (SEARLE, oti-steps: 350)" in said


@pytest.mark.parametrize("notebook", ["03_oti", "04_phi", "06_retrieval", "07_results"])
def test_a_notebook_that_runs_too_early_says_which_one_to_run(world, tmp_path, notebook):
    folder = make_project(tmp_path / "project", world)
    ran = command(folder, "run", "params/quick.yaml", "--only", notebook)
    assert ran.returncode == 1
    needed = {"07_results": "06_retrieval"}.get(notebook, "01_phrases")
    last = ran.stderr.strip().splitlines()[-1]
    assert re.fullmatch(rf"error: {notebook} stopped: notebook {notebook} needs .*; run {needed} first.*", last), (
        ran.stderr
    )
    reports = folder / "reports" / "quick"
    assert [path.name for path in reports.iterdir()] == [f"{notebook}.failed.ipynb"]
    assert not list((folder / "data").rglob("*.safetensors"))  # nothing was computed that another notebook makes


def test_a_changed_parameter_upstream_is_told_to_the_notebook_that_depends_on_it(project):
    folder, _ = project
    ran = command(folder, "run", "params/quick.yaml", "--only", "06_retrieval", "-p", "oti_steps=5")
    assert ran.returncode == 1
    assert "needs OTI tokens of imagenet/test for tiny-clip; run 03_oti first" in ran.stderr
    assert "made with steps 4 instead of 5" in ran.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-p", "oti_stesp=5"], "unknown parameter oti_stesp in -p; did you mean oti_steps"),
        (["-p", "oti_steps=many"], "oti_steps in -p is 'many', a str, but must be of type int"),
        (["--only", "05_pic2word"], "there is no notebook 05_pic2word; there are 01_phrases, 02_concepts"),
        (["--from", "oti"], "there is no notebook oti; there are"),
        (
            ["--only", "07_results", "-p", "oti_steps=5"],
            "-p oti_steps is used by 03_oti, 04_phi, 06_retrieval, and none",
        ),
        (["-p", "methods=[SEARL]"], "methods in -p holds 'SEARL'; it must be Image-only or"),
        (["-p", "datasets=[]"], "datasets in -p is empty; name at least one of fashioniq, cirr, circo"),
    ],
)
def test_the_command_refuses_bad_input_before_anything_runs(world, tmp_path, arguments, sentence):
    folder = make_project(tmp_path / "project", world)
    ran = command(folder, "run", "params/quick.yaml", *arguments)
    assert ran.returncode == 1
    assert ran.stderr.startswith(f"error: {sentence}") and len(ran.stderr.strip().splitlines()) == 1
    assert not (folder / "data").exists() and not list(folder.glob("reports/*/*"))


def test_without_fti4cir_its_notebook_and_captions_are_not_needed(project, world, tmp_path):
    folder, _ = project
    shutil.copytree(folder, tmp_path / "project")
    changes = ["-p", "methods=[Image-only, SEARLE]", "-p", f"captions_file={tmp_path / 'gone.json'}"]
    ran = command(tmp_path / "project", "run", "params/quick.yaml", "--from", "05_fti4cir", *changes)
    assert ran.returncode == 0, ran.stderr
    assert "05_fti4cir" in ran.stdout and "left out, since methods does not hold FTI4CIR" in ran.stdout
    table = pd.read_csv(tmp_path / "project" / "reports" / "quick" / "results.csv")
    assert set(table["method"]) == {"Image-only", "SEARLE"}


def test_a_checkpoint_chosen_on_a_split_is_not_reported_there(project, tmp_path):
    folder, _ = project
    shutil.copytree(folder, tmp_path / "project")
    chosen = ["run", "params/quick.yaml", "--from", "05_fti4cir", "-p", "fti_checkpoint=cirr"]
    ran = command(tmp_path / "project", *chosen)
    assert ran.returncode == 0, ran.stderr
    table = pd.read_csv(tmp_path / "project" / "reports" / "quick" / "results.csv")
    assert set(table[table["method"] == "FTI4CIR"]["dataset"]) == {"FashionIQ", "CIRCO"}


def test_what_a_study_made_is_given_out_and_taken_in_again(project, tmp_path):
    """Exported, φ and tokens are what another study is given; it makes neither and finds the same."""
    folder, _ = project
    done = command(folder, "export", "params/quick.yaml", "--to", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    written = [Path(line) for line in done.stdout.split()]
    phi = next(path for path in written if path.name == "phi_2.pt")
    assert len(written) == 7 and all(path.exists() for path in written)  # φ, five splits, ImageNet
    shutil.copytree(folder, tmp_path / "project", ignore=shutil.ignore_patterns("data", "reports"))
    changes = ["-p", f"phi_checkpoint={phi}", "-p", f"oti_root={tmp_path / 'out' / 'oti_pseudo_tokens'}"]
    changes += ["-p", "methods=[Image+Text, SEARLE, SEARLE-OTI]", "-p", "study=given"]
    done = command(tmp_path / "project", "run", "params/quick.yaml", *changes)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^(\w+) +left out", done.stdout, re.M) == ["01_phrases", "02_concepts", "04_phi", "05_fti4cir"]
    tables = [
        pd.read_csv(place / "results.csv") for place in (folder / "reports/quick", tmp_path / "project/reports/given")
    ]
    columns = ["dataset", "category", "method", "metric", "value"]
    theirs = tables[0][tables[0]["method"].isin(tables[1]["method"])][columns].reset_index(drop=True)
    pd.testing.assert_frame_equal(tables[1][columns], theirs)


def test_a_submission_of_a_gallery_that_is_too_small_is_refused_query_by_query(project, world):
    folder, _ = project
    file = folder / "reports" / "quick" / "submissions" / "cirr-test1-SEARLE.json"
    done = command(folder, "validate", file, "--data-root", world)
    assert done.returncode == 1 and done.stdout.startswith("CIRR test1, recall: 12 queries")
    assert done.stdout.count("problem: ") == 12 and done.stdout.endswith("a server would refuse it.\n")
    done = command(folder, "submit", "params/quick.yaml")
    assert done.returncode == 1 and f"{file}: query" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["validate", "gone.json", "--data-root", "."], "there is no file gone.json"),
        (["score", "gone.json", "--dataset", "circo", "--data-root", "."], "there is no file gone.json"),
        (["check", "params/gone.yaml"], "parameter file params/gone.yaml does not exist"),
        (["export", "params/quick.yaml", "--to", "out", "-p", "study=never"], "made_with.json does not exist; run 06"),
        (["submit", "params/quick.yaml", "-p", "study=never"], "needs .*scores.parquet; run 06_retrieval first"),
    ],
)
def test_every_command_refuses_what_it_cannot_use_in_one_sentence(project, arguments, sentence):
    folder, _ = project
    done = command(folder, *arguments)
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: ") and re.search(sentence, done.stderr)


def test_a_missing_picture_stops_the_study_with_its_name(world, tmp_path):
    broken = shutil.copytree(world, tmp_path / "data")
    next(iter(sorted((broken / "ImageNet1K" / "test").iterdir()))).unlink()
    listed = sorted((broken / "CIRR" / "dev").iterdir())[5]
    listed.unlink()
    folder = make_project(tmp_path / "project", broken)
    ran = command(folder, "run", "params/quick.yaml", "--only", "02_concepts")
    assert ran.returncode == 1
    assert f"image {listed.stem} is listed but {listed} does not exist; download it" in ran.stderr


def test_the_project_is_found_from_the_notebooks_folder(project, monkeypatch):
    folder, _ = project
    monkeypatch.chdir(folder / "notebooks")
    assert workspace.project_root() == folder


def test_notebooks_are_committed_as_a_reader_wants_them():
    paths = sorted((ROOT / "notebooks").glob("*.ipynb"))
    assert [path.stem[:2] for path in paths] == ["01", "02", "03", "04", "05", "06", "07"]
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        assert notebook.metadata.kernelspec.name == "python3"
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert all(not cell.outputs and cell.execution_count is None for cell in code), path
        assert not any(re.search(r"^\s*(def|class) ", cell.source, re.M) for cell in code), path
        plain = [cell for cell in code if "parameters" not in cell.metadata.get("tags", [])]
        assert max(len(cell.source.splitlines()) for cell in plain) <= 10, path
        opening = notebook.cells[0].source
        assert "**Reads**" in opening and "**Leaves**" in opening, path


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser():
    """A real Chromium, headless."""
    if not BROWSER:
        pytest.skip("needs Chromium (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield launched
        launched.close()


PAGES = ["index", "01_phrases", "02_concepts", "03_oti", "04_phi", "05_fti4cir", "06_retrieval", "07_results"]


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", [1280, 700])
def test_pages_open_from_disk_without_network_or_errors_and_nothing_is_cut_off(project, browser, name, width):
    folder, _ = project
    page = browser.new_page(viewport={"width": width, "height": 900})
    asked, complaints = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on(
        "console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda problem: complaints.append(str(problem)))
    page.goto(f"file://{folder}/reports/quick/{name}.html")
    page.wait_for_load_state("networkidle")
    assert all(url.startswith(("file://", "data:")) for url in asked), asked
    assert complaints == []
    broken = "Array.from(document.images).filter(i => !i.complete || !i.naturalWidth).length"
    assert page.evaluate(broken) == 0
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "the page scrolls sideways"
    if width == 1280:
        cut = "Array.from(document.querySelectorAll('.wide')).filter(e => e.scrollWidth > e.clientWidth + 1).length"
        assert page.evaluate(cut) == 0, "a table is cut off"
    assert "$" not in re.sub(r"a photo of \$ that|\$ \d", "", page.inner_text("main")) or name == "06_retrieval"
    page.close()


def test_the_index_links_every_page_and_file(project, browser):
    folder, _ = project
    page = browser.new_page()
    page.goto(f"file://{folder}/reports/quick/index.html")
    links = page.eval_on_selector_all("a", "links => links.map(a => a.href)")
    assert len(links) == 7 + 3 + 18
    assert all(Path(link.removeprefix("file://").replace("%2B", "+")).is_file() for link in links)
    page.close()


def test_the_parameters_of_a_run_that_differ_are_on_its_page(project):
    folder, _ = project
    html = (folder / "reports" / "quick" / "03_oti.html").read_text()
    text = re.sub(r"<[^>]+>", "", html)
    assert "# Values of this run" in text and "oti_steps = 4" in text
    assert text.count("oti_weight_decay") == 2  # declared, used; not repeated as a value of this run


def test_made_with_says_what_the_numbers_came_from(project, tiny):
    folder, _ = project
    facts = json.loads((folder / "reports" / "quick" / "made_with.json").read_text())
    assert facts["clip_sha256"] == tiny.sha256 and facts["parameters"]["preprocess"] == "targetpad"
    assert facts["made_from"]["cirr/val"]["SEARLE-OTI"].startswith("searle-oti ")
