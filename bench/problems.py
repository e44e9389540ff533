"""The random problems that pieces of work are measured on: networks of the published sizes, phrases, embeddings."""

import tempfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import clip
import numpy as np
import pandas as pd
import torch
from clip.model import CLIP
from PIL import Image
from torch import Tensor

from searle_lib.backbone.embeddings import Embeddings
from searle_lib.backbone.model import Backbone
from searle_lib.searle import concepts, phrase_bank, phrases
from searle_lib.store.artefacts import Store

END = 49407  # end-of-text, of CLIP
WIDTH, BLOCKS = 512, 12  # of ViT-B/32's text tower
SIZES = {
    "embed_dim": 512, "image_resolution": 224, "vision_layers": 12, "vision_width": 768, "vision_patch_size": 32,
    "context_length": 77, "vocab_size": 49408, "transformer_width": WIDTH, "transformer_heads": 8,
    "transformer_layers": BLOCKS,
}  # fmt: skip
PLENTY = "the old man walks along a quiet river with his small dog while children play near bright red boats and some \
people eat lunch under green trees on warm days".split()


@cache
def model(device: str = "cpu") -> CLIP:
    """A CLIP of ViT-B/32's size with random weights, the same on every device."""
    torch.manual_seed(0)
    return CLIP(**SIZES).eval().requires_grad_(False).to(device)


@cache
def backbone(precision: str = "float32", device: str = "cpu") -> Backbone:
    """The same as a Backbone."""
    return Backbone("random", "", model(device), torch.device(device), precision)


@cache
def written() -> phrases.Phrases:
    """Phrases of about 33 tokens about twenty concepts."""
    random = np.random.default_rng(0)
    rows = [
        (f"thing{i}", f"a photo of thing{i} that " + " ".join(random.choice(PLENTY, size=random.integers(24, 28))))
        for i in range(20)
        for _ in range(16)
    ]
    return phrases.from_table(pd.DataFrame(rows, columns=["concept", "phrase"]))


@cache
def bank(precision: str = "float32", device: str = "cpu") -> phrase_bank.PhraseBank:
    """The phrases' tokens and features."""
    return phrase_bank.prepare(Store(Path(tempfile.mkdtemp())), backbone(precision, device), written())


def pictures(number: int) -> tuple[Embeddings, concepts.Concepts]:
    """Random embeddings and nearest concepts."""
    random = np.random.default_rng(1)
    ids = tuple(map(str, range(number)))
    vectors = torch.from_numpy(random.normal(size=(number, WIDTH))).float()
    rows = torch.from_numpy(np.stack([random.permutation(20)[:15] for _ in ids]))
    return Embeddings("random", ids, vectors, ""), concepts.Concepts(ids, rows, written().concepts, "")


def files(number: int) -> list[Path]:
    """JPEG files of 640 x 480, smooth as photographs are."""
    folder, random = Path(tempfile.mkdtemp()), np.random.default_rng(5)
    paths = [folder / f"{i}.jpg" for i in range(number)]
    for path in paths:
        small = Image.fromarray(random.integers(0, 256, (15, 20, 3), dtype=np.uint8))
        small.resize((640, 480), Image.BICUBIC).save(path, quality=90)
    return paths


@cache
def language_model(device: str = "cpu"):
    """A GPT-Neo with random weights, a fortieth of the published one's, and a tokenizer for it: CLIP's."""
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    torch.manual_seed(0)
    config = GPTNeoConfig(
        vocab_size=SIZES["vocab_size"], hidden_size=512, num_layers=6, attention_types=[[["global", "local"], 3]],
        num_heads=8, intermediate_size=2048, max_position_embeddings=64, initializer_range=0.1,
        bos_token_id=49406, eos_token_id=END,
    )  # fmt: skip
    return GPTNeoForCausalLM(config).eval().to(device), _Tokenizer()


class _Tokenizer:
    eos_token_id = END

    def __call__(self, text: str) -> SimpleNamespace:
        return SimpleNamespace(input_ids=clip.clip._tokenizer.encode(text))


def tower_flop(tokens: Tensor) -> float:
    """Floating-point operations of the text tower's forward pass over texts of which tokens [N] are read."""
    read = tokens.double()
    of_blocks = (BLOCKS - 1) * (24 * WIDTH**2 * read + 4 * WIDTH * read * (read + 4) / 2)  # causal, behind a prefix
    return float((of_blocks + 4 * WIDTH**2 * read + 20 * WIDTH**2).sum())


def image_flop(images: int) -> float:
    """Floating-point operations of the image tower for so many images."""
    width, tokens = SIZES["vision_width"], (SIZES["image_resolution"] // SIZES["vision_patch_size"]) ** 2 + 1
    block = 24 * width**2 * tokens + 4 * width * tokens**2
    return images * (SIZES["vision_layers"] * block + 2 * (tokens - 1) * 3 * SIZES["vision_patch_size"] ** 2 * width)
