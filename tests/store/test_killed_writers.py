"""kill -9 while files are written: what has its name is whole, and the next writer goes on and sweeps up."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
import writer
from conftest import forbidden
from safetensors.torch import load_file

from searle_lib.store import tensors

KILLS, LONGEST, IN_A_FILE = 40, 0.25, 0.002  # seconds until a kill, and from the opening of a file to a kill

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="needs kill -9")]


@pytest.fixture
def folder(tmp_path):
    """A folder in memory, if there is one: a disk would spend most of the time on flushing."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as folder:
        yield Path(folder)


@pytest.fixture
def write():
    """A function that lets a process write rounds, and kills it some seconds after it began or after an opening.

    It returns the number of rounds that began, and the exit status.
    """
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    environment = os.environ | {"TQDM_DISABLE": "1"}
    with subprocess.Popen([sys.executable, writer.__file__], **pipes, env=environment) as process:

        def write_rounds(root, rounds, seconds=None, opening=0):
            print(root, rounds, opening, file=process.stdin, flush=True)
            lines = []
            while not lines or not lines[-1].startswith("ended"):
                lines.append(process.stdout.readline())
                assert lines[-1], "the process that forks has ended"
                if lines[-1].startswith("pid"):
                    pid = int(lines[-1].split()[1])
                if seconds is not None and lines[-1].startswith("opening" if opening else "pid"):
                    time.sleep(seconds)
                    os.kill(pid, signal.SIGKILL)
            return sum(line.strip().isdigit() for line in lines), int(lines[-1].split()[1])

        yield write_rounds
        process.stdin.close()


def require_whole(root):
    """Assert that every file and folder that has its name is as it was meant to be."""
    for folder in (root / "artefacts").glob("*-??????????"):
        manifest = json.loads((folder / "manifest.json").read_text())
        files = {path.name for path in folder.iterdir()} - {"manifest.json"}
        assert files == set(manifest["files"])
        for name, facts in manifest["files"].items():
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == facts["sha256"]
        if folder.name.startswith("words"):
            words = load_file(folder / "words.safetensors")["words"]
            assert torch.equal(words, writer.rows_of(manifest["facts"]["number"], 0, writer.ROWS))
    unfinished = [*root.glob("artefacts/*.partial/shards/rows-*"), *root.glob("artefacts/*.partial/*.safetensors")]
    for path in unfinished:
        assert path.suffix == ".aside" or tensors.load(path) is not None, path
    study = writer.study_below(root)
    for path in (study.reports / "records").rglob("*.json"):
        assert json.loads(path.read_text())["notebook"] == writer.NOTEBOOK
    if study.has(writer.NOTEBOOK):
        record = study.read(writer.NOTEBOOK)  # raises unless its artefacts are whole
        assert json.loads((study.reports / "scores.json").read_text())[0] == record.parameters["number"]


def remains(root):
    """The files and folders that are not finished."""
    return [path for path in root.rglob("*") if path.suffix in (".partial", ".aside")]


def test_a_writer_that_is_killed_leaves_nothing_half_written_and_the_next_one_goes_on(write, folder):
    chance, interrupted = random.Random(7), 0
    for number in range(KILLS):
        root = folder / str(number)
        opening = chance.randint(1, 30) if number % 2 else 0
        rounds, status = write(root, 1000, chance.uniform(0, IN_A_FILE if opening else LONGEST), opening)
        assert status == -signal.SIGKILL
        interrupted += bool(remains(root))
        require_whole(root)
        assert write(root, rounds)[1] == 0
        require_whole(root)
        assert remains(root) == []
        if rounds:
            last = writer.study_below(root).keep("training", {"number": rounds - 1}, forbidden(writer.train)).folder
            writer.train(folder / "uninterrupted", rounds - 1)
            expected = {path.name: path.read_bytes() for path in (folder / "uninterrupted").glob("phi-*")}
            assert {path.name: path.read_bytes() for path in last.glob("phi-*")} == expected
            shutil.rmtree(folder / "uninterrupted")
        shutil.rmtree(root)
    assert interrupted > KILLS / 4
