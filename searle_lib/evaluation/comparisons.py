"""Compare methods by paired bootstrap intervals, and compare the numbers of two studies.

Takes scores of single queries, or two results.csv. Returns tables and sentences, in points of percent.
"""

from pathlib import Path

import pandas as pd

from searle_lib.evaluation.intervals import MAIN, resample

SAME = 0.05  # points by which a number may differ from machine to machine


def differences(
    scores: pd.DataFrame, methods: list[str], baselines: list[str], resamples: int = 2000, seed: int = 42
) -> pd.DataFrame:
    """Return by how many points each method is ahead of each baseline on the MAIN metrics, with a paired 95 % interval.

    Both methods are resampled over the same queries, so that the difficulty of a query cancels. An interval without
    zero is a difference that these queries establish.

    Args:
        scores: long form, as `scores.read_scores` returns them.
        methods: one row per method and metric.
        baselines: one column per baseline.
        resamples: number of bootstrap resamples.
        seed: of the resampling.
    """
    samples = {(sample.dataset, sample.split, sample.category): sample for sample in resample(scores, resamples, seed)}
    rows = {}
    for method in methods:
        for *panel, metric in MAIN:
            sample = samples.get(tuple(panel))
            scored = () if sample is None else [name for name, kind in sample.means.index if kind == metric]
            if method not in scored:
                continue
            ahead = {}
            for baseline in (name for name in baselines if name in scored and name != method):
                value, low, high = sample.difference(metric, method, baseline)
                ahead[f"ahead of {baseline}"] = f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"
            if ahead:
                rows[method, f"{sample.dataset} {metric}"] = ahead
    return pd.DataFrame(list(rows.values()), pd.MultiIndex.from_tuples(rows) if rows else None)


def verdicts(scores: pd.DataFrame, resamples: int = 2000, seed: int = 42) -> list[str]:
    """Return one sentence per main metric: the best method, and by how much it is ahead of each other method.

    A lead is called sure if the 95 % interval of the paired difference does not hold zero.
    """
    sentences = []
    for sample in resample(scores, resamples, seed):
        for metric in sample.main_metrics:
            means = sample.means.xs(metric, level="metric").sort_values(ascending=False, kind="stable")
            best, *others = means.index
            ahead, level = [], []
            for method in others:
                value, low, high = sample.difference(metric, best, method)
                (ahead if low > 0 else level).append(f"{method} (+{value:.1f} [{low:.1f}, {high:.1f}])")
            sentence = f"{sample.dataset} {metric}: {best} has the highest mean, {means[best] * 100:.1f}"
            sentence += f"; it cannot be told apart from {', '.join(level)}" if level else ""
            sentence += f"; it is surely ahead of {', '.join(ahead)}" if ahead else ""
            sentences.append(f"{sentence}.")
    return sentences


def largest_differences(first: Path, second: Path) -> pd.Series:
    """Return the largest difference between two results.csv for each method, in points.

    Raises:
        ValueError: if the files do not hold numbers of the same methods and metrics.
    """
    columns = ["dataset", "split", "category", "method", "metric"]
    tables = [pd.read_csv(path).set_index(columns)["value"] for path in (first, second)]
    if set(tables[0].index) != set(tables[1].index):
        raise ValueError(
            f"{first} and {second} do not hold numbers of the same methods and metrics; compare studies of the same "
            "data sets and methods."
        )
    return (tables[0] - tables[1]).abs().groupby("method", sort=False).max().rename("largest difference")
