"""The members of one fold: trained, predicted out of fold, written; and taken up again where a kill stopped them."""

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from lib.config import Config
from lib.data.shared_memory import SharedMemory
from lib.evaluation.metrics import auc, fold_scores, probability
from lib.files import sha256_of, write_atomic
from lib.model.checkpoint import Identity, count_parameters, save_checkpoint
from lib.model.network import Classifier, build_network, choose_precision
from lib.model.predict import predict_logits
from lib.training.distributed import DistributedContext
from lib.training.ema import WeightAverage
from lib.training.epoch import (
    TrainingError,
    TrainingSet,
    fewest_passes,
    freeze_backbone,
    is_frozen,
    steps_an_epoch,
    thaw,
    tiles_a_step,
    train_one_epoch,
)
from lib.training.optimizer import OptimizerStep, build_optimizer, warmup_steps
from lib.training.resume import load_state, save_state
from lib.training.time_budget import EXPLAINING, Budget
from lib.validation import UNREADABLE


@dataclass(frozen=True, kw_only=True)
class FoldTask:
    """Everything that decides what a fold's files will hold.

    Attributes:
        experiment: its name.
        config: its knobs.
        fold: which of `config.folds`.
        tiles: (N, 96, 96, 3) uint8, in the order of the index.
        index: id and label of each tile, sorted by id.
        folds: (N,) the fold of each tile.
        data_id: of the prepared data.
        fold_table_id: of the fold table.
        bundle_id: of the code: a member begun by other code is begun anew.
        weights: `folder` or `file` for `build_network`, or empty.
        extra_id: hash of what is learnt from besides the index's own tiles, such as pseudo-labels; such rows have fold -1.
        memory: what the tiles lie in, where other processes may map it.
        until: when all members must be done, on the monotonic clock; infinite where no clock binds.
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
    until: float = math.inf

    def identity(self, member: int) -> Identity:
        """What the checkpoint of a member says of itself."""
        return Identity(
            experiment=self.experiment,
            fold=self.fold,
            member=member,
            data_id=self.data_id,
            fold_table_id=self.fold_table_id,
            config=self.config.to_dict(),
        )

    def plan(self, member: int, *, processes: int) -> str:
        """The hash of all that decides a member's result; unfinished work under another plan is thrown away.

        Args:
            member: its number.
            processes: that train it together.
        """
        sources = {
            str(file.relative_to(path.parent)): sha256_of(file)
            for path in self.weights.values()
            for file in (sorted(path.glob("*.*")) if path.is_dir() else [path])
        }
        facts = {
            **asdict(self.identity(member)),
            "bundle": self.bundle_id,
            "weights": sources,
            "processes": processes,
            "extra": self.extra_id,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class MemberFiles:
    """The names of a member's files."""

    fold: int
    member: int

    @property
    def stem(self) -> str:
        """fold, then member, as all its names carry them."""
        return f"{self.fold}-member-{self.member}"

    @property
    def checkpoint(self) -> str:
        """The weights."""
        return f"fold-{self.stem}.safetensors"

    @property
    def out_of_fold(self) -> str:
        """id, label, logit."""
        return f"oof-{self.stem}.csv"

    @property
    def history(self) -> str:
        """One line of JSON an epoch."""
        return f"history-{self.stem}.jsonl"

    @property
    def unfinished(self) -> str:
        """The state after the last whole epoch."""
        return f".unfinished-{self.stem}.safetensors"

    @property
    def finished(self) -> str:
        """The plan and the hashes of the three files, once they are all there."""
        return f".finished-{self.stem}.json"


def collect(task: FoldTask, *, folder: Path) -> tuple[dict[str, bool], dict[str, Any]]:
    """The names of a trained fold's files, with whether to fetch them, and its scores for run.json."""
    names: dict[str, bool] = {}
    for member in range(task.config.num_members):
        files = MemberFiles(task.fold, member)
        names |= {
            files.checkpoint: False,
            files.out_of_fold: True,
            files.history: True,
        }  # weights stay on Kaggle
    labels, probabilities = (
        task.index["label"].to_numpy()[task.folds == task.fold],
        out_of_fold_probabilities(task, folder=folder),
    )
    members = [fold_scores(labels, each, seed=task.config.seed) for each in probabilities]
    millions = count_parameters(folder / MemberFiles(task.fold, 0).checkpoint) / 1e6
    mean = fold_scores(labels, probabilities.mean(axis=0), seed=task.config.seed)
    return names, {"fold": mean, "members": members, "parameters_millions": millions}


