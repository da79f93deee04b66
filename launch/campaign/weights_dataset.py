"""Upload encoder weights that were downloaded here as a private Kaggle dataset.

The weights kernel downloads weights that are public. Weights that need a licence agreement are downloaded
on the user's machine instead, and uploaded. The dataset has the files of a weights kernel's output, so
kernels read it in the same way.
"""

import hashlib
import json
import logging
import shutil
from pathlib import Path

from launch import ROOT
from launch.campaign.ledger import campaign_lock, new_ledger, read_ledger
from launch.campaign.library_dataset import Publisher
from launch.campaign.spec import CampaignSpec
from launch.campaign.waits import Timeouts
from launch.errors import LaunchError
from launch.kaggle_api.client import Kaggle
from launch.packaging.metadata import DATASET_METADATA, check_dataset_metadata, render
from launch.plan import ENCODERS_SLUG
from lib.files import link_or_copy, write_atomic
from lib.runtime.run_record import RECORD_NAME, RunRecordError, read_run_record

logger = logging.getLogger(__name__)

_POLL_SECONDS, _SETTLE_SECONDS = 5.0, 120.0


def upload_weights(
    kaggle: Kaggle,
    weights: Path,
    *,
    work: Path = ROOT / "runs" / "weights",
    poll: float = _POLL_SECONDS,
    settle: float = _SETTLE_SECONDS,
) -> str:
    """Upload the weights as a private dataset or a new version of it, and wait until kernels can mount it.

    Args:
        kaggle: the account.
        weights: folder with the output of a weights kernel.
        work: folder for the staged files and the ledger, from which an interrupted upload is resumed.
        poll: seconds between two checks of the dataset's state.
        settle: seconds for which Kaggle may still show the state before the upload.

    Returns:
        owner/slug of the dataset.

    Raises:
        LaunchError: there are no weights to upload, or the dataset was not published.
    """
    try:
        record = read_run_record(weights, kind="weights")
    except RunRecordError as error:
        raise LaunchError(f"there are no weights to upload: {error}") from error
    hashes = {name: entry.sha256 for name, entry in sorted(record.files.items())}
    content_id = hashlib.sha256(json.dumps(hashes).encode()).hexdigest()
    metadata = {
        "id": f"{kaggle.user}/{ENCODERS_SLUG}",
        "title": "HCD encoders",
        "licenses": [{"name": "other"}],
    }
    if problems := check_dataset_metadata(metadata):
        raise LaunchError("; ".join(problems))
    with campaign_lock(work):
        staged = work / "dataset"
        shutil.rmtree(staged, ignore_errors=True)
        for name in (*record.files, RECORD_NAME):
            (staged / name).parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(str(weights / name), str(staged / name))
        write_atomic(staged / DATASET_METADATA, render(metadata))
        ledger = read_ledger(work) or new_ledger(
            work, campaign="weights", spec=CampaignSpec(owner=kaggle.user, datasets=(ENCODERS_SLUG,))
        )
        timeouts = Timeouts(poll=poll, settle=settle)
        Publisher(kaggle, ledger, staged, content_id, timeouts, slug=ENCODERS_SLUG).finish()
    return f"{kaggle.user}/{ENCODERS_SLUG}"
