"""FashionIQ, CIRR and CIRCO in one form: a gallery and queries, as tables.

Takes a data root and returns benchmarks, also of the user's own data sets. `protocols` holds all differences between
the data sets that `annotations` and `own_data` do not remove. Notebook 02_concepts keeps the benchmarks of a study, and
later notebooks read them.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from searle_lib.data import annotations, own_data
from searle_lib.data.protocols import (
    EVALUATE,
    PROTOCOLS,
    Protocol,
    dataset_name,
    evaluated_splits,
    name_of,
    protocol_of,
)
from searle_lib.store.artefacts import digest, write_json
from searle_lib.store.reading import FileRefused
from searle_lib.store.records import Study

EXAMPLE_DATASETS = ("circo", "cirr", "fashioniq")  # the running example is a query of the first that a study has
EXAMPLE_ROW = 3
IMAGENET = "imagenet/test"  # the list of unlabeled images
IMAGE_LISTS = ("unlabeled", "references")  # kinds of images that may get pseudo-words of their own
FASHIONIQ_GALLERIES = ("split", "union")


REMEDIES = {  # what to do if the queries do not belong to the image list
    "fashioniq": "download captions and image_splits of one release",
    "cirr": "download captions and image_splits of one release, rc2",
    "circo": "it must be COCO's image_info_unlabeled2017.json, of 123,403 images: download it again",
}


@dataclass(frozen=True)
class Benchmark:
    """One category of one split.

    Args:
        dataset: fashioniq, cirr, circo, or the name of an own data set.
        split: as in val.
        category: as in dress, or all.
        gallery_name: the name of the gallery, which several benchmarks may share.
        gallery: columns image and path, in ranking order.
        queries: columns query, reference, sentences, target, ground_truths, group and aspects. Sentences are forms of
            one relative caption; their features are averaged. If targets are secret, target is "" and ground_truths
            is empty.
        full_size: how many queries and gallery images the data set has, before unreadable images are dropped.
    """

    dataset: str
    split: str
    category: str
    gallery_name: str
    gallery: pd.DataFrame
    queries: pd.DataFrame
    full_size: tuple[int, int]

    @property
    def protocol(self) -> Protocol:
        """How this benchmark is scored; an own data set has the metrics that its queries allow."""
        return protocol_of(self.dataset, self.queries)

    @property
    def split_name(self) -> str:
        """Data set and split, without the category, as in "cirr/val"."""
        return f"{self.dataset}/{self.split}"

    @property
    def is_scored(self) -> bool:
        """Whether its targets are public, so that it is scored here and not by a server."""
        return self.split == self.protocol.validation

    @property
    def name(self) -> str:
        """As in "cirr/val", or in "fashioniq/val/dress" if there are several categories."""
        return name_of(self.dataset, self.split, self.category)

    @property
    def size(self) -> tuple[int, int]:
        """How many of its queries and gallery images are in the study."""
        return len(self.queries), len(self.gallery)

    @property
    def key(self) -> str:
        """Hash of the queries and the gallery's ids, in order."""
        return digest([self.queries.to_dict("records"), list(self.gallery["image"])])


@dataclass(frozen=True)
class Example:
    """The running example of a study: one row of a benchmark's queries."""

    benchmark: Benchmark
    row: int

    @property
    def query(self) -> pd.Series:
        """The row of the query."""
        return self.benchmark.queries.iloc[self.row]

    @property
    def list_name(self) -> str:
        """The name of the list of images that holds the reference."""
        return f"{self.benchmark.split_name}/references"

    def pick_list(self, lists: Iterable[str]) -> str:
        """Return the name of the list that holds the reference if it is in `lists`, else the first name."""
        lists = list(lists)
        return self.list_name if self.list_name in lists else lists[0]


def example(benchmarks: Iterable[Benchmark]) -> Example:
    """Return the running example of a study: a query of CIRCO's validation split, else of CIRR's, FashionIQ's, an own.

    A study without a validation split uses a query of a test split, which has a secret target.
    """
    order = {dataset: place for place, dataset in enumerate(EXAMPLE_DATASETS)}
    benchmark = min(benchmarks, key=lambda one: (not one.is_scored, order.get(one.dataset, len(order))))
    return Example(benchmark, min(EXAMPLE_ROW, len(benchmark.queries) - 1))


