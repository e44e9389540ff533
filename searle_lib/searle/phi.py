"""The textual inversion network φ, which maps an image embedding to a pseudo-word (SEARLE section 3.2).

`distillation` trains φ, and `import_phi` takes a pretrained one. Both keep it in the store, and `read` returns it.
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

RELEASES = {  # the authors' φ, in their GitHub release "weights"
    f"SEARLE_{name}": f"https://github.com/miccunifi/SEARLE/releases/download/weights/SEARLE_{name}.pt"
    for name in ("ViT-B32", "ViT-L14")
}
EPOCH = "epoch.json"  # the epoch of the weights, in the same folder


class Phi(nn.Module):
    """Map image embeddings [N, d], not normalised, to pseudo-words [N, d_tok].

    Layers have the names of the authors' checkpoints.
    """

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
class TrainedPhi:
    """A φ that is ready for use.

    Args:
        phi: the network, in eval mode and frozen.
        key: the key of the artefact.
        epoch: the epoch of its training, 0 for a pretrained φ.
    """

    phi: Phi
    key: str
    epoch: int


def import_phi(store: Store, backbone: Backbone, checkpoint: str) -> TrainedPhi:
    """Return a pretrained φ from a file in the authors' format, or download a published one by name.

    Raises:
        ValueError: if `checkpoint` is neither, is not safe to read, or belongs to another CLIP.
        ConnectionError: if the download fails.
    """
    path = fetch_checkpoint(checkpoint)

    def make(folder: Path) -> None:
        checkpoints.save_weights(
            searle_files.read_phi(path, backbone.dimension, backbone.width), folder / "phi.safetensors"
        )
        write_json(folder / EPOCH, {"epoch": 0, "dropout": 0.5})

    facts = {"sha256": file_sha256(path), "clip": backbone.sha256, "code": code_digest(searle_files.read_phi)}
    return store.keep("phi", facts, make).read(lambda folder: load(folder, backbone))


def read(study: Study, backbone: Backbone) -> TrainedPhi:
    """Return the φ that 04_phi kept."""
    return study.artefact("04_phi", "phi").read(lambda folder: load(folder, backbone))


def load(folder: Path, backbone: Backbone) -> TrainedPhi:
    """Read φ from an artefact's folder."""
    facts = json.loads((folder / EPOCH).read_text(encoding="utf-8"))
    phi = build_network(backbone, load_file(folder / "phi.safetensors"))
    return TrainedPhi(phi, folder.name.rpartition("-")[2], facts["epoch"])


def build_network(backbone: Backbone, weights: dict[str, Tensor]) -> Phi:
    """Return φ with these weights, on the CLIP's device, in eval mode and frozen."""
    phi = Phi(backbone.dimension, backbone.width)
    phi.load_state_dict(weights)
    return phi.eval().requires_grad_(False).to(backbone.device)


def fetch_checkpoint(checkpoint: str) -> Path:
    """Return the file of a pretrained φ; a published one is downloaded once. Raises as `import_phi` does."""
    if checkpoint in RELEASES:
        return downloads.fetch(RELEASES[checkpoint], downloads.cache() / f"{checkpoint}.pt")
    if not Path(checkpoint).is_file():
        raise ValueError(
            f"phi_checkpoint {checkpoint} is neither last, nor an epoch, nor a file, nor one of {', '.join(RELEASES)}; "
            "correct phi_checkpoint."
        )
    return Path(checkpoint)
