"""What ties the shipped weights to the world they were trained on, and says what they were made of."""

import hashlib
import json
from pathlib import Path

import numpy as np

from searle_lib.miniworld import grammar
from searle_lib.miniworld.garments import draw_garment
from searle_lib.miniworld.scenes import draw_scene
from searle_lib.miniworld.specimens import random_garment, random_scene

WEIGHTS = Path(__file__).parent / "weights"


def fingerprint() -> dict:
    """What ties weights to the world: a hash of seeded sentences, and thumbnails [24, 4, 4, 3] of seeded pictures."""
    random = np.random.default_rng(0)
    specimens = [random_garment(random) if i % 2 else random_scene(random) for i in range(24)]
    sentences = [grammar.caption(s, random) for s in specimens for _ in range(20)]
    pictures = [draw_garment(s, random) if i % 2 else draw_scene(s, random) for i, s in enumerate(specimens)]
    return {
        "captions_sha256": hashlib.sha256("\n".join(sentences).encode()).hexdigest(),
        "thumbnails": [np.asarray(picture.reduce(16)).ravel().tolist() for picture in pictures],
    }


def manifest() -> dict:
    """What the shipped weights were made of and how well they do on held-out pairs."""
    return json.loads((WEIGHTS / "manifest.json").read_text())
