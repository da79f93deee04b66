"""The ledger: read back as written, refused when this code cannot read all of it."""

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
from launch.campaign.spec import CampaignSpec
from launch.errors import LaunchError
from launch.experiments import Experiment
from lib.config import Config
from lib.search_space import search_from_dict

TEACHER = Experiment("teacher", Config(epochs=2))
SPEC = CampaignSpec(
    experiments=(
        Experiment("x", Config(epochs=3, pseudo_labels="teacher"), teacher=TEACHER),
        Experiment("y", Config()),
    ),
    owner="alice",
    folds=(0, 2),
    datasets=("a/b",),
    average="rank",
    search=search_from_dict({"method": "grid", "space": {"learning_rate": [1e-3, 1e-4]}}, name="rate"),
    thin=True,
    strict_bundle=True,
)


def push(state, **facts):
    return Push(push_id="p", bundle_id="b", identity="i", limit=1.0, state=state, **facts)


def test_it_is_read_back_as_it_was_written(tmp_path):
    ledger = new_ledger(tmp_path / "one", campaign="one", spec=SPEC)
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
        b'{"format": 1}',
        b'{"format": 99}',
        b'{"format": 2}',
        b'{"format": 2, "kernels": {"a": 3}, "dataset": null}',
    ],
)
def test_a_file_that_is_no_ledger_is_refused_with_a_remedy(tmp_path, content):
    (tmp_path / "ledger.json").write_bytes(content)
    with pytest.raises(LaunchError, match="to start the campaign again"):
        read_ledger(tmp_path)


def test_an_unknown_field_is_refused(tmp_path):
    ledger = new_ledger(tmp_path, campaign="one", spec=SPEC)
    content = json.loads((tmp_path / "ledger.json").read_text())
    (tmp_path / "ledger.json").write_text(json.dumps({**content, "surprise": 1}))
    with pytest.raises(LaunchError, match="surprise"):
        read_ledger(tmp_path)
    assert ledger.id == content["id"]


def _option(content):
    content["spec"]["experiments"][0]["config"]["surprise"] = 1


def _teacher_option(content):
    content["spec"]["experiments"][0]["teacher"]["config"]["surprise"] = 1


def _key(content):
    content["spec"]["surprise"] = 1


def _average(content):
    content["spec"]["average"] = "surprise"


def _thin(content):
    content["spec"]["thin"] = "surprise"


@pytest.mark.parametrize("change", [_option, _teacher_option, _key, _average, _thin])
def test_an_unknown_part_of_a_specification_is_refused_and_not_read_with_a_default(tmp_path, change):
    new_ledger(tmp_path, campaign="one", spec=SPEC)
    content = json.loads((tmp_path / "ledger.json").read_text())
    change(content)
    (tmp_path / "ledger.json").write_text(json.dumps(content))
    with pytest.raises(LaunchError, match=r"surprise.*Move .* away to start the campaign again"):
        read_ledger(tmp_path)


def test_a_specification_that_lacks_a_part_is_refused(tmp_path):
    new_ledger(tmp_path, campaign="one", spec=SPEC)
    content = json.loads((tmp_path / "ledger.json").read_text())
    del content["spec"]["average"]
    (tmp_path / "ledger.json").write_text(json.dumps(content))
    with pytest.raises(LaunchError, match="'average' is missing"):
        read_ledger(tmp_path)


@pytest.mark.parametrize(
    ("states", "series", "attempts"),
    [
        ([], 0, 0),
        ([REFUSED, REFUSED], 0, 0),  # a refusal costs nothing
        ([UNFINISHED, UNFINISHED], 0, 2),
        ([UNFINISHED, DONE, UNFINISHED], 0, 1),  # the count begins again after a success
        ([FAILED, FAILED], 1, 1),
        ([FAILED, FAILED], 2, 0),  # a person decided to go on
    ],
)
def test_attempts_are_the_pushes_that_were_not_refused_since_a_success_or_a_rerun(states, series, attempts):
    assert (
        KernelEntry(kind="train", pushes=[push(state) for state in states], series=series).attempts
        == attempts
    )


def test_a_kernel_that_was_only_refused_never_had_a_version():
    assert not KernelEntry(kind="train", pushes=[push(REFUSED), push(INTENDED)]).ever_had_a_version
    assert KernelEntry(kind="train", pushes=[push(PUSHED)]).ever_had_a_version
