"""Tiles arrive in the order asked for, each with what belongs to it, whatever the sizes of the batches."""

from collections.abc import Callable

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.data.batches import as_images, load_batches

CPU = torch.device("cpu")


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_row_comes_once_in_its_order_with_its_columns(data: st.DataObject) -> None:
    tiles = np.random.default_rng(0).integers(0, 256, (9, 4, 4, 3), dtype=np.uint8)
    rows = np.array(data.draw(st.lists(st.integers(0, 8), max_size=30)), dtype=np.int64)
    size = data.draw(st.integers(1, 12))
    labels, draws = torch.arange(len(rows)), torch.rand(len(rows), 3)
    batches = list(load_batches(tiles, rows, batch_size=size, device=CPU, columns=(labels, draws)))
    assert [len(images) for images, _ in batches] == [
        len(rows[at : at + size]) for at in range(0, len(rows), size)
    ]
    if not batches:
        return
    images = torch.cat([images for images, _ in batches])
    assert images.dtype == torch.uint8 and images.shape == (len(rows), 3, 4, 4)
    np.testing.assert_array_equal(images.permute(0, 2, 3, 1).numpy(), tiles[rows])
    assert torch.equal(torch.cat([beside[0] for _, beside in batches]), labels)
    assert torch.equal(torch.cat([beside[1] for _, beside in batches]), draws)


def test_batches_may_have_sizes_of_their_own(random_tiles: Callable[..., np.ndarray]) -> None:
    found = load_batches(random_tiles(10), np.arange(10), batch_size=[3, 3, 1, 3], device=CPU)
    assert [len(images) for images, _ in found] == [3, 3, 1, 3]


def test_a_loop_that_stops_early_leaves_nothing_at_work(random_tiles: Callable[..., np.ndarray]) -> None:
    import threading

    batches = load_batches(random_tiles(10), np.arange(10), batch_size=2, device=CPU)
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_a_batch_is_the_callers_own(random_tiles: Callable[..., np.ndarray]) -> None:
    tiles = random_tiles(6)
    before = tiles.copy()
    for images, _ in load_batches(tiles, np.arange(6), batch_size=2, device=CPU):
        images.fill_(0)
    np.testing.assert_array_equal(tiles, before)


def test_images_are_fractions(random_tiles: Callable[..., np.ndarray]) -> None:
    [(sent, _)] = load_batches(random_tiles(2), np.arange(2), batch_size=2, device=CPU)
    images = as_images(sent)
    assert images.is_contiguous() and torch.equal(
        images, torch.from_numpy(random_tiles(2)).permute(0, 3, 1, 2) / 255
    )
