"""Causal attention of many short texts that lie packed in one row after another, behind prefixes that are kept.

A plan says, once for all blocks, where each head of each token lies. One gather then brings queries, keys and values
of all texts into padded places, small batched products do the rest, and another gather packs what comes out. Every
token has exactly one place, so the gradient takes the same way back and nothing is added up.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Where the tokens of N texts, each of at most `longest`, lie among T packed rows.

    places [T] is each row's place in the padded [N * longest], and rows [N * longest] the other way round, a row of the
    same text where there is no token. ends [N] is each text's last position, last [N] its row.
    """

    texts: int
    longest: int
    places: Tensor
    rows: Tensor
    ends: Tensor
    last: Tensor


@dataclass(frozen=True)
class Prefix:
    """Keys and values of P prefixes, a pair [P, h, Lp, w / h] a block, the prefixes' lengths [P], and which of them
    stands before each text, [N]."""

    pairs: tuple[tuple[Tensor, Tensor], ...]
    lengths: Tensor
    which: Tensor

    @property
    def longest(self) -> int:
        """The longest prefix, Lp."""
        return self.pairs[0][0].shape[2]


@dataclass(frozen=True)
class Group:
    """N texts of like length: their h heads, and how many queries and keys each text has, padding and prefix included.

    hidden [1 or N, 1, queries, keys] is added to the scores: -inf where a key may not be seen.
    """

    texts: int
    heads: int
    queries: int
    keys: int
    hidden: Tensor
    prefix: Prefix | None

    @property
    def sizes(self) -> tuple[int, int, int]:
        """How many padded places queries, keys and values take."""
        each = self.texts * self.heads
        return each * self.queries, each * self.keys, each * self.keys

    def heads_of(self, taken: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [N * h, L, w / h] in places [sum of sizes, w / h]."""
        each, width = self.texts * self.heads, taken.shape[1]
        q, k, v = taken.split(self.sizes)
        return q.view(each, -1, width), k.view(each, -1, width), v.view(each, -1, width)

    def put_prefix(self, block: int, k: Tensor, v: Tensor) -> None:
        """Write the prefixes' keys and values of a block before the texts' own."""
        if self.prefix is None:
            return
        for own, kept in zip((k, v), self.prefix.pairs[block], strict=True):
            of_each = kept if len(kept) == 1 else kept[self.prefix.which]
            own.view(self.texts, self.heads, self.keys, -1)[:, :, : self.prefix.longest] = of_each


@dataclass(frozen=True)
class Plan:
    """Of rows [R, w / h] of heads, take those for all padded places, group after group; of the padded answers, out are
    the rows that there are. back [R] is where each row's gradient lies among the padded places."""

    groups: tuple[Group, ...]
    take: Tensor
    out: Tensor
    back: Tensor

    @property
    def sizes(self) -> list[int]:
        """How many padded places each group takes."""
        return [sum(group.sizes) for group in self.groups]

    @property
    def answers(self) -> list[int]:
        """How many padded queries each group has."""
        return [group.sizes[0] for group in self.groups]


def packed(ends: Tensor, device: torch.device) -> Layout:
    """The layout of texts that end at positions ends [N], on the CPU, with no row for what stands behind."""
    longest = int(ends.max()) + 1
    there = (torch.arange(longest) <= ends.unsqueeze(1)).flatten()  # [N * longest]
    places, rows = there.nonzero().squeeze(1), there.cumsum(0) - 1
    last = (ends + 1).cumsum(0) - 1
    return Layout(len(ends), longest, *(x.to(device, non_blocking=True) for x in (places, rows, ends, last)))


def padded(longest: int, ends: Tensor) -> Layout:
    """The layout of texts [N, longest] that end at positions ends [N], on any device and without asking it."""
    every = torch.arange(len(ends) * longest, device=ends.device)
    return Layout(len(ends), longest, every, every, ends, every[::longest] + ends)


def of_all(layouts: Sequence[Layout], prefixes: Sequence[Prefix | None], heads: int) -> Plan:
    """The plan of a block that asks for every token: rows are the heads of [T, 3 w], queries, keys and values."""
    groups, take, out, back = [], [], [], []
    head = torch.arange(heads, device=layouts[0].ends.device)
    first = place = answer = 0
    for layout, prefix in zip(layouts, prefixes, strict=True):
        group = Group(layout.texts, heads, layout.longest, *_keys(layout, prefix, _causal(layout)))
        q = (first + layout.rows.view(-1, 1, layout.longest)) * 3 * heads + head[:, None]  # [N, h, longest]
        k, v = (F.pad(q + part * heads, (group.keys - group.queries, 0)) for part in (1, 2))
        take += [q.flatten(), k.flatten(), v.flatten()]
        of_q = _place(layout, head, group.queries)  # [T, h]
        of_k = _place(layout, head, group.keys) + group.keys - group.queries
        out.append((answer + of_q).flatten())
        starts = place, place + group.sizes[0], place + group.sizes[0] + group.sizes[1]
        back.append(
            torch.stack([start + of for start, of in zip(starts, (of_q, of_k, of_k), strict=True)], 1).flatten()
        )
        groups.append(group)
        first, place, answer = first + len(layout.places), place + sum(group.sizes), answer + group.sizes[0]
    return Plan(tuple(groups), torch.cat(take), torch.cat(out), torch.cat(back))


def of_ends(layouts: Sequence[Layout], prefixes: Sequence[Prefix | None], heads: int) -> Plan:
    """The plan of a block that asks for the texts' ends alone: rows are the heads of queries [N, w], then [T, 2 w]."""
    groups, take, of_queries, of_pairs = [], [], [], []
    head = torch.arange(heads, device=layouts[0].ends.device)
    pairs = sum(layout.texts for layout in layouts) * heads  # where the keys and values begin
    first = place = asked = 0
    for layout, prefix in zip(layouts, prefixes, strict=True):
        group = Group(layout.texts, heads, 1, *_keys(layout, prefix, _until_end(layout)))
        before = group.keys - layout.longest
        own = asked + torch.arange(group.sizes[0], device=head.device)
        k = pairs + (first + layout.rows.view(-1, 1, layout.longest)) * 2 * heads + head[:, None]
        take += [own, F.pad(k, (before, 0)).flatten(), F.pad(k + heads, (before, 0)).flatten()]
        of_k = _place(layout, head, group.keys) + before + place + group.sizes[0]  # [T, h]
        of_queries.append(place - asked + own)
        of_pairs.append(torch.stack([of_k, of_k + group.sizes[1]], 1).flatten())
        groups.append(group)
        first, place, asked = first + len(layout.places), place + sum(group.sizes), asked + group.sizes[0]
    out = torch.arange(pairs, device=head.device)
    return Plan(tuple(groups), torch.cat(take), out, torch.cat(of_queries + of_pairs))


def attend(rows: Tensor, plan: Plan, block: int) -> Tensor:
    """What the queries [Q, w / h] of a plan get of their texts' values. Queries come scaled."""
    return _Attend.apply(rows, plan, block)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(context, rows: Tensor, plan: Plan, block: int) -> Tensor:
        taken, width = rows.index_select(0, plan.take), rows.shape[1]
        mixed, all_shares = rows.new_empty(sum(plan.answers), width), []
        for group, part, answer in zip(plan.groups, taken.split(plan.sizes), mixed.split(plan.answers), strict=True):
            q, k, v = group.heads_of(part)
            group.put_prefix(block, k, v)
            scores = q @ k.transpose(1, 2)  # [N * h, queries, keys]
            scores.view(group.texts, group.heads, group.queries, group.keys).add_(group.hidden)
            all_shares.append(scores.softmax(-1))
            torch.bmm(all_shares[-1], v, out=answer.view(len(q), group.queries, width))
        context.save_for_backward(taken, *all_shares)
        context.plan = plan
        return mixed.index_select(0, plan.out)

    @staticmethod
    def backward(context, gradient: Tensor):
        (taken, *all_shares), plan = context.saved_tensors, context.plan
        answers = gradient.new_zeros(sum(plan.answers), gradient.shape[1]).index_copy_(0, plan.out, gradient)
        back = torch.empty_like(taken)
        parts = zip(plan.groups, all_shares, *(x.split(plan.sizes) for x in (taken, back)), strict=True)
        for (group, shares, part, back_part), of in zip(parts, answers.split(plan.answers), strict=True):
            q, k, v = group.heads_of(part)
            to_q, to_k, to_v = group.heads_of(back_part)
            of = of.view_as(q)
            torch.bmm(shares.transpose(1, 2), of, out=to_v)
            scores = torch._softmax_backward_data(of @ v.transpose(1, 2), shares, -1, shares.dtype)
            torch.bmm(scores, k, out=to_q)
            torch.bmm(scores.transpose(1, 2), q, out=to_k)
        return back.index_select(0, plan.back), None, None


def _place(layout: Layout, head: Tensor, length: int) -> Tensor:
    """Where each head of each row lies [T, h] among [N * h * length] padded places."""
    text, position = layout.places // layout.longest, layout.places % layout.longest
    return (text[:, None] * len(head) + head) * length + position[:, None]


def _keys(layout: Layout, prefix: Prefix | None, hidden: Tensor) -> tuple[int, Tensor, Prefix | None]:
    """How many keys a text has, what hides them if hidden [1 or N, 1, queries, longest] hides its own, the prefix."""
    if prefix is None:
        return layout.longest, hidden, None
    seen = torch.arange(prefix.longest, device=hidden.device) < prefix.lengths[prefix.which].unsqueeze(1)  # [N, Lp]
    before = torch.zeros(seen.shape, device=hidden.device).masked_fill(~seen, float("-inf"))[:, None, None, :]
    if len(prefix.lengths) == 1:  # one prefix for all texts
        before = before[:1]
    count = max(len(before), len(hidden))
    parts = [x.expand(count, 1, hidden.shape[2], -1) for x in (before, hidden)]
    return prefix.longest + layout.longest, torch.cat(parts, dim=-1), prefix


def _causal(layout: Layout) -> Tensor:
    """What hides later tokens of a text, [1, 1, longest, longest]."""
    return torch.full((layout.longest, layout.longest), float("-inf"), device=layout.ends.device).triu(1)[None, None]


def _until_end(layout: Layout) -> Tensor:
    """What hides the padding behind each text's end, [N, 1, 1, longest]."""
    seen = torch.arange(layout.longest, device=layout.ends.device) <= layout.ends.unsqueeze(1)  # [N, longest]
    return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, float("-inf"))[:, None, None, :]
