"""Train the members of one fold and predict its tiles (out-of-fold); an interrupted member resumes."""

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from lib.config import Config
from lib.data.device_memory import DeviceTiles, TilesInTheWay, is_out_of_memory
from lib.data.shared_memory import SharedMemory
from lib.evaluation.metrics import auc, fold_scores, probability
from lib.files import sha256_of, write_atomic
from lib.model.checkpoint import Identity, count_parameters, save_checkpoint
from lib.model.network import Classifier, build_network, choose_precision
from lib.model.predict import predict_logits
from lib.model.tuning import choose_trained, prepare_tuning
from lib.progress import Progress, describe_rate, describe_time
from lib.training.distributed import DistributedContext
from lib.training.ema import WeightAverage
from lib.training.epoch import (
    TrainingError,
    TrainingSet,
    find_grad_accum_steps,
    freeze_backbone,
    is_frozen,
    memory_for_training,
    steps_per_epoch,
    tiles_per_step,
    train_one_epoch,
)
from lib.training.event_file import event_file, event_records
from lib.training.optimizer import OptimizerStep, build_optimizer, warmup_steps
from lib.training.resume import load_state, save_state
from lib.training.time_budget import Budget
from lib.validation import UNREADABLE

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FoldTask:
    """Everything that decides the files of one fold.

    Attributes:
        experiment: its name.
        config: its options.
        fold: number of the fold.
        tiles: (N, 96, 96, 3) uint8, in the order of the index: 6 GB for the whole competition.
        index: id and label of each tile, sorted by id.
        folds: (N,) the fold of each tile.
        data_id: of the prepared data.
        fold_table_id: of the fold table.
        bundle_id: of the code: a member that other code began is trained from the start.
        weights: `folder` or `file` for `build_network`, or empty.
        extra_id: hash of labels beyond the index's own, such as pseudo-labels; such rows have fold -1.
        memory: the shared memory that holds the tiles, if other processes may map it.
        deadline: when all members must be done, on the monotonic clock; infinite for no time limit.
        reserved_tiles: time to keep free before the deadline for the caller, as a number of tiles to predict
            on one GPU.
        pause_after: epochs after which training stops for now, with state and predictions on disk; 0: never.
        log_prefix: begins every line in the log.
    """

    experiment: str
    config: Config
    fold: int
    tiles: np.ndarray
    index: pd.DataFrame
    folds: np.ndarray
    data_id: str
    fold_table_id: str
    bundle_id: str
    weights: dict[str, Path]
    extra_id: str = ""
    memory: SharedMemory | None = None
    deadline: float = math.inf
    reserved_tiles: int = 0
    pause_after: int = 0
    log_prefix: str = ""

    @property
    def name(self) -> str:
        """Of the fold, for the log."""
        return f"{self.log_prefix}fold {self.fold}"

    def identity(self, member: int) -> Identity:
        """What a member's checkpoint records about its training."""
        return Identity(
            experiment=self.experiment,
            fold=self.fold,
            member=member,
            data_id=self.data_id,
            fold_table_id=self.fold_table_id,
            config=self.config.to_dict(),
        )

    def with_tiles(
        self, tiles: np.ndarray, memory: SharedMemory, *, extra: pd.DataFrame | None = None
    ) -> "FoldTask":
        """The same task with its tiles.

        Args:
            tiles: (N + M, 96, 96, 3) uint8, those of the index, then those of `extra`.
            memory: holds the tiles.
            extra: id and label of M more tiles to learn from; they are in no fold (-1).
        """
        task = replace(self, tiles=tiles, memory=memory)
        if extra is None:
            return task
        labels = extra[["id", "label"]]
        return replace(
            task,
            index=pd.concat([self.index[["id", "label"]], labels], ignore_index=True),
            folds=np.concatenate([self.folds, np.full(len(labels), -1)]),
            extra_id=hashlib.sha256(labels.to_csv(index=False).encode()).hexdigest(),
        )

    def plan(self, member: int, *, processes: int) -> str:
        """The hash of all that decides a member's result; unfinished work of another plan is thrown away.

        Args:
            member: its number.
            processes: that train it together.
        """
        sources = {
            str(file.relative_to(path.parent)): sha256_of(file)
            for path in self.weights.values()
            for file in (sorted(path.glob("*.*")) if path.is_dir() else [path])
        }
        causes = {
            **asdict(self.identity(member)),
            "config": self.config.result_options(),
            "bundle": self.bundle_id,
            "weights": sources,
            "processes": processes,
            "extra": self.extra_id,
        }
        return hashlib.sha256(json.dumps(causes, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class MemberFiles:
    """The names of a member's files."""

    fold: int
    member: int

    @property
    def stem(self) -> str:
        """Fold and member, as in all its names."""
        return f"{self.fold}-member-{self.member}"

    @property
    def checkpoint(self) -> str:
        """The weights."""
        return f"fold-{self.stem}.safetensors"

    @property
    def out_of_fold(self) -> str:
        """Table of id, label, logit."""
        return f"oof-{self.stem}.csv"

    @property
    def history(self) -> str:
        """One line of JSON per epoch."""
        return f"history-{self.stem}.jsonl"

    @property
    def events(self) -> str:
        """The history for TensorBoard, which looks for `tfevents` in the names of files."""
        return f"events.out.tfevents.{self.stem}"

    @property
    def checked(self) -> tuple[str, ...]:
        """The files of a finished member, which it must still have unchanged."""
        return (self.checkpoint, self.out_of_fold, self.history, self.events)

    @property
    def unfinished_events(self) -> str:
        """The same while the member trains."""
        return f".unfinished-{self.stem}.tfevents"

    @property
    def unfinished(self) -> str:
        """The training state after the last whole epoch."""
        return f".unfinished-{self.stem}.safetensors"

    @property
    def finished(self) -> str:
        """The plan and the hashes of these files; written after them."""
        return f".finished-{self.stem}.json"


def collect_outputs(task: FoldTask, *, folder: Path) -> tuple[dict[str, bool], dict[str, Any]]:
    """The names of a trained fold's files, with whether to fetch them, and its scores for run.json."""
    names: dict[str, bool] = {}
    for member in range(task.config.num_members):
        files = MemberFiles(task.fold, member)
        # Weights stay on Kaggle.
        names |= {files.checkpoint: False, files.out_of_fold: True, files.history: True}
        if (folder / files.events).is_file():  # a linear probe has no epochs
            names[files.events] = True  # some kilobytes, to be compared with other runs
    labels = task.index["label"].to_numpy()[task.folds == task.fold]
    probabilities = out_of_fold_probabilities(task, folder=folder)
    members = [fold_scores(labels, row, seed=task.config.seed) for row in probabilities]
    millions = count_parameters(folder / MemberFiles(task.fold, 0).checkpoint) / 1e6
    mean = fold_scores(labels, probabilities.mean(axis=0), seed=task.config.seed)
    thresholds = ", ".join(f"{value:.3f}" for value in mean["thresholds"])
    logger.info(
        "%s: AUC %.4f, F1 %.4f at 0.5, %.4f at thresholds %s (each chosen on the other half of the fold), "
        "confusion at 0.5 %s, n = %s",
        task.name,
        mean["auc"],
        mean["f1_at_half"],
        mean["f1_at_thresholds"],
        thresholds,
        mean["confusion_at_half"],
        f"{mean['tiles']:,}",
    )
    return names, {"fold": mean, "members": members, "parameters_millions": millions}


def out_of_fold_probabilities(task: FoldTask, *, folder: Path) -> np.ndarray:
    """(M, n) probabilities of a trained fold's members for its tiles, in the order of the index."""
    files = [MemberFiles(task.fold, member) for member in range(task.config.num_members)]
    logits = [pd.read_csv(folder / names.out_of_fold)["logit"].to_numpy() for names in files]
    return np.stack([probability(row) for row in logits])


def is_finished(task: FoldTask, member: int, *, folder: Path, processes: int) -> bool:
    """True if all files of a member exist, unchanged, and were written under this plan."""
    files, plan = MemberFiles(task.fold, member), task.plan(member, processes=processes)
    try:
        note = json.loads((folder / files.finished).read_bytes())
        return bool(note["plan"] == plan) and all(
            sha256_of(folder / name) == note["sha256"][name] for name in files.checked
        )
    except (KeyError, TypeError, *UNREADABLE):
        return False


def train_member(
    task: FoldTask,
    member: int,
    *,
    folder: Path,
    context: DistributedContext,
    invalidate_record: Callable[[], None],
    grad_accum_steps: int = 0,
    members_left: int = 1,
) -> None:
    """Train one member, from the last whole epoch of an interrupted run if there is one, and write its files.

    Args:
        task: the fold.
        member: its number.
        folder: for the files; an earlier run's unfinished work in it is resumed.
        context: the processes that train it together; rank 0 writes and logs.
        invalidate_record: called before the first file that readers trust is written.
        grad_accum_steps: forward passes per step, instead of the config's number; 0: the config's.
        members_left: members to train in the time that is left, this one included.

    Raises:
        TrainingError: the training diverged (files finished before are intact), or two tiles do not fit the
            device's memory.
        BudgetError: the time does not suffice, and the plan may not be shortened.
        TilesInTheWay: out of memory on one of several processes; all must start again with the tiles in host
            memory.
        RuntimeError: the same where they are there already; all must start again with smaller passes.
    """
    passes = grad_accum_steps or task.config.grad_accum_steps
    tiles = DeviceTiles(task.tiles)
    try:
        while True:
            try:
                return _train_member(
                    task,
                    member,
                    tiles=tiles,
                    folder=folder,
                    context=context,
                    invalidate_record=invalidate_record,
                    grad_accum_steps=passes,
                    members_left=members_left,
                )
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if context.size > 1 and tiles.resident is not None:
                    raise TilesInTheWay from error
                if context.size > 1:
                    raise
            # Outside the except block: the error and the tensors of its frames are freed here.
            if not tiles.release():
                passes = double_grad_accum_steps(task, passes, context.size)
                torch.cuda.empty_cache()
    finally:
        tiles.free()


def double_grad_accum_steps(task: FoldTask, grad_accum_steps: int, processes: int) -> int:
    """Twice the forward passes per step, after the device's memory did not suffice.

    Raises:
        TrainingError: one tile per pass would be left.
    """
    passes = max(grad_accum_steps, 1)
    tiles = min(task.config.batch_size, int((task.folds != task.fold).sum())) // processes
    if tiles // (2 * passes) < 2:
        raise TrainingError(
            f"the device's memory does not suffice for {max(tiles // passes, 1)} tiles of "
            f"{task.config.backbone} at {task.config.input_size} px. "
            "Use a smaller network or --set input_size=..."
        )
    logger.info(
        "%s: the device's memory did not suffice for %d tiles; resuming from the last whole epoch "
        "with %d tiles per pass, %d passes per step",
        task.name,
        tiles // passes,
        tiles // (2 * passes),
        2 * passes,
    )
    return 2 * passes


def _train_member(
    task: FoldTask,
    member: int,
    *,
    tiles: DeviceTiles,
    folder: Path,
    context: DistributedContext,
    invalidate_record: Callable[[], None],
    grad_accum_steps: int,
    members_left: int,
) -> None:
    log = logger.info if context.rank == 0 else logger.debug
    config, device = task.config, context.device
    files, plan = MemberFiles(task.fold, member), task.plan(member, processes=context.size)
    precision = choose_precision(config.precision, device)
    outside, inside = np.flatnonzero(task.folds != task.fold), np.flatnonzero(task.folds == task.fold)
    labels = task.index["label"].to_numpy()
    training_set = TrainingSet(
        tiles=tiles,
        labels=labels.astype(np.float32),
        rows=outside,
        entropy=(config.seed, task.fold, member),
    )
    # Seeds the first weights.
    torch.manual_seed(int(np.random.SeedSequence([*training_set.entropy, 0]).generate_state(1)[0]))
    network = build_network(config, folder=task.weights.get("folder"), file=task.weights.get("file"))
    prepare_tuning(network, config)
    network = network.to(device)
    steps = steps_per_epoch(training_set, config)
    per_step = tiles_per_step(training_set, config)
    planned = steps * config.epochs
    name = f"{task.name}, member {member}"
    if not grad_accum_steps:
        share = per_step // context.size
        grad_accum_steps = context.max_int(
            find_grad_accum_steps(network, config, tiles=share, device=device, precision=precision)
        )
        log(
            "%s: %d passes of %d tiles per step and process",
            name,
            grad_accum_steps,
            -(-share // grad_accum_steps),
        )
    per_pass = -(-per_step // (context.size * grad_accum_steps))
    reserve = memory_for_training(config, tiles=per_pass)
    tiles.place(device, tiles_on=config.tiles_on, reserve=reserve, name=name)
    step = OptimizerStep(
        build_optimizer(network, config),
        peak=config.learning_rate,
        total=planned,
        warmup=warmup_steps(config, steps=steps),
        clip=config.clip_grad_norm,
        scaled=precision == torch.float16,
        schedule=config.schedule,
    )
    average = WeightAverage(network, decay=config.ema_decay) if config.ema_decay else None
    learning = {"network": network} | ({} if average is None else {"average": average.module})
    history = load_state(folder / files.unfinished, plan=plan, modules=learning, step=step)
    if average is not None:
        average.resume(step)
    predicting = network if average is None else average.module
    # Compiled first, wrapped after: both share their weights with `network`, which is saved and predicts.
    compiled: nn.Module = torch.compile(network) if config.compile else network  # type: ignore[assignment]
    forward = _wrap(compiled, network, context, frozen=is_frozen(len(history), config), config=config)
    log(
        "%s: %s tiles to learn from, %s out of fold, %d epochs of %d steps, %s on %s%s%s",
        name,
        f"{len(outside):,}",
        f"{len(inside):,}",
        config.epochs,
        steps,
        str(precision).removeprefix("torch."),
        device,
        f", {context.size} processes" if context.size > 1 else "",
        f"; resuming after epoch {len(history)}" if history else "",
    )

    def predict(rows: np.ndarray, views: int) -> np.ndarray:
        """(n,) float32 logits of tiles, on rank 0."""
        context.broadcast_buffers(predicting)
        logits = predict_logits(
            predicting,
            tiles,
            context.shard_rows(rows),
            views=views,
            batch_size=config.eval_batch_size,
            device=device,
            precision=precision,
        )
        return context.gather_predictions(logits, total=len(rows))

    validated = validation_rows(inside, labels, number=config.eval_tiles, entropy=training_set.entropy)
    check_budget = _budget_check(
        task, context, members_left, step=step, steps=steps, inside=len(inside), name=name
    )
    last_epoch = task.pause_after or config.epochs
    series = f"member-{member}"
    if context.rank == 0:
        write_atomic(folder / files.unfinished_events, event_file(history, series=series))
    for epoch in range(len(history), last_epoch):
        if epoch and epoch == config.freeze_epochs:
            forward = _wrap(compiled, network, context, frozen=False, config=config)
        progress = Progress(total=steps * per_step)
        loss = train_one_epoch(
            network,
            training_set,
            step,
            epoch=epoch,
            config=config,
            device=device,
            precision=precision,
            check_budget=check_budget,
            report=_reporter(
                f"{name}: epoch {epoch + 1} of {config.epochs}", progress, step, per_step=per_step, log=log
            ),
            context=context,
            grad_accum_steps=grad_accum_steps,
            forward=forward,
            average=average,
        )
        line: dict[str, Any] = {
            "epoch": epoch + 1,
            "loss": loss,
            "learning_rate": step.learning_rate,
            "skipped": step.skipped,
        }
        if grad_accum_steps > 1:
            line["grad_accum_steps"] = grad_accum_steps
        if config.eval_every and (epoch + 1) % config.eval_every == 0:
            line["validation_auc"] = auc(labels[validated], probability(predict(validated, 1)))
            line["validation_tiles"] = len(validated)
        if check_budget is not None:
            check_budget()
        if step.total < planned:
            line["shortened_to"] = step.total
        skipped = line["skipped"] - (history[-1]["skipped"] if history else 0)
        history.append(line)
        if context.rank == 0:
            with (folder / files.unfinished_events).open("ab") as events:
                events.write(event_records([line], series=series))
        validation = ""
        if "validation_auc" in line:
            part = "" if len(validated) == len(inside) else f", {len(validated):,} tiles"
            validation = f", AUC {line['validation_auc']:.4f} (1 view{part})"
        overflow = f", {skipped} steps skipped (gradients overflowed)" if skipped else ""
        log(
            "%s: epoch %d of %d, loss %.4f%s%s%s",
            name,
            epoch + 1,
            config.epochs,
            loss,
            validation,
            overflow,
            _describe_speed(progress, step, per_step=per_step),
        )
        if step.done and step.total < planned:
            break
        if epoch + 1 < config.epochs and context.rank == 0:
            save_state(folder / files.unfinished, plan=plan, modules=learning, step=step, history=history)
    logits = predict(inside, config.tta_views)
    if context.rank:
        return
    if history and "validation_auc" in history[-1] and config.tta_views > 1:
        same = logits[
            np.searchsorted(inside, validated)
        ]  # of the tiles of the last validation, with all views
        history[-1]["all_views_auc"] = auc(labels[validated], probability(same))
    invalidate_record()
    table = pd.DataFrame(
        {"id": task.index["id"].to_numpy()[inside], "label": labels[inside], "logit": logits}
    )
    write_atomic(folder / files.history, "".join(json.dumps(line) + "\n" for line in history))
    write_atomic(folder / files.events, event_file(history, series=series))
    write_atomic(
        folder / files.out_of_fold, table.to_csv(index=False, float_format="%.9g", lineterminator="\n")
    )
    save_checkpoint(folder / files.checkpoint, predicting, task.identity(member))
    if not step.done and len(history) < config.epochs:  # paused
        log("%s: AUC %.4f after %d epochs", name, auc(labels[inside], probability(logits)), len(history))
        return
    note = {"plan": plan, "sha256": {file: sha256_of(folder / file) for file in files.checked}}
    write_atomic(folder / files.finished, json.dumps(note))
    for unfinished in (files.unfinished, files.unfinished_events):
        (folder / unfinished).unlink(missing_ok=True)
    score, weights = auc(labels[inside], probability(logits)), "last" if average is None else "averaged"
    log("%s: AUC %.4f (%d views, %s weights)", name, score, config.tta_views, weights)


def _reporter(
    name: str, progress: Progress, step: OptimizerStep, *, per_step: int, log: Callable[..., None]
) -> Callable[[int], None]:
    """What an epoch calls after every step: it logs a line every so often, and never waits for the device."""

    def report(tiles: int) -> None:
        if text := progress.update(tiles):
            log("%s: %s in this epoch%s", name, text, _describe_left(progress, step, per_step=per_step))

    return report


def _describe_speed(progress: Progress, step: OptimizerStep, *, per_step: int) -> str:
    """The rate of an epoch that ended, and the time that is left; empty where it was too short to measure."""
    speed = describe_rate(progress.rate)
    return f", {speed}{_describe_left(progress, step, per_step=per_step)}" if speed else ""


def _describe_left(progress: Progress, step: OptimizerStep, *, per_step: int) -> str:
    """The time of the steps that are left, without validations and the predictions at the end."""
    left = step.total - step.attempts  # skipped steps are not counted here: that would wait for the device
    if not describe_rate(progress.rate) or left <= 0:
        return ""
    return f", {describe_time(left * per_step / progress.rate)} left in all"


def validation_rows(
    rows: np.ndarray, labels: np.ndarray, *, number: int, entropy: tuple[int, ...]
) -> np.ndarray:
    """The tiles of the validations between epochs: a fixed sample of a fold's tiles.

    A whole fold of 44,005 tiles would add an eighth to the time of an epoch of 176,020 tiles, if a forward
    pass takes half as long as a training step.

    Args:
        rows: (n,) int64, the tiles of the fold.
        labels: (N,) of all tiles.
        number: of tiles in the sample; 0: all.
        entropy: the root of the member's seeds.

    Returns:
        (m,) int64, sorted; both classes in their proportion, at least one of each.
    """
    if not number or number >= len(rows):
        return rows
    generator = np.random.default_rng(np.random.SeedSequence([*entropy, 4]))
    parts = []
    for label in (0, 1):
        of_label = rows[labels[rows] == label]
        count = min(max(1, round(number * len(of_label) / len(rows))), len(of_label))
        parts.append(generator.choice(of_label, size=count, replace=False))
    return np.sort(np.concatenate(parts))


def _wrap(
    compiled: nn.Module, network: Classifier, context: DistributedContext, *, frozen: bool, config: Config
) -> nn.Module:
    """The network to call. It is wrapped again after the frozen epochs: all-reduce covers what learns."""
    if frozen:
        freeze_backbone(network)
    else:
        choose_trained(network, config)
    return context.wrap(compiled, sync_batchnorm=config.sync_batchnorm)


def _budget_check(
    task: FoldTask,
    context: DistributedContext,
    members_left: int,
    *,
    step: OptimizerStep,
    steps: int,
    inside: int,
    name: str,
) -> Callable[[], None] | None:
    """The check of the time budget, which all processes call at the same step; None without a time limit."""
    if math.isinf(task.deadline):
        return None
    config = task.config
    now = time.monotonic()
    budget = Budget(
        deadline=now + max(0.0, task.deadline - now) / members_left,
        fixed_schedule=config.fixed_schedule,
        name=name,
    )
    budget.begin(step)
    batches = (inside * config.tta_views + task.reserved_tiles * context.size) / config.batch_size

    def check() -> None:
        if context.rank == 0:
            later = max(0, step.total - task.pause_after * steps) if task.pause_after else 0
            budget.check(step, prediction_batches=batches, steps_later=later)
        # Rank 0 measures; all processes must shorten at the same step, or all-reduce waits forever.
        if (total := context.broadcast_int(step.total)) < step.total:
            step.shorten(total - step.applied)

    return check
