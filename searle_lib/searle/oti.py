"""Optimisation-based textual inversion, OTI: one pseudo-word for one image (SEARLE section 3.1).

`invert` takes embeddings of images, their concepts and phrases, and returns a pseudo-word v for each image. Gradient
steps move the text feature of "a photo of v" towards the image's embedding, while phrases about the image's concepts
must keep their meaning when v replaces the concept. Images do not influence one another: each has its own random
numbers and sees the gradient of a batch of one.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from searle_lib.backbone import embeddings, texts
from searle_lib.backbone.embeddings import Embeddings
from searle_lib.backbone.model import Backbone, join_tokens
from searle_lib.backbone.texts import PackedTexts
from searle_lib.data import benchmarks
from searle_lib.data.benchmarks import group_by_split
from searle_lib.releases import folders, searle_files
from searle_lib.searle import concepts, phrase_bank, phrases
from searle_lib.searle.concepts import TEMPLATES, Concepts
from searle_lib.searle.phrase_bank import SLOT, PhraseBank, similarity_loss
from searle_lib.searle.phrases import Phrases
from searle_lib.searle.settings import OtiSettings as Settings
from searle_lib.store import bars, randomness, shards
from searle_lib.store.artefacts import Store, digest, file_sha256, write_json
from searle_lib.store.batches import BatchSize
from searle_lib.store.code import code_digest
from searle_lib.store.records import Study

START_DEVIATION = 0.02
IDS = "images.json"  # the images of the pseudo-words and the steps of their loss curves, in the same folder
HISTORY = 25  # points of each image's loss curve


@dataclass(frozen=True)
class Inversion:
    """The pseudo-words of a list of images.

    Args:
        tokens: the pseudo-words [N, d_tok] by image.
        history: mean losses by step, columns step, cos and gpt; no rows for imported pseudo-words.
    """

    tokens: Embeddings
    history: pd.DataFrame


@dataclass(frozen=True)
class Batches:
    """How the work is cut into parts, which changes no result.

    Args:
        size: images optimised at once.
        save_every: batches between savings.
    """

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
    """Return the pseudo-word [d_tok] of every image, the moving average over the steps, kept in the store.

    An interrupted inversion resumes after its last saving.

    Args:
        store: keeps the pseudo-words.
        backbone: the frozen CLIP.
        images: embeddings of the images to invert.
        concepts: their nearest concepts.
        phrases: all phrases.
        settings: what determines the pseudo-words.
        batches: how many images are optimised at once, and how often they are saved.

    Raises:
        LookupError: if a concept has no phrases.
        ValueError: if an image has no usable concept, or its pseudo-word is not finite.
    """
    facts = asdict(settings) | {"images": images.key, "concepts": concepts.key, "phrases": phrases.key}
    facts |= {"clip": backbone.sha256, "precision": backbone.precision, "code": code_digest(optimise)}

    def make(folder: Path) -> None:
        bank, size = phrase_bank.prepare(store, backbone, phrases), BatchSize(batches.size, "oti_batch_size")

        def work(first: int, end: int) -> dict[str, Tensor]:
            parts = [*size.over(first, end, lambda rows: optimise(backbone, images, concepts, bank, rows, settings))]
            return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

        rows = batches.size * batches.save_every
        words = shards.run(folder / "shards", len(images.ids), rows, work, f"OTI {images.name}", store.executor)
        save_file(words, folder / "oti.safetensors")
        _write_ids(folder, images, history_steps(settings.steps))

    return store.keep(f"oti/{images.name}", facts, make).read(load)


def import_words(store: Store, backbone: Backbone, images: Embeddings, source: Path) -> Inversion:
    """Import the pseudo-words of a list of images from a folder of the authors' experiment into the store.

    Raises:
        FileNotFoundError: if the folder lacks a file of an experiment.
        ValueError: if the files do not hold the pseudo-words of all these images.
    """
    paths = [source / file for file in (searle_files.EMA, searle_files.NAMES)]
    files = {path.name: file_sha256(path) for path in paths if path.is_file()}
    facts = {"files": files, "ids": digest(list(images.ids)), "clip": backbone.sha256}
    facts["code"] = code_digest(searle_files.read_tokens)

    def make(folder: Path) -> None:
        ema, last = searle_files.read_tokens(source, images.ids, backbone.width)
        save_file({"ema": ema, "last": last}, folder / "oti.safetensors")
        _write_ids(folder, images, [])

    return store.keep(f"oti/{images.name}", facts, make).read(load)


def make_words(
    study: Study, backbone: Backbone, settings: Settings, batches: Batches = DEFAULT_BATCHES, oti_root: str = ""
) -> dict[str, Inversion]:
    """Return the pseudo-words of every image list of a study by name: those of 03_oti.

    Args:
        study: has the embeddings, concepts and phrases, and keeps the pseudo-words.
        backbone: the frozen CLIP.
        settings: what determines the pseudo-words.
        batches: as in `invert`.
        oti_root: a folder of the authors' pseudo-words. Those of the lists that it has are imported and need no
            concepts; all other lists that have concepts are inverted.
    """
    with_concepts = study.artefacts("02_concepts", "concepts")
    all_phrases = phrases.read(study) if with_concepts else None
    names = [benchmarks.IMAGENET, *(f"{split}/references" for split in group_by_split(benchmarks.read(study)))]
    encoded = {name for name in names if f"embeddings/{name}" in study.read("02_concepts").made}
    sources = {name: folders.find_tokens(oti_root, name) for name in encoded}
    lists = {name: embeddings.read(study, name) for name in names if sources.get(name) or name in with_concepts}

    def make(name: str) -> Inversion:
        if sources[name]:
            return import_words(study, backbone, lists[name], sources[name])
        nearest = concepts.read(study, name)
        return invert(study, backbone, lists[name], nearest, all_phrases, settings, batches)

    return bars.over_lists("OTI", {name: len(images.ids) for name, images in lists.items()}, make)


def last_losses(words: Mapping[str, Inversion]) -> pd.DataFrame:
    """Return the mean losses at the last step, one row per image list; imported pseudo-words have no losses."""
    rows = {name: {"images": len(one.tokens.ids)} for name, one in words.items()}
    for name, one in words.items():
        rows[name] |= {} if one.history.empty else one.history.iloc[-1].drop("step").to_dict()
    table = pd.DataFrame(rows).T.astype({"images": int}).round(3)
    return table.rename(columns={"cos": "image loss", "gpt": "phrase loss"})


def invert_first(study: Study, backbone: Backbone, name: str, settings: Settings, count: int = 8) -> Tensor:
    """Compute the pseudo-words [n, d_tok] of the first images of a list without keeping them.

    n is 0 for a list without concepts: its pseudo-words were imported.
    """
    if name not in study.artefacts("02_concepts", "concepts"):
        return torch.empty(0, backbone.width)
    images, nearest = embeddings.read(study, name), concepts.read(study, name)
    bank = phrase_bank.prepare(study.store, backbone, phrases.read(study))
    return optimise(backbone, images, nearest, bank, range(min(count, len(images.ids))), settings)["ema"]


def first_words(study: Study, name: str, count: int = 8) -> Tensor:
    """Return the kept pseudo-words [n, d_tok] of the first images of a list; n is 0 if 03_oti has none."""
    if study.problem("03_oti") or f"oti/{name}" not in study.read("03_oti").made:
        return torch.empty(0, 0)
    return read(study, name).tokens.vectors[:count]


def read(study: Study, images: str) -> Inversion:
    """Return the pseudo-words that 03_oti kept of the image list with this name."""
    return study.artefact("03_oti", f"oti/{images}").read(load)


def load(folder: Path) -> Inversion:
    """Read pseudo-words from an artefact's folder."""
    facts = json.loads((folder / IDS).read_text(encoding="utf-8"))
    words = load_file(folder / "oti.safetensors")
    curves = {name: words[name].mean(0).tolist() for name in ("cos", "gpt") if name in words}
    key = folder.name.rpartition("-")[2]
    history = pd.DataFrame({"step": facts["steps"]} | curves)
    return Inversion(Embeddings(facts["name"], tuple(facts["ids"]), words["ema"], key), history)


