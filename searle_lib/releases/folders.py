"""Find the concepts and OTI pseudo-words of a list of images in the folders of the authors' code.

Takes a root folder and the name of a list, "imagenet/test" or a split's references, such as "cirr/val/references".
Returns paths, and None if the root is empty or holds nothing for the list.
"""

import re
from pathlib import Path

TOKENS = "ema_oti_pseudo_tokens.pt"


def find_concepts(concepts_root: str, list_name: str, clip: str) -> Path | None:
    """Return the CSV of concepts below {dataset}/{split} for a list of images and a CLIP.

    Raises:
        FileNotFoundError: if the root does not exist.
        ValueError: if there are several files.
    """
    files = _find_files(concepts_root, list_name, "*_top_*_ensembling_image_texts.csv", "concepts_root")
    of_clip = [path for path in files if _letters(path.name.split("_top_")[0]) == _letters(clip)]
    return _the_single(of_clip, list_name, "concepts_root")


def find_tokens(oti_root: str, list_name: str) -> Path | None:
    """Return the experiment's folder below {dataset}/{split} for a list of images. Raises as `find_concepts` does."""
    file = _the_single(_find_files(oti_root, list_name, TOKENS, "oti_root"), list_name, "oti_root")
    return file and file.parent


def is_trained(phi_checkpoint: str) -> bool:
    """Return whether a phi_checkpoint means a training here ("last" or an epoch), not a file or a published name."""
    return phi_checkpoint == "last" or phi_checkpoint.isdigit()


def _find_files(root: str, list_name: str, pattern: str, parameter: str) -> list[Path]:
    if not root:
        return []
    if not Path(root).is_dir():
        raise FileNotFoundError(f"{parameter} {root} does not exist; correct it, or leave it empty to compute.")
    dataset, split = list_name.split("/")[:2]
    splits = (split, "test") if split == "test1" else (split,)  # the authors call CIRR's test1 test
    paths = (path for name in splits for path in (Path(root) / dataset / name).rglob(pattern))
    return sorted(path for path in paths if path.is_file())


def _the_single(files: list[Path], list_name: str, parameter: str) -> Path | None:
    if len(files) > 1:
        raise ValueError(f"{parameter} has two files for {list_name}, {files[0]} and {files[1]}; remove one of them.")
    return files[0] if files else None


def _letters(name: str) -> str:
    """A CLIP's name without punctuation, as file names differ in it: ViT-B/32 and ViT-B-32 become ViTB32."""
    return re.sub(r"\W", "", name)
