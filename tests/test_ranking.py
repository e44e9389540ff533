"""Ranking against a full sort written out here, with ties, chunks, dtypes, blocks, and galleries smaller than k."""

import pickle
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from searle_lib import ranking
from searle_lib.ranking import Product, search, search_blocks
from searle_lib.store import shards
from searle_lib.store.executors import SERIAL

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


@pytest.mark.parametrize("rows", [ranking.ROWS, 7])
@pytest.mark.parametrize("chunk", [5, None])
@pytest.mark.parametrize("weights", [(1, 1), (1, 2)])
def test_a_product_of_similarities_equals_a_full_sort_with_ties_in_gallery_order(monkeypatch, rows, chunk, weights):
    monkeypatch.setattr(ranking, "ROWS", rows)  # one block, or several
    first, gallery = problem(ties=True)
    second = first.flip(0)
    excluded = torch.arange(len(first))
    candidates, members = torch.stack([excluded + 1, excluded + 15], dim=1), torch.tensor([[9, 30, 3]] * len(first))
    queries = Product(torch.stack([first, second], dim=1), torch.tensor(weights).float())
    named = {"candidates": candidates, "members": members, "excluded": excluded, "chunk": chunk}
    answers, ties = search_blocks(queries, gallery, k=10, **named), 0
    for row in range(len(first)):
        scores = []
        for image in gallery.tolist():
            cosines = [sum(map(float.__mul__, vector[row].tolist(), image)) for vector in (first, second)]
            similarities = [min(max((1 + cosine) / 2, 0), 1) for cosine in cosines]
            scores.append(similarities[0] ** weights[0] * similarities[1] ** weights[1])
        order = sorted((place for place in range(41) if place != row), key=lambda place: (-scores[place], place))
        ties += len(order) - len({scores[place] for place in order})
        assert answers.top[row].tolist() == order[:10]
        assert answers.scores[row].tolist() == [scores[place] for place in order[:10]]
        assert answers.ranks[row].tolist() == [order.index(place) for place in candidates[row].tolist()]
        ranked = [place for place in order if place in (9, 30, 3)]
        assert answers.order[row].tolist() == [ranked.index(p) if p in ranked else -1 for p in (9, 30, 3)]
    assert ties > 100


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
        if function is torch.Tensor.matmul or getattr(function, "__name__", "") in ("matmul", "__matmul__", "mm"):
            self.sizes.append(result.numel())
        return result


def test_a_budget_bounds_the_scores_held_at_once_and_each_is_computed_once(monkeypatch):
    queries, gallery = problem()
    monkeypatch.setattr(ranking, "CELLS", 5 * len(gallery) + 3)
    rows = torch.zeros(len(queries), 2, dtype=torch.int64)
    with ScoreMatrices() as watched:
        search(queries, gallery, k=5, candidates=rows, members=rows)
    assert max(watched.sizes) == 5 * len(gallery) and sum(watched.sizes) == len(queries) * len(gallery)


def last_block_first(work, ranges, save=None):
    """Compute ranges as an executor with workers may: each with a copy of the function, and not in order."""
    return [(of, pickle.loads(pickle.dumps(work))(*of)) for of in reversed(ranges)]


EXECUTORS = {"serial": SERIAL, "last block first": SimpleNamespace(map=last_block_first)}


@pytest.mark.parametrize(
    ("dtype", "k", "chunk", "exclude", "executor"),
    [
        (torch.float32, 5, None, True, "serial"),
        (torch.float32, 5, 7, True, "last block first"),
        (torch.float16, 12, 1, False, "last block first"),  # more than a block has
        (torch.float64, 100, None, True, "serial"),
        (torch.float32, 0, 4, False, "serial"),
    ],
)
def test_a_gallery_of_several_blocks_is_ranked_as_a_full_sort_ranks_it(monkeypatch, dtype, k, chunk, exclude, executor):
    monkeypatch.setattr(ranking, "ROWS", 8)  # blocks end at rows 8, 16, ..., 41; rows 0 to 19 stand again from 21 on
    queries, gallery = problem(dtype, ties=True)
    random = torch.Generator().manual_seed(5)
    candidates = torch.stack([torch.randperm(41, generator=random)[:6] for _ in queries])
    candidates[::3, 4:] = -1
    excluded = candidates[:, 1].clone() if exclude else None
    rows = {"candidates": candidates, "members": candidates.flip(1), "excluded": excluded}
    answers = search_blocks(queries, gallery, k=k, chunk=chunk, executor=EXECUTORS[executor], **rows)
    assert all(values.is_contiguous() for values in vars(answers).values())  # else they could not be saved
    for row, images in enumerate(full_sorts(queries, gallery, excluded)):
        assert answers.top[row].tolist() == images[:k]
        assert torch.equal(answers.scores[row], gallery[answers.top[row]].float() @ queries[row].float())
        expected = [images.index(image) if image in images else -1 for image in candidates[row].tolist()]
        assert answers.ranks[row].tolist() == expected
        group = [image for image in images if image in candidates[row]]
        expected = [group.index(image) if image in group else -1 for image in candidates[row].flip(0).tolist()]
        assert answers.order[row].tolist() == expected


