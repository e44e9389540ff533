"""Rank a gallery by an approximate index of FAISS, which compares a query with a part of the images only.

`of_gallery` returns an index that answers as `ranking.search` does, but it knows no rank beyond the images it returns.
Its `recall` measures how many of the truly best images it returns. FAISS is an optional package.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from searle_lib.backbone.embeddings import Embeddings
from searle_lib.evaluation.metrics import UNLISTED
from searle_lib.ranking import ROWS, Product, Search, best_first, search, search_blocks
from searle_lib.store.executors import SERIAL, Executor

INDEXES = ("exact", "faiss")
LIST_PROBES = 32  # lists that a query is compared with, of about the square root of the images
TRAINING = 64  # images for each list, from which k-means finds the lists
SEED = 1234  # of k-means
SAMPLE = 1000  # queries that recall is measured on, at most


@dataclass(frozen=True)
class FaissIndex:
    """An inverted file of FAISS with vectors in half precision. It is built in memory when it is first used.

    Args:
        gallery: its embeddings.
        faiss: the package.
    """

    gallery: Embeddings
    faiss: Any

    @property
    def facts(self) -> dict:
        """What determines a ranking besides the gallery and the code."""
        return {"index": "faiss", "faiss": self.faiss.__version__}

    def search(self, queries: Tensor, k: int, candidates: Tensor, members: Tensor, excluded: Tensor | None) -> Search:
        """Answer as `ranking.search` does; a candidate that is not among the k images returned has the rank UNLISTED.

        Args:
            queries: [Q, d] float32, unit norm.
            k: how many images to return.
            candidates: [Q, C] int64, gallery rows whose ranks to return, -1 for padding.
            members: [Q, M] int64, gallery rows to rank among themselves, -1 for padding; their order is exact.
            excluded: [Q] int64, one gallery row per query that takes no rank.
        """
        top, scores = self._best(queries, min(k, len(self.gallery.ids) - (excluded is not None)), excluded)
        places = (candidates.unsqueeze(2) == top.unsqueeze(1)).int()  # [Q, C, k]
        ranks = torch.where(places.any(2), places.argmax(2), UNLISTED).masked_fill(candidates < 0, -1)
        if excluded is not None:
            ranks = ranks.masked_fill(candidates == excluded.unsqueeze(1), -1)
            members = members.masked_fill(members == excluded.unsqueeze(1), -1)
        rows = members.clamp(min=0).unique()  # sorted, so equal scores stay in gallery order
        local = torch.searchsorted(rows, members.clamp(min=0)).masked_fill(members < 0, -1)
        return Search(top, scores, ranks, search(queries, self.gallery.unit[rows], members=local).order)

    def recall(self, queries: Tensor, top: Tensor, excluded: Tensor | None, executor: Executor = SERIAL) -> Tensor:
        """Return the share [n] float32 of the truly best images that the index returned, for at most SAMPLE queries.

        Args:
            queries: [Q, d] float32, unit norm.
            top: [Q, k] int64, what `search` returned.
            excluded: [Q] int64, one gallery row per query that takes no rank.
            executor: computes the exact ranking.
        """
        count = min(len(queries), SAMPLE)
        sample = torch.arange(count) * len(queries) // max(count, 1)
        rows = {"k": top.shape[1], "excluded": None if excluded is None else excluded[sample]}
        best = search_blocks(queries[sample], self.gallery.unit, executor=executor, **rows).top
        return (top[sample].unsqueeze(2) == best.unsqueeze(1)).any(1).float().mean(1)

    @cached_property
    def _index(self) -> Any:
        unit, size = self.gallery.unit, len(self.gallery.ids)
        lists = max(1, round(math.sqrt(size)))
        index = self.faiss.index_factory(unit[:1].shape[1], f"IVF{lists},SQfp16", self.faiss.METRIC_INNER_PRODUCT)
        index.cp.seed, index.cp.min_points_per_centroid = SEED, 1  # a small gallery needs no warning
        count = min(size, TRAINING * lists)
        index.train(unit[torch.arange(count) * size // count].numpy())
        for first in range(0, size, ROWS):
            index.add(unit[first : first + ROWS].numpy())
        return index

    def _best(self, queries: Tensor, k: int, excluded: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the k best rows [Q, k] that the index finds, and their scores, equal scores in gallery order."""
        depth = k + (excluded is not None)
        top, scores = self._probe(queries, depth, LIST_PROBES)
        is_short = (top < 0).any(1)  # the lists hold too few images
        if is_short.any():
            top[is_short], scores[is_short] = self._probe(queries[is_short], depth, self._index.nlist)
        if excluded is not None:
            scores = scores.masked_fill(top == excluded.unsqueeze(1), float("-inf"))
        return best_first(top, scores, k)

    def _probe(self, queries: Tensor, depth: int, lists: int) -> tuple[Tensor, Tensor]:
        parameters = self.faiss.SearchParametersIVF(nprobe=min(lists, self._index.nlist))
        scores, top = self._index.search(queries.numpy(), depth, params=parameters)
        return torch.from_numpy(top), torch.from_numpy(scores)


def of_gallery(gallery: Embeddings, index: str) -> FaissIndex | None:
    """Return the index of a gallery, None for "exact". Raises ValueError as `load_faiss` does."""
    return None if index == "exact" else FaissIndex(gallery, load_faiss())


def refuse_product(method: str, queries: Tensor | Product) -> None:
    """Raise ValueError if a method's queries are products, whose scores are no inner products."""
    if isinstance(queries, Product):
        raise ValueError(f"{method} ranks by a product of similarities, which index faiss cannot; set index: exact.")


def load_faiss() -> Any:
    """Import FAISS. Raises ValueError with the command that installs it."""
    try:
        import faiss  # an optional package
    except ImportError as problem:
        raise ValueError("index faiss needs FAISS; run: pip install faiss-cpu, or set index: exact.") from problem
    return faiss
