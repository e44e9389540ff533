"""Decode every image once to find missing and broken ones, and drop them and their queries from a study.

Many of FashionIQ's links are dead, so only part of its images can still be downloaded. With `missing_images: error` the
first missing or broken image stops the study. With `report` it is dropped from the gallery, together with every query
that names it as reference, ground truth or group member. Takes and returns tables of images, and benchmarks.
"""

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from searle_lib.data import annotations, images
from searle_lib.data.benchmarks import (
    IMAGENET,
    Benchmark,
    galleries_of,
    group_by_split,
    keep,
    load_all,
    named_images,
    reference_table,
)
from searle_lib.data.benchmarks import read as read_benchmarks
from searle_lib.store import bars, shards
from searle_lib.store.artefacts import Store
from searle_lib.store.code import code_digest
from searle_lib.store.records import Study

POLICIES = ("error", "report")
GOOD, MISSING, BROKEN = range(3)
SHARD = 4096


def check_images(store: Store, name: str, table: pd.DataFrame, workers: int = 2) -> Tensor:
    """Decode each image of a table once, and cache the result in the store.

    Args:
        store: where the result is kept. It is computed again if the size or time of a file has changed.
        name: of the list of images.
        table: columns image and path.
        workers: threads that decode.

    Returns:
        [N] uint8: GOOD, MISSING or BROKEN.
    """
    paths = [Path(path) for path in table["path"]]

    def work(first: int, end: int) -> dict[str, Tensor]:
        with ThreadPoolExecutor(max(workers, 1)) as pool:
            verdicts = list(pool.map(_verdict, paths[first:end]))
        return {"verdicts": torch.tensor(verdicts, dtype=torch.uint8)}

    def make(folder: Path) -> None:
        verdicts = shards.run(folder / "shards", len(paths), SHARD, work, f"reading {name}", store.executor)
        save_file(verdicts, folder / "verdicts.safetensors")

    facts = {"files": _files_fingerprint(paths), "code": code_digest(_verdict)}
    artefact = store.keep(f"verdicts/{name}", facts, make)
    return artefact.read(lambda folder: load_file(folder / "verdicts.safetensors")["verdicts"])


def drop_unreadable(store: Store, name: str, table: pd.DataFrame, policy: str, workers: int = 2) -> pd.DataFrame:
    """Drop the images of a table that cannot be read.

    Args:
        store: where the result of reading is kept.
        name: of the list of images.
        table: columns image and path.
        policy: error or report. With error the table is returned unread.
        workers: threads that decode.

    Raises:
        ValueError: if the policy is unknown, or no image can be read.
    """
    if policy not in POLICIES:
        raise ValueError(f"missing_images is {policy}; it must be {' or '.join(POLICIES)}.")
    if policy == "error":
        return table
    good = table[(check_images(store, name, table, workers) == GOOD).numpy()]
    if good.empty:
        raise ValueError(
            f"none of the {len(table):,} images of {name} can be read (first: {table['path'].iloc[0]}); download "
            "them, or correct data_root."
        )
    return good.reset_index(drop=True)


def drop_incomplete_queries(
    store: Store, splits: dict[str, list[Benchmark]], policy: str, workers: int = 2
) -> dict[str, list[Benchmark]]:
    """Drop the images that cannot be read from galleries, and the queries that name one of them.

    Args:
        store: where the result of reading is kept.
        splits: the benchmarks of each split.
        policy: error or report. With error the benchmarks are returned unread.
        workers: threads that decode.

    Raises:
        ValueError: if a benchmark loses all its queries.
    """
    if policy == "error":
        return splits
    tables = galleries_of(benchmark for loaded in splits.values() for benchmark in loaded)
    sizes = {name: len(table) for name, table in tables.items()}
    galleries = bars.over_lists(
        "reading", sizes, lambda name: drop_unreadable(store, name, tables[name], policy, workers)
    )
    return {name: [_drop_from(b, galleries[b.gallery_name]) for b in loaded] for name, loaded in splits.items()}


def unlabeled_images(study: Study) -> pd.DataFrame:
    """Return the unlabeled images of a study by the settings of 02_concepts: columns image and path."""
    values = study.settings("02_concepts")
    table = annotations.imagenet(Path(study.path(values["data_root"])))
    return drop_unreadable(study.store, IMAGENET, table, values["missing_images"], values["workers"])


def image_table(study: Study, name: str, benchmarks: Sequence[Benchmark] = ()) -> pd.DataFrame:
    """Return a list of images by name, as in "imagenet/test" or "cirr/val/references": columns image and path.

    02_concepts passes its benchmarks; later notebooks read them.
    """
    if name == IMAGENET:
        return unlabeled_images(study)
    return reference_table(group_by_split(benchmarks or read_benchmarks(study))[name.removesuffix("/references")])


def collect(
    study: Study, datasets: Sequence[str], evaluate: Sequence[str], fashioniq_gallery: str, policy: str, workers: int
) -> list[Benchmark]:
    """Load the benchmarks of a study, drop what cannot be read, and keep the rest for later notebooks.

    Args:
        study: the study; its data_root holds the data sets.
        datasets: data sets of PROTOCOLS, and CSV files.
        evaluate: validation, test, or both.
        fashioniq_gallery: split or union.
        policy: error or report.
        workers: threads that decode.
    """
    data_root = Path(study.path(study.values["data_root"]))
    splits = drop_incomplete_queries(
        study.store, load_all(datasets, data_root, evaluate, fashioniq_gallery), policy, workers
    )
    benchmarks = [benchmark for loaded in splits.values() for benchmark in loaded]
    keep(study, benchmarks, data_root)
    return benchmarks


def counts(benchmarks: Iterable[Benchmark]) -> pd.DataFrame:
    """Count how much of each benchmark is in the study: "n of N" queries and gallery images."""
    rows = {b.name: [f"{n:,} of {total:,}" for n, total in zip(b.size, b.full_size, strict=True)] for b in benchmarks}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["queries", "gallery images"])


def explain(paths: Iterable[str]) -> list[str]:
    """Return a sentence for each image that cannot be read: what is wrong, and what to do."""
    sentences = []
    for path in paths:
        try:
            images.read(Path(path))
        except (FileNotFoundError, ValueError) as problem:
            sentences.append(str(problem))
    return sentences


def _drop_from(benchmark: Benchmark, gallery: pd.DataFrame) -> Benchmark:
    """Return a benchmark with the images of a gallery that can be read, and the queries that name no other image."""
    if len(gallery) == len(benchmark.gallery):
        return benchmark
    readable = set(gallery["image"])
    complete = [readable.issuperset(named) for named in named_images(benchmark.queries)]
    if not any(complete):
        raise ValueError(
            f"no query of {benchmark.name} has all its images ({len(gallery):,} of {len(benchmark.gallery):,} can be "
            "read); download more of them, or leave the data set out of datasets."
        )
    return replace(benchmark, gallery=gallery, queries=benchmark.queries[complete].reset_index(drop=True))


def _verdict(path: Path) -> int:
    try:
        images.read(path)
    except FileNotFoundError:
        return MISSING
    except ValueError:
        return BROKEN
    return GOOD


def _files_fingerprint(paths: Sequence[Path]) -> str:
    total = hashlib.sha256()
    for path in paths:
        try:
            status = path.stat()
            total.update(f"{path.name}\t{status.st_size}\t{status.st_mtime_ns}\n".encode())
        except OSError:  # missing, or in a folder that may not be read
            total.update(f"{path.name}\n".encode())
    return total.hexdigest()[:16]
