"""Augmentation: draws depend on seed, epoch and row only; colours against formulas and other libraries."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.transform import Rotation
from skimage.color import hed2rgb, rgb2hed
from skimage.transform import rotate
from torchvision.transforms.functional import adjust_brightness, adjust_contrast, adjust_saturation

from lib.config import Config
from lib.data.tiff import decode_tile
from lib.image.augment import DRAWS, HED_DENSITIES, AugmentationDraws, augment, jitter_colours, symmetries
from lib.image.dihedral import ORDER, transform, transform_each

STILL: dict[str, Any] = {
    "flip": False,
    "rotate": "none",
    "hed_jitter": 0.0,
    "brightness": 0.0,
    "contrast": 0.0,
    "saturation": 0.0,
    "hue": 0.0,
}
STRONG = Config(brightness=0.9, contrast=0.9, saturation=0.9, hue=0.5, rotate="any")


def _images(number: int, *, side: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.rand(number, 3, side, side, generator=torch.Generator().manual_seed(seed))


def _draws(number: int, *, seed: int = 1) -> torch.Tensor:
    return torch.rand(number, DRAWS, generator=torch.Generator().manual_seed(seed))


def _first(rows: np.ndarray) -> np.ndarray:
    return np.zeros(len(rows), dtype=np.int64)


# Draws


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_row_draws_the_same_in_whatever_batch_it_comes(data: st.DataObject) -> None:
    size = data.draw(st.integers(2, 30))
    order = np.array(data.draw(st.permutations(range(size))))
    cuts = sorted(data.draw(st.lists(st.integers(1, size - 1), max_size=4)))
    whole = AugmentationDraws(entropy=[7, 3], rows=size).take(np.arange(size), np.zeros(size, dtype=np.int64))
    pieces = AugmentationDraws(entropy=[7, 3], rows=size)
    for batch in np.split(order, cuts):
        if len(batch):
            assert torch.equal(pieces.take(batch, _first(batch)), whole[torch.from_numpy(batch)])


def test_seed_epoch_and_row_each_change_the_draw() -> None:
    rows = np.arange(50)
    taken = [
        AugmentationDraws(entropy=entropy, rows=50).take(rows, _first(rows))
        for entropy in ([1, 3, 0], [1, 3, 1], [2, 3, 0])
    ]
    distinct = {tuple(row.tolist()) for table in taken for row in table}
    assert len(distinct) == 150
    every = torch.cat(taken)
    assert every.dtype == torch.float32 and every.min() >= 0 and every.max() < 1
    assert (abs(every.mean(dim=0) - 0.5) < 0.1).all()


def test_a_second_occurrence_of_a_row_has_new_draws_and_keeps_the_first() -> None:
    together = AugmentationDraws(entropy=[5], rows=4).take(np.array([2, 2, 1, 2]), np.array([0, 1, 0, 2]))
    assert len({tuple(row.tolist()) for row in together}) == 4
    apart = AugmentationDraws(entropy=[5], rows=4)
    last = apart.take(np.array([2]), np.array([2]))  # asked for first, across batches
    first = apart.take(np.array([1, 2]), np.array([0, 0]))
    assert torch.equal(last[0], together[3])
    assert torch.equal(first, together[[2, 0]])


def test_the_same_row_is_augmented_the_same_way_in_any_batch() -> None:
    images, draws = _images(9), _draws(9)
    whole = augment(images, draws, STRONG)
    for rows in ([0, 1, 2], [8, 3], [4]):
        torch.testing.assert_close(augment(images[rows], draws[rows], STRONG), whole[rows], rtol=0, atol=1e-6)


# Geometry


def _reached(**knobs: Any) -> set[int]:
    """The symmetries that 200 draws reach; every result must be one of the eight."""
    image = _images(1)
    results = augment(image.expand(200, -1, -1, -1), _draws(200), Config(**{**STILL, **knobs}))
    every = [transform(image[0], element) for element in range(ORDER)]
    found = [
        [number for number, other in enumerate(every) if torch.equal(result, other)] for result in results
    ]
    assert all(len(numbers) == 1 for numbers in found)
    return {numbers[0] for numbers in found}


@pytest.mark.parametrize(
    ("flip", "rotate", "wanted"),
    [
        (False, "none", {0}),
        (False, "quarter", {0, 1, 2, 3}),
        (True, "quarter", set(range(8))),
        (True, "none", {0, 2, 4, 6}),  # mirrors across and down, and both: half a turn
    ],
)
def test_mirrors_and_quarter_turns_are_exact_and_all_reached(
    flip: bool, rotate: str, wanted: set[int]
) -> None:
    assert _reached(flip=flip, rotate=rotate) == wanted


def test_any_angle_meets_the_quarter_turns_and_keeps_the_middle() -> None:
    config = Config(**{**STILL, "rotate": "any"})
    image = _images(1, side=16)
    draws = _draws(4)
    draws[:, 2] = torch.tensor([0.0, 0.25, 0.5, 0.75])
    turned = augment(image.expand(4, -1, -1, -1), draws, config)
    quarters = [torch.rot90(image[0], number, (-2, -1)) for number in range(4)]
    for result, number in zip(turned, (0, 1, 2, 3), strict=True):
        assert min((result - quarters[way % 4]).abs().max() for way in (number, -number)) < 1e-4
    # A ring about the centre stays where it is at any angle: nothing is shifted.
    axis = torch.linspace(-1, 1, 33)
    ring = torch.exp(-4 * (axis[:, None] ** 2 + axis[None] ** 2)).expand(20, 3, 33, 33)
    assert (augment(ring, _draws(20), config) - ring).abs().mean() < 0.01


def test_a_rotation_fills_the_corners_with_tissue_not_black() -> None:
    draws = _draws(16)
    draws[:, 2] = torch.linspace(0, 1, 17)[:16]
    grey = torch.full((16, 3, 32, 32), 0.7)
    torch.testing.assert_close(augment(grey, draws, Config(**{**STILL, "rotate": "any"})), grey)


# Colours


def test_without_jitter_colours_are_unchanged() -> None:
    images = _images(5)
    assert torch.equal(jitter_colours(images, _draws(5), Config(**STILL)), images)
    assert torch.equal(augment(images, _draws(5), Config(**STILL)), images)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    brightness=st.floats(0, 0.9),
    contrast=st.floats(0, 0.9),
    saturation=st.floats(0, 0.9),
    hue=st.floats(0, 0.5),
    rotate=st.sampled_from(["none", "quarter", "any"]),
)
def test_whatever_the_strengths_the_result_is_an_image(
    seed: int, brightness: float, contrast: float, saturation: float, hue: float, rotate: str
) -> None:
    config = Config(brightness=brightness, contrast=contrast, saturation=saturation, hue=hue, rotate=rotate)
    images = _images(4, seed=seed)
    before = images.clone()
    result = augment(images, _draws(4, seed=seed), config)
    assert result.shape == images.shape and result.dtype == torch.float32
    assert result.min() >= 0 and result.max() <= 1
    assert torch.equal(images, before)  # the batch that came in is not written to


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), saturation=st.floats(0, 0.9), hue=st.floats(0, 0.5))
def test_grey_stays_the_same_grey_under_saturation_and_hue(seed: int, saturation: float, hue: float) -> None:
    grey = _images(6, seed=seed)[:, :1].expand(-1, 3, -1, -1).contiguous()
    config = Config(**{**STILL, "saturation": saturation, "hue": hue})
    torch.testing.assert_close(jitter_colours(grey, _draws(6, seed=seed), config), grey, rtol=0, atol=1e-5)


def _by(column: int, value: float, **knobs: Any) -> torch.Tensor:
    """The colours of a mild image with one draw at `value` and the others at 0.5, which changes nothing."""
    draws = torch.full((1, DRAWS), 0.5)
    draws[0, column] = value
    return jitter_colours(0.4 + 0.2 * _images(1), draws, Config(**{**STILL, **knobs}))


def test_each_strength_does_what_its_name_says() -> None:
    images = 0.4 + 0.2 * _images(1)
    luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    near: dict[str, float] = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(_by(3, 1.0, brightness=0.2), images * 1.2, **near)
    torch.testing.assert_close(_by(3, 0.0, brightness=0.2), images * 0.8, **near)
    mean = (images * luma).sum(dim=1).mean()
    torch.testing.assert_close(_by(4, 1.0, contrast=0.3), mean + 1.3 * (images - mean), **near)
    grey = (images * luma).sum(dim=1, keepdim=True)
    torch.testing.assert_close(_by(5, 0.0, saturation=0.5), grey + 0.5 * (images - grey), **near)
    turned = _by(6, 1.0, hue=1 / 3)
    torch.testing.assert_close(
        turned, images.roll(1, dims=1), **near
    )  # a third of the circle: red becomes green
    torch.testing.assert_close(turned.sum(dim=1), images.sum(dim=1), **near)


def test_a_turn_of_hue_keeps_the_distance_from_grey() -> None:
    images, turned = 0.4 + 0.2 * _images(1), _by(6, 0.83, hue=0.4)

    def chroma(pixels: torch.Tensor) -> torch.Tensor:
        return (pixels - pixels.mean(dim=1, keepdim=True)).norm(dim=1)

    torch.testing.assert_close(chroma(turned), chroma(images), rtol=0, atol=1e-5)
    assert (turned - images).abs().max() > 0.02 and math.isfinite(float(turned.sum()))


# Stains


def _stained(image: np.ndarray, factors: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """One pixel after the other, in float64, as the textbook has it. `image` is (H, W, 3) in [0, 1]."""
    mix = np.array(HED_DENSITIES)
    density = -np.log(np.maximum(image, 1 / 255))
    stains = np.linalg.solve(mix.T, density.reshape(-1, 3).T).T  # (H*W, 3)
    again = (stains * factors + offsets) @ mix
    return np.clip(np.exp(-again), 0, 1).reshape(image.shape)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_stains_are_unmixed_jittered_and_mixed_again(dtype: torch.dtype) -> None:
    tiles = (torch.rand(5, 3, 9, 9, generator=torch.Generator().manual_seed(3)) * 256).to(torch.uint8)
    tiles[0, :, 0, 0] = 0  # black has no density
    config, draws = Config(**{**STILL, "hed_jitter": 0.3}), _draws(5)
    found = augment(tiles if dtype == torch.uint8 else tiles.float() / 255, draws, config)
    for tile, draw, result in zip(tiles, draws.double().numpy(), found, strict=True):
        image = tile.permute(1, 2, 0).double().numpy() / 255
        wanted = _stained(image, 1 + 0.3 * (draw[7:10] * 2 - 1), 0.3 * (draw[10:13] * 2 - 1))
        np.testing.assert_allclose(result.permute(1, 2, 0).numpy(), wanted, atol=2e-5)


def test_stains_come_before_colours_and_each_has_its_own_draw() -> None:
    images, draws = 0.2 + 0.6 * _images(6), _draws(6)
    both = augment(
        images,
        draws,
        Config(**{**STILL, "hed_jitter": 0.05, "brightness": 0.1, "contrast": 0.1, "saturation": 0.1}),
    )
    stains = augment(images, draws, Config(**{**STILL, "hed_jitter": 0.05}))
    apart = augment(stains, draws, Config(**{**STILL, "brightness": 0.1, "contrast": 0.1, "saturation": 0.1}))
    torch.testing.assert_close(both, apart, rtol=0, atol=2e-5)
    assert len({round(float(value), 5) for value in (stains - images).mean(dim=(1, 2, 3))}) == 6


@pytest.mark.parametrize(
    "config",
    [
        STRONG,
        Config(hed_jitter=0.1),
        Config(**STILL),
        Config(rotate="none"),
        Config(rotate="none", hed_jitter=0.1),
    ],
)
def test_bytes_and_fractions_give_the_same(config: Config) -> None:
    tiles = (torch.rand(60, 12, 12, 3, generator=torch.Generator().manual_seed(3)) * 256).to(torch.uint8)
    images = tiles.permute(0, 3, 1, 2)  # as they come from the store: channels last
    before = tiles.clone()
    found = augment(images, _draws(60), config)
    assert found.dtype == torch.float32 and found.is_contiguous() and found.min() >= 0 and found.max() <= 1
    torch.testing.assert_close(found, augment(images.float() / 255, _draws(60), config), rtol=0, atol=3e-5)
    assert torch.equal(tiles, before)


def test_whole_batches_and_pieces_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU works on the batch as a whole, a CPU on pieces of one symmetry."""
    config, images, draws = Config(hed_jitter=0.1), (_images(70) * 255).to(torch.uint8), _draws(70)
    pieces = augment(images, draws, config)
    turned = transform_each(images, symmetries(draws, config))
    whole = jitter_colours(turned.float() / 255, draws, config)
    torch.testing.assert_close(pieces, whole, rtol=0, atol=3e-5)


