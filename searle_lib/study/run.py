"""The run of a study: the notebooks it needs, in order, each by papermill unless nothing about it has changed.

A notebook is unchanged if its parameters, the records it reads, its cells and the code they reach are those of its
record, and its artefacts and its page still exist. For each of the study's further seeds (`seeds`), a study of its own
runs before 07_results, which reads its results.
"""

import json
import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from searle_lib.evaluation import methods, other_models
from searle_lib.evaluation.seeds import require_distinct, study_of_seed
from searle_lib.reporting import stale_pages
from searle_lib.store import code
from searle_lib.store.files import refuse_unwritable
from searle_lib.store.records import Record, Study
from searle_lib.study import parameters, plan, workspace
from searle_lib.study.progress import LOG, Progress
from searle_lib.study.run_folder import RunFolder

if TYPE_CHECKING:
    from searle_lib.study.kernels import Kernels

ENVIRONMENT = {  # of the kernels and the process that they are forked from
    "OMP_WAIT_POLICY": "PASSIVE",  # busy waiting halves the speed where cores are shared
    "MALLOC_MMAP_THRESHOLD_": str(8 << 30),  # else the kernel maps and clears every large tensor anew
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # else `import clip` opens the GPU, which no process may do before it forks
    "TQDM_DISABLE": "1",  # a saved notebook keeps every refresh of a bar; ours go to the runner (store/bars.py)
    "TOKENIZERS_PARALLELISM": "false",
}


class NotebookFailed(RuntimeError):
    """A notebook of the study stopped with an error."""


def run(
    file: Path,
    only: str | None = None,
    first: str | None = None,
    overrides: list[str] | None = None,
    again: bool = False,
) -> Path:
    """Run the changed notebooks of a study and render their pages; return the path of the front page.

    Args:
        file: the study's parameter file.
        only: run this notebook alone.
        first: start from this notebook.
        overrides: "name=value", applied on top of the file.
        again: run unchanged notebooks, too.

    Raises:
        ValueError: before anything runs, for a bad parameter or an unknown notebook.
        NotebookFailed: if a notebook stops; the sentence is the notebook's own.
    """
    root = workspace.project_root()
    notebooks = workspace.notebooks(root)
    declarations = parameters.read_declarations(notebooks)
    selection = _select(notebooks, only, first)
    values = _values(root, file, declarations, overrides or [])
    study = workspace.find_study(values)
    for name in (override.partition("=")[0] for override in overrides or ()):
        if not any(path.stem in declarations[name].notebooks for path in selection):
            owners = ", ".join(declarations[name].notebooks)
            raise ValueError(f"-p {name} is used by {owners}, and none of them is to run; leave it out, or run one.")
    methods.network_files(methods.by_name(values["methods"], root), values, study)
    reasons = {path: "" if only else plan.reason_to_skip(path.stem, values) for path in notebooks}
    for path in notebooks[: notebooks.index(selection[0])]:  # a start in the middle needs the earlier ones as they are
        record = study.find(path.stem)
        if record and not reasons[path]:
            _require_same_values(record, values, file)
    os.environ.update({name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()})
    console = Console(highlight=False)
    runner = _Runner(root, study, console)
    with closing(runner):
        if workspace.lacks_world(root, values):
            runner.prepare()  # the imports run while the world is drawn
        workspace.draw_world(root, values)
        for path in selection:
            own = {name: values[name] for name in parameters.names_of_notebook(declarations, path.stem)}
            if path.stem == "07_results" and not only and not reasons[path]:
                _run_seeds(file, values, overrides or [], again and not first, console)
            if reasons[path]:
                console.print(f"{path.stem:<14}         skipped, since {reasons[path]}")
            elif not again and is_unchanged(study, path, own, values["methods"]):
                console.print(f"{path.stem:<14}         unchanged")
            else:
                _require_methods(study, path.stem, values["methods"])
                runner.run(path, own)
    front_page = study.reports / "index.html"
    if runner.executed or not front_page.is_file():
        from searle_lib.study import site  # imports nbconvert, which takes seconds

        site.write(study, notebooks, declarations)
    return front_page


def render(file: Path, overrides: list[str] | None = None) -> Path:
    """Render all pages of a study again without running a notebook; return the path of the front page."""
    from searle_lib.study import site

    root = workspace.project_root()
    notebooks = workspace.notebooks(root)
    declarations = parameters.read_declarations(notebooks)
    study = workspace.find_study(_values(root, file, declarations, overrides or []))
    return site.render(study, notebooks, declarations)


def is_unchanged(study: Study, path: Path, values: Mapping, methods: list[str]) -> bool:
    """Return whether another run of a notebook with these values would give the same record and page."""
    record = study.find(path.stem)
    if record is None or record.execution.get("cells") != code.cells_digest(path):
        return False
    if record.parameters != parameters.result_parameters(values):
        return False
    if record.code != workspace.notebook_digest(study.root, path.stem, values):
        return False
    if record.values.get("data_root") != (str(values["data_root"]) if "data_root" in values else None):
        return False
    if path.stem == "06_retrieval" and not plan.required_notebooks(methods) <= set(record.read):
        return False
    return not study.problem(path.stem) and stale_pages.shows(study, path.stem)


def read_values(file: Path, overrides: list[str] | None) -> dict:
    """Return all parameters of a study, for commands that run no notebook. Raises as `parameters.read` does."""
    root = workspace.project_root()
    return _values(root, file, parameters.read_declarations(workspace.notebooks(root)), overrides or [])


def require_same_values(study: Study, notebook: str, values: Mapping, file: Path) -> None:
    """Raise ValueError if a parameter differs from the one that a notebook, or one before it, ran with.

    Raises as `Study.read` does, too.
    """
    for record in study.chain(notebook).values():
        _require_same_values(record, values, file)


