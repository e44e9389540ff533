"""The execution of one notebook by papermill."""

from collections.abc import Callable, Mapping
from pathlib import Path

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError

from searle_lib.store.artefacts import atomic_write
from searle_lib.study.kernels import Kernel

START_TIMEOUT = 600  # seconds; a kernel starts slowly on a slow disk


def execute(
    path: Path, output: Path, values: Mapping, kernel: Kernel, folder: Path, show: Callable[[str], None]
) -> str:
    """Run a notebook; return "" if it succeeds, else the sentence that it stopped with.

    Args:
        path: the notebook.
        output: where to write the executed notebook. If the notebook stops, an earlier `output` stays, and the executed
            cells are written to *.failed.ipynb.
        values: its parameters.
        kernel: a kernel that was started, which ends with the notebook.
        folder: the run's own, where the notebook is written while it runs.
        show: called with the heading above the cell that runs.

    Raises OSError, with the file, if the notebook cannot be written.
    """
    running, failed = folder / path.name, output.with_suffix(".failed.ipynb")
    failed.unlink(missing_ok=True)
    papermill_engines.register("started kernel", _engine(kernel, show))
    try:
        papermill.execute_notebook(
            path,
            running,
            dict(values),
            engine_name="started kernel",
            progress_bar=False,
            cwd=path.parents[1],
            kernel_name="python3",
        )
        _move(running, output)
    except PapermillExecutionError as problem:
        _move(running, failed)
        return f"{problem.evalue.strip()} (the cells that ran are in {failed})"
    except RuntimeError as problem:
        if isinstance(problem, DeadKernelError) or not kernel.process.is_alive():
            return kernel.cause_of_death()
        raise
    except OSError as problem:
        if problem.filename not in (None, str(running)):
            raise
        raise OSError(
            f"{running} cannot be written ({problem.strerror or problem}); make room in the temporary folder, or set "
            "TMPDIR to another one."
        ) from problem
    return ""


def _move(running: Path, output: Path) -> None:
    """Move an executed notebook from the temporary folder, which may be on another disk."""
    content = running.read_bytes()
    with atomic_write(output) as temporary:
        temporary.write_bytes(content)
    running.unlink()


def _engine(kernel: Kernel, show: Callable[[str], None]) -> type[NBClientEngine]:
    """Return papermill's engine on a started kernel, which shows the heading above the cell that runs."""

    class StartedKernel(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, nb_man, kernel_name, **kwargs):
            start = nb_man.cell_start

            def cell_start(cell, cell_index=None, **more):
                heading = _heading(nb_man.nb, cell_index or 0)
                if heading:
                    show(heading)
                return start(cell, cell_index, **more)

            nb_man.cell_start = cell_start
            client = PapermillNotebookClient(
                nb_man, km=kernel.manager, kernel_name="python3", startup_timeout=START_TIMEOUT
            )
            client.owns_km = True  # else it would leave the kernel running
            return client.execute()

    return StartedKernel


def _heading(notebook: nbformat.NotebookNode, index: int) -> str | None:
    texts = [cell.source for cell in notebook.cells[: index + 1] if cell.cell_type == "markdown"]
    headings = [line.lstrip("# ") for text in texts for line in text.splitlines() if line.startswith("#")]
    return headings[-1] if headings else None
