"""The miniature world on disk, in the folders and file forms of the real data sets, with its models beside them.

FashionIQ, CIRR, CIRCO and ImageNet-1K test are drawn below one data root, so that the study reads them with the
loaders it reads the real ones with. Nothing here knows a model; what a query means is decided by attributes alone.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from searle_lib import randomness
from searle_lib.artefacts import digest, write_json
from searle_lib.miniworld import grammar
from searle_lib.miniworld.fingerprint import fingerprint, manifest
from searle_lib.miniworld.garments import draw_garment
from searle_lib.miniworld.scenes import draw_scene
from searle_lib.miniworld.specimens import (
    Scene,
    Specimen,
    concepts,
    differences,
    kinds_of,
    random_garment,
    random_scene,
    varied,
)

MARK = "miniature_world.json"
JPEG = {"quality": 95, "subsampling": 0}


@dataclass(frozen=True)
class Sizes:
    """How much of everything is drawn."""

    fashioniq_queries: int = 200  # a category
    fashioniq_gallery: int = 500
    cirr_val_sets: int = 100  # of six pictures and six queries each
    cirr_test_sets: int = 40
    circo_val_queries: int = 200
    circo_test_queries: int = 100
    circo_gallery: int = 2000
    imagenet: int = 1500


def write(data_root: Path, seed: int = 42, sizes: Sizes = Sizes()) -> Path:
    """Draw the world below `data_root` unless it is there already; the root.

    Drawn aside and renamed, so a root that exists is whole. Raises ValueError when something else lies there.
    """
    data_root = Path(data_root)
    facts = {"seed": seed, "sizes": vars(sizes), "world": digest(fingerprint()), "models": manifest()}
    key = digest(facts)
    mark = data_root / MARK
    if mark.exists() and json.loads(mark.read_text())["key"] == key:
        return data_root
    if data_root.exists() and not mark.exists():
        raise ValueError(
            f"data_root {data_root} exists and is not a miniature world; set world to real, or name another folder."
        )
    from searle_lib.miniworld import models  # brings transformers, slow to import where the world is there already

    aside = data_root.with_name(data_root.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    pictures = [
        *_fashioniq(aside / "FashionIQ", seed, sizes),
        *_cirr(aside / "CIRR", seed, sizes),
        *_circo(aside / "CIRCO", seed, sizes),
        *_imagenet(aside / "ImageNet1K", seed, sizes),
    ]
    for path, specimen in tqdm(pictures, desc="drawing the miniature world", mininterval=2):
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(specimen, f"{seed}/{path.relative_to(aside)}").save(path, **({} if path.suffix == ".png" else JPEG))
    _vocabulary(aside / "oidv7-class-descriptions.csv")
    (aside / "models").mkdir()
    models.write_clip(aside / "models" / "tiny-clip.pt")
    models.write_language_model(aside / "models" / "tiny-gpt-neo")
    write_json(aside / MARK, {"key": key, "seed": seed, "sizes": vars(sizes)})
    shutil.rmtree(data_root, ignore_errors=True)
    aside.rename(data_root)
    return data_root


def draw(specimen: Specimen, name: str) -> Image.Image:
    """The picture of a specimen; its harmless variation is keyed by the picture's name."""
    random = np.random.default_rng(randomness.keys(0, "picture", [name])[0])
    return draw_scene(specimen, random) if isinstance(specimen, Scene) else draw_garment(specimen, random)


def ground_truths(target: Specimen, changed: list[str], gallery: dict[int, Specimen]) -> list[int]:
    """Ids of the scenes that share the target's kind, colour and place and whatever the caption changes."""
    same = {"kind", "colour", "setting", *changed}
    return [i for i, scene in gallery.items() if not same & set(differences(scene, target))]


def aspects(caption: str, changed: list[str], target: Scene) -> list[str]:
    """CIRCO's semantic aspects of a relative caption."""
    words = f" {caption} "
    found = {
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
    return [name for name, holds in found.items() if holds]


def _fashioniq(folder: Path, seed: int, sizes: Sizes) -> list[tuple[Path, Specimen]]:
    pictures = []
    for category in ("dress", "shirt", "toptee"):
        for split, queries, gallery in (("val", sizes.fashioniq_queries, sizes.fashioniq_gallery), ("test", 40, 80)):
            random = _random(seed, "fashioniq", category, split)
            pairs = []
            for _ in range(queries):
                reference = random_garment(random, kinds_of(category))
                pairs.append((reference, varied(reference, int(random.integers(3, 5)), random, fixed=("kind",))))
            rest = [random_garment(random, kinds_of(category)) for _ in range(gallery - 2 * queries)]
            specimens = [*(specimen for pair in pairs for specimen in pair), *rest]
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
        entries, paths = [], {}
        for number in range(sets):
            scenes = _six_alike(random)
            members = [f"{prefix}-{number}-{i // 2}-img{i % 2}" for i in range(6)]
            paths |= {name: f"./{prefix}/{name}.png" for name in members}
            pictures += [(folder / prefix / f"{n}.png", s) for n, s in zip(members, scenes, strict=True)]
            for i in range(6):
                j = (i + 1) % 6
                caption = grammar.relative_caption(scenes[i], scenes[j], random, most=int(random.integers(2, 4)))
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


def _six_alike(random: np.random.Generator) -> list[Scene]:
    """A scene and five variations of it, no two the same."""
    scenes = [random_scene(random)]
    while len(scenes) < 6:
        scene = varied(scenes[0], 2, random, fixed=("kind",))
        if scene not in scenes:
            scenes.append(scene)
    return [scenes[i] for i in random.permutation(6)]


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
        kept = [name for name in ("colour", "setting") if name not in changed]
        truths = [i for i in ground_truths(target, changed, gallery) if i != ids[first]]
        entries.append(
            {
                "reference_img_id": ids[first],
                "target_img_id": ids[first + 1],
                "relative_caption": caption,
                "shared_concept": grammar.shared_concept(target, kept),
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
    return [(folder / "test" / name, specimen) for name, specimen in zip(names, specimens, strict=True)]


def _vocabulary(path: Path) -> None:
    rows = [f"/m/0mini{number:02d},{name}" for number, name in enumerate(concepts())]
    path.write_text("\n".join(["LabelName,DisplayName", *rows]) + "\n")


def _names(count: int, random: np.random.Generator) -> list[str]:
    """Distinct identifiers in the form of Amazon's, which say nothing of the picture."""
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
