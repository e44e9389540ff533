"""The textual inversion network φ: OTI's pseudo-words in one pass (SEARLE section 3.2; searle.md section 4).

φ maps an image embedding to a pseudo-word. It learns from unlabeled images alone: its outputs are drawn to their
OTI tokens by a contrastive loss, and to the phrases of the images' concepts as OTI's were.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import pydantic
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from searle_lib.backbone import embeddings, texts
from searle_lib.backbone.embeddings import Embeddings
from searle_lib.backbone.model import Backbone
from searle_lib.backbone.texts import Laid
from searle_lib.data.benchmarks import IMAGENET
from searle_lib.releases.folders import is_trained
from searle_lib.searle import concepts, oti, phrase_bank, phrases
from searle_lib.searle.concepts import Concepts
from searle_lib.searle.phi import EPOCH, Distilled, Phi, bring, load
from searle_lib.searle.phrase_bank import PhraseBank
from searle_lib.searle.phrases import Phrases
from searle_lib.store import checkpoints, randomness
from searle_lib.store.artefacts import Artefact, Store, write_json
from searle_lib.store.checkpoints import Checkpoints
from searle_lib.store.code import code_digest
from searle_lib.store.limits import NonNegativeFloat, PositiveFloat, PositiveInt, Seed, Share
from searle_lib.store.records import Study
from searle_lib.training import Training, comet


@pydantic.dataclasses.dataclass(frozen=True)
class Settings:
    """What determines φ; the published values are the defaults."""

    epochs: PositiveInt = 100
    learning_rate: PositiveFloat = 1e-4
    weight_decay: NonNegativeFloat = 0.01
    batch_size: PositiveInt = 256
    dropout: Share = 0.5
    lambda_distil: NonNegativeFloat = 1.0
    lambda_gpt: NonNegativeFloat = 0.75
    temperature: PositiveFloat = 0.25
    top_k: PositiveInt = 150
    seed: Seed = 42


@dataclass(frozen=True)
class TrainingSet:
    """What φ learns from: embeddings of unlabeled images, their OTI pseudo-words and concepts, and all phrases."""

    images: Embeddings
    words: Embeddings
    concepts: Concepts
    phrases: Phrases


def train(
    store: Store,
    backbone: Backbone,
    known: TrainingSet,
    settings: Settings,
    save_every: int = 5,
    on_epoch: Callable[[dict[str, float]], None] = lambda row: None,
) -> Artefact:
    """Return the training of φ: weights of every kept epoch, and the log.

    An interrupted training resumes after its last finished epoch. Raises ValueError for fewer images than a batch.

    Args:
        store: where the training is kept.
        backbone: the frozen CLIP.
        known: images with their pseudo-words, the targets, and concepts, whose phrases are used.
        settings: what determines φ.
        save_every: epochs between checkpoints that are kept; changes no result.
        on_epoch: is called with every new row of the log.
    """
    if len(known.images.ids) < settings.batch_size:
        raise ValueError(
            f"phi_batch_size is {settings.batch_size} but {known.images.name} has {len(known.images.ids)} images; "
            "lower it."
        )
    facts = asdict(settings) | {"images": known.images.key, "tokens": known.words.key, "concepts": known.concepts.key}
    facts |= {"phrases": known.phrases.key, "precision": backbone.precision, "clip": backbone.sha256}
    facts["code"] = code_digest(PhiTraining)

    def make(folder: Path) -> None:
        bank = phrase_bank.prepare(store, backbone, known.phrases)
        PhiTraining(folder, backbone, known, bank, settings).run(save_every, on_epoch)

    return store.keep("phi-training", facts, make)


def choose(store: Store, backbone: Backbone, training: Artefact, checkpoint: str, dropout: float = 0.5) -> Distilled:
    """Return φ at "last" or a numbered epoch of its training, kept apart as the one that the study uses.

    Raises ValueError for an epoch that was not kept.
    """
    epoch = checkpoints.epoch_named("phi", checkpoint, training)
    weights = training.read(lambda folder: load_file(checkpoints.file_of(folder, "phi", epoch)))

    def make(folder: Path) -> None:
        checkpoints.save_weights(weights, folder / "phi.safetensors")
        write_json(folder / EPOCH, {"epoch": epoch, "dropout": dropout})

    kept = store.keep("phi", {"training": training.key, "epoch": epoch}, make)
    return kept.read(lambda folder: load(folder, backbone))


def make_phi(
    study: Study,
    backbone: Backbone,
    settings: Settings,
    keep: Checkpoints,
) -> tuple[Distilled, Artefact | None]:
    """Return the φ of a study, trained on what earlier notebooks made or brought, and its training, None where brought.

    Raises as `train`, `choose` and `bring` do, and ValueError before the training for an epoch that it will not keep.
    """
    if not is_trained(keep.chosen):
        return bring(study, backbone, study.path(keep.chosen)), None
    keep.require("phi", settings.epochs)
    images, words = embeddings.read(study, IMAGENET), oti.read(study, IMAGENET).tokens
    known = TrainingSet(images, words, concepts.read(study, IMAGENET), phrases.read(study))
    training = train(study, backbone, known, settings, keep.save_every, comet(study.name, asdict(settings)))
    return choose(study, backbone, training, keep.chosen, settings.dropout), training


def contrastive_loss(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """Symmetric contrastive loss over the 2B unit vectors of a and b [B, d]; b_i is the positive of a_i and v.v.

    The denominator holds every other vector, those of the same side too. Source: searle.md, section 4.
    """
    both = torch.cat([a, b])  # [2B, d]
    logits = both @ both.T / temperature
    logits.fill_diagonal_(float("-inf"))
    return F.cross_entropy(logits, torch.arange(2 * len(a), device=a.device).roll(len(a)))


class PhiTraining(Training):
    """φ at some epoch of its training."""

    def __init__(self, folder: Path, backbone: Backbone, known: TrainingSet, bank: PhraseBank, settings: Settings):
        torch.manual_seed(settings.seed)
        phi = Phi(backbone.dimension, backbone.width, settings.dropout).to(backbone.device)
        super().__init__(folder, "phi", phi, settings, backbone.loss_scale)
        self.backbone, self.bank = backbone, bank
        self.images = known.images.vectors.to(backbone.device)
        self.words = F.normalize(known.words.of(known.images.ids), dim=-1).to(backbone.device)
        self.keys = randomness.keys(settings.seed, "phi", known.images.ids)
        self.choices = bank.choices(known.concepts, range(len(self.images)), settings.top_k)

    def train_epoch(self) -> dict[str, float]:
        """Train for one epoch and return the means of both losses, distil and gpt."""
        batches = list(self.batches(len(self.images)))
        phrase = self._phrase_draws()
        spliced = texts.cut(self.bank.every[phrase])
        pairs = texts.read_prefixes(self.backbone, spliced.prefixes)
        plain = self.bank.features[phrase].to(self.images.device)  # [N, d]
        laid = [texts.lay_out(self.backbone, [spliced[rows]], pairs) for rows in batches]
        on_device = [rows.to(self.images.device) for rows in batches]
        losses = [self._step(rows, one, plain[rows]) for rows, one in zip(on_device, laid, strict=True)]
        return dict(zip(("distil", "gpt"), torch.stack(losses).mean(0).tolist(), strict=True))

    def _step(self, rows: Tensor, laid: Laid, plain: Tensor) -> Tensor:
        """Take one step on a batch of rows, all of it on the device already; return its losses, distil and gpt."""
        words = self.module(self.images[rows])
        distil = contrastive_loss(self.words[rows], F.normalize(words, dim=-1), self.settings.temperature)
        gpt = phrase_bank.similarity_loss(texts.encode(self.backbone, laid, words), plain).mean()
        self.step(self.settings.lambda_distil * distil + self.settings.lambda_gpt * gpt)
        return torch.stack([distil.detach(), gpt.detach()])

    def _phrase_draws(self) -> Tensor:
        """A phrase row [N] for each image in this epoch: a concept drawn uniformly, then one of its phrases."""
        concept, phrase = randomness.uniform(self.keys, 2 * self.epoch, 2).T
        return torch.from_numpy(self.choices.of_one(concept, phrase))
