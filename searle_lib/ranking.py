"""Rank a gallery for queries by cosine similarity: the k best images, and the ranks of candidates, in bounded memory.

`search` takes unit vectors of any float type, computes scores in float32, and returns ranks. Images with equal scores
rank in gallery order, so that a ranking is the same on every machine.

`search_blocks` does the same for a gallery that is larger than memory: it reads the rows in blocks. Several workers may
compute the blocks, in any order. One pass finds the best rows of each block, and the scores of the candidates. Another
pass counts the images before each candidate. Both passes compute the same matrix products, so a score is the same
number in both.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from searle_lib.store.executors import SERIAL, Executor

CELLS = 2**26  # scores held at once, 256 MiB: memory must not grow with queries times gallery
BLOCK = 64  # columns of a wide score matrix that share one maximum
ROWS = 2**17  # gallery rows compared at once, 256 MiB of 512 numbers; the benchmarks' own galleries have fewer


class Gallery(Protocol):
    """Unit vectors [N, d]: a tensor, or rows that stay on disk."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Tensor: ...


@dataclass(frozen=True)
class Product:
    """Q queries of V vectors each. An image's score is the product of ((1 + cosine) / 2) ** weight over the vectors.

    Args:
        vectors: [Q, V, d], unit norm.
        weights: [V], not negative.
    """

    vectors: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, rows: slice) -> "Product":
        return Product(self.vectors[rows], self.weights)


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
    queries: Tensor | Product,
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
        queries: [Q, d], unit norm, or a Product.
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


def search_blocks(
    queries: Tensor | Product,
    gallery: Gallery,
    *,
    k: int = 0,
    candidates: Tensor | None = None,
    members: Tensor | None = None,
    excluded: Tensor | None = None,
    chunk: int | None = None,
    executor: Executor = SERIAL,
) -> Search:
    """Rank a gallery of any size, as `search` does; one of at most ROWS images gets the numbers of `search` to the bit.

    Args:
        queries: [Q, d], unit norm, or a Product.
        gallery: [N, d], unit norm.
        k: how many of the best rows to return; cut to the number of images that can be ranked.
        candidates: [Q, C] int64, gallery rows whose ranks to return, -1 for padding.
        members: [Q, M] int64, gallery rows to rank among themselves, -1 for padding.
        excluded: [Q] int64, one gallery row per query that takes no rank.
        chunk: queries scored at once; bounds memory, does not change the result.
        executor: computes the blocks.

    Raises:
        ValueError: if a candidate or member is not a row of the gallery.
    """
    if len(gallery) <= ROWS:
        rows = {"candidates": candidates, "members": members, "excluded": excluded}
        return search(queries, gallery[:], k=k, chunk=chunk, **rows)
    none = torch.empty(len(queries), 0, dtype=torch.int64)
    candidates, members = (none if rows is None else rows for rows in (candidates, members))
    _check_rows(gallery, candidates, members)
    k = min(k, len(gallery) - (excluded is not None))
    blocks = _Blocks(queries, gallery, excluded, chunk)
    ranges = [(first, min(first + ROWS, len(gallery))) for first in range(0, len(gallery), ROWS)]
    top, best, rows = none, none.float(), torch.cat([candidates, members], dim=1)
    scores = torch.full(rows.shape, float("-inf"))
    for _, (block_top, block_best, block_scores) in executor.map(partial(blocks.search, k, rows), ranges):
        top, best = best_first(torch.cat([top, block_top], dim=1), torch.cat([best, block_best], dim=1), k)
        scores = scores.maximum(block_scores)  # a row is in one block, and the others say -inf
    candidate_scores, member_scores = scores.split([candidates.shape[1], members.shape[1]], dim=1)
    ranks = torch.zeros_like(candidates)
    if (candidates >= 0).any():
        for _, counts in executor.map(partial(blocks.count_before, candidates, candidate_scores), ranges):
            ranks += counts
    ranks = ranks.masked_fill((candidates < 0) | candidate_scores.isneginf(), -1)
    members, order = members.sort(dim=1)  # now the columns of members are in gallery order, as ties need it
    columns = torch.arange(members.shape[1]).expand_as(members).masked_fill(members < 0, -1)
    order = torch.empty_like(members).scatter_(1, order, _order(member_scores.gather(1, order), columns))
    return Search(top, best, ranks, order)


