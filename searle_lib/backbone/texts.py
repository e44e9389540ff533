"""Encode texts with CLIP, with pseudo-words in the place of some tokens, into features [N, d].

A text with a pseudo-word is split at its placeholder. CLIP's keys and values of the tokens before the placeholder do
not depend on the pseudo-word. So they are computed once for all texts that begin alike, and without gradients:

    text                         prefix_of   prefixes                   ids                       ends
    "a photo of $ that is red"   0           0: <start> a photo of      $ that is red <end>       4
    "a photo of $"               0           1: <start> we see a        $ <end>                   1
    "We see a $"                 1                                      $ <end>                   1

`encode_texts` takes strings. A training loop calls `split`, `encode_prefixes` and `pack` before its steps, and
`encode_packed` at every step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from searle_lib.backbone import packed_attention, text_tower
from searle_lib.backbone.model import Backbone, Tokens
from searle_lib.backbone.packed_attention import Layout, Prefix

KeysValues = tuple[tuple[Tensor, Tensor], ...]  # of prefixes, one pair for each block


@dataclass(frozen=True)
class SplitTexts:
    """N texts split at their placeholder. Text i is prefixes[prefix_of[i]] followed by ids[i, : ends[i] + 1].

    Args:
        prefixes: the distinct prefixes.
        prefix_of: [N] int64, the prefix that text i starts with.
        ids: [N, L] int64, the tokens from the placeholder on.
        ends: [N] int64, the column of each end-of-text in ids.
    """

    prefixes: Tokens
    prefix_of: Tensor
    ids: Tensor
    ends: Tensor

    def __getitem__(self, rows: Tensor) -> "SplitTexts":
        ends = self.ends[rows]
        return SplitTexts(self.prefixes, self.prefix_of[rows], self.ids[rows][:, : int(ends.max()) + 1], ends)

    @cached_property
    def placeholder_positions(self) -> Tensor:
        """Position [N] of the placeholder in the full text."""
        return self.prefixes.ends[self.prefix_of] + 1


@dataclass(frozen=True)
class PackedTexts:
    """N texts on the device, their T tokens in one row after another. They may form several groups of unlike length.

    Args:
        ids: [T] int64, the tokens.
        positions: [T] int64, the position of each token in its full text.
        word_rows: [N] int64, the row of each placeholder.
        word_positions: [N] int64, the position of each placeholder in its full text.
        layouts: the layout of each group.
        prefixes: the prefixes of each group, None without prefixes.
    """

    ids: Tensor
    positions: Tensor
    word_rows: Tensor
    word_positions: Tensor
    layouts: tuple[Layout, ...]
    prefixes: tuple[Prefix | None, ...]


@torch.no_grad()
def encode_texts(
    backbone: Backbone,
    texts: Sequence[str],
    batch_size: int = 512,
    words: Tensor | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """Encode any number of texts in batches of like length.

    Args:
        backbone: the frozen CLIP.
        texts: N texts. A text of more tokens than CLIP reads is truncated.
        batch_size: texts encoded at once; bounds memory.
        words: [N, d_tok], one pseudo-word per text. None: texts as they are.
        positions: [N] int64, where each pseudo-word goes. None: to the first "$". Without words, the position up to
            which a text shares its beginning with other texts.

    Returns:
        [N, d] on the CPU in the type of CLIP's weights, not normalised, in the order of the texts.

    Raises:
        ValueError: if a text has no "$" where words are given without positions.
    """
    if not texts:
        return torch.empty(0, backbone.dimension)
    tokens = backbone.tokenize(texts)
    features = torch.empty(len(tokens), backbone.dimension, dtype=backbone.model.dtype)
    if words is None and positions is None:
        for rows in tokens.ends.argsort(stable=True).split(batch_size):
            features[rows] = _encode_plain(backbone, tokens[rows]).cpu()
        return features
    parts = split(tokens, positions)
    pairs = encode_prefixes(backbone, parts.prefixes)
    for rows in parts.ends.argsort(stable=True).split(batch_size):
        if words is None:
            vectors = backbone.model.token_embedding(parts.ids[rows, 0].to(backbone.device))
        else:
            vectors = words[rows].to(backbone.device)
        features[rows] = encode_packed(backbone, pack(backbone, [parts[rows]], pairs), vectors).cpu()
    return features


def split(tokens: Tokens, positions: Tensor | None = None) -> SplitTexts:
    """Split texts at positions [N], by default at the first "$" of each. Raises ValueError for a text without "$"."""
    positions = tokens.placeholders if positions is None else positions
    length, column = tokens.ids.shape[1], torch.arange(tokens.ids.shape[1])
    before = tokens.ids.masked_fill(column >= positions.unsqueeze(1), 0)[:, : int(positions.max())]
    distinct, prefix_of = torch.cat([before, positions.unsqueeze(1)], dim=1).unique(dim=0, return_inverse=True)
    shifted = (column + positions.unsqueeze(1)).clamp(max=length - 1)  # [N, L]
    ends = tokens.ends - positions
    ids = tokens.ids.gather(1, shifted)[:, : int(ends.max()) + 1]
    return SplitTexts(Tokens(distinct[:, :-1], distinct[:, -1] - 1), prefix_of, ids, ends)


@torch.no_grad()
def encode_prefixes(backbone: Backbone, prefixes: Tokens) -> KeysValues:
    """Compute CLIP's keys and values of prefixes, for `pack`."""
    ids = prefixes.ids.to(backbone.device)
    embedded = backbone.model.token_embedding(ids) + backbone.model.positional_embedding[: ids.shape[1]]
    return text_tower.prefix_pairs(backbone.tower, embedded)


