"""Records: what a notebook did, left for the notebooks that build on it.

`reports/<study>/records/03_oti.json` holds the notebook's own parameters, the digests of the records it read, the
artefacts it made and a digest of its code; when, where and how fast it ran stands apart and is no part of the record's
own digest. A record is written last. So one that exists tells of a notebook that ended well, and whoever reads it
learns at once when something below it has changed since.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from searle_lib.store.artefacts import Artefact, Store, digest, write_json

FOLDER, EARLIER = "records", "earlier"


class Missing(RuntimeError):
    """A record or an artefact is needed that another notebook makes."""


class Stale(RuntimeError):
    """A record was made from another record as it was before."""


@dataclass(frozen=True)
class Record:
    """What a notebook decided, read and made.

    Args:
        notebook: its name, as in 03_oti.
        parameters: the parameters that it declares and that decide its results, by name.
        read: the digest of each record that it read, by notebook.
        made: the folder of each artefact that later notebooks use, below the store's root, by the artefact's name.
        code: a digest of its code cells and of all in the library that these reach.
        execution: date, device, seconds, memory, versions, and the parameters that change no result.
    """

    notebook: str
    parameters: dict
    read: dict[str, str]
    made: dict[str, str]
    code: str
    execution: dict

    @property
    def digest(self) -> str:
        """Stands for everything but the execution: an identical rerun has the same digest."""
        return digest({name: value for name, value in asdict(self).items() if name != "execution"})

    @property
    def values(self) -> dict:
        """The notebook's own parameters, those that change no result included."""
        return {**self.execution["settings"], **self.parameters}


