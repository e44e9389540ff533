"""Which notebooks a study needs: the union of what its methods need, less what the user brings.

A list of images is "imagenet/test", from which φ learns, or a split's references, such as "cirr/val/references".
"""

from collections.abc import Mapping, Sequence

from searle_lib.data import benchmarks
from searle_lib.evaluation.methods import METHODS
from searle_lib.releases import folders
from searle_lib.releases.folders import is_trained

NOTHING_INVERTED = "nothing is inverted"


def left_out(notebook: str, values: Mapping) -> str:
    """Return why a study with these parameters does without a notebook; "" when it needs it.

    Raises FileNotFoundError or ValueError for an oti_root that cannot be used.
    """
    needed = needs(values["methods"])
    inverted = values["images_to_invert"] if "images_to_invert" in values else images_to_invert(values)
    if notebook == "01_phrases" and not inverted:
        return NOTHING_INVERTED
    if notebook == "03_oti" and not inverted and notebook not in needed:
        return NOTHING_INVERTED
    if notebook in ("04_phi", "05_fti4cir") and notebook not in needed:
        method = next(name for name, of in METHODS.items() if of.needs == notebook)
        return f"methods does not hold {method}"
    if notebook == "07_results" and "validation" not in values["evaluate"]:
        return "evaluate does not hold validation"
    return ""


def needs(methods: Sequence[str]) -> set[str]:
    """Return the notebooks whose words or networks the methods need."""
    return {METHODS[method].needs for method in methods} - {""}


def images_to_invert(values: Mapping) -> list[str]:
    """Return the kinds of images that need concepts and OTI words: "unlabeled" for φ, "references" for SEARLE-OTI.

    References whose words all lie in oti_root need none. Raises as `left_out` does.
    """
    learns = trains_phi(values["methods"], values["phi_checkpoint"])
    lists = [f"{dataset}/{split}/references" for dataset, split in splits(values)]
    lists = lists if "SEARLE-OTI" in values["methods"] else []
    lists_and_unlabeled = lists + [benchmarks.IMAGENET] * learns
    brought = {name: folders.find_tokens(values["oti_root"], name) for name in lists_and_unlabeled}
    return ["unlabeled"] * learns + ["references"] * (not all(brought[name] for name in lists))


def splits(values: Mapping) -> list[tuple[str, str]]:
    """Return the pairs of dataset and split that a study evaluates."""
    return benchmarks.names(values["datasets"], values["evaluate"])


def trains_phi(methods: Sequence[str], phi_checkpoint: str) -> bool:
    """Return whether φ is trained here: SEARLE is among the methods, and phi_checkpoint is "last" or an epoch."""
    return "SEARLE" in methods and is_trained(phi_checkpoint)


def needs_imagenet(values: Mapping) -> bool:
    """Return whether a study learns from the unlabeled pictures: for φ, or for FTI4CIR's network."""
    trains_fti = "FTI4CIR" in values["methods"] and not values["fti_weights"]
    return trains_fti or trains_phi(values["methods"], values["phi_checkpoint"])
