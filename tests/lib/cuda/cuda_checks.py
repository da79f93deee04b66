"""Checks of the code for GPUs, each a function; test_cuda.py runs them all in one process on a null GPU.

Kernels compute nothing there (see null_gpu.cpp). So numbers are not checked, but that every step reaches the
GPU with the right devices, data types and shapes, in the right order, without waiting, and frees its memory.
"""

import dataclasses
import functools
import io
import json
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from null_gpu import NullGpu, forked_processes

from benchmarks import gpu as gpu_benchmark
from benchmarks import gpu_counts, rounds
from lib.config import Config
from lib.data import device_memory
from lib.data.batches import as_images, load_batches
from lib.data.device_memory import DeviceTiles, is_out_of_memory, upload
from lib.data.shared_memory import SharedMemory
from lib.explain.attribution import attribute
from lib.image.augment import DRAWS, augment
from lib.model.checkpoint import load_checkpoint, save_checkpoint
from lib.model.features import Embedder
from lib.model.network import Classifier, build_network, choose_precision
from lib.model.predict import predict_logits, predict_on_all
from lib.runtime.hardware import choose_devices
from lib.search_space import search_from_dict
from lib.training import barlow_twins, search, workers
from lib.training.algorithms import select_algorithms
from lib.training.distributed import DistributedContext
from lib.training.ema import WeightAverage
from lib.training.epoch import TrainingSet, find_grad_accum_steps, train_one_epoch
from lib.training.fold import FoldTask, MemberFiles, train_member
from lib.training.optimizer import OptimizerStep, build_optimizer
from lib.training.resume import load_state, save_state

GPU = torch.device("cuda", 0)
BACKBONES = {
    "cnn": Config(backbone="test_resnet", weights="none", input_size=48),
    "convnext": Config(backbone="test_convnext", weights="none", input_size=64, pooling="avgmax"),
    "vit": Config(backbone="test_vit", weights="none", input_size=48, pooling="gem"),
}
EVERY_OPTION = {
    "rotate": "any",
    "hed_jitter": 0.05,
    "brightness": 0.1,
    "contrast": 0.1,
    "saturation": 0.1,
    "hue": 0.05,
    "mixup": 0.2,
    "cutmix": 1.0,
    "label_smoothing": 0.1,
    "clip_grad_norm": 1.0,
    "ema_decay": 0.99,
    "class_balance": "loss",
}
TILES = np.random.default_rng(0).integers(0, 256, (48, 96, 96, 3), dtype=np.uint8)
LABELS = (np.arange(48) % 5 < 2).astype(np.float32)
CHECKS: dict[str, Callable[[], None]] = {}


