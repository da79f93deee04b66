"""Barlow Twins: the paper's loss, draws per view, an encoder for the folds, the same after a kill."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from small import Killed, killed_at
from timm.models import save_for_hf

from lib.config import Config
from lib.data.device_memory import DeviceTiles, TilesInTheWay
from lib.data.shared_memory import SharedMemory
from lib.model.network import build_network
from lib.training import barlow_twins as module
from lib.training.barlow_twins import (
    HISTORY,
    UNFINISHED,
    BarlowTwins,
    PretrainTask,
    barlow_twins_loss,
    draw_epoch,
    embedding_spread,
    pretrain,
    random_crop,
)
from lib.training.distributed import DistributedContext
from lib.training.epoch import TrainingError
from lib.training.pretrain_workers import pretrain_on_all

CONFIG = Config(
    backbone="test_resnet",
    weights="pretrain",
    input_size=32,
    pretrain_epochs=3,
    pretrain_batch_size=16,
    projector_dim=32,
    pretrain_learning_rate=3e-3,
)


@pytest.fixture(scope="module")
def task(learnable: tuple[np.ndarray, Any]) -> PretrainTask:
    tiles, _ = learnable
    return PretrainTask(config=CONFIG, tiles=tiles, data_id="d" * 64, bundle_id="b" * 64)


def _run(task: PretrainTask, folder: Path) -> tuple[list[str], dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    return pretrain(task, folder=folder, context=DistributedContext(), invalidate_record=lambda: None)


def _bytes(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_loss_is_the_papers() -> None:
    """Its pseudo-code, in NumPy."""
    generator = np.random.default_rng(0)
    one, two = generator.normal(3, 2, (50, 7)), generator.normal(-1, 4, (50, 7))
    a, b = ((z - z.mean(axis=0)) / z.std(axis=0) for z in (one, two))
    c = a.T @ b / 50
    difference = (c - np.eye(7)) ** 2
    difference[~np.eye(7, dtype=bool)] *= 0.0051
    found = barlow_twins_loss(torch.from_numpy(one), torch.from_numpy(two))
    assert float(found) == pytest.approx(difference.sum(), rel=1e-5)
    same = torch.linalg.qr(torch.randn(64, 7, dtype=torch.float64) - 0.0)[0]
    same = same - same.mean(dim=0)
    assert float(barlow_twins_loss(same, same)) < 0.05 < float(barlow_twins_loss(same, same.roll(1, 1)))


def test_the_gradients_of_all_processes_are_that_of_the_whole_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process differentiates by its own projections; their sum over the network is the gradient."""
    torch.manual_seed(0)
    weight = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    views = torch.randn(2, 12, 5, dtype=torch.float64)
    barlow_twins_loss(views[0] @ weight, views[1] @ weight).backward()
    whole, weight.grad = weight.grad, None
    for rank in range(3):
        mine = slice(4 * rank, 4 * rank + 4)
        gathered = []
        for view in views:

            def gather(parts: list[torch.Tensor], own: torch.Tensor, view: torch.Tensor = view) -> None:
                assert not own.requires_grad
                for part, values in zip(parts, (view @ weight).detach().split(4), strict=True):
                    part.copy_(values)

            monkeypatch.setattr(module.dist, "all_gather", gather)
            context = DistributedContext(rank, 3, torch.device("cpu"))
            gathered.append(module.gather_with_gradient(view[mine] @ weight, context))
        barlow_twins_loss(*gathered).backward()  # adds to the gradient
    torch.testing.assert_close(weight.grad, whole)


def test_half_numbers_are_correlated_in_float32() -> None:
    big = (torch.rand(32, 4) * 200 + 60_000).half()
    loss = barlow_twins_loss(big, big)
    assert loss.dtype == torch.float32 and loss.isfinite()


