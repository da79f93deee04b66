"""Compute the features of every tile with a frozen encoder once, so that all folds can train heads on them.

Reads: prepare; weights or pretrain, by the experiment.
Leaves: one array of features for the labelled tiles, one for the test tiles, and one for the hold-out.
"""

import sys
from collections.abc import Mapping
from typing import Any

from lib.data import prepared
from lib.model.features import (
    HOLDOUT_FEATURES,
    TEST_FEATURES,
    TRAIN_FEATURES,
    Embedder,
    encoder_options,
    feature_plan,
    publish_features,
    write_features,
)
from lib.model.network import build_network
from lib.runtime.hardware import choose_devices, describe_devices, preflight
from lib.runtime.inputs import find_weights, read_output
from lib.runtime.session import Session, run_kernel


def recipe(session: Session) -> None:
    """Read the prepared data and the weights, embed the tiles of both sets, write one array for each."""
    config, parameters = session.parameters.config, session.parameters
    with session.stage("read the prepared tables and the weights"):
        folder, record = read_output(session.input, "prepare", hashed_by_reader=prepared.ARRAYS)
        data = prepared.read_prepared(folder, recorded_data_id=record.data_id, hashes=record.hashes)
        weights = find_weights(session.input, config, experiment=parameters.experiment)
        network = build_network(config, folder=weights.get("folder"), file=weights.get("file"))
    devices = choose_devices(config, gpu_required=parameters.needs_gpu and session.on_kaggle)
    encoder = sum(parameter.numel() for parameter in network.parameters()) * 4  # bytes
    tiles_bytes = max(data.bytes_of(prepared.TRAIN_TILES), data.bytes_of(prepared.TEST_TILES))
    preflight(session.working, disk=4 << 30, memory=tiles_bytes + encoder * (1 + len(devices)) + (2 << 30))
    embed = Embedder(
        network,
        views=config.tta_views,
        batch_size=config.eval_batch_size,
        devices=devices,
        precision=config.precision,
    )
    parts = [(prepared.TRAIN_TILES, TRAIN_FEATURES), (prepared.TEST_TILES, TEST_FEATURES)]
    if data.holdout is not None:
        parts.append((prepared.HOLDOUT_TILES, HOLDOUT_FEATURES))
    for source, name in parts:
        with session.stage(f"embed {source}", note=f"{config.tta_views} views"):
            tiles = data.read_tiles(source)
            plan = feature_plan(
                config, data_id=data.data_id, bundle_id=parameters.bundle_id, tiles=len(tiles)
            )
            write_features(session.working / name, tiles, plan=plan, embed=embed)
            del tiles
    session.invalidate_record()
    for _, name in parts:
        publish_features(session.working / name)
    session.write_outputs(
        {name: False for _, name in parts},
        data_id=data.data_id,
        devices=describe_devices(devices),
        scores={"features": encoder_options(config)},
    )


def main(parameters: Mapping[str, Any]) -> int:
    """Run with the parameters that the builder wrote into the script."""
    return run_kernel(recipe, parameters)


if __name__ == "__main__":
    sys.exit("this recipe runs inside a built kernel: python build_kernel.py build")
