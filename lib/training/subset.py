"""One fold on a subset of the tiles, trained in a notebook: it shows that the code trains, and how."""

import json
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from lib.data.folds import fold_table_id, make_folds
from lib.data.prepared import ARRAYS, TRAIN_TILES, read_prepared
from lib.errors import KernelError, PreflightError
from lib.runtime.hardware import choose_devices
from lib.runtime.inputs import find_output, find_weights, read_output
from lib.runtime.session import Session
from lib.training.fold import FoldTask, MemberFiles
from lib.training.workers import train_fold

FOLD = 0  # the one that is trained


class SubsetError(KernelError):
    """No fold can be trained here; the message says what is missing."""


@dataclass(frozen=True)
class TrainedSubset:
    """The result of `train_on_subset`.

    Attributes:
        auc: of the tiles of the fold, which were not learnt from.
        predicted: their number.
        history: one row an epoch.
        note: what differs from the experiment.
    """

    auc: float
    predicted: int
    history: pd.DataFrame
    note: str


def train_on_subset(session: Session, *, tiles: int, epochs: int) -> TrainedSubset:
    """Train fold 0 of the first experiment on randomly drawn tiles, with the code of the train kernel.

    Nothing is written into the working folder, and no output of the campaign changes.

    Args:
        session: of the notebook; its inputs hold the output of prepare with `tiles-train.npy`.
        tiles: to draw; all of them where there are fewer.
        epochs: passes over the tiles of the other folds.

    Raises:
        SubsetError: the tiles are not among the inputs, or the experiment is a linear probe.
        FoldError: too few tiles were drawn for the folds.
    """
    config = session.parameters.config
    if config.train_mode == "linear_probe":
        raise SubsetError(
            "the first experiment fits a linear probe on the features of another kernel: there is no network "
            "to train here. See lib.training.linear_probe"
        )
    if not (find_output(session.input, "prepare") / TRAIN_TILES).is_file():
        raise SubsetError(
            f"{TRAIN_TILES} is not among the inputs, because it is not fetched (6 GB). Set TRAIN = True in "
            "the notebook on Kaggle, where the whole output of prepare is mounted"
        )
    folder, record = read_output(session.input, "prepare", hashed_by_reader=ARRAYS)
    data = read_prepared(folder, recorded_data_id=record.data_id, hashes=record.hashes)
    drawn = np.random.default_rng(config.seed).permutation(len(data.train))[:tiles]
    rows = np.sort(drawn)  # (N,) of the array
    index = data.train.iloc[rows].reset_index(drop=True)
    # The groups of a few tiles are too uneven for grouped folds: stratified ones, whose AUC is optimistic.
    folds = make_folds(index, split="stratified", number=config.num_folds, seed=config.seed)
    small = replace(
        config, fold_split="stratified", epochs=epochs, num_members=1, pseudo_labels="", freeze_epochs=0
    )
    small = replace(small, warmup_epochs=min(config.warmup_epochs, epochs / 4))
    notes = [f"{len(index):,} of {len(data.train):,} tiles, {epochs} epochs, stratified folds (optimistic)"]
    try:
        weights = find_weights(session.input, small, experiment=session.parameters.experiments[0])
    except PreflightError:  # the report reads no weights, unless the user attached them
        weights, small = {}, replace(small, weights="none")
        notes.append(f"from random weights, because those of {config.weights!r} are not among the inputs")
    task = FoldTask(
        experiment=session.parameters.experiments[0],
        config=small,
        fold=FOLD,
        tiles=np.load(folder / TRAIN_TILES, mmap_mode="r", allow_pickle=False)[rows],  # (N, 96, 96, 3)
        index=index,
        folds=folds["fold"].to_numpy(),
        data_id=data.data_id,
        fold_table_id=fold_table_id(folds),
        bundle_id=session.parameters.bundle_id,
        weights=weights,
    )
    scratch = Path(tempfile.mkdtemp(prefix="hcd-fold-"))
    try:
        device = choose_devices(small, gpu_required=False)[:1]
        trained = train_fold(task, folder=scratch, devices=device, invalidate_record=lambda: None)
        assert trained is not None
        lines = (scratch / MemberFiles(FOLD, 0).history).read_text(encoding="utf-8").splitlines()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    history = pd.DataFrame([json.loads(line) for line in lines])
    return TrainedSubset(
        trained[1]["fold"]["auc"], int((task.folds == FOLD).sum()), history, ", ".join(notes)
    )
