"""FTI4CIR's network: an image as one subject word and one to twelve attribute words (FTI4CIR; fti4cir.md section 2).

A small transformer reads learnable queries beside CLIP's patch tokens; each query slot becomes a latent attribute.
How many of them an image keeps is decided by how well they agree with its global embedding. Two MLPs of φ's shape
map the global embedding and the attributes to pseudo-words. All of it is vectorised: nothing loops over images.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from searle_lib.backbone.model import Backbone
from searle_lib.releases import fti4cir_file
from searle_lib.searle.phi import Phi
from searle_lib.store import checkpoints
from searle_lib.store.artefacts import Store, file_sha256, write_json
from searle_lib.store.code import code_digest
from searle_lib.store.records import Study

QUERIES = 24  # K, learnable slots
MOST = 12  # T, the most attributes an image keeps
THRESHOLD = 0.05  # ε, of a slot's share of the score
LAYERS = 3
EPOCH = "epoch.json"  # beside the weights: of which epoch they are


@dataclass(frozen=True)
class Words:
    """Pseudo-words of N images: subject [N, d_tok], attributes [N, T, d_tok] of which the first counts [N] are used.

    latent [N, T, d] are the unit-norm attribute features behind them, slots [N, T] the query slots they came from,
    scores [N, K] every slot's share.
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
        """How many attributes an image keeps, with their scores."""
        kept = self.scores[row, self.slots[row, : self.counts[row]]].tolist()
        noun = "attribute" if len(kept) == 1 else "attributes"
        return f"{len(kept)} {noun}: {', '.join(f'{score:.2f}' for score in kept)}"


class Fti4Cir(nn.Module):
    """Global embedding [N, d], not normalised, and patch tokens [N, P, w] to Words. Names as in the authors' weights.

    `dimension` d is both that of the joint space and the width of a token embedding, which must be equal.
    """

    def __init__(self, dimension: int, patch_width: int, dropout: float = 0.5):
        super().__init__()
        self.phi_s = Phi(dimension, dimension, dropout)
        self.phi_a = Phi(dimension, dimension, dropout)
        self.local_atte_fc = nn.Sequential(nn.Linear(patch_width, dimension), nn.Sigmoid())
        self.templates = nn.Parameter(torch.randn(1, QUERIES, patch_width))
        self.transformer = _Transformer(patch_width)

    def forward(self, embeddings: Tensor, patches: Tensor) -> Words:
        slots = self.local_atte_fc(self._read(patches))  # [N, K, d]
        kept, counts, scores = select(slots, embeddings)
        latent = F.normalize(slots.gather(1, kept.unsqueeze(-1).expand(-1, -1, slots.shape[-1])), dim=-1)
        return Words(self.phi_s(embeddings), self.phi_a(latent), counts, latent, kept, scores)

    def attention(self, patches: Tensor) -> Tensor:
        """How much each query slot looks at each patch in the last layer [N, K, P], rows summing to one."""
        x = self._with_templates(patches)
        *before, last = self.transformer.layers
        for layer in before:
            x = layer(x)
        shares = last.attn.shares(last.norm1(x))[:, :QUERIES, QUERIES:]
        return shares / shares.sum(-1, keepdim=True)

    def _read(self, patches: Tensor) -> Tensor:
        x = self._with_templates(patches)
        *before, last = self.transformer.layers
        for layer in before:
            x = layer(x)
        return last(x, QUERIES)

    def _with_templates(self, patches: Tensor) -> Tensor:
        return torch.cat([self.templates.expand(len(patches), -1, -1), patches], dim=1)  # [N, K + P, w]


def select(slots: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Slots [N, T] an image keeps, how many of them are its attributes counts [N], and all scores [N, K].

    Scores are the softmax over slots of slot . embedding, neither normalised; those above THRESHOLD count, at least
    one and at most MOST. The counted slots come first, in slot order; the rest follow by falling score. No gradient
    flows through the choice. Source: fti4cir.md, section 2.3.
    """
    with torch.no_grad():
        scores = torch.einsum("nkd,nd->nk", slots.to(embeddings.dtype), embeddings).softmax(-1)
        counts = (scores > THRESHOLD).sum(1).clamp(1, MOST)
        best = scores.argsort(dim=1, descending=True, stable=True)[:, :MOST]
        place = torch.arange(MOST, device=slots.device)
        order = torch.where(place < counts.unsqueeze(1), best, QUERIES + place).argsort(dim=1)
        return best.gather(1, order), counts, scores


def orthogonality_loss(latent: Tensor) -> Tensor:
    """Mean square of what the attributes' Gram matrices [N, T, T] differ from the identity. Source: section 3."""
    gram = latent @ latent.transpose(1, 2)
    return (gram - torch.eye(latent.shape[1], device=latent.device)).square().mean()


class _Transformer(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.ModuleList(_Layer(width) for _ in range(LAYERS))


class _Layer(nn.Module):
    """Pre-norm block: single-head self-attention over all tokens, then an MLP with ReLU; all of it for the `first` few
    tokens alone where nobody reads the others."""

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
        """Attention [N, L, L] of every token to every other."""
        keys, _ = self.to_keys_values(x).chunk(2, dim=-1)
        return (self.to_queries(x) @ keys.transpose(1, 2) * x.shape[-1] ** -0.5).softmax(-1)


class _Mlp(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(x)))


@dataclass(frozen=True)
class Trained:
    """A network in eval mode, its key, and the epoch of its training that it is of, 0 where it was brought."""

    model: Fti4Cir
    key: str
    epoch: int


def bring(store: Store, backbone: Backbone, path: str) -> Trained:
    """Return the authors' released network, read safely from their pickle and kept in our format from then on.

    Raises ValueError when the file is not safe to read or holds a network for another backbone.
    """
    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"fti_weights {path} does not exist; correct fti_weights, or leave it empty to train.")

    def make(folder: Path) -> None:
        weights = {name: value.float() for name, value in fti4cir_file.read_module(source).items()}
        try:
            network_of(backbone, weights)
        except RuntimeError as problem:
            said = " ".join(str(problem).split())[:200]
            raise ValueError(
                f"fti_weights {path} does not fit {backbone.name}: {said}; use its own backbone."
            ) from problem
        checkpoints.save_weights(weights, folder / "fti.safetensors")
        write_json(folder / EPOCH, {"epoch": 0})

    facts = {"sha256": file_sha256(source), "clip": backbone.sha256, "code": code_digest(fti4cir_file.read_module)}
    return store.keep("fti4cir", facts, make).read(lambda folder: load(folder, backbone))


def read(study: Study, backbone: Backbone) -> Trained:
    """Return the network that 05_fti4cir kept."""
    return study.artefact("05_fti4cir", "fti4cir").read(lambda folder: load(folder, backbone))


def load(folder: Path, backbone: Backbone) -> Trained:
    """Read a network from an artefact's folder."""
    facts = json.loads((folder / EPOCH).read_text(encoding="utf-8"))
    model = network_of(backbone, load_file(folder / "fti.safetensors"))
    return Trained(model, folder.name.rpartition("-")[2], facts["epoch"])


def network_of(backbone: Backbone, weights: dict[str, Tensor]) -> Fti4Cir:
    """Return the network with these weights, on the CLIP's device, in eval mode and frozen."""
    model = Fti4Cir(backbone.dimension, backbone.patch_width).to(backbone.exact.model.dtype)
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False).to(backbone.device)
