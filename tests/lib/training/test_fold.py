"""A fold trains to the same bytes, however often it was stopped."""

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from small import Killed, killed_at, left_in, small_task, with_options

from lib.config import Config
from lib.evaluation.metrics import auc
from lib.model.checkpoint import load_checkpoint
from lib.model.network import build_network
from lib.model.predict import predict_logits
from lib.progress import Progress, describe_time
from lib.training import fold as module
from lib.training.epoch import TrainingError
from lib.training.fold import FoldTask
from lib.training.workers import FoldInputError, clear_progress, train_fold

CPU = torch.device("cpu")
CONFIG = Config(
    backbone="test_resnet",
    weights="none",
    input_size=32,
    num_folds=3,
    epochs=3,
    batch_size=8,
    warmup_epochs=1.0,
    clip_grad_norm=1.0,
    drop_rate=0.3,
    class_balance="sampler",
    rotate="any",
    learning_rate=3e-3,
    num_members=1,
    hed_jitter=0.05,
    tta_views=4,
)
FILES = (
    "fold-1-member-0.safetensors",
    "oof-1-member-0.csv",
    "history-1-member-0.jsonl",
    "events.out.tfevents.1-member-0",
)


@pytest.fixture(scope="module")
def task(learnable: tuple[np.ndarray, pd.DataFrame]) -> FoldTask:
    return small_task(learnable, CONFIG)


