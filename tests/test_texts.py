"""Texts cut at their pseudo-word, against CLIP's own tower over all 77 positions, one text at a time."""

import pytest
import torch
from torch.testing import assert_close

from searle_lib.backbone import texts
from searle_lib.backbone.model import PLACEHOLDER, joined, load_clip, tokenize

TEXTS = [
    "$",
    "a photo of $ that is blue",
    "We see a $ in this illustration",
    "a photo of $",
    "$ photo",
    "a photo of $ " + "and another one " * 40,  # truncated
    "A drawing of $ and of a $",
]


def by_clip_alone(clip, text, word):
    """CLIP's own forward pass over 77 positions, the first placeholder's embedding overwritten."""
    ids = torch.nn.functional.pad(tokenize([text]).ids, (0, 77))[:, :77]
    x = clip.model.token_embedding(ids)
    at = torch.arange(77) == ids[0].tolist().index(PLACEHOLDER)
    x = torch.where(at[None, :, None], word, x) + clip.model.positional_embedding
    x = clip.model.ln_final(clip.model.transformer(x.permute(1, 0, 2)).permute(1, 0, 2))
    return x[0, ids[0].argmax()] @ clip.model.text_projection


def words_for(clip, number):
    return torch.randn(number, clip.width, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("sizes", [[7], [3, 4], [1, 5, 1]])
def test_features_and_gradients_are_those_of_77_positions_however_texts_are_grouped(tiny, sizes):
    every = texts.cut(tokenize(TEXTS))
    groups = [every[rows] for rows in torch.arange(len(TEXTS)).split(sizes)]
    ours, theirs = (words_for(tiny, len(TEXTS)).requires_grad_() for _ in range(2))
    features = texts.encode(tiny, texts.lay_out(tiny, groups, texts.read_prefixes(tiny, every.prefixes)), ours)
    expected = torch.stack([by_clip_alone(tiny, text, word) for text, word in zip(TEXTS, theirs, strict=True)])
    assert_close(features, expected, atol=1e-5, rtol=1e-5)
    weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(4))
    (features * weights).sum().backward()
    (expected * weights).sum().backward()
    assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-4)


def test_texts_with_the_same_beginning_share_a_prefix():
    cut = texts.cut(tokenize(TEXTS))
    lengths = cut.prefixes.ends + 1
    assert len(lengths) == 4  # start of text alone, "a photo of", "We see a", "A drawing of"
    assert cut.which[1] == cut.which[3] == cut.which[5] and cut.which[0] == cut.which[4]
    assert (cut.ids[:, 0] == PLACEHOLDER).all()
    assert cut.firsts.tolist() == [1, 4, 4, 4, 1, 4, 4]


def test_texts_may_be_cut_at_any_place(tiny):
    tokens = tokenize(["a red car", "two boats on a lake"])
    word = tiny.model.token_embedding(tokens.ids[torch.arange(2), torch.tensor([2, 5])])  # what stands there anyway
    features = texts.encode_text(tiny, tokens, word, torch.tensor([2, 5]))
    assert_close(features, texts.encode_text(tiny, tokens), atol=1e-5, rtol=1e-5)


def test_many_texts_may_share_what_they_begin_with(tiny):
    before = ["a photo of", "", "We see a"]
    begun = [f"{start} {name}" for name in ("red car", "star", "two green boats") for start in before]
    places = tokenize(before * 3).ends
    assert len(texts.cut(tokenize(begun), places).prefixes) == 3
    features = texts.encode_texts(tiny, begun, batch_size=4, places=places)
    assert_close(features, texts.encode_texts(tiny, begun), atol=1e-5, rtol=1e-5)


def test_joined_texts_are_both_lists(tiny):
    one, other = tokenize(["a cat"]), tokenize(["a large green boat", "star"])
    both = joined(one, other)
    features = torch.cat([texts.encode_text(tiny, one), texts.encode_text(tiny, other)])
    assert_close(texts.encode_text(tiny, both), features, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precisions_stay_near_in_features_and_gradients(tiny, world, precision):
    half = load_clip(str(world / "models" / "tiny-clip.pt"), precision=precision)
    every, found = texts.cut(tokenize(TEXTS)), []
    for clip in (tiny, half):
        words = words_for(clip, len(TEXTS)).mul(0.05).requires_grad_()
        features = texts.encode(clip, texts.lay_out(clip, [every], texts.read_prefixes(clip, every.prefixes)), words)
        torch.nn.functional.normalize(features, dim=-1)[:, 0].sum().backward()
        found.append((features.detach(), words.grad))
    for exact, near in zip(*found, strict=True):
        assert near.dtype == torch.float32
        assert torch.cosine_similarity(exact, near, dim=-1).min() > 0.98
