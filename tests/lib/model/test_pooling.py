"""Pools against their formulas; float16 activations beyond 40; feature maps of every family of backbones."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers import SelectAdaptivePool2d

from lib.config import Config
from lib.image.dihedral import ORDER, transform
from lib.model.checkpoint import Identity, load_checkpoint, save_checkpoint
from lib.model.network import NetworkError, build_network
from lib.model.pooling import GatedAttentionPool, PooledBackbone, build_pool, feature_map

POOLS = ["avg", "avgmax", "gem", "attention"]


def features(seed: int = 0, channels: int = 6, side: int = 5) -> torch.Tensor:
    return torch.rand(3, channels, side, side, generator=torch.Generator().manual_seed(seed))


def test_the_mean_and_the_maximum_are_those_of_timm() -> None:
    images = features()
    assert torch.allclose(
        build_pool("avg", 6)(images), SelectAdaptivePool2d(pool_type="avg", flatten=True)(images)
    )
    assert torch.allclose(
        build_pool("avgmax", 6)(images), SelectAdaptivePool2d(pool_type="catavgmax", flatten=True)(images)
    )


def test_the_generalised_mean_is_the_mean_for_one_and_nears_the_maximum() -> None:
    images, pool = features(), build_pool("gem", 6)
    assert torch.allclose(pool(images), images.double().pow(3).mean(dim=(2, 3)).pow(1 / 3).float(), atol=1e-6)
    with torch.no_grad():
        pool.power.fill_(1.0)  # type: ignore[operator, union-attr]
        assert torch.allclose(pool(images), images.mean(dim=(2, 3)), atol=1e-6)
        pool.power.fill_(200.0)  # type: ignore[operator, union-attr]
        assert torch.allclose(pool(images), images.amax(dim=(2, 3)), atol=0.02)


def test_attention_begins_at_the_centre_and_its_weights_sum_to_one() -> None:
    pool = build_pool("attention", 6)
    assert isinstance(pool, GatedAttentionPool)
    weights = pool.weights(features())
    assert torch.allclose(weights.sum(dim=(1, 2)), torch.ones(3))
    assert weights[0].argmax() == 12 and weights[0, 2, 2] > 5 * weights[0, 0, 0]
    assert torch.allclose(weights[0], weights[1])  # nothing learned yet: only where a cell lies counts


def test_attention_learns_the_informative_position() -> None:
    torch.manual_seed(0)
    pool, images = build_pool("attention", 6), features()
    optimizer = torch.optim.Adam(pool.parameters(), lr=0.05)
    for _ in range(60):
        loss = -pool.weights(images)[:, 0, 0].log().mean()  # type: ignore[operator]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (pool.weights(images)[:, 0, 0] > 0.5).all()  # type: ignore[operator]


@pytest.mark.parametrize("name", POOLS)
def test_a_turned_map_has_the_same_vector(name: str) -> None:
    pool, images = build_pool(name, 6), features()
    for element in range(ORDER):
        assert torch.allclose(pool(transform(images, element)), pool(images), atol=1e-6)


@pytest.mark.parametrize("name", POOLS)
def test_activations_above_40_survive_float16(name: str) -> None:
    """The cube of 41 overflows float16; the vector must equal that of float32, also under autocast."""
    images = 45 + 10 * features()
    pool = build_pool(name, 6)
    with torch.autocast("cpu", dtype=torch.float16):
        found = PooledBackbone(_Given(), pool, channels=6 * int(pool.factor), drop_rate=0.0).pool(
            images.half()
        )  # type: ignore[arg-type]
    assert found.dtype == torch.float32 and found.isfinite().all()
    assert torch.allclose(found, pool(images.half().float()), rtol=1e-3)


class _Given(torch.nn.Module):
    """A backbone whose features are its images."""

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def forward_head(self, features: torch.Tensor, *, pre_logits: bool) -> torch.Tensor:
        assert pre_logits
        return features.mean(dim=(2, 3))


def test_the_head_computes_in_float32_whatever_the_backbone_does() -> None:
    body = PooledBackbone(_Given(), build_pool("gem", 6), channels=6, drop_rate=0.0)
    with torch.autocast("cpu", dtype=torch.float16):
        logits = body((50 + features()).half())
    assert logits.dtype == torch.float32 and logits.isfinite().all() and logits.shape == (3, 1)
    logits.sum().backward()
    assert all(
        parameter.grad is not None and parameter.grad.isfinite().all() for parameter in body.parameters()
    )


@pytest.mark.parametrize(
    ("backbone", "size"),
    [
        ("test_resnet", 64),
        ("test_vit", 64),
        ("test_vit2", 64),
        ("swin_tiny_patch4_window7_224", 64),
        ("test_efficientnet", 64),
    ],
)
def test_every_family_gives_a_map_with_the_tile_the_right_way_up(backbone: str, size: int) -> None:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"depths": (1, 1)} if "swin" in backbone else {}
    try:
        network = timm.create_model(backbone, num_classes=0, img_size=size, **arguments).eval()
    except TypeError:
        network = timm.create_model(backbone, num_classes=0).eval()
    images = torch.zeros(1, 3, size, size)
    with torch.no_grad():
        nothing = feature_map(network, network.forward_features(images))
        images[:, :, :8, -8:] = 3.0  # the corner above on the right
        change = (feature_map(network, network.forward_features(images)) - nothing).abs().sum(dim=1)[0]
    side = change.shape[0]
    assert change.shape == (side, side)
    if side > 1:
        row, column = divmod(int(change.argmax()), side)
        assert row < side / 2 <= column + 0.5


FAMILIES = {
    "resnet18": 64,
    "seresnext50_32x4d": 64,
    "densenet121": 64,
    "convnext_atto": 64,
    "test_convnext": 64,
    "mobilenetv3_small_050": 64,
    "eva02_tiny_patch14_224": 56,
    "vit_tiny_patch16_224": 64,
    "test_vit2": 64,
    "test_efficientnet": 64,
    "swin_tiny_patch4_window7_224": 64,
    "deit_tiny_distilled_patch16_224": 64,
}


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("backbone", FAMILIES)
def test_no_layer_of_a_backbone_is_dropped_by_a_pool(backbone: str, name: str) -> None:
    """Every parameter of the network learns: those between the backbone's own pooling and its logit, too."""
    torch.manual_seed(0)
    size = FAMILIES[backbone]
    network = build_network(Config(backbone=backbone, input_size=size, weights="none", pooling=name))
    network(torch.rand(2, 3, size, size)).sum().backward()
    assert [key for key, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize(
    "backbone", [name for name in FAMILIES if "vit_tiny" not in name and "deit" not in name]
)
def test_the_mean_is_that_of_backbones_that_pool_by_the_mean(backbone: str) -> None:
    torch.manual_seed(0)
    size = FAMILIES[backbone]
    config = Config(backbone=backbone, input_size=size, weights="none", pooling="avg")
    pooled = build_network(config).eval()
    native = build_network(dataclasses.replace(config, pooling="native")).eval()
    for parameter in pooled.parameters():  # norms and biases that do not start as identities
        torch.nn.init.normal_(parameter, std=0.05)
    state = pooled.backbone.backbone.state_dict()  # type: ignore[union-attr]
    loaded = native.backbone.load_state_dict(state, strict=False)
    assert not loaded.unexpected_keys and len(loaded.missing_keys) == 2  # the logit's weight and bias
    images = torch.rand(2, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(pooled.embed(images), native.embed(images), rtol=1e-4, atol=1e-5)


def test_a_learned_pooling_of_the_backbone_is_not_replaced() -> None:
    with pytest.raises(NetworkError, match="pooling = native"):
        build_network(Config(backbone="test_vit3", input_size=64, weights="none", pooling="avg"))


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_a_pooled_network_comes_back_from_its_checkpoint(backbone: str, name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = Config(backbone=backbone, input_size=64, weights="none", pooling=name, drop_rate=0.1)
    network = build_network(config).eval()
    identity = Identity(
        experiment="x", fold=0, member=0, data_id="d", fold_table_id="f", config=config.to_dict()
    )
    save_checkpoint(tmp_path / "x.safetensors", network, identity)
    images = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(load_checkpoint(tmp_path / "x.safetensors")[0](images), network(images))


def test_features_that_are_no_map_are_refused_with_the_option() -> None:
    with pytest.raises(ValueError, match="not a square map"):
        feature_map(torch.nn.Identity(), torch.zeros(1, 7, 3))
    with pytest.raises(ValueError, match="not a map"):
        feature_map(torch.nn.Identity(), torch.zeros(1, 7))
    with pytest.raises(NetworkError, match="cannot be built with"):
        build_network(Config(backbone="test_vit", input_size=64, weights="none", stem="no_pool"))
