"""Compute, keep and read one vector per image: CLIP's image embedding, or a pseudo-word.

Takes a table of images. The vectors are computed once for each list of images, and every stage and method reads them.
Those of a list with more than LARGE images stay on disk.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from searle_lib.backbone.model import Backbone, encode_images
from searle_lib.data import images, readable
from searle_lib.data.benchmarks import IMAGENET, Benchmark, galleries_of, group_by_split, reference_table
from searle_lib.data.images import DEFAULT_READER, Reader
from searle_lib.store import bars, shards
from searle_lib.store.artefacts import Store, file_sha256, write_json
from searle_lib.store.batches import BatchSize
from searle_lib.store.code import code_digest
from searle_lib.store.records import Study
from searle_lib.store.shards import Rows

SHARD = 4096
LARGE = 2**17  # images of a list whose vectors are read all at once, at most
VECTORS, IMAGES = "embeddings.safetensors", "images.json"  # the vectors of an artefact, and their ids


@dataclass(frozen=True)
class Embeddings:
    """One vector for each image of a list.

    Args:
        name: of the list of images.
        ids: the ids of the N images.
        vectors: [N, d] float32, not normalised.
        key: of the artefact that holds the vectors.
        clip: the sha256 of CLIP's weights.
    """

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
        """The vectors [N, d], unit norm."""
        return F.normalize(self.vectors, dim=-1)

    def rows(self, ids: Iterable[str]) -> Tensor:
        """Return the rows [n] int64 of images. Raises LookupError for an image that is not in the list."""
        try:
            return torch.from_numpy(np.fromiter(map(self._row_of.__getitem__, ids), dtype=np.int64))
        except KeyError as problem:
            raise LookupError(
                f"image {problem.args[0]} is not among the {len(self.ids)} images of {self.name}; run its notebook "
                "again on the current data."
            ) from None

    def select(self, ids: Iterable[str]) -> Tensor:
        """Return the vectors [n, d] of images. Raises as `rows` does."""
        return self.vectors[self.rows(ids)]


@dataclass(frozen=True)
class UnitRows:
    """The vectors of a large list [N, d], unit norm: they are read, and divided by their norm, when they are used."""

    rows: Rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """Return rows [n, d] float32, by their numbers or consecutive ones."""
        vectors = self.rows[rows].float()
        return F.normalize(vectors, dim=-1, out=vectors)  # a copy of its own, and a second one would take as much again


@dataclass(frozen=True)
class LargeEmbeddings(Embeddings):
    """Embeddings of a list of more than LARGE images, whose vectors stay on disk."""

    vectors: Rows

    @cached_property
    def unit(self) -> UnitRows:
        """The vectors [N, d], unit norm, as rows that are read when they are used."""
        return UnitRows(self.vectors)


def encode(
    store: Store,
    backbone: Backbone,
    name: str,
    table: pd.DataFrame,
    reader: Reader = DEFAULT_READER,
) -> Embeddings:
    """Return CLIP's embeddings of a list of images, computed once and kept in the store.

    Args:
        store: where the embeddings are kept.
        backbone: the frozen CLIP.
        name: of the list of images.
        table: the images, with columns image and path.
        reader: reads the images.

    Raises:
        FileNotFoundError: if an image does not exist.
        ValueError: if an image cannot be decoded, or an embedding is not finite.
    """
    ids, paths = tuple(table["image"]), [Path(path) for path in table["path"]]
    size = BatchSize(reader.batch_size, "image_batch_size")

    def work(first: int, end: int) -> dict[str, Tensor]:
        parts = []
        for pixels in reader.batches(paths[first:end], *backbone.pixel_form):
            parts += size.over(0, len(pixels), partial(_encode_rows, backbone, pixels))
        vectors = torch.cat(parts)
        broken = (~torch.isfinite(vectors).all(1)).nonzero().flatten().tolist()
        if broken:
            raise ValueError(
                f"the embedding of image {ids[first + broken[0]]} of {name} by {backbone.name} is not finite; set "
                "precision to float32."
            )
        return {"vectors": vectors}

    def make(folder: Path) -> None:
        arguments = (len(ids), SHARD, work, f"encoding {name}", store.executor)
        if len(ids) > LARGE:
            shards.write(folder, *arguments)
        else:
            save_file(shards.run(folder / "shards", *arguments), folder / VECTORS)
        _write_images(folder, name, ids, backbone)

    return store.keep(f"embeddings/{name}", facts_of(store, backbone, table), make).read(load)


def encode_lists(
    store: Store, backbone: Backbone, tables: Mapping[str, pd.DataFrame], reader: Reader = DEFAULT_READER
) -> dict[str, Embeddings]:
    """Return the embeddings of several lists of images by name, as `encode` does.

    The files of all lists are hashed first: if one does not exist, none is encoded.
    """
    every = pd.concat(tables.values())
    hash_images(every["image"], map(Path, every["path"]), store.hash_files)
    sizes = {name: len(table) for name, table in tables.items()}
    return bars.over_lists("encoding", sizes, lambda name: encode(store, backbone, name, tables[name], reader))


def keep_references(
    store: Store, backbone: Backbone, benchmarks: Sequence[Benchmark], galleries: dict[str, Embeddings]
) -> Embeddings:
    """Return the embeddings of a split's reference images, each once, in order of first use, kept in the store.

    Args:
        store: where the embeddings are kept.
        backbone: the CLIP of the galleries.
        benchmarks: those of the split.
        galleries: the embeddings of their galleries, by name.

    The key depends on the reference images only, so their pseudo-words stay valid with another gallery.
    """
    name, table = f"{benchmarks[0].split_name}/references", reference_table(benchmarks)
    gallery_of = {reference: b.gallery_name for b in benchmarks for reference in b.queries["reference"]}

    def make(folder: Path) -> None:
        vectors = torch.cat([galleries[gallery_of[image]].select([image]) for image in table["image"]])
        save_file({"vectors": vectors}, folder / VECTORS)
        _write_images(folder, name, tuple(table["image"]), backbone)

    return store.keep(f"embeddings/{name}", facts_of(store, backbone, table), make).read(load)


def keep_all_references(
    store: Store, backbone: Backbone, benchmarks: Iterable[Benchmark], galleries: dict[str, Embeddings]
) -> dict[str, Embeddings]:
    """Return the embeddings of the references of every split, by the name of the list."""
    splits = group_by_split(benchmarks).values()
    lists = [keep_references(store, backbone, split, galleries) for split in splits]
    return {images.name: images for images in lists}


def encode_all(
    study: Study, backbone: Backbone, benchmarks: Sequence[Benchmark], images_to_invert: Sequence[str], reader: Reader
) -> tuple[dict[str, Embeddings], dict[str, Embeddings]]:
    """Return the embeddings of the references of every split, and those of the unlabeled images, by list.

    The galleries are encoded and kept, too. The unlabeled images are left out if no method inverts them.

    Args:
        study: keeps the embeddings, and has the unlabeled images.
        backbone: the frozen CLIP.
        benchmarks: those of the study.
        images_to_invert: kinds of images of IMAGE_LISTS.
        reader: reads the images.
    """
    tables = galleries_of(benchmarks)
    if "unlabeled" in images_to_invert:
        tables[IMAGENET] = readable.unlabeled_images(study)
    encoded = encode_lists(study, backbone, tables, reader)
    references = keep_all_references(study, backbone, benchmarks, encoded)
    return references, {name: images for name, images in encoded.items() if name == IMAGENET}


def lists_to_invert(
    images_to_invert: Sequence[str], unlabeled: dict[str, Embeddings], references: dict[str, Embeddings]
) -> dict[str, Embeddings]:
    """Return the lists of images that get concepts and pseudo-words, by name."""
    return unlabeled | (references if "references" in images_to_invert else {})


def read(study: Study, name: str) -> Embeddings:
    """Return the embeddings of a gallery or list of images that 02_concepts kept."""
    return study.artefact("02_concepts", f"embeddings/{name}").read(load)


def facts_of(store: Store, backbone: Backbone, table: pd.DataFrame) -> dict:
    """Return the facts that determine the embeddings and patch tokens of a table of images, for an artefact's key."""
    return {
        "clip": backbone.sha256,
        "preprocess": backbone.preprocess,
        "images": images_fingerprint(table["image"], map(Path, table["path"]), store.hash_files),
        "precision": backbone.precision,
        "code": code_digest(encode_images, images.to_pixels, images.read),
    }


