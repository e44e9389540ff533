"""Vectors that belong to images: CLIP's image embeddings, or the token embeddings that inversion finds for them.

CLIP's are computed once for a whole image list and kept; every stage and method reads the same ones.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from searle_lib import images, shards
from searle_lib.artefacts import Store, digest
from searle_lib.backbone import Backbone, encode_images
from searle_lib.benchmarks import Benchmark

SHARD = 4096


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
    gallery: pd.DataFrame,
    preprocess: str,
    batch_size: int = 256,
    workers: int = 2,
    by: str | None = "02_concepts",
) -> Embeddings:
    """The embeddings of the images of a table with columns image and path, kept in the store; notebook `by` makes them.

    Raises FileNotFoundError or ValueError that names the first image that is missing or broken.
    """
    ids, paths = tuple(gallery["image"]), [Path(path) for path in gallery["path"]]
    facts = {
        "clip": backbone.sha256,
        "preprocess": preprocess,
        "images": images_fingerprint(ids, paths),
        "precision": backbone.precision,
    }

    def work(first: int, end: int) -> dict[str, Tensor]:
        pixels = images.batches(paths[first:end], backbone.resolution, preprocess, batch_size, workers)
        return {"vectors": torch.cat([encode_images(backbone, part).cpu() for part in pixels])}

    def make(folder: Path) -> None:
        vectors = shards.run(folder / "shards", len(ids), SHARD, work, desc=f"encoding {name}")
        if not torch.isfinite(vectors["vectors"]).all():
            raise ValueError(f"{backbone.name} gives embeddings of {name} that are not finite; use precision float32.")
        save_file(vectors, folder / "embeddings.safetensors")
        shards.clear(folder / "shards")

    what = f"image embeddings of {name} for {backbone.name}"
    kept = store.keep(f"embeddings/{name.replace('/', '-')}", facts, make, by, what)
    return Embeddings(
        name, ids, load_file(kept.folder / "embeddings.safetensors")["vectors"], kept.key, backbone.sha256
    )


def encode_galleries(
    store: Store,
    backbone: Backbone,
    splits: dict[str, list[Benchmark]],
    preprocess: str,
    batch_size: int = 256,
    workers: int = 2,
) -> dict[str, Embeddings]:
    """The embeddings of every gallery by its name; one that several splits share is encoded once.

    Whichever notebook needs them first makes them: a study with a given φ starts at 06_retrieval.
    """
    galleries: dict[str, Embeddings] = {}
    for benchmark in (benchmark for loaded in splits.values() for benchmark in loaded):
        if benchmark.images not in galleries:
            table = benchmark.gallery
            found = encode(store, backbone, benchmark.images, table, preprocess, batch_size, workers, by=None)
            galleries[benchmark.images] = found
    return galleries


def of_references(name: str, loaded: list[Benchmark], galleries: dict[str, Embeddings]) -> Embeddings:
    """The embeddings of a split's reference images, each once, in order of first use."""
    rows = {
        reference: galleries[benchmark.images].of([reference])
        for benchmark in loaded
        for reference in dict.fromkeys(benchmark.queries["reference"])
    }
    ids = tuple(rows)
    key = digest([[galleries[benchmark.images].key for benchmark in loaded], list(ids)])
    return Embeddings(f"{name}/references", ids, torch.cat(list(rows.values())), key)


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
