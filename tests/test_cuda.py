"""Every path that depends on the device, on a GPU and on the CPU: the same numbers to a stated tolerance.

`make test-cuda` runs this file, and a machine without a GPU skips it. It has not been run on a GPU so far: its tests
were only written and run with the CPU in the place of the GPU. Float32 must agree to 1e-4 of unit vectors, losses and
gradients. bfloat16 keeps eight bits, so features must agree with float32's to a cosine of 0.99 and pseudo-words after
six steps to 0.95.
"""

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from problems import FAST, problem
from projects import make_project, process
from torch.testing import assert_close

from searle_lib.backbone.model import encode_images, encode_patches, load_clip
from searle_lib.backbone.texts import encode_texts
from searle_lib.data import annotations
from searle_lib.data.images import Reader
from searle_lib.fti4cir import network, prompts
from searle_lib.fti4cir import training as fti_training
from searle_lib.fti4cir.captions import Captions
from searle_lib.fti4cir.network import Fti4Cir
from searle_lib.ranking import search
from searle_lib.searle import concepts, distillation, oti, phrase_bank, phrases
from searle_lib.searle.phi import Phi
from searle_lib.store.artefacts import Store
from searle_lib.store.batches import BatchSize

GPU = "cuda"
FLOAT32 = {"atol": 1e-4, "rtol": 1e-4}
FEATURES, WORDS = 0.99, 0.95  # cosines that bfloat16 must reach

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(GPU == "cuda" and not torch.cuda.is_available(), reason="needs a GPU"),
]


@pytest.fixture(scope="module")
def clips(world):
    """The miniature world's CLIP on the CPU and on the GPU in float32, and on the GPU in bfloat16."""
    file = str(world / "models" / "tiny-clip.pt")
    return load_clip(file), load_clip(file, GPU), load_clip(file, GPU, "bfloat16")


@pytest.fixture(scope="module")
def pixels(world, clips):
    """The pixels [8, 3, n, n] of eight images."""
    paths = [Path(path) for path in annotations.imagenet(world).head(8)["path"]]
    return next(Reader(8).batches(paths, clips[0].resolution, "targetpad"))


def cosines(a, b):
    return F.cosine_similarity(a.cpu().float().flatten(1), b.cpu().float().flatten(1))


def unit(vectors):
    return F.normalize(vectors.cpu().float(), dim=-1)


def test_image_embeddings(clips, pixels):
    cpu, gpu, half = (encode_images(clip, pixels) for clip in clips)
    assert_close(unit(gpu), unit(cpu), **FLOAT32)
    assert cosines(half, cpu).min() > FEATURES


def test_patch_tokens(clips, pixels):
    cpu, gpu, half = (encode_patches(clip, pixels)[1] for clip in clips)
    assert_close(unit(gpu), unit(cpu), **FLOAT32)
    assert cosines(half, cpu).min() > FEATURES


def test_text_features_with_and_without_pseudo_words(clips):
    texts = ["$", "a photo of $ that is blue", "a $ and a $ together", "a photo of $ " + "and another one " * 40]
    words = torch.randn(len(texts), clips[0].width, generator=torch.Generator().manual_seed(0)) * 0.02
    for vectors in (None, words):
        cpu, gpu, half = (encode_texts(clip, texts, words=vectors) for clip in clips)
        assert_close(unit(gpu), unit(cpu), **FLOAT32)
        assert cosines(half, cpu).min() > FEATURES


def test_concepts_and_the_phrase_bank(clips, tmp_path):
    images, _, written = problem(clips[0], 40)
    banks, nearest = [], []
    for number, clip in enumerate(clips[:2]):
        store = Store(tmp_path / str(number))
        banks.append(phrase_bank.prepare(store, clip, written).features[torch.arange(len(written.texts))])
        features = unit(concepts.concept_embeddings(clip, written.concepts))
        nearest.append((images.unit @ features.T).topk(2).values)
    assert_close(banks[1], banks[0], **FLOAT32)
    assert_close(nearest[1], nearest[0], **FLOAT32)


def test_pseudo_words_by_optimisation(clips, tmp_path):
    images, near, written = problem(clips[0])
    stores = (Store(tmp_path / name) for name in ("cpu", "gpu", "half"))
    cpu, gpu, half = (
        oti.invert(store, clip, images, near, written, FAST) for store, clip in zip(stores, clips, strict=True)
    )
    assert_close(gpu.tokens.vectors, cpu.tokens.vectors, atol=1e-4, rtol=1e-3)
    assert abs(gpu.history - cpu.history).to_numpy().max() < 1e-4
    assert cosines(half.tokens.vectors, cpu.tokens.vectors).min() > WORDS


def test_gradients_of_the_pseudo_words(clips, tmp_path):
    images, _, written = problem(clips[0])
    gradients = []
    for number, clip in enumerate(clips[:2]):
        bank = phrase_bank.prepare(Store(tmp_path / str(number)), clip, written)
        words = torch.full((len(images.ids), clip.width), 0.01, device=clip.device, requires_grad=True)
        rows = torch.zeros(len(images.ids), 1, dtype=torch.int64)
        packed = oti._pack_texts(clip, bank, rows, rows)[0]
        features = bank.features[rows.flatten()].to(clip.device)
        cos, gpt = oti.losses(clip, words, images.unit.to(clip.device), packed, features)
        oti.total(cos, gpt, FAST).sum().backward()
        gradients.append(words.grad)
    assert_close(unit(gradients[1]), unit(gradients[0]), **FLOAT32)


