"""Score a file of predictions for a validation split: every metric, in percent, with its 95 % interval.

A file of CIRR or CIRCO is recognised and checked as in `predictions`. FashionIQ has no server; its file is a list in
the order of the caption file, and each entry has a key `ranking`. It may also have the form of CIRCO's, as an own data
set's file has, with image names. A TREC run file holds what such an object holds. `metrics` defines the metrics.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from searle_lib.data import annotations
from searle_lib.data.protocols import OWN, OWN_FILE, PROTOCOLS
from searle_lib.evaluation import scores
from searle_lib.evaluation.intervals import aspects, summarise
from searle_lib.evaluation.metrics import UNLISTED
from searle_lib.evaluation.other_models import Evaluation
from searle_lib.evaluation.rankings import DEPTH, Rankings, ranking_table
from searle_lib.servers import trec
from searle_lib.servers.predictions import (
    VERSION,
    Task,
    excerpt,
    find_problems,
    list_problems,
    load_task,
    read,
    recognise,
    to_image_id,
)
from searle_lib.store.reading import FileRefused, printable

SERVERS = {"cirr": "https://cirr.cecs.anu.edu.au/test_process/", "circo": "https://circo.micc.unifi.it/"}


def score(file: Path, dataset: str, data_root: Path, category: str | None = None) -> dict:
    """Return every metric of a file of predictions, as `report` does. Arguments and errors are those of `evaluate`."""
    return report(evaluate(file, dataset, data_root, category))


def evaluate(file: Path, dataset: str, data_root: Path, category: str | None = None, name: str = "") -> Evaluation:
    """Score the lists of a file of predictions for a validation split.

    Lists may be longer than a server takes. A CIRR file gets the metrics of its own kind. A recall file whose lists
    hold every query's whole group gets the metrics of the subset.

    Args:
        file: JSON, or a TREC run.
        dataset: fashioniq, cirr, circo, or a CSV file.
        data_root: the folder of the data sets.
        category: a category of FashionIQ, else None.
        name: the model's name.

    Raises:
        ValueError: if the file has problems (in the first one's sentence), or is for a test split.
        FileNotFoundError: if the file or the annotations do not exist.
    """
    check_category(dataset, category)
    is_run = file.is_file() and trec.is_run(file)
    content, repeated = (trec.read_run(file), set()) if is_run else read(file)
    if dataset in PROTOCOLS and PROTOCOLS[dataset].submission:
        task = recognise(file, content, data_root)
        _check_scorable(file, dataset, task)
    else:
        task = load_task(dataset, data_root, PROTOCOLS.get(dataset, OWN).validation, category or "all")
    if dataset == "cirr" and is_run:
        content |= {"version": VERSION, "metric": task.metric}
    if isinstance(content, dict):
        problems = find_problems(file, content, repeated, task, allow_longer=True)
    elif dataset == "fashioniq":
        entries = annotations.fashioniq_entries(data_root, task.split, category)
        problems = _entry_problems(file, content, repeated, task, entries)
    else:
        raise FileRefused(f"{file} is a list; write an object of query id: list of images.")
    if problems:
        raise ValueError(problems[0] + (f" (and {len(problems) - 1:,} more)" if len(problems) > 1 else ""))
    if isinstance(content, dict):
        lists = [content[query] for query in task.queries["query"]]
    else:
        lists = [entry["ranking"] for entry in content]
    lists = [[to_image_id(dataset, entry) for entry in images] for images in lists]
    ranks, benchmark = _rank(task.queries, lists), task.benchmark
    table, metrics = scores.score_queries(benchmark, ranks, name), _metric_names(task, lists)
    rankings = ranking_table(benchmark, ranks, name).assign(best=[images[:DEPTH] for images in lists])
    if not any(metric.startswith("Rsubset") for metric in metrics):
        rankings["group"] = [[] for _ in lists]  # the order of members that are not listed is unknown
    return Evaluation(
        benchmark,
        table[table["metric"].isin(metrics)],
        rankings.iloc[:0] if task.metric == "recall_subset" else rankings,
    )


def report(evaluation: Evaluation) -> dict:
    """Return the metrics of an evaluation and the ends of their 95 % intervals, in percent, as JSON can hold it.

    The intervals are those of a study with the default seed and number of resamples.
    """
    benchmark, by_aspect = evaluation.benchmark, {}
    title, category = benchmark.protocol.title, benchmark.category
    numbers = pd.DataFrame(columns=["value", "ci_low", "ci_high"])
    if len(evaluation.scores):
        results = summarise(evaluation.scores, "", {"backbone": "", "sizes": {}})
        numbers = results[results["category"].isin([category, "subset"])].set_index("metric")
        shared = results[results["category"].isin(aspects(results, title))]
        by_aspect = shared.set_index("category")["value"].to_dict()
    names = [name for name, _ in benchmark.protocol.metrics if name in numbers.index]
    return {
        "dataset": title,
        "split": benchmark.split,
        **({"category": category} if category != "all" else {}),
        "queries": len(benchmark.queries),
        "metrics": numbers["value"][names].to_dict(),
        "95 % intervals": {name: numbers.loc[name, ["ci_low", "ci_high"]].tolist() for name in names},
        **({f"{scores.ASPECT_METRIC} by aspect": by_aspect} if benchmark.dataset == "circo" else {}),
    }


def check_category(dataset: str, category: str | None) -> None:
    """Raise ValueError if there is no such data set, or it does not have the category; FashionIQ needs one."""
    if dataset not in PROTOCOLS and not dataset.endswith(OWN_FILE):
        choices = f"{', '.join(PROTOCOLS)}, or a {OWN_FILE} file of your own"
        raise ValueError(f"there is no dataset {dataset}; predictions can be for {choices}.")
    protocol = PROTOCOLS.get(dataset, OWN)
    title, categories = protocol.title or dataset, protocol.categories
    if dataset != "fashioniq" and category is not None:
        raise ValueError(f"{title} has no categories; leave out category {category}.")
    if dataset == "fashioniq" and category not in categories:
        raise ValueError(f"category of {title} is {category}; name one of {', '.join(categories)}.")


def _check_scorable(file: Path, dataset: str, task: Task) -> None:
    protocol = PROTOCOLS[dataset]
    if task.dataset != dataset:
        raise ValueError(f"{file} is for {task.title}, not for {protocol.title}; score it as {task.dataset}.")
    if task.split != protocol.validation:
        raise ValueError(
            f"{file} holds queries of {task.title}, whose targets are secret; submit it to {SERVERS[dataset]}, or "
            f"score predictions for {protocol.validation} alone."
        )


def _entry_problems(file: Path, content: list, repeated: set[str], task: Task, entries: list[dict]) -> list[str]:
    """One sentence per problem of a FashionIQ file, in its order; `entries` are those of the caption file."""
    problems = [f"key {key} stands twice in an entry of {file.name}; keep one." for key in sorted(repeated)]
    if len(content) != len(entries):
        problems.append(f"{file.name} has {len(content)} entries, the caption file {len(entries)}; write one for each.")
    for row, (entry, expected) in enumerate(zip(content, entries, strict=False)):
        name = f"entry {row} of {file.name}"
        if not isinstance(entry, dict):
            problems.append(f"{name} is {excerpt(entry)}; write an object with candidate, captions and ranking.")
            continue
        for key in ("candidate", "captions", "ranking"):
            if key not in entry:
                problems.append(f"{name} has no key {key}; add it.")
            elif key in expected and entry[key] != expected[key]:
                problems.append(f"{name} does not have the {key} of the caption file; keep that file's order.")
        if "ranking" in entry:
            problems += list_problems(name, entry["ranking"], task, allow_longer=True)
    return list(map(printable, problems))


def _rank(queries: pd.DataFrame, lists: list[list[str]]) -> Rankings:
    """Ranks of targets, ground truths and groups in the lists; an image that a list lacks has the rank UNLISTED.

    So a ground truth that is not listed still counts as one.
    """
    tables = [{image: rank for rank, image in enumerate(images)} for images in lists]

    def ranks(column: Sequence[list[str]]) -> Tensor:
        pairs = zip(tables, column, strict=True)
        rows = [[rank_of.get(image, UNLISTED) for image in images] for rank_of, images in pairs]
        return pad_sequence([torch.tensor(row, dtype=torch.int64) for row in rows], True, padding_value=-1)

    target = ranks([[image] for image in queries["target"]])[:, 0]
    group = ranks(queries["group"])
    before = (group >= 0) & (group < target.unsqueeze(1))  # members of the group that rank before the target
    subset = before.sum(1).masked_fill(target < 0, -1)
    top = torch.empty(len(lists), 0, dtype=torch.int64)
    return Rankings(target, ranks(queries["ground_truths"]), group, subset, top, scores=top.float())


def _metric_names(task: Task, lists: list[list[str]]) -> list[str]:
    """The metrics that a file's lists suffice for."""
    names = [name for name, _ in task.protocol.metrics]
    if task.metric == "recall_subset":
        return [name for name in names if name.startswith("Rsubset")]
    complete = all(set(group) <= set(images) for group, images in zip(task.queries["group"], lists, strict=True))
    return [name for name in names if complete or not name.startswith("Rsubset")]
