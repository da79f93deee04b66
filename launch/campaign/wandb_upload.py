"""Send the training histories of a run of `local` to Weights & Biases, where the user has set its key.

The kernels have no network, so this machine sends what they left: after the run, each history once.
"""

import importlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from launch.campaign.local_run import read_kernels
from lib.files import sha256_of, write_atomic
from lib.runtime.run_record import RECORD_NAME
from lib.validation import UNREADABLE

logger = logging.getLogger(__name__)

KEY = "WANDB_API_KEY"
PROJECT = "histopathologic-cancer-detection"


def upload_histories(folder: Path) -> int:
    """Send the histories of all finished folds that were not sent before; nothing without the key.

    A failure is logged and loses nothing: the next call sends what is missing.

    Args:
        folder: of the run.

    Returns:
        The number of histories that were sent.

    Raises:
        LaunchError: the folder holds no run of `local`.
    """
    if not os.environ.get(KEY):
        return 0
    try:
        wandb = importlib.import_module("wandb")
    except ModuleNotFoundError:
        logger.warning(
            "%s is set, but the package wandb is not installed: no history is sent to Weights & Biases "
            "(.venv/bin/uv pip install --python .venv/bin/python wandb)",
            KEY,
        )
        return 0
    count = 0
    for kernel in read_kernels(folder):
        if kernel.kind != "train" or kernel.state != "done":
            continue
        place = folder / kernel.slug
        for history in sorted((place / "working").glob("history-*.jsonl")):
            sent, digest = place / f".sent-{history.stem}", sha256_of(history)
            if sent.is_file() and sent.read_text(encoding="utf-8") == digest:
                continue
            try:
                _send(wandb, kernel.slug, history)
            except (wandb.Error, OSError, *UNREADABLE) as error:
                logger.warning(
                    "Weights & Biases: %s of %s was not sent: %s", history.name, kernel.slug, error
                )
                continue
            write_atomic(sent, digest)
            count += 1
    if count:
        logger.info("Weights & Biases: %d histories sent to the project %s", count, PROJECT)
    return count


def _send(wandb: Any, slug: str, history: Path) -> None:
    """One run of W&B for one member: its options, a row per epoch, and the fold's AUC."""
    record = json.loads((history.parent / RECORD_NAME).read_bytes())
    lines = [json.loads(line) for line in history.read_text(encoding="utf-8").splitlines()]
    run = wandb.init(
        project=PROJECT,
        group=record["experiment"],
        name=f"{slug}-{history.stem.partition('-')[2].partition('-')[2]}",
        config=record["config"],
    )
    try:
        for number, line in enumerate(lines, start=1):
            step = line.get("epoch", number)  # the history of a linear probe has no epochs
            run.log({name: value for name, value in line.items() if name != "epoch"}, step=step)
        run.summary["fold_auc"] = record["scores"]["fold"]["auc"]
    finally:
        run.finish()  # also of an upload that failed: the next history is a run of its own
