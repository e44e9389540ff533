"""The textual inversion network φ, which maps an image embedding to a pseudo-word (SEARLE section 3.2).

`distillation` trains φ, and `import_phi` takes a pretrained one. Both keep it in the store, and `read` returns it.
"""

from functools import partial
from pathlib import Path

from torch import Tensor, nn

from searle_lib.backbone.model import Backbone
from searle_lib.releases import downloads, searle_files
from searle_lib.store.artefacts import Store, file_sha256
from searle_lib.store.code import code_digest
from searle_lib.store.records import Study
from searle_lib.training import TrainedNetwork, Weights, keep_network, load_network

RELEASES = {  # the authors' φ, in their GitHub release "weights"
    f"SEARLE_{name}": f"https://github.com/miccunifi/SEARLE/releases/download/weights/SEARLE_{name}.pt"
    for name in ("ViT-B32", "ViT-L14")
}


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


def import_phi(store: Store, backbone: Backbone, checkpoint: str) -> TrainedNetwork:
    """Return a pretrained φ from a file in the authors' format, or download a published one by name.

    Raises:
        ValueError: if `checkpoint` is neither, is not safe to read, or belongs to another CLIP.
        ConnectionError: if the download fails.
    """
    path = fetch_checkpoint(checkpoint)
    facts = {"sha256": file_sha256(path), "clip": backbone.sha256, "code": code_digest(searle_files.read_phi)}
    read_weights = partial(searle_files.read_phi, path, backbone.dimension, backbone.width)
    return keep_network(store, "phi", facts, read_weights, partial(build_network, backbone), epoch=0, dropout=0.5)


def read(study: Study, backbone: Backbone) -> TrainedNetwork:
    """Return the φ that 04_phi kept."""
    return study.artefact("04_phi", "phi").read(lambda folder: load_network(folder, partial(build_network, backbone)))


def build_network(backbone: Backbone, weights: Weights) -> Phi:
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
