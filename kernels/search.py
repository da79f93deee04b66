"""Search the hyperparameters of an experiment: one trial per GPU at a time, ranked by out-of-fold AUC.

Reads: prepare; weights, for every backbone that is tried.
Leaves: search.csv, one row per trial with the best first; the experiment of the best trial.
"""

import logging
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

from lib.data import prepared
from lib.data.folds import fold_table_id, groups_of, make_folds
from lib.runtime.hardware import choose_devices, describe_devices, preflight
from lib.runtime.inputs import find_weights, read_output
from lib.runtime.session import Session, run_kernel
from lib.search_space import TABLE
from lib.training.fold import FoldTask
from lib.training.search import SearchTask, run_search, write_search

logger = logging.getLogger(__name__)


def recipe(session: Session) -> None:
    """Read the prepared data, make the folds, run the trials, write their ranking and the best experiment."""
    config, parameters = session.parameters.config, session.parameters
    assert parameters.search is not None, "the builder writes the search space"
    with session.stage("read the prepared tables"):
        folder, record = read_output(session.input, "prepare", hashed_by_reader=prepared.ARRAYS)
        data = prepared.read_prepared(folder, recorded_data_id=record.data_id, hashes=record.hashes)
        folds = make_folds(data.train, split=config.fold_split, number=config.num_folds, seed=config.seed)
    devices = choose_devices(config, gpu_required=parameters.needs_gpu and session.on_kaggle)
    size = data.bytes_of(prepared.TRAIN_TILES)
    preflight(session.working, disk=len(devices) << 30, memory=size + len(devices) * (2 << 30))
    with session.stage("read the tiles", note=f"{size / (1 << 20):,.0f} MiB"):
        tiles, memory = data.share_tiles()  # one copy for all trials
    template = FoldTask(
        experiment=parameters.experiment,
        config=config,
        fold=parameters.search.folds[0],
        tiles=tiles,
        index=data.train,
        folds=folds["fold"].to_numpy(),
        data_id=data.data_id,
        fold_table_id=fold_table_id(folds),
        bundle_id=parameters.bundle_id,
        weights={},
        memory=memory,
    )
    task = SearchTask(
        space=parameters.search,
        template=template,
        groups=groups_of(data.train, split=config.fold_split),
        weights=partial(find_weights, session.input, experiment=parameters.experiment),
        finished=parameters.finished,
        deadline=session.deadline,
    )
    with session.stage("search"):
        result = run_search(task, folder=session.working, devices=devices, started=session.started)
    session.invalidate_record()
    names = write_search(result, folder=session.working, experiment=parameters.experiment)
    logger.info("the ranking:\n%s", (session.working / TABLE).read_text())
    session.write_outputs(
        names,
        data_id=data.data_id,
        fold_table_id=template.fold_table_id,
        devices=describe_devices(devices),
        scores={"search": result.scores()},
    )


def main(parameters: Mapping[str, Any]) -> int:
    """Run with the parameters that the builder wrote into the script."""
    return run_kernel(recipe, parameters)


if __name__ == "__main__":
    sys.exit("this recipe runs inside a built kernel: python build_kernel.py build")
