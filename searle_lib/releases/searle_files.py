"""Read and write the files of SEARLE's authors: phrases, concepts, OTI pseudo-words (tokens) and φ.

The readers take a path and return tables and tensors; the writers make files that the authors' code loads. Nothing in a
file can run: pickles are read by an unpickler that knows no class, tensors by torch's weights-only loader.
"""

import pickle
import re
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from searle_lib.store.artefacts import atomic_write, write_json

EMA, LAST, NAMES = "ema_oti_pseudo_tokens.pt", "oti_pseudo_tokens.pt", "image_names.pkl"
PHI_LAYERS = ("layers.0", "layers.3", "layers.6")


def read_phrases(path: Path) -> pd.DataFrame:
    """Return the phrases of a concept_to_phrases.pkl, or of a zip of it: columns concept and phrase, in file order.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is not such a pickle, or holds a concept twice or without phrases.
    """
    content = _load_pickle(path)
    if not isinstance(content, dict) or not content:
        kind = "an empty dictionary" if content == {} else f"a {type(content).__name__}"
        raise ValueError(
            f"{path} holds {kind}, not a dictionary of phrases by concept; phrases_file must be "
            "concept_to_phrases.pkl, or a zip of it."
        )
    for concept, phrases in content.items():
        is_list = isinstance(concept, str) and isinstance(phrases, list) and phrases
        if not is_list or not all(isinstance(phrase, str) for phrase in phrases):
            raise ValueError(f"{path} holds no list of phrases under {concept!r}; it must map names to lists of text.")
    names = [concept.strip() for concept in content]
    duplicate = next((name for name, n in pd.Series(names).value_counts().items() if n > 1), None)
    if duplicate is not None:
        raise ValueError(f"{path} has the concept {duplicate!r} twice, apart from blanks; remove one.")
    counts = [len(phrases) for phrases in content.values()]
    texts = [phrase for phrases in content.values() for phrase in phrases]
    return pd.DataFrame({"concept": np.repeat(np.array(names, dtype=object), counts), "phrase": texts})


def read_concepts(path: Path, ids: Sequence[str]) -> tuple[tuple[str, ...], Tensor]:
    """Return the nearest concepts of each image: the names, and rows [N, k] int64 into the names, best first.

    Args:
        path: the authors' CSV, with columns Image Name, 1, 2, ...
        ids: the N images.

    Raises:
        ValueError: if the file has another form, an empty cell, or lacks an image.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        if not isinstance(table.index, pd.RangeIndex):
            raise ValueError("its rows have more cells than its header")
    except ValueError as problem:  # also pandas' own errors, and that of text which is not UTF-8
        raise ValueError(f"{path} is not a table ({' '.join(str(problem).split())}); create it again.") from problem
    if "Image Name" not in table or table.shape[1] < 2:
        raise ValueError(f"{path} must have the columns Image Name, 1, 2, ...; it has {', '.join(table.columns[:4])}.")
    cells = table.drop(columns="Image Name").to_numpy(dtype=object)
    rows, names = pd.factorize(cells.ravel())  # ImageNet's 25 million cells are too many to sort; -1 where a row ends
    empty = np.array([not name.strip() for name in names] + [True])[rows].reshape(cells.shape).any(1)
    if empty.any():
        image = table["Image Name"][int(empty.argmax())]
        raise ValueError(f"{path} has an empty concept for image {image}; create the file again.")
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
        ValueError: if the tokens have another width, are not finite, or lack an image.
    """
    names = _load_pickle(folder / NAMES)
    if not isinstance(names, list):
        raise ValueError(f"{folder / NAMES} holds a {type(names).__name__}, not a list of image names.")
    rows = _rows_of(ids, [str(name) for name in names], folder / EMA, "tokens")
    pair = []
    for file in (EMA, LAST):
        path = folder / file if (folder / file).is_file() else folder / EMA  # retrieval needs the moving average alone
        tokens = _load_tensors(path)
        if not isinstance(tokens, Tensor) or tokens.shape != (len(names), width):
            form = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
            raise ValueError(
                f"{path} holds {form}, but {NAMES} has {len(names)} names and this CLIP's tokens are {width} wide; "
                "use the files of one experiment with the same clip_model."
            )
        broken = (~torch.isfinite(tokens).all(1)).nonzero().flatten().tolist()
        if broken:
            raise ValueError(f"{path} has a token that is not finite, of image {names[broken[0]]}; create it again.")
        pair.append(tokens.float()[rows])
    return pair[0], pair[1]


