"""What a table of results is, and its forms to read and to paste: HTML, LaTeX (booktabs), Markdown and CSV.

Takes a Table and returns text. All forms have the same numbers and marks: HTML, LaTeX and Markdown with one decimal, an
exact half rounded to the even digit as Python's format does, and CSV with all digits. Names are text in every form.
"""

import html
import math
import re
from dataclasses import dataclass

import pandas as pd
from pandas.io.formats.style import Styler

from searle_lib.reporting import templates

TIE = "†"
EMPTY = "·"
FOLDED = ("published", "reproduced")  # kinds whose rows an HTML page folds
MARKDOWN_SIGNS = re.compile(r"[\\`*_{}\[\]<>|~$&^#!]")
LATEX_SIGNS = str.maketrans(
    {sign: "\\" + sign for sign in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": r"\textbar{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "[": "{[}", "]": "{]}"}  # [ after \\ would be an argument
    | {"–": "--", "−": "$-$", "…": r"\ldots{}", "≥": r"$\geq$", EMPTY: r"$\cdot$", TIE: r"\textsuperscript{$\dagger$}"}
    | {"\n": " "}
)


@dataclass(frozen=True)
class Cell:
    """A number of a table, with the bounds of its 95 % interval if it has one.

    Args:
        value: in percent, or in points for a difference; NaN if there is none.
        low: lower bound, or NaN.
        high: upper bound, or NaN.
        mark: "best", "second" or "".
        tied: whether it is not the best, but cannot be told from it.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    mark: str = ""
    tied: bool = False


@dataclass(frozen=True)
class Section:
    """Rows of one kind of numbers.

    Args:
        kind: "study", "published", "reproduced" or "difference".
        heading: says what the numbers are.
        cells: a Cell per row and column. Rows are (name, detail, reference), columns (group, name); all but
            the names may be "".
        sources: where the numbers of each row come from.
        note: stands below the rows.
        digits: decimals in the CSV.
    """

    kind: str
    heading: str
    cells: pd.DataFrame
    sources: list[str]
    note: str = ""
    digits: int = 4

    @property
    def is_signed(self) -> bool:
        """Whether its numbers are differences."""
        return self.kind == "difference"


@dataclass(frozen=True)
class Table:
    """A table of results.

    Args:
        name: the name of its files, without the ending.
        title: stands above it.
        rows: what its rows are, as in "method".
        sections: the study's own numbers first. All have the same columns.
        note: says how the numbers were made.
    """

    name: str
    title: str
    rows: str
    sections: list[Section]
    note: str


def to_html(table: Table) -> str:
    """Return a table that stands alone, with buttons that copy its other forms."""
    parts = [
        {
            "kind": section.kind,
            "is_folded": section.kind in FOLDED,
            "heading": section.heading,
            "table": _styler_of_html(table, section).to_html(),
            "note": section.note,
        }
        for section in table.sections
    ]
    texts = {"LaTeX": to_latex(table), "Markdown": to_markdown(table), "CSV": to_csv(table)}
    values = {"anchor": table.name.lower(), "title": table.title, "parts": parts, "note": table.note, "texts": texts}
    return templates.render("table", **values)


def to_latex(table: Table) -> str:
    """Return a LaTeX table for the package booktabs. An interval stands below its value in tiny type."""
    width = 1 + table.sections[0].cells.shape[1]
    blocks = []
    for section in table.sections:
        text = _styler_of_latex(table, section).to_latex(
            hrules=True, column_format="l" + "r" * (width - 1), multicol_align="c"
        )
        head, body = re.fullmatch(r"(.*)\\midrule\n(.*)\\bottomrule\n.*", text, re.S).groups()
        body = re.sub(r"\\\\\n( & .*)\\\\\n", r"\\\\[-0.6ex]\n\1\\\\[0.6ex]\n", body)  # an interval near its value
        heading = f"\\makebox[0pt][l]{{\\textit{{{_latex(section.heading)}}}}}"
        blocks.append(f"\\midrule\n\\multicolumn{{{width}}}{{l}}{{{heading}}} \\\\\n\\midrule\n{body}")
    notes = " ".join(filter(None, [table.note, *(section.note for section in table.sections)]))
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table*}[t]",
        "\\centering",
        "\\footnotesize",
        "\\setlength{\\tabcolsep}{3pt}",
        f"\\caption{{{_latex(table.title)}}}",
        f"\\label{{tab:{table.name.lower()}}}",
        head + "".join(blocks) + "\\bottomrule",
        "\\end{tabular}",
        f"\\par\\smallskip\\parbox{{\\linewidth}}{{\\scriptsize {_latex(notes)}}}",
        "\\end{table*}",
    ]
    return "\n".join(lines) + "\n"


def to_markdown(table: Table) -> str:
    """Return a Markdown table for each section, in GitHub's dialect."""
    columns = table.sections[0].cells.columns
    header = [table.rows, *(" ".join(filter(None, column)) for column in columns)]
    lines = [f"### {_markdown(table.title)}"]
    for section in table.sections:
        names = [_markdown(_label(*row)) for row in section.cells.index]
        cells = section.cells.map(lambda cell, section=section: _markdown_cell(cell, section.is_signed))
        rows = [[name, *line] for name, line in zip(names, cells.to_numpy().tolist(), strict=True)]
        lines += ["", f"**{_markdown(section.heading)}**", "", _markdown_row([_markdown(text) for text in header])]
        lines += [_markdown_row([":---", *["---:"] * len(columns)]), *map(_markdown_row, rows)]
        lines += ["", _markdown(section.note)] if section.note else []
    return "\n".join([*lines, "", _markdown(table.note)]) + "\n"


def to_csv(table: Table) -> str:
    """Return all sections as CSV: for each number its value, interval and mark, and for each row the source."""
    frames = []
    for section in table.sections:
        columns: dict[str, list] = {
            "numbers": [section.kind] * len(section.cells),
            table.rows: list(section.cells.index.get_level_values(0)),
            "detail": list(section.cells.index.get_level_values(1)),
        }
        for column in section.cells:
            name = " ".join(filter(None, column))
            cells = section.cells[column]
            for bound, suffix in (("value", ""), ("low", " low"), ("high", " high")):
                columns[name + suffix] = [_all_digits(getattr(cell, bound), section.digits) for cell in cells]
            columns[name + " mark"] = [" ".join(filter(None, [cell.mark, cell.tied and "tied"])) for cell in cells]
        frames.append(pd.DataFrame({**columns, "source": section.sources}))
    return pd.concat(frames).to_csv(index=False, lineterminator="\n")


def printed(value: float, is_signed: bool = False) -> str:
    """Return a number with one decimal; a difference always has a sign, and zero has no minus."""
    return (f"{value:+z.1f}" if is_signed else f"{value:z.1f}").replace("-", "−")


def _styler_of_html(table: Table, section: Section) -> Styler:
    cells = section.cells.map(lambda cell: _html_cell(cell, section.is_signed))
    marks = section.cells.map(lambda cell: cell.mark)
    columns = _header(cells.columns)
    cells = pd.DataFrame(cells.to_numpy(), columns=columns).rename_axis(
        columns=_column_names(columns, html.escape(table.rows))
    )
    styler = Styler(cells, uuid=f"{table.name}-{section.kind}", cell_ids=False)
    styler.set_table_attributes(f'class="results {section.kind}"')
    styler.set_td_classes(pd.DataFrame(marks.to_numpy(), columns=columns))
    labels = [_html_label(*row) for row in section.cells.index]
    return styler.format_index(labels.__getitem__).format_index(escape="html", axis=1)


def _styler_of_latex(table: Table, section: Section) -> Styler:
    """Return a row of values and a row of intervals for each row of a section, or only the first if it has none."""
    values = section.cells.map(lambda cell: _latex_value(cell, section.is_signed))
    bounds = section.cells.map(lambda cell: _latex(_interval(cell, section.is_signed)))
    commands = {"best": "textbf:--rwrap", "second": "underline:--rwrap", "": ""}
    lines, styles, labels = [], [], []
    for number, row in enumerate(section.cells.index):
        lines.append(values.iloc[number].tolist())
        styles.append([commands[cell.mark] for cell in section.cells.iloc[number]])
        labels.append(_latex(_label(*row)))
        if any(bounds.iloc[number]):
            lines.append(bounds.iloc[number].tolist())
            styles.append(["tiny:--wrap" if text else "" for text in bounds.iloc[number]])
            labels.append("")
    columns = _header(section.cells.columns.map(lambda column: tuple(map(_latex, column))))
    frame = pd.DataFrame(lines, columns=columns).rename_axis(columns=_column_names(columns, _latex(table.rows)))
    styler = Styler(frame).apply(lambda _: pd.DataFrame(styles, columns=columns), axis=None)
    return styler.format_index(labels.__getitem__)


def _header(columns: pd.MultiIndex) -> pd.Index:
    """Return the columns without the level of groups if no column is in a group."""
    return columns if any(columns.get_level_values(0)) else columns.get_level_values(1)


def _column_names(columns: pd.Index, rows: str) -> list[str]:
    """Return the names of a header's levels; what the rows are stands in the lowest one."""
    return [*[""] * (columns.nlevels - 1), rows]


def _label(name: str, detail: str, reference: str) -> str:
    return " ".join(filter(None, [name, detail and f"({detail})", reference]))


def _html_label(name: str, detail: str, reference: str) -> str:
    small = html.escape(_label("", detail, reference))
    return html.escape(name) + (f" <small>{small}</small>" if small else "")


def _interval(cell: Cell, is_signed: bool) -> str:
    if math.isnan(cell.low):
        return ""
    low, high = printed(cell.low), printed(cell.high)
    return f"[{low}, {high}]" if is_signed else f"{low}–{high}"


def _html_cell(cell: Cell, is_signed: bool) -> str:
    if math.isnan(cell.value):
        return EMPTY
    interval = _interval(cell, is_signed)
    tie = f"<sup>{TIE}</sup>" if cell.tied else ""
    return f"<span>{printed(cell.value, is_signed)}</span>{tie}" + (f"<small>{interval}</small>" if interval else "")


def _latex_value(cell: Cell, is_signed: bool) -> str:
    """Return a value for LaTeX; the sign of a tie takes no width, so that the digits stay below one another."""
    if math.isnan(cell.value):
        return _latex(EMPTY)
    return _latex(printed(cell.value, is_signed)) + (r"\rlap{$^{\dagger}$}" if cell.tied else "")


def _markdown_cell(cell: Cell, is_signed: bool) -> str:
    if math.isnan(cell.value):
        return EMPTY
    text = {"best": "**{}**", "second": "<ins>{}</ins>", "": "{}"}[cell.mark].format(printed(cell.value, is_signed))
    interval = _interval(cell, is_signed)
    return text + TIE * cell.tied + (f" <small>{interval}</small>" if interval else "")


def _markdown_row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown(text: str) -> str:
    """Return text that Markdown shows as it is."""
    return MARKDOWN_SIGNS.sub(r"\\\g<0>", text.replace("\n", " "))


def _latex(text: str) -> str:
    """Return text that LaTeX prints as it is."""
    return text.translate(LATEX_SIGNS)


def _all_digits(number: float, digits: int) -> str:
    return "" if math.isnan(number) else f"{number:.{digits}f}"
