"""Preparation of the tiles (read, check, write): this project against a bare loop, OpenCV and Pillow.

    python benchmarks/prepare.py DIR                      a folder in competition layout
    python benchmarks/prepare.py DIR --full --scratch S   the built kernel on 277,483 tiles made from DIR

Each method reads every file, compares the SHA-1 of its pixels with the id, writes the pixels to their
position in one file, and flushes that file to the disk (fsync). Ours also computes the SHA-256 for run.json
and keeps a journal. The files are in the page cache. In the last table each open takes 5 ms longer, as on a
network file system.

--full runs the whole prepare kernel at full size and prints its time and memory.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.rounds import interleave, report, write_result  # noqa: E402
from launch.experiments import load_experiment  # noqa: E402
from launch.packaging.builder import build  # noqa: E402
from lib.data import prepared  # noqa: E402
from lib.data.competition import TEST_TILES, TRAIN_TILES  # noqa: E402
from lib.data.tiff import HEADER, TILE_BYTES, decode_tile, encode_tile  # noqa: E402
from lib.data.tile_store import CHUNK, StoreBuilder  # noqa: E402
from lib.files import sha256_of  # noqa: E402
from lib.runtime.inputs import COMPETITION  # noqa: E402

ROUNDS = 7
LATENCY = 0.005  # seconds
THREADS = (8, 16, 32, 64)
_NAME = "tiles.npy"
_MAX_VARIANTS = 4096  # of one tile

Pixels = Callable[[str], "memoryview | np.ndarray"]


def bare_pixels(path: str) -> memoryview:
    """Read the pixels of a file with the competition's fixed header, in plain Python."""
    with open(path, "rb") as stream:  # noqa: PTH123
        return memoryview(stream.read())[len(HEADER) :]


def opencv_pixels(path: str) -> np.ndarray:
    """Read the pixels with OpenCV, as most public kernels do."""
    import cv2

    return np.ascontiguousarray(cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB))


def pillow_pixels(path: str) -> np.ndarray:
    """Read the pixels with Pillow, as the other public kernels do."""
    from PIL import Image

    with Image.open(path) as image:
        return np.array(image)


def slowly(pixels: Pixels) -> Pixels:
    """The same reader with a delay of 5 ms where the file is opened."""

    def read(path: str) -> memoryview | np.ndarray:
        time.sleep(LATENCY)
        return pixels(path)

    return read


@contextmanager
def slow_opens() -> Iterator[None]:
    """Delay every `os.open` of the tile store by 5 ms."""
    original = os.open

    def slow(path: str, *rest: int) -> int:
        time.sleep(LATENCY)
        return original(path, *rest)

    os.open = slow  # type: ignore[assignment]
    try:
        yield
    finally:
        os.open = original


