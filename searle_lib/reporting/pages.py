"""Pages that people open from disk: each executed notebook as HTML, and an index that links them.

Nothing comes from the network: formulas become MathML, images are embedded, the style is part of the page.
"""

import ast
import re
from collections.abc import Iterable
from pathlib import Path

import nbformat
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from pygments.formatters import HtmlFormatter

from searle_lib.reporting import stale_pages, templates
from searle_lib.store.artefacts import atomic_write

CHAPTERS = ("01_phrases", "02_concepts", "03_oti", "04_phi", "05_fti4cir", "06_retrieval", "07_results")
_FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<![\\$\w])\$(?!\s)([^$\n]+?)(?<!\s)\$(?![\w$])", re.S)


def read(notebook: Path) -> nbformat.NotebookNode:
    """Return an executed notebook as its page shows it: of the values that papermill set, those that are not default.

    Not thread-safe: `ast.parse` in two threads at a time can fail in CPython 3.11.
    """
    content = nbformat.read(notebook, as_version=4)
    _shorten_parameters(content)
    return content


def page(content: nbformat.NotebookNode, target: Path, head: str = "") -> Path:
    """Render a notebook from `read` as a page that stands alone; `head` names its record (`stale_pages.head_of`)."""
    for cell in content.cells:
        if cell.cell_type == "markdown":
            cell.source = _FORMULA.sub(_mathml, cell.source)
    template = str(Path(__file__).with_name("notebook.html.j2"))
    exporter = HTMLExporter(template_file=template, exclude_input_prompt=True, exclude_output_prompt=True)
    write(target, target.stem, _links(target.stem), exporter.from_notebook_node(content)[0], head)
    return target


def index(folder: Path, study: str, notebooks: list[Path]) -> Path:
    """Write the page that links the pages and files of a study, with the question that each notebook asks."""
    chapters = []
    for path in notebooks:
        title, question = _introduction(path)
        href = f"{path.stem}.html" if (folder / f"{path.stem}.html").exists() else ""
        chapters.append({"title": title, "question": question, "href": href})
    names = ["results.csv", "phi_log.csv", "fti_log.csv", "figures/results.png"]
    *files, chart = [name if (folder / name).exists() else "" for name in names]
    files += [str(path.relative_to(folder)) for path in sorted((folder / "submissions").glob("*.json"))]
    values = {"study": study, "chart": chart, "chapters": chapters, "files": list(filter(None, files))}
    write(folder / "index.html", f"Study {study}", (), templates.render("index", **values))
    return folder / "index.html"


def write(target: Path, title: str, links: Iterable[tuple[str, str]], body: str, head: str = "") -> None:
    """Write a page that stands alone, with room for a note that it is stale.

    Args:
        target: the page's file.
        title: text for the browser's tab.
        links: address and text of each link above the page.
        body: HTML.
        head: HTML for the page's head.
    """
    values = {"title": title, "links": links, "body": body, "head": head, "note": stale_pages.NO_NOTE}
    values["highlighting"] = HtmlFormatter(style="default").get_style_defs(".highlight")
    with atomic_write(target) as aside:
        aside.write_text(templates.render("page", **values), encoding="utf-8")


def _links(notebook: str) -> list[tuple[str, str]]:
    """Return the links from a notebook's page to the index, and to the pages before and after it."""
    links = [("index.html", "All pages of this study")]
    if notebook in CHAPTERS:
        number = CHAPTERS.index(notebook)
        links += [(f"{name}.html", f"← {name}") for name in CHAPTERS[max(number - 1, 0) : number]]
        links += [(f"{name}.html", f"{name} →") for name in CHAPTERS[number + 1 : number + 2]]
    return links


def _mathml(match: re.Match) -> str:
    block, inline = match.groups()
    formula = convert((block or inline).strip(), display="block" if block else "inline")
    return f'<div class="formula">{formula}</div>' if block else formula


def _introduction(notebook: Path) -> tuple[str, str]:
    """Return a notebook's title and the first paragraph below it, as plain text."""
    title, _, text = nbformat.read(notebook, as_version=4).cells[0].source.partition("\n")
    question = next((part for part in text.split("\n\n") if part.strip()), "")
    question = re.sub(r"\[([^]]+)\]\([^)]+\)|[*`$]", r"\1", question)  # links keep their text
    return title.lstrip("# ").strip(), " ".join(question.split())


def _shorten_parameters(content: nbformat.NotebookNode) -> None:
    """Cut papermill's cell of all values to those that differ from the declared ones; drop it if none does."""
    cells = {tag: cell for cell in content.cells for tag in cell.metadata.get("tags", [])}
    if "injected-parameters" in cells:
        defaults = _assignments(cells["parameters"].source)
        values = _assignments(cells["injected-parameters"].source)
        changes = [f"{name} = {value}" for name, value in values.items() if defaults.get(name) != value]
        cells["injected-parameters"].source = "\n".join(["# Values of this run", *changes])
        if not changes:
            content.cells.remove(cells["injected-parameters"])


def _assignments(source: str) -> dict[str, str]:
    """Return the values that a cell assigns, as Python writes them, by name."""
    statements = [node for node in ast.parse(source).body if isinstance(node, ast.Assign | ast.AnnAssign)]
    return {ast.unparse(node).partition(" = ")[0].partition(":")[0]: ast.unparse(node.value) for node in statements}
