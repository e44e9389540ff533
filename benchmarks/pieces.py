"""The pieces of work that are measured, each by the library and in a plain rendering, on the same random problem."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from clip.model import CLIP
from PIL import Image
from torch import Tensor

from benchmarks import fti_plain, plain
from searle_lib import (
    concepts,
    distillation,
    evaluation,
    fti_training,
    images,
    inversion,
    phrase_bank,
    phrases,
    randomness,
    retrieval,
)  # fmt: skip
from searle_lib.artefacts import Store
from searle_lib.backbone import Backbone, encode_images, encode_patches
from searle_lib.benchmarks import Benchmark
from searle_lib.captions import Captions
from searle_lib.embeddings import Embeddings
from searle_lib.fti4cir import Fti4Cir

WIDTH, BLOCKS = 512, 12  # of ViT-B/32's text tower
SIZES = {
    "embed_dim": 512, "image_resolution": 224, "vision_layers": 12, "vision_width": 768, "vision_patch_size": 32,
    "context_length": 77, "vocab_size": 49408, "transformer_width": WIDTH, "transformer_heads": 8,
    "transformer_layers": BLOCKS,
}  # fmt: skip
KINDS = (torch.float32, torch.bfloat16)
PLENTY = "the old man walks along a quiet river with his small dog while children play near bright red boats and some \
people eat lunch under green trees on warm days".split()


@dataclass(frozen=True)
class Piece:
    """A piece of work: what is measured, both ways to do it, whether the results agree, the arithmetic that is needed
    (FLOP, 0 where it is no matter of that), and by how much the library should be faster."""

    name: str
    what: str
    ours: Callable[[], object]
    plain: Callable[[], object] | None
    agree: Callable[[object, object], bool]
    flop: float = 0.0
    target: float = 0.0


@cache
def model() -> CLIP:
    """A CLIP of ViT-B/32's size with random weights."""
    torch.manual_seed(0)
    return CLIP(**SIZES).eval().requires_grad_(False)


@cache
def backbone(precision: str = "float32", device: str = "cpu") -> Backbone:
    """The same as a Backbone."""
    there = model() if device == "cpu" else CLIP(**SIZES).eval().requires_grad_(False).to(device)
    if device != "cpu":
        there.load_state_dict(model().state_dict())
    return Backbone("random", "", there, torch.device(device), precision)


@cache
def written() -> phrases.Phrases:
    """Phrases of about 33 tokens about twenty concepts."""
    random = np.random.default_rng(0)
    rows = [
        (f"thing{i}", f"a photo of thing{i} that " + " ".join(random.choice(PLENTY, size=random.integers(24, 28))))
        for i in range(20)
        for _ in range(16)
    ]
    return phrases.from_table(pd.DataFrame(rows, columns=["concept", "phrase"]))


def pictures(number: int) -> tuple[Embeddings, concepts.Concepts]:
    """Random embeddings and nearest concepts."""
    random = np.random.default_rng(1)
    ids = tuple(map(str, range(number)))
    vectors = torch.from_numpy(random.normal(size=(number, WIDTH))).float()
    rows = torch.from_numpy(np.stack([random.permutation(20)[:15] for _ in ids]))
    return Embeddings("random", ids, vectors, ""), concepts.Concepts(ids, rows, written().concepts, "")


@cache
def bank(precision: str = "float32", device: str = "cpu") -> phrase_bank.PhraseBank:
    """The phrases' tokens and features."""
    folder = Path(tempfile.mkdtemp())
    return phrase_bank.prepare(Store(folder), backbone(precision, device), written())


def oti(number: int, steps: int, precision: str = "float32", target: float = 0.0, device: str = "cpu") -> Piece:
    """OTI's steps for a batch of images."""
    seen, near = pictures(number)
    settings = inversion.Settings(steps=steps)
    keys = randomness.keys(settings.seed, "oti", seen.ids)
    templates = randomness.integers(keys, 0, steps, len(concepts.TEMPLATES)).T  # [steps, B]
    rows = bank(precision, device).choices(near, range(number), settings.top_k)
    rows = rows.of_all(randomness.uniform(keys, steps, steps)).T
    owner = np.repeat(written().concepts, np.diff(written().starts))
    pairs = [[(owner[row], written().texts[row]) for row in of_step.tolist()] for of_step in rows]
    start = torch.from_numpy(randomness.normal(keys, 2 * steps, WIDTH)).float() * inversion.START_DEVIATION
    named = [[concepts.TEMPLATES[row] for row in of_step] for of_step in templates.tolist()]

    def ours() -> Tensor:
        made = inversion.optimise(
            backbone(precision, device), seen, near, bank(precision, device), range(number), settings
        )
        return made["ema"]

    def as_published() -> Tensor:
        model().requires_grad_(True)
        try:
            return plain.oti(model(), start, seen.vectors, named, pairs)
        finally:
            model().requires_grad_(False)

    nearly = 2e-3 if precision == "float32" else 0.2
    return Piece(
        f"OTI, {precision}",
        f"{number} images, {steps} steps, phrases of about 33 tokens",
        ours,
        as_published,
        lambda a, b: bool((a - b).norm() / b.norm() < nearly),
        2 * steps * number * (_tower_flop(29.5) + _tower_flop(4)),
        target,
    )