@contextmanager
def no_waits() -> Iterator[None]:
    """An error for every operation that waits for the device, such as .item() or a copy of its memory."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def check(function: Callable[[], None]) -> Callable[[], None]:
    """Add a check to the list."""
    CHECKS[function.__name__] = function
    return function


def check_each_backbone(function: Callable[[Config], None]) -> None:
    """Add a check for each of the backbones."""
    for name, config in BACKBONES.items():
        CHECKS[f"{function.__name__}[{name}]"] = lambda config=config: function(config)  # type: ignore[misc]


def on_gpu(config: Config) -> Classifier:
    """The network of a config on the GPU."""
    return build_network(config).to(GPU)


def training_of(
    config: Config, **options: Any
) -> tuple[Classifier, OptimizerStep, TrainingSet, Config, torch.dtype]:
    """A network, its optimiser step, its tiles, its config with further options, and its precision."""
    config = dataclasses.replace(config, **{"batch_size": 16, "epochs": 4, "num_members": 1, **options})
    network, precision = on_gpu(config), choose_precision("auto", GPU)
    step = OptimizerStep(
        build_optimizer(network, config),
        peak=config.learning_rate,
        total=100,
        warmup=0,
        clip=config.clip_grad_norm,
        scaled=precision == torch.float16,
    )
    return (
        network,
        step,
        TrainingSet(tiles=TILES, labels=LABELS, rows=np.arange(48), entropy=(1, 2, 3)),
        config,
        precision,
    )


def small_fold(config: Config) -> FoldTask:
    """A fold of the tiles."""
    index = pd.DataFrame({"id": [f"{i:040x}" for i in range(len(TILES))], "label": LABELS.astype(np.int64)})
    return FoldTask(
        experiment="x",
        config=config,
        fold=0,
        tiles=TILES,
        index=index,
        folds=np.arange(len(TILES)) % 3,
        data_id="d" * 64,
        fold_table_id="f" * 64,
        bundle_id="b" * 64,
        weights={},
    )


# --- batches ------------------------------------------------------------------------------------------------


@check
def pinned_buffers_are_not_overwritten_before_their_copies_ended() -> None:
    gpu = NullGpu()
    order = np.random.default_rng(1).integers(0, len(TILES), 90)
    labels = torch.arange(90)
    with gpu.setting("late copies", 1), gpu.setting("real copies", 1):
        batches = list(load_batches(TILES, order, batch_size=8, device=GPU, columns=(labels,)))
        torch.cuda.synchronize()
        images = torch.cat([images.permute(0, 2, 3, 1).cpu() for images, _ in batches])
        values = torch.cat([values.cpu() for _, (values,) in batches])
    assert all(images.device == GPU for images, _ in batches)
    np.testing.assert_array_equal(images.numpy(), TILES[order])
    assert torch.equal(values, labels)


@check
def batches_are_copied_from_pinned_memory_without_a_wait() -> None:
    gpu = NullGpu()

    def load() -> None:
        with no_waits():
            for images, _ in load_batches(TILES, np.arange(48), batch_size=8, device=GPU):
                assert images.is_cuda and images.dtype == torch.uint8

    assert gpu.counted("copy host to device, pinned", load) == 6
    assert gpu.counted("wait", load) == 0


@check
def an_upload_overwrites_no_buffer_before_its_copy_ended() -> None:
    gpu, placed = NullGpu(), list[torch.Tensor]()
    device_memory._CHUNK, chunk = 5 * TILES[0].nbytes, device_memory._CHUNK
    try:
        with gpu.setting("late copies", 1), gpu.setting("real copies", 1):
            copies = gpu.counted("copy host to device, pinned", lambda: placed.append(upload(TILES, GPU)))
            np.testing.assert_array_equal(placed[0].cpu().numpy(), TILES)
    finally:
        device_memory._CHUNK = chunk
    assert copies == 10 and placed[0].device == GPU


@check
def batches_of_tiles_on_the_device_need_no_wait_and_no_copy() -> None:
    """But at their beginning, for the order and the columns. Kernels compute nothing here: no values."""
    gpu, tiles, waits = NullGpu(), DeviceTiles(TILES), []
    tiles.place(GPU, tiles_on="auto", reserve=0, name="check")
    assert tiles.resident is not None and tiles.resident.device == GPU
    columns = (torch.arange(48), torch.rand(48, DRAWS))
    for size in (16, 4):

        def load(size: int = size) -> None:
            for images, values in load_batches(
                tiles, np.arange(48), batch_size=size, device=GPU, columns=columns
            ):
                assert images.device == GPU and images.dtype == torch.uint8
                assert images.shape == (size, 3, 96, 96)
                assert images.is_contiguous(memory_format=torch.channels_last)
                assert [value.device for value in values] == [GPU, GPU]

        waits.append(gpu.counted("wait", load))
        assert gpu.count("copy host to device") == 3 and gpu.count("launch") >= 48 // size
    assert waits[0] == waits[1], waits


@check
def tiles_stay_on_the_host_where_the_memory_of_the_gpu_is_short() -> None:
    torch.cuda.empty_cache()
    used = 15_500_000_000 - torch.cuda.mem_get_info(GPU)[0]
    for room, expected in ((0.9, False), (1.1, True)):
        limit = used + int(room * (TILES.nbytes + (64 << 20)))
        with NullGpu().setting("device bytes", limit, otherwise=15_500_000_000):
            tiles = DeviceTiles(TILES)
            tiles.place(GPU, tiles_on="auto", reserve=64 << 20, name="check")
            assert (tiles.resident is not None) == expected
        tiles.free()


@check
def tiles_stay_on_the_host_where_no_memory_can_be_pinned() -> None:
    tiles = DeviceTiles(np.repeat(TILES, 8, axis=0))  # its buffers are larger than any that are kept
    with NullGpu().setting("pinned bytes", 0, otherwise=8_000_000_000):
        tiles.place(GPU, tiles_on="device", reserve=0, name="check")
    assert tiles.resident is None


# --- augmentation, stains, network --------------------------------------------------------------------------


@check
def every_augmentation_runs_without_a_wait() -> None:
    images = torch.from_numpy(TILES).permute(0, 3, 1, 2).to(GPU)
    draws = torch.rand(48, DRAWS).to(GPU)
    for rotate in ("none", "quarter", "any"):
        config = dataclasses.replace(Config(), **{**EVERY_OPTION, "rotate": rotate})
        network = on_gpu(BACKBONES["cnn"])
        augment(images, draws, config, shrink=network.resize)  # constants are copied once
        with no_waits():
            out = augment(images, draws, config, shrink=network.resize)
        assert out.device == GPU and out.dtype == torch.float32 and out.shape == (48, 3, 48, 48)


@check
def stain_normalisation_runs_without_a_wait() -> None:
    images = torch.rand(8, 3, 96, 96).to(GPU)
    for method in ("macenko", "reinhard"):
        network = on_gpu(dataclasses.replace(BACKBONES["cnn"], stain_normalisation=method))
        network.normalise_stain(images)
        with no_waits():
            out = network.normalise_stain(images)
        assert out.device == GPU and out.shape == images.shape and out.dtype == torch.float32


# --- training -----------------------------------------------------------------------------------------------


def train_epoch(parts: tuple[Any, ...], *, epoch: int, **options: Any) -> None:
    """One epoch of what `training_of` returned."""
    network, step, tiles, config, precision = parts
    train_one_epoch(
        network, tiles, step, epoch=epoch, config=config, device=GPU, precision=precision, **options
    )


@check_each_backbone
def a_step_of_an_epoch_with_every_option_does_not_wait(config: Config) -> None:
    """An epoch waits as often with six steps as with three: at its start, for its loss and weights."""
    gpu, waits = NullGpu(), []
    for batch_size in (16, 8):
        parts = training_of(config, batch_size=batch_size, grad_accum_steps=2, **EVERY_OPTION)
        network, step, *_ = parts
        assert parts[-1] == torch.float16 and step.scaler.is_enabled()
        average = WeightAverage(network, decay=0.99)
        train = functools.partial(train_epoch, parts, grad_accum_steps=2, average=average)
        train(epoch=0)  # allocates, and copies constants
        waits.append(gpu.counted("wait", lambda train=train: train(epoch=1)))
        assert step.attempts == (6 if batch_size == 16 else 12)
    assert waits[0] == waits[1] > 0, waits


@check_each_backbone
def deterministic_training_finds_an_algorithm_for_every_operation(config: Config) -> None:
    with select_algorithms(GPU, deterministic=True):
        train_epoch(training_of(config, **EVERY_OPTION), epoch=0)


@check
def a_step_with_stain_normalisation_does_not_wait() -> None:
    gpu, waits = NullGpu(), []
    for batch_size in (16, 8):
        parts = training_of(BACKBONES["cnn"], batch_size=batch_size, stain_normalisation="macenko")
        train_epoch(parts, epoch=0)
        waits.append(gpu.counted("wait", lambda parts=parts: train_epoch(parts, epoch=1)))
    assert waits[0] == waits[1], waits


@check_each_backbone
def a_member_is_trained_validated_predicted_and_its_state_resumed(config: Config) -> None:
    options = {"batch_size": 16, "epochs": 3, "num_members": 1, "eval_batch_size": 32, "ema_decay": 0.9}
    task = small_fold(dataclasses.replace(config, freeze_epochs=1, tta_views=8, **options))
    files = MemberFiles(0, 0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train = functools.partial(
            train_member,
            folder=folder,
            context=DistributedContext(device=GPU),
            invalidate_record=lambda: None,
        )
        train(dataclasses.replace(task, pause_after=2), 0)
        assert (folder / files.unfinished).is_file()
        train(task, 0)
        history = [json.loads(line) for line in (folder / files.history).read_text().splitlines()]
        assert [line["epoch"] for line in history] == [1, 2, 3] and "validation_auc" in history[0]
        network, _ = load_checkpoint(folder / files.checkpoint)
        assert len(pd.read_csv(folder / files.out_of_fold)) == 16
        attribute(network.to(GPU), as_images(torch.from_numpy(TILES[:4]).permute(0, 3, 1, 2).to(GPU)))


@check_each_backbone
def attribution_is_computed_on_the_gpu(config: Config) -> None:
    network = on_gpu(config)
    maps = attribute(network, torch.rand(4, 3, 96, 96).to(GPU))
    assert maps.device == GPU and maps.shape == (4, 96, 96)


@check_each_backbone
def eight_views_are_predicted_with_one_wait_for_all_batches(config: Config) -> None:
    gpu, network = NullGpu(), on_gpu(config)
    predict = functools.partial(
        predict_logits, network, TILES, np.arange(48), views=8, device=GPU, precision=torch.float16
    )
    predict(batch_size=8)
    waits = [gpu.counted("wait", lambda size=size: predict(batch_size=size)) for size in (24, 8)]
    assert waits[0] == waits[1], waits
    assert predict(batch_size=8).shape == (48,)


@check
def all_gpus_predict_and_embed() -> None:
    devices = [GPU, torch.device("cuda", 1)]
    networks = [build_network(BACKBONES["cnn"]) for _ in range(2)]
    logits = predict_on_all(networks, TILES, views=2, batch_size=8, devices=devices, precision="auto")
    assert logits.shape == (48, 2)
    embedder = Embedder(networks[0], views=2, batch_size=8, devices=devices, precision="auto")
    assert {next(each.parameters()).device for each in embedder.replicas.values()} == set(devices)
    assert len(embedder(TILES)) == 48


@check
def the_encoder_is_pretrained_without_labels() -> None:
    config = dataclasses.replace(
        BACKBONES["cnn"], weights="pretrain", pretrain_epochs=2, pretrain_batch_size=16, projector_dim=32
    )
    task = barlow_twins.PretrainTask(config=config, tiles=TILES, data_id="d" * 64, bundle_id="b" * 64)
    barlow_twins._LEAST_SPREAD = -1.0  # kernels compute nothing: the spread is 0
    with tempfile.TemporaryDirectory() as name:
        names, _ = barlow_twins.pretrain(
            task,
            folder=Path(name),
            context=DistributedContext(device=GPU),
            invalidate_record=lambda: None,
        )
        assert any(each.endswith("model.safetensors") for each in names)


@check_each_backbone
def weights_and_training_state_return_from_their_files_to_the_gpu(config: Config) -> None:
    """To the bit, the moments of AdamW and the layout in memory included."""
    gpu = NullGpu()
    parts = training_of(config)
    train_epoch(parts, epoch=0)
    network, step, *_ = parts
    identity = small_fold(config).identity(0)
    with tempfile.TemporaryDirectory() as name, gpu.setting("real copies", 1):
        folder = Path(name)
        for parameter in network.parameters():
            parameter.data.copy_(torch.randn(parameter.shape))
        save_checkpoint(folder / "weights.safetensors", network, identity)
        loaded = load_checkpoint(folder / "weights.safetensors")[0].to(GPU)
        for one, two in zip(network.state_dict().values(), loaded.state_dict().values(), strict=True):
            assert two.device == GPU and torch.equal(one.cpu(), two.cpu())
        modules = {"network": network}
        with gpu.setting("real copies", 0, otherwise=1):  # counters, which kernels did not compute
            step_state = step.state()
        step.state = lambda: step_state  # type: ignore[method-assign]
        save_state(folder / "state", plan="p", modules=modules, step=step, history=[])
        with gpu.setting("real copies", 0, otherwise=1):  # AdamW reads whether its rate is negative
            network, again, *_ = training_of(config)
        load_state(folder / "state", plan="p", modules={"network": network}, step=again)
    moments = [moment for _, moment in sorted(again.optimizer.state_dict()["state"].items())]
    assert moments and all(moment["exp_avg"].device == GPU for moment in moments)
    for parameter, moment in zip(again._parameters, moments, strict=True):
        assert moment["exp_avg"].stride() == parameter.stride()


# --- memory -------------------------------------------------------------------------------------------------


@contextmanager
def too_little_memory_for(action: Callable[[], Any], *, share: float) -> Iterator[int]:
    """A share of the device memory that an action needs, which runs once with enough of it.

    Yields:
        The bytes that it needs.
    """
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(GPU)
    before = torch.cuda.memory_reserved(GPU)
    action()
    needed = torch.cuda.max_memory_reserved(GPU) - before
    torch.cuda.empty_cache()
    limit = torch.cuda.memory_reserved(GPU) + int(share * needed)
    with NullGpu().setting("device bytes", limit, otherwise=15_500_000_000):
        yield needed


@check
def a_prediction_that_runs_out_of_device_memory_goes_on_with_half_the_tiles() -> None:
    logits: list[np.ndarray] = []
    gpu, network = NullGpu(), on_gpu(dataclasses.replace(BACKBONES["cnn"], input_size=224))
    predict = functools.partial(
        predict_logits,
        network,
        TILES,
        np.arange(48),
        views=1,
        batch_size=48,
        device=GPU,
        precision=torch.float32,
    )
    with too_little_memory_for(predict, share=0.6):
        batches = gpu.counted("copy host to device, pinned", lambda: logits.append(predict()))
    assert logits[0].shape == (48,) and batches > 2, batches


@check
def a_training_that_runs_out_of_device_memory_goes_on_with_smaller_passes() -> None:
    config = dataclasses.replace(
        BACKBONES["cnn"], input_size=224, batch_size=32, epochs=1, num_members=1, eval_batch_size=2
    )
    with tempfile.TemporaryDirectory() as name:

        def train() -> None:
            train_member(
                small_fold(config),
                0,
                folder=Path(name),
                context=DistributedContext(device=GPU),
                invalidate_record=lambda: None,
            )

        with too_little_memory_for(train, share=0.6):
            train()
        line = json.loads((Path(name) / MemberFiles(0, 0).history).read_text())
    assert line["grad_accum_steps"] > 1


@check
def a_training_that_runs_out_of_device_memory_frees_the_tiles_first() -> None:
    """With too little memory for both, but enough for the training alone."""
    config = dataclasses.replace(
        BACKBONES["cnn"], batch_size=16, epochs=1, num_members=1, eval_batch_size=16, tiles_on="host"
    )
    # 76 MiB: more than the training needs. The index names the first 48 of them only: the rest cost no time.
    tiles = np.repeat(TILES, 60, axis=0)
    task = dataclasses.replace(small_fold(config), tiles=tiles)
    released: list[bool] = []
    real = DeviceTiles.release

    def release(self: DeviceTiles) -> bool:
        released.append(real(self))
        return released[-1]

    with tempfile.TemporaryDirectory() as name:

        def train(**options: Any) -> None:
            train_member(
                dataclasses.replace(task, config=dataclasses.replace(config, **options)),
                0,
                folder=Path(name),
                context=DistributedContext(device=GPU),
                invalidate_record=lambda: None,
            )

        DeviceTiles.release = release  # type: ignore[method-assign]
        try:
            with too_little_memory_for(train, share=1.0) as needed:
                # Room for the tiles and half of what the training needs; without the tiles, for all of it.
                limit = torch.cuda.memory_reserved(GPU) + tiles.nbytes + needed // 2
                with NullGpu().setting("device bytes", limit, otherwise=15_500_000_000):
                    train(tiles_on="device")
        finally:
            DeviceTiles.release = real  # type: ignore[method-assign]
        line = json.loads((Path(name) / MemberFiles(0, 0).history).read_text())
    assert released == [True] and "grad_accum_steps" not in line, (released, line)


@check
def the_passes_that_fit_are_found_by_trial() -> None:
    config = dataclasses.replace(BACKBONES["cnn"], input_size=224)
    network = on_gpu(config)
    find = functools.partial(
        find_grad_accum_steps, network, config, tiles=32, device=GPU, precision=torch.float16
    )
    with too_little_memory_for(find, share=0.6):
        assert find() > 1
    assert find() == 1


@check
def pinned_memory_that_cannot_be_had_counts_as_out_of_memory() -> None:
    with NullGpu().setting("pinned bytes", 0, otherwise=8_000_000_000):
        try:
            torch.empty(1 << 22, pin_memory=True)
        except RuntimeError as error:
            assert is_out_of_memory(error), repr(error)
        else:
            raise AssertionError("memory was pinned")


# --- processes ----------------------------------------------------------------------------------------------


def shared_fold(config: Config) -> FoldTask:
    """A fold whose tiles other processes can map."""
    memory = SharedMemory()
    tiles = memory.allocate(TILES.nbytes).reshape(TILES.shape)
    tiles[...] = TILES
    return dataclasses.replace(small_fold(config), tiles=tiles, memory=memory)


WORKERS = dataclasses.replace(BACKBONES["cnn"], batch_size=16, epochs=1, tta_views=1, num_folds=3)


@check
def a_supervisor_of_two_workers_holds_no_memory_of_a_gpu() -> None:
    gpu = NullGpu()
    torch.cuda.empty_cache()
    with tempfile.TemporaryDirectory() as name:

        def train() -> None:
            with forked_processes() as processes:
                train_with_two()
            assert len(processes) == 3  # one tests the GPUs

        def train_with_two() -> None:
            devices = choose_devices(Config(), gpu_required=True)
            assert devices == [GPU, torch.device("cuda", 1)]
            workers.train_fold(
                shared_fold(dataclasses.replace(WORKERS, num_members=2)),
                folder=Path(name),
                devices=devices,
                invalidate_record=lambda: None,
            )

        # A context comes with the first memory, the first kernel, or the selection of a device.
        used = gpu.counted("malloc", train) + gpu.count("launch") + gpu.count("set device")
        assert used == 0, used
        assert {"oof-0-member-0.csv", "oof-0-member-1.csv"} <= set(os.listdir(name))


@check
def a_trial_of_a_search_trains_in_a_process_of_its_own() -> None:
    space = search_from_dict({"method": "grid", "space": {"learning_rate": [1e-3]}, "folds": [0]}, name="s")
    task = search.SearchTask(
        space=space,
        template=shared_fold(dataclasses.replace(WORKERS, num_members=2)),
        groups=np.arange(48) % 6,
        weights=lambda config: {},
    )
    with tempfile.TemporaryDirectory() as name, forked_processes() as processes:
        result = search.run_search(task, folder=Path(name), devices=[GPU], started=time.monotonic())
    assert len(processes) == 1
    assert [record.status for record in result.records] == [search.FINISHED]


# --- benchmarks ---------------------------------------------------------------------------------------------


def run_benchmark(module: Any, *options: str) -> tuple[dict[str, str], str, str]:
    """Run a benchmark; its results by name, as text, what it printed, and what it ended with."""
    results, arguments, ended = rounds.RESULTS, sys.argv, ""
    with (
        tempfile.TemporaryDirectory() as name,
        warnings.catch_warnings(),
        redirect_stdout(io.StringIO()) as printed,
    ):
        rounds.RESULTS, sys.argv = Path(name) / "results", [str(module.__file__), *options]
        try:
            module.main()
        except SystemExit as error:
            ended = str(error)
        finally:
            rounds.RESULTS, sys.argv = results, arguments
        texts = {path.stem: path.read_text() for path in (Path(name) / "results").glob("*.json")}
    return texts, printed.getvalue(), ended


@check
def the_gpu_benchmark_writes_one_file_to_send_back() -> None:
    """Without the peers, which are no packages of the tests, and without compilation, which needs a GPU."""
    options = ["--networks", "test_resnet:48", "no_such_network:96", "--batch", "8", "--steps", "3"]
    options += ["--rounds", "1", "--no-peers", "--no-compile", "--store-tiles", "64"]
    with tempfile.TemporaryDirectory() as scratch, forked_processes() as processes:
        with redirect_stderr(io.StringIO()) as errors:
            texts, printed, ended = run_benchmark(gpu_benchmark, *options, "--scratch", scratch)
        assert scratch not in texts["gpu-report"]
    assert len(processes) == 3
    assert "to an issue of the repository" in printed and "gpu-report.json" in printed
    assert ended.startswith("not measured:\n  no_such_network:96"), (ended, errors.getvalue())
    assert str(gpu_benchmark.ROOT) not in texts["gpu-report"]
    content = json.loads(texts["gpu-report"])
    assert content["device"] == "null GPU" and content["devices"] == 2
    [reason] = content["not measured"]
    assert reason.startswith("no_such_network:96"), reason
    start, network, pair = content["results"]  # in the order of their names
    methods = {row["name"]: row["tiles_per_second"] for row in network["rows"]}
    assert len(methods) == 4 and all(name.startswith("ours") for name in methods)
    assert "ours, tiles in device memory" in methods and all(len(rates) == 1 for rates in methods.values())
    assert network["conditions"]["precision"] == "float16"  # a T4 has no bfloat16
    assert network["conditions"]["waits only for loss checks"].startswith("yes: 3 steps")
    assert start["benchmark"] == "gpu-start" and start["processes"][0]["tiles"] == 64
    assert pair["benchmark"] == "gpu-two-processes" and pair["conditions"]["backend"] == "gloo"
    assert [row["name"] for row in pair["rows"]] == [gpu_benchmark.TOGETHER, gpu_benchmark.ALONE]
    assert all(rate > 0 for row in pair["rows"] for rate in row["tiles_per_second"])
    for rank in range(2):
        assert pair["conditions"][f"peak host GiB, rank {rank}"] > 0
        assert f"peak device GiB, rank {rank}" in pair["conditions"]


@check
def kernels_and_bytes_are_counted_without_a_gpu() -> None:
    options = ["--networks", "test_resnet:48", "--batch", "8", "--child"]
    texts, printed, ended = run_benchmark(gpu_counts, *options)
    assert not ended and "| test_resnet:48: step |" in printed, (ended, printed)
    content = json.loads(texts["gpu-counts"])
    [network] = content["networks"]
    # A batch of 8 tiles is copied as 8 x 96 x 96 x 3 bytes, and augmented as 8 x 3 x 48 x 48 floats or more.
    assert content["tiles"]["bytes of a batch over PCIe"] == 8 * 96 * 96 * 3
    assert content["augmentation"]["launches"] > 20
    assert network["forward and backward"]["launches"] > 50
    assert network["step"]["launches"] < 60  # fused: it does not grow with the parameters
    assert network["prediction, 8 views"]["launches"] > 8 * 10
    assert network["forward and backward"]["bytes"] > 8 * 3 * 48 * 48 * 2 * 10


def main(results: Path) -> None:
    """Run all checks and write the traceback of each."""
    multiprocessing.set_forkserver_preload(["__main__"])
    torch.manual_seed(0)
    errors = {}
    for name, function in CHECKS.items():
        try:
            function()
            errors[name] = ""
        except BaseException:
            errors[name] = traceback.format_exc()[-4000:]
        print(name, "failed" if errors[name] else "passed", flush=True)
    results.write_text(json.dumps(errors))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
