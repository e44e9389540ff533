"""A method on a benchmark: its rankings, kept in the store, and the scores of every single query.

Validation and test differ only in where the ranking goes: into scores, or into a submission file.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from searle_lib import backbone as backbones
from searle_lib import (
    benchmarks,
    checkpoints,
    distillation,
    embeddings,
    fti_training,
    images,
    inversion,
    metrics,
    patches,
    retrieval,
)
from searle_lib.artefacts import Artefact, Store
from searle_lib.backbone import Backbone
from searle_lib.benchmarks import Benchmark, Example, by_split
from searle_lib.composers import Composer, Fti4CirQueries, Searle, Sources
from searle_lib.distillation import Distilled
from searle_lib.embeddings import Embeddings
from searle_lib.methods import METHODS
from searle_lib.store.code import code_digest
from searle_lib.store.records import Study

DEPTH = 50  # the deepest that any metric or submission looks
ASPECT_METRIC = "mAP@10"
CURVE = "validation.csv"
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
    """Return the rankings of a benchmark's queries by a method, kept in the store."""
    facts = {"benchmark": benchmark.key, "gallery": gallery.key, "composer": composer.key, "clip": gallery.clip}
    facts["code"] = code_digest(type(composer), rank_queries)

    def make(folder: Path) -> None:
        rankings = rank_queries(benchmark, gallery, method, composer)
        save_file(vars(rankings), folder / "rankings.safetensors")

    kept = store.keep(f"rankings/{benchmark.name}/{method}", facts, make)
    return kept.read(lambda folder: Rankings(**load_file(folder / "rankings.safetensors")))


def rank_queries(benchmark: Benchmark, gallery: Embeddings, method: str, composer: Composer) -> Rankings:
    """Return the rankings of a benchmark's queries by a method, computed now.

    Raises ValueError that names the first query whose vector is not finite.
    """
    queries = compose(benchmark, composer)
    if not torch.isfinite(queries).all():
        row = int((~torch.isfinite(queries).all(1)).nonzero()[0])
        raise ValueError(
            f"{method} gives query {benchmark.queries['query'][row]} of {benchmark.name} a vector that is not finite; "
            "check its pseudo-word, or set precision to float32."
        )
    unit = F.normalize(gallery.vectors, dim=-1)
    top = retrieval.top_k(queries, unit, DEPTH, _excluded(benchmark, gallery))
    return Rankings(**vars(compare(benchmark, gallery, queries)), top=top)


def rank_all(
    store: Store, benchmark: Benchmark, gallery: Embeddings, composers: dict[str, Composer]
) -> dict[str, Rankings]:
    """Return the rankings by each of several methods."""
    return {method: rank(store, benchmark, gallery, method, composer) for method, composer in composers.items()}


def load_composers(
    study: Study, backbone: Backbone, methods: Sequence[str]
) -> tuple[dict[str, dict[str, Composer]], dict[str, str]]:
    """Return the composers of a study by split and method, and for each method left out the reason.

    A method is left out where the notebook that it needs has no record, or one that was made from records that have
    changed since. FTI4CIR is not evaluated on the split that its epoch was chosen on.
    """
    problems = {method: study.problem(METHODS[method].needs) for method in methods if METHODS[method].needs}
    left_out = {method: problem for method, problem in problems.items() if problem}
    usable = [method for method in methods if method not in left_out]
    needs = {METHODS[method].needs for method in usable}
    phi = distillation.read(study, backbone) if "04_phi" in needs else None
    fti = study.read("05_fti4cir").parameters if "05_fti4cir" in needs else {}
    composers = {}
    for split in by_split(benchmarks.read(study)):
        name = f"{split}/references"
        sources = Sources(
            backbone,
            embeddings.read(study, name),
            inversion.read(study, name).tokens if "03_oti" in needs else None,
            phi,
            patches.read(study, split, fti["fti_words"]) if fti else None,
        )
        fair = reportable(usable, split, fti.get("fti_checkpoint", ""))
        composers[split] = {method: METHODS[method].composer_class()(sources) for method in fair}
    return composers, left_out


def rank_example(study: Study, example: Example, composers: Mapping[str, Mapping[str, Composer]]) -> pd.DataFrame:
    """Return the best images of one query by every method, as `ranking_table` has them; computed now and not kept."""
    one = replace(example.benchmark, queries=example.benchmark.queries.iloc[[example.row]].reset_index(drop=True))
    gallery = embeddings.read(study, one.images)
    by_method = {name: rank_queries(one, gallery, name, composer) for name, composer in composers[one.of_split].items()}
    return pd.concat([ranking_table(one, rankings, name) for name, rankings in by_method.items()], ignore_index=True)


def reportable(methods: Sequence[str], split: str, fti_checkpoint: str) -> list[str]:
    """Return the methods whose numbers on a split are fair: FTI4CIR's are not where its epoch was chosen on it."""
    return [method for method in methods if (method, split) != ("FTI4CIR", f"{fti_checkpoint}/val")]