class TileJob:
    """The tiles of a folder, repeated up to a number, and the folder to write to."""

    def __init__(self, folder: Path, target: Path, *, tiles: int) -> None:
        self.folder, self.target = folder / "train", target
        names = sorted(path.stem for path in self.folder.glob("*.tif"))
        self.names = (names * -(-tiles // len(names)))[:tiles]

    def plain(self, pixels: Pixels, threads: int) -> int:
        """Prepare the tiles in a loop over chunks, in threads if there are several; returns their number."""
        path = self.target / "plain"
        path.unlink(missing_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT)

        def chunk(start: int) -> None:
            for row in range(start, min(start + CHUNK, len(self.names))):
                content = pixels(f"{self.folder}/{self.names[row]}.tif")
                if hashlib.sha1(content, usedforsecurity=False).hexdigest() != self.names[row]:
                    raise ValueError(f"the pixels of {self.names[row]}.tif do not match its id")
                os.pwrite(file, content, 128 + row * TILE_BYTES)

        starts = range(0, len(self.names), CHUNK)
        if threads == 1:
            for start in starts:
                chunk(start)
        else:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(chunk, starts))
        os.fsync(file)
        os.close(file)
        return len(self.names)

    def ours(self, threads: int) -> int:
        """Prepare the tiles with the tile store, from an empty folder; returns their number."""
        builder = StoreBuilder(self.target, _NAME, ids=self.names)
        for path in (builder.target, builder.part, builder.journal):
            path.unlink(missing_ok=True)
        builder.build(self.folder, readers=threads, strict=True)
        builder.publish()
        builder.forget()
        return len(self.names)

    def ours_with_slow_opens(self, threads: int) -> int:
        """Prepare the tiles with the tile store, where every open takes 5 ms longer."""
        with slow_opens():
            return self.ours(threads)


def compare(data: Path, scratch: Path, *, tiles: int, rounds: int) -> None:
    """Print three tables: all methods, several numbers of threads, and slow opens."""
    import cv2

    cv2.setNumThreads(1)
    job, readers = TileJob(data, scratch, tiles=tiles), prepared._READERS
    conditions: dict[str, object] = {
        "tiles": tiles,
        "cores": os.cpu_count(),
        "written to": os.fspath(scratch),
        "files": "in the page cache",
    }

    def plain(pixels: Pixels, threads: int) -> Callable[[], int]:
        return lambda: job.plain(pixels, threads)

    ours = f"ours, {readers} threads"
    works = {
        ours: lambda: job.ours(readers),
        f"bare loop, {readers} threads": plain(bare_pixels, readers),
        "bare loop, 8 threads": plain(bare_pixels, 8),
        "bare loop, 1 thread": plain(bare_pixels, 1),
        f"OpenCV, {readers} threads": plain(opencv_pixels, readers),
        "OpenCV, 1 thread": plain(opencv_pixels, 1),
        f"Pillow, {readers} threads": plain(pillow_pixels, readers),
        "Pillow, 1 thread": plain(pillow_pixels, 1),
    }
    report("prepare", interleave(works, rounds=rounds), ours=ours, conditions=conditions)

    works = {}
    for threads in THREADS:
        works |= {f"ours, {threads} threads": lambda n=threads: job.ours(n)}  # type: ignore[misc]
        works |= {f"bare loop, {threads} threads": plain(bare_pixels, threads)}
    report("prepare-threads", interleave(works, rounds=rounds), ours=ours, conditions=conditions)

    job = TileJob(data, scratch, tiles=min(tiles, 8192))
    works = {
        f"ours, {threads} threads": lambda n=threads: job.ours_with_slow_opens(n)  # type: ignore[misc]
        for threads in THREADS
    }
    works |= {
        f"{name}, {readers} threads": plain(slowly(pixels), readers)
        for name, pixels in (("bare loop", bare_pixels), ("OpenCV", opencv_pixels), ("Pillow", pillow_pixels))
    }
    conditions |= {"tiles": len(job.names), "each open": f"{LATENCY * 1000:.0f} ms longer"}
    report("prepare-slow-opens", interleave(works, rounds=rounds, warmup=0), ours=ours, conditions=conditions)


def write_full_size(data: Path, folder: Path, *, labelled: int, unlabelled: int) -> None:
    """Write a competition of full size from a small one.

    The new tiles are rotated, mirrored, and brighter or darker. Their corner pixels hold a number, so that
    all tiles differ.
    """
    table = dict(line.split(",") for line in (data / "train_labels.csv").read_text().split()[1:])
    names = sorted(table)
    base = np.stack([decode_tile((data / "train" / f"{name}.tif").read_bytes()) for name in names])
    (folder / "train").mkdir(parents=True)
    (folder / "test").mkdir()
    if len(names) >= 1 << 16 or (labelled + unlabelled) // len(names) >= _MAX_VARIANTS:
        sys.exit(f"{data} holds {len(names):,} labelled tiles: use 68 to 65,535")

    def write_tile(number: int) -> tuple[str, str]:
        variant, source = divmod(number, len(names))
        tile = np.rot90(base[source], variant % 4)
        tile = tile[:, ::-1] if variant % 8 > 3 else tile
        shift = variant // 8 * (3 if variant % 2 else -3)
        tile = np.clip(tile.astype(np.int16) + shift, 0, 255).astype(np.uint8)
        # The number of the tile in five bytes, so that no two tiles are equal.
        tile[0, 0], tile[0, 1, 0] = (source % 256, source // 256, variant % 256), variant // 256
        name = hashlib.sha1(tile.tobytes(), usedforsecurity=False).hexdigest()
        (folder / ("train" if number < labelled else "test") / f"{name}.tif").write_bytes(encode_tile(tile))
        return name, table[names[source]]

    with ThreadPoolExecutor(4) as pool:
        written = list(pool.map(write_tile, range(labelled + unlabelled), chunksize=1))
    assert len(dict(written)) == len(written), "two tiles are equal"
    rows = [f"{name},{label}" for name, label in sorted(written[:labelled])]
    (folder / "train_labels.csv").write_text("\n".join(["id,label", *rows]) + "\n")
    rows = [f"{name},0" for name, _ in sorted(written[labelled:])]
    (folder / "sample_submission.csv").write_text("\n".join(["id,label", *rows]) + "\n")


def run_kernel(inputs: Path, folder: Path) -> tuple[float, int, dict[str, object]]:
    """Run the built prepare kernel as a process; returns seconds, peak memory in bytes, and run.json."""
    built = build([load_experiment("smoke")], out=folder / "dist", owner="someone")
    script = built.script(next(kernel for kernel in built.kernels if kernel.kind == "prepare"))
    working = folder / "working"
    working.mkdir()
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environment |= {"HCD_INPUT": str(inputs), "HCD_PLACE": "rehearsal"}
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, str(script.resolve())], cwd=working, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"the prepare kernel ended with exit code {process.returncode}: its log is above")
    record = json.loads((working / "run.json").read_text())
    return time.perf_counter() - started, usage.ru_maxrss * 1024, record


