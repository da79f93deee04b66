"""A hyperparameter search: a trial a card at a time, every trial recorded, none done twice, and an end inside the time there is.

A trial trains the folds of the search as a fold kernel does, resumable by whole epochs, in a folder of its own. Of a trial that
has come to its end one small JSON file stays: its weights and predictions are removed, because a search of fifty trials would
leave gigabytes that nobody reads, and the winner is trained anew on all folds in any case.
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
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from lib.config import EXPECTATIONS, Config, config_from_dict, parse_toml, to_toml
from lib.errors import KernelError, listed
from lib.evaluation.metrics import MetricError, auc, auc_interval, probability
from lib.files import sha256_of, write_atomic
from lib.model.checkpoint import load_checkpoint
from lib.model.network import NetworkError
from lib.search_space import (
    RECORDS,
    TABLE,
    WINNER,
    SearchSpace,
    Trial,
    at_rung,
    draw_trials,
    reusable_trials,
    rungs,
)
from lib.training.epoch import TrainingError
from lib.training.fold import FoldTask, MemberFiles
from lib.training.time_budget import BudgetError
from lib.training.workers import WorkerError, train_fold, train_in_subprocess

logger = logging.getLogger(__name__)

TRIALS = "trials"  # the folder, in the working folder
FINISHED, FAILED, NOT_RUN = "finished", "failed", "not run"
# What the network of one trial can be the cause of: recorded, and the search goes on. (torch.OutOfMemoryError is a RuntimeError.)
_OF_THE_TRIAL = (TrainingError, NetworkError, MetricError, BudgetError, RuntimeError, MemoryError)
_OF_THE_MOMENT = ("BudgetError", "RuntimeError", "MemoryError")  # might go well another time
_CLOSING, _CLOSING_SHARE = 60.0, 0.02  # seconds kept for the outputs, and at most this share of what is left
_NOTE = 300  # characters of an error that are kept


class NoTrialError(KernelError):
    """No trial came to its end; the message lists why."""


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """What is kept of a trial; plain values.

    Attributes:
        id: the hash of its config, folds, data and fold table; not of the code.
        number: in the order of drawing.
        rung: of halving.
        status: finished, failed or not run.
        values: of the knobs that are searched.
        epochs: planned.
        auc: of the pooled out-of-fold predictions of its folds, with the views of the config.
        low: of the 95 % interval of the AUC, resampling groups.
        high: likewise.
        tiles: scored.
        parameters_millions: of the network.
        seconds: it took, in the last session that worked on it.
        shortened: the clock cut its plan.
        again: it failed for a reason that may pass, and is tried again when the search is.
        bundle: the code that ran it.
        note: why it failed or did not run, and what else there is to say.
    """

    id: str
    number: int
    rung: int
    status: str
    values: Mapping[str, Any]
    epochs: int
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


@dataclass(frozen=True, kw_only=True)
class SearchTask:
    """What a search is given.

    Attributes:
        space: what is tried.
        template: a fold of the experiment that is searched: its config, tiles in shared memory, index, folds, ids.
        groups: (N,) the group of each tile, for intervals.
        weights: what `build_network` is to load for a config.
        finished: records of trials that ended in another session.
        until: when the search must be done, on the monotonic clock; infinite where no clock binds.
    """

    space: SearchSpace
    template: FoldTask
    groups: np.ndarray
    weights: Callable[[Config], dict[str, Path]]
    finished: Sequence[Mapping[str, Any]] = ()
    until: float = math.inf

    @property
    def base(self) -> Config:
        """The config of the experiment."""
        return self.template.config


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """What a search came to.

    Attributes:
        task: what it was given.
        records: of all trials, the best first: the last rung before those below it, then by AUC; failed ones and those that were
            not run at the end.
        rungs_left: rungs of halving that were not begun.
    """

    task: SearchTask
    records: Sequence[TrialRecord]
    rungs_left: int = 0

    @property
    def complete(self) -> bool:
        """Nothing is left to run."""
        return not self.rungs_left and all(
            record.status != NOT_RUN and not record.again for record in self.records
        )

    def count(self, status: str) -> int:
        """How many trials have this status."""
        return sum(record.status == status for record in self.records)

    def scores(self) -> dict[str, Any]:
        """For run.json."""
        best = next((record for record in self.records if record.status == FINISHED), None)
        return {
            "space": self.task.space.to_dict(),
            "complete": self.complete,
            "rungs_left": self.rungs_left,
            **{status.replace(" ", "_"): self.count(status) for status in (FINISHED, FAILED, NOT_RUN)},
            **(
                {}
                if best is None
                else {"auc": best.auc, "interval": [best.low, best.high], "values": dict(best.values)}
            ),
        }


def run_search(
    task: SearchTask,
    *,
    folder: Path,
    devices: Sequence[torch.device],
    started: float,
) -> SearchResult:
    """Run the trials that have no record yet, as many as the time allows.

    Args:
        task: the search.
        folder: the working folder; records and whole epochs of an earlier run in it are taken up.
        devices: a trial at a time on each.
        started: on the monotonic clock, for the time that workers print.

    Raises:
        SearchError: the experiment cannot be searched so.
        WeightsError: of some trial, before any is started.
        NoTrialError: every trial that ran failed.
    """
    return _Search(task=task, folder=folder / TRIALS, devices=devices, started=started).run()


@dataclass(kw_only=True)
class _Search:
    task: SearchTask
    folder: Path
    devices: Sequence[torch.device]
    started: float
    records: list[TrialRecord] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    stop: threading.Event = field(default_factory=threading.Event)
    found: dict[tuple[str, str], dict[str, Path]] = field(
        default_factory=dict
    )  # weights and backbone to what is loaded

    def run(self) -> SearchResult:
        space, base = self.task.space, self.task.base
        trials = draw_trials(space, base)
        plan = rungs(space, base, trials=len(trials))
        for trial in trials:
            self._weights(trial.config)  # weights that are missing are missed now, not after hours
        self.known = self._known()
        self.deadline = self.task.until
        if not math.isinf(self.deadline):
            left = self.deadline - time.monotonic()
            self.deadline -= min(_CLOSING, _CLOSING_SHARE * max(left, 0.0))
        logger.info(
            f"search {space.name}: {space.method}, {len(trials)} trials of {', '.join(space.space)}, "
            f"fold{'s' if len(space.folds) > 1 else ''} {', '.join(map(str, space.folds))}, "
            f"{len(self.devices)} at a time"
            + "".join(f"; rung {n}: {c} for {e} epochs" for n, (e, c) in enumerate(plan) if plan[1:])
        )
        left = len(plan)
        for rung, (epochs, count) in enumerate(plan):
            chosen = trials if not rung else self._promote(trials, rung, count)
            if not chosen:
                break
            trials = chosen
            if rung:
                logger.info(f"rung {rung}: {len(trials)} of them go on, for {epochs} epochs from the start")
            self._run(trials)
            left -= 1
            if any(
                record.rung == rung and (record.status == NOT_RUN or record.again) for record in self.records
            ):
                break
        failures = [f"{record.id}: {record.note}" for record in self.records if record.status == FAILED]
        if failures and not any(record.status == FINISHED for record in self.records):
            raise NoTrialError(
                listed(
                    "every trial that ran failed:", failures, remedy="Search other values, or mend the cause."
                )
            )
        return SearchResult(task=self.task, records=_ranked(self.records), rungs_left=left)

    def _weights(self, config: Config) -> dict[str, Path]:
        key = (config.weights, config.backbone)
        if key not in self.found:
            self.found[key] = self.task.weights(config)  # it hashes files: once is enough
        return self.found[key]

    def _promote(self, trials: list[Trial], rung: int, count: int) -> list[Trial]:
        scores = {
            record.number: record.auc
            for record in self.records
            if record.rung == rung - 1 and record.auc is not None
        }
        best = sorted(scores, key=lambda number: (-scores[number], number))[:count]
        return [
            at_rung(self.task.space, self.task.base, trial, rung) for trial in trials if trial.number in best
        ]

    def _known(self) -> dict[str, TrialRecord]:
        """Records that need not be made again: of other sessions, and those that lie in the folder."""
        content: list[Mapping[str, Any]] = list(self.task.finished)
        for path in sorted(self.folder.glob("*.json")):
            try:
                content.append(json.loads(path.read_bytes()))
            except ValueError:
                logger.info(f"{TRIALS}/{path.name} cannot be read: that trial is run again")
        names = {item.name for item in fields(TrialRecord)}
        return {each["id"]: TrialRecord(**each) for each in reusable_trials(content) if set(each) == names}

    # --- one rung ----------------------------------------------------------------------------------------------------

    def _run(self, trials: Sequence[Trial]) -> None:
        """Bring every trial to a record, a trial a device at a time."""
        waiting: deque[tuple[Trial, str]] = deque()
        for trial in trials:
            name = self._id(trial.config)
            if name in self.known:
                record = replace(
                    self.known[name], number=trial.number, rung=trial.rung, values=dict(trial.values)
                )
                self.records.append(record)
                shutil.rmtree(self.folder / name, ignore_errors=True)
                logger.info(
                    f"trial {name} ({trial.words}): {record.status} before, not run again{_shown(record)}"
                )
            else:
                waiting.append((trial, name))

        def work(device: torch.device) -> None:
            while not self.stop.is_set():
                with self.lock:
                    if not waiting:
                        return
                    trial, name = waiting.popleft()
                record = self._not_run(trial, name) or self._try(trial, name, device)
                with self.lock:
                    self.records.append(record)

        if len(self.devices) == 1:
            work(self.devices[0])
            return
        with ThreadPoolExecutor(len(self.devices)) as pool:
            futures = [pool.submit(work, device) for device in self.devices]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                self.stop.set()
                raise

    def _id(self, config: Config) -> str:
        plain = {key: value for key, value in config.to_dict().items() if key not in EXPECTATIONS}
        files: list[str] = []
        if config.weights not in (
            "timm",
            "none",
        ):  # a file of the user's, or of another kernel: its name says nothing
            for path in self._weights(config).values():
                files += [sha256_of(each) for each in (sorted(path.glob("*.*")) if path.is_dir() else [path])]
        template = self.task.template
        facts = [plain, self.task.space.folds, template.data_id, template.fold_table_id, files]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]

    def _not_run(self, trial: Trial, name: str) -> TrialRecord | None:
        """The record of a trial for which the time does not suffice; None when it may begin."""
        left = self.deadline - time.monotonic()
        with self.lock:
            done = [record for record in self.records if record.status == FINISHED and record.seconds]
        # As long as the longest trial so far, for as many epochs as it has.
        needed = (
            max((record.seconds or 0.0) / record.epochs * trial.config.epochs for record in done)
            if done
            else 0.0
        )
        if left > needed:
            return None
        note = f"not started: about {needed:.0f} s needed, {max(left, 0.0):.0f} s left"
        logger.info(f"trial {name} ({trial.words}): {note}")
        return self._record(trial, name, NOT_RUN, note=note)

    def _record(self, trial: Trial, name: str, status: str, **facts: Any) -> TrialRecord:
        return TrialRecord(
            id=name,
            number=trial.number,
            rung=trial.rung,
            status=status,
            values=dict(trial.values),
            epochs=trial.config.epochs,
            bundle=self.task.template.bundle_id[:12],
            **facts,
        )

    # --- one trial ---------------------------------------------------------------------------------------------------

    def _try(self, trial: Trial, name: str, device: torch.device) -> TrialRecord:
        begin, place = time.monotonic(), self.folder / name
        notes = (
            ["taken up after an interruption: the seconds are those of the last session"]
            if place.is_dir()
            else []
        )
        place.mkdir(parents=True, exist_ok=True)
        logger.info(f"trial {name} ({trial.words}): {'taken up again' if notes else 'started'} on {device}")
        try:
            facts = self._train(trial, name, place, device)
        except (*_OF_THE_TRIAL, WorkerError) as error:
            kinds = (
                error.kinds
                if isinstance(error, WorkerError)
                else [each.__name__ for each in type(error).__mro__]
            )
            if not {each.__name__ for each in _OF_THE_TRIAL} & set(kinds):
                raise
            text = str(error) if isinstance(error, KernelError) else traceback.format_exc()
            logger.info(f"trial {name} ({trial.words}): failed\n{text}")
            last = text.strip().splitlines()[
                0 if isinstance(error, KernelError) and "Traceback" not in text else -1
            ]
            record = self._record(
                trial,
                name,
                FAILED,
                note=last[:_NOTE],
                again=bool(set(_OF_THE_MOMENT) & set(kinds)),
                seconds=round(time.monotonic() - begin, 3),
            )
        else:
            notes = [*facts.pop("notes"), *notes]
            seconds = round(time.monotonic() - begin, 3)
            record = self._record(trial, name, FINISHED, **facts, note="; ".join(notes), seconds=seconds)
            logger.info(f"trial {name} ({trial.words}): finished in {seconds:.1f} s{_shown(record)}")
        write_atomic(
            self.folder / f"{name}.json", json.dumps(asdict(record), indent=1, allow_nan=False) + "\n"
        )
        shutil.rmtree(place, ignore_errors=True)
        return record

    def _train(self, trial: Trial, name: str, place: Path, device: torch.device) -> dict[str, Any]:
        """Train the trial's folds one after the other; what its record says."""
        folds = self.task.space.folds
        for number, fold in enumerate(folds):
            now = time.monotonic()
            task = replace(
                self.task.template,
                config=trial.config,
                fold=fold,
                weights=self._weights(trial.config),
                deadline=now + (self.deadline - now) / (len(folds) - number),
                log_prefix=f"trial {name}: ",
            )

            if len(self.devices) == 1 and device.type == "cpu":
                train_fold(task, folder=place, devices=[device], invalidate_record=lambda: None)
            else:  # on a GPU even alone: what a failed trial did to the card ends with its process
                train_in_subprocess(
                    task,
                    folder=place,
                    device=device,
                    started=self.started,
                    concurrent=len(self.devices),
                    stop=self.stop,
                )
        return self._score(trial, place)

    def _score(self, trial: Trial, place: Path) -> dict[str, Any]:
        template, folds = self.task.template, self.task.space.folds
        logits, rows, notes = [], [], []
        for fold in folds:
            files = MemberFiles(fold, 0)
            rows.append(np.flatnonzero(template.folds == fold))
            logits.append(pd.read_csv(place / files.out_of_fold)["logit"].to_numpy())
            history = [json.loads(line) for line in (place / files.history).read_text().splitlines()]
            cut = [line["shortened_to"] for line in history if "shortened_to" in line]
            notes += [f"the clock cut the plan of fold {fold} to {cut[-1]} steps"] if cut else []
        inside = np.concatenate(rows)
        labels, probabilities = (
            template.index["label"].to_numpy()[inside],
            probability(np.concatenate(logits)),
        )  # (N,)
        pooled = auc(labels, probabilities)
        low, high = auc_interval(labels, probabilities, self.task.groups[inside], seed=trial.config.seed)
        network, _ = load_checkpoint(place / MemberFiles(folds[0], 0).checkpoint)
        millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
        return {
            "auc": pooled,
            "low": low,
            "high": high,
            "tiles": len(inside),
            "parameters_millions": round(millions, 3),
            "shortened": bool(notes),
            "notes": notes,
        }


