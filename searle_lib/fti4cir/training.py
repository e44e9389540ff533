"""FTI4CIR's training: sentences with pseudo-words against pictures and captions (fti4cir.md, sections 3 and 4).

CLIP is frozen, so everything about a caption or a picture that does not depend on the network is computed once. A
step does no tokenizing and waits for nothing on the host.

In float32 on a CPU all of it runs in float64 (`Backbone.exact`). An image keeps an attribute by a threshold, and the
first one that two processors decide differently, after some twenty steps in float32, sets their trainings apart.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
import pydantic
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from searle_lib.backbone.embeddings import facts_of
from searle_lib.backbone.model import Backbone, Tokens, tokenize
from searle_lib.backbone.texts import encode_texts
from searle_lib.data import benchmarks, images
from searle_lib.data.images import DEFAULT_READER, Reader
from searle_lib.fti4cir import patches, prompts
from searle_lib.fti4cir.captions import Captions
from searle_lib.fti4cir.network import EPOCH, MOST, Fti4Cir, Trained, Words, bring, load, orthogonality_loss
from searle_lib.searle.distillation import contrastive_loss
from searle_lib.store import checkpoints
from searle_lib.store.artefacts import Artefact, Store, write_json
from searle_lib.store.checkpoints import Checkpoints
from searle_lib.store.code import code_digest
from searle_lib.store.limits import NonNegativeFloat, PositiveFloat, PositiveInt, Seed, Share
from searle_lib.store.records import Study
from searle_lib.training import Training, comet

TERMS = ("contrastive", "orthogonality", "subject", "attribute", "whole")
UNUSED = {
    "both": (),
    "subject": ("orthogonality", "attribute"),
    "attributes": ("subject",),
}  # terms without their words
STEPS = "steps.csv"
CHOSEN_ON = {"cirr": "CIRR R@5", "circo": "CIRCO mAP@10"}  # checkpoints that are an epoch's best, by what metric


@pydantic.dataclasses.dataclass(frozen=True)
class Settings:
    """What determines the network; the published values are the defaults."""

    epochs: PositiveInt = 60
    learning_rate: PositiveFloat = 4e-5
    drop_epoch: PositiveInt = 10  # from which the rate is a tenth
    weight_decay: NonNegativeFloat = 0.01
    batch_size: PositiveInt = 256
    dropout: Share = 0.5
    temperature: PositiveFloat = 0.20
    lambda_regularisation: NonNegativeFloat = 1.4
    words: Literal["both", "subject", "attributes"] = "both"  # an ablation: subject or attributes alone
    without: Literal[("", *TERMS)] = ""  # an ablation: a term to leave out
    seed: Seed = 42


@dataclass(frozen=True)
class Sentences:
    """What the captions of N images come to: subject prefixes, tokens of "a photo of * with {attribute}", and the unit
    features [N, d] of "a photo of {subject} with {attribute}"."""

    subjects: prompts.Prefixes
    attributes: Tokens
    features: Tensor

    def __getitem__(self, rows) -> "Sentences":
        return Sentences(self.subjects[rows], self.attributes[rows], self.features[rows])


def sentences_of(backbone: Backbone, captions: Captions) -> Sentences:
    """The captions' sentences, tokenized, and the real ones encoded.

    Raises ValueError for a subject that leaves no room for twelve attribute words.
    """
    pairs = list(zip(captions.subjects, captions.attributes, strict=True))
    real = encode_texts(backbone, [f"a photo of {subject} with {attribute}" for subject, attribute in pairs])
    return Sentences(
        prompts.prefixes([f"a photo of {subject} with" for subject, _ in pairs]),
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
    whole = prompts.whole_sentence(backbone, words, parts)
    subject = prompts.subject_with(backbone, sentences.attributes, words)
    attribute = prompts.attributes_of(backbone, sentences.subjects, words)
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


@dataclass(frozen=True)
class TrainingSet:
    """What the network learns from.

    Args:
        images: columns image and path, with the images of the captions among them.
        captions: the images' captions, cut in two.
        reader: how many images are read at once; changes no result.
    """

    images: pd.DataFrame
    captions: Captions
    reader: Reader = DEFAULT_READER


def train(
    store: Store,
    backbone: Backbone,
    known: TrainingSet,
    settings: Settings,
    save_every: int = 1,
    on_epoch: Callable[[dict[str, float]], None] = lambda row: None,
) -> Artefact:
    """Return the training of the network on captioned images: weights of every kept epoch, and the log.

    An interrupted training resumes after its last finished epoch. Raises ValueError for fewer
    images than a batch.

    Args:
        store: where the training is kept.
        backbone: the frozen CLIP.
        known: images and their captions.
        settings: what determines the network.
        save_every: epochs between checkpoints that are kept; changes no result.
        on_epoch: is called with every new row of the log.
    """
    captions = known.captions
    if len(captions.ids) < settings.batch_size:
        raise ValueError(
            f"fti_batch_size is {settings.batch_size} but {len(captions.ids)} images have captions; lower it."
        )
    backbone = backbone.exact
    table = known.images.set_index("image").loc[list(captions.ids)].reset_index()
    facts = asdict(settings) | facts_of(backbone, table)
    facts |= {
        "captions": captions.key,
        "code": code_digest(Fti4CirTraining, patches.encode_patches, images.to_pixels, images.read),
    }

    def make(folder: Path) -> None:
        encoded = patches.encode(store, backbone, "captioned", table, known.reader)
        Fti4CirTraining(folder, backbone, encoded, captions, settings).run(save_every, on_epoch)

    return store.keep("fti4cir-training", facts, make)


def choose(
    store: Store,
    backbone: Backbone,
    training: Artefact | None,
    keep: Checkpoints,
    curve: pd.DataFrame,
    brought: str = "",
) -> Trained:
    """Return the network at one epoch of its training, kept apart as the one that the study uses, or a brought one.

    Where the choice is a key of CHOSEN_ON, it is the epoch with the best value of its metric in `curve`, columns epoch
    and metrics. Without a training the network is read from the file `brought`.
    Raises ValueError for an epoch that was not kept and for a metric without values, and as `bring` does.
    """
    if training is None:
        return bring(store, backbone, brought)
    chosen = _best_epoch(keep, curve) if keep.chosen in CHOSEN_ON else keep.chosen
    epoch = checkpoints.epoch_named("fti", chosen, training)
    weights = training.read(lambda folder: load_file(checkpoints.file_of(folder, "fti", epoch)))

    def make(folder: Path) -> None:
        checkpoints.save_weights(weights, folder / "fti.safetensors")
        write_json(folder / EPOCH, {"epoch": epoch})

    return store.keep("fti4cir", {"training": training.key, "epoch": epoch}, make).read(lambda f: load(f, backbone))


def _best_epoch(keep: Checkpoints, curve: pd.DataFrame) -> str:
    """Return the best of the epochs that save_every asks for, whatever else an earlier run has kept."""
    metric = CHOSEN_ON[keep.chosen]
    if metric not in curve:
        raise ValueError(f"fti_checkpoint is {keep.chosen}, but no epoch was validated on it; add it to datasets.")
    values = curve.set_index("epoch")[metric]
    values = values.loc[keep.epochs(int(values.index.max()))]
    if values.isna().any():
        raise ValueError(
            f"fti_checkpoint is {keep.chosen}, but the training has not kept epoch {values.index[values.isna()][0]}; "
            "set fti_save_every as it was when it was trained."
        )
    return str(values.idxmax())


def make_training(
    study: Study,
    backbone: Backbone,
    captioned: pd.DataFrame,
    captions: Captions,
    settings: Settings,
    keep: Checkpoints,
) -> Artefact | None:
    """Return the training on a study's captioned images; None without captions: the network is to be brought.

    Raises as `train` does, and ValueError before the training for an epoch that it will not keep.
    """
    if not captions.ids:
        return None
    keep.require("fti", settings.epochs)
    known = TrainingSet(captioned, captions, images.reader(study))
    return train(study, backbone, known, settings, keep.save_every, comet(study.name, asdict(settings)))


def make_words(study: Study, backbone: Backbone, trained: Trained, parts: str) -> dict[str, patches.ImageWords]:
    """Return the network's words of every split's references, by split; `parts` are those that queries use."""
    words, reader = {}, images.reader(study)
    for split, loaded in benchmarks.by_split(benchmarks.read(study)).items():
        table = benchmarks.reference_table(loaded)
        words[split] = patches.words_of(study, backbone, trained, split, table, reader, parts)
    return words


def attribute_counts(words: Mapping[str, patches.ImageWords]) -> pd.DataFrame:
    """Return how many images of each split keep how many attributes: a row a split."""
    counts = {name: one.words.counts.bincount(minlength=MOST + 1)[1:].tolist() for name, one in words.items()}
    return pd.DataFrame(counts, index=pd.RangeIndex(1, MOST + 1, name="attributes")).T


class Fti4CirTraining(Training):
    """The network at some epoch of its training, and the losses of every step."""

    def __init__(
        self, folder: Path, backbone: Backbone, encoded: patches.Patches, captions: Captions, settings: Settings
    ):
        self.backbone, self.encoded = backbone, encoded
        self.sentences = sentences_of(backbone, captions)
        torch.manual_seed(settings.seed)
        torch.set_default_dtype(backbone.model.dtype)  # the first weights too: processors draw float32 differently
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
