"""The plan of a study: which notebooks its methods need, without those that the user's files replace.

Every function takes the study's parameters, or some of them. A list of images is "imagenet/test", the unlabeled images
that φ learns from, or the references of a split, such as "cirr/val/references".
"""

from collections.abc import Mapping, Sequence

from searle_lib.data import benchmarks
from searle_lib.evaluation.methods import METHODS
from searle_lib.releases import folders
from searle_lib.releases.folders import is_trained

NOTHING_INVERTED = "nothing is inverted"


def reason_to_skip(notebook: str, values: Mapping) -> str:
    """Return why a study with these parameters does not need a notebook; "" if it needs it.

    Raises FileNotFoundError or ValueError if oti_root cannot be used.
    """
    required = required_notebooks(values["methods"])
    inverted = values["images_to_invert"] if "images_to_invert" in values else images_to_invert(values)
    if notebook == "01_phrases" and not inverted:
        return NOTHING_INVERTED
    if notebook == "03_oti" and not inverted and notebook not in required:
        return NOTHING_INVERTED
    if notebook in ("04_phi", "05_fti4cir") and notebook not in required:
        method = next(name for name, method in METHODS.items() if method.needs == notebook)
        return f"methods does not hold {method}"
    if notebook == "07_results" and "validation" not in values["evaluate"]:
        return "evaluate does not hold validation"
    return ""


def required_notebooks(methods: Sequence[str]) -> set[str]:
    """Return the notebooks that make the pseudo-words or networks of these methods."""
    return {METHODS[method].needs for method in methods} - {""}


def images_to_invert(values: Mapping) -> list[str]:
    """Return the kinds of images that need concepts and OTI: "unlabeled" for φ, "references" for SEARLE-OTI.

    References need none if oti_root holds all their pseudo-words. Raises as `reason_to_skip` does.
    """
    learns = trains_phi(values["methods"], values["phi_checkpoint"])
    splits = (
        benchmarks.evaluated_splits(values["datasets"], values["evaluate"]) if "SEARLE-OTI" in values["methods"] else []
    )
    references = [f"{benchmarks.dataset_name(dataset)}/{split}/references" for dataset, split in splits]
    lists = references + [benchmarks.IMAGENET] * learns
    folder = {name: folders.find_tokens(values["oti_root"], name) for name in lists}  # each: this checks oti_root
    return ["unlabeled"] * learns + ["references"] * (not all(folder[name] for name in references))


def trains_phi(methods: Sequence[str], phi_checkpoint: str) -> bool:
    """Return whether the study trains φ: SEARLE is one of the methods, and phi_checkpoint is "last" or an epoch."""
    return "SEARLE" in methods and is_trained(phi_checkpoint)


def needs_imagenet(values: Mapping) -> bool:
    """Return whether the study needs the unlabeled images, to train φ or FTI4CIR's network."""
    trains_fti = "FTI4CIR" in values["methods"] and not values["fti_weights"]
    return trains_fti or trains_phi(values["methods"], values["phi_checkpoint"])
