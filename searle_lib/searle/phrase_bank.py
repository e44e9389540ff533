"""The phrase bank: what inversion needs of every phrase, computed once and looked up by row.

`prepare` takes phrases and returns a `PhraseBank`. The published code tokenizes and encodes a phrase at every step, but
both are constants of the phrase. `PhraseBank.usable_concepts` finds out which phrases an image may draw:

    concepts = Star, Boat     starts = 0, 3, 5     texts = 3 phrases about Star, then 2 about Boat
    row 1 of the bank         the phrase       "a photo of Star that is next to a Star"
                              first_replaced   "a photo of $ that is next to a Star"
                              all_replaced     "a photo of $ that is next to a $"
                              features         CLIP's text feature of the phrase [d], unit norm
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from searle_lib.backbone.model import Backbone, Tokens
from searle_lib.backbone.texts import encode_texts
from searle_lib.searle.concepts import Concepts
from searle_lib.searle.phrases import Phrases
from searle_lib.store import shards
from searle_lib.store.artefacts import Store
from searle_lib.store.batches import BatchSize
from searle_lib.store.code import code_digest
from searle_lib.store.shards import Rows

SLOT = " $ "
SHARD = 65_536  # phrases; the features of the 5.4 million published ones do not fit into memory


@dataclass(frozen=True)
class PhraseTokens:
    """Tokens of every phrase, with the placeholder for the concept; they stay in their files.

    Args:
        ids: [P, L] int32, for the L positions of CLIP's text tower.
        ends: [P] int32, the position of each end-of-text.
    """

    ids: Rows
    ends: Rows

    def __getitem__(self, rows: Tensor) -> Tokens:
        ends = self.ends[rows].long()
        return Tokens(self.ids[rows][:, : int(ends.max()) + 1].long(), ends)


@dataclass(frozen=True)
class UsableConcepts:
    """The concepts that N images may use, and their phrases.

    Args:
        starts: [N, K] int64, the first row in the bank of each concept's phrases.
        sizes: [N, K] int64, the number of phrases of each concept, zero-padded.
        counts: [N] int64, the number of concepts of each image.
    """

    starts: np.ndarray
    sizes: np.ndarray
    counts: np.ndarray

    def draw_phrase(self, draws: np.ndarray) -> np.ndarray:
        """Draw rows [N, n] of the bank uniformly from all phrases of an image's concepts.

        `draws` [N, n] are uniform numbers in (0, 1).
        """
        ends = self.sizes.cumsum(1)  # [N, K]
        index = (draws * ends[:, -1:]).astype(np.int64)
        concept = (index[:, :, None] >= ends[:, None, :]).sum(2)  # [N, n]
        begin = np.take_along_axis(ends - self.sizes, concept, 1)
        return np.take_along_axis(self.starts, concept, 1) + index - begin

    def draw_concept_then_phrase(self, concept: np.ndarray, phrase: np.ndarray) -> np.ndarray:
        """Draw rows [N] of the bank: first one of the image's concepts, then one of its phrases, each uniformly.

        `concept` and `phrase` [N] are uniform numbers in (0, 1).
        """
        column = (concept * self.counts).astype(np.int64)[:, None]
        start, size = (np.take_along_axis(part, column, 1)[:, 0] for part in (self.starts, self.sizes))
        return start + (phrase * size).astype(np.int64)


@dataclass(frozen=True)
class PhraseBank:
    """P phrases, ready for inversion.

    Args:
        phrases: the phrases.
        first_replaced: their tokens with the first mention of the concept replaced with the placeholder.
        all_replaced: the same with every mention replaced.
        features: [P, d] float32, unit norm, CLIP's text features of the phrases as they are.
    """

    phrases: Phrases
    first_replaced: PhraseTokens
    all_replaced: PhraseTokens
    features: Rows

    def usable_concepts(self, concepts: Concepts, rows: range, top_k: int) -> UsableConcepts:
        """Return the usable concepts among the first `top_k` distinct ones of some images.

        Args:
            concepts: the nearest concepts of a list of images.
            rows: the images of the list.
            top_k: how many distinct concepts of an image count.

        Raises:
            LookupError: if a concept has no phrases.
            ValueError: if an image has no usable concept, or fewer than `top_k` concepts per image are known.
        """
        if concepts.rows.shape[1] < min(top_k, len(concepts.names)):
            raise ValueError(
                f"{top_k} concepts per image are used, but 02_concepts kept {concepts.rows.shape[1]}; "
                "raise concept_depth, or lower oti_top_k or phi_top_k."
            )
        names = [name.strip() for name in concepts.names]
        number = {name: i for i, name in enumerate(dict.fromkeys(names))}  # Open Images has some names twice
        distinct = np.array([number[name] for name in names])[concepts.rows[rows.start : rows.stop].numpy()]  # [N, k]
        nearest = ~_repeats(distinct)
        nearest &= nearest.cumsum(1) <= top_k
        row_of = np.array([self.phrases.row_of.get(name, -1) for name in number])
        phrase_rows = row_of[distinct]
        if (nearest & (phrase_rows < 0)).any():
            self.phrases.select(list(number)[distinct[nearest & (phrase_rows < 0)][0]])  # raises
        unusable = np.array([name in self.phrases.unusable_concepts for name in self.phrases.concepts] + [True])
        usable = nearest & ~unusable[phrase_rows]
        counts = usable.sum(1)
        if not counts.all():
            image = int((counts == 0).argmax())
            names = [list(number)[i] for i in distinct[image][nearest[image]]]
            raise ValueError(
                f"image {concepts.ids[rows[image]]}: each of its {len(names)} concepts ({', '.join(names[:3])}, ...) "
                "has a phrase that does not name it; sample more phrases, or raise the number of concepts."
            )
        order = (~usable).argsort(axis=1, kind="stable")[:, : counts.max()]  # usable concepts first, nearest first
        selected = np.take_along_axis(phrase_rows, order, 1)
        filled = np.arange(order.shape[1]) < counts[:, None]
        starts = np.where(filled, self.phrases.starts[selected], 0)
        return UsableConcepts(starts, np.where(filled, self.phrases.starts[selected + 1] - starts, 0), counts)


def prepare(store: Store, backbone: Backbone, phrases: Phrases, batch_size: int = 512) -> PhraseBank:
    """Return the bank of all phrases, kept in the store; its rows are read from disk when they are used.

    A phrase that does not name its concept has no placeholder; its concept is unusable, so nothing draws it.
    """
    concept_of = np.repeat(np.array(phrases.concepts, dtype=object), np.diff(phrases.starts))
    size = BatchSize(batch_size, "the batch of phrases")

    def work(start: int, end: int) -> dict[str, Tensor]:
        texts, concepts = phrases.texts[start:end], concept_of[start:end]
        return size.attempt(lambda count: encode_phrases(backbone, texts, concepts, count))

    def make(folder: Path) -> None:
        shards.write(folder, len(phrases.texts), SHARD, work, "phrase features", store.executor)

    facts = {"phrases": phrases.key, "clip": backbone.sha256, "precision": backbone.precision}
    facts["code"] = code_digest(encode_phrases)
    rows = store.keep("phrase-bank", facts, make).read(shards.memory_map)
    first, every = (PhraseTokens(rows[f"{name}.ids"], rows[f"{name}.ends"]) for name in ("first", "every"))
    return PhraseBank(phrases, first, every, rows["features"])


def encode_phrases(
    backbone: Backbone, texts: Sequence[str], concepts: Sequence[str], batch_size: int
) -> dict[str, Tensor]:
    """Compute the rows of the bank for P phrases, by name: features, and ids and ends of both kinds of tokens.

    Args:
        backbone: the frozen CLIP.
        texts: the phrases.
        concepts: the concept of each phrase.
        batch_size: phrases encoded at once; changes no result.
    """
    rows = {"features": F.normalize(encode_texts(backbone, list(texts), batch_size), dim=-1)}
    for name, most in (("first", 1), ("every", -1)):
        replaced = [text.replace(concept, SLOT, most) for text, concept in zip(texts, concepts, strict=True)]
        tokens = backbone.tokenize(replaced)
        ids = F.pad(tokens.ids, (0, backbone.context - tokens.ids.shape[1]))
        rows |= {f"{name}.ids": ids.int(), f"{name}.ends": tokens.ends.int()}
    return rows


def similarity_loss(spliced: Tensor, plain: Tensor) -> Tensor:
    """Return 1 - cosine [N] between features of phrases with the pseudo-word [N, d] and of the phrases [N, d]."""
    return 1 - F.cosine_similarity(spliced, plain, dim=-1)


def _repeats(numbers: np.ndarray) -> np.ndarray:
    """Return a mask [N, k] of the numbers that also occur further left in their row."""
    order = numbers.argsort(axis=1, kind="stable")
    ordered = np.take_along_axis(numbers, order, 1)
    equal = np.zeros_like(numbers, dtype=bool)
    equal[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    repeats = np.empty_like(equal)
    np.put_along_axis(repeats, order, equal, 1)
    return repeats
