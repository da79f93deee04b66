"""Decoding of one TIFF tile: this project against OpenCV, Pillow and the SHA-1 of the pixels.

    python benchmarks/tiff_decoding.py DIR        a folder in competition layout

The SHA-1 is the reference because every tile is hashed in any case. The files are in memory, so only the
decoding is timed. The methods alternate within a round. The output is the median ratio of the rounds and
their range.
"""

import argparse
import hashlib
import io
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from lib.data.tiff import decode_tile  # noqa: E402

TILES, ROUNDS = 1000, 15


def seconds(work: Callable[[bytes], object], contents: list[bytes]) -> float:
    """Seconds that `work` takes for all contents."""
    started = time.perf_counter()
    for content in contents:
        work(content)
    return time.perf_counter() - started


def main() -> None:
    """Time the four methods in turn and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    paths = sorted((parser.parse_args().data / "train").glob("*.tif"))[:TILES]
    contents = [path.read_bytes() for path in paths]
    cv2.setNumThreads(1)

    def opencv(content: bytes) -> object:
        return np.ascontiguousarray(
            cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
        )

    def pillow(content: bytes) -> object:
        return np.array(Image.open(io.BytesIO(content)))

    def ours(content: bytes) -> object:
        return np.ascontiguousarray(decode_tile(content))

    def sha1(content: bytes) -> object:
        return hashlib.sha1(memoryview(content)[287:], usedforsecurity=False).digest()

    if not all((opencv(content) == ours(content)).all() for content in contents):
        sys.exit("OpenCV and lib.data.tiff decode different pixels: fix the decoder before timing it")
    rounds = np.array(
        [[seconds(work, contents) for work in (opencv, pillow, sha1, ours)] for _ in range(ROUNDS)]
    )  # (R, 4)
    for column, name in enumerate(("OpenCV", "Pillow", "SHA-1")):
        ratio = rounds[:, column] / rounds[:, 3]
        print(f"{name} / ours: {np.median(ratio):.1f} ({ratio.min():.1f} to {ratio.max():.1f})")
    print(f"n = {len(contents):,} tiles, {ROUNDS} rounds")


if __name__ == "__main__":
    main()
