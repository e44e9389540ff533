"""Rank a benchmark's gallery for its queries by one method: the best images, and the ranks that metrics need.

Takes a benchmark, its gallery's embeddings and a composer. Keeps Rankings in the store. Validation and test differ
only in where the rankings go: into scores, or into a submission file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from searle_lib.backbone import embeddings
from searle_lib.backbone.embeddings import Embeddings
from searle_lib.data.benchmarks import Benchmark, Example, name_of
from searle_lib.evaluation import contract, indexes
from searle_lib.evaluation.contract import Composer
from searle_lib.evaluation.indexes import FaissIndex
from searle_lib.ranking import CELLS, ROWS, Product, search_blocks
from searle_lib.store.artefacts import Store
from searle_lib.store.batches import BatchSize
from searle_lib.store.code import code_digest
from searle_lib.store.executors import SERIAL, Executor
from searle_lib.store.records import Study

DEPTH = 50  # images per query; no metric or submission needs more
RANKLESS = 2**62  # sorts an image without a rank behind all others


@dataclass(frozen=True)
class Rankings:
    """Ranks of the images that metrics need, for Q queries: int64, they start at 0, -1 means no rank.

    Args:
        target: [Q], the target's rank in the gallery.
        truths: [Q, G], the rank of each ground truth in the gallery.
        group: [Q, M], the rank of each member of the query's group among the members, without the reference.
        subset: [Q], the target's rank within the group.
        top: [Q, at most DEPTH], the best gallery rows, best first.
        scores: [Q, at most DEPTH] float32, the cosines of these rows, or the products of their similarities.
        recall: [at most Q] float32, the share of the DEPTH truly best images that `top` holds, for a sample of the
            queries; None if `top` is exact. If it is not, UNLISTED is the rank of an image that `top` does not hold.
    """

    target: Tensor
    truths: Tensor
    group: Tensor
    subset: Tensor
    top: Tensor
    scores: Tensor
    recall: Tensor | None = None


def rank(
    store: Store,
    benchmark: Benchmark,
    gallery: Embeddings,
    method: str,
    composer: Composer,
    index: FaissIndex | None = None,
) -> Rankings:
    """Rank a benchmark's queries by a method, and keep the rankings in the store. Raises as `rank_queries` does.

    Args:
        store: keeps the rankings.
        benchmark: the benchmark.
        gallery: the embeddings of its gallery.
        method: the name of the method.
        composer: the method's composer.
        index: an approximate index of the gallery.
    """
    facts = {"benchmark": benchmark.key, "gallery": gallery.key, "composer": composer.key, "clip": gallery.clip}
    facts |= {"code": code_digest(type(composer), rank_queries), **(index.facts if index else {})}

    def make(folder: Path) -> None:
        rankings = rank_queries(benchmark, gallery, method, composer, index, store.executor)
        tensors = {name: value for name, value in vars(rankings).items() if value is not None}
        save_file(tensors, folder / "rankings.safetensors")

    artefact = store.keep(f"rankings/{benchmark.name}/{method}", facts, make)
    return artefact.read(lambda folder: Rankings(**load_file(folder / "rankings.safetensors")))


def rank_queries(
    benchmark: Benchmark,
    gallery: Embeddings,
    method: str,
    composer: Composer,
    index: FaissIndex | None = None,
    executor: Executor = SERIAL,
) -> Rankings:
    """Compute a method's rankings of a benchmark's queries.

    Args:
        benchmark: the benchmark.
        gallery: the embeddings of its gallery.
        method: the name of the method.
        composer: the method's composer.
        index: an approximate index of the gallery.
        executor: compares the queries with a gallery of several blocks.

    Raises:
        ValueError: if a query's vector is not finite, or an index has to rank by a product.
    """
    queries = compose(benchmark, composer)
    if index:
        indexes.refuse_product(method, queries)
    vectors = queries.vectors.flatten(1) if isinstance(queries, Product) else queries
    if not torch.isfinite(vectors).all():
        row = int((~torch.isfinite(vectors).all(1)).nonzero()[0])
        raise ValueError(
            f"{method} gives query {benchmark.queries['query'][row]} of {benchmark.name} a vector that is not finite; "
            "set precision to float32, or check the pseudo-word of its reference."
        )
    return compare(benchmark, gallery, queries, DEPTH, index, executor)


def rank_all(
    store: Store,
    benchmark: Benchmark,
    gallery: Embeddings,
    composers: dict[str, Composer],
    index: FaissIndex | None = None,
) -> dict[str, Rankings]:
    """Return the rankings of a benchmark's queries by method; arguments and errors are those of `rank`."""
    return {method: rank(store, benchmark, gallery, method, composer, index) for method, composer in composers.items()}


def rank_study(
    study: Study, benchmarks: Sequence[Benchmark], composers: Mapping[str, Mapping[str, Composer]]
) -> list[tuple[Benchmark, dict[str, Rankings]]]:
    """Return every benchmark with its rankings by method; `composers` are by split and method.

    The index is that of the notebook's parameters. Raises ValueError as `indexes.of_gallery` does.
    """
    galleries = {name: embeddings.read(study, name) for name in {b.gallery_name: None for b in benchmarks}}
    by_name = {name: indexes.of_gallery(gallery, study.values["index"]) for name, gallery in galleries.items()}
    return [
        (b, rank_all(study, b, galleries[b.gallery_name], composers[b.split_name], by_name[b.gallery_name]))
        for b in benchmarks
    ]


