"""A training on disk: its module, optimizer, epoch and log, from which a cut-off run goes on as if it had not been."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from searle_lib.store.artefacts import Artefact, written_aside

STATE = "training.safetensors"
LOG = "log.csv"


@dataclass(frozen=True)
class Checkpoints:
    """Which epochs of a training are kept, every so many and the last, and which one the study uses.

    `chosen` is "last", an epoch, or for FTI4CIR the benchmark on which the best of the kept ones is chosen.
    """

    save_every: int
    chosen: str = "last"

    def epochs(self, total: int) -> list[int]:
        """Return the epochs that a training of so many epochs keeps, in order."""
        return [epoch for epoch in range(1, total + 1) if epoch % self.save_every == 0 or epoch == total]

    def require(self, name: str, total: int) -> None:
        """Raise ValueError, before any work, when the chosen epoch is a number that the training will not keep."""
        if self.chosen.isdigit() and self.chosen not in map(str, self.epochs(total)):
            raise ValueError(
                f"{name}_checkpoint is {self.chosen}, but {total} epochs with {name}_save_every {self.save_every} keep "
                f"{_listed(self.epochs(total))}; choose one of these or change {name}_save_every."
            )


def save(folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, epoch: int, log: list[dict]) -> None:
    """Write the state after an epoch; the log first, so that it never lacks an epoch that the state has."""
    write_log(pd.DataFrame(log), folder / LOG)
    moments = {
        f"optimizer.{index}.{name}": value
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }
    weights = {f"module.{name}": value for name, value in module.state_dict().items()}
    save_weights(weights | moments | {"epoch": torch.tensor(epoch)}, folder / STATE)


def resume(folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, list[dict]]:
    """Put back what `save` wrote, if anything; the number of finished epochs, and the log of those."""
    if not (folder / STATE).exists():
        return 0, []
    saved = load_file(folder / STATE)
    epoch, state = int(saved["epoch"]), optimizer.state_dict()
    for name, value in saved.items():
        if name.startswith("optimizer."):
            _, index, moment = name.split(".")
            state["state"].setdefault(int(index), {})[moment] = value
    optimizer.load_state_dict(state)
    module.load_state_dict({n.removeprefix("module."): v for n, v in saved.items() if n.startswith("module.")})
    return epoch, pd.read_csv(folder / LOG).head(epoch).to_dict("records")


def finish(folder: Path) -> None:
    """Remove what only a cut-off run needs."""
    (folder / STATE).unlink()


def save_weights(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors, whole or not at all."""
    with written_aside(path) as aside:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, aside)


def write_log(log: pd.DataFrame, path: Path) -> None:
    """Write a log by epoch as CSV: losses and validation metrics, in percent; of no training there is no file."""
    if log.columns.empty:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as aside:
        log.to_csv(aside, index=False)


def file_of(folder: Path, name: str, epoch: int) -> Path:
    """Return the file of the weights that a training keeps of an epoch."""
    return folder / f"{name}-{epoch:03d}.safetensors"


def kept_epochs(training: Artefact, name: str) -> list[int]:
    """Return the epochs whose weights a training keeps, in order."""
    return sorted(int(path.stem.rpartition("-")[2]) for path in training.folder.glob(f"{name}-*.safetensors"))


def epoch_named(name: str, checkpoint: str, training: Artefact) -> int:
    """Return the epoch that a checkpoint parameter names, "last" or one that is kept. Raises ValueError for another."""
    kept = kept_epochs(training, name)
    if not kept:
        raise ValueError(f"{training.folder} holds no weights; delete that folder and run the training again.")
    if checkpoint != "last" and checkpoint not in map(str, kept):
        raise ValueError(
            f"{name}_checkpoint is {checkpoint}; the epochs that this training kept are {_listed(kept)}, the last of "
            f"them also called last. To keep others, set {name}_save_every, delete {training.folder} and train again."
        )
    return kept[-1] if checkpoint == "last" else int(checkpoint)


def _listed(epochs: list[int]) -> str:
    """Return epochs as text, the middle of a long list left out."""
    shown = [str(epoch) for epoch in epochs]
    return ", ".join(shown if len(shown) <= 12 else [*shown[:6], "...", *shown[-2:]])
