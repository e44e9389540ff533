"""Pages in a real browser: readable for everybody, on a phone, in the dark, by keyboard, and without leftovers."""

import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from searle_lib.data import benchmarks
from searle_lib.evaluation.methods import METHODS
from searle_lib.reporting import figures, pages, sheets

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
COMMITTED = sorted((ROOT / "reports" / "mini").glob("*.html"))
OUTPUTS = "outputs"  # the page with an output of each kind
PAGES = [*(path.stem for path in NOTEBOOKS), OUTPUTS]

FORMULA = r"""
$$t_c = \frac{1}{24} \sum_{k=1}^{24} \frac{T(\tau_k(c))}{\Big\lVert T(\tau_k(c)) \Big\rVert}, \qquad
\text{score}(x, c) = \cos\big(I(x),\, t_c\big) + \text{a long sentence that no phone is wide enough for}$$
"""
LEFTOVERS = {  # in the prose of a page
    "TeX": r"\\[A-Za-z({\[|,]|\$",
    "Markdown": r"\*\*|__|`|\]\(|^#+ |^\s*[*] ",
    "HTML": r"</?[a-z]+>|&[a-z]+;",
}
PROSE = """() => {
  const main = document.querySelector("main").cloneNode(true);
  main.querySelectorAll(".highlight, code, pre, script, style, .sentence, figcaption, td").forEach(e => e.remove());
  document.body.append(main);
  const text = main.innerText;
  main.remove();
  return text;
}"""


def output(html):
    return new_code_cell("draw()", outputs=[new_output("display_data", {"text/html": html.data})])


def rankings(benchmark):
    """Two methods: one shows a target first, one shows none."""
    tables = []
    for method, hit in (("SEARLE", True), ("Image-only", False)):
        for query in benchmark.queries.to_dict("records"):
            others = [image for image in benchmark.gallery["image"] if image not in query["ground_truths"]]
            best = [query["ground_truths"][0], *others][:12] if hit else others[:12]
            facts = {name: getattr(benchmark, name) for name in ("dataset", "split", "category")}
            facts |= {"method": method, "query": query["query"], "best": best, "scores": [0.5] * 12}
            tables.append(facts | {"rank": 0 if hit else 36})
    return pd.DataFrame(tables)


@pytest.fixture(scope="module")
def folder(world, tmp_path_factory):
    """The pages of the notebooks as they are committed, and of one that has an output of each kind."""
    folder = tmp_path_factory.mktemp("pages")
    for notebook in NOTEBOOKS:
        pages.page(pages.read(notebook), folder / f"{notebook.stem}.html")
    (circo,) = benchmarks.load("circo", world, "val")
    numbers = {"dataset": "CIRCO", "split": "val", "category": "all", "metric": "mAP@5", "queries": 8}
    bounds = {"value": 37.0, "ci_low": 34.0, "ci_high": 40.0}
    results = pd.DataFrame([numbers | {"method": method} | bounds for method in METHODS])
    wide = pd.DataFrame([["a cell"] * 12] * 2, index=["first row", "second row"])
    cells = [
        new_markdown_cell(
            f"# Everything\n\nText with $x_i$.\n\n## Formula\n{FORMULA}\n\n## Outputs\n\nSee **03_oti**."
        ),
        output(figures.chart(results, [("CIRCO", "val", "all", "mAP@5")])),
        output(figures.loss_curves(pd.DataFrame({"step": [0, 1], "cos": [1, 0]}), {"cos": "image loss"})),
        output(sheets.strip(circo.gallery["path"][:9], [f"image {i}" for i in range(9)])),
        output(sheets.sheet(circo, rankings(circo), queries=2, depth=12)),
        new_code_cell("wide", outputs=[new_output("display_data", {"text/html": wide.to_html(classes="dataframe")})]),
        new_code_cell("print()", outputs=[new_output("stream", text=f"{'a word ' * 60}\n{'x' * 300}")]),
    ]
    nbformat.write(new_notebook(cells=cells), folder / f"{OUTPUTS}.ipynb")
    pages.page(pages.read(folder / f"{OUTPUTS}.ipynb"), folder / f"{OUTPUTS}.html")
    return folder


def serious_findings(page):
    from axe_playwright_python.sync_playwright import Axe

    findings = [f for f in Axe().run(page).response["violations"] if f["impact"] in ("serious", "critical")]
    return [(finding["id"], node["html"][:200]) for finding in findings for node in finding["nodes"]]


@pytest.mark.parametrize(
    "name, width, scheme", [("03_oti", 1280, "dark"), (OUTPUTS, 1280, "light"), (OUTPUTS, 390, "dark")]
)
def test_axe_finds_nothing_serious_whether_code_is_shown_or_not(folder, visit, name, width, scheme):
    page = visit(folder / f"{name}.html", width, scheme)
    assert serious_findings(page) == []
    page.get_by_role("button", name="Show all code").click()
    assert serious_findings(page) == []


@pytest.mark.slow
@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_axe_finds_nothing_serious_on_the_committed_pages(visit, path):
    assert serious_findings(visit(path)) == []
    assert serious_findings(visit(path, 390, "dark")) == []


@pytest.mark.parametrize("name", PAGES)
def test_no_page_has_leftovers_of_tex_or_markdown(folder, visit, name):
    prose = visit(folder / f"{name}.html").evaluate(PROSE)
    assert len(prose) > 100
    for language, pattern in LEFTOVERS.items():
        assert not re.search(pattern, prose, re.M), (language, re.search(f".*(?:{pattern}).*", prose, re.M)[0])


