"""What φ and FTI4CIR share: the training loop with its checkpoints and log, and the trained network in the store.

The training of a method is a subclass of `Training` with its own `train_epoch`. `run` writes checkpoints and the log to
a folder. Every epoch has its own stream of random numbers, so a training that was interrupted ends with the same bytes.
"""

import importlib.util
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from searle_lib.store import bars, checkpoints, randomness
from searle_lib.store.artefacts import Store, write_json

Row = dict[str, float]
Weights = dict[str, Tensor]
WEIGHTS = "weights.safetensors"
EPOCH = "epoch.json"  # the epoch of the weights, in the same folder


@dataclass(frozen=True)
class TrainedNetwork:
    """A network that is ready for use.

    Args:
        module: the network, in eval mode and frozen.
        key: the key of its artefact.
        epoch: the epoch of its training, 0 if it was imported.
    """

    module: nn.Module
    key: str
    epoch: int


def load_network(folder: Path, build: Callable[[Weights], nn.Module]) -> TrainedNetwork:
    """Read the network that `keep_network` left in an artefact's folder."""
    epoch = json.loads((folder / EPOCH).read_text(encoding="utf-8"))["epoch"]
    return TrainedNetwork(build(load_file(folder / WEIGHTS)), folder.name.rpartition("-")[2], epoch)


def keep_network(
    store: Store,
    name: str,
    facts: dict,
    weights: Callable[[], Weights],
    build: Callable[[Weights], nn.Module],
    **about: float,
) -> TrainedNetwork:
    """Return a network for use, kept in the store.

    Args:
        store: keeps the network.
        name: of the artefact.
        facts: what determines the weights.
        weights: returns the weights; called only if the store lacks them.
        build: makes the network of weights, in eval mode and frozen.
        about: what is recorded beside the weights: the epoch, and the dropout of the training.
    """

    def make(folder: Path) -> None:
        checkpoints.save_weights(weights(), folder / WEIGHTS)
        write_json(folder / EPOCH, about)

    return store.keep(name, facts | {"file": WEIGHTS}, make).read(lambda folder: load_network(folder, build))


class Training(ABC):
    """A module in training: its optimizer, its number of finished epochs, and its log of mean losses.

    Args:
        folder: has the checkpoints, the log, and the state of an interrupted training, which resumes.
        name: the method's prefix of parameters, phi or fti.
        module: the module to train.
        settings: has epochs, learning_rate, weight_decay, batch_size and seed.
        loss_scale: a factor that keeps small gradients from vanishing in float16.
    """

    def __init__(self, folder: Path, name: str, module: nn.Module, settings, loss_scale: float):
        self.folder, self.name, self.module = folder, name, module
        self.settings, self.loss_scale = settings, loss_scale
        self.optimizer = torch.optim.AdamW(
            module.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.epoch, self.log = checkpoints.resume(folder, module, self.optimizer)

    @abstractmethod
    def train_epoch(self) -> Row:
        """Train for one epoch and return the means of its losses."""

    def run(self, save_every: int, on_epoch: Callable[[Row], None] = lambda row: None) -> None:
        """Train all epochs that are not finished, and call `on_epoch` with each new row of the log.

        Raises ValueError if a loss is not finite; the state before that epoch stays.
        """
        with bars.bar(self.settings.epochs, f"{self.name} epochs", self.epoch) as bar:
            while self.epoch < self.settings.epochs:
                self.module.train()
                stream = randomness.keys(self.settings.seed, f"{self.name}-epoch", [self.epoch])[0]
                torch.manual_seed(int(stream >> np.uint64(1)))
                losses = self.train_epoch()
                if not np.isfinite(list(losses.values())).all():
                    raise ValueError(
                        f"the losses of {self.name} are not finite in epoch {self.epoch + 1}; lower "
                        f"{self.name}_learning_rate, or set precision to float32."
                    )
                self.epoch += 1
                self.log.append({"epoch": self.epoch} | losses)
                self.save(save_every)
                on_epoch(self.log[-1])
                bar.update()

    def save(self, save_every: int) -> None:
        """Save the state to resume from, and the weights if the epoch is the last or a multiple of `save_every`."""
        if self.epoch % save_every == 0 or self.epoch == self.settings.epochs:
            file = checkpoints.weights_file(self.folder, self.name, self.epoch)
            checkpoints.save_weights(self.module.state_dict(), file)
        checkpoints.save(self.folder, self.module, self.optimizer, self.epoch, self.log)

    def batches(self, count: int) -> Iterator[Tensor]:
        """Yield batches of rows [batch_size] in random order, without the last partial batch."""
        for rows in torch.randperm(count).split(self.settings.batch_size):
            if len(rows) == self.settings.batch_size:
                yield rows

    def step(self, loss: Tensor) -> None:
        """Take one step of the optimizer down the gradient of a loss."""
        (loss * self.loss_scale).backward()
        for parameter in self.module.parameters():
            if parameter.grad is not None:
                parameter.grad /= self.loss_scale
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def comet_logger(name: str, parameters: dict) -> Callable[[Row], None]:
    """Return a function that sends a row of the log to an experiment of Comet.

    It does nothing without the package comet-ml or the variable COMET_API_KEY. Comet itself reads COMET_WORKSPACE.

    Args:
        name: the name of the experiment.
        parameters: what to show as its parameters.
    """
    if not importlib.util.find_spec("comet_ml") or not os.environ.get("COMET_API_KEY"):
        return lambda row: None
    experiments = []

    def log(row: Row) -> None:
        if not experiments:  # not before the first row: a training from the store has no new rows
            from comet_ml import Experiment

            experiments.append(Experiment(project_name="searle"))
            experiments[0].set_name(name)
            experiments[0].log_parameters(parameters)
        experiments[0].log_metrics(row, epoch=int(row["epoch"]))

    return log