def read_phi(path: Path, dimension: int, width: int) -> dict[str, Tensor]:
    """Return the weights of φ by name, float32.

    Args:
        path: a phi_*.pt or SEARLE_*.pt, which holds {'epoch', 'Phi'}.
        dimension: the width of CLIP's embeddings.
        width: the width of CLIP's token embeddings.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it has another form, belongs to another CLIP, or holds weights that are not finite.
    """
    content = _load_tensors(path)
    weights = content.get("Phi") if isinstance(content, dict) else None
    expected = {f"{layer}.{part}" for layer in PHI_LAYERS for part in ("weight", "bias")}
    if not isinstance(weights, dict) or set(weights) != expected or not all(map(torch.is_tensor, weights.values())):
        raise ValueError(f"{path} holds no φ ({{'epoch', 'Phi'}} with layers 0, 3 and 6); use phi_*.pt or SEARLE_*.pt.")
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    hidden = 4 * dimension
    inputs, outputs = (shapes["layers.0.weight"] + (0, 0))[1], (shapes["layers.6.weight"] + (0,))[0]
    if (inputs, outputs) != (dimension, width):
        raise ValueError(
            f"{path} is a φ for embeddings of {inputs} numbers and tokens of {outputs}, but this CLIP has {dimension} "
            f"and {width}; φ and clip_model must be of the same backbone (ViT-B/32: 512, ViT-L/14: 768)."
        )
    for layer, shape in zip(PHI_LAYERS, ((hidden, dimension), (hidden, hidden), (width, hidden)), strict=True):
        weight, bias = shapes[f"{layer}.weight"], shapes[f"{layer}.bias"]
        if (weight, bias) != (shape, shape[:1]):
            raise ValueError(
                f"{path} has a {layer} of {weight} and {bias}, but φ for this CLIP has {shape} and {shape[:1]}; use "
                "another file."
            )
    broken = next((name for name, value in weights.items() if not torch.isfinite(value).all()), None)
    if broken:
        raise ValueError(f"{path} has weights in {broken} that are not finite; download it again.")
    return {name: value.float() for name, value in weights.items()}


def write_phi(path: Path, epoch: int, weights: dict[str, Tensor]) -> Path:
    """Write φ's weights in the form that the authors' code loads."""
    path.parent.mkdir(parents=True, exist_ok=True)
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
    folder.mkdir(parents=True, exist_ok=True)
    for file, tokens in ((EMA, ema), (LAST, last)):
        with atomic_write(folder / file) as temporary:
            torch.save(tokens.clone(), temporary)
    with atomic_write(folder / NAMES) as temporary:
        temporary.write_bytes(pickle.dumps(list(ids)))
    write_json(folder / "hyperparameters.json", settings)
    return folder


def _rows_of(ids: Sequence[str], names: list[str], path: Path, kind: str) -> Tensor:
    """Rows [N] int64 of images in a file's list of names, which may write ImageNet's and COCO's ids in other forms."""
    row_of: dict[str, int] = {}
    for row, name in enumerate(names):  # CIRCO test names two references twice, and the authors take the first
        first = names[row_of.setdefault(_plain_name(name), row)]
        if first != name:
            raise ValueError(f"{path} has {kind} of the same image twice, as {first} and as {name}; create it again.")
    missing = [image for image in ids if _plain_name(image) not in row_of]
    if missing:
        raise ValueError(
            f"{path} has {kind} of another image list: {len(missing):,} of {len(ids):,} images are not in it (first: "
            f"{missing[0]}); use the file of this list, or remove the file to compute them."
        )
    return torch.tensor([row_of[_plain_name(image)] for image in ids])


def _plain_name(image: str) -> str:
    """An image's name without folder, suffix, prefix of a number and leading zeros."""
    stem = image.strip().rsplit("/", 1)[-1].split(".")[0]
    tail = stem.rsplit("_", 1)[-1]
    return tail.lstrip("0") if tail.isdigit() else stem


def _load_pickle(path: Path) -> object:
    """The content of a pickle of plain data, or of the only pickle in a zip archive."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                pickles = [name for name in archive.namelist() if name.endswith(".pkl") and "__MACOSX" not in name]
                if len(pickles) != 1:
                    raise ValueError(f"it is an archive of {len(pickles)} pickles, not of one")
                return _PlainUnpickler(archive.open(pickles[0])).load()
        with path.open("rb") as file:
            return _PlainUnpickler(file).load()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist; put it beside the other files of its experiment.") from None
    except _CORRUPT as problem:
        reason = " ".join(str(problem).split()) or type(problem).__name__
        raise ValueError(f"{path} is not a pickle of plain lists and texts: {reason}; download it again.") from problem


_CORRUPT = (  # errors of unpicklers and archives for a corrupt byte; a corrupt length first asks for its memory
    *(pickle.UnpicklingError, EOFError, ValueError, LookupError, TypeError, AttributeError),
    *(MemoryError, OverflowError, zipfile.BadZipFile, zlib.error),
)


class _PlainUnpickler(pickle.Unpickler):
    """Loads dictionaries, lists, texts and numbers, which have opcodes; refuses every name that must be looked up."""

    def find_class(self, module: str, name: str):
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is not plain data")


def _load_tensors(path: Path) -> object:
    """The content of a file that torch saved; no class but tensors is loaded."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist; correct the path.") from None
    except Exception as problem:
        forbidden = re.search(r"GLOBAL ([\w.]+)", str(problem))
        reason = str(problem).splitlines()[0][:100] if str(problem) else type(problem).__name__
        reason = f"it names {forbidden[1]}, which is not a tensor" if forbidden else reason
        size = path.stat().st_size
        raise ValueError(
            f"{path} ({size:,} bytes) is not a file of tensors that is safe to read ({reason}); download it again."
        ) from problem
