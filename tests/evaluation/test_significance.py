"""Differences between methods: held to scipy's bootstrap and permutation test, and to simulated data."""

import re
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from searle_lib.evaluation import intervals, significance

PROVENANCE = {"backbone": "tiny", "sizes": {}}
METHODS = ("Text-only", "SEARLE", "SEARLE-OTI", "FTI4CIR")


def scores_of(method, values, dataset="CIRCO", category="all", metric="mAP@5"):
    table = pd.DataFrame({"value": np.asarray(values, float), "query": [f"{category}-{i}" for i in range(len(values))]})
    return table.assign(dataset=dataset, split="val", category=category, method=method, metric=metric)


def random_scores(seed=0, sizes=(50, 90, 40), circo=80, methods=METHODS):
    """FashionIQ's R@10 in categories of unequal sizes, and CIRCO's mAP@5; later methods are a little better."""
    random, tables = np.random.default_rng(seed), []
    hardness = {size: random.random(size) for size in (*sizes, circo)}
    for place, method in enumerate(methods):
        quality = 0.5 + 0.04 * place
        for category, size in zip(("dress", "shirt", "toptee"), sizes, strict=True):
            values = hardness[size] + random.normal(0, 0.3, size) < quality
            tables.append(scores_of(method, values, "FashionIQ", category, "R@10"))
        tables.append(scores_of(method, np.clip(quality - hardness[circo] * random.random(circo), 0, 1)))
    return pd.concat(tables, ignore_index=True)


def results_of(scores):
    return intervals.summarise(scores, "mini", PROVENANCE, resamples=200)


def report(*tables):
    """The pairs and the results of a study with these scores."""
    scores = pd.concat(tables, ignore_index=True)
    return significance.pairs(scores, resamples=500), results_of(scores)


def right(*queries, of=400):
    """0/1 scores of a method that solves these queries."""
    return np.isin(np.arange(of), [query for some in queries for query in some]).astype(float)


def one(table, **where):
    for name, value in where.items():
        table = table[table[name] == value]
    assert len(table) == 1
    return table.iloc[0]


def by_category(scores, method, metric="R@10"):
    rows = scores[(scores["method"] == method) & (scores["metric"] == metric)]
    return [values["value"].to_numpy() for _, values in rows.groupby("category")]


def test_every_pair_and_main_metric_has_a_row_in_the_studys_order():
    table = significance.pairs(random_scores(), resamples=50)
    expected = [("R@10", *pair) for pair in combinations(METHODS, 2)]
    expected += [("mAP@5", *pair) for pair in combinations(METHODS, 2)]
    assert list(table[["metric", "first", "second"]].itertuples(index=False, name=None)) == expected
    assert list(table.columns) == significance.COLUMNS and set(table["family"]) == {12}
    assert set(table["category"]) == {"average", "all"}


