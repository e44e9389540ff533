"""The authors' pickled module is read without running anything that it names."""

import pytest
import torch
from conftest import forbidden
from projects import pickle_network

from searle_lib.fti4cir import network
from searle_lib.fti4cir.network import Fti4Cir
from searle_lib.releases import fti4cir_file
from searle_lib.store.artefacts import Store


@pytest.mark.slow
def test_a_pickled_module_gives_the_tensors_of_its_state_dict(tmp_path):
    """Saved in another process, under the authors' module names, which this one does not have."""
    expected = pickle_network(tmp_path / "model_60.pth", 16, 32)
    weights = fti4cir_file.read_module(tmp_path / "model_60.pth")
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    Fti4Cir(16, 32).load_state_dict(weights)


@pytest.mark.slow
def test_a_released_network_is_converted_once_and_must_fit_the_backbone(tmp_path, tiny, monkeypatch):
    expected = pickle_network(tmp_path / "model.pth", tiny.dimension, tiny.patch_width)
    first = network.import_network(Store(tmp_path / "store"), tiny, str(tmp_path / "model.pth"))
    assert all(torch.equal(value, expected[name]) for name, value in first.module.state_dict().items())
    monkeypatch.setattr(
        fti4cir_file, "read_module", forbidden(fti4cir_file.read_module)
    )  # our own copy is read from now on
    again = network.import_network(Store(tmp_path / "store"), tiny, str(tmp_path / "model.pth"))
    assert again.key == first.key
    monkeypatch.undo()
    pickle_network(tmp_path / "small.pth", 16, 32)
    with pytest.raises(ValueError, match=r"fti_weights .*small.pth does not fit tiny-clip \(.*\); set clip_model to"):
        network.import_network(Store(tmp_path / "store"), tiny, str(tmp_path / "small.pth"))
    with pytest.raises(FileNotFoundError, match=r"fti_weights .*gone.pth does not exist; correct fti_weights"):
        network.import_network(Store(tmp_path / "store"), tiny, str(tmp_path / "gone.pth"))


class Runs:
    """Unpickling this would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path):
    torch.save({"weights": torch.zeros(2), "trap": Runs(tmp_path / "trapped")}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=r"bad.pth is not a module .* safe to read: it names .*open, which is neither"):
        fti4cir_file.read_module(tmp_path / "bad.pth")
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a pickle"])
def test_a_file_that_is_no_module_is_refused(tmp_path, content):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"x.pth is not a module saved by torch that is safe to read"):
        fti4cir_file.read_module(tmp_path / "x.pth")


def test_a_file_without_a_module_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds no tensors; download the released model"):
        fti4cir_file.read_module(tmp_path / "list.pth")
