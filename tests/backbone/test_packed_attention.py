"""Attention over packed rows against one text, one head, one query at a time."""

import pytest
import torch
from torch.testing import assert_close

from searle_lib.backbone import packed_attention, text_tower
from searle_lib.backbone.model import tokenize
from searle_lib.backbone.packed_attention import Prefix, attend, packed_layout, padded_layout
from searle_lib.backbone.texts import encode_embedded

HEADS, WIDTH = 2, 8
ENDS = [torch.tensor([3, 0, 5, 2]), torch.tensor([1, 1])]  # two groups of texts


def layouts(kind):
    if kind == "packed":
        return [packed_layout(ends, torch.device("cpu")) for ends in ENDS]
    return [padded_layout(int(ends.max()) + 1, ends) for ends in ENDS]


def prefixes(kind):
    """No prefix, the same for all texts, or one of three for each text."""
    random = torch.Generator().manual_seed(2)
    if kind == "none":
        return [None, None]
    lengths = torch.tensor([2]) if kind == "one" else torch.tensor([2, 3, 1])
    pairs = tuple(torch.randn(len(lengths), HEADS, 3, WIDTH // HEADS, generator=random).double() for _ in range(2))
    which = [torch.arange(len(ends)) % len(lengths) for ends in ENDS]
    return [Prefix((pairs,), lengths, of_group) for of_group in which]


def naive(q, k, v, ends, prefix):
    """What each query of a text gets, [L, w], its texts' k and v being [L, w] and queries at the last len(q) tokens."""
    mixed = torch.zeros_like(q)
    for row, position in enumerate(range(len(k) - len(q), len(k))):
        for head in range(HEADS):
            part = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
            keys, values = k[: position + 1, part], v[: position + 1, part]
            if prefix is not None:
                before = [x[head, : prefix[2]] for x in prefix[:2]]
                keys, values = torch.cat([before[0], keys]), torch.cat([before[1], values])
            mixed[row, part] = (keys @ q[row, part]).softmax(0) @ values
    return mixed


def expected(qkv, of_layouts, of_prefixes, ends_only):
    """Answers of the texts' tokens in order, and the packed rows that they belong to."""
    found, rows, first = [], [], 0
    for layout, prefix in zip(of_layouts, of_prefixes, strict=True):
        last = (layout.last + first).tolist()
        for text, end in enumerate(layout.ends.tolist()):
            own = range(last[text] - end, last[text] + 1)
            q, k, v = qkv[list(own)].chunk(3, dim=1)
            before = None
            if prefix is not None:
                which = int(prefix.prefix_of[text])
                before = (*(pair[which] for pair in prefix.pairs[0]), int(prefix.lengths[which]))
            found.append(naive(q[-1:] if ends_only else q, k, v, end, before))
            rows += [own[-1]] if ends_only else list(own)
        first += len(layout.places)
    return torch.cat(found), rows


@pytest.mark.parametrize("kind", ["packed", "padded"])
@pytest.mark.parametrize("prefix", ["none", "one", "many"])
@pytest.mark.parametrize("ends_only", [False, True])
def test_answers_and_gradients_are_those_of_single_queries(kind, prefix, ends_only):
    of_layouts, of_prefixes = layouts(kind), prefixes(prefix)
    tokens = sum(len(layout.places) for layout in of_layouts)
    random = torch.Generator().manual_seed(1)
    ours, theirs = (torch.randn(tokens, 3 * WIDTH, generator=random.manual_seed(1)).double() for _ in range(2))
    ours.requires_grad_(), theirs.requires_grad_()
    wanted, rows = expected(theirs, of_layouts, of_prefixes, ends_only)
    if ends_only:
        given = torch.cat([ours[rows, :WIDTH].flatten(), ours[:, WIDTH:].flatten()]).view(-1, WIDTH // HEADS)
        answers = attend(given, packed_attention.plan_ends(of_layouts, of_prefixes, HEADS), 0).view(-1, WIDTH)
    else:
        plan = packed_attention.plan_all_tokens(of_layouts, of_prefixes, HEADS)
        answers = attend(ours.view(-1, WIDTH // HEADS), plan, 0).view(-1, WIDTH)[rows]
    assert_close(answers, wanted)
    weights = torch.randn(wanted.shape, generator=random).double()
    (answers * weights).sum().backward()
    (wanted * weights).sum().backward()
    assert_close(ours.grad, theirs.grad)


def test_padded_texts_give_the_features_of_packed_ones(tiny):
    """On a CUDA device sentences stay padded; here they are packed."""
    tokens = tokenize(["a photo of a star", "a photo of two red boats on a lake", "a photo of"])
    embedded = tiny.model.token_embedding(tokens.ids)
    x = embedded + tiny.model.positional_embedding[: embedded.shape[1]]
    layout = padded_layout(embedded.shape[1], tokens.ends)
    features = text_tower.features(tiny.tower, x.flatten(0, 1), [layout], [None])
    assert_close(features, encode_embedded(tiny, embedded, tokens.ends), atol=1e-5, rtol=1e-5)
    assert_close(features, encode_embedded(tiny, embedded, tokens.ends, prefix_length=4), atol=1e-5, rtol=1e-5)
