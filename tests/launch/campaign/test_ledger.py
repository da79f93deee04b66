"""The ledger: read back as written, refused when it is somebody else's."""

import json

import pytest

from launch.campaign.ledger import (
    DONE,
    FAILED,
    INTENDED,
    PUSHED,
    REFUSED,
    UNFINISHED,
    DatasetEntry,
    KernelEntry,
    Output,
    Push,
    SubmissionEntry,
    new_ledger,
    read_ledger,
)
from launch.errors import LaunchError


def push(state, **facts):
    return Push(push_id="p", bundle_id="b", identity="i", limit=1.0, state=state, **facts)


def test_it_is_read_back_as_it_was_written(tmp_path):
    ledger = new_ledger(
        tmp_path / "one", campaign="one", owner="alice", experiments={"x": {"epochs": 3}}, datasets=["a/b"]
    )
    output = Output(push_id="p", bundle_id="b", identity="i", key="k", seconds=2.0, auc=0.9, version=3)
    ledger.kernels["hcd-x"] = KernelEntry(
        kind="train", pushes=[push(PUSHED, version=2), push(INTENDED)], output=output, series=1
    )
    ledger.dataset = DatasetEntry(bundle_id="b", before=4)
    ledger.submissions.append(SubmissionEntry(sha256="s", message="m", public=0.5))
    ledger.save()
    assert read_ledger(tmp_path / "one") == ledger
    assert read_ledger(tmp_path / "none") is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"format": 99}',
        b'{"format": 1}',
        b'{"format": 1, "kernels": {"a": 3}, "dataset": null}',
    ],
)
def test_what_is_no_ledger_is_refused_with_a_remedy(tmp_path, content):
    (tmp_path / "ledger.json").write_bytes(content)
    with pytest.raises(LaunchError, match="to start the campaign anew"):
        read_ledger(tmp_path)


def test_a_field_nobody_knows_is_refused(tmp_path):
    ledger = new_ledger(tmp_path, campaign="one", owner="alice", experiments={}, datasets=[])
    content = json.loads((tmp_path / "ledger.json").read_text())
    (tmp_path / "ledger.json").write_text(json.dumps({**content, "surprise": 1}))
    with pytest.raises(LaunchError, match="surprise"):
        read_ledger(tmp_path)
    assert ledger.id == content["id"]


@pytest.mark.parametrize(
    ("states", "series", "attempts"),
    [
        ([], 0, 0),
        ([REFUSED, REFUSED], 0, 0),  # a refusal costs nothing
        ([UNFINISHED, UNFINISHED], 0, 2),
        ([UNFINISHED, DONE, UNFINISHED], 0, 1),  # what was done starts the count anew
        ([FAILED, FAILED], 1, 1),
        ([FAILED, FAILED], 2, 0),  # a person decided to go on
    ],
)
def test_attempts_are_what_cost_something_since_a_person_or_a_success(states, series, attempts):
    assert (
        KernelEntry(kind="train", pushes=[push(state) for state in states], series=series).attempts
        == attempts
    )


def test_a_kernel_that_was_only_refused_never_had_a_version():
    assert not KernelEntry(kind="train", pushes=[push(REFUSED), push(INTENDED)]).ever_had_a_version
    assert KernelEntry(kind="train", pushes=[push(PUSHED)]).ever_had_a_version
