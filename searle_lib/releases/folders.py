"""Where the authors' code keeps the concepts and OTI words of a list of images.

A list of images is "imagenet/test" or a split's references, such as "cirr/val/references".
"""

import re
from pathlib import Path

TOKENS = "ema_oti_pseudo_tokens.pt"


def find_concepts(concepts_root: str, images: str, clip: str) -> Path | None:
    """Return the CSV below similar_concepts/{dataset}/{split} for a list of images and a CLIP, if any.

    Raises FileNotFoundError when the root does not exist, ValueError when there are several.
    """
    files = _below(concepts_root, images, "*_top_*_ensembling_image_texts.csv", "concepts_root")
    of_clip = [path for path in files if _letters(path.name.split("_top_")[0]) == _letters(clip)]
    return _the_single(of_clip, images, "concepts_root")


def find_tokens(oti_root: str, images: str) -> Path | None:
    """Return the experiment's folder below oti_pseudo_tokens/{dataset}/{split} for a list of images, if any.

    Raises likewise.
    """
    file = _the_single(_below(oti_root, images, TOKENS, "oti_root"), images, "oti_root")
    return file and file.parent


def is_trained(phi_checkpoint: str) -> bool:
    """Return whether a phi_checkpoint is of a training, "last" or an epoch, and not a file or a published name."""
    return phi_checkpoint == "last" or phi_checkpoint.isdigit()


def _below(root: str, images: str, pattern: str, parameter: str) -> list[Path]:
    if not root:
        return []
    if not Path(root).is_dir():
        raise FileNotFoundError(f"{parameter} {root} does not exist; correct it, or leave it empty to compute.")
    dataset, split = images.split("/")[:2]
    splits = (split, "test") if split == "test1" else (split,)  # the authors call CIRR's test1 test
    return sorted(path for name in splits for path in (Path(root) / dataset / name).rglob(pattern))


def _the_single(files: list[Path], images: str, parameter: str) -> Path | None:
    if len(files) > 1:
        raise ValueError(f"{parameter} has two of {images}, {files[0]} and {files[1]}; leave one there.")
    return files[0] if files else None


def _letters(name: str) -> str:
    """A CLIP's name without what file names leave out: ViT-B/32 and ViT-B-32 are ViT-B32."""
    return re.sub(r"\W", "", name)
