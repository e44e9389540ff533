"""Ranking a gallery for queries by cosine: the k best, and the ranks of given images, in memory that a chunk bounds.

Equal scores rank in gallery order, so that a ranking is a fact and not an accident of the sort. All functions
take unit vectors of any float type and score them in float32.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

CHUNK = 512  # queries scored at once; the score matrix takes CHUNK x N x 4 bytes


@dataclass(frozen=True)
class Found:
    """For Q queries: gallery rows top [Q, k], best first, and of candidates [Q, C] their ranks and their scores."""

    top: Tensor
    ranks: Tensor
    scores: Tensor


def search(
    queries: Tensor,
    gallery: Tensor,
    k: int,
    ranked: Tensor,
    scored: Tensor,
    excluded: Tensor | None = None,
    chunk: int = CHUNK,
) -> Found:
    """The k best rows, the ranks of rows `ranked` [Q, C], and the scores [Q, M] of rows `scored`, -1 standing for none.

    As `top_k` and `ranks` do, but every score is computed once. The score of no row, or an excluded one, is -inf.
    """
    _check_rows(gallery, ranked, scored)
    k = min(k, len(gallery) - (excluded is not None))
    best, ranks, scores_of = [torch.empty(0, k, dtype=torch.int64)], torch.full_like(ranked, -1), []
    for rows, scores in _scores(queries, gallery, excluded, chunk):
        best.append(_best(scores, k))
        ranks[rows] = _ranks(scores, ranked[rows].to(scores.device)).cpu()
        own = scores.gather(1, scored[rows].to(scores.device).clamp(min=0)).cpu()
        scores_of.append(own.masked_fill(scored[rows] < 0, float("-inf")))
    return Found(torch.cat(best), ranks, torch.cat(scores_of) if scores_of else torch.empty(scored.shape))


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
    _check_rows(gallery, candidates)
    found = torch.full_like(candidates, -1)
    for rows, scores in _scores(queries, gallery, excluded, chunk):
        found[rows] = _ranks(scores, candidates[rows].to(scores.device)).cpu()
    return found


def order(scores: Tensor, rows: Tensor) -> Tensor:
    """Rank [Q, M] of each of a few gallery rows [Q, M] among themselves by their scores [Q, M]; -1 for no row."""
    theirs, own = scores.unsqueeze(1), scores.unsqueeze(2)  # [Q, 1, M] and [Q, M, 1]
    before = (theirs > own) | ((theirs == own) & (rows.unsqueeze(1) < rows.unsqueeze(2)))
    there = (rows >= 0) & ~torch.isneginf(scores)
    return (before & there.unsqueeze(1)).sum(2).masked_fill(~there, -1)


def _ranks(scores: Tensor, candidates: Tensor) -> Tensor:
    """How many scores [c, N] lie before those of candidates [c, C]: higher ones, and equal ones in earlier columns."""
    found = []
    for candidate in candidates.T:
        own = scores.gather(1, candidate.clamp(min=0).unsqueeze(1))  # [c, 1]
        above, level = _count(scores > own), _count(scores >= own)
        for row in (level - above > 1).nonzero().flatten().tolist():  # equal scores are rare
            above[row] += (scores[row, : candidate[row]] == own[row]).sum()
        found.append(above.masked_fill((candidate < 0) | torch.isneginf(own.squeeze(1)), -1))
    return torch.stack(found, dim=1) if found else candidates


def _count(true: Tensor) -> Tensor:
    """How many of each row are true [c]."""
    if true.device.type == "cpu":  # three times as fast as torch's sum
        return torch.from_numpy(np.count_nonzero(true.numpy(), axis=1))
    return true.sum(1)


def _check_rows(gallery: Tensor, *candidates: Tensor) -> None:
    for some in candidates:
        if some.numel() and (int(some.max()) >= len(gallery) or int(some.min()) < -1):
            raise ValueError(f"candidates must be rows of a gallery of {len(gallery)} images, or -1.")


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
