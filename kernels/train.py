"""Train the members of one fold and predict the tiles of the fold, which they have not seen.

Reads: prepare; weights, pretrain or embed, by the experiment; the same fold of the teacher for pseudo-labels.
Leaves: weights, out-of-fold logits and history of each member; the fold table; hard tiles with attribution;
augmented tiles.
"""

import logging
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from lib.data import prepared
from lib.data.folds import fold_report, fold_table_csv, fold_table_id, groups_of, make_folds
from lib.data.tiff import TILE_SHAPE
from lib.explain.attribution import explain_hard_tiles
from lib.explain.augmented_tiles import write_augmented_tiles
from lib.explain.hard_tiles import FROZEN_ENCODER, MAX_EXPLAINED_TILES, write_hard_tiles
from lib.files import sha256_of, write_atomic
from lib.image.examples import augmented_examples
from lib.inference.pseudo_labels import find_teacher, label_test_tiles
from lib.model.checkpoint import CHECKPOINT_FORMAT, LABEL_SET
from lib.model.features import encoder_options, read_features
from lib.model.network import choose_precision
from lib.model.weights import WEIGHTS_NAME
from lib.runtime.hardware import choose_devices, describe_devices, preflight
from lib.runtime.inputs import find_features, find_outputs, find_weights, read_output
from lib.runtime.session import Session, run_kernel
from lib.training.fold import FoldTask, MemberFiles, out_of_fold_probabilities
from lib.training.linear_probe import train_head
from lib.training.workers import clear_progress, train_fold

logger = logging.getLogger(__name__)

FOLD_TABLE = "fold-table.csv"
# Time to keep free for the attribution maps after training, as a number of tiles to predict. One GPU computes
# them in float32, which on a T4 has an eighth of float16's peak: a forward pass and the gradient of the head.
_EXPLAIN_TILES = 8 * MAX_EXPLAINED_TILES


def recipe(session: Session) -> None:
    """Read the prepared data, make the folds, train one, explain its hard tiles, write the outputs."""
    config, parameters = session.parameters.config, session.parameters
    with session.stage("read the prepared tables"):
        folder, record = read_output(session.input, "prepare", hashed_by_reader=prepared.ARRAYS)
        data = prepared.read_prepared(folder, recorded_data_id=record.data_id, hashes=record.hashes)
        folds = make_folds(data.train, split=config.fold_split, number=config.num_folds, seed=config.seed)
        groups = groups_of(data.train, split=config.fold_split)
    labels, fold_of_tile = data.train["label"].to_numpy(), folds["fold"].to_numpy()
    report = fold_report(labels, fold_of_tile, number=config.num_folds).round(4).to_string(index=False)
    logger.info("folds by %s, table %s:\n%s", config.fold_split, fold_table_id(folds)[:8], report)

    is_probe = config.train_mode == "linear_probe"
    devices = choose_devices(config, gpu_required=parameters.needs_gpu and session.on_kaggle)
    task = FoldTask(
        experiment=parameters.experiment,
        config=config,
        fold=parameters.fold,
        tiles=np.empty((0, *TILE_SHAPE), dtype=np.uint8),
        index=data.train,
        folds=fold_of_tile,
        data_id=data.data_id,
        fold_table_id=fold_table_id(folds),
        bundle_id=parameters.bundle_id,
        weights={} if is_probe else find_weights(session.input, config, experiment=parameters.experiment),
        deadline=session.deadline,
        reserved_tiles=_EXPLAIN_TILES,
    )
    if is_probe:
        trained: tuple[dict[str, bool], dict[str, Any]] | None = _train_head(session, task, groups)
    else:
        task = _read_tiles(session, task, data, devices)
        with session.stage("train"):
            trained = train_fold(
                task,
                folder=session.working,
                devices=devices,
                invalidate_record=session.invalidate_record,
                started=session.started,
            )
    if trained is None:  # a process of torchrun that writes nothing
        return

    names, scores = trained
    if is_probe:
        scores["explained"] = {"missing": FROZEN_ENCODER}
    else:
        explained, scores["explained"] = _explain(session, task, devices[0])
        names |= explained | _show_augmentation(session, task)
        scores["precision"] = str(choose_precision(config.precision, devices[0])).removeprefix("torch.")
    scores["first_weights"] = _describe_weights(task)
    session.invalidate_record()
    write_atomic(session.working / FOLD_TABLE, fold_table_csv(folds))
    if config.weights == "pretrain" or config.pseudo_labels:
        scores["transductive"] = (
            True  # the encoder saw the fold's tiles unlabelled, or test tiles are learnt from
        )
    scores["pseudo_labelled"] = len(task.folds) - len(data.train)
    scores["groups"] = len(set(groups))
    session.write_outputs(
        {**names, FOLD_TABLE: False},
        data_id=data.data_id,
        fold_table_id=task.fold_table_id,
        checkpoint_format=CHECKPOINT_FORMAT,
        members=list(range(config.num_members)),
        label_set=LABEL_SET,
        devices=describe_devices(devices),
        scores=scores,
    )
    clear_progress(session.working, task)


