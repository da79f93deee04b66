"""Run the trials of a hyperparameter search, one per GPU at a time, none twice, within the time limit.

A trial trains the folds of the search as a fold kernel does, in its own folder. Hyperband pauses a trial
where it may prune it, and resumes it from its training state on disk. Of a trial that has ended one small
JSON file stays. Its weights and predictions are removed: those of fifty trials would be gigabytes that nobody
reads, and the winner is trained on all folds in any case.
"""

import csv
import hashlib
import io
import json
import logging
import math
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from lib.config import Config, config_from_dict, parse_toml, to_toml
from lib.errors import KernelError, listed
from lib.evaluation.metrics import MetricError, auc, auc_interval, has_enough_groups, probability
from lib.files import sha256_of, write_atomic
from lib.model.checkpoint import load_checkpoint
from lib.model.network import NetworkError
from lib.search_space import (
    RECORD_FORMAT,
    RECORDS,
    TABLE,
    WINNER,
    SearchSpace,
    Trial,
    check_search,
    count_trials,
    draw_trial,
    is_promoted,
    pruning_epochs,
    reusable_trials,
    trials_needed,
    values_of,
)
from lib.training.epoch import TrainingError
from lib.training.fold import FoldTask, MemberFiles, is_finished
from lib.training.time_budget import BudgetError
from lib.training.workers import WorkerError, train_fold, train_in_subprocess

logger = logging.getLogger(__name__)

TRIALS = "trials"  # the folder of the trials, in the working folder
FINISHED, PRUNED, FAILED, NOT_RUN = "finished", "pruned", "failed", "not run"
# Errors that the values of one trial can cause: they are recorded, and the search goes on.
# (torch.OutOfMemoryError is a RuntimeError.)
_OF_THE_TRIAL = (TrainingError, NetworkError, MetricError, BudgetError, RuntimeError, MemoryError)
_TEMPORARY = ("BudgetError", "RuntimeError", "MemoryError")  # might not occur another time
_CLOSING, _CLOSING_SHARE = 60.0, 0.02  # seconds kept for the outputs, and at most this share of the time
_NOTE = 300  # characters of an error that are kept


class NoTrialError(KernelError):
    """No trial has a score; the message lists why."""


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """The result of a trial; plain values.

    Attributes:
        id: the hash of its config, folds, data and fold table; not of the code.
        number: in the order of drawing.
        status: finished, pruned, failed or not run.
        values: of the options that are searched.
        epochs: planned, or of a trial that was pruned or not run to its end: trained.
        rungs: AUC by epochs, at each pruning of hyperband that it reached; JSON's keys are text.
        auc: of the pooled out-of-fold predictions of its folds, with the views of the config.
        low: of the 95 % interval of the AUC, resampling groups.
        high: likewise.
        tiles: scored.
        parameters_millions: of the network.
        seconds: it took, in the last session that worked on it.
        shortened: its plan was shortened to fit the time.
        again: it failed for a temporary reason, and is run again with the search.
        bundle: the code that ran it.
        note: why it failed or did not run, and other remarks.
        format: of this record.
    """

    id: str
    number: int
    status: str
    values: Mapping[str, Any]
    epochs: int
    rungs: Mapping[str, float] = field(default_factory=dict)
    auc: float | None = None
    low: float | None = None
    high: float | None = None
    tiles: int = 0
    parameters_millions: float | None = None
    seconds: float | None = None
    shortened: bool = False
    again: bool = False
    bundle: str = ""
    note: str = ""
    format: int = RECORD_FORMAT


