"""Download a published file once, and compare its sha256 at every use.

`fetch` takes a url and a path, and returns the path of the whole file. A file without a published sha256 gets a pin:
`<name>.sha256` beside it keeps the sha256 of the file that first came, in the format of `sha256sum -c`. The loaders of
CLIP, φ and the published phrases call `fetch`.
"""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pooch
import requests
from filelock import FileLock
from tqdm.auto import tqdm

from searle_lib.store.artefacts import DISK_FULL, atomic_write, file_sha256

TIMEOUT = 30  # seconds without a byte
pooch.get_logger().setLevel("WARNING")  # otherwise pooch prints the url, and a hint about hashes


def cache() -> Path:
    """Return the folder that keeps the downloads of all studies."""
    return Path("~/.cache/searle").expanduser()


def fetch(url: str, path: Path, sha256: str = "") -> Path:
    """Return `path`, downloaded from `url` if it does not exist; the file appears whole or not at all.

    `sha256` is the published one; if it is empty, the pin takes its place.

    Raises, in one sentence:
        ValueError: if the file is not the published or pinned one.
        ConnectionError: if the file cannot be fetched, or the connection ends early.
        PermissionError: if the folder may not be written.
        OSError: if the disk is full.
    """
    pin = path.with_name(f"{path.name}.sha256")
    known = sha256.lower() or _read_pin(pin)
    expected = "the file published" if sha256 else "the file that first came"
    if not (known and path.exists()):
        meant = "" if sha256 else f" (after deleting {pin.name}, if the file was meant to change)"
        with _one_sentence(url, path, f"is not {expected}; it was not kept, run again to fetch it anew{meant}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_name(f"{path.name}.lock")):
                # does nothing if the file exists, as when another process fetched it while this one waited
                pooch.retrieve(url, known or None, path.name, path.parent, downloader=_download)
                if not known:
                    known = file_sha256(path)
                    with atomic_write(pin) as temporary:
                        temporary.write_text(f"{known}  {path.name}\n")
    if (actual := file_sha256(path)) != known:
        raise ValueError(
            f"{path} is not {expected} (its sha256 is {actual[:12]}..., not {known[:12]}...); delete it and {pin.name} "
            "to fetch it again."
        )
    return path


def _read_pin(pin: Path) -> str:
    return (pin.read_text().split() or [""])[0].lower() if pin.exists() else ""


def _download(url: str, temporary: str, _: object) -> None:
    def refuse_page(response: requests.Response, **_: object) -> None:
        page = response.status_code == 200 and "text/html" in response.headers.get("Content-Type", "").lower()
        if page and not urlsplit(url).path.endswith(".html"):  # a login page, for example
            raise ConnectionError("the server sends a web page instead")

    plain = {"Accept-Encoding": "identity"}  # otherwise Content-Length may be that of compressed bytes
    hooks = {"response": refuse_page}
    Path(temporary).unlink()  # only this user may read it; the download makes it anew with the usual permissions
    with tqdm(total=1, desc=Path(url).name, unit="B", unit_scale=True, mininterval=2) as bar:  # pooch sets the total
        pooch.HTTPDownloader(bar, 1 << 16, timeout=TIMEOUT, headers=plain, hooks=hooks)(url, temporary, None)
    size = Path(temporary).stat().st_size
    if size < bar.total:  # urllib3 2 has raised already, urllib3 1 has not
        raise ConnectionError(f"the connection ended after {size:,} of {bar.total:,} bytes")


@contextlib.contextmanager
def _one_sentence(url: str, path: Path, wrong: str) -> Iterator[None]:
    """Say in one sentence what kept the file from coming, and what to do."""
    try:
        yield
    except (requests.RequestException, ConnectionError) as problem:
        raise ConnectionError(
            f"{path.name} cannot be fetched ({_reason(problem)}); run again, or download {url} on a machine with "
            f"network and put it at {path}."
        ) from problem
    except ValueError as problem:
        raise ValueError(f"{path.name} from {url} {wrong}.") from problem
    except OSError as problem:
        if problem.errno in DISK_FULL:
            raise OSError(f"{path.parent} is full; make room and run again to fetch {url}.") from problem
        if problem.errno == errno.EROFS or isinstance(problem, PermissionError):
            remedy = "set HOME to another folder, or give the file's path as the parameter"
            raise PermissionError(f"{path.parent} may not be written to keep {url}; {remedy}.") from problem
        raise


def _reason(problem: BaseException) -> str:
    """Return what the innermost error says; requests wraps it up to four times."""
    if isinstance(problem, requests.HTTPError):
        return f"HTTP {problem.response.status_code} {problem.response.reason}"
    for inner in (problem.__cause__, getattr(problem, "reason", None), *problem.args):
        if isinstance(inner, Exception):
            return _reason(inner)
    return getattr(problem, "strerror", None) or str(problem) or type(problem).__name__
