"""The store of everything that a study computes: tensors in safetensors, tables in Parquet, facts in JSON.

An artefact is a folder. Its name is what it holds plus a short hash of everything that determines it; its manifest
lists these facts. `Store.keep` builds an artefact in `<name>.partial` and renames the folder when it is complete, so a
folder that exists is complete. An interrupted build resumes from its `.partial` folder. Every stage uses this module,
and it uses none of them.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from filelock import FileLock
from safetensors import SafetensorError

from searle_lib.store import bars, contents
from searle_lib.store.executors import SERIAL, Executor, Part
from searle_lib.store.files import (
    DISK_FULL,
    TEMPORARY,
    atomic_write,
    file_sha256,
    flush,
    refuse_unwritable,
    remove_abandoned,
    write_json,
)

__all__ = ["DISK_FULL", "Artefact", "DamagedArtefact", "Store", "atomic_write", "digest", "file_sha256", "write_json"]

FORMAT = 5  # part of every hash; raise it when what a stage writes changes its meaning
MANIFEST = "manifest.json"
PARTIAL = ".partial"
HASHES = ".hashes"  # the folder of the store that keeps the hashes of files
UNFINISHED = ("shards", "training.safetensors")  # what an interrupted build resumes from, removed when all else is kept
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
        root: the store's folder, "" if there is none; its hashes of files spare reading a file that has not changed.
        notebook: the notebook that made it, "" if the manifest says it.
    """

    folder: Path
    key: str
    root: Path | None = field(default=None, compare=False)
    notebook: str = field(default="", compare=False)

    def read(self, load: Callable[[Path], Content]) -> Content:
        """Return what `load` reads from the folder. Raises as `require_whole` does."""
        self.require_whole()
        try:
            return load(self.folder)
        except READ_ERRORS as problem:
            reason = " ".join(str(problem).split())[:160] or type(problem).__name__
            raise DamagedArtefact(self._sentence(reason)) from problem

    def require_whole(self) -> None:
        """Raise DamagedArtefact if a file is not as it was written: absent, cut off, or with another content."""
        damaged = self.damaged_files()
        if damaged:
            raise DamagedArtefact(self._sentence("; ".join(f"{name} {reason}" for name, reason in damaged.items())))

    def damaged_files(self) -> dict[str, str]:
        """Return what is wrong with each file that is not as it was written, by name."""
        try:
            manifest = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
            is_whole = manifest.pop("sha256") == _facts_sha256(manifest)
        except FileNotFoundError:
            return {MANIFEST: "is gone"}
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as problem:
            return {MANIFEST: f"cannot be read: {problem}"}
        if not is_whole:
            return {MANIFEST: "has changed since it was written"}
        files = manifest["files"]
        sizes = {name: (self.folder / name).stat().st_size for name in files if (self.folder / name).is_file()}
        damaged = {name: "is gone" for name in files if name not in sizes}
        for name, size in sizes.items():
            if size != files[name]["bytes"]:
                damaged[name] = f"has {size:,} of {files[name]['bytes']:,} bytes"
        complete = [self.folder / name for name in files if name not in damaged]
        try:
            for path, sha256 in zip(complete, self._hash(complete), strict=True):
                expected = files[path.relative_to(self.folder).as_posix()]["sha256"]
                if sha256 != expected and file_sha256(path) != expected:  # a kept hash may be damaged itself
                    damaged[path.relative_to(self.folder).as_posix()] = "has changed since it was written"
        except OSError as problem:
            damaged[Path(problem.filename).name] = f"cannot be read: {problem.strerror}"
        return damaged

    def _hash(self, paths: Sequence[Path]) -> list[str]:
        return contents.hash_files(paths, (self.root or self.folder.parent) / HASHES)

    def _sentence(self, reason: str) -> str:
        return f"artefact {self.folder} is damaged ({reason}); delete that folder and run {self._maker()} again."

    def _maker(self) -> str:
        try:
            return json.loads((self.folder / MANIFEST).read_text())["notebook"] or self.notebook or "the study"
        except (OSError, ValueError, LookupError, TypeError):
            return self.notebook or "the notebook that made it"


