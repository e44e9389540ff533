"""Read and write the files of SEARLE's authors: phrases, concepts, OTI pseudo-words (tokens) and φ.

The readers take a path and return tables and tensors; the writers make files that the authors' code loads. Nothing in a
file can run: `plain_pickle` builds plain values, and `archives` tensors of them.
"""

import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from searle_lib.releases import plain_pickle
from searle_lib.releases.archives import opened, read_tensors
from searle_lib.releases.tables import read_table
from searle_lib.store.artefacts import atomic_write, write_json
from searle_lib.store.reading import FileRefused, is_name, reads, show

EMA, LAST, NAMES = "ema_oti_pseudo_tokens.pt", "oti_pseudo_tokens.pt", "image_names.pkl"
PHI_LAYERS = ("layers.0", "layers.3", "layers.6")
NO_PICKLE = "is not a pickle of plain lists and texts"
NO_TENSORS = "is not a file of tensors that is safe to read"


@reads(NO_PICKLE, "download it again")
def read_phrases(path: Path) -> pd.DataFrame:
    """Return the phrases of a concept_to_phrases.pkl, or of a zip of it: columns concept and phrase, in file order.

    Raises:
        FileNotFoundError: if the file does not exist.
        FileRefused: if it is not such a pickle, or holds a concept twice or without phrases.
    """
    content = _load_pickle(path)
    if not isinstance(content, dict) or not content:
        kind = "an empty dictionary" if content == {} else f"a {type(content).__name__}"
        raise FileRefused(
            f"{path} holds {kind}, not a dictionary of phrases by concept; phrases_file must be "
            "concept_to_phrases.pkl, or a zip of it."
        )
    for concept, phrases in content.items():
        is_list = isinstance(concept, str) and isinstance(phrases, list) and phrases
        if not is_list or not all(isinstance(phrase, str) for phrase in phrases):
            raise FileRefused(f"{path} holds no list of phrases under {concept!r}; it must map names to lists of text.")
    names = [concept.strip() for concept in content]
    duplicate = next((name for name, n in pd.Series(names).value_counts().items() if n > 1), None)
    if duplicate is not None:
        raise FileRefused(f"{path} has the concept {duplicate!r} twice, apart from blanks; remove one.")
    if sum(map(len, content.values())) > sum(map(len, {id(p): p for p in content.values()}.values())):
        raise FileRefused(f"{path} has one list of phrases under several concepts; create it again.")
    counts = [len(phrases) for phrases in content.values()]
    texts = [phrase for phrases in content.values() for phrase in phrases]
    return pd.DataFrame({"concept": np.repeat(np.array(names, dtype=object), counts), "phrase": texts})


@reads("is not a table", "create it again")
def read_concepts(path: Path, ids: Sequence[str]) -> tuple[tuple[str, ...], Tensor]:
    """Return the nearest concepts of each image: the names, and rows [N, k] int64 into the names, best first.

    Args:
        path: the authors' CSV, with columns Image Name, 1, 2, ...
        ids: the N images.

    Raises:
        FileRefused: if the file has another form, an empty cell, or lacks an image.
    """
    table = read_table(path)
    if "Image Name" not in table or table.shape[1] < 2:
        raise FileRefused(f"{path} must have the columns Image Name, 1, 2, ...; it has {', '.join(table.columns[:4])}.")
    cells = table.drop(columns="Image Name").to_numpy(dtype=object)
    rows, names = pd.factorize(cells.ravel())  # ImageNet's 25 million cells are too many to sort; -1 where a row ends
    empty = np.array([not is_name(name) for name in names] + [True])[rows].reshape(cells.shape).any(1)
    if empty.any():
        image = table["Image Name"][int(empty.argmax())]
        raise FileRefused(f"{path} has an empty or unprintable concept for image {image}; create the file again.")
    places = _rows_of(ids, list(table["Image Name"]), path, "concepts")
    return tuple(names.tolist()), torch.from_numpy(rows.reshape(cells.shape))[places]


def read_tokens(folder: Path, ids: Sequence[str], width: int) -> tuple[Tensor, Tensor]:
    """Return the moving average and the last value of OTI's pseudo-words: two tensors [N, width] float32.

    Args:
        folder: an experiment of the authors' code.
        ids: the N images.
        width: the width of CLIP's token embeddings.

    Raises:
        FileNotFoundError: if a file does not exist.
        FileRefused: if the tokens have another width, are not finite, or lack an image.
    """
    names = _read_names(folder / NAMES)
    rows = _rows_of(ids, names, folder / EMA, "tokens")
    last = folder / LAST if (folder / LAST).is_file() else folder / EMA  # retrieval needs the moving average alone
    ema, last = (_read_tokens(path, names, width)[rows] for path in (folder / EMA, last))
    return ema, last


@reads(NO_PICKLE, "download it again", "put it beside the other files of its experiment")
def _read_names(path: Path) -> list[str]:
    names = _load_pickle(path)
    if not isinstance(names, list):
        raise FileRefused(f"{path} holds a {type(names).__name__}, not a list of image names; create it again.")
    wrong = next((name for name in names if not (is_name(name) or type(name) is int)), None)
    if wrong is not None:
        raise FileRefused(f"{path} holds {show(wrong)} in its list of image names; create it again.")
    return [str(name) for name in names]


@reads(NO_TENSORS, "download it again", "put it beside the other files of its experiment")
def _read_tokens(path: Path, names: list[str], width: int) -> Tensor:
    """The tokens [N, width] float32 of N names."""
    tokens = read_tensors(path)
    if not isinstance(tokens, Tensor) or tokens.shape != (len(names), width):
        form = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
        raise FileRefused(
            f"{path} holds {form}, but {NAMES} has {len(names)} names and this CLIP's tokens are {width} wide; "
            "use the files of one experiment with the same clip_model."
        )
    tokens = tokens.float()
    broken = (~torch.isfinite(tokens).all(1)).nonzero().flatten().tolist()
    if broken:
        raise FileRefused(f"{path} has a token that is not finite, of image {names[broken[0]]}; create it again.")
    return tokens


