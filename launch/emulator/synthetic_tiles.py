"""Synthetic competition data: H&E-like tiles in the layout of Histopathologic Cancer Detection.

A tile is two maps of stain density (haematoxylin and eosin). The law of Beer and Lambert mixes them with the
stain vectors of one of twelve synthetic slides. Only the centre 32 x 32 decides the label, as in the
competition: 1 when it holds a tumour nucleus. The surroundings have the same distribution under both labels:
stroma, lymphocytes, fat, gaps, and groups of tumour nuclei outside the centre. A label-0 centre may hold a
group of normal nuclei of the same outline, darkness and extent. So colours predict the label badly; size,
shape and texture of the nuclei predict it well.
"""

import csv
import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from lib.data.tiff import TILE_SIZE, encode_tile

FloatArray = NDArray[Any]  # float32; numpy types most results of arithmetic more loosely than that
Mask = NDArray[np.bool_]
NucleusKind = Literal["lymphocyte", "spindle", "histiocyte", "tumour"]

CENTRE_SIZE = 32  # pixels a side of the region that decides the label (the competition's data page)
SLIDES = 12
PREVALENCE = 0.405  # share of label 1 in the competition's training set: 89,117 of 220,025

# Ruifrok & Johnston, Quantification of histochemical staining by color deconvolution (2001): optical density
# of each stain in red, green and blue, as unit vectors.
HAEMATOXYLIN = np.array([0.65, 0.70, 0.29])
EOSIN = np.array([0.07, 0.99, 0.11])
# The competition's pinks absorb more blue (seen on its tiles, 2026-11).
_SCANNED_EOSIN = np.array([0.08, 0.0, 0.22])

_MARGIN = 24  # around the tile, so that its border cuts nuclei and noise fields have no edge there
_CANVAS = TILE_SIZE + 2 * _MARGIN
_MIDDLE = (_CANVAS - 1) / 2
_ROWS, _COLUMNS = (axis.astype(np.float32) for axis in np.mgrid[:_CANVAS, :_CANVAS])


@dataclass(frozen=True)
class Slide:
    """Stains and scanner of one synthetic slide.

    Attributes:
        haematoxylin: (3,) unit vector of optical density in R, G, B.
        eosin: (3,) unit vector of optical density in R, G, B.
        strengths: optical density (base 10) of full haematoxylin and of full eosin.
        white: (3,) the scanner's pixel values without tissue, 0 to 255.
        sharpness: factor of the difference to a blurred copy that the scanner adds, 0.3 to 1.
        prevalence: probability of label 1 on this slide, relative to the other slides.
    """

    haematoxylin: FloatArray
    eosin: FloatArray
    strengths: tuple[float, float]
    white: FloatArray
    sharpness: float
    prevalence: float


@dataclass(frozen=True)
class _NucleusShape:
    """Parameter ranges of one kind of nucleus; lengths in pixels (about 1 micrometre each)."""

    radius: tuple[float, float]
    elongation: tuple[float, float]  # long over short semi-axis
    irregularity: float  # of the outline, as a share of the radius
    rim: tuple[float, float]  # extra darkness of the nuclear membrane
    clumps: float  # standard deviation of the chromatin's density
    nucleoli: float  # mean number
    spacing: tuple[float, float]  # of the grid of centres
    half_patch: int  # half the side of the patch of one nucleus


# At the competition's 1 micrometre a pixel a lymphocyte is 7 to 8 pixels across, a tumour nucleus 9 to 15
# (seen on the competition's tiles, 2026-11).
_SHAPES: dict[NucleusKind, _NucleusShape] = {
    "lymphocyte": _NucleusShape((3.0, 4.1), (1.0, 1.3), 0.05, (0.0, 0.25), 0.10, 0.0, (8.0, 10.5), 8),
    "spindle": _NucleusShape((2.6, 3.6), (2.2, 4.0), 0.06, (0.0, 0.2), 0.08, 0.0, (17.0, 26.0), 12),
    "histiocyte": _NucleusShape((3.7, 5.4), (1.0, 1.7), 0.09, (0.1, 0.45), 0.13, 0.5, (10.0, 13.5), 11),
    "tumour": _NucleusShape((4.6, 7.0), (1.0, 1.6), 0.12, (0.2, 0.5), 0.16, 1.3, (11.5, 15.5), 14),
}