def test_the_size_is_that_of_the_network() -> None:
    images, draws = (_images(5) * 255).to(torch.uint8), _draws(5)
    small = augment(images, draws, Config(hed_jitter=0.1), shrink=lambda some: some[..., ::2, ::2])
    assert small.shape == (5, 3, 6, 6) and small.max() <= 1


# Comparison with other libraries


@pytest.fixture(scope="module")
def stained(tissue: list[Path]) -> torch.Tensor:
    """(12, 3, 96, 96) uint8 of the competition."""
    return torch.from_numpy(np.stack([decode_tile(path.read_bytes()) for path in tissue])).permute(0, 3, 1, 2)


def test_stains_are_unmixed_as_scikit_image_does(stained: torch.Tensor) -> None:
    """skimage has densities in units of ln(10^6) and clips negative ones: pixels without any are compared."""
    draws = _draws(12)
    found = augment(stained, draws, Config(**{**STILL, "hed_jitter": 0.2})).permute(0, 2, 3, 1).numpy()
    stains = rgb2hed(np.maximum(stained.permute(0, 2, 3, 1).numpy() / 255, 1 / 255))  # (B, H, W, 3)
    shift = 0.2 * (draws[:, None, None].double().numpy() * 2 - 1)
    wanted = hed2rgb(stains * (1 + shift[..., 7:10]) + shift[..., 10:13] / math.log(1e6))
    comparable = (stains > 0).all(axis=3)
    assert comparable.mean() > 0.5
    assert np.abs(found - wanted)[comparable].max() < 1e-5
    assert np.abs(found - stained.permute(0, 2, 3, 1).numpy() / 255).max() > 0.1


