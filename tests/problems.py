"""A small inversion problem that several rooms test with."""

import pandas as pd
import torch

from searle_lib import plain
from searle_lib.backbone.embeddings import Embeddings
from searle_lib.searle import phrases
from searle_lib.searle.concepts import TEMPLATES, Concepts
from searle_lib.searle.oti import Settings
from searle_lib.store import randomness

NAMES = ("Star", "Boat", "Gown", "Tree")
FAST = Settings(steps=6, learning_rate=5e-2, top_k=3, ema_decay=0.8)


def problem(clip, images=5):
    """Random embeddings, a few phrases a concept of which one lacks its concept, and rankings of the concepts."""
    random = torch.Generator().manual_seed(1)
    vectors = torch.randn(images, clip.dimension, generator=random)
    ids = tuple(f"image-{i}" for i in range(images))
    rows = torch.stack([torch.randperm(4, generator=random) for _ in range(images)])
    texts = {
        "Star": ["a photo of Star that is blue", "a photo of Star that is next to a Star"],
        "Boat": ["a photo of Boat that has stripes", "a photo of Boat on the beach"],
        "Gown": ["a photo of Gown that is red", "a photo of a dress"],  # the second does not name it
        "Tree": ["a photo of Tree that is small in the snow", "a photo of Tree", "a photo of Tree that is big"],
    }
    table = pd.DataFrame(
        [(concept, text) for concept, of in texts.items() for text in of], columns=["concept", "phrase"]
    )
    images = Embeddings("test/images", ids, vectors, "images")
    return images, Concepts(ids, rows, NAMES, "concepts"), phrases.from_table(table)


def plain_loop(clip, images, concepts, written, settings):
    """The published loop, one image at a time, with the templates and phrases that the image's random numbers draw."""
    words = []
    for row, image in enumerate(images.ids):
        key = randomness.keys(settings.seed, "oti", [image])
        start = torch.from_numpy(randomness.normal(key, 2 * settings.steps, clip.width)).float() * 0.02
        nearest = [concepts.names[c] for c in concepts.rows[row].tolist()][: settings.top_k]
        pool = [(c, p) for c in nearest if all(c in p for p in written.select(c)) for p in written.select(c)]
        template_draws = randomness.integers(key, 0, settings.steps, 24)[0]
        phrase_draws = randomness.integers(key, settings.steps, settings.steps, len(pool))[0]
        templates, phrases = [[TEMPLATES[i]] for i in template_draws], [[pool[i]] for i in phrase_draws]
        rates = {"learning_rate": settings.learning_rate, "ema_decay": settings.ema_decay}
        words.append(plain.oti(clip.model, start, images.vectors[[row]], templates, phrases, **rates))
    return torch.cat(words)
