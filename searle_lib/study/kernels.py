"""Kernels that get ready while an earlier notebook runs.

A kernel imports torch, torchvision and the rest for about ten seconds, as long as a small notebook takes. So the next
one starts and imports in the background. A kernel runs in the Python of the run, whatever kernels Jupyter knows.
"""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient.util import run_sync

from searle_lib.store import bars
from searle_lib.study import interruption

IMPORTS = ("searle_lib.evaluation.scores", "searle_lib.reporting.figures")  # slow; the notebook gets no name of theirs


@dataclass(frozen=True)
class Kernel:
    """A kernel that was started.

    Args:
        manager: what a client connects by.
        process: its process.
        bars: the file where it reports the bars of its stages.
        output: the file of all that the process itself prints, such as why it could not start.
    """

    manager: AsyncKernelManager
    process: subprocess.Popen
    bars: Path
    output: Path

    @property
    def is_alive(self) -> bool:
        """Whether the process still runs."""
        return self.process.poll() is None

    def end(self) -> None:
        """End the process and wait for its end."""
        self.process.kill()
        self.process.wait()

    def cause_of_death(self) -> str:
        """Return how the process ended and what to do: a signal, or its status and the last line that it printed."""
        status = self.process.wait()
        if status < 0:
            name = signal.Signals(-status).name
            return f"its kernel died ({name}), probably because memory ran out; lower the batch sizes and run again."
        lines = self.output.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
        return f"its kernel ended with status {status} ({last[:200]}); correct that, or free memory, and run again."


class ReadyKernels:
    """Up to `count` kernels in the folder `root`. While one is in use, the next gets ready.

    Args:
        root: where the kernels run.
        count: how many notebooks will run.
        folder: for the kernels' sockets and files.
    """

    def __init__(self, root: Path, count: int, folder: Path):
        self.root, self.remaining, self.folder = root, count, folder
        self.kernels: list[Kernel] = []  # the one in use and the one that gets ready
        self.started = 0
        interruption.cleanups.append(self.end_all)
        self._start_next()

    def take(self) -> Kernel:
        """Return the kernel that got ready, or another in place of one that died meanwhile; start the next one."""
        kernel = self.kernels[-1] if self.kernels[-1].is_alive else self._start()
        self.kernels = [kernel]  # the one before ended with its notebook
        self._start_next()
        return kernel

    def close(self) -> None:
        """End every kernel that still runs."""
        interruption.cleanups.remove(self.end_all)
        self.end_all()

    def end_all(self) -> None:
        """End the processes of all kernels."""
        for kernel in self.kernels:
            kernel.end()

    def _start_next(self) -> None:
        if self.remaining:
            self.remaining -= 1
            self.kernels.append(self._start())

    def _start(self) -> Kernel:
        self.started += 1
        place = self.folder / str(self.started)
        manager = AsyncKernelManager(connection_file=f"{place}.json", kernel_spec_manager=_ThisPython())
        if os.name == "posix":
            manager.transport, manager.ip = "ipc", str(place)
        imports = [f"--IPKernelApp.exec_lines=__import__({name!r})" for name in IMPORTS]
        report, output = place.with_suffix(".bars"), place.with_suffix(".output")
        with output.open("wb") as file:
            run_sync(manager.start_kernel)(
                cwd=str(self.root),
                env=os.environ | {bars.FILE: str(report)},
                extra_arguments=[*imports, "--HistoryManager.hist_file=:memory:"],
                stdout=file,
                stderr=file,
            )
        return Kernel(manager, manager.provisioner.process, report, output)


class _ThisPython(KernelSpecManager):
    """The one kernel of a run: this Python, with a process that ends with the run."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        arguments = [sys.executable, "-m", "searle_lib.study.kernel_process", "-f", "{connection_file}"]
        return KernelSpec(argv=arguments, display_name="Python 3", language="python")
