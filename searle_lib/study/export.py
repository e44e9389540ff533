"""The export of a study: φ and OTI pseudo-words in the file format of SEARLE's authors, or its rankings in TREC's.

The records say what 06_retrieval ranked and which artefacts it used; the export computes nothing.
"""

import json
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from searle_lib.backbone.model import clip_facts
from searle_lib.data import benchmarks
from searle_lib.data.benchmarks import IMAGENET
from searle_lib.evaluation import methods, scores
from searle_lib.releases import searle_files
from searle_lib.searle.oti import IDS
from searle_lib.servers import trec
from searle_lib.store.artefacts import write_json
from searle_lib.store.records import Study
from searle_lib.training import EPOCH, WEIGHTS


def export(study: Study, folder: Path) -> list[Path]:
    """Write φ to phi_models/ and OTI pseudo-words to oti_pseudo_tokens/ in a folder; return the paths.

    Raises:
        MissingInput, StaleInput: as `Study.read` does; the sentence says which notebook to run.
        ValueError: if 06_retrieval ranked neither SEARLE nor SEARLE-OTI.
    """
    rankings = [name.rpartition("/")[::2] for name in study.artefacts("06_retrieval", "rankings")]
    chosen = methods.by_name(study.read("06_retrieval").parameters["methods"], study.root)
    splits = dict.fromkeys("/".join(name.split("/")[:2]) for name, one in rankings if "03_oti" in chosen[one].needs)
    lists = {split: f"{split}/references" for split in splits}
    paths = []
    if "04_phi" in methods.needed(chosen[method] for _, method in rankings):
        weights, facts = study.artefact("04_phi", "phi").read(_load_phi)
        paths.append(_write_phi(study, folder, weights, facts))
        if facts["epoch"]:  # trained here, from the pseudo-words of ImageNet
            lists[IMAGENET] = IMAGENET
    paths += [_write_words(study, folder, split, images) for split, images in lists.items()]
    if not paths:
        raise ValueError(
            f"06_retrieval of study {study.name} ranked neither SEARLE nor SEARLE-OTI, so there is nothing to export; "
            "add one of them to methods and run the study again."
        )
    return paths


def export_rankings(study: Study, folder: Path) -> list[Path]:
    """Write the rankings of every method as TREC run files and the public targets as qrels; return the paths.

    Raises MissingInput and StaleInput as `export` does.
    """
    return trec.write_all(folder, scores.read_scores(study)[1], benchmarks.read(study))


def _write_phi(study: Study, folder: Path, weights: dict[str, Tensor], facts: dict) -> Path:
    place = folder / "phi_models" / study.name
    file = searle_files.write_phi(place / "checkpoints" / f"phi_{facts['epoch']}.pt", facts["epoch"], weights)
    write_json(place / "hyperparameters.json", _parameters(study, "04_phi") | {"phi_dropout": facts["dropout"]})
    return file


def _write_words(study: Study, folder: Path, split: str, images: str) -> Path:
    """Write the pseudo-words of a list of images to the folder where the authors' code looks for the split."""
    words, ids = study.artefact("03_oti", f"oti/{images}").read(_load_words)
    if images == IMAGENET:
        ids = [f"{image}.JPEG" for image in ids]  # the authors use file names
    place = folder / "oti_pseudo_tokens" / split.replace("test1", "test") / study.name
    return searle_files.write_tokens(place, ids, words["ema"], words["last"], _parameters(study, "03_oti"))


def _parameters(study: Study, notebook: str) -> dict:
    """Return the parameters of a notebook and of those before it, and CLIP's name, which the authors' code reads."""
    chain = study.chain(notebook)
    values = {name: value for record in chain.values() for name, value in record.parameters.items()}
    return values | chain[notebook].parameters | {"clip_model_name": clip_facts(study)["name"]}


def _load_phi(folder: Path) -> tuple[dict[str, Tensor], dict]:
    return load_file(folder / WEIGHTS), json.loads((folder / EPOCH).read_text(encoding="utf-8"))


def _load_words(folder: Path) -> tuple[dict[str, Tensor], list[str]]:
    return load_file(folder / "oti.safetensors"), json.loads((folder / IDS).read_text(encoding="utf-8"))["ids"]
