"""The notebooks run for real on a small drawn world, by the command, and their pages opened in a browser."""

import json
import re
import shutil
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from projects import NOTEBOOKS, ROOT, command, make_project, run

from searle_lib.reporting import stale_pages
from searle_lib.study import workspace

pytestmark = pytest.mark.slow


@pytest.fixture
def project(quick):
    """A project whose study has run once, with what that run printed."""
    return quick


def test_the_command_prints_a_line_a_notebook_the_main_table_and_the_index(project):
    folder, printed = project
    for notebook in NOTEBOOKS:
        assert re.search(rf"^{notebook} +\d+\.\d s  done$", printed, re.M), printed
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


def test_without_artefacts_the_same_numbers_come_again(project, world, tmp_path):
    folder, _ = project
    other = make_project(tmp_path / "other", world)
    run(other)
    assert (other / "reports/quick/results.csv").read_bytes() == (folder / "reports/quick/results.csv").read_bytes()


def test_the_records_of_a_study_say_what_each_notebook_decided_read_made_and_ran_on(project, tiny):
    folder, _ = project
    records = {n: json.loads((folder / f"reports/quick/records/{n}.json").read_text()) for n in NOTEBOOKS}
    assert records["03_oti"]["parameters"]["oti_steps"] == 4
    assert set(records["03_oti"]["read"]) == {"01_phrases", "02_concepts"}
    assert set(records["06_retrieval"]["read"]) == {"01_phrases", "02_concepts", "03_oti", "04_phi", "05_fti4cir"}
    assert set(records["07_results"]["read"]) == {"02_concepts", "06_retrieval"}
    for record in records.values():
        assert all((folder / "data/artefacts" / path / "manifest.json").is_file() for path in record["made"].values())
        assert {"date", "seconds", "peak_memory", "versions", "machine"} <= set(record["execution"])
    clip = json.loads((folder / "data/artefacts" / records["02_concepts"]["made"]["clip"] / "clip.json").read_text())
    assert clip == {"name": "tiny-clip", "sha256": tiny.sha256}


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
    said = run(tmp_path / "project", *changes)
    ran = [name for name, what in said.items() if what == "done"]
    assert ran == ["02_concepts", "03_oti", "04_phi", "06_retrieval", "07_results"]
    assert said["01_phrases"] == "skipped, since nothing is inverted"
    assert said["05_fti4cir"] == "skipped, since methods does not hold FTI4CIR"
    made = json.loads((tmp_path / "project/reports/given/records/04_phi.json").read_text())["made"]
    assert set(made) == {"phi"} and made["phi"].startswith("phi-")
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


def test_the_project_is_found_from_the_notebooks_folder(project, monkeypatch):
    folder, _ = project
    monkeypatch.chdir(folder / "notebooks")
    assert workspace.project_root() == folder


def test_notebooks_are_committed_as_a_reader_wants_them():
    assert [name[:2] for name in NOTEBOOKS] == ["01", "02", "03", "04", "05", "06", "07"]
    for name in NOTEBOOKS:
        notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        assert notebook.metadata.kernelspec.name == "python3"
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert all(not cell.outputs and cell.execution_count is None for cell in code), name
        assert not any(re.search(r"^\s*(def|class|if) ", cell.source, re.M) for cell in code), name
        plain = [cell for cell in code if "parameters" not in cell.metadata.get("tags", [])]
        assert len(code) <= 12 and max(len(cell.source.splitlines()) for cell in plain) <= 8, name
        assert sum(cell.cell_type == "markdown" for cell in notebook.cells) >= len(code), name
        assert "**Reads**" in notebook.cells[0].source and "**Leaves**" in notebook.cells[0].source, name
        first = plain[1].source  # after the imports
        assert "sheets.query(" in first or "sheets.retrieved(" in first, f"{name} shows no image at its beginning"
        assert "study.write_record()" in code[-1].source, name


