"""Load the frozen CLIP that every method uses, tokenize texts, and encode pixels.

Takes a name or file and returns a `Backbone`; takes pixels and returns image embeddings and patch tokens. `texts`
encodes texts. CLIP's weights never get gradients.
"""

import contextlib
import copy
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from searle_lib.backbone import open_clip_models, text_tower
from searle_lib.backbone.open_clip_models import LoadedClip
from searle_lib.data.images import Scaling
from searle_lib.releases import downloads
from searle_lib.store.artefacts import file_sha256, write_json
from searle_lib.store.records import Study

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "pkg_resources is deprecated")  # clip imports it; our pins keep it
    import clip

PLACEHOLDER = 259  # CLIP's token id of "$" as a word of its own
CONTEXT = 77
CACHE = Path("~/.cache/clip")  # the folder that clip.load uses
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
OPENAI = partial(clip.tokenize, truncate=True)  # the tokenizer of OpenAI's CLIPs


@dataclass(frozen=True)
class Backbone:
    """A CLIP whose weights are float32 and never get gradients.

    Args:
        name: CLIP's published name, or the stem of its file; "open_clip:..." for a CLIP of open_clip.
        sha256: of the file.
        model: the CLIP of the clip package, or one of open_clip with its attributes.
        device: where the model is.
        precision: the type that the towers compute in, a key of PRECISIONS.
        preprocess: how images become pixels, one of images.PREPROCESSINGS.
        source: what `load_clip` got; a worker of another process gets this, and not the weights.
        tokenizer: turns N texts and a number of positions L into ids [N, L].
        scaling: what the CLIP expects of its pixels; None: as OpenAI's CLIPs.
    """

    name: str
    sha256: str
    model: nn.Module
    device: torch.device
    precision: str = "float32"
    preprocess: str = "targetpad"
    source: tuple[str, ...] = ()
    tokenizer: Callable[[list[str], int], Tensor] = OPENAI
    scaling: Scaling | None = None

    def __reduce__(self) -> tuple:
        return _load_same, (self.source, self.sha256)

    @property
    def loss_scale(self) -> float:
        """The factor of a loss that keeps small gradients alive in float16.

        It is fixed, so that the overflow of one image does not change the step of another.
        """
        return 1024.0 if self.precision == "float16" else 1.0

    @cached_property
    def tower(self) -> text_tower.Tower:
        """The text tower, with linear weights in the type of the precision."""
        return text_tower.tower_of(self.model, PRECISIONS.get(self.precision) or self.model.dtype)

    @cached_property
    def exact(self) -> "Backbone":
        """The same CLIP in float64, for results that must not depend on a processor's rounding.

        Unless the precision is float32 and the device a CPU, this CLIP itself: MPS has no float64, and most GPUs are
        many times slower in it.
        """
        if (self.device.type, self.precision) != ("cpu", "float32"):
            return self
        model = copy.deepcopy(self.model).double()
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.__class__ = nn.LayerNorm  # CLIP's subclass always computes in float32
        return replace(self, model=model, precision="float64")

    @property
    def width(self) -> int:
        """Width d_tok of a token embedding and of a pseudo-word."""
        return self.model.token_embedding.embedding_dim

    @property
    def dimension(self) -> int:
        """Dimension d of the joint space."""
        return self.model.text_projection.shape[1]

    @property
    def context(self) -> int:
        """The most tokens of a text."""
        return self.model.positional_embedding.shape[0]

    @property
    def patch_width(self) -> int:
        """Width of a patch token."""
        return self.model.visual.conv1.out_channels

    @property
    def patch_count(self) -> int:
        """Number P of patch tokens of an image, the class token included; 0 unless the class token is the embedding."""
        visual = self.model.visual
        pools_token = getattr(visual, "pool_type", "tok") == "tok" and getattr(visual, "attn_pool", None) is None
        return len(visual.positional_embedding) if hasattr(visual, "class_embedding") and pools_token else 0

    @property
    def pixel_form(self) -> tuple[int, str, Scaling | None]:
        """How an image becomes pixels: the arguments of `images.to_pixels` after the image."""
        return self.resolution, self.preprocess, self.scaling

    @property
    def resolution(self) -> int:
        """Side of the square input image, in pixels."""
        return self.model.visual.input_resolution

    def tokenize(self, texts: Sequence[str]) -> "Tokens":
        """Tokenize texts. A longer text than `context` is truncated, and the last of its tokens is the end-of-text."""
        return tokenize(texts, self.context, self.tokenizer)

    def autocast(self) -> contextlib.AbstractContextManager:
        """Return the context for the image tower: mixed precision, or an empty context in float32."""
        dtype = PRECISIONS.get(self.precision)
        return torch.autocast(self.device.type, dtype) if dtype else contextlib.nullcontext()