def out_of_fold_probabilities(task: FoldTask, *, folder: Path) -> np.ndarray:
    """(M, n) probabilities that each member of a trained fold gives the tiles of the fold, in the order of the index."""
    files = [MemberFiles(task.fold, member) for member in range(task.config.num_members)]
    return np.stack(
        [probability(pd.read_csv(folder / each.out_of_fold)["logit"].to_numpy()) for each in files]
    )


def is_finished(task: FoldTask, member: int, *, folder: Path, processes: int) -> bool:
    """Whether all files of a member are there as they were written under this very plan."""
    files, plan = MemberFiles(task.fold, member), task.plan(member, processes=processes)
    try:
        note = json.loads((folder / files.finished).read_bytes())
        return bool(note["plan"] == plan) and all(
            sha256_of(folder / name) == note["sha256"][name]
            for name in (files.checkpoint, files.out_of_fold, files.history)
        )
    except (KeyError, TypeError, *UNREADABLE):
        return False


def train_member(
    task: FoldTask,
    member: int,
    *,
    folder: Path,
    world: DistributedContext,
    say: Callable[[str], None],
    replace: Callable[[], None],
    passes: int = 0,
    members_left: int = 1,
) -> None:
    """Train one member, from where an interrupted run left it, and leave its files.

    Args:
        task: the fold.
        member: its number.
        folder: takes the files; work that an earlier run left there is taken up.
        world: the processes that train it together, of which rank 0 writes.
        say: takes a line of progress; of rank 0.
        replace: called before the first file that readers trust is written.
        passes: forward passes of a step, instead of what the config says.
        members_left: that must be done in the time that is left, this one included.

    Raises:
        TrainingError: the loss is not finite; what was finished before is intact. Or the device is too small for two tiles.
        BudgetError: the time does not suffice, and the plan may not be shortened.
        torch.OutOfMemoryError: on one of several processes; all must begin again with more passes.
    """
    passes = passes or task.config.grad_accum_steps
    while True:
        try:
            return _train_member(
                task,
                member,
                folder=folder,
                world=world,
                say=say,
                replace=replace,
                passes=passes,
                members_left=members_left,
            )
        except torch.OutOfMemoryError:
            if world.size > 1:
                raise
        # Here, where the error and all that its frames held is gone.
        passes = more_passes(task, passes, world.size, say)
        torch.cuda.empty_cache()


def more_passes(task: FoldTask, passes: int, processes: int, say: Callable[[str], None]) -> int:
    """Twice the passes, because the device's memory did not suffice: said, or refused where nothing is left to halve."""
    passes = max(passes, 1)
    share = min(task.config.batch_size, int((task.folds != task.fold).sum())) // processes
    if share // (2 * passes) < 2:
        raise TrainingError(
            f"the device's memory does not suffice for {max(share // passes, 1)} tiles of {task.config.backbone} at "
            f"{task.config.input_size} px. Use a smaller network or --set input_size=..."
        )
    say(
        f"fold {task.fold}: the device's memory did not suffice for {share // passes} tiles; going on from the last whole epoch "
        f"with {share // (2 * passes)} in a pass, {2 * passes} passes a step"
    )
    return 2 * passes


