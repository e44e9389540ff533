"""What a study has made, written in the authors' form, so that their code can use it: φ and OTI tokens.

06_retrieval leaves word of what its queries were made from; the artefacts behind it are found by their keys.
"""

import json
from pathlib import Path

from safetensors.torch import load_file

from searle_lib import authors
from searle_lib.artefacts import write_json
from searle_lib.inversion import IDS
from searle_lib.plan import IMAGENET


def export(artefacts: Path, reports: Path, to: Path) -> list[Path]:
    """Write φ to phi_models/ and OTI tokens to oti_pseudo_tokens/ below a folder; what was written.

    Raises FileNotFoundError when 06_retrieval has not run or its artefacts are gone, ValueError when the study's
    methods have neither.
    """
    made_with = reports / "made_with.json"
    if not made_with.is_file():
        raise FileNotFoundError(f"{made_with} does not exist; run 06_retrieval of this study first.")
    facts = json.loads(made_with.read_text())
    made_from, clip = facts["made_from"], {"clip_model_name": facts["backbone"]}  # which the authors' code asks for
    written, study = [], reports.name
    for split, of_split in made_from.items():
        if "SEARLE-OTI" in of_split:
            tokens = _artefact(artefacts, of_split["SEARLE-OTI"].removeprefix("searle-oti "))
            written.append(_tokens(tokens, to, split.replace("test1", "test"), study, clip))
    networks = {of_split["SEARLE"].removeprefix("searle ") for of_split in made_from.values() if "SEARLE" in of_split}
    for network in networks:  # one, for all splits
        key, _, epoch = network.partition("/phi-")
        folder = _artefact(artefacts, key)
        weights = load_file(folder / (f"phi-{epoch}.safetensors" if epoch else "phi.safetensors"))
        name = f"phi_{int(epoch or 0)}.pt"
        place, made = to / "phi_models" / study, json.loads((folder / "manifest.json").read_text())["facts"]
        written.append(authors.write_phi(place / "checkpoints" / name, int(epoch or 0), weights))
        write_json(place / "hyperparameters.json", made | clip | {"phi_dropout": made.get("dropout", 0.5)})
        if epoch:
            written.append(_tokens(_artefact(artefacts, made["tokens"]), to, IMAGENET, study, clip))
    if not written:
        raise ValueError(
            f"study {study} has no SEARLE and no SEARLE-OTI among its methods: there is nothing to export."
        )
    return written


def _tokens(folder: Path, to: Path, split: str, study: str, clip: dict) -> Path:
    made, ids = load_file(folder / "oti.safetensors"), json.loads((folder / IDS).read_text())
    ids = [f"{image}.JPEG" for image in ids] if split == IMAGENET else ids  # the authors know them by file name
    facts = json.loads((folder / "manifest.json").read_text())["facts"] | clip
    return authors.write_tokens(to / "oti_pseudo_tokens" / split / study, ids, made["ema"], made["last"], facts)


def _artefact(artefacts: Path, key: str) -> Path:
    found = sorted(path.parent for path in artefacts.rglob(f"*-{key}/manifest.json"))
    if not found:
        raise FileNotFoundError(f"{artefacts} holds no artefact {key}, of which the study was made; run it again.")
    return found[0]
