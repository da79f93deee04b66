"""Prediction: logits of tiles averaged over D4 views, for out-of-fold tiles and for the test set."""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from copy import deepcopy

import numpy as np
import torch

from lib.data.batches import as_images, load_batches
from lib.data.device_memory import DeviceTiles, is_out_of_memory
from lib.errors import KernelError
from lib.image.dihedral import transform
from lib.model.network import Classifier, autocast, choose_precision
from lib.progress import Progress

logger = logging.getLogger(__name__)


class PredictionError(KernelError):
    """The network returned a logit that is not finite, or a single tile does not fit the memory."""


def compute_in_batches(
    compute: Callable[[torch.Tensor], torch.Tensor],
    tiles: np.ndarray | DeviceTiles,
    rows: np.ndarray,
    *,
    batch_size: int,
    device: torch.device,
) -> list[torch.Tensor]:
    """Apply a function without gradients to all rows, in smaller batches when the memory does not suffice.

    Tiles in the device's memory are freed first, and read from the host's from then on. Then a batch that
    runs out of memory is computed again in halves, and so are the batches after it. The rows before it are
    kept.

    Args:
        compute: (B, 3, 96, 96) uint8 tiles on the device to (B, ...).
        tiles: (N, 96, 96, 3) uint8.
        rows: (M,) int64 into `tiles`.
        batch_size: tiles per call, at most.
        device: where to compute.

    Returns:
        The values of all rows in their order, in parts.

    Raises:
        PredictionError: the memory does not suffice for one tile.
    """
    parts: list[torch.Tensor] = []
    done = 0
    progress = Progress(total=len(rows))
    while done < len(rows):
        batches = load_batches(tiles, rows[done:], batch_size=batch_size, device=device)
        try:
            with torch.inference_mode(), closing(batches):
                for batch, _ in batches:
                    parts.append(compute(batch))
                    done += len(batch)
                    if text := progress.update(done):
                        logger.info("%s: predicted %s", device, text)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if batch_size == 1 and not (isinstance(tiles, DeviceTiles) and tiles.resident is not None):
                raise PredictionError(
                    "the memory does not suffice to predict one tile: use a smaller network or "
                    "--set input_size=..."
                ) from error
        else:
            break
        # Outside the except block: the error and the tensors of its frames are freed here.
        if isinstance(tiles, DeviceTiles) and tiles.release():
            continue
        batch_size = min(batch_size, len(rows) - done)
        logger.info(
            "%s: the memory did not suffice to predict %d tiles at once; going on with %d, %s of %s are done",
            device,
            batch_size,
            max(1, batch_size // 2),
            f"{done:,}",
            f"{len(rows):,}",
        )
        batch_size = max(1, batch_size // 2)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return parts


def predict_logits(
    network: Classifier,
    tiles: np.ndarray | DeviceTiles,
    rows: np.ndarray,
    *,
    views: int,
    batch_size: int,
    device: torch.device,
    precision: torch.dtype,
) -> np.ndarray:
    """Mean logit (M,) float32 over the views of each tile, from one network; see `predict_members`."""
    members = predict_members(
        [network], tiles, rows, views=views, batch_size=batch_size, device=device, precision=precision
    )
    logits: np.ndarray = members[:, 0]
    return logits


def predict_members(
    networks: Sequence[Classifier],
    tiles: np.ndarray | DeviceTiles,
    rows: np.ndarray,
    *,
    views: int,
    batch_size: int,
    device: torch.device,
    precision: torch.dtype,
) -> np.ndarray:
    """Mean logit over the views of each tile, from every network, in one pass over the tiles.

    Args:
        networks: on the device, of one input size and stain normalisation; their modes are restored
            afterwards.
        tiles: (N, 96, 96, 3) uint8.
        rows: (M,) int64 into `tiles`.
        views: 1 (the tile), 4 (its rotations) or 8 (also those of its mirror image).
        batch_size: tiles per forward pass; halved when the memory does not suffice.
        device: where the networks are.
        precision: of the forward pass; logits are averaged in float32.

    Returns:
        (M, number of networks) float32, in the order of `rows` and `networks`.

    Raises:
        PredictionError: a logit is not finite, or the memory does not suffice for one tile.
    """

    def mean_logits(batch: torch.Tensor) -> torch.Tensor:
        """(B, number of networks) float32."""
        # Once, not for every view: both commute with the symmetries of the square.
        images = networks[0].resize(networks[0].normalise_stain(as_images(batch)))
        total = torch.zeros(len(images), len(networks), dtype=torch.float32, device=device)
        for view in range(views):
            turned = transform(images, view)
            for column, network in enumerate(networks):
                with autocast(device, precision):
                    logits = network(turned)  # (B,)
                total[:, column] += logits.float()
        return total / views

    modes = [network.training for network in networks]
    for network in networks:
        network.eval()
    try:
        # On the device until the end, so that no batch waits for a copy.
        parts = compute_in_batches(mean_logits, tiles, rows, batch_size=batch_size, device=device)
    finally:
        for network, mode in zip(networks, modes, strict=True):
            network.train(mode)
    means = torch.cat(parts).cpu().numpy() if parts else np.empty((0, len(networks)), dtype=np.float32)
    if bad := int((~np.isfinite(means)).sum()):
        raise PredictionError(
            f"{bad:,} of {means.size:,} logits are not finite: the training diverged (lower the learning "
            "rate: --set learning_rate=..., or clip gradients: --set clip_grad_norm=1), or float16 "
            "overflowed (--set precision=float32)"
        )
    return means


def predict_on_all(
    networks: Sequence[Classifier],
    tiles: np.ndarray,
    *,
    views: int,
    batch_size: int,
    devices: Sequence[torch.device],
    precision: str,
) -> np.ndarray:
    """`predict_members` for all tiles, shared among the devices, which work in parallel.

    Args:
        networks: on the CPU, of one input size.
        tiles: (N, 96, 96, 3) uint8.
        views: 1, 4 or 8.
        batch_size: tiles per forward pass.
        devices: of one kind.
        precision: as in Config.

    Returns:
        (N, number of networks) float32.
    """
    distinct = list(dict.fromkeys(devices))  # a CPU listed twice, in place of two GPUs, is one device
    shares = np.array_split(np.arange(len(tiles)), len(distinct))

    def predict(device: torch.device, rows: np.ndarray) -> np.ndarray:
        return predict_members(
            [deepcopy(network).to(device) for network in networks],
            tiles,
            rows,
            views=views,
            batch_size=batch_size,
            device=device,
            precision=choose_precision(precision, device),
        )

    with ThreadPoolExecutor(max_workers=len(distinct)) as pool:
        return np.concatenate(list(pool.map(predict, distinct, shares)))