def rank_example(study: Study, example: Example, composers: Mapping[str, Mapping[str, Composer]]) -> pd.DataFrame:
    """Return every method's ranking of one query, in the columns of `ranking_table`; exact, and not kept."""
    benchmark = replace(example.benchmark, queries=example.benchmark.queries.iloc[[example.row]].reset_index(drop=True))
    gallery = embeddings.read(study, benchmark.gallery_name)
    tables = []
    for method, composer in composers[benchmark.split_name].items():
        rankings = rank_queries(benchmark, gallery, method, composer)
        tables.append(ranking_table(benchmark, rankings, method))
    return pd.concat(tables, ignore_index=True)


def compare(
    benchmark: Benchmark,
    gallery: Embeddings,
    queries: Tensor | Product,
    depth: int = 0,
    index: FaissIndex | None = None,
    executor: Executor = SERIAL,
) -> Rankings:
    """Rank the gallery for each query as the benchmark's protocol says.

    Args:
        benchmark: the benchmark.
        gallery: the embeddings of its gallery.
        queries: [Q, d] float32, unit norm, or a Product, which no index takes.
        depth: how many of the best gallery rows to return.
        index: an approximate index of the gallery; by default every image is compared.
        executor: compares the queries with a gallery of several blocks.
    """
    table, excludes_reference = benchmark.queries, benchmark.protocol.excludes_reference
    target = _padded_rows(gallery, [[image] if image else [] for image in table["target"].tolist()])
    truths, group = _padded_rows(gallery, table["ground_truths"]), _padded_rows(gallery, table["group"])
    excluded = gallery.rows(table["reference"].tolist()) if excludes_reference else None
    rows = {"k": depth, "candidates": truths, "members": group, "excluded": excluded}
    if index:
        answers = index.search(queries, **rows)
        recall = index.recall(queries, answers.top, excluded, executor)
    else:
        size = BatchSize(max(1, CELLS // min(len(gallery.ids), ROWS)), "the batch of queries")
        answers = size.attempt(
            lambda chunk: search_blocks(queries, gallery.unit, chunk=chunk, executor=executor, **rows)
        )
        recall = None
    target_ranks = torch.where(truths == target, answers.ranks, -1).amax(1)  # a target is one of the ground truths
    subset = torch.where(group == target, answers.order, -1).amax(1)
    return Rankings(target_ranks, answers.ranks, answers.order, subset, answers.top, answers.scores, recall)


def compose(benchmark: Benchmark, composer: Composer) -> Tensor | Product:
    """Return the queries of a benchmark: vectors [Q, d], unit norm, or a Product."""
    return contract.compose(composer, list(benchmark.queries["reference"]), list(benchmark.queries["sentences"]))


def ranking_table(benchmark: Benchmark, rankings: Rankings, method: str) -> pd.DataFrame:
    """Return rankings as a table, one row per query: query, best, scores, group, rank, and what they belong to.

    `best` holds the ids of the best images and `scores` their cosines, `group` the ids of the query's group, all sorted
    by rank. `rank` is that of the first target, from 0; -1 if targets are secret. dataset, split, category and method
    say what the ranking belongs to. The rankings of an index also have `recall`, its mean over the sampled queries.
    """
    images = benchmark.gallery["image"].to_numpy()
    groups = zip(rankings.group.tolist(), benchmark.queries["group"], strict=True)
    ordered = [[image for _, image in sorted(zip(ranks, group, strict=False))] for ranks, group in groups]
    best = list(images[rankings.top.numpy()])
    first = rankings.truths.masked_fill(rankings.truths < 0, RANKLESS).amin(1)  # [Q, G] -> [Q]
    first = first.masked_fill(first == RANKLESS, -1)
    columns = {"query": benchmark.queries["query"], "best": best, "scores": list(rankings.scores.numpy())}
    table = pd.DataFrame(columns | {"group": ordered, "rank": first.numpy()})
    if rankings.recall is not None:
        table["recall"] = float(rankings.recall.mean())
    return table.assign(dataset=benchmark.dataset, split=benchmark.split, category=benchmark.category, method=method)


def index_notes(rankings: pd.DataFrame) -> dict[str, str]:
    """Return what is said beside every number that an index made, by benchmark; empty if all rankings are exact.

    `rankings` is a table as `ranking_table` returns it.
    """
    if "recall" not in rankings:
        return {}
    recalls: dict[str, list[str]] = {}
    facts = rankings[["dataset", "split", "category", "method", "recall"]].dropna().drop_duplicates()
    for *benchmark, method, recall in facts.itertuples(index=False):
        recalls.setdefault(name_of(*benchmark), []).append(f"{method} {100 * recall:.1f} %")
    text = f"ranked by a FAISS index, recall@{DEPTH} against exact search:"
    return {name: f"{text} {', '.join(of_methods)}" for name, of_methods in recalls.items()}


def _padded_rows(gallery: Embeddings, images: Sequence[list[str]]) -> Tensor:
    """Gallery rows [Q, C] int64 of Q lists of image ids, padded with -1."""
    sizes = np.fromiter(map(len, images), dtype=np.int64)
    rows = np.full((len(sizes), sizes.max(initial=1)), -1)
    flat = gallery.rows(chain.from_iterable(images))
    rows[np.arange(rows.shape[1]) < sizes[:, None]] = flat.numpy()
    return torch.from_numpy(rows)
