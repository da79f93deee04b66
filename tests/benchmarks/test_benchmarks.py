"""Tests of the benchmarks: they measure the work that they name. No other library and no GPU is needed."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import batches, gpu, rounds, training
from benchmarks.tiles import read_tiles
from launch.emulator.synthetic_tiles import write_competition
from lib.config import Config
from lib.data.batches import load_batches
from lib.data.tile_store import read_array
from lib.training import epoch

ROOT = Path(__file__).resolve().parents[2]
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


def test_the_gpu_benchmark_runs_on_a_cpu(results, tmp_path):
    arguments = argparse.Namespace(
        batch=8,
        steps=3,
        tiles=None,
        rounds=1,
        workers=0,
        no_peers=True,
        no_compile=True,
        store_tiles=250,
        scratch=tmp_path,
        precision="auto",
    )
    gpu.measure(training.TWO_LAYERS, 96, arguments, CPU)
    content = json.loads((results / "gpu-two convolutions-96-float32.json").read_text())
    assert {row["name"] for row in content["rows"]} == {training.REAL, training.FIXED, training.NO_PREFETCH}
    assert content["conditions"]["waits only for loss checks"] == "not tried: no GPU"
    gpu.measure_start(argparse.Namespace(**vars(arguments) | {"networks": [training.TWO_LAYERS]}), CPU)
    (start,) = json.loads((results / "gpu-start.json").read_text())["processes"]
    assert start["tiles"] == 250 and start["first step, s"] > start["until the tiles were read, s"] > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_benchmark_reports_it():
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu.py"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1 and done.stdout == ""
    assert "sees no CUDA device" in done.stderr and "Traceback" not in done.stderr
