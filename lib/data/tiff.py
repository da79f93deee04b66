"""The competition's TIFF files: one 96 x 96 RGB tile each, read fast where the header allows it.

A competition tile is an uncompressed little-endian TIFF of 27,935 bytes whose single strip of 27,648 bytes starts at
byte 287. `decode_tile` reads such a file by its header; anything else a TIFF may be (another byte order, compression,
several strips) goes through Pillow, which takes tens of times as long (benchmarks/tiff_decoding.py).
"""

import io
import struct

import numpy as np

TILE_SIZE = 96  # pixels a side
TILE_SHAPE = (TILE_SIZE, TILE_SIZE, 3)  # H, W, C
TILE_BYTES = TILE_SIZE * TILE_SIZE * 3  # 27,648

_STRIP_AT = 287
_BITS_AT, _DESCRIPTION_AT, _SOFTWARE_AT, _DATETIME_AT = 194, 200, 255, 267
_DESCRIPTION = b'{"shape": [96, 96, 3]}\0'
_SOFTWARE = b"tifffile.py\0"
_DATETIME = b"2018:11:15 17:21:17\0"
_SHORT, _LONG, _ASCII = 3, 4, 2

# What an entry of the image file directory must say for the strip to be the pixels (TIFF 6.0, sections 2 to 6).
_REQUIRED = {256: TILE_SIZE, 257: TILE_SIZE, 259: 1, 262: 2, 277: 3, 279: TILE_BYTES}
_HARMLESS = {254, 258, 270, 273, 278, 284, 305, 306, 339}
_MEANING_IF_PRESENT = {254: 0, 284: 1, 339: 1}  # a full image, interleaved, unsigned


class TileError(ValueError):
    """A file is not a 96 x 96 RGB tile; the message says what it is instead, without the file's name."""


def _header() -> bytes:
    tags = [
        (254, _LONG, 1, 0),
        (256, _LONG, 1, TILE_SIZE),
        (257, _LONG, 1, TILE_SIZE),
        (258, _SHORT, 3, _BITS_AT),
        (259, _SHORT, 1, 1),
        (262, _SHORT, 1, 2),
        (270, _ASCII, len(_DESCRIPTION), _DESCRIPTION_AT),
        (273, _LONG, 1, _STRIP_AT),
        (277, _SHORT, 1, 3),
        (278, _LONG, 1, TILE_SIZE),
        (279, _LONG, 1, TILE_BYTES),
        (284, _SHORT, 1, 1),
        (305, _ASCII, len(_SOFTWARE), _SOFTWARE_AT),
        (306, _ASCII, len(_DATETIME), _DATETIME_AT),
        (339, _SHORT, 1, 1),
    ]
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    head += b"".join(struct.pack("<HHII", *tag) for tag in tags) + struct.pack("<I", 0)
    body = bytearray(head.ljust(_STRIP_AT, b"\0"))
    body[_BITS_AT : _BITS_AT + 6] = struct.pack("<HHH", 8, 8, 8)
    for at, text in (
        (_DESCRIPTION_AT, _DESCRIPTION),
        (_SOFTWARE_AT, _SOFTWARE),
        (_DATETIME_AT, _DATETIME),
    ):
        body[at : at + len(text)] = text
    return bytes(body)


HEADER = _header()  # of every competition tile, 287 bytes; the pixels follow


def encode_tile(pixels: np.ndarray) -> bytes:
    """Write a tile as the competition's files are.

    Args:
        pixels: (96, 96, 3) uint8, RGB.

    Returns:
        27,935 bytes: the header and the pixels, row by row.

    Raises:
        TileError: the array has another shape or type.
    """
    if pixels.shape != TILE_SHAPE or pixels.dtype != np.uint8:
        raise TileError(f"an array of shape {pixels.shape} and type {pixels.dtype}, not (96, 96, 3) uint8")
    return HEADER + np.ascontiguousarray(pixels).tobytes()


