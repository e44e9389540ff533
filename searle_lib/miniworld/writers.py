"""The miniature world on disk, in the folders and file formats of the real data sets, with its models beside them.

`write` draws FashionIQ, CIRR, CIRCO and ImageNet-1K test below one data root, so that the study reads them with the
loaders of the real data. Nothing here uses a model: attributes alone decide which images a query means.
"""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import numpy as np
from filelock import FileLock
from PIL import Image
from tqdm.contrib.concurrent import process_map

from searle_lib.miniworld import grammar
from searle_lib.miniworld.fingerprint import sources_sha256
from searle_lib.miniworld.garments import draw_garment
from searle_lib.miniworld.scenes import draw_scene
from searle_lib.miniworld.specimens import (
    Garment,
    Scene,
    Specimen,
    concepts,
    differences,
    kinds_of,
    random_garment,
    random_scene,
    varied,
)
from searle_lib.store import randomness
from searle_lib.store.artefacts import digest, write_json

MARK = "miniature_world.json"
JPEG = {"quality": 95, "subsampling": 0}


@dataclass(frozen=True)
class Sizes:
    """How many images and queries of each data set are drawn."""

    fashioniq_queries: int = 200  # a category
    fashioniq_gallery: int = 500
    cirr_val_sets: int = 100  # of six pictures and six queries each
    cirr_test_sets: int = 40
    circo_val_queries: int = 200
    circo_test_queries: int = 100
    circo_gallery: int = 2000
    imagenet: int = 1500


def write(data_root: Path, seed: int = 42, sizes: Sizes = Sizes()) -> Path:
    """Draw the world below `data_root` unless it exists; return the root.

    The world is drawn in another folder and renamed, so a root that exists is complete.
    Raises ValueError if something else is in the way.
    """
    data_root = Path(data_root)
    key = digest({"seed": seed, "sizes": vars(sizes), "sources": sources_sha256()})
    data_root.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(data_root.with_name(data_root.name + ".lock")):
        mark = data_root / MARK
        if mark.exists() and json.loads(mark.read_text())["key"] == key:
            return data_root
        if data_root.exists() and not mark.exists():
            raise ValueError(
                f"data_root {data_root} exists and is not a miniature world; set world to real, or name another folder."
            )
        aside = data_root.with_name(data_root.name + ".partial")
        shutil.rmtree(aside, ignore_errors=True)
        _write_all(aside, seed, sizes)
        write_json(aside / MARK, {"key": key, "seed": seed, "sizes": vars(sizes)})
        shutil.rmtree(data_root, ignore_errors=True)
        aside.rename(data_root)
    return data_root


def _write_all(root: Path, seed: int, sizes: Sizes) -> None:
    from searle_lib.miniworld import models  # brings transformers, slow to import where the world is there already

    pictures = [
        *_fashioniq(root / "FashionIQ", seed, sizes),
        *_cirr(root / "CIRR", seed, sizes),
        *_circo(root / "CIRCO", seed, sizes),
        *_imagenet(root / "ImageNet1K", seed, sizes),
    ]
    for folder in {path.parent for path, _ in pictures}:
        folder.mkdir(parents=True, exist_ok=True)
    paths, specimens = zip(*pictures, strict=True)
    names = [f"{seed}/{path.relative_to(root)}" for path in paths]
    progress = {"desc": "drawing the miniature world", "mininterval": 2, "chunksize": 64}
    process_map(_draw_file, paths, specimens, names, max_workers=os.cpu_count(), **progress)
    _vocabulary(root / "oidv7-class-descriptions.csv")
    (root / "models").mkdir()
    models.write_clip(root / "models" / "tiny-clip.pt")
    models.write_language_model(root / "models" / "tiny-gpt-neo")


def _draw_file(path: Path, specimen: Specimen, name: str) -> None:
    draw(specimen, name).save(path, **({} if path.suffix == ".png" else JPEG))


def draw(specimen: Specimen, name: str) -> Image.Image:
    """Draw the image of a specimen; its random variation is keyed by the image's name."""
    random = np.random.default_rng(randomness.keys(0, "picture", [name])[0])
    return draw_scene(specimen, random) if isinstance(specimen, Scene) else draw_garment(specimen, random)


def fits(candidate: Specimen, reference: Specimen, target: Specimen, stated: Sequence[str]) -> bool:
    """Return whether an image satisfies a relative caption that states some differences from reference to target.

    An ordered attribute fits if it differs from the reference's in the same direction, since a caption may compare.
    """
    for name in stated:
        own, old, new = (getattr(specimen, name) for specimen in (candidate, reference, target))
        if name in grammar.ORDERED:
            order = grammar.ORDERED[name][0].index
            if np.sign(order(own) - order(old)) != np.sign(order(new) - order(old)):
                return False
        elif own != new:
            return False
    return True


def ground_truths(reference: Scene, target: Scene, gallery: dict[int, Scene]) -> list[int]:
    """Return the ids of the scenes with the target's kind, colour and place that satisfy a caption of all changes."""
    changed = differences(reference, target)
    shared = {"kind", "colour", "setting"} - set(changed)
    alike = {i: scene for i, scene in gallery.items() if not shared & set(differences(scene, target))}
    return [i for i, scene in alike.items() if scene != reference and fits(scene, reference, target, changed)]


