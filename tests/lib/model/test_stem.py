"""A stem without its max-pool or its stride: a finer map, the same weights; a refusal where there is nothing to leave out."""

import pytest
import timm
import torch

from lib.config import Config
from lib.model.network import build_network
from lib.model.stem import StemError, refine_stem


def side(network: torch.nn.Module, pixels: int = 64) -> int:
    with torch.no_grad():
        found: torch.Tensor = network.eval().forward_features(torch.zeros(1, 3, pixels, pixels))  # type: ignore[operator]
    return found.shape[-1]


@pytest.mark.parametrize(
    "backbone", ["test_resnet", "resnet18", "densenet121", "seresnext26d_32x4d", "resnetv2_50"]
)
@pytest.mark.parametrize(("stem", "finer"), [("keep", 1), ("no_pool", 2), ("no_stride", 4)])
def test_the_map_is_finer_and_the_weights_still_fit(backbone: str, stem: str, finer: int) -> None:
    plain, refined = (timm.create_model(backbone, num_classes=0) for _ in range(2))
    refine_stem(refined, stem)
    assert side(refined) == finer * side(plain)
    refined.load_state_dict(plain.state_dict(), strict=True)


def test_without_a_max_pool_only_the_stride_can_go() -> None:
    network = timm.create_model("efficientnet_b0", num_classes=0)
    with pytest.raises(StemError, match="no max-pool"):
        refine_stem(network, "no_pool")
    before = side(network)
    refine_stem(network, "no_stride")
    assert side(network) == 2 * before


@pytest.mark.parametrize("backbone", ["test_vit", "test_convnext"])
def test_patches_are_not_refined(backbone: str) -> None:
    with pytest.raises(StemError, match="stem = keep"):
        refine_stem(timm.create_model(backbone, num_classes=0), "no_stride")


def test_the_config_decides() -> None:
    network = build_network(Config(backbone="test_resnet", input_size=64, weights="none", stem="no_pool"))
    assert side(network.backbone) == 2 * side(
        build_network(Config(backbone="test_resnet", input_size=64)).backbone
    )
