"""Ranking a gallery for queries by cosine: the k best, and the ranks of given images, in memory that a chunk bounds.

Equal scores rank in gallery order, so that a ranking is a fact and not an accident of the sort. All functions
take unit vectors of any float type and score them in float32.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

CELLS = 2**26  # scores held at once, 256 MiB; so memory does not grow with queries times gallery
BLOCK = 64  # columns of a wide score matrix of which the maximum is taken first


@dataclass(frozen=True)
class Search:
    """The answers to Q queries over a gallery.

    Args:
        top: [Q, k] int64, the gallery rows with the highest scores, best first.
        ranks: [Q, C] int64, the rank of each candidate in the whole gallery, 0 is best.
        order: [Q, M] int64, the rank of each group member among the members.

    Ranks are -1 for padding and for an excluded image.
    """

    top: Tensor
    ranks: Tensor
    order: Tensor


def search(
    queries: Tensor,
    gallery: Tensor,
    *,
    k: int = 0,
    candidates: Tensor | None = None,
    members: Tensor | None = None,
    excluded: Tensor | None = None,
    chunk: int | None = None,
) -> Search:
    """Rank a gallery for each query by cosine similarity; every score is computed once.

    Args:
        queries: [Q, d], unit norm.
        gallery: [N, d], unit norm.
        k: how many of the best rows to return; cut to the number of images that can be ranked.
        candidates: [Q, C] int64, gallery rows whose ranks are asked for, -1 for padding.
        members: [Q, M] int64, gallery rows to rank among themselves, -1 for padding.
        excluded: [Q] int64, one gallery row per query that takes no rank.
        chunk: queries scored at once; bounds memory, does not change the result.

    Raises:
        ValueError: if a candidate or member is not a row of the gallery.
    """
    none = torch.empty(len(queries), 0, dtype=torch.int64)
    candidates, members = (none if rows is None else rows for rows in (candidates, members))
    _check_rows(gallery, candidates, members)
    k = min(k, len(gallery) - (excluded is not None))
    top = torch.empty(len(queries), k, dtype=torch.int64)
    ranks, order = torch.full_like(candidates, -1), torch.full_like(members, -1)
    for rows, scores in _scores(queries, gallery, excluded, chunk):
        ranks[rows] = _ranks(scores, candidates[rows].to(scores.device)).cpu()
        order[rows] = _order(scores, members[rows].to(scores.device)).cpu()
        if k:
            top[rows] = _best(scores, k)
    return Search(top, ranks, order)


def _order(scores: Tensor, members: Tensor) -> Tensor:
    """Rank [c, M] of each member [c, M] among the others, by scores [c, N]."""
    own = scores.gather(1, members.clamp(min=0))
    there = (members >= 0) & ~torch.isneginf(own)
    first, second = own.unsqueeze(1), own.unsqueeze(2)  # [c, 1, M] and [c, M, 1]
    before = (first > second) | ((first == second) & (members.unsqueeze(1) < members.unsqueeze(2)))
    return (before & there.unsqueeze(1)).sum(2).masked_fill(~there, -1)


def _ranks(scores: Tensor, candidates: Tensor) -> Tensor:
    """How many scores [c, N] lie before those of candidates [c, C]: higher ones, and equal ones in earlier columns."""
    found, room = [], torch.empty_like(scores)
    for candidate in candidates.T:
        own = scores.gather(1, candidate.clamp(min=0).unsqueeze(1))  # [c, 1]
        above = torch.gt(scores, own, out=room).sum(1).long()  # as floats: faster, and exact for any gallery there is
        level = torch.ge(scores, own, out=room).sum(1).long()
        for row in (level - above > 1).nonzero().flatten().tolist():  # equal scores are rare
            above[row] += (scores[row, : candidate[row]] == own[row]).sum()
        found.append(above.masked_fill((candidate < 0) | torch.isneginf(own.squeeze(1)), -1))
    return torch.stack(found, dim=1) if found else candidates


def _check_rows(gallery: Tensor, *candidates: Tensor) -> None:
    for some in candidates:
        if some.numel() and (int(some.max()) >= len(gallery) or int(some.min()) < -1):
            raise ValueError(f"candidates must be rows of a gallery of {len(gallery)} images, or -1.")


def _scores(
    queries: Tensor, gallery: Tensor, excluded: Tensor | None, chunk: int | None
) -> Iterator[tuple[slice, Tensor]]:
    """Score matrices [c, N] float32 of a chunk of queries each, -inf where a row is excluded."""
    gallery, chunk = gallery.float(), chunk or max(1, CELLS // max(1, len(gallery)))
    for start in range(0, len(queries), chunk):
        rows = slice(start, min(start + chunk, len(queries)))
        scores = queries[rows].to(gallery.device).float() @ gallery.T
        if excluded is not None:
            scores.scatter_(1, excluded[rows].to(gallery.device).unsqueeze(1), float("-inf"))
        yield rows, scores


def _best(scores: Tensor, k: int) -> Tensor:
    """Columns [c, k] of the k highest scores, best first, equal ones in column order."""
    values, columns = _highest(scores, min(k + 1, scores.shape[1]))  # of equal scores topk takes any
    tied_at_the_end = (values[:, k - 1 : k] == values[:, k:]).any(1)  # with the first that is not taken
    columns, order = columns[:, :k].sort(dim=1)
    values = values[:, :k].gather(1, order)
    best = columns.gather(1, values.argsort(dim=1, descending=True, stable=True))
    if tied_at_the_end.any():
        full = scores[tied_at_the_end].argsort(dim=1, descending=True, stable=True)
        best[tied_at_the_end] = full[:, :k]
    return best.cpu()


def _highest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest scores of each row [c, N], best first, and their columns; any of equal ones.

    They lie in the k blocks of columns with the highest maxima, so of a wide row only those are looked through.
    """
    whole = scores.shape[1] - scores.shape[1] % BLOCK
    if whole < 8 * k * BLOCK:
        return scores.topk(k)
    maxima = scores[:, :whole].unflatten(1, (-1, BLOCK)).amax(2)  # [c, N / BLOCK]
    place = torch.arange(BLOCK, device=scores.device)
    columns = (maxima.topk(k).indices.unsqueeze(2) * BLOCK + place).flatten(1)  # [c, k * BLOCK]
    rest = torch.arange(whole, scores.shape[1], device=scores.device).expand(len(scores), -1)
    columns = torch.cat([columns, rest], dim=1)
    values, chosen = scores.gather(1, columns).topk(k)
    return values, columns.gather(1, chosen)
