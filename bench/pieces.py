"""The pieces of work that are measured, each by the library and in a plain rendering, on the same random problem."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from clip.model import CLIP
from torch import Tensor

from bench import published
from bench.problems import (
    PLENTY,
    WIDTH,
    backbone,
    bank,
    files,
    image_flop,
    language_model,
    model,
    pictures,
    tower_flop,
    written,
)
from searle_lib import plain, ranking
from searle_lib.backbone import texts
from searle_lib.backbone.model import encode_images, encode_patches, tokenize
from searle_lib.data import images
from searle_lib.fti4cir import training as fti_training
from searle_lib.fti4cir.captions import Captions
from searle_lib.fti4cir.network import Fti4Cir
from searle_lib.searle import concepts, distillation, oti, phi, phrases
from searle_lib.searle.phrase_bank import SLOT
from searle_lib.store import randomness

PUBLISHED_BATCH = 32  # of OTI


@dataclass(frozen=True)
class Piece:
    """A piece of work, and how the library and a plain rendering do it.

    `agree` tells whether two results are the same. `flop` is the arithmetic that is needed, 0 where other work
    takes the time. `target`, the goal, is how many times as fast the library should be; 0 without one.
    """

    name: str
    what: str
    ours: Callable[[], object]
    plain: Callable[[], object]
    agree: Callable[[object, object], bool]
    flop: float = 0.0
    target: float = 0.0


@contextmanager
def unfrozen(device: str) -> Iterator[CLIP]:
    """The CLIP whose weights take gradients, which the published trainings compute and never use."""
    network = model(device).requires_grad_(True)
    try:
        yield network
    finally:
        network.requires_grad_(False)
        for parameter in network.parameters():
            parameter.grad = None


def oti_steps(number: int, steps: int, precision: str = "float32", target: float = 0.0, device: str = "cpu") -> Piece:
    """OTI's steps for a batch of images."""
    seen, near = pictures(number)
    settings = oti.Settings(steps=steps)
    keys = randomness.keys(settings.seed, "oti", seen.ids)
    templates = randomness.integers(keys, 0, steps, len(concepts.TEMPLATES)).T  # [steps, B]
    rows = bank(precision, device).usable_concepts(near, range(number), settings.top_k)
    rows = rows.draw_phrase(randomness.uniform(keys, steps, steps)).T
    pairs = [_pairs(of_step) for of_step in rows]
    start = torch.from_numpy(randomness.normal(keys, 2 * steps, WIDTH)).float() * oti.START_DEVIATION
    named = [[concepts.TEMPLATES[row] for row in of_step] for of_step in templates.tolist()]

    def ours() -> Tensor:
        ready = backbone(precision, device), seen, near, bank(precision, device)
        return oti.optimise(*ready, range(number), settings)["ema"]

    def as_published() -> Tensor:
        made = []
        with unfrozen(device) as network:
            for first in range(0, number, PUBLISHED_BATCH):
                of = slice(first, first + PUBLISHED_BATCH)
                drawn = [of_step[of] for of_step in named], [of_step[of] for of_step in pairs]
                made.append(plain.oti(network, start[of].to(device), seen.vectors[of].to(device), *drawn).cpu())
        return torch.cat(made)

    filled = [template.format(SLOT) for of_step in named for template in of_step]
    replaced = [phrase.replace(concept, SLOT, 1) for of_step in pairs for concept, phrase in of_step]
    nearly = 2e-3 if precision == "float32" else 0.2
    return Piece(
        f"OTI, {precision}",
        f"{number} images, {steps} steps, phrases of about 33 tokens",
        ours,
        as_published,
        lambda a, b: bool((a - b).norm() / b.norm() < nearly),
        2 * tower_flop(texts.split(tokenize(filled + replaced)).ends + 1),  # there and back
        target,
    )


def phi_epoch(number: int, batch: int, device: str = "cpu") -> Piece:
    """An epoch of φ, phrases included."""
    seen, near = pictures(number)
    tokens = torch.from_numpy(np.random.default_rng(2).normal(size=(number, WIDTH))).float()
    settings = distillation.Settings(epochs=1, batch_size=batch, dropout=0.0, top_k=15)
    keys = randomness.keys(settings.seed, "phi", seen.ids)
    ready = bank("float32", device)
    known = distillation.TrainingSet(seen, replace(seen, vectors=tokens), near, written())
    pairs = _pairs(
        ready.usable_concepts(near, range(number), settings.top_k).draw_concept_then_phrase(
            *randomness.uniform(keys, 0, 2).T
        )
    )

    def ours() -> list[float]:
        with tempfile.TemporaryDirectory() as folder:
            clip, rows = backbone("float32", device), []
            distillation.PhiTraining(Path(folder), clip, known, ready, settings).run(1, rows.append)
        return [float(rows[0]["distil"] + settings.lambda_gpt * rows[0]["gpt"])]

    def as_published() -> list[float]:
        torch.manual_seed(settings.seed)
        network = phi.Phi(WIDTH, WIDTH, 0.0).to(device)
        torch.manual_seed(int(randomness.keys(settings.seed, "phi-epoch", [0])[0] >> np.uint64(1)))
        batches = [rows for rows in torch.randperm(number).split(batch) if len(rows) == batch]
        with unfrozen(device) as clip:
            there = seen.vectors.to(device), tokens.to(device)
            return [float(np.mean(published.phi_losses(clip, network, *there, batches, pairs)))]

    replaced = [phrase.replace(concept, SLOT) for concept, phrase in pairs]
    return Piece(
        "φ, an epoch",
        f"{number} images, batches of {batch}; phrase features at hand, as OTI left them",
        ours,
        as_published,
        lambda a, b: abs(a[0] - b[0]) < 1e-3 * abs(b[0]),
        2 * tower_flop(texts.split(tokenize(replaced)).ends + 1),
        target=10.0,
    )


