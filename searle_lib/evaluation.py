"""A method on a benchmark: its rankings, kept in the store, and the scores of every single query.

Validation and test differ only in where the ranking goes: into scores, or into a submission file.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from searle_lib import benchmarks, metrics, patches, retrieval
from searle_lib.artefacts import Missing, Store, write_json, written_aside
from searle_lib.backbone import Backbone
from searle_lib.benchmarks import Benchmark
from searle_lib.composers import Composer, Fti4CirQueries, Searle, Sources
from searle_lib.distillation import Distilled, Phi, Validation
from searle_lib.embeddings import Embeddings
from searle_lib.fti4cir import Fti4Cir

DEPTH = 50  # the deepest that any metric or submission looks
ASPECT_METRIC = "mAP@10"
SCORES = ["dataset", "split", "category", "method", "query", "metric", "value"]


@dataclass(frozen=True)
class Ranks:
    """For Q queries the ranks of the images that matter, from 0, -1 for none: all that a metric asks for.

    target [Q] and truths [Q, G] are ranks in the gallery; group [Q, M] are ranks within the group, which is without
    the reference, and subset [Q] is the target's among them.
    """

    target: Tensor
    truths: Tensor
    group: Tensor
    subset: Tensor


@dataclass(frozen=True)
class Rankings(Ranks):
    """The same, with the best gallery rows top [Q, <=50]."""

    top: Tensor


def rank(store: Store, benchmark: Benchmark, gallery: Embeddings, method: str, composer: Composer) -> Rankings:
    """Rankings of a benchmark's queries by a method, kept in the store; notebook 06_retrieval makes them."""
    facts = {"benchmark": benchmark.key, "gallery": gallery.key, "composer": composer.key, "clip": gallery.clip}

    def make(folder: Path) -> None:
        queries = _queries(benchmark, composer)
        if not torch.isfinite(queries).all():
            row = int((~torch.isfinite(queries).all(1)).nonzero()[0])
            raise ValueError(
                f"{method} gives query {benchmark.queries['query'][row]} of {benchmark.name} a vector that is not "
                "finite; check its pseudo-word, or set precision to float32."
            )
        unit = F.normalize(gallery.vectors, dim=-1)
        top = retrieval.top_k(queries, unit, DEPTH, _excluded(benchmark, gallery))
        save_file(vars(compare(benchmark, gallery, queries)) | {"top": top}, folder / "rankings.safetensors")

    what = f"rankings of {method} on {benchmark.name}"
    kept = store.keep(f"rankings/{benchmark.name.replace('/', '-')}-{method}", facts, make, "06_retrieval", what)
    return Rankings(**load_file(kept.folder / "rankings.safetensors"))


def rank_all(
    store: Store, benchmark: Benchmark, gallery: Embeddings, composers: dict[str, Composer]
) -> dict[str, Rankings]:
    """Rankings by each of several methods."""
    return {method: rank(store, benchmark, gallery, method, composer) for method, composer in composers.items()}


def compare(benchmark: Benchmark, gallery: Embeddings, queries: Tensor) -> Ranks:
    """Ranks in the gallery by unit query vectors [Q, d], as the benchmark's protocol says; nothing is sorted."""
    table, unit = benchmark.queries, F.normalize(gallery.vectors, dim=-1)
    target = _padded(gallery, [[image] if image else [] for image in table["target"].tolist()])
    truths, group = _padded(gallery, table["ground_truths"]), _padded(gallery, table["group"])
    found = retrieval.find(queries, unit, truths, group, _excluded(benchmark, gallery))
    of_target = torch.where(truths == target, found.ranks, -1).amax(1)  # a target is one of the ground truths
    subset = torch.where(group == target, found.order, -1).amax(1)
    return Ranks(of_target, found.ranks, found.order, subset)


def validation(backbone: Backbone, splits: dict[str, list[Benchmark]], galleries: dict[str, Embeddings]) -> Validation:
    """What φ's training asks after an epoch: SEARLE's metrics on CIRR val, in percent, where CIRR is in the study."""
    if "cirr/val" not in splits:
        return Validation()
    (benchmark,) = splits["cirr/val"]
    gallery = galleries[benchmark.images]

    def metrics_of(phi: Phi) -> dict[str, float]:
        composer = Searle(Sources(backbone, gallery, distilled=Distilled(phi, pd.DataFrame(), "")))
        rankings = compare(benchmark, gallery, _queries(benchmark, composer))
        return {name: float(metric(name, rankings).mean()) * 100 for name, _ in benchmark.protocol.metrics}

    return Validation(metrics_of, f"{benchmark.key}/{gallery.key}")


def fti_validation(
    backbone: Backbone,
    splits: dict[str, list[Benchmark]],
    galleries: dict[str, Embeddings],
    preprocess: str,
    batch_size: int,
    workers: int,
    parts: str = "both",
) -> Validation:
    """What FTI4CIR's training asks: metrics on CIRR val and CIRCO val, in percent, where they are in the study."""
    asked = [benchmark for name in ("cirr/val", "circo/val") for benchmark in splits.get(name, [])]

    def metrics_of(model: Fti4Cir) -> dict[str, float]:
        found = {}
        for benchmark in asked:
            table = benchmarks.reference_table([benchmark])
            words = patches.words_by(backbone, model, table, preprocess, batch_size, workers, parts)
            composer = Fti4CirQueries(Sources(backbone, galleries[benchmark.images], image_words=words))
            rankings = compare(benchmark, galleries[benchmark.images], _queries(benchmark, composer))
            title = benchmark.protocol.title
            for name, _ in benchmark.protocol.metrics:
                found[f"{title} {name}"] = float(metric(name, rankings).mean()) * 100
        return found

    return Validation(metrics_of, "/".join(f"{b.key}/{galleries[b.images].key}" for b in asked))


