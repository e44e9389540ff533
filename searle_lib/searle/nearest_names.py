"""Which real words a pseudo-word is near, to look at what inversion has found."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from searle_lib.backbone.model import Backbone, clip
from searle_lib.backbone.texts import encode_texts
from searle_lib.ranking import search
from searle_lib.searle import concepts
from searle_lib.store.records import Study

SENTENCE = "a photo of {}"
FREQUENT = 2000  # words to compare with where a study has no vocabulary


@torch.no_grad()
def nearest_names(backbone: Backbone, words: Tensor, names: tuple[str, ...], count: int) -> list[list[str]]:
    """For each pseudo-word [N, d_tok], the names whose sentence "a photo of ..." is nearest to its own."""
    spliced = encode_texts(backbone, [SENTENCE.format("$")] * len(words), words=words.cpu())
    plain = encode_texts(backbone, [SENTENCE.format(name) for name in names])
    best = search(F.normalize(spliced, dim=-1), F.normalize(plain, dim=-1), k=count).top
    return [[names[row] for row in rows] for rows in best.tolist()]


def known_names(study: Study) -> tuple[str, ...]:
    """Return names to compare pseudo-words with: the study's vocabulary, or frequent words where it has none.

    A study that brings φ needs no vocabulary. CLIP's tokenizer lists words by frequency, so its first long ones serve.
    """
    if study.has("01_phrases"):
        return concepts.read_names(study).names
    words = [token.removesuffix("</w>") for token in clip.clip._tokenizer.encoder if token.endswith("</w>")]
    return tuple(word for word in words if word.isalpha() and word.isascii() and len(word) > 3)[:FREQUENT]


def lines(backbone: Backbone, names: tuple[str, ...], words: Mapping[str, Tensor], count: int = 2) -> list[str]:
    """Return for each image which names its pseudo-words are nearest to, a line for each kind of word [N, d_tok].

    Kinds without words are left out.
    """
    nearest = {kind: nearest_names(backbone, of_kind, names, count) for kind, of_kind in words.items() if len(of_kind)}
    rows = [[f"{kind}: {', '.join(near)}" for near in of_kind] for kind, of_kind in nearest.items()]
    return ["\n".join(parts) for parts in zip(*rows, strict=True)]
