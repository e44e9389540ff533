"""Optimization-based textual inversion, OTI: one pseudo-word for one image (SEARLE section 3.1; searle.md section 3).

A free vector is moved until CLIP's text tower, reading "a photo of v", lands where CLIP's image tower puts the
picture, while phrases about the picture's concepts keep their meaning when v stands in the concept's place.
Images are independent of one another: each follows its own random numbers and sees the gradient of a batch of one.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pydantic
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from searle_lib.backbone import embeddings, texts
from searle_lib.backbone.embeddings import Embeddings
from searle_lib.backbone.model import Backbone, joined, tokenize
from searle_lib.backbone.texts import Laid
from searle_lib.data import benchmarks
from searle_lib.data.benchmarks import by_split
from searle_lib.releases import folders, searle_files
from searle_lib.searle import concepts, phrase_bank, phrases
from searle_lib.searle.concepts import TEMPLATES, Concepts
from searle_lib.searle.phrase_bank import SLOT, PhraseBank, similarity_loss
from searle_lib.searle.phrases import Phrases
from searle_lib.store import randomness, shards
from searle_lib.store.artefacts import Store, digest, file_sha256, write_json
from searle_lib.store.code import code_digest
from searle_lib.store.limits import NonNegativeFloat, PositiveFloat, PositiveInt, Seed, Share
from searle_lib.store.records import Study

START_DEVIATION = 0.02
IDS = "images.json"  # beside the words: whose they are, and at which steps their losses were noted
HISTORY = 25  # points of the loss curve that are kept of every image


@pydantic.dataclasses.dataclass(frozen=True)
class Settings:
    """What determines a pseudo-word; the published values are the defaults."""

    steps: PositiveInt = 350
    learning_rate: PositiveFloat = 2e-2
    weight_decay: NonNegativeFloat = 0.01
    top_k: PositiveInt = 15
    lambda_cos: NonNegativeFloat = 1.0
    lambda_gpt: NonNegativeFloat = 0.5
    ema_decay: Share = 0.99
    seed: Seed = 42


@dataclass(frozen=True)
class Inversion:
    """The pseudo-words of a list of images, and the course of their losses by step (columns step, cos, gpt)."""

    tokens: Embeddings
    history: pd.DataFrame


@dataclass(frozen=True)
class Batches:
    """How many images are optimised at once, and how many batches lie between savings; neither changes a result."""

    size: int = 32
    save_every: int = 10


DEFAULT_BATCHES = Batches()


def invert(
    store: Store,
    backbone: Backbone,
    images: Embeddings,
    concepts: Concepts,
    phrases: Phrases,
    settings: Settings,
    batches: Batches = DEFAULT_BATCHES,
) -> Inversion:
    """Return the EMA pseudo-word [d_tok] of every image, kept in the store; an interrupted inversion resumes.

    Args:
        store: where the pseudo-words are kept.
        backbone: the frozen CLIP.
        images: embeddings of the images to invert.
        concepts: their nearest concepts, whose phrases are used.
        phrases: all phrases.
        settings: what determines the pseudo-words.
        batches: images at once, and batches between savings.
    """
    facts = asdict(settings) | {"images": images.key, "concepts": concepts.key, "phrases": phrases.key}
    facts |= {"clip": backbone.sha256, "precision": backbone.precision, "code": code_digest(optimise)}

    def make(folder: Path) -> None:
        bank = phrase_bank.prepare(store, backbone, phrases)

        def work(first: int, end: int) -> dict[str, Tensor]:
            edges = [*range(first, end, batches.size), end]
            ranges = (range(*pair) for pair in pairwise(edges))
            parts = [optimise(backbone, images, concepts, bank, rows, settings) for rows in ranges]
            return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

        rows = batches.size * batches.save_every
        made = shards.run(folder / "shards", len(images.ids), rows, work, desc=f"OTI {images.name}")
        save_file(made, folder / "oti.safetensors")
        _describe(folder, images, kept_steps(settings.steps))
        shards.clear(folder / "shards")

    return store.keep(f"oti/{images.name}", facts, make).read(load)


def bring(store: Store, backbone: Backbone, images: Embeddings, source: Path) -> Inversion:
    """Return the pseudo-words of a list of images from a folder of the authors' experiment, kept in the store.

    Raises FileNotFoundError or ValueError, in one sentence, for files that do not hold them.
    """
    files = {
        file: file_sha256(source / file) for file in (searle_files.EMA, searle_files.NAMES) if (source / file).is_file()
    }
    facts = {"files": files, "ids": digest(list(images.ids)), "clip": backbone.sha256}
    facts["code"] = code_digest(searle_files.read_tokens)

    def make(folder: Path) -> None:
        ema, last = searle_files.read_tokens(source, images.ids, backbone.width)
        save_file({"ema": ema, "last": last}, folder / "oti.safetensors")
        _describe(folder, images, [])

    return store.keep(f"oti/{images.name}", facts, make).read(load)


def make_words(
    study: Study, backbone: Backbone, settings: Settings, batches: Batches = DEFAULT_BATCHES, oti_root: str = ""
) -> dict[str, Inversion]:
    """Return the pseudo-words of every list of images that has concepts, by its name: all that 03_oti makes.

    Lists that `oti_root`, a folder of the authors' tokens, holds are taken from there; they need no concepts.
    """
    with_concepts, words = study.artefacts("02_concepts", "concepts"), {}
    written = phrases.read(study) if with_concepts else None
    for name in [benchmarks.IMAGENET, *(f"{split}/references" for split in by_split(benchmarks.read(study)))]:
        source = folders.find_tokens(oti_root, name)
        if source and f"embeddings/{name}" in study.read("02_concepts").made:
            words[name] = bring(study, backbone, embeddings.read(study, name), source)
        elif name in with_concepts:
            known = (embeddings.read(study, name), concepts.read(study, name), written)
            words[name] = invert(study, backbone, *known, settings, batches)
    return words


def last_losses(words: Mapping[str, Inversion]) -> pd.DataFrame:
    """Return the losses at the last step, a row a list of images; no losses where the words were brought."""
    rows = {name: {"pictures": len(one.tokens.ids)} for name, one in words.items()}
    for name, one in words.items():
        rows[name] |= {} if one.history.empty else one.history.iloc[-1].drop("step").to_dict()
    table = pd.DataFrame(rows).T.astype({"pictures": int}).round(3)
    return table.rename(columns={"cos": "picture loss", "gpt": "phrase loss"})


def invert_first(study: Study, backbone: Backbone, name: str, settings: Settings, count: int = 8) -> Tensor:
    """Return the pseudo-words [n, d_tok] of the first images of a list, computed now and not kept.

    None, n = 0, for a list whose words were brought: it has no concepts.
    """
    if name not in study.artefacts("02_concepts", "concepts"):
        return torch.empty(0, backbone.width)
    images, near = embeddings.read(study, name), concepts.read(study, name)
    bank = phrase_bank.prepare(study.store, backbone, phrases.read(study))
    return optimise(backbone, images, near, bank, range(min(count, len(images.ids))), settings)["ema"]


def first_words(study: Study, name: str, count: int = 8) -> Tensor:
    """Return the pseudo-words [n, d_tok] of the first images of a list, none where 03_oti has made none of it."""
    if study.problem("03_oti") or f"oti/{name}" not in study.read("03_oti").made:
        return torch.empty(0, 0)
    return read(study, name).tokens.vectors[:count]


def read(study: Study, images: str) -> Inversion:
    """Return the pseudo-words of a list of images that 03_oti kept."""
    return study.artefact("03_oti", f"oti/{images}").read(load)


def load(folder: Path) -> Inversion:
    """Read pseudo-words from an artefact's folder; the history is empty where they were brought."""
    facts = json.loads((folder / IDS).read_text(encoding="utf-8"))
    made = load_file(folder / "oti.safetensors")
    curves = {name: made[name].mean(0).tolist() for name in ("cos", "gpt") if name in made}
    key = folder.name.rpartition("-")[2]
    history = pd.DataFrame({"step": facts["steps"]} | curves)
    return Inversion(Embeddings(facts["name"], tuple(facts["ids"]), made["ema"], key), history)


