"""SEARLE in three calls, for any image and prompt.

    clip, phi = load_searle("ViT-B/32")
    image = embed(clip, "accordion.jpg")
    text = encode_with_pseudo_words(clip, ["a photo of $"], phi(image))

Takes the names of published weights or files, and returns embeddings [N, d]. "mini" names the miniature world's CLIP
and φ, which every clone has.
"""

from collections.abc import Sequence
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from searle_lib.backbone import texts
from searle_lib.backbone.model import Backbone, encode_images, load_clip
from searle_lib.data import images
from searle_lib.releases import searle_files
from searle_lib.searle.phi import Phi, build_network, fetch_checkpoint

MINIATURE = "mini"
PUBLISHED = {"ViT-B/32": "SEARLE_ViT-B32", "ViT-L/14": "SEARLE_ViT-L14"}


def load_searle(clip: str | Backbone = "ViT-B/32", phi: str = "", device: str = "auto") -> tuple[Backbone, Phi]:
    """Load a CLIP and its textual inversion network φ (SEARLE section 3.2). Published weights are downloaded once.

    Args:
        clip: a published name, a file, a loaded CLIP, or "mini" for the miniature world's.
        phi: a published name or a file. Empty: the published φ of this CLIP.
        device: cpu, cuda, mps, or auto; only for a CLIP that is not loaded.

    Raises:
        ValueError: if no φ is published for the CLIP, or φ does not fit the CLIP.
        ConnectionError: if weights cannot be downloaded.
    """
    if clip == MINIATURE:
        from searle_lib.miniworld import models  # brings transformers, slow to import

        clip, own_phi = map(str, models.cached_files())
        phi = phi or own_phi
    loaded = load_clip(clip, device) if isinstance(clip, str) else clip
    name = PUBLISHED.get(loaded.name)
    if not phi and not name:
        raise ValueError(f"no φ is published for {loaded.name}; set phi to a file, or use {' or '.join(PUBLISHED)}.")
    weights = searle_files.read_phi(fetch_checkpoint(phi or name), loaded.dimension, loaded.width)
    return loaded, build_network(loaded, weights)


def embed(clip: Backbone, image: Path | str) -> Tensor:
    """Embed an image file into [1, d], not normalised. Raises FileNotFoundError or ValueError if it cannot be read."""
    pixels = images.to_pixels(images.read(Path(image)), *clip.pixel_form)
    return encode_images(clip, pixels.unsqueeze(0))


def encode_with_pseudo_words(clip: Backbone, prompts: Sequence[str], words: Tensor) -> Tensor:
    """Encode N prompts, the first "$" of each replaced by its pseudo-word of words [N, d_tok].

    Returns:
        [N, d] float32, unit norm; gradients flow to the words.

    Raises:
        ValueError: if a prompt has no "$", or the numbers of prompts and words differ.
    """
    if len(prompts) != len(words):
        raise ValueError(f"there are {len(prompts)} prompts but {len(words)} pseudo-words; pass one word per prompt.")
    packed = texts.pack(clip, [texts.split(clip.tokenize(prompts))])
    return F.normalize(texts.encode_packed(clip, packed, words), dim=-1)
