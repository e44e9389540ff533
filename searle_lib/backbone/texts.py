"""Features of texts, with pseudo-words spliced in: what stands before a placeholder is read once for many words.

"a photo of $ that is red" is a prefix, "a photo of", and a rest that begins with the placeholder. Whatever word takes
its place, CLIP's keys and values of the prefix stay the same, and no gradient has to go there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from searle_lib.backbone import packed_attention, text_tower
from searle_lib.backbone.model import Backbone, Tokens, encode_plain, tokenize
from searle_lib.backbone.packed_attention import Layout, Prefix

Pairs = tuple[tuple[Tensor, Tensor], ...]  # keys and values of prefixes, block by block


@dataclass(frozen=True)
class Spliced:
    """N texts cut at the placeholder: prefixes, of which number which [N] stands before each, and the tokens from the
    placeholder on, ids [N, L] whose last is at ends [N]."""

    prefixes: Tokens
    which: Tensor
    ids: Tensor
    ends: Tensor

    def __getitem__(self, rows: Tensor) -> "Spliced":
        ends = self.ends[rows]
        return Spliced(self.prefixes, self.which[rows], self.ids[rows][:, : int(ends.max()) + 1], ends)

    @cached_property
    def firsts(self) -> Tensor:
        """Position [N] of the placeholder in the whole text."""
        return self.prefixes.ends[self.which] + 1


@dataclass(frozen=True)
class Laid:
    """N texts laid out on the device: ids [T] and positions [T] of their packed tokens, the rows word_rows [N] and the
    positions word_positions [N] of the words, and by group the layout and the prefix."""

    ids: Tensor
    positions: Tensor
    word_rows: Tensor
    word_positions: Tensor
    layouts: tuple[Layout, ...]
    prefixes: tuple[Prefix | None, ...]


def cut(tokens: Tokens, places: Tensor | None = None) -> Spliced:
    """Texts cut at places [N], or at each one's first "$". Raises ValueError for a text without one."""
    places = tokens.placeholders if places is None else places
    length, column = tokens.ids.shape[1], torch.arange(tokens.ids.shape[1])
    before = tokens.ids.masked_fill(column >= places.unsqueeze(1), 0)[:, : int(places.max())]
    distinct, which = torch.cat([before, places.unsqueeze(1)], dim=1).unique(dim=0, return_inverse=True)
    shifted = (column + places.unsqueeze(1)).clamp(max=length - 1)  # [N, L]
    ends = tokens.ends - places
    ids = tokens.ids.gather(1, shifted)[:, : int(ends.max()) + 1]
    return Spliced(Tokens(distinct[:, :-1], distinct[:, -1] - 1), which, ids, ends)


@torch.no_grad()
def read_prefixes(backbone: Backbone, prefixes: Tokens) -> Pairs:
    """CLIP's keys and values of prefixes, block by block, for `encode`."""
    ids = prefixes.ids.to(backbone.device)
    embedded = backbone.model.token_embedding(ids) + backbone.model.positional_embedding[: ids.shape[1]]
    return text_tower.prefix_pairs(backbone.tower, embedded)


def lay_out(backbone: Backbone, groups: Sequence[Spliced], pairs: Pairs) -> Laid:
    """Texts in groups of like length with the same prefixes, for which `read_prefixes` gave `pairs`, on the device.

    All that goes from host to device for these texts goes here, so that a training does not wait for it at its steps.
    """
    device, parts, words, first = backbone.device, [], [], 0
    layouts = [packed_attention.packed(group.ends, device) for group in groups]
    for group in groups:
        length, rows = group.ids.shape[1], group.ends.cumsum(0) + torch.arange(1, len(group.ends) + 1)
        there = torch.arange(length) <= group.ends.unsqueeze(1)  # [N, L]
        positions = group.firsts.unsqueeze(1) + torch.arange(length)
        parts.append(torch.stack([group.ids[there], positions[there]]))  # [2, T]
        words.append(torch.stack([first + F.pad(rows[:-1], (1, 0)), group.firsts]))  # [2, N]
        first += int(rows[-1])
    lengths = (groups[0].prefixes.ends + 1).to(device)
    empty = pairs[0][0].shape[2] == 0
    prefixes = [None if empty else Prefix(pairs, lengths, group.which.to(device)) for group in groups]
    of_tokens, of_words = (torch.cat(part, dim=1).to(device) for part in (parts, words))
    return Laid(*of_tokens, *of_words, tuple(layouts), tuple(prefixes))


def encode(backbone: Backbone, laid: Laid, words: Tensor) -> Tensor:
    """Text features [N, d] float32, not normalised, with words [N, d_tok] for the placeholders; gradients flow to them.

    Asks the host for nothing.
    """
    model = backbone.model
    x = model.token_embedding(laid.ids) + model.positional_embedding[laid.positions]  # [T, w]
    x = x.index_copy(0, laid.word_rows, words.float() + model.positional_embedding[laid.word_positions])
    return text_tower.features(backbone.tower, x, laid.layouts, laid.prefixes)


def encode_text(
    backbone: Backbone, tokens: Tokens, words: Tensor | None = None, places: Tensor | None = None
) -> Tensor:
    """Text features [N, d] float32, not normalised; gradients flow to the pseudo-words only.

    `words` [N, d_tok] replace the token embeddings at `places` [N] (each text's first "$" unless given).
    """
    if words is None:
        return encode_plain(backbone, tokens)
    texts = cut(tokens, places)
    return encode(backbone, lay_out(backbone, [texts], read_prefixes(backbone, texts.prefixes)), words)


@torch.no_grad()
def encode_texts(
    backbone: Backbone,
    texts: Sequence[str],
    batch_size: int = 512,
    words: Tensor | None = None,
    places: Tensor | None = None,
) -> Tensor:
    """Text features [N, d], of CLIP's type, of any number of texts in batches of like length, in the order given.

    Without words, places [N] say up to where a text shares its beginning with many others.
    """
    if not texts:
        return torch.empty(0, backbone.dimension)
    tokens = tokenize(texts)
    features = torch.empty(len(tokens), backbone.dimension, dtype=backbone.model.dtype)
    if words is None and places is None:
        for rows in tokens.ends.argsort(stable=True).split(batch_size):
            features[rows] = encode_plain(backbone, tokens[rows]).cpu()
        return features
    spliced = cut(tokens, places)
    pairs = read_prefixes(backbone, spliced.prefixes)
    for rows in spliced.ends.argsort(stable=True).split(batch_size):
        first = spliced.ids[rows, 0].to(backbone.device)
        of = backbone.model.token_embedding(first) if words is None else words[rows].to(backbone.device)
        features[rows] = encode(backbone, lay_out(backbone, [spliced[rows]], pairs), of).cpu()
    return features
