"""FTI4CIR's network, which maps an image to one subject word and one to twelve attribute words (FTI4CIR section 3).

`Fti4Cir` takes CLIP's image embeddings and patch tokens, and returns `Words`. A small transformer reads learnable slots
beside the patch tokens, and turns each slot into a latent attribute. An image keeps the attributes that agree with its
embedding. Two MLPs of φ's shape map the embedding and the attributes to pseudo-words. Nothing loops over images.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from searle_lib.backbone.model import Backbone
from searle_lib.releases import fti4cir_file
from searle_lib.searle.phi import Phi
from searle_lib.store.artefacts import Store, file_sha256
from searle_lib.store.code import code_digest
from searle_lib.store.records import Study
from searle_lib.training import TrainedNetwork, Weights, keep_network, load_network

SLOTS = 24  # K, the learnable slots
MAX_ATTRIBUTES = 12  # T, the most that an image keeps
THRESHOLD = 0.05  # ε, the lowest score of an attribute
LAYERS = 3


@dataclass(frozen=True)
class Words:
    """Pseudo-words of N images.

    Args:
        subject: [N, d_tok], the subject words.
        attributes: [N, T, d_tok], the attribute words. Sentences use the first counts[i] of image i.
        counts: [N] int64, how many attributes each image keeps.
        latent: [N, T, d], unit norm, the latent attributes that the attribute words were mapped from.
        slots: [N, T] int64, the slots of the attributes.
        scores: [N, K], the scores of all slots, which sum to one.
    """

    subject: Tensor
    attributes: Tensor
    counts: Tensor
    latent: Tensor
    slots: Tensor
    scores: Tensor

    def __getitem__(self, rows) -> "Words":
        return Words(*(value[rows] for value in vars(self).values()))

    def describe(self, row: int) -> str:
        """Return as text how many attributes an image keeps, and their scores."""
        scores = self.scores[row, self.slots[row, : self.counts[row]]].tolist()
        noun = "attribute" if len(scores) == 1 else "attributes"
        return f"{len(scores)} {noun}: {', '.join(f'{score:.2f}' for score in scores)}"


class Fti4Cir(nn.Module):
    """Map image embeddings [N, d], not normalised, and patch tokens [N, P, w] to `Words`.

    Layers have the names of the authors' weights. The joint space and the token embeddings must have the same
    dimension d.
    """

    def __init__(self, dimension: int, patch_width: int, dropout: float = 0.5):
        super().__init__()
        self.phi_s = Phi(dimension, dimension, dropout)
        self.phi_a = Phi(dimension, dimension, dropout)
        self.local_atte_fc = nn.Sequential(nn.Linear(patch_width, dimension), nn.Sigmoid())
        self.templates = nn.Parameter(torch.randn(1, SLOTS, patch_width))
        self.transformer = _Transformer(patch_width)

    def forward(self, embeddings: Tensor, patches: Tensor) -> Words:
        slots = self.local_atte_fc(self.encode_slots(patches))  # [N, K, d]
        selected, counts, scores = select_attributes(slots, embeddings)
        latent = F.normalize(slots.gather(1, selected.unsqueeze(-1).expand(-1, -1, slots.shape[-1])), dim=-1)
        return Words(self.phi_s(embeddings), self.phi_a(latent), counts, latent, selected, scores)

    def encode_slots(self, patches: Tensor) -> Tensor:
        """Return the transformer's output [N, K, w] at the slots."""
        return self.transformer.layers[-1](self._before_last_layer(patches), SLOTS)

    def attention(self, patches: Tensor) -> Tensor:
        """Return each slot's attention to each patch in the last layer [N, K, P]; rows sum to one."""
        last = self.transformer.layers[-1]
        shares = last.attn.shares(last.norm1(self._before_last_layer(patches)))[:, :SLOTS, SLOTS:]
        return shares / shares.sum(-1, keepdim=True)

    def _before_last_layer(self, patches: Tensor) -> Tensor:
        x = torch.cat([self.templates.expand(len(patches), -1, -1), patches], dim=1)  # [N, K + P, w]
        for layer in self.transformer.layers[:-1]:
            x = layer(x)
        return x


