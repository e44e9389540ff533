"""The run of a study: the notebooks it needs, in order, each by papermill unless nothing about it has changed.

A notebook is unchanged when its parameters, the records it reads, its cells and the code behind them are those of its
record, and what it made and its page still exist.
"""

import json
import os
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from searle_lib.reporting import stale_pages
from searle_lib.store import code
from searle_lib.store.records import Study
from searle_lib.study import parameters, plan, workspace

ENVIRONMENT = {  # of the notebooks' kernels
    "OMP_WAIT_POLICY": "PASSIVE",  # busy waiting halves the speed where cores are shared
    "MALLOC_MMAP_THRESHOLD_": str(8 << 30),  # else every large tensor is mapped and cleared anew by the kernel
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
    "TQDM_DISABLE": "1",  # a saved notebook keeps every refresh of a bar
    "TOKENIZERS_PARALLELISM": "false",
}


class Stopped(RuntimeError):
    """A notebook of the study ended in an error."""


def run(
    file: Path,
    only: str | None = None,
    first: str | None = None,
    overrides: list[str] | None = None,
    again: bool = False,
) -> Path:
    """Run what has changed of a study and render its pages; return the path of the index page.

    Raises ValueError before anything runs for a bad parameter or notebook name, and Stopped, with the notebook's own
    sentence, when one fails.

    Args:
        file: the study's parameter file.
        only: one notebook, to run it alone.
        first: the notebook to start from.
        overrides: "name=value", on top of the file.
        again: run notebooks that are unchanged, too.
    """
    root = workspace.project_root()
    notebooks = workspace.notebooks(root)
    known = parameters.declared(notebooks)
    chosen = _chosen(notebooks, only, first)
    values = _values(root, file, known, overrides or [])
    study = workspace.find_study(values)
    for name in (override.partition("=")[0] for override in overrides or ()):
        if not any(path.stem in known[name].notebooks for path in chosen):
            raise ValueError(f"-p {name} is used by {', '.join(known[name].notebooks)}, and none of them is to run.")
    skipped = {path: "" if only else plan.left_out(path.stem, values) for path in notebooks}
    _require_earlier(study, [p for p in notebooks[: notebooks.index(chosen[0])] if not skipped[p]], values, known, file)
    workspace.draw_world(root, values)
    os.environ.update({name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()})
    console = Console(highlight=False)
    runner = _Runner(study, console)
    with closing(runner):
        for path in chosen:
            own = {name: values[name] for name in parameters.of_notebook(known, path.stem)}
            if skipped[path]:
                console.print(f"{path.stem:<14}         left out, since {skipped[path]}")
            elif not again and unchanged(study, path, own, values["methods"]):
                console.print(f"{path.stem:<14}         unchanged")
            else:
                _require_words(study, path.stem, values["methods"])
                runner.run(path, own)
    index = study.reports / "index.html"
    if runner.ran or not index.is_file():
        from searle_lib.reporting import pages  # brings nbconvert, which takes seconds to import

        stale_pages.mark_stale(study)
        pages.index(study.reports, study.name, notebooks)
    return index


def unchanged(study: Study, path: Path, values: Mapping, methods: list[str]) -> bool:
    """Return whether running a notebook with these values again would give the record and the page that exist."""
    record = study.find(path.stem)
    if record is None or record.execution.get("cells") != code.cells_digest(path):
        return False
    if record.parameters != parameters.deciding(values) or record.code != code.notebook_code(path):
        return False
    if record.values.get("data_root") != (str(values["data_root"]) if "data_root" in values else None):
        return False
    if path.stem == "06_retrieval" and not plan.needs(methods) <= set(record.read):
        return False
    return not study.problem(path.stem) and stale_pages.shows(study, path.stem)


def _values(root: Path, file: Path, known: Mapping, overrides: list[str]) -> dict:
    """Return all checked parameters of a study: defaults, the file's, overrides, and what follows from them."""
    stated = parameters.read(Path(file), known, overrides)
    values = parameters.defaults(known) | {"study": Path(file).stem} | stated
    study = workspace.find_study(values)
    if "images_to_invert" not in stated:
        needed = plan.images_to_invert(values | {"oti_root": study.path(values["oti_root"])})
        record = study.find("02_concepts")
        inverted = record.parameters["images_to_invert"] if record else []
        values["images_to_invert"] = inverted if set(needed) <= set(inverted) else needed  # fewer methods redo nothing
    return values


def read_values(file: Path, overrides: list[str] | None) -> dict:
    """Return all parameters of a study, for commands that run no notebook."""
    root = workspace.project_root()
    return _values(root, file, parameters.declared(workspace.notebooks(root)), overrides or [])