@pytest.mark.parametrize("tied", [(7, 8), (0, 40), (8, 15), (39, 40)])
def test_equal_scores_on_both_sides_of_the_edge_of_a_block_rank_in_gallery_order(monkeypatch, tied):
    monkeypatch.setattr(ranking, "ROWS", 8)
    gallery = torch.zeros(41, 8)
    gallery[20, 0], gallery[list(tied), 0] = 0.9, 0.7
    for k in (1, 2, 3):
        answers = search_blocks(torch.eye(8)[:1], gallery, k=k, candidates=torch.tensor([tied]))
        assert answers.top.tolist() == [[20, *tied][:k]] and answers.ranks.tolist() == [[1, 2]]


def test_a_gallery_of_one_block_gets_the_numbers_of_a_gallery_in_memory_to_the_bit():
    queries, gallery = problem(queries=9, gallery=3000, dimension=64)
    rows = {"k": 50, "candidates": torch.arange(9)[:, None], "members": torch.arange(27).view(9, 3)}
    in_blocks = vars(search_blocks(queries, gallery, **rows))
    for name, expected in vars(search(queries, gallery, **rows)).items():
        assert torch.equal(in_blocks[name], expected)


def test_a_rank_survives_a_worker_that_rounds_otherwise(monkeypatch):
    monkeypatch.setattr(ranking, "ROWS", 8)
    queries, gallery = problem()
    exact = ranking._Blocks._compare

    def rounded(*arguments):
        error = next(passes)
        for part, scores in exact(*arguments):
            yield part, scores * (1 + 1e-6 * error)

    passes = iter([0] * 6 + [1] * 6)  # six blocks in the first pass, and in the second
    monkeypatch.setattr(ranking._Blocks, "_compare", rounded)
    ranks = search_blocks(queries, gallery, candidates=torch.tensor([[20]] * len(queries))).ranks
    assert ranks.flatten().tolist() == [images.index(20) for images in full_sorts(queries, gallery, None)]


def test_half_precision_rows_of_several_files_are_ranked_as_those_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(ranking, "ROWS", 8)
    queries, gallery = problem(torch.float16, ties=True)
    shards.write(tmp_path, len(gallery), 5, lambda first, end: {"vectors": gallery[first:end]})
    rows = shards.memory_map(tmp_path)["vectors"]
    candidates = torch.tensor([[3, 40]] * len(queries))
    for executor in EXECUTORS.values():
        found = search_blocks(queries, rows, k=12, candidates=candidates, executor=executor)
        in_memory = search(queries, gallery, k=12, candidates=candidates)
        assert torch.equal(found.top, in_memory.top) and torch.equal(found.ranks, in_memory.ranks)


def test_a_candidate_outside_a_gallery_of_several_blocks_is_refused(monkeypatch):
    monkeypatch.setattr(ranking, "ROWS", 8)
    queries, gallery = problem()
    with pytest.raises(ValueError, match="rows of a gallery of 41 images"):
        search_blocks(queries, gallery, candidates=torch.full((len(queries), 1), 41))


def test_each_pass_over_the_blocks_computes_each_score_once_within_the_budget(monkeypatch):
    monkeypatch.setattr(ranking, "ROWS", 8)
    monkeypatch.setattr(ranking, "CELLS", 5 * 8 + 3)
    queries, gallery = problem()
    rows = torch.zeros(len(queries), 2, dtype=torch.int64)
    for passes, arguments in (
        (1, {"k": 5, "members": rows}),
        (1, {"candidates": rows - 1}),  # padding alone, as where targets are secret
        (2, {"candidates": rows}),
    ):
        with ScoreMatrices() as watched:
            search_blocks(queries, gallery, **arguments)
        assert max(watched.sizes) <= 5 * 8 + 3 and sum(watched.sizes) == passes * len(queries) * len(gallery)


MEMORY = """
import sys
from pathlib import Path

import torch
from searle_lib import ranking
from searle_lib.backbone.embeddings import UnitRows
from searle_lib.store import shards


def kib(name):
    return int(Path("/proc/self/status").read_text().partition(name + ":")[2].split()[0])


ranking.ROWS, ranking.CELLS = 2**14, 2**22
gallery = UnitRows(shards.memory_map(Path(sys.argv[1]))["vectors"])
queries = torch.nn.functional.normalize(torch.randn(200, 256), dim=-1)
rows = torch.randint(len(gallery), (200, 2))
ranking.search_blocks(queries, gallery[: 2**14], k=50, candidates=rows % 2**14)  # what torch needs once
Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
before = kib("VmRSS")
ranking.search_blocks(queries, gallery, k=50, candidates=rows, members=rows, excluded=rows[:, 0])
print((kib("VmHWM") - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_gallery(tmp_path):
    vectors = torch.randn(2**14, 256, generator=torch.Generator().manual_seed(1)).half()
    shards.write(tmp_path, 2**19, 2**14, lambda first, end: {"vectors": vectors})  # 256 MiB
    ran = subprocess.run([sys.executable, "-c", MEMORY, tmp_path], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) < 100
