"""TensorBoard event files of a training, written without the package tensorboard.

`torch.utils.tensorboard` would import that package, which this project does not require, and on Kaggle's
image TensorFlow with it. A file of scalars needs little: records of a length, its checksum, a message of
protocol buffers and its checksum (tensorflow/core/lib/io/record_writer.h, tensorflow/core/util/event.proto).
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

TAGS = ("loss", "learning_rate", "validation_auc")  # of the lines of a history
_VERSION = b"brain.Event:2"
_POLYNOMIAL = 0x82F63B78  # CRC-32C (Castagnoli), bits reversed


def event_file(history: Iterable[Mapping[str, Any]], *, series: str) -> bytes:
    """A whole event file.

    Args:
        history: one line per epoch, with `epoch` from 1 and what is known of `TAGS`.
        series: name of the curve behind each tag.
    """
    return _record(_event(0, _text(3, _VERSION))) + event_records(history, series=series)


def event_records(history: Iterable[Mapping[str, Any]], *, series: str) -> bytes:
    """The records of some epochs, to append to an event file.

    The time of an event is its epoch, in place of a clock: the same training gives the same bytes.
    """
    records = []
    for line in history:
        values = [
            _text(1, _text(1, f"{tag}/{series}".encode()) + b"\x15" + struct.pack("<f", line[tag]))
            for tag in TAGS
            if tag in line
        ]
        epoch = int(line["epoch"])
        records.append(_record(_event(epoch, b"\x10" + _varint(epoch) + _text(5, b"".join(values)))))
    return b"".join(records)


def _event(time: float, content: bytes) -> bytes:
    return b"\x09" + struct.pack("<d", time) + content  # field 1, a double: wall_time


def _text(field: int, content: bytes) -> bytes:
    """A field of bytes, text or a message: its number and wire type 2, its length, its content."""
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the highest bit of a byte tells that another one follows."""
    content = bytearray()
    while value > 0x7F:
        content.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*content, value])


def _record(content: bytes) -> bytes:
    length = struct.pack("<Q", len(content))
    return length + struct.pack("<I", _masked(length)) + content + struct.pack("<I", _masked(content))


def _masked(content: bytes) -> int:
    """The checksum of a record, rotated and shifted as the format asks for."""
    checksum = crc32c(content)
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(content: bytes) -> int:
    """CRC-32C (Castagnoli, RFC 3720 appendix B.4)."""
    checksum = 0xFFFFFFFF
    for byte in content:
        checksum = _TABLE[(checksum ^ byte) & 0xFF] ^ checksum >> 8
    return checksum ^ 0xFFFFFFFF


def _table() -> Sequence[int]:
    entries = []
    for entry in range(256):
        for _ in range(8):
            entry = entry >> 1 ^ (_POLYNOMIAL if entry & 1 else 0)
        entries.append(entry)
    return entries


_TABLE = _table()