def _describe(folder: Path, images: Embeddings, steps: list[int]) -> None:
    write_json(folder / IDS, {"name": images.name, "ids": images.ids, "steps": steps})


def phrase_losses(
    study: Study, backbone: Backbone, name: str, words: Tensor, settings: Settings, phrases_each: int = 32
) -> list[float]:
    """Return the mean phrase loss of each of the first images' words [n, d_tok] of a list, over the same phrases."""
    if not len(words):
        return []
    near, bank = concepts.read(study, name), phrase_bank.prepare(study.store, backbone, phrases.read(study))
    keys = randomness.keys(settings.seed, "phrase losses", near.ids[: len(words)])
    rows = bank.choices(near, range(len(words)), settings.top_k).of_all(randomness.uniform(keys, 0, phrases_each))
    rows = torch.from_numpy(rows).flatten()  # [n * phrases_each]
    with torch.no_grad():
        repeated = words.repeat_interleave(phrases_each, 0).to(backbone.device)
        spliced = texts.encode_text(backbone, bank.first[rows], words=repeated).cpu()
    return similarity_loss(spliced, bank.features[rows]).view(len(words), -1).mean(1).tolist()


def optimise(
    backbone: Backbone, images: Embeddings, concepts: Concepts, bank: PhraseBank, rows: range, settings: Settings
) -> dict[str, Tensor]:
    """Pseudo-words of some rows of an image list: last and EMA [B, d_tok], losses cos and gpt [B, HISTORY]."""
    keys = randomness.keys(settings.seed, "oti", (images.ids[row] for row in rows))
    start = torch.from_numpy(randomness.normal(keys, 2 * settings.steps, backbone.width)).float()
    words = torch.nn.Parameter((start * START_DEVIATION).to(backbone.device))
    ema = words.detach().clone()
    targets = F.normalize(images.vectors[rows.start : rows.stop], dim=-1).to(backbone.device)
    which_template = torch.from_numpy(randomness.integers(keys, 0, settings.steps, len(TEMPLATES)))  # [B, steps]
    draws = randomness.uniform(keys, settings.steps, settings.steps)
    which_phrase = torch.from_numpy(bank.choices(concepts, rows, settings.top_k).of_all(draws))  # [B, steps]
    read = _texts_to_read(backbone, bank, which_template, which_phrase)
    plain = bank.features[which_phrase.flatten()].view(*which_phrase.shape, -1).to(backbone.device)  # [B, steps, d]
    optimizer = torch.optim.AdamW([words], lr=settings.learning_rate, weight_decay=settings.weight_decay)
    kept, history = set(kept_steps(settings.steps)), []
    for step in range(settings.steps):
        cos, gpt = losses(backbone, words, targets, read[step], plain[:, step])
        (total(cos, gpt, settings).sum() * backbone.loss_scale).backward()  # a sum: each image as in a batch of one
        words.grad /= backbone.loss_scale
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.mul_(settings.ema_decay).add_(words.detach(), alpha=1 - settings.ema_decay)
        if step in kept:
            history.append(torch.stack([cos.detach(), gpt.detach()]))
    curves = torch.stack(history, dim=-1).cpu()  # [2, B, HISTORY]
    _check_finite(ema, images, rows)
    return {"last": words.detach().cpu(), "ema": ema.cpu(), "cos": curves[0], "gpt": curves[1]}


