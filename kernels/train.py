"""Train the members of one fold and predict the tiles they have not seen."""

import sys
from collections.abc import Mapping
from typing import Any

from lib.data import prepared
from lib.data.folds import fold_report, fold_table_csv, fold_table_id, groups_of, make_folds
from lib.data.shared import SharedMemory
from lib.files import write_whole
from lib.model.checkpoint import CHECKPOINT_FORMAT, LABEL_SET
from lib.model.weights import find_weights
from lib.session import Session, choose_devices, describe_devices, find_output, preflight, run_kernel
from lib.training.fold import FoldTask
from lib.training.workers import clear_progress, train_fold

FOLD_TABLE = "fold-table.csv"


def recipe(session: Session) -> None:
    """Verify the prepared data, make the folds, train, score, leave weights and out-of-fold logits."""
    config, parameters = session.parameters.config, session.parameters
    with session.stage("look at the prepared data"):
        data = prepared.read_prepared(find_output(session.input, "prepare"))
        weights = find_weights(session, config)
        folds = make_folds(data.train, split=config.split, number=config.folds, seed=config.seed)
        table_id = fold_table_id(folds)
    devices = choose_devices(config, gpu_required=parameters.needs_gpu and session.on_kaggle)
    # A network, its gradients and AdamW's moments are small beside the tiles; 2 GiB cover libraries and activations.
    preflight(session, disk=1 << 30, memory=data.bytes_of(prepared.TRAIN_TILES) + (2 << 30))
    report = fold_report(data.train["label"].to_numpy(), folds["fold"].to_numpy(), number=config.folds)
    session.say(f"folds by {config.split}, table {table_id[:8]}:\n{report.round(4).to_string(index=False)}")

    memory = SharedMemory()  # one copy for all workers
    with session.stage("read the tiles", note=f"{data.bytes_of(prepared.TRAIN_TILES) / (1 << 20):,.0f} MiB"):
        tiles = data.read_tiles(prepared.TRAIN_TILES, allocate=memory.allocate)
    task = FoldTask(
        experiment=parameters.experiment,
        config=config,
        fold=parameters.fold,
        tiles=tiles,
        index=data.train,
        folds=folds["fold"].to_numpy(),
        data_id=data.data_id,
        fold_table_id=table_id,
        bundle_id=parameters.bundle_id,
        weights=weights,
        memory=memory,
        until=session.until,
    )
    with session.stage("train"):
        trained = train_fold(
            task,
            folder=session.working,
            devices=devices,
            say=session.say,
            replace=session.withdraw_record,
            started=session.started,
        )
    if trained is None:  # one of torchrun's processes, and not the one that writes
        return
    names, scores = trained
    fold = scores["fold"]
    session.say(
        f"fold {parameters.fold}: AUC {fold['auc']:.4f}, F1 {fold['f1_at_half']:.4f} at 0.5, {fold['f1_at_thresholds']:.4f} "
        f"at thresholds {', '.join(f'{value:.3f}' for value in fold['thresholds'])} (each from the other half of the fold), "
        f"confusion at 0.5 {fold['confusion_at_half']}, n = {fold['tiles']:,}"
    )
    session.withdraw_record()
    write_whole(session.working / FOLD_TABLE, fold_table_csv(folds))
    if config.weights == "pretrain":
        scores["transductive"] = True  # the encoder saw the tiles of the fold, without their labels
    scores["groups"] = len(set(groups_of(data.train, split=config.split)))
    session.leave(
        {**names, FOLD_TABLE: False},
        data_id=data.data_id,
        fold_table_id=table_id,
        checkpoint_format=CHECKPOINT_FORMAT,
        members=list(range(config.members)),
        label_set=LABEL_SET,
        devices=describe_devices(devices),
        scores=scores,
    )
    clear_progress(session.working, task)


def main(parameters: Mapping[str, Any]) -> int:
    """Run on the parameters that the builder wrote into the script."""
    return run_kernel(recipe, parameters)


if __name__ == "__main__":
    sys.exit("this recipe runs inside a built kernel: python build_kernel.py build")