def first_example(data_root: Path) -> Example:
    """Return the running example of a data root, for a study without benchmarks yet.

    Raises FileNotFoundError if the data root holds no data set.
    """
    for dataset in EXAMPLE_DATASETS:
        if (Path(data_root) / annotations.FOLDERS[dataset]).is_dir():
            return example(load(dataset, data_root, PROTOCOLS[dataset].validation))
    for file in own_data.list_files(Path(data_root)):
        return example(load(str(file), data_root, protocol_of("").validation))
    raise FileNotFoundError(
        f"{data_root} holds none of FashionIQ, CIRR and CIRCO, and no CSV of queries; put one there, or correct "
        "data_root."
    )


def load(dataset: str, data_root: Path, split: str, fashioniq_gallery: str = "split") -> list[Benchmark]:
    """Load a split of a data set, one Benchmark for each category.

    Args:
        dataset: fashioniq, cirr, circo, or a CSV file, its path absolute or from data_root.
        data_root: the folder of the data sets.
        split: a validation or submission split of PROTOCOLS.
        fashioniq_gallery: split, all images of the split, or union, the references and targets of its queries.

    Raises:
        FileNotFoundError: if a folder or file does not exist.
        ValueError: if the data set or split is unknown, an entry does not have a key, or the gallery does not hold an
            image of a query.
    """
    name = dataset_name(dataset)
    if fashioniq_gallery not in FASHIONIQ_GALLERIES:
        raise ValueError(f"fashioniq_gallery is {fashioniq_gallery}; it must be {' or '.join(FASHIONIQ_GALLERIES)}.")
    protocol = protocol_of(name)
    splits = [one for one in (protocol.validation, protocol.submission) if one]
    if split not in splits:
        raise ValueError(f"{protocol.title} has no split {split}; use {' or '.join(splits)}.")
    if dataset not in PROTOCOLS:
        queries, gallery = own_data.read(Path(data_root) / Path(dataset).expanduser())
        place, sizes = (name, split, *protocol.categories), (len(queries), len(gallery))
        return [Benchmark(*place, name_of(*place), gallery, queries, sizes)]
    return [_load(dataset, Path(data_root), split, category, fashioniq_gallery) for category in protocol.categories]


def load_all(
    datasets: Sequence[str],
    data_root: Path,
    evaluate: Sequence[str] = EVALUATE,
    fashioniq_gallery: str = "split",
) -> dict[str, list[Benchmark]]:
    """Load the evaluated splits of several data sets, by name as in "cirr/val".

    Args:
        datasets: data sets of PROTOCOLS, and CSV files.
        data_root: the folder of the data sets.
        evaluate: validation, the splits that are scored here, and test, those that a server scores.
        fashioniq_gallery: split or union.

    Raises as `load` does, and ValueError if there is nothing to evaluate.
    """
    splits = evaluated_splits(datasets, evaluate)
    if not splits:
        raise ValueError(
            f"datasets {list(datasets)} and evaluate {list(evaluate)} leave nothing to evaluate; FashionIQ has no test "
            "server, nor has a CSV file, so add validation, CIRR or CIRCO."
        )
    return {f"{dataset_name(d)}/{s}": load(d, data_root, s, fashioniq_gallery) for d, s in splits}


def galleries_of(benchmarks: Iterable[Benchmark]) -> dict[str, pd.DataFrame]:
    """Return the tables of the benchmarks' galleries by name. A gallery that several benchmarks share is in it once."""
    return {benchmark.gallery_name: benchmark.gallery for benchmark in benchmarks}


def group_by_split(benchmarks: Iterable[Benchmark]) -> dict[str, list[Benchmark]]:
    """Return the benchmarks of each split, by name as in "cirr/val"."""
    splits: dict[str, list[Benchmark]] = {}
    for benchmark in benchmarks:
        splits.setdefault(benchmark.split_name, []).append(benchmark)
    return splits


