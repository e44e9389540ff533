"""The frozen CLIP every method stands on: load it, encode images and tokenized texts.

The text tower is CLIP's own weights driven by `text_tower`; CLIP's weights never get gradients. Texts with a
pseudo-word in them are read by `texts`.
"""

import contextlib
import copy
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from searle_lib.backbone import packed_attention, text_tower
from searle_lib.releases import downloads
from searle_lib.store.artefacts import file_sha256, write_json
from searle_lib.store.records import Study

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "pkg_resources is deprecated")  # of clip's own import, answered by our pins
    import clip
    from clip.model import CLIP

PLACEHOLDER = 259  # CLIP's token id of "$" as a word of its own
CONTEXT = 77
CACHE = Path("~/.cache/clip")  # where clip.load looks
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Backbone:
    """A CLIP in float32 whose weights never get gradients, with the sha256 of the file it came from."""

    name: str
    sha256: str
    model: CLIP
    device: torch.device
    precision: str = "float32"
    preprocess: str = "targetpad"  # how images become its pixels: one of images.PREPROCESSINGS

    @property
    def loss_scale(self) -> float:
        """What a loss is multiplied by so that small gradients survive float16; fixed, so that no image's overflow
        changes another's step."""
        return 1024.0 if self.precision == "float16" else 1.0

    @cached_property
    def tower(self) -> text_tower.Tower:
        """The text tower, its linear weights in the type that the precision asks for."""
        return text_tower.tower_of(self.model, PRECISIONS.get(self.precision) or self.model.dtype)

    @cached_property
    def exact(self) -> "Backbone":
        """The same CLIP in float64, for what must not depend on how a processor rounds; itself unless float32 on a CPU.

        A training in half precision does not ask for it, MPS has no float64, and most GPUs are many times slower in it.
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
        """Width of a token embedding, and so of a pseudo-word."""
        return self.model.token_embedding.embedding_dim

    @property
    def dimension(self) -> int:
        """Dimension of the joint space."""
        return self.model.text_projection.shape[1]

    @property
    def patch_width(self) -> int:
        """Width of a patch token."""
        return self.model.visual.conv1.out_channels

    @property
    def resolution(self) -> int:
        """Side of the square input image in pixels."""
        return self.model.visual.input_resolution

    def autocast(self) -> contextlib.AbstractContextManager:
        """The context in which the image tower runs: mixed precision, or none in float32."""
        kind = PRECISIONS.get(self.precision)
        return torch.autocast(self.device.type, kind) if kind else contextlib.nullcontext()


@dataclass(frozen=True)
class Tokens:
    """Tokenized texts: ids [N, L] int64 cut behind the longest text, and each end-of-text position, ends [N]."""

    ids: Tensor
    ends: Tensor

    def __getitem__(self, rows) -> "Tokens":
        ends = self.ends[rows]
        return Tokens(self.ids[rows][:, : int(ends.max()) + 1], ends)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def placeholders(self) -> Tensor:
        """Position [N] of the first "$" of each text. Raises ValueError for a text without one."""
        found = self.ids == PLACEHOLDER
        if not found.any(1).all():
            row = int((~found.any(1)).nonzero()[0])
            raise ValueError(
                f"text {row} of {len(self)} has no $ among its first {CONTEXT} tokens; put ' $ ' where the "
                "pseudo-word belongs."
            )
        return found.int().argmax(1)


def load_clip(name: str, device: str = "cpu", precision: str = "float32", preprocess: str = "targetpad") -> Backbone:
    """A CLIP by its published name (fetched by the clip package) or from a file that clip.load opens.

    Raises ValueError, in one sentence, for a name that is neither, for a file that holds no CLIP weights, and for
    a device that this machine lacks; ConnectionError when a published one cannot be fetched.
    """
    published = name in clip.available_models()
    path = Path(name)
    if not published and not path.is_file():
        raise ValueError(
            f"clip_model {name} is neither a file nor one of CLIP's names ({', '.join(clip.available_models())}); "
            "correct clip_model."
        )
    place = find_device(device)
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision}; it must be {' or '.join(PRECISIONS)}.")
    if published:  # clip.load would fetch it too, but not go on with what was cut off
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
    model = model.float().eval().requires_grad_(False).to(place)
    return Backbone(name if published else path.stem, file_sha256(path), model, place, precision, preprocess)


def keep_clip(study: Study, backbone: Backbone) -> None:
    """Keep which CLIP a study uses, for the notebooks that `read` it."""
    facts = {"name": backbone.name, "sha256": backbone.sha256}
    study.keep("clip", facts, lambda folder: write_json(folder / "clip.json", facts))


def clip_facts(study: Study) -> dict[str, str]:
    """Return the name of a study's CLIP and the sha256 of its weights, without loading it."""
    return study.artefact("02_concepts", "clip").read(lambda folder: json.loads((folder / "clip.json").read_text()))


