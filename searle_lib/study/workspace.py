"""What a notebook or a command sees of its study: its places, its checked parameters, the records of other notebooks.

Apart from `run`, which runs notebooks: a notebook needs none of papermill.
"""

import ast
import linecache
import os
import platform
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import TracebackType

from searle_lib.reporting import stale_pages
from searle_lib.store import code
from searle_lib.store.artefacts import Store
from searle_lib.store.records import Record, Study
from searle_lib.study import parameters

WORLDS = ("miniature", "real")
HOME = "data/mini"  # where the miniature world lies unless a parameter says otherwise
INJECTED = "# Parameters"  # the first line of the cell in which papermill sets values
SHOWN_VERSIONS = ("torch", "clip-anytorch", "transformers", "pandas")


@dataclass
class OpenStudy(Study):
    """A study as the notebook sees it that runs now; `write_record` is the notebook's last word.

    Args:
        namespace: the notebook's globals, in which its parameters stand.
        known: every parameter that some notebook declares.
        started: when that was, in seconds of the monotonic clock.
    """

    namespace: Mapping = field(default_factory=dict)
    known: Mapping[str, parameters.Declared] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    def overview(self) -> None:
        """Print what this notebook runs on and which records it has read."""
        versions = ", ".join(f"{name} {version(name)}" for name in SHOWN_VERSIONS)
        device = f" on {self.values['device']}" if "device" in self.values else ""
        print(f"study {self.name}: {self.notebook}{device}; Python {platform.python_version()}, {versions}")
        reads = ", ".join(f"{name} (record {digest})" for name, digest in self.digests.items())
        print(f"reads {reads or 'no record: it comes first'}")

    def write_record(self) -> None:
        """Leave the record of this notebook, and let every page of the study say whether it is still up to date.

        Raises ValueError when a parameter was changed after the notebook began.
        """
        now = _own_values(self.notebook, self.namespace, self.known)
        changed = [name for name in self.values if now[name] != self.values[name]]
        if changed:
            raise ValueError(
                f"{changed[0]} was {self.values[changed[0]]} when {self.notebook} began and is {now[changed[0]]} now; "
                "run the notebook from its top."
            )
        file = self.root / "notebooks" / f"{self.notebook}.ipynb"
        record = Record(
            self.notebook,
            self.parameters,
            dict(sorted(self.digests.items())),
            self.made,
            code.notebook_code(file),
            self._execution(file),
        )
        self.write(record)
        stale_pages.mark_stale(self)

    def _execution(self, file: Path) -> dict:
        """Return when, where and how this notebook ran: facts that decide nothing."""
        others = {name: value for name, value in self.values.items() if name not in self.parameters}
        scale = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes there, KiB elsewhere
        return {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self.started, 1),
            "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "versions": {"python": platform.python_version(), **{name: version(name) for name in SHOWN_VERSIONS}},
            "cells": code.cells_digest(file),
            "settings": {name: str(value) if name in parameters.PLACES else value for name, value in others.items()},
        }


def open_study(notebook: str, namespace: dict) -> OpenStudy:
    """Return a notebook's study; `namespace` is `globals()`, in which its parameters stand.

    From here on a refusal of this library is shown as its one sentence, without a traceback. A miniature world is
    drawn when the notebook's data_root is one and does not exist yet.
    Raises ValueError for a parameter that no notebook declares, that is of another type or none of the choices, or
    that another notebook decided otherwise.
    """
    _show_refusals_as_sentences()
    name = getattr(namespace["study"], "name", namespace["study"])  # this cell may run a second time
    root = project_root()
    known = parameters.declared(notebooks(root))
    values = _own_values(notebook, namespace, known)
    artefacts, reports = (root / Path(values[key]).expanduser() for key in ("artefact_root", "report_root"))
    study = OpenStudy(
        name,
        root,
        Store(artefacts, notebook),
        reports / name,
        notebook,
        parameters.deciding(values),
        namespace=namespace,
        known=known,
        values=values,
    )
    _check_injected(study)
    if "data_root" in study.values:
        draw_world(root, study.values | {"world": _world(namespace)})
    return study


