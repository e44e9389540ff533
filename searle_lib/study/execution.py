"""One notebook by papermill, on a kernel that is ready when its turn comes, and its page.

A kernel that starts and imports torch takes as long as a small notebook does. So the next one starts while a notebook
runs, and has imported what all of them need.
"""

import os
import signal
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import nbformat
import papermill
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from nbclient.util import run_sync
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError

from searle_lib.reporting import pages, stale_pages
from searle_lib.store.records import Study

IMPORTED = (
    "searle_lib.evaluation.scores",
    "searle_lib.reporting.figures",
)  # slow ones; no name of theirs is left in the notebook
PATIENCE = 600  # seconds for the imports, on a slow disk


def execute(path: Path, output: Path, values: Mapping, kernel: AsyncKernelManager, say: Callable[[str], None]) -> str:
    """Run a notebook with these values into `output`; return the sentence that it stopped with, "" when it ended well.

    A notebook that stopped is kept as *.failed.ipynb, and what was there before stays.
    """
    aside, failed = output.with_suffix(".running.ipynb"), output.with_suffix(".failed.ipynb")
    failed.unlink(missing_ok=True)
    _Engine.say, _Engine.kernel = say, kernel
    papermill_engines.register("ready kernel", _Engine)
    try:
        papermill.execute_notebook(
            path,
            aside,
            dict(values),
            engine_name="ready kernel",
            progress_bar=False,
            cwd=path.parents[1],
            kernel_name="python3",
        )
        aside.replace(output)
    except PapermillExecutionError as problem:
        aside.replace(failed)
        return f"{problem.evalue.strip()} (its cells so far: {failed})"
    except DeadKernelError:
        return "its kernel died, most likely for want of memory; lower the batch sizes and run again."
    finally:
        aside.unlink(missing_ok=True)
    return ""


def render(study: Study, notebook: Path) -> None:
    """Render an executed notebook as its page, which names the record it was made from."""
    page = notebook.with_suffix(".html")
    pages.page(notebook, page, stale_pages.head_of(study, page))


def ahead(root: Path, count: int) -> Iterator[AsyncKernelManager]:
    """Yield up to so many kernels in folder `root`, one after another; while one is in use, the next gets ready."""
    taken = waiting = None
    try:
        for more in reversed(range(count)):
            taken, waiting = waiting or _start(root), _start(root) if more else None
            yield taken
    finally:
        for kernel in (taken, waiting):  # one that no notebook took, and one whose notebook was interrupted
            if kernel and kernel.has_kernel:
                run_sync(kernel.signal_kernel)(signal.SIGTERM)  # first, for shutting down interrupts, loudly
                run_sync(kernel.shutdown_kernel)(now=True)


class _Engine(NBClientEngine):
    """Papermill's engine on a kernel that runs already; `say` hears under which heading the present cell stands."""

    say: Callable[[str], None]
    kernel: AsyncKernelManager

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, **kwargs):
        start = nb_man.cell_start

        def cell_start(cell, cell_index=None, **more):
            heading = _heading(nb_man.nb, cell_index or 0)
            if heading:
                cls.say(heading)
            return start(cell, cell_index, **more)

        nb_man.cell_start = cell_start
        client = PapermillNotebookClient(nb_man, km=cls.kernel, kernel_name="python3", startup_timeout=PATIENCE)
        client.owns_km = True  # else it would leave the kernel running
        return client.execute()


def _heading(notebook: nbformat.NotebookNode, index: int) -> str | None:
    texts = [cell.source for cell in notebook.cells[: index + 1] if cell.cell_type == "markdown"]
    heads = [line.lstrip("# ") for text in texts for line in text.splitlines() if line.startswith("#")]
    return heads[-1] if heads else None


def _start(root: Path) -> AsyncKernelManager:
    kernel = AsyncKernelManager(kernel_name="python3")
    if os.name == "posix":
        kernel.transport = "ipc"
        kernel.ip = str(Path(tempfile.gettempdir()) / f"searle-{uuid.uuid4().hex[:12]}")  # two kernels may not share it
    lines = [f"__import__({name!r})" for name in IMPORTED]
    arguments = [f"--IPKernelApp.exec_lines={line}" for line in lines] + ["--HistoryManager.hist_file=:memory:"]
    run_sync(kernel.start_kernel)(cwd=str(root), extra_arguments=arguments)
    return kernel
