"""Read the annotation files of FashionIQ, CIRR, CIRCO and ImageNet-1K as tables of queries and of gallery images.

Takes a data root with the published folders and files. `benchmarks` joins the tables, and says how each is scored.
"""

import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path

import pandas as pd

from searle_lib.store.reading import FileRefused, is_name, is_text, read_json, reading, show


def queries(dataset: str, data_root: Path, split: str, category: str) -> pd.DataFrame:
    """Read the queries of a split: columns query, reference, sentences, target, ground_truths, group, aspects.

    If the targets of a split are secret, target is "" and ground_truths is empty.

    Raises:
        FileNotFoundError: if a folder or file does not exist.
        FileRefused: if a file is not JSON, or an entry has another form, stands twice, or contradicts itself.
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
    return _image_table(folder, folder, [(path.stem, str(path.relative_to(folder))) for path in paths])


def fashioniq_entries(data_root: Path, split: str, category: str) -> list[dict]:
    """Read the entries of a caption file of FashionIQ, unchanged.

    Raises as `queries` does, also if an entry does not have two captions.
    """
    source = Path(data_root) / FOLDERS["fashioniq"] / "captions" / f"cap.{category}.{split}.json"
    with _reading(source):
        entries, known = _read(source), set()
        for row, entry in enumerate(entries):
            kinds = {"candidate": "a name", "target": "a name", "captions": "a list of texts"}
            candidate, target, captions = _fields(source, row, entry, kinds)
            if len(captions) != 2:
                raise FileRefused(f"entry {row} of {source} has {len(captions)} captions, not 2; download it again.")
            if (candidate, target, *captions) in known:
                raise FileRefused(f"entry {row} of {source} stands there twice; download it again.")
            known.add((candidate, target, *captions))
    return entries


def _fashioniq(folder: Path, split: str, category: str) -> pd.DataFrame:
    rows = []
    for row, entry in enumerate(fashioniq_entries(folder.parent, split, category)):
        first, second = (caption.strip(".?, ") for caption in entry["captions"])
        sentences = [f"{first} and {second}", f"{second} and {first}"]
        rows.append(_query(f"{category}-{row}", entry["candidate"], sentences, entry["target"], [entry["target"]]))
    return _query_table(folder / "captions" / f"cap.{category}.{split}.json", rows)


def _fashioniq_gallery(folder: Path, split: str, category: str) -> pd.DataFrame:
    source = image_list("fashioniq", folder.parent, split, category)
    with _reading(source):
        table = _image_table(source, folder / "images", [(name, name) for name in _read(source)])
    return table.assign(path=[_jpg_or_png(path) for path in table["path"]])


def _jpg_or_png(stem: str) -> str:
    """Return the .png if only that exists, else the .jpg: downloads of FashionIQ's images differ in their format."""
    return f"{stem}.png" if os.path.exists(f"{stem}.png") and not os.path.exists(f"{stem}.jpg") else f"{stem}.jpg"


def _cirr(folder: Path, split: str, category: str) -> pd.DataFrame:
    source = folder / "cirr" / "captions" / f"cap.rc2.{split}.json"
    kinds = {"pairid": "a number", "reference": "a name", "caption": "a text", "img_set": "an object"}
    rows = []
    with _reading(source):
        for row, entry in enumerate(_read(source)):
            pair, reference, caption, group = _fields(source, row, entry, kinds)
            (members,) = _fields(source, row, group, {"members": "a list of different names"})
            (target,) = _fields(source, row, entry, {"target_hard": "a name"}) if split == "val" else ("",)
            outside = next((image for image in (reference, target) if image and image not in members), None)
            if outside is not None:
                raise FileRefused(
                    f"entry {row} of {source} names image {outside}, which is not among the members of its img_set; "
                    "download the file again."
                )
            others = [member for member in members if member != reference]
            rows.append(_query(pair, reference, [caption], target, [target] if target else [], others))
    return _query_table(source, rows)


def _cirr_gallery(folder: Path, split: str, category: str) -> pd.DataFrame:
    source = image_list("cirr", folder.parent, split, category)
    with _reading(source):
        return _image_table(source, folder, list(_read(source, dict).items()))


def _circo(folder: Path, split: str, category: str) -> pd.DataFrame:
    source = folder / "annotations" / f"{split}.json"
    kinds = {"id": "a number", "reference_img_id": "a number", "relative_caption": "a text"}
    secret = {"target_img_id": "a number", "gt_img_ids": "a list of different numbers"}
    secret |= {"semantic_aspects": "a list of different names"}
    rows = []
    with _reading(source):
        for row, entry in enumerate(_read(source)):
            query, reference, caption = _fields(source, row, entry, kinds)
            target, truths, aspects = _fields(source, row, entry, secret) if split == "val" else ("", [], [])
            if target != "" and target not in truths:
                raise FileRefused(
                    f"entry {row} of {source} has target_img_id {target}, which is not among its gt_img_ids; download "
                    "the file again."
                )
            rows.append(_query(query, reference, [caption], target, truths, aspects=aspects))
    return _query_table(source, rows)