def load(folder: Path) -> Embeddings:
    """Read embeddings from an artefact's folder."""
    facts = json.loads((folder / IMAGES).read_text(encoding="utf-8"))
    rest = (folder.name.rpartition("-")[2], facts["clip"])
    if (folder / VECTORS).exists():
        return Embeddings(facts["name"], tuple(facts["ids"]), load_file(folder / VECTORS)["vectors"], *rest)
    return LargeEmbeddings(facts["name"], tuple(facts["ids"]), shards.memory_map(folder)["vectors"], *rest)


def hash_images(
    ids: Iterable[str], paths: Iterable[Path], hash_files: Callable[[Sequence[Path]], list[str]]
) -> list[str]:
    """Return the sha256 of the files of images.

    Args:
        ids: the images.
        paths: their files.
        hash_files: returns the sha256 of each file. A store's keeps the hashes, so an unchanged file is not read again.

    Raises:
        FileNotFoundError: if an image does not exist.
        OSError: if an image may not be read, or is no plain file.
    """
    paths = list(paths)
    try:
        return hash_files(paths)
    except OSError as problem:
        path = str(problem.filename)
        image = dict(zip(map(str, paths), ids, strict=True)).get(path, path)
        if isinstance(problem, PermissionError):
            raise PermissionError(f"image {path} may not be read; change its permissions or its folder's.") from None
        if isinstance(problem, FileNotFoundError | NotADirectoryError):
            raise FileNotFoundError(
                f"image {image} is listed but {path} does not exist; download it, correct data_root, or "
                "set missing_images: report."
            ) from None
        raise OSError(
            f"image {path} cannot be read ({problem.strerror}); download it again, or set missing_images: report."
        ) from None


def images_fingerprint(
    ids: Iterable[str],
    paths: Iterable[Path],
    hash_files: Callable[[Sequence[Path]], list[str]] = lambda paths: [file_sha256(path) for path in paths],
) -> str:
    """Hash a list of images by ids, order and contents.

    Names of folders and times of change do not count, so a copied data set keeps its pseudo-words, which took days.
    Arguments and errors are those of `hash_images`.
    """
    ids = list(ids)
    hashes = hash_images(ids, paths, hash_files)
    lines = [f"{image}\t{sha256}\n" for image, sha256 in zip(ids, hashes, strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def _encode_rows(backbone: Backbone, pixels: Tensor, rows: range) -> Tensor:
    return encode_images(backbone, pixels[rows.start : rows.stop]).cpu()


def _write_images(folder: Path, name: str, ids: tuple[str, ...], backbone: Backbone) -> None:
    write_json(folder / IMAGES, {"name": name, "ids": ids, "clip": backbone.sha256})
