"""Compute causal attention of many short texts that lie packed, one after another, behind kept prefixes.

A plan holds index tables, made once for all blocks. `gather` copies queries, keys and values from packed rows to padded
places, where small batched products compute the answers. `scatter` copies the answers back to packed rows. Every row
has one place, so gradients go back by one more copy, `gather_back`, and nothing is added up.

Two texts of 2 and 3 tokens, one head, no prefix. Each of the 5 packed tokens has 3 rows: its query, key and value.

    packed rows       a0: 0 1 2   a1: 3 4 5   b0: 6 7 8   b1: 9 10 11   b2: 12 13 14
    padded places     queries a0 a1 .  b0 b1 b2     keys a0 a1 .  b0 b1 b2     values a0 a1 .  b0 b1 b2
    gather            0 3 3  6 9 12                 1 4 4  7 10 13             2 5 5  8 11 14
    scatter           0 1 3 4 5                                   the padded query of each token; 2 is padding
    gather_back       0 6 12  1 7 13  3 9 15  4 10 16  5 11 17    the padded place of each packed row
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Where the tokens of N texts lie among T packed rows, and in a padded table [N, longest].

    Args:
        texts: N.
        longest: the number of tokens of the longest text.
        places: [T] int64, the place of each row in the padded table, flattened.
        rows: [N * longest] int64, the row of each place; at padding a row of the same text.
        ends: [N] int64, the last position of each text.
        last: [N] int64, the row of that position.
    """

    texts: int
    longest: int
    places: Tensor
    rows: Tensor
    ends: Tensor
    last: Tensor


@dataclass(frozen=True)
class Prefix:
    """Keys and values of P prefixes, and the prefix of each of N texts.

    Args:
        pairs: for each block keys and values, each [P, h, Lp, w / h].
        lengths: [P] int64, the number of tokens of each prefix.
        prefix_of: [N] int64, the prefix that text i starts with.
    """

    pairs: tuple[tuple[Tensor, Tensor], ...]
    lengths: Tensor
    prefix_of: Tensor

    @property
    def longest(self) -> int:
        """The length Lp of the longest prefix."""
        return self.pairs[0][0].shape[2]


