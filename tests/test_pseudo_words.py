"""The method in three calls, held to what the authors' code gives."""

import dataclasses
import re
import shutil

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from projects import ROOT
from safetensors import safe_open
from torch.testing import assert_close

import searle_lib
from searle_lib import pseudo_words
from searle_lib.data import benchmarks
from searle_lib.miniworld import models
from searle_lib.miniworld.fingerprint import WEIGHTS
from searle_lib.plain import encode_with_word
from searle_lib.releases import downloads, searle_files
from searle_lib.searle import phi
from searle_lib.store.artefacts import file_sha256


@pytest.fixture
def phi_file(known_answers, tmp_path):
    return searle_files.write_phi(tmp_path / "phi_3.pt", 3, known_answers.phi)


def assert_near(actual, expected):
    assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_three_calls_give_what_the_authors_code_gives(known_answers, phi_file):
    """From files alone: picture to embedding, embedding to word, word and prompt to text."""
    clip, phi = pseudo_words.load_searle(str(known_answers.clip_file), str(phi_file), "cpu")
    image = torch.cat([pseudo_words.embed(clip, path) for path in known_answers.images])
    assert_near(image, known_answers.expected["image_features"])
    word = phi(image)
    assert_near(word, known_answers.expected["phi_out"])
    prompts = ["a photo of $"] * 10
    expected = encode_with_word(clip.model, prompts, known_answers.expected["phi_out"])
    assert_near(pseudo_words.encode_with_pseudo_words(clip, prompts, word), F.normalize(expected, dim=-1))


def test_prompts_with_words_have_the_authors_features_at_unit_length(known_answers, phi_file):
    clip, _ = pseudo_words.load_searle(str(known_answers.clip_file), str(phi_file), "cpu")
    prompts, words = known_answers.inputs["texts"], known_answers.expected["pseudo_words"]
    features = pseudo_words.encode_with_pseudo_words(clip, prompts, words)
    expected = known_answers.expected["spliced_features"]
    assert_near(features, expected / expected.norm(dim=1, keepdim=True))


def test_a_picture_is_embedded_by_the_preprocessing_that_is_named(known_answers):
    path = known_answers.images[4]
    both = (dataclasses.replace(known_answers.backbone, preprocess=name) for name in ("targetpad", "clip"))
    padded, plain = (pseudo_words.embed(clip, path) for clip in both)
    with torch.no_grad():
        pixels = known_answers.expected["clip_preprocess"][[4]]
        expected = known_answers.backbone.model.encode_image(pixels)
    assert_near(plain, expected)
    assert padded.shape == plain.shape == (1, 64) and not torch.allclose(padded, plain)


def test_a_clip_that_is_loaded_already_is_taken_as_it_is(known_answers, phi_file):
    clip, phi = pseudo_words.load_searle(known_answers.backbone, str(phi_file))
    assert clip is known_answers.backbone
    assert not phi.training and not any(weight.requires_grad for weight in phi.parameters())


def test_another_number_of_words_than_prompts_is_refused(known_answers):
    words = known_answers.expected["pseudo_words"]
    for prompts, count in ((["a $", "the $"], 1), (["a $"], 3)):
        sentence = f"there are {len(prompts)} prompts but {count} pseudo-words; pass one word per prompt"
        with pytest.raises(ValueError, match=sentence):
            pseudo_words.encode_with_pseudo_words(known_answers.backbone, prompts, words[:count])


def test_a_prompt_without_a_place_for_the_word_is_refused(known_answers):
    words = known_answers.expected["pseudo_words"][:2]
    with pytest.raises(ValueError, match=r"text 1 of 2 has no \$ among the tokens that CLIP reads; put ' \$ ' where"):
        pseudo_words.encode_with_pseudo_words(known_answers.backbone, ["a photo of $", "a photo of it"], words)


def test_a_picture_that_cannot_be_read_is_named(known_answers, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"image .*gone.jpg does not exist"):
        pseudo_words.embed(known_answers.backbone, tmp_path / "gone.jpg")
    Image.effect_noise((90, 90), 80).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:900])
    with pytest.raises(ValueError, match=r"image .*cut.png cannot be decoded \(900 bytes on disk"):
        pseudo_words.embed(known_answers.backbone, str(tmp_path / "cut.png"))


def test_a_clip_without_a_published_phi_is_refused(known_answers, cache):
    with pytest.raises(
        ValueError, match=r"no φ is published for tiny_clip; set phi to a file, or use ViT-B/32 or ViT-L/14"
    ):
        pseudo_words.load_searle(str(known_answers.clip_file), device="cpu")
    assert not cache.exists()


