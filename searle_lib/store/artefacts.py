"""The store of everything a study computes: tensors in safetensors, tables in Parquet, facts in JSON.

An artefact is a folder named for what it holds plus a short hash of everything that determines it, with a
manifest that spells this out. It is built aside and renamed when complete, so a folder that exists is whole;
what a cut-off build had finished stays in `<name>.partial` and is taken up again. Every stage stands on this
module and it stands on none of them.
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
FULL = (errno.ENOSPC, errno.EDQUOT)


Content = TypeVar("Content")
DAMAGE = (OSError, SafetensorError, ValueError, LookupError, EOFError, RuntimeError)  # what readers of files raise


class Damaged(RuntimeError):
    """An artefact's files cannot be read."""


@dataclass(frozen=True)
class Artefact:
    """A complete artefact: its folder, and the key that stands for everything that determined it."""

    folder: Path
    key: str

    def read(self, load: Callable[[Path], Content]) -> Content:
        """Return what `load` reads from the folder. Raises Damaged, in one sentence, when its files do not allow it."""
        try:
            return load(self.folder)
        except DAMAGE as problem:
            said = " ".join(str(problem).split())[:160] or type(problem).__name__
            raise Damaged(
                f"artefact {self.folder} is damaged ({said}); delete that folder and run {self._maker()} again."
            ) from problem

    def _maker(self) -> str:
        try:
            return json.loads((self.folder / MANIFEST).read_text())["notebook"] or "the study"
        except (OSError, ValueError, LookupError):
            return "the notebook that made it"


@dataclass(frozen=True)
class Store:
    """Artefacts below a root; `notebook` is the one that makes them, "" outside of a notebook."""

    root: Path
    notebook: str = ""

    def keep(self, name: str, facts: dict, make: Callable[[Path], None]) -> Artefact:
        """Return the artefact of that name and those facts; `make(folder)` builds it when it does not exist yet."""
        key = digest({"format": FORMAT, "name": name, **facts})
        folder = self.root / f"{name}-{key}"
        if folder.exists():
            return Artefact(folder, key)
        partial = folder.with_name(folder.name + ".partial")
        partial.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self._lock(key)):
            if folder.exists():  # another process built it while we waited
                return Artefact(folder, key)
            try:
                partial.mkdir(exist_ok=True)
                make(partial)
                manifest = {"name": name, "key": key, "format": FORMAT, "notebook": self.notebook, "facts": facts}
                write_json(partial / MANIFEST, manifest)
                partial.rename(folder)
            except (OSError, SafetensorError) as problem:
                if not _is_full(problem):
                    raise
                raise OSError(
                    f"the disk of {self.root} is full ({shutil.disk_usage(self.root).free:,} bytes are free) before "
                    f"{name} was written; make room or set artefact_root to a larger disk, then run again: what is "
                    "finished is kept."
                ) from problem
            finally:
                if not any(path.is_file() for path in partial.rglob("*")):  # cut off before its first shard
                    shutil.rmtree(partial, ignore_errors=True)
        return Artefact(folder, key)

    def _lock(self, key: str) -> Path:
        locks = self.root / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        return locks / key


def digest(facts: object) -> str:
    """Ten hexadecimal digits that stand for the facts, which must be what JSON can hold."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:10]


def file_sha256(path: Path) -> str:
    """The sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, facts: object) -> None:
    """Write JSON aside and rename, so that the file is whole or absent."""
    with written_aside(path) as aside:
        aside.write_text(json.dumps(facts, indent=1) + "\n")


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A path to write to, renamed to `path` when the block ends well and removed when it does not."""
    aside = path.with_name(path.name + ".aside")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _is_full(problem: Exception) -> bool:
    """Whether an error says that there is no room left; safetensors and Arrow say it in words only."""
    words = ("StorageFull", "No space left", "quota exceeded")
    return getattr(problem, "errno", None) in FULL or any(said in str(problem) for said in words)
