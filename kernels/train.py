"""Train the members of one fold and predict the tiles they have not seen."""

import hashlib
import logging
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from lib.data import prepared
from lib.data.folds import fold_report, fold_table_csv, fold_table_id, groups_of, make_folds
from lib.data.shared_memory import SharedMemory
from lib.data.tiff import TILE_BYTES, TILE_SHAPE
from lib.evaluation.metrics import probability
from lib.explain.attribution import explain_hard_tiles
from lib.explain.hard_tiles import (
    CENTRE_SHARE,
    FROZEN_ENCODER,
    HARD_TILE_KINDS,
    MAX_EXPLAINED_TILES,
    ExplainedTiles,
    write_hard_tiles,
)
from lib.files import write_atomic
from lib.inference.members import members_of, predict_members
from lib.inference.pseudo_labels import choose_confident, find_teacher
from lib.model.checkpoint import CHECKPOINT_FORMAT, LABEL_SET
from lib.model.features import encoder_options, read_features
from lib.runtime.hardware import choose_devices, describe_devices, preflight
from lib.runtime.inputs import find_features, find_outputs, find_weights, read_output
from lib.runtime.session import Session, run_kernel
from lib.training.fold import FoldTask, MemberFiles, out_of_fold_probabilities
from lib.training.linear_probe import train_head
from lib.training.workers import clear_progress, train_fold

logger = logging.getLogger(__name__)

FOLD_TABLE = "fold-table.csv"
# Time to keep free for the attribution maps after training, as a number of tiles to predict. One GPU computes them in
# float32, which on a T4 has an eighth of float16's peak: a forward pass and the gradient of the head per tile.
_EXPLAIN_TILES = 8 * MAX_EXPLAINED_TILES


def recipe(session: Session) -> None:
    """Verify the prepared data, make the folds, train, score, leave weights and out-of-fold logits."""
    config, parameters = session.parameters.config, session.parameters
    with session.stage("look at the prepared data"):
        folder, record = read_output(session.input, "prepare", hashed_by_reader=prepared.ARRAYS)
        data = prepared.read_prepared(folder, recorded_data_id=record.data_id, hashes=record.hashes)
        frozen = config.train_mode == "linear_probe"
        features = (
            read_features(find_features(session.input, encoder_options(config), data_id=data.data_id))
            if frozen
            else None
        )
        weights = {} if frozen else find_weights(session.input, config, experiment=parameters.experiment)
        folds = make_folds(data.train, split=config.fold_split, number=config.num_folds, seed=config.seed)
        table_id = fold_table_id(folds)
    devices = choose_devices(config, gpu_required=parameters.needs_gpu and session.on_kaggle)
    groups = groups_of(data.train, split=config.fold_split)
    report = fold_report(data.train["label"].to_numpy(), folds["fold"].to_numpy(), number=config.num_folds)
    logger.info(
        f"folds by {config.fold_split}, table {table_id[:8]}:\n{report.round(4).to_string(index=False)}"
    )
    task = FoldTask(
        experiment=parameters.experiment,
        config=config,
        fold=parameters.fold,
        tiles=np.empty((0, *TILE_SHAPE), dtype=np.uint8),
        index=data.train,
        folds=folds["fold"].to_numpy(),
        data_id=data.data_id,
        fold_table_id=table_id,
        bundle_id=parameters.bundle_id,
        weights=weights,
        deadline=session.deadline,
        reserved_tiles=_EXPLAIN_TILES,
    )
    trained: tuple[dict[str, bool], dict[str, Any]] | None
    if features is not None:
        # The features, once more standardised, and once more as the inner folds copy them.
        preflight(session.working, disk=64 << 20, memory=3 * features.train.nbytes + (1 << 30))
        with session.stage("fit the head"):
            trained = train_head(
                task,
                features.train,
                groups,
                folder=session.working,
                invalidate_record=session.invalidate_record,
            )
    else:
        guessed = _guess(session, data, devices, table_id)
        task = _with_tiles(task, session, data, guessed)
        with session.stage("train"):
            trained = train_fold(
                task,
                folder=session.working,
                devices=devices,
                invalidate_record=session.invalidate_record,
                started=session.started,
            )
    if trained is None:  # one of torchrun's processes, and not the one that writes
        return
    names, scores = trained
    fold = scores["fold"]
    logger.info(
        f"fold {parameters.fold}: AUC {fold['auc']:.4f}, F1 {fold['f1_at_half']:.4f} at 0.5, {fold['f1_at_thresholds']:.4f} "
        f"at thresholds {', '.join(f'{value:.3f}' for value in fold['thresholds'])} (each from the other half of the fold), "
        f"confusion at 0.5 {fold['confusion_at_half']}, n = {fold['tiles']:,}"
    )
    explained = None if frozen else _explain(task, session, devices)
    session.invalidate_record()
    write_atomic(session.working / FOLD_TABLE, fold_table_csv(folds))
    if explained is not None:
        names |= write_hard_tiles(session.working, task.fold, explained)
    scores["explained"] = {"missing": FROZEN_ENCODER} if explained is None else explained.summary
    if config.weights == "pretrain" or config.pseudo_labels:
        scores["transductive"] = (
            True  # the encoder saw the fold's tiles without labels, or test tiles were learnt from
        )
    scores["pseudo_labelled"] = len(task.folds) - len(data.train)
    scores["groups"] = len(set(groups))
    session.write_outputs(
        {**names, FOLD_TABLE: False},
        data_id=data.data_id,
        fold_table_id=table_id,
        checkpoint_format=CHECKPOINT_FORMAT,
        members=list(range(config.num_members)),
        label_set=LABEL_SET,
        devices=describe_devices(devices),
        scores=scores,
    )
    clear_progress(session.working, task)


