"""Kernels that stand ready when their notebook's turn comes.

A kernel that starts and imports torch takes as long as a small notebook does. So the next one starts while a notebook
runs, and has imported what all of them need.
"""

import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from jupyter_client.manager import AsyncKernelManager
from nbclient.util import run_sync
from papermill.clientwrap import PapermillNotebookClient

IMPORTED = ("searle_lib.evaluation", "searle_lib.figures")  # slow ones; no name of theirs is left in the notebook
PATIENCE = 600  # seconds for the imports, on a slow disk


def ahead(root: Path, count: int) -> Iterator[AsyncKernelManager]:
    """So many kernels in folder `root`, one after another; while one is in use, the next gets ready."""
    taken, waiting = None, _start(root)
    try:
        for left in reversed(range(count)):
            taken, waiting = waiting, _start(root) if left else None
            yield taken
    finally:
        for kernel in (taken, waiting):  # one that no notebook took, and one whose notebook was interrupted
            if kernel and kernel.has_kernel:
                run_sync(kernel.shutdown_kernel)(now=True)


def execute(notebook_manager, kernel: AsyncKernelManager):
    """Run papermill's notebook on a kernel, which ends with it."""
    client = PapermillNotebookClient(notebook_manager, km=kernel, kernel_name="python3", startup_timeout=PATIENCE)
    client.owns_km = True  # else it would leave the kernel running
    return client.execute()


def _start(root: Path) -> AsyncKernelManager:
    kernel = AsyncKernelManager(kernel_name="python3")
    if os.name == "posix":
        kernel.transport = "ipc"
        kernel.ip = str(Path(tempfile.gettempdir()) / f"searle-{uuid.uuid4().hex[:12]}")  # two kernels may not share it
    lines = [f"__import__({name!r})" for name in IMPORTED]
    arguments = [f"--IPKernelApp.exec_lines={line}" for line in lines] + ["--HistoryManager.hist_file=:memory:"]
    run_sync(kernel.start_kernel)(cwd=str(root), extra_arguments=arguments)
    return kernel
