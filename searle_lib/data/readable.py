"""Which images can be read: every one decoded once, the verdict kept, and what follows for a study with gaps.

FashionIQ's links rot, so that only part of its images can still be had. With `missing_images: error` the first image
that is missing or broken ends the work; with `report` it leaves the gallery, and with it every query that names it as
reference, ground truth or member of its group.
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
from searle_lib.store import shards
from searle_lib.store.artefacts import Store
from searle_lib.data.benchmarks import IMAGENET, Benchmark, by_split, images_of, keep, load_all, reference_table
from searle_lib.data.benchmarks import read as read_benchmarks
from searle_lib.store.code import code_digest
from searle_lib.store.records import Study

POLICIES = ("error", "report")
GOOD, MISSING, BROKEN = range(3)
SHARD = 4096


def verdicts(store: Store, name: str, table: pd.DataFrame, workers: int = 2) -> Tensor:
    """GOOD, MISSING or BROKEN [N] uint8 for each image of a table with columns image and path, kept in the store.

    Every image is decoded once; one that has changed since in size or time makes the verdict void.
    """
    paths = [Path(path) for path in table["path"]]

    def work(first: int, end: int) -> dict[str, Tensor]:
        with ThreadPoolExecutor(max(workers, 1)) as pool:
            found = list(pool.map(_verdict, paths[first:end]))
        return {"verdicts": torch.tensor(found, dtype=torch.uint8)}

    def make(folder: Path) -> None:
        found = shards.run(folder / "shards", len(paths), SHARD, work, desc=f"reading {name}")
        save_file(found, folder / "verdicts.safetensors")
        shards.clear(folder / "shards")

    facts = {"files": _files_fingerprint(paths), "code": code_digest(_verdict)}
    kept = store.keep(f"verdicts/{name}", facts, make)
    return kept.read(lambda folder: load_file(folder / "verdicts.safetensors")["verdicts"])


def of(store: Store, name: str, table: pd.DataFrame, policy: str, workers: int = 2) -> pd.DataFrame:
    """The table of images, with policy "report" without those that cannot be read.

    Raises ValueError when none is left.
    """
    if policy not in POLICIES:
        raise ValueError(f"missing_images is {policy}; it must be {' or '.join(POLICIES)}.")
    if policy == "error":
        return table
    good = table[(verdicts(store, name, table, workers) == GOOD).numpy()]
    if good.empty:
        raise ValueError(
            f"none of the {len(table):,} images of {name} can be read (first: {table['path'].iloc[0]}); download "
            "them, or correct data_root."
        )
    return good.reset_index(drop=True)


def only(store: Store, splits: dict[str, list[Benchmark]], policy: str, workers: int = 2) -> dict[str, list[Benchmark]]:
    """The benchmarks, with policy "report" without images that cannot be read and the queries that name one.

    Raises ValueError when a benchmark loses all its queries.
    """
    return {name: [_only(store, b, policy, workers) for b in loaded] for name, loaded in splits.items()}


def unlabeled(study: Study) -> pd.DataFrame:
    """Return the unlabeled pictures of a study, columns image and path, as 02_concepts decided to read them."""
    values = study.settings("02_concepts")
    table = annotations.imagenet(Path(study.path(values["data_root"])))
    return of(study.store, IMAGENET, table, values["missing_images"], values["workers"])


def pictures(study: Study, images: str, benchmarks: Sequence[Benchmark] = ()) -> pd.DataFrame:
    """Return columns image and path of a list of images: "imagenet/test", or "cirr/val/references".

    `benchmarks` are those of the study where 02_concepts has not kept them yet.
    """
    if images == IMAGENET:
        return unlabeled(study)
    return reference_table(by_split(benchmarks or read_benchmarks(study))[images.removesuffix("/references")])


def collect(
    study: Study, datasets: Sequence[str], evaluate: Sequence[str], fashioniq_gallery: str, policy: str, workers: int
) -> list[Benchmark]:
    """Return the benchmarks of a study, without what `policy` leaves out, and keep them for later notebooks."""
    data_root = Path(study.path(study.values["data_root"]))
    splits = only(study.store, load_all(datasets, data_root, evaluate, fashioniq_gallery), policy, workers)
    benchmarks = [benchmark for loaded in splits.values() for benchmark in loaded]
    keep(study, benchmarks, data_root)
    return benchmarks


def counts(benchmarks: Iterable[Benchmark]) -> pd.DataFrame:
    """How much of each benchmark is there: "n of N" queries and gallery images."""
    rows = {
        benchmark.name: [f"{part:,} of {whole:,}" for part, whole in zip(benchmark.there, benchmark.whole, strict=True)]
        for benchmark in benchmarks
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["queries", "gallery images"])


def reasons(paths: Iterable[str]) -> list[str]:
    """Why images cannot be read, a sentence each, with its remedy."""
    said = []
    for path in paths:
        try:
            images.read(Path(path))
        except (FileNotFoundError, ValueError) as problem:
            said.append(str(problem))
    return said


def _only(store: Store, benchmark: Benchmark, policy: str, workers: int) -> Benchmark:
    gallery = of(store, benchmark.images, benchmark.gallery, policy, workers)
    if len(gallery) == len(benchmark.gallery):
        return benchmark
    there = set(gallery["image"])
    whole = [there.issuperset(named) for named in images_of(benchmark.queries)]
    if not any(whole):
        raise ValueError(
            f"not one query of {benchmark.name} has all its images ({len(gallery):,} of {len(benchmark.gallery):,} can "
            "be read); download more of them, or leave the data set out of datasets."
        )
    return replace(benchmark, gallery=gallery, queries=benchmark.queries[whole].reset_index(drop=True))


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
            there = path.stat()
            total.update(f"{path.name}\t{there.st_size}\t{there.st_mtime_ns}\n".encode())
        except OSError:  # absent, or in a folder that may not be read
            total.update(f"{path.name}\n".encode())
    return total.hexdigest()[:16]
