"""Reading, proving and writing the tiles: ours beside a bare loop, OpenCV and Pillow; and the whole kernel at full size.

    python benchmarks/prepare.py DIR                        a folder in competition layout
    python benchmarks/prepare.py DIR --full --scratch S     all 277,483 tiles, made of those in DIR, and the built kernel on them

Every contender reads each file, takes the SHA-1 of its pixels, holds it against the id, and writes the pixels to their place
in one file, which is on the disk at the end (fsync). Ours also takes the SHA-256 that run.json holds, and keeps a journal.
The files are in the page cache; in the last table each open takes 5 ms more, as a network file system may.
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
from benchmarks.rounds import interleave, report, write  # noqa: E402
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
_VARIANTS = 4096  # of one tile, at most

Pixels = Callable[[str], "memoryview | np.ndarray"]


def bare_pixels(path: str) -> memoryview:
    """The pixels by plain Python, of a file known to be the competition's."""
    with open(path, "rb") as stream:  # noqa: PTH123
        return memoryview(stream.read())[len(HEADER) :]


def opencv_pixels(path: str) -> np.ndarray:
    """The pixels as most public kernels read them."""
    import cv2

    return np.ascontiguousarray(cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB))


def pillow_pixels(path: str) -> np.ndarray:
    """The pixels as the rest of them does."""
    from PIL import Image

    with Image.open(path) as image:
        return np.array(image)


def slowly(pixels: Pixels) -> Pixels:
    """The same with 5 ms before it, which is where the file is opened."""

    def read(path: str) -> memoryview | np.ndarray:
        time.sleep(LATENCY)
        return pixels(path)

    return read


@contextmanager
def slow_opens() -> Iterator[None]:
    """5 ms more for every file that the store opens."""
    real = os.open

    def slow(path: str, *rest: int) -> int:
        time.sleep(LATENCY)
        return real(path, *rest)

    os.open = slow  # type: ignore[assignment]
    try:
        yield
    finally:
        os.open = real


class Work:
    """The tiles of a folder, often enough to be worth timing, and a place to write to."""

    def __init__(self, folder: Path, place: Path, *, tiles: int) -> None:
        self.folder, self.place = folder / "train", place
        names = sorted(path.stem for path in self.folder.glob("*.tif"))
        self.names = (names * -(-tiles // len(names)))[:tiles]

    def plain(self, pixels: Pixels, threads: int) -> int:
        """A loop over chunks, in threads if there are more than one."""
        target = self.place / "plain"
        target.unlink(missing_ok=True)
        file = os.open(target, os.O_RDWR | os.O_CREAT)

        def chunk(start: int) -> None:
            for at in range(start, min(start + CHUNK, len(self.names))):
                content = pixels(f"{self.folder}/{self.names[at]}.tif")
                if hashlib.sha1(content, usedforsecurity=False).hexdigest() != self.names[at]:
                    raise ValueError(self.names[at])
                os.pwrite(file, content, 128 + at * TILE_BYTES)

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
        """The store, from nothing."""
        builder = StoreBuilder(self.place, _NAME, ids=self.names)
        for path in (builder.target, builder.part, builder.journal):
            path.unlink(missing_ok=True)
        builder.build(self.folder, readers=threads, strict=True)
        builder.publish()
        builder.forget()
        return len(self.names)

    def ours_slowly(self, threads: int) -> int:
        """The store, where every open takes 5 ms more."""
        with slow_opens():
            return self.ours(threads)


def compare(data: Path, place: Path, *, tiles: int, rounds: int) -> None:
    """The tables: as fast as the files come, each number of threads, and slow opens."""
    import cv2

    cv2.setNumThreads(1)
    work, readers = Work(data, place, tiles=tiles), prepared._READERS
    facts = {
        "tiles": tiles,
        "cores": os.cpu_count(),
        "written to": os.fspath(place),
        "files": "in the page cache",
    }

    def plain(pixels: Pixels, threads: int) -> Callable[[], int]:
        return lambda: work.plain(pixels, threads)

    ours = f"ours, {readers} threads"
    works = {
        ours: lambda: work.ours(readers),
        f"bare loop, {readers} threads": plain(bare_pixels, readers),
        "bare loop, 8 threads": plain(bare_pixels, 8),
        "bare loop, 1 thread": plain(bare_pixels, 1),
        f"OpenCV, {readers} threads": plain(opencv_pixels, readers),
        "OpenCV, 1 thread": plain(opencv_pixels, 1),
        f"Pillow, {readers} threads": plain(pillow_pixels, readers),
        "Pillow, 1 thread": plain(pillow_pixels, 1),
    }
    report("prepare", interleave(works, rounds=rounds), ours=ours, facts=facts)

    works = {}
    for threads in THREADS:
        works |= {f"ours, {threads} threads": lambda n=threads: work.ours(n)}  # type: ignore[misc]
        works |= {f"bare loop, {threads} threads": plain(bare_pixels, threads)}
    report("prepare-threads", interleave(works, rounds=rounds), ours=ours, facts=facts)

    work = Work(data, place, tiles=min(tiles, 8192))
    works = {f"ours, {threads} threads": lambda n=threads: work.ours_slowly(n) for threads in THREADS}  # type: ignore[misc]
    works |= {
        f"{name}, {readers} threads": plain(slowly(pixels), readers)
        for name, pixels in (("bare loop", bare_pixels), ("OpenCV", opencv_pixels), ("Pillow", pillow_pixels))
    }
    facts |= {"tiles": len(work.names), "each open": f"{LATENCY * 1000:.0f} ms longer"}
    report("prepare-slow-opens", interleave(works, rounds=rounds, warmup=0), ours=ours, facts=facts)


def draw_full(data: Path, folder: Path, *, labelled: int, unlabelled: int) -> None:
    """A competition of full size out of a small one: turned, mirrored, brighter or darker, a corner pixel numbered."""
    table = dict(line.split(",") for line in (data / "train_labels.csv").read_text().split()[1:])
    names = sorted(table)
    base = np.stack([decode_tile((data / "train" / f"{name}.tif").read_bytes()) for name in names])
    (folder / "train").mkdir(parents=True)
    (folder / "test").mkdir()
    assert len(names) < 1 << 16 and (labelled + unlabelled) // len(names) < _VARIANTS

    def draw(number: int) -> tuple[str, str]:
        variant, at = divmod(number, len(names))
        tile = np.rot90(base[at], variant % 4)
        tile = tile[:, ::-1] if variant % 8 > 3 else tile
        shift = variant // 8 * (3 if variant % 2 else -3)
        tile = np.clip(tile.astype(np.int16) + shift, 0, 255).astype(np.uint8)
        tile[0, 0], tile[0, 1, 0] = (
            (at % 256, at // 256, variant % 256),
            variant // 256,
        )  # every tile is another
        name = hashlib.sha1(tile.tobytes(), usedforsecurity=False).hexdigest()
        (folder / ("train" if number < labelled else "test") / f"{name}.tif").write_bytes(encode_tile(tile))
        return name, table[names[at]]

    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(draw, range(labelled + unlabelled), chunksize=1))
    assert len(dict(drawn)) == len(drawn), "two drawn tiles are equal"
    rows = [f"{name},{label}" for name, label in sorted(drawn[:labelled])]
    (folder / "train_labels.csv").write_text("\n".join(["id,label", *rows]) + "\n")
    rows = [f"{name},0" for name, _ in sorted(drawn[labelled:])]
    (folder / "sample_submission.csv").write_text("\n".join(["id,label", *rows]) + "\n")


def run_kernel(inputs: Path, place: Path) -> tuple[float, int, dict[str, object]]:
    """Run the built prepare kernel as a process; seconds, most bytes of memory, and run.json."""
    built = build([load_experiment("smoke")], out=place / "dist", owner="someone")
    script = built.script(next(kernel for kernel in built.kernels if kernel.kind == "prepare"))
    working = place / "working"
    working.mkdir()
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environment |= {"HCD_INPUT": str(inputs), "HCD_PLACE": "rehearsal"}
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, str(script.resolve())], cwd=working, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"the kernel ended with {process.returncode}")
    record = json.loads((working / "run.json").read_text())
    return time.perf_counter() - started, usage.ru_maxrss * 1024, record


