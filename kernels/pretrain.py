"""Pretrain an experiment's backbone on the competition's own tiles, without their labels (Barlow Twins).

Reads: prepare; weights or an attached file, where the pretraining continues from given weights.
Leaves: the encoder for the folds of this experiment; the history of the pretraining.
"""

import logging
import math
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from lib.data import prepared
from lib.data.shared_memory import SharedMemory
from lib.data.tiff import TILE_SHAPE
from lib.runtime.hardware import choose_devices, describe_devices, preflight
from lib.runtime.inputs import find_weights, read_output
from lib.runtime.session import Session, run_kernel
from lib.training.barlow_twins import HISTORY, UNFINISHED, PretrainTask
from lib.training.pretrain_workers import pretrain_on_all

logger = logging.getLogger(__name__)


def recipe(session: Session) -> None:
    """Read the prepared data, put the tiles into one array, pretrain, write the encoder for the folds."""
    config, parameters = session.parameters.config, session.parameters
    with session.stage("read the prepared tables and find the first weights"):
        folder, record = read_output(session.input, "prepare", hashed_by_reader=prepared.ARRAYS)
        data = prepared.read_prepared(folder, recorded_data_id=record.data_id, hashes=record.hashes)
        weights = find_weights(session.input, config.for_pretraining, experiment=parameters.experiment)
    devices = choose_devices(config, gpu_required=parameters.needs_gpu and session.on_kaggle)
    names = [prepared.TRAIN_TILES, *([prepared.TEST_TILES] if config.pretrain_tiles == "all" else [])]
    preflight(session.working, disk=2 << 30, memory=sum(data.bytes_of(name) for name in names) + (2 << 30))
    rows = len(data.train) + (len(data.test) if len(names) > 1 else 0)
    shape, memory = (rows, *TILE_SHAPE), SharedMemory()
    tiles = memory.allocate(math.prod(shape)).reshape(shape)
    with session.stage("read the tiles", note=f"{tiles.nbytes / (1 << 20):,.0f} MiB"):
        begin = 0
        for name in names:
            begin += data.read_tiles(name, allocate=partial(_first, tiles.reshape(-1)[begin:])).size
    logger.info(
        "no label is used, but %s tiles are: results that build on this encoder are transductive",
        "all" if len(names) > 1 else "all labelled",
    )
    task = PretrainTask(
        config=config,
        tiles=tiles,
        data_id=data.data_id,
        bundle_id=parameters.bundle_id,
        weights=weights,
        deadline=session.deadline,
    )
    with session.stage("pretrain"):
        outputs, scores = pretrain_on_all(
            task,
            memory=memory,
            folder=session.working,
            devices=devices,
            invalidate_record=session.invalidate_record,
            started=session.started,
        )
    session.write_outputs(
        {name: name == HISTORY for name in outputs},
        data_id=data.data_id,
        devices=describe_devices(devices),
        scores=scores,
    )
    (session.working / UNFINISHED).unlink(missing_ok=True)


def _first(memory: np.ndarray, size: int) -> np.ndarray:
    """The first bytes of a piece of memory."""
    return memory[:size]


def main(parameters: Mapping[str, Any]) -> int:
    """Run with the parameters that the builder wrote into the script."""
    return run_kernel(recipe, parameters)


if __name__ == "__main__":
    sys.exit("this recipe runs inside a built kernel: python build_kernel.py build")
