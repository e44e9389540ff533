"""FashionIQ, CIRR, CIRCO and ImageNet folders, read into one form: a gallery and queries, as tables.

Everything in which the three benchmarks differ once they are read stands in PROTOCOLS. Folder layouts and file
forms are the real ones (searle.md, sections 5 and 9).
"""

import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from searle_lib.artefacts import digest


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


@dataclass(frozen=True)
class Benchmark:
    """One category of one split.

    gallery: columns image, path, in ranking order. queries: columns query, reference, sentences (complete modifying
    sentences; their features are averaged), target, ground_truths, group, aspects. Where a split keeps its targets
    secret, target is "" and ground_truths empty.
    """

    dataset: str
    split: str
    category: str
    images: str
    gallery: pd.DataFrame
    queries: pd.DataFrame

    @property
    def protocol(self) -> Protocol:
        """The row of PROTOCOLS that says how this benchmark is scored."""
        return PROTOCOLS[self.dataset]

    @property
    def name(self) -> str:
        """As in "cirr/val", or "fashioniq/val/dress" where there are several categories."""
        category = f"/{self.category}" if len(self.protocol.categories) > 1 else ""
        return f"{self.dataset}/{self.split}{category}"

    @property
    def key(self) -> str:
        """Stands for the queries and the gallery's ids, in order."""
        return digest([self.queries.to_dict("records"), list(self.gallery["image"])])


def load(dataset: str, data_root: Path, split: str) -> list[Benchmark]:
    """A benchmark's split, one Benchmark for each category.

    Raises ValueError for a dataset or split that does not exist, FileNotFoundError for a folder or file that is not
    there, ValueError for an entry without a key it needs or with an image that is in no gallery.
    """
    readers = {"fashioniq": _fashioniq, "cirr": _cirr, "circo": _circo}
    if dataset not in readers:
        raise ValueError(f"there is no dataset {dataset}; datasets may name {', '.join(readers)}.")
    protocol = PROTOCOLS[dataset]
    splits = [s for s in (protocol.validation, protocol.submission) if s]
    if split not in splits:
        raise ValueError(f"{protocol.title} has no split {split} here; it has {' and '.join(splits)}.")
    return [_checked(readers[dataset](Path(data_root), split, category)) for category in protocol.categories]


def load_all(datasets: list[str], data_root: Path) -> dict[str, list[Benchmark]]:
    """Both splits of each dataset, the one that is scored and the one that a server scores, by "dataset/split"."""
    unknown = [dataset for dataset in datasets if dataset not in PROTOCOLS]
    if unknown:
        raise ValueError(f"there is no dataset {unknown[0]}; datasets may name {', '.join(PROTOCOLS)}.")
    splits = [(d, s) for d in datasets for s in (PROTOCOLS[d].validation, PROTOCOLS[d].submission) if s]
    return {f"{dataset}/{split}": load(dataset, data_root, split) for dataset, split in splits}


def imagenet(data_root: Path) -> pd.DataFrame:
    """The unlabeled pictures of ImageNet-1K test as a table with columns image and path, sorted by name."""
    folder = _existing(Path(data_root) / "ImageNet1K" / "test")
    paths = sorted(folder.rglob("*.JPEG"))
    if not paths:
        raise FileNotFoundError(
            f"{folder} holds no .JPEG pictures; unpack ImageNet-1K test there, or correct data_root."
        )
    return _table([(path.stem, path) for path in paths])


def reference_table(loaded: list[Benchmark]) -> pd.DataFrame:
    """A split's reference images, each once, in order of first use, as a table with columns image and path."""
    paths = {image: path for b in loaded for image, path in zip(b.gallery["image"], b.gallery["path"], strict=True)}
    images = dict.fromkeys(reference for benchmark in loaded for reference in benchmark.queries["reference"])
    return pd.DataFrame({"image": list(images), "path": [paths[image] for image in images]})


