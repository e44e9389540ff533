"""Concepts of an image: the names of the vocabulary that are nearest to it in CLIP's space (SEARLE section 3.1).

`associate` takes embeddings of images and a vocabulary, and returns the nearest names of each image. The text feature
of a name is the mean over 24 templates. Inversion uses phrases about these concepts to keep a pseudo-word in the
region of CLIP's text space that real words occupy.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from searle_lib.backbone.embeddings import LARGE, Embeddings
from searle_lib.backbone.model import Backbone
from searle_lib.backbone.texts import encode_texts
from searle_lib.ranking import search
from searle_lib.releases import folders, searle_files
from searle_lib.releases.tables import read_table
from searle_lib.store import shards
from searle_lib.store.artefacts import Store, digest, file_sha256, write_json
from searle_lib.store.code import code_digest
from searle_lib.store.reading import FileRefused, is_name, reads, show
from searle_lib.store.records import Study

MAX_VOCABULARY = 4 << 20  # bytes; Open Images' 20,931 names have half a megabyte
NAMES = "names.json"
SHARD = 1024  # names
TEMPLATES = (  # "An illustrations of" is the authors' typo, kept so that features agree with theirs
    "This is a photo of a {}",
    "This photo contains a {}",
    "A photo of a {}",
    "This is an illustration of a {}",
    "This illustration contains a {}",
    "An illustrations of a {}",
    "This is a sketch of a {}",
    "This sketch contains a {}",
    "A sketch of a {}",
    "This is a diagram of a {}",
    "This diagram contains a {}",
    "A diagram of a {}",
    "A {}",
    "We see a {}",
    "{}",
    "We see a {} in this photo",
    "We see a {} in this image",
    "We see a {} in this illustration",
    "We see a {} photo",
    "We see a {} image",
    "We see a {} illustration",
    "{} photo",
    "{} image",
    "{} illustration",
)


@dataclass(frozen=True)
class Vocabulary:
    """The display names of a vocabulary, stripped, in file order. `key` is a hash of them."""

    names: tuple[str, ...]
    key: str


@dataclass(frozen=True)
class Concepts:
    """The nearest concepts of N images.

    Args:
        ids: the images.
        rows: [N, k] int64, the rows in `names` of each image's concepts, best first.
        names: the vocabulary.
        key: the key of the artefact.
    """

    ids: tuple[str, ...]
    rows: Tensor
    names: tuple[str, ...]
    key: str

    def table(self, count: int = 5) -> pd.DataFrame:
        """Return the first names of each image, one row per image."""
        names = [[self.names[row] for row in rows[:count]] for rows in self.rows.tolist()]
        return pd.DataFrame(names, index=pd.Index(self.ids, name="image"), columns=range(1, len(names[0]) + 1))


@reads(
    "is not a table",
    "download oidv7-class-descriptions.csv again, or correct vocabulary",
    absent="download oidv7-class-descriptions.csv there, or correct vocabulary",
    noun="vocabulary",
    limit=MAX_VOCABULARY,
)
def read_vocabulary(path: Path | str) -> Vocabulary:
    """Read the names of an Open Images class description file (`LabelName,DisplayName`).

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the column DisplayName is missing, there is no name, or a name is empty or not printable.
    """
    table = read_table(path)
    if "DisplayName" not in table:
        columns = ", ".join(table.columns[:4])
        raise FileRefused(f"{path} has the columns {columns} but no DisplayName; correct vocabulary.")
    names = table["DisplayName"].str.strip()
    if names.empty:
        raise FileRefused(f"{path} has no names below its header; download it again, or correct vocabulary.")
    if (names == "").any():
        raise FileRefused(f"{path} has an empty DisplayName in row {int((names == '').argmax()) + 2}; remove that row.")
    wrong = next((name for name in names if not is_name(name)), None)
    if wrong is not None:
        raise FileRefused(f"{path} has the DisplayName {show(wrong)}, which cannot be printed; correct that row.")
    return Vocabulary(tuple(names), digest(list(names)))


@torch.no_grad()
def concept_embeddings(backbone: Backbone, names: tuple[str, ...], batch_size: int = 512) -> Tensor:
    """Return the text features [V, d] float32, unit norm, of V names, each the mean over the 24 templates.

    Source: the code of the authors of SEARLE; see docs/method.md.
    """
    texts = [template.format(f" {name} ") for name in names for template in TEMPLATES]
    starts = backbone.tokenize([template.split("{}")[0] for template in TEMPLATES]).ends  # where the name begins
    features = encode_texts(backbone, texts, batch_size, positions=starts.repeat(len(names)))
    features = F.normalize(features, dim=-1)
    return F.normalize(features.view(len(names), len(TEMPLATES), -1).mean(1), dim=-1)  # [V, 24, d] -> [V, d]


def associate(
    store: Store,
    backbone: Backbone,
    images: Embeddings,
    vocabulary: Vocabulary,
    depth: int,
    concepts_root: str = "",
    batch_size: int = 512,
) -> Concepts:
    """Return the nearest concepts of every image, kept in the store.

    Args:
        store: keeps the concepts, and the text features of the vocabulary.
        backbone: the frozen CLIP.
        images: embeddings of the images.
        vocabulary: the names to choose from.
        depth: how many concepts each image gets.
        concepts_root: a folder of the authors' concept files (similar_concepts). Concepts of an image list that it
            has are read from there instead of being computed.
        batch_size: texts encoded at once; changes no result.
    """
    file = folders.find_concepts(concepts_root, images.name, backbone.name)
    facts = {"images": images.key, "depth": depth}
    if file:
        facts |= {
            "sha256": file_sha256(file),
            "ids": digest(list(images.ids)),
            "code": code_digest(searle_files.read_concepts),
        }
    else:
        facts |= {"clip": backbone.sha256, "vocabulary": vocabulary.key, "precision": backbone.precision}
        facts["code"] = code_digest(concept_embeddings, search)

    def work(first: int, end: int) -> dict[str, Tensor]:
        return {"embeddings": concept_embeddings(backbone, vocabulary.names[first:end], batch_size)}

    def embed(folder: Path) -> None:
        count, desc = len(vocabulary.names), "concept features"
        save_file(shards.run(folder / "shards", count, SHARD, work, desc, store.executor), folder / "text.safetensors")

    def rank(folder: Path) -> None:
        if file:
            names, rows = searle_files.read_concepts(file, images.ids)
        else:
            vocabulary_facts = {name: facts[name] for name in ("clip", "vocabulary", "precision", "code")}
            artefact = store.keep("vocabulary-features", vocabulary_facts, embed)
            features = artefact.read(lambda folder: load_file(folder / "text.safetensors")["embeddings"])
            starts = range(0, len(images.ids), LARGE)
            units = (F.normalize(images.vectors[start : start + LARGE], dim=-1) for start in starts)
            names, rows = vocabulary.names, torch.cat([search(unit, features, k=depth).top for unit in units])
        save_file({"rows": rows[:, :depth].contiguous()}, folder / "concepts.safetensors")
        write_json(folder / NAMES, {"ids": images.ids, "names": names})

    return store.keep(f"concepts/{images.name}", facts, rank).read(load)


def associate_all(
    study: Study,
    backbone: Backbone,
    lists: Mapping[str, Embeddings],
    depth: int,
    concepts_root: str = "",
    batch_size: int = 512,
) -> dict[str, Concepts]:
    """Return the concepts of several image lists by name, chosen from the vocabulary that 01_phrases kept.

    Args:
        study: keeps the concepts and has the vocabulary.
        backbone: the frozen CLIP.
        lists: embeddings of the images by the name of their list.
        depth: as in `associate`.
        concepts_root: as in `associate`, a path as the user wrote it.
        batch_size: as in `associate`.
    """
    vocabulary = read_names(study) if lists else None
    root = study.path(concepts_root)
    return {
        name: associate(study, backbone, images, vocabulary, depth, root, batch_size) for name, images in lists.items()
    }


def lines(concepts: Concepts | None, count: int, images: int) -> list[str]:
    """Return the first `count` concepts of the first `images` images, one line per image; empty without concepts."""
    return [""] * images if concepts is None else [", ".join(row) for row in concepts.table(count)[:images].to_numpy()]


def keep_vocabulary(study: Study, path: str) -> Vocabulary:
    """Read a vocabulary and keep its names for later notebooks. Raises as `read_vocabulary` does."""
    vocabulary = read_vocabulary(path)
    study.keep("vocabulary", {"names": vocabulary.key}, lambda folder: write_json(folder / NAMES, vocabulary.names))
    return vocabulary


def read_names(study: Study) -> Vocabulary:
    """Return the vocabulary that 01_phrases kept."""

    def load_names(folder: Path) -> Vocabulary:
        names = json.loads((folder / NAMES).read_text(encoding="utf-8"))
        return Vocabulary(tuple(names), digest(names))

    return study.artefact("01_phrases", "vocabulary").read(load_names)


def read(study: Study, images: str) -> Concepts:
    """Return the concepts that 02_concepts kept of the image list with this name."""
    return study.artefact("02_concepts", f"concepts/{images}").read(load)


def load(folder: Path) -> Concepts:
    """Read concepts from an artefact's folder."""
    facts = json.loads((folder / NAMES).read_text(encoding="utf-8"))
    rows = load_file(folder / "concepts.safetensors")["rows"]
    return Concepts(tuple(facts["ids"]), rows, tuple(facts["names"]), folder.name.rpartition("-")[2])
