"""CLIP's patch tokens of images, for FTI4CIR: kept for training, or read and turned into words at once.

An image is one pass of the visual tower, which gives its embedding and its patch tokens together.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from searle_lib import images, shards
from searle_lib.artefacts import Store
from searle_lib.backbone import Backbone, encode_patches
from searle_lib.embeddings import images_fingerprint
from searle_lib.fti4cir import Fti4Cir, Words
from searle_lib.shards import Rows

SHARD = 512


@dataclass(frozen=True)
class Patches:
    """Of each image its embedding [N, d] and its patch tokens [N, P, w], class token first; both stay on disk."""

    ids: tuple[str, ...]
    embeddings: Rows
    tokens: Rows
    key: str


@dataclass(frozen=True)
class ImageWords:
    """FTI4CIR's pseudo-words of images."""

    ids: tuple[str, ...]
    words: Words
    key: str
    parts: str = "both"  # which of them queries use: an ablation takes the subject or the attributes alone

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {image: row for row, image in enumerate(self.ids)}

    def of(self, ids: Iterable[str]) -> Words:
        """The words of some of the images. Raises KeyError for one that is not among them."""
        return self.words[torch.tensor([self._row_of[image] for image in ids])]


def encode(
    store: Store, backbone: Backbone, name: str, table: pd.DataFrame, preprocess: str, batch_size: int, workers: int
) -> Patches:
    """Embeddings and patch tokens of the images of a table, kept in the store (in half precision where the towers
    run in it); notebook 05_fti4cir makes them.

    100,000 images of ViT-L/14 take 53 GB in half precision, so nothing ever holds all of them in memory.
    """
    facts = facts_of(backbone, table, preprocess)
    kind = torch.float32 if backbone.precision == "float32" else torch.float16

    def work(first: int, end: int) -> dict[str, Tensor]:
        parts = list(_batches(backbone, table[first:end], preprocess, batch_size, workers))
        return {"embeddings": torch.cat([e for e, _ in parts]), "tokens": torch.cat([t.to(kind) for _, t in parts])}

    def make(folder: Path) -> None:
        shards.write(folder, len(table), SHARD, work, desc=f"patches of {name}")

    kept = store.keep(f"patches/{name.replace('/', '-')}", facts, make, "05_fti4cir", f"patch tokens of {name}")
    there = shards.mapped(kept.folder)
    return Patches(tuple(table["image"]), there["embeddings"], there["tokens"], kept.key)


def words_of(
    store: Store,
    backbone: Backbone,
    model: Fti4Cir,
    network: str,
    name: str,
    table: pd.DataFrame,
    preprocess: str,
    batch_size: int,
    workers: int,
    parts: str = "both",
) -> ImageWords:
    """The words that a network, for which the key `network` stands, gives the images of a table; kept in the store.

    Notebook 05_fti4cir makes them.
    """
    facts = facts_of(backbone, table, preprocess) | {"network": network}

    def make(folder: Path) -> None:
        found = words_by(backbone, model, table, preprocess, batch_size, workers)
        save_file(vars(found.words), folder / "words.safetensors")

    what = f"FTI4CIR's words of {name} for {backbone.name}"
    kept = store.keep(f"fti-words/{name.replace('/', '-')}", facts, make, "05_fti4cir", what)
    return ImageWords(tuple(table["image"]), Words(**load_file(kept.folder / "words.safetensors")), kept.key, parts)


def look(
    backbone: Backbone, table: pd.DataFrame, preprocess: str, batch_size: int, workers: int
) -> tuple[Tensor, Tensor]:
    """Embeddings [N, d] and patch tokens [N, P, w] of the images of a table, computed now."""
    parts = list(_batches(backbone, table, preprocess, batch_size, workers))
    return torch.cat([e for e, _ in parts]), torch.cat([t for _, t in parts])


@torch.no_grad()
def words_by(
    backbone: Backbone,
    model: Fti4Cir,
    table: pd.DataFrame,
    preprocess: str,
    batch_size: int,
    workers: int,
    parts: str = "both",
) -> ImageWords:
    """The words that a network gives the images of a table, computed now."""
    found = []
    for embeddings, tokens in _batches(backbone, table, preprocess, batch_size, workers):
        words = model(embeddings.to(backbone.device), tokens.to(backbone.device))
        found.append({field: value.cpu() for field, value in vars(words).items()})
    together = Words(**{field: torch.cat([part[field] for part in found]) for field in found[0]})
    return ImageWords(tuple(table["image"]), together, "", parts)


def facts_of(backbone: Backbone, table: pd.DataFrame, preprocess: str) -> dict:
    """What determines the patch tokens of the images of a table."""
    fingerprint = images_fingerprint(table["image"], map(Path, table["path"]))
    return {
        "clip": backbone.sha256,
        "preprocess": preprocess,
        "images": fingerprint,
        "precision": backbone.precision,
    }


def _batches(
    backbone: Backbone, table: pd.DataFrame, preprocess: str, batch_size: int, workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    paths = [Path(path) for path in table["path"]]
    for pixels in images.batches(paths, backbone.resolution, preprocess, batch_size, workers):
        embeddings, tokens = encode_patches(backbone, pixels)
        yield embeddings.cpu(), tokens.cpu()
