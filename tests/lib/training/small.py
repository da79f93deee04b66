"""A fold small enough for a test, and what several tests ask of one."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lib.config import Config
from lib.training.fold import FoldTask


def small_task(
    learnable: tuple[np.ndarray, pd.DataFrame], config: Config, *, fold: int = 1, **more: Any
) -> FoldTask:
    """One of three folds of the tiles that can be learnt."""
    tiles, index = learnable
    return FoldTask(
        experiment="x",
        config=config,
        fold=fold,
        tiles=tiles,
        index=index,
        folds=np.arange(len(index)) // 3 % 3,
        data_id="d" * 64,
        fold_table_id="f" * 64,
        bundle_id="b" * 64,
        weights={},
        **more,
    )


def with_knobs(task: FoldTask, **knobs: Any) -> FoldTask:
    """The same fold under other knobs."""
    return dataclasses.replace(task, config=dataclasses.replace(task.config, **knobs))


def left_in(folder: Path) -> dict[str, bytes]:
    """Name and bytes of what a training left, less what it keeps to go on from."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}
