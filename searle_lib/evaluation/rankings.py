"""A method's rankings of a benchmark: which images come first, and the ranks of the images that metrics ask for.

Rankings are kept in the store. Validation and test differ only in where the ranking goes: into scores, or into a
submission file.
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
from searle_lib.data.benchmarks import Benchmark, Example
from searle_lib.evaluation.composers import Composer
from searle_lib.ranking import search
from searle_lib.store.artefacts import Store
from searle_lib.store.code import code_digest
from searle_lib.store.records import Study

DEPTH = 50  # the deepest that any metric or submission looks


@dataclass(frozen=True)
class Rankings:
    """For Q queries the ranks of the images that matter, from 0, -1 for none: all that a metric asks for.

    Args:
        target: [Q], ranks of the targets in the gallery.
        truths: [Q, G], ranks of all ground truths in the gallery.
        group: [Q, M], ranks within the query's group, which is without the reference.
        subset: [Q], the target's rank within the group.
        top: [Q, <=50], the best gallery rows.
    """

    target: Tensor
    truths: Tensor
    group: Tensor
    subset: Tensor
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
    return compare(benchmark, gallery, queries, depth=DEPTH)


def rank_all(
    store: Store, benchmark: Benchmark, gallery: Embeddings, composers: dict[str, Composer]
) -> dict[str, Rankings]:
    """Return the rankings by each of several methods."""
    return {method: rank(store, benchmark, gallery, method, composer) for method, composer in composers.items()}


def rank_example(study: Study, example: Example, composers: Mapping[str, Mapping[str, Composer]]) -> pd.DataFrame:
    """Return the best images of one query by every method, as `ranking_table` has them; computed now and not kept."""
    one = replace(example.benchmark, queries=example.benchmark.queries.iloc[[example.row]].reset_index(drop=True))
    gallery = embeddings.read(study, one.images)
    by_method = {name: rank_queries(one, gallery, name, composer) for name, composer in composers[one.of_split].items()}
    return pd.concat([ranking_table(one, rankings, name) for name, rankings in by_method.items()], ignore_index=True)


def compare(benchmark: Benchmark, gallery: Embeddings, queries: Tensor, depth: int = 0) -> Rankings:
    """Rank the gallery by unit query vectors [Q, d], as the benchmark's protocol says, with the `depth` best rows."""
    table = benchmark.queries
    target = _padded(gallery, [[image] if image else [] for image in table["target"].tolist()])
    truths, group = _padded(gallery, table["ground_truths"]), _padded(gallery, table["group"])
    excluded = _excluded(benchmark, gallery)
    answers = search(queries, gallery.unit, k=depth, candidates=truths, members=group, excluded=excluded)
    of_target = torch.where(truths == target, answers.ranks, -1).amax(1)  # a target is one of the ground truths
    subset = torch.where(group == target, answers.order, -1).amax(1)
    return Rankings(of_target, answers.ranks, answers.order, subset, answers.top)


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