def pack(backbone: Backbone, groups: Sequence[SplitTexts], pairs: KeysValues | None = None) -> PackedTexts:
    """Pack texts and copy them to the device, with all that `encode_packed` needs, so that it never waits for the host.

    Args:
        backbone: the frozen CLIP.
        groups: rows of one SplitTexts; texts of a group should have like lengths.
        pairs: what `encode_prefixes` returned for their prefixes. None: compute it.
    """
    pairs = encode_prefixes(backbone, groups[0].prefixes) if pairs is None else pairs
    device, tokens, words, first = backbone.device, [], [], 0
    layouts = [packed_attention.packed_layout(group.ends, device) for group in groups]
    for group in groups:
        length, rows = group.ids.shape[1], group.ends.cumsum(0) + torch.arange(1, len(group.ends) + 1)
        is_token = torch.arange(length) <= group.ends.unsqueeze(1)  # [N, L]
        positions = group.placeholder_positions.unsqueeze(1) + torch.arange(length)
        tokens.append(torch.stack([group.ids[is_token], positions[is_token]]))  # [2, T]
        words.append(torch.stack([first + F.pad(rows[:-1], (1, 0)), group.placeholder_positions]))  # [2, N]
        first += int(rows[-1])
    lengths = (groups[0].prefixes.ends + 1).to(device)
    empty = pairs[0][0].shape[2] == 0
    prefixes = [None if empty else Prefix(pairs, lengths, group.prefix_of.to(device)) for group in groups]
    token_table, word_table = (torch.cat(part, dim=1).to(device) for part in (tokens, words))
    return PackedTexts(*token_table, *word_table, tuple(layouts), tuple(prefixes))


def encode_packed(backbone: Backbone, packed: PackedTexts, words: Tensor) -> Tensor:
    """Encode packed texts with words [N, d_tok] in the place of their placeholders; gradients flow to the words only.

    Returns:
        [N, d] float32, not normalised.
    """
    model = backbone.model
    x = model.token_embedding(packed.ids) + model.positional_embedding[packed.positions]  # [T, w]
    x = x.index_copy(0, packed.word_rows, words.float() + model.positional_embedding[packed.word_positions])
    return text_tower.features(backbone.tower, x, packed.layouts, packed.prefixes)


def encode_embedded(backbone: Backbone, embeddings: Tensor, ends: Tensor, prefix_length: int = 0) -> Tensor:
    """Encode sentences that were built on the device, as token embeddings.

    Args:
        backbone: the frozen CLIP.
        embeddings: [N, L, d_tok], without positions.
        ends: [N] int64, the position of each end-of-text.
        prefix_length: how many first tokens are the same in all texts; they are encoded once and get no gradients.

    Returns:
        [N, d] float32, not normalised.
    """
    count, length = embeddings.shape[:2]
    x = embeddings + backbone.model.positional_embedding[:length]
    prefix, layout = None, packed_attention.padded_layout(length - prefix_length, ends - prefix_length)
    rows = x[:, prefix_length:].flatten(0, 1)  # [N * (L - prefix_length), d_tok]
    if x.device.type == "cpu" and count:  # elsewhere packing would copy the ends from the device and wait
        layout = packed_attention.packed_layout(ends - prefix_length, x.device)
        rows = x[:, prefix_length : prefix_length + layout.longest].flatten(0, 1).index_select(0, layout.places)
    if prefix_length and count:
        pairs = text_tower.prefix_pairs(backbone.tower, x[:1, :prefix_length].detach())
        prefix_of = torch.zeros(count, dtype=torch.int64, device=x.device)
        prefix = Prefix(pairs, torch.full((1,), prefix_length, device=x.device), prefix_of)
    return text_tower.features(backbone.tower, rows, [layout], [prefix])


def _encode_plain(backbone: Backbone, tokens: Tokens) -> Tensor:
    """Encode texts as they are, into [N, d] float32, not normalised."""
    device, length = backbone.device, tokens.ids.shape[1]
    layout = packed_attention.packed_layout(tokens.ends, device)
    ids, positions = tokens.ids.flatten().to(device), torch.arange(length, device=device).repeat(len(tokens))
    ids, positions = ids[layout.places], positions[layout.places]
    x = backbone.model.token_embedding(ids) + backbone.model.positional_embedding[positions]
    return text_tower.features(backbone.tower, x, [layout], [None])