@dataclass(frozen=True, kw_only=True)
class SearchTask:
    """The input of a search.

    Attributes:
        space: options, values and method.
        template: a fold of the experiment that is searched: its config, tiles in shared memory, index, folds,
            ids.
        groups: (N,) the group of each tile, for intervals.
        weights: returns what `build_network` is to load for a config.
        finished: records of trials that ended in another session.
        deadline: when the search must be done, on the monotonic clock; infinite for no time limit.
    """

    space: SearchSpace
    template: FoldTask
    groups: np.ndarray
    weights: Callable[[Config], dict[str, Path]]
    finished: Sequence[Mapping[str, Any]] = ()
    deadline: float = math.inf

    @property
    def base(self) -> Config:
        """The config of the experiment."""
        return self.template.config


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """The records of a search.

    Attributes:
        task: its input.
        records: of all trials, the best first: finished trials by AUC, pruned ones by epochs and AUC, then
            failed ones and those that were not run to their end.
        trials_left: trials that were not drawn.
    """

    task: SearchTask
    records: Sequence[TrialRecord]
    trials_left: int = 0

    @property
    def complete(self) -> bool:
        """True if nothing is left to run."""
        return not self.trials_left and all(
            record.status != NOT_RUN and not record.again for record in self.records
        )

    @property
    def best(self) -> TrialRecord | None:
        """The first record that has a score."""
        return next((record for record in self.records if record.auc is not None), None)

    def count(self, status: str) -> int:
        """The number of trials with this status."""
        return sum(record.status == status for record in self.records)

    def scores(self) -> dict[str, Any]:
        """For run.json."""
        scores = {
            "space": self.task.space.to_dict(),
            "complete": self.complete,
            "trials_left": self.trials_left,
            **{
                status.replace(" ", "_"): self.count(status) for status in (FINISHED, PRUNED, FAILED, NOT_RUN)
            },
        }
        if (best := self.best) is not None:
            scores |= {"auc": best.auc, "interval": [best.low, best.high], "values": dict(best.values)}
        return scores


def run_search(
    task: SearchTask, *, folder: Path, devices: Sequence[torch.device], started: float
) -> SearchResult:
    """Run the trials that have no record yet, as many as the time allows.

    Args:
        task: the search.
        folder: the working folder; records and training states of an earlier run in it are reused.
        devices: one trial at a time on each.
        started: start of the session on the monotonic clock, for the times in the workers' log.

    Raises:
        SearchError: the experiment cannot be searched in this space.
        WeightsError: of some trial, before any is started.
        NoTrialError: every trial that ran failed.
    """
    return _Search(task=task, folder=folder / TRIALS, devices=devices, started=started).run()


@dataclass(kw_only=True)
class _TrialState:
    """A trial that was drawn.

    Attributes:
        trial: number, values, config.
        id: of its record.
        known: its record of an earlier run, if there is one.
        scores: AUC by epochs, at each pruning it reached.
        passed: epochs of the last pruning that it passed.
        waiting: it reached a pruning, and trials with a lower number must reach it first.
        running: on a device.
        record: so far; None before its first result.
        ended: nothing is left to do.
        seconds: of this session.
    """

    trial: Trial
    id: str
    known: TrialRecord | None
    scores: dict[int, float] = field(default_factory=dict)
    passed: int = 0
    waiting: bool = False
    running: bool = False
    record: TrialRecord | None = None
    ended: bool = False
    seconds: float = 0.0