@pytest.mark.parametrize("metric", ["mAP@5", "R@10"])
def test_paired_intervals_agree_with_scipys_bootstrap(metric):
    """scipy resamples the differences of each category by itself, as a stratified bootstrap does."""
    scores = random_scores(seed=1)
    row = one(significance.pairs(scores, resamples=8000), metric=metric, first="SEARLE", second="FTI4CIR")
    first, second = (by_category(scores, method, metric) for method in ("SEARLE", "FTI4CIR"))
    differences = tuple(a - b for a, b in zip(first, second, strict=True))
    expected = scipy.stats.bootstrap(
        differences,
        lambda *parts, axis: np.mean([part.mean(axis) for part in parts], axis=0),
        n_resamples=8000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert row["difference"] == pytest.approx(np.mean([part.mean() for part in differences]) * 100)
    width = expected.high - expected.low
    assert row["low"] / 100 == pytest.approx(expected.low, abs=0.04 * width)
    assert row["high"] / 100 == pytest.approx(expected.high, abs=0.04 * width)


@pytest.mark.parametrize("metric", ["mAP@5", "R@10"])
@pytest.mark.parametrize("first, second", [("SEARLE", "SEARLE-OTI"), ("SEARLE", "FTI4CIR"), ("Text-only", "SEARLE")])
def test_p_agrees_with_scipys_permutation_test(metric, first, second):
    scores = random_scores(seed=2)
    row = one(significance.pairs(scores, resamples=50), metric=metric, first=first, second=second)
    samples = [by_category(scores, method, metric) for method in (first, second)]
    weights = np.concatenate([np.full(len(part), 1 / len(part)) for part in samples[0]])
    expected = scipy.stats.permutation_test(
        [np.concatenate(parts) for parts in samples],
        lambda x, y, axis: ((x - y) * weights).sum(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=9999,
        rng=np.random.default_rng(0),
    ).pvalue
    assert 0.001 < expected < 1
    assert row["p"] == pytest.approx(expected, abs=4 * np.sqrt(expected / 9999) + 1e-4)


@pytest.mark.parametrize("won, tied, lost", [(130, 170, 100), (9, 300, 1), (65, 0, 64), (1, 5, 0), (0, 20, 0)])
def test_p_of_scores_of_0_and_1_is_that_of_fair_coins(won, tied, lost):
    differences = np.repeat([1.0, 0.0, -1.0], [won, tied, lost])[:, None]
    expected = scipy.stats.binomtest(won, won + lost).pvalue if won + lost else 1.0
    assert significance.permutation_p(differences, key=5)[0] == pytest.approx(expected, abs=0.012)


def test_p_of_few_queries_agrees_with_all_signs():
    differences = np.random.default_rng(3).normal(0.4, 1, (9, 3))
    signs = np.array(np.meshgrid(*[[-1, 1]] * 9)).reshape(9, -1).T
    expected = (np.abs(signs @ differences) >= np.abs(differences.sum(0)) - 1e-12).mean(0)
    assert significance.permutation_p(differences, key=1) == pytest.approx(expected, abs=0.012)


def test_holm_agrees_with_its_definition():
    p = np.random.default_rng(0).random(40) ** 4
    order = sorted(range(40), key=lambda i: p[i])
    expected, largest = np.empty(40), 0.0
    for place, i in enumerate(order):
        largest = max(largest, min(1.0, p[i] * (40 - place)))
        expected[i] = largest
    assert significance.holm(p) == pytest.approx(expected)
    assert significance.holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_intervals_cover_the_true_difference_as_often_as_they_say():
    """1000 simulated pairs of methods with a true difference of 5 points, 150 queries each."""
    random, pairs, queries = np.random.default_rng(0), 1000, 150
    hardness = random.random((queries, pairs))
    first = (hardness < random.beta(5.5, 4.5, (queries, pairs))).astype(float)
    second = (hardness < random.beta(5, 5, (queries, pairs))).astype(float)
    names = [f"{place}-{pair}" for place in ("first", "second") for pair in range(pairs)]
    values = np.hstack([first, second])
    scores = pd.DataFrame(
        {
            "value": values.ravel(),
            "query": np.repeat(np.arange(queries).astype(str), 2 * pairs),
            "method": names * queries,
        }
    ).assign(dataset="CIRCO", split="val", category="all", metric="mAP@5")
    (sample,) = intervals.resample(scores, resamples=1000, seed=0)
    ends = [sample.difference("mAP@5", f"first-{pair}", f"second-{pair}")[1:] for pair in range(pairs)]
    assert 0.93 <= np.mean([low <= 5 <= high for low, high in ends]) <= 0.97


def test_without_a_difference_few_families_have_a_false_finding():
    """1000 studies of four equally good methods: six pairs each, scores that share the hardness of a query."""
    random, families, queries = np.random.default_rng(0), 1000, 60
    scores = random.random((queries, families, 1)) * random.random((queries, families, 4))
    differences = np.stack([scores[..., a] - scores[..., b] for a, b in combinations(range(4), 2)], axis=-1)
    p = significance.permutation_p(differences.reshape(queries, -1), key=0, permutations=1999).reshape(families, 6)
    corrected = np.mean([(significance.holm(family) < significance.LEVEL).any() for family in p])
    assert 0.02 <= corrected <= 0.06
    assert (p < significance.LEVEL).any(axis=1).mean() > 0.12  # what the correction is for


def test_the_average_weighs_categories_equally_and_counts_all_queries():
    first, second = right(range(10), of=10), right(range(5), of=10)
    level = right(range(50), of=100)
    tables = [scores_of("A", first, "FashionIQ", "dress", "R@10"), scores_of("B", second, "FashionIQ", "dress", "R@10")]
    for category in ("shirt", "toptee"):
        tables += [scores_of(method, level, "FashionIQ", category, "R@10") for method in ("A", "B")]
    row = one(significance.pairs(pd.concat(tables), resamples=2000))
    assert row["difference"] == pytest.approx(50 / 3)
    assert (row["won"], row["tied"], row["lost"]) == (5, 205, 0)
    assert (row["low"], row["high"]) == pytest.approx((20 / 3, 80 / 3), abs=2)
    assert row["p"] == pytest.approx(2 * 0.5**5, abs=0.01)


def test_a_difference_is_certain_only_if_interval_and_corrected_p_say_so():
    """Six queries won of 400, and none lost: the interval leaves out zero, and p is 1/32 before any correction."""
    tables = [scores_of("A", right(range(200))), scores_of("B", right(range(194)))]
    row = one(significance.pairs(pd.concat(tables)))
    assert row["low"] > 0 and row["p_holm"] == row["p"] < 0.05 and row["certain"] and row["matters"]
    with_third = significance.pairs(pd.concat([*tables, scores_of("C", right(range(0, 380, 2)))]))
    row = one(with_third, first="A", second="B")
    assert row["low"] > 0 and row["p"] < 0.05 < row["p_holm"] and not row["certain"]


def test_a_certain_difference_of_less_than_a_point_does_not_matter():
    tables = [scores_of("A", right(range(1000), of=2000)), scores_of("B", right(range(985), of=2000))]
    row = one(significance.pairs(pd.concat(tables)))
    assert row["certain"] and not row["matters"] and row["difference"] == pytest.approx(0.75)
    pairs, results = report(*tables)
    assert significance.verdicts(pairs, results)[0].endswith("], less than one point.")


def test_the_order_of_queries_changes_nothing():
    scores = random_scores()
    mixed = pd.concat([rows.sample(frac=1, random_state=1) for _, rows in scores.groupby("method", sort=False)])
    pd.testing.assert_frame_equal(significance.pairs(scores, 100), significance.pairs(mixed, 100))


def test_a_seed_draws_other_numbers():
    first, second = (significance.pairs(random_scores(), 100, seed=seed) for seed in (1, 2))
    assert not np.allclose(first["low"], second["low"]) and not np.allclose(first["p"], second["p"])


def test_a_method_without_a_score_for_a_query_is_named():
    scores = random_scores()
    hole = scores[(scores["method"] == "SEARLE") & (scores["category"] == "dress")].index[3]
    with pytest.raises(ValueError, match="FashionIQ/val/dress has queries without R@10 of SEARLE; run 06_retrieval"):
        significance.pairs(scores.drop(hole), resamples=50)


def test_groups_hold_the_best_method_and_those_that_cannot_be_told_from_it():
    close = scores_of("SEARLE", right(range(200), [399]))
    pairs, results = report(close, scores_of("Text-only", right(range(90))), scores_of("FTI4CIR", right(range(205))))
    expected = {("CIRCO", "mAP@5"): ["FTI4CIR", "SEARLE"]}
    assert significance.best_groups(results, pairs) == expected
    scores = random_scores()
    table = significance.pairs(scores, resamples=200)
    assert significance.best_groups(scores, table) == significance.best_groups(results_of(scores), table)


def test_the_matrix_holds_both_directions_with_marks():
    pairs, _ = report(
        scores_of("A", right(range(200))), scores_of("B", right(range(100))), scores_of("C", right(range(98)))
    )
    table = significance.matrix(pairs, "CIRCO", "mAP@5")
    assert table.loc["A"].to_dict() == {"A": "", "B": "+25.0 ●", "C": "+25.5 ●"}
    assert table["A"].to_dict() == {"A": "", "B": "-25.0 ●", "C": "-25.5 ●"}
    assert (table.loc["B", "C"], table.loc["C", "B"]) == ("+0.5", "-0.5")
    assert set(significance.MARKS) == {"●", "○", ""}


def test_a_certain_lead_is_told_against_the_second_method():
    pairs, results = report(
        scores_of("Text-only", right(range(80))),
        scores_of("SEARLE", right(range(120))),
        scores_of("FTI4CIR", right(range(160))),
    )
    sentence = r"FTI4CIR is certainly ahead on CIRCO, mAP@5 40.0 against 30.0 for SEARLE, \+10.0 \[\d+.\d, \d+.\d\]\."
    (verdict,) = significance.verdicts(pairs, results)
    assert re.fullmatch(sentence, verdict) and significance.headline(pairs, results) == verdict


def test_two_methods_that_cannot_be_told_apart_are_named_with_their_difference():
    pairs, results = report(
        scores_of("SEARLE", right(range(4, 164))),
        scores_of("FTI4CIR", right(range(162))),
        scores_of("Text-only", right(range(80))),
    )
    (verdict,) = significance.verdicts(pairs, results)
    level = r"On CIRCO mAP@5, FTI4CIR \(40.5\) and SEARLE \(40.0\) cannot be told apart"
    ahead = r", \+0.5 \[-\d.\d, \d.\d\]; FTI4CIR is certainly ahead of Text-only \(\+20.5 \[\d+.\d, \d+.\d\]\)\."
    assert re.fullmatch(level + ahead, verdict)
    assert re.fullmatch(level + r"\.", significance.headline(pairs, results))


def test_methods_that_differ_from_each_other_but_not_from_the_best_are_not_called_alike():
    """B and C differ on the same few queries; A differs from both on many."""
    pairs, results = report(
        scores_of("A", right(range(0, 400, 2))),
        scores_of("B", right(range(100, 299))),
        scores_of("C", right(range(100, 285))),
    )
    (verdict,) = significance.verdicts(pairs, results)
    assert verdict == "On CIRCO mAP@5, A has the highest mean (50.0), but B and C cannot be told from it."


def test_equal_scores_are_no_lead_of_anybody():
    pairs, results = report(*[scores_of(method, right(range(40))) for method in METHODS])
    assert set(pairs["p"]) == {1.0} and set(pairs["tied"]) == {400}
    names = "Text-only (10.0), SEARLE (10.0), SEARLE-OTI (10.0) and FTI4CIR (10.0)"
    assert significance.verdicts(pairs, results) == [f"On CIRCO mAP@5, {names} cannot be told apart."]
    assert significance.matrix(pairs, "CIRCO", "mAP@5").loc["SEARLE", "FTI4CIR"] == "0.0"


def two_datasets(cirr_lead):
    """FTI4CIR is certainly ahead on CIRCO, and by some queries on CIRR."""
    return report(
        scores_of("SEARLE", right(range(4, 164)), "CIRR", metric="R@1"),
        scores_of("FTI4CIR", right(range(160 + cirr_lead)), "CIRR", metric="R@1"),
        scores_of("SEARLE", right(range(100))),
        scores_of("FTI4CIR", right(range(140))),
    )


def test_the_headline_has_a_clause_for_each_dataset_and_the_certain_ones_come_first():
    pairs, results = two_datasets(cirr_lead=2)
    headline = significance.headline(pairs, results)
    assert re.fullmatch(
        r"FTI4CIR is certainly ahead on CIRCO, mAP@5 35.0 against 25.0 for SEARLE, \+10.0 \[\d+.\d, \d+.\d\]; "
        r"on CIRR R@1, FTI4CIR \(40.5\) and SEARLE \(40.0\) cannot be told apart\.",
        headline,
    )
    first, second = significance.verdicts(pairs, results)
    assert first.startswith("FTI4CIR is certainly ahead on CIRCO") and second.startswith("On CIRR R@1, FTI4CIR (40.5)")


def test_the_larger_certain_lead_comes_first():
    pairs, results = two_datasets(cirr_lead=80)
    assert [verdict.partition(",")[0] for verdict in significance.verdicts(pairs, results)] == [
        "FTI4CIR is certainly ahead on CIRR",
        "FTI4CIR is certainly ahead on CIRCO",
    ]


def test_a_method_that_is_first_everywhere_without_certainty_is_said_to_be():
    pairs, results = report(
        *[
            scores_of(method, right(queries), dataset, metric=metric)
            for dataset, metric in (("CIRR", "R@1"), ("CIRCO", "mAP@5"))
            for method, queries in (("SEARLE", range(4, 164)), ("FTI4CIR", range(162)))
        ]
    )
    assert significance.headline(pairs, results) == (
        "FTI4CIR has the highest mean in the first metric of every data set, but none of these leads is certain: "
        "on CIRR R@1, FTI4CIR (40.5) and SEARLE (40.0) cannot be told apart; "
        "on CIRCO mAP@5, FTI4CIR (40.5) and SEARLE (40.0) cannot be told apart."
    )


def test_a_study_of_one_method_says_what_it_reaches():
    pairs, results = report(
        scores_of("SEARLE", right(range(100)), "CIRR", metric="R@1"), scores_of("SEARLE", right(range(40)))
    )
    assert pairs.empty and list(pairs.columns) == significance.COLUMNS
    assert significance.headline(pairs, results) == (
        "SEARLE is the only method of this study; it reaches R@1 25.0 on CIRR and mAP@5 10.0 on CIRCO."
    )
    assert (
        significance.verdicts(pairs, results)[1] == "SEARLE reaches mAP@5 10.0 on CIRCO; no other method was compared."
    )
    assert significance.best_groups(results, pairs) == {("CIRR", "R@1"): ["SEARLE"], ("CIRCO", "mAP@5"): ["SEARLE"]}


def test_no_scores_are_no_verdict():
    scores = random_scores()
    nothing = results_of(scores).head(0)
    pairs = significance.pairs(scores.head(0))
    assert (
        pairs.empty and significance.verdicts(pairs, nothing) == [] and significance.best_groups(nothing, pairs) == {}
    )
    assert significance.headline(pairs, nothing) == "No query of this study was scored here."