def _strip_offset(content: bytes) -> int | None:
    """Where the one uncompressed strip starts, or None when the file is laid out in another way."""
    if content.startswith(HEADER):
        return _STRIP_AT
    if len(content) < 8 or content[:4] != b"II*\0":
        return None
    (directory,) = struct.unpack_from("<I", content, 4)
    if directory + 2 > len(content):
        return None
    (count,) = struct.unpack_from("<H", content, directory)
    end = directory + 2 + 12 * count
    if end + 4 > len(content) or struct.unpack_from("<I", content, end) != (
        0,
    ):  # a second page: leave it to Pillow
        return None
    tags: dict[int, int] = {}
    for at in range(directory + 2, end, 12):
        tag, kind, number, value = struct.unpack_from("<HHII", content, at)
        if tag not in _HARMLESS and tag not in _REQUIRED:
            if tag in (282, 283, 296):  # resolution: does not touch the pixels
                continue
            return None
        if tag == 258:
            if kind != _SHORT or number != 3 or value + 6 > len(content):
                return None
            if struct.unpack_from("<HHH", content, value) != (8, 8, 8):
                return None
        elif number == 1:
            tags[tag] = value & 0xFFFF if kind == _SHORT else value
        elif tag == 339:  # sample format, one value a channel, stored elsewhere
            if (
                kind != _SHORT
                or value + 6 > len(content)
                or struct.unpack_from("<HHH", content, value) != (1, 1, 1)
            ):
                return None
        elif tag in _REQUIRED or tag == 273:
            return None
    if any(tags.get(tag) != value for tag, value in _REQUIRED.items()) or 273 not in tags:
        return None
    if any(tags.get(tag, value) != value for tag, value in _MEANING_IF_PRESENT.items()):
        return None
    return tags[273]


def decode_tile(content: bytes) -> np.ndarray:
    """Read one tile.

    Args:
        content: the whole file.

    Returns:
        (96, 96, 3) uint8, RGB.

    Raises:
        TileError: it is empty, cut short, not a TIFF, cannot be decoded, or is not 96 x 96 RGB of 8 bits.
    """
    if not content:
        raise TileError("the file is empty")
    if content[:4] not in (b"II*\0", b"MM\0*"):
        raise TileError(f"not a TIFF (it starts with {content[:8]!r})")
    offset = _strip_offset(content)
    if offset is not None:
        if offset + TILE_BYTES > len(content):
            raise TileError(f"cut short: {len(content):,} bytes, {offset + TILE_BYTES:,} expected")
        return np.frombuffer(content, dtype=np.uint8, count=TILE_BYTES, offset=offset).reshape(TILE_SHAPE)
    return _decode_with_pillow(content)


def _decode_with_pillow(content: bytes) -> np.ndarray:
    """Not OpenCV: its 5.0 returns a black tile for a compression it does not know, and garbage for damaged LZW (2026-11-23)."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content), formats=("TIFF",)) as image:
            bits = image.tag_v2.get(258, (1,))  # type: ignore[attr-defined]
            mode = "RGB" if image.mode == "YCbCr" else image.mode  # as JPEG inside a TIFF is stored
            if image.size != (
                TILE_SIZE,
                TILE_SIZE,
            ):  # before anything of a wrong, perhaps huge, size is decoded
                raise TileError(
                    f"an image of {image.height} x {image.width} x {len(image.getbands())}, not 96 x 96 x 3 uint8"
                )
            pixels = np.array(image if mode == image.mode else image.convert("RGB"))
    except TileError:
        raise
    except (
        UnidentifiedImageError,
        Image.DecompressionBombError,
        OSError,
        ValueError,
        TypeError,
        SyntaxError,
        KeyError,
        IndexError,
        OverflowError,
        MemoryError,
        ZeroDivisionError,
        struct.error,
    ) as error:  # Pillow lets through what its parsers stumble over
        text = "Pillow cannot decode it: cut short, damaged, or a compression it does not know"
        raise TileError(f"{text} ({type(error).__name__})") from error
    if mode != "RGB" or pixels.shape != TILE_SHAPE or set(bits) != {8}:
        shape = " x ".join(str(side) for side in pixels.shape)
        raise TileError(f"an image of {shape}, mode {mode}, {max(bits)} bits, not 96 x 96 x 3 uint8")
    return pixels
