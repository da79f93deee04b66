"""The benchmarks for a GPU on the null GPU: they run to their end, and write what a user can send back."""

import json
from pathlib import Path

import pytest
from null_gpu import run_on_null_gpu

ROOT = Path(__file__).resolve().parents[3]
TINY = ["--networks", "test_resnet:48", "--batch", "8", "--steps", "3", "--rounds", "1"]


def test_the_gpu_benchmark_writes_one_file_to_send_back(
    null_gpu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the peers, which are no packages of the tests, and without compilation, which needs a GPU."""
    monkeypatch.setenv("HCD_BENCHMARKS", str(tmp_path / "results"))
    options = ["--no-peers", "--no-compile", "--store-tiles", "64", "--scratch", str(tmp_path)]
    done = run_on_null_gpu(null_gpu, ROOT / "benchmarks" / "gpu.py", *TINY, *options, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    path = tmp_path / "results" / "gpu-report.json"
    assert f"Attach {path} to an issue of the repository" in done.stdout
    text = path.read_text()
    content = json.loads(text)
    assert content["device"] == "null GPU" and content["devices"] == 2 and content["not measured"] == []
    start, network = content["results"]  # in the order of their names
    methods = {row["name"]: row["tiles_per_second"] for row in network["rows"]}
    assert {name.split(",")[0] for name in methods} >= {"ours"} and len(methods) == 4
    assert "ours, tiles in device memory" in methods and all(len(rates) == 1 for rates in methods.values())
    assert network["conditions"]["precision"] == "float16"  # a T4 has no bfloat16
    assert network["conditions"]["waits only for loss checks"].startswith("yes: 3 steps")
    assert start["benchmark"] == "gpu-start" and start["processes"][0]["tiles"] == 64
    assert str(tmp_path) not in text and str(ROOT) not in text


def test_a_network_that_cannot_be_measured_is_named_and_the_others_are_sent(
    null_gpu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HCD_BENCHMARKS", str(tmp_path))
    options = [*TINY, "--no-peers", "--no-compile", "--store-tiles", "0"]
    options[1:2] = ["no_such_network:96", "test_resnet:48"]
    done = run_on_null_gpu(null_gpu, ROOT / "benchmarks" / "gpu.py", *options, timeout=900)
    assert done.returncode == 1 and "not measured:\n  no_such_network:96" in done.stderr
    content = json.loads((tmp_path / "gpu-report.json").read_text())
    assert len(content["results"]) == 1 and content["not measured"][0].startswith("no_such_network:96")


def test_kernels_and_bytes_are_counted_without_a_gpu(
    null_gpu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HCD_BENCHMARKS", str(tmp_path))
    options = ["--networks", "test_resnet:48", "--batch", "8", "--child"]
    done = run_on_null_gpu(null_gpu, ROOT / "benchmarks" / "gpu_counts.py", *options, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads((tmp_path / "gpu-counts.json").read_text())
    [network] = content["networks"]
    # A batch of 8 tiles is copied as 8 x 96 x 96 x 3 bytes, and augmented as 8 x 3 x 48 x 48 floats or more.
    assert content["tiles"]["bytes of a batch over PCIe"] == 8 * 96 * 96 * 3
    assert content["augmentation"]["launches"] > 20
    assert network["forward and backward"]["launches"] > 50
    assert network["step"]["launches"] < 60  # fused: it does not grow with the parameters
    assert network["prediction, 8 views"]["launches"] > 8 * 10
    assert network["forward and backward"]["bytes"] > 8 * 3 * 48 * 48 * 2 * 10
