"""A study as a notebook or a command sees it: its folders, its checked parameters, the records of other notebooks.

`open_study` is the first call of a notebook and `OpenStudy.write_record` the last. Nothing here imports papermill,
which takes seconds in every kernel.
"""

import ast
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

from searle_lib.evaluation import methods, other_models
from searle_lib.reporting import stale_pages
from searle_lib.store import code, executors
from searle_lib.store.artefacts import Store, digest
from searle_lib.store.reading import is_refusal
from searle_lib.store.records import FOLDER, Record, Study
from searle_lib.study import parameters

WORLDS = ("miniature", "real")
MINIATURE_ROOT = "data/mini"  # the default data_root, where the miniature world is drawn
JOB = "job_of_array"  # the variable that holds the executor of a job
INJECTED_HEADER = "# Parameters"  # the first line of the cell that papermill adds to set values
SHOWN_VERSIONS = ("torch", "clip-anytorch", "transformers", "pandas")


@dataclass
class OpenStudy(Study):
    """A study as the notebook that runs now sees it.

    Args:
        namespace: the notebook's globals, which hold its parameters.
        declarations: every parameter that a notebook declares.
        started: the start of the notebook, in seconds of the monotonic clock.
    """

    namespace: Mapping = field(default_factory=dict)
    declarations: Mapping[str, parameters.Declaration] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    def overview(self) -> None:
        """Print the study, the versions of the main packages, and the records read so far."""
        versions = ", ".join(f"{name} {version(name)}" for name in SHOWN_VERSIONS)
        device = f" on {self.values['device']}" if "device" in self.values else ""
        print(f"study {self.name}: {self.notebook}{device}; Python {platform.python_version()}, {versions}")
        reads = ", ".join(f"{name} (record {digest})" for name, digest in self.digests.items())
        print(f"reads {reads or 'no record: it comes first'}")

    def write_record(self) -> None:
        """Write the record of this notebook, and mark each page of the study that is no longer up to date.

        Raises ValueError if a parameter was changed after the notebook began.
        """
        self.executor.require_whole(f"the record of {self.notebook}")
        self.executor.close()
        current = _checked_values(self.notebook, self.namespace, self.declarations)
        changes = [name for name in self.values if current[name] != self.values[name]]
        if changes:
            name = changes[0]
            raise ValueError(
                f"{name} was {self.values[name]} when {self.notebook} began and is {current[name]} now; run the "
                "notebook from its top."
            )
        file = self.root / "notebooks" / f"{self.notebook}.ipynb"
        record = Record(
            self.notebook,
            self.parameters,
            dict(sorted(self.digests.items())),
            self.made,
            notebook_digest(self.root, self.notebook, self.values),
            self._execution(file),
        )
        self.write(record)
        stale_pages.mark_stale(self)

    def _execution(self, file: Path) -> dict:
        """Return when, where and how this notebook ran: facts that decide no result."""
        neutral = {name: value for name, value in self.values.items() if name not in self.parameters}
        scale = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB elsewhere
        return {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self.started, 1),
            "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "versions": {"python": platform.python_version(), **{name: version(name) for name in SHOWN_VERSIONS}},
            "cells": code.cells_digest(file),
            "settings": {name: str(value) if name in parameters.PLACES else value for name, value in neutral.items()},
        }


def open_study(notebook: str, namespace: dict) -> OpenStudy:
    """Open a study in a notebook; draw the miniature world if data_root is one and does not exist yet.

    From here on the notebook shows an error that this library raises on purpose as one sentence, without a traceback.

    Args:
        notebook: the notebook's name.
        namespace: its `globals()`, which hold its parameters.

    Raises:
        ValueError: for a parameter that no notebook declares, that is not allowed, or that another notebook ran with
            another value.
    """
    _show_refusals_as_sentences()
    name = getattr(namespace["study"], "name", namespace["study"])  # a Study if this cell runs a second time
    root = project_root()
    declarations = parameters.read_declarations(notebooks(root))
    values = _checked_values(notebook, namespace, declarations)
    artefacts, reports = _folders(root, values)
    study = OpenStudy(
        name,
        root,
        Store(artefacts, notebook, namespace.get(JOB) or executors.of_parameters(values)),
        reports / name,
        notebook,
        parameters.result_parameters(values),
        namespace=namespace,
        declarations=declarations,
        values=values,
    )
    _check_injected(study)
    if "data_root" in values:
        # 01_phrases has no parameter `world`: there the default data_root means the miniature one
        default = "miniature" if namespace["data_root"] == MINIATURE_ROOT else "real"
        draw_world(root, values | {"world": namespace.get("world", default)})
    return study