@dataclass(frozen=True)
class Tokens:
    """N tokenized texts.

    Args:
        ids: [N, L] int64, where L is the length of the longest text.
        ends: [N] int64, the position of each end-of-text.
    """

    ids: Tensor
    ends: Tensor

    def __getitem__(self, rows) -> "Tokens":
        ends = self.ends[rows]
        return Tokens(self.ids[rows][:, : int(ends.max()) + 1], ends)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def placeholders(self) -> Tensor:
        """Position [N] of the first "$" of each text. Raises ValueError for a text without "$"."""
        is_placeholder = self.ids == PLACEHOLDER
        if not is_placeholder.any(1).all():
            row = int((~is_placeholder.any(1)).nonzero()[0])
            raise ValueError(
                f"text {row} of {len(self)} has no $ among the tokens that CLIP reads; put ' $ ' where the pseudo-word "
                "belongs."
            )
        return is_placeholder.int().argmax(1)


def load_clip(name: str, device: str = "cpu", precision: str = "float32", preprocess: str = "targetpad") -> Backbone:
    """Load a CLIP: by its published name, downloaded once; from a file that clip.load opens; or "open_clip:...".

    `open_clip_models` says what may follow "open_clip:".

    Raises:
        ValueError: if the name is neither published nor a file, the file does not hold CLIP weights, the precision is
            unknown, or this machine does not have the device; and as `open_clip_models.load` does.
        ConnectionError: if a published CLIP cannot be downloaded.
    """
    torch_device = find_device(device)
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision}; it must be {' or '.join(PRECISIONS)}.")
    loaded = open_clip_models.load(name) if name.startswith(open_clip_models.PREFIX) else _load_of_openai(name)
    return of_loaded(loaded, torch_device, precision, preprocess, (name, torch_device.type, precision, preprocess))


def of_loaded(
    loaded: LoadedClip, device: torch.device, precision: str, preprocess: str, source: tuple[str, ...] = ()
) -> Backbone:
    """Return the backbone of a CLIP, frozen, on a device; the arguments are those of `Backbone`."""
    model = loaded.model.float().eval().requires_grad_(False).to(device)
    belongings = loaded.tokenizer, loaded.scaling
    return Backbone(loaded.name, loaded.sha256, model, device, precision, preprocess, source, *belongings)


def _load_of_openai(name: str) -> LoadedClip:
    """Load a CLIP of the clip package. Raises as `load_clip` does."""
    published = name in clip.available_models()
    path = Path(name)
    if not published and not path.is_file():
        raise ValueError(
            f"clip_model {name} is neither a file nor one of CLIP's names ({', '.join(clip.available_models())}); "
            "correct clip_model."
        )
    if published:  # clip.load could download it too, but cannot resume a broken download
        url = clip.clip._MODELS[name]
        path = downloads.fetch(url, CACHE.expanduser() / Path(url).name, sha256=url.split("/")[-2])
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated")
            model, _ = clip.load(name, device="cpu")
    except Exception as problem:
        reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise ValueError(
            f"clip_model {name} does not hold CLIP weights ({type(problem).__name__}: {reason[:120]}); download it "
            "again, or correct clip_model."
        ) from problem
    return LoadedClip(name if published else path.stem, file_sha256(path), model, OPENAI)


