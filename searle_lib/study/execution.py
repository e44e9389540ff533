"""One notebook by papermill, and its page."""

from collections.abc import Callable, Mapping
from pathlib import Path

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError

from searle_lib.reporting import pages, stale_pages
from searle_lib.store.records import Study

PATIENCE = 600  # seconds for a kernel to start, on a slow disk


def execute(path: Path, output: Path, values: Mapping, show: Callable[[str], None]) -> str:
    """Run a notebook with these values into `output`; return the sentence that it stopped with, "" when it ended well.

    A notebook that stopped is kept as *.failed.ipynb, and an earlier `output` stays. `show` is called with the
    heading above the cell that runs.
    """
    aside, failed = output.with_suffix(".running.ipynb"), output.with_suffix(".failed.ipynb")
    failed.unlink(missing_ok=True)
    papermill_engines.register("with headings", _engine(show))
    try:
        papermill.execute_notebook(
            path,
            aside,
            dict(values),
            engine_name="with headings",
            progress_bar=False,
            cwd=path.parents[1],
            kernel_name="python3",
            start_timeout=PATIENCE,
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


def _engine(show: Callable[[str], None]) -> type[NBClientEngine]:
    """Return papermill's own engine, made to show under which heading each cell stands."""

    class WithHeadings(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, nb_man, *args, **kwargs):
            start = nb_man.cell_start

            def cell_start(cell, cell_index=None, **more):
                heading = _heading(nb_man.nb, cell_index or 0)
                if heading:
                    show(heading)
                return start(cell, cell_index, **more)

            nb_man.cell_start = cell_start
            return super().execute_managed_notebook(nb_man, *args, **kwargs)

    return WithHeadings


def _heading(notebook: nbformat.NotebookNode, index: int) -> str | None:
    texts = [cell.source for cell in notebook.cells[: index + 1] if cell.cell_type == "markdown"]
    heads = [line.lstrip("# ") for text in texts for line in text.splitlines() if line.startswith("#")]
    return heads[-1] if heads else None