@pytest.mark.parametrize("name", ["index", "explorer", *NOTEBOOKS])
@pytest.mark.parametrize("width", [1280, 390])
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
    page.evaluate("document.querySelectorAll('.highlight, .output_area pre').forEach(e => e.remove())")
    prose = page.inner_text("main")
    assert not re.search(r"[\\$]", prose), "a formula was not rendered"
    assert "details>" not in prose and "earlier state" not in prose
    page.close()


def test_parameters_are_folded_until_a_reader_opens_them(project, browser):
    folder, _ = project
    page = browser.new_page()
    page.goto(f"file://{folder}/reports/quick/03_oti.html")
    declaration = page.get_by_text("optimisation steps an image")
    assert page.locator("details.parameters").count() == 1 and not declaration.is_visible()
    page.locator("details.parameters > summary").click()
    assert declaration.is_visible()
    page.close()


def test_a_page_leads_to_the_ones_before_and_after_it(project, browser):
    folder, _ = project
    page = browser.new_page()
    page.goto(f"file://{folder}/reports/quick/03_oti.html")
    page.get_by_text("04_phi →").click()
    assert page.url.endswith("/04_phi.html")
    page.close()


def test_the_front_page_links_every_page_and_file(project, browser):
    folder, _ = project
    page = browser.new_page()
    page.goto(f"file://{folder}/reports/quick/index.html")
    links = page.eval_on_selector_all("a", "links => links.map(a => a.href)")
    names = {link.removeprefix("file://").partition("#")[0].replace("%2B", "+") for link in links}
    assert all(Path(name).is_file() for name in names), names
    reports = folder / "reports" / "quick"
    files = [reports / "explorer.html", reports / "results.csv", *(reports / f"{name}.html" for name in NOTEBOOKS)]
    files += [*reports.glob("submissions/*.json"), *reports.glob("tables/*")]
    assert len(files) == 9 + 18 + 24 and {str(file) for file in files} <= names
    page.close()


def test_every_page_is_rendered_again_without_running_anything(project, tmp_path):
    folder = shutil.copytree(project[0], tmp_path / "project", symlinks=True)
    reports, names = folder / "reports" / "quick", ["index", "explorer", *NOTEBOOKS]
    records = {path: path.read_bytes() for path in reports.glob("records/*.json")}
    for name in names:
        (reports / f"{name}.html").unlink()
    done = command(folder, "render", "params/quick.yaml")
    assert done.returncode == 0 and done.stdout.strip() == str(reports / "index.html"), done.stderr
    assert all((reports / f"{name}.html").is_file() for name in names)
    assert records == {path: path.read_bytes() for path in reports.glob("records/*.json")}
    assert set(run(folder).values()) == {"unchanged"}


def test_the_parameters_of_a_run_that_differ_are_on_its_page(project):
    folder, _ = project
    html = (folder / "reports" / "quick" / "03_oti.html").read_text()
    text = re.sub(r"<[^>]+>", "", html)
    assert "# Values of this run" in text and "oti_steps = 4" in text
    assert "oti_weight_decay = 0.01" not in text  # as declared; not repeated as a value of this run


def test_the_running_example_is_the_same_on_every_page(project):
    folder, _ = project
    captions = {}
    for name in NOTEBOOKS:
        html = (folder / "reports" / "quick" / f"{name}.html").read_text()
        captions[name] = re.search(r"“([^”]+)”", re.sub(r"<style.*?</style>", "", html, flags=re.S))[1]
    assert len(set(captions.values())) == 1, captions


def test_a_page_names_the_record_it_was_made_from(project):
    folder, _ = project
    study = workspace.find_study(
        {"study": "quick", "artefact_root": str(folder / "data/artefacts"), "report_root": str(folder / "reports")}
    )
    for name in NOTEBOOKS:
        page = (folder / "reports" / "quick" / f"{name}.html").read_text()
        assert stale_pages.record_of(page) == study.find(name).digest
