"""Two studies compared: differences held to scipy, and what is said where studies do not fit together."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from conftest import leave_record, study_of

from searle_lib.evaluation import comparisons, intervals
from searle_lib.evaluation.comparisons import Numbers

PROVENANCE = {"backbone": "tiny", "sizes": {}}


def scores_of(method, values, dataset="CIRCO", category="all", metric="mAP@5"):
    table = pd.DataFrame({"value": np.asarray(values, float), "query": [f"{category}-{i}" for i in range(len(values))]})
    return table.assign(dataset=dataset, split="val", category=category, method=method, metric=metric)


def numbers(name, *tables):
    scores = pd.concat(tables, ignore_index=True)
    return Numbers(name, intervals.summarise(scores, name, PROVENANCE, resamples=100), scores)


def with_more_hits(values, count):
    """The same scores, but for the first misses, which are hits."""
    values = np.array(values, float)
    values[np.flatnonzero(values == 0)[:count]] = 1
    return values


@pytest.fixture(scope="module")
def pair():
    """Two studies of 300 queries: SEARLE finds 25 more in the second, FTI4CIR 2 more, Text-only the same."""
    random = np.random.default_rng(0)
    base = {method: random.random(300) < 0.5 for method in ("Text-only", "SEARLE", "FTI4CIR")}
    more = {"Text-only": 0, "SEARLE": 25, "FTI4CIR": 2}
    first = numbers("mini", *(scores_of(method, values) for method, values in base.items()))
    second = numbers("whatif", *(scores_of(m, with_more_hits(v, more[m])) for m, v in base.items()))
    return first, second


def row_of(table, method, metric="mAP@5"):
    rows = table[(table["method"] == method) & (table["metric"] == metric)]
    assert len(rows) == 1
    return rows.iloc[0]


def test_a_difference_is_the_second_study_minus_the_first_with_its_paired_interval(pair):
    row = row_of(comparisons.compare(*pair, resamples=4000), "SEARLE")
    each = np.array([0.0] * 275 + [1.0] * 25)  # the differences of the queries, in any order
    bootstrap = scipy.stats.bootstrap((each,), np.mean, n_resamples=4000, method="percentile", rng=1)
    assert row["second"] - row["first"] == pytest.approx(25 / 3, abs=1e-3)
    assert row["difference"] == pytest.approx(25 / 3, abs=1e-3)
    ends = np.array(bootstrap.confidence_interval) * 100
    assert (row["low"], row["high"]) == pytest.approx(tuple(ends), abs=0.6)
    assert (row["won"], row["tied"], row["lost"]) == (25, 275, 0)


def test_p_is_that_of_scipys_paired_permutation_test(pair):
    row = row_of(comparisons.compare(*pair, resamples=50), "FTI4CIR")
    samples = [
        scores[scores["method"] == "FTI4CIR"].sort_values("query")["value"].to_numpy()
        for scores in (numbers.scores for numbers in pair)
    ]
    exact = scipy.stats.permutation_test(
        samples, lambda one, other, axis: np.mean(one - other, axis=axis), permutation_type="samples", rng=1
    )
    assert row["p"] == pytest.approx(exact.pvalue, abs=0.02)  # two queries differ: 0.5
    assert not row["certain"]


def test_the_average_of_fashioniq_weighs_its_categories_equally():
    """Three categories of unequal sizes, of which the smallest gains: 10 of 20 queries, a sixth of the average."""
    sizes = {"dress": 20, "shirt": 200, "toptee": 300}
    tables = [scores_of("SEARLE", [0] * size, "FashionIQ", name, "R@10") for name, size in sizes.items()]
    changed = [scores_of("SEARLE", [0] * 10 + [1] * 10, "FashionIQ", "dress", "R@10"), *tables[1:]]
    row = row_of(comparisons.compare(numbers("a", *tables), numbers("b", *changed)), "SEARLE", "R@10")
    half = 1.96 * np.sqrt(0.5 * 0.5 / 20) / 3 * 100
    assert (row["difference"], row["low"], row["high"]) == pytest.approx((50 / 3, 50 / 3 - half, 50 / 3 + half), abs=1)
    assert (row["won"], row["tied"], row["lost"]) == (10, 510, 0)


def test_holms_correction_is_over_the_rows_in_which_a_query_differs(pair):
    table = comparisons.compare(*pair, resamples=50)
    p = {row.method: (row.p, row.p_holm) for row in table.itertuples()}
    assert p["Text-only"][0] == 1 and np.isnan(p["Text-only"][1])
    smaller, larger = sorted((p["SEARLE"], p["FTI4CIR"]))
    assert smaller[1] == pytest.approx(2 * smaller[0]) and larger[1] == pytest.approx(larger[0])
    assert row_of(table, "SEARLE")[["certain", "matters"]].all()


def test_the_sentences_name_what_is_certain_and_what_is_the_same(pair):
    table = comparisons.compare(*pair, resamples=500)
    summary, searle = comparisons.sentences(table, "mini", "whatif")
    assert summary == (
        "Of the 2 main numbers that differ for some query, 1 are certainly higher in whatif than in mini and 0 "
        "certainly lower; 1 cannot be told apart. Text-only: no main number differs."
    )
    assert searle.startswith("SEARLE is certainly higher on CIRCO mAP@5 (+8.3 [+5.")
    backwards = comparisons.sentences(comparisons.compare(*pair[::-1], resamples=500), "whatif", "mini")
    assert backwards[1].startswith("SEARLE is certainly lower on CIRCO mAP@5 (-8.3 [-11.")
    same = comparisons.compare(pair[0], pair[0], resamples=50)
    assert comparisons.sentences(same, "mini", "copy") == ["Every main number of copy is that of mini."]


def test_other_queries_are_compared_without_an_interval(pair):
    first, _ = pair
    second = numbers("short", *(scores_of(method, [0, 1] * 100) for method in ("SEARLE", "FTI4CIR")))
    table = comparisons.compare(first, second)
    assert table["p"].isna().all() and not table["certain"].any()
    assert row_of(table, "SEARLE")["second"] == 50
    assert comparisons.unpaired(first, second) == ["CIRCO val has other queries in short (200) than in mini (300)."]
    assert comparisons.in_one_only(first, second) == ["Only mini has the method Text-only."]


def test_one_data_set_may_have_other_queries_and_another_the_same(pair):
    first, second = pair
    extra = [scores_of("SEARLE", [0, 1] * size, "CIRR", "all", "R@1") for size in (20, 30)]
    both = [numbers(n.name, n.scores, more) for n, more in zip((first, second), extra, strict=True)]
    table = comparisons.compare(*both, resamples=50)
    assert row_of(table, "SEARLE")["p"] < 0.05 and np.isnan(row_of(table, "SEARLE", "R@1")["p"])


def test_a_method_that_one_study_leaves_out_of_a_data_set_is_compared_on_the_others(pair):
    first, second = pair
    cirr = [scores_of(method, [0, 1] * 20, "CIRR", "all", "R@1") for method in ("SEARLE", "FTI4CIR")]
    table = comparisons.compare(numbers("a", first.scores, *cirr), numbers("b", second.scores, cirr[0]), resamples=50)
    assert list(table[table["metric"] == "R@1"]["method"]) == ["SEARLE"]
    assert set(table[table["metric"] == "mAP@5"]["method"]) == {"Text-only", "SEARLE", "FTI4CIR"}


def test_two_tables_alone_are_compared_without_intervals(pair, tmp_path):
    files = [intervals.write_csv(n.results, tmp_path / f"{n.name}.csv") for n in pair]
    first, second = map(comparisons.read_csv, files)
    assert (first.name, second.name) == ("mini", "whatif")
    table = comparisons.compare(first, second)
    assert comparisons.sentences(table, "mini", "whatif") == [
        "The largest difference of whatif to mini is +8.3 points, of SEARLE on CIRCO mAP@5; there are no intervals. "
        "Text-only: no main number differs."
    ]
    assert comparisons.unpaired(first, second)[1] == (
        f"{files[1]} holds no scores of single queries; name the study's folder or parameter file instead."
    )
    assert "95 %" not in comparisons.text_table(table, "mini", "whatif")


def test_the_table_for_the_terminal_marks_what_is_certain(pair):
    lines = comparisons.text_table(comparisons.compare(*pair, resamples=500), "mini", "whatif").splitlines()
    assert [line.split()[-1] for line in lines if "SEARLE" in line] == ["●"]
    assert next(line for line in lines if "Text-only" in line).split()[-1] == "0.0"
    assert "CIRCO mAP@5" in lines[1] and "CIRCO" not in lines[2]


def test_studies_without_a_common_number_are_refused(pair):
    other = numbers("cirr", scores_of("SEARLE", [0, 1], "CIRR", "all", "R@1"))
    with pytest.raises(ValueError, match="mini and cirr have no main number of the same data set and method; compare"):
        comparisons.compare(pair[0], other)
    assert comparisons.in_one_only(pair[0], other) == [
        "Only mini has the data set CIRCO.",
        "Only cirr has the data set CIRR.",
        "Only mini has the methods Text-only, FTI4CIR.",
    ]


def test_a_table_that_is_none_is_refused(tmp_path):
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"other.csv has no column study; name a results.csv that 07_results has"):
        comparisons.read_csv(tmp_path / "other.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ValueError, match=r"empty.csv is not a results.csv \(No columns"):
        comparisons.read_csv(tmp_path / "empty.csv")


def test_a_study_whose_records_are_not_current_has_numbers_and_no_scores(pair, tmp_path):
    study = study_of(tmp_path, "07_results")
    with pytest.raises(FileNotFoundError, match=r"results.csv does not exist; run 07_results of study tiny first"):
        comparisons.read(study)
    intervals.write_csv(pair[0].results, study.reports / "results.csv")
    read = comparisons.read(study)
    assert read.scores is None and read.reason.startswith("study tiny: this needs the record of 07_results")
    assert len(read.results) == 3


def test_a_current_study_has_its_scores(pair, tmp_path):
    retrieval = study_of(tmp_path, "06_retrieval")

    def make(folder):
        pair[0].scores.to_parquet(folder / "scores.parquet")
        pd.DataFrame({"query": ["1"]}).to_parquet(folder / "rankings.parquet")

    retrieval.keep("scores", {}, make)
    leave_record(retrieval)
    study = study_of(tmp_path, "07_results")
    study.read("06_retrieval")
    leave_record(study)
    intervals.write_csv(pair[0].results, study.reports / "results.csv")
    read = comparisons.read(study_of(tmp_path))
    assert read.reason == "" and len(read.scores) == 900


def test_the_largest_difference_of_each_method_is_over_all_numbers(pair):
    first, _ = pair
    table = first.results.copy()
    table.loc[table["method"] == "SEARLE", "value"] += 0.25
    differences = comparisons.largest_differences(first, Numbers("other", table)).round(6)
    assert differences.to_dict() == {"Text-only": 0.0, "SEARLE": 0.25, "FTI4CIR": 0.0}
    fewer = Numbers("fewer", table[table["method"] != "SEARLE"])
    with pytest.raises(ValueError, match="mini and fewer do not hold numbers of the same methods and metrics"):
        comparisons.largest_differences(first, fewer)


@pytest.mark.parametrize(("points", "text"), [(1.25, "+1.2"), (-0.04, "0.0"), (0.0, "0.0"), (-0.06, "-0.1")])
def test_points_have_a_sign_unless_they_are_zero(points, text):
    assert intervals.signed(points) == text


@pytest.mark.parametrize(("p", "text"), [(0.00005, "< 0.001"), (0.0005, "0.001"), (1.0, "1.000")])
def test_a_small_p_is_not_zero(p, text):
    assert comparisons.p_text(p) == text
