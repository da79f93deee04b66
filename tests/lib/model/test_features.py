"""What a frozen encoder says of tiles: view by view as by hand, and in blocks that survive a kill."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from lib.config import Config, ConfigError
from lib.data.tiff import decode_tile
from lib.image.dihedral import transform
from lib.image.stain import normalise_stains
from lib.model import features as module
from lib.model.features import Embedder, FeaturesError, feature_plan, publish_features, write_features
from lib.model.network import Classifier, build_network

CPU = torch.device("cpu")
CONFIG = Config(backbone="test_vit", input_size=64, train_mode="linear_probe", num_members=1)


def embed_tiles(network: Classifier, tiles: np.ndarray, **options: Any) -> np.ndarray:
    return Embedder(network, **options)(tiles)


@pytest.mark.parametrize("backbone", ["test_vit", "test_resnet"])
@pytest.mark.parametrize("views", [1, 8])
def test_a_vector_is_the_mean_of_the_backbones_over_the_views(
    backbone: str, views: int, random_tiles: Callable[..., np.ndarray]
) -> None:
    torch.manual_seed(0)
    network = build_network(dataclasses.replace(CONFIG, backbone=backbone)).eval()
    tiles = random_tiles(5)
    found = embed_tiles(network, tiles, views=views, batch_size=2, devices=[CPU, CPU], precision="float32")
    plain = timm.create_model(
        backbone, num_classes=0, **({"img_size": 64} if "vit" in backbone else {})
    ).eval()
    own = {k: v for k, v in network.backbone.state_dict().items() if not k.startswith(("head.", "fc."))}
    plain.load_state_dict(own, strict=True)
    images = network.normalise(network.resize(torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255))
    with torch.no_grad():
        by_hand = torch.stack([plain(transform(images, view)) for view in range(views)]).mean(dim=0)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, by_hand.numpy(), rtol=1e-4, atol=1e-5)


def test_tiles_are_embedded_in_the_stains_that_were_asked_for(tissue: list[Path]) -> None:
    network = build_network(dataclasses.replace(CONFIG, stain_normalisation="reinhard")).eval()
    tiles = np.stack([decode_tile(path.read_bytes()) for path in tissue])
    images = torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        by_hand = network.embed(normalise_stains(images, "reinhard")).numpy()
    found = embed_tiles(network, tiles, views=1, batch_size=5, devices=[CPU], precision="float32")
    np.testing.assert_allclose(found, by_hand, rtol=1e-4, atol=1e-4)


def test_the_head_of_the_mean_is_the_mean_of_the_heads(random_tiles: Callable[..., np.ndarray]) -> None:
    """Why keeping the mean over the views loses nothing to a linear head."""
    network = build_network(CONFIG).eval()
    weight = np.random.default_rng(0).normal(size=64).astype(np.float32)
    tiles = random_tiles(4)
    embed = partial(embed_tiles, network, batch_size=4, devices=[CPU], precision="float32")
    turned = [
        np.ascontiguousarray(transform(torch.from_numpy(tiles).permute(0, 3, 1, 2), v).permute(0, 2, 3, 1))
        for v in range(8)
    ]
    each = np.mean([embed(some, views=1) @ weight for some in turned], axis=0)
    np.testing.assert_allclose(embed(tiles, views=8) @ weight, each, rtol=1e-4, atol=1e-4)


def test_the_encoder_is_copied_once_for_all_blocks(
    random_tiles: Callable[..., np.ndarray], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    copies: list[object] = []
    real = module.deepcopy
    monkeypatch.setattr(module, "deepcopy", lambda network: (copies.append(network), real(network))[1])
    monkeypatch.setattr(module, "_BLOCK", 2)
    network = build_network(CONFIG)
    embed = Embedder(network, views=1, batch_size=2, devices=[CPU], precision="float32")
    write_features(tmp_path / "x.npy", random_tiles(5), plan="p", embed=embed)
    assert copies == [network]


def test_an_embedding_without_enough_memory_goes_on_with_smaller_batches(
    random_tiles: Callable[..., np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    network, tiles, sizes = build_network(CONFIG).eval(), random_tiles(7), list[int]()
    embed = partial(embed_tiles, network, tiles, views=1, devices=[CPU], precision="float32")
    wanted, real = embed(batch_size=2), type(network).embed

    def greedy(self: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, images)

    monkeypatch.setattr(type(network), "embed", greedy)
    np.testing.assert_allclose(embed(batch_size=4), wanted, rtol=1e-4, atol=1e-5)
    assert sizes == [4, 2, 2, 2, 1]


@pytest.mark.parametrize("block", [1, 2, 3])
def test_an_embedding_that_was_stopped_ends_in_the_same_bytes(
    block: int, tmp_path: Path, random_tiles: Callable[..., np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BLOCK", 3)
    tiles, asked = random_tiles(10), []

    def embed(some: np.ndarray) -> np.ndarray:
        asked.append(len(some))
        if len(asked) == block + 1 and len(tiles) == 10 and dying:
            raise KeyboardInterrupt
        return some.reshape(len(some), -1)[:, :7].astype(np.float32)

    dying = True
    with pytest.raises(KeyboardInterrupt):
        write_features(tmp_path / "a.npy", tiles, plan="p", embed=embed)
    assert not (tmp_path / "a.npy").exists()
    dying = False
    asked.clear()
    write_features(tmp_path / "a.npy", tiles, plan="p", embed=embed)
    assert asked == [3, 3, 3, 1][block:]
    publish_features(tmp_path / "a.npy")
    write_features(tmp_path / "b.npy", tiles, plan="p", embed=embed)
    publish_features(tmp_path / "b.npy")
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    assert np.array_equal(np.load(tmp_path / "a.npy"), tiles.reshape(10, -1)[:, :7].astype(np.float32))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npy", "b.npy"]
    # Another plan begins anew.
    asked.clear()
    write_features(tmp_path / "a.npy", tiles, plan="q", embed=embed)
    assert asked == [3, 3, 3, 1]


def test_the_plan_depends_on_the_encoder_and_not_on_the_training() -> None:
    facts = {"data_id": "d", "bundle_id": "b", "tiles": 3}
    plain = feature_plan(CONFIG, **facts)  # type: ignore[arg-type]
    assert feature_plan(dataclasses.replace(CONFIG, epochs=9, num_folds=3), **facts) == plain  # type: ignore[arg-type]
    for change in (
        {"tta_views": 4},
        {"input_size": 96},
        {"backbone": "test_resnet"},
        {"precision": "float16"},
    ):
        assert feature_plan(dataclasses.replace(CONFIG, **change), **facts) != plain  # type: ignore[arg-type]


def test_numbers_that_overflowed_are_refused(random_tiles: Callable[..., np.ndarray]) -> None:
    network = build_network(CONFIG)
    with torch.no_grad():
        network.backbone.norm.weight.fill_(float("inf"))  # type: ignore[union-attr, operator]
    with pytest.raises(FeaturesError, match="precision=float32"):
        embed_tiles(network, random_tiles(2), views=1, batch_size=2, devices=[CPU], precision="float32")


REFUSED = [
    ({"num_members": 2}, "num_members = 1"),
    ({"pooling": "gem"}, "native, avg"),
    ({"weights": "none"}, "random weights"),
]


@pytest.mark.parametrize(("knobs", "said"), REFUSED)
def test_knobs_that_a_frozen_encoder_cannot_have(knobs: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        dataclasses.replace(CONFIG, **knobs)  # type: ignore[arg-type]
