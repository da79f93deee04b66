"""The competition's full size through prepare, one fold and inference: seconds and peak memory of each kernel.

    python benchmarks/full_size.py runs/full-size [--parts 16 4 1] [--labelled 220025] [--unlabelled 57458]

An eighth of the tiles is drawn by the project and laid out in the eight orientations of a square: all are different, and drawing
takes minutes instead of half an hour. The kernels are those of the experiment `smoke` from random weights, one epoch, one fold,
each run alone as Kaggle runs it. Tiles that are there from an earlier run are not drawn again. With several parts (16: a
sixteenth of the tiles) it says how seconds and memory grow with the number of tiles: 1.0 would be as fast as that number.
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

KNOBS = ["weights=none", "epochs=1", "warmup_epochs=0", "batch_size=128", "eval_batch_size=512"]
VIEWS = 8


def lay_out(folder: Path, *, labelled: int, unlabelled: int) -> None:
    """The competition's layout with so many tiles, each drawn tile in its eight orientations."""
    drawn = folder.with_name("drawn")
    if not drawn.is_dir():
        write_competition(drawn, labelled=-(-labelled // VIEWS), unlabelled=-(-unlabelled // VIEWS), seed=1)
    base = read_competition(drawn, expect_full=False)
    labels = base.train.set_index("id")["label"]
    for part, ids, count in (("train", labels.index.tolist(), labelled), ("test", base.test_ids, unlabelled)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        rows = []
        for view in range(VIEWS):
            for name in ids[: count - len(rows)]:
                content = (drawn / part / f"{name}.tif").read_bytes()
                head, tile = (
                    content[:-TILE_BYTES],
                    np.frombuffer(content[-TILE_BYTES:], np.uint8).reshape(TILE_SHAPE),
                )
                turned = np.rot90(tile[:, ::-1] if view >= 4 else tile, view % 4).tobytes()
                new = hashlib.sha1(turned, usedforsecurity=False).hexdigest()
                (folder / part / f"{new}.tif").write_bytes(head + turned)
                rows.append((new, int(labels[name]) if part == "train" else 0))
        name = "train_labels.csv" if part == "train" else "sample_submission.csv"
        pd.DataFrame(rows, columns=["id", "label"]).to_csv(folder / name, index=False)


def run_one(folder: Path, slug: str) -> None:
    """Run one kernel and print what it took; in a process of its own, whose children are that kernel alone."""
    experiment = load_experiment("smoke", KNOBS)
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
    """Lay out the tiles, run the kernels one after the other; kernel, tiles, seconds, peak memory."""
    if not (folder / "data" / "sample_submission.csv").is_file():
        lay_out(folder / "data", labelled=labelled, unlabelled=unlabelled)
    experiment = load_experiment("smoke", KNOBS)
    built = build([experiment], out=folder / "build", owner="someone", folds=[0])
    rows = []
    for kernel in built.kernels:
        command = [sys.executable, __file__, str(folder), "--one", kernel.slug]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        facts = json.loads(done.stdout.splitlines()[-1])
        rows.append({"kernel": kernel.kind, "tiles": labelled + unlabelled})
        rows[-1] |= {"seconds": round(facts["seconds"], 1), "peak GiB": round(facts["peak_gib"], 2)}
        slow = sorted(facts["stages"].items(), key=lambda each: -each[1])[1:4]
        print(f"{kernel.slug}: {', '.join(f'{name} {seconds:.1f} s' for name, seconds in slow)}", flush=True)
    return pd.DataFrame(rows)


def growth(runs: pd.DataFrame) -> pd.DataFrame:
    """The exponent of the number of tiles with which each kernel's seconds and memory grew from one size to the next."""
    found = []
    for kernel, rows in runs.groupby("kernel", sort=False):
        rows = rows.sort_values("tiles")
        steps = {name: np.diff(np.log(rows[name])) for name in ("tiles", "seconds", "peak GiB")}
        for at, (few, many) in enumerate(itertools.pairwise(rows["tiles"])):
            grew = {name: round(steps[name][at] / steps["tiles"][at], 2) for name in ("seconds", "peak GiB")}
            found.append({"kernel": kernel, "from": few, "to": many, **grew})
    return pd.DataFrame(found)


def main() -> None:
    """Run the kernels at each size, print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--parts", type=int, nargs="+", default=[1])
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
        place = folder / f"part-{part}"
        tables.append(
            run_all(place, labelled=arguments.labelled // part, unlabelled=arguments.unlabelled // part)
        )
    runs = pd.concat(tables)
    print(runs.to_string(index=False))
    if len(tables) > 1:
        print(growth(runs).to_string(index=False))


if __name__ == "__main__":
    main()
