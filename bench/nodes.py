"""A Ray cluster on this machine: a head and further nodes on loopback, each with a raylet and processes of its own."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

MARK = "SEARLE_TEST_CLUSTER"  # a variable of every process of a cluster: its folder and the number of the node
START = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
STARTED = "Ray runtime started"  # what Ray prints
LIMIT = 180.0  # seconds in which a node starts


@dataclass
class Nodes:
    """The nodes of a cluster.

    Args:
        folder: of the session's files and sockets; short, for Linux limits the names of sockets.
        port: of the head.
        running: the process that started each node, by number; 0 is the head.
    """

    folder: Path
    port: int
    running: dict[int, subprocess.Popen] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """What the parameter ray_address takes."""
        return f"127.0.0.1:{self.port}"

    def start(self, number: int, *, cpus: int = 1, before: tuple[str, ...] = ()) -> None:
        """Start a node, and wait until it is a part of the cluster. Raises TimeoutError.

        Args:
            number: of the node; 0 is the head.
            cpus: how many CPUs Ray may give away there.
            before: a command that starts the node's own one, such as unshare.
        """
        place = ["--head", f"--port={self.port}", f"--temp-dir={self.folder}", "--include-dashboard=false"]
        command = [*before, *START, f"--num-cpus={cpus}", *(place if number == 0 else [f"--address={self.address}"])]
        variables = {MARK: f"{self.folder}/{number}", "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
        variables["RAY_gcs_rpc_server_reconnect_timeout_s"] = "10"  # 60 by default: how long a node misses its head
        file, end = self.folder / f"node-{number}.log", time.monotonic() + LIMIT
        while time.monotonic() < end:  # a node gives up early where the head is slow, and is started again
            with file.open("w") as log:
                process = subprocess.Popen(
                    command, env=os.environ | variables, stdout=log, stderr=log, stdin=subprocess.DEVNULL
                )
            self.running[number] = process
            while process.poll() is None and time.monotonic() < end:
                if STARTED in file.read_text():
                    return
                time.sleep(0.1)
        raise TimeoutError(f"node {number} of Ray does not start: {file.read_text()[-500:]}")

    def processes(self, number: int | None = None) -> list[psutil.Process]:
        """Return the processes of a node, or of all nodes."""
        mark = f"{self.folder}/{'' if number is None else number}"
        marked = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK, "").startswith(mark) and process.status() != psutil.STATUS_ZOMBIE:
                    marked.append(process)
        return marked

    def named(self, name: str, number: int | None = None) -> list[psutil.Process]:
        """Return those of `processes` whose command line has a name, such as raylet, gcs_server or Computer."""
        named = []
        for process in self.processes(number):
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                if words and (name in Path(words[0]).name or name in words[0]):
                    named.append(process)
        return named

    def kill(self, number: int) -> None:
        """Kill -9 every process of a node at once."""
        for process in self.processes(number):
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
        self.running.pop(number).wait()


@contextlib.contextmanager
def nodes(*cpus: int) -> Iterator[Nodes]:
    """Start a head and further nodes with so many CPUs each, and end them with all their processes."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    cluster = Nodes(Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp")), port)
    try:
        for number, count in enumerate(cpus):
            cluster.start(number, cpus=count)
        yield cluster
    finally:
        for number in list(cluster.running):
            cluster.kill(number)
        shutil.rmtree(cluster.folder, ignore_errors=True)