@dataclass(frozen=True)
class Store:
    """Artefacts below a folder.

    Args:
        root: the folder.
        notebook: the notebook that makes the artefacts, "" outside of a notebook. Manifests name it.
        executor: computes what is cut into shards.
    """

    root: Path
    notebook: str = ""
    executor: Executor = SERIAL

    def keep(self, name: str, facts: dict, make: Callable[[Path], None]) -> Artefact:
        """Return the artefact with this name and these facts; build it with `make(folder)` if it does not exist.

        A notebook also builds an artefact that is damaged; what is whole of it stays.

        Raises:
            Unwritable: if the disk is full, or the folder may not be written.
            DamagedArtefact: outside of a notebook, if the artefact is damaged.
        """
        key = digest({"format": FORMAT, "name": name, **facts})
        artefact = Artefact(self.root / f"{name}-{key}", key, self.root)
        if self._is_whole(artefact):
            return artefact
        if isinstance(self.executor, Part):
            if artefact.folder.exists():
                artefact.require_whole()  # only the study makes a damaged one again
            return self._build_aside(self.executor, artefact, name, facts, make)
        with refuse_unwritable(self.root, name, "artefact_root"):
            artefact.folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.lock(key)):
                if not self._is_whole(artefact):  # else another process built it while this one waited
                    self._build(artefact, name, facts, make)
        return artefact

    def hash_files(self, paths: Sequence[Path]) -> list[str]:
        """Return the sha256 of each file, as `contents.hash_files` does; the store keeps the hashes."""
        return contents.hash_files(paths, self.root / HASHES)

    def lock(self, key: str) -> Path:
        """Return the file that a process locks while it builds or removes the artefact with a key."""
        locks = self.root / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        return locks / key

    def _is_whole(self, artefact: Artefact) -> bool:
        if artefact.folder.exists() and not self.notebook:
            artefact.require_whole()
        return artefact.folder.exists() and not artefact.damaged_files()

    def _build_aside(
        self, job: Part, artefact: Artefact, name: str, facts: dict, make: Callable[[Path], None]
    ) -> Artefact:
        """Build an artefact for this process alone; only its shards belong to the store."""
        own = Artefact(job.root / artefact.folder.relative_to(self.root), artefact.key, job.root)
        if not (own.folder / MANIFEST).exists():
            job.shared[own.folder] = _partial(artefact)
            own.folder.mkdir(parents=True, exist_ok=True)
            make(own.folder)
            for shard in _partial(artefact).glob("rows-*.safetensors"):
                (own.folder / shard.name).symlink_to(shard.absolute())
            _seal(own.folder, {"name": name, "key": own.key, "notebook": self.notebook, "facts": facts})
        return own

    def _build(self, artefact: Artefact, name: str, facts: dict, make: Callable[[Path], None]) -> None:
        partial = _partial(artefact)
        if artefact.folder.exists():
            _take_apart(artefact, partial)
        partial.mkdir(exist_ok=True)
        for folder in (partial, partial / "shards"):
            remove_abandoned(folder)
        try:
            if Artefact(partial, artefact.key, self.root).damaged_files():  # else it was complete but for its name
                make(partial)
                manifest = {"name": name, "key": artefact.key, "format": FORMAT, "notebook": self.notebook}
                _seal(partial, manifest | {"facts": facts})
            _remove_unfinished(partial)
            partial.rename(artefact.folder)
            flush(artefact.folder.parent)
        finally:
            if partial.exists() and not any(path.is_file() for path in partial.rglob("*")):
                shutil.rmtree(partial, ignore_errors=True)  # interrupted before its first shard
        files = json.loads((artefact.folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        contents.remember({artefact.folder / file: of["sha256"] for file, of in files.items()}, self.root / HASHES)


def digest(facts: object) -> str:
    """Return a hash of facts that JSON can hold, as ten hexadecimal digits."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:10]


def _partial(artefact: Artefact) -> Path:
    return artefact.folder.with_name(artefact.folder.name + PARTIAL)


def _take_apart(artefact: Artefact, partial: Path) -> None:
    """Turn a damaged artefact into an unfinished one with the files that are whole, and say what is damaged."""
    damaged = artefact.damaged_files()
    reasons = "; ".join(f"{name} {reason}" for name, reason in damaged.items())
    bars.say(f"artefact {artefact.folder} is damaged ({reasons}); it is made again now.")
    shutil.rmtree(partial, ignore_errors=True)
    if MANIFEST in damaged:  # which files are whole is not known
        shutil.rmtree(artefact.folder)
        return
    for name in (MANIFEST, *damaged):
        (artefact.folder / name).unlink(missing_ok=True)
    artefact.folder.rename(partial)


def _seal(folder: Path, manifest: dict) -> None:
    """Flush every file of a folder to disk, and write the manifest with the size and sha256 of each."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / MANIFEST]
    files = [path for path in files if path.relative_to(folder).parts[0] not in UNFINISHED]
    files = [path for path in files if path.suffix != TEMPORARY]  # of a worker that died on another machine
    with ThreadPoolExecutor(contents.THREADS) as pool:
        list(pool.map(flush, files))
        hashes = list(pool.map(file_sha256, files))
    manifest["files"] = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256}
        for path, sha256 in zip(files, hashes, strict=True)
    }
    manifest["sha256"] = _facts_sha256(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    for path in (folder / MANIFEST, *{path.parent for path in files}, folder):
        flush(path)


def _remove_unfinished(folder: Path) -> None:
    """Remove what only an interrupted build needs."""
    for path in (folder / name for name in UNFINISHED):
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)


def _facts_sha256(facts: dict) -> str:
    as_read = json.loads(json.dumps(facts))  # JSON makes lists of tuples and text of numbers that are names
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()
