"""FTI4CIR's training: sentences with pseudo-words against pictures and captions (fti4cir.md, sections 3 and 4).

CLIP is frozen, so everything about a caption or a picture that does not depend on the network is computed once. A
step does no tokenizing and waits for nothing on the host.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from tqdm.auto import tqdm

from searle_lib import checkpoints, fti_prompts, patches, randomness, released
from searle_lib.artefacts import Store, file_sha256
from searle_lib.backbone import Backbone, Tokens, tokenize
from searle_lib.captions import Captions
from searle_lib.distillation import Validation, contrastive_loss
from searle_lib.fti4cir import Fti4Cir, Words, orthogonality_loss
from searle_lib.texts import encode_texts

TERMS = ("contrastive", "orthogonality", "subject", "attribute", "whole")
UNUSED = {
    "both": (),
    "subject": ("orthogonality", "attribute"),
    "attributes": ("subject",),
}  # terms without their words
STEPS = "steps.csv"
CHOSEN_ON = {"cirr": "CIRR R@5", "circo": "CIRCO mAP@10"}  # checkpoints that are an epoch's best, by what metric


@dataclass(frozen=True)
class Settings:
    """What determines the network; the published values are the defaults."""

    epochs: int = 60
    learning_rate: float = 4e-5
    drop_epoch: int = 10  # from which the rate is a tenth
    weight_decay: float = 0.01
    batch_size: int = 256
    dropout: float = 0.5
    temperature: float = 0.20
    lambda_regularisation: float = 1.4
    words: str = "both"  # an ablation: subject or attributes alone
    without: str = ""  # an ablation: one of TERMS to leave out
    validate_every: int = 1
    save_every: int = 1
    seed: int = 42


@dataclass(frozen=True)
class Sentences:
    """What the captions of N images come to: subject prefixes, tokens of "a photo of * with {attribute}", and the unit
    features [N, d] of "a photo of {subject} with {attribute}"."""

    subjects: fti_prompts.Prefixes
    attributes: Tokens
    features: Tensor

    def __getitem__(self, rows) -> "Sentences":
        return Sentences(self.subjects[rows], self.attributes[rows], self.features[rows])


@dataclass(frozen=True)
class Trained:
    """A trained network in eval mode, its log by epoch, its key, and the epoch it is of."""

    model: Fti4Cir
    log: pd.DataFrame
    key: str
    epoch: int


def sentences_of(backbone: Backbone, captions: Captions) -> Sentences:
    """The captions' sentences, tokenized, and the real ones encoded.

    Raises ValueError for a subject that leaves no room for twelve attribute words.
    """
    pairs = list(zip(captions.subjects, captions.attributes, strict=True))
    real = encode_texts(backbone, [f"a photo of {subject} with {attribute}" for subject, attribute in pairs])
    return Sentences(
        fti_prompts.prefixes([f"a photo of {subject} with" for subject, _ in pairs]),
        tokenize([f"a photo of * with {attribute}" for _, attribute in pairs]),
        F.normalize(real, dim=-1),
    )


def losses(
    backbone: Backbone, words: Words, images: Tensor, sentences: Sentences, temperature: float, parts: str = "both"
) -> dict[str, Tensor]:
    """Every loss term: contrastive and orthogonality, and three that compare sentences to the caption's.

    With the subject or the attributes alone, "whole" is the sentence of those, as are the queries.

    images [N, d] are unit embeddings. Source: fti4cir.md, section 3.
    """
    real = sentences.features.to(images.device)
    whole = fti_prompts.whole_sentence(backbone, words, parts)
    subject = fti_prompts.subject_with(backbone, sentences.attributes, words)
    attribute = fti_prompts.attributes_of(backbone, sentences.subjects, words)
    return {
        "contrastive": contrastive_loss(images, F.normalize(whole, dim=-1), temperature),
        "orthogonality": orthogonality_loss(words.latent),
        "subject": (1 - F.cosine_similarity(subject, real, dim=-1)).mean(),
        "attribute": (1 - F.cosine_similarity(attribute, real, dim=-1)).mean(),
        "whole": (1 - F.cosine_similarity(whole, real, dim=-1)).mean(),
    }


def total(terms: dict[str, Tensor], settings: Settings) -> Tensor:
    """contrastive + orthogonality + lambda times the three caption terms, less what an ablation leaves out."""
    weights = dict.fromkeys(TERMS, settings.lambda_regularisation) | {"contrastive": 1.0, "orthogonality": 1.0}
    out = {settings.without, *UNUSED[settings.words]}
    return sum(weights[name] * terms[name] for name in TERMS if name not in out)


def train(
    store: Store,
    backbone: Backbone,
    images: pd.DataFrame,
    preprocess: str,
    captions: Captions,
    settings: Settings,
    validation: Validation = Validation(),  # noqa: B008, a frozen value
    checkpoint: str = "last",
    on_epoch: Callable[[dict[str, float]], None] = lambda row: None,
    image_batch_size: int = 256,
    workers: int = 2,
) -> Trained:
    """The network trained on captioned images, kept in the store; notebook 05_fti4cir trains it.

    `images` is a table with columns image and path that holds those of the captions. `checkpoint` is "last", an epoch
    that is kept, or a key of CHOSEN_ON. A cut-off training goes on from its last finished epoch.
    Raises ValueError for a checkpoint that is not kept, an unknown ablation, and fewer images than a batch.
    """
    if settings.words not in UNUSED:
        raise ValueError(f"fti_words is {settings.words}; it must be {' or '.join(UNUSED)}.")
    if settings.without and settings.without not in TERMS:
        raise ValueError(f"fti_without is {settings.without}; it must be empty or one of {', '.join(TERMS)}.")
    if len(captions.ids) < settings.batch_size:
        raise ValueError(
            f"fti_batch_size is {settings.batch_size} but {len(captions.ids)} images have captions; lower it."
        )
    if checkpoint not in CHOSEN_ON:
        checkpoints.kept_epoch("fti", checkpoint, settings.epochs, settings.save_every)
    table = images.set_index("image").loc[list(captions.ids)].reset_index()
    facts = asdict(settings) | patches.facts_of(backbone, table, preprocess)
    facts |= {"captions": captions.key, "validation": validation.key}

    def make(folder: Path) -> None:
        seen = patches.encode(store, backbone, "captioned", table, preprocess, image_batch_size, workers)
        training = _Training(folder, backbone, seen.embeddings, seen.tokens, captions, settings)
        with tqdm(total=settings.epochs, initial=training.epoch, desc="FTI4CIR", mininterval=2) as bar:
            while training.epoch < settings.epochs:
                on_epoch(training.run_epoch(validation))
                bar.update()
        checkpoints.finish(folder)

    kept = store.keep("fti4cir", facts, make, "05_fti4cir", f"FTI4CIR's network for {backbone.name}")
    log = pd.read_csv(kept.folder / checkpoints.LOG)
    epoch = _epoch(checkpoint, log, settings)
    model = Fti4Cir(backbone.dimension, backbone.patch_width, settings.dropout)
    model.load_state_dict(load_file(kept.folder / f"fti-{epoch:03d}.safetensors"))
    return Trained(model.eval().requires_grad_(False).to(backbone.device), log, f"{kept.key}/{epoch}", epoch)


def from_released(store: Store, backbone: Backbone, path: str) -> Trained:
    """The authors' released network, read safely from their pickle and kept in our format from then on.

    Raises ValueError when the file is not safe to read or holds a network for another backbone.
    """
    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"fti_weights {path} does not exist; correct fti_weights, or leave it empty to train.")
    model = Fti4Cir(backbone.dimension, backbone.patch_width)

    def make(folder: Path) -> None:
        weights = {name: value.float() for name, value in released.read_module(source).items()}
        try:
            model.load_state_dict(weights)
        except RuntimeError as problem:
            said = " ".join(str(problem).split())[:200]
            raise ValueError(
                f"fti_weights {path} does not fit {backbone.name}: {said}; use its own backbone."
            ) from problem
        checkpoints.save_weights(weights, folder / "fti.safetensors")

    facts = {"sha256": file_sha256(source), "clip": backbone.sha256}
    kept = store.keep("fti4cir-released", facts, make, "05_fti4cir", f"FTI4CIR's network of {path}")
    model.load_state_dict(load_file(kept.folder / "fti.safetensors"))
    return Trained(model.eval().requires_grad_(False).to(backbone.device), pd.DataFrame(), kept.key, 0)


def _epoch(checkpoint: str, log: pd.DataFrame, settings: Settings) -> int:
    if checkpoint not in CHOSEN_ON:
        return checkpoints.kept_epoch("fti", checkpoint, settings.epochs, settings.save_every)
    metric = CHOSEN_ON[checkpoint]
    kept = log[(log["epoch"] % settings.save_every == 0) | (log["epoch"] == settings.epochs)]
    if metric not in kept or kept[metric].isna().all():
        raise ValueError(f"fti_checkpoint is {checkpoint}, but no epoch was validated on it; add it to datasets.")
    return int(kept.loc[kept[metric].idxmax(), "epoch"])


class _Training:
    """The state that a cut-off training goes on from."""

    def __init__(self, folder: Path, backbone, embeddings, patches, captions: Captions, settings: Settings):
        self.folder, self.backbone, self.settings = folder, backbone, settings
        self.embeddings, self.patches = embeddings, patches
        self.sentences = sentences_of(backbone, captions)
        torch.manual_seed(settings.seed)
        self.model = Fti4Cir(backbone.dimension, backbone.patch_width, settings.dropout).to(backbone.device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.epoch, self.log = checkpoints.resume(folder, self.model, self.optimizer)
        self.steps = pd.DataFrame()
        if self.epoch:
            steps = pd.read_csv(folder / STEPS)
            self.steps = steps[steps["epoch"] <= self.epoch]

    def run_epoch(self, validation: Validation) -> dict[str, float]:
        """Train one epoch, validate and save as the settings say; the new row of the log."""
        self.model.train()
        rate = self.settings.learning_rate * (0.1 if self.epoch >= self.settings.drop_epoch else 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(int(randomness.keys(self.settings.seed, "fti-epoch", [self.epoch])[0] >> np.uint64(1)))
        steps = torch.stack([self._step(rows) for rows in self._batches()]).cpu()  # [steps, terms + 1]
        self.epoch += 1
        table = pd.DataFrame(steps.double().numpy(), columns=[*TERMS, "attributes"]).assign(epoch=self.epoch)
        self.steps = pd.concat([self.steps, table], ignore_index=True)
        row = {"epoch": self.epoch} | table[[*TERMS, "attributes"]].mean().to_dict()
        if self.epoch % self.settings.validate_every == 0 or self.epoch == self.settings.epochs:
            row |= validation.metrics(self.model.eval())
        self.log.append(row)
        self._save()
        return row

    def _batches(self) -> Iterator[Tensor]:
        order = torch.randperm(len(self.embeddings))
        whole = len(order) - len(order) % self.settings.batch_size  # the last partial batch is dropped
        yield from order[:whole].split(self.settings.batch_size)

    def _step(self, rows: Tensor) -> Tensor:
        device, scale = self.backbone.device, self.backbone.loss_scale
        embeddings = self.embeddings[rows].to(device)
        with self.backbone.autocast():
            words = self.model(embeddings, self.patches[rows].to(device))
        images = F.normalize(embeddings, dim=-1)
        terms = losses(
            self.backbone, words, images, self.sentences[rows], self.settings.temperature, self.settings.words
        )
        (total(terms, self.settings) * scale).backward()
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad /= scale
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return torch.stack([*(terms[name].detach() for name in TERMS), words.counts.float().mean()])

    def _save(self) -> None:
        checkpoints.write_log(self.steps, self.folder / STEPS)
        if self.epoch % self.settings.save_every == 0 or self.epoch == self.settings.epochs:
            checkpoints.save_weights(self.model.state_dict(), self.folder / f"fti-{self.epoch:03d}.safetensors")
        checkpoints.save(self.folder, self.model, self.optimizer, self.epoch, self.log)
