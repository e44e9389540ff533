"""The authors' released FTI4CIR, a whole module in a pickle, read without running any of it (fti4cir.md, section 2.5).

An unpickler that admits tensors, plain containers and numbers, and nothing else; where the pickle names one of the
authors' classes, an inert stand-in takes its attributes. What comes out is a state dict, kept in our own format.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
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
INERT = ("i2t_model", "MHTransformer", "torch.nn.modules")  # whose classes' instances are only looked into


class Inert:
    """An object of an unknown class: it keeps the attributes that it is given, and does nothing."""

    def __init__(self, *arguments, **named):
        pass


def read_module(path: Path) -> dict[str, Tensor]:
    """The tensors of a pickled module by their names, as its state_dict would give them.

    Raises ValueError, in one sentence, for a file that is no such pickle, or whose pickle names anything that could
    run code.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            (listing,) = [name for name in archive.namelist() if name.endswith("data.pkl")]
            found = _Reader(archive, listing).load()
    except (zipfile.BadZipFile, pickle.UnpicklingError, EOFError, KeyError, ValueError) as problem:
        raise ValueError(f"{path} is not a module saved by torch that is safe to read: {problem}.") from problem
    weights = dict(_tensors(found, ""))
    if not weights:
        raise ValueError(f"{path} holds no tensors; is it the released model?")
    return weights


class _Reader(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, listing: str):
        super().__init__(io.BytesIO(archive.read(listing)))
        self.archive, self.folder = archive, listing.removesuffix("data.pkl")

    def find_class(self, module: str, name: str):
        if (module, name) in PLAIN:
            return PLAIN[module, name]
        if module == "torch" and name in STORAGES:
            return getattr(torch, name)
        if any(module == known or module.startswith(f"{known}.") for known in INERT):
            return type(name, (Inert,), {})
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is neither a tensor nor plain data")

    def persistent_load(self, reference: tuple):
        _, storage, key, _, count = reference
        content = bytearray(self.archive.read(f"{self.folder}data/{key}"))
        kind = storage.dtype
        return torch.storage.TypedStorage(
            wrap_storage=torch.frombuffer(content, dtype=torch.uint8).untyped_storage()[: count * kind.itemsize],
            dtype=kind,
            _internal=True,
        )


def _tensors(module: object, prefix: str):
    """Names and tensors below a module, from the dictionaries in which torch keeps them."""
    state = vars(module) if isinstance(module, Inert) else {}
    for kept in ("_parameters", "_buffers"):
        for name, value in state.get(kept, {}).items():
            if isinstance(value, Tensor):
                yield prefix + name, value.detach()
    for name, child in state.get("_modules", {}).items():
        yield from _tensors(child, f"{prefix}{name}.")
