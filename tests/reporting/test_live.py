"""The explorer in a notebook: its widgets in this process, and once in a real JupyterLab."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from html import escape

import nbformat
import pytest
from conftest import study_of
from PIL import Image

from searle_lib.evaluation import own_query
from searle_lib.reporting import live
from searle_lib.study import workspace

NOTEBOOK = """import searle_lib
from searle_lib.reporting.live import explore

explore(searle_lib.load_study("quick"))"""
START = 120_000  # milliseconds that JupyterLab, a kernel and the study may take to start on a busy machine


@pytest.fixture(scope="module")
def project(quick, tmp_path_factory):
    """A copy of a project whose study has run."""
    return shutil.copytree(quick[0], tmp_path_factory.mktemp("live") / "project")


@pytest.fixture(scope="module")
def retriever(project):
    places = {"study": "quick", "artefact_root": project / "data" / "artefacts", "report_root": project / "reports"}
    return own_query.load_retriever(workspace.find_study(places), "cpu")


@pytest.fixture
def explorer(retriever):
    return live._Explorer(pytest.importorskip("ipywidgets"), retriever)


@pytest.fixture
def photo(tmp_path):
    """An image that is not in the study."""
    Image.effect_mandelbrot((90, 60), (-2, -1, 1, 1), 60).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_without_ipywidgets_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(ModuleNotFoundError, match=r"explore needs ipywidgets, .* 'ipywidgets>=7\.7\.1,<9'"):
        live.explore(study_of(tmp_path))


@pytest.mark.parametrize(
    "value",
    [
        ({"name": "shoe.jpg", "type": "image/jpeg", "content": memoryview(b"12")},),
        {"shoe.jpg": {"metadata": {"name": "shoe.jpg", "type": "image/jpeg"}, "content": b"12"}},
    ],
    ids=["ipywidgets 8", "ipywidgets 7"],
)
def test_an_uploaded_file_is_read_in_the_form_of_either_version(value):
    assert live.uploaded_file(value) == ("shoe.jpg", b"12")


@pytest.mark.slow
def test_it_begins_with_the_running_example_by_all_methods(explorer, retriever):
    assert (explorer.gallery.value, explorer.list.value) == ("circo/val", 3)
    assert explorer.output.value.count('class="lane"') == len(retriever.methods)
    assert explorer.caption.value == retriever.benchmarks["circo/val"].queries["sentences"][3][0]


@pytest.mark.slow
def test_the_annotated_caption_has_the_rank_of_the_study_and_another_wording_gets_a_row(explorer, retriever):
    explorer.gallery.value = "fashioniq/val/shirt"  # its captions have two forms
    explorer.list.value = 4
    annotated = explorer.caption.value
    explorer.caption.value = "is red"
    query = own_query.query_of_study(retriever, "fashioniq/val/shirt", 4)
    sentences = query.benchmark.queries["sentences"][4]
    assert len(sentences) == 2 and list(explorer.rankings) == [annotated, "is red"]
    for wording, forms in ((annotated, sentences), ("is red", ["is red"])):
        for method, ranking in explorer.rankings[wording].items():
            assert ranking == own_query.rank(retriever, query, method, forms, live.DEPTH), (wording, method)
    assert explorer.output.value.count('<th scope="row">') == 2


@pytest.mark.slow
def test_a_part_of_a_caption_narrows_the_list_and_nothing_else(explorer, retriever):
    html, captions = explorer.output.value, retriever.benchmarks["circo/val"].queries["sentences"].str[0]
    explorer.part.value = captions[5][:12].upper()
    rows = [row for row, caption in captions.items() if captions[5][:12].lower() in caption.lower()]
    assert [row for _, row in explorer.list.options] == rows and explorer.output.value == html
    explorer.part.value = "<b>*"
    assert explorer.list.options == () and "&lt;b&gt;*" in explorer.message.value
    explorer.part.value = ""
    assert len(explorer.list.options) == len(captions) and explorer.list.value == 3


@pytest.mark.slow
def test_methods_that_invert_an_image_of_ones_own_come_after_the_others(explorer, photo):
    pages, shares = [], []
    explorer.output.observe(lambda change: pages.append(change["new"]), "value")
    explorer.progress.observe(lambda change: shares.append(change["new"]), "value")
    explorer.path.value = str(photo)
    assert len(pages) == 2 and "optimising a pseudo-word" in pages[0] and "optimising" not in pages[1]
    assert shares == [0.25, 0.5, 0.75, 1.0] and explorer.progress.layout.display == "none"
    assert list(explorer.rankings[explorer.caption.value]) == [
        *("Image-only", "Text-only", "Image+Text", "SEARLE", "FTI4CIR", "SEARLE-OTI")
    ]


@pytest.mark.slow
def test_an_own_image_stays_when_another_gallery_is_chosen_and_is_not_inverted_again(explorer, photo):
    explorer.path.value = str(photo)
    pages = []
    explorer.output.observe(lambda change: pages.append(change["new"]), "value")
    explorer.gallery.value = "cirr/val"
    assert len(pages) == 1 and "photo · cirr/val" in pages[0] and pages[0].count('class="lane"') == 6
    assert explorer.list.value is None


@pytest.mark.slow
def test_a_file_that_is_no_image_changes_nothing_and_is_named(explorer, tmp_path):
    html = explorer.output.value
    (tmp_path / "<notes>.txt").write_text("no image")
    for path in (tmp_path / "<notes>.txt", tmp_path / "absent.png"):
        explorer.path.value = str(path)
        assert explorer.message.value == f"{escape(str(path))} cannot be read as an image; choose an image file."
    assert explorer.output.value == html and explorer.list.value == 3


@pytest.fixture(scope="module")
def lab(project):
    """The address of a JupyterLab that serves the project, with a notebook that explores its study."""
    pytest.importorskip("jupyterlab")
    cells = [nbformat.v4.new_code_cell(NOTEBOOK)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), project / "explore.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {"ip": "127.0.0.1", "port": port, "root_dir": project, "open_browser": False, "allow_root": True}
    options |= {"port_retries": 0}
    arguments = [f"--ServerApp.{name}={value}" for name, value in options.items()]
    folders = {name: str(project / "lab") for name in ("JUPYTER_CONFIG_DIR", "JUPYTERLAB_SETTINGS_DIR")}
    folders["JUPYTERLAB_WORKSPACES_DIR"] = str(project / "lab" / "workspaces")
    with open(project / "lab.log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *arguments, "--IdentityProvider.token="],
            cwd=project,
            env=os.environ | folders,
            stdout=log,
            stderr=log,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + START / 1000
        while True:
            try:
                urllib.request.urlopen(f"{address}/api")
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, (project / "lab.log").read_text()
                time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        server.wait(30)


@pytest.mark.slow
def test_in_jupyterlab_a_query_another_caption_and_an_own_image_are_answered(lab, browser, retriever, photo):
    page = browser.new_page(viewport={"width": 1280, "height": 1400})
    page.set_default_timeout(START)
    problems = []
    page.on("pageerror", lambda problem: problems.append(str(problem)))
    page.on("dialog", lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
    page.goto(f"{lab}/lab/tree/explore.ipynb")
    page.locator(".jp-Notebook .cm-content").first.click()
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    page.keyboard.press("Shift+Enter")
    lanes = page.locator(".lanes .lane")
    lanes.nth(5).wait_for()
    assert lanes.count() == 6

    page.get_by_label("Query").select_option(index=5)
    caption = retriever.benchmarks["circo/val"].queries["sentences"][5][0]
    page.locator(".lanes .sentence", has_text=caption).wait_for()

    hostile = "is red <img src=x onerror=alert(1)>"
    page.get_by_label("Caption").fill(hostile)
    page.get_by_label("Caption").press("Enter")
    row = page.locator(".lanes tr.shown", has_text=hostile)
    row.wait_for()
    assert page.locator(".lanes tbody tr").count() == 2 and row.locator("td").count() == 6

    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Your image").click()
    chooser.value.set_files(photo)
    page.locator(".lanes .sentence small", has_text="photo · circo/val").wait_for()
    page.locator(".lanes .note").wait_for(state="detached")
    assert page.locator(".lanes figure").count() == 1 + 6 * live.DEPTH
    broken = "Array.from(document.querySelectorAll('.lanes img')).filter(i => !i.naturalWidth).length"
    assert page.evaluate(broken) == 0 and problems == []
    page.close()
