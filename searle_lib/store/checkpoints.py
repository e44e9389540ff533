"""A training on disk: its module, optimizer, epoch and log.

`save` writes the state after each epoch; `resume` restores it, and the training continues as if it had not been
interrupted. The other functions keep the weights of some epochs and find them again.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from searle_lib.store import tensors as tensor_files
from searle_lib.store.artefacts import Artefact, atomic_write

STATE = "training.safetensors"
LOG = "log.csv"


@dataclass(frozen=True)
class Checkpoints:
    """Which epochs of a training are kept, and which one of them the study uses.

    Args:
        save_every: keep every so many epochs, and the last one.
        checkpoint: "last", an epoch, or for FTI4CIR the benchmark that selects the best of the kept epochs.
    """

    save_every: int
    checkpoint: str = "last"

    def epochs(self, total: int) -> list[int]:
        """Return the epochs that a training of `total` epochs keeps, in order."""
        return [epoch for epoch in range(1, total + 1) if epoch % self.save_every == 0 or epoch == total]

    def require(self, name: str, total: int) -> None:
        """Raise ValueError, before any work, if `checkpoint` is an epoch that the training will not keep."""
        if self.checkpoint.isdigit() and self.checkpoint not in map(str, self.epochs(total)):
            raise ValueError(
                f"{name}_checkpoint is {self.checkpoint}, but {total} epochs with {name}_save_every {self.save_every} "
                f"keep {_join(self.epochs(total))}; choose one of these or change {name}_save_every."
            )


def save(folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, epoch: int, log: list[dict]) -> None:
    """Write the state after an epoch, and the log, which the state also holds.

    Args:
        folder: where to write.
        module: the module that is trained.
        optimizer: its optimizer.
        epoch: the number of finished epochs.
        log: a row for each finished epoch.
    """
    write_log(pd.DataFrame(log), folder / LOG)
    moments = {
        f"optimizer.{index}.{name}": value
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }
    weights = {f"module.{name}": value for name, value in module.state_dict().items()}
    tensor_files.save(weights | moments | {"epoch": torch.tensor(epoch)}, folder / STATE, log=json.dumps(log))


def resume(folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, list[dict]]:
    """Restore the state that `save` wrote; return the number of finished epochs and their log.

    Without a state, or with one that is not as it was written, the training starts from its first epoch.
    """
    content = tensor_files.load(folder / STATE)
    if content is None:
        return 0, []
    tensors, texts = content
    epoch, state = int(tensors["epoch"]), optimizer.state_dict()
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, moment = name.split(".")
            state["state"].setdefault(int(index), {})[moment] = value
    optimizer.load_state_dict(state)
    module.load_state_dict({n.removeprefix("module."): v for n, v in tensors.items() if n.startswith("module.")})
    return epoch, json.loads(texts["log"])


def save_weights(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors. The file is complete or absent."""
    tensor_files.save(tensors, path)


def write_log(log: pd.DataFrame, path: Path) -> None:
    """Write a log as CSV, one row per epoch: losses, and validation metrics in percent. Without columns, no file."""
    if log.columns.empty:
        path.unlink(missing_ok=True)
        return
    with atomic_write(path) as temporary:
        log.to_csv(temporary, index=False)


def weights_file(folder: Path, name: str, epoch: int) -> Path:
    """Return the path of an epoch's weights."""
    return folder / f"{name}-{epoch:03d}.safetensors"


def saved_epochs(training: Artefact, name: str) -> list[int]:
    """Return the epochs whose weights a training keeps, in order."""
    return sorted(int(path.stem.rpartition("-")[2]) for path in training.folder.glob(f"{name}-*.safetensors"))


def resolve_epoch(name: str, checkpoint: str, training: Artefact) -> int:
    """Return the epoch that a checkpoint parameter means: "last" or a kept epoch. Raises ValueError for another."""
    epochs = saved_epochs(training, name)
    if not epochs:
        raise ValueError(f"{training.folder} holds no weights; delete that folder and run the training again.")
    if checkpoint != "last" and checkpoint not in map(str, epochs):
        raise ValueError(
            f"{name}_checkpoint is {checkpoint}, but this training kept the epochs {_join(epochs)}; choose one of "
            f"these or last, or set {name}_save_every, delete {training.folder} and train again."
        )
    return epochs[-1] if checkpoint == "last" else int(checkpoint)


def _join(epochs: list[int]) -> str:
    """Return epochs as text, without the middle of a long list."""
    names = [str(epoch) for epoch in epochs]
    return ", ".join(names if len(names) <= 12 else [*names[:6], "...", *names[-2:]])
