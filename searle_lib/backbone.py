"""The frozen CLIP every method stands on: load it, encode images, encode texts with pseudo-words spliced in.

The text tower is CLIP's own weights driven by our loop, because three savings are exact there (design, "Exact
savings"): texts are cut at their end, CLIP's weights never get gradients, and the last block runs its queries
and its MLP for the end-of-text position only.
"""

import contextlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from searle_lib import downloads
from searle_lib.artefacts import file_sha256

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "pkg_resources is deprecated")  # of clip's own import, answered by our pins
    import clip
    from clip.model import CLIP, ResidualAttentionBlock

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

    @property
    def loss_scale(self) -> float:
        """What a loss is multiplied by so that small gradients survive float16; fixed, so that no image's overflow
        changes another's step."""
        return 1024.0 if self.precision == "float16" else 1.0

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
        """The context in which the towers run: mixed precision, or none in float32."""
        kind = PRECISIONS[self.precision]
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


def load(name: str, device: str = "cpu", precision: str = "float32") -> Backbone:
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
    return Backbone(name if published else path.stem, file_sha256(path), model, place, precision)


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
    """In one pass: image embeddings [N, d], and the last block's tokens [N, P, w], class token first, before ln_post.

    For a vision transformer. Source: fti4cir.md, section 2.1.
    """
    visual = backbone.model.visual
    with backbone.autocast():
        x = visual.conv1(pixels.to(backbone.device)).flatten(2).transpose(1, 2)  # [N, P - 1, w]
        x = torch.cat([visual.class_embedding.expand(len(x), 1, -1).to(x.dtype), x], dim=1)
        x = x + visual.positional_embedding
        x = visual.transformer(visual.ln_pre(x).transpose(0, 1)).transpose(0, 1)  # CLIP's blocks take [P, N, w]
        return (visual.ln_post(x[:, 0]) @ visual.proj).float(), x.float()


def tokenize(texts: Sequence[str]) -> Tokens:
    """Token ids of texts; a text of more than 77 tokens is truncated, its end-of-text forced to the last place."""
    ids = clip.tokenize(list(texts), truncate=True)
    ends = ids.argmax(1)  # end-of-text has the largest id
    return Tokens(ids[:, : int(ends.max()) + 1], ends)


def encode_text(
    backbone: Backbone, tokens: Tokens, words: Tensor | None = None, places: Tensor | None = None
) -> Tensor:
    """Text features [N, d] float32, not normalised; gradients flow to the pseudo-words only.

    `words` [N, d_tok] replace the token embeddings at `places` [N] (each text's first "$" unless given).
    """
    ids, ends = tokens.ids.to(backbone.device), tokens.ends.to(backbone.device)
    rows = torch.arange(len(ids), device=backbone.device)
    embeddings = backbone.model.token_embedding(ids)  # [N, L, d_tok]
    if words is not None:
        places = (tokens.placeholders if places is None else places).to(backbone.device)
        embeddings = embeddings.index_put((rows, places), words.to(embeddings.dtype))
    return encode_embedded(backbone, embeddings, ends)


def encode_embedded(backbone: Backbone, embeddings: Tensor, ends: Tensor) -> Tensor:
    """Text features [N, d] float32 of token embeddings [N, L, d_tok] whose texts end at ends [N]."""
    with backbone.autocast():
        return _text_tower(backbone.model, embeddings, ends).float()


@torch.no_grad()
def encode_texts(
    backbone: Backbone, texts: Sequence[str], batch_size: int = 512, words: Tensor | None = None
) -> Tensor:
    """Text features [N, d] float32 of any number of texts, encoded in batches of like length, in the order given."""
    if not texts:
        return torch.empty(0, backbone.dimension)
    tokens = tokenize(texts)
    return encode_tokens(backbone, tokens, batch_size, words)


@torch.no_grad()
def encode_tokens(backbone: Backbone, tokens: Tokens, batch_size: int = 512, words: Tensor | None = None) -> Tensor:
    """As encode_texts, of texts already tokenized."""
    features = torch.empty(len(tokens), backbone.dimension)
    places = None if words is None else tokens.placeholders
    for rows in tokens.ends.argsort(stable=True).split(batch_size):
        spliced = () if words is None else (words[rows].to(backbone.device), places[rows])
        features[rows] = encode_text(backbone, tokens[rows], *spliced).cpu()
    return features


def _text_tower(model: CLIP, embeddings: Tensor, ends: Tensor) -> Tensor:
    length = embeddings.shape[1]
    x = embeddings + model.positional_embedding[:length]
    *blocks, last = model.transformer.resblocks
    for block in blocks:
        x = _block(block, x)
    x = _last_block(last, x, ends)
    return model.ln_final(x) @ model.text_projection


def _block(block: ResidualAttentionBlock, x: Tensor) -> Tensor:
    """One residual block under the causal mask, [N, L, w] -> [N, L, w]."""
    attention = block.attn
    heads = attention.num_heads
    qkv = F.linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)
    q, k, v = (_heads(part, heads) for part in qkv.chunk(3, dim=-1))  # each [N, h, L, w/h]
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)  # [N, L, w]
    x = x + attention.out_proj(mixed)
    return x + block.mlp(block.ln_2(x))


def _last_block(block: ResidualAttentionBlock, x: Tensor, ends: Tensor) -> Tensor:
    """The last residual block at each text's end-of-text position only, [N, L, w] -> [N, w]."""
    attention = block.attn
    heads, width = attention.num_heads, x.shape[-1]
    rows = torch.arange(len(x), device=x.device)
    normed = block.ln_1(x)
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    q = F.linear(normed[rows, ends], weight[:width], bias[:width]).unsqueeze(1)  # [N, 1, w]
    k, v = F.linear(normed, weight[width:], bias[width:]).chunk(2, dim=-1)
    seen = torch.arange(x.shape[1], device=x.device) <= ends.unsqueeze(1)  # [N, L]
    q, k, v = (_heads(part, heads) for part in (q, k, v))
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None, None, :])  # [N, h, 1, w/h]
    y = x[rows, ends] + attention.out_proj(mixed.transpose(1, 2).flatten(2).squeeze(1))
    return y + block.mlp(block.ln_2(y))


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)  # [N, L, w] -> [N, h, L, w/h]