def aspects(caption: str, changed: list[str], target: Scene) -> list[str]:
    """Return CIRCO's semantic aspects of a relative caption."""
    words = f" {caption} "
    holds = {
        "cardinality": "count" in changed,
        "addition": "companion" in changed and target.companion is not None,
        "negation": " not " in words or "on its own" in words or " no " in words,
        "direct_addressing": not any(
            w in words for w in (" instead of ", " rather than ", "larger", "smaller", "bigger")
        ),
        "compare_change": " instead of " in words or " rather than " in words,
        "comparative_statement": any(word in words for word in ("larger", "smaller", "bigger")),
        "statement_with_conjunction": " and " in words or "," in words,
        "spatial_relations_background": "setting" in changed,
    }
    return [name for name, applies in holds.items() if applies]


def _fashioniq(folder: Path, seed: int, sizes: Sizes) -> list[tuple[Path, Specimen]]:
    pictures = []
    for category in ("dress", "shirt", "toptee"):
        for split, queries, gallery in (("val", sizes.fashioniq_queries, sizes.fashioniq_gallery), ("test", 40, 80)):
            random = _random(seed, "fashioniq", category, split)
            specimens: list[Garment] = []  # reference, target, reference, target, ..., then the rest
            while len(specimens) < gallery:
                reference = random_garment(random, kinds_of(category))
                target = varied(reference, int(random.integers(3, 5)), random, fixed=("kind",))
                new = [reference, target] if len(specimens) < 2 * queries else [reference]
                if not any(garment in specimens for garment in new):
                    specimens += new
            pairs = zip(specimens[0 : 2 * queries : 2], specimens[1 : 2 * queries : 2], strict=True)
            names = _names(len(specimens), random)
            entries = []
            for row, (reference, target) in enumerate(pairs):
                changed = random.permutation(differences(reference, target)).tolist()
                captions = [
                    grammar.relative_caption(reference, target, random, most=int(random.integers(1, 3)), names=part)
                    for part in (changed, changed[::-1])
                ]
                entry = {"target": names[2 * row + 1], "candidate": names[2 * row], "captions": captions}
                entries.append(entry if split == "val" else {n: v for n, v in entry.items() if n != "target"})
            _write(folder / "captions" / f"cap.{category}.{split}.json", entries)
            listed = [names[i] for i in random.permutation(len(names))]
            _write(folder / "image_splits" / f"split.{category}.{split}.json", listed)
            pictures += [(folder / "images" / f"{n}.jpg", s) for n, s in zip(names, specimens, strict=True)]
    return pictures


def _cirr(folder: Path, seed: int, sizes: Sizes) -> list[tuple[Path, Specimen]]:
    pictures, pair = [], 0
    for split, prefix, sets in (("val", "dev", sizes.cirr_val_sets), ("test1", "test1", sizes.cirr_test_sets)):
        random = _random(seed, "cirr", split)
        entries, paths, drawn = [], {}, set()
        for number in range(sets):
            scenes, stated = _six_alike(random, drawn)
            drawn.update(scenes)
            members = [f"{prefix}-{number}-{i // 2}-img{i % 2}" for i in range(6)]
            paths |= {name: f"./{prefix}/{name}.png" for name in members}
            pictures += [(folder / prefix / f"{n}.png", s) for n, s in zip(members, scenes, strict=True)]
            for i, names in enumerate(stated):
                j = (i + 1) % 6
                caption = grammar.relative_caption(scenes[i], scenes[j], random, most=len(names), names=names)
                group = {"id": number, "members": members, "reference_rank": i}
                entry = {"pairid": pair, "reference": members[i], "caption": caption, "img_set": group}
                if split == "val":
                    entry |= {"target_hard": members[j], "target_soft": {members[j]: 1.0}}
                    entry["img_set"] = group | {"target_rank": j}
                entries.append(entry)
                pair += 1
        _write(folder / "cirr" / "captions" / f"cap.rc2.{split}.json", entries)
        order = random.permutation(len(paths))
        shuffled = {name: paths[name] for name in np.array(list(paths))[order].tolist()}
        _write(folder / "cirr" / "image_splits" / f"split.rc2.{split}.json", shuffled)
    return pictures


def _six_alike(random: np.random.Generator, taken: set[Scene]) -> tuple[list[Scene], list[list[str]]]:
    """Return six similar scenes, none of them in `taken`, and the differences that each caption states.

    Caption i leads from scene i to the next. Neighbours differ in two to four attributes. A caption states two or three
    of them, and fits no other scene of the six.
    """
    while True:
        base = random_scene(random)
        scenes = list(dict.fromkeys([base, *(varied(base, 2, random, fixed=("kind",)) for _ in range(5))]))
        scenes = [scenes[i] for i in random.permutation(len(scenes))]
        if len(scenes) == 6 and not taken.intersection(scenes):
            stated = [_what_to_state(scenes, i, (i + 1) % 6, random) for i in range(6)]
            if all(stated):
                return scenes, stated


