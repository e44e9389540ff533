"""A method on a benchmark: its rankings, kept in the store, and the scores of every single query.

Validation and test differ only in where the ranking goes: into scores, or into a submission file.
"""

from pathlib import Path

import pandas as pd
from torch import Tensor

from searle_lib.backbone.model import clip_facts
from searle_lib.data import benchmarks
from searle_lib.data.benchmarks import Benchmark
from searle_lib.evaluation import metrics
from searle_lib.evaluation.rankings import Rankings, ranking_table
from searle_lib.store.code import code_digest
from searle_lib.store.records import Study

ASPECT_METRIC = "mAP@10"
SCORES = ["dataset", "split", "category", "method", "query", "metric", "value"]


def keep_scores(
    study: Study, evaluated: list[tuple[Benchmark, dict[str, Rankings]]]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the scores and the rankings of every query as tables, and keep them for 07_results.

    Splits whose targets are secret have rankings only.
    """
    pairs = [(benchmark, method, one) for benchmark, rankings in evaluated for method, one in rankings.items()]
    facts = {name: path for name, path in study.made.items() if name.startswith("rankings/")}
    facts |= {"code": code_digest(score_queries, ranking_table)}

    def make(folder: Path) -> None:
        scored = [score_queries(benchmark, one, method) for benchmark, method, one in pairs if benchmark.is_scored]
        ranked = [ranking_table(benchmark, one, method) for benchmark, method, one in pairs]
        for name, tables in (("scores", scored or [pd.DataFrame(columns=SCORES)]), ("rankings", ranked)):
            pd.concat(tables, ignore_index=True).to_parquet(folder / f"{name}.parquet", index=False)

    return study.keep("scores", facts, make).read(_load_scores)


def read_scores(study: Study) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the scores and the rankings that 06_retrieval kept.

    scores is long form: dataset, split, category, method, query, metric, value. rankings has a row a query and
    method: dataset, split, category, method, query, best, group, as `ranking_table` says.
    """
    return study.artefact("06_retrieval", "scores").read(_load_scores)


def _load_scores(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    return pd.read_parquet(folder / "scores.parquet"), pd.read_parquet(folder / "rankings.parquet")


def made_with(study: Study) -> dict:
    """Return what every table states of a study, from its records: world, CLIP, and how much was evaluated."""
    clip = clip_facts(study)
    return {
        "world": study.read("02_concepts").parameters["world"],
        "backbone": clip["name"],
        "clip_sha256": clip["sha256"],
        "sizes": {b.name: {"gallery": b.images, "there": b.there, "whole": b.whole} for b in benchmarks.read(study)},
    }


def first_look(scores: pd.DataFrame) -> pd.DataFrame:
    """Return one metric of every benchmark, in percent: a row a data set, a column a method."""
    plain = scores[scores["category"].isin(["dress", "shirt", "toptee", "all"])]
    shown = plain[plain["metric"].isin(["R@10", "mAP@10"])]
    means_of = shown.groupby(["dataset", "metric", "method"], sort=False)["value"].mean()
    return (means_of * 100).unstack("method").round(1)


def score_queries(benchmark: Benchmark, ranks: Rankings, method: str) -> pd.DataFrame:
    """Every metric of every query, long form: dataset, split, category, method, query, metric, value."""
    protocol = benchmark.protocol
    columns = {}
    for name, category in protocol.metrics:
        columns[category or benchmark.category, name] = metric(name, ranks)
    wide = pd.DataFrame({key: value.numpy() for key, value in columns.items()}, index=benchmark.queries["query"])
    wide.columns.names = ["category", "metric"]
    long = wide.stack(["category", "metric"], future_stack=True).rename("value").dropna().reset_index()
    long = pd.concat([long, _by_aspect(benchmark, long)], ignore_index=True)
    return long.assign(dataset=protocol.title, split=benchmark.split, method=method)[SCORES]


def metric(name: str, ranks: Rankings) -> Tensor:
    """The metric of that name ("R@10", "Rsubset@1", "mAP@5") for each query [Q] float64, between 0 and 1."""
    kind, k = name.split("@")
    if kind == "R":
        return metrics.recall_at(ranks.target, int(k))
    if kind == "Rsubset":
        return metrics.recall_at(ranks.subset, int(k))
    return metrics.average_precision_at(ranks.truths, int(k))


def _by_aspect(benchmark: Benchmark, long: pd.DataFrame) -> pd.DataFrame:
    """CIRCO's mAP@10 again under each semantic aspect of the query."""
    aspects = benchmark.queries[["query", "aspects"]].explode("aspects").dropna()
    one = long[long["metric"] == ASPECT_METRIC].drop(columns="category")
    return one.merge(aspects, on="query").rename(columns={"aspects": "category"})
