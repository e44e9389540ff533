"""What a study has made, written in the authors' form, so that their code can use it: φ and OTI words.

The records say what 06_retrieval ranked and from which artefacts; nothing is computed.
"""

import json
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from searle_lib.backbone.model import clip_facts
from searle_lib.data.benchmarks import IMAGENET
from searle_lib.releases import searle_files
from searle_lib.searle.oti import IDS
from searle_lib.searle.phi import EPOCH
from searle_lib.store.artefacts import write_json
from searle_lib.store.records import Study


def export(study: Study, to: Path) -> list[Path]:
    """Write φ to phi_models/ and OTI words to oti_pseudo_tokens/ below a folder; return what was written.

    Raises Missing or Stale, which say which notebook to run, as `Study.read` does, and ValueError when 06_retrieval
    ranked neither SEARLE nor SEARLE-OTI.
    """
    ranked = [name.rpartition("/")[::2] for name in study.artefacts("06_retrieval", "rankings")]
    inverted = dict.fromkeys("/".join(name.split("/")[:2]) for name, method in ranked if method == "SEARLE-OTI")
    lists = {split: f"{split}/references" for split in inverted}
    written = []
    if "SEARLE" in {method for _, method in ranked}:
        weights, facts = study.artefact("04_phi", "phi").read(_load_phi)
        written += _write_phi(study, to, weights, facts)
        if facts["epoch"]:
            lists[IMAGENET] = IMAGENET  # the words that taught φ
    written += [_write_words(study, to, split, images) for split, images in lists.items()]
    if not written:
        raise ValueError(
            f"06_retrieval of study {study.name} ranked neither SEARLE nor SEARLE-OTI, so there is nothing to export; "
            "add one of them to methods and run the study again."
        )
    return written


def _write_phi(study: Study, to: Path, weights: dict[str, Tensor], facts: dict) -> list[Path]:
    place = to / "phi_models" / study.name
    file = searle_files.write_phi(place / "checkpoints" / f"phi_{facts['epoch']}.pt", facts["epoch"], weights)
    write_json(place / "hyperparameters.json", _parameters(study, "04_phi") | {"phi_dropout": facts["dropout"]})
    return [file]


def _write_words(study: Study, to: Path, split: str, images: str) -> Path:
    """Write the words of a list of images for the split that the authors' code looks for."""
    made, ids = study.artefact("03_oti", f"oti/{images}").read(_load_words)
    if images == IMAGENET:
        ids = [f"{image}.JPEG" for image in ids]  # the authors know them by file name
    folder = to / "oti_pseudo_tokens" / split.replace("test1", "test") / study.name
    return searle_files.write_tokens(folder, ids, made["ema"], made["last"], _parameters(study, "03_oti"))


def _parameters(study: Study, notebook: str) -> dict:
    """Return what a notebook and those before it ran with, and the CLIP's name, for which the authors' code asks."""
    chain = study.chain(notebook)
    values = {name: value for record in chain.values() for name, value in record.parameters.items()}
    return values | chain[notebook].parameters | {"clip_model_name": clip_facts(study)["name"]}


def _load_phi(folder: Path) -> tuple[dict[str, Tensor], dict]:
    return load_file(folder / "phi.safetensors"), json.loads((folder / EPOCH).read_text(encoding="utf-8"))


def _load_words(folder: Path) -> tuple[dict[str, Tensor], list[str]]:
    return load_file(folder / "oti.safetensors"), json.loads((folder / IDS).read_text(encoding="utf-8"))["ids"]
