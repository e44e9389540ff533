import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from searle_lib.reporting import pages, stale_pages

DECLARED = 'seed: int = 42  # of all random numbers\nrate: float = 5.0e-2  # of AdamW\nname: str = "mini"'


@pytest.fixture
def write_page(tmp_path):
    """Write a notebook of these cells and return its page."""

    def write(*cells):
        notebook = tmp_path / "03_oti.ipynb"
        nbformat.write(new_notebook(cells=list(cells)), notebook)
        page = pages.page(pages.read(notebook), tmp_path / "03_oti.html", stale_pages.RECORD.format("abc"))
        return page.read_text()

    return write


def parameters(values):
    """The declared parameters, and papermill's cell of values."""
    return (
        new_code_cell(DECLARED, metadata={"tags": ["parameters"]}),
        new_code_cell(f"# Parameters\n{values}", metadata={"tags": ["injected-parameters"]}),
    )


def text_of(page):
    return re.sub("<[^>]+>", "", page.partition("<main>")[2])


def test_declared_parameters_are_folded(write_page):
    page = write_page(*parameters("seed = 42"))
    folded = re.search("<details>(.*?)</details>", page, re.S)[1]
    assert "3 parameters" in folded and "of all random numbers" in folded
    assert "of all random numbers" not in page.replace(folded, "")


def test_only_values_that_differ_from_the_declared_ones_are_shown(write_page):
    text = text_of(write_page(*parameters("seed = 43\nrate = 0.05\nname = 'mini'")))
    assert "# Values of this run" in text and "seed = 43" in text
    assert "rate = 0.05" not in text and "name = 'mini'" not in text


def test_values_equal_to_the_declared_ones_are_not_shown(write_page):
    assert "Values of this run" not in write_page(*parameters("seed = 42\nrate = 5.0e-2"))


def test_formulas_become_mathml(write_page):
    page = write_page(new_markdown_cell("Cosine $x^2$, and\n$$\\mathcal{L} = 1$$"))
    assert page.count("<math ") == 2 and page.count('<div class="formula">') == 1 and "$" not in text_of(page)


def test_a_progress_widget_leaves_no_script(write_page):
    data = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "0%"}
    page = write_page(new_code_cell("run()", outputs=[new_output("display_data", data)]))
    assert "run" in page and "<script" not in page


def test_a_page_links_its_neighbours_and_names_its_record(write_page):
    page = write_page(new_markdown_cell("# Inversion"))
    assert re.findall('<a href="([^"]+)">', page) == ["index.html", "02_concepts.html", "04_phi.html"]
    assert stale_pages.record_of(page) == "abc" and page.count(stale_pages.NO_NOTE) == 1


def test_the_index_links_pages_that_exist_and_files(tmp_path):
    for name in ("01_phrases", "02_concepts"):
        cell = new_markdown_cell(f"# {name} <b>\n\nWhat *is* a [word](https://example.org)?\n\nMore.")
        nbformat.write(new_notebook(cells=[cell]), tmp_path / f"{name}.ipynb")
    (tmp_path / "01_phrases.html").touch()
    (tmp_path / "results.csv").touch()
    index = pages.index(tmp_path, "a & b", sorted(tmp_path.glob("*.ipynb"))).read_text()
    assert re.findall('<a href="([^"]+)">', index) == ["01_phrases.html", "results.csv"]
    assert "Study a &amp; b" in index and "02_concepts &lt;b&gt;" in index
    assert index.count("What is a word?") == 2 and "More." not in index