def test_a_phi_of_another_clip_is_refused(known_answers, tmp_path):
    file = searle_files.write_phi(tmp_path / "phi.pt", 3, phi.Phi(512, 512).state_dict())
    with pytest.raises(ValueError, match=r"phi.pt is a φ for embeddings of 512 .* but this CLIP has 64 and 64"):
        pseudo_words.load_searle(known_answers.backbone, str(file))


def test_a_phi_that_is_not_there_is_named(known_answers, tmp_path):
    with pytest.raises(ValueError, match=r"gone.pt is neither .* a file, nor one of SEARLE_ViT-B32, SEARLE_ViT-L14"):
        pseudo_words.load_searle(known_answers.backbone, str(tmp_path / "gone.pt"))


def test_a_published_phi_of_the_cache_is_taken_by_name(known_answers, cache):
    searle_files.write_phi(cache / "SEARLE_ViT-B32.pt", 3, known_answers.phi)
    _, phi = pseudo_words.load_searle(known_answers.backbone, "SEARLE_ViT-B32")
    assert all(torch.equal(phi.state_dict()[name], value) for name, value in known_answers.phi.items())


@pytest.mark.parametrize(("name", "file"), [("ViT-B/32", "SEARLE_ViT-B32.pt"), ("ViT-L/14", "SEARLE_ViT-L14.pt")])
def test_without_network_the_published_phi_is_asked_for_by_url_and_place(known_answers, cache, name, file):
    """The small CLIP under a published name: which φ is fetched depends on nothing else."""
    with pytest.raises(ConnectionError) as problem:
        pseudo_words.load_searle(dataclasses.replace(known_answers.backbone, name=name))
    url = f"https://github.com/miccunifi/SEARLE/releases/download/weights/{file}"
    assert f"download {url} on a machine with network and put it at {cache / file}." in str(problem.value)


def test_without_network_a_published_clip_is_asked_for_by_url_and_place(cache):
    with pytest.raises(ConnectionError) as problem:
        pseudo_words.load_searle("ViT-B/32", device="cpu")
    place = cache.parent / "clip" / "ViT-B-32.pt"
    assert "download https://openaipublic.azureedge.net/clip/" in str(problem.value)
    assert f"on a machine with network and put it at {place}." in str(problem.value)


README = (ROOT / "README.md").read_text(encoding="utf-8")
LINES = re.search(r"^Three lines give.*?```python\n(.*?)^```$", README, re.M | re.S)[1]


def test_the_readmes_three_lines_run_as_printed_on_what_every_clone_has(world, tmp_path, monkeypatch):
    shutil.copy(min((world / "FashionIQ" / "images").iterdir()), tmp_path / "own.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(downloads, "cache", lambda: tmp_path / "cache")
    names = {"searle_lib": searle_lib}
    exec(LINES, names)
    assert names["query"].shape == (1, 128) and names["clip"].name == "tiny-clip"
    assert_near(names["query"].norm(), torch.tensor(1.0))
    again = {"searle_lib": searle_lib}
    exec(LINES, again)  # from the cache
    assert torch.equal(again["query"], names["query"])


def test_the_miniature_phi_belongs_to_the_miniature_clip():
    with safe_open(WEIGHTS / models.PHI, "pt") as file:
        assert file.metadata()["clip_sha256"] == file_sha256(WEIGHTS / "clip.safetensors")


def test_the_miniature_phi_retrieves_targets_of_the_drawn_world(world, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "cache", lambda: tmp_path)
    clip, phi = pseudo_words.load_searle("mini", device="cpu")
    (cirr,) = benchmarks.load("cirr", world, "val")
    gallery = F.normalize(torch.cat([pseudo_words.embed(clip, path) for path in cirr.gallery["path"]]), dim=-1)
    images, ranks = list(cirr.gallery["image"]), []
    for query in cirr.queries.to_dict("records"):
        word = phi(pseudo_words.embed(clip, cirr.gallery["path"][images.index(query["reference"])]))
        prompt = f"a photo of $ that {query['sentences'][0]}"
        scores = gallery @ pseudo_words.encode_with_pseudo_words(clip, [prompt], word)[0]
        ranks.append(int((scores > scores[images.index(query["target"])]).sum()))
    assert sum(rank < 10 for rank in ranks) > 0.7 * len(ranks) > 10 / len(images) * len(ranks), ranks
