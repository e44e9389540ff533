"""Result tables as HTML that stands alone: values with their intervals, published numbers below."""

import html

import pandas as pd
from IPython.display import HTML

from searle_lib.data.benchmarks import PROTOCOLS
from searle_lib.evaluation.intervals import AVERAGE, TITLES, evaluated_on, published, wide
from searle_lib.reporting.sheets import STYLE


def table(results: pd.DataFrame, dataset: str, split: str, made_with: dict, kind: str = "") -> HTML:
    """A benchmark's table with intervals, the published numbers of the same metrics below, and what it was made from.

    `kind` keeps to the metrics of one kind: "R", "Rsubset" or "mAP". `made_with` is what `evaluation.made_with` gives.
    Where the study's pictures are drawn, the published numbers are marked as of the real data.
    """
    columns = [pair for pair in wide(results, dataset, split).columns if pair[0] not in _aspects(results, dataset)]
    columns = [pair for pair in columns if not kind or pair[1].startswith(f"{kind}@")]
    chosen = results[(results["dataset"] == dataset) & (results["split"] == split)]
    own = {(row.method, row.category, row.metric): row for row in chosen.itertuples()}
    lines = [_head(columns)]
    methods = list(dict.fromkeys(chosen["method"]))
    best = {pair: max(own[method, *pair].value for method in methods) for pair in columns}
    for method in methods:
        cells = [_cell(own[method, *pair], best[pair]) for pair in columns]
        lines.append(f'<tr><td class="first">{html.escape(method)}</td>{"".join(cells)}</tr>')
    lines += _published_rows(dataset, columns, made_with["world"] == "miniature")
    note = "Percent; below each value its 95 % bootstrap interval over queries."
    return _page(lines, f"{note} {sources(dataset, split, made_with)}")


def of_study(results: pd.DataFrame, made_with: dict) -> list[HTML]:
    """The tables of every benchmark under its name: FashionIQ's recall and mAP apart, CIRCO's by aspect too."""
    shown = []
    for dataset in dict.fromkeys(results["dataset"]):
        kinds = ("R", "mAP") if dataset == "FashionIQ" else ("",)
        shown.append(HTML(f"<h3>{html.escape(dataset)}</h3>"))
        shown += [table(results, dataset, "val", made_with, kind) for kind in kinds]
        shown += [aspect_table(results, dataset, "val", made_with)] * bool(_aspects(results, dataset))
    return shown


def sentences(lines: list[str]) -> HTML:
    """Sentences, one below the other."""
    return HTML("<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>")


def aspect_table(results: pd.DataFrame, dataset: str, split: str, made_with: dict) -> HTML:
    """CIRCO's mAP@10 by semantic aspect, a row an aspect."""
    chosen = results[(results["dataset"] == dataset) & (results["split"] == split)]
    chosen = chosen[chosen["category"].isin(_aspects(results, dataset))]
    methods = list(dict.fromkeys(chosen["method"]))
    heads = "".join(f"<th>{html.escape(method)}</th>" for method in methods)
    lines = [f'<thead><tr><th class="first">aspect</th><th>queries</th>{heads}</tr></thead>']
    for aspect, rows in chosen.groupby("category", sort=True):
        by_method = {row.method: row for row in rows.itertuples()}
        best = rows["value"].max()
        cells = "".join(_cell(by_method[method], best) for method in methods)
        label = html.escape(aspect.replace("_", " "))
        lines.append(f'<tr><td class="first">{label}</td><td>{rows["queries"].iloc[0]}</td>{cells}</tr>')
    note = "Percent; below each value its 95 % bootstrap interval over the aspect's queries."
    return _page(lines, f"{note} {sources(dataset, split, made_with)}")


def _page(lines: list[str], note: str) -> HTML:
    table = f'<div class="wide"><table class="results">{"".join(lines)}</table></div>'
    return HTML(f'{STYLE}{table}<small class="sources">{html.escape(note)}</small>')


def sources(dataset: str, split: str, made_with: dict) -> str:
    """How much of the data set was there, which gallery FashionIQ has, and of which CLIP the numbers are."""
    on = evaluated_on(dataset, split, made_with["sizes"])
    return f"{on}. CLIP {made_with['backbone']}, sha256 of its weights {made_with['clip_sha256'][:8]}…."


def _head(columns: list[tuple[str, str]]) -> str:
    groups = list(dict.fromkeys(category for category, _ in columns))
    top = "".join(f'<th colspan="{sum(c == group for c, _ in columns)}">{html.escape(group)}</th>' for group in groups)
    names = "".join(f"<th>{html.escape(metric)}</th>" for _, metric in columns)
    return f'<thead><tr><th></th>{top}</tr><tr><th class="first">method</th>{names}</tr></thead>'


def _cell(row, best: float) -> str:
    mark = ' class="best"' if row.value == best else ""
    return f"<td{mark}>{row.value:.2f}<small>{row.ci_low:.1f}–{row.ci_high:.1f}</small></td>"


def _published_rows(dataset: str, columns: list[tuple[str, str]], another_world: bool) -> list[str]:
    numbers = published()
    numbers = numbers[numbers["dataset"] == dataset]
    lines = []
    for (split, origin), of_split in numbers.groupby(["split", "origin"], sort=True):
        title = f"{origin} on the real {dataset} {split}"
        title += "; this study's pictures are another world's, do not compare" if another_world else ""
        body = []
        for (method, backbone), rows in of_split.groupby(["method", "backbone"], sort=True):
            values = {(row.category, row.metric): row.value for row in rows.itertuples()}
            if not any(pair in values for pair in columns):
                continue
            cells = "".join(f"<td>{values[pair]:.2f}</td>" if pair in values else "<td>·</td>" for pair in columns)
            body.append(f'<tr><td class="first">{html.escape(f"{method} ({backbone})")}</td>{cells}</tr>')
        if body:
            lines += [f'<tr class="rule"><td colspan="{len(columns) + 1}">{html.escape(title)}</td></tr>', *body]
    return lines


def _aspects(results: pd.DataFrame, dataset: str) -> set[str]:
    """The categories of a benchmark's results that are semantic aspects."""
    protocol = PROTOCOLS[TITLES[dataset]]
    plain = {*protocol.categories, *(under for _, under in protocol.metrics), AVERAGE}
    return set(results.loc[results["dataset"] == dataset, "category"]) - plain