def _shown(record: TrialRecord) -> str:
    if record.auc is None:
        return f", {record.note}" if record.note else ""
    return f", AUC {record.auc:.4f} ({record.low:.4f} to {record.high:.4f})"


def _ranked(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    order = (FINISHED, FAILED, NOT_RUN)
    return sorted(
        records, key=lambda each: (order.index(each.status), -each.rung, -(each.auc or 0.0), each.number)
    )


# --- what is left ----------------------------------------------------------------------------------------------------


def write_search(found: SearchResult, *, folder: Path, experiment: str) -> dict[str, bool]:
    """Write search.csv, trials.json and, where a trial finished, winner.toml; their names, with whether to fetch them."""
    template = found.task.template
    content = {
        "search": found.task.space.to_dict(),
        "name": found.task.space.name,
        "experiment": experiment,
        "config": found.task.base.to_dict(),
        "data_id": template.data_id,
        "fold_table_id": template.fold_table_id,
        "complete": found.complete,
        "rungs_left": found.rungs_left,
        "trials": [asdict(record) for record in found.records],
    }
    write_atomic(folder / RECORDS, json.dumps(content, indent=1, allow_nan=False) + "\n")
    write_atomic(folder / TABLE, _table(found))
    names = {RECORDS: True, TABLE: True}
    if found.count(FINISHED):
        write_atomic(folder / WINNER, winner_toml(found, experiment=experiment))
        names[WINNER] = True
    return names


def _table(found: SearchResult) -> str:
    """search.csv: one row a trial, the best first."""
    searched = [key for key in found.task.space.space if key != "epochs"]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    own = ("epochs", "parameters_millions", "seconds", "note")
    writer.writerow(["rank", "trial", "status", "auc", "low", "high", *searched, *own])
    for rank, record in enumerate(found.records, 1):
        scores = ["" if each is None else f"{each:.6f}" for each in (record.auc, record.low, record.high)]
        seconds = "" if record.seconds is None else f"{record.seconds:.1f}"
        millions = "" if record.parameters_millions is None else record.parameters_millions
        place = rank if record.status == FINISHED else ""
        values = [record.values[key] for key in searched]
        writer.writerow(
            [place, record.id, record.status, *scores, *values, record.epochs, millions, seconds, record.note]
        )
    return stream.getvalue()


def winner_toml(found: SearchResult, *, experiment: str) -> str:
    """The experiment with the values of the best trial, ready to run, and how it was chosen.

    It keeps the experiment's own epochs, members and views: a trial differs in these because it is one network, and under
    halving trained for shorter.
    """
    space, best = found.task.space, found.records[0]
    config = config_from_dict(dict(best.values), base=found.task.base)
    chosen = ", ".join(f"{key} = {value}" for key, value in best.values.items())
    folds = f"fold{'s' if len(space.folds) > 1 else ''} {', '.join(map(str, space.folds))} of {found.task.base.num_folds}"
    others = [f"{found.count(status)} {status}" for status in (FAILED, NOT_RUN) if found.count(status)]
    lines = [
        f"The best of {found.count(FINISHED)} trials of the search {space.name} over {experiment}: {chosen}.",
        f"Pooled out-of-fold AUC {best.auc:.4f} (95 % interval {best.low:.4f} to {best.high:.4f}) on {best.tiles:,} tiles,",
        f"{folds}, one network for {best.epochs} epochs (trial {best.id}).",
        "The AUC is optimistic: the trial was chosen because of it. Other folds say what it is worth.",
        *([f"Beside them: {', '.join(others)}."] if others else []),
        f"Data {found.task.template.data_id[:12]}, fold table {found.task.template.fold_table_id[:12]}.",
    ]
    text = "".join(f"# {line}\n" for line in lines) + to_toml(config)
    assert parse_toml(text, name=experiment) == config, "the winner changed on its way into TOML"
    return text
