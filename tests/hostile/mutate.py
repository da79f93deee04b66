"""Mutations of valid files, with one seeded generator for each numbered case."""

import copy
import json
import random
import struct
from typing import Any

NUMBERS = (
    0,
    1,
    -1,
    2,
    7,
    255,
    256,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**53,
    2**63,
    2**64,
    10**9,
    -(10**9),
    10**30,
    10**400,
)
ESCAPES = (
    "../canary",
    "../escaped",
    "..",
    "a/../../escaped",
    "/tmp/hcd-hostile-escape",
    "C:\\escaped",
    "..\\escaped",
    "a\0b",
    ".",
    "",
)
TEXTS = (
    *ESCAPES,
    "\ufeff",
    "\0",
    "x" * 5000,
    "NaN",
    "inf",
    "-1",
    "1e999",
    "é\u2028",
    "{}",
    "true",
    " ",
    "id,label",
    "\ud800",
)
TOKENS = (
    b"\0", b"\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"\r\n", b"\r", b"\n\n",
    b",", b",,,,", b'"', b"'", b"\\", b"=", b"[", b"]", b"{", b"}",
    b"-1", b"1e999", b"999999999999999999999", b"nan", b"null", b"true",
    b"../canary", b"\xc3\x28", b"\xed\xa0\x80", b"[" * 3000,
    b"{\"a\":" * 3000,
    b"9" * 5000, b"x" * 70000, b"\t", b"\x1b[2J", b"#",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    [],
    {},
    [[]],
    [{}],
    {"a": 1},
    *NUMBERS,
    *TEXTS,
)


