"""Turn a task of GeneCIS into a data set that `own_data` reads: a CSV file of queries, and a folder of pictures.

Takes the official files (github.com/facebookresearch/genecis): one JSON list for each of the tasks focus_attribute,
change_attribute, focus_object and change_object. The tasks on objects name images of COCO 2017 val. Those on attributes
name boxes in images of Visual Genome. The authors' crop starts 0.7 of the box's size before it, is 1.7 times as large,
ends where the image ends, and is padded with black to a square. Each query ranks its target among a gallery of its own,
which is its group here: GeneCIS's R@k is Rsubset@k.
"""

import csv
import shutil
from pathlib import Path

from PIL import Image

from searle_lib.data import images
from searle_lib.data.own_data import BETWEEN, IMAGES
from searle_lib.store.artefacts import atomic_write
from searle_lib.store.reading import FileRefused, is_text, read_json, reads, show

TASKS = ("focus_attribute", "change_attribute", "focus_object", "change_object")
DILATION = 0.7
Picture = tuple[str, tuple[float, ...]]  # the name of an image file, and left, top, width and height of a box, or ()


def convert(file: Path, images_folder: Path, to: Path) -> Path:
    """Write a task of GeneCIS as genecis_<task>/genecis_<task>.csv below a folder, with its pictures.

    Args:
        file: the task's JSON file.
        images_folder: COCO's val2017, or all images of Visual Genome in one folder.
        to: where to write; pictures that exist there are not written again.

    Returns:
        The path of the CSV file.

    Raises:
        FileNotFoundError: if a file does not exist.
        FileRefused: if the file is not one of GeneCIS, or an image cannot be decoded.
    """
    queries = _read(file)
    folder = to / f"genecis_{file.stem}"
    pictures = dict.fromkeys(picture for reference, _, group in queries for picture in (reference, *group))
    for picture in pictures:
        target = folder / IMAGES / _name(picture)
        if not target.exists():
            _write_picture(images_folder / picture[0], picture[1], target)
    with (
        atomic_write(folder / f"{folder.name}.csv") as aside,
        aside.open("w", encoding="utf-8", newline="") as text,
    ):
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["query", "reference", "caption", "target", "group"])
        for row, (reference, caption, group) in enumerate(queries):  # an entry may stand twice, and counts twice
            names = dict.fromkeys(map(_name, group))  # the target comes first
            writer.writerow([row, _name(reference), caption, next(iter(names)), BETWEEN.join(names)])
    return folder / f"{folder.name}.csv"


@reads("is not a task of GeneCIS", "download it again", noun="file")
def _read(file: Path) -> list[tuple[Picture, str, list[Picture]]]:
    """Return the reference, the condition, and the target and the rest of the gallery of each entry."""
    if file.stem not in TASKS:
        raise FileRefused(f"{file} has not the name of a task; name it {', '.join(TASKS[:-1])} or {TASKS[-1]}.json.")
    queries = []
    for row, entry in enumerate(read_json(file)):
        if not is_text(entry["condition"]):
            raise ValueError(f"the condition of entry {row} is {show(entry['condition'])}")
        images_of_group = [_picture(image) for image in (entry["target"], *entry["gallery"])]
        queries.append((_picture(entry["reference"]), entry["condition"], images_of_group))
    if not queries:
        raise ValueError("it holds no query")
    return queries


def _picture(image: dict) -> Picture:
    """Return what an entry names as an image: COCO's number, or Visual Genome's with a box."""
    if "val_image_id" in image:
        return f"{int(image['val_image_id']):012d}.jpg", ()
    left, top, width, height = map(float, image["instance_bbox"])
    return f"{int(image['image_id'])}.jpg", (left, top, width, height)


def _name(picture: Picture) -> str:
    name, box = picture
    return "-".join([Path(name).stem, *(f"{side:g}" for side in box)]) + ".png" if box else name


def _write_picture(source: Path, box: tuple[float, ...], target: Path) -> None:
    image = images.read(source)
    with atomic_write(target) as aside:
        if box:
            _cut(image, *box).save(aside, "PNG")
        else:
            shutil.copyfile(source, aside)


def _cut(image: Image.Image, left: float, top: float, width: float, height: float) -> Image.Image:
    """Return the authors' crop of a box in the middle of a black square: it is wider on the left and top alone."""
    first = max(0, left - DILATION * width), max(0, top - DILATION * height)
    last = (
        min(image.width, first[0] + (1 + DILATION) * width),
        min(image.height, first[1] + (1 + DILATION) * height),
    )
    part = image.convert("RGB").crop((*first, *last))
    square = Image.new("RGB", (max(part.size), max(part.size)))
    square.paste(part, tuple((square.width - side) // 2 for side in part.size))
    return square
