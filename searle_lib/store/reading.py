"""The boundary around files that others wrote: whatever goes wrong while one is read becomes one sentence.

Every reader of a file from outside runs inside `reading`, or is decorated with `reads`. A reader raises FileRefused
where it can say what is wrong in words of its own. Any other error becomes a sentence with the file's name and the
remedy. What fails after the reading is a mistake of this library, and shows as one.
"""

import contextlib
import functools
import json
import linecache
import reprlib
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

import numpy as np

PACKAGE = Path(__file__).parents[1]
MAX_BYTES = 1 << 33  # of any file
MAX_VALUES = 5_000_000  # of a JSON file; COCO's list of images has 1.5 million
MAX_DEPTH = 64  # of lists and objects in a JSON file
_STEP = np.zeros(256, np.int8)  # of the depth, by byte
_STEP[list(b"[{")], _STEP[list(b"]}")] = 1, -1


class FileRefused(ValueError):
    """A file from outside cannot be used. The sentence names the file and says what to do."""

    def __init__(self, sentence: str):
        super().__init__(printable(sentence))


@contextlib.contextmanager
def reading(
    path: Path, fault: str, remedy: str, absent: str = "", noun: str = "", limit: int = MAX_BYTES
) -> Iterator[None]:
    """Turn whatever goes wrong while a file is read into one sentence.

    Args:
        path: the file.
        fault: what is wrong with a file that cannot be read, as in "is not valid JSON".
        remedy: what to do then, as in "download it again".
        absent: what to do if the file does not exist, if not the same.
        noun: what the file is, as in "image".
        limit: bytes that it may have.

    Raises:
        FileNotFoundError: if the file does not exist.
        FileRefused: for everything else.
    """
    subject = f"{noun} {path}".strip()
    with one_sentence(subject, fault, remedy):
        try:
            status = path.stat()
        except FileNotFoundError:
            raise FileNotFoundError(printable(f"{subject} does not exist; {absent or remedy}.")) from None
        with one_sentence(subject, fault, remedy, f"{status.st_size:,} bytes on disk: "):
            if not stat.S_ISREG(status.st_mode):
                raise ValueError("it is not a plain file")
            if status.st_size > limit:
                raise ValueError(f"it may have {limit:,} bytes")
            yield


@contextlib.contextmanager
def one_sentence(subject: str, fault: str, remedy: str, detail: str = "") -> Iterator[None]:
    """Turn any error but FileRefused and FileNotFoundError into a FileRefused: "subject fault (detail reason); remedy."

    An error of the system, as that of a file which is absent, names no remedy, so it is turned too.
    """
    try:
        yield
    except FileRefused:
        raise
    except Exception as problem:
        if isinstance(problem, FileNotFoundError) and problem.errno is None:  # a sentence of `reading`
            raise
        reason = " ".join(str(problem).split())[:160].rstrip(".") or type(problem).__name__
        raise FileRefused(f"{subject} {fault} ({detail}{reason}); {remedy}.") from problem


def reads(fault: str, remedy: str, absent: str = "", noun: str = "", limit: int = MAX_BYTES) -> Callable:
    """Decorate a reader whose first argument is the path of its file; the arguments are those of `reading`."""

    def decorate(reader: Callable) -> Callable:
        @functools.wraps(reader)
        def guarded(path: Path | str, *arguments, **named):
            with reading(Path(path), fault, remedy, absent, noun, limit):
                return reader(Path(path), *arguments, **named)

        return guarded

    return decorate


def read_json(path: Path, pairs_hook: Callable[[list[tuple]], dict] | None = None) -> object:
    """Return the content of a JSON file, inside `reading`.

    A key that stands twice in an object is an error, unless `pairs_hook` makes the object.

    Raises:
        ValueError: if the file is not JSON, or is nested or filled beyond MAX_DEPTH and MAX_VALUES.
    """
    content = path.read_bytes()
    steps = _STEP[np.frombuffer(content, np.uint8)]
    steps = steps[steps != 0]
    if (steps > 0).sum() + content.count(b",") > MAX_VALUES:
        raise ValueError(f"it holds more than {MAX_VALUES:,} values")
    if len(steps) and steps.cumsum(dtype=np.int64).max() > MAX_DEPTH:
        raise ValueError(f"its lists and objects are nested more than {MAX_DEPTH} deep")
    return json.loads(content.decode("utf-8"), object_pairs_hook=pairs_hook or _distinct, parse_constant=_refuse)


def show(value: object) -> str:
    """Return a value as text for a sentence, cut to a length that can be read."""
    return reprlib.repr(value)


def is_text(value: object) -> bool:
    """Return whether a value is a text that can be written as UTF-8, so without half a surrogate pair."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def is_name(value: object) -> bool:
    """Return whether a value can be the name of an image or a file: printable, and not empty."""
    return isinstance(value, str) and value.isprintable() and value.strip() != ""


def printable(text: str) -> str:
    """Return a text with control characters escaped, so that a terminal shows it, and without a long middle."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= 1200 else f"{text[:800]} ... {text[-350:]}"


def _distinct(pairs: list[tuple]) -> dict:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {show(next(key for key in keys if keys.count(key) > 1))} stands twice in an object")
    return content


def _refuse(constant: str) -> None:
    raise ValueError(f"it holds {constant}, which is no number of JSON")


def is_refusal(trace: TracebackType) -> bool:
    """Return whether an error was raised by a `raise` statement of this library."""
    while trace.tb_next:
        trace = trace.tb_next
    file = trace.tb_frame.f_code.co_filename
    in_library = Path(file).is_relative_to(PACKAGE)
    return in_library and linecache.getline(file, trace.tb_lineno).lstrip().startswith("raise")