def test_any_angle_is_that_of_scipy_and_scikit_image(stained: torch.Tensor) -> None:
    draws = _draws(12)
    draws[:, 2] = torch.linspace(0.01, 0.99, 12)
    found = augment(stained, draws, Config(**{**STILL, "rotate": "any"})).permute(0, 2, 3, 1).numpy()
    for tile, turn, result in zip(
        stained.permute(0, 2, 3, 1).numpy() / 255, draws[:, 2].tolist(), found, strict=True
    ):
        by_scipy = ndimage.rotate(tile, 360 * turn, axes=(0, 1), reshape=False, order=1, mode="reflect")
        by_skimage = rotate(tile, 360 * turn, order=1, mode="symmetric")
        assert max(np.abs(result - by_scipy).max(), np.abs(result - by_skimage).max()) < 5e-5


def test_colours_are_those_of_torchvision(stained: torch.Tensor) -> None:
    """Its luma is 0.2989, 0.587, 0.114; the sum of 0.9999 explains the tolerance of 0.01 grey levels."""
    images = 0.3 + 0.4 * stained.float() / 255  # so that nothing is cut off
    for column, knob, theirs in (
        (3, "brightness", adjust_brightness),
        (4, "contrast", adjust_contrast),
        (5, "saturation", adjust_saturation),
    ):
        for drawn in (0.0, 0.3, 1.0):
            draws = torch.full((12, DRAWS), 0.5)
            draws[:, column] = drawn
            found = jitter_colours(images, draws, Config(**{**STILL, knob: 0.2}))
            wanted = torch.stack([theirs(image, 1 + 0.2 * (2 * drawn - 1)) for image in images])
            assert (found - wanted).abs().max() < 4e-5, knob


def test_hue_is_scipys_rotation_about_grey(stained: torch.Tensor) -> None:
    images = 0.4 + 0.2 * stained.float() / 255
    draws = torch.full((12, DRAWS), 0.5)
    draws[:, 6] = torch.linspace(0, 1, 12)
    found = jitter_colours(images, draws, Config(**{**STILL, "hue": 0.1})).permute(0, 2, 3, 1).numpy()
    for image, drawn, result in zip(
        images.permute(0, 2, 3, 1).double().numpy(), draws[:, 6].tolist(), found, strict=True
    ):
        turn = Rotation.from_rotvec(2 * math.pi * 0.1 * (2 * drawn - 1) * np.ones(3) / math.sqrt(3))
        assert np.abs(turn.apply(image.reshape(-1, 3)).reshape(image.shape) - result).max() < 1e-6
