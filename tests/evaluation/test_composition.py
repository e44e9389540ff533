"""Which queries need image and sentence: classes held to a loop over queries, scores to means written out here."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from searle_lib.evaluation import composition, intervals

METHODS = ("Image-only", "Text-only", "SEARLE", "FTI4CIR")
LEAD = {"fashioniq": ("FashionIQ", "R@10", 10), "cirr": ("CIRR", "R@1", 1), "circo": ("CIRCO", "mAP@5", 5)}


def rankings_of(ranks, dataset="circo", split="val", category="all"):
    """The rankings of methods by their ranks of each query's first target."""
    parts = [
        pd.DataFrame({"query": [f"{category}-{i}" for i in range(len(of_method))], "rank": of_method, "method": method})
        for method, of_method in ranks.items()
    ]
    return pd.concat(parts, ignore_index=True).assign(dataset=dataset, split=split, category=category)


def scores_from(rankings):
    """The first main metric of each query, of one target each."""
    table = rankings[rankings["rank"] >= 0].copy()
    title, metric, k = zip(*table["dataset"].map(LEAD), strict=True)
    hit = (table["rank"] < np.array(k)).astype(float)
    value = np.where([name.startswith("mAP") for name in metric], hit / (table["rank"] + 1), hit)
    return table.assign(dataset=title, metric=metric, value=value).drop(columns="rank")


@pytest.fixture(scope="module")
def study():
    """Rankings of three data sets at random, a test split with secret targets, and the scores."""
    random, tables = np.random.default_rng(0), []
    for dataset, category, queries in (
        ("fashioniq", "dress", 40),
        ("fashioniq", "shirt", 70),
        ("fashioniq", "toptee", 25),
        ("cirr", "all", 120),
        ("circo", "all", 90),
    ):
        hardness = random.exponential(1, queries)
        spread = {"Image-only": 60, "Text-only": 40, "SEARLE": 14, "FTI4CIR": 10}
        ranks = {name: (hardness * random.exponential(1, queries) * spread[name]).astype(int) for name in METHODS}
        tables.append(rankings_of(ranks, dataset, category=category))
    tables.append(rankings_of({name: [-1] * 5 for name in METHODS}, "cirr", "test1"))
    rankings = pd.concat(tables, ignore_index=True)
    return scores_from(rankings), rankings


def naive_kinds(rankings, k):
    """One query after the other."""
    kinds = {}
    for row in rankings.itertuples():
        if row.rank >= 0:
            solvers = kinds.setdefault((LEAD[row.dataset][0], row.category, row.query), [])
            solvers += [row.method] if row.rank < k else []
    for key, solvers in kinds.items():
        if "Image-only" in solvers or "Text-only" in solvers:
            kinds[key] = "shortcut"
        else:
            kinds[key] = "composed" if solvers else "unsolved"
    return kinds


@pytest.mark.parametrize("k", [1, 10, 40])
def test_classes_agree_with_a_loop_over_queries(study, k):
    _, rankings = study
    table = composition.classes(rankings, k)
    assert table.set_index(["dataset", "category", "query"])["kind"].to_dict() == naive_kinds(rankings, k)
    assert list(table.columns) == ["dataset", "category", "query", "kind"]


def test_a_rank_of_k_is_no_hit():
    ranks = {"Image-only": [9, 10, 10], "Text-only": [50, 50, 50], "SEARLE": [50, 9, 10]}
    assert list(composition.classes(rankings_of(ranks))["kind"]) == ["shortcut", "composed", "unsolved"]


@pytest.mark.parametrize(
    "part, whole, kind", [(0, 0, "shortcut"), (0, 99, "shortcut"), (99, 0, "composed"), (99, 99, "unsolved")]
)
def test_a_toy_data_set_of_one_class_says_so(part, whole, kind):
    ranks = {"Image-only": [99] * 8, "Text-only": [part] * 8, "SEARLE": [whole] * 8}
    table = composition.shares(composition.classes(rankings_of(ranks)))
    assert table.set_index("kind")["share"].to_dict() == {
        name: 100.0 * (name == kind) for name in ("shortcut", "composed", "unsolved")
    }
    assert table["queries"].sum() == 8


def test_shares_count_the_queries_of_each_dataset(study):
    _, rankings = study
    kinds = list(naive_kinds(rankings, 10).items())
    table = composition.shares(composition.classes(rankings))
    assert len(table) == 9
    for row in table.itertuples():
        of_dataset = [kind for (dataset, *_), kind in kinds if dataset == row.dataset]
        assert row.queries == of_dataset.count(row.kind)
        assert row.share == pytest.approx(100 * of_dataset.count(row.kind) / len(of_dataset))


def naive_values(study, dataset, kind, method, metric):
    """The values of a method on the queries of a class, by the query's id."""
    scores, rankings = study
    kinds = naive_kinds(rankings, 10)
    if metric == "hit@10":
        table = rankings[rankings["rank"] >= 0]
        table = table.assign(dataset=[LEAD[name][0] for name in table["dataset"]], value=table["rank"] < 10)
    else:
        table = scores
    return np.array(
        [
            float(row.value)
            for row in table.itertuples()
            if (row.dataset, row.method) == (dataset, method)
            and kinds.get((row.dataset, row.category, row.query)) == kind
        ]
    )


