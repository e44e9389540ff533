"""What a study has to make, and what it is given: which notebooks run, for which lists of images.

A list of images is "imagenet/test", from which φ learns, or a split's references, such as "cirr/val/references".
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from searle_lib.benchmarks import names

IMAGENET = "imagenet/test"


def teaches_phi(methods: Sequence[str], phi_checkpoint: str) -> bool:
    """Whether φ is trained here: SEARLE is among the methods, and phi_checkpoint is "last" or an epoch."""
    return "SEARLE" in methods and is_trained(phi_checkpoint)


def is_trained(phi_checkpoint: str) -> bool:
    """Whether a phi_checkpoint is of a training, and not a file or a published name."""
    return phi_checkpoint == "last" or phi_checkpoint.isdigit()


def inverts(
    methods: Sequence[str], phi_checkpoint: str, oti_root: str, datasets: Sequence[str], evaluate: Sequence[str]
) -> bool:
    """Whether some list of images has to be inverted here, so that phrases and concepts are needed."""
    lists = [f"{dataset}/{split}/references" for dataset, split in names(datasets, evaluate)]
    lists = lists if "SEARLE-OTI" in methods else []
    teaches = teaches_phi(methods, phi_checkpoint)
    lists += [IMAGENET] if teaches else []
    given = [given_tokens(oti_root, images) for images in lists]  # each is looked at, so that a wrong root is told now
    return teaches or not all(given)


def writes_phrases(values: Mapping) -> bool:
    """As `inverts`, of a study's parameters."""
    given = (values[name] for name in ("methods", "phi_checkpoint", "oti_root", "datasets", "evaluate"))
    return inverts(*given)


def needs_imagenet(values: Mapping) -> bool:
    """Whether a study learns from the unlabeled pictures: for φ, or for FTI4CIR's network."""
    trains_fti = "FTI4CIR" in values["methods"] and not values["fti_weights"]
    return trains_fti or teaches_phi(values["methods"], values["phi_checkpoint"])


def left_out(notebook: str, values: Mapping) -> str:
    """Why a study of these parameters does without a notebook; "" when it needs it.

    Raises FileNotFoundError or ValueError for an oti_root that cannot be used.
    """
    methods, checkpoint = values["methods"], values["phi_checkpoint"]
    needs_words = writes_phrases(values)
    if notebook in ("01_phrases", "02_concepts") and not needs_words:
        return "nothing is inverted"
    if notebook == "03_oti" and not needs_words and "SEARLE-OTI" not in methods:
        return "nothing is inverted"
    if notebook == "04_phi" and not teaches_phi(methods, checkpoint):
        return "φ is given" if "SEARLE" in methods else "methods does not hold SEARLE"
    if notebook == "05_fti4cir" and "FTI4CIR" not in methods:
        return "methods does not hold FTI4CIR"
    if notebook == "07_results" and "validation" not in values["evaluate"]:
        return "evaluate does not hold validation"
    return ""


def given_concepts(concepts_root: str, images: str, clip: str) -> Path | None:
    """The authors' CSV below similar_concepts/{dataset}/{split} for a list of images and a CLIP, if any.

    Raises FileNotFoundError when the root does not exist, ValueError when there are several.
    """
    found = _below(concepts_root, images, "*_top_*_ensembling_image_texts.csv", "concepts_root")
    of_clip = [path for path in found if _letters(path.name.split("_top_")[0]) == _letters(clip)]
    return _only(of_clip, images, "concepts_root")


def given_tokens(oti_root: str, images: str) -> Path | None:
    """The authors' experiment below oti_pseudo_tokens/{dataset}/{split} for a list of images, if any.

    Raises likewise.
    """
    found = _only(_below(oti_root, images, "ema_oti_pseudo_tokens.pt", "oti_root"), images, "oti_root")
    return found and found.parent


def _below(root: str, images: str, pattern: str, parameter: str) -> list[Path]:
    if not root:
        return []
    if not Path(root).is_dir():
        raise FileNotFoundError(f"{parameter} {root} does not exist; correct it, or leave it empty to compute.")
    dataset, split = images.split("/")[:2]
    splits = (split, "test") if split == "test1" else (split,)  # the authors call CIRR's test1 test
    return sorted(path for name in splits for path in (Path(root) / dataset / name).rglob(pattern))


def _only(found: list[Path], images: str, parameter: str) -> Path | None:
    if len(found) > 1:
        raise ValueError(f"{parameter} has two of {images}, {found[0]} and {found[1]}; leave one there.")
    return found[0] if found else None


def _letters(name: str) -> str:
    """A CLIP's name without what file names leave out: ViT-B/32 and ViT-B-32 are ViT-B32."""
    return re.sub(r"\W", "", name)
