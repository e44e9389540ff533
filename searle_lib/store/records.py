"""Records: what a notebook did, for the notebooks that build on it.

`reports/<study>/records/03_oti.json` holds the notebook's parameters, the digests of the records it read, the artefacts
it made and a digest of its code. It also holds when, where and how fast the notebook ran; this part does not enter the
record's own digest. A notebook writes its record last, so a record that exists belongs to a notebook that succeeded.
Reading a record checks whether anything before it has changed since. "mini-seed1/07_results" is a record of another
study in the same report root.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from searle_lib.store.artefacts import Artefact, DamagedArtefact, Store, digest, write_json
from searle_lib.store.executors import Executor

FOLDER, EARLIER = "records", "earlier"
OPEN_CLIP = re.compile("(open_clip:(local-dir:|[^/]*/))?")  # what clip_model may have before a path


class MissingInput(RuntimeError):
    """A notebook needs a record or an artefact that does not exist; the sentence says which notebook makes it."""


class StaleInput(RuntimeError):
    """A record was made from a version of another record that has changed since."""


@dataclass(frozen=True)
class Record:
    """What a notebook decided, read and made.

    Args:
        notebook: its name, such as 03_oti.
        parameters: the parameters that it declares and that decide its results, by name.
        read: the digest of each record that it read, by notebook; "study/notebook" for one of another study.
        made: the folder of each artefact that later notebooks use, below the store's root, by the artefact's name.
        code: a digest of its code cells and of everything in the library that these reach.
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
        """The hash of everything but the execution: an identical rerun has the same digest."""
        return digest({name: value for name, value in asdict(self).items() if name != "execution"})

    @property
    def values(self) -> dict:
        """All parameters of the notebook, including those that change no result."""
        return {**self.execution["settings"], **self.parameters}


