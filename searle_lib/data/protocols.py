"""How each data set is scored: a row of PROTOCOLS for each published one, and one row for all of the user's own.

Takes the entries of the parameter `datasets`: a name of PROTOCOLS, or a CSV file as `own_data` reads it, whose stem is
then the name of the data set.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath

import pandas as pd

EVALUATE = ("validation", "test")
OWN_FILE = ".csv"
RESERVED = ("imagenet",)  # beside the names and titles of PROTOCOLS
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class Protocol:
    """How a data set is scored.

    Args:
        title: the name of the data set.
        categories: the categories that have galleries of their own.
        validation: the split with public targets.
        submission: the split that a server scores, or None.
        excludes_reference: whether the reference takes no rank.
        metrics: each metric with the category of its column in published tables, "" for the query's own.
    """

    title: str
    categories: tuple[str, ...]
    validation: str
    submission: str | None
    excludes_reference: bool
    metrics: tuple[tuple[str, str], ...]


PROTOCOLS = {
    "fashioniq": Protocol(
        title="FashionIQ",
        categories=("dress", "shirt", "toptee"),
        validation="val",
        submission=None,
        excludes_reference=False,
        metrics=(("R@10", ""), ("R@50", ""), ("mAP@10", ""), ("mAP@50", "")),
    ),
    "cirr": Protocol(
        title="CIRR",
        categories=("all",),
        validation="val",
        submission="test1",
        excludes_reference=True,
        metrics=tuple((f"R@{k}", "") for k in (1, 5, 10, 50)) + tuple((f"Rsubset@{k}", "subset") for k in (1, 2, 3)),
    ),
    "circo": Protocol(
        title="CIRCO",
        categories=("all",),
        validation="val",
        submission="test",
        excludes_reference=False,
        metrics=tuple((f"mAP@{k}", "") for k in (5, 10, 25, 50)) + tuple((f"R@{k}", "") for k in (5, 10, 25, 50)),
    ),
}
OWN = Protocol(
    title="",
    categories=("all",),
    validation="val",
    submission=None,
    excludes_reference=True,
    metrics=(
        *((f"R@{k}", "") for k in (1, 5, 10, 50)),
        *((f"mAP@{k}", "") for k in (5, 10, 25, 50)),
        *((f"Rsubset@{k}", "subset") for k in (1, 2, 3)),
    ),
)


def protocol_of(dataset: str, queries: pd.DataFrame | None = None) -> Protocol:
    """Return how a data set is scored: its row of PROTOCOLS, or OWN with the name as the title.

    With `queries`, an own data set has only the metrics that they allow: mAP if one has several targets, and Rsubset if
    there are groups.
    """
    if dataset in PROTOCOLS:
        return PROTOCOLS[dataset]
    metrics = OWN.metrics
    if queries is not None:
        possible = {"R": True, "mAP": queries["ground_truths"].map(len).max() > 1}
        possible["Rsubset"] = queries["group"].map(len).max() > 0
        metrics = tuple((name, category) for name, category in metrics if possible[name.partition("@")[0]])
    return replace(OWN, title=dataset, metrics=metrics)


def dataset_name(entry: str) -> str:
    """Return the name of a data set that `datasets` names: "cirr" of "cirr", "mydata" of "folder/mydata.csv".

    Raises ValueError if the entry is neither a name of PROTOCOLS nor a CSV file, or if the stem of the file is not the
    name of a folder, or is the name of a published data set.
    """
    if entry in PROTOCOLS:
        return entry
    if not entry.endswith(OWN_FILE):
        raise ValueError(
            f"there is no dataset {entry}; datasets may name {', '.join(PROTOCOLS)}, or a {OWN_FILE} file of your own."
        )
    name = PurePath(entry).stem
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{entry} names the data set {name!r}; rename the file: letters, digits, and -, _ or . after the first one."
        )
    titles = [protocol.title.lower() for protocol in PROTOCOLS.values()]
    if name.lower() in (*PROTOCOLS, *titles, *RESERVED):
        raise ValueError(f"{entry} has the name of a published data set; rename the file.")
    return name


def dataset_names(entries: Sequence[str]) -> list[str]:
    """Return the names of several data sets. Raises ValueError as `dataset_name` does, and for a name that is twice."""
    names = [dataset_name(entry) for entry in entries]
    folded = [name.lower() for name in names]
    for place, name in enumerate(folded):
        if name in folded[:place]:
            raise ValueError(
                f"{entries[folded.index(name)]} and {entries[place]} name the same data set; rename one of the files."
            )
    return names


def evaluated_splits(datasets: Sequence[str], evaluate: Sequence[str] = EVALUATE) -> list[tuple[str, str]]:
    """Return the pairs of data set, as `datasets` names it, and split that a study evaluates.

    Raises ValueError as `dataset_names` does, and for an unknown kind of split.
    """
    unknown = [kind for kind in evaluate if kind not in EVALUATE]
    if unknown:
        raise ValueError(f"evaluate holds {unknown[0]!r}; it must be {' or '.join(EVALUATE)}.")
    pairs = []
    for dataset, name in zip(datasets, dataset_names(datasets), strict=True):
        protocol = protocol_of(name)
        splits = dict(zip(EVALUATE, (protocol.validation, protocol.submission), strict=True))
        pairs += [(dataset, splits[kind]) for kind in EVALUATE if kind in evaluate and splits[kind]]
    return pairs


def name_of(dataset: str, split: str, category: str) -> str:
    """Return a benchmark's name, as in "cirr/val", or in "fashioniq/val/dress" if there are several categories."""
    return f"{dataset}/{split}" + (f"/{category}" if len(protocol_of(dataset).categories) > 1 else "")
