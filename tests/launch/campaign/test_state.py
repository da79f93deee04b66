"""The state of a campaign: kernels that are done and due, and the status of kernels."""

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from launch.campaign.ledger import DONE, PUSHED, UNFINISHED, KernelEntry, Ledger, Output, Push
from launch.campaign.spec import CampaignSpec
from launch.campaign.state import KernelStatus, Progress, ledger_statuses, plan_statuses
from launch.campaign.waits import stamp, steady
from launch.experiments import load_experiment
from launch.plan import REPORT_SLUG, plan_kernels


@pytest.fixture
def progress() -> Progress:
    return Progress(
        plan_kernels([load_experiment("resnet34")]),
        Ledger(campaign="x", id="1", spec=CampaignSpec(owner="alice")),
    )


def finish(progress: Progress, *kinds: str) -> None:
    """All kernels of these kinds came to an output of their present config and inputs."""
    for kernel in progress.kernels:
        if kernel.kind in kinds:
            output = Output(
                push_id=f"p.{kernel.slug}", bundle_id="b", identity=progress.identity(kernel), key=kernel.slug
            )
            progress.entry(kernel).output = output


def due(progress: Progress) -> set[str]:
    return {kernel.kind for kernel in progress.kernels if progress.is_due(kernel)}


def done(progress: Progress) -> set[str]:
    return {kernel.kind for kernel in progress.kernels if progress.is_done(kernel)}


def test_kernels_are_due_when_their_inputs_are_done(progress):
    assert due(progress) == {"weights", "prepare"}
    finish(progress, "weights")
    assert due(progress) == {"prepare"}
    fold = next(kernel for kernel in progress.kernels if kernel.kind == "train")
    assert progress.missing_inputs(fold) == ["hcd-prepare"]
    finish(progress, "prepare", "train")
    assert due(progress) == {"inference"} and done(progress) == {"weights", "prepare", "train"}


def test_only_kernels_of_the_goal_without_an_open_push_are_due(progress):
    progress.goal = {"hcd-prepare"}
    assert due(progress) == {"prepare"} and [kernel.slug for kernel in progress.wanted] == ["hcd-prepare"]
    push = Push(push_id="p", bundle_id="b", identity="i", limit=1.0, state=PUSHED)
    progress.entry(progress.wanted[0]).pushes.append(push)
    assert due(progress) == set()


def test_another_input_or_config_makes_another_output(progress):
    finish(progress, "weights", "prepare", "train", "inference")
    progress.ledger.kernels["hcd-prepare"].output.key = "other tiles"
    assert done(progress) == {"weights", "prepare"}
    finish(progress, "train", "inference")
    assert "inference" in done(progress)
    expected, wiser = (
        replace(kernel, configs=(load_experiment("resnet34", [option]).config,))
        for kernel, option in zip(
            [kernel for kernel in progress.kernels if kernel.kind == "train"][:2],
            ["expected_hours=9", "seed=3"],
            strict=True,
        )
    )
    assert progress.is_done(expected) and not progress.is_done(wiser)  # how long it takes decides nothing


def test_the_facts_of_a_report_decide_its_output(progress):
    finish(progress, "weights", "prepare", "train", "inference", "report")
    assert "report" in done(progress)
    progress.set_report_facts(REPORT_SLUG, {"score": 0.9})
    assert "report" not in done(progress) and {"inference", "train"} <= done(progress)


def push(state, **values):
    return Push(push_id="p", bundle_id="b", identity="i", limit=1.0, state=state, pushed_at=stamp(), **values)


def test_a_state_that_stays_keeps_its_time_and_known_values_are_kept():
    status = KernelStatus("hcd-x")
    assert status.update("pushed", version=3, url="https://x", expected=60.0)
    since = status.since
    time.sleep(0.02)
    assert not status.update("pushed") and status.since == since
    assert status.update("done", auc=0.9) and status.since > since
    assert (status.version, status.url, status.expected, status.auc) == (3, "https://x", 60.0, 0.9)


def test_a_push_that_did_not_finish_is_waiting_in_a_plan_and_unfinished_in_a_ledger():
    kernels = plan_kernels([load_experiment("resnet34")])
    weights, prepare, *folds = (kernel.slug for kernel in kernels)
    output = Output(push_id="p", bundle_id="b", identity="i", key="k", version=2, auc=0.9)
    ledger = Ledger(campaign="x", id="1", spec=CampaignSpec(owner="alice"))
    ledger.kernels = {
        weights: KernelEntry(kind="weights", pushes=[push(DONE)], output=output),
        prepare: KernelEntry(kind="prepare", pushes=[push(PUSHED, version=4, url="https://x")]),
        folds[0]: KernelEntry(kind="train", pushes=[push(UNFINISHED)]),
    }
    statuses = plan_statuses(kernels, ledger)
    assert list(statuses) == [kernel.slug for kernel in kernels]
    assert [statuses[slug].state for slug in (weights, prepare, *folds[:2])] == [
        "done",
        "pushed",
        "waiting",
        "waiting",
    ]
    assert (statuses[prepare].version, statuses[prepare].url) == (4, "https://x")
    assert (statuses[weights].version, statuses[weights].auc) == (2, 0.9)
    states = {status.slug: status.state for status in ledger_statuses(ledger)}
    assert [states[slug] for slug in (weights, prepare, folds[0])] == ["done", "pushed", "unfinished"]


def test_a_campaign_that_continues_shows_since_when_a_kernel_runs():
    kernels = plan_kernels([load_experiment("resnet34")])
    sent = push(PUSHED)
    sent.pushed_at = stamp(datetime.now(UTC) - timedelta(hours=2))
    ledger = Ledger(campaign="x", id="1", spec=CampaignSpec(owner="alice"))
    ledger.kernels = {kernels[1].slug: KernelEntry(kind="prepare", pushes=[sent])}
    status = plan_statuses(kernels, ledger)[kernels[1].slug]
    assert steady() - status.since == pytest.approx(7200, abs=60)
