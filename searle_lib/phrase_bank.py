"""Phrases made ready for inversion, once for all images: token ids with the placeholder, and plain features.

The published code tokenizes and encodes a phrase again at every step. Both are constants of a phrase, so they
are computed once, kept in the store, and looked up by row.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from searle_lib.artefacts import Store
from searle_lib.backbone import Backbone, Tokens, encode_texts, tokenize
from searle_lib.concepts import Concepts
from searle_lib.phrases import Phrases

SLOT = " $ "


@dataclass(frozen=True)
class PhraseBank:
    """By phrase row: tokens with the first or with every mention of the concept replaced, unit features [P, d]."""

    phrases: Phrases
    first: Tokens
    every: Tokens
    features: Tensor

    def rows_of(self, concepts: Concepts, image: int, top_k: int) -> list[np.ndarray]:
        """Phrase rows of the image's usable concepts among its first `top_k` distinct ones, an array a concept.

        Raises LookupError for a concept without phrases, ValueError when no concept is usable.
        """
        names = dict.fromkeys(concepts.names[row].strip() for row in concepts.rows[image].tolist())
        if concepts.rows.shape[1] < min(top_k, len(concepts.names)):
            raise ValueError(
                f"{top_k} nearest concepts are asked for but {concepts.rows.shape[1]} were kept; raise concept_depth."
            )
        nearest = list(names)[:top_k]
        unknown = next((name for name in nearest if name not in self.phrases.row_of), None)
        if unknown is not None:
            self.phrases.of(unknown)  # raises
        usable = [self.phrases.row_of[n] for n in nearest if n not in self.phrases.without_their_concept]
        if not usable:
            raise ValueError(
                f"image {concepts.ids[image]}: each of its {len(nearest)} concepts ({', '.join(nearest[:3])}, ...) has "
                "a phrase that does not name it; sample more phrases, or raise the number of concepts."
            )
        return [np.arange(self.phrases.starts[row], self.phrases.starts[row + 1]) for row in usable]


def prepare(store: Store, backbone: Backbone, phrases: Phrases, batch_size: int = 512) -> PhraseBank:
    """The bank of all phrases whose concept they name, kept in the store; rows of the others stay empty."""

    def make(folder: Path) -> None:
        concept_of = np.repeat(np.array(phrases.concepts, dtype=object), np.diff(phrases.starts))
        pairs = list(zip(phrases.texts, concept_of, strict=True))
        first = tokenize([text.replace(concept, SLOT, 1) for text, concept in pairs])
        every = tokenize([text.replace(concept, SLOT) for text, concept in pairs])
        tensors = {"first.ids": first.ids.int(), "first.ends": first.ends.int()}
        tensors |= {"every.ids": every.ids.int(), "every.ends": every.ends.int()}
        tensors["features"] = F.normalize(encode_texts(backbone, phrases.texts, batch_size), dim=-1)
        save_file(tensors, folder / "bank.safetensors")

    facts = {"phrases": phrases.key, "clip": backbone.sha256, "precision": backbone.precision}
    kept = store.keep("phrase-bank", facts, make)
    there = load_file(kept.folder / "bank.safetensors")
    first = Tokens(there["first.ids"].long(), there["first.ends"].long())
    every = Tokens(there["every.ids"].long(), there["every.ends"].long())
    return PhraseBank(phrases, first, every, there["features"])


def similarity_loss(spliced: Tensor, plain: Tensor) -> Tensor:
    """1 - cosine [N] between phrase features with the pseudo-word [N, d] and plain unit features [N, d]."""
    return 1 - F.cosine_similarity(spliced, plain, dim=-1)
