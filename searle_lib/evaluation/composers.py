"""From a reference picture and a relative caption to a query: one small class a method.

`compose(references, sentences)` gives unit vectors [N, d]: references are image ids, sentences the modifying
sentences of each query, whose unit features are averaged (FashionIQ's two captions are read in both orders).
Retrieval, metrics and submissions know nothing else of a method; a new one is a class here and a line in `methods`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from searle_lib.backbone import embeddings
from searle_lib.backbone.embeddings import Embeddings
from searle_lib.backbone.model import Backbone
from searle_lib.backbone.texts import encode_texts
from searle_lib.data import benchmarks
from searle_lib.data.benchmarks import by_split
from searle_lib.evaluation.methods import METHODS
from searle_lib.fti4cir import patches, prompts
from searle_lib.fti4cir.network import Words
from searle_lib.fti4cir.patches import ImageWords
from searle_lib.searle import oti, phi
from searle_lib.searle.phi import Distilled
from searle_lib.store.records import Study

PROMPT = "a photo of $ that {}"
BATCH = 256


class Composer(Protocol):
    """What retrieval asks of a method. `key` stands for everything that determines its queries."""

    key: str

    def compose(self, references: Sequence[str], sentences: Sequence[Sequence[str]]) -> Tensor: ...


@dataclass(frozen=True)
class Sources:
    """What composers are made from: the backbone, the references' embeddings, OTI's tokens of them, φ, and
    FTI4CIR's words of them."""

    backbone: Backbone
    images: Embeddings
    tokens: Embeddings | None = None
    distilled: Distilled | None = None
    image_words: ImageWords | None = None


class ImageOnly:
    """The reference's own embedding: what is left when the caption is ignored."""

    def __init__(self, sources: Sources):
        self.images, self.key = sources.images, "image-only"

    def compose(self, references: Sequence[str], sentences: Sequence[Sequence[str]]) -> Tensor:
        return F.normalize(self.images.of(references), dim=-1)


class TextOnly:
    """The relative caption alone: what is left when the reference is ignored."""

    def __init__(self, sources: Sources):
        self.backbone, self.key = sources.backbone, "text-only"

    def compose(self, references: Sequence[str], sentences: Sequence[Sequence[str]]) -> Tensor:
        return _read(self.backbone, sentences)


class ImageAndText:
    """The sum of both unit embeddings."""

    def __init__(self, sources: Sources):
        self.parts, self.key = (ImageOnly(sources), TextOnly(sources)), "image+text"

    def compose(self, references: Sequence[str], sentences: Sequence[Sequence[str]]) -> Tensor:
        return F.normalize(sum(part.compose(references, sentences) for part in self.parts), dim=-1)


class Searle:
    """A sentence about the pseudo-word that φ predicts from the reference (SEARLE section 3.3)."""

    def __init__(self, sources: Sources):
        self.backbone, self.images, self.phi = sources.backbone, sources.images, sources.distilled.phi
        self.key = f"searle {sources.distilled.key}"

    @torch.no_grad()
    def compose(self, references: Sequence[str], sentences: Sequence[Sequence[str]]) -> Tensor:
        words = self.phi(self.images.of(references).to(self.backbone.device))
        return _read(self.backbone, sentences, words.cpu())


class SearleOti:
    """A sentence about the pseudo-word that was optimised for the reference itself."""

    def __init__(self, sources: Sources):
        self.backbone, self.tokens = sources.backbone, sources.tokens
        self.key = f"searle-oti {sources.tokens.key}"

    def compose(self, references: Sequence[str], sentences: Sequence[Sequence[str]]) -> Tensor:
        return _read(self.backbone, sentences, self.tokens.of(references))


class Fti4CirQueries:
    """A sentence about the reference's subject and attribute words (FTI4CIR; fti4cir.md section 5)."""

    def __init__(self, sources: Sources):
        self.backbone, self.image_words = sources.backbone, sources.image_words
        self.key = f"fti4cir {sources.image_words.key} {sources.image_words.parts}"

    @torch.no_grad()
    def compose(self, references: Sequence[str], sentences: Sequence[Sequence[str]]) -> Tensor:
        owners = torch.tensor([row for row, of_one in enumerate(sentences) for _ in of_one])
        texts = [sentence for of_one in sentences for sentence in of_one]
        words = self.image_words.of([references[row] for row in owners.tolist()])
        features, parts = [], self.image_words.parts
        for rows in torch.arange(len(texts)).split(BATCH):
            some = Words(*(value[rows].to(self.backbone.device) for value in vars(words).values()))
            features.append(prompts.query(self.backbone, some, [texts[row] for row in rows.tolist()], parts).cpu())
        return _averaged(torch.cat(features), owners, len(sentences))


def load_composers(
    study: Study, backbone: Backbone, methods: Sequence[str]
) -> tuple[dict[str, dict[str, Composer]], dict[str, str]]:
    """Return the composers of a study by split and method, and for each method left out the reason.

    A method is left out where the notebook that it needs has no record, or one that was made from records that have
    changed since. FTI4CIR is not evaluated on the split that its epoch was chosen on.
    """
    problems = {method: study.problem(METHODS[method].needs) for method in methods if METHODS[method].needs}
    left_out = {method: problem for method, problem in problems.items() if problem}
    usable = [method for method in methods if method not in left_out]
    needs = {METHODS[method].needs for method in usable}
    distilled = phi.read(study, backbone) if "04_phi" in needs else None
    fti = study.read("05_fti4cir").parameters if "05_fti4cir" in needs else {}
    composers = {}
    for split in by_split(benchmarks.read(study)):
        name = f"{split}/references"
        sources = Sources(
            backbone,
            embeddings.read(study, name),
            oti.read(study, name).tokens if "03_oti" in needs else None,
            distilled,
            patches.read(study, split, fti["fti_words"]) if fti else None,
        )
        fair = reportable(usable, split, fti.get("fti_checkpoint", ""))
        composers[split] = {method: METHODS[method].composer_class()(sources) for method in fair}
    return composers, left_out


def reportable(methods: Sequence[str], split: str, fti_checkpoint: str) -> list[str]:
    """Return the methods whose numbers on a split are fair: FTI4CIR's are not where its epoch was chosen on it."""
    return [method for method in methods if (method, split) != ("FTI4CIR", f"{fti_checkpoint}/val")]


def _read(backbone: Backbone, sentences: Sequence[Sequence[str]], words: Tensor | None = None) -> Tensor:
    """Unit features [N, d]: of the captions alone, or of PROMPT with each query's pseudo-word [N, d_tok] spliced in."""
    frame = "{}" if words is None else PROMPT
    texts = [frame.format(sentence) for of_one in sentences for sentence in of_one]
    owners = torch.tensor([row for row, of_one in enumerate(sentences) for _ in of_one])
    spliced = None if words is None else words[owners]
    return _averaged(encode_texts(backbone, texts, words=spliced), owners, len(sentences))


def _averaged(features: Tensor, owners: Tensor, queries: int) -> Tensor:
    """Unit means [N, d] of each query's unit features; owners [M] says whose each of the features [M, d] is."""
    sums = torch.zeros(queries, features.shape[1]).index_add_(0, owners, F.normalize(features, dim=-1))
    return F.normalize(sums, dim=-1)
