"""The spread between seeds, held to numpy, and what is said of methods that are closer than it."""

import numpy as np
import pandas as pd
import pytest
from conftest import leave_record, study_of

from searle_lib.evaluation import intervals, seeds
from searle_lib.store.records import MissingInput, StaleInput

METHODS = ("Text-only", "SEARLE", "FTI4CIR")
VALUES = {  # CIRR R@1 by seed; Text-only does not depend on chance
    42: (12.0, 38.0, 40.8),
    1: (12.0, 39.5, 38.7),
    2: (12.0, 37.0, 39.9),
}


def results_of(values, **columns):
    facts = {"study": "tiny", "dataset": "CIRR", "split": "val", "category": "all", "metric": "R@1"}
    table = pd.DataFrame({"method": METHODS[: len(values)], "value": values}).assign(**facts | columns)
    return table.assign(ci_low=table["value"] - 3, ci_high=table["value"] + 3)


def by_seed(values=VALUES, **columns):
    return {seed: results_of(of_seed, **columns) for seed, of_seed in values.items()}


def test_the_spread_is_over_seeds_and_the_interval_is_the_first_seeds_own():
    table = seeds.spread(by_seed()).set_index("method")
    for place, method in enumerate(METHODS):
        values = np.array([of_seed[place] for of_seed in VALUES.values()])
        row = table.loc[method]
        assert (row["mean"], row["sd"]) == pytest.approx((values.mean(), values.std(ddof=1)))
        assert (row["lowest"], row["highest"], row["seeds"]) == (values.min(), values.max(), 3)
        assert (row["value"], row["ci_low"], row["ci_high"]) == (values[0], values[0] - 3, values[0] + 3)
    assert list(table.index) == list(METHODS)
    assert list(seeds.spread(by_seed()).columns) == seeds.COLUMNS


def test_only_main_numbers_have_a_spread():
    table = seeds.spread(by_seed())
    others = [results_of((1.0, 2.0, 3.0), metric="R@50"), results_of((1.0, 2.0, 3.0), category="other")]
    longer = {seed: pd.concat([*others, results]) for seed, results in by_seed().items()}
    pd.testing.assert_frame_equal(seeds.spread(longer), table)


def test_methods_that_are_closer_than_the_spread_are_named():
    summary, warning = seeds.sentences(by_seed())
    assert summary == (
        "Over 3 seeds (42, 1, 2) a main number varies by at most 2.5 points: SEARLE on CIRR R@1, 37.0 to 39.5."
    )
    assert warning == "CIRR R@1: another seed may reverse FTI4CIR and SEARLE (+1.6, spread 2.5)."


def test_differences_that_are_larger_than_the_spread_are_not_warned_of():
    values = {42: (12.0, 30.0, 40.0), 1: (12.0, 31.0, 40.5)}
    (summary,) = seeds.sentences(by_seed(values))
    assert summary.endswith("Every difference between two methods is larger than the spread between seeds.")


def test_methods_that_never_vary_are_not_warned_of_though_they_are_equal():
    (summary,) = seeds.sentences(by_seed({42: (12.0, 12.0), 1: (12.0, 12.0)}))
    assert "varies by at most 0.0 points" in summary


def test_one_seed_says_nothing_about_other_trainings():
    one = {42: results_of(VALUES[42])}
    assert seeds.spread(one)["sd"].isna().all()
    (sentence,) = seeds.sentences(one)
    assert sentence.startswith("Every number comes from one training, with seed 42; the intervals are over queries")


def test_seeds_with_other_methods_are_refused():
    tables = by_seed({42: VALUES[42], 1: (12.0, 39.5)})
    with pytest.raises(ValueError, match="the results of seeds 42 and 1 are not of the same methods and metrics; run"):
        seeds.spread(tables)


@pytest.mark.parametrize(
    ("further", "sentence"),
    [
        ([1, 42], "seeds in a.yaml holds 42, which is the study's own seed; name other seeds."),
        ([1, 2, 1], "seeds in a.yaml holds 1 twice; name each seed once."),
    ],
)
def test_a_repeated_seed_is_refused(further, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        seeds.require_distinct(42, further, "a.yaml")
    seeds.require_distinct(42, [1, 2], "a.yaml")


# Results of other studies, and the records that depend on them


def run_seed(folder, seed, resamples=50):
    """The study of a further seed: its 06 and 07 have run and have left a results.csv."""
    name = seeds.study_of_seed("tiny", seed)
    leave_record(study_of(folder, "06_retrieval", name, seed=seed))
    study = study_of(folder, "07_results", name, resamples=resamples)
    study.read("06_retrieval")
    leave_record(study)
    intervals.write_csv(results_of(VALUES[seed], study=name), study.reports / "results.csv")


def run_main(folder, further):
    """07_results of the study itself, as far as it reads other studies."""
    leave_record(study_of(folder, "06_retrieval", seed=42))
    study = study_of(folder, "07_results", seeds=further)
    study.values = {"seed": 42, "seeds": further}
    study.read("06_retrieval")
    results = seeds.read_results(study, results_of(VALUES[42]))
    leave_record(study)
    return results


def test_the_results_of_all_seeds_are_read_the_own_first(tmp_path):
    for seed in (1, 2):
        run_seed(tmp_path, seed)
    results = run_main(tmp_path, [2, 1])
    assert list(results) == [42, 2, 1]
    assert {seed: tuple(table["value"]) for seed, table in results.items()} == VALUES
    read = study_of(tmp_path).find("07_results").read
    assert sorted(read) == ["06_retrieval", "tiny-seed1/07_results", "tiny-seed2/07_results"]


def test_a_study_of_a_seed_that_has_not_run_is_named(tmp_path):
    sentence = "07_results needs the record of 07_results in study tiny-seed1; run 07_results first."
    with pytest.raises(MissingInput, match=f"^{sentence}$"):
        run_main(tmp_path, [1])
    run_seed(tmp_path, 1)
    (tmp_path / "reports/tiny-seed1/results.csv").unlink()
    with pytest.raises(MissingInput, match=r"results.csv does not exist; run 07_results of study tiny-seed1 again"):
        run_main(tmp_path, [1])


def test_a_study_of_a_seed_that_is_stale_is_named(tmp_path):
    run_seed(tmp_path, 1)
    leave_record(study_of(tmp_path, "06_retrieval", "tiny-seed1", seed=3))
    sentence = "study tiny-seed1: 07_results was made with seed 1, but 06_retrieval now has 3; run 07_results again."
    with pytest.raises(StaleInput, match=f"^{sentence}$"):
        run_main(tmp_path, [1])


def test_a_changed_study_of_a_seed_makes_07_results_stale(tmp_path):
    run_seed(tmp_path, 1)
    run_main(tmp_path, [1])
    assert study_of(tmp_path).problem("07_results") == ""
    run_seed(tmp_path, 1)
    assert study_of(tmp_path).problem("07_results") == "", "the same record again is no change"
    run_seed(tmp_path, 1, resamples=60)
    assert study_of(tmp_path).problem("07_results") == (
        "07_results was made with resamples 50, but 07_results now has 60 in study tiny-seed1; run 07_results again."
    )
    leave_record(study_of(tmp_path, "06_retrieval", "tiny-seed1", seed=3))
    assert study_of(tmp_path).problem("07_results").startswith("study tiny-seed1: 07_results was made with seed 1")


def test_the_chain_of_a_study_holds_its_own_records_only(tmp_path):
    run_seed(tmp_path, 1)
    run_main(tmp_path, [1])
    assert list(study_of(tmp_path).chain("07_results")) == ["06_retrieval", "07_results"]
