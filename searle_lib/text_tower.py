"""CLIP's text tower, driven without what nobody reads (design, "Exact savings in CLIP's text tower").

Attention is causal and only the end-of-text position is read. So tokens behind it are left out, tokens of all texts lie
packed in one row after another, and the last block runs queries and MLP for the end-of-text position alone. What
stands before a placeholder is the same whatever replaces it: its keys and values are computed once, without gradients.
All of it is exact; CLIP's own forward pass over 77 positions is what the tests hold it to.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

QUICK = 1.702  # of CLIP's QuickGELU, x sigmoid(1.702 x) = silu(1.702 x) / 1.702: folded into the weights around it
Linear = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Block:
    """The weights of one residual block; `up` gives 1.702 times what CLIP's does, and `down` takes that."""

    before_attention: Linear
    qkv: Linear
    out: Linear
    before_mlp: Linear
    up: Linear
    down: Linear


@dataclass(frozen=True)
class Tower:
    """The text tower with its linear weights in one type; the residual stream and all norms are float32."""

    blocks: tuple[Block, ...]
    heads: int
    last: Linear
    projection: Tensor
    kind: torch.dtype


@dataclass(frozen=True)
class Layout:
    """Where the tokens of N texts, each of at most `longest`, lie among T packed rows.

    places [T] is each row's place in the padded [N * longest] and rows [N * longest] the other way round, any row where
    there is no token; both None where all texts are padded. ends [N] is each text's last position, last [N] its row.
    """

    texts: int
    longest: int
    places: Tensor | None
    rows: Tensor | None
    ends: Tensor
    last: Tensor

    @property
    def size(self) -> int:
        """How many rows there are, T."""
        return self.texts * self.longest if self.places is None else len(self.places)


@dataclass(frozen=True)
class Prefix:
    """Keys and values of P prefixes, a pair [P, h, Lp, w / h] a block, the prefixes' lengths [P], and which of them
    stands before each text, [N]."""

    pairs: tuple[tuple[Tensor, Tensor], ...]
    lengths: Tensor
    which: Tensor


def tower_of(model: nn.Module, kind: torch.dtype = torch.float32) -> Tower:
    """The tower of a CLIP of clip.model, its linear weights as `kind`."""
    return Tower(
        tuple(_block(block, kind) for block in model.transformer.resblocks),
        model.transformer.resblocks[0].attn.num_heads,
        (model.ln_final.weight, model.ln_final.bias),
        model.text_projection,
        kind,
    )


def packed(ends: Tensor, device: torch.device) -> Layout:
    """The layout of texts that end at positions ends [N], on the CPU, with no row for what stands behind."""
    longest = int(ends.max()) + 1
    there = torch.arange(longest) <= ends.unsqueeze(1)  # [N, longest]
    last, places, rows = (ends + 1).cumsum(0) - 1, None, None
    if not there.all():
        places = there.flatten().nonzero().squeeze(1).to(device, non_blocking=True)
        rows = (there.flatten().cumsum(0) - 1).to(device, non_blocking=True)
    return Layout(len(ends), longest, places, rows, ends.to(device), last.to(device))


def padded(longest: int, ends: Tensor) -> Layout:
    """The layout of texts [N, longest] that end at positions ends [N], on any device and without asking it."""
    last = torch.arange(len(ends), device=ends.device) * longest + ends
    return Layout(len(ends), longest, None, None, ends, last)


def features(tower: Tower, x: Tensor, layouts: Sequence[Layout], prefixes: Sequence[Prefix | None]) -> Tensor:
    """Text features [N, d] float32, not normalised, of packed embeddings [T, w] with their positions added.

    The texts may be several groups of unlike length, each with its layout and prefix: attention pads within a group.
    """
    sizes = [layout.size for layout in layouts]
    hidden = [_hidden(layout, prefix) for layout, prefix in zip(layouts, prefixes, strict=True)]
    for number, block in enumerate(tower.blocks[:-1]):
        normed = F.layer_norm(x, x.shape[-1:], *block.before_attention).to(tower.kind)
        mixed = []
        for qkv, layout, prefix, mask in zip(
            F.linear(normed, *block.qkv).split(sizes), layouts, prefixes, hidden, strict=True
        ):
            q, k, v = (_heads(part, tower.heads) for part in _padded(qkv, layout).chunk(3, dim=-1))
            k, v = _behind(prefix, number, k, v)
            mixed.append(_unpadded(_attend(q, k, v, mask).transpose(1, 2).flatten(2), layout))  # [T, w]
        x = _mlp(tower, block, x + F.linear(torch.cat(mixed), *block.out))
    ended = [_last(tower, *group) for group in zip(x.split(sizes), layouts, prefixes, strict=True)]
    return F.layer_norm(torch.cat(ended), x.shape[-1:], *tower.last) @ tower.projection


