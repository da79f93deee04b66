"""The time budget: a plan gets shorter, never longer, and ends in time at a learning rate of zero."""

import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from small import small_task, with_options
from torch import nn

from lib.config import Config
from lib.training import fold as fold_module
from lib.training import time_budget as module
from lib.training.fold import FoldTask
from lib.training.optimizer import OptimizerStep, build_optimizer
from lib.training.time_budget import Budget, BudgetError
from lib.training.workers import train_fold


@pytest.fixture(scope="module")
def task(learnable: tuple[np.ndarray, pd.DataFrame]) -> FoldTask:
    config = Config(
        backbone="test_resnet",
        weights="none",
        input_size=32,
        epochs=2,
        batch_size=32,
        num_folds=3,
        tta_views=1,
        learning_rate=3e-3,
        num_members=1,
    )
    return small_task(learnable, config)


def plan(total: int = 1000, warmup: int = 0) -> OptimizerStep:
    optimizer = build_optimizer(nn.Linear(2, 1), Config(learning_rate=1.0))
    return OptimizerStep(optimizer, peak=1.0, total=total, warmup=warmup, clip=0.0, scaled=False)


@given(
    total=st.integers(10, 400),
    warmup=st.floats(0, 0.5),
    cuts=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=4),
)
def test_a_shortened_plan_falls_without_a_jump_to_zero(
    total: int, warmup: float, cuts: list[tuple[float, float]]
) -> None:
    step = plan(total, round(total * warmup))
    rates: list[float] = []
    when = {round(at * (total - 2)): part for at, part in cuts}
    climbing = step.warmup
    while step.left > 0:
        if (part := when.get(step.applied)) is not None and step.left > 2:
            before, left = step.learning_rate, max(1, int(step.left * part * 0.9))
            step.shorten(left)
            assert step.left == left
            assert step.learning_rate == pytest.approx(before)  # no jump where it is cut
            climbing = min(climbing, step.applied)
        rates.append(step.learning_rate)
        step.attempts += 1
    assert step.applied == step.total <= total
    assert step.learning_rate == pytest.approx(0.0, abs=1e-9)
    fall = np.diff(rates[climbing:])
    assert (fall <= 1e-12).all()  # it never rises again


def test_a_plan_is_never_made_longer() -> None:
    step = plan(100)
    for left in (0, 100, 101):
        with pytest.raises(ValueError, match="cannot shorten"):
            step.shorten(left)


def test_a_shortened_plan_is_taken_up_as_it_was() -> None:
    step, again = plan(200, 20), plan(200, 20)
    step.attempts = 50
    step.shorten(60)
    again.load_state(json.loads(json.dumps(step.state())))
    for each in (step, again):
        each.attempts += 17
    assert (again.learning_rate, again.left) == (step.learning_rate, step.left)


@pytest.mark.parametrize(
    "wrong",
    [
        {"schedule": [10**15, 0, 0.0, 1.0]},
        {"schedule": [300, 20, 0.0, 1.0]},
        {"schedule": [-1, 20, 0.0, 1.0]},
        {"schedule": [110, -5, 0.0, 1.0]},
        {"schedule": [110, 50, float("nan"), 1.0]},
        {"schedule": [110, 50, 0.0, 7.0]},
        {"applied": 111},
        {"applied": -1},
        {"skipped": -1},
    ],
    ids=str,
)
def test_a_state_that_no_training_by_the_plan_comes_to_is_refused(wrong: dict[str, object]) -> None:
    step = plan(200, 20)
    step.attempts = 50
    step.shorten(60)
    with pytest.raises(ValueError, match="do not belong to a plan of 200 steps"):
        plan(200, 20).load_state(step.state() | wrong)


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.mark.parametrize("slow_day", [1.0, 1.5, 4.0, 10.0])
def test_the_plan_stands_unless_the_clock_binds_and_then_it_ends_in_time(
    slow_day: float, caplog: pytest.LogCaptureFixture
) -> None:
    clock, step = Clock(), plan(2000)
    budget = Budget(deadline=2300.0, fixed_schedule=False, now=clock)
    budget.begin(step)
    while step.left > 0:
        clock.seconds += slow_day  # a step was expected to take one second
        step.attempts += 1
        if step.applied % 50 == 0:
            budget.check(step, prediction_batches=100)
    clock.seconds += 100 * slow_day / 3  # the predictions
    assert clock.seconds <= 2300
    assert step.learning_rate == pytest.approx(0.0, abs=1e-9)
    if slow_day == 1.0:
        assert step.total == 2000 and caplog.messages == []
    else:
        assert step.total < 2000 and "is shortened from 2,000 to" in caplog.messages[0]
        assert clock.seconds > 0.85 * 2300  # the time is used, not thrown away


