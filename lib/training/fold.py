"""The members of one fold: trained, predicted out of fold, written; and taken up again where a kill stopped them."""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from lib.config import Config
from lib.errors import KernelError
from lib.files import sha256_of, write_whole
from lib.metrics import auc, fold_scores, probability
from lib.model.checkpoint import Identity, save_checkpoint
from lib.model.network import Classifier, build_network, choose_precision
from lib.model.predict import predict_logits
from lib.training.budget import Budget
from lib.training.engine import Part, train_one_epoch
from lib.training.optimizer import OptimizerStep, build_optimizer


class FoldInputError(KernelError):
    """The fold asked for does not exist."""


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
        deadline: from how many members are left to when this one must be done, on the monotonic clock; None: whenever.
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
    deadline: Callable[[int], float] | None = None

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

    def plan(self, member: int) -> str:
        """The hash of all that decides a member's result; unfinished work under another plan is thrown away."""
        sources = {
            str(file.relative_to(path.parent)): sha256_of(file)
            for path in self.weights.values()
            for file in (sorted(path.glob("*.*")) if path.is_dir() else [path])
        }
        facts = {
            **asdict(self.identity(member)),
            "bundle": self.bundle_id,
            "weights": sources,
            "threads": torch.get_num_threads(),
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


def train_fold(
    task: FoldTask, *, folder: Path, device: torch.device, say: Callable[[str], None], replace: Callable[[], None]
) -> tuple[dict[str, bool], dict[str, Any]]:
    """Train what is not finished yet of a fold.

    Args:
        task: the fold.
        folder: takes the files; work that an earlier run left there is taken up.
        device: to compute on.
        say: takes a line of progress.
        replace: called before the first file that readers trust is written.

    Returns:
        The names of the files, with whether to fetch them, and the scores for run.json.

    Raises:
        FoldInputError: there is no such fold.
        TrainingError: the loss is not finite; what was finished before is intact.
    """
    if not 0 <= task.fold < task.config.folds:
        raise FoldInputError(f"fold {task.fold} does not exist: there are folds 0 to {task.config.folds - 1}")
    names: dict[str, bool] = {}
    logits = []
    for member in range(task.config.members):
        files = MemberFiles(task.fold, member)
        plan = task.plan(member)
        if _is_finished(folder, files, plan):
            say(f"fold {task.fold}, member {member}: finished before, not done again")
        else:
            _train_member(task, member, files=files, plan=plan, folder=folder, device=device, say=say, replace=replace)
        names |= {files.checkpoint: False, files.out_of_fold: True, files.history: True}  # weights stay on Kaggle
        logits.append(pd.read_csv(folder / files.out_of_fold)["logit"].to_numpy())
    labels = task.index["label"].to_numpy()[task.folds == task.fold]
    members = [fold_scores(labels, probability(each), seed=task.config.seed) for each in logits]
    mean = np.mean([probability(each) for each in logits], axis=0)
    scores = {"fold": fold_scores(labels, mean, seed=task.config.seed), "members": members}
    return names, scores


def clear_progress(folder: Path, task: FoldTask) -> None:
    """Remove the notes about progress, once run.json stands for the whole."""
    for member in range(task.config.members):
        files = MemberFiles(task.fold, member)
        (folder / files.finished).unlink(missing_ok=True)
        (folder / files.unfinished).unlink(missing_ok=True)


def _is_finished(folder: Path, files: MemberFiles, plan: str) -> bool:
    try:
        note = json.loads((folder / files.finished).read_bytes())
        return bool(note["plan"] == plan) and all(
            sha256_of(folder / name) == note["sha256"][name] for name in (files.checkpoint, files.out_of_fold, files.history)
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _train_member(
    task: FoldTask,
    member: int,
    *,
    files: MemberFiles,
    plan: str,
    folder: Path,
    device: torch.device,
    say: Callable[[str], None],
    replace: Callable[[], None],
) -> None:
    config = task.config
    precision = choose_precision(config.precision, device)
    outside, inside = np.flatnonzero(task.folds != task.fold), np.flatnonzero(task.folds == task.fold)
    labels = task.index["label"].to_numpy()
    part = Part(
        tiles=task.tiles,
        labels=labels.astype(np.float32),
        rows=outside,
        entropy=(config.seed, task.fold, member),
    )
    torch.manual_seed(int(np.random.SeedSequence([*part.entropy, 0]).generate_state(1)[0]))  # the first weights
    network = build_network(config, folder=task.weights.get("folder"), file=task.weights.get("file")).to(device)
    steps, rest = divmod(len(outside), config.batch_size)
    steps += rest > (1 if steps else 0)  # train_one_epoch leaves a lone last tile out
    step = OptimizerStep(
        build_optimizer(network, config),
        peak=config.learning_rate,
        total=steps * config.epochs,
        warmup=round(steps * config.warmup_epochs),
        clip=config.clip_gradient,
        scaled=precision == torch.float16,
    )
    history = _resume(folder / files.unfinished, plan=plan, network=network, step=step, device=device)
    planned = steps * config.epochs
    name = f"fold {task.fold}, member {member}"
    say(
        f"{name}: {len(outside):,} tiles to learn from, {len(inside):,} out of fold, "
        f"{config.epochs} epochs of {steps} steps, {str(precision).removeprefix('torch.')} on {device}"
        + (f"; going on after epoch {len(history)}" if history else "")
    )

    def predict(views: int) -> np.ndarray:
        return predict_logits(
            network,
            task.tiles,
            inside,
            views=views,
            batch_size=config.prediction_batch,
            device=device,
            precision=precision,
        )

    look = _budget_look(task, member, step=step, inside=len(inside), say=lambda text: say(f"{name}: {text}"))
    for epoch in range(len(history), config.epochs):
        loss = train_one_epoch(network, part, step, epoch=epoch, config=config, device=device, precision=precision, look=look)
        line: dict[str, Any] = {"epoch": epoch + 1, "loss": loss, "learning_rate": step.learning_rate, "skipped": step.skipped}
        if config.validate_every and (epoch + 1) % config.validate_every == 0:
            line["validation_auc"] = auc(labels[inside], probability(predict(1)))
        if look is not None:
            look()
        if step.total < planned:
            line["shortened_to"] = step.total
        history.append(line)
        seen = f", AUC {line['validation_auc']:.4f} (1 view)" if "validation_auc" in line else ""
        say(f"{name}: epoch {epoch + 1} of {config.epochs}, loss {loss:.4f}{seen}")
        if step.left <= 0 and step.total < planned:
            break
        if epoch + 1 < config.epochs:
            _save_unfinished(folder / files.unfinished, plan=plan, network=network, step=step, history=history)
    logits = predict(config.views)
    replace()
    table = pd.DataFrame({"id": task.index["id"].to_numpy()[inside], "label": labels[inside], "logit": logits})
    write_whole(folder / files.history, "".join(json.dumps(line) + "\n" for line in history))
    write_whole(folder / files.out_of_fold, table.to_csv(index=False, float_format="%.9g", lineterminator="\n"))
    save_checkpoint(folder / files.checkpoint, network, task.identity(member))
    written = (files.checkpoint, files.out_of_fold, files.history)
    note = {"plan": plan, "sha256": {each: sha256_of(folder / each) for each in written}}
    write_whole(folder / files.finished, json.dumps(note))
    (folder / files.unfinished).unlink(missing_ok=True)
    say(f"{name}: AUC {auc(labels[inside], probability(logits)):.4f} ({config.views} views, last weights)")


def _budget_look(
    task: FoldTask, member: int, *, step: OptimizerStep, inside: int, say: Callable[[str], None]
) -> Callable[[], None] | None:
    """What looks at the clock while a member is trained; None where no clock binds."""
    if task.deadline is None:
        return None
    config = task.config
    deadline = task.deadline(config.members - member)
    if math.isinf(deadline):
        return None
    budget = Budget(deadline=deadline, deterministic=config.deterministic, say=say)
    budget.begin(step)
    batches = inside * config.views / config.batch_size
    return lambda: budget.look(step, prediction_batches=batches)


def _save_unfinished(path: Path, *, plan: str, network: Classifier, step: OptimizerStep, history: list[dict[str, Any]]) -> None:
    """The state after a whole epoch: weights, moments, scaler, schedule. Draws need none: they are keyed by the epoch."""
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    for number, moments in step.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in moments.items()}
    facts = {
        "plan": plan,
        "history": history,
        "applied": step.applied,
        "skipped": step.skipped,
        "schedule": step.schedule_state(),
        "scaler": step.scaler.state_dict(),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(path, save(tensors, metadata={"state": json.dumps(facts)}))


def _resume(path: Path, *, plan: str, network: Classifier, step: OptimizerStep, device: torch.device) -> list[dict[str, Any]]:
    """Load the state an interrupted run left, if it is whole and of the same plan; the history so far."""
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as content:
            facts = json.loads((content.metadata() or {})["state"])
        if facts["plan"] != plan:
            return []
        tensors = load(path.read_bytes())
    except (OSError, ValueError, KeyError, SafetensorError):
        return []
    network.load_state_dict({n.removeprefix("network."): t for n, t in tensors.items() if n.startswith("network.")})
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, number, key = name.split(".", 2)
            moments.setdefault(int(number), {})[key] = tensor
    groups = step.optimizer.state_dict()["param_groups"]
    step.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    step.applied, step.skipped = facts["applied"], facts["skipped"]
    step.load_schedule(facts["schedule"])
    if facts["scaler"]:
        step.scaler.load_state_dict(facts["scaler"])
    network.to(device)
    history: list[dict[str, Any]] = facts["history"]
    return history
