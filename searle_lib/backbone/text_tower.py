"""CLIP's text tower, driven without what nobody reads (design, "Exact savings in CLIP's text tower").

Attention is causal and only the end-of-text position is read. So tokens behind it are left out, tokens of all texts lie
packed in one row after another, and the last block runs queries and MLP for the end-of-text position alone. What
stands before a placeholder is the same whatever replaces it: its keys and values are computed once, without gradients.
All of it is exact; CLIP's own forward pass over 77 positions is what the tests hold it to.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from searle_lib.backbone import packed_attention
from searle_lib.backbone.packed_attention import Layout, Prefix, attend, padded

QUICK = 1.702  # of CLIP's QuickGELU, x sigmoid(1.702 x) = silu(1.702 x) / 1.702: folded into the weights around it
Linear = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Block:
    """The weights of one residual block. Queries come scaled for attention, `up` gives 1.702 times what CLIP's does, as
    `down` takes it."""

    before_attention: Linear
    qkv: Linear
    out: Linear
    before_mlp: Linear
    up: Linear
    down: Linear


@dataclass(frozen=True)
class Tower:
    """The text tower with its linear weights in one type; the residual stream and all norms are as CLIP's own."""

    blocks: tuple[Block, ...]
    heads: int
    last: Linear
    projection: Tensor
    kind: torch.dtype


def tower_of(model: nn.Module, kind: torch.dtype = torch.float32) -> Tower:
    """The tower of a CLIP of clip.model, its linear weights as `kind`."""
    return Tower(
        tuple(_block(block, kind) for block in model.transformer.resblocks),
        model.transformer.resblocks[0].attn.num_heads,
        (model.ln_final.weight, model.ln_final.bias),
        model.text_projection,
        kind,
    )


def features(tower: Tower, x: Tensor, layouts: Sequence[Layout], prefixes: Sequence[Prefix | None]) -> Tensor:
    """Text features [N, d], not normalised, of packed embeddings [T, w] with their positions added.

    The texts may be several groups of unlike length, each with its layout and prefix: attention pads within a group.
    """
    plan, width = packed_attention.of_all(layouts, prefixes, tower.heads), x.shape[-1]
    for number, block in enumerate(tower.blocks[:-1]):
        normed = F.layer_norm(x, (width,), *block.before_attention).to(tower.kind)
        rows = F.linear(normed, *block.qkv).view(-1, width // tower.heads)
        x = _mlp(tower, block, x + F.linear(attend(rows, plan, number).view(-1, width), *block.out))
    return F.layer_norm(_last(tower, x, layouts, prefixes), (width,), *tower.last) @ tower.projection


@torch.no_grad()
def prefix_pairs(tower: Tower, x: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
    """Keys and values [P, h, Lp, w / h] of every block for prefixes [P, Lp, w] with their positions added."""
    count, length, width = x.shape
    plan = packed_attention.of_all(
        [padded(length, x.new_full((count,), length - 1, dtype=torch.int64))], [None], tower.heads
    )
    pairs, x = [], x.flatten(0, 1)  # [P * Lp, w]
    for number, block in enumerate(tower.blocks):
        qkv = F.linear(F.layer_norm(x, (width,), *block.before_attention).to(tower.kind), *block.qkv)
        _, k, v = qkv.view(count, length, 3, tower.heads, -1).permute(2, 0, 3, 1, 4)  # each [P, h, Lp, w / h]
        pairs.append((k.contiguous(), v.contiguous()))
        mixed = attend(qkv.view(-1, width // tower.heads), plan, number).view(-1, width)
        x = _mlp(tower, block, x + F.linear(mixed, *block.out))
    return tuple(pairs)


def _last(tower: Tower, x: Tensor, layouts: Sequence[Layout], prefixes: Sequence[Prefix | None]) -> Tensor:
    """The last block at each text's end alone, [T, w] -> [N, w]."""
    block, width, number = tower.blocks[-1], x.shape[-1], len(tower.blocks) - 1
    starts = np.cumsum([0, *(len(layout.places) for layout in layouts)]).tolist()
    last = torch.cat([start + layout.last for start, layout in zip(starts, layouts, strict=False)])
    normed = F.layer_norm(x, (width,), *block.before_attention).to(tower.kind)
    weight, bias = block.qkv
    q, pairs = F.linear(normed[last], weight[:width], bias[:width]), F.linear(normed, weight[width:], bias[width:])
    rows = torch.cat([q.flatten(), pairs.flatten()]).view(-1, width // tower.heads)
    mixed = attend(rows, packed_attention.of_ends(layouts, prefixes, tower.heads), number).view(-1, width)
    return _mlp(tower, block, x[last] + F.linear(mixed, *block.out))


def _mlp(tower: Tower, block: Block, x: Tensor) -> Tensor:
    normed = F.layer_norm(x, x.shape[-1:], *block.before_mlp).to(tower.kind)
    return x + F.linear(F.silu(F.linear(normed, *block.up)), *block.down)


def _block(block: nn.Module, kind: torch.dtype) -> Block:
    attn, mlp = block.attn, block.mlp
    up, down = mlp.c_fc, mlp.c_proj
    return Block(
        before_attention=(block.ln_1.weight, block.ln_1.bias),
        qkv=_as(kind, *_scaled(attn.in_proj_weight, attn.in_proj_bias, attn.head_dim)),
        out=_as(kind, attn.out_proj.weight, attn.out_proj.bias),
        before_mlp=(block.ln_2.weight, block.ln_2.bias),
        up=_as(kind, up.weight * QUICK, up.bias * QUICK),
        down=_as(kind, down.weight / QUICK, down.bias),
    )


def _scaled(weight: Tensor, bias: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Weights of queries, keys and values whose queries come divided by the root of a head's width."""
    scale = torch.ones_like(bias)
    scale[: len(bias) // 3] = width**-0.5
    return weight * scale.unsqueeze(1), bias * scale


def _as(kind: torch.dtype, *tensors: Sequence[Tensor]) -> Linear:
    return tuple(tensor.detach().to(kind) for tensor in tensors)
