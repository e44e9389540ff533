"""Vectors that belong to images: CLIP's image embeddings, or the token embeddings that inversion finds for them.

CLIP's are computed once for a whole image list and kept; every stage and method reads the same ones.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from searle_lib.backbone.model import Backbone, encode_images
from searle_lib.data import images, readable
from searle_lib.data.benchmarks import IMAGENET, Benchmark, by_split, reference_table
from searle_lib.data.images import DEFAULT_READER, Reader
from searle_lib.store import shards
from searle_lib.store.artefacts import Store, write_json
from searle_lib.store.code import code_digest
from searle_lib.store.records import Study

SHARD = 4096
IMAGES = "images.json"  # beside an artefact's vectors: whose they are


@dataclass(frozen=True)
class Embeddings:
    """One vector for each image id: vectors [N, d] float32, not normalised; clip is the sha256 of CLIP's weights."""

    name: str
    ids: tuple[str, ...]
    vectors: Tensor
    key: str
    clip: str = ""

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {image: row for row, image in enumerate(self.ids)}

    @cached_property
    def unit(self) -> Tensor:
        """The vectors [N, d] scaled to unit norm."""
        return F.normalize(self.vectors, dim=-1)

    def rows(self, ids: Iterable[str]) -> Tensor:
        """Rows [n] int64 of images. Raises LookupError that names the first image which is not among them."""
        try:
            return torch.from_numpy(np.fromiter(map(self._row_of.__getitem__, ids), dtype=np.int64))
        except KeyError as problem:
            missing = f"image {problem.args[0]} is not among the {len(self.ids)} images of {self.name}"
            raise LookupError(f"{missing}; its notebook must run again on the current data.") from None

    def of(self, ids: Iterable[str]) -> Tensor:
        """Vectors [n, d] of images by id."""
        return self.vectors[self.rows(ids)]


def encode(
    store: Store,
    backbone: Backbone,
    name: str,
    table: pd.DataFrame,
    reader: Reader = DEFAULT_READER,
) -> Embeddings:
    """Return the embeddings of the images of a table with columns image and path, kept in the store.

    Raises FileNotFoundError or ValueError that names the first image that is missing or broken.
    """
    ids, paths = tuple(table["image"]), [Path(path) for path in table["path"]]

    def work(first: int, end: int) -> dict[str, Tensor]:
        pixels = reader.batches(paths[first:end], backbone.resolution, backbone.preprocess)
        return {"vectors": torch.cat([encode_images(backbone, part).cpu() for part in pixels])}

    def make(folder: Path) -> None:
        vectors = shards.run(folder / "shards", len(ids), SHARD, work, desc=f"encoding {name}")
        if not torch.isfinite(vectors["vectors"]).all():
            raise ValueError(f"{backbone.name} gives embeddings of {name} that are not finite; use precision float32.")
        _save(folder, name, ids, vectors["vectors"], backbone)
        shards.clear(folder / "shards")

    return store.keep(f"embeddings/{name}", facts_of(backbone, table), make).read(load)


def encode_galleries(
    store: Store,
    backbone: Backbone,
    benchmarks: Iterable[Benchmark],
    reader: Reader = DEFAULT_READER,
) -> dict[str, Embeddings]:
    """Return the embeddings of every gallery by its name; one that several benchmarks share is encoded once."""
    galleries: dict[str, Embeddings] = {}
    for benchmark in benchmarks:
        if benchmark.images not in galleries:
            galleries[benchmark.images] = encode(store, backbone, benchmark.images, benchmark.gallery, reader)
    return galleries


def keep_references(
    store: Store, backbone: Backbone, loaded: list[Benchmark], galleries: dict[str, Embeddings]
) -> Embeddings:
    """Return the embeddings of a split's reference images, each once, in order of first use, kept in the store.

    The key is that of the pictures themselves. So another gallery around them leaves their pseudo-words as they are.
    """
    name, table = f"{loaded[0].of_split}/references", reference_table(loaded)
    gallery_of = {reference: b.images for b in loaded for reference in b.queries["reference"]}

    def make(folder: Path) -> None:
        vectors = torch.cat([galleries[gallery_of[image]].of([image]) for image in table["image"]])
        _save(folder, name, tuple(table["image"]), vectors, backbone)

    return store.keep(f"embeddings/{name}", facts_of(backbone, table), make).read(load)


def keep_all_references(
    store: Store, backbone: Backbone, benchmarks: Iterable[Benchmark], galleries: dict[str, Embeddings]
) -> dict[str, Embeddings]:
    """Return the embeddings of the references of every split, by the name of the list."""
    splits = by_split(benchmarks).values()
    lists = [keep_references(store, backbone, loaded, galleries) for loaded in splits]
    return {images.name: images for images in lists}


def encode_unlabeled(
    study: Study,
    backbone: Backbone,
    images_to_invert: Sequence[str],
    reader: Reader,
) -> dict[str, Embeddings]:
    """Return the embeddings of the unlabeled pictures, if some method inverts them, by the name of the list."""
    if "unlabeled" not in images_to_invert:
        return {}
    return {IMAGENET: encode(study, backbone, IMAGENET, readable.unlabeled(study), reader)}


def to_invert(
    images_to_invert: Sequence[str], unlabeled: dict[str, Embeddings], references: dict[str, Embeddings]
) -> dict[str, Embeddings]:
    """Return the lists of images that get concepts and pseudo-words, by name."""
    return unlabeled | (references if "references" in images_to_invert else {})


def read(study: Study, name: str) -> Embeddings:
    """Return the embeddings of a gallery or list of images that 02_concepts kept."""
    return study.artefact("02_concepts", f"embeddings/{name}").read(load)


def facts_of(backbone: Backbone, table: pd.DataFrame) -> dict:
    """Return what determines the embeddings and the patch tokens of the images of a table."""
    return {
        "clip": backbone.sha256,
        "preprocess": backbone.preprocess,
        "images": images_fingerprint(table["image"], map(Path, table["path"])),
        "precision": backbone.precision,
        "code": code_digest(encode_images, images.to_pixels, images.read),
    }


def load(folder: Path) -> Embeddings:
    """Read embeddings, or other vectors of images, from an artefact's folder."""
    facts = json.loads((folder / IMAGES).read_text(encoding="utf-8"))
    vectors = load_file(folder / "embeddings.safetensors")["vectors"]
    return Embeddings(facts["name"], tuple(facts["ids"]), vectors, folder.name.rpartition("-")[2], facts["clip"])


def _save(folder: Path, name: str, ids: tuple[str, ...], vectors: Tensor, backbone: Backbone) -> None:
    save_file({"vectors": vectors.contiguous()}, folder / "embeddings.safetensors")
    write_json(folder / IMAGES, {"name": name, "ids": ids, "clip": backbone.sha256})


def images_fingerprint(ids: Iterable[str], paths: Iterable[Path]) -> str:
    """Stands for a list of images by ids, order and sizes in bytes; reads no picture.

    Times of change do not count: a copied data set keeps its pseudo-words, which took days.

    Raises FileNotFoundError that names the first image that is not there.
    """
    total = hashlib.sha256()
    for image, path in zip(ids, paths, strict=True):
        try:
            total.update(f"{image}\t{path.stat().st_size}\n".encode())
        except PermissionError:
            raise PermissionError(f"image {path} may not be read; change its folder's permissions.") from None
        except OSError:
            raise FileNotFoundError(
                f"image {image} is listed but {path} does not exist; download it, correct data_root, or "
                "set missing_images: report."
            ) from None
    return total.hexdigest()[:16]
