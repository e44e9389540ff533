"""SEARLE's own files, read safely and written: phrases, concepts, OTI tokens and φ (searle.md, sections 1 to 4).

What took others days is taken in, and what we make can be used by the authors' code. Pickles are read by an unpickler
that knows no class at all, so that nothing in them can run; tensors by torch's weights-only loader.
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

from searle_lib.store.artefacts import write_json, written_aside

EMA, LAST, NAMES = "ema_oti_pseudo_tokens.pt", "oti_pseudo_tokens.pt", "image_names.pkl"
PHI_LAYERS = ("layers.0", "layers.3", "layers.6")


def read_phrases(path: Path) -> pd.DataFrame:
    """The phrases of a concept_to_phrases.pkl: columns concept and phrase, concept after concept.

    Raises ValueError, in one sentence, for a file that is no such pickle or holds a concept without phrases.
    """
    content = _plain(path)
    if not isinstance(content, dict) or not content:
        what = "an empty dictionary" if content == {} else f"a {type(content).__name__}"
        raise ValueError(
            f"{path} holds {what}, not a dictionary of phrases by concept; phrases_file must be "
            "concept_to_phrases.pkl, or a zip of it."
        )
    for concept, phrases in content.items():
        fine = isinstance(concept, str) and isinstance(phrases, list) and phrases
        if not fine or not all(isinstance(phrase, str) for phrase in phrases):
            raise ValueError(f"{path} holds no list of phrases under {concept!r}; it must map names to lists of text.")
    names = [concept.strip() for concept in content]
    twice = next((name for name, n in pd.Series(names).value_counts().items() if n > 1), None)
    if twice is not None:
        raise ValueError(f"{path} has the concept {twice!r} twice but for blanks; remove one.")
    counts = [len(phrases) for phrases in content.values()]
    texts = [phrase for phrases in content.values() for phrase in phrases]
    return pd.DataFrame({"concept": np.repeat(np.array(names, dtype=object), counts), "phrase": texts})


def read_concepts(path: Path, ids: Sequence[str]) -> tuple[tuple[str, ...], Tensor]:
    """Names, and rows [N, k] into them: the nearest concepts of each image of a list, best first, of the authors' CSV
    (columns Image Name, 1, 2, ...).

    Raises ValueError, in one sentence, for another form, an empty cell and an image of the list that is not there.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        if not isinstance(table.index, pd.RangeIndex):
            raise ValueError("its rows have more cells than its header")
    except ValueError as problem:  # as are pandas' own and that of text which is no UTF-8
        raise ValueError(f"{path} is no table ({' '.join(str(problem).split())}); make it anew.") from problem
    if "Image Name" not in table or table.shape[1] < 2:
        raise ValueError(f"{path} must have the columns Image Name, 1, 2, ...; it has {', '.join(table.columns[:4])}.")
    cells = table.drop(columns="Image Name").to_numpy(dtype=object)
    rows, names = pd.factorize(cells.ravel())  # ImageNet's 25 million cells are too many to sort; -1 where a row ends
    empty = np.array([not name.strip() for name in names] + [True])[rows].reshape(cells.shape).any(1)
    if empty.any():
        image = table["Image Name"][int(empty.argmax())]
        raise ValueError(f"{path} has an empty concept for image {image}; make the file anew.")
    places = _rows_of(ids, list(table["Image Name"]), path, "concepts")
    return tuple(names.tolist()), torch.from_numpy(rows.reshape(cells.shape))[places]


def read_tokens(folder: Path, ids: Sequence[str], width: int) -> tuple[Tensor, Tensor]:
    """EMA and last OTI tokens [N, width] float32 of a list of images, of a folder of the authors' experiment.

    Raises ValueError, in one sentence, for tokens of another width, another image list or that are not finite.
    """
    names = _plain(folder / NAMES)
    if not isinstance(names, list):
        raise ValueError(f"{folder / NAMES} holds a {type(names).__name__}, not a list of image names.")
    places = _rows_of(ids, [str(name) for name in names], folder / EMA, "tokens")
    found = []
    for file in (EMA, LAST):
        path = folder / file if (folder / file).is_file() else folder / EMA  # only the EMA is used downstream
        tokens = _load(path)
        if not isinstance(tokens, Tensor) or tokens.shape != (len(names), width):
            has = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
            raise ValueError(
                f"{path} holds {has} but {NAMES} has {len(names)} names and this CLIP's tokens are {width} wide; "
                "they must be of one experiment with the same clip_model."
            )
        broken = (~torch.isfinite(tokens).all(1)).nonzero().flatten().tolist()
        if broken:
            raise ValueError(f"{path} has a token that is not finite, of image {names[broken[0]]}; make it anew.")
        found.append(tokens.float()[places])
    return found[0], found[1]


