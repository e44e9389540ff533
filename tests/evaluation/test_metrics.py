"""Metrics against definitions written out here, and against ir-measures."""

import ir_measures
import numpy as np
import pytest
import torch

from searle_lib.evaluation import metrics


def random_truth_ranks(seed, queries=40, most=6, gallery=60):
    random = np.random.default_rng(seed)
    rows = [random.permutation(gallery)[: random.integers(1, most + 1)].tolist() for _ in range(queries)]
    padded = torch.full((queries, most), -1)
    for row, ranks in enumerate(rows):
        padded[row, : len(ranks)] = torch.tensor(ranks)
    return rows, padded


def average_precision(ranks, k):
    """Walks down the ranking, as CIRCO's evaluation does."""
    hits, total = 0, 0.0
    for place in range(k):
        if place in ranks:
            hits += 1
            total += hits / (place + 1)
    return total / min(len(ranks), k)


@pytest.mark.parametrize("k", [1, 3, 5, 50, 100])
def test_average_precision_equals_a_walk_down_the_ranking(k):
    rows, padded = random_truth_ranks(seed=1)
    expected = [average_precision(ranks, k) for ranks in rows]
    assert metrics.average_precision_at(padded, k).tolist() == pytest.approx(expected, abs=1e-12)


def as_trec(rows, gallery=60):
    """The same rankings as qrels and runs: document p of a query stands at rank p."""
    qrels = {f"q{i}": {f"d{rank}": 1 for rank in ranks} for i, ranks in enumerate(rows)}
    run = {f"q{i}": {f"d{rank}": float(gallery - rank) for rank in range(gallery)} for i in range(len(rows))}
    return qrels, run


def test_metrics_equal_ir_measures():
    rows, padded = random_truth_ranks(seed=2)
    qrels, run = as_trec(rows)
    everything = metrics.average_precision_at(padded, 60)  # k beyond the ground truths: plain average precision
    expected = {m.query_id: m.value for m in ir_measures.iter_calc([ir_measures.AP], qrels, run)}
    assert everything.tolist() == pytest.approx([expected[f"q{i}"] for i in range(len(rows))])
    single = [ranks[:1] for ranks in rows]
    qrels, run = as_trec(single)
    for k in (1, 5, 10):
        recalls = metrics.recall_at(padded[:, 0], k)
        expected = {m.query_id: m.value for m in ir_measures.iter_calc([ir_measures.R @ k], qrels, run)}
        assert recalls.tolist() == [expected[f"q{i}"] for i in range(len(rows))]
        reciprocal = metrics.average_precision_at(padded[:, :1], k)
        expected = {m.query_id: m.value for m in ir_measures.iter_calc([ir_measures.RR @ k], qrels, run)}
        assert reciprocal.tolist() == pytest.approx([expected[f"q{i}"] for i in range(len(rows))])


def test_a_target_that_is_not_there_is_never_recalled():
    assert metrics.recall_at(torch.tensor([-1, 0, 9, 10]), 10).tolist() == [0, 1, 1, 0]