@dataclass(frozen=True)
class Group:
    """A batch of N texts padded to a common length.

    Args:
        texts: N.
        heads: h.
        queries: padded queries per text.
        keys: padded keys per text, prefix included.
        mask: [1 or N, 1, queries, keys], added to the scores: -inf at a key that a query may not see.
        prefix: the prefixes of the texts, or None.
    """

    texts: int
    heads: int
    queries: int
    keys: int
    mask: Tensor
    prefix: Prefix | None

    @property
    def sizes(self) -> tuple[int, int, int]:
        """How many padded places queries, keys and values take."""
        sequences = self.texts * self.heads
        return sequences * self.queries, sequences * self.keys, sequences * self.keys

    def split(self, padded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split padded places [sum of sizes, w / h] into queries, keys and values, each [N * h, L, w / h]."""
        sequences, width = self.texts * self.heads, padded.shape[1]
        q, k, v = padded.split(self.sizes)
        return q.view(sequences, -1, width), k.view(sequences, -1, width), v.view(sequences, -1, width)

    def put_prefix(self, block: int, k: Tensor, v: Tensor) -> None:
        """Write the prefixes' keys and values of a block before the texts' own."""
        if self.prefix is None:
            return
        for target, source in zip((k, v), self.prefix.pairs[block], strict=True):
            per_text = source if len(source) == 1 else source[self.prefix.prefix_of]
            target.view(self.texts, self.heads, self.keys, -1)[:, :, : self.prefix.longest] = per_text


@dataclass(frozen=True)
class Plan:
    """Index tables between packed rows [R, w / h] and padded places, group after group.

    Args:
        groups: the groups of texts.
        gather: the packed row of each padded place.
        scatter: the padded query of each packed answer.
        gather_back: [R], the padded place of each packed row, where its gradient comes from.
    """

    groups: tuple[Group, ...]
    gather: Tensor
    scatter: Tensor
    gather_back: Tensor

    @property
    def sizes(self) -> list[int]:
        """How many padded places each group takes."""
        return [sum(group.sizes) for group in self.groups]

    @property
    def query_counts(self) -> list[int]:
        """How many padded queries each group has."""
        return [group.sizes[0] for group in self.groups]


def packed_layout(ends: Tensor, device: torch.device) -> Layout:
    """Lay out texts that end at positions ends [N], which is on the CPU, without rows for padding."""
    longest = int(ends.max()) + 1
    is_token = (torch.arange(longest) <= ends.unsqueeze(1)).flatten()  # [N * longest]
    places, rows = is_token.nonzero().squeeze(1), is_token.cumsum(0) - 1
    last = (ends + 1).cumsum(0) - 1
    return Layout(len(ends), longest, *(x.to(device, non_blocking=True) for x in (places, rows, ends, last)))


def padded_layout(longest: int, ends: Tensor) -> Layout:
    """Lay out texts [N, longest] that end at positions ends [N], with rows for padding; never waits for a device."""
    rows = torch.arange(len(ends) * longest, device=ends.device)
    return Layout(len(ends), longest, rows, rows, ends, rows[::longest] + ends)


def plan_all_tokens(layouts: Sequence[Layout], prefixes: Sequence[Prefix | None], heads: int) -> Plan:
    """Plan a block that computes every token. Its rows are the heads of [T, 3 w]: queries, keys, values."""
    groups, gather, scatter, gather_back = [], [], [], []
    head = torch.arange(heads, device=layouts[0].ends.device)
    first = place = query = 0  # of the group: its first packed token, padded place and padded query
    for layout, prefix in zip(layouts, prefixes, strict=True):
        group = Group(layout.texts, heads, layout.longest, *_keys(layout, prefix, _causal_mask(layout)))
        q = (first + layout.rows.view(-1, 1, layout.longest)) * 3 * heads + head[:, None]  # [N, h, longest]
        k, v = (F.pad(q + part * heads, (group.keys - group.queries, 0)) for part in (1, 2))
        gather += [q.flatten(), k.flatten(), v.flatten()]
        q_places = _place(layout, head, group.queries)  # [T, h]
        k_places = _place(layout, head, group.keys) + group.keys - group.queries
        scatter.append((query + q_places).flatten())
        k_start = place + group.sizes[0]
        places = [place + q_places, k_start + k_places, k_start + group.sizes[1] + k_places]
        gather_back.append(torch.stack(places, 1).flatten())
        groups.append(group)
        first, place, query = first + len(layout.places), place + sum(group.sizes), query + group.sizes[0]
    return Plan(tuple(groups), torch.cat(gather), torch.cat(scatter), torch.cat(gather_back))


def plan_ends(layouts: Sequence[Layout], prefixes: Sequence[Prefix | None], heads: int) -> Plan:
    """Plan a block that computes the texts' ends alone. Its rows are the heads of queries [N, w], then of [T, 2 w]."""
    groups, gather, q_places, kv_places = [], [], [], []
    head = torch.arange(heads, device=layouts[0].ends.device)
    kv_first = sum(layout.texts for layout in layouts) * heads  # the row of the first key
    first = place = query = 0  # of the group: its first packed token, padded place and query
    for layout, prefix in zip(layouts, prefixes, strict=True):
        group = Group(layout.texts, heads, 1, *_keys(layout, prefix, _padding_mask(layout)))
        before = group.keys - layout.longest
        q = query + torch.arange(group.sizes[0], device=head.device)
        k = kv_first + (first + layout.rows.view(-1, 1, layout.longest)) * 2 * heads + head[:, None]
        gather += [q, F.pad(k, (before, 0)).flatten(), F.pad(k + heads, (before, 0)).flatten()]
        k_places = _place(layout, head, group.keys) + before + place + group.sizes[0]  # [T, h]
        q_places.append(place - query + q)
        kv_places.append(torch.stack([k_places, k_places + group.sizes[1]], 1).flatten())
        groups.append(group)
        first, place, query = first + len(layout.places), place + sum(group.sizes), query + group.sizes[0]
    scatter = torch.arange(kv_first, device=head.device)
    return Plan(tuple(groups), torch.cat(gather), scatter, torch.cat(q_places + kv_places))


def attend(rows: Tensor, plan: Plan, block: int) -> Tensor:
    """Compute the answers [Q, w / h] to the queries of a plan from packed rows [R, w / h]. Queries come scaled."""
    return _Attend.apply(rows, plan, block)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(context, rows: Tensor, plan: Plan, block: int) -> Tensor:
        padded, width = rows.index_select(0, plan.gather), rows.shape[1]
        answers, weights = rows.new_empty(sum(plan.query_counts), width), []
        parts = zip(plan.groups, padded.split(plan.sizes), answers.split(plan.query_counts), strict=True)
        for group, part, answer in parts:
            q, k, v = group.split(part)
            group.put_prefix(block, k, v)
            scores = q @ k.transpose(1, 2)  # [N * h, queries, keys]
            scores.view(group.texts, group.heads, group.queries, group.keys).add_(group.mask)
            weights.append(scores.softmax(-1))
            torch.bmm(weights[-1], v, out=answer.view(len(q), group.queries, width))
        context.save_for_backward(padded, *weights)
        context.plan = plan
        return answers.index_select(0, plan.scatter)

    @staticmethod
    def backward(context, gradient: Tensor):
        (padded, *all_weights), plan = context.saved_tensors, context.plan
        d_answers = gradient.new_zeros(sum(plan.query_counts), gradient.shape[1])
        d_answers.index_copy_(0, plan.scatter, gradient)
        d_padded = torch.empty_like(padded)
        parts = (padded.split(plan.sizes), d_padded.split(plan.sizes), d_answers.split(plan.query_counts))
        for group, weights, part, d_part, d_answer in zip(plan.groups, all_weights, *parts, strict=True):
            q, k, v = group.split(part)
            d_q, d_k, d_v = group.split(d_part)
            d_answer = d_answer.view_as(q)
            torch.bmm(weights.transpose(1, 2), d_answer, out=d_v)
            d_scores = torch._softmax_backward_data(d_answer @ v.transpose(1, 2), weights, -1, weights.dtype)
            torch.bmm(d_scores, k, out=d_q)
            torch.bmm(d_scores.transpose(1, 2), q, out=d_k)
        return d_padded.index_select(0, plan.gather_back), None, None


def _place(layout: Layout, head: Tensor, length: int) -> Tensor:
    """Place [T, h] of each head of each row among [N * h * length] padded places."""
    text, position = layout.places // layout.longest, layout.places % layout.longest
    return (text[:, None] * len(head) + head) * length + position[:, None]


def _keys(layout: Layout, prefix: Prefix | None, mask: Tensor) -> tuple[int, Tensor, Prefix | None]:
    """Return the number of keys per text, the mask [1 or N, 1, queries, longest] widened to them, and the prefix."""
    if prefix is None:
        return layout.longest, mask, None
    is_token = torch.arange(prefix.longest, device=mask.device) < prefix.lengths[prefix.prefix_of].unsqueeze(
        1
    )  # [N, Lp]
    before = _mask_where(~is_token)[:, None, None, :]
    if len(prefix.lengths) == 1:  # one prefix for all texts
        before = before[:1]
    count = max(len(before), len(mask))
    parts = [x.expand(count, 1, mask.shape[2], -1) for x in (before, mask)]
    return prefix.longest + layout.longest, torch.cat(parts, dim=-1), prefix


def _causal_mask(layout: Layout) -> Tensor:
    """Mask [1, 1, longest, longest] of the later tokens of a text."""
    return torch.full((layout.longest, layout.longest), float("-inf"), device=layout.ends.device).triu(1)[None, None]


def _padding_mask(layout: Layout) -> Tensor:
    """Mask [N, 1, 1, longest] of the padding after each text's end."""
    return _mask_where(torch.arange(layout.longest, device=layout.ends.device) > layout.ends.unsqueeze(1))[
        :, None, None
    ]


def _mask_where(is_hidden: Tensor) -> Tensor:
    return torch.zeros(is_hidden.shape, device=is_hidden.device).masked_fill(is_hidden, float("-inf"))