def test_phi_and_its_first_epoch(clips, tmp_path):
    images, near, written = problem(clips[0], 6)
    torch.manual_seed(0)
    phi = Phi(clips[0].dimension, clips[0].width, 0.0).eval()
    with torch.no_grad():
        expected = phi(images.vectors)
        assert_close(phi.to(GPU)(images.vectors.to(GPU)).cpu(), expected, **FLOAT32)
    tokens = dataclasses.replace(images, vectors=torch.randn(6, clips[0].width), key="tokens")
    data = distillation.TrainingSet(images, tokens, near, written)
    settings = distillation.Settings(epochs=1, batch_size=2, top_k=4, learning_rate=1e-4, dropout=0.0)
    rows = []  # without dropout, whose random numbers depend on the device
    for number, clip in enumerate(clips[:2]):
        distillation.train(Store(tmp_path / str(number)), clip, data, settings, on_epoch=rows.append)
    assert rows[1] == pytest.approx(rows[0], abs=1e-4, rel=1e-4)


def test_a_step_of_fti4cir(clips, pixels):
    captions = Captions(tuple("abcdefgh"), ("a man", "two cats") * 4, ("riding a wave", "on the beach") * 4)
    torch.manual_seed(0)
    weights = Fti4Cir(clips[0].dimension, clips[0].patch_width).state_dict()
    terms, gradients, counts = [], [], []
    for clip in (clips[0].exact, clips[1].exact):  # on the CPU in float64, as the study runs
        embeddings, tokens = encode_patches(clip, pixels)
        model = network.build_network(clip, weights).requires_grad_(True)
        words = model(embeddings, tokens)
        sentences = fti_training.prepare_sentences(clip, captions)
        losses = fti_training.losses(clip, words, F.normalize(embeddings, dim=-1), sentences, temperature=0.2)
        sum(losses.values()).backward()
        terms.append({name: float(value.detach()) for name, value in losses.items()})
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        counts.append(words.counts.tolist())
    assert counts[1] == counts[0]
    assert terms[1] == pytest.approx(terms[0], abs=1e-4, rel=1e-4)
    assert_close(unit(gradients[1]), unit(gradients[0]), **FLOAT32)


def test_queries_of_fti4cir(clips, pixels):
    torch.manual_seed(0)
    weights, queries = Fti4Cir(clips[0].dimension, clips[0].patch_width).state_dict(), []
    for clip in (clips[0].exact, clips[1].exact):
        with torch.no_grad():
            words = network.build_network(clip, weights)(*encode_patches(clip, pixels))
            queries.append(prompts.query(clip, words, ["is blue"] * len(pixels)))
    assert_close(unit(queries[1]), unit(queries[0]), **FLOAT32)


@pytest.mark.parametrize("gallery", [41, 64 * 9 * 11 + 5])  # the second is searched block by block
def test_rankings_are_the_same_with_ties_and_exclusions(gallery):
    random = torch.Generator().manual_seed(3)  # products of quarters are exact, so equal scores are equal
    queries = torch.randint(-2, 3, (23, 8), generator=random).float() / 4
    images = torch.randint(-2, 3, (gallery, 8), generator=random).float() / 4
    rows = {"candidates": torch.arange(23).unsqueeze(1), "members": torch.arange(46).view(23, 2) % gallery}
    cpu, gpu = (
        search(queries.to(device), images.to(device), k=10, excluded=torch.arange(23) + 1, **rows)
        for device in ("cpu", GPU)
    )
    assert all(torch.equal(getattr(gpu, name), getattr(cpu, name)) for name in ("top", "scores", "ranks", "order"))


def test_sampled_phrases(world):
    folder = str(world / "models" / "tiny-gpt-neo")
    model, tokenizer = phrases.load_language_model(folder)
    settings = phrases.Settings(phrases_per_concept=4)
    expected = phrases.sample(model, tokenizer, ("Boat", "Star"), settings)
    sampled = phrases.sample(model.to(GPU), tokenizer, ("Boat", "Star"), settings)
    assert (sampled == expected).float().mean() > 0.95  # a draw next to a threshold may fall on its other side


@pytest.mark.skipif(GPU != "cuda", reason="the memory of a GPU")
def test_a_batch_that_exceeds_the_memory_of_the_gpu_is_halved(capsys):
    free, _ = torch.cuda.mem_get_info()
    size = BatchSize(32, "image_batch_size")
    parts = size.over(0, 32, lambda rows: len(torch.empty(len(rows), free // 10, dtype=torch.uint8, device=GPU)))
    assert sum(parts) == 32 and size.size == 8
    assert capsys.readouterr().out.count("memory ran short") == 1


@pytest.mark.skipif(GPU != "cuda", reason="a forked kernel and its GPU")
def test_the_kernels_of_a_study_use_the_gpu(world, tmp_path):
    ran = process(make_project(tmp_path / "p", world), "run", "params/quick.yaml", "-p", "device=cuda")
    assert ran.returncode == 0, ran.stderr
