"""What the store holds: each artefact with its size, its notebook, and the studies whose records name it.

Takes the store and the folder of reports. `prune` removes artefacts, for `python -m searle_lib artefacts prune`.
"""

import contextlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from searle_lib.store import contents
from searle_lib.store.artefacts import HASHES, MANIFEST, PARTIAL, Store
from searle_lib.store.records import FOLDER, MissingInput, Study

REMOVED = ".removed"  # a folder that is being deleted


@dataclass(frozen=True)
class Entry:
    """An artefact in the store.

    Args:
        name: its folder below the store's root.
        bytes: the size of its files.
        notebook: the notebook that made it, "" if it is unfinished.
        studies: the studies whose records name it.
    """

    name: str
    bytes: int
    notebook: str
    studies: tuple[str, ...]


def read(store: Store, report_root: Path) -> list[Entry]:
    """Return every artefact of a store, finished or not, in order of name.

    Raises MissingInput if a record cannot be read: it may name any artefact.
    """
    names = _names_by_study(store, report_root)
    folders = [path.parent for path in store.root.rglob(MANIFEST)]
    folders += [path for ending in (PARTIAL, REMOVED) for path in store.root.rglob(f"*{ending}") if path.is_dir()]
    entries = []
    for folder in sorted(set(folders)):
        name = folder.relative_to(store.root).as_posix()
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        studies = tuple(study for study, artefacts in names.items() if name in artefacts)
        entries.append(Entry(name, size, _notebook(folder), studies))
    return entries


def unnamed(entries: Iterable[Entry]) -> list[Entry]:
    """Return the artefacts that no record names."""
    return [entry for entry in entries if not entry.studies]


def table(entries: list[Entry]) -> str:
    """Return the artefacts as text, those of the same studies together."""
    lines = [_total("all artefacts", entries)]
    for studies in sorted({entry.studies for entry in entries}, key=lambda names: (not names, names)):
        group = [entry for entry in entries if entry.studies == studies]
        lines += ["", _total(", ".join(studies) or "named by no record", group)]
        width = max(len(entry.name) for entry in group)
        lines += [f"  {_size(e.bytes)}  {e.name:<{width}}  {e.notebook or 'unfinished'}" for e in group]
    return "\n".join(lines)


def prune(store: Store, entries: Iterable[Entry]) -> list[Entry]:
    """Remove artefacts, except those that a process builds at this moment; return the removed ones."""
    removed = []
    for entry in entries:
        folder = store.root / entry.name
        key = folder.name.removesuffix(REMOVED).removesuffix(PARTIAL).rpartition("-")[2]
        with contextlib.suppress(Timeout), FileLock(store.lock(key), timeout=0):
            doomed = folder.with_name(folder.name.removesuffix(REMOVED) + REMOVED)
            folder.rename(doomed)  # so that a killed removal leaves no artefact without some of its files
            shutil.rmtree(doomed)
            removed.append(entry)
        for parent in (store.root / entry.name).relative_to(store.root).parents:
            with contextlib.suppress(OSError):  # it holds another artefact
                if parent != Path("."):
                    (store.root / parent).rmdir()
    contents.forget_missing(store.root / HASHES)
    return removed


def _names_by_study(store: Store, report_root: Path) -> dict[str, set[str]]:
    """Return the names of the artefacts that the records of each study name."""
    names: dict[str, set[str]] = {}
    for file in sorted(report_root.glob(f"*/{FOLDER}/*.json")):
        study = Study(file.parents[1].name, report_root, store, file.parents[1])
        record = study.find(file.stem)
        if record is None:
            raise MissingInput(f"record {file} is damaged; delete it and run {file.stem} again.")
        names.setdefault(study.name, set()).update(record.made.values())
    return names


def _notebook(folder: Path) -> str:
    if folder.suffix in (PARTIAL, REMOVED):
        return ""
    try:
        return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["notebook"] or "outside of a notebook"
    except (OSError, ValueError, LookupError, TypeError):
        return "damaged"


def _total(title: str, entries: list[Entry]) -> str:
    return f"{title}: {len(entries)}, {_size(sum(entry.bytes for entry in entries)).strip()}"


def _size(count: int) -> str:
    return f"{count / 1e6:>10,.1f} MB"
