"""Retrieval metrics of single queries, from ranks alone; means and intervals are made of them in `results`.

Ranks start at 0; -1 stands for "there is none".
"""

from torch import Tensor


def recall_at(target_ranks: Tensor, k: int) -> Tensor:
    """1.0 where the target is among the first k, else 0.0: [Q] -> [Q] float64."""
    return ((target_ranks >= 0) & (target_ranks < k)).double()


def average_precision_at(truth_ranks: Tensor, k: int) -> Tensor:
    """AP@k [Q] float64 from the ranks [Q, G] of each query's ground truths, padded with -1.

    AP@k = sum over ranks i <= k of P(i) rel(i), divided by min(number of ground truths, k): CIRCO's definition.
    With one ground truth it is the reciprocal rank cut at k. Source: searle.md, section 5.
    """
    there = truth_ranks >= 0
    ordered = truth_ranks.masked_fill(~there, 2**62).sort(dim=1).values  # absent ones last
    hits = (ordered < k).double()
    precision = hits.cumsum(1) / (ordered + 1).double()
    return (precision * hits).sum(1) / there.sum(1).clamp(min=1, max=k)
