"""Concepts of an image: the vocabulary's names that CLIP finds nearest to it (SEARLE section 3.1; searle.md 1, 2).

A name is represented by the mean of 24 templates' text features. Concepts guide textual inversion: the phrases
about them keep a pseudo-word in the region of CLIP's text space where real words live.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from searle_lib import authors, plan
from searle_lib.artefacts import Store, digest, file_sha256
from searle_lib.backbone import Backbone, tokenize
from searle_lib.embeddings import Embeddings
from searle_lib.retrieval import top_k
from searle_lib.texts import encode_texts

TEMPLATES = (  # "An illustrations of" stands so in the authors' code
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
    """Display names, stripped, in file order."""

    names: tuple[str, ...]
    key: str


@dataclass(frozen=True)
class Concepts:
    """The nearest vocabulary rows of each image, best first: rows [N, k] int64."""

    ids: tuple[str, ...]
    rows: Tensor
    names: tuple[str, ...]
    key: str

    def table(self, count: int = 5) -> pd.DataFrame:
        """The first names of each image, one row an image."""
        named = [[self.names[row] for row in rows[:count]] for rows in self.rows.tolist()]
        return pd.DataFrame(named, index=pd.Index(self.ids, name="image"), columns=range(1, len(named[0]) + 1))


def read_vocabulary(path: Path | str) -> Vocabulary:
    """The names of an Open Images class description file (`LabelName,DisplayName`).

    Raises FileNotFoundError, or ValueError when the column is missing or a name is empty.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"vocabulary {path} does not exist; download oidv7-class-descriptions.csv there, or correct vocabulary."
        )
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    if "DisplayName" not in table:
        raise ValueError(f"{path} has no column DisplayName but {', '.join(table.columns)}; is it the right file?")
    names = table["DisplayName"].str.strip()
    if (names == "").any():
        raise ValueError(f"{path} has an empty DisplayName in row {int((names == '').argmax()) + 2}; remove that row.")
    return Vocabulary(tuple(names), digest(list(names)))


@torch.no_grad()
def concept_embeddings(backbone: Backbone, names: tuple[str, ...], batch_size: int = 512) -> Tensor:
    """Unit-norm text features [V, d] float32 of names by the 24-template ensemble. Source: searle.md section 2."""
    texts = [template.format(f" {name} ") for name in names for template in TEMPLATES]
    before = tokenize([template.split("{}")[0] for template in TEMPLATES]).ends  # where the name begins
    features = encode_texts(backbone, texts, batch_size, places=before.repeat(len(names)))
    features = F.normalize(features, dim=-1)
    return F.normalize(features.view(len(names), len(TEMPLATES), -1).mean(1), dim=-1)  # [V, 24, d] -> [V, d]


def associate(
    store: Store,
    backbone: Backbone,
    images: Embeddings,
    vocabulary: Vocabulary,
    depth: int,
    given: str = "",
    batch_size: int = 512,
) -> Concepts:
    """The `depth` nearest concepts of every image, kept in the store; notebook 02_concepts makes them.

    `given` is a folder of the authors' concept files (similar_concepts); image lists that it has are not computed.
    """
    file = plan.given_concepts(given, images.name, backbone.name)
    if file:
        names, rows = authors.read_concepts(file, images.ids)
        return Concepts(images.ids, rows[:, :depth], names, digest([file_sha256(file), list(images.ids), depth]))
    facts = {"clip": backbone.sha256, "vocabulary": vocabulary.key, "precision": backbone.precision}
    what = f"concepts of {images.name} for {backbone.name}"

    def embed(folder: Path) -> None:
        save_file(
            {"embeddings": concept_embeddings(backbone, vocabulary.names, batch_size)}, folder / "text.safetensors"
        )

    def rank(folder: Path) -> None:
        text = store.keep("vocabulary-features", facts, embed)
        embeddings = load_file(text.folder / "text.safetensors")["embeddings"]
        unit = F.normalize(images.vectors, dim=-1)
        save_file({"rows": top_k(unit, embeddings, depth)}, folder / "concepts.safetensors")

    name = f"concepts/{images.name.replace('/', '-')}"
    kept = store.keep(name, {**facts, "images": images.key, "depth": depth}, rank, "02_concepts", what)
    rows = load_file(kept.folder / "concepts.safetensors")["rows"]
    return Concepts(images.ids, rows, vocabulary.names, kept.key)
