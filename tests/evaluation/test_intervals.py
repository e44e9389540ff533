import numpy as np
import pandas as pd
import pytest

from searle_lib.evaluation import intervals

PROVENANCE = {
    "backbone": "tiny",
    "sizes": {
        **{
            f"fashioniq/val/{category}": {"evaluated_on": "9 of 10 queries over 20 of 30 images (union gallery)"}
            for category in ("dress", "shirt", "toptee")
        },
        "cirr/val": {"evaluated_on": "3 of 3 queries over 4 of 5 images"},
        "circo/val": {"evaluated_on": "1,200 of 1,200 queries over 4 of 5 images"},
    },
}


def scores_of(dataset, split, category, method, metric, values):
    table = pd.DataFrame({"value": values, "query": [f"{category}-{i}" for i in range(len(values))]})
    facts = {"dataset": dataset, "split": split, "category": category, "method": method, "metric": metric}
    return table.assign(**facts)


def random_scores(seed=0, queries=200):
    random = np.random.default_rng(seed)
    tables = []
    for method, quality in (("Text-only", 0.3), ("SEARLE", 0.5)):
        for category in ("dress", "shirt", "toptee"):
            values = (random.random(queries) < quality).astype(float)
            tables.append(scores_of("FashionIQ", "val", category, method, "R@10", values))
        tables.append(scores_of("CIRCO", "val", "all", method, "mAP@5", random.random(queries) * quality))
    return pd.concat(tables, ignore_index=True)


def one(table, **where):
    for name, value in where.items():
        table = table[table[name] == value]
    assert len(table) == 1
    return table.iloc[0]


def test_values_are_means_in_percent_and_the_average_is_over_categories():
    scores = random_scores()
    table = intervals.summarise(scores, "mini", PROVENANCE)
    dress = scores[(scores["category"] == "dress") & (scores["method"] == "SEARLE")]["value"]
    assert one(table, category="dress", method="SEARLE")["value"] == pytest.approx(dress.mean() * 100)
    three = [one(table, category=c, method="SEARLE")["value"] for c in ("dress", "shirt", "toptee")]
    assert one(table, category="average", method="SEARLE")["value"] == pytest.approx(np.mean(three))
    assert one(table, category="average", method="SEARLE")["queries"] == 600
    assert list(table.columns) == [*intervals.COLUMNS, "queries", "evaluated_on"]


def test_intervals_agree_with_the_normal_approximation():
    scores = random_scores(queries=400)
    row = one(intervals.summarise(scores, "mini", PROVENANCE), category="shirt", method="Text-only")
    share = row["value"] / 100
    half = 1.96 * np.sqrt(share * (1 - share) / 400) * 100
    assert row["ci_low"] == pytest.approx(row["value"] - half, abs=0.6)
    assert row["ci_high"] == pytest.approx(row["value"] + half, abs=0.6)


def test_the_interval_of_the_average_is_that_of_three_independent_samples():
    table = intervals.summarise(random_scores(queries=400), "mini", PROVENANCE)
    rows = [one(table, category=c, method="SEARLE") for c in ("dress", "shirt", "toptee")]
    deviations = [(row["ci_high"] - row["ci_low"]) / 3.92 for row in rows]
    expected = np.sqrt(sum(d**2 for d in deviations)) / 3
    average = one(table, category="average", method="SEARLE")
    assert (average["ci_high"] - average["ci_low"]) / 3.92 == pytest.approx(expected, rel=0.08)


def test_the_backbone_of_another_model_is_unstated():
    for facts, others in (({}, set()), ({"ranked": {"SEARLE"}}, {"Text-only"})):
        table = intervals.summarise(random_scores(), "study", PROVENANCE | facts, resamples=9)
        assert set(table.loc[table["backbone"] == "unstated", "method"]) == others
        assert set(table["backbone"]) - {"unstated"} == {"tiny"}


def test_a_part_of_the_categories_has_no_average():
    scores = random_scores()
    samples = intervals.resample(scores[scores["category"] != "toptee"], resamples=9, seed=0)
    assert [sample.category for sample in samples] == ["dress", "shirt", "all"]


def test_the_same_scores_give_the_same_bytes(tmp_path):
    scores = random_scores()
    table = intervals.summarise(scores, "mini", PROVENANCE)
    again = intervals.summarise(scores.copy(), "mini", PROVENANCE)
    files = [intervals.write_csv(t, tmp_path / name) for t, name in ((table, "a.csv"), (again, "b.csv"))]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert pd.read_csv(files[0]).shape == table.shape


def test_a_method_without_a_score_for_a_query_is_named():
    scores = random_scores()
    hole = scores[(scores["method"] == "SEARLE") & (scores["category"] == "dress")].index[3]
    with pytest.raises(ValueError, match="FashionIQ/val/dress has queries without R@10 of SEARLE; run 06_retrieval"):
        intervals.summarise(scores.drop(hole), "mini", PROVENANCE)


def test_the_wide_table_has_the_order_of_the_papers():
    table = intervals.paper_table(intervals.summarise(random_scores(), "mini", PROVENANCE), "FashionIQ", "val")
    assert list(table.columns) == [(c, "R@10") for c in ("dress", "shirt", "toptee", "average")]
    assert list(table.index) == ["Text-only", "SEARLE"]


def test_published_numbers_are_percentages_with_a_source():
    table = intervals.published_numbers()
    assert len(table) == 284 and table["source"].str.len().min() > 3
    assert table["value"].between(0, 100).all()
    searle = table[(table["method"] == "SEARLE") & (table["dataset"] == "CIRCO") & (table["metric"] == "mAP@5")]
    assert searle["value"].tolist() == [9.35]


def test_every_number_says_on_how_much_it_was_evaluated():
    table = intervals.summarise(random_scores(), "mini", PROVENANCE)
    on = {(row.dataset, row.category): row.evaluated_on for row in table.itertuples()}
    assert on["FashionIQ", "shirt"] == "9 of 10 queries over 20 of 30 images (union gallery)"
    assert on["FashionIQ", "average"].startswith(
        "dress: 9 of 10 queries over 20 of 30 images (union gallery); shirt: 9"
    )
    everything = intervals.evaluated_on("CIRCO", "val", PROVENANCE["sizes"])
    assert everything == "1,200 of 1,200 queries over 4 of 5 images"


def test_no_scores_are_no_table():
    with pytest.raises(ValueError, match="there are no scores to summarise; run 06_retrieval with validation"):
        intervals.summarise(random_scores().head(0), "mini", PROVENANCE)


def paired_scores():
    """Ninety queries: SEARLE is right on 70, FTI4CIR on 72 of nearly the same, Text-only on 20."""
    tables = []
    for method, right in (("Text-only", range(20)), ("SEARLE", range(70)), ("FTI4CIR", range(2, 74))):
        values = [float(query in right) for query in range(90)]
        tables.append(scores_of("CIRR", "val", "all", method, "R@1", values))
    return pd.concat(tables, ignore_index=True)


def test_the_row_of_a_query_holds_its_scores_by_method_in_percent():
    row = intervals.scores_of_query(paired_scores(), "CIRR", "all", "all-1")
    assert row["R@1"].to_dict() == {"Text-only": 100.0, "SEARLE": 100.0, "FTI4CIR": 0.0}
