"""Trials: ranked, recorded, never run twice, one a device, inside the time there is."""

import functools
import json
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from small import small_task

from lib.config import Config, parse_toml
from lib.data.shared_memory import SharedMemory
from lib.evaluation.metrics import auc, probability
from lib.model.weights import WeightsError
from lib.search_space import search_from_dict
from lib.training import search as module
from lib.training.epoch import TrainingError
from lib.training.fold import FoldTask
from lib.training.search import (
    FAILED,
    FINISHED,
    NOT_RUN,
    NoTrialError,
    SearchResult,
    SearchTask,
    run_search,
    write_search,
)
from lib.training.workers import train_fold

CPU = torch.device("cpu")
GRID = {"learning_rate": [1e-2, 1e-3], "drop_rate": [0.0, 0.2]}


@pytest.fixture(scope="module")
def template(learnable: tuple[np.ndarray, pd.DataFrame]) -> FoldTask:
    tiles, index = learnable
    memory = SharedMemory()
    shared = memory.allocate(tiles.nbytes).reshape(tiles.shape)
    shared[...] = tiles
    config = Config(
        backbone="test_vit",
        weights="none",
        input_size=32,
        num_folds=3,
        epochs=2,
        batch_size=8,
        tta_views=1,
        num_members=2,
    )
    return small_task((shared, index), config, fold=0, memory=memory)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested is the search, not the width of its intervals."""
    monkeypatch.setattr(module, "auc_interval", functools.partial(module.auc_interval, rounds=20))


@pytest.fixture
def search(template: FoldTask, tmp_path: Path) -> Callable[..., SearchResult]:
    """Run a search in this test's folder; what it said is in `said` of the result's task."""

    def run(
        *, devices: int = 1, say: Callable[[str], None] = lambda text: None, **values: Any
    ) -> SearchResult:
        options = {key: values.pop(key) for key in ("weights", "finished", "until") if key in values}
        space = search_from_dict({"method": "grid", "space": GRID, **values}, name="s")
        groups = np.arange(len(template.index)) % 6
        task = SearchTask(
            **{
                "space": space,
                "template": template,
                "groups": groups,
                "weights": lambda config: {},
                **options,
            }
        )
        return run_search(task, folder=tmp_path, devices=[CPU] * devices, say=say, started=time.monotonic())

    return run


def _by_values(found: SearchResult) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    return {
        tuple(each.values.values()): (each.status, each.auc, each.low, each.high) for each in found.records
    }


def test_trials_are_ranked_and_leave_a_table_and_a_winner(
    search: Any, template: FoldTask, tmp_path: Path
) -> None:
    found = search(folds=[0, 2])
    assert found.complete and found.count(FINISHED) == 4
    assert [each.auc for each in found.records] == sorted((each.auc for each in found.records), reverse=True)
    # Of a finished trial its record stays, and nothing else.
    assert sorted(path.name for path in (tmp_path / "trials").iterdir()) == sorted(
        f"{r.id}.json" for r in found.records
    )
    names = write_search(found, folder=tmp_path, experiment="x")
    assert names == {"search.csv": True, "trials.json": True, "winner.toml": True}
    table = pd.read_csv(tmp_path / "search.csv")
    assert table["rank"].tolist() == [1, 2, 3, 4]
    assert list(table.columns[3:8]) == ["auc", "low", "high", "learning_rate", "drop_rate"]
    assert (table["low"] <= table["auc"]).all() and (table["auc"] <= table["high"]).all()
    assert (table["parameters_millions"] > 0.1).all() and (table["seconds"] > 0).all()
    winner = parse_toml((tmp_path / "winner.toml").read_text(), name="winner")
    best = found.records[0]
    assert winner.num_members == 2  # a trial is one network, what is run is the experiment
    assert (winner.learning_rate, winner.drop_rate) == (
        best.values["learning_rate"],
        best.values["drop_rate"],
    )
    assert "optimistic" in (tmp_path / "winner.toml").read_text()
    assert json.loads((tmp_path / "trials.json").read_text())["trials"][0]["auc"] == best.auc
    # The AUC is that of the same folds trained by the code of the fold kernels.
    logits, labels = [], []
    for fold in (0, 2):
        config = module.draw_trials(found.task.space, template.config)[best.number].config
        task = module.replace(template, config=config, fold=fold)
        place = tmp_path / f"fold-{fold}"
        place.mkdir()
        assert train_fold(task, folder=place, devices=[CPU], say=lambda text: None, replace=lambda: None)
        part = pd.read_csv(place / f"oof-{fold}-member-0.csv")
        logits.append(part["logit"])
        labels.append(part["label"])
    assert auc(np.concatenate(labels), probability(np.concatenate(logits))) == best.auc


def test_what_is_recorded_is_not_run_again(search: Any, tmp_path: Path) -> None:
    first = search()
    said: list[str] = []
    again = search(say=said.append)
    assert _by_values(again) == _by_values(first)
    assert sum("not run again" in line for line in said) == 4 and not any("started" in line for line in said)
    # A larger space runs what is new in it; a damaged record is made again.
    paths = sorted((tmp_path / "trials").glob("*.json"))
    paths[0].write_text(paths[0].read_text()[:-20])
    said.clear()
    larger = search(space={**GRID, "drop_rate": [0.0, 0.2, 0.4]}, say=said.append)
    assert sum("not run again" in line for line in said) == 3
    assert sum(": started" in line for line in said) == 3
    assert _by_values(larger).items() >= _by_values(first).items()
    # Records of another session count as those in the folder do; other folds are other trials.
    for path in (tmp_path / "trials").glob("*.json"):
        path.unlink()
    said.clear()
    finished = [module.asdict(record) for record in first.records]
    assert _by_values(search(finished=finished, say=said.append)) == _by_values(first)
    assert not any("started" in line for line in said)
    assert not any(
        record.id in {each["id"] for each in finished}
        for record in search(finished=finished, folds=[1]).records
    )


def test_a_trial_that_fails_is_recorded_and_the_search_goes_on(
    search: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = module.train_fold

    def failing(task: FoldTask, **rest: Any) -> Any:
        if task.config.drop_rate == 0.1:
            raise TrainingError("the loss is not finite at step 3\nTry a lower learning rate")
        if task.config.drop_rate == 0.2:
            raise torch.OutOfMemoryError("out of memory")
        return really(task, **rest)

    monkeypatch.setattr(module, "train_fold", failing)
    found = search(space={"drop_rate": [0.0, 0.1, 0.2], "backbone": ["test_vit", "no_such_network"]})
    assert found.count(FINISHED) == 1 and found.count(FAILED) == 5
    notes = {
        (each.values["drop_rate"], each.values["backbone"]): (each.note, each.again) for each in found.records
    }
    assert notes[(0.1, "test_vit")] == ("the loss is not finite at step 3", False)
    assert "out of memory" in notes[(0.2, "test_vit")][0] and notes[(0.2, "test_vit")][1]
    assert "no_such_network" in notes[(0.0, "no_such_network")][0]
    assert not found.complete  # what ran out of memory is tried again
    assert [each.status for each in found.records] == [FINISHED] + [FAILED] * 5
    assert not [path for path in (tmp_path / "trials").iterdir() if path.is_dir()]
    said: list[str] = []
    monkeypatch.setattr(module, "train_fold", really)
    again = search(space={"drop_rate": [0.0, 0.1, 0.2], "backbone": ["test_vit"]}, say=said.append)
    assert sum(": started" in line for line in said) == 1 and again.complete and again.count(FINISHED) == 2


def test_nothing_finished_is_an_error_that_lists_why(search: Any) -> None:
    with pytest.raises(NoTrialError, match="no_such_network"):
        search(space={"backbone": ["no_such_network"]})


def test_weights_that_are_missing_stop_before_any_trial(search: Any, tmp_path: Path) -> None:
    def find(config: Config) -> dict[str, Path]:
        if config.drop_rate == 0.2 or config.backbone == "test_resnet":
            raise WeightsError(f"the weights of {config.backbone} are not among the inputs")
        return {}

    said: list[str] = []
    with pytest.raises(WeightsError, match="the weights of test_resnet"):
        search(space={"backbone": ["test_vit", "test_resnet"]}, weights=find, say=said.append)
    assert not said and not (tmp_path / "trials").exists()


def test_what_would_not_fit_is_not_begun_and_said(search: Any, tmp_path: Path) -> None:
    first = search(space={"drop_rate": [0.0], "epochs": [2]})
    record = {**module.asdict(first.records[0]), "seconds": 1000.0}  # as on a slow day
    (tmp_path / "trials" / f"{record['id']}.json").unlink()
    found = search(
        space={"drop_rate": [0.0, 0.2, 0.4], "epochs": [2, 1]},
        finished=[record],
        until=time.monotonic() + 700,
    )
    states = {(each.values["drop_rate"], each.values["epochs"]): each.status for each in found.records}
    # 1000 s for two epochs do not fit into 700 s, 500 s for one do.
    assert {key for key, status in states.items() if status == NOT_RUN} == {(0.2, 2), (0.4, 2)}
    assert not found.complete and found.count(FINISHED) == 4
    assert all("about 1000 s needed" in each.note for each in found.records if each.status == NOT_RUN)
    assert found.scores()["not_run"] == 2


def test_a_plan_that_the_clock_cut_is_marked(search: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lib.training.time_budget._FIRST_LOOK", 1)
    monkeypatch.setattr("lib.training.time_budget._CLOSING", 0.0)
    monkeypatch.setattr("lib.training.fold.Budget.look", _cut_to_three_steps)
    found = search(space={"drop_rate": [0.1]}, until=time.monotonic() + 600)
    assert (
        found.records[0].shortened and "the clock cut the plan of fold 0 to 3 steps" in found.records[0].note
    )


def _cut_to_three_steps(budget: Any, step: Any, *, prediction_batches: float) -> None:
    if step.total > 3 > step.applied:
        step.shorten(3 - step.applied)


def test_halving_trains_the_best_for_longer_from_the_start(search: Any, tmp_path: Path) -> None:
    table = {"learning_rate": {"low": 1e-4, "high": 1e-1, "scale": "log"}}
    found = search(method="halving", space=table, trials=3, eta=2, first_epochs=1)
    assert [(each.rung, each.epochs) for each in found.records] == [(1, 2), (0, 1), (0, 1), (0, 1)]
    best = max((each for each in found.records if each.rung == 0), key=lambda each: each.auc)
    assert found.records[0].number == best.number and found.complete
    # The winner keeps the experiment's own epochs.
    write_search(found, folder=tmp_path, experiment="x")
    assert parse_toml((tmp_path / "winner.toml").read_text(), name="w").epochs == 2
    # What does not fit ends the search where it is; the rungs that were not begun are counted.
    slow = [{**module.asdict(each), "seconds": 1000.0} for each in found.records[1:2]]
    for path in (tmp_path / "trials").glob("*.json"):
        path.unlink()
    cut = search(
        method="halving", space=table, trials=3, first_epochs=1, finished=slow, until=time.monotonic() + 100
    )
    assert (cut.count(FINISHED), cut.count(NOT_RUN), cut.rungs_left, cut.complete) == (1, 2, 1, False)


@pytest.mark.slow
def test_two_devices_run_two_trials_at_a_time_and_find_the_same(search: Any, tmp_path: Path) -> None:
    said: list[str] = []
    space = {"backbone": ["test_vit", "no_such_network"]}
    apart = search(devices=2, space=space, say=said.append)
    assert all(line.endswith("started on cpu") for line in said[1:3])  # both, before either has ended
    assert apart.count(FINISHED) == 1 and apart.count(FAILED) == 1
    assert all(
        "no_such_network" in each.note and not each.again for each in apart.records if each.status == FAILED
    )
    for path in (tmp_path / "trials").glob("*.json"):
        path.unlink()
    alone = search(space=space)
    for one, other in zip(
        sorted(apart.records, key=_number), sorted(alone.records, key=_number), strict=True
    ):
        assert (one.id, one.status) == (other.id, other.status)
        assert one.auc is None or math.isclose(
            one.auc, other.auc, abs_tol=0.02
        )  # cores shared: sums in another order


def _number(record: Any) -> int:
    return int(record.number)


def test_an_error_of_no_trial_ends_the_others(search: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ended, began = [], threading.Event()

    def wait(task: FoldTask, *, stop: Any, **rest: Any) -> None:
        if task.config.drop_rate == 0.0:
            assert began.wait(30)
            raise WeightsError("model.safetensors does not hold the weights")
        began.set()
        assert stop.wait(30)
        ended.append(task.config.drop_rate)
        raise module.WorkerError("ended")

    monkeypatch.setattr(module, "train_apart", wait)
    with pytest.raises(WeightsError, match="does not hold"):
        search(devices=2, space={"drop_rate": [0.0, 0.2]})
    assert ended == [0.2]
