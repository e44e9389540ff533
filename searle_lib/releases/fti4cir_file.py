"""Read FTI4CIR as its authors released it, a whole module in a pickle, without running any code in it.

The unpickler accepts only tensors, plain containers and numbers. Where the pickle names one of the authors' classes, an
inert object takes the attributes. `read_module` takes a path and returns a state dict.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

PLAIN = {
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,  # as protocol 2 names it
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
}
STORAGES = ("FloatStorage", "HalfStorage", "BFloat16Storage", "LongStorage", "BoolStorage")
INERT = ("i2t_model", "MHTransformer", "torch.nn.modules")  # modules whose classes are replaced by Inert


class Inert:
    """Stands for an object of a class that is not imported; it holds the attributes and does nothing."""

    def __init__(self, *arguments, **named):
        pass


def read_module(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a pickled module by name, as its `state_dict` would.

    Raises:
        ValueError: if the file is not such a pickle, or names anything that could run code.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            (pickle_name,) = [name for name in archive.namelist() if name.endswith("data.pkl")]
            module = _Reader(archive, pickle_name).load()
    except (zipfile.BadZipFile, pickle.UnpicklingError, EOFError, KeyError, ValueError) as problem:
        raise ValueError(f"{path} is not a module saved by torch that is safe to read: {problem}.") from problem
    weights = dict(_tensors(module, ""))
    if not weights:
        raise ValueError(f"{path} holds no tensors; download the released model again.")
    return weights


class _Reader(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, pickle_name: str):
        super().__init__(io.BytesIO(archive.read(pickle_name)))
        self.archive, self.folder = archive, pickle_name.removesuffix("data.pkl")

    def find_class(self, module: str, name: str):
        if (module, name) in PLAIN:
            return PLAIN[module, name]
        if module == "torch" and name in STORAGES:
            return getattr(torch, name)
        if any(module == inert or module.startswith(f"{inert}.") for inert in INERT):
            return type(name, (Inert,), {})
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is neither a tensor nor plain data")

    def persistent_load(self, reference: tuple):
        _, storage, key, _, count = reference
        content = bytearray(self.archive.read(f"{self.folder}data/{key}"))
        dtype = storage.dtype
        return torch.storage.TypedStorage(
            wrap_storage=torch.frombuffer(content, dtype=torch.uint8).untyped_storage()[: count * dtype.itemsize],
            dtype=dtype,
            _internal=True,
        )


def _tensors(module: object, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """The names and tensors of a module and its children; torch keeps them in these three dictionaries."""
    state = vars(module) if isinstance(module, Inert) else {}
    for kind in ("_parameters", "_buffers"):
        for name, value in state.get(kind, {}).items():
            if isinstance(value, Tensor):
                yield prefix + name, value.detach()
    for name, child in state.get("_modules", {}).items():
        yield from _tensors(child, f"{prefix}{name}.")