@dataclass(kw_only=True)
class _Search:
    """The threads of a search, one per device. Each runs the next possible training until none is left."""

    task: SearchTask
    folder: Path
    devices: Sequence[torch.device]
    started: float
    states: list[_TrialState] = field(default_factory=list)  # in the order of the numbers
    exhausted: bool = False  # no further trial can be drawn
    known: dict[str, TrialRecord] = field(default_factory=dict)  # records of earlier runs, by id
    prunings: list[int] = field(default_factory=list)  # epochs after which hyperband may prune
    deadline: float = math.inf  # of the last training
    failure: BaseException | None = None  # the first error that is not a trial's own
    changed: threading.Condition = field(default_factory=threading.Condition)  # guards states
    stop: threading.Event = field(default_factory=threading.Event)
    loaded: dict[tuple[str, str], tuple[dict[str, Path], list[str]]] = field(default_factory=dict)

    def run(self) -> SearchResult:
        space, base = self.task.space, self.task.base
        check_search(space, base)
        for weights in values_of(space, base, "weights"):
            for backbone in values_of(space, base, "backbone"):
                # Missing weights stop the search now, not after hours.
                self._weights(config_from_dict({"weights": weights, "backbone": backbone}, base=base))
        self.known = self._read_known()
        self.prunings = pruning_epochs(space, base)
        self.deadline = self.task.deadline
        if not math.isinf(self.deadline):
            left = self.deadline - time.monotonic()
            self.deadline -= min(_CLOSING, _CLOSING_SHARE * max(left, 0.0))
        logger.info(
            "search %s: %s, %d trials of %s, fold%s %s, %d at a time%s",
            space.name,
            space.method,
            count_trials(space),
            ", ".join(space.space),
            "s" if len(space.folds) > 1 else "",
            ", ".join(map(str, space.folds)),
            len(self.devices),
            f"; pruned after {', '.join(map(str, self.prunings))} epochs" if self.prunings else "",
        )
        if len(self.devices) == 1:
            self._work(self.devices[0])
        else:
            with ThreadPoolExecutor(len(self.devices)) as pool:
                list(pool.map(self._work, self.devices))
        if self.failure is not None:
            raise self.failure
        records = [state.record for state in self.states if state.record is not None]
        failures = [f"{record.id}: {record.note}" for record in records if record.status == FAILED]
        if failures and all(record.auc is None for record in records):
            raise NoTrialError(
                listed(
                    "every trial that ran failed:", failures, remedy="Search other values, or fix the cause."
                )
            )
        left = 0 if self.exhausted else count_trials(space) - len(self.states)
        return SearchResult(task=self.task, records=_ranked(records), trials_left=left)

    def _weights(self, config: Config) -> dict[str, Path]:
        return self._load(config)[0]

    def _load(self, config: Config) -> tuple[dict[str, Path], list[str]]:
        """The files `build_network` loads, and their hashes if their names do not identify them."""
        key = (config.weights, config.backbone)
        if key not in self.loaded:  # hashing takes seconds
            paths = self.task.weights(config)
            hashes: list[str] = []
            if config.weights not in ("timm", "none"):
                for path in paths.values():
                    files = sorted(path.glob("*.*")) if path.is_dir() else [path]
                    hashes += [sha256_of(file) for file in files]
            self.loaded[key] = paths, hashes
        return self.loaded[key]

    def _read_known(self) -> dict[str, TrialRecord]:
        """Records of other sessions and those in the folder, by id."""
        names = {item.name for item in fields(TrialRecord)}
        records: list[Mapping[str, Any]] = [*reusable_trials(self.task.finished)]
        for path in sorted(self.folder.glob("*.json")):
            try:
                record = json.loads(path.read_bytes())
                # A paused trial's scores are reused, too: its training state is in this folder.
                records += reusable_trials([record]) or ([record] if record["rungs"] else [])
            except (ValueError, KeyError, TypeError, AttributeError):
                logger.info("%s/%s cannot be read: that trial is run again", TRIALS, path.name)
        return {record["id"]: TrialRecord(**record) for record in records if set(record) == names}

    # --- which training is next ---------------------------------------------------------------------------

    def _work(self, device: torch.device) -> None:
        """Run one training after the other on a device."""
        try:
            while (state := self._next()) is not None:
                self._train_next(state, device)
                with self.changed:
                    state.running = False
                    self.changed.notify_all()
        except BaseException as error:
            with self.changed:
                self.failure = self.failure or error
                self.stop.set()
                self.changed.notify_all()

    def _next(self) -> _TrialState | None:
        """The next trial to train on; waits while there may be one later. None when there is nothing left."""
        with self.changed:
            while not self.stop.is_set():
                while self._decide():  # a decision may be what another trial waits for
                    pass
                for state in self.states:
                    if not (state.ended or state.running or state.waiting):
                        state.running = True
                        return state
                if self._draw():
                    continue
                if not any(state.running for state in self.states):
                    return None
                self.changed.wait()
        return None

    def _draw(self) -> bool:
        """Draw one more trial, if that is possible now."""
        space, number = self.task.space, len(self.states)
        if self.exhausted or not all(state.ended for state in self.states[: trials_needed(space, number)]):
            return False
        if space.method == "tpe" and any(
            state.record and state.record.status == NOT_RUN for state in self.states
        ):
            return False  # the time is up; later draws need the score of that trial
        scores = {
            state.trial.number: state.record.auc
            for state in self.states
            if state.record is not None and state.record.status == FINISHED and state.record.auc is not None
        }
        trial = draw_trial(space, self.task.base, [state.trial for state in self.states], scores)
        if trial is None:
            self.exhausted = True
            return False
        name = self._id(trial.config)
        state = _TrialState(trial=trial, id=name, known=self.known.get(name))
        self.states.append(state)
        self._reuse(state)
        return True

    def _decide(self) -> bool:
        """Let hyperband prune or promote the waiting trials whose competitors have reached the same pruning.

        Returns:
            True if there was such a trial.
        """
        decided = False
        for index, state in enumerate(self.states):
            if not state.waiting:
                continue
            epochs = max(state.scores)
            if not all(other.ended or other.passed >= epochs for other in self.states[:index]):
                continue
            state.waiting, decided = False, True
            finished_before = state.known is not None and state.known.status == FINISHED
            scores = [other.scores for other in self.states[: index + 1]]
            if finished_before or is_promoted(self.task.space, self.task.base, scores):
                state.passed = epochs
                self._reuse(state)
                continue
            assert state.record is not None
            note = f"pruned after {epochs} of {state.trial.config.epochs} epochs"
            self._end(state, replace(state.record, status=PRUNED, note=_joined(state.record.note, note)))
            logger.info("trial %s (%s): %s%s", state.id, state.trial.description, note, _shown(state.record))
        return decided

    def _target(self, state: _TrialState) -> int:
        """The epochs to which the next training of a trial goes."""
        return next((epochs for epochs in self.prunings if epochs > state.passed), state.trial.config.epochs)

    def _reuse(self, state: _TrialState) -> None:
        """Take the next result of a trial from its record of an earlier run, if that has it."""
        known, target = state.known, self._target(state)
        if known is None:
            return
        own: dict[str, Any] = {"number": state.trial.number, "values": dict(state.trial.values)}
        score = known.rungs.get(str(target))
        if target in self.prunings and score is not None:
            state.scores[target] = score
            state.waiting = True
            rungs = {str(epochs): score for epochs, score in state.scores.items()}
            changes: dict[str, Any] = {"status": NOT_RUN, "epochs": target, "auc": score, "rungs": rungs}
            if known.epochs != target:
                changes |= {"low": None, "high": None}  # of another number of epochs
            state.record = replace(known, **own, **changes, note="")
            return
        if known.status == FAILED or (known.status == FINISHED and target == state.trial.config.epochs):
            self._end(state, replace(known, **own))
            logger.info(
                "trial %s (%s): %s before, not run again%s",
                state.id,
                state.trial.description,
                known.status,
                _shown(known),
            )

    def _id(self, config: Config) -> str:
        options = config.result_options()
        template = self.task.template
        hashes = self._load(config)[1]
        causes = [options, self.task.space.folds, template.data_id, template.fold_table_id, hashes]
        return hashlib.sha256(json.dumps(causes, sort_keys=True).encode()).hexdigest()[:12]

    def _end(self, state: _TrialState, record: TrialRecord) -> None:
        """Keep the record of a trial that has ended, and remove its folder."""
        self._write(record)
        shutil.rmtree(self.folder / state.id, ignore_errors=True)
        state.record, state.ended = record, True

    def _write(self, record: TrialRecord) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(record), indent=1, allow_nan=False) + "\n"
        write_atomic(self.folder / f"{record.id}.json", text)

    # --- one training --------------------------------------------------------------------------------------

    def _train_next(self, state: _TrialState, device: torch.device) -> None:
        """Train a trial to its next pruning or to its end, and record the result."""
        trial, target = state.trial, self._target(state)
        named = f"trial {state.id} ({trial.description})"
        if (note := self._time_missing(state, target)) is not None:
            logger.info("%s: %s", named, note)
            state.record = replace(state.record or self._record(state, NOT_RUN), status=NOT_RUN, note=note)
            state.ended = True
            return
        folder = self.folder / state.id
        interrupted = folder.is_dir() and not state.seconds
        notes = (
            ["resumed after an interruption: the seconds are those of the last session"]
            if interrupted
            else []
        )
        folder.mkdir(parents=True, exist_ok=True)
        resumed = interrupted or state.passed
        logger.info("%s: %s on %s", named, "resumed" if resumed else "started", device)
        begin = time.monotonic()
        try:
            finished, result = self._train(state, target, folder, device)
        except (*_OF_THE_TRIAL, WorkerError) as error:
            state.seconds += time.monotonic() - begin
            self._end(state, self._failed(state, error))
            return
        state.seconds += time.monotonic() - begin
        notes = [*result.pop("notes"), *notes]
        if not finished:
            state.scores[target] = result["auc"]
        record = self._record(
            state,
            FINISHED if finished else NOT_RUN,
            **result,
            rungs={str(epochs): score for epochs, score in state.scores.items()},
            note="; ".join(notes),
            seconds=round(state.seconds, 3),
        )
        if finished:
            self._end(state, record)
            logger.info("%s: finished in %.1f s%s", named, state.seconds, _shown(record))
            return
        record = replace(record, epochs=target)
        self._write(record)
        logger.info("%s: paused after %d of %d epochs%s", named, target, trial.config.epochs, _shown(record))
        with self.changed:
            state.record, state.waiting = record, True

    def _time_missing(self, state: _TrialState, target: int) -> str | None:
        """Why a trial cannot be trained to these epochs in the time that is left; None when it can."""
        left = self.deadline - time.monotonic()
        with self.changed:
            records = [other.record for other in self.states if other.record is not None]
        # Seconds per epoch of the slowest trial so far, those of earlier sessions included.
        records += self.known.values()
        pace = max(
            (
                record.seconds / record.epochs
                for record in records
                if record.auc is not None and record.seconds
            ),
            default=0.0,
        )
        needed = pace * (target - state.passed)
        if left > needed:
            return None
        verb = (
            f"stopped after {state.passed} of {state.trial.config.epochs} epochs"
            if state.passed
            else "not started"
        )
        return f"{verb}: about {needed:.0f} s needed, {max(left, 0.0):.0f} s left"

    def _record(self, state: _TrialState, status: str, **results: Any) -> TrialRecord:
        return TrialRecord(
            id=state.id,
            number=state.trial.number,
            status=status,
            values=dict(state.trial.values),
            epochs=state.trial.config.epochs,
            bundle=self.task.template.bundle_id[:12],
            **results,
        )

    def _failed(self, state: _TrialState, error: Exception) -> TrialRecord:
        """The record of a trial that failed by itself.

        Raises:
            WorkerError: the worker failed for a reason that is not the trial's own.
        """
        if isinstance(error, WorkerError):
            kinds: Sequence[str] = error.kinds
        else:
            kinds = [kind.__name__ for kind in type(error).__mro__]
        if not {kind.__name__ for kind in _OF_THE_TRIAL} & set(kinds):
            raise error
        text = str(error) if isinstance(error, KernelError) else traceback.format_exc()
        logger.info("trial %s (%s): failed\n%s", state.id, state.trial.description, text)
        has_traceback = not isinstance(error, KernelError) or "Traceback" in text
        line = text.strip().splitlines()[-1 if has_traceback else 0]
        return self._record(
            state,
            FAILED,
            rungs={str(epochs): score for epochs, score in state.scores.items()},
            note=line[:_NOTE],
            again=bool(set(_TEMPORARY) & set(kinds)),
            seconds=round(state.seconds, 3),
        )

    def _train(
        self, state: _TrialState, target: int, folder: Path, device: torch.device
    ) -> tuple[bool, dict[str, Any]]:
        """Train the trial's folds one after the other.

        Returns:
            True if the training is at its end, not paused; and the results.
        """
        folds, config = self.task.space.folds, state.trial.config
        finished = True
        for number, fold in enumerate(folds):
            now = time.monotonic()
            task = replace(
                self.task.template,
                config=config,
                fold=fold,
                weights=self._weights(config),
                deadline=now + (self.deadline - now) / (len(folds) - number),
                pause_after=target if target < config.epochs else 0,
                log_prefix=f"trial {state.id}: ",
            )
            if len(self.devices) == 1 and device.type == "cpu":
                train_fold(task, folder=folder, devices=[device], invalidate_record=lambda: None)
            else:  # on a GPU always: memory that a failed trial leaves on the GPU is freed with its process
                train_in_subprocess(
                    task,
                    folder=folder,
                    device=device,
                    started=self.started,
                    concurrent=len(self.devices),
                    stop=self.stop,
                )
            finished &= is_finished(task, 0, folder=folder, processes=1)
        return finished, self._score(state.trial, folder)

    def _score(self, trial: Trial, folder: Path) -> dict[str, Any]:
        """AUC and interval of the pooled out-of-fold predictions, and what else a record holds."""
        template, folds = self.task.template, self.task.space.folds
        logits, rows, notes = [], [], []
        for fold in folds:
            files = MemberFiles(fold, 0)
            rows.append(np.flatnonzero(template.folds == fold))
            logits.append(pd.read_csv(folder / files.out_of_fold)["logit"].to_numpy())
            history = [json.loads(line) for line in (folder / files.history).read_text().splitlines()]
            shortened = [line["shortened_to"] for line in history if "shortened_to" in line]
            if shortened:
                notes.append(f"the plan of fold {fold} was shortened to {shortened[-1]} steps")
        inside = np.concatenate(rows)  # (n,)
        labels = template.index["label"].to_numpy()[inside]
        probabilities = probability(np.concatenate(logits))  # (n,)
        groups, low, high = self.task.groups[inside], None, None
        if has_enough_groups(groups):
            low, high = auc_interval(labels, probabilities, groups, seed=trial.config.seed)
        network, _ = load_checkpoint(folder / MemberFiles(folds[0], 0).checkpoint)
        millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
        return {
            "auc": auc(labels, probabilities),
            "low": low,
            "high": high,
            "tiles": len(inside),
            "parameters_millions": round(millions, 3),
            "shortened": bool(notes),
            "notes": notes,
        }