def keep_clip(study: Study, backbone: Backbone) -> None:
    """Record which CLIP a study uses, for `read_clip` in later notebooks."""
    facts = {"name": backbone.name, "sha256": backbone.sha256}
    study.keep("clip", facts, lambda folder: write_json(folder / "clip.json", facts))


def clip_facts(study: Study) -> dict[str, str]:
    """Return the name of a study's CLIP and the sha256 of its weights, without loading it."""
    return study.artefact("02_concepts", "clip").read(lambda folder: json.loads((folder / "clip.json").read_text()))


def read_clip(study: Study, device: str) -> Backbone:
    """Load the CLIP that 02_concepts used. Raises ValueError if its file has changed since."""
    values = study.settings("02_concepts")
    backbone = load_clip(study.path(values["clip_model"]), device, values["precision"], values["preprocess"])
    if backbone.sha256 != clip_facts(study)["sha256"]:
        raise ValueError(
            f"the weights of clip_model {values['clip_model']} have changed since 02_concepts ran; run it again."
        )
    return backbone


@lru_cache(maxsize=1)
def _load_same(source: tuple[str, ...], sha256: str) -> Backbone:
    """Load, in the process of a worker, the CLIP that the driver has. Raises ValueError if its weights differ."""
    backbone = load_clip(*source)
    if backbone.sha256 != sha256:
        raise ValueError(
            f"clip_model {source[0]} has other weights here (sha256 {backbone.sha256[:12]}, not {sha256[:12]}); "
            "copy the file that the notebook uses to this place."
        )
    return backbone


def find_device(name: str) -> torch.device:
    """Return the device of a name, for "auto" the fastest kind. Raises ValueError if this machine does not have it."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(name.split(":")[0], False):
        raise ValueError(f"device {name} is not available on this machine; set device to cpu or auto.")
    return torch.device(name)


@torch.no_grad()
def encode_images(backbone: Backbone, pixels: Tensor) -> Tensor:
    """Encode preprocessed pixels [N, 3, n, n] into image embeddings [N, d] float32, not normalised."""
    with backbone.autocast():
        return backbone.model.encode_image(pixels.to(backbone.device)).float()


@torch.no_grad()
def encode_patches(backbone: Backbone, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Encode pixels [N, 3, n, n] by a vision transformer into image embeddings and patch tokens, in one pass.

    Returns:
        [N, d], not normalised, and the last block's tokens [N, P, w] before ln_post, class token first; both in the
        type of CLIP's weights. Source: FTI4CIR section 3.
    """
    visual, dtype = backbone.model.visual, backbone.model.dtype
    with backbone.autocast():
        x = visual.conv1(pixels.to(backbone.device, dtype)).flatten(2).transpose(1, 2)  # [N, P - 1, w]
        x = torch.cat([visual.class_embedding.expand(len(x), 1, -1).to(x.dtype), x], dim=1)
        x = x + visual.positional_embedding
        x = visual.ln_pre(x)
        if getattr(visual.transformer, "batch_first", False):  # of open_clip
            x = visual.transformer(x)
        else:  # OpenAI's blocks take [P, N, w]
            x = visual.transformer(x.transpose(0, 1)).transpose(0, 1)
        return (visual.ln_post(x[:, 0]) @ visual.proj).to(dtype), x.to(dtype)


def tokenize(
    texts: Sequence[str], context: int = CONTEXT, tokenizer: Callable[[list[str], int], Tensor] = OPENAI
) -> Tokens:
    """Tokenize texts as `Backbone.tokenize` does, by default for OpenAI's CLIPs."""
    ids = tokenizer(list(texts), context)
    ends = ids.argmax(1)  # end-of-text has the largest id
    return Tokens(ids[:, : int(ends.max()) + 1], ends)


def join_tokens(*parts: Tokens) -> Tokens:
    """Concatenate lists of tokenized texts."""
    longest = max(part.ids.shape[1] for part in parts)
    ids = [F.pad(part.ids, (0, longest - part.ids.shape[1])) for part in parts]
    return Tokens(torch.cat(ids), torch.cat([part.ends for part in parts]))
