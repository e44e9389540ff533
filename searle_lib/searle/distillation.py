"""The training of φ, which distils OTI into a network (SEARLE section 3.2).

`make_phi` returns the φ of a study. φ learns from unlabeled images alone. A contrastive loss pulls its output for an
image towards the image's OTI pseudo-word, and the phrase loss of OTI keeps it among real words.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from searle_lib.backbone import embeddings, texts
from searle_lib.backbone.embeddings import Embeddings
from searle_lib.backbone.model import Backbone
from searle_lib.backbone.texts import PackedTexts
from searle_lib.data.benchmarks import IMAGENET
from searle_lib.releases.folders import is_trained
from searle_lib.searle import concepts, oti, phrase_bank, phrases
from searle_lib.searle.concepts import Concepts
from searle_lib.searle.phi import Phi, build_network, import_phi
from searle_lib.searle.phrase_bank import PhraseBank
from searle_lib.searle.phrases import Phrases
from searle_lib.searle.settings import PhiSettings as Settings
from searle_lib.store import checkpoints, randomness
from searle_lib.store.artefacts import Artefact, Store
from searle_lib.store.checkpoints import Checkpoints
from searle_lib.store.code import code_digest
from searle_lib.store.records import Study
from searle_lib.training import TrainedNetwork, Training, comet_logger, keep_network


@dataclass(frozen=True)
class TrainingSet:
    """What φ learns from.

    Args:
        images: embeddings of unlabeled images.
        words: their OTI pseudo-words, the targets of distillation.
        concepts: their nearest concepts.
        phrases: all phrases.
    """

    images: Embeddings
    words: Embeddings
    concepts: Concepts
    phrases: Phrases


def train(
    store: Store,
    backbone: Backbone,
    data: TrainingSet,
    settings: Settings,
    save_every: int = 5,
    on_epoch: Callable[[dict[str, float]], None] = lambda row: None,
) -> Artefact:
    """Return the training of φ: weights of every kept epoch, and the log.

    An interrupted training resumes after its last finished epoch.

    Args:
        store: keeps the training.
        backbone: the frozen CLIP.
        data: what φ learns from.
        settings: what determines φ.
        save_every: epochs between kept checkpoints; changes no result.
        on_epoch: called with every new row of the log.

    Raises:
        ValueError: if there are fewer images than a batch holds.
    """
    if len(data.images.ids) < settings.batch_size:
        raise ValueError(
            f"phi_batch_size is {settings.batch_size} but {data.images.name} has {len(data.images.ids)} images; "
            "lower phi_batch_size."
        )
    facts = asdict(settings) | {"images": data.images.key, "tokens": data.words.key, "concepts": data.concepts.key}
    facts |= {"phrases": data.phrases.key, "precision": backbone.precision, "clip": backbone.sha256}
    facts["code"] = code_digest(PhiTraining)

    def make(folder: Path) -> None:
        bank = phrase_bank.prepare(store, backbone, data.phrases)
        store.executor.require_whole("the training of φ")
        PhiTraining(folder, backbone, data, bank, settings).run(save_every, on_epoch)

    return store.keep("phi-training", facts, make)


def choose(
    store: Store, backbone: Backbone, training: Artefact, checkpoint: str, dropout: float = 0.5
) -> TrainedNetwork:
    """Return φ at one epoch of its training, kept in the store as the one that the study uses.

    Args:
        store: keeps φ.
        backbone: the frozen CLIP.
        training: what `train` returned.
        checkpoint: "last", or the number of an epoch.
        dropout: the dropout of the training, which is recorded beside the weights.

    Raises:
        ValueError: if the training did not keep this epoch.
    """
    epoch = checkpoints.resolve_epoch("phi", checkpoint, training)
    facts, build = {"training": training.key, "epoch": epoch}, partial(build_network, backbone)

    def read_weights() -> dict[str, Tensor]:
        return training.read(lambda folder: load_file(checkpoints.weights_file(folder, "phi", epoch)))

    return keep_network(store, "phi", facts, read_weights, build, epoch=epoch, dropout=dropout)


def make_phi(
    study: Study,
    backbone: Backbone,
    settings: Settings,
    policy: Checkpoints,
) -> tuple[TrainedNetwork, Artefact | None]:
    """Return the φ of a study and its training, which is None for a pretrained φ.

    Raises as `train`, `choose` and `import_phi` do. An epoch that the training will not keep is a ValueError before the
    training begins.
    """
    if not is_trained(policy.checkpoint):
        return import_phi(study, backbone, study.path(policy.checkpoint)), None
    policy.require("phi", settings.epochs)
    images, words = embeddings.read(study, IMAGENET), oti.read(study, IMAGENET).tokens
    data = TrainingSet(images, words, concepts.read(study, IMAGENET), phrases.read(study))
    training = train(study, backbone, data, settings, policy.save_every, comet_logger(study.name, asdict(settings)))
    return choose(study, backbone, training, policy.checkpoint, settings.dropout), training


def contrastive_loss(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """Return the symmetric contrastive loss over B pairs of unit vectors a and b [B, d] (SEARLE section 3.2).

    Each vector's partner is its positive. The denominator holds all other vectors, those of the same side too.
    """
    both = torch.cat([a, b])  # [2B, d]
    logits = both @ both.T / temperature
    logits.fill_diagonal_(float("-inf"))
    return F.cross_entropy(logits, torch.arange(2 * len(a), device=a.device).roll(len(a)))


class PhiTraining(Training):
    """The training of φ: its state after some epochs, and how one epoch is trained."""

    def __init__(self, folder: Path, backbone: Backbone, data: TrainingSet, bank: PhraseBank, settings: Settings):
        torch.manual_seed(settings.seed)
        phi = Phi(backbone.dimension, backbone.width, settings.dropout).to(backbone.device)
        super().__init__(folder, "phi", phi, settings, backbone.loss_scale)
        self.backbone, self.bank = backbone, bank
        self.images = data.images.vectors.to(backbone.device)
        self.words = F.normalize(data.words.select(data.images.ids), dim=-1).to(backbone.device)
        self.keys = randomness.keys(settings.seed, "phi", data.images.ids)
        self.usable_concepts = bank.usable_concepts(data.concepts, range(len(self.images)), settings.top_k)

    def train_epoch(self) -> dict[str, float]:
        """Train for one epoch and return the means of both losses, distil and gpt."""
        batches = list(self.batches(len(self.images)))
        phrase_rows = self._draw_phrases()
        split = texts.split(self.bank.all_replaced[phrase_rows])
        pairs = texts.encode_prefixes(self.backbone, split.prefixes)
        targets = self.bank.features[phrase_rows].to(self.images.device)  # [N, d]
        packed = [texts.pack(self.backbone, [split[rows]], pairs) for rows in batches]
        batches = [rows.to(self.images.device) for rows in batches]  # copied at once, so that no step waits for it
        losses = [self._step(rows, batch, targets[rows]) for rows, batch in zip(batches, packed, strict=True)]
        return dict(zip(("distil", "gpt"), torch.stack(losses).mean(0).tolist(), strict=True))

    def _step(self, rows: Tensor, packed: PackedTexts, targets: Tensor) -> Tensor:
        """Take one step on a batch and return its losses, distil and gpt. All arguments are on the device.

        `packed` holds a phrase per image, and `targets` [B, d] the features of the phrases without pseudo-word.
        """
        words = self.module(self.images[rows])
        distil = contrastive_loss(self.words[rows], F.normalize(words, dim=-1), self.settings.temperature)
        gpt = phrase_bank.similarity_loss(texts.encode_packed(self.backbone, packed, words), targets).mean()
        self.step(self.settings.lambda_distil * distil + self.settings.lambda_gpt * gpt)
        return torch.stack([distil.detach(), gpt.detach()])

    def _draw_phrases(self) -> Tensor:
        """Draw a row [N] of the phrase bank for each image in this epoch."""
        concept, phrase = randomness.uniform(self.keys, 2 * self.epoch, 2).T
        return torch.from_numpy(self.usable_concepts.draw_concept_then_phrase(concept, phrase))
