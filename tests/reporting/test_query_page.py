"""`searle query`: an image file and a sentence on a study that has run, as a user calls it."""

import re
import shutil
from pathlib import Path

import pytest
from projects import ROOT, command, process

from searle_lib.evaluation import own_query
from searle_lib.store.artefacts import Store
from searle_lib.store.records import Study

pytestmark = pytest.mark.slow

CAPTION = 'is "red" & <b>new</b>'


@pytest.fixture(scope="module")
def project(quick, world, tmp_path_factory):
    """A copy of a project whose study has run, with an image of the user's own."""
    folder = shutil.copytree(quick[0], tmp_path_factory.mktemp("query") / "project", symlinks=True)
    shutil.copy(min((world / "FashionIQ" / "images").iterdir()), folder / "own.png")
    return folder


@pytest.fixture(scope="module")
def asked(project):
    return process(project, "query", "own.png", CAPTION, "--study", "quick", "--benchmark", "fashioniq/val/shirt")


def test_the_command_prints_the_best_images_of_every_method(project, asked):
    assert asked.returncode == 0, asked.stderr
    study = Study("quick", project, Store(project / "data/artefacts"), project / "reports/quick")
    retriever = own_query.load_retriever(study, "cpu")
    expected = own_query.retrieve(retriever, project / "own.png", CAPTION, benchmark="fashioniq/val/shirt", depth=3)
    assert list(expected["method"].unique()) == list(retriever.methods)
    for method, rows in expected.groupby("method"):
        (line,) = re.findall(rf"^{re.escape(method)} +(.*)$", asked.stdout, re.M)
        pairs = zip(rows["image"], rows["score"], strict=True)
        assert re.split(r" {2,}", line.strip()) == [f"{image} ({score:.3f})" for image, score in pairs]


def test_the_page_stands_alone_and_shows_the_sentence_as_text(project, asked, browser):
    page_file = Path(asked.stdout.splitlines()[-1])
    assert page_file == project / "reports/quick/query.html"
    page = browser.new_page(viewport={"width": 390, "height": 900})
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(page_file.as_uri())
    assert CAPTION in page.inner_text(".sentence") and page.locator(".sentence b").count() == 0
    assert page.locator(".lane").count() == 6 and page.locator(".lane img").count() == 6 * 8
    assert all(url.startswith(("file:", "data:")) for url in requests)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["absent.png", "is red", "--study", "quick"], "absent.png does not exist; name an image file."),
        (["params/quick.yaml", "is red", "--study", "quick"], "quick.yaml cannot be decoded as an image; name an im"),
        (["own.png", "is red", "--study", "quack"], "holds no records of a study quack; choose one of quick."),
        (
            ["own.png", "is red", "--study", "quick", "--benchmark", "cirr"],
            "no benchmark cirr; choose one of fashioniq/",
        ),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_sentence(project, arguments, sentence):
    refused = command(project, "query", *arguments)
    assert refused.returncode == 1 and sentence in refused.stderr and "Traceback" not in refused.stderr


def test_a_study_whose_artefacts_are_gone_says_what_to_run(project, tmp_path):
    copy = shutil.copytree(project, tmp_path / "copy", symlinks=True, ignore=shutil.ignore_patterns("artefacts"))
    refused = command(copy, "query", "own.png", "is red", "--study", "quick")
    assert refused.returncode == 1 and re.search(r"; run \w+ again\.$", refused.stderr.strip()), refused.stderr


def test_the_pages_script_runs_as_printed_and_its_command_is_the_one_tested(project, monkeypatch, capsys):
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8").partition("## A picture of your own")[2]
    assert '.venv/bin/python -m searle_lib query own.jpg "is red" --study mini' in page
    monkeypatch.chdir(project)
    shutil.copy("own.png", "own.jpg")
    exec(re.search(r"^```python\n(.*?)^```$", page, re.M | re.S)[1].replace('"mini"', '"quick"'), {})
    assert len(capsys.readouterr().out.splitlines()) == 1 + 5