def test_a_crop_of_the_whole_is_the_tile_and_the_smallest_shows_two_fifths() -> None:
    images = torch.rand(2, 3, 32, 32)
    whole = torch.tensor([[1.0, 0.5, 0.5]] * 2)
    assert torch.allclose(random_crop(images, whole), images, atol=1e-5)
    ramp = torch.linspace(0, 1, 64).view(1, 1, 1, 64).expand(1, 3, 64, 64)
    for across, low, high in ((0.0, 0.0, 0.4**0.5), (1.0, 1 - 0.4**0.5, 1.0)):
        found = random_crop(ramp, torch.tensor([[0.0, across, 0.5]]))
        assert float(found.min()) == pytest.approx(low, abs=0.02) and float(found.max()) == pytest.approx(
            high, abs=0.02
        )


def test_an_epoch_is_drawn_alike_each_time_and_its_views_differ() -> None:
    order, augmentations, crops = draw_epoch(CONFIG, 100, 4)
    again, augmentations_again, crops_again = draw_epoch(CONFIG, 100, 4)
    assert (
        np.array_equal(order, again)
        and torch.equal(augmentations[0], augmentations_again[0])
        and torch.equal(crops[1], crops_again[1])
    )
    assert not torch.equal(augmentations[0], augmentations[1]) and not torch.equal(crops[0], crops[1])
    other, other_augmentations, _ = draw_epoch(CONFIG, 100, 5)
    assert not np.array_equal(order, other)
    assert len(order) == 96 == len(set(order.tolist()))  # whole steps, no tile twice
    row = int(order[0])
    assert (
        not torch.equal(augmentations[0][0], other_augmentations[0][other.tolist().index(row)])
        if row in other
        else True
    )


def test_the_spread_tells_a_collapse() -> None:
    torch.manual_seed(0)
    assert embedding_spread(torch.randn(256, 64)) == pytest.approx(1.0, abs=0.05)
    assert embedding_spread(torch.ones(256, 64) + 1e-6 * torch.randn(256, 64)) < 1e-3


def test_it_learns_and_leaves_an_encoder_for_the_folds(task: PretrainTask, tmp_path: Path) -> None:
    longer = dataclasses.replace(task, config=dataclasses.replace(CONFIG, pretrain_epochs=12))
    names, facts = _run(longer, tmp_path)
    history = [json.loads(line) for line in (tmp_path / HISTORY).read_text().splitlines()]
    assert len(history) == 12 and history[-1]["loss"] < 0.8 * history[0]["loss"]
    assert facts["transductive"] is True and facts["tiles"] == 36 and facts["loss"] == history[-1]["loss"]
    assert names == [HISTORY, "test_resnet/config.json", "test_resnet/model.safetensors"]
    assert set(_bytes(tmp_path)) == {*names, UNFINISHED}  # the state goes when run.json stands for the whole
    config = json.loads((tmp_path / "test_resnet" / "config.json").read_text())
    assert "license" not in config["pretrained_cfg"] and config["pretrained_cfg"]["tag"] == "pretrained_here"
    # What a fold starts from is what was trained: it tells tiles apart that random weights do not.
    found = build_network(CONFIG, folder=tmp_path / "test_resnet").backbone.state_dict()
    torch.manual_seed(module._seed(longer.config, 0))
    begun = build_network(CONFIG).backbone.state_dict()
    moved = [name for name in found if not torch.equal(found[name], begun[name])]
    assert len(moved) > 20


