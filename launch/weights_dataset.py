"""Encoder weights that were fetched here, as a private dataset of the user's: for weights behind a licence gate.

The weights kernel fetches what is open. What a person had to accept a licence for is fetched on their machine and uploaded;
kernels read it as they read the weights kernel's output, because it is one.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from launch.campaign.ledger import campaign_lock, new_ledger, read_ledger
from launch.campaign.library_dataset import Publisher
from launch.campaign.spec import CampaignSpec
from launch.errors import LaunchError
from launch.kaggle_api.client import Kaggle
from launch.local import WEIGHTS_FOLDER, link_or_copy
from launch.packaging.metadata import DATASET_METADATA, check_dataset_metadata, render
from launch.plan import ENCODERS_SLUG, ROOT
from lib.files import write_atomic
from lib.runtime.run_record import RunRecordError, read_run_record

_POLL, _SETTLE = 5.0, 120.0  # seconds


def upload_weights(
    kaggle: Kaggle,
    *,
    say: Callable[[str], None],
    weights: Path = WEIGHTS_FOLDER,
    work: Path = ROOT / "runs" / "weights",
    poll: float = _POLL,
    settle: float = _SETTLE,
) -> str:
    """Make the fetched weights a private dataset, or a new version of it, and wait until kernels can mount it.

    Args:
        kaggle: the account.
        say: takes a line.
        weights: the output of a weights kernel.
        work: where the upload is staged and noted; an interrupted one is taken up.
        poll: seconds between looks.
        settle: seconds for which Kaggle may show what was before.

    Returns:
        owner/slug of the dataset.

    Raises:
        LaunchError: there is nothing to upload, or the dataset was not published.
    """
    try:
        record = read_run_record(weights, kind="weights")
    except RunRecordError as error:
        raise LaunchError(f"there are no weights to upload: {error}") from error
    bundle = hashlib.sha256(
        json.dumps({n: e.sha256 for n, e in sorted(record.files.items())}).encode()
    ).hexdigest()
    with campaign_lock(work):
        staged = work / "dataset"
        shutil.rmtree(staged, ignore_errors=True)
        for name in (*record.files, "run.json"):
            (staged / name).parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(str(weights / name), str(staged / name))
        metadata = {
            "id": f"{kaggle.user}/{ENCODERS_SLUG}",
            "title": "HCD encoders",
            "licenses": [{"name": "other"}],
        }
        if problems := check_dataset_metadata(metadata):
            raise LaunchError("; ".join(problems))
        write_atomic(staged / DATASET_METADATA, render(metadata))
        ledger = read_ledger(work) or new_ledger(
            work, campaign="weights", spec=CampaignSpec(owner=kaggle.user, datasets=(ENCODERS_SLUG,))
        )
        publisher = Publisher(kaggle, ledger, staged, bundle, settle=settle, say=say, slug=ENCODERS_SLUG)
        publisher.finish(poll)
    return f"{kaggle.user}/{ENCODERS_SLUG}"