def _explain(task: FoldTask, session: Session, devices: list[torch.device]) -> ExplainedTiles:
    """The hardest tiles of the trained fold and what its first member looks at in them."""
    inside = np.flatnonzero(task.folds == task.fold)
    with session.stage("explain the hardest tiles"):
        found = explain_hard_tiles(
            session.working / MemberFiles(task.fold, 0).checkpoint,
            task.tiles,
            index=task.index.iloc[inside][["id", "label"]].assign(row=inside),
            probabilities=out_of_fold_probabilities(task, folder=session.working).mean(axis=0),
            device=devices[0],
            entropy=(task.config.seed, task.fold),
        )
    kinds = found.table["kind"].value_counts()
    logger.info(
        ", ".join(f"{kinds.get(kind, 0)} {words}" for kind, words in HARD_TILE_KINDS.items())
        + ": kept for the report"
    )
    if "missing" in found.summary:
        logger.warning("no explanation: %s", found.summary["missing"])
    else:
        share = found.summary["share_in_centre"]["median"]
        logger.info(
            f"{found.summary['method']}: the centre holds {share:.1%} of what speaks for tumour (median of "
            f"{found.summary['tiles']:,} tumour tiles; {CENTRE_SHARE:.1%} if it were spread evenly)"
        )
    return found


def _with_tiles(
    task: FoldTask, session: Session, data: prepared.Prepared, guessed: pd.DataFrame | None
) -> FoldTask:
    """The task with its tiles, in memory that workers share; after them the test tiles whose labels were guessed."""
    # A network, its gradients and AdamW's moments are small beside the tiles; 2 GiB cover libraries and activations.
    own = data.bytes_of(prepared.TRAIN_TILES)
    extra = 0 if guessed is None else len(guessed)
    rows = len(data.train) + extra
    preflight(
        session.working,
        disk=1 << 30,
        memory=own + (data.bytes_of(prepared.TEST_TILES) if extra else 0) + (2 << 30),
    )
    memory = SharedMemory()  # one copy for all workers
    tiles = memory.allocate(rows * TILE_BYTES).reshape(rows, *TILE_SHAPE)
    with session.stage("read the tiles", note=f"{tiles.nbytes / (1 << 20):,.0f} MiB"):
        data.read_tiles(prepared.TRAIN_TILES, allocate=lambda size: tiles.reshape(-1)[:size])
        if guessed is not None:
            tiles[len(data.train) :] = data.read_tiles(prepared.TEST_TILES)[guessed["row"]]
    if guessed is None:
        return replace(task, tiles=tiles, memory=memory)
    labelled = guessed.assign(id=data.test["id"].to_numpy()[guessed["row"]])[["id", "label"]]
    text = labelled.to_csv(index=False)
    return replace(
        task,
        tiles=tiles,
        memory=memory,
        index=pd.concat([task.index[["id", "label"]], labelled], ignore_index=True),
        folds=np.concatenate([task.folds, np.full(len(labelled), -1)]),
        extra_id=hashlib.sha256(text.encode()).hexdigest(),
    )


def _guess(
    session: Session, data: prepared.Prepared, devices: list[torch.device], table_id: str
) -> pd.DataFrame | None:
    """Labels of test tiles, by the members of this very fold of another experiment; None where none are asked for."""
    config, parameters = session.parameters.config, session.parameters
    if not config.pseudo_labels:
        return None
    teacher = find_teacher(
        find_outputs(session.input, "train"),
        experiment=config.pseudo_labels,
        fold=parameters.fold,
        data_id=data.data_id,
        fold_table_id=table_id,
    )
    tiles = data.read_tiles(prepared.TEST_TILES)
    by_member = predict_members(list(members_of(teacher)), tiles, devices=devices, stage=session.stage)
    probabilities = probability(np.stack(list(by_member.values()), axis=1)).mean(axis=1)
    guessed = choose_confident(
        probabilities, share=config.pseudo_share, prevalence=float(data.train["label"].mean())
    )
    sure = [probabilities[guessed["row"][guessed["label"] == label]] for label in (0, 1)]
    logger.info(
        f"{len(guessed):,} of {len(tiles):,} test tiles labelled by {teacher.name}: {len(sure[0]):,} without tumour (probability "
        f"at most {sure[0].max(initial=0):.3f}), {len(sure[1]):,} with (at least {sure[1].min(initial=1):.3f})"
    )
    return guessed


def main(parameters: Mapping[str, Any]) -> int:
    """Run on the parameters that the builder wrote into the script."""
    return run_kernel(recipe, parameters)


if __name__ == "__main__":
    sys.exit("this recipe runs inside a built kernel: python build_kernel.py build")
