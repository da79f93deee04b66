"""TIFF files of the competition: decode and encode one 96 x 96 RGB tile.

A competition tile is an uncompressed little-endian TIFF of 27,935 bytes whose single strip of 27,648 bytes
starts at byte 287. `decode_tile` reads such a file by its header. Pillow reads every other TIFF (another byte
order, compression, several strips) and takes tens of times as long (benchmarks/tiff_decoding.py).
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

# Values in the image file directory for which the strip is the pixels (TIFF 6.0, sections 2 to 6).
_REQUIRED = {256: TILE_SIZE, 257: TILE_SIZE, 259: 1, 262: 2, 277: 3, 279: TILE_BYTES}
_NOT_CHECKED = {254, 258, 270, 273, 278, 284, 305, 306, 339}
_REQUIRED_IF_PRESENT = {254: 0, 284: 1, 339: 1}  # a full image, interleaved, unsigned
_SAMPLE_KINDS = {1: "unsigned integers", 2: "signed integers", 3: "floating point"}  # tag 339


class TileError(ValueError):
    """A file is not a 96 x 96 RGB tile; the message describes the file but does not name it."""


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
    for start, text in (
        (_DESCRIPTION_AT, _DESCRIPTION),
        (_SOFTWARE_AT, _SOFTWARE),
        (_DATETIME_AT, _DATETIME),
    ):
        body[start : start + len(text)] = text
    return bytes(body)


HEADER = _header()  # of every competition tile, 287 bytes; the pixels follow


def encode_tile(pixels: np.ndarray) -> bytes:
    """Encode a tile in the layout of the competition's files.

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
    """The first byte of the single uncompressed strip; None if the file has another layout."""
    if content.startswith(HEADER):
        return _STRIP_AT
    if len(content) < 8 or content[:4] != b"II*\0":
        return None
    (directory,) = struct.unpack_from("<I", content, 4)
    if directory + 2 > len(content):
        return None
    (count,) = struct.unpack_from("<H", content, directory)
    end = directory + 2 + 12 * count
    if end + 4 > len(content):
        return None
    (second_page,) = struct.unpack_from("<I", content, end)
    if second_page:  # Pillow decides
        return None
    tags: dict[int, int] = {}
    for entry in range(directory + 2, end, 12):
        tag, kind, number, value = struct.unpack_from("<HHII", content, entry)
        if tag not in _NOT_CHECKED and tag not in _REQUIRED:
            if tag in (282, 283, 296):  # resolution: does not change the pixels
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
    if any(tags.get(tag, value) != value for tag, value in _REQUIRED_IF_PRESENT.items()):
        return None
    return tags[273]


def decode_tile(content: bytes) -> np.ndarray:
    """Decode one tile.

    Args:
        content: the whole file.

    Returns:
        (96, 96, 3) uint8, RGB.

    Raises:
        TileError: it is empty, cut short, not a TIFF, cannot be decoded, or is not 96 x 96 RGB of 8 bits.
    """
    if not content:
        raise TileError("the file is empty")
    if content[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):  # the last two: BigTIFF
        raise TileError(f"not a TIFF (it starts with {content[:8]!r})")
    offset = _strip_offset(content)
    if offset is not None:
        if offset + TILE_BYTES > len(content):
            raise TileError(f"cut short: {len(content):,} bytes, {offset + TILE_BYTES:,} expected")
        return np.frombuffer(content, dtype=np.uint8, count=TILE_BYTES, offset=offset).reshape(TILE_SHAPE)
    return _decode_with_pillow(content)


def _sample_type(content: bytes) -> str:
    """The type of the values by the first image's tags 258 and 339; empty for 8 bits unsigned or unknown."""
    order = "<" if content[:2] == b"II" else ">"
    if content[2:4] not in (b"*\0", b"\0*"):  # BigTIFF
        return ""
    values: dict[int, int] = {}
    try:
        (directory,) = struct.unpack_from(f"{order}I", content, 4)
        (number,) = struct.unpack_from(f"{order}H", content, directory)
        for entry in range(directory + 2, directory + 2 + 12 * number, 12):
            tag, kind, count = struct.unpack_from(f"{order}HHI", content, entry)
            if tag in (258, 339) and kind == _SHORT:
                place = entry + 8
                if count > 2:  # more than fit into the entry
                    (place,) = struct.unpack_from(f"{order}I", content, place)
                (values[tag],) = struct.unpack_from(f"{order}H", content, place)
    except struct.error:
        return ""
    bits, kind = values.get(258, 1), _SAMPLE_KINDS.get(values.get(339, 1), "of an unknown type")
    return "" if (bits, values.get(339, 1)) == (8, 1) else f"{bits}-bit {kind}"


def _decode_with_pillow(content: bytes) -> np.ndarray:
    """Decode a TIFF of another layout with Pillow.

    OpenCV 5.0 returns a black tile for an unknown compression and garbage for damaged LZW (2026-11-23).
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content), formats=("TIFF",)) as image:
            bits = image.tag_v2.get(258, (1,))  # type: ignore[attr-defined]
            mode = "RGB" if image.mode == "YCbCr" else image.mode  # as JPEG inside a TIFF is stored
            if image.size != (TILE_SIZE, TILE_SIZE):  # before a perhaps huge image is decoded
                shape = f"{image.height} x {image.width} x {len(image.getbands())}"
                raise TileError(f"an image of {shape}, not 96 x 96 x 3 uint8")
            pixels = np.array(image if mode == image.mode else image.convert("RGB"))
            if mode == "RGBA" and bool((pixels[..., 3] == 255).all()):  # opaque
                mode, pixels = "RGB", np.ascontiguousarray(pixels[..., :3])
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
    ) as error:  # the errors of its parsers, which Pillow does not convert
        if other := _sample_type(content):
            raise TileError(f"its values are {other}, not unsigned integers of 8 bits") from error
        text = "Pillow cannot decode it: cut short, damaged, or of an unknown compression"
        raise TileError(f"{text} ({type(error).__name__})") from error
    if mode != "RGB" or pixels.shape != TILE_SHAPE or set(bits) != {8}:
        shape = " x ".join(str(side) for side in pixels.shape)
        raise TileError(f"an image of {shape}, mode {mode}, {max(bits)} bits, not 96 x 96 x 3 uint8")
    return pixels
