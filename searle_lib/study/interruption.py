"""Ctrl-C, or the SIGTERM of a scheduler: end this process and all that it started, at once and in one sentence.

Nothing is unwound. An exception at a random moment would be printed by whatever library it interrupts, or be swallowed
there, and the way out through threads and event loops takes seconds. All that is finished is on disk already. This
module is imported first and imports almost nothing.
"""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType

PARENT = "SEARLE_PARENT"  # the variable that tells a fork server which process must live
SENTENCE = "stopped; run the same command to continue."
SHOW_CURSOR = b"\r\x1b[2K\x1b[?25h"  # clear the line of the bar, which hides the cursor

cleanups: list[Callable[[], None]] = []  # what a stop calls, the newest first
_process = os.getpid()
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded here, since a forked child may not


def install() -> None:
    """End this process by `stop` at a Ctrl-C or SIGTERM from here on, and its forked children together with it."""
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=end_with_parent)


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """End this process by `stop` at a Ctrl-C in the block: for the imports of a command."""
    try:
        earlier = signal.signal(signal.SIGINT, stop)
    except ValueError:  # not the main thread: a program imports the command
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, earlier)


def stop(number: int = signal.SIGINT, frame: FrameType | None = None) -> None:
    """Clean up, print one sentence, and end this process with status 128 + number, so 130 after Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.getpid() == _process:  # and not a forked child
        for cleanup in reversed(cleanups):
            with contextlib.suppress(Exception):
                cleanup()
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        if os.isatty(1):
            os.write(1, SHOW_CURSOR)
        os.write(2, f"{SENTENCE}\n".encode())
    os._exit(128 + number)


def end_with_parent(parent: int | None = None) -> None:
    """Let the system kill this process as soon as its parent ends, however that ends (Linux).

    Elsewhere a kernel looks for its parent once a second. `parent` is the parent that should still live, by its id.
    """
    if _libc is not None:
        pr_set_pdeathsig = 1
        _libc.prctl(pr_set_pdeathsig, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:  # it ended before the line above
        os._exit(1)