def draw_slides(generator: np.random.Generator, *, count: int = SLIDES) -> list[Slide]:
    """Draw the stains of synthetic slides.

    Args:
        generator: of the random numbers.
        count: number of slides.

    Returns:
        The slides. Their stain vectors are a few degrees from those of Ruifrok and Johnston.
    """
    return [
        Slide(
            haematoxylin=_turned(HAEMATOXYLIN, generator, spread=(0.05, 0.05, 0.09)),
            eosin=_turned(EOSIN + _SCANNED_EOSIN, generator, spread=(0.05, 0.03, 0.14)),
            strengths=(float(generator.uniform(0.7, 1.1)), float(generator.uniform(0.35, 0.65))),
            white=generator.uniform([236, 232, 236], [253, 250, 252]).astype(np.float32),
            sharpness=float(generator.uniform(0.3, 1.0)),
            prevalence=float(generator.uniform(0.30, 0.50)),
        )
        for _ in range(count)
    ]


def _turned(
    vector: NDArray[np.float64], generator: np.random.Generator, *, spread: tuple[float, float, float]
) -> FloatArray:
    """A unit vector near `vector`; `spread` is the standard deviation of each component."""
    moved = np.clip(vector + generator.normal(0, spread), 0.02, None)
    unit: FloatArray = (moved / np.linalg.norm(moved)).astype(np.float32)
    return unit


def draw_tile(generator: np.random.Generator, *, label: int, slide: Slide) -> NDArray[np.uint8]:
    """Draw one tile.

    Args:
        generator: of the random numbers.
        label: 1 puts at least one tumour nucleus in the centre 32 x 32, 0 keeps every tumour nucleus out of
            it.
        slide: the stains.

    Returns:
        (96, 96, 3) uint8, RGB.
    """
    tissue = _Tissue(generator)
    surround = _blob(generator, distance=(34.0, 52.0), radius=(14.0, 30.0))
    centre = _blob(generator, distance=(0.0, 11.0), radius=(11.0, 34.0))
    if generator.random() < 0.5:
        tissue.add_group(surround, kind="tumour", keep_clear=True)
    if label == 1:
        tissue.add_group(centre, kind="tumour", needs_centre=True)
    elif generator.random() < 0.85:
        tissue.add_group(centre, kind="histiocyte" if generator.random() < 0.5 else "lymphocyte")
    return _scan(generator, *tissue.finish(), slide)