def full(data: Path, scratch: Path, *, labelled: int, unlabelled: int) -> None:
    """Run the built prepare kernel on all tiles; print and write its time and memory."""
    scratch.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="prepare-", dir=scratch))
    try:
        started = time.perf_counter()
        inputs = folder / "input"
        write_full_size(data, inputs / "competitions" / COMPETITION, labelled=labelled, unlabelled=unlabelled)
        print(f"wrote {labelled + unlabelled:,} tiles in {time.perf_counter() - started:.0f} s", flush=True)
        os.sync()  # flush the new tiles now, not during the timed run
        seconds, memory, record = run_kernel(inputs, folder)
        files: dict[str, dict[str, object]] = record["files"]  # type: ignore[assignment]
        for name in (prepared.TRAIN_TILES, prepared.TEST_TILES):
            assert files[name]["sha256"] == sha256_of(folder / "working" / name), name
        print(f"prepare kernel: {seconds:.1f} s, peak memory {memory / (1 << 30):.2f} GiB")
        content = {"tiles": labelled + unlabelled, "seconds": round(seconds, 1), "peak_bytes": memory}
        stages = record["seconds"]
        write_result("prepare-full", {**content, "stages": stages, "cores": os.cpu_count()})
    finally:
        shutil.rmtree(folder)


def main() -> None:
    """Compare the methods, or run the whole kernel."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="a folder in competition layout")
    parser.add_argument("--tiles", type=int, default=16384, help="tiles a round of the comparison")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument(
        "--scratch", type=Path, default=Path(tempfile.gettempdir()), help="folder to write to"
    )
    parser.add_argument(
        "--full", action="store_true", help="run the prepare kernel at the competition's size"
    )
    parser.add_argument("--labelled", type=int, default=TRAIN_TILES, help="tiles for --full")
    parser.add_argument("--unlabelled", type=int, default=TEST_TILES, help="tiles for --full")
    arguments = parser.parse_args()
    if arguments.full:
        full(arguments.data, arguments.scratch, labelled=arguments.labelled, unlabelled=arguments.unlabelled)
        return
    with tempfile.TemporaryDirectory(prefix="prepare-", dir=arguments.scratch) as folder:
        compare(arguments.data, Path(folder), tiles=arguments.tiles, rounds=arguments.rounds)


if __name__ == "__main__":
    main()
