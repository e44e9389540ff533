"""Zip archives that others wrote: opened within bounds, and the tensors that torch saved in one.

`opened` gives an archive whose parts are no larger than its file allows. `read_tensors` returns what `torch.load` would
for tensors in plain containers, from torch's own archive format.
"""

import contextlib
import math
import mmap
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from searle_lib.releases import plain_pickle
from searle_lib.releases.plain_pickle import Inert

MAX_PARTS = 20_000
MAX_RATIO = 10  # of compression; text reaches 3 to 8
SMALL = 1 << 26  # bytes that a part may have whatever its compression
DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


@contextlib.contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive whose parts are stored or deflated, and small enough to be read.

    Raises:
        ValueError: for an archive of too many parts, or one that would unpack to far more than the file holds.
    """
    size = path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if sum(1 for _ in re.finditer(b"PK\x01\x02", content)) > MAX_PARTS:
            raise ValueError(f"it is an archive of more than {MAX_PARTS:,} parts")
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        if sum(part.file_size for part in parts) > max(SMALL, MAX_RATIO * size):
            raise ValueError(
                f"it would unpack to more than {MAX_RATIO} times its size; unpack it yourself if you trust it"
            )
        for part in parts:
            if part.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"its part {part.filename} has an unusual compression")
        yield archive


def read_tensors(path: Path, inert_modules: tuple[str, ...] = ()) -> object:
    """Return what torch saved in a file: tensors, plain containers, texts and numbers.

    Args:
        path: the file.
        inert_modules: modules whose classes are replaced by Inert.

    Raises:
        UnpicklingError, ValueError, KeyError, zipfile.BadZipFile: if the file holds anything else.
    """
    size = path.stat().st_size
    with opened(path) as archive:
        if sum(part.file_size for part in archive.infolist()) > size:  # torch stores its parts as they are
            raise ValueError("its parts are larger than the file")
        (pickle_name,) = [name for name in archive.namelist() if name.endswith("data.pkl")]
        folder = pickle_name.removesuffix("data.pkl")
        storages: dict[str, Tensor] = {}

        def load_storage(reference: object) -> Tensor:
            _, dtype, key, _, count = reference
            if not (isinstance(dtype, torch.dtype) and isinstance(key, str) and type(count) is int):
                raise UnpicklingError("it refers to no storage of numbers")
            if key not in storages:
                content = bytearray(archive.read(f"{folder}data/{key}"))
                storages[key] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
            if storages[key].dtype != dtype or len(storages[key]) < count:
                raise UnpicklingError(f"its storage {key} is cut off, or of two types")
            return storages[key]

        def find(module: str, name: str) -> object:
            if (module, name) in _CONSTRUCTORS:
                return _CONSTRUCTORS[module, name]
            if module == "torch" and name in DTYPES:
                return DTYPES[name]
            if any(module == inert or module.startswith(f"{inert}.") for inert in inert_modules):
                return Inert
            raise UnpicklingError(f"it names {module}.{name}, which is neither a tensor nor plain data")

        with archive.open(pickle_name) as stream:
            return plain_pickle.load(stream, find, load_storage)


def to_float32(tensors: dict[str, Tensor], size: int) -> dict[str, Tensor]:
    """Return tensors in float32, by name.

    Raises:
        ValueError: if they are together larger than the `size` bytes of their file, as when several show one storage,
            or if a number is not finite, or too large for float32.
    """
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) > size:
        raise ValueError("its tensors are larger than the file")
    converted = {name: tensor.to(torch.float32) for name, tensor in tensors.items()}
    broken = next((name for name, tensor in converted.items() if not torch.isfinite(tensor).all()), None)
    if broken is not None:
        raise ValueError(f"it has numbers in {broken} that are not finite in float32")
    return converted


def _build_tensor(storage: Tensor, offset: int, size: tuple, stride: tuple, *_: object) -> Tensor:
    numbers = (offset, *size, *stride)
    if not isinstance(storage, Tensor) or not all(type(number) is int and number >= 0 for number in numbers):
        raise UnpicklingError("it has a tensor without a storage or a shape")
    if math.prod(size) > len(storage):  # as an expanded tensor, which repeats its numbers
        raise UnpicklingError(f"it has a tensor of shape {size}, larger than its storage")
    return torch.as_strided(storage, size, stride, offset)


def _build_set(*elements: list) -> set:
    return set(map(plain_pickle.require_key, *elements))


def _build_dictionary(*items: object) -> dict:
    if items:
        raise UnpicklingError("it has a dictionary in an old form")
    return {}


_CONSTRUCTORS = {
    ("collections", "OrderedDict"): _build_dictionary,
    ("builtins", "set"): _build_set,
    ("__builtin__", "set"): _build_set,  # as protocol 2 names it
    ("torch._utils", "_rebuild_tensor_v2"): _build_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
}
