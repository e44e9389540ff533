"""Retrieval metrics of single queries, from ranks alone; `intervals` turns them into means and intervals.

Ranks start at 0; -1 is padding, or an image that has no rank.
"""

from torch import Tensor

UNLISTED = 10**9  # the rank of an image that a list of the best images does not hold: beyond every k


def recall_at(target_ranks: Tensor, k: int) -> Tensor:
    """Return 1.0 where a target's rank is below k, else 0.0: [Q] int64 -> [Q] float64."""
    return ((target_ranks >= 0) & (target_ranks < k)).double()


def average_precision_at(truth_ranks: Tensor, k: int) -> Tensor:
    """Return AP@k [Q] float64 from the ranks [Q, G] of each query's ground truths, padded with -1.

    AP@k is the sum over ranks i <= k of P(i) rel(i), divided by min(number of ground truths, k): CIRCO's definition
    (SEARLE, section 4). With one ground truth it is the reciprocal rank cut at k.
    """
    has_rank = truth_ranks >= 0
    ordered = truth_ranks.masked_fill(~has_rank, 2**62).sort(dim=1).values  # padding last
    hits = (ordered < k).double()
    precision = hits.cumsum(1) / (ordered + 1).double()
    return (precision * hits).sum(1) / has_rank.sum(1).clamp(min=1, max=k)