def phrase_losses(
    study: Study, backbone: Backbone, name: str, words: Tensor, settings: Settings, phrases_each: int = 32
) -> list[float]:
    """Return the mean phrase loss of each of some pseudo-words, over phrases that do not depend on the pseudo-words.

    Args:
        study: has the concepts and phrases.
        backbone: the frozen CLIP.
        name: the name of an image list.
        words: [n, d_tok], the pseudo-words of the first n images of the list.
        settings: the seed of the draws, and how many concepts are used.
        phrases_each: how many phrases are drawn for each image.
    """
    if not len(words):
        return []
    nearest, bank = concepts.read(study, name), phrase_bank.prepare(study.store, backbone, phrases.read(study))
    keys = randomness.keys(settings.seed, "phrase losses", nearest.ids[: len(words)])
    draws = randomness.uniform(keys, 0, phrases_each)
    usable = bank.usable_concepts(nearest, range(len(words)), settings.top_k)
    rows = torch.from_numpy(usable.draw_phrase(draws)).flatten()  # [n * phrases_each]
    with torch.no_grad():
        repeated = words.repeat_interleave(phrases_each, 0).to(backbone.device)
        packed = texts.pack(backbone, [texts.split(bank.first_replaced[rows])])
        features = texts.encode_packed(backbone, packed, repeated).cpu()
    return similarity_loss(features, bank.features[rows]).view(len(words), -1).mean(1).tolist()


