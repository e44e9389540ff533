"""The process of a kernel: ipykernel, in a folder, an environment and a session of its own."""

import multiprocessing
import os
import signal

from searle_lib.study.interruption import end_with_parent


def run(connection_file: str, folder: str, environment: dict[str, str], output: str) -> None:
    """Run a kernel until it is told to end.

    Args:
        connection_file: the file with the kernel's sockets and key.
        folder: where its notebook runs.
        environment: all its environment variables.
        output: the file for what the process itself prints.
    """
    end_with_parent()
    multiprocessing.set_start_method(None, force=True)  # else locks have names, and a killed kernel leaves them behind
    if os.name == "posix":
        os.setsid()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    with open(output, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)

    from ipykernel import kernelapp

    parent, history = f"--IPKernelApp.parent_handle={os.getppid()}", "--HistoryManager.hist_file=:memory:"
    kernelapp.launch_new_instance(argv=["-f", connection_file, parent, history])
