"""Phrases made ready for inversion, once for all images: token ids with the placeholder, and plain features.

The published code tokenizes and encodes a phrase again at every step. Both are constants of a phrase, so they
are computed once, kept in the store, and looked up by row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from searle_lib.backbone.model import CONTEXT, Backbone, Tokens, tokenize
from searle_lib.backbone.texts import encode_texts
from searle_lib.searle.concepts import Concepts
from searle_lib.searle.phrases import Phrases
from searle_lib.store import shards
from searle_lib.store.artefacts import Store
from searle_lib.store.code import code_digest
from searle_lib.store.shards import Rows

SLOT = " $ "
SHARD = 65_536  # phrases; the published study has 5.4 million, and their features are too many for memory


@dataclass(frozen=True)
class Slotted:
    """Tokens of every phrase in which the concept's place is the placeholder, by phrase row."""

    ids: Rows
    ends: Rows

    def __getitem__(self, rows: Tensor) -> Tokens:
        ends = self.ends[rows].long()
        return Tokens(self.ids[rows][:, : int(ends.max()) + 1].long(), ends)


@dataclass(frozen=True)
class Choices:
    """The usable concepts of N images: the first phrase row of each [N, K], how many phrases it has sizes [N, K], and
    how many concepts there are, counts [N]; behind those, sizes are 0."""

    starts: np.ndarray
    sizes: np.ndarray
    counts: np.ndarray

    def of_all(self, draws: np.ndarray) -> np.ndarray:
        """Phrase rows [N, n] drawn uniformly from all phrases of an image's concepts by numbers [N, n] in (0, 1)."""
        ends = self.sizes.cumsum(1)  # [N, K]
        place = (draws * ends[:, -1:]).astype(np.int64)
        concept = (place[:, :, None] >= ends[:, None, :]).sum(2)  # [N, n]
        before = np.take_along_axis(ends - self.sizes, concept, 1)
        return np.take_along_axis(self.starts, concept, 1) + place - before

    def of_one(self, concept: np.ndarray, phrase: np.ndarray) -> np.ndarray:
        """Phrase rows [N]: a concept drawn uniformly, then one of its phrases, by numbers [N] in (0, 1)."""
        chosen = (concept * self.counts).astype(np.int64)[:, None]
        start, size = (np.take_along_axis(part, chosen, 1)[:, 0] for part in (self.starts, self.sizes))
        return start + (phrase * size).astype(np.int64)


@dataclass(frozen=True)
class PhraseBank:
    """By phrase row: tokens with the first or with every mention of the concept replaced, unit features [P, d]."""

    phrases: Phrases
    first: Slotted
    every: Slotted
    features: Rows

    def choices(self, concepts: Concepts, rows: range, top_k: int) -> Choices:
        """The usable concepts among the first `top_k` distinct ones of some rows of an image list.

        Raises LookupError for a concept without phrases, ValueError for an image without a usable concept and when
        fewer concepts were kept than are asked for.
        """
        if concepts.rows.shape[1] < min(top_k, len(concepts.names)):
            raise ValueError(
                f"{top_k} nearest concepts are asked for but {concepts.rows.shape[1]} are there; raise concept_depth, "
                "or use concepts that were kept so deep."
            )
        names = [name.strip() for name in concepts.names]
        number = {name: place for place, name in enumerate(dict.fromkeys(names))}  # a vocabulary may hold a name twice
        distinct = np.array([number[name] for name in names])[concepts.rows[rows.start : rows.stop].numpy()]  # [N, k]
        taken = ~_seen_before(distinct)
        taken &= taken.cumsum(1) <= top_k
        row_of = np.array([self.phrases.row_of.get(name, -1) for name in number])
        found = row_of[distinct]
        if (taken & (found < 0)).any():
            self.phrases.of(list(number)[distinct[taken & (found < 0)][0]])  # raises
        left_out = np.array([name in self.phrases.without_their_concept for name in self.phrases.concepts] + [True])
        usable = taken & ~left_out[found]
        counts = usable.sum(1)
        if not counts.all():
            image = int((counts == 0).argmax())
            some = [list(number)[place] for place in distinct[image][taken[image]]]
            raise ValueError(
                f"image {concepts.ids[rows[image]]}: each of its {len(some)} concepts ({', '.join(some[:3])}, ...) has "
                "a phrase that does not name it; sample more phrases, or raise the number of concepts."
            )
        order = (~usable).argsort(axis=1, kind="stable")[:, : counts.max()]  # the usable ones first, as they were
        chosen = np.take_along_axis(found, order, 1)
        there = np.arange(order.shape[1]) < counts[:, None]
        starts = np.where(there, self.phrases.starts[chosen], 0)
        return Choices(starts, np.where(there, self.phrases.starts[chosen + 1] - starts, 0), counts)


def prepare(store: Store, backbone: Backbone, phrases: Phrases, batch_size: int = 512) -> PhraseBank:
    """The bank of all phrases, kept in the store and read from its files as it is used.

    In rows of a phrase that does not name its concept no place is replaced; nothing draws them.
    """
    concept_of = np.repeat(np.array(phrases.concepts, dtype=object), np.diff(phrases.starts))

    def work(start: int, end: int) -> dict[str, Tensor]:
        return encode_phrases(backbone, phrases.texts[start:end], concept_of[start:end], batch_size)

    def make(folder: Path) -> None:
        shards.write(folder, len(phrases.texts), SHARD, work, desc="phrase features")

    facts = {"phrases": phrases.key, "clip": backbone.sha256, "precision": backbone.precision}
    facts["code"] = code_digest(encode_phrases)
    there = store.keep("phrase-bank", facts, make).read(shards.mapped)
    first, every = (Slotted(there[f"{name}.ids"], there[f"{name}.ends"]) for name in ("first", "every"))
    return PhraseBank(phrases, first, every, there["features"])


def encode_phrases(
    backbone: Backbone, texts: Sequence[str], concepts: Sequence[str], batch_size: int
) -> dict[str, Tensor]:
    """Return unit features [P, d] of phrases, and their tokens with one or every mention of the concept replaced."""
    made = {"features": F.normalize(encode_texts(backbone, list(texts), batch_size), dim=-1)}
    for name, most in (("first", 1), ("every", -1)):
        tokens = tokenize([text.replace(concept, SLOT, most) for text, concept in zip(texts, concepts, strict=True)])
        ids = F.pad(tokens.ids, (0, CONTEXT - tokens.ids.shape[1]))
        made |= {f"{name}.ids": ids.int(), f"{name}.ends": tokens.ends.int()}
    return made


def similarity_loss(spliced: Tensor, plain: Tensor) -> Tensor:
    """1 - cosine [N] between phrase features with the pseudo-word [N, d] and plain unit features [N, d]."""
    return 1 - F.cosine_similarity(spliced, plain, dim=-1)


def _seen_before(numbers: np.ndarray) -> np.ndarray:
    """Where a number [N, k] stands further left in its row too."""
    order = numbers.argsort(axis=1, kind="stable")
    ordered = np.take_along_axis(numbers, order, 1)
    again = np.zeros_like(numbers, dtype=bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    seen = np.empty_like(again)
    np.put_along_axis(seen, order, again, 1)
    return seen