def nested(depth: int) -> Any:
    """A list in a list, so deep."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def mutate_bytes(content: bytes, generator: random.Random) -> bytes:
    """One to four changes: bits, bytes, lengths, order, line ends, numbers as headers hold them."""
    data = bytearray(content)
    for _ in range(generator.choice((1, 1, 1, 2, 4))):
        at = (
            generator.randrange(len(data) + 1)
            if generator.random() < 0.5
            else generator.randrange(min(len(data), 400) + 1)
        )
        end = min(len(data), at + generator.choice((1, 2, 4, 8, 32, 1000)))
        what = generator.randrange(11)
        if what == 0 and at < len(data):
            data[at] ^= 1 << generator.randrange(8)
        elif what == 1 and at < len(data):
            data[at] = generator.randrange(256)
        elif what == 2:
            del data[at:]
        elif what == 3:
            del data[at:end]
        elif what == 4:
            data[at:at] = data[at:end] * generator.choice((1, 2, 50))
        elif what == 5:
            data[at:at] = generator.choice(TOKENS)
        elif what == 6:
            data += generator.choice((generator.randbytes(50), b"\0" * 5000, content))
        elif what == 7:
            kind = generator.choice(("<H", ">H", "<I", ">I", "<Q", ">Q"))
            size = struct.calcsize(kind)
            number = generator.choice((*NUMBERS, len(data), len(data) + 1, len(data) - 1)) % (1 << 8 * size)
            data[at : at + size] = struct.pack(kind, number)
        elif what == 8:
            lines = bytes(data).split(b"\n")
            one, other = generator.randrange(len(lines)), generator.randrange(len(lines))
            lines[one], lines[other] = lines[other], lines[one]
            if generator.random() < 0.5:
                lines.insert(one, lines[other])
            data = bytearray(b"\n".join(lines))
        elif what == 9:
            data = bytearray(
                generator.choice(
                    (
                        b"\xef\xbb\xbf" + data,
                        bytes(data).replace(b"\n", b"\r\n"),
                        bytes(data).replace(b"\n", b"\r"),
                    )
                )
            )
        elif what == 10:
            data = bytearray(
                generator.choice(
                    (
                        b"",
                        b"\0",
                        b"{}",
                        b"[]",
                        b"null",
                        b"[" * 100_000,
                        b'{"a":' * 50_000,
                        generator.randbytes(300),
                    )
                )
            )
    return bytes(data)


def mutate_value(value: Any, generator: random.Random) -> Any:
    """A document with one to three of its values replaced, removed, renamed or added."""
    value = json.loads(json.dumps(value))
    for _ in range(generator.choice((1, 1, 2, 3))):
        places = list(_places(value))
        if not places:
            return copy.deepcopy(generator.choice(VALUES))
        holder, key = generator.choice(places)
        what = generator.randrange(7)
        if what <= 2:
            holder[key] = copy.deepcopy(generator.choice(VALUES))
        elif what == 3:
            del holder[key]
        elif what == 4 and isinstance(holder, dict):
            holder[generator.choice(TEXTS)] = holder.pop(key)
        elif what == 5:
            other, from_key = generator.choice(places)
            holder[key] = (
                json.loads(json.dumps(other[from_key]))
                if from_key in other or isinstance(other, list) and from_key < len(other)
                else 3
            )
        elif what == 6:
            holder[key] = nested(generator.choice((3, 50, 400)))
    return value


def _places(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)


def mutate_json(document: Any, generator: random.Random) -> bytes:
    """The text of a changed document; one in four has changed bytes, too."""
    text = (
        json.dumps(mutate_value(document, generator)).encode()
        if generator.random() < 0.8
        else json.dumps(document).encode()
    )
    return mutate_bytes(text, generator) if generator.random() < 0.25 else text


def mutate_toml(text: str, generator: random.Random) -> bytes:
    """Values, keys and tables changed; half have changed bytes instead."""
    if generator.random() < 0.5:
        return mutate_bytes(text.encode(), generator)
    lines = text.splitlines()
    at = generator.randrange(len(lines) + 1)
    values = (
        "0",
        "-1",
        "1e999",
        "nan",
        "-inf",
        "9" * 400,
        "1979-05-27",
        "[1, [2]]",
        "{a = 1}",
        '"\\u0000"',
        "true",
        "'../canary'",
        "[" * 3000,
        "0x" + "f" * 400,
    )
    keys = (
        "epochs",
        "backbone",
        "weights",
        "experiments",
        "pseudo_labels",
        "slide_map",
        "folds",
        "a.b.c",
        '""',
        "[table]",
        "[[x]]",
        "[a.b]",
    )
    new = (
        f"{generator.choice(keys)} = {generator.choice(values)}"
        if generator.random() < 0.8
        else generator.choice(keys)
    )
    if at < len(lines) and "=" in lines[at] and generator.random() < 0.6:
        new = f"{lines[at].split('=')[0]}= {generator.choice(values)}"
        lines[at] = new
    else:
        lines.insert(at, new)
    return "\n".join(lines).encode()


def mutate_csv(text: str, generator: random.Random) -> bytes:
    """Cells, rows and columns changed; half have changed bytes instead."""
    if generator.random() < 0.5:
        return mutate_bytes(text.encode(), generator)
    rows = [line.split(",") for line in text.splitlines()]
    for _ in range(generator.choice((1, 1, 3))):
        row = generator.choice(rows)
        what = generator.randrange(6)
        if what == 0 and row:
            row[generator.randrange(len(row))] = (
                str(generator.choice(VALUES))[:6000].encode(errors="replace").decode()
            )
        elif what == 1:
            row.append("9")
        elif what == 2 and row:
            row.pop()
        elif what == 3:
            rows.insert(generator.randrange(len(rows) + 1), list(generator.choice(rows)))
        elif what == 4:
            rows.remove(row)
            if not rows:
                return b""
        elif what == 5:
            for each in rows:
                generator.shuffle(each)
    return "\n".join(",".join(row) for row in rows).encode()


def mutate_npy(content: bytes, generator: random.Random) -> bytes:
    """An array whose header lies."""
    if generator.random() < 0.4:
        return mutate_bytes(content, generator)
    length = struct.unpack_from("<H", content, 8)[0]
    body = content[10 + length :]
    shape = [
        generator.choice((0, 1, 2, 3, 96, -1, -3, 10**9, 10**18, 2**63, 10**30))
        for _ in range(generator.choice((0, 1, 2, 4, 4, 4, 9)))
    ]
    shape = [generator.choice((10**9, 2**40, -1, 3, 2)), 96, 96, 3] if generator.random() < 0.5 else shape
    descr = generator.choice(
        (
            "'|u1'",
            "'|u1'",
            "'|u1'",
            "'|O'",
            "'<f8'",
            "'|S999999999'",
            "[('a', '|u1')]",
            "3",
            "'x'",
            "'|V0'",
            "None",
        )
    )
    fortran = generator.choice(("False", "False", "True", "1", "[]"))
    shown = generator.choice(
        (
            f"({', '.join(map(str, shape))},)",
            f"({', '.join(map(str, shape))},)",
            "3",
            "'x'",
            "(1.5, 96, 96, 3)",
            "((((1,),),),)",
            "(True, 96, 96, 3)",
        )
    )
    header = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shown}, }}"
    if generator.random() < 0.1:
        header = generator.choice(
            ("(" * 500, "{'a':" * 500, "__import__('os')", "9" * 9000, "", "\0", "-" * 9000 + "1")
        )
    text = header.encode() + b" " * generator.choice((0, 1, 40)) + b"\n"
    stated = generator.choice((len(text), len(text), len(text), 0, 65535, 10))
    version = generator.choice((b"\x01\x00", b"\x01\x00", b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x09"))
    return b"\x93NUMPY" + version + struct.pack("<H", stated % 65536) + text + body


def mutate_safetensors(content: bytes, generator: random.Random) -> bytes:
    """A header that lies about lengths, offsets, shapes, types or what it is."""
    if generator.random() < 0.3:
        return mutate_bytes(content, generator)
    (length,) = struct.unpack_from("<Q", content)
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    if "__metadata__" in header and generator.random() < 0.6:
        key = next(iter(header["__metadata__"]))
        header["__metadata__"][key] = mutate_json(json.loads(header["__metadata__"][key]), generator).decode(
            "latin-1"
        )
    else:
        header = mutate_value(header, generator)
    text = json.dumps(header).encode()
    stated = (
        len(text)
        if generator.random() < 0.8
        else generator.choice((0, 1, len(text) - 1, len(text) + 1, 10**8, 2**40, 2**63, 2**64 - 1))
    )
    return struct.pack("<Q", stated) + text + body
