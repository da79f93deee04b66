"""Tiles round-trip through every TIFF layout; anything else raises TileError and no other error."""

import hashlib
import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from lib.data.tiff import TILE_BYTES, TILE_SHAPE, TileError, decode_tile, encode_tile

tiles = arrays.arrays(np.uint8, TILE_SHAPE, elements=st.integers(0, 255), fill=st.integers(0, 255))


def _write_tiff(
    pixels: np.ndarray,
    *,
    order: str = "<",
    strips: int = 1,
    extra: tuple[tuple[int, int], ...] = (),
    trailing: bytes = b"",
) -> bytes:
    """An uncompressed TIFF in either byte order, in one or several strips, pixels before the directory."""
    height, width = pixels.shape[:2]
    rows = height // strips
    size = rows * width * 3
    body = bytearray(b"\0" * 8 + pixels.tobytes())
    bits_at = len(body)
    body += struct.pack(f"{order}3H", 8, 8, 8)
    offsets_at = len(body)
    body += struct.pack(f"{order}{strips}I", *(8 + size * at for at in range(strips)))
    counts_at = len(body)
    body += struct.pack(f"{order}{strips}I", *[size] * strips)
    tags: list[tuple[int, int, int, int]] = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 3, bits_at),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, strips, 8 if strips == 1 else offsets_at),
        (277, 3, 1, 3),
        (278, 4, 1, rows),
        (279, 4, strips, size if strips == 1 else counts_at),
        *((tag, 3, 1, value) for tag, value in extra),
    ]
    directory = len(body)
    body += struct.pack(f"{order}H", len(tags))
    for tag, kind, number, value in sorted(tags):
        short = kind == 3 and number == 1  # a short lies left-justified in its four bytes
        packed = struct.pack(f"{order}HH", value, 0) if short else struct.pack(f"{order}I", value)
        body += struct.pack(f"{order}HHI", tag, kind, number) + packed
    body += struct.pack(f"{order}I", 0)
    body[:8] = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", directory)
    return bytes(body) + trailing


def _saved(pixels: np.ndarray, **options: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="TIFF", **options)
    return stream.getvalue()


@settings(max_examples=30, deadline=None)
@given(tiles)
def test_a_tile_comes_back_as_it_went_in(pixels: np.ndarray) -> None:
    content = encode_tile(pixels)
    assert len(content) == 27_935 and content[287:] == pixels.tobytes()
    decoded = decode_tile(content)
    assert decoded.dtype == np.uint8 and np.array_equal(decoded, pixels)


def test_other_programs_read_what_is_written(random_tiles: Callable[..., np.ndarray]) -> None:
    import cv2

    pixels = random_tiles(1)[0]
    content = encode_tile(pixels)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), pixels)
    assert np.array_equal(
        cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)[:, :, ::-1], pixels
    )


def test_real_files_are_written_again_byte_for_byte(real_tiles: Path) -> None:
    for file in sorted((real_tiles / "test").iterdir())[:20]:
        content = file.read_bytes()
        pixels = decode_tile(content)
        assert hashlib.sha1(pixels.tobytes()).hexdigest() == file.stem
        assert encode_tile(pixels) == content


def test_tifffile_which_wrote_the_competitions_tiles_reads_the_same(tissue: list[Path]) -> None:
    for path in tissue:
        assert np.array_equal(decode_tile(path.read_bytes()), tifffile.imread(path))


@pytest.mark.parametrize(
    "write",
    [
        lambda pixels: _saved(pixels),
        lambda pixels: _saved(pixels, compression="tiff_lzw"),
        lambda pixels: _saved(pixels, compression="tiff_deflate"),
        lambda pixels: _saved(pixels, compression="packbits"),
        lambda pixels: _write_tiff(pixels),
        lambda pixels: _write_tiff(pixels, order=">"),
        lambda pixels: _write_tiff(pixels, strips=4),
        lambda pixels: _write_tiff(pixels, order=">", strips=96),
        lambda pixels: _write_tiff(pixels, extra=((284, 1), (339, 1), (296, 2))),
        lambda pixels: _write_tiff(pixels, trailing=b"more" * 50),
    ],
    ids=["plain", "lzw", "deflate", "packbits", "little", "big", "strips", "big strips", "tags", "trailing"],
)
def test_every_way_to_lay_out_a_tile_gives_its_pixels(
    write: Callable[[np.ndarray], bytes], random_tiles: Callable[..., np.ndarray]
) -> None:
    for pixels in random_tiles(3, seed=1):
        assert np.array_equal(decode_tile(write(pixels)), pixels)


def test_an_inverted_or_planar_file_is_not_read_as_if_it_were_plain(
    random_tiles: Callable[..., np.ndarray],
) -> None:
    pixels = random_tiles(1)[0]
    for tags in (
        ((284, 2),),
        ((339, 2),),
        ((254, 1),),
        ((317, 2),),
    ):  # planar, signed, a thumbnail, a predictor
        try:
            decoded = decode_tile(_write_tiff(pixels, extra=tags))
        except TileError:
            continue
        if tags == ((284, 2),):  # three planes, read as such
            assert not np.array_equal(decoded, pixels)


