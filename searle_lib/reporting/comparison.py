"""The page that compares two studies: what differs in their parameters, and by how much in their numbers.

Takes the numbers of two studies, their records, and the table of `comparisons.compare`. The page stands alone.
"""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from searle_lib.evaluation import comparisons, methods
from searle_lib.evaluation.comparisons import Numbers
from searle_lib.evaluation.intervals import signed
from searle_lib.evaluation.significance import MARKS
from searle_lib.reporting import run_facts, templates
from searle_lib.store.artefacts import atomic_write
from searle_lib.store.records import Record


def write(
    first: Numbers,
    second: Numbers,
    table: pd.DataFrame,
    target: Path,
    records: tuple[Mapping[str, Record], Mapping[str, Record]] = ({}, {}),
) -> Path:
    """Write the page of two studies and return its path.

    Args:
        first: one study; the name of the other differs.
        second: the other study.
        table: what `comparisons.compare` returns.
        target: the page's file.
        records: the records of both, as `run_facts.read_records` returns them; {} for a results.csv alone.
    """
    page = {
        "names": (first.name, second.name),
        "sentences": comparisons.sentences(table, first.name, second.name),
        "notes": comparisons.unpaired(first, second) + comparisons.in_one_only(first, second),
        "miniature": any(run_facts.world(one) == "miniature" for one in records),
        "parameters": parameters(*records),
        "recorded": all(records),
        "code": code(*records),
        "alone": _alone(first.name, second.name, *records),
        "panels": panels(table),
        "family": int(table["p_holm"].notna().sum()),
        "sizes": _sizes(first, second),
        "facts": _facts(*records),
    }
    with atomic_write(target) as aside:
        aside.write_text(templates.render("comparison", **page), encoding="utf-8")
    return target


def parameters(first: Mapping[str, Record], second: Mapping[str, Record]) -> list[dict]:
    """Return the parameters with two values, of the notebooks that both studies ran.

    Keys: name, notebook, first and second value; None where a study, of another version, lacks the parameter.
    """
    rows: dict[str, dict] = {}
    for notebook in (name for name in first if name in second):
        before, after = first[notebook].parameters, second[notebook].parameters
        for name in before | after:
            one, other = before.get(name), after.get(name)
            if one != other and name not in rows:  # the first notebook stands for `seed`, which several declare
                rows[name] = {"name": name, "notebook": notebook, "first": one, "second": other}
    return list(rows.values())


def code(first: Mapping[str, Record], second: Mapping[str, Record]) -> list[str]:
    """Return the notebooks that ran with other code in the second study than in the first."""
    return [name for name in first if name in second and first[name].code != second[name].code]


def panels(table: pd.DataFrame) -> list[dict]:
    """Return what the page shows of each main metric: its title and a row of text and plot positions per method.

    Positions are in percent of the plot's width. Zero is at 50, and all plots of the page have one scale.
    """
    ends = table[["difference", "low", "high"]].abs().max(axis=None)
    reach = float(ends) * 1.08 or 1.0
    colours = methods.colours(table["method"])
    return [
        {"title": f"{dataset} {metric}", "rows": [_row(row, reach, colours) for row in rows.itertuples()]}
        for (dataset, _, _, metric), rows in table.groupby(comparisons.PANEL, sort=False)
    ]


def _row(row: tuple, reach: float, colours: Mapping[str, str]) -> dict:
    def position(points: float) -> float:
        return round(50 + 50 * points / reach, 2)

    tested = row.p_holm == row.p_holm  # NaN where the studies are not paired, or no query differs
    mark = ("●" if row.matters else "○") if row.certain else ""
    side = ("higher" if row.difference > 0 else "lower") if row.certain else "level"
    low, high = (signed(points) for points in (row.low, row.high)) if tested else ("", "")
    return {
        "method": row.method,
        "colour": colours[row.method],
        "first": f"{row.first:.1f}",
        "second": f"{row.second:.1f}",
        "difference": signed(row.difference),
        "interval": f"[{low}, {high}]" if tested else "",
        "queries": f"{row.won:.0f} / {row.tied:.0f} / {row.lost:.0f}" if tested else "",
        "p": comparisons.p_text(row.p_holm) if tested else "",
        "same": row.p == row.p and not tested,
        "mark": mark,
        "meaning": MARKS[mark],
        "side": side,
        "at": position(row.difference),
        "ends": (position(row.low), position(row.high)) if tested else None,
    }


def _alone(first: str, second: str, *records: Mapping[str, Record]) -> list[str]:
    """Return in sentences which notebooks only one of the studies ran."""
    texts = []
    for name, own, other in ((first, *records), (second, *reversed(records))):
        notebooks = [notebook for notebook in own if notebook not in other]
        if notebooks and other:
            texts.append(f"Only {name} ran {', '.join(notebooks)}.")
    return texts


def _sizes(first: Numbers, second: Numbers) -> list[dict]:
    """Return on how much each data set was evaluated, in words, in both studies."""
    sizes = []
    for numbers in (first, second):
        results = numbers.results
        if "evaluated_on" not in results:
            return []
        sizes.append(results.groupby("dataset", sort=False)["evaluated_on"].agg(lambda texts: max(texts, key=len)))
    shared = [dataset for dataset in sizes[0].index if dataset in sizes[1].index]
    return [{"dataset": name, "first": sizes[0][name], "second": sizes[1][name]} for name in shared]


def _facts(first: Mapping[str, Record], second: Mapping[str, Record]) -> list[dict]:
    """Return date, machine, versions and duration of both studies, from their records."""
    sides = []
    for executions in ([record.execution for record in records.values()] for records in (first, second)):
        versions = dict.fromkeys(" ".join(item) for run in executions for item in run.get("versions", {}).items())
        machines = dict.fromkeys(run["machine"] for run in executions if "machine" in run)
        seconds = sum(run.get("seconds", 0) for run in executions)
        sides.append([", ".join(machines), ", ".join(versions), run_facts.duration(seconds) if executions else ""])
    rows = [("Date", run_facts.date(first), run_facts.date(second))]
    rows += zip(("Machine", "Versions", "Duration"), *sides, strict=True)
    return [{"label": label, "first": one, "second": other} for label, one, other in rows if one or other]