def _pairs(rows: np.ndarray) -> list[tuple[str, str]]:
    """Concept and phrase of phrase rows."""
    owner = np.repeat(written().concepts, np.diff(written().starts))
    return [(owner[row], written().texts[row]) for row in rows.tolist()]


def fti_step(batch: int, device: str = "cpu") -> Piece:
    """A training step of FTI4CIR with its one visual pass, as in a first epoch."""
    torch.manual_seed(1)
    networks = [Fti4Cir(WIDTH, 768, dropout=0.0).to(device) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    pixels = torch.randn(batch, 3, 224, 224).to(device)
    subjects = (["a man", "two small dogs", "a red car", "a tall building"] * batch)[:batch]
    said = ["riding a wave on a surfboard", "sleeping on a couch", "parked near a house", "with a clock on it"]
    attributes = (said * batch)[:batch]
    sentences = fti_training.prepare_sentences(
        backbone("float32", device), Captions(tuple(map(str, range(batch))), tuple(subjects), tuple(attributes))
    )

    def gradients(network: Fti4Cir) -> Tensor:
        return torch.cat([p.grad.flatten().cpu() for p in network.parameters() if p.grad is not None])

    def ours() -> Tensor:
        networks[1].zero_grad(set_to_none=True)
        clip = backbone("float32", device)
        embeddings, patches = encode_patches(clip, pixels)
        words = networks[1](embeddings, patches)
        terms = fti_training.losses(clip, words, F.normalize(embeddings, dim=-1), sentences, 0.2)
        fti_training.total(terms, fti_training.Settings()).backward()
        return gradients(networks[1])

    def as_published() -> Tensor:
        networks[0].zero_grad(set_to_none=True)
        with unfrozen(device) as clip:
            published.fti_step(clip, networks[0], pixels, subjects, attributes)
        return gradients(networks[0])

    return Piece(
        "FTI4CIR, a step",
        f"{batch} images, captions of about 12 tokens",
        ours,
        as_published,
        lambda a, b: bool((a - b).norm() / b.norm() < 1e-4),
        target=5.0,
    )


def association(names: int, device: str = "cpu") -> Piece:
    """Text features of names by 24 templates, and each image's nearest names."""
    words = [f"{PLENTY[i % len(PLENTY)]} {PLENTY[(7 * i) % len(PLENTY)]} {i}" for i in range(names)]
    vectors = pictures(64)[0].vectors
    before = [template.split("{}")[0] for template in concepts.TEMPLATES]
    tokens = tokenize([template.format(f" {name} ") for name in words for template in concepts.TEMPLATES])

    def ours() -> list[list[str]]:
        features = concepts.concept_embeddings(backbone("float32", device), tuple(words))
        best = ranking.search(F.normalize(vectors, dim=-1), features, k=15).top
        return [[words[row] for row in rows] for rows in best.tolist()]

    return Piece(
        "concept association",
        f"{names} of 20,931 names (the time is that of the names), 64 images",
        ours,
        lambda: published.nearest_names(model(device), words, vectors.to(device), 15),
        lambda a, b: np.mean([x == y for x, y in zip(sum(a, []), sum(b, []), strict=True)]) > 0.98,  # noqa: RUF017
        flop=tower_flop(texts.split(tokens, tokenize(before * names).ends).ends + 1),
        target=6.0,
    )


def embedding(number: int, device: str = "cpu") -> Piece:
    """Pictures read, prepared and encoded."""
    paths = files(number)

    def as_published() -> Tensor:
        return published.image_embeddings(
            model(device), paths, lambda picture: images.to_pixels(picture, 224, "targetpad").to(device)
        ).cpu()

    def ours() -> Tensor:
        parts = images.Reader(32, torch.get_num_threads()).batches(paths, 224, "targetpad")
        return torch.cat([encode_images(backbone("float32", device), pixels).cpu() for pixels in parts])

    return Piece(
        "image embeddings",
        f"{number} JPEG files of 640 x 480",
        ours,
        as_published,
        lambda a, b: bool((a - b).norm() / b.norm() < 1e-4),
        image_flop(number),
    )


def written_phrases(names: int, count: int, device: str = "cpu") -> Piece:
    """Phrases sampled about some concepts."""
    words, settings = tuple(PLENTY[:names]), phrases.Settings(phrases_per_concept=count)
    named = [f"{word}/{i}" for word in words for i in range(count)]
    draws = randomness.uniform(randomness.keys(settings.seed, "phrases", named), 0, settings.max_length)
    return Piece(
        "phrases",
        f"{count} each about {names} concepts, by a GPT-Neo of 6 blocks of width 512",
        lambda: phrases.sample(*language_model(device), words, settings).flatten(0, 1).tolist(),
        lambda: published.sampled_phrases(*language_model(device), words, draws.tolist(), settings),
        lambda a, b: np.mean([x == y for x, y in zip(a, b, strict=True)]) > 0.98,
    )
