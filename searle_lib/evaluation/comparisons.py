"""Compare two studies: by how much each method's main numbers differ, and whether that could be chance.

Takes the results of two studies and, where both have them, their scores of single queries. Two studies that answer the
same queries are compared in pairs, as two methods of one study are. Returns tables and sentences, in points of percent,
the second study minus the first.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from searle_lib.evaluation import significance
from searle_lib.evaluation.intervals import main_panels, signed
from searle_lib.evaluation.scores import read_scores
from searle_lib.store.records import Study

SAME = 0.05  # points by which a number may differ from machine to machine
PANEL = ["dataset", "split", "category", "metric"]
PAIRED = ["low", "high", "won", "tied", "lost", "p"]
COLUMNS = [*PANEL, "method", "first", "second", "difference", *PAIRED, "p_holm", "certain", "matters"]


@dataclass(frozen=True)
class Numbers:
    """The numbers of a study.

    Args:
        name: the study's name.
        results: its results.csv.
        scores: the scores of its single queries in long form; None if they cannot be read.
        reason: why there are no scores, in one sentence.
    """

    name: str
    results: pd.DataFrame
    scores: pd.DataFrame | None = None
    reason: str = ""


def read(study: Study) -> Numbers:
    """Return the numbers of a study. Raises FileNotFoundError if it has no results.csv.

    The scores are left out if a notebook has to run again: they may be newer than results.csv.
    """
    file = study.reports / "results.csv"
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; run 07_results of study {study.name} first.")
    reason = study.problem("07_results")
    scores = None if reason else read_scores(study)[0]
    return Numbers(study.name, pd.read_csv(file), scores, f"study {study.name}: {reason}" if reason else "")


def read_csv(file: Path) -> Numbers:
    """Return the numbers of a results.csv alone. Raises ValueError if the file is no such table."""
    try:
        results = pd.read_csv(file)
    except (ValueError, pd.errors.ParserError) as problem:
        raise ValueError(f"{file} is not a results.csv ({problem}); name one that 07_results has written.") from problem
    absent = [name for name in ("study", *PANEL, "method", "value") if name not in results]
    if absent or results.empty:
        lack = f"has no column {absent[0]}" if absent else "holds no number"
        raise ValueError(f"{file} {lack}; name a results.csv that 07_results has written.")
    reason = f"{file} holds no scores of single queries; name the study's folder or parameter file instead."
    return Numbers(str(results["study"].iloc[0]), results, reason=reason)


def compare(first: Numbers, second: Numbers, resamples: int = 2000, seed: int = 42) -> pd.DataFrame:
    """Return the main numbers that both studies have, and their differences: one row per main metric and method.

    Columns: COLUMNS. `difference` is the second study minus the first. The others are those of `significance.pairs`.
    They are NaN, and `certain` is False, where a data set has no scores in one of the studies or has other queries
    (`unpaired`). Holm's correction is over the rows in which a query's score differs; in the others p_holm is NaN.
    The permutation test takes the sizes of the differences as they are, so leaving out rows of zeros keeps its level.

    Args:
        first: one study.
        second: the other study.
        resamples: number of bootstrap resamples.
        seed: of the resampling and of the permutations.

    Raises:
        ValueError: if no method has a number of the same data set, split and metric in both studies.
    """
    tables = [numbers.results[[*PANEL, "method", "value"]] for numbers in (first, second)]
    shared = tables[0].merge(tables[1], on=[*PANEL, "method"], suffixes=("_first", "_second"))
    both = pd.DataFrame(main_panels(shared), columns=PANEL).merge(shared, on=PANEL)
    if both.empty:
        raise ValueError(
            f"{first.name} and {second.name} have no main number of the same data set and method; compare studies "
            "that share one."
        )
    both = both.rename(columns={"value_first": "first", "value_second": "second"})
    both["difference"] = both["second"] - both["first"]
    both = both.merge(_paired(first, second, resamples, seed), on=[*PANEL, "method"], how="left")
    tested = both["won"] + both["lost"] > 0
    both["p_holm"] = float("nan")
    both.loc[tested, "p_holm"] = significance.holm(both.loc[tested, "p"].to_numpy(float))
    without_zero = (both["low"] > 0) | (both["high"] < 0)
    both["certain"] = without_zero & (both["p_holm"] < significance.LEVEL)
    both["matters"] = both["difference"].abs().round(9) >= significance.RELEVANT
    return both[COLUMNS]


def unpaired(first: Numbers, second: Numbers) -> list[str]:
    """Return in sentences why numbers of both studies have no interval: no scores, or other queries."""
    reasons = [numbers.reason for numbers in (first, second) if numbers.scores is None]
    if reasons:
        return reasons
    queries = [_queries(numbers.scores) for numbers in (first, second)]
    return [
        f"{dataset} {split} has other queries in {second.name} ({len(queries[1][dataset, split]):,}) than in "
        f"{first.name} ({len(queries[0][dataset, split]):,})."
        for dataset, split in queries[0]
        if queries[0][dataset, split] != queries[1].get((dataset, split), queries[0][dataset, split])
    ]


def in_one_only(first: Numbers, second: Numbers) -> list[str]:
    """Return in sentences which data sets and methods only one of the studies has."""
    texts = []
    for column, noun in (("dataset", "data set"), ("method", "method")):
        names = [list(dict.fromkeys(numbers.results[column])) for numbers in (first, second)]
        for numbers, own, others in ((first, *names), (second, *reversed(names))):
            extra = [name for name in own if name not in others]
            if extra:
                texts.append(f"Only {numbers.name} has the {noun}{'s' * (len(extra) > 1)} {', '.join(extra)}.")
    return texts


def sentences(table: pd.DataFrame, first: str, second: str) -> list[str]:
    """Return what a table of `compare` says, in words: a summary, then one sentence per method that differs certainly.

    Args:
        table: what `compare` returns.
        first: the first study's name.
        second: the second study's name.
    """
    groups = table.groupby("method", sort=False)["difference"]
    same = [method for method, differences in groups if (differences == 0).all()]
    if len(same) == table["method"].nunique():
        return [f"Every main number of {second} is that of {first}."]
    alike = f" {', '.join(same)}: no main number differs." if same else ""
    if table["p"].isna().all():
        largest = table.loc[table["difference"].abs().idxmax()]
        return [
            f"The largest difference of {second} to {first} is {signed(largest['difference'])} points, of "
            f"{largest['method']} on {largest['dataset']} {largest['metric']}; there are no intervals.{alike}"
        ]
    tested, certain = table[table["p_holm"].notna()], table[table["certain"]]
    higher, lower = (certain["difference"] > 0).sum(), (certain["difference"] < 0).sum()
    summary = (
        f"Of the {len(tested)} main numbers that differ for some query, {higher} are certainly higher in {second} than "
        f"in {first} and {lower} certainly lower; {len(tested) - len(certain)} cannot be told apart.{alike}"
    )
    words = {True: "higher", False: "lower"}
    of_methods = [
        f"{method} is certainly {words[above]} on {_changes(rows)}."
        for (method, above), rows in certain.groupby(["method", certain["difference"] > 0], sort=False)
    ]
    return [summary, *of_methods]


def text_table(table: pd.DataFrame, first: str, second: str) -> str:
    """Return a table of `compare` as text for a terminal; takes what `sentences` takes."""
    tested = table["p_holm"].notna()
    columns = {
        "": table["dataset"].where(~table.duplicated(PANEL), "")
        + " "
        + table["metric"].where(~table.duplicated(PANEL), ""),
        "method": table["method"],
        first: table["first"].map("{:.1f}".format),
        second: table["second"].map("{:.1f}".format),
        "difference": table["difference"].map(signed),
    }
    if tested.any():
        intervals = [_interval(row) if row.p_holm == row.p_holm else "" for row in table.itertuples()]
        marks = [("●" if row.matters else "○") if row.certain else "" for row in table.itertuples()]
        columns |= {"95 % interval": intervals, "p": table["p_holm"].map(p_text).where(tested, ""), " ": marks}
    return pd.DataFrame(columns).to_string(index=False)


def p_text(p: float) -> str:
    """Return a p with three decimals, or that it is smaller."""
    return "< 0.001" if p < 0.0005 else f"{p:.3f}"


def largest_differences(first: Numbers, second: Numbers) -> pd.Series:
    """Return the largest difference between all numbers of two studies for each method, in points.

    Raises:
        ValueError: if the studies do not hold numbers of the same methods and metrics.
    """
    tables = [numbers.results.set_index([*PANEL, "method"])["value"] for numbers in (first, second)]
    if set(tables[0].index) != set(tables[1].index):
        raise ValueError(
            f"{first.name} and {second.name} do not hold numbers of the same methods and metrics; compare studies of "
            "the same data sets and methods."
        )
    return (tables[0] - tables[1]).abs().groupby("method", sort=False).max().rename("largest difference")


def _paired(first: Numbers, second: Numbers, resamples: int, seed: int) -> pd.DataFrame:
    """The columns PAIRED of each method and main metric that both studies have over the same queries."""
    tables = [pd.DataFrame(columns=[*PANEL, "method", *PAIRED])]
    if first.scores is not None and second.scores is not None:
        for method in dict.fromkeys(first.scores["method"]):
            scores = {  # `pairs` subtracts the later one
                name: numbers.scores[numbers.scores["method"] == method].assign(method=name)
                for name, numbers in (("second", second), ("first", first))
            }
            queries = {name: _queries(rows) for name, rows in scores.items()}
            alike = [split for split, ids in queries["first"].items() if queries["second"].get(split) == ids]
            both = pd.concat(scores.values())
            both = both[pd.MultiIndex.from_frame(both[["dataset", "split"]]).isin(alike)]
            tables.append(significance.pairs(both, resamples, seed).assign(method=method)[tables[0].columns])
    rows = [table for table in tables if len(table)]
    return pd.concat(rows, ignore_index=True) if rows else tables[0].astype(dict.fromkeys(PAIRED, float))


def _queries(scores: pd.DataFrame) -> dict[tuple[str, str], set[tuple[str, str]]]:
    """The queries of each data set and split, each with its category."""
    of_splits = scores.groupby(["dataset", "split"], sort=False)
    return {split: set(zip(rows["category"], rows["query"], strict=True)) for split, rows in of_splits}


def _changes(rows: pd.DataFrame) -> str:
    """As in "CIRR R@1 (-6.0 [-8.0, -4.2]), R@5 (-13.5 [-16.3, -10.8])"."""
    texts = []
    for dataset, of_dataset in rows.groupby("dataset", sort=False):
        changes = [f"{row.metric} ({signed(row.difference)} {_interval(row)})" for row in of_dataset.itertuples()]
        texts.append(f"{dataset} {', '.join(changes)}")
    return ", ".join(texts)


def _interval(row: tuple) -> str:
    return f"[{signed(row.low)}, {signed(row.high)}]"
