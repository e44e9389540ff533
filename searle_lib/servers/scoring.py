"""Predictions that people bring, scored on validation splits: every metric, in percent.

A file is recognised and checked as in `predictions`; FashionIQ has no server, and its files are lists in the order of
its caption file, each entry with a key ranking. How metrics are counted stands in `metrics`.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from searle_lib.data import annotations
from searle_lib.data.benchmarks import PROTOCOLS
from searle_lib.evaluation import scores
from searle_lib.evaluation.rankings import Rankings
from searle_lib.servers.predictions import Task, image_of, list_problems, problems_of, read, recognised, shown, task_of

SERVERS = {"cirr": "https://cirr.cecs.anu.edu.au/test_process/", "circo": "https://circo.micc.unifi.it/"}
UNLISTED = 10**9  # the rank of an image that a list ends without: beyond every k


def score(file: Path, dataset: str, data_root: Path, category: str | None = None) -> dict:
    """Every metric of a file of predictions for a validation split, in percent, as JSON can hold it.

    Lists may be longer than a server takes. A CIRR file gives the metrics of its own kind, and a recall file whose
    lists hold every query's whole group those of the subset too. Raises ValueError for a file with problems, in the
    first one's sentence, and for one of a test split; FileNotFoundError for annotations that are not there.
    """
    _check_category(dataset, category)
    given, repeated = read(file)
    if dataset == "fashioniq":
        task = task_of(dataset, data_root, PROTOCOLS[dataset].validation, category)
        entries = annotations.fashioniq_entries(data_root, task.split, category)
        problems = _entry_problems(file, given, repeated, task, entries)
    else:
        task = recognised(file, given, data_root)
        _check_scorable(file, dataset, task)
        problems = problems_of(file, given, repeated, task, longer=True)
    if problems:
        raise ValueError(problems[0] + (f" (and {len(problems) - 1:,} more)" if len(problems) > 1 else ""))
    values = [entry["ranking"] for entry in given] if dataset == "fashioniq" else map(given.get, task.queries["query"])
    lists = [[image_of(dataset, entry) for entry in value] for value in values]
    ranks = _ranks(task.queries, lists)
    return {
        "dataset": PROTOCOLS[dataset].title,
        "split": task.split,
        **({"category": category} if category else {}),
        "queries": len(lists),
        "metrics": {n: round(float(scores.metric(n, ranks).mean()) * 100, 4) for n in _answered(task, lists)},
        **({f"{scores.ASPECT_METRIC} by aspect": _by_aspect(task, ranks)} if dataset == "circo" else {}),
    }


def _check_category(dataset: str, category: str | None) -> None:
    if dataset not in PROTOCOLS:
        raise ValueError(f"there is no dataset {dataset}; predictions can be of {', '.join(PROTOCOLS)}.")
    title, categories = PROTOCOLS[dataset].title, PROTOCOLS[dataset].categories
    if dataset != "fashioniq" and category is not None:
        raise ValueError(f"{title} has no categories, and {category} was given; leave category out.")
    if dataset == "fashioniq" and category not in categories:
        raise ValueError(f"category of {title} is {category}; name one of {', '.join(categories)}.")


def _check_scorable(file: Path, dataset: str, task: Task) -> None:
    protocol = PROTOCOLS[dataset]
    if task.dataset != dataset:
        raise ValueError(f"{file} is of {task.title}, not of {protocol.title}; score it as {task.dataset}.")
    if task.split != protocol.validation:
        raise ValueError(
            f"{file} holds queries of {task.title}, whose targets are secret; submit it to {SERVERS[dataset]}, or "
            f"bring predictions for {protocol.validation} alone."
        )


def _entry_problems(file: Path, given: dict | list, repeated: set[str], task: Task, entries: list[dict]) -> list[str]:
    """Sentences on a FashionIQ file, in its order; `entries` are the caption file's."""
    if not isinstance(given, list):
        raise ValueError(f"{file} is no list, and FashionIQ's predictions are one; write the caption file's entries.")
    problems = [f"key {key} stands twice in an entry of {file.name}; keep one." for key in sorted(repeated)]
    if len(given) != len(entries):
        problems.append(f"{file.name} has {len(given)} entries, the caption file {len(entries)}; write one for each.")
    for row, (entry, asked) in enumerate(zip(given, entries, strict=False)):
        where = f"entry {row} of {file.name}"
        if not isinstance(entry, dict):
            problems.append(f"{where} is {shown(entry)}; write an object with candidate, captions and ranking.")
            continue
        for key in ("candidate", "captions", "ranking"):
            if key not in entry:
                problems.append(f"{where} has no key {key}; add it.")
            elif key in asked and entry[key] != asked[key]:
                problems.append(f"{where} has not the {key} of the caption file's entry {row}; keep that file's order.")
        if "ranking" in entry:
            problems += list_problems(where, entry["ranking"], task, longer=True)
    return problems


def _ranks(queries: pd.DataFrame, lists: list[list[str]]) -> Rankings:
    """Ranks in the lists; an image that they lack ranks beyond every k, so that it counts among the ground truths."""
    places = [{image: place for place, image in enumerate(images)} for images in lists]

    def ranks(column: Sequence[list[str]]) -> Tensor:
        found = [[place.get(image, UNLISTED) for image in images] for place, images in zip(places, column, strict=True)]
        return pad_sequence([torch.tensor(row, dtype=torch.int64) for row in found], True, padding_value=-1)

    target = ranks([[image] for image in queries["target"]])[:, 0]
    group = ranks(queries["group"])
    before = (group >= 0) & (group < target.unsqueeze(1))  # members of the group that rank before the target
    subset = before.sum(1).masked_fill(target < 0, -1)
    return Rankings(target, ranks(queries["ground_truths"]), group, subset, top=torch.empty(len(lists), 0))


def _answered(task: Task, lists: list[list[str]]) -> list[str]:
    """The metrics for which a file's lists are enough."""
    names = [name for name, _ in PROTOCOLS[task.dataset].metrics]
    if task.metric == "recall_subset":
        return [name for name in names if name.startswith("Rsubset")]
    whole = all(set(group) <= set(images) for group, images in zip(task.queries["group"], lists, strict=True))
    return [name for name in names if whole or not name.startswith("Rsubset")]


def _by_aspect(task: Task, ranks: Rankings) -> dict[str, float]:
    values = scores.metric(scores.ASPECT_METRIC, ranks).numpy()
    long = task.queries[["aspects"]].assign(value=values).explode("aspects").dropna()
    return (long.groupby("aspects")["value"].mean() * 100).round(4).to_dict()