@settings(max_examples=60, deadline=None)
@given(length=st.integers(0, 27_934), seed=st.integers(0, 3))
def test_any_cut_is_an_error(length: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, TILE_SHAPE, dtype=np.uint8)
    with pytest.raises(TileError):
        decode_tile(encode_tile(pixels)[:length])


@pytest.mark.parametrize(
    "write",
    [
        lambda pixels: _saved(pixels, compression="tiff_lzw"),
        lambda pixels: _write_tiff(pixels, order=">"),
        lambda pixels: _write_tiff(pixels, strips=4),
    ],
    ids=["lzw", "big", "strips"],
)
def test_a_cut_is_an_error_also_in_other_layouts(
    write: Callable[[np.ndarray], bytes], random_tiles: Callable[..., np.ndarray]
) -> None:
    content = write(random_tiles(1)[0])
    for length in range(0, len(content), 997):
        with pytest.raises(TileError):
            decode_tile(content[:length])


@settings(max_examples=80, deadline=None)
@given(
    lead=st.sampled_from([b"", b"II*\0", b"MM\0*", b"II*\0\x08\0\0\0", b"\x89PNG\r\n\x1a\n"]),
    content=st.binary(max_size=600),
)
def test_random_bytes_are_a_tile_error_and_no_other(lead: bytes, content: bytes) -> None:
    with pytest.raises(TileError):
        decode_tile(lead + content)


_WHOLE = encode_tile(np.random.default_rng(0).integers(0, 256, TILE_SHAPE, dtype=np.uint8))


@settings(max_examples=80, deadline=None)
@given(at=st.integers(0, 286), value=st.integers(0, 255))
def test_a_damaged_header_gives_a_tile_or_a_tile_error(at: int, value: int) -> None:
    damaged = bytearray(_WHOLE)
    damaged[at] = value
    try:
        decoded = decode_tile(bytes(damaged))
    except TileError:
        return
    assert decoded.shape == TILE_SHAPE and decoded.dtype == np.uint8


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (np.zeros((95, 96, 3), np.uint8), "95 x 96 x 3"),
        (np.zeros((96, 96), np.uint8), "96 x 96, mode L, 8 bits"),
        (np.zeros((96, 96, 4), np.uint8), "96 x 96 x 4, mode RGBA"),
        (np.zeros((96, 96), np.uint16), "16 bits"),
        (np.zeros((192, 192, 3), np.uint8), "192 x 192 x 3"),
    ],
    ids=["short", "grey", "alpha", "16 bits", "large"],
)
def test_another_image_is_refused_with_its_description(pixels: np.ndarray, said: str) -> None:
    with pytest.raises(TileError, match=said):
        decode_tile(_saved(pixels))


def test_a_file_that_is_not_a_tiff_is_refused() -> None:
    with pytest.raises(TileError, match="empty"):
        decode_tile(b"")
    with pytest.raises(TileError, match="not a TIFF.*<html>"):
        decode_tile(b"<html>error 403</html>")
    with pytest.raises(TileError, match="not a TIFF"):
        stream = io.BytesIO()
        Image.fromarray(np.zeros(TILE_SHAPE, np.uint8)).save(stream, format="PNG")
        decode_tile(stream.getvalue())


@pytest.mark.parametrize(
    "pixels", [np.zeros((96, 96, 3)), np.zeros((3, 96, 96), np.uint8), np.zeros(TILE_BYTES, np.uint8)]
)
def test_only_tiles_are_written(pixels: np.ndarray) -> None:
    with pytest.raises(TileError, match="not .96, 96, 3. uint8"):
        encode_tile(pixels)


def test_a_view_of_an_array_is_written_in_the_order_of_its_pixels(
    random_tiles: Callable[..., np.ndarray],
) -> None:
    pixels = random_tiles(1)[0].transpose(1, 0, 2)[::-1]
    assert np.array_equal(decode_tile(encode_tile(pixels)), pixels)


def test_a_bigtiff_and_an_opaque_alpha_are_read(random_tiles: Callable[..., np.ndarray]) -> None:
    [pixels] = random_tiles(1)
    stream = io.BytesIO()
    tifffile.imwrite(stream, pixels, bigtiff=True, photometric="rgb", compression="zlib")
    assert stream.getvalue()[:4] == b"II+\0"
    assert np.array_equal(decode_tile(stream.getvalue()), pixels)
    opaque = np.dstack([pixels, np.full((96, 96), 255, np.uint8)])
    assert np.array_equal(decode_tile(_saved(opaque)), pixels)
    opaque[5, 5, 3] = 254
    with pytest.raises(TileError, match="mode RGBA"):
        decode_tile(_saved(opaque))


@pytest.mark.parametrize(
    ("kind", "said"),
    [(np.float32, "32-bit floating point"), (np.int8, "8-bit signed")],
)
def test_values_of_another_type_are_named(kind: type, said: str) -> None:
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.ones(TILE_SHAPE, kind), photometric="rgb", compression="zlib")
    with pytest.raises(TileError, match=f"values are {said}.*not unsigned integers of 8 bits"):
        decode_tile(stream.getvalue())