def find_study(values: Mapping, command: str = "") -> Study:
    """Return the study that parameters name, for a command that runs no notebook."""
    root = project_root()
    artefacts, reports = (root / Path(values[key]).expanduser() for key in ("artefact_root", "report_root"))
    return Study(values["study"], root, Store(artefacts), reports / values["study"], command)


def draw_world(root: Path, values: Mapping) -> Path:
    """Return the data root, with the miniature world drawn below it where `world` says so and it does not exist."""
    data = root / Path(values["data_root"]).expanduser()
    if values["world"] == "miniature":
        from searle_lib.miniworld import writers  # brings the drawing code, which real data need not

        writers.write(data)
    return data


def notebooks(root: Path) -> list[Path]:
    """Return the study's notebooks in order. Raises FileNotFoundError when there are none."""
    paths = sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    if not paths:
        raise FileNotFoundError(f"{root / 'notebooks'} holds no notebooks; run this from the project's folder.")
    return paths


def project_root() -> Path:
    """Return the nearest folder from here upwards that holds `notebooks` and `params`; else the current folder."""
    here = Path.cwd()
    both = (folder for folder in (here, *here.parents) if (folder / "notebooks").is_dir())
    return next((folder for folder in both if (folder / "params").is_dir()), here)


def _own_values(notebook: str, namespace: Mapping, known: Mapping) -> dict:
    """Return the checked values of the parameters that a notebook declares."""
    values = {}
    for name in parameters.of_notebook(known, notebook):
        if name not in namespace:
            raise ValueError(f"{notebook} has no value for {name}; run its parameters cell, and spell the name so.")
        value = getattr(namespace[name], "name", namespace[name]) if name == "study" else namespace[name]
        values[name] = parameters.check(name, value, known, notebook)
    return values


def _check_injected(study: OpenStudy) -> None:
    """Refuse what papermill set if no notebook declares it, or if the notebook that declares it ran with another."""
    cells = [cell for cell in study.namespace.get("In", []) if cell.startswith(INJECTED)]
    for statement in ast.parse("\n".join(cells)).body:
        for target in getattr(statement, "targets", []):
            name, value = target.id, ast.literal_eval(statement.value)
            parameters.check(name, value, study.known, f"papermill's values for {study.notebook}")
            for notebook in study.known[name].notebooks:
                record = study.find(notebook) if study.notebook > notebook else None
                if record and name in record.parameters and record.parameters[name] != value:
                    raise ValueError(
                        f"{name} is {value} in the values given to {study.notebook}, but {notebook} decides it and ran "
                        f"with {record.parameters[name]}; run {notebook} again first."
                    )


def _world(namespace: Mapping) -> str:
    """Return which world a notebook's data are of: its own parameter, or for 01 that data_root is the default."""
    return namespace.get("world", "miniature" if namespace["data_root"] == HOME else "real")


def _show_refusals_as_sentences() -> None:
    """In a notebook, show an error that this library raises on purpose as its sentence; others keep their traceback."""
    from IPython import get_ipython  # a command needs no IPython

    shell = get_ipython()
    if shell is None:
        return

    def show(
        shell, kind: type, problem: BaseException, trace: TracebackType, tb_offset: int | None = None
    ) -> list[str]:
        if is_refusal(trace):
            lines = [f"{kind.__name__}: {problem}"]
        else:
            lines = shell.InteractiveTB.structured_traceback(kind, problem, trace, tb_offset=tb_offset)
        shell._showtraceback(kind, problem, lines)
        return lines

    shell.set_custom_exc((Exception,), show)


def is_refusal(trace: TracebackType) -> bool:
    """Return whether an error was raised by a `raise` statement of this library."""
    while trace.tb_next:
        trace = trace.tb_next
    file = trace.tb_frame.f_code.co_filename
    ours = Path(file).is_relative_to(code.PACKAGE)
    return ours and linecache.getline(file, trace.tb_lineno).lstrip().startswith("raise")