def _train(
    task: FoldTask,
    folder: Path,
    *,
    invalidate_record: Callable[[], None] = lambda: None,
) -> tuple[dict[str, bool], dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    found = train_fold(task, folder=folder, devices=[CPU], invalidate_record=invalidate_record)
    assert found is not None
    return found


@pytest.fixture
def epochs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The epochs that were trained, as they come."""
    trained: list[int] = []
    real = module.train_one_epoch

    def counted(*arguments: Any, **rest: Any) -> float:
        trained.append(rest["epoch"])
        return real(*arguments, **rest)

    monkeypatch.setattr(module, "train_one_epoch", counted)
    return trained


@pytest.fixture(scope="module")
def whole(task: FoldTask, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fold, trained without an interruption. Not to be changed."""
    folder = tmp_path_factory.mktemp("fold") / "whole"
    _train(task, folder)
    return folder


def test_a_fold_leaves_what_it_promises(task: FoldTask, tmp_path: Path) -> None:
    replaced: list[bool] = []
    names, scores = _train(
        task, tmp_path, invalidate_record=lambda: replaced.append(any(tmp_path.glob("oof-*")))
    )
    assert names == {name: not name.endswith(".safetensors") for name in FILES}  # weights stay on Kaggle
    assert replaced == [False]  # called once, before the first file that readers trust
    table = pd.read_csv(tmp_path / FILES[1], dtype={"id": str})
    inside = task.index[task.folds == 1]
    assert list(table.columns) == ["id", "label", "logit"]
    assert (
        table["id"].tolist() == inside["id"].tolist() and table["label"].tolist() == inside["label"].tolist()
    )
    assert (
        scores["fold"]["auc"]
        == scores["members"][0]["auc"]
        == pytest.approx(auc(table["label"], table["logit"]))
    )
    lines = [json.loads(line) for line in (tmp_path / FILES[2]).read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert all(0 <= line["validation_auc"] <= 1 and line["loss"] > 0 for line in lines)
    assert lines[-1]["learning_rate"] == pytest.approx(0, abs=1e-9)  # of the step after the last
    clear_progress(tmp_path, task)
    assert set(left_in(tmp_path)) == set(FILES) and not list(tmp_path.glob(".*"))


def test_the_logits_are_those_of_the_checkpoint(task: FoldTask, whole: Path) -> None:
    network, identity = load_checkpoint(whole / FILES[0])
    assert identity == task.identity(0)
    rows = np.flatnonzero(task.folds == 1)
    logits = predict_logits(
        network, task.tiles, rows, views=4, batch_size=512, device=CPU, precision=torch.float32
    )
    written = pd.read_csv(whole / FILES[1])["logit"].to_numpy(dtype=np.float32)
    assert np.array_equal(written, logits)  # nine digits give back every float32


def test_the_tiles_of_the_fold_are_not_learned_from(task: FoldTask, whole: Path, tmp_path: Path) -> None:
    tiles = task.tiles.copy()
    tiles[task.folds == 1] = 0
    spoiled = dataclasses.replace(task, tiles=tiles)
    _train(spoiled, tmp_path / "spoiled")
    assert (tmp_path / "spoiled" / FILES[0]).read_bytes() == (whole / FILES[0]).read_bytes()


def test_the_same_seed_gives_the_same_bytes(task: FoldTask, whole: Path, tmp_path: Path) -> None:
    torch.manual_seed(99)
    np.random.seed(99)
    _train(task, tmp_path / "again")
    assert left_in(tmp_path / "again") == left_in(whole)


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_fold_stopped_after_an_epoch_ends_in_the_same_bytes(
    task: FoldTask,
    whole: Path,
    tmp_path: Path,
    epochs: list[int],
    after: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path / "stopped"
    with killed_at(f"epoch {after} of 3"):
        _train(task, folder)
    assert not left_in(folder)  # nothing a reader could trust
    with killed_at("tiles to learn from"):  # and once more, at once
        _train(task, folder)
    caplog.clear()
    epochs.clear()
    _train(task, folder)
    # The state of an epoch is saved after it was said, so the epoch that was cut off is trained again.
    assert epochs == list(range(after - 1, 3))
    assert any(f"resuming after epoch {after - 1}" in line for line in caplog.messages) == (after > 1)
    assert left_in(folder) == left_in(whole)
    assert (folder / FILES[3]).read_bytes() == (whole / FILES[3]).read_bytes()
    clear_progress(folder, task)
    assert not list(folder.glob(".*"))


EVERYTHING: dict[str, Any] = {
    "ema_decay": 0.9,
    "mixup": 0.4,
    "cutmix": 0.5,
    "label_smoothing": 0.1,
    "schedule": "one_cycle",
    "warmup_epochs": 0.0,
    "layer_decay": 0.8,
    "freeze_epochs": 1,
    "pooling": "attention",
    "stem": "no_pool",
    "stain_normalisation": "reinhard",
}


@pytest.mark.parametrize("after", [1, 2])
def test_with_every_option_changed_a_stopped_fold_still_ends_in_the_same_bytes(
    task: FoldTask, tmp_path: Path, after: int, caplog: pytest.LogCaptureFixture
) -> None:
    turned = with_options(task, **EVERYTHING)
    _train(turned, tmp_path / "whole")
    with killed_at(f"epoch {after + 1} of 3"):
        _train(turned, tmp_path / "stopped")
    caplog.clear()
    _train(turned, tmp_path / "stopped")
    assert any(f"resuming after epoch {after}" in line for line in caplog.messages)
    assert any("averaged weights" in line for line in caplog.messages)
    assert left_in(tmp_path / "stopped") == left_in(tmp_path / "whole")
    network, _ = load_checkpoint(tmp_path / "whole" / FILES[0])
    rows = np.flatnonzero(task.folds == 1)
    logits = predict_logits(
        network, task.tiles, rows, views=4, batch_size=512, device=CPU, precision=torch.float32
    )
    assert np.array_equal(
        pd.read_csv(tmp_path / "whole" / FILES[1])["logit"].to_numpy(dtype=np.float32), logits
    )


@pytest.mark.parametrize(
    ("mode", "backbone"), [("lora", "test_vit"), ("last_blocks", "test_vit"), ("last_blocks", "test_resnet")]
)
def test_a_fold_that_tunes_a_part_is_stopped_resumed_and_read_back(
    task: FoldTask, tmp_path: Path, mode: str, backbone: str
) -> None:
    turned = with_options(
        task,
        train_mode=mode,
        train_blocks=1,
        lora_rank=2,
        backbone=backbone,
        ema_decay=0.9,
        layer_decay=0.8,
        freeze_epochs=1,
    )
    _train(turned, tmp_path / "whole")
    with killed_at("epoch 3 of 3"):
        _train(turned, tmp_path / "stopped")
    _train(turned, tmp_path / "stopped")
    assert left_in(tmp_path / "stopped") == left_in(tmp_path / "whole")
    network, _ = load_checkpoint(tmp_path / "whole" / FILES[0])  # a plain network: adapters are merged
    rows = np.flatnonzero(task.folds == 1)
    logits = predict_logits(
        network, task.tiles, rows, views=4, batch_size=512, device=CPU, precision=torch.float32
    )
    written = pd.read_csv(tmp_path / "whole" / FILES[1])["logit"].to_numpy()
    np.testing.assert_allclose(written, logits, atol=1e-5)


def test_the_average_predicts_and_not_the_last_weights(task: FoldTask, whole: Path, tmp_path: Path) -> None:
    _train(with_options(task, ema_decay=0.5), tmp_path / "averaged")
    averaged, _ = load_checkpoint(tmp_path / "averaged" / FILES[0])
    last, _ = load_checkpoint(whole / FILES[0])
    assert any(
        not torch.equal(own, other)
        for own, other in zip(averaged.parameters(), last.parameters(), strict=True)
    )
    histories = [(folder / FILES[2]).read_text() for folder in (tmp_path / "averaged", whole)]
    losses = [[json.loads(line)["loss"] for line in text.splitlines()] for text in histories]
    assert losses[0] == losses[1]  # the average looks on: the training is the same


def test_while_the_backbone_is_frozen_only_the_head_learns(
    task: FoldTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[dict[str, torch.Tensor]] = []
    real = module.train_one_epoch

    def watched(network: Any, *arguments: Any, **rest: Any) -> float:
        states.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        loss = real(network, *arguments, **rest)
        states.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        return loss

    monkeypatch.setattr(module, "train_one_epoch", watched)
    _train(with_options(task, freeze_epochs=1), tmp_path / "frozen")
    changed = [
        {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
        for before, after in zip(states[::2], states[1::2], strict=True)
    ]
    assert changed[0] == {"backbone.fc.weight", "backbone.fc.bias"}  # nor the statistics of batch norms
    assert len(changed[1]) > 20


def test_a_fold_stopped_in_the_middle_of_an_epoch_ends_in_the_same_bytes(
    task: FoldTask, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module.OptimizerStep.__call__
    calls = 0

    def dying(self: module.OptimizerStep, losses: Iterable[torch.Tensor]) -> None:
        nonlocal calls
        calls += 1
        if calls == 8:  # an epoch has three steps
            raise Killed
        real(self, losses)

    with monkeypatch.context() as patch:
        patch.setattr(module.OptimizerStep, "__call__", dying)
        with pytest.raises(Killed):
            _train(task, tmp_path / "stopped")
    _train(task, tmp_path / "stopped")
    assert left_in(tmp_path / "stopped") == left_in(whole)


@pytest.mark.parametrize("file", range(4))
def test_a_fold_stopped_while_writing_its_files_ends_in_the_same_bytes(
    task: FoldTask, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: int
) -> None:
    write = module.write_atomic
    writes = 0

    def dying(path: Path, content: str | bytes) -> None:
        nonlocal writes
        if not path.name.startswith(".unfinished"):
            writes += 1
            if writes > file:
                raise Killed
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_atomic", dying)
        patch.setattr("lib.model.checkpoint.write_atomic", dying)
        with pytest.raises(Killed):
            _train(task, tmp_path / "stopped")
    _train(task, tmp_path / "stopped")
    assert left_in(tmp_path / "stopped") == left_in(whole)


@pytest.mark.parametrize("length", [0, 7, 5000, -1])
def test_a_damaged_state_is_thrown_away(
    task: FoldTask, whole: Path, tmp_path: Path, epochs: list[int], length: int
) -> None:
    folder = tmp_path / "stopped"
    with killed_at("epoch 3 of 3"):
        _train(task, folder)
    state = next(folder.glob(".unfinished-*"))
    state.write_bytes(state.read_bytes()[:length])
    epochs.clear()
    _train(task, folder)
    assert epochs == [0, 1, 2] and left_in(folder) == left_in(whole)


def _another_seed(task: FoldTask) -> FoldTask:
    return with_options(task, seed=1)


@pytest.mark.parametrize(
    "change",
    [
        _another_seed,
        lambda task: with_options(task, learning_rate=1e-3),
        lambda task: dataclasses.replace(task, bundle_id="c" * 64),
        lambda task: dataclasses.replace(task, data_id="e" * 64),
        lambda task: dataclasses.replace(task, fold_table_id="e" * 64),
        lambda task: dataclasses.replace(task, experiment="y"),
    ],
    ids=["seed", "config", "code", "data", "folds", "experiment"],
)
def test_what_was_begun_otherwise_is_begun_anew(
    task: FoldTask, tmp_path: Path, epochs: list[int], change: Callable[[FoldTask], FoldTask]
) -> None:
    folder = tmp_path / "stopped"
    with killed_at("epoch 2 of 3"):
        _train(task, folder)
    other = change(task)
    epochs.clear()
    _train(other, folder)
    assert epochs == [0, 1, 2]
    _train(other, tmp_path / "straight")
    assert left_in(folder) == left_in(tmp_path / "straight")


def test_a_finished_member_is_not_trained_again(
    task: FoldTask, tmp_path: Path, epochs: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    two = with_options(task, num_members=2, epochs=2)
    folder = tmp_path / "stopped"
    with killed_at("member 1: epoch 1"):
        _train(two, folder)
    first = left_in(folder)
    assert set(first) == set(FILES)
    epochs.clear()
    caplog.clear()
    names, scores = _train(two, folder)
    assert (
        epochs == [0, 1] and "member 0: finished before" in caplog.messages[0]
    )  # those of the second member
    assert {name: left_in(folder)[name] for name in first} == first
    assert len(names) == 8 and len(scores["members"]) == 2
    assert left_in(folder)["fold-1-member-1.safetensors"] != first[FILES[0]]
    # All finished: nothing is trained, and the scores are the same.
    epochs.clear()
    assert _train(two, folder) == (names, scores) and epochs == []


@pytest.mark.parametrize("name", FILES)
def test_a_finished_member_whose_files_changed_is_trained_again(
    task: FoldTask, whole: Path, tmp_path: Path, epochs: list[int], name: str
) -> None:
    folder = tmp_path / "again"
    _train(task, folder)
    content = bytearray((folder / name).read_bytes())
    content[-2] ^= 1
    (folder / name).write_bytes(bytes(content))
    epochs.clear()
    _train(task, folder)
    assert epochs == [0, 1, 2] and left_in(folder) == left_in(whole)


def test_other_weights_are_another_plan(task: FoldTask, tmp_path: Path) -> None:
    plans = []
    for seed in range(2):
        torch.manual_seed(seed)
        path = tmp_path / "encoder.safetensors"
        save_file({n: t.contiguous() for n, t in build_network(CONFIG).backbone.state_dict().items()}, path)
        plans.append(dataclasses.replace(task, weights={"file": path}).plan(0, processes=1))
    assert len({*plans, task.plan(0, processes=1), task.plan(1, processes=1), task.plan(0, processes=2)}) == 5


def test_a_folder_with_another_preprocessing_is_another_plan(task: FoldTask, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    plans = []
    for mean in (0.4, 0.5):
        (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": {"mean": [mean] * 3}}))
        plans.append(dataclasses.replace(task, weights={"folder": tmp_path}).plan(0, processes=1))
    assert plans[0] != plans[1]


def test_a_lost_loss_leaves_what_was_there(
    task: FoldTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "fold"
    _train(task, folder)
    clear_progress(folder, task)
    before = left_in(folder)
    backbone = build_network(CONFIG).backbone
    tensors = {name: tensor.clone().contiguous() for name, tensor in backbone.state_dict().items()}
    tensors["conv1.0.weight" if "conv1.0.weight" in tensors else "conv1.weight"].fill_(
        3e38
    )  # finite: its outputs are not
    save_file(tensors, tmp_path / "poisoned.safetensors")
    poisoned = dataclasses.replace(task, weights={"file": tmp_path / "poisoned.safetensors"})

    def never() -> None:
        pytest.fail("the record was invalidated")

    with pytest.raises(TrainingError, match="the loss is not finite"):
        _train(poisoned, folder, invalidate_record=never)
    assert left_in(folder) == before


def test_the_rate_ends_at_nothing_also_where_tiles_are_left_over(task: FoldTask, tmp_path: Path) -> None:
    lone = dataclasses.replace(
        task, folds=np.where(np.arange(36) < 11, 1, 0)
    )  # 25 to learn from, in batches of 8
    _train(lone, tmp_path)
    last = json.loads((tmp_path / FILES[2]).read_text().splitlines()[-1])
    assert last["learning_rate"] == pytest.approx(0, abs=1e-9)


def test_members_and_folds_differ(task: FoldTask, whole: Path, tmp_path: Path) -> None:
    other = dataclasses.replace(task, fold=2)
    _train(other, tmp_path / "other")
    assert (tmp_path / "other" / "fold-2-member-0.safetensors").read_bytes() != (
        whole / FILES[0]
    ).read_bytes()


def test_each_member_and_each_seed_trains_a_network_of_its_own(task: FoldTask, tmp_path: Path) -> None:
    """Other first weights and another order: members that are copies would add nothing to the average."""
    _train(with_options(task, num_members=2, epochs=2), tmp_path / "two")
    _train(with_options(task, num_members=1, epochs=2, seed=1), tmp_path / "seeded")
    paths = [tmp_path / "two" / f"fold-1-member-{member}.safetensors" for member in (0, 1)]
    networks = [load_checkpoint(path)[0] for path in (*paths, tmp_path / "seeded" / FILES[0])]
    for one, other in itertools.combinations(networks, 2):
        kernels = [
            (a.detach(), b.detach())
            for a, b in zip(one.parameters(), other.parameters(), strict=True)
            if a.ndim > 1
        ]
        # Not only trained otherwise: begun otherwise, so that nothing ties one to the other.
        assert all(
            abs(float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])) < 0.5
            for a, b in kernels
        )


@pytest.mark.parametrize("fold", [-1, 3])
def test_a_fold_that_does_not_exist_is_refused(task: FoldTask, tmp_path: Path, fold: int) -> None:
    with pytest.raises(FoldInputError, match="folds 0 to 2"):
        _train(dataclasses.replace(task, fold=fold), tmp_path)


def test_without_validation_only_the_log_is_shorter(task: FoldTask, whole: Path, tmp_path: Path) -> None:
    _train(with_options(task, eval_every=0), tmp_path)
    lines = (tmp_path / FILES[2]).read_text()
    assert "validation_auc" not in lines
    assert (tmp_path / FILES[1]).read_bytes() == (
        whole / FILES[1]
    ).read_bytes()  # looking does not change training


def test_validations_are_of_the_same_sample_and_the_end_of_all_tiles(
    task: FoldTask, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They choose nothing: the files but the history are those of validations of the whole fold."""
    predicted: list[tuple[int, list[int]]] = []

    def recorded(network: Any, tiles: np.ndarray, rows: np.ndarray, *, views: int, **rest: Any) -> np.ndarray:
        predicted.append((views, rows.tolist()))
        return predict_logits(network, tiles, rows, views=views, **rest)

    monkeypatch.setattr(module, "predict_logits", recorded)
    _train(with_options(task, eval_tiles=6), tmp_path)
    inside = np.flatnonzero(task.folds == task.fold).tolist()
    samples = [rows for views, rows in predicted if rows != inside]
    members = task.config.num_members
    assert len(samples) == task.config.epochs * members and len(predicted) == len(samples) + members
    assert len({tuple(rows) for rows in samples}) == members  # of each member its own
    labels = task.index["label"].to_numpy()
    for rows in samples:
        assert len(set(rows)) == 6 and set(rows) <= set(inside) and rows == sorted(rows)
        assert labels[rows].sum() == round(6 * labels[inside].mean())
    ours, plain = left_in(tmp_path), left_in(whole)
    assert ours["oof-1-member-0.csv"] == plain["oof-1-member-0.csv"]
    line = json.loads(ours["history-1-member-0.jsonl"].splitlines()[0])
    assert line["validation_tiles"] == 6 and 0 <= line["validation_auc"] <= 1


@pytest.mark.parametrize(("number", "expected"), [(0, 30), (30, 30), (99, 30), (10, 10), (1, 2), (2, 3)])
def test_a_sample_for_validations_has_both_classes(number: int, expected: int) -> None:
    rows, labels = np.arange(10, 40), np.zeros(50, dtype=np.int64)
    labels[12:15] = 1
    sample = module.validation_rows(rows, labels, number=number, entropy=(1, 2, 3))
    assert len(sample) == expected and set(labels[sample]) == {0, 1}
    np.testing.assert_array_equal(
        sample, module.validation_rows(rows, labels, number=number, entropy=(1, 2, 3))
    )


def test_training_learns(task: FoldTask, tmp_path: Path) -> None:
    plain = with_options(
        task, epochs=12, class_balance="none", rotate="quarter", drop_rate=0.0, hue=0.0, learning_rate=1e-2
    )
    _, scores = _train(plain, tmp_path)
    assert scores["fold"]["auc"] > 0.9


def test_the_log_tells_how_fast_an_epoch_is_and_how_long_the_rest_takes(
    task: FoldTask, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a clock that advances 10 s with every step, there is a line after every third one."""
    clock = itertools.count(step=10.0)
    monkeypatch.setattr(module, "Progress", functools.partial(Progress, now=lambda: next(clock)))
    caplog.set_level("INFO", logger="lib")
    _train(with_options(task, epochs=2, batch_size=2), tmp_path / "run")
    steps = int((task.folds != 1).sum()) // 2  # of 2 tiles; the first one starts the clock
    lines = [line for line in caplog.messages if "in this epoch" in line]
    assert len(lines) == 2 * ((steps - 1) // 3)
    assert lines[0] == (
        f"fold 1, member 0: epoch 1 of 2: 8 of {2 * steps} tiles ({400 // steps} %), 0.2 tiles/s, "
        f"{describe_time(10 * (steps - 4))} left in this epoch, "
        f"{describe_time(10 * (2 * steps - 4))} left in all"
    )
    first, last = [line for line in caplog.messages if ", loss " in line]
    assert first.endswith(f", 0.2 tiles/s, {describe_time(10 * steps)} left in all")
    assert last.endswith(", 0.2 tiles/s")
