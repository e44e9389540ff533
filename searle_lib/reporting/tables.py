"""Tables of results as HTML that stands alone: values with their intervals, published numbers below.

Takes the long table that `intervals.summarise` returns, and the provenance that `scores.provenance` returns. Among the
methods of a study the best value is bold and the second best is underlined.
"""

import html
import re
from collections.abc import Iterator

import pandas as pd
from IPython.display import HTML
from pandas.io.formats.style import Styler

from searle_lib.data.benchmarks import PROTOCOLS
from searle_lib.evaluation.intervals import AVERAGE, TITLES, evaluated_on, paper_table, published_numbers
from searle_lib.reporting import templates

BOUNDS = ["value", "ci_low", "ci_high"]
MARKS = {1: "best", 2: "second"}  # CSS class by rank
DRAWN = "; do not compare with drawn images"


def table(results: pd.DataFrame, dataset: str, split: str, provenance: dict, kind: str = "") -> HTML:
    """Show a benchmark's results by method, with the published numbers of the same metrics below.

    Args:
        results: long table of `intervals.summarise`.
        dataset: title of the benchmark, as in "CIRCO".
        split: as in "val".
        provenance: what `scores.provenance` returns.
        kind: "R", "Rsubset" or "mAP" to show only the metrics of that kind.
    """
    values, low, high = (paper_table(results.assign(value=results[bound]), dataset, split) for bound in BOUNDS)
    aspects = _aspects(results, dataset)
    columns = [(c, m) for c, m in values if c not in aspects and m.startswith(f"{kind}@" if kind else "")]
    cells = _cells(values[columns], low[columns], high[columns])
    styler = _styler(cells, "method").set_td_classes(_marks(values[columns]))
    for heading, numbers in _published(dataset, cells.columns):
        heading += DRAWN if provenance["world"] == "miniature" else ""
        row = Styler(pd.DataFrame("", [heading], cells.columns), cell_ids=False)  # empty apart from its heading
        styler.concat(row.format_index('<span class="group">{}</span>', escape="html"))
        styler.concat(_styler(_cells(numbers)))
    return _html(f"{dataset} {split}{kind and ', '}{kind}", styler, _note(dataset, split, provenance))


def aspect_table(results: pd.DataFrame, dataset: str, split: str, provenance: dict) -> HTML:
    """Show mAP by semantic aspect: a row for each aspect, a column for each method."""
    rows = results[(results["dataset"] == dataset) & (results["split"] == split)]
    rows = rows[rows["category"].isin(_aspects(results, dataset))]
    frames = rows.assign(category=rows["category"].str.replace("_", " ")).pivot(index="category", columns="method")
    values, low, high = (frames[bound][rows["method"].unique()] for bound in BOUNDS)
    cells = _cells(values, low, high).assign(queries=frames["queries"].iloc[:, 0].astype(str))[["queries", *values]]
    styler = _styler(cells, "aspect").set_td_classes(_marks(values.T).T)
    title = f"{dataset} {split}, {rows['metric'].iloc[0]} by semantic aspect"
    return _html(title, styler, _note(dataset, split, provenance, "the aspect's queries"))


def of_study(results: pd.DataFrame, provenance: dict) -> list[HTML]:
    """Return the tables of every benchmark: FashionIQ's recall and mAP apart, CIRCO's mAP also by aspect."""
    tables = []
    for dataset in results["dataset"].unique():
        kinds = ("R", "mAP") if dataset == "FashionIQ" else ("",)
        tables += [table(results, dataset, "val", provenance, kind) for kind in kinds]
        tables += [aspect_table(results, dataset, "val", provenance)] if _aspects(results, dataset) else []
    return tables


def sentences(lines: list[str]) -> HTML:
    """Show sentences as a list."""
    return HTML(templates.render("sentences", sentences=lines))


def _cells(values: pd.DataFrame, low: pd.DataFrame | None = None, high: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return each value as HTML, with its interval in small below it."""
    cells = values.map("<span>{:.2f}</span>".format)
    if low is not None:
        cells += low.map("<small>{:.1f}–".format) + high.map("{:.1f}</small>".format)
    return cells.where(values.notna(), "·")


def _marks(values: pd.DataFrame) -> pd.DataFrame:
    """Return the CSS classes of the best and the second best value in each column, by the digits that are printed."""
    return values.round(2).rank(ascending=False, method="dense").map(lambda rank: MARKS.get(rank, ""))


def _styler(cells: pd.DataFrame, label: str = "") -> Styler:
    """Return a table of cells that are HTML; row and column names are escaped, `label` stands above the row names."""
    cells = cells.rename_axis(index=None, columns=[*[""] * (cells.columns.nlevels - 1), label])
    styler = Styler(cells, cell_ids=False).set_table_attributes('class="results"')
    styler.format_index(lambda name: re.sub(r"(\(.*\))$", r"<small>\1</small>", html.escape(name)))
    return styler.format_index(escape="html", axis=1)


def _published(dataset: str, columns: pd.MultiIndex) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield a heading for each source of published numbers, and the numbers of these columns by method."""
    numbers = published_numbers()
    for (split, origin), group in numbers[numbers["dataset"] == dataset].groupby(["split", "origin"]):
        values = group.pivot(index=["method", "backbone"], columns=["category", "metric"], values="value")
        values = values.reindex(columns=columns).dropna(how="all")
        values.index = [f"{method} ({backbone})" for method, backbone in values.index]
        if len(values):
            yield f"{origin} on the real {dataset} {split}", values


def _note(dataset: str, split: str, provenance: dict, sample: str = "queries") -> str:
    """Say what the numbers are, how much of the data set they cover, and which CLIP they come from."""
    note = f"Percent; below each value its 95 % bootstrap interval over {sample}. Best bold, second best underlined. "
    note += f"{evaluated_on(dataset, split, provenance['sizes'])}. "
    return note + f"CLIP {provenance['backbone']}, sha256 of its weights {provenance['clip_sha256'][:8]}…."


def _html(title: str, styler: Styler, note: str) -> HTML:
    return HTML(templates.render("table", title=title, table=styler.to_html(), note=note))


def _aspects(results: pd.DataFrame, dataset: str) -> set[str]:
    """Return the categories of a benchmark's results that are semantic aspects."""
    protocol = PROTOCOLS[TITLES[dataset]]
    others = {*protocol.categories, *(category for _, category in protocol.metrics), AVERAGE}
    return set(results.loc[results["dataset"] == dataset, "category"]) - others