def full(data: Path, scratch: Path, *, labelled: int, unlabelled: int) -> None:
    """All tiles through the built kernel, stage by stage."""
    scratch.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix="prepare-", dir=scratch))
    try:
        started = time.perf_counter()
        inputs = place / "input"
        draw_full(data, inputs / "competitions" / COMPETITION, labelled=labelled, unlabelled=unlabelled)
        print(f"{labelled + unlabelled:,} tiles drawn in {time.perf_counter() - started:.0f} s", flush=True)
        os.sync()  # what was drawn is no debt of the run that is timed
        seconds, memory, record = run_kernel(inputs, place)
        files: dict[str, dict[str, object]] = record["files"]  # type: ignore[assignment]
        for name in (prepared.TRAIN_TILES, prepared.TEST_TILES):
            assert files[name]["sha256"] == sha256_of(place / "working" / name), name
        print(f"whole kernel: {seconds:.1f} s, at most {memory / (1 << 30):.2f} GiB of memory")
        content = {"tiles": labelled + unlabelled, "seconds": round(seconds, 1), "peak_bytes": memory}
        write("prepare-full", {**content, "stages": record["seconds"], "cores": os.cpu_count()})
    finally:
        shutil.rmtree(place)


def main() -> None:
    """Compare, or run the whole kernel."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--tiles", type=int, default=16384, help="of a comparison")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()), help="where to write")
    parser.add_argument(
        "--full", action="store_true", help="run the whole kernel on as many tiles as the competition has"
    )
    parser.add_argument("--labelled", type=int, default=TRAIN_TILES, help="of --full")
    parser.add_argument("--unlabelled", type=int, default=TEST_TILES, help="of --full")
    arguments = parser.parse_args()
    if arguments.full:
        full(arguments.data, arguments.scratch, labelled=arguments.labelled, unlabelled=arguments.unlabelled)
        return
    with tempfile.TemporaryDirectory(prefix="prepare-", dir=arguments.scratch) as place:
        compare(arguments.data, Path(place), tiles=arguments.tiles, rounds=arguments.rounds)


if __name__ == "__main__":
    main()
