"""Pic2Word's and LinCIR's networks, held to a plain computation from the weights of their files."""

import pytest
import torch
import torch.nn.functional as F
from releases.test_pic2word_file import weights_of, write

from searle_lib.releases import searle_files
from searle_lib.searle.other_networks import import_network
from searle_lib.searle.phi import Phi
from searle_lib.store.artefacts import Store


@pytest.fixture
def embeddings(tiny):
    return torch.randn(5, tiny.dimension, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_pic2words_network_is_relu_layers_and_a_linear_one(tiny, tmp_path, embeddings, layers):
    weights = weights_of(layers, tiny.dimension, tiny.width)
    file = write(tmp_path / "model.pt", weights)
    network = import_network(Store(tmp_path / "store"), tiny, "Pic2Word", file).module
    expected = embeddings
    for number in range(layers):
        matrix, bias = weights[f"layers.{number}.0.weight"], weights[f"layers.{number}.0.bias"]
        expected = (expected @ matrix.T + bias).clamp(min=0)
    expected = expected @ weights["fc_out.weight"].T + weights["fc_out.bias"]
    assert torch.allclose(network(embeddings), expected, atol=1e-6)


def test_lincirs_network_is_a_phi_of_its_file(tiny, tmp_path, embeddings):
    weights = Phi(tiny.dimension, tiny.width).state_dict()
    file = searle_files.write_phi(tmp_path / "phi_best.pt", 17_000, weights)  # {'epoch', 'Phi'}, as LinCIR saves it
    network = import_network(Store(tmp_path / "store"), tiny, "LinCIR", file).module
    expected = embeddings
    for layer, last in ((0, False), (3, False), (6, True)):
        expected = expected @ weights[f"layers.{layer}.weight"].T + weights[f"layers.{layer}.bias"]
        expected = expected if last else F.gelu(expected)
    assert torch.allclose(network(embeddings), expected, atol=1e-6)


def test_a_network_is_kept_and_found_again_by_the_content_of_its_file(tiny, tmp_path):
    store, file = Store(tmp_path / "store"), write(tmp_path / "model.pt", weights_of(2, tiny.dimension, tiny.width))
    first = import_network(store, tiny, "Pic2Word", file)
    again = import_network(store, tiny, "Pic2Word", file.rename(tmp_path / "moved.pt"))
    other = write(tmp_path / "other.pt", weights_of(2, tiny.dimension, tiny.width, hidden=7))
    assert first.key == again.key != import_network(store, tiny, "Pic2Word", other).key
