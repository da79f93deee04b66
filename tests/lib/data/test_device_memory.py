"""Tiles in the memory of a device: whether there is room, the upload, and what follows when there is not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lib.config import Config
from lib.data import device_memory as module
from lib.data.device_memory import DeviceTiles, upload
from lib.training.epoch import memory_for_training

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
GIB = 1 << 30


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the free memory in GiB of a GPU, whose memory is the host's; 1 GiB of torch's is unused."""

    def with_free(free: float) -> None:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int((free - 1) * GIB), 16 * GIB))

    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2 * GIB)
    monkeypatch.setattr(module, "upload", lambda tiles, device: torch.zeros(1))
    return with_free


def _full_store() -> np.ndarray:
    """220,025 tiles, of which nothing is in memory."""
    return np.broadcast_to(np.zeros((), dtype=np.uint8), (220_025, 96, 96, 3))


@pytest.mark.parametrize(
    ("tiles_on", "free", "placed"),
    [
        ("auto", 11.7, True),  # 5.67 GiB of tiles and 6 of reserve
        ("auto", 11.6, False),
        ("device", 5.7, True),
        ("device", 5.6, False),
        ("host", 99.0, False),
    ],
)
def test_the_place_follows_the_option_and_the_free_memory(
    a_gpu: Callable[[float], None],
    caplog: pytest.LogCaptureFixture,
    tiles_on: str,
    free: float,
    placed: bool,
) -> None:
    a_gpu(free)
    tiles = DeviceTiles(_full_store())
    with caplog.at_level("INFO"):
        tiles.place(GPU, tiles_on=tiles_on, reserve=6 * GIB, name="fold 0")
    assert (tiles.resident is not None) == placed
    if tiles_on != "host":
        where = "are in device memory" if placed else "stay in host memory"
        assert f"{free:.1f} GiB of cuda:0 are free, and the tiles need 5.67" in caplog.text
        assert f"fold 0: the tiles {where}" in caplog.text


def test_a_cpu_keeps_one_copy(random_tiles: Callable[..., np.ndarray]) -> None:
    tiles = DeviceTiles(random_tiles(3))
    tiles.place(CPU, tiles_on="device", reserve=0, name="fold 0")
    assert tiles.resident is None


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: out of memory")]
)
def test_an_upload_that_runs_out_of_memory_leaves_the_tiles_on_the_host(
    a_gpu: Callable[[float], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: RuntimeError,
) -> None:
    a_gpu(15)
    tries: list[torch.device] = []

    def fail(tiles: np.ndarray, device: torch.device) -> torch.Tensor:
        tries.append(device)
        raise error

    monkeypatch.setattr(module, "upload", fail)
    tiles = DeviceTiles(_full_store())
    with caplog.at_level("INFO"):
        for _ in range(2):
            tiles.place(GPU, tiles_on="auto", reserve=0, name="fold 0")
    assert tiles.resident is None and tries == [GPU]  # it is not tried again
    assert "fold 0: the tiles stay in host memory: memory ran out during their upload" in caplog.text


def test_another_error_of_an_upload_is_shown(
    a_gpu: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    a_gpu(15)
    monkeypatch.setattr(
        module, "upload", lambda *_: (_ for _ in ()).throw(RuntimeError("an illegal memory access"))
    )
    with pytest.raises(RuntimeError, match="illegal"):
        DeviceTiles(_full_store()).place(GPU, tiles_on="auto", reserve=0, name="fold 0")


def test_released_tiles_are_not_placed_again(a_gpu: Callable[[float], None]) -> None:
    a_gpu(15)
    tiles = DeviceTiles(_full_store())
    place: dict[str, Any] = {"tiles_on": "auto", "reserve": 0, "name": "fold 0"}
    tiles.place(GPU, **place)
    tiles.free()
    tiles.place(GPU, **place)  # of the next member
    assert tiles.resident is not None and tiles.release()
    tiles.place(GPU, **place)
    assert tiles.resident is None and not tiles.release()


@pytest.mark.parametrize("count", [0, 1, 2, 4, 9])
def test_an_upload_copies_every_byte_in_chunks(
    count: int, random_tiles: Callable[..., np.ndarray], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of two tiles, from a file that is mapped; the last chunk is smaller."""
    tiles = random_tiles(9)[:count]
    np.save(tmp_path / "tiles.npy", tiles)
    monkeypatch.setattr(module, "_CHUNK", 2 * 96 * 96 * 3)
    mapped = np.load(tmp_path / "tiles.npy", mmap_mode="r" if count else None)
    with torch.inference_mode():
        found = upload(mapped, CPU)
    assert not found.is_inference()
    np.testing.assert_array_equal(found.numpy(), tiles)


@pytest.mark.parametrize(
    ("options", "tiles", "gib"),
    [
        ({}, 256, 6.0),
        ({}, 64, 2.0),
        ({"eval_batch_size": 3072}, 64, 12.0),
        ({"input_size": 192}, 256, 24.0),
        ({"stem": "no_pool"}, 256, 24.0),
    ],
)
def test_the_reserve_grows_with_the_pixels_of_a_pass(options: dict[str, Any], tiles: int, gib: float) -> None:
    assert memory_for_training(Config(**options), tiles=tiles) == int(gib * GIB)
