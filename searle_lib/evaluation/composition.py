"""Ask which queries need both image and sentence, and how well each method solves those that do.

Takes the rankings and the scores of single queries. Puts each query into one of three classes, and returns long tables
of the methods' scores by class, in percent, with the data set's title.

* shortcut: the image alone or the sentence alone has a target among its first K images
* composed: neither has, but at least one method that composes them has
* unsolved: no method has

A study without Image-only or Text-only has no classes: every table is empty, and `missing_part` says why.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd

from searle_lib.evaluation.breakdowns import group_means, lead_scores, resample_groups, scored_rankings
from searle_lib.evaluation.intervals import AVERAGE, Resampled, resample

PARTS = ("Image-only", "Text-only")
KINDS = ("shortcut", "composed", "unsolved")
ALL = "all"  # the group of all queries of a data set
K = 10
KEYS = ["dataset", "category", "query"]


def missing_part(rankings: pd.DataFrame) -> str:
    """Return why a study has no classes, in one sentence, or "" if it has."""
    parts = " and ".join(part for part in PARTS if part not in set(rankings["method"]))
    if not parts:
        return ""
    return (
        f"{parts} did not rank the queries of this study, so it is unknown which queries one part alone solves; add "
        f"{parts} to methods and run 06_retrieval again."
    )


def classes(rankings: pd.DataFrame, k: int = K) -> pd.DataFrame:
    """Return the class of each query with a public target.

    Args:
        rankings: as `scores.read_scores` returns them.
        k: a query is solved by a method that ranks a target among its first k images.

    Returns:
        Columns dataset (title), category, query and kind, one of KINDS. Empty if `missing_part` gives a reason.
    """
    if missing_part(rankings):
        return pd.DataFrame(columns=[*KEYS, "kind"])
    table = scored_rankings(rankings)
    solved, keys = table["rank"] < k, [table[key] for key in KEYS]
    by_part = (solved & table["method"].isin(PARTS)).groupby(keys, sort=False).any()
    by_any = solved.groupby(keys, sort=False).any()
    kinds = np.select([by_part, by_any], KINDS[:2], KINDS[2])
    return by_any.index.to_frame(index=False).assign(kind=kinds)


def shares(classes: pd.DataFrame) -> pd.DataFrame:
    """Return how many queries of each data set are in each class: columns dataset, kind, queries and share in percent.

    A class without queries has a row too. All queries weigh equally.
    """
    order = classes["dataset"].unique()
    counts = pd.crosstab(classes["dataset"], classes["kind"]).reindex(index=order, columns=list(KINDS), fill_value=0)
    table = counts.rename_axis(index="dataset", columns="kind").stack().rename("queries").reset_index()
    return table.assign(share=table["queries"] / table.groupby("dataset")["queries"].transform("sum") * 100)


def by_class(
    scores: pd.DataFrame, rankings: pd.DataFrame, k: int = K, resamples: int = 2000, seed: int = 42
) -> pd.DataFrame:
    """Return each method's mean in each class, for the data set's first main metric and for hit@k.

    hit@k is the share of queries with a target among the first k images. The classes are made from it: in the class
    "composed" it is 0 for both parts, and in "unsolved" for all methods. All queries of a class weigh equally; over all
    queries FashionIQ's categories weigh equally, as everywhere else.

    Args:
        scores: long form, as `scores.read_scores` returns them.
        rankings: as `scores.read_scores` returns them.
        k: as for `classes`.
        resamples: number of bootstrap resamples.
        seed: of the resampling.

    Returns:
        Columns dataset, kind, queries, method, metric, value, ci_low and ci_high, in percent, for all queries (kind
        "all") and for each class that has queries. Empty if `missing_part` gives a reason.
    """
    samples = _samples(scores, rankings, k, resamples, seed)
    return group_means(samples).rename(columns={"group": "kind"})


def gaps(
    scores: pd.DataFrame, rankings: pd.DataFrame, k: int = K, resamples: int = 2000, seed: int = 42
) -> pd.DataFrame:
    """Return by how many points each composing method is ahead of the better single part, overall and by class.

    The better part, `part`, is the one with the higher mean. The paired 95 % interval lets it change from resample to
    resample. Takes what `by_class` takes.

    Returns:
        Columns dataset, kind, queries, method, metric, part, difference, low and high, in points. The class "unsolved"
        has no rows, because nothing is solved there. Empty if `missing_part` gives a reason.
    """
    rows = []
    for sample in _samples(scores, rankings, k, resamples, seed):
        draws = pd.DataFrame(sample.draws, columns=sample.means.index)
        for method, metric in sample.means.index:
            if method in PARTS or sample.category == KINDS[2]:
                continue
            part = max(PARTS, key=lambda name: sample.means[name, metric])
            better = np.maximum(*(draws[name, metric] for name in PARTS))
            low, high = np.percentile(draws[method, metric] - better, [2.5, 97.5]) * 100
            facts = {"dataset": sample.dataset, "kind": sample.category, "queries": sample.queries, "method": method}
            difference = (sample.means[method, metric] - sample.means[part, metric]) * 100
            rows.append(facts | {"metric": metric, "part": part, "difference": difference, "low": low, "high": high})
    columns = ["dataset", "kind", "queries", "method", "metric", "part", "difference", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def _samples(scores: pd.DataFrame, rankings: pd.DataFrame, k: int, resamples: int, seed: int) -> Iterator[Resampled]:
    """Yield for each data set the means of all its queries, then those of each class."""
    kinds = classes(rankings, k)
    hits = scored_rankings(rankings).assign(metric=f"hit@{k}", value=lambda table: (table["rank"] < k).astype(float))
    columns = [*KEYS, "split", "method", "metric", "value"]
    long = pd.concat([lead_scores(scores)[columns], hits[columns]], ignore_index=True)
    for _, of_dataset in kinds.groupby("dataset", sort=False):
        table = of_dataset.merge(long, on=KEYS)
        order = pd.MultiIndex.from_frame(table[["method", "metric"]].drop_duplicates())
        for sample in resample(table, resamples, seed):
            if sample.category in (ALL, AVERAGE):
                columns = sample.means.index.get_indexer(order)
                yield replace(sample, category=ALL, means=sample.means[order], draws=sample.draws[:, columns])
        for kind in KINDS:
            yield from resample_groups(table[table["kind"] == kind].assign(group=kind), resamples, seed)
