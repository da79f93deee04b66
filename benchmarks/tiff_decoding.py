"""Decoding one tile: ours against OpenCV and Pillow, and against the SHA-1 that every tile pays anyway.

    python benchmarks/tiff_decoding.py DIR        a folder in competition layout

The files are in memory, so nothing but the decoding is timed. Rounds alternate; printed are the median ratio and its range.
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
    """How long `work` takes on all of them."""
    started = time.perf_counter()
    for content in contents:
        work(content)
    return time.perf_counter() - started


def main() -> None:
    """Time the four in turn."""
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

    assert all((opencv(content) == ours(content)).all() for content in contents), (
        "they must agree before they are timed"
    )
    rounds = np.array(
        [[seconds(work, contents) for work in (opencv, pillow, sha1, ours)] for _ in range(ROUNDS)]
    )  # (R, 4)
    for at, name in enumerate(("OpenCV", "Pillow", "SHA-1")):
        ratio = rounds[:, at] / rounds[:, 3]
        print(f"{name} / ours: {np.median(ratio):.1f} ({ratio.min():.1f} to {ratio.max():.1f})")
    print(f"n = {len(contents):,} tiles, {ROUNDS} rounds")


if __name__ == "__main__":
    main()
