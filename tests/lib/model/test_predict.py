"""Logits averaged over views, independent of the batches, in the order of the rows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms.functional import resize, to_tensor

from lib.config import Config
from lib.data.device_memory import DeviceTiles
from lib.data.tiff import decode_tile
from lib.image.dihedral import transform
from lib.image.stain import normalise_stains
from lib.model import predict as module
from lib.model.network import Classifier, build_network
from lib.model.predict import PredictionError, predict_logits, predict_on_all

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network() -> Classifier:
    torch.manual_seed(0)
    return build_network(Config(backbone="test_resnet", input_size=32, weights="none")).eval()


def _predict(
    network: Classifier, tiles: np.ndarray, rows: Any, *, views: int = 1, batch_size: int = 4
) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.int64)
    return predict_logits(
        network, tiles, rows, views=views, batch_size=batch_size, device=CPU, precision=torch.float32
    )


@pytest.mark.parametrize("views", [1, 4, 8])
def test_the_mean_over_views_is_that_of_the_network(
    network: Classifier, random_tiles: Callable[..., np.ndarray], views: int
) -> None:
    tiles = random_tiles(5)
    images = torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        by_hand = torch.stack([network(transform(images, view)) for view in range(views)]).mean(dim=0)
    found = _predict(network, tiles, range(5), views=views)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, by_hand.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_tiles_are_predicted_in_the_stains_that_were_learnt_from(tissue: list[Path], method: str) -> None:
    torch.manual_seed(0)
    network = build_network(
        Config(backbone="test_resnet", input_size=32, weights="none", stain_normalisation=method)
    ).eval()
    tiles = np.stack([decode_tile(path.read_bytes()) for path in tissue])
    images = torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        by_hand, as_they_are = network(normalise_stains(images, method)).numpy(), network(images).numpy()
    found = _predict(network, tiles, range(12))
    np.testing.assert_allclose(found, by_hand, rtol=0, atol=1e-4)
    assert np.abs(by_hand - as_they_are).max() > 1e-3


def test_with_all_views_a_turned_tile_gets_the_same_logit(
    network: Classifier, random_tiles: Callable[..., np.ndarray]
) -> None:
    tile = random_tiles(1)[0]
    tiles = np.stack([np.rot90(each, turns) for each in (tile, tile[:, ::-1]) for turns in range(4)])
    eight, four, one = (_predict(network, tiles, range(8), views=views) for views in (8, 4, 1))
    assert np.ptp(eight) < 1e-5
    assert np.ptp(four[:4]) < 1e-5 and np.ptp(four[4:]) < 1e-5
    assert np.ptp(one) > 1e-4


def test_neither_batch_nor_order_changes_a_logit(
    network: Classifier, random_tiles: Callable[..., np.ndarray]
) -> None:
    tiles = random_tiles(7)
    whole = _predict(network, tiles, range(7), batch_size=7)
    for batch_size in (1, 3, 100):
        np.testing.assert_allclose(
            _predict(network, tiles, range(7), batch_size=batch_size), whole, rtol=0, atol=1e-5
        )
    rows = [5, 0, 5, 2]
    np.testing.assert_allclose(_predict(network, tiles, rows), whole[rows], rtol=0, atol=1e-5)
    assert len(_predict(network, tiles, [])) == 0


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_restored_and_the_weights_are_untouched(
    network: Classifier, random_tiles: Callable[..., np.ndarray], training: bool
) -> None:
    network.train(training)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    _predict(network, random_tiles(4), range(4), views=4)
    assert network.training is training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    network.eval()


def test_logits_that_are_not_finite_are_counted(
    network: Classifier, random_tiles: Callable[..., np.ndarray]
) -> None:
    class Broken(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.tensor([float("nan"), 1.0, float("inf"), -1.0][: len(images)]).unsqueeze(-1)

    broken = Classifier(Broken(), input_size=96, mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(PredictionError, match=r"2 of 4 logits(.|\n)*precision=float32"):
        _predict(broken, random_tiles(4), range(4))


def test_several_members_in_one_pass_predict_what_each_predicts(
    random_tiles: Callable[..., np.ndarray],
) -> None:
    tiles, networks = random_tiles(11), []
    for seed in range(3):
        torch.manual_seed(seed)
        networks.append(build_network(Config(backbone="test_resnet", input_size=32, weights="none")))
    networks[1].eval()
    together = predict_on_all(networks, tiles, views=4, batch_size=4, devices=[CPU, CPU], precision="auto")
    assert together.shape == (11, 3) and together.dtype == np.float32
    assert [network.training for network in networks] == [True, False, True]
    for at, network in enumerate(networks):
        np.testing.assert_array_equal(together[:, at], _predict(network, tiles, range(11), views=4))


def test_tiles_are_sent_once_for_all_members(
    network: Classifier, random_tiles: Callable[..., np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    real = module.load_batches

    def noted(tiles: np.ndarray, rows: np.ndarray, **rest: Any) -> Any:
        sent.append(len(rows))
        return real(tiles, rows, **rest)

    monkeypatch.setattr(module, "load_batches", noted)
    predict_on_all([network] * 4, random_tiles(6), views=8, batch_size=2, devices=[CPU], precision="auto")
    assert sent == [6]


def test_tiles_turned_one_by_one_by_pillow_give_the_same_logits(
    network: Classifier, tissue: list[Path]
) -> None:
    """From file to logit by other libraries: Pillow opens, rotates and mirrors, torchvision resizes."""
    tiles = np.stack([decode_tile(path.read_bytes()) for path in tissue])
    wanted = []
    for path in tissue:
        with Image.open(path) as file:
            both = [file.convert("RGB"), ImageOps.mirror(file.convert("RGB"))]
        views = [image.rotate(90 * turns) for image in both for turns in range(4)]
        images = torch.stack([resize(to_tensor(view), [32, 32], antialias=True) for view in views])
        with torch.no_grad():
            logits = [float(network.backbone((image[None] - network.mean) / network.std)) for image in images]
        wanted.append(sum(logits) / 8)
    np.testing.assert_allclose(_predict(network, tiles, range(12), views=8), wanted, rtol=0, atol=1e-5)


class Greedy(torch.nn.Module):
    """Mean colour as a logit, for at most two tiles: more of them do not fit the memory."""

    def __init__(self, error: RuntimeError, most: int = 2) -> None:
        super().__init__()
        self.error, self.most, self.sizes = error, most, list[int]()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(images))
        if len(images) > self.most:
            raise self.error
        return images.mean(dim=(1, 2, 3)).unsqueeze(1)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
        RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: error code 12"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be ..."),  # of pinned memory
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError("Unable to allocate 7.5 GiB for an array"),  # NumPy's
    ],
)
def test_a_prediction_without_enough_memory_goes_on_with_smaller_batches(
    random_tiles: Callable[..., np.ndarray], caplog: pytest.LogCaptureFixture, error: RuntimeError
) -> None:
    body, tiles = Greedy(error), random_tiles(11)
    greedy = Classifier(body, input_size=96, mean=(0.5,) * 3, std=(0.5,) * 3)
    with caplog.at_level("INFO"):
        found = _predict(greedy, tiles, range(11), batch_size=8)
    assert body.sizes == [8, 4, 2, 2, 2, 2, 2, 1]
    assert greedy.training
    assert "8 tiles at once; going on with 4, 0 of 11 are done" in caplog.text
    wanted = 2 * tiles.mean(axis=(1, 2, 3), dtype=np.float64) / 255 - 1
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


def test_tiles_in_the_devices_memory_are_freed_before_batches_shrink(
    random_tiles: Callable[..., np.ndarray],
) -> None:
    """In the second batch, when another program takes memory; the rows before it are kept."""
    tiles = DeviceTiles(random_tiles(11))
    tiles.resident = torch.from_numpy(tiles.host.copy())
    places: list[bool] = []

    def compute(batch: torch.Tensor) -> torch.Tensor:
        places.append(tiles.resident is not None)
        if len(places) > 1 and places[-1]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return batch.flatten(1)

    parts = module.compute_in_batches(compute, tiles, np.arange(11), batch_size=4, device=CPU)
    assert places == [True, True, False, False] and [len(part) for part in parts] == [4, 4, 3]
    wanted = tiles.host.transpose(0, 3, 1, 2).reshape(11, -1)
    np.testing.assert_array_equal(torch.cat(parts).numpy(), wanted)


def test_one_tile_may_lack_the_memory_that_the_tiles_take(random_tiles: Callable[..., np.ndarray]) -> None:
    tiles = DeviceTiles(random_tiles(1))
    tiles.resident = torch.from_numpy(tiles.host)

    def compute(batch: torch.Tensor) -> torch.Tensor:
        if tiles.resident is not None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return batch

    assert len(module.compute_in_batches(compute, tiles, np.arange(1), batch_size=1, device=CPU)) == 1


def test_rows_that_were_predicted_are_kept(random_tiles: Callable[..., np.ndarray]) -> None:
    body = Greedy(torch.OutOfMemoryError("CUDA out of memory"), most=99)

    def less(module: torch.nn.Module, images: Any) -> None:
        body.most = 99 if len(body.sizes) < 2 else 2  # after two batches another program takes memory

    body.register_forward_pre_hook(less)
    greedy = Classifier(body, input_size=96, mean=(0.5,) * 3, std=(0.5,) * 3)
    _predict(greedy, random_tiles(13), range(13), batch_size=4)
    assert body.sizes == [4, 4, 4, 2, 2, 1]


@pytest.mark.parametrize(
    ("error", "kind"),
    [(torch.OutOfMemoryError("CUDA out of memory"), PredictionError), (RuntimeError("else"), RuntimeError)],
)
def test_one_tile_without_memory_and_other_errors_end_the_prediction(
    random_tiles: Callable[..., np.ndarray], error: RuntimeError, kind: type[Exception]
) -> None:
    greedy = Classifier(Greedy(error, most=0), input_size=96, mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(kind, match=r"input_size|else"):
        _predict(greedy, random_tiles(3), range(3))
    assert greedy.training
