"""Time and peak memory of prepare, one fold and inference at the competition's full size.

    python benchmarks/full_size.py runs/full-size [--parts 16 4 1] [--labelled 220025] [--unlabelled 57458]

An eighth of the tiles is synthetic. The rest are the other seven orientations of these tiles, so all tiles
differ and generating them takes minutes instead of half an hour. Tiles of an earlier run are used again.
The kernels are those of the experiment `smoke`, with random weights, one epoch and one fold. Each kernel
runs alone, as on Kaggle.

--parts 16 runs a sixteenth of the tiles. With several parts the program prints how seconds and memory grow
with the number of tiles, as an exponent: 1.0 means proportional growth.
"""

import argparse
import hashlib
import itertools
import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from launch.emulator.synthetic_tiles import write_competition  # noqa: E402
from launch.experiments import load_experiment  # noqa: E402
from launch.local import LocalRun  # noqa: E402
from launch.packaging.builder import build  # noqa: E402
from lib.data.competition import read_competition  # noqa: E402
from lib.data.tiff import TILE_BYTES, TILE_SHAPE  # noqa: E402

OPTIONS = [
    "backbone=test_resnet.r160_in1k",
    "weights=none",
    "input_size=48",
    "epochs=1",
    "warmup_epochs=0",
    "batch_size=128",
    "eval_batch_size=512",
]
ORIENTATIONS = 8


def lay_out(folder: Path, *, labelled: int, unlabelled: int) -> None:
    """Write a folder in competition layout: each synthetic tile in its eight orientations."""
    synthetic = folder.with_name("synthetic")
    if not synthetic.is_dir():
        write_competition(
            synthetic,
            labelled=-(-labelled // ORIENTATIONS),
            unlabelled=-(-unlabelled // ORIENTATIONS),
            seed=1,
        )
    base = read_competition(synthetic, expect_full=False)
    labels = base.train.set_index("id")["label"]
    for part, ids, count in (("train", labels.index.tolist(), labelled), ("test", base.test_ids, unlabelled)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        rows = []
        for orientation in range(ORIENTATIONS):
            for name in ids[: count - len(rows)]:
                content = (synthetic / part / f"{name}.tif").read_bytes()
                header, pixels = content[:-TILE_BYTES], content[-TILE_BYTES:]
                tile = np.frombuffer(pixels, np.uint8).reshape(TILE_SHAPE)
                turned = np.rot90(tile[:, ::-1] if orientation >= 4 else tile, orientation % 4).tobytes()
                new = hashlib.sha1(turned, usedforsecurity=False).hexdigest()
                (folder / part / f"{new}.tif").write_bytes(header + turned)
                rows.append((new, int(labels[name]) if part == "train" else 0))
        name = "train_labels.csv" if part == "train" else "sample_submission.csv"
        pd.DataFrame(rows, columns=["id", "label"]).to_csv(folder / name, index=False)


def run_one(folder: Path, slug: str) -> None:
    """Run one kernel and print its seconds and peak memory.

    It needs a process of its own: the peak memory is that of all children of the process.
    """
    experiment = load_experiment("smoke", OPTIONS)
    built = build([experiment], out=folder / "build", owner="someone", folds=[0])
    run = LocalRun(folder, built, folder / "data", {}, None)
    kernel = next(kernel for kernel in built.kernels if kernel.slug == slug)
    outcome = run.run_kernel(kernel, None, 1)
    run.check_outcome(kernel, outcome)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    stages = json.loads((run.working(slug) / "run.json").read_text())["seconds"]
    print(
        json.dumps(
            {"kernel": slug, "seconds": outcome.seconds, "peak_gib": peak / (1 << 30), "stages": stages}
        )
    )


def run_all(folder: Path, *, labelled: int, unlabelled: int) -> pd.DataFrame:
    """Write the tiles and run the kernels in turn; returns kernel, tiles, seconds and peak memory."""
    if not (folder / "data" / "sample_submission.csv").is_file():
        lay_out(folder / "data", labelled=labelled, unlabelled=unlabelled)
    experiment = load_experiment("smoke", OPTIONS)
    built = build([experiment], out=folder / "build", owner="someone", folds=[0])
    rows = []
    for kernel in built.kernels:
        command = [sys.executable, __file__, str(folder), "--one", kernel.slug]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        measured = json.loads(done.stdout.splitlines()[-1])
        rows.append({"kernel": kernel.kind, "tiles": labelled + unlabelled})
        rows[-1] |= {"seconds": round(measured["seconds"], 1), "peak GiB": round(measured["peak_gib"], 2)}
        # The longest entry is the total; print the three longest stages.
        slowest = sorted(measured["stages"].items(), key=lambda stage: -stage[1])[1:4]
        print(
            f"{kernel.slug}: {', '.join(f'{name} {seconds:.1f} s' for name, seconds in slowest)}", flush=True
        )
    return pd.DataFrame(rows)


def growth(runs: pd.DataFrame) -> pd.DataFrame:
    """Exponents of the number of tiles with which seconds and memory grew between two sizes, per kernel."""
    exponent_rows = []
    for kernel, rows in runs.groupby("kernel", sort=False):
        rows = rows.sort_values("tiles")
        steps = {name: np.diff(np.log(rows[name])) for name in ("tiles", "seconds", "peak GiB")}
        for index, (few, many) in enumerate(itertools.pairwise(rows["tiles"])):
            exponents = {
                name: round(steps[name][index] / steps["tiles"][index], 2) for name in ("seconds", "peak GiB")
            }
            exponent_rows.append({"kernel": kernel, "from": few, "to": many, **exponents})
    return pd.DataFrame(exponent_rows)


def main() -> None:
    """Run the kernels at each size and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="for tiles, builds and outputs")
    parser.add_argument("--parts", type=int, nargs="+", default=[1], metavar="N", help="run 1/N of the tiles")
    parser.add_argument("--labelled", type=int, default=220_025)
    parser.add_argument("--unlabelled", type=int, default=57_458)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    if arguments.one:
        run_one(folder, arguments.one)
        return
    tables = []
    for part in arguments.parts:
        subfolder = folder / f"part-{part}"
        tables.append(
            run_all(subfolder, labelled=arguments.labelled // part, unlabelled=arguments.unlabelled // part)
        )
    runs = pd.concat(tables)
    print(runs.to_string(index=False))
    if len(tables) > 1:
        print(growth(runs).to_string(index=False))


if __name__ == "__main__":
    main()
