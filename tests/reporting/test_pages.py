import html
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
    return re.sub("<[^>]+>", "", page.partition("<main")[2].partition("</main>")[0])


def test_declared_parameters_are_folded(write_page):
    page = write_page(*parameters("seed = 42"))
    folded = re.search('<details class="code parameters">(.*?)</details>', page, re.S)[1]
    assert "3 parameters" in folded and "of all random numbers" in folded
    assert "of all random numbers" not in page.replace(folded, "")


def test_only_values_that_differ_from_the_declared_ones_are_shown(write_page):
    text = text_of(write_page(*parameters("seed = 43\nrate = 0.05\nname = 'mini'")))
    assert "# Values of this run" in text and "seed = 43" in text
    assert "rate = 0.05" not in text and "name = 'mini'" not in text


def test_values_equal_to_the_declared_ones_are_not_shown(write_page):
    assert "Values of this run" not in write_page(*parameters("seed = 42\nrate = 5.0e-2"))


@pytest.mark.parametrize(
    "source, summary",
    [
        ("from a import b\nimport c", "imports"),
        ("words = oti.make_words(study, 3)\nstudy.overview()", "oti.make_words, study.overview"),
        ("a.b(1), c.d(2), e.f(3), g.h(4)", "a.b, c.d, e.f, …"),
        ("print('<b>')\nx = 1", "2 lines"),
        ("%matplotlib inline", "1 line"),
    ],
)
def test_code_is_folded_below_a_summary_of_what_it_does(write_page, source, summary):
    output = new_output("stream", text="an output")
    page = write_page(new_code_cell(source, outputs=[output]))
    folded = re.search('<details class="code">(.*?)</details>', page, re.S)[1]
    assert f"<summary>Code: {summary}</summary>" in folded and "highlight" in folded
    assert "an output" in page and "an output" not in folded


def test_formulas_become_mathml(write_page):
    page = write_page(new_markdown_cell("Cosine $x^2$, and\n$$\\mathcal{L} = 1$$"))
    assert page.count("<math ") == 2 and page.count('<div class="formula">') == 1 and "$" not in text_of(page)


@pytest.mark.parametrize("formula, sign", [(r"\Big\lVert x \Big\rVert", "‖"), (r"\bigl\langle x \bigr\rangle", "⟨")])
def test_no_command_of_tex_is_left_behind_big(write_page, formula, sign):
    page = html.unescape(write_page(new_markdown_cell(f"$${formula}$$")))
    assert sign in page and "\\" not in text_of(page)


def test_names_of_other_notebooks_are_links(write_page):
    page = write_page(
        new_markdown_cell("Next: **04_phi**. See 02_concepts, `05_fti4cir`, x/06_retrieval, 07_results.ipynb, 03_oti.")
    )
    assert re.findall('<a href="(.*?)">(.*?)</a>', page.partition("<main")[2].partition("</main>")[0]) == [
        ("04_phi.html", "04_phi"),
        ("02_concepts.html", "02_concepts"),
    ]
    assert "<code>05_fti4cir</code>" in page


def test_the_contents_list_every_section_and_what_outputs_name(write_page):
    output = new_output("display_data", {"text/html": '<h3 id="sheet-a">A &amp; b</h3>'})
    page = write_page(new_markdown_cell("# Title\n## The *two* losses"), new_code_cell("x", outputs=[output]))
    outline = page.partition('<nav class="outline"')[2].partition("</nav>")[0]
    assert re.findall('<li class="level-(.)"><a href="#(.*?)">(.*?)</a>', outline) == [
        ("2", "The-two-losses", "The two losses"),
        ("3", "sheet-a", "A &amp; b"),
    ]
    assert page.count(' id="The-two-losses"') == 1


def test_a_page_with_one_section_has_no_contents(write_page):
    assert '<nav class="outline"' not in write_page(new_markdown_cell("# Title\n## A section"))


def test_a_figure_without_a_text_is_named_by_its_section(write_page):
    output = new_output("display_data", {"image/png": "iVBORw0KGgo="})
    described = new_output("display_data", {"image/png": "iVBORw0KGgo="}, metadata={"image/png": {"alt": "A curve"}})
    page = write_page(new_markdown_cell("## Losses"), new_code_cell("draw()", outputs=[output, described]))
    assert re.findall('alt="(.*?)"', page) == ["Figure of the section Losses", "A curve"]


def test_a_style_and_an_image_that_outputs_repeat_stay_once(write_page):
    data = {"text/html": '<style>/* s */</style><svg><image id="image-1" href="data:x"/></svg><p>text</p>'}
    page = write_page(*[new_code_cell("x", outputs=[new_output("display_data", data)]) for _ in range(3)])
    assert page.count("/* s */") == 1 and page.count('id="image-1"') == 1 and page.count("<p>text</p>") == 3


def test_a_progress_widget_leaves_no_script(write_page):
    data = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "0%"}
    page = write_page(new_code_cell("run()", outputs=[new_output("display_data", data)]))
    assert "run" in page and "<script" not in page.partition("<main")[2].partition("</main>")[0]


def test_a_page_links_its_neighbours_and_names_its_record(write_page):
    page = write_page(new_markdown_cell("# Inversion"))
    above, below = (re.findall('<a href="(.*?)">(.*?)<', page.partition(start)[2]) for start in ("<header", "<footer"))
    assert above[:3] == [
        ("index.html", "All pages of this study"),
        ("02_concepts.html", "← 02_concepts"),
        ("04_phi.html", "04_phi →"),
    ]
    assert below[1:] == [("02_concepts.html", "Previous: 02_concepts"), ("04_phi.html", "Next: 04_phi")]
    assert stale_pages.record_of(page) == "abc" and page.count(stale_pages.NO_NOTE) == 1
