"""Mutations of files: what a broken download, a careless edit or a person who means harm makes of them.

Each function takes a random generator and the content of a file, and returns other content.
"""

import io
import json
import pickle
import struct
import zipfile
import zlib
from random import Random

import torch

ODD = (
    *(None, True, False, 0, -1, 7, 1.5, 10**30, 2**63, -(2**63), float("nan"), float("inf"), 1e300, 1e-300),
    *(
        "",
        " ",
        "x",
        "007",
        "\ud800",
        "a\x1b[2J\nb",
        "\0",
        "../../x.png",
        "/etc/passwd",
        "x" * 5000,
        "$",
        "*",
        "é",
        "nan",
    ),
    *([], {}, [[]], [None], [0, 0], {"": ""}, {"id": 1}, [[[[[[]]]]]]),
)
SPLICES = (
    *(b"\0", b"\xff\xfe", b"[" * 3000, b"{" * 3000, b'"', b"\\", b"\n", b",", b"9" * 6000, b"NaN", b"-Infinity"),
    *(b"\xed\xa0\x80", b"\x1b[2J", b"\r\n", b"\xef\xbb\xbf", b"&a", b"*a", b"!!python/object:x ", b"? [1]\n: 2\n"),
)
OPCODES = (
    *(
        b"r\x00\xa3\xe1\x11",
        b"\x94" * 200,
        b"]" * 200,
        b"\x85" * 3000,
        b"(" * 300,
        b"h\x00",
        b"2",
        b"0",
        b"R",
        b"b",
        b"\x81",
    ),
    *(
        b"cos\nsystem\n",
        b"cbuiltins\neval\n",
        b"ctorch\nFloatStorage\n",
        b"\x8a\xff",
        b"\x8d" + b"\xff" * 8,
        b"Q",
        b"e",
    ),
    *(b"cbuiltins\nset\n", b"ccollections\nOrderedDict\n", b"I9\n", b"F1e999\n", b"V\\ud800\n", b"}Ns", b"."),
    *(b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_parameter\n", b"ctorch.nn.modules\nX\n)\x81"),
)
DTYPES = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn)


def mutate_bytes(random: Random, content: bytes) -> bytes:
    """Cut, empty, flip, repeat, remove, overwrite or splice bytes."""
    at, length = random.randrange(len(content) + 1), random.choice((1, 1, 4, 50, 1000))
    kind = random.randrange(9)
    if kind == 0:
        return content[:at]
    if kind == 1:
        return random.choice((b"", content[: random.randrange(12)], content[at:], content + content))
    if kind == 2:
        return content[:at] + content[at + length :]
    if kind == 3:
        return content[:at] + content[at : at + length] * 3 + content[at + length :]
    if kind == 4:
        return content[:at] + b"\0" * length + content[at + length :]
    if kind == 5:
        return content[:at] + random.choice(SPLICES) + content[at:]
    if kind == 6:
        return content[:at] + random.choice(OPCODES) + content[at:]
    flipped = bytearray(content)
    for _ in range(random.choice((1, 3, 30))):
        if flipped:
            flipped[random.randrange(len(flipped))] ^= 1 << random.randrange(8)
    return bytes(flipped)


def mutate_value(random: Random, value: object) -> object:
    """Replace, remove, repeat, swap or wrap something within a value of lists and dictionaries."""
    for _ in range(random.choice((1, 1, 1, 2, 5))):
        value = _mutate_part(random, value)
    return value


def _mutate_part(random: Random, value: object) -> object:
    if isinstance(value, list | dict) and value and random.random() < 0.9:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key, other = random.choice(keys), random.choice(keys)
        kind = random.randrange(12)
        copy = value.copy()
        if kind == 0:
            del copy[key]
        elif kind == 1:
            copy[key] = random.choice(ODD)
        elif kind == 2:
            copy[key] = value[other]
        elif kind == 3 and isinstance(copy, list):
            copy += [value[key]] * random.choice((1, 10))
        elif kind == 3:
            copy[random.choice(("id", "../x", "", "\x1b", "9" * 30, str(other) + " "))] = value[key]
        elif kind == 4:
            copy[key] = [value[key]]
        else:
            copy[key] = _mutate_part(random, value[key])
        return copy
    return random.choice((*ODD, str(value), [value], {"x": value}))


def mutate_json(random: Random, content: bytes) -> bytes:
    """Mutate the values of a JSON file, or its bytes."""
    if random.random() < 0.25:
        return mutate_bytes(random, content)
    return json.dumps(mutate_value(random, json.loads(content))).encode()