def _circo_gallery(folder: Path, split: str, category: str) -> pd.DataFrame:
    source = image_list("circo", folder.parent, split, category)
    with _reading(source):
        (entries,) = _fields(source, 0, _read(source, dict), {"images": "a list"})
        kinds = {"id": "a number", "file_name": "a name"}
        images = [_fields(source, row, image, kinds) for row, image in enumerate(entries)]
        folder = folder / "COCO2017_unlabeled" / "unlabeled2017"
        return _image_table(source, folder, [(str(number), name) for number, name in images])


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


def _query_table(source: Path, rows: list[dict]) -> pd.DataFrame:
    """The table of a file's queries. Raises FileRefused for a repeated id, or a target that is its own reference."""
    queries = set()
    for row, query in enumerate(rows):
        if query["query"] in queries:
            raise FileRefused(f"entry {row} of {source} is the second query {query['query']}; download the file again.")
        queries.add(query["query"])
        if query["reference"] in (query["target"], *query["ground_truths"]):
            raise FileRefused(
                f"entry {row} of {source} has its reference {query['reference']} as a target; download the file again."
            )
    return pd.DataFrame(rows)


def _image_table(source: Path, folder: Path, images: Iterable[tuple[str, str]]) -> pd.DataFrame:
    """The table of a gallery, from the names of its images and their paths below a folder.

    A folder that the user put there may be a link, to another disk for example. What a list names may not lead out of
    it, for a list comes from elsewhere.

    Raises:
        FileRefused: if an image stands twice, or its path is not below the folder.
    """
    paths: dict[str, Path] = {}
    roots: dict[Path, Path] = {}  # of the folder of some images, the folder that the user put there
    for name, below in images:
        parts = Path(below).parts if is_name(name) and is_name(below) else ()
        if not parts or Path(below).anchor or ".." in parts:  # "//x" is absolute, too
            raise FileRefused(
                f"{source} lists image {show(name)} at {show(below)}, which is no path below {folder}; download it "
                "again."
            )
        if name in paths:
            raise FileRefused(f"{source} lists image {name} twice; download it again.")
        paths[name] = folder.joinpath(*parts)
        roots.setdefault(paths[name].parent, folder if len(parts) == 1 else folder / parts[0])
    for parent, root in roots.items():
        if not parent.resolve().is_relative_to(root.resolve()):
            raise FileRefused(f"{source} lists images in {parent}, a link that leads out of {root}; put them there.")
    table = pd.DataFrame({"image": list(paths), "path": [str(path) for path in paths.values()]})
    repeated = table["path"].duplicated()
    if repeated.any():
        raise FileRefused(f"{source} lists {table['path'][repeated.argmax()]} under two names; download it again.")
    return table


def _require_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise FileNotFoundError(f"data folder {folder} does not exist; put the data set there, or correct data_root.")
    return folder


def _reading(path: Path) -> AbstractContextManager:
    absent = "download it, correct data_root, or leave its split out of evaluate or its data set out of datasets"
    return reading(path, "is not valid JSON", "download it again", absent)


def _read(path: Path, kind: type = list):
    """Read a file that holds a list or a dictionary. Raises FileRefused for another one, or an empty one."""
    content = read_json(path)
    if not isinstance(content, kind) or not content:
        actual = "nothing" if not content else f"a {type(content).__name__}"
        raise FileRefused(f"{path} holds {actual}, not a {kind.__name__}; download it again.")
    return content


def _fields(path: Path, row: int, entry: object, kinds: dict[str, str]) -> list:
    """The fields of an entry, by the kinds of _KINDS. Raises FileRefused for one that is absent, or of another kind."""
    if not isinstance(entry, dict):
        raise FileRefused(f"entry {row} of {path} is {show(entry)}, not an object; download the file again.")
    for name, kind in kinds.items():
        if name not in entry:
            raise FileRefused(f"entry {row} of {path} has no key {name}; download the file again, or add the key.")
        if not _KINDS[kind](entry[name]):
            raise FileRefused(
                f"entry {row} of {path} has {name} {show(entry[name])}, which is not {kind}; download the file again."
            )
    return [entry[name] for name in kinds]


def _is_number(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_list_of(is_kind: Callable[[object], bool], value: object, different: bool = True) -> bool:
    good = isinstance(value, list) and all(map(is_kind, value))
    return good and (not different or len(set(value)) == len(value))


_KINDS = {
    "a number": _is_number,
    "a name": is_name,
    "a text": is_text,
    "a list": lambda value: isinstance(value, list),
    "an object": lambda value: isinstance(value, dict),
    "a list of texts": lambda value: _is_list_of(is_text, value, different=False),
    "a list of different names": lambda value: _is_list_of(is_name, value),
    "a list of different numbers": lambda value: _is_list_of(_is_number, value),
}
