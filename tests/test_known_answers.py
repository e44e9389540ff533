"""Parity with the authors' published code: its outputs on a small random CLIP, met to 1e-5, integers exactly."""

import pytest
import torch
import torch.nn.functional as F
from conftest import COMPACT
from torch.testing import assert_close

from searle_lib.backbone import texts
from searle_lib.backbone.model import encode_images, encode_patches, join_tokens, tokenize
from searle_lib.backbone.texts import encode_texts
from searle_lib.data import images
from searle_lib.fti4cir import prompts
from searle_lib.fti4cir import training as fti_training
from searle_lib.fti4cir.captions import Captions
from searle_lib.fti4cir.network import Fti4Cir
from searle_lib.ranking import search
from searle_lib.searle import concepts, distillation, oti
from searle_lib.searle.phi import Phi


def fti_model(known_answers):
    """The authors' FTI4CIR weights in our module."""
    model = Fti4Cir(64, 64).eval().requires_grad_(False)
    model.load_state_dict(known_answers.fti)
    return model


def assert_near(actual, expected):
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
    assert_near(features, known_answers.expected["spliced_features"])


@pytest.mark.parametrize("name", ["targetpad", "clip"])
def test_known_answers_preprocessing(known_answers, name):
    key = {"targetpad": "targetpad", "clip": "clip_preprocess"}[name]
    pixels = torch.stack([images.to_pixels(images.read(path), 32, name) for path in known_answers.images])
    assert_near(pixels, known_answers.expected[key])


def test_known_answers_image_features(known_answers):
    features = encode_images(known_answers.backbone, known_answers.expected["targetpad"])
    assert_near(features, known_answers.expected["image_features"])


def test_known_answers_contrastive_loss(known_answers):
    a, b = known_answers.expected["nce_a"], known_answers.expected["nce_b"]
    for temperature, key in ((0.25, "nce_025"), (0.20, "nce_020")):
        loss = distillation.contrastive_loss(F.normalize(a, dim=-1), F.normalize(b, dim=-1), temperature)
        assert_near(loss, known_answers.expected[key])


def test_known_answers_phi(known_answers):
    phi = Phi(64, 64).eval()
    phi.load_state_dict(known_answers.phi)
    assert_near(phi(known_answers.expected["image_features"]), known_answers.expected["phi_out"])


def test_known_answers_oti_losses_and_gradient(known_answers):
    backbone, expected, case = known_answers.backbone, known_answers.expected, known_answers.inputs["oti"]
    words = expected["oti_v"].clone().requires_grad_()
    targets = F.normalize(expected["image_features"][case["image_rows"]], dim=-1)
    plain = F.normalize(encode_texts(backbone, case["phrases"]), dim=-1)
    replaced = [p.replace(c, " $ ", 1) for p, c in zip(case["phrases"], case["concepts"], strict=True)]
    assert replaced == case["phrase_texts"]
    every = texts.split(join_tokens(tokenize(case["template_texts"]), tokenize(replaced)))
    groups = every[torch.arange(4)], every[torch.arange(4, 8)]
    read = texts.pack(backbone, groups, texts.encode_prefixes(backbone, every.prefixes))
    cos, gpt = oti.losses(backbone, words, targets, read, plain)
    loss = oti.total(cos, gpt, oti.Settings()).mean()
    loss.backward()
    assert_near(cos.mean(), expected["oti_cos_loss"])
    assert_near(gpt.mean(), expected["oti_gpt_loss"])
    assert_near(loss, expected["oti_loss"])
    assert_near(words.grad, expected["oti_grad"])


def test_known_answers_concepts(known_answers):
    embeddings = concepts.concept_embeddings(known_answers.backbone, tuple(known_answers.inputs["vocabulary"]))
    assert_near(embeddings, known_answers.expected["concept_embeddings"])
    unit = F.normalize(known_answers.expected["image_features"], dim=-1)
    assert torch.equal(search(unit, embeddings, k=8).top, known_answers.expected["concept_ranking"])


def test_known_answers_features_do_not_depend_on_what_follows_the_end_of_text(known_answers):
    backbone, sentences = known_answers.backbone, known_answers.inputs["texts"]
    full = backbone.model.encode_text(known_answers.expected["token_ids"].long())  # CLIP's own 77 positions
    assert_near(encode_texts(backbone, sentences), full)


def test_known_answers_fti_network_and_query(known_answers):
    expected, model = known_answers.expected, fti_model(known_answers)
    embeddings, patches = encode_patches(known_answers.backbone, expected["targetpad"])
    assert_near(embeddings, expected["image_features"])
    assert_near(patches, expected["fti_patch_features"])
    words = model(embeddings, patches)
    assert words.counts.tolist() == expected["fti_counts"].tolist()
    assert_near(words.latent, expected["fti_attributes"])
    assert_near(words.subject, expected["fti_subject"])
    assert_near(words.attributes, expected["fti_attribute_words"])
    modifications = known_answers.inputs["fti_modifications"]
    assert_near(prompts.query(known_answers.backbone, words, modifications), expected["fti_query"])


def test_known_answers_fti_losses(known_answers):
    expected, inputs, clip = known_answers.expected, known_answers.inputs, known_answers.backbone
    words = fti_model(known_answers)(expected["image_features"], expected["fti_patch_features"])
    captions = Captions(tuple(range(10)), tuple(inputs["fti_subjects"]), tuple(inputs["fti_attributes_text"]))
    sentences = fti_training.prepare_sentences(clip, captions)
    images = F.normalize(expected["image_features"], dim=-1)
    terms = fti_training.losses(clip, words, images, sentences, 0.20)
    assert_near(terms["contrastive"], expected["fti_contrastive"])
    assert_near(terms["orthogonality"], expected["fti_orthogonal"])
    assert_near(terms["subject"] + terms["attribute"] + terms["whole"], expected["fti_regularisation"])
    assert_near(fti_training.total(terms, fti_training.Settings()), expected["fti_total_loss"])


def test_known_answers_compact_copy_is_small():
    assert sum(path.stat().st_size for path in COMPACT.iterdir()) < 3_000_000
