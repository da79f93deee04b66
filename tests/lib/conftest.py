"""Tiles, real and drawn, and a training small enough for a CPU."""

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_once import made_once

from lib.data.tiff import TILE_SHAPE, encode_tile

_TILES = Path(__file__).resolve().parents[2].parent / "shared" / "tiles"


@pytest.fixture(scope="session")
def real_tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """480 labelled and 120 unlabelled tiles of the competition, bit for bit. Not to be changed."""
    if not _TILES.is_dir():
        pytest.skip(f"../shared/tiles is absent: no real tiles at {_TILES}")

    def make(folder: Path) -> None:
        command = [sys.executable, str(_TILES / "unpack.py"), str(folder / "competition"), "--pack", "exact"]
        subprocess.run(command, check=True, capture_output=True)

    return made_once(tmp_path_factory, "real-tiles", make) / "competition"


@pytest.fixture(scope="session")
def tissue(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Twelve files of training tiles: real ones where there are some, synthetic ones elsewhere."""
    folder = tmp_path_factory.mktemp("tissue") / "competition"
    if _TILES.is_dir():
        command = [sys.executable, str(_TILES / "unpack.py"), str(folder), "--pack", "exact", "--limit", "20"]
        subprocess.run(command, check=True, capture_output=True)
    else:
        from launch.emulator.synthetic_tiles import write_competition

        write_competition(folder, labelled=20, unlabelled=5, seed=1)
    return sorted((folder / "train").glob("*.tif"))[:12]


def _random_tiles(number: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (number, *TILE_SHAPE), dtype=np.uint8)


@pytest.fixture(scope="session")
def random_tiles() -> Callable[..., np.ndarray]:
    """(number, seed=0) to (N, 96, 96, 3) uint8 noise."""
    return _random_tiles


@pytest.fixture(scope="session")
def write_tiles() -> Callable[[Path, np.ndarray], list[str]]:
    """Write tiles into a folder under the SHA-1 of their pixels; the ids, in the order of the tiles."""

    def write(folder: Path, tiles: np.ndarray) -> list[str]:
        folder.mkdir(parents=True, exist_ok=True)
        ids = []
        for tile in tiles:
            ids.append(hashlib.sha1(tile.tobytes()).hexdigest())
            (folder / f"{ids[-1]}.tif").write_bytes(encode_tile(tile))
        return ids

    return write


@pytest.fixture(scope="session")
def learnable() -> tuple[np.ndarray, pd.DataFrame]:
    """36 tiles of noise, those of label 1 redder, and their index sorted by id. Not to be changed."""
    labels = np.arange(36) % 3 == 0
    tiles = _random_tiles(36, seed=3) // 2
    tiles[labels, :, :, 0] += 60
    index = pd.DataFrame({"id": [f"{number:040x}" for number in range(36)], "label": labels.astype(np.int64)})
    return tiles, index