def find_study(values: Mapping, command: str = "") -> Study:
    """Return the study that these parameters name, for a command that runs no notebook."""
    root = project_root()
    artefacts, reports = _folders(root, values)
    return Study(values["study"], root, Store(artefacts), reports / values["study"], command)


def notebook_digest(root: Path, notebook: str, values: Mapping) -> str:
    """Return the digest of the code that a notebook runs with these parameters.

    Methods of one's own, and the scores of other models, are included.
    """
    own = methods.own_sha256(values.get("methods", ()), root)
    own += other_models.sha256(values.get("other_models", ()), root)
    library = code.notebook_code_digest(root / "notebooks" / f"{notebook}.ipynb")
    return digest([library, own]) if own else library


def load_study(name: str, report_root: str = "reports") -> Study:
    """Return a study that has run, by its name, for a notebook or script of one's own.

    Raises FileNotFoundError if the study has no records in `report_root`.
    """
    places = {"study": name, "report_root": report_root, "artefact_root": ""}
    study = find_study(places)
    records = [study.find(path.stem) for path in notebooks(study.root)]
    settings = next((record.values for record in records if record), None)
    if settings is None:
        folder = study.reports.parent
        names = sorted(path.parent.name for path in folder.glob(f"*/{FOLDER}"))
        remedy = f"choose one of {', '.join(names)}" if names else "run the study, or correct report_root"
        raise FileNotFoundError(f"{folder} holds no records of a study {name}; {remedy}.")
    return find_study(places | {"artefact_root": settings["artefact_root"]})


def lacks_world(root: Path, values: Mapping) -> bool:
    """Return whether `draw_world` has to draw the miniature world from nothing."""
    return values["world"] == "miniature" and not (root / Path(values["data_root"]).expanduser()).exists()


def draw_world(root: Path, values: Mapping) -> Path:
    """Return the data root; if `world` is "miniature", draw the miniature world there unless it exists."""
    data = root / Path(values["data_root"]).expanduser()
    if values["world"] == "miniature":
        from searle_lib.miniworld import writers  # the drawing code, which real data do not need

        writers.write(data)
    return data


def notebooks(root: Path) -> list[Path]:
    """Return the study's notebooks in order. Raises FileNotFoundError if there are none."""
    paths = sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    if not paths:
        raise FileNotFoundError(f"{root / 'notebooks'} holds no notebooks; run this from the project's folder.")
    return paths


def project_root() -> Path:
    """Return the nearest folder from here upwards that holds `notebooks` and `params`; else the current folder."""
    current = Path.cwd()
    folders = (folder for folder in (current, *current.parents) if (folder / "notebooks").is_dir())
    return next((folder for folder in folders if (folder / "params").is_dir()), current)


def _folders(root: Path, values: Mapping) -> tuple[Path, Path]:
    """Return the artefact root and the report root."""
    return root / Path(values["artefact_root"]).expanduser(), root / Path(values["report_root"]).expanduser()


def _checked_values(notebook: str, namespace: Mapping, declarations: Mapping) -> dict:
    """Return the checked values of the parameters that a notebook declares."""
    values = {}
    for name in parameters.names_of_notebook(declarations, notebook):
        if name not in namespace:
            raise ValueError(f"{notebook} has no value for {name}; run its parameters cell, where {name} must be set.")
        value = getattr(namespace[name], "name", namespace[name]) if name == "study" else namespace[name]
        values[name] = parameters.check(name, value, declarations, notebook)
    return values


def _check_injected(study: OpenStudy) -> None:
    """Raise ValueError if papermill set an unknown parameter, or another value than an earlier notebook ran with."""
    cells = [cell for cell in study.namespace.get("In", []) if cell.startswith(INJECTED_HEADER)]
    for statement in ast.parse("\n".join(cells)).body:
        for target in getattr(statement, "targets", []):
            name, value = target.id, ast.literal_eval(statement.value)
            parameters.check(name, value, study.declarations, f"papermill's values for {study.notebook}")
            for notebook in study.declarations[name].notebooks:
                record = study.find(notebook) if study.notebook > notebook else None
                if record and name in record.parameters and record.parameters[name] != value:
                    raise ValueError(
                        f"papermill sets {name} to {value} for {study.notebook}, but {notebook} decides it and ran "
                        f"with {record.parameters[name]}; run {notebook} again first."
                    )


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