def test_a_day_that_becomes_slow_in_the_middle() -> None:
    clock, step = Clock(), plan(2000)
    budget = Budget(deadline=2500.0, fixed_schedule=False, now=clock)
    budget.begin(step)
    while step.left > 0:
        clock.seconds += 1.0 if step.applied < 1000 else 3.0
        step.attempts += 1
        if step.applied % 50 == 0:
            budget.check(step, prediction_batches=10)
    assert clock.seconds <= 2500


def test_deterministic_forbids_to_shorten() -> None:
    clock, step = Clock(), plan(2000)
    budget = Budget(deadline=1000.0, fixed_schedule=True, now=clock)
    budget.begin(step)
    clock.seconds, step.attempts = 50.0, 50
    with pytest.raises(BudgetError, match="fixed_schedule = true"):
        budget.check(step, prediction_batches=1)
    assert step.total == 2000


def _fast(task: FoldTask, monkeypatch: pytest.MonkeyPatch, *, share: float, **options: object) -> FoldTask:
    """The task with a clock ten times too fast, and a deadline that this share of the training meets."""
    began = time.monotonic()

    def now() -> float:
        return began + 10 * (time.monotonic() - began)

    monkeypatch.setattr(module, "_CLOSING", 0.0)
    monkeypatch.setattr(module, "_FIRST_CHECK", 2)
    monkeypatch.setattr("lib.training.epoch._CHECK_EVERY", 1)
    monkeypatch.setattr(fold_module, "Budget", partial(Budget, now=now))
    return replace(with_options(task, **options), deadline=time.monotonic() + share)


def test_a_fold_whose_clock_runs_ten_times_too_fast_still_leaves_an_annealed_model(
    task: FoldTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hurried = _fast(task, monkeypatch, share=4.0, epochs=400, eval_every=0)
    names, scores = train_fold(
        hurried, folder=tmp_path, devices=[torch.device("cpu")], invalidate_record=lambda: None
    )
    assert any("the plan does not fit the time" in line for line in caplog.messages)
    history = [json.loads(line) for line in (tmp_path / "history-1-member-0.jsonl").read_text().splitlines()]
    assert len(history) < 400
    assert history[-1]["learning_rate"] == pytest.approx(0.0, abs=1e-9)
    assert history[-1]["shortened_to"] < 400 * 2
    assert all((tmp_path / name).is_file() for name in names)
    assert len(load_file(tmp_path / "fold-1-member-0.safetensors")) > 5
    assert 0 <= scores["fold"]["auc"] <= 1


def test_a_fold_that_must_be_deterministic_stops_with_what_to_do(
    task: FoldTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurried = _fast(task, monkeypatch, share=4.0, epochs=400, eval_every=0, fixed_schedule=True)
    with pytest.raises(BudgetError, match="fewer epochs"):
        train_fold(
            hurried,
            folder=tmp_path,
            devices=[torch.device("cpu")],
            invalidate_record=lambda: None,
        )
    assert not list(tmp_path.glob("fold-*"))


def test_time_is_reserved_for_the_caller(
    task: FoldTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The budget adds the reserved tiles to those of the final predictions."""
    batches_kept: list[float] = []

    class Recorder(Budget):
        def check(self, step: OptimizerStep, *, prediction_batches: float, steps_later: int = 0) -> None:
            batches_kept.append(prediction_batches)

    monkeypatch.setattr(fold_module, "Budget", Recorder)
    timed = replace(task, deadline=time.monotonic() + 3600, reserved_tiles=4000)
    train_fold(timed, folder=tmp_path, devices=[torch.device("cpu")], invalidate_record=lambda: None)
    predicted = int((task.folds == task.fold).sum()) * task.config.tta_views
    assert batches_kept and {batches * task.config.batch_size for batches in batches_kept} == {
        predicted + 4000
    }


def test_a_clock_that_does_not_bind_changes_no_byte(task: FoldTask, tmp_path: Path) -> None:
    plain, timed = tmp_path / "plain", tmp_path / "timed"
    for folder, each in ((plain, task), (timed, replace(task, deadline=time.monotonic() + 3600))):
        folder.mkdir()
        train_fold(each, folder=folder, devices=[torch.device("cpu")], invalidate_record=lambda: None)
    assert {path.name: path.read_bytes() for path in plain.iterdir()} == {
        path.name: path.read_bytes() for path in timed.iterdir()
    }