def test_scores_by_class_are_means_over_the_queries_of_the_class(study):
    table = composition.by_class(*study, resamples=20)
    classes = table[table["kind"] != "all"]
    assert len(classes) == 3 * 3 * len(METHODS) * 2
    for row in classes.itertuples():
        values = naive_values(study, row.dataset, row.kind, row.method, row.metric)
        assert (row.queries, row.value) == (len(values), pytest.approx(100 * values.mean()))
    parts = classes["method"].isin(["Image-only", "Text-only"]) & (classes["metric"] == "hit@10")
    assert (classes.loc[parts & (classes["kind"] == "composed"), "value"] == 0).all()


def test_intervals_by_class_agree_with_scipys_bootstrap(study):
    table = composition.by_class(*study, resamples=6000)
    rows = table[(table["kind"] == "shortcut") & (table["method"] == "SEARLE") & (table["dataset"] == "CIRCO")]
    for row in rows.itertuples():
        values = naive_values(study, "CIRCO", "shortcut", "SEARLE", row.metric)
        expected = scipy.stats.bootstrap(
            (values,), np.mean, n_resamples=6000, method="percentile", rng=np.random.default_rng(0)
        ).confidence_interval
        width = expected.high - expected.low
        assert (row.ci_low / 100, row.ci_high / 100) == pytest.approx(tuple(expected), abs=0.06 * width)


def test_scores_over_all_queries_are_those_of_the_results(study):
    scores, _ = study
    results = intervals.summarise(scores, "tiny", {"backbone": "tiny", "sizes": {}}, resamples=100)
    expected = results[results["category"].isin(["average", "all"])].set_index(["dataset", "method", "metric"])
    table = composition.by_class(*study, resamples=100)
    whole = table[(table["kind"] == "all") & (table["metric"] != "hit@10")].set_index(["dataset", "method", "metric"])
    columns = ["queries", "value", "ci_low", "ci_high"]
    pd.testing.assert_frame_equal(whole[columns], expected.loc[whole.index, columns], atol=1e-3)


def test_gaps_are_to_the_better_single_part_with_a_paired_interval(study):
    table = composition.gaps(*study, resamples=4000)
    assert set(table["kind"]) == {"all", "shortcut", "composed"} and set(table["method"]) == {"SEARLE", "FTI4CIR"}
    for row in table[(table["kind"] == "shortcut") & (table["metric"] == "hit@10")].itertuples():
        values = {name: naive_values(study, row.dataset, "shortcut", name, "hit@10") for name in METHODS}
        parts = {name: values[name].mean() for name in ("Image-only", "Text-only")}
        assert row.part == max(parts, key=parts.get)
        assert row.difference == pytest.approx(100 * (values[row.method].mean() - parts[row.part]))
        expected = scipy.stats.bootstrap(
            (values[row.method], values["Image-only"], values["Text-only"]),
            lambda whole, image, text, axis: whole.mean(axis) - np.maximum(image.mean(axis), text.mean(axis)),
            paired=True,
            vectorized=True,
            n_resamples=4000,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
        step = 1.01 / len(values["SEARLE"])  # one query more or less
        assert (row.low / 100, row.high / 100) == pytest.approx(tuple(expected), abs=step)


def test_tables_keep_the_order_of_classes_and_of_the_studys_methods(study):
    table = composition.by_class(*study, resamples=20)
    kinds = ["all", "shortcut", "composed", "unsolved"]
    rows = [(dataset, kind) for dataset in ("FashionIQ", "CIRR", "CIRCO") for kind in kinds]
    assert list(dict.fromkeys(table[["dataset", "kind"]].itertuples(index=False, name=None))) == rows
    for _, of_class in table.groupby(["dataset", "kind"]):
        assert list(of_class["method"].unique()) == list(METHODS)


def test_a_study_without_a_single_part_has_empty_tables_and_a_reason(study):
    scores, rankings = (table[table["method"] != "Text-only"] for table in study)
    assert composition.missing_part(rankings) == (
        "Text-only did not rank the queries of this study, so it is unknown which queries one part alone solves; add "
        "Text-only to methods and run 06_retrieval again."
    )
    kinds = composition.classes(rankings)
    tables = (
        kinds,
        composition.shares(kinds),
        composition.by_class(scores, rankings),
        composition.gaps(scores, rankings),
    )
    assert [len(table) for table in tables] == [0, 0, 0, 0]
    assert "value" in tables[2] and "difference" in tables[3] and "share" in tables[1]
    assert composition.missing_part(study[1]) == ""


def test_a_study_of_the_parts_alone_has_no_composed_query(study):
    scores, rankings = (table[table["method"].isin(["Image-only", "Text-only"])] for table in study)
    kinds = composition.classes(rankings)
    assert set(kinds["kind"]) == {"shortcut", "unsolved"}
    assert set(composition.by_class(scores, rankings, resamples=20)["kind"]) == {"all", "shortcut", "unsolved"}
    assert composition.gaps(scores, rankings, resamples=20).empty
