"""Write submission files for the test servers of CIRR and CIRCO, from the rankings that 06_retrieval kept."""

import json
from pathlib import Path

import pandas as pd

from searle_lib.data.protocols import protocol_of
from searle_lib.store.artefacts import atomic_write

SUBSET = 3  # images per query in CIRR's file of subset rankings


def write_all(folder: Path, rankings: pd.DataFrame, sizes: dict[str, dict]) -> list[Path]:
    """Write every method's files for each complete split that a server scores, and remove those of an earlier run.

    `rankings` are those of `scores.read_scores`, `sizes` those of `scores.provenance`.
    """
    paths = []
    for (dataset, split, method), of_method in rankings.groupby(["dataset", "split", "method"], sort=False):
        if split == protocol_of(dataset).submission and not incomplete(f"{dataset}/{split}", sizes):
            paths += write(folder, of_method, dataset, split, method)
    for path in set(folder.glob("*.json")) - set(paths):
        path.unlink()
    return paths


def incomplete(name: str, sizes: dict[str, dict]) -> str:
    """Return a sentence if a split lacks queries or gallery images, for then its scores do not compare; else ""."""
    (queries, images), (all_queries, all_images) = sizes[name]["size"], sizes[name]["full_size"]
    if (queries, images) == (all_queries, all_images):
        return ""
    return (
        f"{name} has {queries:,} of {all_queries:,} queries and {images:,} of {all_images:,} images; no file is "
        "written for a server."
    )


def write(folder: Path, rankings: pd.DataFrame, dataset: str, split: str, method: str) -> list[Path]:
    """Write a method's files for a data set's server, two for CIRR and one for CIRCO, and return their paths.

    Args:
        folder: where to write.
        rankings: columns query, best and group, as `rankings.ranking_table` returns them.
        dataset: cirr or circo.
        split: the split of the rankings.
        method: stands in the files' names.

    Raises:
        ValueError: if the data set has no test server.
    """
    forms = {"cirr": _cirr, "circo": _circo}
    if dataset not in forms:
        raise ValueError(f"{protocol_of(dataset).title} has no test server; CIRR and CIRCO have.")
    paths = []
    for name, content in forms[dataset](rankings).items():
        paths.append(folder / f"{dataset}-{split}-{name}{method}.json")
        with atomic_write(paths[-1]) as temporary:
            temporary.write_text(json.dumps(content, sort_keys=True))
    return paths


def _cirr(rankings: pd.DataFrame) -> dict[str, dict]:
    """The 50 best images of each pair, and the 3 best of its group, which does not hold the reference."""
    head = {"version": "rc2"}
    best = {row.query: list(row.best) for row in rankings.itertuples()}
    subset = {row.query: list(row.group)[:SUBSET] for row in rankings.itertuples()}
    return {"": head | {"metric": "recall"} | best, "subset-": head | {"metric": "recall_subset"} | subset}


def _circo(rankings: pd.DataFrame) -> dict[str, dict]:
    """The 50 best image ids of each query, as integers."""
    return {"": {row.query: [int(image) for image in row.best] for row in rankings.itertuples()}}
