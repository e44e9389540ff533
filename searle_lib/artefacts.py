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

from filelock import FileLock
from safetensors import SafetensorError

FORMAT = 3  # part of every hash; raise it when what a stage writes changes its meaning
FULL = (errno.ENOSPC, errno.EDQUOT)


class Missing(RuntimeError):
    """An artefact is needed that another notebook makes."""


@dataclass(frozen=True)
class Artefact:
    """A complete artefact: its folder, and the key that stands for everything that determined it."""

    folder: Path
    key: str


@dataclass(frozen=True)
class Store:
    """Artefacts below a root, as seen from one notebook (None: from anywhere, where all may be made)."""

    root: Path
    notebook: str | None = None

    def keep(
        self, name: str, facts: dict, make: Callable[[Path], None], by: str | None = None, what: str = ""
    ) -> Artefact:
        """The artefact of that name and those facts; `make(folder)` builds it when it does not exist yet.

        `by` is the notebook whose task it is: seen from another, an absent artefact raises Missing, in a sentence
        that says what is needed, who makes it, and in which facts the nearest existing one differs.
        """
        key = digest({"format": FORMAT, "name": name, **facts})
        folder = self.root / f"{name}-{key}"
        if folder.exists():
            return Artefact(folder, key)
        if by and self.notebook not in (None, by):
            raise Missing(f"notebook {self.notebook} needs {what or name}; run {by} first{self._nearest(name, facts)}.")
        partial = folder.with_name(folder.name + ".partial")
        partial.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self._lock(key)):
            if folder.exists():  # another process built it while we waited
                return Artefact(folder, key)
            try:
                partial.mkdir(exist_ok=True)
                make(partial)
                write_json(partial / "manifest.json", {"name": name, "key": key, "format": FORMAT, "facts": facts})
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

    def _nearest(self, name: str, facts: dict) -> str:
        there = [json.loads(p.read_text())["facts"] for p in self.root.glob(f"{name}-??????????/manifest.json")]
        if not there:
            return ""
        differing = min((_differing(facts, other) for other in there), key=len)
        return f" (there is one, but made with {', '.join(differing)})"


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


def _differing(wanted: dict, found: dict, prefix: str = "") -> list[str]:
    differing = []
    for name in wanted.keys() | found.keys():
        a, b = wanted.get(name), found.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            differing += _differing(a, b, f"{prefix}{name}.")
        elif a != b:
            differing.append(f"{prefix}{name} {b} instead of {a}")
    return sorted(differing)
