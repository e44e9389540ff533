"""The textual inversion network φ: a pseudo-word in one pass (SEARLE section 3.2).

φ maps an image embedding to a pseudo-word. `distillation` trains it; `bring` takes one that was trained elsewhere.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

from searle_lib.backbone.model import Backbone
from searle_lib.releases import downloads, searle_files
from searle_lib.store import checkpoints
from searle_lib.store.artefacts import Store, file_sha256, write_json
from searle_lib.store.code import code_digest
from searle_lib.store.records import Study

RELEASES = {  # φ of the authors, in their GitHub release "weights" (searle.md, section 4)
    f"SEARLE_{name}": f"https://github.com/miccunifi/SEARLE/releases/download/weights/SEARLE_{name}.pt"
    for name in ("ViT-B32", "ViT-L14")
}
EPOCH = "epoch.json"  # beside the weights: of which epoch they are


class Phi(nn.Module):
    """Image embedding [N, d], not normalised, to pseudo-word [N, d_tok]. Names as in the authors' checkpoints."""

    def __init__(self, dimension: int, width: int, dropout: float = 0.5):
        super().__init__()
        hidden = 4 * dimension
        self.layers = nn.Sequential(
            nn.Linear(dimension, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, width),
        )

    def forward(self, embeddings: Tensor) -> Tensor:
        return self.layers(embeddings)


@dataclass(frozen=True)
class Distilled:
    """A φ in eval mode, its key, and the epoch of its training that it is of, 0 where it was brought."""

    phi: Phi
    key: str
    epoch: int


def bring(store: Store, backbone: Backbone, checkpoint: str) -> Distilled:
    """Return a pretrained φ from a file in the authors' format, or download a published one by name.

    Raises ValueError, in one sentence, when it is neither, is not safe to read or belongs to another CLIP, and
    ConnectionError when it cannot be fetched.
    """
    path = file_of(checkpoint)

    def make(folder: Path) -> None:
        checkpoints.save_weights(
            searle_files.read_phi(path, backbone.dimension, backbone.width), folder / "phi.safetensors"
        )
        write_json(folder / EPOCH, {"epoch": 0, "dropout": 0.5})

    facts = {"sha256": file_sha256(path), "clip": backbone.sha256, "code": code_digest(searle_files.read_phi)}
    return store.keep("phi", facts, make).read(lambda folder: load(folder, backbone))


def read(study: Study, backbone: Backbone) -> Distilled:
    """Return the φ that 04_phi kept."""
    return study.artefact("04_phi", "phi").read(lambda folder: load(folder, backbone))


def load(folder: Path, backbone: Backbone) -> Distilled:
    """Read φ from an artefact's folder."""
    facts = json.loads((folder / EPOCH).read_text(encoding="utf-8"))
    phi = network_of(backbone, load_file(folder / "phi.safetensors"))
    return Distilled(phi, folder.name.rpartition("-")[2], facts["epoch"])


def network_of(backbone: Backbone, weights: dict[str, Tensor]) -> Phi:
    """Return φ with these weights, on the CLIP's device, in eval mode and frozen."""
    phi = Phi(backbone.dimension, backbone.width)
    phi.load_state_dict(weights)
    return phi.eval().requires_grad_(False).to(backbone.device)


def file_of(checkpoint: str) -> Path:
    """The file of a φ that is there, fetched once if it is a published one; raises as `bring` does."""
    if checkpoint in RELEASES:
        return downloads.fetch(RELEASES[checkpoint], downloads.cache() / f"{checkpoint}.pt")
    if not Path(checkpoint).is_file():
        raise ValueError(
            f"phi_checkpoint {checkpoint} is neither last, an epoch, a file, nor one of {', '.join(RELEASES)}; "
            "correct phi_checkpoint."
        )
    return Path(checkpoint)