def compare(benchmark: Benchmark, gallery: Embeddings, queries: Tensor) -> Ranks:
    """Ranks in the gallery by unit query vectors [Q, d], as the benchmark's protocol says; nothing is sorted."""
    table, unit = benchmark.queries, F.normalize(gallery.vectors, dim=-1)
    target = _padded(gallery, [[image] if image else [] for image in table["target"].tolist()])
    truths, group = _padded(gallery, table["ground_truths"]), _padded(gallery, table["group"])
    found = retrieval.find(queries, unit, truths, group, _excluded(benchmark, gallery))
    of_target = torch.where(truths == target, found.ranks, -1).amax(1)  # a target is one of the ground truths
    subset = torch.where(group == target, found.order, -1).amax(1)
    return Ranks(of_target, found.ranks, found.order, subset)


def phi_log(study: Study, backbone: Backbone, training: Artefact | None) -> pd.DataFrame:
    """Return the losses of φ's training by epoch, and SEARLE's metrics on CIRR val at the epochs that were kept.

    Metrics are in percent, and absent where CIRR val is not in the study. Empty where φ was brought: `training` None.
    """
    asked = [benchmark for benchmark in benchmarks.read(study) if benchmark.name == "cirr/val"]
    galleries = {benchmark.images: embeddings.read(study, benchmark.images) for benchmark in asked}

    def metrics_at(epoch: int, benchmark: Benchmark) -> dict[str, float]:
        weights = training.read(lambda folder: load_file(checkpoints.file_of(folder, "phi", epoch)))
        phi = Distilled(distillation.network_of(backbone, weights), "", epoch)
        gallery = galleries[benchmark.images]
        return means(benchmark, gallery, Searle(Sources(backbone, gallery, distilled=phi)))

    return _log(study, training, "phi", asked, galleries, metrics_at)


def fti_log(study: Study, backbone: Backbone, training: Artefact | None, parts: str) -> pd.DataFrame:
    """Return the losses of FTI4CIR's training by epoch, and metrics on CIRR val and CIRCO val at the kept epochs.

    `parts` are the words that queries use: both, subject or attributes. Otherwise as `phi_log`.
    """
    asked = [benchmark for benchmark in benchmarks.read(study) if benchmark.name in ("cirr/val", "circo/val")]
    galleries = {benchmark.images: embeddings.read(study, benchmark.images) for benchmark in asked}
    reading = (*images.reading(study), parts)

    def metrics_at(epoch: int, benchmark: Benchmark) -> dict[str, float]:
        weights = training.read(lambda folder: load_file(checkpoints.file_of(folder, "fti", epoch)))
        model, table = fti_training.network_of(backbone, weights), benchmarks.reference_table([benchmark])
        words, gallery = patches.words_by(backbone, model, table, *reading), galleries[benchmark.images]
        of_split = means(benchmark, gallery, Fti4CirQueries(Sources(backbone, gallery, image_words=words)))
        return {f"{benchmark.protocol.title} {name}": value for name, value in of_split.items()}

    return _log(study, training, "fti", asked, galleries, metrics_at)


def means(benchmark: Benchmark, gallery: Embeddings, composer: Composer) -> dict[str, float]:
    """Return the mean of every metric over a benchmark's queries, in percent."""
    ranks = compare(benchmark, gallery, compose(benchmark, composer))
    return {name: float(metric(name, ranks).mean()) * 100 for name, _ in benchmark.protocol.metrics}


def _log(
    store: Store,
    training: Artefact | None,
    name: str,
    asked: Sequence[Benchmark],
    galleries: Mapping[str, Embeddings],
    metrics_at: Callable[[int, Benchmark], dict[str, float]],
) -> pd.DataFrame:
    """Return a training's log with metrics at its kept epochs, which are an artefact of their own.

    So no training depends on what it is validated on.
    """
    if training is None:
        return pd.DataFrame()
    losses = training.read(lambda folder: pd.read_csv(folder / checkpoints.LOG))
    epochs = checkpoints.kept_epochs(training, name)
    facts = {"training": training.key, "epochs": epochs, "code": code_digest(Searle, Fti4CirQueries, means)}
    facts["on"] = [[benchmark.key, galleries[benchmark.images].key] for benchmark in asked]

    def make(folder: Path) -> None:
        rows = []
        for epoch in epochs if asked else ():
            splits = [metrics_at(epoch, benchmark) for benchmark in asked]
            rows.append({"epoch": epoch} | {name: value for of_split in splits for name, value in of_split.items()})
        checkpoints.write_log(pd.DataFrame(rows, columns=None if rows else ["epoch"]), folder / CURVE)

    curve = store.keep(f"{name}-validation", facts, make).read(lambda folder: pd.read_csv(folder / CURVE))
    return losses.merge(curve, on="epoch", how="left")


def keep_scores(
    study: Study, evaluated: list[tuple[Benchmark, dict[str, Rankings]]]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the scores and the rankings of every query as tables, and keep them for 07_results.

    Splits whose targets are secret have rankings only.
    """
    pairs = [(benchmark, method, one) for benchmark, rankings in evaluated for method, one in rankings.items()]
    facts = {name: path for name, path in study.made.items() if name.startswith("rankings/")}
    facts |= {"code": code_digest(scores, ranking_table)}

    def make(folder: Path) -> None:
        scored = [scores(benchmark, one, method) for benchmark, method, one in pairs if benchmark.is_scored]
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
    clip = backbones.kept(study)
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


def compose(benchmark: Benchmark, composer: Composer) -> Tensor:
    """Return the unit query vectors [Q, d] of a benchmark."""
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