def test_it_continues_from_given_weights(task: PretrainTask, tmp_path: Path) -> None:
    """From a hub's encoder with arguments of its own: they, its mean and its licence reach the folds."""
    arguments = {"init_values": 1e-5, "img_size": 32}
    torch.manual_seed(3)
    theirs = timm.create_model("test_vit", **arguments)
    for name, parameter in theirs.named_parameters():
        if name.endswith("gamma"):
            torch.nn.init.uniform_(parameter, 0.1, 0.5)  # as after a training: its features differ by tile
    theirs.pretrained_cfg = {**theirs.pretrained_cfg, "mean": (0.7, 0.6, 0.7), "license": "mit"}
    # timm 1.0.31 writes the classes, too; it saves no network that has others.
    written = arguments | {"num_classes": 1000}
    save_for_hf(theirs, str(tmp_path / "hub"), safe_serialization=True, model_args=written)
    config = dataclasses.replace(
        CONFIG,
        backbone="test_vit",
        pretrain_weights="timm",
        pretrain_epochs=1,
        pretrain_learning_rate=1e-8,
        std="0.3 0.3 0.3",
    )
    start = dataclasses.replace(task, config=config, weights={"folder": tmp_path / "hub"})
    _run(start, tmp_path / "out")
    found = build_network(config, folder=tmp_path / "out" / "test_vit")
    wanted = {name: value for name, value in theirs.state_dict().items() if not name.startswith("head.")}
    held = found.backbone.state_dict()
    assert any(name.endswith("ls1.gamma") for name in wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(held[name], value, rtol=0, atol=1e-6)
    settings = json.loads((tmp_path / "out" / "test_vit" / "config.json").read_text())["pretrained_cfg"]
    assert settings["mean"] == pytest.approx([0.7, 0.6, 0.7]) and settings["std"] == pytest.approx([0.3] * 3)
    assert settings["license"] == "mit" and settings["tag"] == "pretrained_here"
    kept = json.loads((tmp_path / "out" / "test_vit" / "config.json").read_text())["model_args"]
    assert kept["init_values"] == 1e-5 and kept["num_classes"] == found.backbone.num_classes != 1000
    other = dataclasses.replace(start, weights={})
    assert other.plan(1) != start.plan(1)  # an interrupted pretraining from other weights is not resumed


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_pretraining_that_was_stopped_ends_in_the_same_bytes(
    task: PretrainTask, tmp_path: Path, after: int, caplog: pytest.LogCaptureFixture
) -> None:
    _run(task, tmp_path / "whole")

    def kill() -> None:
        raise Killed

    folder = tmp_path / "stopped"
    folder.mkdir()
    end = killed_at(f"epoch {after + 1} of 3") if after < 3 else pytest.raises(Killed)
    with end:
        pretrain(task, folder=folder, context=DistributedContext(), invalidate_record=kill)
    assert not (tmp_path / "stopped" / HISTORY).exists()
    caplog.clear()
    _run(task, tmp_path / "stopped")
    assert any(f"resuming after epoch {after}" in line for line in caplog.messages)
    assert _bytes(tmp_path / "stopped") == _bytes(tmp_path / "whole")
    changed = dataclasses.replace(task, bundle_id="c" * 64)
    assert changed.plan(1) != task.plan(1) != task.plan(2)


@pytest.mark.parametrize("pooling", ["avgmax", "gem", "attention"])
def test_the_pool_of_the_experiment_is_the_one_that_is_trained(
    task: PretrainTask, tmp_path: Path, pooling: str
) -> None:
    config = dataclasses.replace(CONFIG, pooling=pooling, pretrain_epochs=1, stem="no_pool")
    _run(dataclasses.replace(task, config=config), tmp_path)
    assert build_network(config, folder=tmp_path / "test_resnet")(torch.rand(2, 3, 96, 96)).shape == (2,)


def test_a_vision_transformer_can_be_pretrained(task: PretrainTask, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, backbone="test_vit", pretrain_epochs=1)
    names, _ = _run(dataclasses.replace(task, config=config), tmp_path)
    assert "test_vit/model.safetensors" in names


def test_two_processes_pretrain_one_encoder(
    task: PretrainTask, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With a pool, which is trained, and a logit, which is not: all-reduce would wait for its gradient."""
    memory = SharedMemory()
    tiles = memory.allocate(task.tiles.nbytes).reshape(task.tiles.shape)
    tiles[...] = task.tiles
    start = tmp_path / "start" / "mine.safetensors"
    start.parent.mkdir()
    save_file(timm.create_model("test_resnet").state_dict(), start)
    config = dataclasses.replace(
        CONFIG, pooling="gem", pretrain_epochs=6, pretrain_weights="mine.safetensors"
    )
    names, scores = pretrain_on_all(
        dataclasses.replace(task, tiles=tiles, config=config, weights={"file": start}),
        memory=memory,
        folder=tmp_path,
        devices=[torch.device("cpu")] * 2,
        invalidate_record=lambda: None,
        started=0.0,
    )
    history = [json.loads(line) for line in (tmp_path / HISTORY).read_text().splitlines()]
    assert len(history) == 6 and history[-1]["loss"] < history[0]["loss"]
    assert scores["loss"] == history[-1]["loss"] and scores["tiles"] == 36
    assert set(names) <= set(_bytes(tmp_path))
    log = capfd.readouterr().out
    assert log.count("epoch 6 of 6") == 1 and "2 processes" in log
    assert log.count("it continued from mine.safetensors weights") == 1


def test_a_batch_that_two_processes_cannot_share_is_refused(task: PretrainTask, tmp_path: Path) -> None:
    odd = dataclasses.replace(task, config=dataclasses.replace(CONFIG, pretrain_batch_size=15))
    context = DistributedContext(0, 2, torch.device("cpu"))
    with pytest.raises(TrainingError, match="use a multiple of 2"):
        pretrain(odd, folder=tmp_path, context=context, invalidate_record=lambda: None)


def test_a_collapse_is_an_error_and_leaves_nothing(
    task: PretrainTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        BarlowTwins, "embed", lambda self, images: torch.ones(len(images), 96) + 0 * images.mean()
    )
    with pytest.raises(TrainingError, match="collapsed"):
        _run(task, tmp_path)
    assert not (tmp_path / HISTORY).exists()


def test_too_few_tiles_and_a_lost_loss_say_what_to_do(
    task: PretrainTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TrainingError, match="only 36 tiles"):
        _run(dataclasses.replace(task, config=dataclasses.replace(CONFIG, pretrain_batch_size=64)), tmp_path)
    monkeypatch.setattr(module, "barlow_twins_loss", lambda one, two: (one.sum() + two.sum()) * float("nan"))
    with pytest.raises(TrainingError, match="pretrain_learning_rate"):
        _run(task, tmp_path / "x")


def test_a_short_session_shortens_the_plan_to_a_rate_of_zero(
    task: PretrainTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The clock says that 40 of 200 epochs fit; the rate falls to zero by then, and an encoder is there."""
    from functools import partial

    from lib.training import time_budget as budget

    ticks = [0.0]

    def clock() -> float:
        ticks[0] += 1.0
        return ticks[0]

    monkeypatch.setattr(budget, "_CLOSING", 0.0)
    monkeypatch.setattr(budget, "_FIRST_CHECK", 2)
    monkeypatch.setattr(module, "Budget", partial(budget.Budget, now=clock))
    config = dataclasses.replace(CONFIG, pretrain_epochs=200)
    caplog.clear()
    _run(dataclasses.replace(task, config=config, deadline=100.0), tmp_path)
    assert any("the plan does not fit the time" in line for line in caplog.messages)
    history = [json.loads(line) for line in (tmp_path / HISTORY).read_text().splitlines()]
    assert 5 < len(history) < 200 and history[-1]["steps"] <= 2 * len(history)
    assert (tmp_path / "test_resnet" / "model.safetensors").is_file()


@pytest.mark.parametrize("size", [1, 2])
def test_out_of_memory_frees_the_tiles_of_the_device_first(
    task: PretrainTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """One process begins again at the last whole epoch, without them; one of several leaves that to all."""
    places: list[bool] = []
    real = module._train_one_epoch

    def place(self: DeviceTiles, *_: Any, **__: Any) -> None:
        self.resident = None if self._released else torch.from_numpy(self.host.copy())

    def epoch(forward: Any, model: Any, task: Any, tiles: DeviceTiles, *rest: Any, **options: Any) -> Any:
        places.append(tiles.resident is not None)
        if len(places) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(forward, model, task, tiles, *rest, **options)

    alone = tmp_path / "alone"
    _run(task, alone)
    monkeypatch.setattr(DeviceTiles, "place", place)
    monkeypatch.setattr(module, "_train_one_epoch", epoch)
    if size == 1:
        _run(task, tmp_path / "freed")
        assert places == [True, True, False, False]
        assert _bytes(tmp_path / "freed") == _bytes(alone)
    else:
        places.append(True)
        context = DistributedContext(0, size)
        monkeypatch.setattr(DistributedContext, "wrap", lambda self, network, **_: network)
        with pytest.raises(TilesInTheWay, match="tiles_on=host"):
            pretrain(task, folder=tmp_path, context=context, invalidate_record=lambda: None)