def read_clip(study: Study, device: str) -> Backbone:
    """Load the CLIP that 02_concepts decided on. Raises ValueError when its file holds other weights by now."""
    values = study.settings("02_concepts")
    backbone = load_clip(study.path(values["clip_model"]), device, values["precision"], values["preprocess"])
    if backbone.sha256 != clip_facts(study)["sha256"]:
        raise ValueError(
            f"clip_model {values['clip_model']} is another file than 02_concepts read; run 02_concepts again."
        )
    return backbone


def find_device(name: str) -> torch.device:
    """The device of that name, or with "auto" the best there is. Raises ValueError when this machine lacks it."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(name.split(":")[0], False):
        raise ValueError(f"device {name} is not available on this machine; set device to cpu or auto.")
    return torch.device(name)


@torch.no_grad()
def encode_images(backbone: Backbone, pixels: Tensor) -> Tensor:
    """Image embeddings [N, d] float32, not normalised, of preprocessed pixels [N, 3, n, n]."""
    with backbone.autocast():
        return backbone.model.encode_image(pixels.to(backbone.device)).float()


@torch.no_grad()
def encode_patches(backbone: Backbone, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """In one pass: image embeddings [N, d], and the last block's tokens [N, P, w], class token first, before ln_post;
    both in the type of CLIP's weights.

    For a vision transformer. Source: fti4cir.md, section 2.1.
    """
    visual, kind = backbone.model.visual, backbone.model.dtype
    with backbone.autocast():
        x = visual.conv1(pixels.to(backbone.device, kind)).flatten(2).transpose(1, 2)  # [N, P - 1, w]
        x = torch.cat([visual.class_embedding.expand(len(x), 1, -1).to(x.dtype), x], dim=1)
        x = x + visual.positional_embedding
        x = visual.transformer(visual.ln_pre(x).transpose(0, 1)).transpose(0, 1)  # CLIP's blocks take [P, N, w]
        return (visual.ln_post(x[:, 0]) @ visual.proj).to(kind), x.to(kind)


def tokenize(texts: Sequence[str]) -> Tokens:
    """Token ids of texts; a text of more than 77 tokens is truncated, its end-of-text forced to the last place."""
    ids = clip.tokenize(list(texts), truncate=True)
    ends = ids.argmax(1)  # end-of-text has the largest id
    return Tokens(ids[:, : int(ends.max()) + 1], ends)


def joined(*parts: Tokens) -> Tokens:
    """Tokenized texts of several lists as one."""
    longest = max(part.ids.shape[1] for part in parts)
    ids = [F.pad(part.ids, (0, longest - part.ids.shape[1])) for part in parts]
    return Tokens(torch.cat(ids), torch.cat([part.ends for part in parts]))


def encode_embedded(backbone: Backbone, embeddings: Tensor, ends: Tensor, same: int = 0) -> Tensor:
    """Text features [N, d] float32 of token embeddings [N, L, d_tok] whose texts end at ends [N].

    All texts begin with the `same` tokens, so many of them, which are read once and get no gradients.
    """
    count, length = embeddings.shape[:2]
    x = embeddings + backbone.model.positional_embedding[:length]
    prefix, layout = None, packed_attention.padded(length - same, ends - same)
    rows = x[:, same:].flatten(0, 1)  # [N * (L - same), d_tok]
    if x.device.type == "cpu" and count:  # elsewhere packing would make the device tell the host its ends
        layout = packed_attention.packed(ends - same, x.device)
        rows = x[:, same : same + layout.longest].flatten(0, 1).index_select(0, layout.places)
    if same and count:
        pairs = text_tower.prefix_pairs(backbone.tower, x[:1, :same].detach())
        every = torch.zeros(count, dtype=torch.int64, device=x.device)
        prefix = packed_attention.Prefix(pairs, torch.full((1,), same, device=x.device), every)
    return text_tower.features(backbone.tower, rows, [layout], [prefix])


def encode_plain(backbone: Backbone, tokens: Tokens) -> Tensor:
    """Text features [N, d] float32, not normalised, of texts as they are."""
    device, length = backbone.device, tokens.ids.shape[1]
    layout = packed_attention.packed(tokens.ends, device)
    ids, positions = tokens.ids.flatten().to(device), torch.arange(length, device=device).repeat(len(tokens))
    ids, positions = ids[layout.places], positions[layout.places]
    x = backbone.model.token_embedding(ids) + backbone.model.positional_embedding[positions]
    return text_tower.features(backbone.tower, x, [layout], [None])
