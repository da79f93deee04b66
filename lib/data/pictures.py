"""Pictures of a user's own tiles: PNG, JPEG or TIFF files of a folder, each decoded to one 96 x 96 RGB tile.

The rules, which the help of the commands repeats: RGBA is flattened on white. A square picture of another
size is resized to 96 x 96 pixels (bicubic, with antialiasing). Greyscale and CMYK pictures, pictures that are
not square, files with several images and damaged files are refused.
"""

import io
import os
import struct
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lib.data.tiff import TILE_SHAPE, TILE_SIZE, TileError, decode_tile
from lib.errors import KernelError
from lib.files import is_system_file

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_FORMATS = ("PNG", "JPEG", "TIFF")
LARGEST_SIDE = 4096  # pixels; a larger picture is a region of a slide and no tile
_SMALLEST_SIDE = 16
_COLOURS = ("RGB", "RGBA", "P", "PA", "YCbCr")
_MODES = {
    "1": "black and white",
    "L": "greyscale",
    "LA": "greyscale",
    "I": "greyscale",
    "I;16": "greyscale of 16 bits",
    "I;16B": "greyscale of 16 bits",
    "F": "greyscale, floating point",
    "CMYK": "the colours of a printer",
}
_CHUNK = 256  # pictures that a thread decodes at a time
# The errors of Pillow's parsers on damaged files, beside its own.
_DAMAGED = (
    OSError, ValueError, TypeError, SyntaxError, KeyError, IndexError, OverflowError, MemoryError,
    ZeroDivisionError, struct.error,
)  # fmt: skip


class PicturesError(KernelError):
    """A folder of pictures cannot be used; the message lists every problem."""


@dataclass(frozen=True)
class Listing:
    """The files of a folder and its sub-folders.

    Attributes:
        pictures: relative paths with `/`, sorted.
        ignored: relative paths of other files, sorted, without those of the system and README files.
    """

    pictures: list[str]
    ignored: list[str]


@dataclass
class Checked:
    """The result of decoding every picture once.

    Attributes:
        bad: why a picture cannot be used, by its path.
        resized: how many pictures had another size.
        flattened: how many pictures had transparent pixels.
        lossy: how many pictures are JPEG files.
    """

    bad: dict[str, str] = field(default_factory=dict)
    resized: int = 0
    flattened: int = 0
    lossy: int = 0

    def sentences(self) -> list[str]:
        """What was changed, a sentence for each rule that applied."""
        return [
            text
            for number, text in (
                (
                    self.resized,
                    f"{self.resized:,} pictures were resized to 96 x 96 pixels (bicubic): this is right only "
                    "where a picture shows the same field as a competition tile, about 93 micrometres a side",
                ),
                (
                    self.flattened,
                    f"{self.flattened:,} pictures with transparent pixels were flattened on white",
                ),
                (self.lossy, f"{self.lossy:,} pictures are JPEG files: their compression changes pixels"),
            )
            if number
        ]


def list_pictures(folder: Path) -> Listing:
    """List the pictures of a folder and its sub-folders. No file is opened.

    Hidden files and folders, those of Windows and macOS (Thumbs.db, .DS_Store, __MACOSX) and README files
    are left out.

    Raises:
        PicturesError: the folder is missing or holds no picture.
    """
    if not folder.is_dir():
        raise PicturesError(f"{folder} is not a folder: name the folder that holds the tiles")
    pictures: list[str] = []
    ignored: list[str] = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not _is_hidden(name)]
        below = Path(parent).relative_to(folder)
        for name in files:
            if _is_hidden(name) or name.lower().startswith("readme"):
                continue
            is_picture = name.lower().endswith(SUFFIXES)
            (pictures if is_picture else ignored).append((below / name).as_posix())
    if not pictures:
        others = f" (other files: {', '.join(sorted(ignored)[:3])})" if ignored else ""
        raise PicturesError(f"{folder} holds no picture ({', '.join(SUFFIXES)}){others}")
    return Listing(sorted(pictures), sorted(ignored))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or is_system_file(name)


