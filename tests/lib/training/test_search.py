"""Trials: ranked, recorded, never run twice, one a device, inside the time there is."""

import functools
import json
import math
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from small import killed_at, small_task

from lib.config import Config, parse_toml
from lib.data.shared_memory import SharedMemory
from lib.evaluation.metrics import auc, probability
from lib.model.weights import WeightsError
from lib.search_space import search_from_dict
from lib.training import fold as fold_module
from lib.training import search as module
from lib.training.epoch import TrainingError
from lib.training.fold import FoldTask
from lib.training.search import (
    FAILED,
    FINISHED,
    NOT_RUN,
    PRUNED,
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
    """Run a search in this test's folder."""

    def run(*, devices: int = 1, **values: Any) -> SearchResult:
        options = {
            key: values.pop(key) for key in ("weights", "finished", "deadline", "template") if key in values
        }
        space = search_from_dict({"method": "grid", "space": GRID, **values}, name="s")
        groups = np.arange(len(template.index)) % 12
        task = SearchTask(
            **{
                "space": space,
                "template": template,
                "groups": groups,
                "weights": lambda config: {},
                **options,
            }
        )
        return run_search(task, folder=tmp_path, devices=[CPU] * devices, started=time.monotonic())

    return run


def _trial_config(result: SearchResult, number: int) -> Config:
    """The config of a trial of a grid."""
    trials: list[Any] = []
    while len(trials) <= number:
        trials.append(module.draw_trial(result.task.space, result.task.base, trials, {}))
    config: Config = trials[number].config
    return config


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
        config = _trial_config(found, best.number)
        task = module.replace(template, config=config, fold=fold)
        place = tmp_path / f"fold-{fold}"
        place.mkdir()
        assert train_fold(task, folder=place, devices=[CPU], invalidate_record=lambda: None)
        part = pd.read_csv(place / f"oof-{fold}-member-0.csv")
        logits.append(part["logit"])
        labels.append(part["label"])
    assert auc(np.concatenate(labels), probability(np.concatenate(logits))) == best.auc


def test_what_is_recorded_is_not_run_again(
    search: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = search()
    caplog.clear()
    again = search()
    assert _by_values(again) == _by_values(first)
    assert sum("not run again" in line for line in caplog.messages) == 4 and not any(
        "started" in line for line in caplog.messages
    )
    # A larger space runs what is new in it; a damaged record is made again.
    paths = sorted((tmp_path / "trials").glob("*.json"))
    paths[0].write_text(paths[0].read_text()[:-20])
    caplog.clear()
    larger = search(space={**GRID, "drop_rate": [0.0, 0.2, 0.4]})
    assert sum("not run again" in line for line in caplog.messages) == 3
    assert sum(": started" in line for line in caplog.messages) == 3
    assert _by_values(larger).items() >= _by_values(first).items()
    # Records of another session count as those in the folder do; other folds are other trials.
    for path in (tmp_path / "trials").glob("*.json"):
        path.unlink()
    caplog.clear()
    finished = [module.asdict(record) for record in first.records]
    assert _by_values(search(finished=finished)) == _by_values(first)
    assert not any("started" in line for line in caplog.messages)
    assert not any(
        record.id in {each["id"] for each in finished}
        for record in search(finished=finished, folds=[1]).records
    )


def test_a_trial_that_fails_is_recorded_and_the_search_goes_on(
    search: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
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
    caplog.clear()
    monkeypatch.setattr(module, "train_fold", really)
    again = search(space={"drop_rate": [0.0, 0.1, 0.2], "backbone": ["test_vit"]})
    assert (
        sum(": started" in line for line in caplog.messages) == 1
        and again.complete
        and again.count(FINISHED) == 2
    )


def test_nothing_finished_is_an_error_that_lists_why(search: Any) -> None:
    with pytest.raises(NoTrialError, match="no_such_network"):
        search(space={"backbone": ["no_such_network"]})


def test_weights_that_are_missing_stop_before_any_trial(
    search: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def find(config: Config) -> dict[str, Path]:
        if config.drop_rate == 0.2 or config.backbone == "test_resnet":
            raise WeightsError(f"the weights of {config.backbone} are not among the inputs")
        return {}

    caplog.clear()
    with pytest.raises(WeightsError, match="the weights of test_resnet"):
        search(space={"backbone": ["test_vit", "test_resnet"]}, weights=find)
    assert not caplog.messages and not (tmp_path / "trials").exists()


def test_what_would_not_fit_is_not_begun_and_said(search: Any, tmp_path: Path) -> None:
    first = search(space={"drop_rate": [0.0], "epochs": [2]})
    record = {**module.asdict(first.records[0]), "seconds": 1000.0}  # as on a slow day
    (tmp_path / "trials" / f"{record['id']}.json").unlink()
    found = search(
        space={"drop_rate": [0.0, 0.2, 0.4], "epochs": [2, 1]},
        finished=[record],
        deadline=time.monotonic() + 700,
    )
    states = {(each.values["drop_rate"], each.values["epochs"]): each.status for each in found.records}
    # 1000 s for two epochs do not fit into 700 s, 500 s for one do.
    assert {key for key, status in states.items() if status == NOT_RUN} == {(0.2, 2), (0.4, 2)}
    assert not found.complete and found.count(FINISHED) == 4
    assert all("about 1000 s needed" in each.note for each in found.records if each.status == NOT_RUN)
    assert found.scores()["not_run"] == 2


def test_a_plan_that_the_clock_cut_is_marked(search: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lib.training.time_budget._FIRST_CHECK", 1)
    monkeypatch.setattr("lib.training.time_budget._CLOSING", 0.0)
    monkeypatch.setattr("lib.training.fold.Budget.check", _cut_to_three_steps)
    found = search(space={"drop_rate": [0.1]}, deadline=time.monotonic() + 600)
    assert (
        found.records[0].shortened and "the plan of fold 0 was shortened to 3 steps" in found.records[0].note
    )


def _cut_to_three_steps(budget: Any, step: Any, *, prediction_batches: float, steps_later: int) -> None:
    if step.total > 3 > step.applied:
        step.shorten(3 - step.applied)


LEARNING_RATES = {"learning_rate": {"low": 1e-3, "high": 3e-1, "scale": "log"}}  # all of them learn
RATES = {"learning_rate": {"low": 1e-7, "high": 1e-2, "scale": "log"}}  # the lowest learn nothing


@pytest.fixture
def epochs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of each epoch that is trained."""
    trained: list[int] = []
    real = fold_module.train_one_epoch

    def counted(*arguments: Any, **rest: Any) -> float:
        trained.append(rest["epoch"])
        return real(*arguments, **rest)

    monkeypatch.setattr(fold_module, "train_one_epoch", counted)
    return trained


def _noisy(template: FoldTask) -> FoldTask:
    """The same fold with a third of its labels wrong, so that trials differ in what they score."""
    flipped = np.random.default_rng(0).random(len(template.index)) < 1 / 3
    index = template.index.assign(
        label=np.where(flipped, 1 - template.index["label"], template.index["label"])
    )
    return module.replace(template, index=index)


def _hyperband(search: Any, template: FoldTask, **options: Any) -> SearchResult:
    longer = module.replace(_noisy(template), config=module.replace(template.config, epochs=4))
    result: SearchResult = search(
        method="hyperband", space=LEARNING_RATES, trials=6, first_epochs=1, template=longer, **options
    )
    return result


def test_hyperband_resumes_the_trials_it_promotes_and_prunes_the_others(
    search: Any, template: FoldTask, tmp_path: Path, epochs: list[int]
) -> None:
    result = _hyperband(search, template)
    assert result.complete and result.count(FINISHED) and result.count(PRUNED)
    assert result.count(FINISHED) + result.count(PRUNED) == 6
    # No epoch is trained twice: a promoted trial goes on from its state on disk.
    assert len(epochs) == sum(record.epochs for record in result.records)
    assert {record.epochs for record in result.records if record.status == PRUNED} <= {1, 2}
    assert [record.status for record in result.records] == sorted(record.status for record in result.records)
    for record in result.records:
        wanted = {"1", "2"} if record.status == FINISHED else {"1", "2"} & {"1", str(record.epochs)}
        assert set(record.rungs) == wanted
        assert record.status == FINISHED or record.auc == record.rungs[str(record.epochs)]
    # A finished trial is the whole training of its config, to the last bit.
    best = result.records[0]
    config = module.replace(
        template.config, epochs=4, num_members=1, eval_every=0, learning_rate=best.values["learning_rate"]
    )
    place = tmp_path / "whole"
    place.mkdir()
    task = module.replace(_noisy(template), config=config)
    assert train_fold(task, folder=place, devices=[CPU], invalidate_record=lambda: None)
    table = pd.read_csv(place / "oof-0-member-0.csv")
    assert auc(table["label"], probability(table["logit"].to_numpy())) == best.auc
    assert not [path for path in (tmp_path / "trials").iterdir() if path.is_dir()]
    names = write_search(result, folder=tmp_path, experiment="x")
    assert "winner.toml" in names
    ranking = pd.read_csv(tmp_path / "search.csv", keep_default_na=False)
    assert ranking["rank"].tolist() == list(range(1, 7)) and set(ranking["status"]) == {FINISHED, PRUNED}


def test_hyperband_that_was_stopped_decides_the_same_and_trains_no_epoch_twice(
    search: Any, template: FoldTask, tmp_path: Path, epochs: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    whole = _hyperband(search, template)
    trained = len(epochs)
    shutil.rmtree(tmp_path / "trials")
    epochs.clear()
    with killed_at("paused after 2 of 4 epochs"):
        _hyperband(search, template)
    first = len(epochs)
    assert 0 < first < trained
    again = _hyperband(search, template)
    assert len(epochs) == trained
    assert _by_values(again) == _by_values(whole)
    # The records of another session do as well as the folder: nothing is left to train.
    shutil.rmtree(tmp_path / "trials")
    epochs.clear()
    resumed = _hyperband(search, template, finished=[module.asdict(record) for record in whole.records])
    assert _by_values(resumed) == _by_values(whole) and not epochs


def test_hyperband_without_time_for_the_rest_keeps_the_scores_it_has(
    search: Any, template: FoldTask, tmp_path: Path
) -> None:
    whole = _hyperband(search, template)
    pruned = next(record for record in whole.records if record.status == PRUNED)
    slow = [{**module.asdict(pruned), "seconds": 1000.0}]
    shutil.rmtree(tmp_path / "trials")
    cut = _hyperband(search, template, finished=slow, deadline=time.monotonic() + 100)
    assert not cut.complete and cut.count(NOT_RUN) >= 5 and cut.trials_left == 0
    assert all("s needed" in record.note for record in cut.records if record.status == NOT_RUN)
    # The only score there is names the winner.
    assert cut.records[0].auc is not None and cut.best == cut.records[0]
    assert "winner.toml" in write_search(cut, folder=tmp_path, experiment="x")


def test_tpe_draws_the_same_trials_after_an_interruption(
    search: Any, tmp_path: Path, epochs: list[int]
) -> None:
    tpe = {"method": "tpe", "space": RATES, "trials": 5}
    whole = search(**tpe)
    assert whole.complete and whole.count(FINISHED) == 5
    shutil.rmtree(tmp_path / "trials")
    with killed_at("finished in"):  # the first trial: its record is on disk
        search(**tpe)
    epochs.clear()
    assert _by_values(search(**tpe)) == _by_values(whole)
    assert len(epochs) == 4 * 2
    # Without time only what is known, and the trials that could not be drawn are counted.
    records = [module.asdict(record) for record in whole.records]
    shutil.rmtree(tmp_path / "trials")
    known = [{**record, "seconds": 1000.0} for record in records if record["number"] in (0, 1)]
    cut = search(**tpe, finished=known, deadline=time.monotonic() + 100)
    assert (cut.count(FINISHED), cut.count(NOT_RUN), cut.trials_left, cut.complete) == (2, 1, 2, False)


@pytest.mark.slow
def test_two_devices_run_two_trials_at_a_time_and_find_the_same(
    search: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    space = {"backbone": ["test_vit", "no_such_network"]}
    apart = search(devices=2, space=space)
    assert all(
        line.endswith("started on cpu") for line in caplog.messages[1:3]
    )  # both, before either has ended
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

    monkeypatch.setattr(module, "train_in_subprocess", wait)
    with pytest.raises(WeightsError, match="does not hold"):
        search(devices=2, space={"drop_rate": [0.0, 0.2]})
    assert ended == [0.2]
