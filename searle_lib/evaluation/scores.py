"""Score every query of a benchmark by its metrics, from a method's rankings.

Takes benchmarks and Rankings, returns tables in long form, and keeps them for 07_results. A split with secret targets
has rankings only.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from torch import Tensor

from searle_lib.backbone.model import clip_facts
from searle_lib.data import benchmarks
from searle_lib.data.benchmarks import Benchmark
from searle_lib.evaluation import metrics
from searle_lib.evaluation.other_models import OtherModel
from searle_lib.evaluation.rankings import Rankings, index_notes, ranking_table
from searle_lib.store.code import code_digest
from searle_lib.store.records import Study

ASPECT_METRIC = "mAP@10"
SETTING = "setting.json"  # of a method whose setting was chosen on other data
SCORES = ["dataset", "split", "category", "method", "query", "metric", "value"]


def keep_scores(
    study: Study, evaluated: list[tuple[Benchmark, dict[str, Rankings]]], models: Sequence[OtherModel] = ()
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the scores and the rankings of every query, as `read_scores` does, and keep them for 07_results.

    Args:
        study: the study, in notebook 06_retrieval.
        evaluated: each benchmark with its rankings by method.
        models: what other models have of these benchmarks; their rows follow those of the methods.
    """
    runs = [
        (benchmark, rankings, method) for benchmark, by_method in evaluated for method, rankings in by_method.items()
    ]
    facts = {name: path for name, path in study.made.items() if name.startswith("rankings/")}
    facts |= {"code": code_digest(score_queries, ranking_table)}
    facts |= {"models": [model.sha256 for model in models]} if models else {}
    parts = [(part, model.name) for model in models for part in model.parts]

    def make(folder: Path) -> None:
        scores = [score_queries(*run) for run in runs if run[0].is_scored]
        scores += [part.scores.assign(method=name) for part, name in parts if len(part.scores)]
        rankings = [ranking_table(*run) for run in runs]
        rankings += [part.rankings.assign(method=name) for part, name in parts if len(part.rankings)]
        for name, tables in (("scores", scores or [pd.DataFrame(columns=SCORES)]), ("rankings", rankings)):
            pd.concat(tables, ignore_index=True).to_parquet(folder / f"{name}.parquet", index=False)

    return study.keep("scores", facts, make).read(_load_scores)


def read_scores(study: Study) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the scores and the rankings that 06_retrieval kept. Raises as `Study.artefact` does.

    The scores have the columns SCORES, one row per number. The rankings have one row per query and method, with the
    columns of `ranking_table`.
    """
    return study.artefact("06_retrieval", "scores").read(_load_scores)


def _load_scores(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    return pd.read_parquet(folder / "scores.parquet"), pd.read_parquet(folder / "rankings.parquet")


def load_setting(folder: Path) -> dict:
    """Return the setting of a method and the means of all settings, from the artefact that `tuning.choose` keeps."""
    return json.loads((folder / SETTING).read_text(encoding="utf-8"))


def provenance(study: Study, rankings: pd.DataFrame | None = None) -> dict:
    """Return the facts about a study that every table states, from its records.

    Keys: world, backbone (CLIP's name), clip_sha256, and sizes. `sizes` holds for each benchmark the number of queries
    and of gallery images in the study ("size") and in the data set ("full_size"), and both in words ("evaluated_on").
    With the `rankings` of `read_scores` these words also say what an approximate index found, "settings" holds the
    settings that 06_retrieval chose, by the split that they were chosen on and the method, and "ranked" the methods by
    which it ranked: other models are not among them.
    """
    clip, notes = clip_facts(study), {} if rankings is None else index_notes(rankings)
    settings = {} if rankings is None else study.artefacts("06_retrieval", "settings")
    return {
        "world": study.read("02_concepts").parameters["world"],
        "backbone": clip["name"],
        "clip_sha256": clip["sha256"],
        "settings": {name: artefact.read(load_setting) for name, artefact in settings.items()},
        "sizes": {b.name: _size(b, notes.get(b.name, "")) for b in benchmarks.read(study)},
        **({} if rankings is None else {"ranked": _ranked(study)}),
    }


def first_look(scores: pd.DataFrame) -> pd.DataFrame:
    """Return R@10 and mAP@10 in percent: one row per data set and metric, one column per method."""
    rows = scores["category"].isin(["dress", "shirt", "toptee", "all"]) & scores["metric"].isin(["R@10", "mAP@10"])
    means = scores[rows].groupby(["dataset", "metric", "method"], sort=False)["value"].mean()
    return (means * 100).unstack("method").round(1)


def score_queries(benchmark: Benchmark, rankings: Rankings, method: str) -> pd.DataFrame:
    """Return every metric of every query in long form, with the columns SCORES."""
    protocol = benchmark.protocol
    columns = {
        (category or benchmark.category, name): metric(name, rankings).numpy() for name, category in protocol.metrics
    }
    wide = pd.DataFrame(columns, index=benchmark.queries["query"])
    wide.columns.names = ["category", "metric"]
    long = wide.stack(["category", "metric"], future_stack=True).rename("value").dropna().reset_index()
    long = pd.concat([long, _by_aspect(benchmark, long)], ignore_index=True)
    return long.assign(dataset=protocol.title, split=benchmark.split, method=method)[SCORES]


def metric(name: str, rankings: Rankings) -> Tensor:
    """Return a metric ("R@10", "Rsubset@1", "mAP@5") of each query: [Q] float64, between 0 and 1."""
    kind, k = name.split("@")
    if kind == "R":
        return metrics.recall_at(rankings.target, int(k))
    if kind == "Rsubset":
        return metrics.recall_at(rankings.subset, int(k))
    return metrics.average_precision_at(rankings.truths, int(k))


def _ranked(study: Study) -> set[str]:
    """The methods of the rankings that 06_retrieval made."""
    return {name.rpartition("/")[2] for name in study.read("06_retrieval").made if name.startswith("rankings/")}


def _by_aspect(benchmark: Benchmark, long: pd.DataFrame) -> pd.DataFrame:
    """One metric once more for each semantic aspect of a query, with the aspect as the category.

    It is CIRCO's mAP@10, and R@10 where a data set has no mAP.
    """
    metric_name = ASPECT_METRIC if ASPECT_METRIC in set(long["metric"]) else "R@10"
    aspects = benchmark.queries[["query", "aspects"]].explode("aspects").dropna()
    of_metric = long[long["metric"] == metric_name].drop(columns="category")
    return of_metric.merge(aspects, on="query").rename(columns={"aspects": "category"})


def _size(benchmark: Benchmark, note: str) -> dict:
    """How much of a data set is evaluated, in numbers and in words; FashionIQ's sentence also names its gallery."""
    (queries, images), (all_queries, all_images) = benchmark.size, benchmark.full_size
    text = f"{queries:,} of {all_queries:,} queries over {images:,} of {all_images:,} images"
    if len(benchmark.protocol.categories) > 1:
        text += " (union gallery)" if benchmark.gallery_name.endswith("-union") else " (split gallery)"
    text += f", {note}" if note else ""
    return {"size": benchmark.size, "full_size": benchmark.full_size, "evaluated_on": text}
