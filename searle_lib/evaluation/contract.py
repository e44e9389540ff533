"""The contract between a method and retrieval: what a composer is made from, what it takes and returns.

A composer is made from Sources. It returns one unit vector per query, or several with a named fusion of their
similarities. `compose` turns both into what `ranking` ranks. Retrieval, metrics, submissions and reports know nothing
else about a method.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from searle_lib.backbone.embeddings import Embeddings
from searle_lib.backbone.model import Backbone
from searle_lib.fti4cir.patches import ImageWords
from searle_lib.ranking import Product
from searle_lib.training import TrainedNetwork

FUSIONS = ("sum", "product")
PROVIDES = {"03_oti": "pseudo_words", "04_phi": "trained_phi", "05_fti4cir": "image_words"}  # a field of Sources


@dataclass(frozen=True)
class Sources:
    """Inputs that a composer may use; each method takes the ones it needs.

    Args:
        backbone: the frozen CLIP.
        embeddings: CLIP's image embeddings of the references.
        pseudo_words: OTI's pseudo-words of the references.
        trained_phi: the φ that predicts pseudo-words.
        image_words: FTI4CIR's subject and attribute words of the references.
        networks: textual inversion networks of other authors, by method.
    """

    backbone: Backbone
    embeddings: Embeddings
    pseudo_words: Embeddings | None = None
    trained_phi: TrainedNetwork | None = None
    image_words: ImageWords | None = None
    networks: Mapping[str, TrainedNetwork] = field(default_factory=dict)


@dataclass(frozen=True)
class Fusion:
    """Queries of V vectors each, and how the V similarities to an image become one score.

    "sum" adds the weighted cosines. "product" multiplies `((1 + cos) / 2) ** weight`, which is never negative.

    Args:
        vectors: [N, V, d] float32, unit norm.
        kind: one of FUSIONS.
        weights: of the V vectors.
    """

    vectors: Tensor
    kind: str
    weights: Sequence[float]


class Composer(Protocol):
    """The interface between a method and retrieval. `key` identifies everything that determines the queries."""

    key: str

    def compose(self, references: Sequence[str], sentences: Sequence[Sequence[str]]) -> Tensor | Fusion:
        """Return the query vectors [N, d] float32, unit norm, or a Fusion of several.

        Args:
            references: N image ids.
            sentences: for each query its relative caption, or FashionIQ's two captions joined in both orders. The
                unit features of a query's sentences are averaged.
        """


def compose(composer: Composer, references: Sequence[str], sentences: Sequence[Sequence[str]]) -> Tensor | Product:
    """Return the queries of a composer as `ranking.search` takes them; it takes what `Composer.compose` takes."""
    return fold(composer.compose(references, sentences))


def fold(composed: Tensor | Fusion) -> Tensor | Product:
    """Return queries as `ranking.search` takes them.

    A weighted sum of cosines is the cosine with the weighted sum of the vectors, times a number that is the same for
    all images of a query. So a sum becomes one vector [N, d] with the same ranking.
    """
    if isinstance(composed, Tensor):
        return composed
    weights = torch.tensor(composed.weights, dtype=torch.float32)  # [V]
    if composed.kind == "product":
        return Product(composed.vectors, weights)
    return F.normalize((composed.vectors * weights.unsqueeze(1)).sum(1), dim=-1)  # [N, V, d] -> [N, d]
