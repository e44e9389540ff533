"""Read a data set of the user's own: a CSV file of queries, and the folder `images` beside it.

The columns are reference, caption and target, and if wanted query, group, category and split. Images are named by their
paths below `images`; several in one field stand with | between them. The gallery is every picture below `images`,
sorted by path. Links to folders are not followed, and files whose names start with a dot are no pictures.
"""

import csv
import os
import posixpath
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from searle_lib.data.protocols import OWN, OWN_FILE
from searle_lib.store.reading import FileRefused, is_name, reads, show

IMAGES = "images"
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
REQUIRED = ("reference", "caption", "target")
OPTIONAL = ("query", "group", "category", "split")
SPLITS = ("train", OWN.validation, "test")
RESERVED = ("all", "average", "subset")  # categories of results
BETWEEN = "|"


@reads(
    "is not a valid CSV file",
    "write it in UTF-8, with quotes around a caption that holds a comma, a quote or a newline",
    absent="correct its name in datasets; its path starts at data_root",
)
def read(file: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the queries of split val and the gallery, in the columns of Benchmark.

    Every row is checked, but only the rows of val are returned. Without a column split all rows are of val.

    Raises:
        FileNotFoundError: if the file or its folder of images does not exist.
        FileRefused: if the file is no CSV, lacks a column, has no query, or has a row that is not right.
    """
    pictures = _list_pictures(file)
    queries, places, contents = [], set(), set()
    with file.open(encoding="utf-8-sig", newline="") as text:
        reader = csv.reader(text, strict=True)
        columns = _check_columns(file, next(reader, []))
        for fields in filter(None, reader):  # a blank line has no fields
            place = f"line {reader.line_num:,} of {file}"
            if len(fields) != len(columns):
                raise FileRefused(
                    f"{place} has {len(fields)} fields, not {len(columns)}; put quotes around a caption with a comma."
                )
            row = dict(zip(columns, fields, strict=True))
            query = _query(place, row, pictures) | {"query": row.get("query", str(len(places) + 1))}
            if not is_name(query["query"]) or query["query"] in places:
                raise FileRefused(f"{place} has the query {show(query['query'])}, which must be a name, and its own.")
            content = (query["reference"], row["caption"], frozenset(query["ground_truths"]), frozenset(query["group"]))
            if content in contents and "query" not in columns:  # an id of its own says that it is meant
                raise FileRefused(f"{place} holds a query that stands there before; remove one, or add a column query.")
            places.add(query["query"])
            contents.add(content)
            if row.get("split", OWN.validation) not in SPLITS:
                raise FileRefused(f"{place} has the split {show(row['split'])}; write {' or '.join(SPLITS)}.")
            if row.get("split", OWN.validation) == OWN.validation:
                queries.append(query)
    if not queries:
        lack = f"row of split {OWN.validation}" if places else "row below its columns"
        raise FileRefused(f"{file} has no {lack}; write one for each query.")
    table = pd.DataFrame(queries)[["query", "reference", "sentences", "target", "ground_truths", "group", "aspects"]]
    return table, pd.DataFrame({"image": list(pictures), "path": list(pictures.values())})


def list_files(folder: Path) -> list[Path]:
    """List the CSV files with the columns of queries in a folder and in its folders, sorted by path."""
    files = [*folder.glob(f"*{OWN_FILE}"), *folder.glob(f"*/*{OWN_FILE}")]
    return [file for file in sorted(files) if (file.parent / IMAGES).is_dir() and _has_columns(file)]


def _has_columns(file: Path) -> bool:
    with file.open(encoding="utf-8-sig", errors="replace") as text:
        return set(REQUIRED) <= {name.strip('"\n') for name in text.readline(1000).split(",")}


def _list_pictures(file: Path) -> dict[str, str]:
    """Return the path of every picture in the folder beside a file, by its path below the folder, sorted."""
    folder = file.parent / IMAGES
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist; put the pictures of {file.name} there.")
    pictures = {}
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = Path(parent).relative_to(folder).as_posix()
        for name in names:
            if name.lower().endswith(ENDINGS) and not name.startswith("."):
                pictures[posixpath.normpath(f"{below}/{name}")] = os.path.join(parent, name)
    strange = next((name for name in pictures if not is_name(name) or BETWEEN in name), None)
    if strange is not None:
        raise FileRefused(f"{folder} holds a picture {show(strange)}; rename it: printable, and without {BETWEEN}.")
    if not pictures:
        raise FileRefused(f"{folder} holds no pictures ({', '.join(ENDINGS)}); put those of {file.name} there.")
    return dict(sorted(pictures.items()))


def _check_columns(file: Path, columns: list[str]) -> list[str]:
    absent = [name for name in REQUIRED if name not in columns]
    if absent:
        raise FileRefused(f"{file} has no column {absent[0]} (its first line is {show(columns)}); add the column.")
    for place, name in enumerate(columns):
        if name not in (*REQUIRED, *OPTIONAL) or name in columns[:place]:
            fault = "twice" if name in columns[:place] else f", which is none of {', '.join((*REQUIRED, *OPTIONAL))}"
            raise FileRefused(f"{file} has a column {show(name)}{' ' * (fault == 'twice')}{fault}; remove it.")
    return columns


def _query(place: str, row: Mapping[str, str], pictures: Mapping[str, str]) -> dict:
    """Return a row as a query without its id; `place` names the row in an error."""
    (reference,) = _images(place, "reference", [row["reference"]], pictures)
    targets = _images(place, "target", row["target"].split(BETWEEN), pictures)
    group = _images(place, "group", row["group"].split(BETWEEN), pictures) if "group" in row else []
    categories = [name for name in row.get("category", "").split(BETWEEN) if name]
    if not row["caption"].strip():
        raise FileRefused(f"{place} has no caption; write what is to change.")
    if reference in targets:
        raise FileRefused(f"{place} has its reference {reference} as a target; remove it from the targets.")
    if group and targets[0] not in group:
        raise FileRefused(f"{place} has the target {targets[0]}, which is not in its group; add it there.")
    for name in categories:
        if not is_name(name) or name in RESERVED or categories.count(name) > 1:
            raise FileRefused(
                f"{place} has the category {show(name)}; write printable names, each once, and none of "
                f"{', '.join(RESERVED)}."
            )
    return {
        "reference": reference,
        "sentences": [row["caption"]],
        "target": targets[0],
        "ground_truths": targets,
        "group": [image for image in group if image != reference],
        "aspects": categories,
    }


def _images(place: str, column: str, names: list[str], pictures: Mapping[str, str]) -> list[str]:
    """Return the pictures that a field names. Raises FileRefused for one that is not below the folder, or twice."""
    images = [posixpath.normpath(name) for name in names]
    for name, image in zip(names, images, strict=True):
        if not name:
            raise FileRefused(f"{place} has an empty {column}; name a picture of {IMAGES} there.")
        if image.startswith(("/", "../")):
            raise FileRefused(
                f"{place} has the {column} {show(name)}, which is outside of {IMAGES}; put the picture there."
            )
        if image not in pictures:
            raise FileRefused(
                f"{place} has the {column} {show(name)}, which is not among the {len(pictures):,} pictures of "
                f"{IMAGES}; correct the name, or put the picture there."
            )
    if len(set(images)) < len(images):
        raise FileRefused(f"{place} names a picture twice in its {column}; name each once.")
    return images
