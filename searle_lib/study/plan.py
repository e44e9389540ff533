"""The plan of a study: which notebooks its methods need, without those that the user's files replace.

Every function takes the study's parameters, or some of them. A list of images is "imagenet/test", the unlabeled images
that φ learns from, or the references of a split, such as "cirr/val/references".
"""

from collections.abc import Mapping, Sequence

from searle_lib.data import benchmarks
from searle_lib.evaluation import methods as all_methods
from searle_lib.evaluation.methods import METHODS
from searle_lib.releases import folders
from searle_lib.releases.folders import is_trained
from searle_lib.study import workspace

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
        method = next(name for name, method in METHODS.items() if notebook in method.needs)
        return f"methods does not hold {method}"
    if notebook == "07_results" and "validation" not in values["evaluate"]:
        return "evaluate does not hold validation"
    return ""


def required_notebooks(methods: Sequence[str]) -> set[str]:
    """Return the notebooks that make the words or networks of these methods. Raises as `methods.by_name` does."""
    return all_methods.needed(all_methods.by_name(methods, workspace.project_root()).values())


def images_to_invert(values: Mapping) -> list[str]:
    """Return the kinds of images that need concepts and OTI: "unlabeled" for φ, "references" for SEARLE-OTI and alike.

    References need none if oti_root holds all their pseudo-words. Raises as `reason_to_skip` does.
    """
    learns = trains_phi(values["methods"], values["phi_checkpoint"])
    splits = benchmarks.evaluated_splits(values["datasets"], values["evaluate"]) if uses_oti(values["methods"]) else []
    references = [f"{benchmarks.dataset_name(dataset)}/{split}/references" for dataset, split in splits]
    lists = references + [benchmarks.IMAGENET] * learns
    folder = {name: folders.find_tokens(values["oti_root"], name) for name in lists}  # each: this checks oti_root
    return ["unlabeled"] * learns + ["references"] * (not all(folder[name] for name in references))


def trains_phi(methods: Sequence[str], phi_checkpoint: str) -> bool:
    """Return whether the study trains φ: a method needs it, and phi_checkpoint is "last" or an epoch."""
    return uses_phi(methods) and is_trained(phi_checkpoint)


def uses_phi(methods: Sequence[str]) -> bool:
    """Return whether one of the methods needs φ."""
    return "04_phi" in required_notebooks(methods)


def uses_oti(methods: Sequence[str]) -> bool:
    """Return whether one of the methods needs the pseudo-words of the references."""
    return "03_oti" in required_notebooks(methods)


def uses_fti(methods: Sequence[str]) -> bool:
    """Return whether one of the methods needs FTI4CIR's network."""
    return "05_fti4cir" in required_notebooks(methods)


def trains_fti(values: Mapping) -> bool:
    """Return whether the study trains FTI4CIR's network: a method needs it, and no weights are given."""
    return uses_fti(values["methods"]) and not values["fti_weights"]


def needs_imagenet(values: Mapping) -> bool:
    """Return whether the study needs the unlabeled images, to train φ or FTI4CIR's network."""
    return trains_fti(values) or trains_phi(values["methods"], values["phi_checkpoint"])
