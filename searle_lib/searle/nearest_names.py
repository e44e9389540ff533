"""The real words that a pseudo-word is nearest to, to see what inversion found.

Takes pseudo-words and names, and returns names. Notebooks 03, 04 and 05 show them under images.
"""

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
FREQUENT_WORDS = 2000  # to compare with where a study has no vocabulary


@torch.no_grad()
def nearest_names(backbone: Backbone, words: Tensor, names: tuple[str, ...], count: int) -> list[list[str]]:
    """Return, for each pseudo-word [N, d_tok], the names whose sentence "a photo of {name}" is nearest to its own."""
    queries = encode_texts(backbone, [SENTENCE.format("$")] * len(words), words=words.cpu())
    sentences = encode_texts(backbone, [SENTENCE.format(name) for name in names])
    nearest = search(F.normalize(queries, dim=-1), F.normalize(sentences, dim=-1), k=count).top
    return [[names[row] for row in rows] for rows in nearest.tolist()]


def comparison_names(study: Study) -> tuple[str, ...]:
    """Return names to compare pseudo-words with: the vocabulary of the study, or frequent words without one.

    A study with a pretrained φ needs no vocabulary. CLIP's tokenizer lists words by frequency, so the first long ones
    are common words.
    """
    if study.has("01_phrases"):
        return concepts.read_names(study).names
    words = [token.removesuffix("</w>") for token in clip.clip._tokenizer.encoder if token.endswith("</w>")]
    return tuple(word for word in words if word.isalpha() and word.isascii() and len(word) > 3)[:FREQUENT_WORDS]


def lines(backbone: Backbone, names: tuple[str, ...], words: Mapping[str, Tensor], count: int = 2) -> list[str]:
    """Return a caption for each of N images: the names that its pseudo-words are nearest to.

    Args:
        backbone: the frozen CLIP.
        names: names to compare with.
        words: [N, d_tok] by kind of pseudo-word. Each kind gets a line; a kind without words gets none.
        count: how many names a line holds.
    """
    nearest = {kind: nearest_names(backbone, part, names, count) for kind, part in words.items() if len(part)}
    columns = [[f"{kind}: {', '.join(row)}" for row in rows] for kind, rows in nearest.items()]
    return ["\n".join(parts) for parts in zip(*columns, strict=True)]
