"""CLIP's patch tokens of images, and the pseudo-words that FTI4CIR's network predicts from them.

All functions take a table of images. `encode` keeps patch tokens for training, `keep_words` keeps pseudo-words, and
`encode_now` and `predict_words` compute without keeping. One pass of the image tower gives both the embedding and the
patch tokens of an image. It runs in `Backbone.exact`, because rounding must not decide whether a score is above
FTI4CIR's threshold.
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
from searle_lib.fti4cir.network import Fti4Cir, Words
from searle_lib.store import bars, shards
from searle_lib.store.artefacts import Store, write_json
from searle_lib.store.code import code_digest
from searle_lib.store.records import Study
from searle_lib.store.shards import Rows
from searle_lib.training import TrainedNetwork

SHARD = 512
IDS = "images.json"  # the images of the pseudo-words, in the same folder


@dataclass(frozen=True)
class Patches:
    """Embeddings and patch tokens of N images, which stay on disk.

    Args:
        ids: the images.
        embeddings: [N, d], not normalised.
        tokens: [N, P, w], the class token first.
        key: the key of the artefact.
    """

    ids: tuple[str, ...]
    embeddings: Rows
    tokens: Rows
    key: str


@dataclass(frozen=True)
class ImageWords:
    """FTI4CIR's pseudo-words of N images.

    Args:
        ids: the images.
        words: their pseudo-words.
        key: the key of the artefact.
        parts: the words that queries use: both, or in an ablation subject or attributes alone.
    """

    ids: tuple[str, ...]
    words: Words
    key: str
    parts: str = "both"

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {image: row for row, image in enumerate(self.ids)}

    def select(self, ids: Iterable[str]) -> Words:
        """Return the words of some images by id. Raises KeyError for an image without words."""
        return self.words[torch.tensor([self._row_of[image] for image in ids])]


def encode(store: Store, backbone: Backbone, name: str, table: pd.DataFrame, reader: Reader) -> Patches:
    """Return the embeddings and patch tokens of images, kept in the store.

    They take 53 GB for 100,000 images of ViT-L/14 in half precision, so they are never all in memory.

    Args:
        store: keeps them, in half precision if the backbone computes in it.
        backbone: the frozen CLIP.
        name: the name of the image list.
        table: the images, columns image and path.
        reader: how many images are read at once; changes no result.
    """
    facts = facts_of(store, backbone.exact, table) | {
        "code": code_digest(encode_patches, images.to_pixels, images.read)
    }
    dtype = torch.float16 if PRECISIONS.get(backbone.precision) else backbone.exact.model.dtype

    def work(first: int, end: int) -> dict[str, Tensor]:
        parts = list(_batches(backbone, table[first:end], reader))
        return {"embeddings": torch.cat([e for e, _ in parts]), "tokens": torch.cat([t.to(dtype) for _, t in parts])}

    def make(folder: Path) -> None:
        shards.write(folder, len(table), SHARD, work, f"patches of {name}", store.executor)

    artefact = store.keep(f"patches/{name}", facts, make)
    rows = artefact.read(shards.memory_map)
    return Patches(tuple(table["image"]), rows["embeddings"], rows["tokens"], artefact.key)


def keep_words(
    store: Store,
    backbone: Backbone,
    trained: TrainedNetwork,
    name: str,
    table: pd.DataFrame,
    reader: Reader,
    parts: str = "both",
) -> ImageWords:
    """Return the pseudo-words that a network predicts for images, kept in the store.

    Args:
        store: keeps the pseudo-words.
        backbone: the frozen CLIP.
        trained: the network.
        name: the name of the image list.
        table: the images, columns image and path.
        reader: how many images are read at once; changes no result.
        parts: the words that queries use: both, subject or attributes.
    """
    facts = facts_of(store, backbone.exact, table) | {"network": trained.key}
    facts["code"] = code_digest(encode_patches, images.to_pixels, images.read, Fti4Cir)

    def work(first: int, end: int) -> dict[str, Tensor]:
        return vars(predict_words(backbone, trained.module, table[first:end], reader).words)

    def make(folder: Path) -> None:
        words = shards.run(folder / "shards", len(table), SHARD, work, f"words of {name}", store.executor)
        save_file(words, folder / "words.safetensors")
        write_json(folder / IDS, list(table["image"]))

    return store.keep(f"fti-words/{name}", facts, make).read(lambda folder: load(folder, parts))


def read(study: Study, name: str, parts: str) -> ImageWords:
    """Return the pseudo-words of a split's references that 05_fti4cir kept; `parts` are those that queries use."""
    return study.artefact("05_fti4cir", f"fti-words/{name}").read(lambda folder: load(folder, parts))


def load(folder: Path, parts: str) -> ImageWords:
    """Read pseudo-words from an artefact's folder."""
    ids = tuple(json.loads((folder / IDS).read_text(encoding="utf-8")))
    return ImageWords(ids, Words(**load_file(folder / "words.safetensors")), folder.name.rpartition("-")[2], parts)


def encode_now(backbone: Backbone, table: pd.DataFrame, reader: Reader) -> tuple[Tensor, Tensor]:
    """Compute the embeddings [N, d] and patch tokens [N, P, w] of images without keeping them."""
    parts = list(_batches(backbone, table, reader))
    return torch.cat([e for e, _ in parts]), torch.cat([t for _, t in parts])


@torch.no_grad()
def predict_words(
    backbone: Backbone,
    model: Fti4Cir,
    table: pd.DataFrame,
    reader: Reader,
    parts: str = "both",
) -> ImageWords:
    """Compute the pseudo-words that a network predicts for images without keeping them; the result has no key.

    Args:
        backbone: the frozen CLIP.
        model: the network.
        table: the images, columns image and path.
        reader: how many images are read at once; changes no result.
        parts: the words that queries use: both, subject or attributes.
    """
    batches = []
    for embeddings, tokens in _batches(backbone, table, reader):
        words = model.to(backbone.device)(embeddings.to(backbone.device), tokens.to(backbone.device))
        batches.append({field: value.cpu() for field, value in vars(words).items()})
        bars.advance(len(embeddings))
    words = Words(**{field: torch.cat([batch[field] for batch in batches]) for field in batches[0]})
    return ImageWords(tuple(table["image"]), words, "", parts)


def _batches(backbone: Backbone, table: pd.DataFrame, reader: Reader) -> Iterator[tuple[Tensor, Tensor]]:
    paths = [Path(path) for path in table["path"]]
    for pixels in reader.batches(paths, *backbone.pixel_form):
        embeddings, tokens = encode_patches(backbone.exact, pixels)
        yield embeddings.cpu(), tokens.cpu()
