"""The execution of one notebook by papermill."""

from collections.abc import Callable, Mapping
from pathlib import Path

import nbformat
import papermill
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError

START_TIMEOUT = 600  # seconds; a kernel starts slowly on a slow disk


def execute(path: Path, output: Path, values: Mapping, kernel: AsyncKernelManager, show: Callable[[str], None]) -> str:
    """Run a notebook; return "" if it succeeds, else the sentence that it stopped with.

    Args:
        path: the notebook.
        output: where to write the executed notebook. If the notebook stops, an earlier `output` stays, and the executed
            cells are written to *.failed.ipynb.
        values: its parameters.
        kernel: a running kernel, which ends with the notebook.
        show: called with the heading above the cell that runs.
    """
    running, failed = output.with_suffix(".running.ipynb"), output.with_suffix(".failed.ipynb")
    failed.unlink(missing_ok=True)
    papermill_engines.register("ready kernel", _engine(kernel, show))
    try:
        papermill.execute_notebook(
            path,
            running,
            dict(values),
            engine_name="ready kernel",
            progress_bar=False,
            cwd=path.parents[1],
            kernel_name="python3",
        )
        running.replace(output)
    except PapermillExecutionError as problem:
        running.replace(failed)
        return f"{problem.evalue.strip()} (the cells that ran are in {failed})"
    except DeadKernelError:
        return "its kernel died, probably because memory ran out; lower the batch sizes and run again."
    finally:
        running.unlink(missing_ok=True)
    return ""


def _engine(kernel: AsyncKernelManager, show: Callable[[str], None]) -> type[NBClientEngine]:
    """Return papermill's engine on a running kernel, which shows the heading above the cell that runs."""

    class ReadyKernel(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, nb_man, kernel_name, **kwargs):
            start = nb_man.cell_start

            def cell_start(cell, cell_index=None, **more):
                heading = _heading(nb_man.nb, cell_index or 0)
                if heading:
                    show(heading)
                return start(cell, cell_index, **more)

            nb_man.cell_start = cell_start
            client = PapermillNotebookClient(nb_man, km=kernel, kernel_name="python3", startup_timeout=START_TIMEOUT)
            client.owns_km = True  # else it would leave the kernel running
            return client.execute()

    return ReadyKernel


def _heading(notebook: nbformat.NotebookNode, index: int) -> str | None:
    texts = [cell.source for cell in notebook.cells[: index + 1] if cell.cell_type == "markdown"]
    headings = [line.lstrip("# ") for text in texts for line in text.splitlines() if line.startswith("#")]
    return headings[-1] if headings else None
