"""Pages that people open from disk: each executed notebook as HTML, and an index that links them.

Nothing is fetched: formulas become MathML, images are embedded, the style stands in the page.
"""

import ast
import html
import re
from importlib import resources
from pathlib import Path

import nbformat
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from searle_lib.reporting import stale_pages
from searle_lib.store.artefacts import written_aside

FOLDED = "PARAMETERS-FOLD-HERE"
CHAPTERS = ("01_phrases", "02_concepts", "03_oti", "04_phi", "05_fti4cir", "06_retrieval", "07_results")
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
{head}<title>{title}</title><style>{style}</style></head>
<body><nav>{nav}</nav><main>{note}{body}</main></body></html>
"""
_FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<![\\$\w])\$(?!\s)([^$\n]+?)(?<!\s)\$(?![\w$])", re.S)


def page(notebook: Path, target: Path, head: str = "") -> Path:
    """Render an executed notebook as a page that stands alone; `head` names the record it was made from."""
    content = nbformat.read(notebook, as_version=4)
    content.cells, folded = _without_parameters(content.cells)
    for cell in content.cells:
        if cell.cell_type == "markdown":
            cell.source = _with_mathml(cell.source)
    exporter = HTMLExporter(template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True)
    body, _ = exporter.from_notebook_node(content)
    body = body.replace(f"<p>{FOLDED}</p>", folded)
    write(target, target.stem, _ways(target.stem), body, head)
    return target


def index(folder: Path, study: str, notebooks: list[Path]) -> Path:
    """Write the page that links the study's pages and files: what each notebook asks, in its own first words."""
    rows = []
    for path in notebooks:
        title, question = _opening(path)
        link = html.escape(title)
        if (folder / f"{path.stem}.html").exists():
            link = f'<a href="{path.stem}.html">{link}</a>'
        rows.append(f"<li><h2>{link}</h2><p>{html.escape(question)}</p></li>")
    files = [name for name in ("results.csv", "phi_log.csv", "fti_log.csv") if (folder / name).exists()]
    files += [str(path.relative_to(folder)) for path in sorted((folder / "submissions").glob("*.json"))]
    files = "".join(f'<li><a href="{html.escape(name)}">{html.escape(name)}</a></li>' for name in files)
    chart = folder / "figures" / "results.png"
    picture = f'<img src="figures/{chart.name}" alt="Main results with intervals">' if chart.exists() else ""
    body = f'<h1>Study {html.escape(study)}</h1>{picture}<ol class="contents">{"".join(rows)}</ol>'
    body += f"<h2>Files</h2><ul>{files}</ul>" if files else ""
    target = folder / "index.html"
    write(target, f"Study {study}", "", body)
    return target


def write(target: Path, title: str, nav: str, body: str, head: str = "") -> None:
    """Write a page that stands alone, of a body in HTML; the place for a note that it is stale stands on its top."""
    style = resources.files("searle_lib.reporting").joinpath("page.css").read_text()
    style += HtmlFormatter(style="default").get_style_defs(".highlight")
    with written_aside(target) as aside:
        parts = {"title": html.escape(title), "style": style, "nav": nav, "body": body, "head": head}
        aside.write_text(_PAGE.format(**parts, note=stale_pages.NO_NOTE), encoding="utf-8")


def _ways(notebook: str) -> str:
    """Return the links from a notebook's page to the index, and to the pages before and after it."""
    place = CHAPTERS.index(notebook) if notebook in CHAPTERS else None
    ways = ['<a href="index.html">All pages of this study</a>']
    if place is not None:
        ways += [f'<a href="{name}.html">← {name}</a>' for name in CHAPTERS[max(place - 1, 0) : place]]
        ways += [f'<a href="{name}.html">{name} →</a>' for name in CHAPTERS[place + 1 : place + 2]]
    return " ".join(ways)


def _with_mathml(text: str) -> str:
    def replaced(match: re.Match) -> str:
        block, inline = match.groups()
        formula = convert((block or inline).strip(), display="block" if block else "inline")
        return f'<div class="formula">{formula}</div>' if block else formula

    return _FORMULA.sub(replaced, text)


def _opening(notebook: Path) -> tuple[str, str]:
    """A notebook's title, and the first paragraph below it."""
    first = nbformat.read(notebook, as_version=4).cells[0].source
    title, _, rest = first.partition("\n")
    question = next((part for part in rest.split("\n\n") if part.strip()), "")
    return title.lstrip("# ").strip(), re.sub(r"[*`$]", "", " ".join(question.split()))


def _without_parameters(cells: list) -> tuple[list, str]:
    """Return the cells, and the parameters cell as HTML that folds; the word FOLDED stands in its place.

    Papermill's own cell of all values is cut to those that differ from the declared ones.
    """
    declared = next((c.source for c in cells if "parameters" in c.metadata.get("tags", [])), "")
    defaults = {line.partition(":")[0]: line.partition(" = ")[2].partition("  #")[0] for line in declared.splitlines()}
    kept = []
    for cell in cells:
        if "injected-parameters" in cell.metadata.get("tags", []):
            assigned = [line.partition(" = ") for line in cell.source.splitlines() if " = " in line]
            differing = [f"{name} = {value}" for name, _, value in assigned if not _same(value, defaults.get(name))]
            if not differing:
                continue
            cell.source = "\n".join(["# Values of this run", *differing])
        if "parameters" in cell.metadata.get("tags", []):
            cell = nbformat.v4.new_markdown_cell(FOLDED)
        kept.append(cell)
    code = highlight(declared, PythonLexer(), HtmlFormatter())
    summary = f"{len(defaults)} parameters, each with its published value"
    return kept, f"<details><summary>{summary}</summary>{code}</details>"


def _same(value: str, default: str | None) -> bool:
    return default is not None and ast.literal_eval(value) == ast.literal_eval(default)