@pytest.mark.slow
@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_no_committed_page_has_leftovers_of_tex(visit, path):
    assert not re.search(LEFTOVERS["TeX"], visit(path).evaluate(PROSE))


@pytest.mark.parametrize("name", PAGES)
def test_no_page_scrolls_sideways(folder, visit, name):
    page = visit(folder / f"{name}.html")
    page.get_by_role("button", name="Show all code").click()
    for width in (1900, 1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), width


def test_no_line_of_an_output_is_cut_off(folder, visit):
    page = visit(folder / f"{OUTPUTS}.html", 390)
    frames = page.eval_on_selector_all(".output_area pre", "frames => frames.map(e => e.scrollWidth - e.clientWidth)")
    assert frames == [0]


def test_what_is_wider_than_the_page_scrolls_by_keyboard_with_its_first_column_standing(folder, visit):
    page = visit(folder / f"{OUTPUTS}.html", 390)
    for selector in (".formula", ".output_area:has(table.dataframe)"):
        frame = page.locator(selector).first
        frame.focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_function("frame => frame.scrollLeft > 0", arg=frame.element_handle())
    head, table = page.get_by_text("first row"), page.locator(".output_area:has(table.dataframe)")
    assert abs(head.bounding_box()["x"] - table.bounding_box()["x"]) < 2


def test_the_page_takes_the_colours_of_the_system(folder, visit):
    page, colours = visit(folder / f"{OUTPUTS}.html"), []
    colour = "e => getComputedStyle(e).fill + getComputedStyle(e).color"
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        colours.append([page.eval_on_selector(selector, colour) for selector in ("body", ".chart svg text")])
    assert colours[0][0] != colours[1][0] and colours[0][1] != colours[1][1]


def test_contents_are_open_beside_a_wide_page(folder, visit):
    page = visit(folder / "03_oti.html")
    assert page.get_by_role("link", name="Inverting images", exact=True).is_visible()
    page.evaluate("document.getElementById('Inverting-images').scrollIntoView()")
    page.wait_for_function("document.querySelector('.outline [aria-current]')?.textContent == 'Inverting images'")
    assert page.get_by_role("link", name="The two losses", exact=True).bounding_box()["y"] > 0, "contents scrolled away"


def test_contents_are_folded_on_a_phone(folder, visit):
    page = visit(folder / "03_oti.html", 390)
    link = page.get_by_role("link", name="Inverting images", exact=True)
    assert not link.is_visible()
    page.get_by_text("On this page").click()
    link.click()
    assert page.evaluate("document.getElementById('Inverting-images').getBoundingClientRect().top") < 100


def test_the_link_of_a_heading_shows_when_it_has_the_focus(folder, visit):
    page = visit(folder / "03_oti.html")
    link = page.locator("h2 .anchor-link").first
    opacity = "e => getComputedStyle(e).opacity"
    assert link.evaluate(opacity) == "0"
    page.keyboard.press("Tab")
    link.focus()
    assert link.evaluate(opacity) == "1"


def test_code_is_folded_until_a_reader_wants_it(folder, visit):
    page = visit(folder / "03_oti.html")
    code = page.locator(".highlight")
    visible = "blocks => blocks.filter(b => b.checkVisibility()).length"
    assert page.eval_on_selector_all(".highlight", visible) == 0
    page.get_by_role("button", name="Show all code").click()
    assert page.eval_on_selector_all(".highlight", visible) == code.count() > 8
    page.get_by_role("button", name="Hide all code").click()
    assert page.eval_on_selector_all(".highlight", visible) == 0
    page.get_by_text("parameters, each with its published value").click()
    assert page.get_by_text("optimisation steps an image").is_visible()


def test_every_image_has_a_text(folder, visit):
    page = visit(folder / f"{OUTPUTS}.html")
    texts = page.eval_on_selector_all("main figure svg > title", "all => all.map(e => e.textContent)")
    assert len(texts) == page.locator("main figure svg:has(use[href^='#image'])").count() > 20
    assert all(len(text) > 6 for text in texts)
    assert page.locator("img:not([alt]), img[alt='']").count() == 0
    assert page.locator("figure[aria-label*='SEARLE-OTI 37.0 [34.0, 40.0]']").count() == 1


def test_an_image_is_enlarged_by_click_and_by_keyboard(folder, visit):
    page = visit(folder / f"{OUTPUTS}.html")
    dialog, images = page.locator("dialog"), page.locator(".sheet .query").first.locator("figure svg")
    images.last.click()
    assert dialog.is_visible() and "Image-only, rank 12, miss\nscore 0.500\n" in dialog.inner_text()
    assert dialog.locator("svg").bounding_box()["width"] > 300
    page.keyboard.press("ArrowLeft")
    assert "Image-only, rank 11, miss" in dialog.inner_text()
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    images.first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert "target\n" in dialog.inner_text()
    dialog.get_by_role("button", name="Close").click()
    assert not dialog.is_visible() and page.evaluate(
        "document.activeElement.querySelector('title').textContent"
    ).startswith("target")


def test_a_row_of_a_sheet_is_one_line_on_a_phone_too(folder, visit):
    page = visit(folder / f"{OUTPUTS}.html", 390)
    rows = page.locator(".sheet .images:not(.asked)")
    for row in range(rows.count()):
        heights = rows.nth(row).locator("svg").evaluate_all("all => all.map(e => e.getBoundingClientRect().top)")
        assert len(heights) == 12 and max(heights) - min(heights) < 1
    note = page.get_by_text("target at 37").first.bounding_box()
    assert note["x"] + note["width"] < 390
