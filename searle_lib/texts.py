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

from searle_lib import attention, text_tower
from searle_lib.attention import Layout, Prefix
from searle_lib.backbone import Backbone, Tokens, encode_plain, tokenize

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


def encode(backbone: Backbone, groups: Sequence[Spliced], words: Tensor, pairs: Pairs) -> Tensor:
    """Text features [N, d] float32, not normalised, with words [N, d_tok] for the placeholders; gradients flow to them.

    The texts come in groups of like length with the same prefixes, for which `read_prefixes` gave `pairs`.
    """
    device, model = backbone.device, backbone.model
    layouts = [attention.packed(group.ends, device) for group in groups]
    parts = [_embedded(backbone, group, layout) for group, layout in zip(groups, layouts, strict=True)]
    at = torch.cat([group.ends + 1 for group in groups]).cumsum(0)
    firsts = F.pad(at[:-1], (1, 0)).to(device)  # [N], the rows of the placeholders
    positions = torch.cat([group.firsts for group in groups]).to(device)
    x = torch.cat(parts).index_copy(0, firsts, words.float() + model.positional_embedding[positions])
    lengths = (groups[0].prefixes.ends + 1).to(device)
    empty = pairs[0][0].shape[2] == 0
    prefixes = [None if empty else Prefix(pairs, lengths, group.which.to(device)) for group in groups]
    return text_tower.features(backbone.tower, x, layouts, prefixes)


def _embedded(backbone: Backbone, group: Spliced, layout: Layout) -> Tensor:
    """Token embeddings [T, w] of a group's packed tokens with their positions added."""
    device, model, length = backbone.device, backbone.model, group.ids.shape[1]
    positions = group.firsts.unsqueeze(1) + torch.arange(length)  # behind a text's end they may pass the last one
    positions = positions.clamp(max=len(model.positional_embedding) - 1)
    ids, positions = group.ids.flatten().to(device), positions.flatten().to(device)
    ids, positions = ids[layout.places], positions[layout.places]
    return model.token_embedding(ids) + model.positional_embedding[positions]


def encode_text(
    backbone: Backbone, tokens: Tokens, words: Tensor | None = None, places: Tensor | None = None
) -> Tensor:
    """Text features [N, d] float32, not normalised; gradients flow to the pseudo-words only.

    `words` [N, d_tok] replace the token embeddings at `places` [N] (each text's first "$" unless given).
    """
    if words is None:
        return encode_plain(backbone, tokens)
    texts = cut(tokens, places)
    return encode(backbone, [texts], words, read_prefixes(backbone, texts.prefixes))


@torch.no_grad()
def encode_texts(
    backbone: Backbone,
    texts: Sequence[str],
    batch_size: int = 512,
    words: Tensor | None = None,
    places: Tensor | None = None,
) -> Tensor:
    """Text features [N, d] float32 of any number of texts, encoded in batches of like length, in the order given.

    Without words, places [N] say up to where a text shares its beginning with many others.
    """
    if not texts:
        return torch.empty(0, backbone.dimension)
    tokens = tokenize(texts)
    features = torch.empty(len(tokens), backbone.dimension)
    if words is None and places is None:
        for rows in tokens.ends.argsort(stable=True).split(batch_size):
            features[rows] = encode_plain(backbone, tokens[rows]).cpu()
        return features
    spliced = cut(tokens, places)
    pairs = read_prefixes(backbone, spliced.prefixes)
    for rows in spliced.ends.argsort(stable=True).split(batch_size):
        first = spliced.ids[rows, 0].to(backbone.device)
        of = backbone.model.token_embedding(first) if words is None else words[rows].to(backbone.device)
        features[rows] = encode(backbone, [spliced[rows]], of, pairs).cpu()
    return features