@dataclass
class Study:
    """The folders and records of a study, as a notebook or a command uses them.

    Args:
        name: the study's name.
        root: the project's folder; relative paths of parameters start here.
        store: the artefacts.
        reports: the study's folder of records, pages and tables.
        notebook: the notebook that runs, "" for a command.
        parameters: the parameters of this notebook that decide its results.
        values: all parameters of this notebook, with the values at its start.
        digests: the digests of the records read so far, by notebook.
        made: the artefacts kept so far, by name.
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
        """Return the artefact with this name and these facts, as `Store.keep` does, and list it in the record.

        An artefact that `make` keeps on the way is not listed: only this first computation needs it.
        """
        outermost, self._making = not self._making, True
        try:
            artefact = self.store.keep(name, facts, make)
        finally:
            self._making = not outermost
        if outermost:
            self.made[name] = f"{name}-{artefact.key}"
        return artefact

    @property
    def executor(self) -> Executor:
        """What computes shards, as `Store.executor`."""
        return self.store.executor

    def hash_files(self, paths: Sequence[Path]) -> list[str]:
        """Return the sha256 of each file, as `Store.hash_files` does."""
        return self.store.hash_files(paths)

    def find(self, notebook: str) -> Record | None:
        """Return a notebook's record without any check, for comparisons; None if there is none."""
        return self._load(self._file(notebook))

    def path(self, name: str) -> str:
        """Return the full path if a file or folder with this name exists below the project; else the name itself.

        In "open_clip:local-dir:FOLDER" and "open_clip:ARCHITECTURE/FILE" the full path replaces the last part.
        """
        before = OPEN_CLIP.match(name)[0]
        rest = name.removeprefix(before)
        path = self.root / Path(rest).expanduser()
        return f"{before}{path}" if rest and path.exists() else name

    def has(self, notebook: str) -> bool:
        """Return whether a record of this notebook exists."""
        return self._file(notebook).is_file()

    def read(self, notebook: str) -> Record:
        """Return a notebook's record, and note that the current notebook read it.

        Args:
            notebook: its name, or "study/notebook" for a record of another study in the same report root.

        Raises:
            MissingInput: if the record does not exist, or one of its artefacts.
            StaleInput: if the record, or one that it was made from, was made from a record that has changed since.
            DamagedArtefact: if a file of one of their artefacts is not as it was written.
        """
        record = self._read_current(notebook, self.notebook)[1]
        self.digests[notebook] = record.digest
        return record

    def settings(self, notebook: str) -> dict:
        """Return the parameters of a notebook: of its record, or of the current run. Raises as `read` does."""
        return self.values if notebook == self.notebook else self.read(notebook).values

    def artefact(self, notebook: str, name: str) -> Artefact:
        """Return an artefact by name. Raises as `read` does, and MissingInput if the notebook did not make it."""
        record = self.read(notebook)
        if name not in record.made:
            raise MissingInput(
                f"{self.notebook} needs {name}, which {notebook} has not made; check datasets, evaluate and "
                f"images_to_invert of 02_concepts, and run it and {notebook} again."
            )
        return self._made_by(record, record.made[name])

    def artefacts(self, notebook: str, kind: str) -> dict[str, Artefact]:
        """Return a notebook's artefacts named "kind/...", by the rest of their names. Raises as `read` does."""
        names = [name for name in self.read(notebook).made if name.startswith(f"{kind}/")]
        return {name.partition("/")[2]: self.artefact(notebook, name) for name in names}

    def chain(self, notebook: str) -> dict[str, Record]:
        """Return a notebook's record and all of its study that it was made from, by notebook. Raises as `read` does."""
        record = self.read(notebook)
        records = {}
        for earlier in record.read:
            if self._owner(earlier)[0] is self:
                records |= self.chain(earlier)
        return records | {notebook: record}

    def write(self, record: Record) -> None:
        """Write a record. An earlier one that differs is kept in `earlier`, where it explains what changed."""
        file = self._file(record.notebook)
        earlier = self._load(file)
        if earlier and earlier.digest != record.digest:
            copy = self._earlier_file(record.notebook, earlier.digest)
            write_json(copy, asdict(earlier))
        write_json(file, asdict(record))
        self._earlier_file(record.notebook, record.digest).unlink(missing_ok=True)

    def report(self, name: str) -> Path:
        """Return the path of a report file or folder that the current notebook is about to write.

        The notebook's earlier record is withdrawn first. So if this run stops between two files, no record vouches for
        files of different runs.
        """
        self.executor.require_whole(f"what {self.notebook} reports")
        file = self._file(self.notebook)
        earlier = self._load(file)
        if earlier:
            copy = self._earlier_file(self.notebook, earlier.digest)
            copy.parent.mkdir(exist_ok=True)
            file.replace(copy)
        file.unlink(missing_ok=True)
        return self.reports / name

    def problem(self, notebook: str) -> str:
        """Return the sentence that says why a notebook's record cannot be used; "" if it can."""
        try:
            self._require_current(self._current(notebook, ""))
        except (MissingInput, StaleInput, DamagedArtefact) as problem:
            return str(problem)
        return ""

    def _owner(self, name: str) -> tuple["Study", str]:
        """Return the study that a record belongs to, and the notebook: this study, unless the name names another."""
        study, _, notebook = name.rpartition("/")
        return (Study(study, self.root, self.store, self.reports.parent / study) if study else self), notebook

    def _file(self, notebook: str) -> Path:
        return self.reports / FOLDER / f"{notebook}.json"

    def _earlier_file(self, notebook: str, its_digest: str) -> Path:
        return self.reports / FOLDER / EARLIER / f"{notebook}-{its_digest}.json"

    @staticmethod
    def _load(file: Path) -> Record | None:
        try:
            return Record(**json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def _current(self, notebook: str, reader: str) -> Record:
        """Return a notebook's record without a check of its inputs. Raises MissingInput, which names the reader."""
        if not self.has(notebook):
            subject = f"{reader} needs" if reader else "this needs"
            raise MissingInput(f"{subject} the record of {notebook} in study {self.name}; run {notebook} first.")
        record = self._load(self._file(notebook))
        if record is None:
            raise MissingInput(f"record {self._file(notebook)} is damaged; delete it and run {notebook} again.")
        return record

    def _read_current(self, name: str, reader: str) -> tuple["Study", Record]:
        """Return a record whose inputs are current, and the study that it belongs to. Raises as `read` does."""
        owner, notebook = self._owner(name)
        record = owner._current(notebook, reader)
        try:
            owner._require_current(record)
        except (MissingInput, StaleInput) as problem:
            if owner is self:
                raise
            raise type(problem)(f"study {owner.name}: {problem}") from problem
        return owner, record

    def _require_current(self, record: Record) -> None:
        """Raise MissingInput, StaleInput or DamagedArtefact unless its inputs are current and its artefacts whole."""
        for name, digest_read in record.read.items():
            owner, current = self._read_current(name, record.notebook)  # the earliest notebook to run again is named
            if current.digest != digest_read:
                earlier = owner._load(owner._earlier_file(current.notebook, digest_read))
                change = next(owner._changes(earlier, current), f"from an earlier run of {name}")
                place = "" if owner is self else f" in study {owner.name}"
                raise StaleInput(f"{record.notebook} was made {change}{place}; run {record.notebook} again.")
        for artefact in (self._made_by(record, made) for made in record.made.values()):
            if not artefact.folder.is_dir():
                raise MissingInput(
                    f"{record.notebook}'s artefact {artefact.folder} is gone; run {record.notebook} again."
                )
            artefact.require_whole()

    def _made_by(self, record: Record, made: str) -> Artefact:
        return Artefact(self.store.root / made, made.rpartition("-")[2], self.store.root, record.notebook)

    def _changes(self, earlier: Record | None, current: Record) -> Iterator[str]:
        """Yield the differences between two versions of a record, the most informative one first."""
        if earlier is None:
            return
        names = {**earlier.parameters, **current.parameters}
        pairs = {name: (earlier.parameters.get(name), current.parameters.get(name)) for name in names}
        differences = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
        if differences:
            before = ", ".join(f"{name} {_text(old)}" for name, (old, _) in list(differences.items())[:3])
            after = ", ".join(f"{_text(new)}" for _, new in list(differences.values())[:3])
            yield f"with {before}, but {current.notebook} now has {after}"
        for name in current.read:
            upstream = self._load(self._file(name))
            if upstream and earlier.read.get(name) not in (None, current.read[name]):
                yield from self._changes(self._load(self._earlier_file(name, earlier.read[name])), upstream)
        if earlier.code != current.code:
            yield f"from {current.notebook} before its code changed"
        if earlier.made != current.made:
            yield f"from other artefacts than {current.notebook} has made since"


def _text(value: object) -> str:
    return '""' if value == "" else str(value)
