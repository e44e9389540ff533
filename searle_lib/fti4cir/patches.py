"""CLIP's patch tokens of images, for FTI4CIR: kept for training, or read and turned into words at once.

An image is one pass of the visual tower, which gives its embedding and its patch tokens together. All of it is exact
(`Backbone.exact`): FTI4CIR keeps an attribute or not by a threshold, and rounding must not decide.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from searle_lib.backbone.embeddings import facts_of
from searle_lib.backbone.model import PRECISIONS, Backbone, encode_patches
from searle_lib.data import images
from searle_lib.data.images import Reader
from searle_lib.fti4cir.network import Fti4Cir, Trained, Words
from searle_lib.store import shards
from searle_lib.store.artefacts import Store, write_json
from searle_lib.store.code import code_digest
from searle_lib.store.records import Study
from searle_lib.store.shards import Rows

SHARD = 512
IDS = "images.json"  # beside the words: whose they are


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


def encode(store: Store, backbone: Backbone, name: str, table: pd.DataFrame, reader: Reader) -> Patches:
    """Embeddings and patch tokens of the images of a table, kept in the store (in half precision where the towers
    run in it).

    100,000 images of ViT-L/14 take 53 GB in half precision, so nothing ever holds all of them in memory.
    """
    facts = facts_of(backbone.exact, table) | {"code": code_digest(encode_patches, images.to_pixels, images.read)}
    kind = torch.float16 if PRECISIONS.get(backbone.precision) else backbone.exact.model.dtype

    def work(first: int, end: int) -> dict[str, Tensor]:
        parts = list(_batches(backbone, table[first:end], reader))
        return {"embeddings": torch.cat([e for e, _ in parts]), "tokens": torch.cat([t.to(kind) for _, t in parts])}

    def make(folder: Path) -> None:
        shards.write(folder, len(table), SHARD, work, desc=f"patches of {name}")

    kept = store.keep(f"patches/{name}", facts, make)
    rows = kept.read(shards.mapped)
    return Patches(tuple(table["image"]), rows["embeddings"], rows["tokens"], kept.key)


def words_of(
    store: Store,
    backbone: Backbone,
    trained: Trained,
    name: str,
    table: pd.DataFrame,
    reader: Reader,
    parts: str = "both",
) -> ImageWords:
    """Return the words that a network gives the images of a table, kept in the store.

    Args:
        store: where the words are kept.
        backbone: the frozen CLIP.
        trained: the network.
        name: of the list of images.
        table: columns image and path.
        reader: how many images are read at once.
        parts: the words that queries use: both, subject or attributes.
    """
    facts = facts_of(backbone.exact, table) | {"network": trained.key}
    facts["code"] = code_digest(encode_patches, images.to_pixels, images.read, Fti4Cir)

    def make(folder: Path) -> None:
        found = words_by(backbone, trained.model, table, reader)
        save_file(vars(found.words), folder / "words.safetensors")
        write_json(folder / IDS, found.ids)

    return store.keep(f"fti-words/{name}", facts, make).read(lambda folder: load(folder, parts))


def read(study: Study, name: str, parts: str) -> ImageWords:
    """Return FTI4CIR's words of the references of a split that 05_fti4cir kept."""
    return study.artefact("05_fti4cir", f"fti-words/{name}").read(lambda folder: load(folder, parts))


def load(folder: Path, parts: str) -> ImageWords:
    """Read words from an artefact's folder."""
    ids = tuple(json.loads((folder / IDS).read_text(encoding="utf-8")))
    return ImageWords(ids, Words(**load_file(folder / "words.safetensors")), folder.name.rpartition("-")[2], parts)


def look(backbone: Backbone, table: pd.DataFrame, reader: Reader) -> tuple[Tensor, Tensor]:
    """Embeddings [N, d] and patch tokens [N, P, w] of the images of a table, computed now."""
    parts = list(_batches(backbone, table, reader))
    return torch.cat([e for e, _ in parts]), torch.cat([t for _, t in parts])


@torch.no_grad()
def words_by(
    backbone: Backbone,
    model: Fti4Cir,
    table: pd.DataFrame,
    reader: Reader,
    parts: str = "both",
) -> ImageWords:
    """The words that a network gives the images of a table, computed now."""
    found = []
    for embeddings, tokens in _batches(backbone, table, reader):
        words = model(embeddings.to(backbone.device), tokens.to(backbone.device))
        found.append({field: value.cpu() for field, value in vars(words).items()})
    together = Words(**{field: torch.cat([part[field] for part in found]) for field in found[0]})
    return ImageWords(tuple(table["image"]), together, "", parts)


def _batches(backbone: Backbone, table: pd.DataFrame, reader: Reader) -> Iterator[tuple[Tensor, Tensor]]:
    paths = [Path(path) for path in table["path"]]
    for pixels in reader.batches(paths, backbone.resolution, backbone.preprocess):
        embeddings, tokens = encode_patches(backbone.exact, pixels)
        yield embeddings.cpu(), tokens.cpu()