class _Tissue:
    """The stain densities of one tile: first the background, then groups of nuclei, then the other nuclei."""

    def __init__(self, generator: np.random.Generator) -> None:
        self.generator = generator
        direction = generator.uniform(0, np.pi)
        fibres = _fibres(generator, direction)
        gaps = _gaps(generator, fibres)
        self.direction = direction
        self.tissue = gaps  # (C, C) in [0, 1]: 1 where tissue is, 0 in fat and gaps
        self.free = gaps > 0.5  # (C, C) where a nucleus can still be placed
        density = np.float32(generator.uniform(0.25, 0.75))
        grain: FloatArray = generator.standard_normal((_CANVAS, _CANVAS), dtype=np.float32)
        texture = 0.7 + 0.28 * fibres + cv2.GaussianBlur(np.float32(0.3) * grain, (0, 0), 0.7)
        self.eosin: FloatArray = np.clip(density * texture + 0.08 * _smooth(generator, 14), 0.03, 1.2)
        self.haematoxylin = np.clip(0.07 + 0.05 * _smooth(generator, 6) + 0.03 * fibres, 0, None)
        # Darkness varies more between tiles than between kinds of nuclei, so it does not predict the label.
        self.darkness: float = generator.uniform(0.5, 1.0)
        self.groups: list[tuple[FloatArray, NucleusKind]] = []  # centres (K, 2) and kind

    def add_group(
        self, region: Mask, *, kind: NucleusKind, keep_clear: bool = False, needs_centre: bool = False
    ) -> None:
        """Fill a region with nuclei of one kind and the cytoplasm between them.

        Args:
            region: (C, C), the possible centres of the nuclei.
            kind: of the nuclei.
            keep_clear: leave out nuclei that would reach into the centre 32 x 32.
            needs_centre: add a nucleus in the centre 32 x 32 where none is in it.
        """
        shape = _SHAPES[kind]
        middles = _grid(self.generator, shape.spacing)
        middles = middles[_inside(region, middles)]
        # (K,) half the side of the square around the middle of the tile that just reaches the nucleus's
        # centre
        from_middle = np.abs(middles - _MIDDLE).max(axis=1)
        if keep_clear:
            longest = shape.radius[1] * shape.elongation[1] ** 0.5 * (1 + 2 * shape.irregularity)
            middles = middles[from_middle > CENTRE_SIZE / 2 + longest]
            region = region & ~_square(CENTRE_SIZE / 2 + 2)
        if needs_centre and not (from_middle < CENTRE_SIZE / 2 - 3).any():
            near = np.abs(middles - _MIDDLE).max(axis=1) < CENTRE_SIZE / 2 + 8
            inside = self.generator.uniform(-10, 10, (1, 2)).astype(np.float32) + np.float32(_MIDDLE)
            middles = np.concatenate([middles[~near], inside])
        cover = cv2.GaussianBlur(region.astype(np.float32), (0, 0), 1.5)
        self.tissue = np.maximum(self.tissue, cover)
        cytoplasm = self.generator.uniform(0.2, 0.6) + 0.1 * _smooth(self.generator, 2.5)
        self.eosin += cover * (cytoplasm - self.eosin)
        self.haematoxylin += cover * self.generator.uniform(0.02, 0.16)
        self.free &= ~region
        self.groups.append((middles, kind))

    def finish(self) -> tuple[FloatArray, FloatArray]:
        """Add the other nuclei, draw all, and return haematoxylin and eosin, (96, 96) each, in [0, 2]."""
        lymphoid = (_smooth(self.generator, 22) > self.generator.uniform(-0.8, 1.6)) & self.free
        rest: tuple[tuple[NucleusKind, Mask], ...] = (
            ("lymphocyte", lymphoid),
            ("spindle", self.free & ~lymphoid),
        )
        for kind, region in rest:
            middles = _grid(self.generator, _SHAPES[kind].spacing)
            self.groups.append((middles[_inside(region, middles)], kind))
        self.haematoxylin *= self.tissue
        self.eosin *= self.tissue
        for middles, kind in self.groups:
            self._draw_nuclei(middles, kind)
        inner = slice(_MARGIN, _MARGIN + TILE_SIZE)
        return np.clip(self.haematoxylin[inner, inner], 0, 2), np.clip(self.eosin[inner, inner], 0, 2)

    def _draw_nuclei(self, middles: FloatArray, kind: NucleusKind) -> None:
        shape = _SHAPES[kind]
        half = shape.half_patch
        corners = np.floor(middles).astype(int) - half  # (K, 2)
        fits = ((corners >= 0) & (corners + 2 * half + 1 <= _CANVAS)).all(axis=1)
        middles, corners = middles[fits], corners[fits]
        if len(middles) == 0:
            return
        inside = (middles - corners).astype(np.float32)  # (K, 2) middles within their patches
        cover, density = _nuclei(self.generator, inside, shape, darkness=self.darkness, along=self.direction)
        for (row, column), alpha, nucleus in zip(corners, cover, density, strict=True):
            patch = np.s_[row : row + 2 * half + 1, column : column + 2 * half + 1]
            self.haematoxylin[patch] += alpha * (nucleus - self.haematoxylin[patch])
            self.eosin[patch] *= 1 - 0.6 * alpha


