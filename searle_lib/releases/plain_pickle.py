"""Build the plain values of a pickle that others wrote, with bounds on all that it can make.

`load` takes a stream of bytes and returns texts, numbers, lists, tuples, dictionaries and sets. It is a machine for the
few opcodes that such values need. No class is looked up: the caller translates each name to a constructor of its own,
and only these are called. So a file of B bytes can neither run code, nor change a class, nor take much more memory than
the values that it spells out.
"""

from collections.abc import Callable
from pickle import UnpicklingError
from struct import Struct
from typing import BinaryIO

MAX_STEPS = 12_000_000  # opcodes; the published phrases have 11 million. Once for each LARGE bytes, for larger files
MAX_VALUES = 6_000_000  # texts and numbers; the published phrases are 5.4 million
LARGE = 1 << 28
MAX_OBJECTS = 1_000_000  # lists, tuples, dictionaries and sets
MAX_CALLS = 50_000  # of constructors
VALUE = 1 << 20  # bytes of one text or number
WINDOW = 4 << 20  # bytes that are read at once

BYTE, SHORT, WORD, LONG, SIGNED, REAL = (Struct(form) for form in ("<B", "<H", "<I", "<Q", "<i", ">d"))
_TEXTS = {0x8C: BYTE, 0x58: WORD, 0x8D: LONG}  # by the width of their length: (SHORT_BIN, BIN)UNICODE(, 8)
_NUMBERS = {0x4B: BYTE, 0x4D: SHORT, 0x4A: SIGNED, 0x47: REAL}  # BININT1, BININT2, BININT, BINFLOAT
_INTEGERS = {0x8A: BYTE, 0x8B: SIGNED}  # LONG1, LONG4
_CONSTANTS = {0x4E: None, 0x88: True, 0x89: False}
_EMPTY = {0x5D: list, 0x7D: dict, 0x29: tuple, 0x8F: set}
_SHORT_TUPLES = {0x85: 1, 0x86: 2, 0x87: 3}
_GET, _PUT = {0x68: BYTE, 0x6A: WORD}, {0x71: BYTE, 0x72: WORD}  # BINGET, LONG_BINGET, BINPUT, LONG_BINPUT
_LINES = {  # of protocol 0: UNICODE, INT, LONG, FLOAT
    0x56: lambda line: _require_text(line.decode("raw-unicode-escape")),
    0x49: lambda line: {b"00": False, b"01": True}.get(line) if line in (b"00", b"01") else int(line),
    0x4C: lambda line: int(line.rstrip(b"L")),
    0x46: float,
}


class Inert:
    """Stands for an object of a class that is not imported; `state` holds its attributes."""

    __slots__ = ("state",)

    def __init__(self, *arguments):
        self.state = {}