def mutate_lines(random: Random, content: bytes) -> bytes:
    """Mutate the cells or values of a file of lines, or its bytes."""
    if random.random() < 0.3:
        return mutate_bytes(random, content)
    lines = content.decode().splitlines(keepends=True)
    for _ in range(random.choice((1, 1, 3))):
        at = random.randrange(len(lines))
        separator = "," if "," in lines[at] else ": "
        cells = lines[at].rstrip("\n").split(separator)
        value = random.choice(
            (*map(str, ODD), ".nan", ".inf", "!!timestamp x", "!!binary x", "[" * 3000, "[a, a]", "2020-99-99")
        )
        cells[random.randrange(len(cells))] = random.choice((value, "", repr(value), f'"{value}"'))
        lines[at] = separator.join(cells) + "\n"
        if random.random() < 0.3:
            lines.insert(random.randrange(len(lines)), random.choice(lines))
    return "".join(lines).encode("utf-8", "surrogatepass")


def mutate_pickle(random: Random, content: bytes) -> bytes:
    """Mutate the values of a pickle of plain data, or its bytes."""
    if random.random() < 0.5:
        return mutate_bytes(random, content)
    try:
        return pickle.dumps(mutate_value(random, pickle.loads(content)), random.randrange(6))
    except UnicodeEncodeError:  # protocol 0 to 3 cannot write half a surrogate pair
        return mutate_bytes(random, content)


def mutate_archive(random: Random, content: bytes) -> bytes:
    """Mutate a part of a zip archive and write it again, or mutate the archive's bytes."""
    if random.random() < 0.3:
        return mutate_bytes(random, content)
    source, target = zipfile.ZipFile(io.BytesIO(content)), io.BytesIO()
    names = source.namelist()
    chosen = random.choice([name for name in names if name.endswith(".pkl")] * 5 + names)
    method = random.choice((zipfile.ZIP_STORED,) * 5 + (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    with zipfile.ZipFile(target, "w", method) as archive:
        for name in names:
            part = source.read(name)
            if name == chosen:
                part = random.choice((mutate_bytes(random, part), mutate_pickle_bytes(random, part)))
            if name != chosen or random.random() < 0.95:
                archive.writestr(name, part)
    return target.getvalue()


def mutate_pickle_bytes(random: Random, content: bytes) -> bytes:
    """Splice opcodes into a pickle."""
    for _ in range(random.choice((1, 1, 3))):
        at = random.randrange(len(content) + 1)
        content = content[:at] + random.choice(OPCODES) + content[at + random.choice((0, 0, 1, 5)) :]
    return content


def mutate_tensors(random: Random, content: bytes) -> bytes:
    """Mutate what torch saved: the types, shapes and numbers of tensors, the containers, or the archive."""
    if random.random() < 0.6:
        return mutate_archive(random, content)
    value = torch.load(io.BytesIO(content), weights_only=False)
    target = io.BytesIO()
    torch.save(_mutate_tensor(random, value), target)
    return target.getvalue()


def _mutate_tensor(random: Random, value: object) -> object:
    if isinstance(value, dict) and value and random.random() < 0.9:
        key = random.choice(list(value))
        copy = dict(value)
        if random.random() < 0.1:
            del copy[key]
        else:
            copy[key] = _mutate_tensor(random, value[key])
        return copy
    if not isinstance(value, torch.Tensor):
        return random.choice((*ODD[:12], torch.zeros(2)))
    kind = random.randrange(8)
    if kind == 0:
        return value.to(random.choice(DTYPES))
    if kind == 1:
        return value.to("meta")
    if kind == 2:
        return random.choice((value.to_sparse(), value.reshape(-1), value.T, value[:1], value[..., None]))
    if kind == 3:
        return torch.zeros(1).expand(value.shape)
    if kind == 4:
        return value.double() * random.choice((1, 1e300, float("nan"), float("inf")))
    if kind == 5:
        return random.choice((None, 5, "x", [value], {"x": value}))
    changed = value.clone()
    changed.view(-1)[random.randrange(changed.numel())] = random.choice((float("nan"), float("inf"), -1e38, 0.0))
    return changed


def mutate_image(random: Random, content: bytes) -> bytes:
    """Mutate the bytes of a picture, or the size in the header of a PNG."""
    if content.startswith(b"\x89PNG") and random.random() < 0.4:
        sides = [random.choice((0, 1, 7, 500, 9_999, 60_000, 2**31 - 1)) for _ in range(2)]
        header = (
            b"IHDR" + struct.pack(">II", *sides) + bytes([random.choice((1, 8, 8, 16)), random.randrange(7), 0, 0, 0])
        )
        return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]
    if random.random() < 0.1:
        return random.choice(
            (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage", b"<svg/>", b"P6 9 9 255\n", b"BM")
        )
    return mutate_bytes(random, content)
