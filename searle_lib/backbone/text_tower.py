"""CLIP's text tower without the positions whose output is never read.

It takes packed token embeddings and returns text features. Attention is causal, and only the output at the end-of-text
is read. So there are no tokens after the end-of-text, all texts lie packed one after another, and the last block
computes queries and its MLP at the end-of-text only. All of it is exact: the tests compare it with CLIP's own forward
pass over all positions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from searle_lib.backbone import packed_attention
from searle_lib.backbone.packed_attention import Layout, Prefix, attend, padded_layout

QUICK = 1.702  # QuickGELU is x sigmoid(1.702 x) = silu(1.702 x) / 1.702; the factors go into the weights
Linear = tuple[Tensor, Tensor]  # weight and bias


@dataclass(frozen=True)
class Block:
    """The weights of one residual block.

    Args:
        before_attention: the layer norm before attention.
        qkv: the projection to queries, keys and values; it scales the queries for attention.
        attention_output: the projection of the answers.
        before_mlp: the layer norm before the MLP.
        mlp_input: the MLP's first layer, times 1.702 before QuickGELU.
        mlp_output: the MLP's second layer, its weight divided by 1.702 after QuickGELU.
    """

    before_attention: Linear
    qkv: Linear
    attention_output: Linear
    before_mlp: Linear
    mlp_input: Linear
    mlp_output: Linear


@dataclass(frozen=True)
class Tower:
    """The text tower. Linear weights have the type `dtype`; the residual stream and all norms keep CLIP's type."""

    blocks: tuple[Block, ...]
    heads: int
    final_norm: Linear
    projection: Tensor
    dtype: torch.dtype
    activation: Callable[[Tensor], Tensor]


def tower_of(model: nn.Module, dtype: torch.dtype = torch.float32) -> Tower:
    """Build the text tower of a CLIP, with linear weights of type `dtype`. Its MLPs have QuickGELU or GELU."""
    blocks = model.transformer.resblocks
    is_gelu = isinstance(blocks[0].mlp.gelu, nn.GELU)  # the layer's name in both packages, of QuickGELU too
    return Tower(
        tuple(_block(block, dtype, 1.0 if is_gelu else QUICK) for block in blocks),
        blocks[0].attn.num_heads,
        (model.ln_final.weight, model.ln_final.bias),
        model.text_projection,
        dtype,
        F.gelu if is_gelu else F.silu,
    )


def features(tower: Tower, x: Tensor, layouts: Sequence[Layout], prefixes: Sequence[Prefix | None]) -> Tensor:
    """Encode N packed texts, which may form several groups of unlike length; attention pads within a group.

    Args:
        tower: the text tower.
        x: [T, w], token embeddings with their positions added.
        layouts: the layout of each group.
        prefixes: the prefixes of each group, None without prefixes.

    Returns:
        [N, d], not normalised.
    """
    plan, width = packed_attention.plan_all_tokens(layouts, prefixes, tower.heads), x.shape[-1]
    for number, block in enumerate(tower.blocks[:-1]):
        normed = F.layer_norm(x, (width,), *block.before_attention).to(tower.dtype)
        rows = F.linear(normed, *block.qkv).view(-1, width // tower.heads)
        x = _mlp(tower, block, x + F.linear(attend(rows, plan, number).view(-1, width), *block.attention_output))
    return F.layer_norm(_last(tower, x, layouts, prefixes), (width,), *tower.final_norm) @ tower.projection


@torch.no_grad()
def prefix_pairs(tower: Tower, x: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
    """Compute each block's keys and values [P, h, Lp, w / h] of prefixes [P, Lp, w] with their positions added."""
    count, length, width = x.shape
    plan = packed_attention.plan_all_tokens(
        [padded_layout(length, x.new_full((count,), length - 1, dtype=torch.int64))], [None], tower.heads
    )
    pairs, x = [], x.flatten(0, 1)  # [P * Lp, w]
    for number, block in enumerate(tower.blocks):
        qkv = F.linear(F.layer_norm(x, (width,), *block.before_attention).to(tower.dtype), *block.qkv)
        _, k, v = qkv.view(count, length, 3, tower.heads, -1).permute(2, 0, 3, 1, 4)  # each [P, h, Lp, w / h]
        pairs.append((k.contiguous(), v.contiguous()))
        mixed = attend(qkv.view(-1, width // tower.heads), plan, number).view(-1, width)
        x = _mlp(tower, block, x + F.linear(mixed, *block.attention_output))
    return tuple(pairs)


def _last(tower: Tower, x: Tensor, layouts: Sequence[Layout], prefixes: Sequence[Prefix | None]) -> Tensor:
    """Compute the last block at each text's end-of-text only, [T, w] -> [N, w]."""
    block, width, number = tower.blocks[-1], x.shape[-1], len(tower.blocks) - 1
    starts = np.cumsum([0, *(len(layout.places) for layout in layouts)]).tolist()
    last = torch.cat([start + layout.last for start, layout in zip(starts, layouts, strict=False)])
    normed = F.layer_norm(x, (width,), *block.before_attention).to(tower.dtype)
    weight, bias = block.qkv
    q, pairs = F.linear(normed[last], weight[:width], bias[:width]), F.linear(normed, weight[width:], bias[width:])
    rows = torch.cat([q.flatten(), pairs.flatten()]).view(-1, width // tower.heads)
    mixed = attend(rows, packed_attention.plan_ends(layouts, prefixes, tower.heads), number).view(-1, width)
    return _mlp(tower, block, x[last] + F.linear(mixed, *block.attention_output))


def _mlp(tower: Tower, block: Block, x: Tensor) -> Tensor:
    normed = F.layer_norm(x, x.shape[-1:], *block.before_mlp).to(tower.dtype)
    return x + F.linear(tower.activation(F.linear(normed, *block.mlp_input)), *block.mlp_output)


def _block(block: nn.Module, dtype: torch.dtype, factor: float) -> Block:
    attn, mlp = block.attn, block.mlp
    return Block(
        before_attention=(block.ln_1.weight, block.ln_1.bias),
        qkv=_as(dtype, *_scaled(attn.in_proj_weight, attn.in_proj_bias, attn.head_dim)),
        attention_output=_as(dtype, attn.out_proj.weight, attn.out_proj.bias),
        before_mlp=(block.ln_2.weight, block.ln_2.bias),
        mlp_input=_as(dtype, mlp.c_fc.weight * factor, mlp.c_fc.bias * factor),
        mlp_output=_as(dtype, mlp.c_proj.weight / factor, mlp.c_proj.bias),
    )


def _scaled(weight: Tensor, bias: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Divide the queries' part of a qkv projection by the root of a head's width."""
    scale = torch.ones_like(bias)
    scale[: len(bias) // 3] = width**-0.5
    return weight * scale.unsqueeze(1), bias * scale


def _as(dtype: torch.dtype, *tensors: Sequence[Tensor]) -> Linear:
    return tuple(tensor.detach().to(dtype) for tensor in tensors)
