"""Pic2Word's network from checkpoints as its authors' training saves them: CLIP, network and optimizer in one file."""

import os
import re

import pytest
import torch
from torch import nn

from searle_lib.releases import pic2word_file
from searle_lib.store.reading import FileRefused

DIMENSION, WIDTH, HIDDEN = 6, 8, 5


def weights_of(layers=2, dimension=DIMENSION, width=WIDTH, hidden=HIDDEN):
    """Random weights by the names that the authors' network gives them."""
    sizes = [dimension, *[hidden] * layers, width]
    names = [*(f"layers.{number}.0" for number in range(layers)), "fc_out"]
    shapes = {name: (sizes[place + 1], sizes[place]) for place, name in enumerate(names)}
    weights = {f"{name}.weight": torch.randn(shape) for name, shape in shapes.items()}
    return weights | {f"{name}.bias": torch.randn(shape[0]) for name, shape in shapes.items()}


def write(path, weights=None, prefix="module.", **more):
    """A checkpoint with the network under `prefix`, a CLIP of one weight, and the state of AdamW."""
    weights = weights_of() if weights is None else weights
    tower = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(tower.parameters(), lr=1e-4)
    tower(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    content = {
        "epoch": 30,
        "name": "lr=0.0001_wd=0.1",
        "state_dict": tower.state_dict(prefix=prefix),
        "state_dict_img2text": {prefix + name: value for name, value in weights.items()},
        "optimizer": optimizer.state_dict(),
    }
    torch.save(content | more, path)
    return path


@pytest.mark.parametrize(("prefix", "layers"), [("module.", 2), ("", 2), ("module.", 3)])
def test_a_checkpoint_of_one_or_many_gpus_gives_the_weights(tmp_path, prefix, layers):
    weights = weights_of(layers)
    read = pic2word_file.read_network(write(tmp_path / "model.pt", weights, prefix), DIMENSION, WIDTH)
    assert read.keys() == weights.keys() and all(torch.equal(read[name], weights[name]) for name in weights)


def test_half_precision_becomes_float32(tmp_path):
    halves = {name: value.half() for name, value in weights_of().items()}
    read = pic2word_file.read_network(write(tmp_path / "model.pt", halves), DIMENSION, WIDTH)
    assert all(torch.equal(value, halves[name].float()) for name, value in read.items())


class Runs:
    def __reduce__(self):
        return os.system, ("touch ran",)


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda weights: weights.pop("fc_out.bias"), "other parts than layers.N.0 and fc_out; use another file."),
        (lambda weights: weights.update({"fc_out.weight": 3}), "other parts than layers.N.0 and fc_out"),
        (
            lambda weights: weights.update({"fc_out.bias": torch.zeros(3)}),
            "has a fc_out that does not fit the layer",
        ),
        (
            lambda weights: weights.update({"layers.1.0.weight": torch.ones(5, 4)}),
            "has a layers.1.0 that does not fit the layer",
        ),
        (lambda weights: weights["fc_out.bias"].fill_(float("nan")), "it has numbers in fc_out.bias that are not fi"),
        (lambda weights: weights.update({"layers.0.0.weight": torch.ones(5)}), "has a layers.0.0 that does not fit"),
        (lambda weights: weights.clear(), "other parts than layers.N.0 and fc_out"),
    ],
)
def test_a_network_of_another_form_is_refused_in_one_sentence(tmp_path, edit, sentence):
    weights = weights_of()
    edit(weights)
    with pytest.raises(FileRefused, match=re.escape(sentence)):
        pic2word_file.read_network(write(tmp_path / "model.pt", weights), DIMENSION, WIDTH)


def test_a_network_for_another_clip_is_refused_with_both_sizes(tmp_path):
    with pytest.raises(FileRefused, match=r"for embeddings of 6 numbers and tokens of 8, but this CLIP has 7 and 8;"):
        pic2word_file.read_network(write(tmp_path / "model.pt"), 7, WIDTH)


def test_a_checkpoint_without_the_network_is_refused(tmp_path):
    with pytest.raises(FileRefused, match=r"holds no network of Pic2Word \(state_dict_img2text\); use a checkpoint"):
        pic2word_file.read_network(write(tmp_path / "model.pt", state_dict_img2text=None), DIMENSION, WIDTH)


def test_a_file_that_would_run_code_is_refused_and_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileRefused, match=r"is not a file of tensors that is safe to read \(.*it names .*system"):
        pic2word_file.read_network(write(tmp_path / "model.pt", optimizer=Runs()), DIMENSION, WIDTH)
    assert not (tmp_path / "ran").exists()
