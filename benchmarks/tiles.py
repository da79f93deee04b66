"""Tiles for the benchmarks: generate synthetic ones, and read labelled ones.

    python benchmarks/tiles.py DIR

Generates 2,000 labelled and 100 test tiles in competition layout. Does nothing where DIR exists.
"""

import argparse
import csv
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from launch.emulator.synthetic_tiles import write_competition  # noqa: E402
from lib.data.tiff import decode_tile  # noqa: E402

LABELLED, UNLABELLED = 2000, 100


def read_tiles(folder: Path, *, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Read the first tiles of `folder`/train and their labels.

    Args:
        folder: a folder in competition layout.
        limit: the most tiles to read.

    Returns:
        (N, 96, 96, 3) uint8, and (N,) float32 labels, 0 or 1.
    """
    with (folder / "train_labels.csv").open(newline="") as stream:
        labels = {row["id"]: float(row["label"]) for row in csv.DictReader(stream)}
    names = sorted(labels)[:limit]
    tiles = np.stack([decode_tile((folder / "train" / f"{name}.tif").read_bytes()) for name in names])
    return tiles, np.array([labels[name] for name in names], dtype=np.float32)


def main() -> None:
    """Generate the tiles, unless the folder exists."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--labelled", type=int, default=LABELLED)
    arguments = parser.parse_args()
    if not arguments.folder.exists():
        print(f"generating {arguments.labelled:,} labelled tiles in {arguments.folder}")
        write_competition(arguments.folder, labelled=arguments.labelled, unlabelled=UNLABELLED)


if __name__ == "__main__":
    main()