@torch.no_grad()
def prefix_pairs(tower: Tower, x: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
    """Keys and values [P, h, Lp, w / h] of every block for prefixes [P, Lp, w] with their positions added."""
    layout, pairs = padded(x.shape[1], torch.full((len(x),), x.shape[1] - 1, device=x.device)), []
    hidden, x = _hidden(layout, None), x.flatten(0, 1)
    for block in tower.blocks:
        normed = F.layer_norm(x, x.shape[-1:], *block.before_attention).to(tower.kind)
        qkv = _padded(F.linear(normed, *block.qkv), layout)  # [P, Lp, 3 w]
        q, k, v = (_heads(part, tower.heads) for part in qkv.chunk(3, dim=-1))
        pairs.append((k.contiguous(), v.contiguous()))
        mixed = _attend(q, k, v, hidden).transpose(1, 2).flatten(2).flatten(0, 1)
        x = _mlp(tower, block, x + F.linear(mixed, *block.out))
    return tuple(pairs)


def _last(tower: Tower, x: Tensor, layout: Layout, prefix: Prefix | None) -> Tensor:
    """The last block at each text's end alone, [T, w] -> [N, w]."""
    block, width = tower.blocks[-1], x.shape[-1]
    normed = F.layer_norm(x, (width,), *block.before_attention).to(tower.kind)
    weight, bias = block.qkv
    q = _heads(F.linear(normed[layout.last], weight[:width], bias[:width]).unsqueeze(1), tower.heads)  # [N, h, 1, w/h]
    pairs = _padded(F.linear(normed, weight[width:], bias[width:]), layout)
    k, v = (_heads(part, tower.heads) for part in pairs.chunk(2, dim=-1))
    k, v = _behind(prefix, len(tower.blocks) - 1, k, v)
    seen = torch.arange(layout.longest, device=x.device) <= layout.ends.unsqueeze(1)  # [N, longest]
    if prefix is not None:
        seen = torch.cat([_prefix_seen(prefix), seen], dim=1)
    hidden = torch.zeros_like(seen, dtype=tower.kind).masked_fill(~seen, float("-inf"))
    mixed = _attend(q, k, v, hidden[:, None, None, :]).reshape(layout.texts, width)
    return _mlp(tower, block, x[layout.last] + F.linear(mixed, *block.out))


def _mlp(tower: Tower, block: Block, x: Tensor) -> Tensor:
    normed = F.layer_norm(x, x.shape[-1:], *block.before_mlp).to(tower.kind)
    return x + F.linear(F.silu(F.linear(normed, *block.up)), *block.down)


def _attend(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> Tensor:
    """Attention [N, h, Lq, w / h]; hidden is added to the scores, -inf where a key may not be seen."""
    if q.dtype != torch.float32 and q.device.type == "cpu":  # there the fused kernel's backward is slow
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + hidden.to(q.dtype)
        return scores.softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=hidden.to(q.dtype))


def _hidden(layout: Layout, prefix: Prefix | None) -> Tensor:
    """What hides later tokens of a text and the padding of prefixes: [1 or N, 1, longest, Lp + longest]."""
    device = layout.ends.device
    causal = torch.full((layout.longest, layout.longest), float("-inf"), device=device).triu(1)[None, None]
    if prefix is None:
        return causal
    seen = _prefix_seen(prefix)
    before = torch.zeros(seen.shape, device=device).masked_fill(~seen, float("-inf"))[:, None, None, :]  # [N, 1, 1, Lp]
    if prefix.pairs[0][0].shape[0] == 1:  # one prefix for all texts
        before = before[:1]
    before = before.expand(-1, 1, layout.longest, -1)
    return torch.cat([before, causal.expand(len(before), -1, -1, -1)], dim=-1)


def _prefix_seen(prefix: Prefix) -> Tensor:
    length = prefix.pairs[0][0].shape[2]
    return torch.arange(length, device=prefix.which.device) < prefix.lengths[prefix.which].unsqueeze(1)  # [N, Lp]


def _behind(prefix: Prefix | None, number: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    if prefix is None:
        return k, v
    return tuple(
        torch.cat([kept[prefix.which], own], dim=2) for kept, own in zip(prefix.pairs[number], (k, v), strict=True)
    )


def _padded(x: Tensor, layout: Layout) -> Tensor:
    """Packed rows [T, c] to [N, longest, c]; what stands where there is no token is read by nobody."""
    x = x if layout.places is None else _Pad.apply(x, layout.places, layout.rows)
    return x.view(layout.texts, layout.longest, -1)


def _unpadded(x: Tensor, layout: Layout) -> Tensor:
    x = x.reshape(layout.texts * layout.longest, -1)
    return x if layout.places is None else _Unpad.apply(x, layout.places)


class _Pad(torch.autograd.Function):
    """Rows to their places; the gradient of places without a token is zero, so going back is choosing rows too."""

    @staticmethod
    def forward(context, x: Tensor, places: Tensor, rows: Tensor) -> Tensor:
        context.save_for_backward(places)
        return x.index_select(0, rows)

    @staticmethod
    def backward(context, gradient: Tensor):
        return gradient.index_select(0, *context.saved_tensors), None, None


class _Unpad(torch.autograd.Function):
    """Places to rows; no two rows come from one place, so going back needs no adding up."""

    @staticmethod
    def forward(context, x: Tensor, places: Tensor) -> Tensor:
        context.save_for_backward(places)
        context.size = len(x)
        return x.index_select(0, places)

    @staticmethod
    def backward(context, gradient: Tensor):
        back = gradient.new_zeros(context.size, gradient.shape[1])
        return back.index_copy_(0, *context.saved_tensors, gradient), None


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)  # [N, L, w] -> [N, h, L, w / h]


def _block(block: nn.Module, kind: torch.dtype) -> Block:
    attention, mlp = block.attn, block.mlp
    up, down = mlp.c_fc, mlp.c_proj
    return Block(
        before_attention=(block.ln_1.weight, block.ln_1.bias),
        qkv=_as(kind, attention.in_proj_weight, attention.in_proj_bias),
        out=_as(kind, attention.out_proj.weight, attention.out_proj.bias),
        before_mlp=(block.ln_2.weight, block.ln_2.bias),
        up=_as(kind, up.weight * QUICK, up.bias * QUICK),
        down=_as(kind, down.weight / QUICK, down.bias),
    )


def _as(kind: torch.dtype, *tensors: Sequence[Tensor]) -> Linear:
    return tuple(tensor.detach().to(kind) for tensor in tensors)