def require_same(study: Study, notebook: str, values: Mapping, file: Path) -> None:
    """Raise ValueError, naming it, for a parameter that differs from what a notebook's numbers were made with.

    Looks at the notebook's record and at all that it was made from, and raises as `Study.read` does.
    """
    for name, record in study.chain(notebook).items():
        _require_value(name, record, values, file)


def _require_value(notebook: str, record, values: Mapping, file: Path) -> None:
    for name, recorded in record.parameters.items():
        if values.get(name) != recorded:
            raise ValueError(
                f"{notebook} ran with {name} {recorded} and {file} says {values.get(name)}; run the study again, from "
                f"{notebook} on."
            )


def _require_earlier(study: Study, earlier: list[Path], values: Mapping, known: Mapping, file: Path) -> None:
    """Refuse to start in the middle when an earlier notebook ran with other values than the file has now."""
    for path in earlier:
        record = study.find(path.stem)
        if record:
            _require_value(path.stem, record, values, file)


def _require_words(study: Study, notebook: str, methods: list[str]) -> None:
    """Raise Stopped when 06 is to run and what a method needs has not been made: no method is left out in a run."""
    for needed in sorted(plan.needs(methods)) if notebook == "06_retrieval" and study.has("02_concepts") else ():
        if study.problem(needed):
            raise Stopped(f"{notebook} cannot run: {study.problem(needed)}")


def _chosen(notebooks: list[Path], only: str | None, first: str | None) -> list[Path]:
    names = [path.stem for path in notebooks]
    for name in (only, first):
        if name and name not in names:
            raise ValueError(f"there is no notebook {name}; there are {', '.join(names)}.")
    if only:
        return [notebooks[names.index(only)]]
    return notebooks[names.index(first) :] if first else notebooks


class _Runner:
    """Runs notebooks of a study one after another; a page is rendered while the next notebook runs."""

    def __init__(self, study: Study, console: Console):
        self.study, self.console = study, console
        self.ran: list[str] = []
        self.pages: list[Future] = []
        self.pool = ThreadPoolExecutor(1)

    def run(self, path: Path, values: Mapping) -> None:
        """Run a notebook aside and put it in place when it ends well; keep it as *.failed.ipynb when it does not."""
        from searle_lib.study import execution  # brings papermill, which takes seconds to import

        self.study.reports.mkdir(parents=True, exist_ok=True)
        output, line = self.study.reports / path.name, _Line(path.stem)
        with Live(get_renderable=line, console=self.console, refresh_per_second=4, transient=True):
            problem = execution.execute(path, output, values, line.show)
        if problem:
            raise Stopped(f"{path.stem} stopped: {problem}")
        line.show("done")
        self.console.print(line())
        self.ran.append(path.stem)
        self.pages.append(self.pool.submit(execution.render, self.study, output))

    def close(self) -> None:
        """Wait for the pages."""
        self.pool.shutdown()
        for page in self.pages:
            page.result()


class _Line:
    """The progress line of one notebook: name, elapsed time, what it is doing."""

    def __init__(self, name: str):
        self.name, self.doing, self.started = name, "starting its kernel", time.monotonic()

    def __call__(self) -> Text:
        return Text(f"{self.name:<14}{time.monotonic() - self.started:6.1f} s  {self.doing}", no_wrap=True)

    def show(self, doing: str) -> None:
        """Show what the notebook does now."""
        self.doing = doing


def main_table(study: Study) -> None:
    """Print the study's main results from its results.csv, once 07_results has made one."""
    import pandas as pd

    from searle_lib.evaluation.intervals import MAIN

    if not (study.reports / "results.csv").is_file():
        return
    chosen = pd.read_csv(study.reports / "results.csv")
    chosen = chosen.merge(pd.DataFrame(MAIN, columns=["dataset", "split", "category", "metric"]))
    chosen["column"] = chosen["dataset"] + " " + chosen["metric"]
    table = chosen.pivot(index="method", columns="column", values="value")
    table = table.loc[chosen["method"].unique(), chosen["column"].unique()]
    print(table.round(2).to_string())
    for dataset, on in chosen.groupby("dataset", sort=False)["evaluated_on"].first().items():
        print(f"{dataset} val: {on}")
    clip = study.artefact("02_concepts", "clip").read(lambda folder: json.loads((folder / "clip.json").read_text()))
    print(f"CLIP {clip['name']}, sha256 of its weights {clip['sha256'][:12]}")
