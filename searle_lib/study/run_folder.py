"""The temporary folder of a run: the sockets and connection files of its kernels, and the notebook that runs.

A run holds a lock in its folder while it lives. So the next run sees which folders belong to dead runs, and removes
them. No two runs share a file.
"""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from filelock import FileLock

from searle_lib.study import interruption

PREFIX = "searle-"
LOCK = "lock"
LONGEST_SOCKET = 103  # bytes of the path of a Unix socket, on macOS; Linux has room for 107
ROOM = len("/searle-abcdefgh/99-5")


class RunFolder:
    """A new temporary folder, which `close` removes, or a Ctrl-C, or else the next run.

    Raises:
        ValueError: if its path would be too long for a socket.
        OSError: if it cannot be written.
    """

    def __init__(self):
        parent = Path(tempfile.gettempdir())
        if os.name == "posix" and len(os.fsencode(parent)) + ROOM > LONGEST_SOCKET:
            raise ValueError(
                f"the temporary folder {parent} has a path too long for the sockets of a kernel; set TMPDIR to a "
                f"folder with a path of at most {LONGEST_SOCKET - ROOM} bytes."
            )
        sweep(parent)
        try:
            hidden = Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir=parent))
            self._lock = FileLock(hidden / LOCK)
            self._lock.acquire()
            self.path = hidden.rename(parent / hidden.name[1:])  # it gets its name once it is locked
        except OSError as problem:
            raise OSError(
                f"the temporary folder {parent} cannot be used ({problem.strerror}); make room there, or set TMPDIR to "
                "a folder that this user may write."
            ) from problem
        interruption.cleanups.append(self.remove)

    def close(self) -> None:
        """Remove the folder."""
        interruption.cleanups.remove(self.remove)
        self.remove()
        with contextlib.suppress(OSError):
            self._lock.release()

    def remove(self) -> None:
        """Remove the folder with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)


def sweep(parent: Path) -> None:
    """Remove the folders of dead runs of this user."""
    for lock in parent.glob(f"{PREFIX}*/{LOCK}"):
        with contextlib.suppress(OSError):  # it is locked by a live run, is another user's, or was swept meanwhile
            if lock.parent.stat(follow_symlinks=False).st_uid == os.getuid():
                with FileLock(lock, timeout=0):
                    shutil.rmtree(lock.parent)
