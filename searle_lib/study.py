"""The run of a study: its notebooks in order by papermill, a progress line each, and their pages."""

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import nbformat
import papermill
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError
from rich.console import Console
from rich.live import Live
from rich.text import Text

from searle_lib import kernels, parameters, plan, reports
from searle_lib.workspace import Workspace, open_workspace, project_root

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


def notebooks(root: Path) -> list[Path]:
    """The study's notebooks in order. Raises FileNotFoundError when there are none."""
    found = sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise FileNotFoundError(f"{root / 'notebooks'} holds no notebooks; run this from the project's folder.")
    return found


def run(file: Path, only: str | None = None, first: str | None = None, overrides: list[str] | None = None) -> Path:
    """Run a study's notebooks in order and render their pages; the path of the index page.

    `only` is one notebook, `first` the one to start from. Raises ValueError before anything runs for a bad
    parameter or notebook name, and Stopped, with the notebook's own sentence, when one fails.
    """
    root = project_root()
    every = notebooks(root)
    known = parameters.declared(every)
    values = parameters.read(Path(file), known, overrides or ())
    effective = parameters.defaults(known) | values
    effective["oti_root"] = effective["oti_root"] and str(root / effective["oti_root"])
    study = values.get("study", Path(file).stem)
    values["study"] = study
    folder = root / str(values.get("report_root", "reports")) / study
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.update({name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()})
    papermill_engines.register("told", _Told)
    console = Console(highlight=False)
    chosen = _chosen(every, only, first)
    for override in overrides or ():
        name = override.partition("=")[0]
        if not any(path.stem in known[name].notebooks for path in chosen):
            raise ValueError(f"-p {name} is used by {', '.join(known[name].notebooks)}, and none of them is to run.")
    reasons = {path: "" if only else plan.left_out(path.stem, effective) for path in chosen}
    pages, ready = [], kernels.ahead(root, sum(not reason for reason in reasons.values()))
    with closing(ready), ThreadPoolExecutor(1) as pool:  # a page is rendered while the next notebook runs
        for path, reason in reasons.items():
            if reason:
                console.print(f"{path.stem:<14}         left out, since {reason}")
                continue
            own = {name: value for name, value in values.items() if path.stem in known[name].notebooks}
            output = folder / path.name
            _run_one(path, output, own, root, console, next(ready))
            pages.append(pool.submit(reports.page, output, output.with_suffix(".html")))
    for page in pages:
        page.result()
    return reports.index(folder, study, every)


def opened(file: Path, overrides: list[str] | None, command: str) -> tuple[dict, Workspace]:
    """All parameters of a study, defaults included, and its places; for commands that run no notebook."""
    root = project_root()
    known = parameters.declared(notebooks(root))
    given = parameters.read(Path(file), known, overrides or ())
    values = parameters.defaults(known) | {"study": Path(file).stem} | given
    values["oti_root"] = values["oti_root"] and str(root / values["oti_root"])
    places = [values[name] for name in ("study", "data_root", "artefact_root", "report_root", "world")]
    return values, open_workspace(command, *places)


def _chosen(every: list[Path], only: str | None, first: str | None) -> list[Path]:
    names = [path.stem for path in every]
    for name in (only, first):
        if name and name not in names:
            raise ValueError(f"there is no notebook {name}; there are {', '.join(names)}.")
    if only:
        return [every[names.index(only)]]
    return every[names.index(first) :] if first else every


def _run_one(path: Path, output: Path, values: dict, root: Path, console: Console, kernel: AsyncKernelManager) -> None:
    """Run one notebook aside and put it in place when it ends well; keep it as *.failed.ipynb when it does not."""
    line = _Line(path.stem)
    aside = output.with_suffix(".running.ipynb")
    failed = output.with_suffix(".failed.ipynb")
    failed.unlink(missing_ok=True)
    _Told.line, _Told.kernel = line, kernel
    try:
        with Live(get_renderable=line, console=console, refresh_per_second=4, transient=True):
            papermill.execute_notebook(
                path,
                aside,
                values,
                engine_name="told",
                progress_bar=False,
                cwd=root,
                kernel_name="python3",
            )
            aside.replace(output)
            line.doing = "done"
    except PapermillExecutionError as problem:
        aside.replace(failed)
        said = problem.evalue.strip()
        raise Stopped(f"{path.stem} stopped: {said} (its cells so far: {failed})") from problem
    except DeadKernelError as problem:
        said = "its kernel died, most likely for want of memory; lower the batch sizes and run again"
        raise Stopped(f"{path.stem} stopped: {said}.") from problem
    finally:
        aside.unlink(missing_ok=True)
    console.print(line())


class _Line:
    """The progress line of one notebook: name, elapsed time, what it is doing."""

    def __init__(self, name: str):
        self.name, self.doing, self.started = name, "starting its kernel", time.monotonic()

    def __call__(self) -> Text:
        return Text(f"{self.name:<14}{time.monotonic() - self.started:6.1f} s  {self.doing}", no_wrap=True)


class _Told(NBClientEngine):
    """Papermill's engine on a kernel that is ready, which tells the progress line under which heading a cell stands."""

    line: _Line
    kernel: AsyncKernelManager

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, **kwargs):
        start = nb_man.cell_start

        def cell_start(cell, cell_index=None, **more):
            cls.line.doing = _heading(nb_man.nb, cell_index or 0) or cls.line.doing
            return start(cell, cell_index, **more)

        nb_man.cell_start = cell_start
        return kernels.execute(nb_man, cls.kernel)


def _heading(notebook: nbformat.NotebookNode, index: int) -> str | None:
    texts = [cell.source for cell in notebook.cells[: index + 1] if cell.cell_type == "markdown"]
    heads = [line.lstrip("# ") for text in texts for line in text.splitlines() if line.startswith("#")]
    return heads[-1] if heads else None


def main_table(folder: Path) -> None:
    """Print the study's main results from its results.csv, once 07_results has left one."""
    import pandas as pd

    from searle_lib.results import MAIN, evaluated_on

    if not (folder / "results.csv").exists():
        return
    results = pd.read_csv(folder / "results.csv")
    chosen = results.merge(pd.DataFrame(MAIN, columns=["dataset", "split", "category", "metric"]))
    chosen["column"] = chosen["dataset"] + " " + chosen["metric"]
    table = chosen.pivot(index="method", columns="column", values="value")
    table = table.loc[chosen["method"].unique(), chosen["column"].unique()]
    print(table.round(2).to_string(), file=sys.stdout)
    made_with = json.loads((folder / "made_with.json").read_text())
    for dataset in chosen["dataset"].unique():
        print(f"{dataset} val: {evaluated_on(dataset, 'val', made_with['sizes'])}")
    print(f"CLIP {made_with['backbone']}, sha256 of its weights {made_with['clip_sha256']}")