def print_main_table(study: Study) -> None:
    """Print the study's main results from its results.csv; print nothing before 07_results has written one."""
    import pandas as pd

    from searle_lib.evaluation.intervals import main_panels

    if not (study.reports / "results.csv").is_file():
        return
    results = pd.read_csv(study.reports / "results.csv")
    results = results.merge(pd.DataFrame(main_panels(results), columns=["dataset", "split", "category", "metric"]))
    results["column"] = results["dataset"] + " " + results["metric"]
    table = results.pivot(index="method", columns="column", values="value")
    table = table.loc[results["method"].unique(), results["column"].unique()]
    print(table.round(2).to_string(na_rep="·"))
    for dataset, counts in results.groupby("dataset", sort=False)["evaluated_on"].first().items():
        print(f"{dataset} val: {counts}")
    clip = study.artefact("02_concepts", "clip").read(lambda folder: json.loads((folder / "clip.json").read_text()))
    print(f"CLIP {clip['name']}, sha256 of its weights {clip['sha256'][:12]}")


def _run_seeds(file: Path, values: Mapping, overrides: list[str], again: bool, console: Console) -> None:
    """Run the study of each further seed; it finds everything that does not depend on chance in the store."""
    for seed in values["seeds"]:
        name = study_of_seed(values["study"], seed)
        console.print(f"seed {seed}: study {name}")
        run(file, overrides=[*overrides, f"study={name}", f"seed={seed}", "seeds=[]"], again=again)
    if values["seeds"]:
        console.print(f"seed {values['seed']}: study {values['study']}")


def _values(root: Path, file: Path, declarations: Mapping, overrides: list[str]) -> dict:
    """Return all checked parameters of a study: defaults, the file's, overrides, and images_to_invert."""
    stated = parameters.read(Path(file), declarations, overrides)
    values = parameters.defaults(declarations) | {"study": Path(file).stem} | stated
    require_distinct(values["seed"], values["seeds"], str(file))
    other_models.read_all(values["other_models"], values["methods"], root)
    study = workspace.find_study(values)
    if "images_to_invert" not in stated:
        needed = plan.images_to_invert(values | {"oti_root": study.path(values["oti_root"])})
        record = study.find("02_concepts")
        inverted = record.parameters["images_to_invert"] if record else []
        values["images_to_invert"] = inverted if set(needed) <= set(inverted) else needed  # fewer methods redo nothing
    return values


def _require_same_values(record: Record, values: Mapping, file: Path) -> None:
    for name, recorded in record.parameters.items():
        if values.get(name) != recorded:
            raise ValueError(
                f"{record.notebook} ran with {name} {recorded} and {file} says {values.get(name)}; run the study "
                f"again, from {record.notebook} on."
            )


def _require_methods(study: Study, notebook: str, methods: list[str]) -> None:
    """Raise NotebookFailed before 06_retrieval if the input of a method does not exist.

    The notebook itself would only leave the method out.
    """
    if notebook != "06_retrieval" or not study.has("02_concepts"):
        return
    for required in sorted(plan.required_notebooks(methods)):
        if study.problem(required):
            raise NotebookFailed(f"{notebook} cannot run: {study.problem(required)}")


def _select(notebooks: list[Path], only: str | None, first: str | None) -> list[Path]:
    names = [path.stem for path in notebooks]
    for name in (only, first):
        if name and name not in names:
            raise ValueError(f"there is no notebook {name}; choose one of {', '.join(names)}.")
    if only:
        return [notebooks[names.index(only)]]
    return notebooks[names.index(first) :] if first else notebooks


class _Runner:
    """Runs notebooks of a study one after another, and renders a page while the next notebook runs."""

    def __init__(self, root: Path, study: Study, console: Console):
        self.root, self.study, self.console = root, study, console
        self.folder: RunFolder | None = None
        self.kernels: Kernels | None = None
        self.executed: list[str] = []
        self.pages: list[Future] = []
        self.pool = ThreadPoolExecutor(1)

    def prepare(self) -> None:
        """Let what the kernels import be imported, unless that has begun."""
        if self.kernels is None:
            from searle_lib.study.kernels import Kernels

            with refuse_unwritable(self.study.reports, "the report", "report_root"):
                self.study.reports.mkdir(parents=True, exist_ok=True)
                (self.study.reports / LOG).open("a").close()
            self.folder = RunFolder()
            self.kernels = Kernels(self.root, self.folder.path)

    def run(self, path: Path, values: Mapping) -> None:
        """Run a notebook with a progress line, and start to render its page. Raises NotebookFailed if it stops."""
        self.prepare()
        from searle_lib.reporting import pages  # these import nbconvert and papermill, which takes seconds
        from searle_lib.study import execution

        if not self.executed:
            self.pool.submit(import_module, "searle_lib.study.site")  # ready when the front page is due
        output, kernel = self.study.reports / path.name, self.kernels.start()
        with Progress(path.stem, kernel.bars, self.study.reports / LOG, self.console) as progress:
            problem = execution.execute(path, output, values, kernel, self.folder.path, progress.show)
        progress.end(f"stopped: {problem}" if problem else "done")
        if problem:
            raise NotebookFailed(f"{path.stem} stopped: {problem}")
        self.executed.append(path.stem)
        page = output.with_suffix(".html")
        head = stale_pages.head_of(self.study, page)
        self.pages.append(self.pool.submit(pages.page, pages.read(output), page, head))

    def close(self) -> None:
        """End the kernel that no notebook took, remove the temporary folder, and wait for the pages."""
        if self.kernels is not None:
            self.kernels.close()
        if self.folder is not None:
            self.folder.close()
        self.pool.shutdown()
        for page in self.pages:
            page.result()