def _train_member(
    task: FoldTask,
    member: int,
    *,
    folder: Path,
    world: DistributedContext,
    say: Callable[[str], None],
    replace: Callable[[], None],
    passes: int,
    members_left: int,
) -> None:
    config, device = task.config, world.device
    files, plan = MemberFiles(task.fold, member), task.plan(member, processes=world.size)
    precision = choose_precision(config.precision, device)
    outside, inside = np.flatnonzero(task.folds != task.fold), np.flatnonzero(task.folds == task.fold)
    labels = task.index["label"].to_numpy()
    part = TrainingSet(
        tiles=task.tiles,
        labels=labels.astype(np.float32),
        rows=outside,
        entropy=(config.seed, task.fold, member),
    )
    torch.manual_seed(
        int(np.random.SeedSequence([*part.entropy, 0]).generate_state(1)[0])
    )  # the first weights
    network = build_network(config, folder=task.weights.get("folder"), file=task.weights.get("file")).to(
        device
    )
    steps = steps_an_epoch(part, config)
    planned = steps * config.epochs
    name = f"fold {task.fold}, member {member}"
    if not passes:
        share = tiles_a_step(part, config) // world.size
        passes = world.largest(
            fewest_passes(network, config, tiles=share, device=device, precision=precision)
        )
        say(f"{name}: {passes} passes of {-(-share // passes)} tiles a step and process, by trial")
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
        average.catch_up(step)
    predicting = network if average is None else average.module
    # Compiled first and wrapped then: both share their weights with the network, which is what is saved and predicts.
    compiled: nn.Module = torch.compile(network) if config.compile else network  # type: ignore[assignment]
    forward = _wrap(compiled, network, world, frozen=is_frozen(len(history), config), config=config)
    together = f", {world.size} processes" if world.size > 1 else ""
    say(
        f"{name}: {len(outside):,} tiles to learn from, {len(inside):,} out of fold, "
        f"{config.epochs} epochs of {steps} steps, {str(precision).removeprefix('torch.')} on {device}{together}"
        + (f"; going on after epoch {len(history)}" if history else "")
    )

    def predict(views: int) -> np.ndarray:
        world.share_buffers(predicting)
        logits = predict_logits(
            predicting,
            task.tiles,
            world.my_part(inside),
            views=views,
            batch_size=config.eval_batch_size,
            device=device,
            precision=precision,
        )
        return world.gather_predictions(logits, total=len(inside))

    look = _budget_look(
        task, world, members_left, step=step, inside=len(inside), say=lambda text: say(f"{name}: {text}")
    )
    for epoch in range(len(history), config.epochs):
        if epoch and epoch == config.freeze_epochs:
            forward = _wrap(compiled, network, world, frozen=False, config=config)
        loss = train_one_epoch(
            network,
            part,
            step,
            epoch=epoch,
            config=config,
            device=device,
            precision=precision,
            look=look,
            world=world,
            passes=passes,
            forward=forward,
            average=average,
        )
        line: dict[str, Any] = {
            "epoch": epoch + 1,
            "loss": loss,
            "learning_rate": step.learning_rate,
            "skipped": step.skipped,
        }
        if passes > 1:
            line["passes"] = passes
        if config.eval_every and (epoch + 1) % config.eval_every == 0:
            line["validation_auc"] = auc(labels[inside], probability(predict(1)))
        if look is not None:
            look()
        if step.total < planned:
            line["shortened_to"] = step.total
        history.append(line)
        seen = f", AUC {line['validation_auc']:.4f} (1 view)" if "validation_auc" in line else ""
        say(f"{name}: epoch {epoch + 1} of {config.epochs}, loss {loss:.4f}{seen}")
        if step.done and step.total < planned:
            break
        if epoch + 1 < config.epochs and world.rank == 0:
            save_state(folder / files.unfinished, plan=plan, modules=learning, step=step, history=history)
    logits = predict(config.tta_views)
    if world.rank:
        return
    replace()
    table = pd.DataFrame(
        {"id": task.index["id"].to_numpy()[inside], "label": labels[inside], "logit": logits}
    )
    write_atomic(folder / files.history, "".join(json.dumps(line) + "\n" for line in history))
    write_atomic(
        folder / files.out_of_fold, table.to_csv(index=False, float_format="%.9g", lineterminator="\n")
    )
    save_checkpoint(folder / files.checkpoint, predicting, task.identity(member))
    written = (files.checkpoint, files.out_of_fold, files.history)
    note = {"plan": plan, "sha256": {each: sha256_of(folder / each) for each in written}}
    write_atomic(folder / files.finished, json.dumps(note))
    (folder / files.unfinished).unlink(missing_ok=True)
    used = "last" if average is None else "averaged"
    say(
        f"{name}: AUC {auc(labels[inside], probability(logits)):.4f} ({config.tta_views} views, {used} weights)"
    )


def _wrap(
    compiled: nn.Module, network: Classifier, world: DistributedContext, *, frozen: bool, config: Config
) -> nn.Module:
    """The network as it is called; made anew when the backbone joins in, because gradients are averaged for what learns."""
    if frozen:
        freeze_backbone(network)
    else:
        thaw(network)
    return world.wrap(compiled, synchronise_norms=config.sync_batchnorm)


def _budget_look(
    task: FoldTask,
    world: DistributedContext,
    members_left: int,
    *,
    step: OptimizerStep,
    inside: int,
    say: Callable[[str], None],
) -> Callable[[], None] | None:
    """What looks at the clock while a member is trained, for all processes at the same step; None where no clock binds."""
    if math.isinf(task.until):
        return None
    config = task.config
    now = time.monotonic()
    budget = Budget(
        deadline=now + max(0.0, task.until - now) / members_left, deterministic=config.fixed_schedule, say=say
    )
    budget.begin(step)
    batches = (inside * config.tta_views + EXPLAINING * world.size) / config.batch_size

    def look() -> None:
        if world.rank == 0:
            budget.look(step, prediction_batches=batches)
        if (total := world.broadcast_int(step.total)) < step.total:
            step.shorten(total - step.applied)

    return look
