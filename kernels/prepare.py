"""Prepare the data once, on a free CPU session: every tile read, proved by its SHA-1, and put into one array."""

import logging
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from lib.data import prepared
from lib.data.competition import data_id, read_competition
from lib.data.eda import Description, describe_integrity, describe_tiles, explore, outliers
from lib.data.folds import describe_splits
from lib.data.stain_groups import FEATURES
from lib.report.eda_figures import (
    brightness_histogram,
    focus_histogram,
    group_scatter,
    group_stains,
    splits_figure,
    stain_histograms,
)
from lib.report.tile_figures import contact_sheet, copies_sheet, outlier_sheet
from lib.runtime.hardware import preflight
from lib.runtime.inputs import find_competition, find_file
from lib.runtime.session import Session, run_kernel

logger = logging.getLogger(__name__)


def recipe(session: Session) -> None:
    """Read the competition, build the stores, describe them, leave what section 5 of the design promises."""
    config, working = session.parameters.config, session.working
    with session.stage("look at the competition's folder"):
        competition = read_competition(find_competition(session.input), expect_full=session.on_kaggle)
        slide_map = None
        if config.slide_map:
            remedy = "Attach the dataset that holds it (--attach), or leave slide_map empty."
            slide_map = find_file(session.input, config.slide_map, remedy=remedy)
    part = "all of them" if competition.is_full else "a part of the competition"
    logger.info(f"{len(competition.train):,} labelled and {len(competition.test_ids):,} test tiles, {part}")
    preflight(
        session.working, disk=prepared.bytes_to_write(competition, working), memory=3 << 29
    )  # 1.07 GiB at full size

    with session.stage("read and prove the tiles"):
        stores = prepared.build_stores(competition, working, strict=config.verify == "strict")
    for name, (_, store) in stores.items():
        wrong = f": {', '.join(store.mismatches)}" if store.mismatches else ""
        logger.info(
            f"{name}: {store.tiles:,} tiles, {len(store.mismatches):,} of which do not match their SHA-1{wrong}"
        )
    builders = {name: builder for name, (builder, _) in stores.items()}
    with session.stage("describe the tiles and group them by stain"):
        train = describe_tiles(builders[prepared.TRAIN_TILES].part, with_stain=True)
        test = describe_tiles(builders[prepared.TEST_TILES].part, with_stain=False)
        index = prepared.index_table(competition, train.features, config, slide_map)
        results = {name: result for name, (_, result) in stores.items()}
        eda = {
            "integrity": describe_integrity(
                competition, {builders[name].part: store for name, store in results.items()}
            ),
            **explore(index, train, test, results, config, test_ids=competition.test_ids),
            "splits": describe_splits(index, number=config.num_folds, seed=config.seed),
        }
    groups = eda["stain_groups"]
    logger.info(
        f"{groups['number']} stain groups of {groups['smallest']:,} to {groups['largest']:,} tiles; "
        f"the group number alone reaches AUC {groups['auc_of_group_number']:.4f}"
    )
    copies = eda["near_copies"]
    logger.info(
        f"{copies['pairs']:,} pairs of tiles that look the same, {copies['between_labelled_and_test']:,} of them between "
        f"labelled and test tiles, {copies['with_another_label']:,} with different labels"
    )

    with session.stage("draw the figures"):
        session.invalidate_record()
        arrays = {
            name: np.load(builder.part, mmap_mode="r", allow_pickle=False)
            for name, builder in builders.items()
        }
        figures = _draw(session, arrays, index, train, eda, test_ids=competition.test_ids)
    names = prepared.publish(
        working, competition=competition, index=index, eda=eda, builders=builders, figures=figures
    )
    hashes = {name: result.sha256 for name, result in results.items()}
    session.write_outputs(
        names, hashes=hashes, data_id=data_id(index), label_set=[0, 1], devices=["CPU"], scores={"eda": eda}
    )
    for builder in builders.values():
        builder.forget()


def _draw(
    session: Session,
    arrays: Mapping[str, np.ndarray],
    index: pd.DataFrame,
    train: Description,
    eda: Mapping[str, Any],
    *,
    test_ids: list[str],
) -> list[str]:
    """The figures of what there is; their names."""
    config, working = session.parameters.config, session.working
    tiles, labels = arrays[prepared.TRAIN_TILES], index["label"].to_numpy()
    groups, copies = eda["stain_groups"]["table"], eda["near_copies"]
    contact_sheet(tiles, labels, working / prepared.SHEET, seed=config.seed)
    brightness_histogram(train.means, labels, working / prepared.BRIGHTNESS)
    focus_histogram(train.focus, labels, working / prepared.FOCUS)
    outlier_sheet(tiles, outliers(train), working / prepared.OUTLIERS)
    group_scatter(groups, working / prepared.GROUPS)
    group_stains(groups, working / prepared.GROUP_STAINS)
    stain_histograms(train.features, FEATURES, labels, working / prepared.STAINS)
    splits_figure(eda["splits"], working / prepared.SPLITS)
    names = [prepared.SHEET, prepared.BRIGHTNESS, prepared.FOCUS, prepared.OUTLIERS]
    names += [prepared.GROUPS, prepared.GROUP_STAINS, prepared.STAINS, prepared.SPLITS]
    (working / prepared.COPIES).unlink(missing_ok=True)  # an earlier run's
    if not copies["pairs"]:
        return names
    rows = {name: row for row, name in enumerate(index["id"])}

    def tile(name: str) -> tuple[np.ndarray, str]:
        if name in rows:
            return tiles[rows[name]], "tumour" if labels[rows[name]] else "no tumour"
        return arrays[prepared.TEST_TILES][test_ids.index(name)], "test"

    pairs = [(tile(one), tile(other)) for one, other in copies["examples"]]
    copies_sheet(pairs, working / prepared.COPIES, number=copies["pairs"])
    return [*names, prepared.COPIES]


def main(parameters: Mapping[str, Any]) -> int:
    """Run on the parameters that the builder wrote into the script."""
    return run_kernel(recipe, parameters)


if __name__ == "__main__":
    sys.exit("this recipe runs inside a built kernel: python build_kernel.py build")