def load(
    stream: BinaryIO,
    find: Callable[[str, str], object] | None = None,
    load_storage: Callable[[object], object] | None = None,
    size: int = 0,
) -> object:
    """Return the value of a pickle.

    Args:
        stream: its bytes.
        find: returns what stands for (module, name), a constructor or a constant. Without it no name is accepted.
        load_storage: returns what stands for a persistent id. Without it none is accepted.
        size: how many bytes it has, if it may be larger than LARGE.

    Raises:
        UnpicklingError: for a name, an opcode or an amount that is not accepted.
        EOFError, LookupError, TypeError, ValueError, struct.error: for bytes that are no pickle.
    """
    return _Machine(stream, find, load_storage, max(1, -(-size // LARGE))).run()


def require_key(key: object):
    """Return a key that is cheap to hash: deep tuples overflow the stack, and chosen large numbers all collide."""
    if not (type(key) in (str, bool) or (type(key) is int and abs(key) < 2**31)):
        raise UnpicklingError(f"it has a key that is a {type(key).__name__}, not a text or a small number")
    return key


class _Constructor:
    """What a name stands for: it can be called by the pickle, and nothing else."""

    __slots__ = ("build",)

    def __init__(self, build: Callable):
        self.build = build


class _Machine:
    def __init__(self, stream: BinaryIO, find: Callable | None, load_storage: Callable | None, scale: int):
        self.stream, self.find, self.load_storage = stream, find, load_storage
        self.buffer, self.position, self.refill = b"", 0, 0
        self.stack: list = []
        self.marks: list[int] = []
        self.memo: list = []
        self.values = self.objects = self.calls = 0
        self.max_steps, self.max_values = scale * MAX_STEPS, scale * MAX_VALUES

    def run(self) -> object:
        """Take steps until STOP. The opcodes of long lists of texts come first."""
        stack, memo = self.stack, self.memo
        for step in range(self.max_steps):
            if self.position >= self.refill:
                self._read_window()
            code = self.buffer[self.position]
            self.position += 1
            if code in _TEXTS:
                stack.append(self._text(_TEXTS[code]))
            elif code == 0x94:  # MEMOIZE
                memo.append(stack[-1])
            elif code in _PUT:
                self._put(self._number(_PUT[code]), step)
            elif code in _GET:
                stack.append(memo[self._number(_GET[code])])
            elif code == 0x2E:  # STOP
                return stack.pop()
            else:
                self._step(code, step)
        raise UnpicklingError(f"it has more than {self.max_steps:,} steps")

    def _step(self, code: int, step: int) -> None:
        stack = self.stack
        if code in _NUMBERS:
            stack.append(self._value(self._number(_NUMBERS[code])))
        elif code in _INTEGERS:
            stack.append(self._value(int.from_bytes(self._take(self._number(_INTEGERS[code])), "little", signed=True)))
        elif code in _LINES:
            stack.append(self._value(_LINES[code](self._line())))
        elif code in _CONSTANTS:
            stack.append(_CONSTANTS[code])
        elif code in _EMPTY:
            stack.append(self._object(_EMPTY[code]()))
        elif code in _SHORT_TUPLES:
            count = _SHORT_TUPLES[code]
            stack[-count:] = [self._object(tuple(stack[-count:]))]
        elif code == 0x28:
            self.marks.append(len(stack))
        elif code in (0x6C, 0x74):  # LIST, TUPLE
            items = self._above_mark()
            stack.append(self._object(items if code == 0x6C else tuple(items)))
        elif code == 0x64:  # DICT
            items = self._above_mark()
            stack.append(self._object(_set_items({}, items)))
        elif code in (0x65, 0x61):  # APPENDS, APPEND
            items = self._above_mark() if code == 0x65 else [stack.pop()]
            _require(stack[-1], list).extend(items)
        elif code in (0x75, 0x73):  # SETITEMS, SETITEM
            items = self._above_mark() if code == 0x75 else [stack.pop(-2), stack.pop()]
            _set_items(_require(stack[-1], dict), items)
        elif code == 0x90:  # ADDITEMS
            items = self._above_mark()
            _require(stack[-1], set).update(map(require_key, items))
        elif code == 0x67:  # GET
            stack.append(self.memo[int(self._line())])
        elif code == 0x70:  # PUT
            self._put(int(self._line()), step)
        elif code in (0x80, 0x95):  # PROTO, FRAME
            self._number(BYTE if code == 0x80 else LONG)
        else:
            self._step_to_object(code)

    def _step_to_object(self, code: int) -> None:
        """Take a step that names, calls or fills something other than a plain value."""
        stack = self.stack
        if code in (0x63, 0x93):  # GLOBAL, STACK_GLOBAL
            module, name = (self._line().decode(), self._line().decode()) if code == 0x63 else stack[-2:]
            del stack[len(stack) - 2 * (code == 0x93) :]
            if self.find is None:
                raise UnpicklingError(f"it names {module}.{name}, which is not plain data")
            value = self.find(_require(module, str), _require(name, str))
            stack.append(_Constructor(value) if callable(value) else value)
        elif code in (0x52, 0x81):  # REDUCE, NEWOBJ
            arguments, constructor = _require(stack.pop(), tuple), _require(stack.pop(), _Constructor)
            self.calls = _below(MAX_CALLS, self.calls + 1, "objects")
            stack.append(constructor.build(*arguments))
        elif code == 0x62:  # BUILD: the attributes of a dictionary say nothing about its items
            state = _require(stack.pop(), dict)
            if type(stack[-1]) is not dict:
                _require(stack[-1], Inert).state = state
        elif code == 0x51 and self.load_storage:  # BINPERSID
            stack.append(self.load_storage(stack.pop()))
        else:
            raise UnpicklingError(f"its opcode {chr(code)!r} makes no plain data")

    def _read_window(self) -> None:
        """Read on, so that the buffer holds a whole step, or the end of the stream."""
        more = self.stream.read(WINDOW)
        self.buffer, self.position = self.buffer[self.position :] + more, 0
        if not self.buffer:
            raise EOFError("it ends early")
        self.refill = max(len(self.buffer) - 2 * VALUE, 1) if more else len(self.buffer)

    def _number(self, form: Struct):
        (number,) = form.unpack_from(self.buffer, self.position)
        self.position += form.size
        return number

    def _text(self, form: Struct) -> str:
        """Do what `_value`, `_take` and `_number` would, in one call: most steps of the phrases are texts."""
        (size,) = form.unpack_from(self.buffer, self.position)
        start = self.position + form.size
        self.position = start + size
        part = self.buffer[start : self.position]
        self.values += 1
        if len(part) != size or size > VALUE or self.values > self.max_values:
            raise UnpicklingError(f"it ends early, or has a text of {size:,} bytes, or over {self.max_values:,} values")
        return part.decode()

    def _take(self, size: int) -> bytes:
        part = self.buffer[self.position : self.position + size]
        if len(part) != size or size > VALUE:
            raise EOFError(f"it ends early, or has a value of {size:,} bytes")
        self.position += size
        return part

    def _line(self) -> bytes:
        end = self.buffer.index(b"\n", self.position, self.position + VALUE)
        line, self.position = self.buffer[self.position : end], end + 1
        return line

    def _above_mark(self) -> list:
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def _put(self, index: int, step: int) -> None:
        """Remember the top of the stack. A pickler counts what it remembers, so no index is above the steps."""
        _below(step, index, "places to remember")
        self.memo.extend([None] * (index + 1 - len(self.memo)))
        self.memo[index] = self.stack[-1]

    def _value(self, value: object) -> object:
        self.values += 1
        if self.values > self.max_values:
            raise UnpicklingError(f"it has more than {self.max_values:,} values")
        return value

    def _object(self, value: object) -> object:
        self.objects = _below(MAX_OBJECTS, self.objects + 1, "lists and dictionaries")
        return value


def _below(limit: int, number: int, what: str) -> int:
    if number > limit:
        raise UnpicklingError(f"it has more than {limit:,} {what}")
    return number


def _require(value: object, kind: type):
    if type(value) is not kind:
        raise UnpicklingError(f"it has a {type(value).__name__} in the place of a {kind.__name__}")
    return value


def _require_text(text: str) -> str:
    text.encode()
    return text


def _set_items(target: dict, items: list) -> dict:
    if len(items) % 2:
        raise UnpicklingError("it has a key without a value")
    target.update(zip(map(require_key, items[::2]), items[1::2], strict=True))
    return target
