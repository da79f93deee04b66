"""Pictures of a user's own, in every form in which tiles are kept, and the table of their labels."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lib.data.pictures import PicturesError, check_pictures, decode_picture, list_pictures, read_pictures
from lib.data.tiff import TileError, encode_tile
from lib.data.tile_table import TileTableError, read_tile_table


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture
def tile(random_tiles: Callable[..., np.ndarray]) -> np.ndarray:
    tile: np.ndarray = random_tiles(1)[0]
    return tile


def test_lossless_pictures_keep_every_pixel(tile: np.ndarray) -> None:
    image = Image.fromarray(tile)
    transparent_somewhere = np.dstack([tile, np.full((96, 96), 255, np.uint8)])
    for content in (
        encode_tile(tile),
        _encoded(image, "PNG"),
        _encoded(image, "TIFF", compression="tiff_lzw"),
        _encoded(Image.fromarray(transparent_somewhere), "PNG"),
        _encoded(Image.fromarray(transparent_somewhere), "TIFF"),
    ):
        pixels, changes = decode_picture(content)
        np.testing.assert_array_equal(pixels, tile)
        assert pixels.dtype == np.uint8 and not changes


def test_transparent_pixels_become_white(tile: np.ndarray) -> None:
    layers = np.dstack([tile, np.full((96, 96), 255, np.uint8)])
    layers[:10, :, 3] = 0
    layers[10:20, :, 3] = 51
    pixels, changes = decode_picture(_encoded(Image.fromarray(layers), "PNG"))
    assert changes == {"flattened"}
    assert (pixels[:10] == 255).all()
    np.testing.assert_allclose(pixels[10:20], 255 + (tile[10:20].astype(float) - 255) * 0.2, atol=1.01)
    np.testing.assert_array_equal(pixels[20:], tile[20:])
    palette = Image.new("P", (96, 96), 0)
    palette.putpalette([10, 20, 30] + [0] * 765)
    assert (decode_picture(_encoded(palette, "PNG", transparency=0))[0] == 255).all()
    assert (decode_picture(_encoded(palette, "PNG"))[0][0, 0] == [10, 20, 30]).all()


def test_other_sizes_are_resized_by_the_stated_rule(tile: np.ndarray) -> None:
    large = Image.fromarray(np.repeat(np.repeat(tile, 4, axis=0), 4, axis=1))
    pixels, changes = decode_picture(_encoded(large, "PNG"))
    assert changes == {"resized"} and pixels.shape == (96, 96, 3)
    np.testing.assert_array_equal(pixels, np.array(large.resize((96, 96), Image.Resampling.BICUBIC)))
    _, changes = decode_picture(_encoded(Image.fromarray(tile).resize((50, 50)), "JPEG"))
    assert changes == {"resized", "lossy"}


@pytest.mark.parametrize(
    ("image", "kind", "expected"),
    [
        (Image.new("L", (96, 96)), "PNG", r"mode L \(greyscale\)"),
        (Image.new("LA", (96, 96)), "PNG", "mode LA"),
        (Image.new("I;16", (96, 96)), "TIFF", "16 bits"),
        (Image.new("F", (96, 96)), "TIFF", "floating point"),
        (Image.new("CMYK", (96, 96)), "JPEG", "printer"),
        (Image.new("RGB", (96, 95)), "PNG", "a tile is square"),
        (Image.new("RGB", (8, 8)), "PNG", "at least 16 pixels"),
        (Image.new("RGB", (4097, 4097)), "PNG", "cut it into tiles first"),
        (Image.new("RGB", (96, 96)), "BMP", "not a PNG, JPEG or TIFF"),
    ],
)
def test_what_is_no_tile_is_refused_by_its_reason(image: Image.Image, kind: str, expected: str) -> None:
    with pytest.raises(TileError, match=expected):
        decode_picture(_encoded(image, kind))


def test_files_with_several_images_and_damaged_files_are_refused(tile: np.ndarray) -> None:
    image = Image.fromarray(tile)
    with pytest.raises(TileError, match="it holds 2 images"):
        decode_picture(_encoded(image, "TIFF", save_all=True, append_images=[image]))
    for kind in ("PNG", "JPEG", "TIFF"):
        content = _encoded(image, kind)
        for size in (0, 3, 20, len(content) // 2):
            with pytest.raises(TileError):
                decode_picture(content[:size])


def test_folders_are_read_to_their_leaves_without_the_files_of_systems(
    tmp_path: Path, random_tiles: Callable[..., np.ndarray]
) -> None:
    names = ["b/c/d.PNG", "a.jpeg", "b/x y.tif"]
    for name, pixels in zip(names, random_tiles(3), strict=True):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        kind = {"g": "PNG", "f": "TIFF"}[name[-1].lower()]
        Image.fromarray(pixels).save(tmp_path / name, kind)
    for junk in ("Thumbs.db", "b/.DS_Store", "__MACOSX/._a.png", ".hidden/x.png", "readme.TXT", "notes.csv"):
        (tmp_path / junk).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / junk).touch()
    found = list_pictures(tmp_path)
    assert found.pictures == sorted(names) and found.ignored == ["notes.csv"]
    assert not check_pictures(tmp_path, found.pictures).bad
    np.testing.assert_array_equal(read_pictures(tmp_path, names), random_tiles(3))
    for empty in (tmp_path / "absent", tmp_path / "__MACOSX"):
        with pytest.raises(PicturesError, match="not a folder|no picture"):
            list_pictures(empty)


TILES = ["s1/a.png", "s1/b.png", "s2/a.png"]


def test_labels_are_matched_by_path_name_or_stem(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    lines = [
        "\ufeffPath,Other,Label,Patient",
        "s1/a.png,x,1.0,p",
        "b,y,0,q",
        "s2\\a.png,z,1,p",
        "gone,,0,",
        "",
    ]
    path.write_bytes("\r\n".join(lines).encode())
    read = read_tile_table(path, TILES)
    assert read.table["tile"].tolist() == ["s1/a.png", "s1/b.png", "s2/a.png"]
    assert read.table["label"].tolist() == [1, 0, 1] and read.table["group"].tolist() == ["p", "q", "p"]
    assert (read.grouping, read.unmatched) == ("patient", ["gone"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a,b\n1,2\n", ["a column of names is missing", "a column of labels is missing"]),
        ("id,label\n", ["it has no rows"]),
        (
            "id,label\na,1\ns1/b.png,0.3\nb,2\n",
            ["fit several tiles", "labels are not 0 or 1", "more than once"],
        ),
        ("id,label\nx,1\ny,0\n", [r"none of its 2 names \(x, y\)"]),
        ("id,label,slide\nb,1,\ns1/a.png,0,s\n", ["1 tiles have an empty slide"]),
        ('id,label\n"a,1\n', ["not a CSV file"]),
    ],
)
def test_all_that_is_wrong_with_a_table_is_told(tmp_path: Path, text: str, expected: list[str]) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(text)
    for part in expected:
        with pytest.raises(TileTableError, match=part):
            read_tile_table(path, TILES)
