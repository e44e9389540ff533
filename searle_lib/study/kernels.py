"""Kernels that get ready while an earlier notebook runs.

A kernel imports torch, torchvision and the rest for about ten seconds, as long as a small notebook takes. So the next
one starts and imports in the background.
"""

import os
import signal
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from jupyter_client.manager import AsyncKernelManager
from nbclient.util import run_sync

IMPORTS = ("searle_lib.evaluation.scores", "searle_lib.reporting.figures")  # slow; the notebook gets no name of theirs


def ready_kernels(root: Path, count: int) -> Iterator[AsyncKernelManager]:
    """Yield up to `count` kernels in the folder `root`; while one is in use, the next gets ready.

    Closing the iterator ends every kernel that still runs.
    """
    current = following = None
    try:
        for remaining in reversed(range(count)):
            current, following = following or _start(root), _start(root) if remaining else None
            yield current
    finally:
        for kernel in (current, following):
            if kernel and kernel.has_kernel:
                run_sync(kernel.signal_kernel)(signal.SIGTERM)  # shutdown_kernel alone interrupts it, with a traceback
                run_sync(kernel.shutdown_kernel)(now=True)


def _start(root: Path) -> AsyncKernelManager:
    kernel = AsyncKernelManager(kernel_name="python3")
    if os.name == "posix":
        kernel.transport = "ipc"
        kernel.ip = str(Path(tempfile.gettempdir()) / f"searle-{uuid.uuid4().hex[:12]}")  # no two kernels may share it
    imports = [f"--IPKernelApp.exec_lines=__import__({name!r})" for name in IMPORTS]
    run_sync(kernel.start_kernel)(cwd=str(root), extra_arguments=[*imports, "--HistoryManager.hist_file=:memory:"])
    return kernel
