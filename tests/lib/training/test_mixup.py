"""Blended tiles have blended labels, the same after an interruption."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from lib.config import Config
from lib.training.mixup import build_mix, smooth


def flat(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tiles that are all their label: what is blended into one can be read off it."""
    labels = (torch.arange(count) % 3 == 0).float()
    return labels.view(-1, 1, 1, 1).expand(-1, 3, 48, 48).clone(), labels


@pytest.mark.parametrize("options", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
@pytest.mark.parametrize("count", [1, 2, 7, 8])
def test_a_label_is_the_share_of_tumour_pixels_of_the_centre_that_was_blended_in(
    options: dict[str, float], count: int
) -> None:
    mix = build_mix(Config(**options), seed=5)  # type: ignore[arg-type]
    assert mix is not None
    blended = 0
    for _ in range(20):
        images, labels = flat(count)
        mixed, soft = mix(images.clone(), labels)
        assert torch.allclose(mixed[:, :, 16:32, 16:32].mean(dim=(1, 2, 3)), soft, atol=1e-5)
        assert soft.shape == labels.shape and soft.dtype == labels.dtype
        blended += int(((soft > 0) & (soft < 1)).any())
        if count % 2:
            assert soft[-1] == labels[-1]
    assert (blended > 0) == (count > 1)


@pytest.mark.parametrize("side", [96, 48, 144, 32, 64])
def test_cutmix_weighs_the_label_by_the_replaced_pixels_of_the_centre(side: int) -> None:
    """At every input size the centre is the middle third of the side, in parts of pixels if need be."""
    mix = build_mix(Config(cutmix=1.0), seed=1)
    assert mix is not None
    whole = 0
    for _ in range(100):
        images, labels = torch.zeros(2, 3, side, side), torch.tensor([0.0, 1.0])
        images[1] = 1.0
        mixed, soft = mix(images, labels)
        replaced = (
            mixed[0, 0].repeat_interleave(3, dim=0).repeat_interleave(3, dim=1)
        )  # 3 x 3 parts of each pixel
        centre = replaced[side : 2 * side, side : 2 * side]
        assert float(soft[0]) == pytest.approx(float(centre.mean()), abs=1e-5)
        assert float(soft[1]) == pytest.approx(1 - float(centre.mean()), abs=1e-5)
        whole += abs(float(soft[0]) - float(mixed[0].mean())) > 0.05
    assert whole > 50  # the share of the whole tile is another number


def test_the_seed_decides() -> None:
    def drawn(seed: int) -> torch.Tensor:
        np.random.seed(1)
        mix = build_mix(Config(mixup=1.0), seed=seed)
        assert mix is not None
        return mix(*flat(8))[1]

    assert torch.equal(drawn(3), drawn(3)) and not torch.equal(drawn(3), drawn(4))


def test_without_the_options_nothing_is_mixed() -> None:
    assert build_mix(Config(), seed=0) is None


def test_smoothing_spreads_the_label_over_both_classes() -> None:
    labels = torch.tensor([0.0, 1.0, 0.3])
    assert torch.allclose(smooth(labels, 0.1), torch.tensor([0.05, 0.95, 0.32]))
    assert smooth(labels, 0.0) is labels


def test_smoothing_is_that_of_torchs_cross_entropy() -> None:
    """A logit z is the pair of logits (0, z)."""
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(50, generator=generator), (torch.rand(50, generator=generator) < 0.4).float()
    ours = functional.binary_cross_entropy_with_logits(logits, smooth(labels, 0.15))
    pairs = torch.stack([torch.zeros(50), logits], dim=1)
    torch.testing.assert_close(ours, functional.cross_entropy(pairs, labels.long(), label_smoothing=0.15))