def _what_to_state(scenes: list[Scene], i: int, j: int, random: np.random.Generator) -> list[str]:
    """Return two or three differences that single out scene j, given scene i; empty if there are none."""
    changed = random.permutation(differences(scenes[i], scenes[j])).tolist()
    most = int(random.integers(2, 4))
    others = [scene for k, scene in enumerate(scenes) if k not in (i, j)]
    for names in permutations(changed, min(most, len(changed))):
        if len(names) > 1 and not any(fits(other, scenes[i], scenes[j], names) for other in others):
            return list(names)
    return []


def _circo(folder: Path, seed: int, sizes: Sizes) -> list[tuple[Path, Specimen]]:
    random = _random(seed, "circo")
    queries, scenes = [], []
    for _ in range(sizes.circo_val_queries + sizes.circo_test_queries):
        reference = random_scene(random)
        target = varied(reference, int(random.integers(1, 3)), random, fixed=() if random.random() < 0.1 else ("kind",))
        changed = differences(reference, target)
        free = [n for n in ("texture", "size", "count", "companion") if n not in changed]
        more = [varied(target, int(random.integers(1, 3)), random, fixed=_others(free)) for _ in range(3)]
        queries.append((len(scenes), reference, target, changed))
        scenes += [reference, target, *more[: int(random.integers(1, 4))]]
    if len(scenes) > sizes.circo_gallery:
        raise ValueError(f"circo_gallery {sizes.circo_gallery} is too small for its queries; raise it.")
    scenes += [random_scene(random) for _ in range(sizes.circo_gallery - len(scenes))]
    ids = random.choice(600_000, len(scenes), replace=False).tolist()
    gallery = dict(zip(ids, scenes, strict=True))
    entries = []
    for first, reference, target, changed in queries:
        caption = grammar.relative_caption(reference, target, random, most=len(changed), names=changed)
        unchanged = [name for name in ("colour", "setting") if name not in changed]
        truths = ground_truths(reference, target, gallery)
        entries.append(
            {
                "reference_img_id": ids[first],
                "target_img_id": ids[first + 1],
                "relative_caption": caption,
                "shared_concept": grammar.shared_concept(target, unchanged),
                "gt_img_ids": [ids[first + 1], *(i for i in truths if i != ids[first + 1])],
                "semantic_aspects": aspects(caption, changed, target),
            }
        )
    secret = ("target_img_id", "gt_img_ids", "semantic_aspects")
    val = entries[: sizes.circo_val_queries]
    test = [{n: v for n, v in e.items() if n not in secret} for e in entries[sizes.circo_val_queries :]]
    _write(folder / "annotations" / "val.json", [entry | {"id": i} for i, entry in enumerate(val)])
    _write(folder / "annotations" / "test.json", [entry | {"id": i} for i, entry in enumerate(test)])
    listed = [{"file_name": f"{i:012d}.jpg", "height": 64, "width": 64, "id": i} for i in sorted(ids)]
    info = {"info": {"description": "miniature world, in the form of COCO 2017 unlabeled"}, "images": listed}
    _write(folder / "COCO2017_unlabeled" / "annotations" / "image_info_unlabeled2017.json", info)
    pictures = folder / "COCO2017_unlabeled" / "unlabeled2017"
    return [(pictures / f"{i:012d}.jpg", scene) for i, scene in gallery.items()]


def _others(free: list[str]) -> list[str]:
    return [name for name in ("kind", "colour", "texture", "size", "count", "setting", "companion") if name not in free]


def _imagenet(folder: Path, seed: int, sizes: Sizes) -> list[tuple[Path, Specimen]]:
    random = _random(seed, "imagenet")
    names = [f"ILSVRC2012_test_{i + 1:08d}.JPEG" for i in range(sizes.imagenet)]
    specimens = [random_garment(random) if i % 2 else random_scene(random) for i in range(sizes.imagenet)]
    descriptions = [grammar.description(specimen, random) for specimen in specimens]
    captions = [
        {"img_id": Path(name).stem.rsplit("_", 1)[-1], "subject": subject, "attribute": attribute}
        for name, (subject, attribute) in zip(names, descriptions, strict=True)
    ]
    _write(folder / "blip_pairs.json", captions)
    return [(folder / "test" / name, specimen) for name, specimen in zip(names, specimens, strict=True)]


def _vocabulary(path: Path) -> None:
    rows = [f"/m/0mini{number:02d},{name}" for number, name in enumerate(concepts())]
    path.write_text("\n".join(["LabelName,DisplayName", *rows]) + "\n")


def _names(count: int, random: np.random.Generator) -> list[str]:
    """Return distinct identifiers that look like Amazon's and say nothing about the image."""
    letters = np.array(list("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
    names = {}
    while len(names) < count:
        names["B00" + "".join(random.choice(letters, 7))] = None
    return list(names)


def _random(seed: int, *names: str) -> np.random.Generator:
    return np.random.default_rng(randomness.keys(seed, "world", ["/".join(names)])[0])


def _write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