def _train_head(
    session: Session, task: FoldTask, groups: np.ndarray
) -> tuple[dict[str, bool], dict[str, Any]]:
    """Fit a logistic regression on the stored features of a frozen encoder."""
    folder = find_features(session.input, encoder_options(task.config), data_id=task.data_id)
    features = read_features(folder).train
    # The features, a standardised copy, and the copy of the inner folds.
    preflight(session.working, disk=64 << 20, memory=3 * features.nbytes + (1 << 30))
    with session.stage("fit the head"):
        return train_head(
            task,
            features,
            groups,
            folder=session.working,
            invalidate_record=session.invalidate_record,
        )


def _read_tiles(
    session: Session, task: FoldTask, data: prepared.Prepared, devices: list[torch.device]
) -> FoldTask:
    """The task with its tiles; with pseudo-labels also the test tiles that the teacher's fold labels."""
    extra, needed = None, data.bytes_of(prepared.TRAIN_TILES)
    if task.config.pseudo_labels:
        teacher = find_teacher(
            find_outputs(session.input, "train"),
            experiment=task.config.pseudo_labels,
            fold=task.fold,
            data_id=data.data_id,
            fold_table_id=task.fold_table_id,
        )
        share = task.config.pseudo_share
        extra = label_test_tiles(teacher, data, share=share, devices=devices, stage=session.stage)
        needed += data.bytes_of(prepared.TEST_TILES)
    # 2 GiB for libraries, activations and one network with gradients and AdamW's moments.
    preflight(session.working, disk=1 << 30, memory=needed + (2 << 30))
    with session.stage("read the tiles", note=f"{needed / (1 << 20):,.0f} MiB"):
        tiles, memory = data.share_tiles(test_rows=None if extra is None else extra["row"].to_numpy())
    return task.with_tiles(tiles, memory, extra=extra)


def _explain(
    session: Session, task: FoldTask, device: torch.device
) -> tuple[dict[str, bool], dict[str, Any]]:
    """Write the hard tiles of the fold with the attribution of its first member; names and summary."""
    rows = np.flatnonzero(task.folds == task.fold)
    with session.stage("explain the hardest tiles"):
        explained = explain_hard_tiles(
            session.working / MemberFiles(task.fold, 0).checkpoint,
            task.tiles,
            index=task.index.iloc[rows][["id", "label"]].assign(row=rows),
            probabilities=out_of_fold_probabilities(task, folder=session.working).mean(axis=0),
            device=device,
            entropy=(task.config.seed, task.fold),
        )
    session.invalidate_record()
    return write_hard_tiles(session.working, task.fold, explained), explained.summary


def _show_augmentation(session: Session, task: FoldTask) -> dict[str, bool]:
    """Write a few training tiles with their augmentations, for the report."""
    rows = np.flatnonzero((task.folds != task.fold) & (task.folds >= 0))
    labels, entropy = task.index["label"].to_numpy(), (task.config.seed, task.fold)
    examples = augmented_examples(task.tiles, labels, rows, config=task.config, entropy=entropy)
    session.invalidate_record()
    return write_augmented_tiles(session.working, task.fold, examples)


def _describe_weights(task: FoldTask) -> dict[str, str]:
    """The file of the backbone's first weights, for the report; empty for random ones."""
    for name, path in task.weights.items():
        file = path / WEIGHTS_NAME if name == "folder" else path
        return {
            "file": f"{path.name}/{file.name}" if name == "folder" else file.name,
            "sha256": sha256_of(file),
        }
    return {}


def main(parameters: Mapping[str, Any]) -> int:
    """Run with the parameters that the builder wrote into the script."""
    return run_kernel(recipe, parameters)


if __name__ == "__main__":
    sys.exit("this recipe runs inside a built kernel: python build_kernel.py build")
