"""Several processes on a fold: a member each, or all on one; and what happens when one of them fails."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import warm_python
from small import left_in, small_task, with_options

from lib.config import Config
from lib.data.device_memory import DeviceTiles
from lib.model.network import Classifier
from lib.training import workers as module
from lib.training.distributed import DistributedContext
from lib.training.fold import FoldTask, train_member
from lib.training.workers import WorkerError, train_fold

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[3]
# Helpers that run in a process of their own, beside the workers: see beside.py.
BESIDE = Path(__file__).parent / "beside.py"


@pytest.fixture(scope="module")
def task(learnable: tuple[np.ndarray, pd.DataFrame]) -> FoldTask:
    config = Config(
        backbone="test_vit",  # no batch statistics
        weights="none",
        input_size=32,
        num_folds=3,
        epochs=2,
        batch_size=8,
        num_members=2,
        tta_views=2 * 2,
        learning_rate=1e-3,
        clip_grad_norm=1.0,
        hed_jitter=0.05,
    )
    return small_task(learnable, config)


def _train(task: FoldTask, folder: Path, *, devices: int = 2) -> tuple[dict[str, bool], dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    found = train_fold(task, folder=folder, devices=[CPU] * devices, invalidate_record=lambda: None)
    assert found is not None
    return found


def _history(folder: Path, member: int = 0) -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in (folder / f"history-1-member-{member}.jsonl").read_text().splitlines()
    ]


def test_a_member_a_process_gives_the_bytes_of_one_after_the_other(task: FoldTask, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // 2))  # as many as a worker has: additions are in the same order
    try:
        one = _train(task, tmp_path / "one", devices=1)
    finally:
        torch.set_num_threads(threads)
    two = _train(task, tmp_path / "two", devices=2)
    assert one == two and left_in(tmp_path / "one") == left_in(tmp_path / "two")
    assert len(left_in(tmp_path / "two")) == 8


FURTHER: dict[str, Any] = {
    "ema_decay": 0.9,
    "freeze_epochs": 1,
    "layer_decay": 0.8,
    "schedule": "one_cycle",
    "warmup_epochs": 0.0,
    "label_smoothing": 0.1,
}


@pytest.mark.parametrize(
    "options",
    [
        {},
        FURTHER,
        FURTHER | {"train_mode": "lora", "lora_rank": 2},
        FURTHER | {"train_mode": "last_blocks", "train_blocks": 1},
    ],
    ids=["plain", "further", "lora", "last blocks"],
)
def test_two_processes_on_one_member_give_the_losses_of_one(
    task: FoldTask, tmp_path: Path, options: dict[str, Any]
) -> None:
    """In float64 and without batch statistics, to ten digits; and the same AUC from gathered predictions."""
    double = with_options(task, num_members=1, epochs=3, batch_size=9, grad_accum_steps=2, **options)
    results = {}
    for size in (1, 2):
        folder = tmp_path / str(size)
        folder.mkdir()
        _beside("double", double, folder, size=size)
        results[size] = (_history(folder), pd.read_csv(folder / "oof-1-member-0.csv"))
    alone, together = results[1], results[2]
    for one, two in zip(alone[0], together[0], strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=0, abs=1e-10)
        assert one["validation_auc"] == two["validation_auc"]
    np.testing.assert_allclose(alone[1]["logit"], together[1]["logit"], atol=1e-6)  # written as float32
    assert alone[1][["id", "label"]].equals(together[1][["id", "label"]])


def _beside(what: str, task: FoldTask, folder: Path, *, size: int, **options: Any) -> None:
    """Run `beside.py` once a rank, and wait."""
    np.save(folder / ".tiles.npy", task.tiles)
    task.index.assign(fold=task.folds).to_csv(folder / ".table.csv", index=False)
    facts = {"what": what, "config": task.config.to_dict(), "fold": task.fold, "size": size, **options}
    (folder / ".facts.json").write_text(json.dumps(facts))
    processes = [
        warm_python.Popen(
            [sys.executable, str(BESIDE), str(folder), str(rank)], env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        for rank in range(size)
    ]
    try:
        assert [process.wait(timeout=120) for process in processes] == [0] * size
    finally:
        for process in processes:
            process.kill()


def test_all_processes_on_one_member_by_the_supervisor(
    task: FoldTask, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names, scores = _train(with_options(task, ddp=True), tmp_path)
    assert len(names) == 8 and 0 <= scores["fold"]["auc"] <= 1
    # Everything is there, so it is not done again; with another number of processes it would be another
    # result.
    caplog.clear()
    assert _train(with_options(task, ddp=True), tmp_path) == (names, scores)
    assert [line for line in caplog.messages if ", member " in line] == [
        f"fold 1, member {member}: finished before, not trained again" for member in (0, 1)
    ]


def test_batch_norms_are_those_of_rank_0_wherever_a_tile_is_predicted(task: FoldTask, tmp_path: Path) -> None:
    from lib.model.checkpoint import load_checkpoint
    from lib.model.predict import predict_logits

    _train(with_options(task, ddp=True, backbone="test_resnet", num_members=1), tmp_path)
    network, _ = load_checkpoint(tmp_path / "fold-1-member-0.safetensors")
    rows = np.flatnonzero(task.folds == 1)
    logits = predict_logits(
        network, task.tiles, rows, views=4, batch_size=512, device=CPU, precision=torch.float32
    )
    written = pd.read_csv(tmp_path / "oof-1-member-0.csv")["logit"].to_numpy(dtype=np.float32)
    np.testing.assert_allclose(written, logits, atol=1e-5)


def test_both_processes_shorten_the_plan_at_the_same_step(task: FoldTask, tmp_path: Path) -> None:
    """With a clock ten times too fast: a learning rate of zero in time, a saved model, ranks that agree."""
    folder = tmp_path / "fold"
    folder.mkdir()
    _beside("hurry", with_options(task, num_members=1, epochs=500, eval_every=0), folder, size=2, share=6.0)
    ends = [json.loads((folder / f".end-{rank}.json").read_text()) for rank in range(2)]
    assert ends[0] == ends[1] and ends[0]["applied"] == ends[0]["total"] < 500 * 3
    assert ends[0]["learning_rate"] == pytest.approx(0, abs=1e-9)
    assert _history(folder)[-1]["shortened_to"] == ends[0]["total"]
    assert (folder / "fold-1-member-0.safetensors").is_file()


@pytest.mark.parametrize("ddp", [False, True])
def test_out_of_memory_begins_again_with_half_the_tiles_on_all_ranks(
    task: FoldTask,
    tmp_path: Path,
    ddp: bool,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second epoch runs out of memory with more than two tiles in a pass; the first is not repeated.

    Workers are new processes: a forked one cannot use a GPU that its parent has used. None is left, which
    would keep its memory.
    """
    started: list[Any] = []
    start = warm_python.Popen if ddp else subprocess.Popen

    def popen(command: list[str], **options: Any) -> Any:
        assert command[0] == sys.executable and "preexec_fn" not in options
        started.append(start(command, **options))
        return started[-1]

    monkeypatch.setattr(module.subprocess, "Popen", popen)
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("a worker was forked"))
    with _sabotage("oom", above=2):
        _train(with_options(task, ddp=ddp, epochs=3, eval_every=0), tmp_path)
    told = [
        line for line in [*caplog.messages, *capfd.readouterr().out.splitlines()] if "did not suffice" in line
    ]
    assert told and all("from the last whole epoch" in line for line in told)
    assert len(started) == (4 if ddp else 2) and all(process.poll() is not None for process in started)
    passes = [[line.get("grad_accum_steps", 1) for line in _history(tmp_path, member)] for member in (0, 1)]
    assert passes[0][0] == 1 < passes[0][-1]  # its first epoch was whole before memory ran out
    assert len(passes[0]) == len(passes[1]) == 3
    assert (passes[1][-1] > 1) == ddp  # the other member has a device of its own, or the same two


