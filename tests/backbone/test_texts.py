"""Texts cut at their pseudo-word, against CLIP's own tower over all 77 positions."""

import pytest
import torch
from torch.testing import assert_close

from searle_lib.backbone import texts
from searle_lib.backbone.model import PLACEHOLDER, join_tokens, load_clip, tokenize
from searle_lib.plain import encode_with_word

TEXTS = [
    "$",
    "a photo of $ that is blue",
    "We see a $ in this illustration",
    "a photo of $",
    "$ photo",
    "a photo of $ " + "and another one " * 40,  # truncated
    "A drawing of $ and of a $",
]


def words_for(clip, number):
    return torch.randn(number, clip.width, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("sizes", [[7], [3, 4], [1, 5, 1]])
def test_features_and_gradients_are_those_of_77_positions_however_texts_are_grouped(tiny, sizes):
    every = texts.split(tokenize(TEXTS))
    groups = [every[rows] for rows in torch.arange(len(TEXTS)).split(sizes)]
    ours, theirs = (words_for(tiny, len(TEXTS)).requires_grad_() for _ in range(2))
    features = texts.encode_packed(tiny, texts.pack(tiny, groups, texts.encode_prefixes(tiny, every.prefixes)), ours)
    expected = encode_with_word(tiny.model, TEXTS, theirs)
    assert_close(features, expected, atol=1e-5, rtol=1e-5)
    weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(4))
    (features * weights).sum().backward()
    (expected * weights).sum().backward()
    assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-4)


def test_texts_with_the_same_beginning_share_a_prefix():
    cut = texts.split(tokenize(TEXTS))
    lengths = cut.prefixes.ends + 1
    assert len(lengths) == 4  # start of text alone, "a photo of", "We see a", "A drawing of"
    assert cut.prefix_of[1] == cut.prefix_of[3] == cut.prefix_of[5] and cut.prefix_of[0] == cut.prefix_of[4]
    assert (cut.ids[:, 0] == PLACEHOLDER).all()
    assert cut.placeholder_positions.tolist() == [1, 4, 4, 4, 1, 4, 4]


def test_texts_may_be_cut_at_any_place(tiny):
    sentences = ["a red car", "two boats on a lake"]
    tokens = tokenize(sentences)
    word = tiny.model.token_embedding(tokens.ids[torch.arange(2), torch.tensor([2, 5])])  # what stands there anyway
    features = texts.encode_texts(tiny, sentences, words=word, positions=torch.tensor([2, 5]))
    assert_close(features, texts.encode_texts(tiny, sentences), atol=1e-5, rtol=1e-5)


def test_many_texts_may_share_what_they_begin_with(tiny):
    before = ["a photo of", "", "We see a"]
    begun = [f"{start} {name}" for name in ("red car", "star", "two green boats") for start in before]
    places = tokenize(before * 3).ends
    assert len(texts.split(tokenize(begun), places).prefixes) == 3
    features = texts.encode_texts(tiny, begun, batch_size=4, positions=places)
    assert_close(features, texts.encode_texts(tiny, begun), atol=1e-5, rtol=1e-5)


def test_joined_texts_are_both_lists(tiny):
    first, second = ["a cat"], ["a large green boat", "star"]
    both, expected = join_tokens(tokenize(first), tokenize(second)), tokenize(first + second)
    assert torch.equal(both.ids, expected.ids) and torch.equal(both.ends, expected.ends)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precisions_stay_near_in_features_and_gradients(tiny, world, precision):
    half = load_clip(str(world / "models" / "tiny-clip.pt"), precision=precision)
    every, found = texts.split(tokenize(TEXTS)), []
    for clip in (tiny, half):
        words = words_for(clip, len(TEXTS)).mul(0.05).requires_grad_()
        features = texts.encode_packed(clip, texts.pack(clip, [every]), words)
        torch.nn.functional.normalize(features, dim=-1)[:, 0].sum().backward()
        found.append((features.detach(), words.grad))
    for exact, near in zip(*found, strict=True):
        assert near.dtype == torch.float32
        assert torch.cosine_similarity(exact, near, dim=-1).min() > 0.98
