"""FashionIQ, CIRR and CIRCO in one form: a gallery and queries, as tables.

Everything in which the three benchmarks differ once their files are read (`annotations`) stands in PROTOCOLS. Notebook
02_concepts keeps the benchmarks of a study; later ones read what it kept, and so cannot disagree about it.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from searle_lib.data import annotations
from searle_lib.store.artefacts import digest, write_json
from searle_lib.store.records import Study

EXAMPLE_FROM, EXAMPLE_ROW = ("circo", "cirr", "fashioniq"), 3  # data sets in order, and the query's row
IMAGENET = "imagenet/test"  # the list of unlabeled images
IMAGE_LISTS = ("unlabeled", "references")  # kinds of images that may get pseudo-words of their own
EVALUATE = ("validation", "test")
FASHIONIQ_GALLERIES = ("split", "union")


@dataclass(frozen=True)
class Protocol:
    """How a benchmark is scored.

    `metrics` pairs each metric with the category under which published tables list it ("" for the query's own).
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
RELEASES = {  # what to do when queries and image list do not belong together
    "fashioniq": "download captions and image_splits of one release",
    "cirr": "download captions and image_splits of one release, rc2",
    "circo": "it must be COCO's image_info_unlabeled2017.json, of 123,403 images: download it again",
}
SIZES = {  # queries and gallery images of the published data sets (searle.md, section 5)
    "fashioniq/val/dress": (2017, 3817),
    "fashioniq/val/shirt": (2038, 6346),
    "fashioniq/val/toptee": (1961, 5373),
    "fashioniq/val/dress-union": (2017, 2628),
    "fashioniq/val/shirt-union": (2038, 3089),
    "fashioniq/val/toptee-union": (1961, 2902),
    "cirr/val": (4181, 2297),
    "cirr/test1": (4148, 2315),
    "circo/val": (220, 123_403),
    "circo/test": (800, 123_403),
}
IMAGENET_SIZE = 100_000


@dataclass(frozen=True)
class Benchmark:
    """One category of one split.

    gallery: columns image, path, in ranking order. queries: columns query, reference, sentences (complete modifying
    sentences; their features are averaged), target, ground_truths, group, aspects. Where a split keeps its targets
    secret, target is "" and ground_truths empty. `whole` is how many queries and gallery images the data set has, of
    which some may have been left out.
    """

    dataset: str
    split: str
    category: str
    images: str
    gallery: pd.DataFrame
    queries: pd.DataFrame
    whole: tuple[int, int]

    @property
    def protocol(self) -> Protocol:
        """The row of PROTOCOLS that says how this benchmark is scored."""
        return PROTOCOLS[self.dataset]

    @property
    def of_split(self) -> str:
        """As in "cirr/val": data set and split, without the category."""
        return f"{self.dataset}/{self.split}"

    @property
    def is_scored(self) -> bool:
        """Whether its targets are known, so that it is scored here and not by a server."""
        return self.split == self.protocol.validation

    @property
    def name(self) -> str:
        """As in "cirr/val", or "fashioniq/val/dress" where there are several categories."""
        return name_of(self.dataset, self.split, self.category)

    @property
    def there(self) -> tuple[int, int]:
        """How many of its queries and gallery images are in the study."""
        return len(self.queries), len(self.gallery)

    @property
    def evaluated_on(self) -> str:
        """How much of the data set is evaluated, "n of N" queries and images, and which gallery FashionIQ has."""
        (queries, images), (all_queries, all_images) = self.there, self.whole
        counts = f"{queries:,} of {all_queries:,} queries over {images:,} of {all_images:,} images"
        if len(self.protocol.categories) == 1:
            return counts
        return counts + (" (union gallery)" if self.images.endswith("-union") else " (split gallery)")

    @property
    def key(self) -> str:
        """Stands for the queries and the gallery's ids, in order."""
        return digest([self.queries.to_dict("records"), list(self.gallery["image"])])


@dataclass(frozen=True)
class Example:
    """One query that all notebooks follow: a row of a benchmark's queries."""

    benchmark: Benchmark
    row: int

    @property
    def query(self) -> pd.Series:
        """The query's row: reference, sentences, target, ground_truths."""
        return self.benchmark.queries.iloc[self.row]

    @property
    def images(self) -> str:
        """The list of images that holds the reference."""
        return f"{self.benchmark.of_split}/references"

    def list_in(self, lists: Iterable[str]) -> str:
        """Return the list of images that holds the reference if it is among `lists`, else the first of them."""
        lists = list(lists)
        return self.images if self.images in lists else lists[0]


def example(benchmarks: Iterable[Benchmark]) -> Example:
    """Return the running example of a study: a query of CIRCO's validation split, else of CIRR's or FashionIQ's.

    A study without a validation split takes a query of a test split, whose target is secret.
    """
    order = {dataset: place for place, dataset in enumerate(EXAMPLE_FROM)}
    benchmark = min(benchmarks, key=lambda one: (not one.is_scored, order[one.dataset]))
    return Example(benchmark, min(EXAMPLE_ROW, len(benchmark.queries) - 1))


def first_example(data_root: Path) -> Example:
    """Return the example of a data root before a study has decided on its data sets.

    Raises FileNotFoundError when no data set lies there.
    """
    for dataset in EXAMPLE_FROM:
        if (Path(data_root) / annotations.FOLDERS[dataset]).is_dir():
            return example(load(dataset, data_root, PROTOCOLS[dataset].validation))
    raise FileNotFoundError(
        f"{data_root} holds none of FashionIQ, CIRR and CIRCO; put one there, or correct data_root."
    )


def load(dataset: str, data_root: Path, split: str, fashioniq_gallery: str = "split") -> list[Benchmark]:
    """A benchmark's split, one Benchmark for each category.

    FashionIQ's gallery is all images of the split, or the union of its queries' references and targets.

    Raises ValueError for a dataset or split that does not exist, FileNotFoundError for a folder or file that is not
    there, ValueError for an entry without a key it needs or with an image that is in no gallery.
    """
    if dataset not in PROTOCOLS:
        raise ValueError(f"there is no dataset {dataset}; datasets may name {', '.join(PROTOCOLS)}.")
    if fashioniq_gallery not in FASHIONIQ_GALLERIES:
        raise ValueError(f"fashioniq_gallery is {fashioniq_gallery}; it must be {' or '.join(FASHIONIQ_GALLERIES)}.")
    protocol = PROTOCOLS[dataset]
    splits = [s for s in (protocol.validation, protocol.submission) if s]
    if split not in splits:
        raise ValueError(f"{protocol.title} has no split {split} here; it has {' and '.join(splits)}.")
    return [_load(dataset, Path(data_root), split, category, fashioniq_gallery) for category in protocol.categories]


def load_all(
    datasets: Sequence[str],
    data_root: Path,
    evaluate: Sequence[str] = EVALUATE,
    fashioniq_gallery: str = "split",
) -> dict[str, list[Benchmark]]:
    """The splits of each dataset by "dataset/split": those that are scored ("validation"), and those that a server
    scores ("test"). Raises as `load` does, and ValueError where there is nothing to evaluate."""
    named = names(datasets, evaluate)
    if not named:
        raise ValueError(
            f"datasets {list(datasets)} and evaluate {list(evaluate)} leave nothing to evaluate; FashionIQ has no test "
            "server, so add validation, CIRR or CIRCO."
        )
    return {f"{d}/{s}": load(d, data_root, s, fashioniq_gallery) for d, s in named}


def names(datasets: Sequence[str], evaluate: Sequence[str] = EVALUATE) -> list[tuple[str, str]]:
    """Pairs of dataset and split that a study evaluates. Raises ValueError for an unknown dataset."""
    unknown = [dataset for dataset in datasets if dataset not in PROTOCOLS]
    if unknown:
        raise ValueError(f"there is no dataset {unknown[0]}; datasets may name {', '.join(PROTOCOLS)}.")
    wrong = [kind for kind in evaluate if kind not in EVALUATE]
    if wrong:
        raise ValueError(f"evaluate holds {wrong[0]!r}; it must be {' or '.join(EVALUATE)}.")
    pairs = []
    for dataset in datasets:
        splits = dict(zip(EVALUATE, (PROTOCOLS[dataset].validation, PROTOCOLS[dataset].submission), strict=True))
        pairs += [(dataset, splits[kind]) for kind in EVALUATE if kind in evaluate and splits[kind]]
    return pairs


def name_of(dataset: str, split: str, category: str) -> str:
    """As in "cirr/val", or "fashioniq/val/dress" where there are several categories."""
    return f"{dataset}/{split}" + (f"/{category}" if len(PROTOCOLS[dataset].categories) > 1 else "")


def by_split(benchmarks: Iterable[Benchmark]) -> dict[str, list[Benchmark]]:
    """Return the benchmarks of each split, by name as in "cirr/val"."""
    splits: dict[str, list[Benchmark]] = {}
    for benchmark in benchmarks:
        splits.setdefault(benchmark.of_split, []).append(benchmark)
    return splits


def keep(study: Study, benchmarks: Iterable[Benchmark], data_root: Path) -> None:
    """Keep benchmarks, paths of pictures below the data root, for the notebooks that `read` them."""
    for benchmark in benchmarks:
        gallery = benchmark.gallery.assign(
            path=[os.path.relpath(path, data_root) for path in benchmark.gallery["path"]]
        )
        names = {name: getattr(benchmark, name) for name in ("dataset", "split", "category", "images", "whole")}
        facts = names | {"queries": benchmark.key, "paths": digest(list(gallery["path"]))}

        def make(folder: Path, benchmark=benchmark, gallery=gallery, names=names) -> None:
            gallery.to_parquet(folder / "gallery.parquet", index=False)
            benchmark.queries.to_parquet(folder / "queries.parquet", index=False)
            write_json(folder / "benchmark.json", names)

        study.keep(f"benchmarks/{benchmark.name}", facts, make)


def read(study: Study) -> list[Benchmark]:
    """Return the benchmarks of a study, as 02_concepts kept them, in order."""
    data_root = study.settings("02_concepts")["data_root"]
    root = Path(study.path(data_root))

    def load(folder: Path) -> Benchmark:
        names = json.loads((folder / "benchmark.json").read_text(encoding="utf-8"))
        gallery, queries = (pd.read_parquet(folder / f"{table}.parquet") for table in ("gallery", "queries"))
        for column in ("sentences", "ground_truths", "group", "aspects"):
            queries[column] = queries[column].map(list)
        gallery["path"] = [str(root / path) for path in gallery["path"]]
        return Benchmark(**names | {"whole": tuple(names["whole"])}, gallery=gallery, queries=queries)

    return [artefact.read(load) for artefact in study.artefacts("02_concepts", "benchmarks").values()]


def reference_table(loaded: list[Benchmark]) -> pd.DataFrame:
    """A split's reference images, each once, in order of first use, as a table with columns image and path."""
    paths = {image: path for b in loaded for image, path in zip(b.gallery["image"], b.gallery["path"], strict=True)}
    images = dict.fromkeys(reference for benchmark in loaded for reference in benchmark.queries["reference"])
    return pd.DataFrame({"image": list(images), "path": [paths[image] for image in images]})


def images_of(queries: pd.DataFrame) -> pd.Series:
    """The images that each query names: its reference, its ground truths and its group."""
    columns = zip(queries["reference"], queries["ground_truths"], queries["group"], strict=True)
    named = [[reference, *truths, *group] for reference, truths, group in columns]
    return pd.Series(named, index=queries["query"], dtype=object)


def _load(dataset: str, data_root: Path, split: str, category: str, fashioniq_gallery: str) -> Benchmark:
    queries = annotations.queries(dataset, data_root, split, category)
    gallery = annotations.gallery(dataset, data_root, split, category)
    images = "circo/unlabeled" if dataset == "circo" else name_of(dataset, split, category)
    known = set(gallery["image"])
    for query, named in images_of(queries).items():
        absent = next((image for image in named if image not in known), None)
        if absent is not None:
            source = annotations.image_list(dataset, data_root, split, category)
            raise ValueError(
                f"query {query} of {name_of(dataset, split, category)} names image {absent}, which is not among the "
                f"{len(gallery):,} of {source}; {RELEASES[dataset]}."
            )
    if dataset == "fashioniq" and fashioniq_gallery == "union":
        used = {image for named in images_of(queries) for image in named}
        gallery = gallery[gallery["image"].isin(used)].reset_index(drop=True)
        images += "-union"
    return Benchmark(dataset, split, category, images, gallery, queries, (len(queries), len(gallery)))
