"""Files fetched from the web: once, with progress, resumed when cut off, refused when wrong.

A file arrives as `<name>.part`, with `<name>.part.json` saying what it is a part of, and is renamed when whole. Beside
it stands `<name>.sha256`, the pin of what first came, in the form that `sha256sum -c` reads. Own code, because none of
our dependencies resumes a download through a public function. It stands on artefacts alone.
"""

import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from filelock import FileLock
from tqdm.auto import tqdm

from searle_lib.store.artefacts import FULL, file_sha256, write_json, written_aside

TIMEOUT = 30  # seconds without a byte
CHUNK = 1 << 16  # bytes, of which a reset connection loses one at most


def cache() -> Path:
    """The folder of what is fetched for all studies."""
    return Path("~/.cache/searle").expanduser()


def fetch(url: str, path: Path, sha256: str = "") -> Path:
    """The file at `path`, fetched from `url` unless it is there, going on from where an earlier call was cut off.

    Raises, in one sentence, ValueError when it is not the file of that sha256 or, where none is published, not the
    one that first came; ConnectionError when it cannot be fetched or was cut off; OSError when the disk is full.
    """
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except PermissionError:
            raise PermissionError(
                f"{path.parent} may not be written, where {url} is to be kept; set HOME to a folder that may, or give "
                "the file's path as the parameter."
            ) from None
        with FileLock(_beside(path, ".lock")):
            if not path.exists():  # another process fetched it while we waited
                _fetch_anew(url, path, sha256.lower())
    _verify(path, sha256.lower())
    return path


def pinned(path: Path) -> str:
    """The sha256 of a file, written beside it at the first call; ValueError when the file is another one later."""
    return _verify(path, "")


def _verify(path: Path, published: str) -> str:
    found, pin = file_sha256(path), _pin(path)
    _compare(str(path), found, published, pin, f"delete it and {path.name}.sha256 to fetch it again")
    if found != pin and (pin or not published):  # what is published needs no pin, and its folder may be read-only
        with FileLock(_beside(path, ".lock")), written_aside(_beside(path, ".sha256")) as aside:
            aside.write_text(f"{found}  {path.name}\n")
    return found


def _compare(what: str, found: str, published: str, pin: str, remedy: str) -> None:
    wanted = published or pin
    if wanted and found != wanted:
        role = "the file published" if published else "the file that first came"
        raise ValueError(f"{what} is not {role} (its sha256 is {found[:12]}..., not {wanted[:12]}...); {remedy}.")


def _pin(path: Path) -> str:
    pin = _beside(path, ".sha256")
    return (pin.read_text().split() or [""])[0].lower() if pin.exists() else ""


def _fetch_anew(url: str, path: Path, published: str) -> None:
    part, origin = _beside(path, ".part"), _beside(path, ".part.json")
    _download(url, path, part, origin)
    remedy = "it was not kept, run again to fetch it anew"
    if not published:
        remedy += f" (after deleting {path.name}.sha256, if the file was meant to change)"
    try:
        _compare(f"{path.name} from {url}", file_sha256(part), published, _pin(path), remedy)
    except ValueError:
        part.unlink()
        origin.unlink()
        raise
    os.replace(part, path)
    origin.unlink()


def _download(url: str, path: Path, part: Path, origin: Path) -> None:
    """Bring the part to its full length; when the connection or the disk gives out, keep it and say so."""
    known = json.loads(origin.read_text()) if part.exists() and origin.exists() else {}
    have = part.stat().st_size if known.get("url") == url else 0
    if have and have == known["size"]:  # killed between the last byte and the renaming
        return
    answer = _ask(url, path, have, known.get("validator", ""))
    if have and answer.status in (206, 416) and not _continues(answer, have, known):
        answer.close()
        answer = _ask(url, path, 0, "")
    if answer.status == 416:
        answer.close()
        return
    if answer.status == 206:
        size = _number(answer.headers["Content-Range"].rpartition("/")[2])
    else:
        have, size = 0, _number(answer.headers["Content-Length"])
    reason = ""
    try:
        with answer, tqdm(total=size, initial=have, unit="B", unit_scale=True, desc=path.name, mininterval=2) as bar:
            if not have:
                part.unlink(missing_ok=True)  # before its origin changes, lest its bytes be taken for the new file's
                write_json(origin, {"url": url, "validator": _validator(answer), "size": size})
            with part.open("ab") as file:
                for chunk in _chunks(answer):
                    file.write(chunk)
                    bar.update(len(chunk))
    except ConnectionError as problem:
        reason = str(problem)
    except OSError as problem:
        if problem.errno not in FULL:
            raise
        came = part.stat().st_size if part.exists() else 0
        needed = f"{size - came:,} more bytes of {size:,}" if size else f"more than the {came:,} bytes that came"
        remedy = "make room and run again, it goes on from there"
        raise OSError(f"{path.parent} is full, {path.name} needs {needed}; {remedy}.") from problem
    came = part.stat().st_size
    if came != size and (reason or size is not None):  # without a size, the server says itself where the end is
        of = "an unknown number of" if size is None else f"{size:,}"
        raise ConnectionError(
            f"{path.name} came to {came:,} of {of} bytes ({reason or 'the connection ended'}); run again, it goes on "
            "from there."
        )


def _ask(url: str, path: Path, have: int, validator: str) -> HTTPResponse | urllib.error.HTTPError:
    """The server's answer: 200 with the whole, 206 with what follows the first `have` bytes, or 416 if nothing does."""
    request = urllib.request.Request(url, headers={"User-Agent": "searle_lib"})  # some sites refuse urllib's own name
    if have:
        request.add_header("Range", f"bytes={have}-")
        if validator.startswith('"'):  # weak ETags may not stand in If-Range
            request.add_header("If-Range", validator)
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
        if path.suffix in (".html", ".htm") or answer.headers.get_content_type() != "text/html":
            return answer
        answer.close()
        reason = "the server sends a web page instead"  # to log in, or to be sure; it would be pinned as the file
    except urllib.error.HTTPError as problem:
        if have and problem.code == 416:
            return problem
        problem.close()
        reason = f"HTTP {problem.code} {problem.reason}"
    except (OSError, HTTPException) as problem:
        reason = _reason(problem)
    raise ConnectionError(
        f"{path.name} cannot be fetched ({reason}); download {url} on a machine with network and put it at {path}."
    )


def _continues(answer: HTTPResponse | urllib.error.HTTPError, have: int, known: dict) -> bool:
    """Whether a 206 or 416 is about the file that we have the start of; some servers ignore If-Range."""
    place, _, size = (answer.headers["Content-Range"] or "").partition("/")
    if answer.status == 416:  # all of it is there, which we could not know if its size was never said
        return known["size"] is None and size == str(have)
    if not known["validator"] and known["size"] is None:
        return False
    same = _validator(answer) == known["validator"] and known["size"] in (None, _number(size))
    return same and place.startswith(f"bytes {have}-")


def _chunks(answer: HTTPResponse) -> Iterator[bytes]:
    """What the server sends; ConnectionError, with the bare reason, when it stops coming."""
    try:
        while chunk := answer.read(CHUNK):
            yield chunk
    except (OSError, HTTPException) as problem:
        raise ConnectionError(_reason(problem)) from problem


def _validator(answer: HTTPResponse) -> str:
    return answer.headers["ETag"] or answer.headers["Last-Modified"] or ""


def _number(header: str | None) -> int | None:
    return int(header) if header and header.isdigit() else None


def _reason(problem: Exception) -> str:
    problem = getattr(problem, "reason", problem)
    return getattr(problem, "strerror", None) or str(problem) or type(problem).__name__


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)