def _nuclei(
    generator: np.random.Generator,
    middles: FloatArray,
    shape: _NucleusShape,
    *,
    darkness: float,
    along: float,
) -> tuple[FloatArray, FloatArray]:
    """Draw K nuclei, each in its own patch of side P.

    Args:
        generator: of the random numbers.
        middles: (K, 2) row and column inside the patch.
        shape: of the kind of nucleus.
        darkness: haematoxylin density of the tile's nuclei.
        along: the direction of the fibres in radians, which long nuclei follow.

    Returns:
        (K, P, P) cover in [0, 1], soft at the outline, and (K, P, P) haematoxylin density.
    """
    count, side = len(middles), 2 * shape.half_patch + 1

    def draw(low: float, high: float) -> FloatArray:
        return generator.uniform(low, high, (count, 1, 1)).astype(np.float32)

    radius = draw(*shape.radius)
    stretch = np.sqrt(draw(*shape.elongation))
    turn = along + draw(-0.3, 0.3) if shape.elongation[0] > 2 else draw(0, np.pi)
    axis = np.arange(side, dtype=np.float32)
    down = axis[None, :, None] - middles[:, 0, None, None]  # (K, P, 1)
    right = axis[None, None, :] - middles[:, 1, None, None]  # (K, 1, P)
    # (K, P, P), in pixels of a circle of the same area
    u = (right * np.cos(turn) + down * np.sin(turn)) / stretch
    v = (down * np.cos(turn) - right * np.sin(turn)) * stretch
    distance = np.sqrt(u * u + v * v)
    # Two and three lobes, cos(2 x angle) and sin(3 x angle), as polynomials: the arctangent costs more than
    # all else.
    cosine, sine = u / (distance + 1e-3), v / (distance + 1e-3)
    outline = 1 + shape.irregularity * (
        draw(-1, 1) * (2 * cosine**2 - 1) + draw(-1, 1) * sine * (3 - 4 * sine**2)
    )
    depth = radius * outline - distance  # pixels from the outline, positive inside
    cover = np.clip(depth / 1.3 + 0.5, 0, 1)
    rim = draw(*shape.rim)
    coarse = (count, side // 2 + 1, side // 2 + 1)
    grain = np.float32(shape.clumps) * generator.standard_normal(coarse, dtype=np.float32)
    clumps = np.repeat(np.repeat(grain, 2, axis=1), 2, axis=2)[:, :side, :side]
    density = 1 - rim + rim * np.exp(-np.square(depth / 1.3)) + clumps
    for _ in range(2 if shape.nucleoli else 0):
        present = generator.random((count, 1, 1)) < shape.nucleoli / 2
        off = (u - radius * draw(-0.5, 0.5)) ** 2 + (v - radius * draw(-0.5, 0.5)) ** 2
        density += present * draw(0.3, 0.6) * np.exp(-off / 1.6)
    density *= np.float32(darkness) * draw(0.8, 1.2)
    return cover, np.clip(density, 0.1, 1.6)


def _scan(
    generator: np.random.Generator, haematoxylin: FloatArray, eosin: FloatArray, slide: Slide
) -> NDArray[np.uint8]:
    """Turn densities into pixels: Beer-Lambert, the scanner's white, blur, sharpening and noise."""
    amounts = np.array(slide.strengths) * generator.uniform(
        0.85, 1.15, 2
    )  # the section's thickness and staining vary
    stains = (amounts[:, None] * np.stack([slide.haematoxylin, slide.eosin])).astype(np.float32)  # (2, 3)
    density = np.stack([haematoxylin, eosin], axis=-1) @ stains  # (H, W, 3) optical density, base 10
    in_focus = generator.random() < 0.85
    blur = generator.uniform(0.45, 0.7) if in_focus else generator.uniform(0.9, 1.4)
    light = cv2.GaussianBlur(slide.white * np.exp(np.float32(-np.log(10)) * density), (0, 0), blur)
    light += slide.sharpness * (light - cv2.GaussianBlur(light, (0, 0), 1.2))
    light += np.float32(2) * generator.standard_normal(light.shape, dtype=np.float32)
    pixels: NDArray[np.uint8] = np.clip(np.rint(light), 0, 255).astype(np.uint8)
    return pixels


def _smooth(generator: np.random.Generator, scale: float) -> FloatArray:
    """(C, C) noise of mean 0 and standard deviation about 1, whose features are `scale` pixels wide."""
    side = int(np.ceil(_CANVAS / scale)) + 2
    grid = generator.normal(0, 1.3, (side, side)).astype(np.float32)
    return cv2.resize(grid, (_CANVAS, _CANVAS), interpolation=cv2.INTER_CUBIC)


def _fibres(generator: np.random.Generator, direction: float) -> FloatArray:
    """(C, C) wavy streaks along `direction` (radians), mean 0 and standard deviation about 1."""
    streaks: FloatArray = generator.normal(0, 1.3, (2 * _CANVAS // 3, 2 * _CANVAS // 24)).astype(np.float32)
    streaks = cv2.resize(streaks, (2 * _CANVAS, 2 * _CANVAS), interpolation=cv2.INTER_CUBIC)
    across = 3 * _smooth(generator, 24)
    u = (_COLUMNS - _MIDDLE) * np.cos(direction) + (_ROWS - _MIDDLE) * np.sin(direction) + _CANVAS
    v = (_ROWS - _MIDDLE) * np.cos(direction) - (_COLUMNS - _MIDDLE) * np.sin(direction) + _CANVAS + across
    return cv2.remap(
        streaks, u.astype(np.float32), v.astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
    )


def _gaps(generator: np.random.Generator, fibres: FloatArray) -> FloatArray:
    """(C, C) in [0, 1], 1 where tissue is: clefts between fibres, in some tiles fat cells or a lumen."""
    clefts = _smooth(generator, generator.uniform(8, 20)) - generator.uniform(-2.6, -1.2)
    clefts = np.minimum(clefts, fibres - generator.uniform(-3.0, -1.0))
    room = np.clip(clefts / 0.5 + 0.5, 0, 1)
    if generator.random() < 0.3:
        for _ in range(generator.integers(1, 5)):
            row, column = generator.uniform(0, _CANVAS, 2)
            stretch = generator.uniform(0.8, 1.25)
            distance = np.sqrt(((_ROWS - row) * stretch) ** 2 + ((_COLUMNS - column) / stretch) ** 2)
            room = np.minimum(room, np.clip((distance - generator.uniform(12, 32)) / 1.5 + 0.5, 0, 1))
    tissue: FloatArray = room.astype(np.float32)
    return tissue


def _blob(
    generator: np.random.Generator, *, distance: tuple[float, float], radius: tuple[float, float]
) -> Mask:
    """(C, C) a region of irregular outline; `distance` is from the middle of the tile; both in pixels."""
    direction, away = generator.uniform(0, 2 * np.pi), generator.uniform(*distance)
    down = _ROWS - _MIDDLE - away * np.sin(direction)
    right = _COLUMNS - _MIDDLE - away * np.cos(direction)
    region: Mask = np.hypot(down, right) < generator.uniform(*radius) * (1 + 0.2 * _smooth(generator, 14))
    return region


def _grid(generator: np.random.Generator, spacing: tuple[float, float]) -> FloatArray:
    """(K, 2) rows and columns of nuclei on a jittered hexagonal grid: they are dense but seldom overlap."""
    step = generator.uniform(*spacing)
    rows = np.arange(generator.uniform(0, step), _CANVAS, step * 0.87)
    columns = np.arange(generator.uniform(0, step), _CANVAS, step)
    row, column = np.meshgrid(rows, columns, indexing="ij")
    column = column + np.where(np.arange(len(rows)) % 2, step / 2, 0)[:, None]
    middles = np.stack([row.ravel(), column.ravel()], axis=1)
    middles += generator.normal(0, 0.14 * step, middles.shape)
    jittered: FloatArray = middles.astype(np.float32)  # before the check below: rounding can reach the edge
    kept = ((jittered >= 0) & (jittered < _CANVAS)).all(axis=1) & (generator.random(len(middles)) < 0.94)
    inside: FloatArray = jittered[kept]
    return inside


def _inside(region: Mask, middles: FloatArray) -> Mask:
    """(K,) whether each centre is inside the region."""
    row, column = middles.astype(int).T
    inside: Mask = region[row, column]
    return inside


def _square(half: float) -> Mask:
    """(C, C) the square around the middle of the tile that reaches `half` pixels from it."""
    square: Mask = np.maximum(np.abs(_ROWS - _MIDDLE), np.abs(_COLUMNS - _MIDDLE)) <= half
    return square


def write_competition(
    folder: Path,
    *,
    labelled: int = 1000,
    unlabelled: int = 250,
    seed: int = 2018,
    held_back: Path | None = None,
) -> None:
    """Write a synthetic competition in Kaggle's layout.

    `train/<id>.tif`, `train_labels.csv`, `test/<id>.tif` and `sample_submission.csv`; an id is the SHA-1 of
    the 27,648 pixel bytes. The same seed writes the same bytes. The folder appears whole or not at all.

    Args:
        folder: to write; it must not exist. Its parent is created where it is missing.
        labelled: number of tiles in `train`, at least 1.
        unlabelled: number of tiles in `test`, at least 1.
        seed: of all random numbers.
        held_back: a file, outside `folder`, for the labels of the test tiles (id,label); None writes no such
            file.

    Raises:
        ValueError: a part would be empty.
        FileExistsError: the folder exists.
    """
    if labelled < 1 or unlabelled < 1:
        raise ValueError(f"{labelled} labelled and {unlabelled} unlabelled tiles: make at least one of each")
    if folder.exists():
        raise FileExistsError(f"{folder} exists: remove it, or choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    part_folder = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        labels = _write_tiles(part_folder / "train", count=labelled, seed=seed, part=0)
        _write_table(part_folder / "train_labels.csv", labels)
        hidden = _write_tiles(part_folder / "test", count=unlabelled, seed=seed, part=1)
        _write_table(part_folder / "sample_submission.csv", dict.fromkeys(hidden, 0))
        if held_back is not None:
            _write_table(held_back, hidden)
        part_folder.chmod(0o755)  # mkdtemp makes it private, but a kernel may run as another user
        part_folder.rename(folder)
    except BaseException:
        shutil.rmtree(part_folder, ignore_errors=True)
        raise


def _write_tiles(folder: Path, *, count: int, seed: int, part: int) -> dict[str, int]:
    """Write one part (0 train, 1 test) into a new folder and return the label of every id, sorted by id."""
    slides = draw_slides(np.random.default_rng(np.random.SeedSequence([seed])))
    generator = np.random.default_rng(np.random.SeedSequence([seed, part]))
    slide_of = generator.integers(0, len(slides), count)
    weights = np.array([slides[index].prevalence for index in slide_of])
    labels = np.zeros(count, dtype=int)
    labels[generator.choice(count, round(PREVALENCE * count), replace=False, p=weights / weights.sum())] = 1
    folder.mkdir()
    written: dict[str, int] = {}
    for index in range(count):
        tile_generator = np.random.default_rng(np.random.SeedSequence([seed, part, index]))
        pixels = draw_tile(tile_generator, label=int(labels[index]), slide=slides[slide_of[index]])
        name = hashlib.sha1(pixels.tobytes()).hexdigest()
        (folder / f"{name}.tif").write_bytes(encode_tile(pixels))
        written[name] = int(labels[index])
    assert len(written) == count, "two synthetic tiles are equal"
    return dict(sorted(written.items()))


def _write_table(path: Path, labels: dict[str, int]) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["id", "label"])
        writer.writerows(labels.items())
