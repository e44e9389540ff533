"""The method in three calls, for a picture and a prompt of one's own (searle.md, section 10).

clip, phi = load_searle("ViT-B/32")
image = embed(clip, "accordion.jpg")
text = encode_with_pseudo_words(clip, ["a photo of $"], phi(image))
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from searle_lib.backbone import texts
from searle_lib.backbone.model import Backbone, encode_images, load_clip, tokenize
from searle_lib.data import images
from searle_lib.releases import searle_files
from searle_lib.searle.phi import Phi, file_of, network_of

PUBLISHED = {"ViT-B/32": "SEARLE_ViT-B32", "ViT-L/14": "SEARLE_ViT-L14"}


def load_searle(clip: str | Backbone = "ViT-B/32", phi: str = "", device: str = "auto") -> tuple[Backbone, Phi]:
    """Return a CLIP, by name, file, or loaded, and its φ: the published one, fetched once, or that of a file.

    Raises ValueError, in one sentence, for a CLIP without a published φ and for a φ of another CLIP, ConnectionError
    when weights cannot be fetched.
    """
    loaded = load_clip(clip, device) if isinstance(clip, str) else clip
    name = PUBLISHED.get(loaded.name)
    if not phi and not name:
        raise ValueError(f"no φ is published for {loaded.name}; give its file as phi, or use {' or '.join(PUBLISHED)}.")
    weights = searle_files.read_phi(file_of(phi or name), loaded.dimension, loaded.width)
    return loaded, network_of(loaded, weights)


def embed(clip: Backbone, picture: Path | str) -> Tensor:
    """Return a picture's embedding [1, d], not normalised. Raises FileNotFoundError or ValueError that names it."""
    pixels = images.to_pixels(images.read(Path(picture)), clip.resolution, clip.preprocess)
    return encode_images(clip, pixels.unsqueeze(0))


def encode_with_pseudo_words(clip: Backbone, prompts: Sequence[str], words: Tensor) -> Tensor:
    """Return unit text features [N, d] of prompts that each hold " $ ", which one of the words [N, d_tok] replaces.

    Raises ValueError for a prompt without $ and for another number of words than prompts.
    """
    if len(prompts) != len(words):
        raise ValueError(f"{len(prompts)} prompts do not go with {len(words)} pseudo-words; give one word a prompt.")
    features = texts.encode_text(clip, tokenize(prompts), words)
    return torch.nn.functional.normalize(features, dim=-1)
