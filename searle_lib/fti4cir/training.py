"""The training of FTI4CIR's network on captioned images (FTI4CIR section 3).

`make_training` trains the network, `choose` returns it at one epoch, and `make_words` predicts the pseudo-words of all
references. CLIP is frozen, so all features that do not depend on the network are computed once. A step does not
tokenize and does not wait for the host.

In float32 on a CPU the training runs in float64 (`Backbone.exact`). A threshold decides whether an image keeps an
attribute. In float32, two processors decide differently after some twenty steps, and then their trainings diverge.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from searle_lib.backbone.embeddings import facts_of
from searle_lib.backbone.model import Backbone, Tokens
from searle_lib.backbone.texts import encode_texts
from searle_lib.data import benchmarks, images
from searle_lib.data.images import DEFAULT_READER, Reader
from searle_lib.fti4cir import patches, prompts
from searle_lib.fti4cir.captions import Captions
from searle_lib.fti4cir.network import (
    MAX_ATTRIBUTES,
    Fti4Cir,
    Words,
    build_network,
    import_network,
    orthogonality_loss,
)
from searle_lib.fti4cir.settings import TERMS
from searle_lib.fti4cir.settings import Fti4CirSettings as Settings
from searle_lib.searle.distillation import contrastive_loss
from searle_lib.store import bars, checkpoints
from searle_lib.store.artefacts import Artefact, Store
from searle_lib.store.checkpoints import Checkpoints
from searle_lib.store.code import code_digest
from searle_lib.store.records import Study
from searle_lib.training import TrainedNetwork, Training, comet_logger, keep_network

UNUSED_TERMS = {  # the loss terms that an ablation drops, by the words in use
    "both": (),
    "subject": ("orthogonality", "attribute"),
    "attributes": ("subject",),
}
STEPS = "steps.csv"
SELECTION_METRICS = {"cirr": "CIRR R@5", "circo": "CIRCO mAP@10"}  # fti_checkpoint: the metric that selects the epoch


@dataclass(frozen=True)
class Sentences:
    """The sentences of N captions.

    Args:
        subjects: "a photo of {subject} with", which attribute words will follow.
        attributes: the tokens of "a photo of * with {attribute}".
        features: [N, d], unit norm, the features of "a photo of {subject} with {attribute}".
    """

    subjects: prompts.Prefixes
    attributes: Tokens
    features: Tensor

    def __getitem__(self, rows) -> "Sentences":
        return Sentences(self.subjects[rows], self.attributes[rows], self.features[rows])


def prepare_sentences(backbone: Backbone, captions: Captions) -> Sentences:
    """Tokenize the sentences of captions, and encode those without pseudo-words.

    Raises:
        ValueError: if a subject leaves no room for twelve attribute words.
    """
    pairs = list(zip(captions.subjects, captions.attributes, strict=True))
    real = encode_texts(backbone, [f"a photo of {subject} with {attribute}" for subject, attribute in pairs])
    return Sentences(
        prompts.tokenize_prefixes(backbone, [f"a photo of {subject} with" for subject, _ in pairs]),
        backbone.tokenize([f"a photo of * with {attribute}" for _, attribute in pairs]),
        F.normalize(real, dim=-1),
    )


def losses(
    backbone: Backbone, words: Words, images: Tensor, sentences: Sentences, temperature: float, parts: str = "both"
) -> dict[str, Tensor]:
    """Return all loss terms by name (FTI4CIR section 3).

    "contrastive" compares whole sentences with images. "subject", "attribute" and "whole" compare sentences with one or
    both kinds of words with the caption's sentence.

    Args:
        backbone: the frozen CLIP.
        words: the pseudo-words of N images.
        images: [N, d], unit norm, embeddings of the images.
        sentences: the sentences of their captions.
        temperature: of the contrastive term.
        parts: the words of the whole sentence: both, subject or attributes.
    """
    real = sentences.features.to(images.device)
    whole = prompts.whole_sentence(backbone, words, parts)
    subject = prompts.subject_sentence(backbone, sentences.attributes, words)
    attribute = prompts.attribute_sentence(backbone, sentences.subjects, words)
    return {
        "contrastive": contrastive_loss(images, F.normalize(whole, dim=-1), temperature),
        "orthogonality": orthogonality_loss(words.latent),
        "subject": (1 - F.cosine_similarity(subject, real, dim=-1)).mean(),
        "attribute": (1 - F.cosine_similarity(attribute, real, dim=-1)).mean(),
        "whole": (1 - F.cosine_similarity(whole, real, dim=-1)).mean(),
    }


def total(terms: dict[str, Tensor], settings: Settings) -> Tensor:
    """Return contrastive + orthogonality + lambda * (subject + attribute + whole), without what an ablation drops."""
    weights = dict.fromkeys(TERMS, settings.lambda_regularisation) | {"contrastive": 1.0, "orthogonality": 1.0}
    dropped = {settings.without, *UNUSED_TERMS[settings.words]}
    return sum(weights[name] * terms[name] for name in TERMS if name not in dropped)


@dataclass(frozen=True)
class TrainingSet:
    """What the network learns from.

    Args:
        images: columns image and path; the table has all captioned images, and may have others.
        captions: the captions of the images to train on.
        reader: how many images are read at once; changes no result.
    """

    images: pd.DataFrame
    captions: Captions
    reader: Reader = DEFAULT_READER


def train(
    store: Store,
    backbone: Backbone,
    data: TrainingSet,
    settings: Settings,
    save_every: int = 1,
    on_epoch: Callable[[dict[str, float]], None] = lambda row: None,
) -> Artefact:
    """Return the training of the network on captioned images: weights of every kept epoch, and the log.

    An interrupted training resumes after its last finished epoch.

    Args:
        store: keeps the training.
        backbone: the frozen CLIP.
        data: images and their captions.
        settings: what determines the network.
        save_every: epochs between kept checkpoints; changes no result.
        on_epoch: called with every new row of the log.

    Raises:
        ValueError: if there are fewer captioned images than a batch holds.
    """
    captions = data.captions
    if len(captions.ids) < settings.batch_size:
        raise ValueError(
            f"fti_batch_size is {settings.batch_size} but only {len(captions.ids)} images have captions; lower it."
        )
    backbone = backbone.exact
    table = data.images.set_index("image").loc[list(captions.ids)].reset_index()
    facts = asdict(settings) | facts_of(store, backbone, table)
    facts |= {
        "captions": captions.key,
        "code": code_digest(Fti4CirTraining, patches.encode_patches, images.to_pixels, images.read),
    }

    def make(folder: Path) -> None:
        encoded = patches.encode(store, backbone, "captioned", table, data.reader)
        store.executor.require_whole("the training of FTI4CIR's network")
        Fti4CirTraining(folder, backbone, encoded, captions, settings).run(save_every, on_epoch)

    return store.keep("fti4cir-training", facts, make)


def choose(
    store: Store,
    backbone: Backbone,
    training: Artefact | None,
    policy: Checkpoints,
    curve: pd.DataFrame,
    weights_file: str = "",
) -> TrainedNetwork:
    """Return the network at one epoch of its training, kept in the store as the one that the study uses.

    Args:
        store: keeps the network.
        backbone: the frozen CLIP.
        training: what `train` returned. None: import the network from `weights_file`.
        policy: which epoch to use. A key of SELECTION_METRICS stands for the kept epoch with the best value of its
            metric.
        curve: validation metrics, columns epoch and metrics.
        weights_file: the file of the authors' released network.

    Raises:
        ValueError: if the training did not keep the epoch, or has no values of the metric. Other errors as in
            `import_network`.
    """
    if training is None:
        return import_network(store, backbone, weights_file)
    checkpoint = _best_epoch(policy, curve) if policy.checkpoint in SELECTION_METRICS else policy.checkpoint
    epoch = checkpoints.resolve_epoch("fti", checkpoint, training)
    facts, build = {"training": training.key, "epoch": epoch}, partial(build_network, backbone)

    def read_weights() -> dict[str, Tensor]:
        return training.read(lambda folder: load_file(checkpoints.weights_file(folder, "fti", epoch)))

    return keep_network(store, "fti4cir", facts, read_weights, build, epoch=epoch)


def make_training(
    study: Study,
    backbone: Backbone,
    captioned: pd.DataFrame,
    captions: Captions,
    settings: Settings,
    policy: Checkpoints,
) -> Artefact | None:
    """Return the training on the captioned images of a study, or None if there are none and the network is imported.

    Args:
        study: keeps the training.
        backbone: the frozen CLIP.
        captioned: the images, columns image and path.
        captions: their captions.
        settings: what determines the network.
        policy: which epochs are kept and which one is used.

    Raises:
        ValueError: if the training will not keep the epoch to use, and as in `train`.
    """
    if not captions.ids:
        return None
    policy.require("fti", settings.epochs)
    data = TrainingSet(captioned, captions, images.reader(study))
    return train(study, backbone, data, settings, policy.save_every, comet_logger(study.name, asdict(settings)))


def make_words(study: Study, backbone: Backbone, trained: TrainedNetwork, parts: str) -> dict[str, patches.ImageWords]:
    """Return the pseudo-words of every split's references by split; `parts` are the words that queries use."""
    splits, reader = benchmarks.group_by_split(benchmarks.read(study)), images.reader(study)
    tables = {split: benchmarks.reference_table(loaded) for split, loaded in splits.items()}
    sizes = {split: len(table) for split, table in tables.items()}
    return bars.over_lists(
        "words of",
        sizes,
        lambda split: patches.keep_words(study, backbone, trained, split, tables[split], reader, parts),
    )