def _tower_flop(tokens: float) -> float:
    """Floating-point operations of the text tower for one text of which so many tokens are read."""
    full = (BLOCKS - 1) * (24 * WIDTH**2 * tokens + 4 * WIDTH * tokens * (tokens + 4) / 2)
    return full + 4 * WIDTH**2 * tokens + 20 * WIDTH**2


def phi(number: int, batch: int) -> Piece:
    """An epoch of φ, phrases included."""
    seen, near = pictures(number)
    tokens = torch.from_numpy(np.random.default_rng(2).normal(size=(number, WIDTH))).float()
    settings = distillation.Settings(epochs=1, batch_size=batch, dropout=0.0, top_k=15)
    keys = randomness.keys(settings.seed, "phi", seen.ids)
    rows = bank().choices(near, range(number), settings.top_k).of_one(*randomness.uniform(keys, 0, 2).T)
    owner = np.repeat(written().concepts, np.diff(written().starts))
    pairs = [(owner[row], written().texts[row]) for row in rows.tolist()]

    def ours() -> list[float]:
        with tempfile.TemporaryDirectory() as folder:
            taught = replace(seen, vectors=tokens)
            training = distillation.Training(Path(folder), backbone(), seen, taught, near, bank(), settings)
            row = training.run_epoch(distillation.Validation())
        return [float(row["distil"] + settings.lambda_gpt * row["gpt"])]

    def as_published() -> list[float]:
        model().requires_grad_(True)
        try:
            torch.manual_seed(settings.seed)
            network = distillation.Phi(WIDTH, WIDTH, 0.0)
            torch.manual_seed(int(randomness.keys(settings.seed, "phi-epoch", [0])[0] >> np.uint64(1)))
            batches = [rows for rows in torch.randperm(number).split(batch) if len(rows) == batch]
            return [float(np.mean(plain.phi_steps(model(), network, seen.vectors, tokens, batches, pairs)))]
        finally:
            model().requires_grad_(False)

    return Piece(
        "φ, an epoch",
        f"{number} images, batches of {batch}; phrase features at hand, as OTI left them",
        ours,
        as_published,
        lambda a, b: abs(a[0] - b[0]) < 1e-3 * abs(b[0]),
        target=10.0,
    )


def fti(batch: int) -> Piece:
    """A training step of FTI4CIR with its one visual pass, as in a first epoch."""
    torch.manual_seed(1)
    networks = [Fti4Cir(WIDTH, 768, dropout=0.0) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    pixels = torch.randn(batch, 3, 224, 224)
    subjects = (["a man", "two small dogs", "a red car", "a tall building"] * batch)[:batch]
    said = ["riding a wave on a surfboard", "sleeping on a couch", "parked near a house", "with a clock on it"]
    attributes = (said * batch)[:batch]
    sentences = fti_training.sentences_of(
        backbone(), Captions(tuple(map(str, range(batch))), tuple(subjects), tuple(attributes))
    )

    def gradients(network: Fti4Cir) -> Tensor:
        return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])

    def ours() -> Tensor:
        networks[1].zero_grad(set_to_none=True)
        embeddings, patches = encode_patches(backbone(), pixels)
        words = networks[1](embeddings, patches)
        terms = fti_training.losses(backbone(), words, F.normalize(embeddings, dim=-1), sentences, 0.2)
        fti_training.total(terms, fti_training.Settings()).backward()
        return gradients(networks[1])

    def as_published() -> Tensor:
        networks[0].zero_grad(set_to_none=True)
        model().requires_grad_(True)
        try:
            fti_plain.step(model(), networks[0], pixels, subjects, attributes)
        finally:
            model().requires_grad_(False)
            for parameter in model().parameters():
                parameter.grad = None
        return gradients(networks[0])

    return Piece(
        "FTI4CIR, a step",
        f"{batch} images, captions of about 12 tokens",
        ours,
        as_published,
        lambda a, b: bool((a - b).norm() / b.norm() < 1e-4),
        target=5.0,
    )


