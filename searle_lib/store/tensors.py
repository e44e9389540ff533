"""Tensors in a safetensors file that holds the sha256 of its own content.

Shards and the states of trainings are such files: they exist before an artefact's manifest does.
"""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from searle_lib.store.artefacts import READ_ERRORS
from searle_lib.store.files import atomic_write

HASH = "sha256"


def save(tensors: dict[str, Tensor], path: Path, **texts: str) -> None:
    """Write tensors, and texts beside them. The file is complete or absent."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, texts | {HASH: _content_hash(tensors, texts)})


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Return the tensors and texts that `save` wrote; None if the file is absent or is not as it was written."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors, texts = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
        return (tensors, texts) if texts.pop(HASH) == _content_hash(tensors, texts) else None
    except (*READ_ERRORS, AttributeError):  # a file without texts has no metadata
        return None


def _content_hash(tensors: dict[str, Tensor], texts: dict[str, str]) -> str:
    shapes = {name: [str(value.dtype), *value.shape] for name, value in tensors.items()}
    total = hashlib.sha256(json.dumps([shapes, texts], sort_keys=True).encode())
    for name in sorted(tensors):
        total.update(tensors[name].contiguous().view(-1).view(torch.uint8).numpy())
    return total.hexdigest()