def _joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


def _shown(record: TrialRecord | None) -> str:
    """The AUC of a record, or its note, for the log."""
    if record is None:
        return ""
    if record.auc is None:
        return f", {record.note}" if record.note else ""
    interval = f" ({record.low:.4f} to {record.high:.4f})" if record.low is not None else ""
    return f", AUC {record.auc:.4f}{interval}"


def _ranked(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """The best first. Scores after different numbers of epochs are comparable only among finished trials."""

    def key(record: TrialRecord) -> tuple[int, int, float, int]:
        order = (FINISHED, PRUNED, FAILED, NOT_RUN).index(record.status)
        if record.status == NOT_RUN and record.auc is not None:
            order = 1  # with the pruned ones: both have a score of an unfinished training
        epochs = 0 if record.status == FINISHED else record.epochs
        return order, -epochs, -(record.auc or 0.0), record.number

    return sorted(records, key=key)


# --- outputs ------------------------------------------------------------------------------------------------


def write_search(result: SearchResult, *, folder: Path, experiment: str) -> dict[str, bool]:
    """Write search.csv, trials.json and, if a trial has a score, winner.toml.

    Returns:
        Their names, with whether to fetch them.
    """
    template = result.task.template
    content = {
        "format": RECORD_FORMAT,
        "search": result.task.space.to_dict(),
        "name": result.task.space.name,
        "experiment": experiment,
        "config": result.task.base.to_dict(),
        "data_id": template.data_id,
        "fold_table_id": template.fold_table_id,
        "complete": result.complete,
        "trials_left": result.trials_left,
        "trials": [asdict(record) for record in result.records],
    }
    write_atomic(folder / RECORDS, json.dumps(content, indent=1, allow_nan=False) + "\n")
    write_atomic(folder / TABLE, _table(result))
    names = {RECORDS: True, TABLE: True}
    if result.best is not None:
        write_atomic(folder / WINNER, winner_toml(result, experiment=experiment))
        names[WINNER] = True
    return names


def _table(result: SearchResult) -> str:
    """search.csv: one row per trial, the best first."""
    searched = [key for key in result.task.space.space if key != "epochs"]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    columns = ("epochs", "parameters_millions", "seconds", "note")
    writer.writerow(["rank", "trial", "status", "auc", "low", "high", *searched, *columns])
    for rank, record in enumerate(result.records, 1):
        scores = ["" if score is None else f"{score:.6f}" for score in (record.auc, record.low, record.high)]
        seconds = "" if record.seconds is None else f"{record.seconds:.1f}"
        millions = "" if record.parameters_millions is None else record.parameters_millions
        values = [record.values[key] for key in searched]
        own_rank = rank if record.status in (FINISHED, PRUNED) else ""
        row = [
            own_rank,
            record.id,
            record.status,
            *scores,
            *values,
            record.epochs,
            millions,
            seconds,
            record.note,
        ]
        writer.writerow(row)
    return stream.getvalue()


def winner_toml(result: SearchResult, *, experiment: str) -> str:
    """The experiment with the values of the best trial, ready to run, and how it was chosen.

    It keeps the experiment's own epochs, members and views: a trial differs in these because it is one
    network.
    """
    space, best = result.task.space, result.best
    assert best is not None, "the caller checks that a trial has a score"
    config = config_from_dict(dict(best.values), base=result.task.base)
    chosen = ", ".join(f"{key} = {value}" for key, value in best.values.items())
    plural = "s" if len(space.folds) > 1 else ""
    folds = f"fold{plural} {', '.join(map(str, space.folds))} of {result.task.base.num_folds}"
    others = [
        f"{result.count(status)} {status}" for status in (PRUNED, FAILED, NOT_RUN) if result.count(status)
    ]
    interval = "" if best.low is None else f" (95 % interval {best.low:.4f} to {best.high:.4f})"
    template = result.task.template
    lines = [
        f"The best of {result.count(FINISHED)} finished trials of the search {space.name} over {experiment}:",
        f"{chosen}.",
        f"Pooled out-of-fold AUC {best.auc:.4f}{interval} on {best.tiles:,} tiles,",
        f"{folds}, one network for {best.epochs} epochs (trial {best.id}).",
        "The AUC is optimistic: the trial was chosen because of it.",
        "Train other folds for an unbiased estimate.",
        *([f"Other trials: {', '.join(others)}."] if others else []),
        f"Data {template.data_id[:12]}, fold table {template.fold_table_id[:12]}.",
    ]
    text = "".join(f"# {line}\n" for line in lines) + to_toml(config)
    assert parse_toml(text, name=experiment) == config, "the winner changed on its way into TOML"
    return text