def select_attributes(slots: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Select the slots of each image that become attributes (FTI4CIR section 3). No gradient flows through the choice.

    The scores are the softmax over the slots of slot · embedding. Slots with a score above THRESHOLD are attributes,
    but at least one and at most MAX_ATTRIBUTES.

    Args:
        slots: [N, K, d], not normalised.
        embeddings: [N, d], not normalised.

    Returns:
        The T best slots of each image [N, T], how many of them are attributes [N], and all scores [N, K]. The
        attributes come first, in slot order. The other slots follow by falling score.
    """
    with torch.no_grad():
        scores = torch.einsum("nkd,nd->nk", slots.to(embeddings.dtype), embeddings).softmax(-1)
        counts = (scores > THRESHOLD).sum(1).clamp(1, MAX_ATTRIBUTES)
        best = scores.argsort(dim=1, descending=True, stable=True)[:, :MAX_ATTRIBUTES]
        column = torch.arange(MAX_ATTRIBUTES, device=slots.device)
        order = torch.where(column < counts.unsqueeze(1), best, SLOTS + column).argsort(dim=1)
        return best.gather(1, order), counts, scores


def orthogonality_loss(latent: Tensor) -> Tensor:
    """Return the mean square difference of the attributes' Gram matrices and the identity (FTI4CIR section 3).

    `latent` [N, T, d] are the latent attributes, unit norm.
    """
    gram = latent @ latent.transpose(1, 2)
    return (gram - torch.eye(latent.shape[1], device=latent.device)).square().mean()


def require_fit(backbone: Backbone) -> Backbone:
    """Return the CLIP. Raises ValueError if FTI4CIR's network cannot work on it."""
    remedy = "use another clip_model, or take FTI4CIR out of methods"
    if not backbone.patch_count:
        raise ValueError(
            f"FTI4CIR's network reads the patch tokens of a vision transformer, and {backbone.name} has none; {remedy}."
        )
    if backbone.dimension != backbone.width:
        raise ValueError(
            f"FTI4CIR's network needs embeddings as wide as tokens, and {backbone.name} has {backbone.dimension} and "
            f"{backbone.width} numbers; {remedy}."
        )
    return backbone


def import_network(store: Store, backbone: Backbone, path: str) -> TrainedNetwork:
    """Import the authors' released network from their pickle into the store, without running code from the pickle.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file is not safe to read, or its network belongs to another CLIP.
    """
    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"fti_weights {path} does not exist; correct fti_weights, or leave it empty to train.")

    def read_weights() -> Weights:
        weights = fti4cir_file.read_module(source)
        try:
            build_network(backbone, weights)
        except RuntimeError as problem:
            reason = " ".join(str(problem).split())[:200]
            raise ValueError(
                f"fti_weights {path} does not fit {backbone.name} ({reason}); set clip_model to the CLIP that it was "
                "trained with."
            ) from problem
        return weights

    facts = {"sha256": file_sha256(source), "clip": backbone.sha256, "code": code_digest(fti4cir_file.read_module)}
    return keep_network(store, "fti4cir", facts, read_weights, partial(build_network, backbone), epoch=0)


def read(study: Study, backbone: Backbone) -> TrainedNetwork:
    """Return the network that 05_fti4cir kept."""
    build = partial(build_network, backbone)
    return study.artefact("05_fti4cir", "fti4cir").read(lambda folder: load_network(folder, build))


def build_network(backbone: Backbone, weights: Weights) -> Fti4Cir:
    """Return the network with these weights, on the CLIP's device, in eval mode and frozen."""
    model = Fti4Cir(backbone.dimension, backbone.patch_width).to(backbone.exact.model.dtype)
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False).to(backbone.device)


class _Transformer(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.ModuleList(_Layer(width) for _ in range(LAYERS))


class _Layer(nn.Module):
    """A pre-norm block: self-attention with one head over all tokens, then an MLP with ReLU.

    With `first`, only the first tokens are computed, where the others are never read.
    """

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.mlp = _Attention(width), _Mlp(width)

    def forward(self, x: Tensor, first: int | None = None) -> Tensor:
        x = x[:, :first] + self.attn(self.norm1(x), first)
        return x + self.mlp(self.norm2(x))


class _Attention(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.to_queries = nn.Linear(width, width, bias=False)
        self.to_keys_values = nn.Linear(width, 2 * width, bias=False)  # keys first
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor, first: int | None = None) -> Tensor:
        keys, values = self.to_keys_values(x).chunk(2, dim=-1)
        mixed = F.scaled_dot_product_attention(*(t.unsqueeze(1) for t in (self.to_queries(x[:, :first]), keys, values)))
        return self.project(mixed.squeeze(1))

    def shares(self, x: Tensor) -> Tensor:
        """Return the attention [N, L, L] of every token to every other."""
        keys, _ = self.to_keys_values(x).chunk(2, dim=-1)
        return (self.to_queries(x) @ keys.transpose(1, 2) * x.shape[-1] ** -0.5).softmax(-1)


class _Mlp(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(x)))
