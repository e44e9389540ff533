"""Ranking a gallery for queries by cosine: the k best, and the ranks of given images, in memory that a chunk bounds.

Equal scores rank in gallery order, so that a ranking is a fact and not an accident of the sort. All functions
take unit vectors of any float type and score them in float32.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK = 512  # queries scored at once; the score matrix takes CHUNK x N x 4 bytes


def top_k(queries: Tensor, gallery: Tensor, k: int, excluded: Tensor | None = None, chunk: int = CHUNK) -> Tensor:
    """Gallery rows [Q, k] int64 of the k highest cosines, best first.

    queries [Q, d] and gallery [N, d] are unit norm. `excluded` [Q] is one gallery row a query that may not be
    returned. A k beyond what there is to rank is cut to it.
    """
    k = min(k, len(gallery) - (excluded is not None))
    if len(queries) == 0:
        return torch.empty(0, k, dtype=torch.int64)
    return torch.cat([_best(scores, k) for _, scores in _scores(queries, gallery, excluded, chunk)])


def ranks(
    queries: Tensor, gallery: Tensor, candidates: Tensor, excluded: Tensor | None = None, chunk: int = CHUNK
) -> Tensor:
    """Rank [Q, C] int64 of each query's candidates in the gallery by cosine, 0 the best.

    queries [Q, d] and gallery [N, d] are unit norm; candidates [Q, C] are gallery rows, -1 where a query has
    fewer than C, and stay -1. `excluded` [Q] is one gallery row a query that takes no rank: where it is itself a
    candidate it gets -1. Found by counting the scores above, so nothing is sorted.
    Raises ValueError when a candidate is not a gallery row. Source: searle.md, section 5.
    """
    if len(candidates) and (int(candidates.max()) >= len(gallery) or int(candidates.min()) < -1):
        raise ValueError(f"candidates must be rows of a gallery of {len(gallery)} images, or -1.")
    found = torch.full_like(candidates, -1)
    places = torch.arange(len(gallery), device=gallery.device)
    for rows, scores in _scores(queries, gallery, excluded, chunk):
        for column in range(candidates.shape[1]):
            candidate = candidates[rows, column].to(gallery.device)
            own = scores.gather(1, candidate.clamp(min=0).unsqueeze(1))  # [c, 1]
            above = (scores > own).sum(1)
            before = ((scores == own) & (places < candidate.unsqueeze(1))).sum(1)
            absent = (candidate < 0) | torch.isneginf(own.squeeze(1))
            found[rows, column] = (above + before).masked_fill(absent, -1).cpu()
    return found


def _scores(queries: Tensor, gallery: Tensor, excluded: Tensor | None, chunk: int) -> Iterator[tuple[slice, Tensor]]:
    """Score matrices [c, N] float32 of a chunk of queries each, -inf where a row is excluded."""
    gallery = gallery.float()
    for start in range(0, len(queries), chunk):
        rows = slice(start, min(start + chunk, len(queries)))
        scores = queries[rows].to(gallery.device).float() @ gallery.T
        if excluded is not None:
            scores.scatter_(1, excluded[rows].to(gallery.device).unsqueeze(1), float("-inf"))
        yield rows, scores


def _best(scores: Tensor, k: int) -> Tensor:
    """Columns [c, k] of the k highest scores, best first, equal ones in column order."""
    values, columns = scores.topk(k)  # which of several equal scores topk takes is not defined
    columns, order = columns.sort(dim=1)
    values = values.gather(1, order)
    best = columns.gather(1, values.argsort(dim=1, descending=True, stable=True))
    tied_at_the_end = (scores >= values.min(1, keepdim=True).values).sum(1) > k
    if tied_at_the_end.any():
        full = scores[tied_at_the_end].argsort(dim=1, descending=True, stable=True)
        best[tied_at_the_end] = full[:, :k]
    return best.cpu()
