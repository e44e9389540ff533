"""A training on disk: its module, optimizer, epoch and log, from which a cut-off run goes on as if it had not been."""

from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from searle_lib.artefacts import written_aside

STATE = "training.safetensors"
LOG = "log.csv"


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
    """Write a log by epoch as CSV: losses and validation metrics, in percent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as aside:
        log.to_csv(aside, index=False)


def kept_epoch(name: str, checkpoint: str, epochs: int, save_every: int) -> int:
    """The epoch that a checkpoint parameter names: "last", or one that is kept. Raises ValueError for another."""
    kept = [*range(save_every, epochs, save_every), epochs]
    if checkpoint != "last" and checkpoint not in map(str, kept):
        raise ValueError(
            f"{name}_checkpoint is {checkpoint}; with {name}_save_every {save_every} the epochs that are kept are "
            f"{', '.join(map(str, kept))}, the last of them also called last."
        )
    return epochs if checkpoint == "last" else int(checkpoint)