def read_phi(path: Path, dimension: int, width: int) -> dict[str, Tensor]:
    """The weights of φ, float32, of phi_*.pt or SEARLE_*.pt, {'epoch', 'Phi'}, for a CLIP of that dimension.

    Raises ValueError, in one sentence, for another form, for a φ of another CLIP and for weights that are not finite.
    """
    content = _load(path)
    weights = content.get("Phi") if isinstance(content, dict) else None
    expected = {f"{layer}.{part}" for layer in PHI_LAYERS for part in ("weight", "bias")}
    if not isinstance(weights, dict) or set(weights) != expected or not all(map(torch.is_tensor, weights.values())):
        raise ValueError(f"{path} holds no φ ({{'epoch', 'Phi'}} with layers 0, 3 and 6); use phi_*.pt or SEARLE_*.pt.")
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    hidden = 4 * dimension
    fitting = dict(zip(PHI_LAYERS, ((hidden, dimension), (hidden, hidden), (width, hidden)), strict=True))
    came, went = (shapes["layers.0.weight"] + (0, 0))[1], (shapes["layers.6.weight"] + (0,))[0]
    if (came, went) != (dimension, width):
        raise ValueError(
            f"{path} is a φ for embeddings of {came} numbers and tokens of {went}, but this CLIP has {dimension} and "
            f"{width}; φ and clip_model must be of the same backbone (ViT-B/32: 512, ViT-L/14: 768)."
        )
    for layer, (after, before) in fitting.items():
        found = shapes[f"{layer}.weight"], shapes[f"{layer}.bias"]
        if found != ((after, before), (after,)):
            raise ValueError(
                f"{path} has a {layer} of {found[0]} and {found[1]}, not {(after, before)} and {(after,)} as φ for "
                "this CLIP has; use another file."
            )
    broken = next((name for name, value in weights.items() if not torch.isfinite(value).all()), None)
    if broken:
        raise ValueError(f"{path} has weights in {broken} that are not finite; download it again.")
    return {name: value.float() for name, value in weights.items()}


def write_phi(path: Path, epoch: int, weights: dict[str, Tensor]) -> Path:
    """Write φ as the authors' code loads it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as aside:
        torch.save({"epoch": epoch, "Phi": {name: value.clone() for name, value in weights.items()}}, aside)
    return path


def write_tokens(folder: Path, ids: Sequence[str], ema: Tensor, last: Tensor, settings: dict) -> Path:
    """Write OTI tokens [N, d_tok] as the authors' code loads them: both tensors, the names, the settings."""
    folder.mkdir(parents=True, exist_ok=True)
    for file, tokens in ((EMA, ema), (LAST, last)):
        with written_aside(folder / file) as aside:
            torch.save(tokens.clone(), aside)
    with written_aside(folder / NAMES) as aside:
        aside.write_bytes(pickle.dumps(list(ids)))
    write_json(folder / "hyperparameters.json", settings)
    return folder


def _rows_of(ids: Sequence[str], names: list[str], path: Path, what: str) -> Tensor:
    """Rows [N] of images in a list of names, in which ImageNet's may be bare numbers and ids may have zeros before."""
    place: dict[str, int] = {}
    for row, name in enumerate(names):  # CIRCO test names two references twice, and the authors take the first
        first = names[place.setdefault(_plain_name(name), row)]
        if first != name:
            raise ValueError(f"{path} has {what} of the same image twice, as {first} and as {name}; make it anew.")
    missing = [image for image in ids if _plain_name(image) not in place]
    if missing:
        raise ValueError(
            f"{path} has {what} of another image list: {len(missing):,} of {len(ids):,} images are not in it (first: "
            f"{missing[0]}); use those of this list, or leave them out to compute them."
        )
    return torch.tensor([place[_plain_name(image)] for image in ids])


def _plain_name(image: str) -> str:
    stem = image.strip().rsplit("/", 1)[-1].split(".")[0]
    tail = stem.rsplit("_", 1)[-1]
    return tail.lstrip("0") if tail.isdigit() else stem


def _plain(path: Path) -> object:
    """The content of a pickle of plain data, or of the only one in a zip archive."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                found = [name for name in archive.namelist() if name.endswith(".pkl") and "__MACOSX" not in name]
                if len(found) != 1:
                    raise ValueError(f"it is an archive of {len(found)} pickles, not of one")
                return _Plain(archive.open(found[0])).load()
        with path.open("rb") as file:
            return _Plain(file).load()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist; it belongs beside the others of its experiment.") from None
    except _BROKEN as problem:
        said = " ".join(str(problem).split()) or type(problem).__name__
        raise ValueError(f"{path} is no pickle of plain lists and texts: {said}; download it again.") from problem


_BROKEN = (  # what unpicklers and archives raise where a byte came wrong; a length that did is believed at first
    *(pickle.UnpicklingError, EOFError, ValueError, LookupError, TypeError, AttributeError),
    *(MemoryError, OverflowError, zipfile.BadZipFile, zlib.error),
)


class _Plain(pickle.Unpickler):
    """Dictionaries, lists, texts and numbers have opcodes of their own; whatever has to be looked up is refused."""

    def find_class(self, module: str, name: str):
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no plain data")


def _load(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist; correct the path.") from None
    except Exception as problem:
        named = re.search(r"GLOBAL ([\w.]+)", str(problem))
        reason = str(problem).splitlines()[0][:100] if str(problem) else type(problem).__name__
        reason = f"it names {named[1]}, which is no tensor" if named else reason
        size = path.stat().st_size
        raise ValueError(
            f"{path} ({size:,} bytes) is no file of tensors that is safe to read ({reason}); download it again."
        ) from problem
