"""Parity with the authors' published code: its outputs on a small random CLIP, met to 1e-5, integers exactly."""

import pytest
import torch
import torch.nn.functional as F
from conftest import COMPACT
from torch.testing import assert_close

from searle_lib import concepts, distillation, images, inversion
from searle_lib.backbone import encode_images, encode_text, encode_texts, tokenize
from searle_lib.retrieval import top_k


def close(actual, expected):
    assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_known_answers_token_ids(known_answers):
    tokens = tokenize(known_answers.inputs["texts"])
    expected = known_answers.expected["token_ids"].long()
    assert torch.equal(tokens.ids, expected[:, : tokens.ids.shape[1]])
    assert not expected[:, tokens.ids.shape[1] :].any()


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_known_answers_spliced_features(known_answers, batch_size):
    words = known_answers.expected["pseudo_words"]
    features = encode_texts(known_answers.backbone, known_answers.inputs["texts"], batch_size, words)
    close(features, known_answers.expected["spliced_features"])


@pytest.mark.parametrize("name", ["targetpad", "clip"])
def test_known_answers_preprocessing(known_answers, name):
    key = {"targetpad": "targetpad", "clip": "clip_preprocess"}[name]
    pixels = torch.stack([images.to_pixels(images.read(path), 32, name) for path in known_answers.images])
    close(pixels, known_answers.expected[key])


def test_known_answers_image_features(known_answers):
    features = encode_images(known_answers.backbone, known_answers.expected["targetpad"])
    close(features, known_answers.expected["image_features"])


def test_known_answers_contrastive_loss(known_answers):
    a, b = known_answers.expected["nce_a"], known_answers.expected["nce_b"]
    for temperature, key in ((0.25, "nce_025"), (0.20, "nce_020")):
        loss = distillation.contrastive_loss(F.normalize(a, dim=-1), F.normalize(b, dim=-1), temperature)
        close(loss, known_answers.expected[key])


def test_known_answers_phi(known_answers):
    phi = distillation.Phi(64, 64).eval()
    phi.load_state_dict(torch.load(known_answers.phi, weights_only=True)["Phi"])
    close(phi(known_answers.expected["image_features"]), known_answers.expected["phi_out"])


def test_known_answers_oti_losses_and_gradient(known_answers):
    backbone, expected, oti = known_answers.backbone, known_answers.expected, known_answers.inputs["oti"]
    words = expected["oti_v"].clone().requires_grad_()
    targets = F.normalize(expected["image_features"][oti["image_rows"]], dim=-1)
    plain = F.normalize(encode_texts(backbone, oti["phrases"]), dim=-1)
    replaced = [p.replace(c, " $ ", 1) for p, c in zip(oti["phrases"], oti["concepts"], strict=True)]
    assert replaced == oti["phrase_texts"]
    templates, phrases = tokenize(oti["template_texts"]), tokenize(replaced)
    cos, gpt = inversion.losses(backbone, words, targets, templates, phrases, plain)
    loss = inversion.total(cos, gpt, inversion.Settings()).mean()
    loss.backward()
    close(cos.mean(), expected["oti_cos_loss"])
    close(gpt.mean(), expected["oti_gpt_loss"])
    close(loss, expected["oti_loss"])
    close(words.grad, expected["oti_grad"])


def test_known_answers_concepts(known_answers):
    embeddings = concepts.concept_embeddings(known_answers.backbone, tuple(known_answers.inputs["vocabulary"]))
    close(embeddings, known_answers.expected["concept_embeddings"])
    unit = F.normalize(known_answers.expected["image_features"], dim=-1)
    assert torch.equal(top_k(unit, embeddings, 8), known_answers.expected["concept_ranking"])


def test_known_answers_features_do_not_depend_on_what_follows_the_end_of_text(known_answers):
    backbone, texts = known_answers.backbone, known_answers.inputs["texts"]
    full = backbone.model.encode_text(known_answers.expected["token_ids"].long())  # CLIP's own 77 positions
    close(encode_text(backbone, tokenize(texts)), full)


def test_known_answers_compact_copy_is_small():
    assert sum(path.stat().st_size for path in COMPACT.iterdir()) < 3_000_000
