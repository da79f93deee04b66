"""Batches of tiles: order, columns, sizes; on a CPU, prefetched, or from the memory of the device."""

import threading
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.data import batches as module
from lib.data.batches import Batch, as_images, load_batches
from lib.data.device_memory import DeviceTiles, upload

CPU = torch.device("cpu")
Loader = Callable[..., Generator[Batch]]


def _as_for_a_gpu(tiles: np.ndarray, rows: np.ndarray, **rest: Any) -> Generator[Batch]:
    """`load_batches` as it runs for a GPU, with the copies on the CPU."""
    prefetch = module.prefetch_batches

    def on_the_cpu(*args: Any, device: torch.device, columns: Any) -> Generator[Batch]:
        assert device.type == "cuda"
        return prefetch(*args, device=CPU, columns=columns)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "prefetch_batches", on_the_cpu)
        yield from load_batches(tiles, rows, **{**rest, "device": torch.device("cuda", 0)})


def _from_the_device(tiles: np.ndarray, rows: np.ndarray, **rest: Any) -> Generator[Batch]:
    """`load_batches` of tiles that are in the device's memory, which is the host's here."""
    placed = DeviceTiles(tiles)
    placed.resident = upload(tiles, CPU)
    with pytest.MonkeyPatch.context() as patch:  # a GPU's ways of loading from the host are not taken
        patch.setattr(module, "prefetch_batches", lambda *_, **__: pytest.fail("loaded from the host"))
        yield from load_batches(placed, rows, **{**rest, "device": torch.device("cuda", 0)})


LOADERS = [
    pytest.param(load_batches, id="cpu"),
    pytest.param(_as_for_a_gpu, id="prefetched"),
    pytest.param(_from_the_device, id="on-the-device"),
]
all_loaders = pytest.mark.parametrize("load", LOADERS)


@all_loaders
@pytest.mark.parametrize("mode", [nullcontext, torch.no_grad, torch.inference_mode])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_row_comes_once_in_its_order_with_its_columns(
    load: Loader, mode: Callable[[], AbstractContextManager[None]], data: st.DataObject
) -> None:
    tiles = np.random.default_rng(0).integers(0, 256, (9, 4, 4, 3), dtype=np.uint8)
    rows = np.array(data.draw(st.lists(st.integers(0, 8), max_size=30)), dtype=np.int64)
    size = data.draw(st.integers(1, 12))
    labels, draws = torch.arange(len(rows)), torch.rand(len(rows), 3)
    with mode():
        batches = list(load(tiles, rows, batch_size=size, device=CPU, columns=(labels, draws)))
    assert [len(images) for images, _ in batches] == [
        len(rows[start : start + size]) for start in range(0, len(rows), size)
    ]
    if not batches:
        return
    images = torch.cat([images for images, _ in batches])
    assert images.dtype == torch.uint8 and images.shape == (len(rows), 3, 4, 4)
    np.testing.assert_array_equal(images.permute(0, 2, 3, 1).numpy(), tiles[rows])
    assert torch.equal(torch.cat([columns[0] for _, columns in batches]), labels)
    assert torch.equal(torch.cat([columns[1] for _, columns in batches]), draws)


@all_loaders
def test_batches_may_have_sizes_of_their_own(load: Loader, random_tiles: Callable[..., np.ndarray]) -> None:
    batches = load(random_tiles(10), np.arange(10), batch_size=[3, 3, 1, 3], device=CPU)
    assert [len(images) for images, _ in batches] == [3, 3, 1, 3]


@all_loaders
def test_a_loop_that_stops_early_leaves_no_thread(
    load: Loader, random_tiles: Callable[..., np.ndarray]
) -> None:
    batches = load(random_tiles(10), np.arange(10), batch_size=2, device=CPU)
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_prefetching_gathers_the_next_batch_in_a_thread_before_it_is_requested(
    random_tiles: Callable[..., np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    filled: list[tuple[int, str]] = []
    second = threading.Event()
    real = module._TransferBuffers.fill

    def recorded(self: Any, number: int, *rest: Any) -> Batch:
        batch = real(self, number, *rest)
        filled.append((number, threading.current_thread().name))
        if number == 1:
            second.set()
        return batch

    monkeypatch.setattr(module._TransferBuffers, "fill", recorded)
    batches = _as_for_a_gpu(random_tiles(6), np.arange(6), batch_size=2, device=CPU)
    next(batches)
    assert second.wait(10) and [number for number, _ in filled] == [0, 1]
    assert all(thread.startswith("batches") for _, thread in filled)
    batches.close()


def test_prefetching_gathers_without_threads_of_torch(
    random_tiles: Callable[..., np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A team of threads beside a busy caller waits for its cores: the gathering takes one thread."""

    def refuse(*arguments: Any, **options: Any) -> torch.Tensor:
        raise AssertionError("torch gathers with several threads")

    monkeypatch.setattr(torch, "index_select", refuse)
    monkeypatch.setattr(torch.Tensor, "index_select", refuse)
    tiles = random_tiles(8)
    threads = torch.get_num_threads()
    batches = list(_as_for_a_gpu(tiles, np.array([7, 0, 7]), batch_size=2, device=CPU))
    images = torch.cat([images for images, _ in batches]).permute(0, 2, 3, 1)
    np.testing.assert_array_equal(images.numpy(), tiles[[7, 0, 7]])
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("rows", [[0, 8], [-1]])
@all_loaders
def test_rows_that_do_not_exist_are_an_error(
    load: Loader, rows: list[int], random_tiles: Callable[..., np.ndarray]
) -> None:
    with pytest.raises(IndexError):
        list(load(random_tiles(8), np.array(rows), batch_size=2, device=CPU))


@all_loaders
def test_a_batch_is_the_callers_own(load: Loader, random_tiles: Callable[..., np.ndarray]) -> None:
    tiles = random_tiles(6)
    before = tiles.copy()
    for images, _ in load(tiles, np.arange(6), batch_size=2, device=CPU):
        images.fill_(0)
    np.testing.assert_array_equal(tiles, before)


@all_loaders
def test_tiles_whose_bytes_are_no_whole_words_are_loaded(load: Loader) -> None:
    tiles = np.random.default_rng(0).integers(0, 256, (5, 3, 3, 3), dtype=np.uint8)
    [(images, _)] = load(tiles, np.array([4, 0, 4]), batch_size=3, device=CPU)
    np.testing.assert_array_equal(images.permute(0, 2, 3, 1).numpy(), tiles[[4, 0, 4]])
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_images_are_fractions(random_tiles: Callable[..., np.ndarray]) -> None:
    [(sent, _)] = load_batches(random_tiles(2), np.arange(2), batch_size=2, device=CPU)
    images = as_images(sent)
    assert images.is_contiguous() and torch.equal(
        images, torch.from_numpy(random_tiles(2)).permute(0, 3, 1, 2) / 255
    )
