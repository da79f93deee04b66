"""The eight symmetries form the group D4, for one image and for each sample of a batch."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lib.image.dihedral import ORDER, orient, transform, transform_each

PROBE = torch.arange(16.0).view(1, 4, 4)  # every pixel tells where it came from
IMAGES = [transform(PROBE, element) for element in range(ORDER)]


def _which(image: torch.Tensor) -> int:
    found = [element for element in range(ORDER) if torch.equal(image, IMAGES[element])]
    assert len(found) == 1, "not one of the eight"
    return found[0]


@pytest.fixture(scope="module")
def table() -> list[list[int]]:
    """table[b][a]: a, then b."""
    return [[_which(transform(IMAGES[a], b)) for a in range(ORDER)] for b in range(ORDER)]


def test_the_eight_are_distinct_and_closed(table: list[list[int]]) -> None:
    everything = set(range(ORDER))
    for element in range(ORDER):
        assert set(table[element]) == everything  # also a Latin square: each equation has one solution
        assert {row[element] for row in table} == everything


def test_the_first_is_the_identity(table: list[list[int]]) -> None:
    assert table[0] == [row[0] for row in table] == list(range(ORDER))


def test_each_has_an_inverse_on_both_sides(table: list[list[int]]) -> None:
    for element in range(ORDER):
        inverse = table[element].index(0)
        assert table[inverse][element] == 0


def test_it_is_associative_and_not_commutative(table: list[list[int]]) -> None:
    for a, b, c in itertools.product(range(ORDER), repeat=3):
        assert table[table[c][b]][a] == table[c][table[b][a]]
    assert any(table[b][a] != table[a][b] for a in range(ORDER) for b in range(ORDER))


def test_the_first_four_are_the_rotations_and_the_others_mirror(table: list[list[int]]) -> None:
    for a, b in itertools.product(range(4), repeat=2):
        assert table[b][a] == (a + b) % 4
    for element in range(4, 8):
        assert table[element][element] == 0  # a mirror undoes itself
    assert torch.equal(transform(PROBE, 1), torch.rot90(PROBE, 1, (-2, -1)))
    assert torch.equal(transform(PROBE, 4), PROBE.flip(-1))


@settings(max_examples=30, deadline=None)
@given(
    elements=st.lists(st.integers(0, 7), min_size=1, max_size=12),
    side=st.integers(1, 9),
    seed=st.integers(0, 2**31),
)
def test_each_sample_gets_its_own(elements: list[int], side: int, seed: int) -> None:
    images = torch.rand(len(elements), 3, side, side, generator=torch.Generator().manual_seed(seed))
    before = images.clone()
    found = transform_each(images, torch.tensor(elements))
    for image, element, result in zip(images, elements, found, strict=True):
        assert torch.equal(transform(image, element), result)
        assert torch.equal(orient(image, element), result)
    assert torch.equal(images, before)


def test_each_is_what_pillow_calls_by_its_name() -> None:
    ways = Image.Transpose
    named = [
        None,
        ways.ROTATE_90,  # anticlockwise
        ways.ROTATE_180,
        ways.ROTATE_270,
        ways.FLIP_LEFT_RIGHT,
        ways.TRANSPOSE,  # about the main diagonal: mirrored and a quarter turn
        ways.FLIP_TOP_BOTTOM,
        ways.TRANSVERSE,
    ]
    tile = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    image = torch.from_numpy(tile).permute(2, 0, 1)
    for element, way in enumerate(named):
        theirs = Image.fromarray(tile) if way is None else Image.fromarray(tile).transpose(way)
        assert np.array_equal(transform(image, element).permute(1, 2, 0).numpy(), np.asarray(theirs)), element