def test_out_of_memory_frees_the_tiles_of_the_devices_before_passes_shrink(
    task: FoldTask, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """On all ranks of a member that is trained on two devices together."""
    with caplog.at_level("INFO"), _sabotage("tiles"):
        _train(with_options(task, ddp=True, num_members=1, epochs=2, eval_every=0), tmp_path)
    assert [line for line in caplog.messages if "did not suffice" in line] == [
        "the device's memory did not suffice: the tiles are not kept there any more"
    ]
    assert all("grad_accum_steps" not in line for line in _history(tmp_path))


def test_one_process_frees_the_tiles_of_its_device_and_computes_the_same(
    task: FoldTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Members whose tiles are on the host, on the device, and on the device until memory runs out."""
    one = with_options(task, num_members=1)
    real = torch.nn.functional.binary_cross_entropy_with_logits
    steps: list[bool] = []  # whether the tiles were on the device
    placed: list[DeviceTiles] = []

    def place(self: DeviceTiles, device: torch.device, **_: Any) -> None:
        placed.append(self)
        if not self._released:
            self.resident = torch.from_numpy(self.host.copy())

    def loss(logits: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        steps.append(placed[-1].resident is not None)
        if how == "crowded" and steps[-1] and len(steps) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(logits, *rest, **options)

    tables = []
    for how in ("host", "device", "crowded"):
        if how == "device":
            monkeypatch.setattr(DeviceTiles, "place", place)
            monkeypatch.setattr("lib.training.epoch.functional.binary_cross_entropy_with_logits", loss)
        steps.clear()
        (folder := tmp_path / how).mkdir()
        _train(one, folder, devices=1)
        assert all("grad_accum_steps" not in line for line in _history(folder))
        tables.append((folder / "oof-1-member-0.csv").read_bytes())
        if how == "device":
            assert steps and all(steps)
    assert tables[0] == tables[1] == tables[2]
    assert steps[:5] == [True] * 5 and not any(steps[5:]) and len(steps) > 5
    assert placed[-1].resident is None


def test_one_process_that_runs_out_of_memory_goes_on_by_itself(
    task: FoldTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = torch.nn.functional.binary_cross_entropy_with_logits

    def greedy(logits: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        if len(logits) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(logits, *rest, **options)

    monkeypatch.setattr("lib.training.epoch.functional.binary_cross_entropy_with_logits", greedy)
    one = with_options(task, num_members=1)
    _train(one, tmp_path, devices=1)
    assert sum("did not suffice" in line for line in caplog.messages) == 1
    assert [line["grad_accum_steps"] for line in _history(tmp_path)] == [2, 2]
    monkeypatch.setattr(
        "lib.training.epoch.functional.binary_cross_entropy_with_logits",
        lambda *rest, **options: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory")),
    )
    with pytest.raises(module.KernelError, match="input_size"):
        _train(with_options(one, seed=1), tmp_path, devices=1)


def test_a_prediction_that_runs_out_of_memory_is_not_taken_for_a_training(
    task: FoldTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = Classifier.forward

    def greedy(self: Classifier, images: torch.Tensor) -> torch.Tensor:
        if torch.is_inference_mode_enabled() and len(images) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, images)

    monkeypatch.setattr(Classifier, "forward", greedy)
    _train(with_options(task, num_members=1), tmp_path, devices=1)
    assert all("grad_accum_steps" not in line for line in _history(tmp_path))
    assert any("did not suffice to predict 12 tiles" in line for line in caplog.messages)


@pytest.mark.parametrize("ddp", [False, True])
def test_the_first_failure_is_shown_and_the_others_are_ended(
    task: FoldTask, tmp_path: Path, ddp: bool
) -> None:
    before = time.monotonic()
    with _sabotage("raise", rank=1), pytest.raises(WorkerError, match="ValueError: sabotaged") as refused:
        _train(with_options(task, ddp=ddp, epochs=400), tmp_path)
    assert "lib/training" in str(refused.value)  # the traceback
    assert time.monotonic() - before < 60
    assert not left_in(tmp_path)


def test_workers_and_this_process_use_deterministic_algorithms_on_request(
    task: FoldTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for wanted in (True, False):
        told = f"deterministic {wanted} {':4096:8' if wanted else None}"
        with _sabotage("flags", rank=0), pytest.raises(WorkerError, match=told):
            _train(with_options(task, deterministic=wanted), tmp_path)
    seen = []
    monkeypatch.setattr(
        module,
        "train_member",
        lambda *rest, **options: seen.append(torch.are_deterministic_algorithms_enabled()),
    )
    monkeypatch.setattr(module, "collect_outputs", lambda *rest, **options: ({}, {}))
    _train(with_options(task, deterministic=True, num_members=1), tmp_path, devices=1)
    assert seen == [True] and not torch.are_deterministic_algorithms_enabled()


def test_a_worker_that_is_killed_is_named(task: FoldTask, tmp_path: Path) -> None:
    with _sabotage("kill", rank=0), pytest.raises(WorkerError, match="signal 9"):
        _train(with_options(task, epochs=400), tmp_path)


def test_workers_end_with_whoever_started_them(task: FoldTask, tmp_path: Path) -> None:
    folder = tmp_path / "fold"
    folder.mkdir()
    np.save(folder / ".tiles.npy", task.tiles)
    task.index.assign(fold=task.folds).to_csv(folder / ".table.csv", index=False)
    config = with_options(task, epochs=1000).config.to_dict()
    (folder / ".facts.json").write_text(
        json.dumps({"what": "supervise", "config": config, "fold": 1, "size": 1})
    )
    supervisor = subprocess.Popen(
        [sys.executable, str(BESIDE), str(folder), "0"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
    )
    try:
        _until(lambda: len(list(folder.glob(".unfinished-*"))) == 2)
        workers = _workers_in(tmp_path)
        assert len(workers) == 2
    finally:
        supervisor.kill()
        supervisor.wait()
    _until(lambda: not _workers_in(tmp_path))


def _workers_in(scratch: Path) -> list[int]:
    found = subprocess.run(
        ["ps", "-ww", "-eo", "pid,args"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return [int(line.split()[0]) for line in found if "lib.training.workers" in line and str(scratch) in line]


def _until(condition: Callable[[], bool], *, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_torchrun_trains_all_members_together(task: FoldTask, tmp_path: Path) -> None:
    folder = tmp_path / "fold"
    folder.mkdir()
    np.save(folder / ".tiles.npy", task.tiles)
    task.index.assign(fold=task.folds).to_csv(folder / ".table.csv", index=False)
    facts = {"what": "supervise", "config": task.config.to_dict(), "fold": 1, "size": 1}
    (folder / ".facts.json").write_text(json.dumps(facts))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(BESIDE),
        str(folder),
        "0",
    ]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(left_in(folder)) == 8
    assert done.stdout.count("member 0: 24 tiles to learn from") == 1 and "2 processes" in done.stdout


def test_a_single_process_needs_no_process_group(task: FoldTask) -> None:
    context = DistributedContext()
    network = torch.nn.Linear(2, 1)
    assert context.wrap(network, sync_batchnorm=True) is network
    assert (context.sum(1.0, 2.0), context.broadcast_int(3), context.max_int(4)) == ([1.0, 2.0], 3, 4)
    rows = np.arange(7)
    assert context.shard_rows(rows).tolist() == rows.tolist()


@pytest.mark.parametrize(
    ("device", "has_nccl", "share_gpu", "backend", "warning"),
    [
        ("cuda:0", True, False, "nccl", ""),
        ("cuda:0", False, False, "gloo", "this torch has no NCCL"),
        ("cuda:0", True, True, "gloo", "several processes share a GPU"),
        ("cpu", True, False, "gloo", ""),
    ],
)
def test_processes_meet_with_a_time_limit_and_without_nccl_by_gloo(
    device: str,
    has_nccl: bool,
    share_gpu: bool,
    backend: str,
    warning: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Without a limit NCCL waits without end for a process that has failed."""
    calls: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(module.dist, "init_process_group", lambda name, **rest: calls.append((name, rest)))
    monkeypatch.setattr(module.dist, "is_nccl_available", lambda: has_nccl)
    for rank in range(2):
        context = DistributedContext(rank, 2, torch.device(device))
        module.init_process_group(context, "file:///store", share_gpu=share_gpu)
    assert [name for name, _ in calls] == [backend] * 2
    for rank, (_, options) in enumerate(calls):
        assert (options["rank"], options["world_size"]) == (rank, 2)
        assert 60 <= options["timeout"].total_seconds() <= 3600
    assert [record.levelname for record in caplog.records] == ["WARNING"] * bool(warning)
    assert f"{warning}: the processes exchange gradients by gloo" in caplog.text or not warning


@pytest.mark.parametrize(("processes", "shared"), [("2", False), ("3", True)])
def test_processes_of_torchrun_share_a_gpu_where_there_are_more_of_them(
    processes: str, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(module, "init_process_group", lambda *_, **options: calls.append(options))
    monkeypatch.setattr(module.dist, "barrier", lambda: None)
    monkeypatch.setattr(module.dist, "destroy_process_group", lambda: None)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    values = {"TORCHELASTIC_RUN_ID": "x", "RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
    for name, value in {**values, "LOCAL_WORLD_SIZE": processes}.items():
        monkeypatch.setenv(name, value)
    with module._torchrun([torch.device("cuda", 0), torch.device("cuda", 1)]) as context:
        assert context == DistributedContext(2, 4, torch.device("cuda", 1))
    assert calls == [{"share_gpu": shared}]


def test_compiled_training_leaves_the_same_kind_of_checkpoint(
    task: FoldTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[torch.nn.Module] = []

    real = torch.compile

    def compile(
        network: torch.nn.Module,
    ) -> torch.nn.Module:  # what torch.compile returns, without a compiler
        wrapper = real(network, backend="eager")
        compiled.append(wrapper)
        return wrapper

    one = with_options(task, num_members=1, epochs=1)
    train_member(one, 0, folder=tmp_path, context=DistributedContext(), invalidate_record=lambda: None)
    plain = left_in(tmp_path)
    monkeypatch.setattr("lib.training.fold.torch.compile", compile)
    other = tmp_path / "compiled"
    other.mkdir()
    train_member(
        with_options(one, compile=True),
        0,
        folder=other,
        context=DistributedContext(),
        invalidate_record=lambda: None,
    )
    assert len(compiled) == 1 and set(left_in(other)) == set(name for name in plain if name != "compiled")
    assert (other / "oof-1-member-0.csv").read_text() == (tmp_path / "oof-1-member-0.csv").read_text()


class _sabotage:
    """Make workers fail: see sabotage/sitecustomize.py."""

    def __init__(self, how: str, **options: Any) -> None:
        self.environment = {"SABOTAGE": json.dumps({"how": how, **options})}

    def __enter__(self) -> None:
        folder = str(Path(__file__).parent / "sabotage")
        self.environment["PYTHONPATH"] = os.pathsep.join(
            filter(None, [folder, os.environ.get("PYTHONPATH", "")])
        )
        self.before = {name: os.environ.get(name) for name in self.environment}
        os.environ.update(self.environment)

    def __exit__(self, *rest: object) -> None:
        for name, value in self.before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
