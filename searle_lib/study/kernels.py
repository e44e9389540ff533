"""Kernels that get ready while an earlier notebook runs.

A kernel imports torch, torchvision and the rest for about ten seconds, as long as a small notebook takes. So the next
one starts and imports in the background.
"""

import os
import signal
import tempfile
import uuid
from pathlib import Path

from jupyter_client.manager import AsyncKernelManager
from nbclient.util import run_sync

IMPORTS = ("searle_lib.evaluation.scores", "searle_lib.reporting.figures")  # slow; the notebook gets no name of theirs


class ReadyKernels:
    """Up to `count` kernels in the folder `root`. While one is in use, the next gets ready."""

    def __init__(self, root: Path, count: int):
        self.root, self.remaining = root, count
        self.kernels: list[AsyncKernelManager] = []  # the one in use and the one that gets ready
        self._start_next()

    def take(self) -> AsyncKernelManager:
        """Return the kernel that got ready, and start the next one."""
        kernel = self.kernels[-1]
        self.kernels = [kernel]  # the one before ended with its notebook
        self._start_next()
        return kernel

    def close(self) -> None:
        """End every kernel that still runs."""
        for kernel in self.kernels:
            if kernel.has_kernel:
                run_sync(kernel.signal_kernel)(signal.SIGTERM)  # shutdown_kernel alone interrupts it, with a traceback
                run_sync(kernel.shutdown_kernel)(now=True)

    def _start_next(self) -> None:
        if self.remaining:
            self.remaining -= 1
            self.kernels.append(_start(self.root))


def _start(root: Path) -> AsyncKernelManager:
    kernel = AsyncKernelManager(kernel_name="python3")
    if os.name == "posix":
        kernel.transport = "ipc"
        kernel.ip = str(Path(tempfile.gettempdir()) / f"searle-{uuid.uuid4().hex[:12]}")  # no two kernels may share it
    imports = [f"--IPKernelApp.exec_lines=__import__({name!r})" for name in IMPORTS]
    run_sync(kernel.start_kernel)(cwd=str(root), extra_arguments=[*imports, "--HistoryManager.hist_file=:memory:"])
    return kernel
