"""The sha256 of files' contents, computed once for each state of a file.

A file's state is its size and its two times of change: `mtime`, which a copy may keep, and `ctime`, which every write
and every move renews. Hashes are kept in a folder, one JSON file for each folder of files, so a file that has not
changed costs one `stat`. Images and artefacts are hashed here, with a bar, for that can take minutes.
"""

import contextlib
import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from searle_lib.store import bars
from searle_lib.store.files import atomic_write, file_sha256

THREADS = 4
CHUNK = 4096  # files hashed before their hashes are kept

_KNOWN: dict[Path, dict[str, list]] = {}  # [*state, sha256] by cache file and name, for this process


def hash_files(paths: Sequence[Path], cache: Path) -> list[str]:
    """Return the sha256 of each file's content.

    Args:
        paths: the files.
        cache: the folder that keeps hashes. If it cannot be written, this process alone remembers them.

    Raises OSError, with the file's name, if a file does not exist, may not be read, or is no plain file.
    """
    states = {path: _state(path) for path in paths}
    changed = [path for path in states if _known(path.parent, cache).get(path.name, [""])[:-1] != states[path]]
    with bars.bar(len(changed), "hashing files") if changed else contextlib.nullcontext() as bar:
        for folder, members in _by_folder(changed).items():
            for start in range(0, len(members), CHUNK):
                chunk = members[start : start + CHUNK]
                with ThreadPoolExecutor(THREADS) as pool:
                    for path, sha256 in zip(chunk, pool.map(file_sha256, chunk), strict=True):
                        _known(folder, cache)[path.name] = [*states[path], sha256]
                        bar.update()
                _keep(folder, cache)
    return [_known(path.parent, cache)[path.name][-1] for path in paths]


def remember(hashes: Mapping[Path, str], cache: Path) -> None:
    """Keep the hashes of files that were hashed elsewhere and have not changed since."""
    for folder, members in _by_folder(hashes).items():
        known = _known(folder, cache)
        known |= {path.name: [*_state(path), hashes[path]] for path in members}
        _keep(folder, cache)


def forget_missing(cache: Path) -> None:
    """Remove the hashes of folders that no longer exist."""
    for file in cache.glob("*.json"):
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            if not Path(json.loads(file.read_text())["folder"]).is_dir():
                file.unlink()


def _by_folder(paths: Iterable[Path]) -> dict[Path, list[Path]]:
    folders: dict[Path, list[Path]] = {}
    for path in paths:
        folders.setdefault(path.parent, []).append(path)
    return folders


def _state(path: Path) -> list[int]:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
        raise OSError(errno.EINVAL, "it is no plain file", str(path))
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _known(folder: Path, cache: Path) -> dict[str, list]:
    """Return state and hash of the files of a folder, by name, as far as they are known."""
    file = _file(folder, cache)
    if file not in _KNOWN:
        try:
            entries = json.loads(file.read_text())["files"].items()
            _KNOWN[file] = {name: list(entry) for name, entry in entries}
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            _KNOWN[file] = {}
    return _KNOWN[file]


def _keep(folder: Path, cache: Path) -> None:
    facts = {"folder": os.path.abspath(folder), "files": dict(sorted(_known(folder, cache).items()))}
    file = _file(folder, cache)
    with contextlib.suppress(OSError), atomic_write(file, durable=False) as temporary:  # else they cost time again
        temporary.write_text(json.dumps(facts))


def _file(folder: Path, cache: Path) -> Path:
    return cache / f"{hashlib.sha256(os.path.abspath(folder).encode()).hexdigest()[:16]}.json"
