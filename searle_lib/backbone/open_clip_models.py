"""Load a CLIP of the package open_clip, with the attributes of a CLIP of the clip package, which `model` reads.

Takes the parameter clip_model, and returns what a `Backbone` holds:

    open_clip:ViT-H-14/laion2b_s32b_b79k    an architecture and published weights, which open_clip downloads once
    open_clip:ViT-H-14/weights/mine.pt      an architecture and a file of weights
    open_clip:local-dir:models/mine         a folder with open_clip_config.json and weights

The image tower may be any; it is called as a whole. The text tower must be CLIP's, since `text_tower` computes it.
open_clip is an optional package.
"""

import difflib
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from searle_lib.data.images import Scaling
from searle_lib.store.artefacts import file_sha256
from searle_lib.store.reading import FileRefused, one_sentence

PREFIX, FOLDER = "open_clip:", "local-dir:"
SIZES = ("context_length", "width", "heads", "layers", "mlp_ratio")  # of a text tower; all else must be as in CLIP's
WEIGHTS = (".safetensors", ".bin", ".pth")  # files that open_clip looks for in a folder
AGAIN = "correct clip_model, or download it again"


class LoadedClip(NamedTuple):
    """A CLIP and what belongs to it.

    Args:
        name: for tables and reports.
        sha256: of the weights, and for a CLIP of open_clip of its configuration too.
        model: the CLIP, in float32 on the CPU.
        tokenizer: turns N texts and a number of positions L into ids [N, L].
        scaling: what it expects of its pixels; None: as OpenAI's CLIPs.
    """

    name: str
    sha256: str
    model: nn.Module
    tokenizer: Callable[[list[str], int], Tensor]
    scaling: Scaling | None = None


class OpenClip(nn.Module):
    """A CLIP of open_clip with the attributes of a CLIP of the clip package."""

    def __init__(self, model: nn.Module):
        super().__init__()
        text = getattr(model, "text", model)  # a CustomTextCLIP keeps its text tower apart
        self.visual, self.transformer = model.visual, text.transformer
        self.token_embedding, self.positional_embedding = text.token_embedding, text.positional_embedding
        self.ln_final, self.text_projection = text.ln_final, text.text_projection

    @property
    def dtype(self) -> torch.dtype:
        return self.text_projection.dtype

    def encode_image(self, pixels: Tensor) -> Tensor:
        return self.visual(pixels.to(self.dtype))


def load(clip_model: str, with_weights: bool = True) -> LoadedClip:
    """Load a CLIP of open_clip; without weights, a random one in its shape, whose sha256 is empty.

    Raises:
        ValueError: if open_clip is not installed, the CLIP is not known, the weights do not fit, its text tower is not
            CLIP's, or its images are not square.
        ConnectionError: if published weights cannot be downloaded.
    """
    open_clip, subject = _package(clip_model), f"clip_model {clip_model}"
    source = clip_model.removeprefix(PREFIX)
    architecture, _, weights = (source, "", "") if source.startswith(FOLDER) else source.partition("/")
    with one_sentence(subject, "has no configuration that open_clip can read", AGAIN):
        config = open_clip.get_model_config(architecture)
        if config is None:
            near = _nearest(architecture, open_clip.list_models())
            raise FileRefused(f"{subject}: {architecture} is not among open_clip's models; write {near}.")
        _require_text_tower(subject, config, open_clip.model.CLIPTextCfg)
    published = open_clip.get_pretrained_cfg(architecture, weights)
    is_quick = published.get("quick_gelu", False)
    files = _weights(open_clip, clip_model, architecture, weights) if with_weights else []
    with one_sentence(subject, "does not hold weights that fit", AGAIN):
        model = open_clip.create_model(
            architecture,
            str(files[0]) if files else None,
            load_weights=with_weights,
            require_pretrained=with_weights,
            force_quick_gelu=is_quick,
            force_preprocess_cfg=published,
        )
        pixels = open_clip.get_model_preprocess_cfg(model)
        sides = {*np.atleast_1d(pixels["size"]).tolist()}
        scaling = Scaling(tuple(pixels["mean"]), tuple(pixels["std"]), pixels["interpolation"])
    if len(sides) > 1 or scaling.interpolation not in ("bicubic", "bilinear"):
        raise ValueError(f"{subject} takes images that are not square, or are not resized smoothly; use another CLIP.")
    (model.visual.input_resolution,) = sides
    sha256 = _sha256(files, {"config": config, "is_quick": is_quick, "scaling": scaling}) if files else ""
    name = f"{PREFIX}{architecture}/{weights}" if published else f"{PREFIX}{Path(source).name}"
    return LoadedClip(name, sha256, OpenClip(model), open_clip.get_tokenizer(architecture), scaling)


def _package(clip_model: str) -> Any:
    try:
        import open_clip  # an optional package
    except ImportError as problem:
        raise ValueError(f"clip_model {clip_model} needs open_clip; run: pip install open_clip_torch.") from problem
    return open_clip


def _require_text_tower(subject: str, config: dict, defaults: type) -> None:
    """Raise FileRefused unless a text tower has no other settings than sizes beside those of CLIP's."""
    settings, usual = vars(defaults(**config["text_cfg"])), vars(defaults())
    other = [f"{key} {value}" for key, value in settings.items() if key not in SIZES and value != usual[key]]
    other += ["a multimodal decoder"] if "multimodal_cfg" in config else []
    if other:
        raise FileRefused(
            f"{subject} has a text tower with {', '.join(other[:2])}, which cannot read pseudo-words here; use a CLIP "
            "whose text tower is causal and reads CLIP's tokens, such as open_clip:ViT-B-32/laion2b_s34b_b79k."
        )


def _weights(open_clip: Any, clip_model: str, architecture: str, weights: str) -> Sequence[Path]:
    """Return the files of weights, downloaded if they are published. Raises as `load` does."""
    if architecture.startswith(FOLDER):
        files = sorted(Path(architecture.removeprefix(FOLDER)).iterdir())
        return [file for file in files if file.suffix in WEIGHTS]
    published = open_clip.get_pretrained_cfg(architecture, weights)
    if published:
        try:
            return [Path(open_clip.download_pretrained(published))]
        except Exception as problem:
            reason = " ".join(str(problem).split())[:160].rstrip(".")
            raise ConnectionError(
                f"clip_model {clip_model} cannot be fetched ({reason}); run again with network, or write the path of a "
                f"file with these weights: {PREFIX}{architecture}/FILE."
            ) from problem
    if not Path(weights).is_file():
        near = _nearest(weights, open_clip.list_pretrained_tags_by_model(architecture))
        raise ValueError(
            f"clip_model {clip_model}: {weights!r} is neither a file nor published weights of {architecture}; write "
            f"{near or 'the path of a file'}."
        )
    return [Path(weights)]


def _nearest(name: str, known: Sequence[str]) -> str:
    return " or ".join(difflib.get_close_matches(name, known, 3, 0))


def _sha256(files: Sequence[Path], facts: dict) -> str:
    """Return a hash of weights and configuration, since one file gives other features with another activation."""
    lines = [*map(file_sha256, files), json.dumps(facts, sort_keys=True)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