def keep(study: Study, benchmarks: Iterable[Benchmark], data_root: Path) -> None:
    """Keep benchmarks for `read` in later notebooks, with image paths relative to the data root."""
    for benchmark in benchmarks:
        gallery = benchmark.gallery.assign(
            path=[os.path.relpath(path, data_root) for path in benchmark.gallery["path"]]
        )
        names = {name: getattr(benchmark, name) for name in ("dataset", "split", "category")}
        names |= {"images": benchmark.gallery_name, "whole": benchmark.full_size}
        facts = names | {"queries": benchmark.key, "paths": digest(list(gallery["path"]))}

        def make(folder: Path, benchmark=benchmark, gallery=gallery, names=names) -> None:
            gallery.to_parquet(folder / "gallery.parquet", index=False)
            benchmark.queries.to_parquet(folder / "queries.parquet", index=False)
            write_json(folder / "benchmark.json", names)

        study.keep(f"benchmarks/{benchmark.name}", facts, make)


def read(study: Study) -> list[Benchmark]:
    """Return the benchmarks of a study that 02_concepts kept, in order."""
    data_root = study.settings("02_concepts")["data_root"]
    root = Path(study.path(data_root))

    def load(folder: Path) -> Benchmark:
        names = json.loads((folder / "benchmark.json").read_text(encoding="utf-8"))
        gallery, queries = (pd.read_parquet(folder / f"{table}.parquet") for table in ("gallery", "queries"))
        for column in ("sentences", "ground_truths", "group", "aspects"):
            queries[column] = queries[column].map(list)
        gallery["path"] = [str(root / path) for path in gallery["path"]]
        gallery_name, full_size = names.pop("images"), tuple(names.pop("whole"))
        return Benchmark(**names, gallery_name=gallery_name, gallery=gallery, queries=queries, full_size=full_size)

    return [artefact.read(load) for artefact in study.artefacts("02_concepts", "benchmarks").values()]


def reference_table(benchmarks: Sequence[Benchmark]) -> pd.DataFrame:
    """Return the reference images of a split, each once, in order of first use: columns image and path."""
    galleries = [benchmark.gallery for benchmark in benchmarks]
    paths = {image: path for table in galleries for image, path in zip(table["image"], table["path"], strict=True)}
    images = dict.fromkeys(reference for benchmark in benchmarks for reference in benchmark.queries["reference"])
    return pd.DataFrame({"image": list(images), "path": [paths[image] for image in images]})


def named_images(queries: pd.DataFrame) -> pd.Series:
    """Return the images that each query names: its reference, its ground truths and its group."""
    columns = zip(queries["reference"], queries["ground_truths"], queries["group"], strict=True)
    images = [[reference, *truths, *group] for reference, truths, group in columns]
    return pd.Series(images, index=queries["query"], dtype=object)


def read_tables(dataset: str, data_root: Path, split: str, category: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the queries and the gallery of a split, in the columns of Benchmark.

    Raises as `annotations.queries` does, and ValueError if the gallery does not hold an image of a query.
    """
    queries = annotations.queries(dataset, data_root, split, category)
    gallery = annotations.gallery(dataset, data_root, split, category)
    gallery_ids = set(gallery["image"])
    for query, images in named_images(queries).items():
        absent = next((image for image in images if image not in gallery_ids), None)
        if absent is not None:
            source = annotations.image_list(dataset, data_root, split, category)
            raise FileRefused(
                f"query {query} of {name_of(dataset, split, category)} names image {absent:.80}, which is not among "
                f"the {len(gallery):,} of {source}; {REMEDIES[dataset]}."
            )
    return queries, gallery


def _load(dataset: str, data_root: Path, split: str, category: str, fashioniq_gallery: str) -> Benchmark:
    queries, gallery = read_tables(dataset, data_root, split, category)
    gallery_name = "circo/unlabeled" if dataset == "circo" else name_of(dataset, split, category)
    if dataset == "fashioniq" and fashioniq_gallery == "union":
        union = {image for images in named_images(queries) for image in images}
        gallery = gallery[gallery["image"].isin(union)].reset_index(drop=True)
        gallery_name += "-union"
    return Benchmark(dataset, split, category, gallery_name, gallery, queries, (len(queries), len(gallery)))
