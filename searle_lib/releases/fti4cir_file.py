"""Read FTI4CIR as its authors released it, a whole module in a pickle, without running any code in it.

Where the pickle names one of the authors' classes, an inert object takes the attributes. `read_module` takes a path and
returns a state dict.
"""

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from searle_lib.releases.archives import read_tensors, to_float32
from searle_lib.releases.plain_pickle import Inert
from searle_lib.store.reading import FileRefused, is_name, reads

INERT = ("i2t_model", "MHTransformer", "torch.nn.modules")  # modules whose classes are replaced by Inert
MAX_MODULES = 10_000  # with their parameters; a module that is its own child has no end


@reads("is not a module saved by torch that is safe to read", "download the released model again")
def read_module(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a pickled module in float32 by name, as its `state_dict` would.

    Raises:
        FileRefused: if the file is not such a pickle, names anything that could run code, or holds numbers that are not
            finite.
    """
    weights: dict[str, Tensor] = {}
    for step, (name, value) in enumerate(_parts(read_tensors(path, INERT), "")):
        if step > MAX_MODULES:
            raise ValueError(f"it has more than {MAX_MODULES:,} parts")
        if isinstance(value, Tensor):
            weights[name] = value
    if not weights:
        raise FileRefused(f"{path} holds no tensors; download the released model again.")
    return to_float32(weights, path.stat().st_size)


def _parts(module: object, prefix: str) -> Iterator[tuple[str, object]]:
    """The names and values of a module and its children; torch keeps them in these three dictionaries."""
    state = module.state if isinstance(module, Inert) else {}
    for kind in ("_parameters", "_buffers", "_modules"):
        for name, value in state.get(kind, {}).items():
            if not is_name(name):
                raise ValueError("it has a part without a name")
            yield prefix + name, value
            if kind == "_modules":
                yield from _parts(value, f"{prefix}{name}.")
