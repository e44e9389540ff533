"""Rank a gallery for queries by cosine similarity: the k best images, and the ranks of candidates, in bounded memory.

`search` takes unit vectors of any float type, computes scores in float32, and returns ranks. Images with equal scores
rank in gallery order, so that a ranking is the same on every machine.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

CELLS = 2**26  # scores held at once, 256 MiB: memory must not grow with queries times gallery
BLOCK = 64  # columns of a wide score matrix that share one maximum


@dataclass(frozen=True)
class Search:
    """The answers to Q queries over a gallery.

    Args:
        top: [Q, k] int64, the gallery rows with the highest scores, best first.
        scores: [Q, k] float32, their scores.
        ranks: [Q, C] int64, the rank of each candidate in the whole gallery, 0 is best.
        order: [Q, M] int64, the rank of each group member among the members.

    Ranks are -1 for padding and for an excluded image.
    """

    top: Tensor
    scores: Tensor
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
    """Rank a gallery for each query by cosine similarity. Every score is computed once.

    Args:
        queries: [Q, d], unit norm.
        gallery: [N, d], unit norm.
        k: how many of the best rows to return; cut to the number of images that can be ranked.
        candidates: [Q, C] int64, gallery rows whose ranks to return, -1 for padding.
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
    top, best = torch.empty(len(queries), k, dtype=torch.int64), torch.empty(len(queries), k)
    ranks, order = torch.full_like(candidates, -1), torch.full_like(members, -1)
    for rows, scores in _scores(queries, gallery, excluded, chunk):
        ranks[rows] = _ranks(scores, candidates[rows].to(scores.device)).cpu()
        order[rows] = _order(scores, members[rows].to(scores.device)).cpu()
        if k:
            columns = _best(scores, k)
            top[rows], best[rows] = columns.cpu(), scores.gather(1, columns).cpu()
    return Search(top, best, ranks, order)


def _order(scores: Tensor, members: Tensor) -> Tensor:
    """Rank [c, M] of each member [c, M] among the others, by scores [c, N]."""
    member_scores = scores.gather(1, members.clamp(min=0))
    is_ranked = (members >= 0) & ~torch.isneginf(member_scores)
    other, this = member_scores.unsqueeze(1), member_scores.unsqueeze(2)  # [c, 1, M] and [c, M, 1]
    before = (other > this) | ((other == this) & (members.unsqueeze(1) < members.unsqueeze(2)))
    return (before & is_ranked.unsqueeze(1)).sum(2).masked_fill(~is_ranked, -1)


def _ranks(scores: Tensor, candidates: Tensor) -> Tensor:
    """Rank [c, C] of each candidate [c, C]: how many of the scores [c, N] are higher, or equal in earlier columns."""
    ranks, buffer = [], torch.empty_like(scores)
    for candidate in candidates.T:
        score = scores.gather(1, candidate.clamp(min=0).unsqueeze(1))  # [c, 1]
        higher = torch.gt(scores, score, out=buffer).sum(1).long()  # float sums are faster, and exact below 2^24 images
        not_lower = torch.ge(scores, score, out=buffer).sum(1).long()
        for row in (not_lower - higher > 1).nonzero().flatten().tolist():  # equal scores are rare
            higher[row] += (scores[row, : candidate[row]] == score[row]).sum()
        ranks.append(higher.masked_fill((candidate < 0) | torch.isneginf(score.squeeze(1)), -1))
    return torch.stack(ranks, dim=1) if ranks else candidates


def _check_rows(gallery: Tensor, *candidates: Tensor) -> None:
    for rows in candidates:
        if rows.numel() and (int(rows.max()) >= len(gallery) or int(rows.min()) < -1):
            raise ValueError(f"candidates must be rows of a gallery of {len(gallery)} images, or -1.")


def _scores(
    queries: Tensor, gallery: Tensor, excluded: Tensor | None, chunk: int | None
) -> Iterator[tuple[slice, Tensor]]:
    """Yield the score matrix [c, N] float32 of each chunk of queries, -inf at excluded rows."""
    gallery, chunk = gallery.float(), chunk or max(1, CELLS // max(1, len(gallery)))
    for start in range(0, len(queries), chunk):
        rows = slice(start, min(start + chunk, len(queries)))
        scores = queries[rows].to(gallery.device).float() @ gallery.T
        if excluded is not None:
            scores.scatter_(1, excluded[rows].to(gallery.device).unsqueeze(1), float("-inf"))
        yield rows, scores


def _best(scores: Tensor, k: int) -> Tensor:
    """Return the columns [c, k] of the k highest scores, best first, equal scores in column order."""
    values, columns = _highest(scores, min(k + 1, scores.shape[1]))  # topk chooses freely among equal scores
    tied_at_the_end = (values[:, k - 1 : k] == values[:, k:]).any(1)  # the last column in equals the first one out
    columns, order = columns[:, :k].sort(dim=1)
    values = values[:, :k].gather(1, order)
    best = columns.gather(1, values.argsort(dim=1, descending=True, stable=True))
    if tied_at_the_end.any():
        full = scores[tied_at_the_end].argsort(dim=1, descending=True, stable=True)
        best[tied_at_the_end] = full[:, :k]
    return best


def _highest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k highest scores of each row [c, N], best first, and their columns; ties in any order.

    The k blocks of columns with the highest maxima hold them, so only these blocks of a wide row are searched.
    """
    tail = scores.shape[1] - scores.shape[1] % BLOCK  # the first column after the last full block
    if tail < 8 * k * BLOCK:
        return scores.topk(k)
    maxima = scores[:, :tail].unflatten(1, (-1, BLOCK)).amax(2)  # [c, N / BLOCK]
    offset = torch.arange(BLOCK, device=scores.device)
    columns = (maxima.topk(k).indices.unsqueeze(2) * BLOCK + offset).flatten(1)  # [c, k * BLOCK]
    rest = torch.arange(tail, scores.shape[1], device=scores.device).expand(len(scores), -1)
    columns = torch.cat([columns, rest], dim=1)
    values, chosen = scores.gather(1, columns).topk(k)
    return values, columns.gather(1, chosen)
