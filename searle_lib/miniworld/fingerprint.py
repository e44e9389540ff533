"""What the shipped weights were made of, and a fingerprint of the world they were trained on."""

import hashlib
import json
from pathlib import Path

import numpy as np

from searle_lib.miniworld import grammar
from searle_lib.miniworld.garments import draw_garment
from searle_lib.miniworld.scenes import draw_scene
from searle_lib.miniworld.specimens import GARMENT_KINDS, SCENE_KINDS, concepts, random_garment, random_scene

HERE = Path(__file__).parent
WEIGHTS = HERE / "weights"


def fingerprint() -> dict:
    """Return a hash of seeded training sentences, and thumbnails [36, 4, 4, 3] of a seeded image of each kind."""
    random = np.random.default_rng(0)
    scenes = [random_scene(random, kind) for kind in SCENE_KINDS]
    garments = [random_garment(random, [kind]) for kind in GARMENT_KINDS]
    names = concepts()
    sentences = [grammar.caption(s, random) for s in (*scenes, *garments) for _ in range(20)]
    sentences += [grammar.statement(names[i % len(names)], s, random) for i, s in enumerate((*scenes, *garments))]
    pictures = [*(draw_scene(s, random) for s in scenes), *(draw_garment(g, random) for g in garments)]
    return {
        "sentences_sha256": hashlib.sha256("\n".join(sentences + names).encode()).hexdigest(),
        "thumbnails": [np.asarray(picture.reduce(16)).ravel().tolist() for picture in pictures],
    }


def manifest() -> dict:
    """Return what the shipped weights were made of, and how well they do on held-out pairs."""
    return json.loads((WEIGHTS / "manifest.json").read_text())


def sources_sha256() -> str:
    """Return a hash of everything that decides images and sentences: this package's modules and its weights."""
    total = hashlib.sha256()
    for path in sorted([*HERE.glob("*.py"), *WEIGHTS.iterdir()]):
        total.update(path.name.encode() + path.read_bytes())
    return total.hexdigest()
