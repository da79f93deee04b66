"""Stain normalisation: a tile of known stains gets those of the reference; other tiles are unchanged."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.image import stain
from lib.image.dihedral import ORDER, transform
from lib.image.stain import lalphabeta, normalise_stains

METHODS = ["macenko", "reinhard"]


def stained(stains: np.ndarray, *, strength: float = 1.0, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """Images (1, 3, 48, 48) of two stains with densities (2, 3), and concentrations (2, 2304).

    Some pixels have only one stain.
    """
    generator = np.random.default_rng(seed)
    amounts = generator.uniform(0.9, 1.5, (2, 48 * 48))
    amounts[0, :200], amounts[1, 200:400] = 0.0, 0.0
    density = strength * amounts.T @ stains  # (P, 3)
    image = np.exp(-density).astype(np.float32).T.reshape(1, 3, 48, 48)
    return torch.from_numpy(image), strength * amounts


REFERENCE = np.asarray(stain._REFERENCE_STAINS)
OTHER = np.array([[0.65, 0.70, 0.29], [0.30, 0.85, 0.45]])


@pytest.mark.parametrize("strength", [0.8, 1.0])
def test_macenko_finds_the_stains_and_their_strength(strength: float) -> None:
    """The percentiles that Macenko's method takes leave it a little inside the true stains."""
    image, amounts = stained(OTHER / np.linalg.norm(OTHER, axis=1, keepdims=True), strength=strength)
    most = np.quantile(amounts, 0.99, axis=1)
    wanted = np.exp(
        -(amounts / most[:, None] * np.array(stain._REFERENCE_MOST)[:, None]).T @ REFERENCE
    ).T.reshape(1, 3, 48, 48)
    found = normalise_stains(image, "macenko").numpy()
    assert np.abs(found - wanted).max() < 0.05
    assert np.abs(found - image.numpy()).max() > 0.1


def test_macenko_gives_the_same_for_a_weaker_stain() -> None:
    vectors = OTHER / np.linalg.norm(OTHER, axis=1, keepdims=True)
    weak, strong = (
        normalise_stains(stained(vectors, strength=strength)[0], "macenko") for strength in (0.8, 1.1)
    )
    assert (weak - strong).abs().max() < 0.03


def test_reinhard_gives_the_mean_and_the_spread_of_the_reference() -> None:
    image = 0.4 + 0.2 * torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(3))
    values = lalphabeta(normalise_stains(image, "reinhard").flatten(2))[0]
    assert np.allclose(values.mean(dim=1), stain._REFERENCE_MEAN, atol=0.01)  # what leaves [0, 1] is cut off
    assert np.allclose(values.std(dim=1), stain._REFERENCE_SPREAD, rtol=0.1)


def test_the_decorrelated_space_is_that_of_the_paper() -> None:
    """By hand: white is (log10 of the LMS row sums) turned by Ruderman's matrix."""
    lms = np.asarray(stain._LMS).sum(axis=1)
    by_hand = np.asarray(stain._RUDERMAN) @ np.log10(lms)
    assert np.allclose(lalphabeta(torch.ones(1, 3, 1))[0, :, 0], by_hand, atol=1e-6)
    matrix = np.asarray(stain._RUDERMAN)
    assert np.allclose(matrix @ matrix.T, np.eye(3))  # so its transpose leads back


@pytest.mark.parametrize("method", METHODS)
def test_a_tile_with_nothing_stained_is_left_alone(method: str) -> None:
    for colour in (0.0, 0.95, 1.0):
        image = torch.full((2, 3, 32, 32), colour)
        assert torch.equal(normalise_stains(image, method), image)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(0, 1), min_size=3, max_size=3),
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([1e-4, 1.0, 100.0]),
)
def test_the_principal_plane_is_that_of_an_eigendecomposition(
    values: list[float], seed: int, scale: float
) -> None:
    """Orthonormal eigenvectors of the two largest eigenvalues, for equal eigenvalues, too."""
    turn = torch.linalg.qr(
        torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ).Q
    ordered = torch.tensor(sorted(values), dtype=torch.float64) * scale
    matrix = turn @ ordered.diag() @ turn.T
    plane = stain._principal_plane(matrix[None])[0]  # (3, 2)
    torch.testing.assert_close(plane.T @ plane, torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(matrix @ plane, plane * ordered[1:], rtol=0, atol=1e-6 * scale)


def _with_a_streak(
    glass: tuple[float, ...], streak: tuple[float, ...], *, columns: int, noise: float
) -> torch.Tensor:
    """A tile (1, 3, 96, 96) of glass with stained columns, and noise of so many grey levels."""
    pixels = np.full((96, 96, 3), glass, dtype=np.float64)
    pixels[:, 40 : 40 + columns] = streak
    pixels += np.random.default_rng(0).normal(0, noise, pixels.shape)
    return torch.from_numpy(np.clip(pixels, 0, 255) / 255).permute(2, 0, 1)[None].float()


@pytest.mark.parametrize("method", METHODS)
def test_a_tile_with_hardly_any_stain_is_left_alone(method: str) -> None:
    """Its few stained pixels say nothing about the stains: Reinhard made this glass grey-violet."""
    image = _with_a_streak((249, 249, 249), (205, 170, 200), columns=2, noise=1.5)
    assert torch.equal(normalise_stains(image, method), image)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("columns", [3, 12, 60])
def test_glass_beside_tissue_stays_as_it_is(method: str, columns: int) -> None:
    """Macenko divided by the tiny concentrations of a faint tile and turned its glass violet."""
    image = _with_a_streak((232, 236, 233), (195, 165, 200), columns=columns, noise=1.0)
    found = normalise_stains(image, method)
    glass = torch.ones(96, dtype=torch.bool)
    glass[40 : 40 + columns] = False
    assert torch.equal(found[..., glass], image[..., glass])
    if columns > 10:
        assert not torch.allclose(found[..., ~glass], image[..., ~glass], atol=0.02)


@pytest.mark.parametrize("method", METHODS)
def test_black_beside_tissue_stays_black(method: str) -> None:
    """Black is the edge of a scan, not tissue, and does not decide the stains."""
    tissue, _ = stained(OTHER * 0.8)
    image = tissue.clone()
    image[..., :12] = 0
    found = normalise_stains(image, method)
    assert (found[..., :12] == 0).all()
    assert (found[..., 12:] - normalise_stains(tissue, method)[..., 12:]).abs().mean() < 0.05


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), method=st.sampled_from(METHODS))
def test_anything_gives_an_image_each_tile_for_itself(seed: int, method: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(3, 3, 16, 16, generator=generator) ** (
        torch.rand(3, 1, 1, 1, generator=generator) * 6
    )
    found = normalise_stains(images, method)
    assert found.shape == images.shape and found.isfinite().all() and found.min() >= 0 and found.max() <= 1
    assert torch.allclose(found[1:2], normalise_stains(images[1:2], method), atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_a_turned_tile_is_normalised_as_the_tile(method: str) -> None:
    image, _ = stained(OTHER * 0.8)
    found = normalise_stains(image, method)
    for element in range(ORDER):
        assert torch.allclose(
            normalise_stains(transform(image, element), method), transform(found, element), atol=1e-3
        )


def test_method_none_changes_nothing() -> None:
    images = torch.rand(1, 3, 8, 8)
    assert normalise_stains(images, "none") is images