def best_first(top: Tensor, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k best of some rows [Q, K] with scores [Q, K], best first, equal scores in gallery order."""
    top, order = top.sort(dim=1)
    scores = scores.gather(1, order)
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    return top.gather(1, order), scores.gather(1, order)


@dataclass(frozen=True)
class _Blocks:
    """A gallery that is compared with queries block by block; the arguments are those of `search_blocks`."""

    queries: Tensor | Product
    gallery: Gallery
    excluded: Tensor | None
    chunk: int | None

    def search(self, k: int, rows: Tensor, first: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the best rows [Q, at most k] of a block, their scores, and those of `rows` [Q, C], -inf outside."""
        k = min(k, end - first)
        top, best = torch.empty(len(rows), k, dtype=torch.int64), torch.empty(len(rows), k)
        row_scores = torch.full(rows.shape, float("-inf"))
        for part, scores in self._compare(first, end):
            query, place = _inside(rows[part], first, end)
            row_scores[part][query, place] = scores[query, rows[part][query, place] - first].cpu()
            if k:
                columns = _best(scores, k)
                top[part], best[part] = (first + columns).cpu(), scores.gather(1, columns).cpu()
        return top, best, row_scores

    def count_before(self, candidates: Tensor, candidate_scores: Tensor, first: int, end: int) -> Tensor:
        """Count the images of a block before each candidate [Q, C]: of a higher score, or of an equal one and earlier.

        The sums over all blocks are the ranks.
        """
        counts = torch.empty_like(candidates)
        for part, scores in self._compare(first, end):
            of_part = candidate_scores[part].to(scores.device)
            query, place = _inside(candidates[part], first, end)
            columns = candidates[part][query, place] - first
            scores[query, columns] = of_part[query, place]  # another kind of machine may have rounded them differently
            own, buffer = torch.zeros_like(candidates[part]), torch.empty_like(scores)
            own[query, place] = 1
            for number, score in enumerate(of_part.split(1, dim=1)):  # [c, 1]
                before = torch.gt(scores, score, out=buffer).sum(1).long()  # float sums are faster, and exact here
                ties = torch.ge(scores, score, out=buffer).sum(1).long() - before
                for row in (ties.cpu() > own[:, number]).nonzero().flatten().tolist():  # equal scores are rare
                    earlier = max(0, int(candidates[part][row, number]) - first)
                    before[row] += (scores[row, :earlier] == score[row]).sum()
                counts[part, number] = before.cpu()
        return counts

    def _compare(self, first: int, end: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield the scores [c, n] of a block of n rows for each chunk of queries, -inf at excluded rows.

        All chunks share one tensor, which is valid until the next chunk.
        """
        block, count = self.gallery[first:end].float(), len(self.queries)
        chunk = min(self.chunk or max(1, CELLS // len(block)), count)
        buffer = torch.empty(chunk, len(block), device=block.device)
        for start in range(0, count, max(chunk, 1)):
            part = slice(start, min(start + chunk, count))
            scores = buffer[: part.stop - start]
            _score(self.queries[part], block, out=scores)
            if self.excluded is not None:
                (query,) = _inside(self.excluded[part], first, end)
                scores[query, self.excluded[part][query] - first] = float("-inf")
            yield part, scores


def _inside(rows: Tensor, first: int, end: int) -> tuple[Tensor, ...]:
    """Return the places of the gallery rows that lie in a block, one tensor for each dimension of `rows`."""
    return ((rows >= first) & (rows < end)).nonzero(as_tuple=True)


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
    queries: Tensor | Product, gallery: Tensor, excluded: Tensor | None, chunk: int | None
) -> Iterator[tuple[slice, Tensor]]:
    """Yield the score matrix [c, N] float32 of each chunk of queries, -inf at excluded rows."""
    gallery, chunk = gallery.float(), chunk or max(1, CELLS // max(1, len(gallery)))
    for start in range(0, len(queries), chunk):
        rows = slice(start, min(start + chunk, len(queries)))
        scores = _score(queries[rows], gallery)
        if excluded is not None:
            scores.scatter_(1, excluded[rows].to(gallery.device).unsqueeze(1), float("-inf"))
        yield rows, scores


def _score(queries: Tensor | Product, gallery: Tensor, out: Tensor | None = None) -> Tensor:
    """Return the scores [c, N] float32 of queries and a gallery [N, d] float32, in `out` if it is given.

    A Product takes a second tensor of this size.
    """
    if isinstance(queries, Tensor):
        return torch.mm(queries.to(gallery.device).float(), gallery.T, out=out)
    vectors = queries.vectors.to(gallery.device).float()
    for number, weight in enumerate(queries.weights.tolist()):
        cosines = torch.mm(vectors[:, number], gallery.T, out=None if number else out)
        similarities = cosines.add_(1).div_(2).clamp_(0, 1).pow_(weight)  # rounding may leave the range of a cosine
        out = out.mul_(similarities) if number else similarities
    return out


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