def optimise(
    backbone: Backbone, images: Embeddings, concepts: Concepts, bank: PhraseBank, rows: range, settings: Settings
) -> dict[str, Tensor]:
    """Optimise the pseudo-words of a batch of images.

    Args:
        backbone: the frozen CLIP.
        images: embeddings of a list of images.
        concepts: their nearest concepts.
        bank: all phrases.
        rows: the B images of the batch.
        settings: what determines the pseudo-words.

    Returns:
        last and ema [B, d_tok], the pseudo-words after the last step and their moving average; cos and gpt
        [B, HISTORY], both losses.

    Raises:
        ValueError: if a pseudo-word is not finite.
    """
    keys = randomness.keys(settings.seed, "oti", (images.ids[row] for row in rows))
    start = torch.from_numpy(randomness.normal(keys, 2 * settings.steps, backbone.width)).float()
    words = torch.nn.Parameter((start * START_DEVIATION).to(backbone.device))
    ema = words.detach().clone()
    targets = F.normalize(images.vectors[rows.start : rows.stop], dim=-1).to(backbone.device)
    template_rows = torch.from_numpy(randomness.integers(keys, 0, settings.steps, len(TEMPLATES)))  # [B, steps]
    draws = randomness.uniform(keys, settings.steps, settings.steps)
    usable = bank.usable_concepts(concepts, rows, settings.top_k)
    phrase_rows = torch.from_numpy(usable.draw_phrase(draws))  # [B, steps]
    packed = _pack_texts(backbone, bank, template_rows, phrase_rows)
    features = bank.features[phrase_rows.flatten()].view(*phrase_rows.shape, -1).to(backbone.device)  # [B, steps, d]
    optimizer = torch.optim.AdamW([words], lr=settings.learning_rate, weight_decay=settings.weight_decay)
    steps_of_history, history = set(history_steps(settings.steps)), []
    for step in range(settings.steps):
        cos, gpt = losses(backbone, words, targets, packed[step], features[:, step])
        (total(cos, gpt, settings).sum() * backbone.loss_scale).backward()  # a sum: gradients as in batches of one
        words.grad /= backbone.loss_scale
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.mul_(settings.ema_decay).add_(words.detach(), alpha=1 - settings.ema_decay)
        if step in steps_of_history:
            history.append(torch.stack([cos.detach(), gpt.detach()]))
    curves = torch.stack(history, dim=-1).cpu()  # [2, B, HISTORY]
    _check_finite(ema, images, rows)
    return {"last": words.detach().cpu(), "ema": ema.cpu(), "cos": curves[0], "gpt": curves[1]}


def losses(
    backbone: Backbone, words: Tensor, targets: Tensor, packed: PackedTexts, features: Tensor
) -> tuple[Tensor, Tensor]:
    """Return both losses of OTI for a batch of pseudo-words (SEARLE section 3.1).

    Args:
        backbone: the frozen CLIP.
        words: [B, d_tok], the pseudo-words.
        targets: [B, d], unit norm, embeddings of the images.
        packed: B templates, then B phrases.
        features: [B, d], unit norm, features of the phrases with their concept.

    Returns:
        cos [B], 1 - cosine of the template with the pseudo-word to the image, and gpt [B], 1 - cosine of the phrase
        with the pseudo-word to the phrase with its concept.
    """
    templates, phrases = texts.encode_packed(backbone, packed, words.repeat(2, 1)).chunk(2)
    cos = 1 - F.cosine_similarity(templates, targets, dim=-1)
    return cos, similarity_loss(phrases, features)


def total(cos: Tensor, gpt: Tensor, settings: Settings) -> Tensor:
    """Return the weighted mean [B] of both losses [B]."""
    weight = settings.lambda_cos + settings.lambda_gpt
    return (settings.lambda_cos * cos + settings.lambda_gpt * gpt) / weight


def history_steps(steps: int) -> list[int]:
    """Return the steps whose losses are recorded: at most HISTORY, evenly spaced, with the first and the last."""
    return sorted({round(step) for step in np.linspace(0, steps - 1, min(steps, HISTORY))})


def _write_ids(folder: Path, images: Embeddings, steps: list[int]) -> None:
    write_json(folder / IDS, {"name": images.name, "ids": images.ids, "steps": steps})


def _pack_texts(backbone: Backbone, bank: PhraseBank, template_rows: Tensor, phrase_rows: Tensor) -> list[PackedTexts]:
    """Pack the texts of every step, B templates and B phrases, from their rows [B, steps]."""
    images, steps = phrase_rows.shape
    templates = backbone.tokenize([template.format(SLOT) for template in TEMPLATES])
    split = texts.split(join_tokens(templates, bank.first_replaced[phrase_rows.flatten()]))
    phrases = len(TEMPLATES) + torch.arange(images * steps).view(images, steps)
    pairs = texts.encode_prefixes(backbone, split.prefixes)
    groups = ((split[template_rows[:, step]], split[phrases[:, step]]) for step in range(steps))
    return [texts.pack(backbone, group, pairs) for group in groups]


def _check_finite(words: Tensor, images: Embeddings, rows: range) -> None:
    broken = (~torch.isfinite(words).all(1)).nonzero().flatten().tolist()
    if broken:
        raise ValueError(
            f"the pseudo-word of image {images.ids[rows[broken[0]]]} of {images.name} is not finite; lower "
            "oti_learning_rate, or set precision to float32."
        )
