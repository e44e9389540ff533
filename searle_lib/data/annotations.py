"""Read the annotation files of FashionIQ, CIRR, CIRCO and ImageNet-1K as tables of queries and of gallery images.

Takes a data root with the published folders and files. `benchmarks` joins the tables, and says how each is scored.
"""

import json
from pathlib import Path

import pandas as pd


def queries(dataset: str, data_root: Path, split: str, category: str) -> pd.DataFrame:
    """Read the queries of a split: columns query, reference, sentences, target, ground_truths, group, aspects.

    If the targets of a split are secret, target is "" and ground_truths is empty.

    Raises:
        FileNotFoundError: if a folder or file does not exist.
        ValueError: if a file is not JSON, or an entry does not have a key.
    """
    return _QUERIES[dataset](_require_folder(Path(data_root) / FOLDERS[dataset]), split, category)


def gallery(dataset: str, data_root: Path, split: str, category: str) -> pd.DataFrame:
    """Read the gallery of a split, in ranking order: columns image and path. Raises as `queries` does."""
    return _GALLERIES[dataset](_require_folder(Path(data_root) / FOLDERS[dataset]), split, category)


def image_list(dataset: str, data_root: Path, split: str, category: str) -> Path:
    """Return the path of the file that lists a gallery."""
    folder = Path(data_root) / FOLDERS[dataset]
    return {
        "fashioniq": folder / "image_splits" / f"split.{category}.{split}.json",
        "cirr": folder / "cirr" / "image_splits" / f"split.rc2.{split}.json",
        "circo": folder / "COCO2017_unlabeled" / "annotations" / "image_info_unlabeled2017.json",
    }[dataset]


def imagenet(data_root: Path) -> pd.DataFrame:
    """List the unlabeled images of ImageNet-1K test, sorted by name: columns image and path.

    Raises FileNotFoundError if the folder does not exist or holds no images.
    """
    folder = _require_folder(Path(data_root) / "ImageNet1K" / "test")
    paths = sorted(folder.rglob("*.JPEG"))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no .JPEG images; unpack ImageNet-1K test there, or correct data_root.")
    return _image_table([(path.stem, path) for path in paths])


def fashioniq_entries(data_root: Path, split: str, category: str) -> list[dict]:
    """Read the entries of a caption file of FashionIQ, unchanged.

    Raises as `queries` does, and ValueError if an entry does not have two captions.
    """
    source = Path(data_root) / FOLDERS["fashioniq"] / "captions" / f"cap.{category}.{split}.json"
    entries = _read_json(source)
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
    names = _read_json(image_list("fashioniq", folder.parent, split, category))
    return _image_table([(name, _jpg_or_png(folder / "images" / name)) for name in names])


def _jpg_or_png(stem: Path) -> Path:
    """Return the .png if only that exists, else the .jpg: downloads of FashionIQ's images differ in their format."""
    jpg, png = stem.with_name(stem.name + ".jpg"), stem.with_name(stem.name + ".png")
    return png if png.exists() and not jpg.exists() else jpg


def _cirr(folder: Path, split: str, category: str) -> pd.DataFrame:
    source = folder / "cirr" / "captions" / f"cap.rc2.{split}.json"
    rows = []
    for row, entry in enumerate(_read_json(source)):
        pair, reference, caption, group = _fields(source, row, entry, "pairid", "reference", "caption", "img_set")
        (members,) = _fields(source, row, group, "members")
        (target,) = _fields(source, row, entry, "target_hard") if split == "val" else ("",)
        others = [member for member in members if member != reference]
        rows.append(_query(pair, reference, [caption], target, [target] if target else [], others))
    return pd.DataFrame(rows)


def _cirr_gallery(folder: Path, split: str, category: str) -> pd.DataFrame:
    paths = _read_json(image_list("cirr", folder.parent, split, category), dict)
    return _image_table([(name, folder / path) for name, path in paths.items()])


def _circo(folder: Path, split: str, category: str) -> pd.DataFrame:
    source = folder / "annotations" / f"{split}.json"
    rows = []
    for row, entry in enumerate(_read_json(source)):
        query, reference, caption = _fields(source, row, entry, "id", "reference_img_id", "relative_caption")
        target, truths, aspects = "", [], []
        if split == "val":
            target, truths, aspects = _fields(source, row, entry, "target_img_id", "gt_img_ids", "semantic_aspects")
            if target not in truths:
                raise ValueError(
                    f"entry {row} of {source} has target_img_id {target}, which is not among its gt_img_ids; download "
                    "the file again."
                )
        rows.append(_query(query, reference, [caption], target, truths, aspects=aspects))
    return pd.DataFrame(rows)


def _circo_gallery(folder: Path, split: str, category: str) -> pd.DataFrame:
    source = image_list("circo", folder.parent, split, category)
    (entries,) = _fields(source, 0, _read_json(source, dict), "images")
    image_folder = folder / "COCO2017_unlabeled" / "unlabeled2017"
    return _image_table([(str(image["id"]), image_folder / image["file_name"]) for image in entries])


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


def _image_table(images: list[tuple[str, Path]]) -> pd.DataFrame:
    return pd.DataFrame({"image": [image for image, _ in images], "path": [str(path) for _, path in images]})


def _require_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise FileNotFoundError(f"data folder {folder} does not exist; put the data set there, or correct data_root.")
    return folder


def _read_json(path: Path, kind: type = list):
    """Read a file that holds a list or a dictionary. Raises FileNotFoundError or ValueError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path} does not exist; download it, correct data_root, or leave its split out of evaluate or its data "
            "set out of datasets."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as problem:
        raise ValueError(f"{path} is not valid JSON ({problem}); download it again.") from problem
    if not isinstance(content, kind) or not content:
        actual = "nothing" if not content else f"a {type(content).__name__}"
        raise ValueError(f"{path} holds {actual}, not a {kind.__name__}; download it again.")
    return content


def _fields(path: Path, row: int, entry: dict, *names: str) -> list:
    missing = [name for name in names if name not in entry]
    if missing:
        raise ValueError(f"entry {row} of {path} has no key {missing[0]}; download the file again, or add the key.")
    return [entry[name] for name in names]
