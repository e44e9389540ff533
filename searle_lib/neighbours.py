"""Which real words a pseudo-word is near, to look at what inversion has found."""

import torch
import torch.nn.functional as F
from torch import Tensor

from searle_lib.backbone import Backbone
from searle_lib.fti4cir import Words
from searle_lib.retrieval import top_k
from searle_lib.texts import encode_texts

SENTENCE = "a photo of {}"


@torch.no_grad()
def nearest_names(backbone: Backbone, words: Tensor, names: tuple[str, ...], count: int) -> list[list[str]]:
    """For each pseudo-word [N, d_tok], the names whose sentence "a photo of ..." is nearest to its own."""
    spliced = encode_texts(backbone, [SENTENCE.format("$")] * len(words), words=words.cpu())
    plain = encode_texts(backbone, [SENTENCE.format(name) for name in names])
    best = top_k(F.normalize(spliced, dim=-1), F.normalize(plain, dim=-1), count)
    return [[names[row] for row in rows] for rows in best.tolist()]


def nearest_attribute_names(
    backbone: Backbone, words: Words, names: tuple[str, ...], count: int
) -> list[list[list[str]]]:
    """For each image and each of its attribute words, the names nearest to it."""
    found = []
    for row, kept in enumerate(words.counts.tolist()):
        found.append(nearest_names(backbone, words.attributes[row, :kept], names, count))
    return found