def attribute_counts(words: Mapping[str, patches.ImageWords]) -> pd.DataFrame:
    """Return a table of how many images keep 1, 2, ... attributes, one row per split."""
    counts = {
        split: predicted.words.counts.bincount(minlength=MAX_ATTRIBUTES + 1)[1:].tolist()
        for split, predicted in words.items()
    }
    return pd.DataFrame(counts, index=pd.RangeIndex(1, MAX_ATTRIBUTES + 1, name="attributes")).T


class Fti4CirTraining(Training):
    """The training of the network: its state after some epochs, the losses of every step, and how it goes on."""

    def __init__(
        self, folder: Path, backbone: Backbone, encoded: patches.Patches, captions: Captions, settings: Settings
    ):
        self.backbone, self.encoded = backbone, encoded
        self.sentences = prepare_sentences(backbone, captions)
        torch.manual_seed(settings.seed)
        torch.set_default_dtype(backbone.model.dtype)  # for the initial weights: processors draw float32 differently
        try:
            network = Fti4Cir(backbone.dimension, backbone.patch_width, settings.dropout).to(backbone.device)
        finally:
            torch.set_default_dtype(torch.float32)
        super().__init__(folder, "fti", network, settings, backbone.loss_scale)
        self.steps = pd.DataFrame()
        if self.epoch:
            steps = pd.read_csv(folder / STEPS)
            self.steps = steps[steps["epoch"] <= self.epoch]

    def train_epoch(self) -> dict[str, float]:
        """Train for one epoch and return the means of all loss terms and of the number of attributes."""
        rate = self.settings.learning_rate * (0.1 if self.epoch >= self.settings.drop_epoch else 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batches = self.batches(len(self.encoded.ids))
        steps = torch.stack([self._step(rows) for rows in batches]).cpu()  # [steps, terms + 1]
        table = pd.DataFrame(steps.double().numpy(), columns=[*TERMS, "attributes"])
        self.steps = pd.concat([self.steps, table.assign(epoch=self.epoch + 1)], ignore_index=True)
        return table.mean().to_dict()

    def save(self, save_every: int) -> None:
        """Save the losses of all steps, then the state and the weights."""
        checkpoints.write_log(self.steps, self.folder / STEPS)
        super().save(save_every)

    def _step(self, rows: Tensor) -> Tensor:
        """Take one step on a batch of rows; return its loss terms and the mean number of attributes."""
        embeddings = self.encoded.embeddings[rows].to(self.backbone.device)
        with self.backbone.autocast():
            words = self.module(embeddings, self.encoded.tokens[rows].to(self.backbone.device))
        images = F.normalize(embeddings, dim=-1)
        settings = self.settings
        terms = losses(self.backbone, words, images, self.sentences[rows], settings.temperature, settings.words)
        self.step(total(terms, settings))
        return torch.stack([*(terms[name].detach() for name in TERMS), words.counts.float().mean()])


def _best_epoch(policy: Checkpoints, curve: pd.DataFrame) -> str:
    """Return the best of the epochs that this policy keeps; an earlier run may have kept others."""
    metric = SELECTION_METRICS[policy.checkpoint]
    if metric not in curve:
        raise ValueError(
            f"fti_checkpoint is {policy.checkpoint}, but no epoch was validated on it; add it to datasets."
        )
    values = curve.set_index("epoch")[metric]
    values = values.loc[policy.epochs(int(values.index.max()))]
    if values.isna().any():
        raise ValueError(
            f"fti_checkpoint is {policy.checkpoint}, but the training did not keep epoch "
            f"{values.index[values.isna()][0]}; set fti_save_every to the value of the training."
        )
    return str(values.idxmax())
