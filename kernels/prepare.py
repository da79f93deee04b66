"""Prepare the data once on a CPU: read every tile, check it against its SHA-1, and store all in one array.

Reads: the competition; a tile-to-slide map where the experiment names one.
Leaves: the tile arrays and index tables of both sets and of the hold-out; sample_submission.csv; eda.json
and its figures.
"""

import logging
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from lib.data import prepared
from lib.data.competition import data_id, read_competition
from lib.data.eda import describe_integrity, describe_tiles, explore
from lib.data.folds import describe_splits
from lib.data.holdout import hold_out
from lib.report.eda_figures import draw_eda_figures
from lib.runtime.hardware import preflight
from lib.runtime.inputs import find_competition, find_file
from lib.runtime.session import Session, run_kernel

logger = logging.getLogger(__name__)


def recipe(session: Session) -> None:
    """Read the competition, build the tile arrays, explore them, draw the figures, write the outputs."""
    config, working = session.parameters.config, session.working
    with session.stage("read the competition's tables"):
        competition = read_competition(find_competition(session.input), expect_full=session.on_kaggle)
        slide_map = None
        if config.holdout:
            remedy = "Attach the dataset that holds it (--attach), or leave holdout empty."
            ids = config.holdout_file and find_file(session.input, config.holdout, remedy=remedy)
            competition = hold_out(competition, config.holdout, file=ids or None)
        if config.slide_map:
            remedy = "Attach the dataset that holds it (--attach), or leave slide_map empty."
            slide_map = find_file(session.input, config.slide_map, remedy=remedy)
    logger.info(
        "%s labelled and %s test tiles, %s",
        f"{len(competition.labelled_order):,}",
        f"{len(competition.test_ids):,}",
        "all of them" if competition.is_full else "a part of the competition",
    )
    needed = prepared.bytes_to_write(competition, working)
    preflight(working, disk=needed, memory=3 << 29)  # 1.07 GiB at full size

    with session.stage("read the tiles and check their SHA-1"):
        stores = prepared.build_stores(competition, working, strict=config.verify == "strict")
    builders = {name: builder for name, (builder, _) in stores.items()}
    results = {name: result for name, (_, result) in stores.items()}
    with session.stage("describe the tiles and group them by stain"):
        train = describe_tiles(builders[prepared.TRAIN_TILES].part, with_stain=True)
        test = describe_tiles(builders[prepared.TEST_TILES].part, with_stain=False)
        holdout_features = None
        if prepared.HOLDOUT_TILES in builders:
            holdout_features = describe_tiles(builders[prepared.HOLDOUT_TILES].part, with_stain=True).features
        index, holdout = prepared.index_tables(
            competition, train.features, config, slide_map, holdout_features=holdout_features
        )
        arrays = {builders[name].part: result for name, result in results.items()}
        eda = {
            "integrity": describe_integrity(competition, arrays),
            **explore(index, train, test, results, config, test_ids=competition.test_ids),
            "splits": describe_splits(index, number=config.num_folds, seed=config.seed),
            "holdout": None if holdout is None else {"name": config.holdout, "tiles": len(holdout)},
        }

    session.invalidate_record()
    with session.stage("draw the figures"):
        tiles, test_tiles = (
            np.load(builders[name].part, mmap_mode="r", allow_pickle=False)
            for name in (prepared.TRAIN_TILES, prepared.TEST_TILES)
        )
        figures = draw_eda_figures(
            working,
            tiles,
            test_tiles,
            index=index,
            test_ids=competition.test_ids,
            train=train,
            eda=eda,
            seed=config.seed,
        )
    names = prepared.publish(
        working,
        competition=competition,
        index=index,
        holdout=holdout,
        eda=eda,
        builders=builders,
        figures=figures,
    )
    session.write_outputs(
        names,
        hashes={name: result.sha256 for name, result in results.items()},
        data_id=data_id(index),
        label_set=[0, 1],
        devices=["CPU"],
        scores={"eda": eda},
    )
    for builder in builders.values():
        builder.forget()


def main(parameters: Mapping[str, Any]) -> int:
    """Run with the parameters that the builder wrote into the script."""
    return run_kernel(recipe, parameters)


if __name__ == "__main__":
    sys.exit("this recipe runs inside a built kernel: python build_kernel.py build")