@reads(NO_TENSORS, "download it again", "correct the path")
def read_phi(path: Path, dimension: int, width: int) -> dict[str, Tensor]:
    """Return the weights of φ by name, float32.

    Args:
        path: a phi_*.pt or SEARLE_*.pt, which holds {'epoch', 'Phi'}.
        dimension: the width of CLIP's embeddings.
        width: the width of CLIP's token embeddings.

    Raises:
        FileNotFoundError: if the file does not exist.
        FileRefused: if it has another form, belongs to another CLIP, or holds weights that are not finite.
    """
    content = read_tensors(path)
    weights = content.get("Phi") if isinstance(content, dict) else None
    expected = {f"{layer}.{part}" for layer in PHI_LAYERS for part in ("weight", "bias")}
    if not isinstance(weights, dict) or set(weights) != expected or not all(map(torch.is_tensor, weights.values())):
        raise FileRefused(
            f"{path} holds no φ ({{'epoch', 'Phi'}} with layers 0, 3 and 6); use phi_*.pt or SEARLE_*.pt."
        )
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    hidden = 4 * dimension
    inputs, outputs = (shapes["layers.0.weight"] + (0, 0))[1], (shapes["layers.6.weight"] + (0,))[0]
    if (inputs, outputs) != (dimension, width):
        raise FileRefused(
            f"{path} is a φ for embeddings of {inputs} numbers and tokens of {outputs}, but this CLIP has {dimension} "
            f"and {width}; φ and clip_model must be of the same backbone (ViT-B/32: 512, ViT-L/14: 768)."
        )
    for layer, shape in zip(PHI_LAYERS, ((hidden, dimension), (hidden, hidden), (width, hidden)), strict=True):
        weight, bias = shapes[f"{layer}.weight"], shapes[f"{layer}.bias"]
        if (weight, bias) != (shape, shape[:1]):
            raise FileRefused(
                f"{path} has a {layer} of {weight} and {bias}, but φ for this CLIP has {shape} and {shape[:1]}; use "
                "another file."
            )
    broken = next((name for name, value in weights.items() if not torch.isfinite(value.float()).all()), None)
    if broken:
        raise FileRefused(f"{path} has weights in {broken} that are not finite; download it again.")
    return {name: value.float() for name, value in weights.items()}


def write_phi(path: Path, epoch: int, weights: dict[str, Tensor]) -> Path:
    """Write φ's weights in the form that the authors' code loads."""
    with atomic_write(path) as temporary:
        torch.save({"epoch": epoch, "Phi": {name: value.clone() for name, value in weights.items()}}, temporary)
    return path


def write_tokens(folder: Path, ids: Sequence[str], ema: Tensor, last: Tensor, settings: dict) -> Path:
    """Write OTI's pseudo-words in the form that the authors' code loads.

    Args:
        folder: where to write.
        ids: the N images.
        ema: [N, d_tok] float32, the moving average.
        last: [N, d_tok] float32, the last value.
        settings: the hyperparameters.
    """
    for file, tokens in ((EMA, ema), (LAST, last)):
        with atomic_write(folder / file) as temporary:
            torch.save(tokens.clone(), temporary)
    with atomic_write(folder / NAMES) as temporary:
        temporary.write_bytes(pickle.dumps(list(ids)))
    write_json(folder / "hyperparameters.json", settings)
    return folder


def _rows_of(ids: Sequence[str], names: list[str], path: Path, kind: str) -> Tensor:
    """Rows [N] int64 of images in a file's list of names, which may write ImageNet's and COCO's ids in other forms."""
    if len(set(map(_plain_name, ids))) < len(ids):
        raise FileRefused(
            f"{path} cannot tell apart images of this list, as it numbers them; remove it to compute them."
        )
    row_of: dict[str, int] = {}
    for row, name in enumerate(names):  # CIRCO test names two references twice, and the authors take the first
        first = names[row_of.setdefault(_plain_name(name), row)]
        if first != name:
            raise FileRefused(f"{path} has {kind} of the same image twice, as {first} and as {name}; create it again.")
    missing = [image for image in ids if _plain_name(image) not in row_of]
    if missing:
        raise FileRefused(
            f"{path} has {kind} of another image list: {len(missing):,} of {len(ids):,} images are not in it (first: "
            f"{missing[0]}); use the file of this list, or remove the file to compute them."
        )
    return torch.tensor([row_of[_plain_name(image)] for image in ids])


def _plain_name(image: str) -> str:
    """An image's name without folder, suffix, prefix of a number and leading zeros."""
    stem = image.strip().rsplit("/", 1)[-1]
    if stem.lower().endswith((".jpeg", ".jpg", ".png")):
        stem = stem.rpartition(".")[0]
    tail = stem.rsplit("_", 1)[-1]
    return tail.lstrip("0") if tail.isdigit() else stem


def _load_pickle(path: Path) -> object:
    """The content of a pickle of plain data, or of the only pickle in a zip archive."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            return plain_pickle.load(file, size=path.stat().st_size)
    with opened(path) as archive:
        parts = [part for part in archive.infolist() if part.filename.endswith(".pkl")]
        parts = [part for part in parts if "__MACOSX" not in part.filename]
        if len(parts) != 1:
            raise ValueError(f"it is an archive of {len(parts)} pickles, not of one")
        with archive.open(parts[0]) as file:
            return plain_pickle.load(file, size=parts[0].file_size)
