"""Submission files for the test servers of CIRR and CIRCO, from the rankings that 06_retrieval leaves (searle.md
section 5)."""

import json
from pathlib import Path

import pandas as pd

from searle_lib.data.benchmarks import PROTOCOLS
from searle_lib.store.artefacts import written_aside

SUBSET = 3


def write_all(folder: Path, rankings: pd.DataFrame, sizes: dict[str, dict]) -> list[Path]:
    """Write every method's files for each complete split that a server scores, and remove those of an earlier run.

    `rankings` and `sizes` are as `evaluation.read_scores` and `evaluation.made_with` give them.
    """
    written = []
    for (dataset, split, method), of_method in rankings.groupby(["dataset", "split", "method"], sort=False):
        if split == PROTOCOLS[dataset].submission and not incomplete(f"{dataset}/{split}", sizes):
            written += write(folder, of_method, dataset, split, method)
    for path in set(folder.glob("*.json")) - set(written):
        path.unlink()
    return written


def incomplete(name: str, sizes: dict[str, dict]) -> str:
    """One sentence when a split lacks queries or gallery images, for then a file would not compare; else nothing."""
    there, whole = sizes[name]["there"], sizes[name]["whole"]
    if list(there) == list(whole):
        return ""
    return (
        f"{name} has {there[0]:,} of {whole[0]:,} queries and {there[1]:,} of {whole[1]:,} images; no file is "
        "written for a server."
    )


def write(folder: Path, rankings: pd.DataFrame, dataset: str, split: str, method: str) -> list[Path]:
    """Write a method's files for a data set's server, two for CIRR and one for CIRCO; the paths written.

    `rankings` has columns query, best and group. Raises ValueError for a dataset without a test server.
    """
    forms = {"cirr": _cirr, "circo": _circo}
    if dataset not in forms:
        raise ValueError(f"{PROTOCOLS[dataset].title} has no test server; CIRR and CIRCO have.")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, content in forms[dataset](rankings).items():
        written.append(folder / f"{dataset}-{split}-{name}{method}.json")
        with written_aside(written[-1]) as aside:
            aside.write_text(json.dumps(content, sort_keys=True))
    return written


def _cirr(rankings: pd.DataFrame) -> dict[str, dict]:
    """The 50 best names of each pair, and the 3 best of its group, which is listed without the reference."""
    head = {"version": "rc2"}
    best = {row.query: list(row.best) for row in rankings.itertuples()}
    subset = {row.query: list(row.group)[:SUBSET] for row in rankings.itertuples()}
    return {"": head | {"metric": "recall"} | best, "subset-": head | {"metric": "recall_subset"} | subset}


def _circo(rankings: pd.DataFrame) -> dict[str, dict]:
    """The 50 best image ids of each query, as integers."""
    return {"": {row.query: [int(image) for image in row.best] for row in rankings.itertuples()}}
