"""Ranking against a full sort written out here, with ties, chunks, dtypes, and galleries smaller than k."""

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from searle_lib import ranking
from searle_lib.ranking import search

WIDE = 64 * 9 * 11 + 5  # images of a gallery that is searched block by block, and a tail


def problem(dtype=torch.float32, ties=False, queries=23, gallery=41, dimension=8):
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


def full_sorts(queries, gallery, excluded):
    return [full_sort(q, gallery, None if excluded is None else int(excluded[i])) for i, q in enumerate(queries)]


@pytest.mark.parametrize(
    ("dtype", "ties", "k", "chunk", "exclude"),
    [
        (torch.float32, True, 5, None, True),
        (torch.float32, False, 40, 7, True),
        (torch.float16, True, 1, 1, False),
        (torch.float16, False, 41, None, True),  # one more than can be ranked
        (torch.float64, True, 40, 7, False),
        (torch.float64, False, 100, None, False),
    ],
)
def test_top_and_ranks_equal_a_full_sort(dtype, ties, k, chunk, exclude):
    queries, gallery = problem(dtype, ties)
    excluded = torch.arange(len(queries)) if exclude else None
    candidates = torch.stack([torch.arange(len(queries)) + 1, torch.full((len(queries),), 40)], dim=1)
    answers = search(queries, gallery, k=k, candidates=candidates, excluded=excluded, chunk=chunk)
    sorts = full_sorts(queries, gallery, excluded)
    assert answers.top.tolist() == [rows[:k] for rows in sorts]
    expected = [[rows.index(row) for row in asked] for rows, asked in zip(sorts, candidates.tolist(), strict=True)]
    assert answers.ranks.tolist() == expected


@pytest.mark.parametrize(("ties", "k"), [(True, 1), (True, 10), (False, 3)])
def test_the_top_of_a_wide_gallery_equals_a_full_sort(ties, k):
    queries, gallery = problem(ties=ties, queries=6, gallery=41 if ties else WIDE)
    gallery = gallery.repeat(160, 1)[:WIDE]
    excluded = torch.tensor([0, 5, 700, 6340, 3, 1])
    top = search(queries, gallery, k=k, excluded=excluded).top
    assert top.tolist() == [rows[:k] for rows in full_sorts(queries, gallery, excluded)]


@pytest.mark.parametrize("tied", [(70, 200), (200, 4000), (6300, 6339), (130, 131)])
def test_the_best_of_a_wide_gallery_may_lie_in_its_tail_and_on_the_edge_of_a_tie(tied):
    gallery = torch.zeros(WIDE, 8)
    gallery[5000, 0], gallery[6340, 0], gallery[list(tied), 0] = 0.9, 0.8, 0.7
    query = torch.eye(8)[:1]
    for k in (1, 2, 3, 4):
        assert search(query, gallery, k=k).top.tolist() == [[5000, 6340, *tied][:k]]


def test_the_best_of_a_wide_gallery_may_each_lie_in_a_block_of_its_own():
    gallery, best = torch.zeros(WIDE, 8), 64 * torch.arange(9) + 7
    gallery[best, 0] = torch.arange(9, 0, -1).float() / 9
    assert search(torch.eye(8)[:1], gallery, k=8).top.tolist() == [best[:8].tolist()]


def test_ranks_of_padding_and_of_the_excluded_image_are_minus_one():
    queries, gallery = problem()
    candidates = torch.tensor([[4, -1]] * len(queries))
    answers = search(queries, gallery, candidates=candidates, excluded=torch.full((len(queries),), 4))
    assert (answers.ranks == -1).all()


def test_a_candidate_outside_the_gallery_is_refused():
    queries, gallery = problem()
    with pytest.raises(ValueError, match="rows of a gallery of 41 images"):
        search(queries, gallery, candidates=torch.full((len(queries), 1), 41))


def test_no_queries_give_empty_answers():
    _, gallery = problem()
    answers = search(torch.empty(0, 8), gallery, k=5, candidates=torch.empty(0, 2, dtype=torch.int64))
    assert answers.top.shape == (0, 5) and answers.ranks.shape == (0, 2) and answers.order.shape == (0, 0)


@pytest.mark.parametrize(("chunk", "exclude"), [(7, True), (None, False)])
def test_members_are_ordered_among_themselves_as_a_full_sort_has_them(chunk, exclude):
    queries, gallery = problem(ties=True)
    random = torch.Generator().manual_seed(5)
    members = torch.stack([torch.randperm(len(gallery), generator=random)[:5] for _ in queries])
    members[::3, -1] = -1  # some groups have four
    excluded = members[:, 1].clone() if exclude else None
    order = search(queries, gallery, members=members, excluded=excluded, chunk=chunk).order
    for row, rows in enumerate(full_sorts(queries, gallery, excluded)):
        group = [image for image in rows if image in members[row]]
        expected = [group.index(image) if image in group else -1 for image in members[row].tolist()]
        assert order[row].tolist() == expected


class ScoreMatrices(TorchFunctionMode):
    """Notes how many scores each matrix product gives."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.Tensor.matmul or getattr(function, "__name__", "") in ("matmul", "__matmul__"):
            self.sizes.append(result.numel())
        return result


def test_a_budget_bounds_the_scores_held_at_once_and_each_is_computed_once(monkeypatch):
    queries, gallery = problem()
    monkeypatch.setattr(ranking, "CELLS", 5 * len(gallery) + 3)
    rows = torch.zeros(len(queries), 2, dtype=torch.int64)
    with ScoreMatrices() as watched:
        search(queries, gallery, k=5, candidates=rows, members=rows)
    assert max(watched.sizes) == 5 * len(gallery) and sum(watched.sizes) == len(queries) * len(gallery)
