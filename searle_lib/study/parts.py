"""One part of the shards that the next notebook of a study misses: a job of an array, for sites without Ray.

The job executes the cells of the notebook up to the first one that needs the shards of other jobs. So it computes with
the very calls of the notebook, and writes no record and no report. The notebook then finds the shards of all jobs.
"""

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from searle_lib.store.executors import Part, PartComputed
from searle_lib.store.records import Study
from searle_lib.study import parameters, plan, run, workspace


def compute(file: Path, part: int, of: int, overrides: list[str] | None = None) -> str:
    """Compute a part of what the next notebook of a study misses; return a sentence for each list of rows.

    Args:
        file: the study's parameter file.
        part: which part, from 1.
        of: how many parts there are.
        overrides: "name=value", applied on top of the file.

    Raises ValueError for a part that does not exist, and what the notebook raises.
    """
    if not 1 <= part <= of:
        raise ValueError(f"--part is {part}, but --of is {of}; number the parts from 1 to {of}.")
    values = run.read_values(file, overrides)
    study = workspace.find_study(values)
    notebook = next_notebook(study, values)
    if notebook is None:
        return f"study {study.name} misses nothing; all its notebooks are up to date."
    settings = {name: value for name, value in run.ENVIRONMENT.items() if name != "TQDM_DISABLE"}  # a job has no runner
    os.environ.update({name: os.environ.get(name, value) for name, value in settings.items()})
    names = parameters.names_of_notebook(parameters.read_declarations(workspace.notebooks(study.root)), notebook.stem)
    with tempfile.TemporaryDirectory(prefix="searle-part-") as folder:
        job = Part(part, of, Path(folder))
        namespace = {"__name__": "__main__", workspace.JOB: job} | {name: values[name] for name in names}
        try:
            _execute(notebook, namespace)
        except PartComputed as computed:
            return f"{notebook.stem}: {computed}"
    return f"{notebook.stem} has nothing that is cut into parts; run the study."


def next_notebook(study: Study, values: Mapping) -> Path | None:
    """Return the first notebook that a run of the study would execute; None if it would execute none."""
    declarations = parameters.read_declarations(workspace.notebooks(study.root))
    for path in workspace.notebooks(study.root):
        own = {name: values[name] for name in parameters.names_of_notebook(declarations, path.stem)}
        skipped = plan.reason_to_skip(path.stem, values)
        if not skipped and not run.is_unchanged(study, path, own, values["methods"]):
            return path
    return None


def _execute(notebook: Path, namespace: dict) -> None:
    """Execute the code cells of a notebook in this process, without its parameters cell and without what it prints."""
    for number, cell in enumerate(json.loads(notebook.read_text(encoding="utf-8"))["cells"]):
        if cell["cell_type"] == "code" and "parameters" not in cell["metadata"].get("tags", []):
            source = compile("".join(cell["source"]), f"{notebook.name}, cell {number}", "exec")
            with contextlib.redirect_stdout(io.StringIO()):
                exec(source, namespace)