def decode_picture(content: bytes) -> tuple[np.ndarray, set[str]]:
    """Decode one picture to a tile by the rules of this module.

    Args:
        content: the whole file.

    Returns:
        (96, 96, 3) uint8, RGB; and what was done: resized, flattened, lossy.

    Raises:
        TileError: the picture is refused; the message describes the file but does not name it.
    """
    from PIL import Image, UnidentifiedImageError

    if not content:
        raise TileError("the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's words on odd but readable metadata
            with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
                if (frames := getattr(image, "n_frames", 1)) > 1:
                    raise TileError(f"it holds {frames} images: save each as a file")
                if max(image.size) > LARGEST_SIDE:  # before a perhaps huge image is decoded
                    raise TileError(f"{_size(image)}: this is no tile, cut it into tiles first")
                if image.width != image.height or image.width < _SMALLEST_SIDE:
                    raise TileError(
                        f"{_size(image)}: a tile is square, with at least {_SMALLEST_SIDE} pixels a side"
                    )
                is_tile = image.size == (TILE_SIZE, TILE_SIZE) and image.mode in ("RGB", "YCbCr")
                if image.format == "TIFF" and is_tile:
                    return decode_tile(content), set()  # the pixels that training and inference see
                if image.mode not in _COLOURS:
                    mode = _MODES.get(image.mode, "not RGB of 8 bits")
                    raise TileError(
                        f"mode {image.mode} ({mode}): the networks need the colours of stains (RGB, 8 bits)"
                    )
                return _as_tile(image)
    except TileError:
        raise
    except (UnidentifiedImageError, Image.DecompressionBombError, *_DAMAGED) as error:
        raise TileError(f"not a PNG, JPEG or TIFF that can be decoded ({type(error).__name__})") from error


def _as_tile(image: "Image.Image") -> tuple[np.ndarray, set[str]]:  # type: ignore[name-defined]  # noqa: F821
    """A square colour image as a tile, and what was done."""
    from PIL import Image

    changes = {"lossy"} if image.format == "JPEG" else set()
    if image.mode == "YCbCr":
        image = image.convert("RGB")
    elif image.mode != "RGB" or "transparency" in image.info:
        layers = image.convert("RGBA")
        if layers.getextrema()[3][0] < 255:
            changes.add("flattened")
        white = Image.new("RGBA", layers.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, layers).convert("RGB")
    if image.size != (TILE_SIZE, TILE_SIZE):
        changes.add("resized")
        image = image.resize((TILE_SIZE, TILE_SIZE), Image.Resampling.BICUBIC)
    pixels: np.ndarray = np.array(image)
    return pixels, changes


def _size(image: "Image.Image") -> str:  # type: ignore[name-defined]  # noqa: F821
    return f"{image.width} x {image.height} pixels"


def check_pictures(folder: Path, names: Sequence[str]) -> Checked:
    """Decode every picture once, and keep only what was wrong or changed; a few pictures are in memory."""
    checked = Checked()

    def check(chunk: Sequence[str]) -> list[tuple[str, str, set[str]]]:
        results = []
        for name in chunk:
            try:
                _, changes = decode_picture((folder / name).read_bytes())
                results.append((name, "", changes))
            except (TileError, OSError) as error:
                results.append((name, str(error), set()))
        return results

    chunks = [names[start : start + _CHUNK] for start in range(0, len(names), _CHUNK)]
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for results in pool.map(check, chunks):
            for name, problem, changes in results:
                if problem:
                    checked.bad[name] = problem
                checked.resized += "resized" in changes
                checked.flattened += "flattened" in changes
                checked.lossy += "lossy" in changes
    return checked


def read_pictures(folder: Path, names: Sequence[str]) -> np.ndarray:
    """Decode some pictures, all of them in memory.

    Returns:
        (N, 96, 96, 3) uint8, in the order of the names.

    Raises:
        PicturesError: a picture cannot be decoded.
    """
    tiles = np.empty((len(names), *TILE_SHAPE), dtype=np.uint8)

    def read(row: int) -> None:
        try:
            tiles[row] = decode_picture((folder / names[row]).read_bytes())[0]
        except (TileError, OSError) as error:
            raise PicturesError(f"{folder / names[row]}: {error}") from error

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(read, range(len(names)), chunksize=_CHUNK))
    return tiles
