"""Writing files: complete or absent, on disk before they get their name, and refused in one sentence.

Every file of a study is written through `atomic_write`. Artefacts, records, pages and tables use it, and it uses none
of them.
"""

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from safetensors import SafetensorError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
MAY_NOT_WRITE = (errno.EACCES, errno.EPERM, errno.EROFS)
NO_FOLDER = (errno.ENOTDIR, errno.EEXIST)
TEMPORARY = ".aside"
HOST = re.sub(r"\W", "_", platform.node())[:40]


class Unwritable(OSError):
    """A folder takes no file; the sentence says why and what to do."""


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, facts: object) -> None:
    """Write facts as JSON. The file is complete or absent. Raises Unwritable."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(facts, indent=1) + "\n")


@contextlib.contextmanager
def atomic_write(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Give a temporary path to write to; rename it to `path` if the block succeeds, remove it if not.

    The folder is made if it does not exist.

    Args:
        path: the file to write.
        durable: flush the file to disk before it is renamed, so that a power cut leaves the old file or the new one.

    Raises Unwritable if the disk is full or the folder may not be written.
    """
    temporary = temporary_name(path)
    with refuse_unwritable(path.parent, path.name, "artefact_root and report_root"):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path.parent)
        try:
            yield temporary
            if durable:
                flush(temporary)
            os.replace(temporary, path)
            if durable:
                flush(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def refuse_unwritable(folder: Path, name: str, parameters: str) -> Iterator[None]:
    """Turn the error of a block that writes into one sentence, if the disk or the folder takes no file.

    Args:
        folder: where the block writes.
        name: what it writes.
        parameters: the parameters that choose another folder.
    """
    try:
        yield
    except (OSError, SafetensorError) as problem:
        cause = problem.__cause__ if isinstance(problem, Unwritable) else problem  # an outer block knows the parameter
        sentence = _reason(cause, folder, name, parameters)
        if not sentence:
            raise
        raise Unwritable(sentence) from cause


def temporary_name(path: Path) -> Path:
    """Return a name beside a file that no other process uses. Such files of processes that have ended are removed."""
    return path.with_name(f"{path.name}.{HOST}-{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY}")


def flush(path: Path) -> None:
    """Wait until a file, or the list of a folder's files, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(problem: BaseException, folder: Path, name: str, parameters: str) -> str:
    """Return why a folder took no file, and what to do; "" if the problem is another one.

    Safetensors and Arrow tell a full disk in words only.
    """
    number, file = getattr(problem, "errno", None), getattr(problem, "filename", None)
    whole, refused = folder.absolute(), Path(file or folder).absolute()
    in_folder = refused.is_relative_to(whole) or whole.is_relative_to(refused)
    words = str(problem)
    if number in DISK_FULL or re.search("StorageFull|No space left|quota exceeded", words):
        place = next(path for path in (whole, *whole.parents) if path.is_dir())
        return (
            f"the disk of {folder} is full ({shutil.disk_usage(place).free:,} bytes are free) before {name} was "
            f"written; make room or set {parameters} to a larger disk, then run again: finished work is kept."
        )
    may_not = isinstance(problem, SafetensorError) and re.search("Permission denied|Read-only", words)
    if (number in MAY_NOT_WRITE and in_folder) or may_not:
        return (
            f"{name} cannot be written to {folder} ({os.strerror(number or errno.EACCES)}); let this user write there "
            f"or set {parameters} to another folder, then run again: finished work is kept."
        )
    above = [Path(file), *Path(file).parents] if file and in_folder else []
    obstacle = next((path for path in above if path.exists() and not path.is_dir()), None)
    if number in NO_FOLDER and obstacle:
        return f"{obstacle} is a file, and {name} needs a folder there; move the file away or correct {parameters}."
    return ""


@cache
def remove_abandoned(folder: Path) -> None:
    """Remove, once for each folder, the temporary files of processes of this machine that have ended."""
    for file in folder.glob(f"*{TEMPORARY}"):
        owner = re.search(rf"\.{HOST}-(\d+)-\w+{TEMPORARY}$", file.name)
        if owner and not _is_running(int(owner[1])):
            file.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
