"""Features of a frozen encoder: computed once for all tiles and saved, for the heads of all folds.

The mean over the views of a tile is saved. A linear head loses nothing by that, because the mean of its
logits over the views equals its logit of the mean.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lib.config import Config
from lib.data.batches import as_images
from lib.data.tile_store import array_header
from lib.errors import KernelError
from lib.files import write_atomic
from lib.image.dihedral import transform
from lib.model.network import Classifier, autocast, choose_precision
from lib.model.predict import compute_in_batches
from lib.progress import Progress
from lib.validation import UNREADABLE

logger = logging.getLogger(__name__)

TRAIN_FEATURES, TEST_FEATURES = "features-train.npy", "features-test.npy"
HOLDOUT_FEATURES = "features-holdout.npy"
# The options that decide the features; a head and its features must agree in them.
ENCODER_OPTIONS = (
    "backbone", "weights", "pretrain_weights", "mean", "std", "input_size", "pooling", "stem",
    "stain_normalisation", "tta_views",
)  # fmt: skip
_BLOCK = 8192  # tiles: the most work that an interruption loses


class FeaturesError(KernelError):
    """Features are not finite, or a file does not hold features."""


@dataclass(frozen=True)
class Features:
    """The features of all tiles.

    Attributes:
        train: (N, C) float32, in the order of index-train.csv.
        test: (M, C) float32, in the order of index-test.csv.
        holdout: (H, C) float32, in the order of index-holdout.csv; None without a hold-out.
    """

    train: np.ndarray
    test: np.ndarray
    holdout: np.ndarray | None = None


class Embedder:
    """A frozen encoder on all devices, which work in parallel."""

    def __init__(
        self,
        network: Classifier,
        *,
        views: int,
        batch_size: int,
        devices: Sequence[torch.device],
        precision: str,
    ) -> None:
        """Copy the encoder to every device.

        Args:
            network: on the CPU.
            views: 1, 4 or 8.
            batch_size: tiles per forward pass; halved when the memory does not suffice.
            devices: of one kind.
            precision: as in Config; the mean is computed in float32.
        """
        self.views, self.batch_size, self.precision = views, batch_size, precision
        self.replicas = {device: deepcopy(network).to(device).eval() for device in dict.fromkeys(devices)}

    def __call__(self, tiles: np.ndarray) -> np.ndarray:
        """The mean feature vector over the views of each tile.

        Args:
            tiles: (N, 96, 96, 3) uint8.

        Returns:
            (N, C) float32.

        Raises:
            FeaturesError: a value is not finite: float16 overflowed.
            PredictionError: the memory does not suffice for one tile.
        """
        shares = np.array_split(np.arange(len(tiles)), len(self.replicas))

        def embed(device: torch.device, rows: np.ndarray) -> np.ndarray:
            replica, kind = self.replicas[device], choose_precision(self.precision, device)

            def mean_vectors(batch: torch.Tensor) -> torch.Tensor:
                """(B, C) float32."""
                images = replica.resize(replica.normalise_stain(as_images(batch)))
                total = torch.zeros(())
                for view in range(self.views):
                    with autocast(device, kind):
                        vectors = replica.embed(transform(images, view)).float()  # (B, C)
                    total = vectors if view == 0 else total + vectors
                return total / self.views

            # On the device until the end, so that no batch waits for a copy.
            parts = compute_in_batches(mean_vectors, tiles, rows, batch_size=self.batch_size, device=device)
            return torch.cat(parts).cpu().numpy() if parts else np.empty((0, 0), dtype=np.float32)

        with ThreadPoolExecutor(max_workers=len(self.replicas)) as pool:
            features = np.concatenate([part for part in pool.map(embed, self.replicas, shares) if len(part)])
        if bad := int((~np.isfinite(features)).sum()):
            raise FeaturesError(
                f"{bad:,} of {features.size:,} features are not finite: float16 overflowed; "
                "use --set precision=float32"
            )
        return features


def write_features(
    path: Path,
    tiles: np.ndarray,
    *,
    plan: str,
    embed: Callable[[np.ndarray], np.ndarray],
) -> Path:
    """Embed block by block into a file beside `path`, and resume an interrupted run.

    Args:
        path: the final name of the array.
        tiles: (N, 96, 96, 3) uint8.
        plan: the hash of everything that decides the features.
        embed: (n, 96, 96, 3) uint8 to (n, C) float32.

    Returns:
        The complete file, still under its temporary name.
    """
    part, note = path.with_name(f".{path.name}.unfinished"), path.with_name(f".{path.name}.json")
    try:
        progress = json.loads(note.read_bytes())
        done = int(progress["rows"]) if progress["plan"] == plan and part.is_file() else 0
    except (KeyError, TypeError, *UNREADABLE):
        done = 0
    progress = Progress(total=len(tiles))
    while done < len(tiles):
        block = embed(tiles[done : done + _BLOCK])
        mode = "r+" if done else "w+"
        shape = (len(tiles), block.shape[1])
        store = np.lib.format.open_memmap(
            part, mode=mode, dtype=None if done else np.float32, shape=None if done else shape
        )
        store[done : done + len(block)] = block
        store.flush()
        del store
        done += len(block)
        write_atomic(note, json.dumps({"plan": plan, "rows": done}))
        progress.update(done)
        logger.info("%s: %s", path.name, progress.describe(done))
    return part


def publish_features(path: Path) -> None:
    """Rename the complete file to its final name."""
    path.with_name(f".{path.name}.unfinished").replace(path)
    path.with_name(f".{path.name}.json").unlink(missing_ok=True)


def feature_plan(config: Config, *, data_id: str, bundle_id: str, tiles: int) -> str:
    """The hash of everything that decides the features of an array of tiles."""
    values = [encoder_options(config), config.precision, data_id, bundle_id, tiles]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def encoder_options(config: Config) -> dict[str, Any]:
    """The options that decide the features. run.json records them, and `find_features` compares them."""
    return {name: getattr(config, name) for name in ENCODER_OPTIONS}


def _open_features(path: Path) -> np.ndarray:
    """An array of features, (N, C) float32, mapped from its file."""
    try:
        shape, dtype, _ = array_header(path)
    except (OSError, ValueError) as error:
        raise FeaturesError(f"{path} is {error}. Run the embed kernel again.") from error
    if len(shape) != 2 or dtype != np.float32 or not all(shape):
        raise FeaturesError(f"{path} holds {shape} {dtype}, not N x C float32. Run the embed kernel again.")
    features: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return features


def read_features(folder: Path) -> Features:
    """The features in the output of an embed kernel.

    Raises:
        FeaturesError: a file is not an array of features.
    """
    train, test = (_open_features(folder / name) for name in (TRAIN_FEATURES, TEST_FEATURES))
    holdout = folder / HOLDOUT_FEATURES
    return Features(train, test, _open_features(holdout) if holdout.is_file() else None)
