"""Attribution maps against a network with a known answer and against the formulas; shares in the centre."""

import pytest
import timm
import torch
from torch import nn

from lib.config import Config
from lib.explain.attribution import ExplainError, attribute, share_in_centre
from lib.explain.hard_tiles import CENTRE_SHARE
from lib.image.dihedral import transform
from lib.model.network import Classifier, build_network


class RedNetwork(nn.Module):
    """Its feature map is red and green of 12 x 12 cells; red is evidence for tumour, green against it."""

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(images[:, :2], 8)

    def forward_head(self, features: torch.Tensor) -> torch.Tensor:
        return features.mean(dim=(2, 3)) @ torch.tensor([[1.0], [-1.0]])


def red_network() -> Classifier:
    return Classifier(RedNetwork(), input_size=96, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def test_grad_cam_is_where_the_red_is() -> None:
    tiles = torch.zeros(3, 3, 96, 96)
    tiles[0, 0, 32:64, 32:64] = 1.0  # red in the centre
    tiles[1, 1] = 1.0  # green everywhere: nothing is evidence for tumour
    tiles[2, 0, :16, :16] = 1.0  # red in a corner
    maps = attribute(red_network(), tiles)
    assert maps.shape == (3, 96, 96) and (maps >= 0).all()
    assert torch.allclose(maps.sum(dim=(1, 2)), torch.tensor([1.0, 0.0, 1.0]))
    shares = share_in_centre(maps)
    assert shares[0] > 0.85 and torch.isnan(shares[1]) and shares[2] == 0


def test_a_uniform_map_has_a_ninth_in_the_centre() -> None:
    assert share_in_centre(torch.full((1, 96, 96), 0.3)) == pytest.approx(CENTRE_SHARE)


def test_grad_cam_is_its_formula() -> None:
    """Recomputed with a hook on the network as it is called."""
    torch.manual_seed(0)
    network = build_network(Config(backbone="test_resnet", input_size=96, weights="none")).eval()
    tiles = torch.rand(2, 3, 96, 96)
    kept: list[torch.Tensor] = []

    def keep(module: nn.Module, given: object, found: torch.Tensor) -> None:
        found.retain_grad()
        kept.append(found)

    hook = network.backbone.layer4.register_forward_hook(keep)  # type: ignore[union-attr]
    network(tiles).sum().backward()
    hook.remove()
    gradient = kept[0].grad
    assert gradient is not None
    cam = (gradient.mean(dim=(2, 3), keepdim=True) * kept[0]).sum(dim=1, keepdim=True).clamp(min=0)
    fine = nn.functional.interpolate(cam, size=(96, 96), mode="bilinear", align_corners=False)[:, 0].detach()
    maps = attribute(network, tiles)
    for found, wanted in zip(maps, fine, strict=True):
        if wanted.sum() > 0:
            assert torch.allclose(found, wanted / wanted.sum(), atol=1e-7)


@pytest.mark.parametrize("pooling", ["native", "avgmax", "gem", "attention"])
def test_every_pool_can_be_explained(pooling: str) -> None:
    torch.manual_seed(0)
    network = build_network(Config(backbone="test_resnet", input_size=64, weights="none", pooling=pooling))
    maps = attribute(network, torch.rand(2, 3, 96, 96))
    assert maps.shape == (2, 96, 96) and maps.isfinite().all()
    assert all(
        parameter.grad is None for parameter in network.parameters()
    )  # the parameters keep no gradient


@pytest.mark.parametrize(
    ("backbone", "pooling"),
    [
        ("test_vit", "native"),
        ("test_vit", "avg"),
        ("vit_tiny_patch16_224", "native"),
        ("vit_small_patch16_dinov3", "avgmax"),
    ],
)
def test_rollout_sums_to_one_and_leaves_the_network_as_it_was(backbone: str, pooling: str) -> None:
    torch.manual_seed(0)
    network = build_network(Config(backbone=backbone, input_size=96, weights="none", pooling=pooling)).eval()
    tiles = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        before = network(tiles)
    maps = attribute(network, tiles)
    assert torch.allclose(maps.sum(dim=(1, 2)), torch.ones(2), atol=1e-5)
    with torch.no_grad():
        assert torch.equal(network(tiles), before)
    assert not any(module._forward_hooks for module in network.modules())


def test_rollout_of_one_layer_is_its_formula() -> None:
    torch.manual_seed(0)
    body = timm.create_model("vit_tiny_patch16_224", img_size=96, num_classes=1, depth=1)
    network = Classifier(body, input_size=96, mean=(0.5,) * 3, std=(0.5,) * 3).eval()
    tiles = torch.rand(1, 3, 96, 96)
    maps = attribute(network, tiles)
    block = body.blocks[0]
    with torch.no_grad():
        tokens = block.norm1(body.norm_pre(body._pos_embed(body.patch_embed(network.normalise(tiles)))))
        query, key, _ = block.attn.qkv(tokens).reshape(1, 37, 3, 3, 64).permute(2, 0, 3, 1, 4)
        attention = (query @ key.transpose(-2, -1) / 8).softmax(dim=-1).mean(dim=1)  # (1, 37, 37)
    row = (0.5 * attention + 0.5 * torch.eye(37))[:, 0, 1:].view(1, 1, 6, 6)
    fine = nn.functional.interpolate(row, size=(96, 96), mode="bilinear", align_corners=False)[:, 0]
    assert torch.allclose(maps, fine / fine.sum(), atol=1e-7)


def test_a_mirrored_tile_has_a_mirrored_map() -> None:
    tiles = torch.rand(1, 3, 96, 96)
    maps = attribute(red_network(), tiles)
    assert torch.allclose(attribute(red_network(), transform(tiles, 4)), transform(maps, 4), atol=1e-7)


def test_a_network_without_a_map_says_so() -> None:
    flat = Classifier(
        nn.Sequential(nn.Flatten(), nn.Linear(27648, 1)), input_size=96, mean=(0.5,) * 3, std=(0.5,) * 3
    )
    with pytest.raises(ExplainError, match="no feature map"):
        attribute(flat, torch.rand(1, 3, 96, 96))
