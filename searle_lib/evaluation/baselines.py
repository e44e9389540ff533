"""Baselines with a weight that is chosen on other data: fusions of image and caption, and PDV on three methods.

Image and caption are the unit embeddings of the reference and of the relative caption. Each class has a grid of
settings; `tuning.choose` chooses one, and the first holds where nothing can be chosen.
"""

from collections.abc import Sequence
from itertools import product
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from searle_lib.backbone.texts import encode_texts
from searle_lib.evaluation.composers import BATCH, Fti4CirQueries, ImageOnly, Searle, SearleOti, TextOnly
from searle_lib.evaluation.contract import Composer, Fusion, Sources
from searle_lib.fti4cir import prompts
from searle_lib.fti4cir.network import Words

WEIGHTS = tuple((weight / 10,) for weight in (5, 1, 2, 3, 4, 6, 7, 8, 9))  # of the caption; the image has the rest
BARE = "a photo of $"  # the prompt of SEARLE without a caption
SAME = 1e-4  # radians between vectors that have no direction from one to the other


class Tuned:
    """A composer with one of several settings."""

    grid: ClassVar[Sequence[Sequence[float]]] = WEIGHTS

    def __init__(self, sources: Sources, setting: Sequence[float] | None = None):
        self.image, self.text = ImageOnly(sources), TextOnly(sources)
        self.setting = tuple(setting or self.grid[0])
        self.key = f"{type(self).__name__} {self.setting}"

    def compose(self, references: Sequence[str], sentences: Sequence[Sequence[str]]) -> Tensor | Fusion:
        return self.fuse(self.parts(references, sentences), self.setting)

    def parts(self, references: Sequence[str], sentences: Sequence[Sequence[str]]) -> Sequence[Tensor]:
        """Return the unit embeddings of references and captions, [N, d] each."""
        return self.image.compose(references, sentences), self.text.compose(references, sentences)

    def fuse(self, parts: Sequence[Tensor], setting: Sequence[float]) -> Tensor | Fusion:
        """Return the queries that a setting makes of the parts."""
        raise NotImplementedError


class Sum(Tuned):
    """The weighted sum of the cosines with image and caption."""

    def fuse(self, parts: Sequence[Tensor], setting: Sequence[float]) -> Fusion:
        return Fusion(torch.stack(tuple(parts), dim=1), "sum", (1 - setting[0], setting[0]))


class Product(Tuned):
    """The weighted product of the similarities with image and caption."""

    def fuse(self, parts: Sequence[Tensor], setting: Sequence[float]) -> Fusion:
        return Fusion(torch.stack(tuple(parts), dim=1), "product", (1 - setting[0], setting[0]))


class Slerp(Tuned):
    """A point on the arc from the image to the caption (spherical linear interpolation)."""

    def fuse(self, parts: Sequence[Tensor], setting: Sequence[float]) -> Tensor:
        image, text = parts
        angle = torch.acos((image * text).sum(1, keepdim=True).clamp(-1, 1))  # [N, 1]
        between = torch.sin((1 - setting[0]) * angle) * image + torch.sin(setting[0] * angle) * text
        return F.normalize(torch.where(angle < SAME, image, between), dim=-1)


class Pdv(Tuned):
    """The difference that a caption makes to a method's query, added to image and text (PDV, arXiv 2502.07215).

    A setting is (a_i, a_t, b) of `(1 - b)(image + a_i d) + b(text + a_t d)`. `text` is the method's query without the
    caption, and d the query minus `text`. (0, 1, 1) is the method itself.
    """

    grid = ((0.0, 1.0, 1.0), *product((0.0, 0.5, 1.0), (1.0, 1.5), (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)))
    method: type

    def __init__(self, sources: Sources, setting: Sequence[float] | None = None):
        super().__init__(sources, setting)
        self.text: Composer = self.method(sources)
        self.key += f" {self.text.key}"

    def parts(self, references: Sequence[str], sentences: Sequence[Sequence[str]]) -> Sequence[Tensor]:
        """Return image, text and d of the formula, [N, d] each."""
        image, query = super().parts(references, sentences)
        text = F.normalize(self.without_caption(references), dim=-1)
        return image, text, query - text

    def fuse(self, parts: Sequence[Tensor], setting: Sequence[float]) -> Tensor:
        (image, text, d), (of_image, of_text, balance) = parts, setting
        return F.normalize((1 - balance) * (image + of_image * d) + balance * (text + of_text * d), dim=-1)

    def subject_words(self, references: Sequence[str]) -> Tensor:
        """Return the pseudo-word of each reference: [N, d_tok]."""
        return self.text.subject_words(references)

    def without_caption(self, references: Sequence[str]) -> Tensor:
        """Return the features [N, d] of the method's sentence without a caption."""
        return encode_texts(self.text.backbone, [BARE] * len(references), words=self.subject_words(references))


class SearlePdv(Pdv):
    """PDV on SEARLE."""

    method = Searle


class SearleOtiPdv(Pdv):
    """PDV on SEARLE-OTI."""

    method = SearleOti


class Fti4CirPdv(Pdv):
    """PDV on FTI4CIR."""

    method = Fti4CirQueries

    @torch.no_grad()
    def without_caption(self, references: Sequence[str]) -> Tensor:
        words, backbone = self.text.image_words.select(references), self.text.backbone
        features = []
        for rows in torch.arange(len(references)).split(BATCH):
            batch = Words(*(value[rows].to(backbone.device) for value in vars(words).values()))
            features.append(prompts.whole_sentence(backbone, batch, self.text.image_words.parts).cpu())
        return torch.cat(features)
