"""A process that test_killed_writers.py kills while it writes artefacts, shards, trainings, reports and records.

It reads lines "folder rounds opening". For each it forks a process that writes these rounds. It prints "pid N", the
number of each round that begins, "opening" when the process opens a file for the opening-th time to write it, and at
last "ended STATUS", where a killed process has the negative number of its signal. A fork spares the imports, which take
seconds.
"""

import os
import sys
import traceback
from pathlib import Path

import torch

from searle_lib.store import checkpoints, shards
from searle_lib.store.artefacts import Store, write_json
from searle_lib.store.records import Record, Study

ROWS, SHARD, WIDTH, EPOCHS = 4, 1, 1 << 16, 2
TEXT = "x" * 1_000_000  # makes the writing of a file long enough to be hit
NOTEBOOK = "03_oti"


def rows_of(number: int, first: int, end: int) -> torch.Tensor:
    return torch.arange(first, end).float()[:, None].repeat(1, WIDTH) + number


def write_words(folder: Path, number: int) -> None:
    words = shards.run(
        folder / "shards", ROWS, SHARD, lambda first, end: {"words": rows_of(number, first, end)}, "words"
    )
    checkpoints.save_weights(words, folder / "words.safetensors")
    write_json(folder / "text.json", TEXT)


def train(folder: Path, number: int) -> None:
    torch.manual_seed(number)
    module = torch.nn.Linear(64, 64)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    epoch, log = checkpoints.resume(folder, module, optimizer)
    while epoch < EPOCHS:
        optimizer.zero_grad()
        loss = module(torch.eye(64)).square().sum()
        loss.backward()
        optimizer.step()
        epoch += 1
        log.append({"epoch": epoch, "loss": loss.item()})
        checkpoints.save_weights(module.state_dict(), checkpoints.weights_file(folder, "phi", epoch))
        checkpoints.save(folder, module, optimizer, epoch, log)


def study_below(root: Path, notebook: str = "") -> Study:
    return Study("killed", root, Store(root / "artefacts", notebook), root / "reports" / "killed", notebook)


def write_round(root: Path, number: int) -> None:
    """Do what a notebook does: keep artefacts, write a report, and leave a record."""
    study = study_below(root, NOTEBOOK)
    study.keep("words", {"number": number}, lambda folder: write_words(folder, number))
    study.keep("training", {"number": number}, lambda folder: train(folder, number))
    write_json(study.report("scores.json"), [number, TEXT])
    study.write(Record(NOTEBOOK, {"number": number, "text": TEXT}, {}, study.made, "code", {"settings": {}}))


def say(fact: object) -> None:
    os.write(1, f"{fact}\n".encode())  # at once: two processes write to this pipe


def announce_opening(number: int) -> None:
    """Say when a file is opened for the number-th time to be written."""
    count = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal count
        if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            count += 1
            if count == number:
                say("opening")

    sys.addaudithook(hook)


def main() -> None:
    torch.set_num_threads(1)
    torch.optim.AdamW([torch.zeros(1)]).step()  # the first optimizer imports modules for seconds
    for line in sys.stdin:
        folder, rounds, opening = line.split()
        process = os.fork()
        if not process:
            status = 1
            announce_opening(int(opening))
            try:
                for number in range(int(rounds)):
                    say(number)
                    write_round(Path(folder), number)
                status = 0
            except BaseException:
                traceback.print_exc()
            os._exit(status)
        say(f"pid {process}")
        say(f"ended {os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])}")


if __name__ == "__main__":
    main()
