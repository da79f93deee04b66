"""Tests of the benchmarks: they measure the work that they name. No other library and no GPU is needed."""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import warm_python

from benchmarks import batches, gpu, rounds, training
from benchmarks.tiles import read_tiles
from launch.emulator.synthetic_tiles import write_competition
from lib.config import Config
from lib.data.batches import load_batches
from lib.data.tile_store import read_array
from lib.training import epoch

CPU = torch.device("cpu")


@pytest.fixture
def results(monkeypatch, tmp_path):
    monkeypatch.setattr(rounds, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def test_each_tile_has_its_own_label(tmp_path):
    write_competition(tmp_path / "data", labelled=12, unlabelled=1)
    tiles, labels = read_tiles(tmp_path / "data", limit=10)
    assert tiles.shape == (10, 96, 96, 3) and tiles.dtype == np.uint8
    rows = dict(line.split(",") for line in (tmp_path / "data" / "train_labels.csv").read_text().split()[1:])
    assert labels.tolist() == [float(rows[name]) for name in sorted(rows)][:10]


def test_both_conversions_give_the_same_batch():
    tiles = torch.from_numpy(gpu.noise(3)[0])
    torch.testing.assert_close(batches.cast(tiles), batches.cast_in_place(tiles))


def test_our_batches_are_full_and_counted():
    load_epoch = batches.our_batches(*gpu.noise(40), Config(batch_size=16, hed_jitter=0.05))
    assert [load_epoch(), load_epoch()] == [32, 32]


def test_every_loader_returns_the_same_batches():
    tiles, labels = gpu.noise(10)
    rows = np.array([7, 1, 5, 3, 9, 0])
    rest = {"batch_size": [4, 2], "device": CPU, "columns": (torch.from_numpy(labels[rows]),)}
    for loader in (training.load_without_prefetch, training.TimedLoader(load_batches)):
        for (images, (label,)), (expected_images, (expected_label,)) in zip(
            loader(tiles, rows, **rest), load_batches(tiles, rows, **rest), strict=True
        ):
            assert torch.equal(images, expected_images) and torch.equal(label, expected_label)


def test_a_fixed_loader_keeps_its_batch_and_the_epoch_gets_its_own_loader_back():
    tiles, labels = gpu.noise(24)
    ours = training.OurTraining(
        training.backbone_of(training.TWO_LAYERS), tiles, labels, Config(batch_size=8), device=CPU
    )
    fixed, timed = training.FixedLoader(), training.TimedLoader(load_batches)
    assert ours.train(fixed) == ours.train(timed) == 24
    first = fixed.batch
    assert first is not None and len(first[0]) == 8
    ours.train(fixed)
    assert fixed.batch is first
    assert timed.first > 0 and timed.waited > 0
    assert epoch.load_batches is load_batches


def test_ratios_are_taken_to_the_right_methods():
    rates = {
        batches.OURS: [8.0, 9.0],
        batches.OURS_PLAIN: [12.0, 12.0],
        batches.LIMIT: [16.0, 18.0],
        batches.IN_PLACE: [32.0, 36.0],
    }
    rates |= {"albumentations (H&E only), 2 workers": [2.0, 3.0], "kornia, batches (no HED)": [4.0, 4.0]}
    ratios = batches.verdicts(rates)
    assert ratios["ours / limit (target 0.35)"].startswith("0.50")
    assert (
        ratios["ours / fastest with stain jitter (target 4), albumentations (H&E only), 2 workers"]
        == "3.50 (3.00 to 4.00)"
    )
    assert ratios["ours without HED / fastest without, kornia, batches (no HED)"].startswith("3.00")


def test_cost_and_gain_of_compilation():
    config = Config(batch_size=10)
    result = gpu.compiling(11.0, plain=100.0, fast=200.0, tiles=200, config=config)
    assert result == {"compiling, s": 10.0, "compiled / not": 2.0, "steps to break even": "200"}
    assert (
        gpu.compiling(1.0, plain=100.0, fast=90.0, tiles=200, config=config)["steps to break even"] == "never"
    )


def test_the_store_of_noise_is_valid(tmp_path):
    sha256 = gpu.write_store(tmp_path / "tiles-train.npy", 250)
    assert read_array(tmp_path / "tiles-train.npy", sha256=sha256).shape == (250, 96, 96, 3)


def run_warm(*commands, limit=0.0):
    """`gpu.run_processes`, but without an import of torch in each process."""
    with ThreadPoolExecutor(len(commands)) as pool:
        ended = list(pool.map(lambda command: warm_python.run(command, cwd=gpu.ROOT, timeout=60), commands))
    for process in ended:
        assert process.returncode == 0, process.stderr
    return [json.loads(process.stdout.splitlines()[-1]) for process in ended]


def run_gpu_benchmark(monkeypatch, *networks, scratch):
    options = [
        "--batch",
        "8",
        "--steps",
        "3",
        "--rounds",
        "1",
        "--no-peers",
        "--no-compile",
        "--device",
        "cpu",
    ]
    options += ["--store-tiles", "250", "--scratch", str(scratch), "--networks", *networks]
    monkeypatch.setattr(sys, "argv", [gpu.__file__, *options])
    gpu.main()


def test_the_gpu_benchmark_runs_on_a_cpu(results, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "run_processes", run_warm)
    run_gpu_benchmark(monkeypatch, training.TWO_LAYERS, scratch=tmp_path)
    text = (results / "gpu-report.json").read_text()
    assert str(tmp_path) not in text
    content = json.loads(text)
    assert content["device"] == "cpu" and content["not measured"] == []
    results_by_name = {result["benchmark"]: result for result in content["results"]}
    network, pair = results_by_name["gpu-two convolutions-96-float32"], results_by_name["gpu-two-processes"]
    assert {row["name"] for row in network["rows"]} == {training.REAL, training.FIXED, training.NO_PREFETCH}
    assert network["conditions"]["waits only for loss checks"] == "not tried: no GPU"
    assert [row["name"] for row in pair["rows"]] == [gpu.TOGETHER, gpu.ALONE]
    assert all(rate > 0 for row in pair["rows"] for rate in row["tiles_per_second"])
    assert {"peak host GiB, rank 0", "peak host GiB, rank 1"} <= set(pair["conditions"])
    (start,) = results_by_name["gpu-start"]["processes"]
    assert start["tiles"] == 250 and start["first step, s"] > start["until the tiles were read, s"] > 0


def test_what_cannot_be_measured_is_named_and_the_rest_is_sent(results, tmp_path, monkeypatch):
    def fail(*commands, limit=0.0):
        raise gpu.MeasurementError(f"RuntimeError: no memory, see {tmp_path}/core")

    monkeypatch.setattr(gpu, "run_processes", fail)
    with pytest.raises(SystemExit, match="not measured:\n  no_such_network:48"):
        run_gpu_benchmark(monkeypatch, "no_such_network:48", training.TWO_LAYERS, scratch=tmp_path)
    content = json.loads((results / "gpu-report.json").read_text())
    assert [result["benchmark"] for result in content["results"]] == ["gpu-two convolutions-96-float32"]
    network, *processes = content["not measured"]
    assert network.startswith("no_such_network:48: ")
    reason = "RuntimeError: no memory, see core"
    assert processes == [f"two processes: {reason}", f"start: {reason}"]


def test_processes_of_a_measurement_end_together():
    def python(code):
        return [sys.executable, "-S", "-c", code]

    good = python("print('text'); print('{\"rate\": 1}')")
    assert gpu.run_processes(good, good) == [{"rate": 1}] * 2
    failing = python('print(\'{"error": "RuntimeError: why"}\'); raise SystemExit(1)')
    started = time.monotonic()
    with pytest.raises(gpu.MeasurementError, match="^RuntimeError: why$"):
        gpu.run_processes(failing, python("import time; time.sleep(100)"))
    with pytest.raises(gpu.MeasurementError, match="^killed by signal 9; exit code 3$"):
        killed = python("import os; os.kill(os.getpid(), 9)")
        gpu.run_processes(killed, python("raise SystemExit(3)"))
    with pytest.raises(gpu.MeasurementError, match="did not end within 0 s"):
        gpu.run_processes(python("import time; time.sleep(100)"), limit=0.2)
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    ("message", "sent"),
    [
        (f"cannot read {Path.home()}/some folder/tiles.npy", "cannot read /some folder/tiles.npy"),
        ("[Errno 28] No space left on device: '/mnt/disk-2/tmp/x1/tiles.npy'", None),
        (r"C:\Users\name\tiles.npy is absent", "tiles.npy is absent"),
        ("3,600 tiles/s and 1/2 of the memory", "3,600 tiles/s and 1/2 of the memory"),
    ],
)
def test_messages_are_sent_without_folders(message, sent):
    sent = sent or "[Errno 28] No space left on device: 'tiles.npy'"
    assert gpu.without_folders(message) == sent


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_benchmark_reports_it(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [gpu.__file__])
    with pytest.raises(SystemExit, match="sees no CUDA device here: run `make bench-gpu` on a machine"):
        gpu.main()
    assert capsys.readouterr().out == ""
