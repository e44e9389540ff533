"""The front page of a study, which answers: which method is ahead, by how much, how sure; and the list of all studies.

Reads a study's records, its results.csv, its scores and the files of its folder. A study that has run in part gets a
page too: it says what is missing. Numbers that an earlier run left are named as such.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import nbformat
import pandas as pd

from searle_lib.evaluation.intervals import MAIN, lead_metrics, main_panels
from searle_lib.evaluation.scores import read_scores
from searle_lib.reporting import answer, figures, run_facts, templates
from searle_lib.store.artefacts import Store, atomic_write
from searle_lib.store.records import FOLDER, Record, Study

RESULTS, LAST = "results.csv", "07_results"
KINDS = {  # kinds of files, with patterns below the study's folder; a file belongs to the first that it fits
    "Logs of the trainings": ("*_log.csv",),
    "Tables": ("*.csv", "*.tex", "*.md", "tables/*"),
    "Files for the test servers": ("submissions/*.json",),
    "Figures": ("figures/*",),
    "Records": (f"{FOLDER}/*.json",),
}


def write(study: Study, notebooks: Sequence[Path], published: Mapping[str, object]) -> Path:
    """Write the front page of a study, index.html in its folder, and return its path.

    Args:
        study: the study, as a command sees it.
        notebooks: the sources of the notebooks, in order; the first paragraph of each says what it asks.
        published: the published value of each parameter that has one, by name.
    """
    records, results = run_facts.read_records(study), _main_results(study.reports)
    note = _note(study, records, results)
    comparison = None if note else _comparison(study, records[LAST], results)
    page = {
        "study": study.name,
        "miniature": run_facts.world(records) == "miniature",
        "note": note,
        "comparison": comparison,
        "table": comparison["table"] if comparison else answer.table(results, {}) if len(results) else None,
        "chart": _chart(results),
        "leaders": answer.leaders(results) if len(results) and not note else [],
        "departures": run_facts.departures(records, published),
        "parameters": {name: record.values for name, record in records.items()},
        "made_with": run_facts.made_with(study, records),
        "stages": run_facts.stages(records),
        "chapters": [_chapter(study, path) for path in notebooks],
        "explorer": "explorer.html" if (study.reports / "explorer.html").is_file() else "",
        "files": _files(study.reports),
        "list": "../index.html" if (study.reports.parent / "index.html").is_file() else "",
    }
    return _render(study.reports / "index.html", "front", page)


def write_list(report_root: Path) -> Path:
    """Write index.html of the report root, the list of all studies below it, newest first; return its path.

    A study is a folder with records or a results.csv. Studies of the real data sets and of the miniature world stand
    apart, since their numbers do not compare.
    """
    folders = [path for path in sorted(report_root.iterdir()) if (path / FOLDER).is_dir() or (path / RESULTS).is_file()]
    records = {path: run_facts.read_records(Study(path.name, report_root, Store(path), path)) for path in folders}
    worlds = {}
    for world in ("real", "miniature", ""):
        of_world = {path: one for path, one in records.items() if run_facts.world(one) == world}
        changes = run_facts.differing(of_world)
        rows = [_listed(path, one) | {"differing": changes[path]} for path, one in of_world.items()]
        worlds[world] = sorted(rows, key=lambda row: row["date"], reverse=True)
    own = (key for rows in worlds.values() for row in rows for key in row["best"])
    metrics = list(dict.fromkeys([*((dataset, metric) for dataset, _, _, metric in MAIN), *own]))
    return _render(report_root / "index.html", "studies", {"worlds": worlds, "metrics": metrics})


def _render(target: Path, template: str, values: Mapping) -> Path:
    with atomic_write(target) as aside:
        aside.write_text(templates.render(template, **values), encoding="utf-8")
    return target


def _main_results(folder: Path) -> pd.DataFrame:
    """Return the main numbers of a folder's results.csv, in the order of MAIN; empty if there are none."""
    columns = ["dataset", "split", "category", "metric"]
    if not (folder / RESULTS).is_file():
        return pd.DataFrame(columns=columns)
    results = pd.read_csv(folder / RESULTS)
    return pd.DataFrame(main_panels(results), columns=columns).merge(results)


def _note(study: Study, records: Mapping[str, Record], results: pd.DataFrame) -> str:
    """Return why the page has no answer, or numbers of an earlier state only; "" if all is up to date."""
    evaluate = records["02_concepts"].parameters.get("evaluate") if "02_concepts" in records else None
    if evaluate and "validation" not in evaluate:
        return "Nothing is scored here: this study evaluates test splits only, whose targets are secret."
    earlier = "The numbers below are of an earlier state, and the methods are not compared" if len(results) else ""
    if LAST not in records:
        return f"{earlier or 'There is no answer yet'}: {LAST} has no record in this study; run the study to its end."
    if study.problem(LAST):
        return f"{earlier or 'There is no answer yet'}: {study.problem(LAST)}"
    return "" if len(results) else f"There is no answer: {RESULTS} does not exist or is empty; run {LAST} again."


def _chart(results: pd.DataFrame) -> str:
    """Return a chart of the first main metric of each data set as HTML, "" without results."""
    panels = [panel for panel in main_panels(results) if panel[3] == lead_metrics(results)[panel[0]]]
    return figures.chart(results, panels).data if panels else ""


def _comparison(study: Study, record: Record, results: pd.DataFrame) -> dict:
    scores, rankings = read_scores(study)
    parameters = record.parameters
    return answer.compare(scores, rankings, results, parameters["bootstrap_resamples"], parameters["seed"])


def _chapter(study: Study, notebook: Path) -> dict:
    """Return a notebook's title, the question that it begins with as plain text, its page and its state."""
    title, _, text = nbformat.read(notebook, as_version=4).cells[0].source.partition("\n")
    text = re.sub(r"\[([^]]+)\]\([^)]+\)|[*`$]", r"\1", text)  # links keep their text
    question = re.match(r"[^?]*?([^.?!]+\?)", text.strip(), re.S)
    page = f"{notebook.stem}.html"
    return {
        "title": title.lstrip("# ").strip(),
        "question": " ".join(question[1].split()) if question else "",
        "page": page if (study.reports / page).is_file() else "",
        "state": study.problem(notebook.stem) if study.has(notebook.stem) else "Not run in this study.",
    }


def _files(folder: Path) -> dict[str, list[str]]:
    """Return the study's files by kind, relative to its folder."""
    files: dict[str, list[str]] = {kind: [] for kind in KINDS}
    taken: set[Path] = set()
    for kind, patterns in KINDS.items():
        paths = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()} - taken
        files[kind] = sorted(str(path.relative_to(folder)) for path in paths)
        taken |= paths
    return {kind: names for kind, names in files.items() if names}


def _listed(folder: Path, records: Mapping[str, Record]) -> dict:
    """Return a study's row in the list; a study that has just ended gets its front page after the list."""
    results = _main_results(folder)
    best = (
        results.loc[results.groupby(["dataset", "metric"], sort=False)["value"].idxmax()] if len(results) else results
    )
    return {
        "name": folder.name,
        "page": f"{folder.name}/index.html" if LAST in records or (folder / "index.html").is_file() else "",
        "date": run_facts.date(records),
        "backbone": results["backbone"].iloc[0] if len(results) else "",
        "notebooks": len(records),
        "best": {(row.dataset, row.metric): (row.method, f"{row.value:.1f}") for row in best.itertuples()},
    }
