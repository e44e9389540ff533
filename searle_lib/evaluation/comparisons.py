"""Differences between methods, with paired bootstrap intervals, and between the numbers of two studies."""

from pathlib import Path

import numpy as np
import pandas as pd

from searle_lib.evaluation.intervals import MAIN, resampled_means

SAME = 0.05  # points by which a number may differ from machine to machine


def differences(
    scores: pd.DataFrame, methods: list[str], baselines: list[str], resamples: int = 2000, seed: int = 42
) -> pd.DataFrame:
    """How much better each method is than each baseline on the MAIN metrics, in points, with paired intervals.

    Paired: both are resampled over the same queries, so that what makes a query hard for both cancels. An interval
    without zero is a difference that these queries establish. A row a method and metric, a column a baseline.
    """
    rows = {}
    for where, means, draws, _ in resampled_means(scores, resamples, seed):
        column = {pair: place for place, pair in enumerate(means.index)}
        metrics = [metric for *place, metric in MAIN if tuple(place) == tuple(where.values())]
        asked = [(method, metric) for method in methods for metric in metrics if (method, metric) in column]
        for method, metric in asked:
            for baseline in (b for b in baselines if b != method and (b, metric) in column):
                apart = draws[:, column[method, metric]] - draws[:, column[baseline, metric]]
                low, high = np.percentile(apart, [2.5, 97.5]) * 100
                value = (means[method, metric] - means[baseline, metric]) * 100
                said = f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"
                rows.setdefault((method, f"{where['dataset']} {metric}"), {})[f"ahead of {baseline}"] = said
    order = [(method, f"{dataset} {metric}") for method in methods for dataset, _, _, metric in MAIN]
    order = [row for row in order if row in rows]
    return pd.DataFrame([rows[row] for row in order], pd.MultiIndex.from_tuples(order) if order else None)


def verdicts(scores: pd.DataFrame, resamples: int = 2000, seed: int = 42) -> list[str]:
    """Return a sentence for each main metric: which method is ahead, of which, by how much and how sure.

    A lead is called sure when the 95 % interval of the paired difference does not hold zero.
    """
    sentences = []
    for where, means, draws, _ in resampled_means(scores, resamples, seed):
        present = set(means.index.get_level_values("metric"))
        for metric in [m for *place, m in MAIN if tuple(place) == tuple(where.values()) and m in present]:
            of_metric = means.xs(metric, level="metric").sort_values(ascending=False, kind="stable")
            (first, best), *others = of_metric.items()
            column = {pair: place for place, pair in enumerate(means.index)}
            ahead, level = [], []
            for method, value in others:
                apart = draws[:, column[first, metric]] - draws[:, column[method, metric]]
                low, high = np.percentile(apart, [2.5, 97.5]) * 100
                said = f"{method} (+{(best - value) * 100:.1f} [{low:.1f}, {high:.1f}])"
                (ahead if low > 0 else level).append(said)
            sentence = f"{where['dataset']} {metric}: {first} has the highest mean, {best * 100:.1f}"
            sentence += f"; it cannot be told apart from {', '.join(level)}" if level else ""
            sentence += f"; it is surely ahead of {', '.join(ahead)}" if ahead else ""
            sentences.append(f"{sentence}.")
    return sentences


def apart(first: Path, second: Path) -> pd.Series:
    """Return by method how far the numbers of two results.csv lie apart at most, in points.

    Raises ValueError when they do not hold the same numbers.
    """
    columns = ["dataset", "split", "category", "method", "metric"]
    tables = [pd.read_csv(path).set_index(columns)["value"] for path in (first, second)]
    if set(tables[0].index) != set(tables[1].index):
        raise ValueError(
            f"{first} and {second} do not hold numbers of the same methods and metrics; compare like studies."
        )
    return (tables[0] - tables[1]).abs().groupby("method", sort=False).max().rename("largest difference")
