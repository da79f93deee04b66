"""A fold small enough for a test, and helpers of several tests."""

import dataclasses
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lib.config import Config
from lib.training.fold import FoldTask


class Killed(Exception):
    """Stands for kill -9."""


@contextmanager
def killed_at(text: str) -> Iterator[None]:
    """Raise Killed in the code that logs a line with this text; it must come to that."""

    class Killer(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if text in record.getMessage():
                raise Killed

    logger, killer = logging.getLogger("lib"), Killer()
    before = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(killer)
    try:
        with pytest.raises(Killed):
            yield
    finally:
        logger.removeHandler(killer)
        logger.setLevel(before)


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


def with_options(task: FoldTask, **options: Any) -> FoldTask:
    """The same fold with other options."""
    return dataclasses.replace(task, config=dataclasses.replace(task.config, **options))


def left_in(folder: Path) -> dict[str, bytes]:
    """Name and bytes of the files of a training, without its hidden progress files."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}
