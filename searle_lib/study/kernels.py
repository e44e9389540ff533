"""Kernels that are forked from one process, which has imported torch and the rest.

These imports take about seven seconds, as long as a small notebook runs. So a run does them once, in the background,
and not in the kernel of each notebook. A kernel runs in the Python of the run, whatever kernels Jupyter knows.
"""

import asyncio
import multiprocessing
import os
import signal
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from multiprocessing import forkserver, resource_tracker
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from pathlib import Path

from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning import KernelProvisionerBase
from nbclient.util import run_sync

from searle_lib.store import bars
from searle_lib.study import interruption, kernel_process
from searle_lib.study.run_folder import LONGEST_SOCKET, RunFolder

PACKAGE = Path(__file__).parents[1]
IMPORTS = (
    "searle_lib.study.fork_server",  # first: it ties the server to this process
    "searle_lib.evaluation.scores",
    "searle_lib.reporting.figures",
    "ipykernel.kernelapp",
)


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
    process: BaseProcess
    bars: Path
    output: Path

    def end(self) -> None:
        """End the process and wait for its end."""
        self.process.kill()
        self.process.join()

    def cause_of_death(self) -> str:
        """Return how the process ended and what to do: a signal, or its status and the last line that it printed."""
        self.process.join()
        status = self.process.exitcode
        if status < 0:
            name = signal.Signals(-status).name
            return f"its kernel died ({name}), probably because memory ran out; lower the batch sizes and run again."
        lines = self.output.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
        return f"its kernel ended with status {status} ({last[:200]}); correct that, or free memory, and run again."


class Kernels:
    """Starts a run's kernels, one after another, in the folder `root`; `folder` is for their sockets and files."""

    def __init__(self, root: Path, folder: Path):
        self.root, self.folder = root, folder
        self.started: list[Kernel] = []
        interruption.cleanups.append(self.end_all)
        _imported_library()

    def start(self) -> Kernel:
        """Start a kernel. Raises OSError if the system cannot, or if the folder cannot be written."""
        place = self.folder / str(len(self.started) + 1)
        manager = AsyncKernelManager(connection_file=f"{place}.json", kernel_spec_manager=_ThisPython())
        if os.name == "posix":
            manager.transport, manager.ip = "ipc", str(place)
        report, output = place.with_suffix(".bars"), place.with_suffix(".output")
        output.touch()
        environment = os.environ | {bars.FILE: str(report)}
        arguments = (manager.connection_file, str(self.root), environment, str(output))
        process = _context().Process(target=kernel_process.run, args=arguments)
        manager.provisioner = _Provisioner(manager, process)
        run_sync(manager.start_kernel)()
        self.started.append(Kernel(manager, process, report, output))
        return self.started[-1]

    def close(self) -> None:
        """End every kernel that still runs."""
        interruption.cleanups.remove(self.end_all)
        self.end_all()

    def end_all(self) -> None:
        """End the processes of all kernels."""
        for kernel in self.started:
            kernel.end()


def _context() -> multiprocessing.context.BaseContext:
    """Return how to start a kernel: from the fork server, unless the library was edited after it imported it.

    Only Linux can fork a process that has imported torch. Without a fork server each kernel imports for itself.
    """
    return multiprocessing.get_context("forkserver" if _imported_library() == _library() else "spawn")


@cache
def _imported_library() -> list[tuple[Path, int]] | None:
    """Let the fork server start its imports; return the library's files as it imports them, None if there is none."""
    place = len(os.fsencode(tempfile.gettempdir())) + len("/searle-abcdefgh/pymp-abcdefgh/listener-abcdefgh")
    if sys.platform != "linux" or place > LONGEST_SOCKET:
        return None
    library = _library()
    folder = RunFolder()  # for the server's socket, as long as this process lives
    Finalize(None, folder.close, exitpriority=-200)  # after multiprocessing has removed its own part of it
    forkserver.set_forkserver_preload(list(IMPORTS))
    os.environ[interruption.PARENT] = str(os.getpid())
    resource_tracker.ensure_running()  # else the server starts it, and lets Ctrl-C through
    earlier, tempfile.tempdir = tempfile.tempdir, str(folder.path)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # the server inherits this: a Ctrl-C is ours alone
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        tempfile.tempdir = earlier
    return library


def _library() -> list[tuple[Path, int]]:
    """Return the library's files, each with its time of change."""
    return [(path, path.stat().st_mtime_ns) for path in sorted(PACKAGE.rglob("*.py"))]


class _Provisioner(KernelProvisionerBase):
    """What jupyter_client starts, asks and ends a kernel's process by."""

    def __init__(self, manager: AsyncKernelManager, process: BaseProcess):
        super().__init__(parent=manager)
        self.process = process

    @property
    def has_process(self) -> bool:
        return self.process.pid is not None

    async def pre_launch(self, **options: object) -> dict:
        self.parent.write_connection_file()
        return {"cmd": []}

    async def launch_kernel(self, cmd: list[str], **options: object) -> dict:
        try:
            self.process.start()
        except (EOFError, OSError) as problem:  # the fork server has died, or the system has no room
            raise OSError(f"no kernel can start ({problem}); free memory and run the same command again.") from problem
        return self.parent.get_connection_info()

    async def poll(self) -> int | None:
        return self.process.exitcode

    async def wait(self) -> int | None:
        while self.process.exitcode is None:
            await asyncio.sleep(0.05)
        return self.process.exitcode

    async def send_signal(self, signum: int) -> None:
        os.kill(self.process.pid, signum)

    async def kill(self, restart: bool = False) -> None:
        self.process.kill()

    async def terminate(self, restart: bool = False) -> None:
        self.process.terminate()

    async def cleanup(self, restart: bool = False) -> None:
        """Leave everything to the run's folder, which holds the sockets and files."""


class _ThisPython(KernelSpecManager):
    """The one kernel of a run."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return KernelSpec(display_name="Python 3", language="python")
