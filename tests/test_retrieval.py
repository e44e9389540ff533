"""Ranking against a full sort written out here, with ties, chunks, dtypes, and galleries smaller than k."""

import pytest
import torch
import torch.nn.functional as F

from searle_lib import ranking
from searle_lib.ranking import find, ranks, top_k


def problem(dtype, ties, queries=23, gallery=41, dimension=8):
    """Vectors whose products are exact in every float type when ties are wanted, so that equal scores are equal."""
    random = torch.Generator().manual_seed(3)
    if ties:
        q = torch.randint(-2, 3, (queries, dimension), generator=random).float() / 4
        g = torch.randint(-2, 3, (gallery, dimension), generator=random).float() / 4
        g[21:] = g[:20].clone()  # nearly every image twice
    else:
        q = F.normalize(torch.randn(queries, dimension, generator=random), dim=-1)
        g = F.normalize(torch.randn(gallery, dimension, generator=random), dim=-1)
    return q.to(dtype), g.to(dtype)


def full_sort(query, gallery, excluded=None):
    """Rows of the gallery by falling score, equal scores in gallery order."""
    scores = (gallery.float() @ query.float()).tolist()
    rows = [row for row in range(len(scores)) if row != excluded]
    return sorted(rows, key=lambda row: (-scores[row], row))


@pytest.mark.parametrize("chunk", [1, 7, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("k", [1, 5, 40, 41, 100])
@pytest.mark.parametrize("exclude", [True, False])
def test_top_k_equals_a_full_sort(chunk, dtype, ties, k, exclude):
    queries, gallery = problem(dtype, ties)
    excluded = torch.arange(len(queries)) % len(gallery) if exclude else None
    expected = [full_sort(q, gallery, int(excluded[i]) if exclude else None)[:k] for i, q in enumerate(queries)]
    assert top_k(queries, gallery, k, excluded, chunk).tolist() == expected


@pytest.mark.parametrize("chunk", [1, 7, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("exclude", [True, False])
def test_ranks_equal_positions_in_a_full_sort(chunk, dtype, ties, exclude):
    queries, gallery = problem(dtype, ties)
    excluded = torch.arange(len(queries)) if exclude else None
    candidates = torch.stack([torch.arange(len(queries)) + 1, torch.full((len(queries),), 40)], dim=1)
    sorts = [full_sort(q, gallery, int(excluded[i]) if exclude else None) for i, q in enumerate(queries)]
    expected = [[order.index(c) for c in row] for order, row in zip(sorts, candidates.tolist(), strict=True)]
    assert ranks(queries, gallery, candidates, excluded, chunk).tolist() == expected


@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("k", [1, 3, 10])
def test_top_k_of_a_wide_gallery_equals_a_full_sort(ties, k):
    size = 64 * 9 * 11 + 5
    queries, gallery = problem(torch.float32, ties, queries=6, gallery=41 if ties else size)
    gallery = gallery.repeat(160, 1)[:size]
    excluded = torch.tensor([0, 5, 700, 6340, 3, 1])
    expected = [full_sort(q, gallery, int(excluded[i]))[:k] for i, q in enumerate(queries)]
    assert top_k(queries, gallery, k, excluded).tolist() == expected


@pytest.mark.parametrize("tied", [(70, 200), (200, 4000), (6300, 6339), (130, 131)])
def test_the_best_of_a_wide_gallery_are_found_in_its_tail_and_on_the_edge_of_a_tie(tied):
    gallery = torch.zeros(64 * 9 * 11 + 5, 8)
    gallery[5000, 0], gallery[6340, 0], gallery[list(tied), 0] = 0.9, 0.8, 0.7
    query = torch.zeros(1, 8)
    query[0, 0] = 1.0
    for k in (1, 2, 3, 4):
        assert top_k(query, gallery, k).tolist() == [[5000, 6340, *tied][:k]]


@pytest.mark.parametrize("k", [1, 4, 9])
def test_as_many_blocks_are_looked_through_as_scores_are_wanted(k):
    scores = torch.zeros(1, 64 * 9 * 11)
    scores[0, 64 * torch.arange(9) + 7] = torch.arange(9, 0, -1).float()  # each of the best in a block of its own
    values, columns = ranking._highest(scores, k)
    assert torch.equal(values, scores.topk(k).values) and torch.equal(scores.gather(1, columns), values)


def test_ranks_of_absent_candidates_and_of_the_excluded_image_are_minus_one():
    queries, gallery = problem(torch.float32, ties=False)
    candidates = torch.tensor([[4, -1]] * len(queries))
    found = ranks(queries, gallery, candidates, excluded=torch.full((len(queries),), 4))
    assert (found == -1).all()


def test_ranks_refuse_a_candidate_outside_the_gallery():
    queries, gallery = problem(torch.float32, ties=False)
    with pytest.raises(ValueError, match="rows of a gallery of 41 images"):
        ranks(queries, gallery, torch.full((len(queries), 1), 41))


def test_no_queries_give_empty_rankings():
    _, gallery = problem(torch.float32, ties=False)
    assert top_k(torch.empty(0, 8), gallery, 5).shape == (0, 5)
    assert ranks(torch.empty(0, 8), gallery, torch.empty(0, 2, dtype=torch.int64)).shape == (0, 2)


@pytest.mark.parametrize("chunk", [1, 7, None])
@pytest.mark.parametrize("excluding", [True, False])
def test_members_are_ordered_among_themselves_as_a_full_sort_has_them(chunk, excluding):
    queries, gallery = problem(torch.float32, ties=True)
    random = torch.Generator().manual_seed(5)
    many, images = len(queries), len(gallery)
    candidates = torch.randint(-1, images, (many, 2), generator=random)
    members = torch.stack([torch.randperm(images, generator=random)[:5] for _ in range(many)])
    members[::3, -1] = -1  # some have four
    excluded = members[:, 1].clone() if excluding else None
    found = find(queries, gallery, candidates, members, excluded, chunk)
    assert torch.equal(found.ranks, ranks(queries, gallery, candidates, excluded))
    for row in range(many):
        sort = full_sort(queries[row], gallery, int(excluded[row]) if excluding else None)
        there = [image for image in sort if image in members[row]]
        assert found.order[row].tolist() == [there.index(i) if i in there else -1 for i in members[row].tolist()]


def test_queries_are_scored_in_chunks_that_a_budget_of_scores_bounds(monkeypatch):
    queries, gallery = problem(torch.float32, ties=False)
    widths, scores_of = [], ranking._scores

    def watched(*arguments):
        for rows, scores in scores_of(*arguments):
            widths.append(scores.numel())
            yield rows, scores

    monkeypatch.setattr(ranking, "CELLS", 5 * len(gallery) + 3)
    monkeypatch.setattr(ranking, "_scores", watched)
    top_k(queries, gallery, 5)
    assert max(widths) == 5 * len(gallery) and sum(widths) == len(queries) * len(gallery)