def leave(
    folder: Path, evaluated: list[tuple[Benchmark, dict[str, Rankings]]], backbone: Backbone, facts: dict
) -> pd.DataFrame:
    """Write what 07_results reads: scores and rankings of every query, and what they were made with; the scores.

    Splits whose targets are secret have rankings only.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for stale in ("results.csv", "07_results.html", "07_results.ipynb", "figures/results.png"):
        (folder / stale).unlink(missing_ok=True)  # made of other scores; 07_results makes them anew
    pairs = [(benchmark, method, found) for benchmark, of in evaluated for method, found in of.items()]
    scored = [scores(b, found, method) for b, method, found in pairs if b.split == b.protocol.validation]
    ranked = [ranking_table(benchmark, found, method) for benchmark, method, found in pairs]
    for name, tables in (("scores", scored or [pd.DataFrame(columns=SCORES)]), ("rankings", ranked)):
        with written_aside(folder / f"{name}.parquet") as aside:
            pd.concat(tables, ignore_index=True).to_parquet(aside, index=False)
    sizes = {
        benchmark.name: {"gallery": benchmark.images, "there": benchmark.there, "whole": benchmark.whole}
        for benchmark, _ in evaluated
    }
    made_with = {"backbone": backbone.name, "clip_sha256": backbone.sha256, "sizes": sizes}
    write_json(folder / "made_with.json", made_with | facts)
    return pd.concat(scored, ignore_index=True) if scored else pd.DataFrame(columns=SCORES)


def left(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, dict]:
    """What `leave` wrote: scores, rankings and facts. Raises Missing when 06_retrieval has not run."""
    files = [folder / "scores.parquet", folder / "rankings.parquet", folder / "made_with.json"]
    if not all(file.exists() for file in files):
        raise Missing(f"notebook 07_results needs {folder / 'scores.parquet'}; run 06_retrieval first.")
    return pd.read_parquet(files[0]), pd.read_parquet(files[1]), json.loads(files[2].read_text())


def check_made_with(made_with: dict, values: Mapping) -> None:
    """Raise ValueError, naming it, when a parameter differs from what 06_retrieval's numbers were made with."""
    made = made_with["parameters"]
    for name in made.keys() & values.keys():
        if made[name] != values[name]:
            raise ValueError(
                f"{name} is {values[name]}, but the numbers in the reports were made with {made[name]}; run "
                "06_retrieval again."
            )


def scores(benchmark: Benchmark, ranks: Ranks, method: str) -> pd.DataFrame:
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


def metric(name: str, ranks: Ranks) -> Tensor:
    """The metric of that name ("R@10", "Rsubset@1", "mAP@5") for each query [Q] float64, between 0 and 1."""
    kind, k = name.split("@")
    if kind == "R":
        return metrics.recall_at(ranks.target, int(k))
    if kind == "Rsubset":
        return metrics.recall_at(ranks.subset, int(k))
    return metrics.average_precision_at(ranks.truths, int(k))


def _queries(benchmark: Benchmark, composer: Composer) -> Tensor:
    return composer.compose(list(benchmark.queries["reference"]), list(benchmark.queries["sentences"]))


def ranking_table(benchmark: Benchmark, rankings: Rankings, method: str) -> pd.DataFrame:
    """One row a query: dataset, split, category, method, query, best, its first image ids, and group, its group in the
    order of their ranks."""
    images = benchmark.gallery["image"].to_numpy()
    groups = zip(rankings.group.tolist(), benchmark.queries["group"], strict=True)
    ordered = [[image for _, image in sorted(zip(ranks, group, strict=False))] for ranks, group in groups]
    best = list(images[rankings.top.numpy()])
    table = pd.DataFrame({"query": benchmark.queries["query"], "best": best, "group": ordered})
    return table.assign(dataset=benchmark.dataset, split=benchmark.split, category=benchmark.category, method=method)


def _by_aspect(benchmark: Benchmark, long: pd.DataFrame) -> pd.DataFrame:
    """CIRCO's mAP@10 again under each semantic aspect of the query."""
    aspects = benchmark.queries[["query", "aspects"]].explode("aspects").dropna()
    one = long[long["metric"] == ASPECT_METRIC].drop(columns="category")
    return one.merge(aspects, on="query").rename(columns={"aspects": "category"})


def _excluded(benchmark: Benchmark, gallery: Embeddings) -> Tensor | None:
    """The gallery row [Q] of each query's reference, where it is not to be found."""
    return gallery.rows(benchmark.queries["reference"].tolist()) if benchmark.protocol.excludes_reference else None


def _padded(gallery: Embeddings, images: Sequence[list[str]]) -> Tensor:
    """Gallery rows [Q, C] of ragged lists of ids, -1 behind the end of each."""
    sizes = np.fromiter(map(len, images), dtype=np.int64)
    rows = np.full((len(sizes), sizes.max(initial=1)), -1)
    flat = gallery.rows(chain.from_iterable(images))
    rows[np.arange(rows.shape[1]) < sizes[:, None]] = flat.numpy()
    return torch.from_numpy(rows)