@dataclass
class Study:
    """A study's places and records, as a notebook or a command uses them.

    Args:
        name: the study's name.
        root: the project's folder; relative paths of parameters start here.
        store: where artefacts are kept.
        reports: the study's folder of records, pages and tables.
        notebook: the notebook that runs, "" for a command.
        parameters: those of the notebook that runs and that decide its results.
        values: all parameters of the notebook that runs, as they were when it began.
        digests: of the records that were read so far, by notebook.
        made: the artefacts that were kept so far, by name.
    """

    name: str
    root: Path
    store: Store
    reports: Path
    notebook: str = ""
    parameters: dict = field(default_factory=dict)
    values: dict = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    made: dict[str, str] = field(default_factory=dict)
    _making: bool = False

    def keep(self, name: str, facts: dict, make: Callable[[Path], None]) -> Artefact:
        """Return the store's artefact of that name and those facts, and list it in this notebook's record.

        What `make` keeps on its way is not listed: only the first making needs it.
        """
        outermost, self._making = not self._making, True
        try:
            artefact = self.store.keep(name, facts, make)
        finally:
            self._making = not outermost
        if outermost:
            self.made[name] = str(artefact.folder.relative_to(self.store.root))
        return artefact

    def find(self, notebook: str) -> Record | None:
        """Return a notebook's record unchecked, for whoever only compares; None where it has left none."""
        return self._load(self._file(notebook))

    def path(self, name: str) -> str:
        """Return a file's or folder's path, if one of that name lies below the project; else the name itself."""
        path = self.root / Path(name).expanduser()
        return str(path) if name and path.exists() else name

    def has(self, notebook: str) -> bool:
        """Return whether a notebook of this study has left a record."""
        return self._file(notebook).is_file()

    def read(self, notebook: str) -> Record:
        """Return a notebook's record.

        Raises Missing when it does not exist or an artefact of it is gone, and Stale when it, or one that it was made
        from, was made from another record as it was before. Each sentence says which notebook to run.
        """
        record = self._current(notebook, self.notebook)
        self._require_whole(record)
        self.digests[notebook] = record.digest
        return record

    def settings(self, notebook: str) -> dict:
        """Return the parameters that a notebook ran with, or runs with now. Raises as `read` does."""
        return self.values if notebook == self.notebook else self.read(notebook).values

    def artefact(self, notebook: str, name: str) -> Artefact:
        """Return an artefact that a notebook made, by its name. Raises as `read` does, and Missing for another name."""
        record = self.read(notebook)
        if name not in record.made:
            raise Missing(
                f"{self.notebook} needs {name}, which {notebook} has not made; check datasets, evaluate and "
                f"images_to_invert of 02_concepts, and run it and {notebook} again."
            )
        folder = self.store.root / record.made[name]
        return Artefact(folder, folder.name.rpartition("-")[2])

    def artefacts(self, notebook: str, kind: str) -> dict[str, Artefact]:
        """Return the artefacts of one kind that a notebook made, by what stands behind "kind/" in their names."""
        names = [name for name in self.read(notebook).made if name.startswith(f"{kind}/")]
        return {name.partition("/")[2]: self.artefact(notebook, name) for name in names}

    def chain(self, notebook: str) -> dict[str, Record]:
        """Return a notebook's record and all that it was made from, by notebook. Raises as `read` does."""
        record = self.read(notebook)
        records = {}
        for earlier in record.read:
            records |= self.chain(earlier)
        return records | {notebook: record}

    def write(self, record: Record) -> None:
        """Put a record in place, whole; an earlier one that differs is kept, to explain what changed."""
        file = self._file(record.notebook)
        file.parent.mkdir(parents=True, exist_ok=True)
        if self.has(record.notebook):
            earlier = self._load(file)
            if earlier and earlier.digest != record.digest:
                kept = self._earlier(record.notebook, earlier.digest)
                kept.parent.mkdir(exist_ok=True)
                write_json(kept, asdict(earlier))
        write_json(file, asdict(record))

    def problem(self, notebook: str) -> str:
        """Return the sentence that says why a notebook's record cannot be used, "" when it can."""
        try:
            self._require_whole(self._current(notebook, ""))
        except (Missing, Stale) as problem:
            return str(problem)
        return ""

    def _file(self, notebook: str) -> Path:
        return self.reports / FOLDER / f"{notebook}.json"

    def _earlier(self, notebook: str, its_digest: str) -> Path:
        return self.reports / FOLDER / EARLIER / f"{notebook}-{its_digest}.json"

    @staticmethod
    def _load(file: Path) -> Record | None:
        try:
            return Record(**json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def _current(self, notebook: str, reader: str) -> Record:
        """Return the record of a notebook as it stands, for the notebook that reads it."""
        if not self.has(notebook):
            who = f"{reader} needs" if reader else "this needs"
            raise Missing(f"{who} the record of {notebook} in study {self.name}; run {notebook} first.")
        record = self._load(self._file(notebook))
        if record is None:
            raise Missing(f"record {self._file(notebook)} is damaged; delete it and run {notebook} again.")
        return record

    def _require_whole(self, record: Record) -> None:
        for name, digest_read in record.read.items():
            current = self._current(name, record.notebook)
            self._require_whole(current)  # first, so that the earliest notebook to run again is named
            if current.digest != digest_read:
                earlier = self._load(self._earlier(name, digest_read))
                changes = next(self._changes(earlier, current), f"from an earlier run of {name}")
                raise Stale(f"{record.notebook} was made {changes}; run {record.notebook} again.")
        for artefact in record.made.values():
            if not (self.store.root / artefact).is_dir():
                raise Missing(
                    f"{record.notebook}'s artefact {self.store.root / artefact} is gone; run {record.notebook} again."
                )

    def _changes(self, earlier: Record | None, current: Record) -> Iterator[str]:
        """Say in what a record differs from what it was, the most telling first."""
        if earlier is None:
            return
        names = {**earlier.parameters, **current.parameters}
        pairs = {name: (earlier.parameters.get(name), current.parameters.get(name)) for name in names}
        differing = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
        if differing:
            before = ", ".join(f"{name} {_shown(old)}" for name, (old, _) in list(differing.items())[:3])
            after = ", ".join(f"{_shown(new)}" for _, new in list(differing.values())[:3])
            yield f"with {before}, but {current.notebook} now has {after}"
        for name in current.read:
            upstream = self._load(self._file(name))
            if upstream and earlier.read.get(name) not in (None, current.read[name]):
                yield from self._changes(self._load(self._earlier(name, earlier.read[name])), upstream)
        if earlier.code != current.code:
            yield f"from {current.notebook} before its code changed"
        if earlier.made != current.made:
            yield f"from other artefacts than {current.notebook} has made since"


def _shown(value: object) -> str:
    return '""' if value == "" else str(value)
