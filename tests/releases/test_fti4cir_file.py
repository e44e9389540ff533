"""The authors' pickled module is read without running anything that it names."""

import sys
import types
import zipfile

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
    with pytest.raises(
        ValueError, match=r"bad.pth is not a module .* safe to read .*: it names .*open, which is neither"
    ):
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


def rewritten(path, target, edit):
    """A copy of an archive of torch whose pickle is edited."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as copy:
        for part in source.infolist():
            content = source.read(part)
            copy.writestr(part.filename, edit(content) if part.filename.endswith("data.pkl") else content)
    return target


@pytest.mark.parametrize("name", [b"torch\nFloatStorage", b"torch._utils\n_rebuild_tensor_v2", b"torch.nn.modules\nX"])
def test_a_pickle_changes_no_class(tmp_path, name):
    """BUILD sets attributes on what stands before it."""
    torch.save({"weight": torch.zeros(2)}, tmp_path / "good.pth")
    attack = b"\x80\x02c" + name + b"\n}U\x05pwnedU\x03yessb."
    attack = attack.replace(b"U\x05", b"X\x05\0\0\0").replace(b"U\x03", b"X\x03\0\0\0")
    file = rewritten(tmp_path / "good.pth", tmp_path / "bad.pth", lambda content: attack)
    with pytest.raises(ValueError, match=r"bad.pth is not a module .*in the place of a Inert"):
        fti4cir_file.read_module(file)
    assert not hasattr(torch.FloatStorage, "pwned") and not hasattr(torch._utils._rebuild_tensor_v2, "pwned")


def modules(names):
    """A pickle of modules, each the child of the next under some names, the first its own child."""
    text = lambda name: b"X" + len(name).to_bytes(4, "little") + name  # noqa: E731
    new = b"ctorch.nn.modules.module\nModule\n)\x81"
    content = b"\x80\x02"
    for place in range(40):
        children = b"".join(text(name) + b"h" + bytes([place - 1]) + b"s" for name in names) if place else b""
        content += new + b"q" + bytes([place]) + b"}" + text(b"_modules") + b"}" + children + b"sb"
    return content + b"h" + bytes([39]) + b"."


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (modules([b"a", b"b"]), "it has more than 10,000 parts"),  # 2^40 of them
        (b"\x80\x02" + b"ctorch.nn.modules\nM\n)\x81" * 50_001 + b".", "it has more than 50,000 objects"),
        (b"\x80\x02ctorch.nn.modules\nM\n)\x81q\x00}X\x08\0\0\0_modules}X\x01\0\0\0ah\x00ssb.", "recursion"),
        (b"\x80\x02ctorch.nn.modules\nM\n)\x81}X\x08\0\0\0_modulesK\x01sb.", "no attribute 'items'"),
    ],
)
def test_modules_without_an_end_are_refused(tmp_path, content, sentence):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "good.pth")
    file = rewritten(tmp_path / "good.pth", tmp_path / "bad.pth", lambda _: content)
    with pytest.raises(ValueError, match=rf"bad.pth is not a module .*{sentence}.*; download the released model again"):
        fti4cir_file.read_module(file)


class Module(torch.nn.Module):
    """A module under the name of one of the authors' modules."""

    def __init__(self, *tensors):
        super().__init__()
        for place, tensor in enumerate(tensors):
            self.register_buffer(f"b{place}", tensor)


Module.__module__ = "i2t_model"


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ([torch.zeros(50)] * 20, "its tensors are larger than the file"),
        ([torch.full((3,), 1e300, dtype=torch.float64)], "numbers in b0 that are not finite in float32"),
        ([torch.zeros(3, dtype=torch.complex64)], "it names torch.ComplexFloatStorage"),
    ],
)
def test_tensors_that_share_numbers_or_are_not_finite_are_refused(tmp_path, monkeypatch, tensors, sentence):
    authors = types.ModuleType("i2t_model")
    authors.Module = Module
    monkeypatch.setitem(sys.modules, "i2t_model", authors)
    big = [tensor.new_zeros(40_000) if "larger" in sentence else tensor for tensor in tensors]
    big = [big[0]] * len(big) if "larger" in sentence else big
    torch.save(Module(*big), tmp_path / "x.pth")
    with pytest.raises(ValueError, match=rf"x.pth is not a module .*{sentence}"):
        fti4cir_file.read_module(tmp_path / "x.pth")


def test_an_archive_of_too_many_parts_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        for number in range(20_001):
            archive.writestr(str(number), "")
    with pytest.raises(ValueError, match=r"x.pth is not a module .*an archive of more than 20,000 parts"):
        fti4cir_file.read_module(tmp_path / "x.pth")
