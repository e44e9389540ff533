"""The files of FashionIQ, CIRR, CIRCO and ImageNet as tables: the queries of a split, and the images of a gallery.

Folder layouts and file forms are the real ones (searle.md, sections 5 and 9). What the three have in common, and how
they are scored, stands in `benchmarks`.
"""

import json
from pathlib import Path

import pandas as pd


def queries(dataset: str, data_root: Path, split: str, category: str) -> pd.DataFrame:
    """A split's queries: columns query, reference, sentences, target, ground_truths, group, aspects.

    Where a split keeps its targets secret, target is "" and ground_truths empty. Raises FileNotFoundError for a folder
    or file that is not there, ValueError for a file that is no JSON and for an entry without a key it needs.
    """
    return _QUERIES[dataset](_existing(Path(data_root) / FOLDERS[dataset]), split, category)


def gallery(dataset: str, data_root: Path, split: str, category: str) -> pd.DataFrame:
    """A split's images in ranking order: columns image and path. Raises as `queries` does."""
    return _GALLERIES[dataset](_existing(Path(data_root) / FOLDERS[dataset]), split, category)


def image_list(dataset: str, data_root: Path, split: str, category: str) -> Path:
    """The file that lists a gallery."""
    folder = Path(data_root) / FOLDERS[dataset]
    return {
        "fashioniq": folder / "image_splits" / f"split.{category}.{split}.json",
        "cirr": folder / "cirr" / "image_splits" / f"split.rc2.{split}.json",
        "circo": folder / "COCO2017_unlabeled" / "annotations" / "image_info_unlabeled2017.json",
    }[dataset]


def imagenet(data_root: Path) -> pd.DataFrame:
    """The unlabeled pictures of ImageNet-1K test as a table with columns image and path, sorted by name."""
    folder = _existing(Path(data_root) / "ImageNet1K" / "test")
    paths = sorted(folder.rglob("*.JPEG"))
    if not paths:
        raise FileNotFoundError(
            f"{folder} holds no .JPEG pictures; unpack ImageNet-1K test there, or correct data_root."
        )
    return _table([(path.stem, path) for path in paths])


def fashioniq_entries(data_root: Path, split: str, category: str) -> list[dict]:
    """The entries of FashionIQ's caption file as they are, each with both its captions."""
    source = Path(data_root) / FOLDERS["fashioniq"] / "captions" / f"cap.{category}.{split}.json"
    entries = _json(source)
    for row, entry in enumerate(entries):
        _, _, captions = _fields(source, row, entry, "candidate", "target", "captions")
        if len(captions) != 2:
            raise ValueError(f"entry {row} of {source} has {len(captions)} captions, not 2; download it again.")
    return entries


def _fashioniq(folder: Path, split: str, category: str) -> pd.DataFrame:
    rows = []
    for row, entry in enumerate(fashioniq_entries(folder.parent, split, category)):
        first, second = (caption.strip(".?, ") for caption in entry["captions"])
        sentences = [f"{first} and {second}", f"{second} and {first}"]
        rows.append(_query(f"{category}-{row}", entry["candidate"], sentences, entry["target"], [entry["target"]]))
    return pd.DataFrame(rows)


def _fashioniq_gallery(folder: Path, split: str, category: str) -> pd.DataFrame:
    names = _json(image_list("fashioniq", folder.parent, split, category))
    return _table([(name, _jpg_or_png(folder / "images" / name)) for name in names])


def _jpg_or_png(stem: Path) -> Path:
    """A picture's file: collections of FashionIQ's pictures differ in their form. The .jpg where there is neither."""
    jpg, png = stem.with_name(stem.name + ".jpg"), stem.with_name(stem.name + ".png")
    return png if png.exists() and not jpg.exists() else jpg


def _cirr(folder: Path, split: str, category: str) -> pd.DataFrame:
    source = folder / "cirr" / "captions" / f"cap.rc2.{split}.json"
    rows = []
    for row, entry in enumerate(_json(source)):
        pair, reference, caption, group = _fields(source, row, entry, "pairid", "reference", "caption", "img_set")
        (members,) = _fields(source, row, group, "members")
        (target,) = _fields(source, row, entry, "target_hard") if split == "val" else ("",)
        others = [member for member in members if member != reference]
        rows.append(_query(pair, reference, [caption], target, [target] if target else [], others))
    return pd.DataFrame(rows)


def _cirr_gallery(folder: Path, split: str, category: str) -> pd.DataFrame:
    paths = _json(image_list("cirr", folder.parent, split, category), dict)
    return _table([(name, folder / path) for name, path in paths.items()])


def _circo(folder: Path, split: str, category: str) -> pd.DataFrame:
    source = folder / "annotations" / f"{split}.json"
    rows = []
    for row, entry in enumerate(_json(source)):
        query, reference, caption = _fields(source, row, entry, "id", "reference_img_id", "relative_caption")
        target, truths, aspects = "", [], []
        if split == "val":
            target, truths, aspects = _fields(source, row, entry, "target_img_id", "gt_img_ids", "semantic_aspects")
            if target not in truths:
                raise ValueError(
                    f"entry {row} of {source} has target_img_id {target}, which is not among its gt_img_ids; download "
                    "it again."
                )
        rows.append(_query(query, reference, [caption], target, truths, aspects=aspects))
    return pd.DataFrame(rows)


def _circo_gallery(folder: Path, split: str, category: str) -> pd.DataFrame:
    source = image_list("circo", folder.parent, split, category)
    (listed,) = _fields(source, 0, _json(source, dict), "images")
    pictures = folder / "COCO2017_unlabeled" / "unlabeled2017"
    return _table([(str(image["id"]), pictures / image["file_name"]) for image in listed])


FOLDERS = {"fashioniq": "FashionIQ", "cirr": "CIRR", "circo": "CIRCO"}
_QUERIES = {"fashioniq": _fashioniq, "cirr": _cirr, "circo": _circo}
_GALLERIES = {"fashioniq": _fashioniq_gallery, "cirr": _cirr_gallery, "circo": _circo_gallery}


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


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise FileNotFoundError(f"data folder {folder} does not exist; put the data set there, or correct data_root.")
    return folder


def _json(path: Path, kind: type = list):
    """A file's content, a list or a dictionary. Raises FileNotFoundError or ValueError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path} does not exist; download it, correct data_root, or leave its split out of evaluate or its set "
            "out of datasets."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as problem:
        raise ValueError(f"{path} is not valid JSON ({problem}); download it again.") from problem
    if not isinstance(content, kind) or not content:
        what = "nothing" if not content else f"a {type(content).__name__}"
        raise ValueError(f"{path} holds {what}, not a {kind.__name__}; download it again.")
    return content


def _fields(path: Path, row: int, entry: dict, *names: str) -> list:
    missing = [name for name in names if name not in entry]
    if missing:
        raise ValueError(f"entry {row} of {path} has no key {missing[0]}; download it again, or add the key.")
    return [entry[name] for name in names]
