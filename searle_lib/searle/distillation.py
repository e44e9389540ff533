"""The textual inversion network φ: OTI's pseudo-words in one pass (SEARLE section 3.2; searle.md section 4).

φ maps an image embedding to a pseudo-word. It learns from unlabeled images alone: its outputs are drawn to their
OTI tokens by a contrastive loss, and to the phrases of the images' concepts as OTI's were.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from tqdm.auto import tqdm

from searle_lib import checkpoints
from searle_lib.backbone import embeddings, texts
from searle_lib.backbone.embeddings import Embeddings
from searle_lib.backbone.model import Backbone
from searle_lib.backbone.texts import Laid
from searle_lib.checkpoints import Checkpoints
from searle_lib.data.benchmarks import IMAGENET
from searle_lib.evaluation.methods import is_trained
from searle_lib.searle import concepts, oti, phrase_bank, phrases
from searle_lib.searle.concepts import Concepts
from searle_lib.searle.phi import EPOCH, Distilled, Phi, bring, load
from searle_lib.searle.phrase_bank import PhraseBank
from searle_lib.searle.phrases import Phrases
from searle_lib.store import randomness
from searle_lib.store.artefacts import Artefact, Store, write_json
from searle_lib.store.code import code_digest
from searle_lib.store.records import Study


@dataclass(frozen=True)
class Settings:
    """What determines φ; the published values are the defaults."""

    epochs: int = 100
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    batch_size: int = 256
    dropout: float = 0.5
    lambda_distil: float = 1.0
    lambda_gpt: float = 0.75
    temperature: float = 0.25
    top_k: int = 150
    seed: int = 42


def train(
    store: Store,
    backbone: Backbone,
    images: Embeddings,
    tokens: Embeddings,
    concepts: Concepts,
    phrases: Phrases,
    settings: Settings,
    save_every: int = 5,
    on_epoch: Callable[[dict[str, float]], None] = lambda row: None,
) -> Artefact:
    """Return the training of φ on the images' OTI words: weights of every kept epoch, and the log.

    A cut-off training goes on from its last finished epoch. Raises ValueError for fewer images than a batch.

    Args:
        store: where the training is kept.
        backbone: the frozen CLIP.
        images: the images' embeddings.
        tokens: their OTI words, the targets.
        concepts: their nearest concepts, whose phrases are used.
        phrases: all phrases.
        settings: what determines φ.
        save_every: epochs between checkpoints that are kept; changes no result.
        on_epoch: is called with every new row of the log.
    """
    if len(images.ids) < settings.batch_size:
        raise ValueError(
            f"phi_batch_size is {settings.batch_size} but {images.name} has {len(images.ids)} images; lower it."
        )
    facts = asdict(settings) | {"images": images.key, "tokens": tokens.key, "concepts": concepts.key}
    facts |= {"phrases": phrases.key, "precision": backbone.precision, "clip": backbone.sha256}
    facts["code"] = code_digest(Training)

    def make(folder: Path) -> None:
        bank = phrase_bank.prepare(store, backbone, phrases)
        training = Training(folder, backbone, images, tokens, concepts, bank, settings)
        with tqdm(total=settings.epochs, initial=training.epoch, desc="φ", mininterval=2) as bar:
            while training.epoch < settings.epochs:
                row = training.run_epoch()
                training.save(save_every)
                on_epoch(row)
                bar.update()
        checkpoints.finish(folder)

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
    on_epoch: Callable[[dict[str, float]], None] = lambda row: None,
) -> tuple[Distilled, Artefact | None]:
    """Return the φ of a study, trained on what earlier notebooks made or brought, and its training, None where brought.

    Raises as `train`, `choose` and `bring` do, and ValueError before the training for an epoch that it will not keep.
    """
    if not is_trained(keep.chosen):
        return bring(study, backbone, study.path(keep.chosen)), None
    keep.require("phi", settings.epochs)
    images, words = embeddings.read(study, IMAGENET), oti.read(study, IMAGENET).tokens
    known = (images, words, concepts.read(study, IMAGENET), phrases.read(study))
    training = train(study, backbone, *known, settings, keep.save_every, on_epoch)
    return choose(study, backbone, training, keep.chosen, settings.dropout), training


def contrastive_loss(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """Symmetric contrastive loss over the 2B unit vectors of a and b [B, d]; b_i is the positive of a_i and v.v.

    The denominator holds every other vector, those of the same side too. Source: searle.md, section 4.
    """
    both = torch.cat([a, b])  # [2B, d]
    logits = both @ both.T / temperature
    logits.fill_diagonal_(float("-inf"))
    return F.cross_entropy(logits, torch.arange(2 * len(a), device=a.device).roll(len(a)))


class Training:
    """A training at some epoch, and the state that a cut-off one goes on from: φ, its optimizer, the epoch, the log."""

    def __init__(self, folder, backbone, images, tokens, concepts, bank: PhraseBank, settings: Settings):
        self.folder, self.backbone, self.bank, self.settings = folder, backbone, bank, settings
        self.images = images.vectors.to(backbone.device)
        self.tokens = F.normalize(tokens.of(images.ids), dim=-1).to(backbone.device)
        self.keys = randomness.keys(settings.seed, "phi", images.ids)
        self.choices = bank.choices(concepts, range(len(images.ids)), settings.top_k)
        torch.manual_seed(settings.seed)
        self.phi = Phi(backbone.dimension, backbone.width, settings.dropout).to(backbone.device)
        self.optimizer = torch.optim.AdamW(
            self.phi.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.epoch, self.log = checkpoints.resume(folder, self.phi, self.optimizer)

    def run_epoch(self) -> dict[str, float]:
        """Train one epoch; return the new row of the log."""
        self.phi.train()
        torch.manual_seed(int(randomness.keys(self.settings.seed, "phi-epoch", [self.epoch])[0] >> np.uint64(1)))
        batches = torch.randperm(len(self.images)).split(self.settings.batch_size)
        phrase = self._phrase_draws()
        spliced = texts.cut(self.bank.every[phrase])
        pairs = texts.read_prefixes(self.backbone, spliced.prefixes)
        plain = self.bank.features[phrase].to(self.images.device)  # [N, d]
        whole = [rows for rows in batches if len(rows) == self.settings.batch_size]  # the last partial one is dropped
        read = [texts.lay_out(self.backbone, [spliced[rows]], pairs) for rows in whole]
        on_device = [rows.to(self.images.device) for rows in whole]
        losses = [self._step(rows, laid, plain[rows]) for rows, laid in zip(on_device, read, strict=True)]
        means = torch.stack(losses).mean(0).tolist()
        self.epoch += 1
        self.log.append({"epoch": self.epoch} | dict(zip(("distil", "gpt"), means, strict=True)))
        return self.log[-1]

    def save(self, save_every: int) -> None:
        """Save what a cut-off training goes on from, and every so many epochs a checkpoint that is kept."""
        if self.epoch % save_every == 0 or self.epoch == self.settings.epochs:
            checkpoints.save_weights(self.phi.state_dict(), checkpoints.file_of(self.folder, "phi", self.epoch))
        checkpoints.save(self.folder, self.phi, self.optimizer, self.epoch, self.log)

    def _step(self, rows: Tensor, laid: Laid, plain: Tensor) -> Tensor:
        """One step on a batch of rows, all of it on the device already; its losses, distil and gpt."""
        words = self.phi(self.images[rows])
        distil = contrastive_loss(self.tokens[rows], F.normalize(words, dim=-1), self.settings.temperature)
        gpt = phrase_bank.similarity_loss(texts.encode(self.backbone, laid, words), plain).mean()
        loss = self.settings.lambda_distil * distil + self.settings.lambda_gpt * gpt
        (loss * self.backbone.loss_scale).backward()
        for parameter in self.phi.parameters():
            parameter.grad /= self.backbone.loss_scale
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return torch.stack([distil.detach(), gpt.detach()])

    def _phrase_draws(self) -> Tensor:
        """A phrase row [N] for each image in this epoch: a concept drawn uniformly, then one of its phrases."""
        concept, phrase = randomness.uniform(self.keys, 2 * self.epoch, 2).T
        return torch.from_numpy(self.choices.of_one(concept, phrase))
