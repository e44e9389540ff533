"""The spread of a study's results between seeds, apart from their intervals between queries.

An interval of `intervals` says how a number varies with the queries. It does not say how it varies with another
training. So a study runs once more for each of its further seeds, as the study `<study>-seed<k>`. Here the results of
all seeds become one table, and sentences that say which differences between methods are smaller than the spread.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

import pandas as pd

from searle_lib.evaluation.intervals import main_panels
from searle_lib.store.records import MissingInput, Study

PANEL = ["dataset", "split", "category", "metric"]
COLUMNS = [*PANEL, "method", "seeds", "mean", "sd", "lowest", "highest", "value", "ci_low", "ci_high"]


def study_of_seed(study: str, seed: int) -> str:
    """Return the name of the study that repeats a study with another seed."""
    return f"{study}-seed{seed}"


def require_distinct(seed: int, further: Sequence[int], source: str) -> None:
    """Raise ValueError if the further seeds of a study hold its own seed, or one seed twice; `source` names the file.

    Such a study would repeat a training, and its spread would be too small.
    """
    if seed in further:
        raise ValueError(f"seeds in {source} holds {seed}, which is the study's own seed; name other seeds.")
    twice = next((other for other in further if list(further).count(other) > 1), None)
    if twice is not None:
        raise ValueError(f"seeds in {source} holds {twice} twice; name each seed once.")


def read_results(study: Study, results: pd.DataFrame) -> dict[int, pd.DataFrame]:
    """Return the results by seed: those of this study first, then those of the studies of its further seeds.

    The study's record will name the record of each study that is read here, so that a change there makes it stale.

    Args:
        study: the study, in notebook 07_results; its values hold `seed` and `seeds`.
        results: its own results, as `intervals.summarise` returns them.

    Raises:
        ValueError: if the seeds are not distinct.
        MissingInput: if the study of a seed has not run.
        StaleInput: if one of its notebooks has to run again.
    """
    seed, further = study.values["seed"], study.values["seeds"]
    require_distinct(seed, further, study.notebook)
    by_seed = {seed: results}
    for other in further:
        name = study_of_seed(study.name, other)
        study.read(f"{name}/07_results")
        file = study.reports.parent / name / "results.csv"
        if not file.is_file():
            raise MissingInput(f"{file} does not exist; run 07_results of study {name} again.")
        by_seed[other] = pd.read_csv(file)
    return by_seed


def spread(results_by_seed: Mapping[int, pd.DataFrame]) -> pd.DataFrame:
    """Return how each method's main numbers vary between seeds, in percent: one row per main metric and method.

    Columns: PANEL, method; seeds (their number), mean, sd (of a sample, with n - 1), lowest and highest over the seeds;
    value, ci_low and ci_high of the first seed, whose interval is over its queries. `sd` is NaN for a single seed.

    Raises ValueError if a seed's results lack a number of the first seed's, or have a number more.
    """
    keys = [*PANEL, "method"]
    panels = pd.DataFrame(main_panels(next(iter(results_by_seed.values()))), columns=PANEL)
    tables = {}
    for seed, results in results_by_seed.items():
        tables[seed] = panels.merge(results, on=PANEL).set_index(keys)[["value", "ci_low", "ci_high"]]
    first, *others = tables
    for other in others:
        if set(tables[other].index) != set(tables[first].index):
            raise ValueError(
                f"the results of seeds {first} and {other} are not of the same methods and metrics; run the study "
                "again, so that both seeds have the same methods and data sets."
            )
    values = pd.concat({seed: table["value"] for seed, table in tables.items()}, axis=1)
    summary = values.agg(["mean", "std", "min", "max"], axis=1)
    summary = summary.rename(columns={"std": "sd", "min": "lowest", "max": "highest"}).assign(seeds=len(tables))
    return summary.join(tables[first]).loc[tables[first].index].reset_index()[COLUMNS]


def sentences(results_by_seed: Mapping[int, pd.DataFrame]) -> list[str]:
    """Return what the seeds say about the differences between methods: a summary, then a warning per main metric.

    Two methods are warned of if their means over the seeds differ by less than one of them varies from seed to seed,
    highest minus lowest. Raises as `spread` does.
    """
    if len(results_by_seed) < 2:
        (seed,) = results_by_seed
        return [
            f"Every number comes from one training, with seed {seed}; the intervals are over queries, and another "
            "training may order the methods otherwise. Set seeds to measure this."
        ]
    table = spread(results_by_seed)
    warnings = []
    for (dataset, _, _, metric), of_metric in table.groupby(PANEL, sort=False):
        pairs = _pairs_within_spread(of_metric)
        if pairs:
            warnings.append(f"{dataset} {metric}: another seed may reverse {'; '.join(pairs)}.")
    names = ", ".join(str(seed) for seed in results_by_seed)
    largest = table.loc[(table["highest"] - table["lowest"]).idxmax()]
    summary = (
        f"Over {len(results_by_seed)} seeds ({names}) a main number varies by at most "
        f"{largest['highest'] - largest['lowest']:.1f} points: {largest['method']} on {largest['dataset']} "
        f"{largest['metric']}, {largest['lowest']:.1f} to {largest['highest']:.1f}."
    )
    if not warnings:
        summary += " Every difference between two methods is larger than the spread between seeds."
    return [summary, *warnings]


def _pairs_within_spread(of_metric: pd.DataFrame) -> list[str]:
    """Return the pairs of methods whose means differ by less than the wider of their spreads, the closest first."""
    ordered = of_metric.sort_values("mean", ascending=False, kind="stable")
    pairs = []
    for (_, better), (_, worse) in combinations(ordered.iterrows(), 2):
        ahead = better["mean"] - worse["mean"]
        width = max(row["highest"] - row["lowest"] for row in (better, worse))
        if ahead < width:
            pairs.append((ahead, f"{better['method']} and {worse['method']} ({ahead:+.1f}, spread {width:.1f})"))
    return [text for _, text in sorted(pairs)]
