"""What the front page says about the methods: a table of main numbers, differences in pairs, and composition.

Takes results as `results.csv` holds them, cut to the main metrics, and the scores and rankings of single queries.
Returns dictionaries and lists of text and numbers, which the template lays out.
"""

from collections.abc import Mapping, Sequence

import pandas as pd

from searle_lib.evaluation import composition, significance
from searle_lib.evaluation import methods as all_methods
from searle_lib.evaluation.intervals import lead_metrics, signed
from searle_lib.reporting import figures

KINDS = ("composed", "shortcut", "unsolved")  # in the order of the page's bars
Groups = Mapping[tuple[str, str], Sequence[str]]


def compare(scores: pd.DataFrame, rankings: pd.DataFrame, results: pd.DataFrame, resamples: int, seed: int) -> dict:
    """Return headline, verdicts, table, matrices, family and composition.

    Args:
        scores: one row per query and metric, as `scores.read_scores` returns them.
        rankings: one row per query and method, as `scores.read_scores` returns them.
        results: the main numbers.
        resamples: number of bootstrap resamples.
        seed: of the resampling and of the permutations.
    """
    pairs = significance.pairs(scores, resamples, seed)
    groups = significance.best_groups(results, pairs)
    return {
        "headline": significance.headline(pairs, results),
        "verdicts": significance.verdicts(pairs, results),
        "table": table(results, groups),
        "matrices": matrices(pairs, groups),
        "family": len(pairs),
        "composition": shares(rankings),
    }


def table(results: pd.DataFrame, groups: Groups) -> dict:
    """Return the main numbers: `datasets`, `metrics` and `rows`, one row per method.

    A cell holds value, interval and mark: "best" for the highest mean, or "certain" if all other methods are certainly
    behind; "tied" for a method that cannot be told from the best. A study of one method has no marks.

    Args:
        results: the main numbers.
        groups: what `significance.best_groups` returns; empty if the methods were not compared.
    """
    metrics = list(dict.fromkeys(zip(results["dataset"], results["metric"], strict=True)))
    values = {(row.dataset, row.metric, row.method): row for row in results.itertuples()}
    top = results.groupby(["dataset", "metric"])["value"].max()
    rows = []
    methods = list(dict.fromkeys(results["method"]))
    colours = all_methods.colours(methods)
    for method in methods:
        cells = [_cell(values.get((*key, method)), top[key], groups.get(key, ())) for key in metrics]
        if len(methods) == 1:
            cells = [cell and cell | {"mark": ""} for cell in cells]
        rows.append({"method": method, "colour": colours[method], "cells": cells})
    datasets = [
        {"name": name, "split": of_dataset["split"].iloc[0], "queries": int(of_dataset["queries"].iloc[0])}
        | {"metrics": of_dataset["metric"].nunique(), "evaluated_on": of_dataset["evaluated_on"].iloc[0]}
        for name, of_dataset in results.groupby("dataset", sort=False)
    ]
    return {"datasets": datasets, "metrics": [metric for _, metric in metrics], "rows": rows}


def matrices(pairs: pd.DataFrame, groups: Groups) -> list[dict]:
    """Return for each main metric by how many points the method of a row is ahead of the method of a column.

    Each pair stands once, the later method of the study in the row. Metrics with the fewest methods at the top come
    first, since they decide most.
    """
    tables = []
    for (dataset, metric), of_metric in pairs.groupby(["dataset", "metric"], sort=False):
        columns = list(dict.fromkeys(of_metric["first"]))
        rows = list(dict.fromkeys(of_metric["second"]))
        cells = {(pair.second, pair.first): _difference(pair) for pair in of_metric.itertuples()}
        lines = [{"method": row, "cells": [cells.get((row, column)) for column in columns]} for row in rows]
        tables.append({"dataset": dataset, "metric": metric, "columns": columns, "rows": lines})
    return sorted(tables, key=lambda one: len(groups[one["dataset"], one["metric"]]))


def shares(rankings: pd.DataFrame) -> list[dict]:
    """Return for each data set how many queries only composing solves, one part alone solves, and no method solves.

    Empty if the study has no method that composes, or lacks one that takes the image or the caption alone.
    """
    if set(rankings["method"]) <= set(composition.PARTS):
        return []
    table = composition.shares(composition.classes(rankings))
    lines = []
    for dataset, of_dataset in table.groupby("dataset", sort=False):
        by_kind = of_dataset.set_index("kind").loc[list(KINDS)]
        parts = [
            {"kind": row.Index, "count": row.queries, "share": row.share, "colour": figures.KINDS[row.Index]}
            for row in by_kind.itertuples()
        ]
        lines.append({"dataset": dataset, "queries": by_kind["queries"].sum(), "parts": parts, "k": composition.K})
    return lines


def leaders(results: pd.DataFrame) -> list[dict]:
    """Return the best mean on each data set's first main metric: dataset, metric, method, value, low and high."""
    leading = results[results["metric"] == results["dataset"].map(lead_metrics(results))]
    best = leading.loc[leading.groupby("dataset", sort=False)["value"].idxmax()]
    names = {"ci_low": "low", "ci_high": "high"}
    return best.rename(columns=names)[["dataset", "metric", "method", "value", "low", "high"]].to_dict("records")


def _cell(row: tuple | None, top: float, group: Sequence[str]) -> dict | None:
    if row is None:
        return None
    mark = "tied" if row.method in group else ""
    if row.value == top:
        mark = "certain" if len(group) == 1 else "best"
    return {"value": f"{row.value:.1f}", "interval": f"{row.ci_low:.1f}–{row.ci_high:.1f}", "mark": mark}


def _difference(pair: tuple) -> dict:
    """Return a pair as a cell, seen from its second method."""
    mark = ("●" if pair.matters else "○") if pair.certain else ""
    return {
        "text": _signed(-pair.difference),
        "interval": f"[{_signed(-pair.high)}, {_signed(-pair.low)}]".replace("+", ""),
        "mark": mark,
        "meaning": significance.MARKS[mark],
        "side": "ahead" if pair.difference < 0 else "behind",
        "queries": f"won {pair.lost}, tied {pair.tied}, lost {pair.won} queries; corrected p {pair.p_holm:.3f}",
    }


def _signed(points: float) -> str:
    """Return points with a sign and one decimal; zero has no sign, and a minus is as wide as a plus."""
    return signed(points).replace("-", "−")