def _fashioniq(root: Path, split: str, category: str) -> Benchmark:
    folder = _existing(root / "FashionIQ")
    names = _json(folder / "image_splits" / f"split.{category}.{split}.json")
    source = folder / "captions" / f"cap.{category}.{split}.json"
    queries = []
    for row, entry in enumerate(_json(source)):
        reference, target, captions = _fields(source, row, entry, "candidate", "target", "captions")
        if len(captions) != 2:
            raise ValueError(f"entry {row} of {source} has {len(captions)} captions, not 2; download it again.")
        first, second = (caption.strip(".?, ") for caption in captions)
        sentences = [f"{first} and {second}", f"{second} and {first}"]
        queries.append(_query(f"{category}-{row}", reference, sentences, target, [target]))
    gallery = _table([(name, folder / "images" / f"{name}.jpg") for name in names])
    return Benchmark("fashioniq", split, category, f"fashioniq/{split}/{category}", gallery, pd.DataFrame(queries))


def _cirr(root: Path, split: str, category: str) -> Benchmark:
    folder = _existing(root / "CIRR")
    paths = _json(folder / "cirr" / "image_splits" / f"split.rc2.{split}.json")
    source = folder / "cirr" / "captions" / f"cap.rc2.{split}.json"
    queries = []
    for row, entry in enumerate(_json(source)):
        pair, reference, caption, group = _fields(source, row, entry, "pairid", "reference", "caption", "img_set")
        (members,) = _fields(source, row, group, "members")
        (target,) = _fields(source, row, entry, "target_hard") if split == "val" else ("",)
        others = [member for member in members if member != reference]
        queries.append(_query(pair, reference, [caption], target, [target] if target else [], others))
    gallery = _table([(name, folder / path) for name, path in paths.items()])
    return Benchmark("cirr", split, category, f"cirr/{split}", gallery, pd.DataFrame(queries))


def _circo(root: Path, split: str, category: str) -> Benchmark:
    folder = _existing(root / "CIRCO")
    info = folder / "COCO2017_unlabeled" / "annotations" / "image_info_unlabeled2017.json"
    (listed,) = _fields(info, 0, _json(info), "images")
    source = folder / "annotations" / f"{split}.json"
    queries = []
    for row, entry in enumerate(_json(source)):
        query, reference, caption = _fields(source, row, entry, "id", "reference_img_id", "relative_caption")
        target, truths, aspects = "", [], []
        if split == "val":
            target, truths, aspects = _fields(source, row, entry, "target_img_id", "gt_img_ids", "semantic_aspects")
        queries.append(_query(query, reference, [caption], target, truths, aspects=aspects))
    pictures = folder / "COCO2017_unlabeled" / "unlabeled2017"
    gallery = _table([(str(image["id"]), pictures / image["file_name"]) for image in listed])
    return Benchmark("circo", split, category, "circo/unlabeled", gallery, pd.DataFrame(queries))


def _query(query, reference, sentences, target, truths, group=(), aspects=()) -> dict:
    return {
        "query": str(query),
        "reference": str(reference),
        "sentences": sentences,
        "target": str(target),
        "ground_truths": [str(truth) for truth in truths],
        "group": list(group),
        "aspects": list(aspects),
    }


def _table(images: list[tuple[str, Path]]) -> pd.DataFrame:
    return pd.DataFrame({"image": [image for image, _ in images], "path": [str(path) for _, path in images]})


def _checked(benchmark: Benchmark) -> Benchmark:
    """The benchmark, once every image that its queries name is known to be in its gallery."""
    known = set(benchmark.gallery["image"])
    for query in benchmark.queries.itertuples():
        named = [query.reference, *query.ground_truths, *query.group]
        absent = next((image for image in named if image not in known), None)
        if absent is not None:
            raise ValueError(
                f"query {query.query} of {benchmark.name} names image {absent}, which is not in the gallery; "
                "the captions and the image list must be of the same release."
            )
    return benchmark


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise FileNotFoundError(f"data folder {folder} does not exist; put the data set there, or correct data_root.")
    return folder


def _json(path: Path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist; download it, or correct data_root.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as problem:
        raise ValueError(f"{path} is not valid JSON ({problem}); download it again.") from problem


def _fields(path: Path, row: int, entry: dict, *names: str) -> list:
    missing = [name for name in names if name not in entry]
    if missing:
        raise ValueError(f"entry {row} of {path} has no key {missing[0]}; download it again, or add the key.")
    return [entry[name] for name in names]
