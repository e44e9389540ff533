"""The textual inversion networks of other methods, which take the place of φ in SEARLE's sentence.

Pic2Word (arXiv 2302.03084) learns its network from images without labels, LinCIR (arXiv 2312.01998) from texts alone.
Both are read from their authors' files and are not trained here. `import_network` takes a file and keeps the network in
the store.
"""

from functools import partial
from pathlib import Path

from torch import Tensor, nn

from searle_lib.backbone.model import Backbone
from searle_lib.releases import pic2word_file, searle_files
from searle_lib.searle.phi import Phi
from searle_lib.store.artefacts import Store, file_sha256
from searle_lib.store.code import code_digest
from searle_lib.training import TrainedNetwork, Weights, keep_network

READERS = {"Pic2Word": pic2word_file.read_network, "LinCIR": searle_files.read_phi}  # LinCIR's network is a φ


class Img2Text(nn.Module):
    """Pic2Word's network, which maps image embeddings [N, d], not normalised, to pseudo-words [N, d_tok].

    Layers have the names of the authors' checkpoints.
    """

    def __init__(self, weights: Weights):  # only their shapes count
        super().__init__()
        hidden = [weights[f"layers.{number}.0.weight"] for number in range(len(weights) // 2 - 1)]
        layers = (nn.Sequential(nn.Linear(*reversed(one.shape)), nn.Dropout(0.1), nn.ReLU()) for one in hidden)
        self.layers = nn.Sequential(*layers)
        self.fc_out = nn.Linear(*reversed(weights[f"{pic2word_file.OUTPUT}.weight"].shape))

    def forward(self, embeddings: Tensor) -> Tensor:
        return self.fc_out(self.layers(embeddings))


def import_network(store: Store, backbone: Backbone, method: str, file: Path) -> TrainedNetwork:
    """Return the network of a method of READERS from its authors' file.

    Raises:
        FileNotFoundError: if the file does not exist.
        FileRefused: if it is not safe to read, has another form, or belongs to another CLIP.
    """
    read_weights = partial(READERS[method], file, backbone.dimension, backbone.width)
    facts = {"sha256": file_sha256(file), "clip": backbone.sha256, "code": code_digest(READERS[method])}
    return keep_network(store, f"networks/{method}", facts, read_weights, partial(_build, backbone, method), epoch=0)


def _build(backbone: Backbone, method: str, weights: Weights) -> nn.Module:
    """Return a network with these weights, on the CLIP's device, in eval mode and frozen."""
    network = Img2Text(weights) if method == "Pic2Word" else Phi(backbone.dimension, backbone.width)
    network.load_state_dict(weights)
    return network.eval().requires_grad_(False).to(backbone.device)
