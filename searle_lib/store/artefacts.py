"""The store of everything that a study computes: tensors in safetensors, tables in Parquet, facts in JSON.

An artefact is a folder. Its name is what it holds plus a short hash of everything that determines it; its manifest
lists these facts. `Store.keep` builds an artefact in `<name>.partial` and renames the folder when it is complete, so a
folder that exists is complete. An interrupted build resumes from its `.partial` folder. Every stage uses this module,
and it uses none of them.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from filelock import FileLock
from safetensors import SafetensorError

FORMAT = 4  # part of every hash; raise it when what a stage writes changes its meaning
MANIFEST = "manifest.json"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
READ_ERRORS = (OSError, SafetensorError, ValueError, LookupError, EOFError, RuntimeError)  # of readers of files

Content = TypeVar("Content")


class DamagedArtefact(RuntimeError):
    """The files of an artefact cannot be read."""


@dataclass(frozen=True)
class Artefact:
    """A complete artefact.

    Args:
        folder: where its files are.
        key: the hash of everything that determines it.
    """

    folder: Path
    key: str

    def read(self, load: Callable[[Path], Content]) -> Content:
        """Return what `load` reads from the folder. Raises DamagedArtefact if the files cannot be read."""
        try:
            return load(self.folder)
        except READ_ERRORS as problem:
            reason = " ".join(str(problem).split())[:160] or type(problem).__name__
            raise DamagedArtefact(
                f"artefact {self.folder} is damaged ({reason}); delete that folder and run {self._maker()} again."
            ) from problem

    def _maker(self) -> str:
        try:
            return json.loads((self.folder / MANIFEST).read_text())["notebook"] or "the study"
        except (OSError, ValueError, LookupError):
            return "the notebook that made it"


@dataclass(frozen=True)
class Store:
    """Artefacts below a folder.

    Args:
        root: the folder.
        notebook: the notebook that makes the artefacts, "" outside of a notebook. Manifests name it.
    """

    root: Path
    notebook: str = ""

    def keep(self, name: str, facts: dict, make: Callable[[Path], None]) -> Artefact:
        """Return the artefact with this name and these facts; build it with `make(folder)` if it does not exist.

        Raises OSError if the disk is full.
        """
        key = digest({"format": FORMAT, "name": name, **facts})
        folder = self.root / f"{name}-{key}"
        if folder.exists():
            return Artefact(folder, key)
        partial = folder.with_name(folder.name + ".partial")
        partial.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self._lock(key)):
            if folder.exists():  # another process built it while this one waited
                return Artefact(folder, key)
            try:
                partial.mkdir(exist_ok=True)
                make(partial)
                manifest = {"name": name, "key": key, "format": FORMAT, "notebook": self.notebook, "facts": facts}
                write_json(partial / MANIFEST, manifest)
                partial.rename(folder)
            except (OSError, SafetensorError) as problem:
                if not _is_disk_full(problem):
                    raise
                raise OSError(
                    f"the disk of {self.root} is full ({shutil.disk_usage(self.root).free:,} bytes are free) before "
                    f"{name} was written; make room or set artefact_root to a larger disk, then run again: finished "
                    "work is kept."
                ) from problem
            finally:
                if not any(path.is_file() for path in partial.rglob("*")):  # interrupted before its first shard
                    shutil.rmtree(partial, ignore_errors=True)
        return Artefact(folder, key)

    def _lock(self, key: str) -> Path:
        locks = self.root / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        return locks / key


def digest(facts: object) -> str:
    """Return a hash of facts that JSON can hold, as ten hexadecimal digits."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:10]


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, facts: object) -> None:
    """Write facts as JSON. The file is complete or absent."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(facts, indent=1) + "\n")


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; rename it to `path` if the block succeeds, remove it if not."""
    temporary = path.with_name(path.name + ".aside")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _is_disk_full(problem: Exception) -> bool:
    """Return whether an error means that the disk is full; safetensors and Arrow say it in words only."""
    words = ("StorageFull", "No space left", "quota exceeded")
    return getattr(problem, "errno", None) in DISK_FULL or any(word in str(problem) for word in words)
