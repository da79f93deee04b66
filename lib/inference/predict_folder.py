"""Predict a folder of pictures, as a program: `python -m lib.inference.predict_folder OPTIONS`.

OPTIONS is a JSON object with the fields of `Options`. The launcher imports no torch and starts this module.
"""

import hashlib
import json
import logging
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lib.data.pictures import Listing, PicturesError, check_pictures, list_pictures, read_pictures
from lib.data.tile_table import TileTable, read_tile_table
from lib.errors import KernelError, listed, shorten
from lib.evaluation.external_test import describe_external_test, score_external_test
from lib.evaluation.metrics import MetricError
from lib.files import write_atomic
from lib.inference.members import KeptLogits
from lib.inference.predictor import Predictor
from lib.runtime.hardware import describe_devices

logger = logging.getLogger(__name__)

_BLOCK = 4096  # tiles in memory at a time: 108 MiB


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a prediction.

    Attributes:
        tiles: the folder of pictures.
        members: a campaign, a rehearsal, the folder of `local`, or outputs of folds.
        out: the CSV file to write.
        labels: a CSV file with labels; empty for none.
        experiments: names; all that are found when empty.
        weights: folders with weights of frozen encoders.
        device: auto, cpu or cuda.
        skip_bad: predict the other pictures where some cannot be used.
    """

    tiles: str
    members: str
    out: str
    labels: str = ""
    experiments: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    device: str = "auto"
    skip_bad: bool = False


def predict_folder(options: Options) -> dict[str, Any]:
    """Predict every picture of a folder and write the predictions.

    It writes `out` (tile, probability, spread, calibrated) and, beside it, a JSON file with the members, the
    rules that applied, and the scores where labels are given. Pictures are decoded in blocks, so the memory
    does not grow with the folder. A repeated run continues after the last finished block.

    Returns:
        The content of the JSON file.

    Raises:
        KernelError: pictures, labels or members cannot be used; every problem is listed.
    """
    folder, out = Path(options.tiles), Path(options.out)
    pictures = list_pictures(folder)
    names, notes, bad = _check(folder, pictures, skip_bad=options.skip_bad)
    labels = read_tile_table(Path(options.labels), names) if options.labels else None
    predictor = Predictor.load(
        options.members,
        experiments=options.experiments,
        device=options.device,
        weights=options.weights,
    )
    experiments = dict.fromkeys(member.identity.experiment for member in predictor.members)
    logger.info(
        "%d members of %s on %s; %s tiles",
        len(predictor.members),
        ", ".join(experiments),
        describe_devices(predictor.devices)[0],
        f"{len(names):,}",
    )
    for warning in (*predictor.warnings, *notes):
        logger.warning("%s", warning)
    if predictor.scaling is None:
        logger.warning("the column calibrated is empty: %s", predictor.without_scaling)
    table = _predict(predictor, folder, names, out)
    report: dict[str, Any] = {
        "tiles": len(table),
        "members": [member.table_row() for member in predictor.members],
        "notes": [*predictor.warnings, *notes],
        "refused": bad,
        "ignored": pictures.ignored,
        "platt_scaling": None if predictor.scaling is None else asdict(predictor.scaling),
        "without_scaling": predictor.without_scaling,
        "devices": describe_devices(predictor.devices),
        "scores": None,
    }
    if labels is not None:
        report |= _score(table, labels)
        for line in describe_external_test(report["scores"]):
            logger.info("%s", line)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, table.to_csv(index=False, float_format="%.9g", lineterminator="\n"))
    write_atomic(report_file(out), json.dumps(_plain(report), indent=1, allow_nan=False) + "\n")
    shutil.rmtree(_unfinished(out), ignore_errors=True)
    logger.info("predictions: %s (%s tiles)", out, f"{len(table):,}")
    return report


def report_file(out: Path) -> Path:
    """The JSON file beside the predictions."""
    return out.with_suffix(".json")


def _unfinished(out: Path) -> Path:
    return out.with_name(f".{out.name}.unfinished")


def _check(folder: Path, pictures: Listing, *, skip_bad: bool) -> tuple[list[str], list[str], dict[str, str]]:
    """The pictures to predict, what was done to them, and why others are refused.

    Raises:
        PicturesError: pictures cannot be used and `skip_bad` is false, or none can be used.
    """
    started = time.monotonic()
    logger.info("decoding %s pictures once, to list all that cannot be used", f"{len(pictures.pictures):,}")
    checked = check_pictures(folder, pictures.pictures)
    logger.info("decoded in %.1f s", time.monotonic() - started)
    names = [name for name in pictures.pictures if name not in checked.bad]
    problems = [f"{name}: {reason}" for name, reason in checked.bad.items()]
    lead = f"{len(problems):,} of {len(pictures.pictures):,} pictures of {folder} cannot be used:"
    if problems and (not skip_bad or not names):
        remedy = "Correct or remove them, or predict the others with --skip-bad."
        raise PicturesError(listed(lead, problems, remedy=remedy))
    notes = [listed(f"{lead} they are left out", problems)] if problems else []
    if pictures.ignored:
        notes.append(f"{len(pictures.ignored):,} other files are ignored: {shorten(pictures.ignored)}")
    return names, [*notes, *checked.sentences()], checked.bad


def _predict(predictor: Predictor, folder: Path, names: Sequence[str], out: Path) -> pd.DataFrame:
    """The predictions of all pictures, block by block, with progress."""
    started = time.monotonic()
    unfinished = _unfinished(out)
    unfinished.mkdir(parents=True, exist_ok=True)
    kind = predictor.devices[0].type
    parts = []
    for start in range(0, len(names), _BLOCK):
        block = names[start : start + _BLOCK]
        tiles = read_pictures(folder, block)
        pixels = hashlib.sha256(tiles.data).hexdigest()
        parts.append(predictor.predict(tiles, kept=KeptLogits(unfinished, (pixels, kind))))
        done = start + len(block)
        seconds = time.monotonic() - started
        left = seconds / done * (len(names) - done)
        logger.info(
            "%s of %s tiles, %.0f tiles/s, about %.1f min left",
            f"{done:,}",
            f"{len(names):,}",
            done / max(seconds, 1e-9),
            left / 60,
        )
    table = pd.concat(parts, ignore_index=True)
    table.insert(0, "tile", list(names))
    return table


def _score(table: pd.DataFrame, labels: TileTable) -> dict[str, Any]:
    """The scores of the labelled tiles, and what the labels do not cover.

    Raises:
        PicturesError: the labels have one class only.
    """
    joined = labels.table.merge(table, on="tile", validate="one_to_one")
    calibrated = joined["calibrated"].to_numpy()
    try:
        scores = score_external_test(
            joined["label"].to_numpy(),
            joined["probability"].to_numpy(),
            calibrated=None if np.isnan(calibrated).any() else calibrated,
            groups=joined["group"].to_numpy() if "group" in joined else None,
            grouping=labels.grouping,
        )
    except MetricError as error:
        raise PicturesError(f"the labels cannot score the predictions: {error}") from error
    missing = []
    if unlabelled := len(table) - len(joined):
        missing.append(f"{unlabelled:,} tiles have no label: they are predicted and not scored")
    if labels.unmatched:
        missing.append(
            f"{len(labels.unmatched):,} labels name no tile of the folder: {shorten(labels.unmatched)}"
        )
    for text in missing:
        logger.warning("%s", text)
    pairs = joined[["tile", "label"]].to_dict("list")
    return {"scores": scores, "not_scored": missing, "labels": pairs}


def _plain(value: Any) -> Any:
    """The value for JSON: numbers that are not finite become null."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _mark_warning(record: logging.LogRecord) -> bool:
    if record.levelno >= logging.WARNING and not str(record.msg).startswith("warning: "):
        record.msg = f"warning: {record.msg}"
    return True


def main(arguments: Sequence[str]) -> int:
    """Run with one JSON object of options; errors are one message on standard error."""
    handler = logging.StreamHandler(sys.stdout)
    handler.addFilter(_mark_warning)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    values = json.loads(arguments[0])
    try:
        predict_folder(Options(**{name: _frozen(value) for name, value in values.items()}))
    except KernelError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