def association(names: int) -> Piece:
    """Text features of names by 24 templates, and each image's nearest names."""
    words = [f"{PLENTY[i % len(PLENTY)]} {PLENTY[(7 * i) % len(PLENTY)]} {i}" for i in range(names)]
    vectors = pictures(64)[0].vectors

    def ours() -> list[list[str]]:
        features = concepts.concept_embeddings(backbone(), tuple(words))
        best = retrieval.top_k(F.normalize(vectors, dim=-1), features, 15)
        return [[words[row] for row in rows] for rows in best.tolist()]

    return Piece(
        "concept association",
        f"{names} of 20,931 names (the time is that of the names), 64 images",
        ours,
        lambda: plain.concepts_of(model(), words, vectors, 15),
        lambda a, b: np.mean([x == y for x, y in zip(sum(a, []), sum(b, []), strict=True)]) > 0.98,  # noqa: RUF017
        target=6.0,
    )


def cirr(queries: int = 4181, gallery: int = 2297) -> Piece:
    """CIRR val scored from features: ranks over the gallery and within groups."""
    random = np.random.default_rng(3)
    names = [f"dev-{i}-{i % 4}-img{i % 2}" for i in range(gallery)]
    drawn = np.stack([random.permutation(gallery)[:6] for _ in range(queries)])
    table = pd.DataFrame(
        {
            "query": [str(i) for i in range(queries)],
            "reference": [names[row[0]] for row in drawn],
            "target": [names[row[1]] for row in drawn],
            "ground_truths": [[names[row[1]]] for row in drawn],
            "group": [[names[i] for i in row[1:]] for row in drawn],
        }
    )
    vectors = torch.from_numpy(random.normal(size=(gallery, WIDTH))).float()
    units = F.normalize(torch.from_numpy(random.normal(size=(queries, WIDTH))).float(), dim=-1)
    benchmark = Benchmark("cirr", "val", "all", "cirr/val", pd.DataFrame({"image": names}), table, (queries, gallery))
    seen = Embeddings("cirr/val", tuple(names), vectors, "")

    def ours() -> dict[str, float]:
        rankings = evaluation.compare(benchmark, seen, units)
        return {name: float(evaluation.metric(name, rankings).mean()) * 100 for name, _ in benchmark.protocol.metrics}

    columns = [table[name].tolist() for name in ("reference", "target", "group")]
    return Piece(
        "CIRR val, scored",
        f"{queries:,} queries over {gallery:,} images, from features",
        ours,
        lambda: plain.cirr_recalls(units, F.normalize(vectors, dim=-1), names, *columns),
        lambda a, b: all(abs(a[name] - b[name]) < 0.05 for name in b),
        target=40.0,
    )


def circo(queries: int = 800, gallery: int = 123_403) -> Piece:
    """CIRCO test ranked to the depth of its server's files."""
    random = torch.Generator().manual_seed(4)
    vectors = F.normalize(torch.randn(gallery, WIDTH, generator=random), dim=-1)
    units = F.normalize(torch.randn(queries, WIDTH, generator=random), dim=-1)
    names = np.array([str(i) for i in range(gallery)])
    return Piece(
        "CIRCO test, ranked",
        f"{queries:,} queries over {gallery:,} images, top 50",
        lambda: retrieval.top_k(units, vectors, 50),
        lambda: plain.best_names(units, vectors, names, 50),
        lambda a, b: np.mean(names[a.numpy()] == np.array(b)) > 0.999,
        2.0 * queries * gallery * WIDTH,
    )


def embedding(number: int) -> Piece:
    """Pictures read, prepared and encoded."""
    folder, random = Path(tempfile.mkdtemp()), np.random.default_rng(5)
    paths = [folder / f"{i}.jpg" for i in range(number)]
    for path in paths:
        small = Image.fromarray(random.integers(0, 256, (15, 20, 3), dtype=np.uint8))
        small.resize((640, 480), Image.BICUBIC).save(path, quality=90)

    def ours() -> Tensor:
        parts = images.batches(paths, 224, "targetpad", 32, torch.get_num_threads())
        return torch.cat([encode_images(backbone(), pixels) for pixels in parts])

    return Piece(
        "image embeddings",
        f"{number} JPEG files of 640 x 480",
        ours,
        lambda: plain.image_embeddings(model(), paths, lambda picture: images.to_pixels(picture, 224, "targetpad")),
        lambda a, b: bool((a - b).norm() / b.norm() < 1e-4),
    )


def on_cuda() -> dict[str, Piece]:
    """What is measured on a CUDA device, the library's side alone."""
    return {f"oti-{kind}": oti(512, 20, kind, device="cuda") for kind in ("float32", "float16", "bfloat16")}
