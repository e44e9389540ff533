"""A trial of a method on random inputs of the right shapes, so that its mistakes show before days of work."""

import torch
from torch import Tensor

from searle_lib.backbone.embeddings import Embeddings
from searle_lib.backbone.model import Backbone
from searle_lib.evaluation import contract, indexes, own_methods
from searle_lib.evaluation.contract import Sources
from searle_lib.evaluation.methods import METHODS, Method
from searle_lib.fti4cir.network import MAX_ATTRIBUTES, SLOTS, Words
from searle_lib.fti4cir.patches import ImageWords
from searle_lib.searle.phi import Phi
from searle_lib.training import TrainedNetwork

IMAGES = ("a", "b")
SENTENCES = (["is red"], ["is longer and is blue", "is blue and is longer"])  # as of CIRR, and of FashionIQ


def try_method(clip: Backbone, name: str, method: Method, index: str) -> str:
    """Compose two queries by a method from random inputs, and return a word on the result.

    Raises ValueError if the class raises, returns anything but unit vectors, or returns what the index cannot rank.
    """
    composer = own_methods.build(name, method, random_sources(clip))
    queries = contract.compose(composer, IMAGES, SENTENCES)
    if index == "faiss":
        indexes.refuse_product(name, queries)
    return f"composes {len(queries)} queries of random inputs"


def random_sources(clip: Backbone) -> Sources:
    """Return Sources of IMAGES at random, in the shapes that a study with this CLIP gives."""
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(len(IMAGES), *shape, generator=random)

    words = Words(
        subject=normal(clip.width),
        attributes=normal(MAX_ATTRIBUTES, clip.width),
        counts=torch.tensor([1, MAX_ATTRIBUTES]),
        latent=normal(MAX_ATTRIBUTES, clip.dimension),
        slots=torch.arange(MAX_ATTRIBUTES).expand(len(IMAGES), -1),
        scores=normal(SLOTS).softmax(1),
    )
    phi = Phi(clip.dimension, clip.width).eval().requires_grad_(False).to(clip.device)
    network = TrainedNetwork(phi, "random", 0)
    return Sources(
        clip,
        Embeddings("trial", IMAGES, normal(clip.dimension), "random", clip.sha256),
        Embeddings("trial", IMAGES, normal(clip.width), "random", clip.sha256),
        network,
        ImageWords(IMAGES, words, "random"),
        {name: network for name, method in METHODS.items() if method.checkpoint},
    )
