"""Pages that people open from disk: each executed notebook as HTML, with contents, folded code and links.

Nothing comes from the network: formulas become MathML, images are embedded, the style is part of the page.
"""

import ast
import html
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from latex2mathml.converter import convert
from latex2mathml.symbols_parser import convert_symbol
from pygments.formatters import HtmlFormatter

from searle_lib.reporting import stale_pages, templates
from searle_lib.store.artefacts import atomic_write

if TYPE_CHECKING:
    from nbformat import NotebookNode

CHAPTERS = ("01_phrases", "02_concepts", "03_oti", "04_phi", "05_fti4cir", "06_retrieval", "07_results")
LIGHT, DARK = "default", "github-dark"  # Pygments' styles of code
MAX_CALLS = 3  # named in the summary of folded code
_NAME = re.compile(r"(?<![\w/`.[-])(" + "|".join(CHAPTERS) + r")(?![\w/`.-]*\w)")  # of a notebook, in prose
_HEADING = re.compile(r'<h([23])[^>]* id="([^"]+)"[^>]*>(.*?)</h\1>', re.S)
_DEFINITION = re.compile(r"<style[^>]*>.*?</style>\n?|<image [^>]*/>\n?", re.S)  # what outputs repeat
_FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<![\\$\w])\$(?!\s)([^$\n]+?)(?<!\s)\$(?![\w$])", re.S)


def read(notebook: Path) -> "NotebookNode":
    """Return an executed notebook as its page shows it.

    Of the values that papermill set it holds those that are not default. Each cell of code has a summary in its
    metadata. Not thread-safe: `ast.parse` in two threads at a time can fail in CPython 3.11.
    """
    import nbformat  # takes two seconds, which the tables of 07_results need not wait for

    content = nbformat.read(notebook, as_version=4)
    _shorten_parameters(content)
    for cell in content.cells:
        if cell.cell_type == "code":
            cell.metadata["summary"] = _summary(cell.source)
    return content


def page(content: "NotebookNode", target: Path, head: str = "") -> Path:
    """Render a notebook from `read` as a page that stands alone; `head` names its record (`stale_pages.head_of`)."""
    from nbconvert import HTMLExporter

    heading = target.stem
    for cell in content.cells:
        if cell.cell_type == "markdown":
            heading = next(iter(re.findall(r"^#+ (.+)", cell.source, re.M)[-1:]), heading)
            cell.source = _FORMULA.sub(_mathml, cell.source)
            cell.source = _NAME.sub(lambda m: m[1] if m[1] == target.stem else f"[{m[1]}]({m[1]}.html)", cell.source)
        for output in (output for output in cell.get("outputs", []) if "image/png" in output.get("data", {})):
            output.metadata.setdefault("image/png", {}).setdefault("alt", f"Figure of the section {heading}")
    template = str(Path(__file__).with_name("notebook.html.j2"))
    exporter = HTMLExporter(template_file=template, exclude_input_prompt=True, exclude_output_prompt=True)
    write(target, target.stem, _links(target.stem), exporter.from_notebook_node(content)[0], head)
    return target


def write(target: Path, title: str, links: Iterable[tuple[str, str]], body: str, head: str = "") -> None:
    """Write a page that stands alone, with a list of its headings and room for a note that it is stale.

    The list has the headings h2 and h3 that have an id. What several outputs repeat, a style or an image, stays once.

    Args:
        target: the page's file.
        title: text for the browser's tab.
        links: address and text of each link above and below the page.
        body: HTML.
        head: HTML for the page's head.
    """
    headings = [(int(level), anchor, _plain(text)) for level, anchor, text in _HEADING.findall(body)]
    values = {"title": title, "links": links, "head": head, "note": stale_pages.NO_NOTE, "headings": headings}
    values["body"] = _without_repetitions(body)
    values |= {"light": _highlighting(LIGHT), "dark": _highlighting(DARK)}
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


def _without_repetitions(body: str) -> str:
    """Keep the first of equal styles and of equal images: each output brings its own, and a page needs them once."""
    seen = set()

    def first_only(definition: re.Match) -> str:
        is_new = definition[0] not in seen
        seen.add(definition[0])
        return definition[0] if is_new else ""

    return _DEFINITION.sub(first_only, body)


def _highlighting(style: str) -> str:
    return HtmlFormatter(style=style).get_style_defs(".highlight")


def _plain(markup: str) -> str:
    """Return a heading's text without its tags and the sign of its anchor."""
    return html.unescape(re.sub(r"<a [^>]*anchor-link.*?</a>|<[^>]+>", "", markup, flags=re.S)).strip()


def _mathml(match: re.Match) -> str:
    block, inline = match.groups()
    formula = convert((block or inline).strip(), display="block" if block else "inline")
    formula = re.sub(r">(\\[A-Za-z]+)<", _symbol, formula)
    return f'<div class="formula">{formula}</div>' if block else formula


def _symbol(match: re.Match) -> str:
    """Return the sign of a command that the converter copies, as it does behind \\Big; the command if it has none."""
    number = convert_symbol(match[1])
    return f">&#x{number};<" if number else match[0]


def _shorten_parameters(content: "NotebookNode") -> None:
    """Cut papermill's cell of all values to those that differ from the declared ones; drop it if none does."""
    cells = {tag: cell for cell in content.cells for tag in cell.metadata.get("tags", [])}
    if "injected-parameters" in cells:
        defaults = _assignments(cells["parameters"].source)
        values = _assignments(cells["injected-parameters"].source)
        changes = [f"{name} = {value}" for name, value in values.items() if defaults.get(name) != value]
        cells["injected-parameters"].source = "\n".join(["# Values of this run", *changes])
        if not changes:
            content.cells.remove(cells["injected-parameters"])


def _summary(source: str) -> str:
    """Return in a few words what a cell of code does: the functions of the library that it calls, or its size."""
    try:
        tree = ast.parse(source)
    except SyntaxError:  # a magic of IPython
        tree = ast.Module([], [])
    if tree.body and all(isinstance(node, ast.Import | ast.ImportFrom) for node in tree.body):
        return "imports"
    calls = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = list(dict.fromkeys(name for name in calls if re.fullmatch(r"\w+\.\w+", name)))
    lines = len(source.splitlines())
    size = f"{lines} line{'s' * (lines != 1)}"
    return ", ".join(names[:MAX_CALLS]) + ", …" * (len(names) > MAX_CALLS) if names else size


def _assignments(source: str) -> dict[str, str]:
    """Return the values that a cell assigns, as Python writes them, by name."""
    statements = [node for node in ast.parse(source).body if isinstance(node, ast.Assign | ast.AnnAssign)]
    return {ast.unparse(node).partition(" = ")[0].partition(":")[0]: ast.unparse(node.value) for node in statements}