def losses(backbone: Backbone, words: Tensor, targets: Tensor, read: Laid, plain: Tensor) -> tuple[Tensor, Tensor]:
    """Both OTI losses [B] of pseudo-words [B, d_tok].

    `read` are B templates, then B phrases. cos: 1 - cosine of the template with the word to
    the unit image embedding [B, d]; gpt: 1 - cosine of the phrase with the word to the plain phrase's unit feature
    [B, d]. Source: searle.md, section 3.
    """
    templates, phrases = texts.encode(backbone, read, words.repeat(2, 1)).chunk(2)
    cos = 1 - F.cosine_similarity(templates, targets, dim=-1)
    return cos, similarity_loss(phrases, plain)


def total(cos: Tensor, gpt: Tensor, settings: Settings) -> Tensor:
    """The weighted mean of both losses, by image."""
    weight = settings.lambda_cos + settings.lambda_gpt
    return (settings.lambda_cos * cos + settings.lambda_gpt * gpt) / weight


def _texts_to_read(backbone: Backbone, bank: PhraseBank, which_template: Tensor, which_phrase: Tensor) -> list[Laid]:
    """For every step the templates and the phrases, of which [B, steps] were drawn."""
    images, steps = which_phrase.shape
    templates = tokenize([template.format(SLOT) for template in TEMPLATES])
    every = texts.cut(joined(templates, bank.first[which_phrase.flatten()]))
    phrase = len(TEMPLATES) + torch.arange(images * steps).view(images, steps)
    pairs = texts.read_prefixes(backbone, every.prefixes)
    groups = ((every[which_template[:, step]], every[phrase[:, step]]) for step in range(steps))
    return [texts.lay_out(backbone, of_step, pairs) for of_step in groups]


def kept_steps(steps: int) -> list[int]:
    return sorted({round(step) for step in np.linspace(0, steps - 1, min(steps, HISTORY))})


def _check_finite(words: Tensor, images: Embeddings, rows: range) -> None:
    broken = (~torch.isfinite(words).all(1)).nonzero().flatten().tolist()
    if broken:
        raise ValueError(
            f"the pseudo-word of image {images.ids[rows[broken[0]]]} of {images.name} is not finite; lower "
            "oti_learning_rate, or set precision to float32."
        )
