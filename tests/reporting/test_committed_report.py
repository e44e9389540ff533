"""The report of the mini study that the repository holds is the one that this code gives."""

import json

import pytest
from projects import NOTEBOOKS, ROOT

from searle_lib.reporting import stale_pages
from searle_lib.store import code
from searle_lib.store.records import Record
from searle_lib.study import parameters, run

REPORT = ROOT / "reports" / "mini"
REMEDY = "run `make study` and commit reports/mini"


@pytest.fixture(scope="module")
def records():
    files = {name: REPORT / "records" / f"{name}.json" for name in NOTEBOOKS}
    return {name: Record(**json.loads(file.read_text())) for name, file in files.items()}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_was_made_by_these_cells_this_library_and_these_parameters(records, name, monkeypatch):
    monkeypatch.chdir(ROOT)
    notebook, record = ROOT / "notebooks" / f"{name}.ipynb", records[name]
    values = run.read_values(ROOT / "params" / "mini.yaml", None)
    own = parameters.names_of_notebook(parameters.read_declarations(sorted(ROOT.glob("notebooks/0*.ipynb"))), name)
    assert record.execution["cells"] == code.cells_digest(notebook), f"{name} has other cells now; {REMEDY}"
    assert record.code == code.notebook_code_digest(notebook), f"{name} reaches other code now; {REMEDY}"
    assert record.parameters == parameters.result_parameters({one: values[one] for one in own}), REMEDY


@pytest.mark.parametrize("page, notebook", [*((name, name) for name in NOTEBOOKS), ("explorer", "06_retrieval")])
def test_every_page_shows_its_record_and_none_is_marked_as_stale(records, page, notebook):
    text = (REPORT / f"{page}.html").read_text()
    assert stale_pages.record_of(text) == records[notebook].digest, REMEDY
    assert '<p class="stale">' not in text


def test_it_is_small_enough_to_be_cloned():
    names = ["index.html", "explorer.html", "results.csv", *(f"{name}.html" for name in NOTEBOOKS)]
    files = [*(REPORT / name for name in names), *(REPORT / "tables").iterdir()]
    assert sum(file.stat().st_size for file in files) < 8e6
