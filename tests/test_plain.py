"""The plain rendering held to what is outside this project: the clip package's own CLIP and the authors' outputs."""

import clip
import torch.nn.functional as F
from torch.testing import assert_close

from searle_lib import plain

TEXTS = ["a photo of a star", "boat", "a red gown on the beach", "a photo of a tree " + "and another one " * 40]


def test_a_text_has_the_features_of_clips_own_encode_text(tiny):
    expected = tiny.model.encode_text(clip.tokenize(TEXTS, truncate=True))
    assert_close(plain.encode_text(tiny.model, TEXTS), expected, atol=1e-5, rtol=1e-5)


def test_the_embedding_of_a_real_word_gives_the_features_of_the_text_with_that_word(tiny):
    ids = clip.tokenize(["star", "boat"])[:, 1]
    expected = tiny.model.encode_text(clip.tokenize(["a photo of star that is blue", "boat on the beach"]))
    texts = ["a photo of $ that is blue", "$ on the beach"]
    assert_close(plain.encode_with_word(tiny.model, texts, tiny.model.token_embedding(ids)), expected)


def test_words_at_any_positions_give_the_features_of_the_text_with_those_words(tiny):
    red, star = tiny.model.token_embedding(clip.tokenize(["red star"])[0, 1:3])
    expected = tiny.model.encode_text(clip.tokenize(["a photo of red star", "a star"]))
    assert_close(plain.encode_text(tiny.model, ["a photo of * *", "a *"], [{4: red, 5: star}, {2: star}]), expected)


def test_pseudo_words_give_the_features_of_the_authors_code(known_answers):
    texts, words = known_answers.inputs["texts"], known_answers.expected["pseudo_words"]
    features = plain.encode_with_word(known_answers.backbone.model, texts, words)
    assert_close(features, known_answers.expected["spliced_features"], atol=1e-5, rtol=1e-5)


def test_the_contrastive_loss_is_that_of_the_authors_code(known_answers):
    a, b = (F.normalize(known_answers.expected[name], dim=-1) for name in ("nce_a", "nce_b"))
    assert_close(plain.contrastive_loss(a, b, 0.25), known_answers.expected["nce_025"], atol=1e-5, rtol=1e-5)


def test_a_step_of_oti_follows_the_gradient_of_the_authors_code(known_answers):
    """AdamW's first step moves every coordinate by the learning rate against the sign of its gradient."""
    known, start = known_answers.inputs["oti"], known_answers.expected["oti_v"]
    images = known_answers.expected["image_features"][known["image_rows"]]
    phrases = list(zip(known["concepts"], known["phrases"], strict=True))
    templates = [text.replace(" $ ", "{}", 1) for text in known["template_texts"]]
    moved = plain.oti(known_answers.backbone.model, start, images, [templates], [phrases], ema_decay=0.0)
    expected = start * (1 - 0.02 * 0.01) - 0.02 * known_answers.expected["oti_grad"].sign()
    assert_close(moved, expected, atol=1e-4, rtol=1e-4)
