"""What a plan has come to: what is done, whose turn it is, and what makes an output another one."""

from dataclasses import replace

import pytest

from launch.campaign.ledger import PUSHED, Ledger, Output, Push
from launch.campaign.progress import Progress
from launch.campaign.spec import CampaignSpec
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


def test_kernels_are_due_when_all_they_read_is_done(progress):
    assert due(progress) == {"weights", "prepare"}
    finish(progress, "weights")
    assert due(progress) == {"prepare"}
    fold = next(kernel for kernel in progress.kernels if kernel.kind == "train")
    assert progress.lacking(fold) == ["hcd-prepare"]
    finish(progress, "prepare", "train")
    assert due(progress) == {"inference"} and done(progress) == {"weights", "prepare", "train"}


def test_only_what_the_goal_names_is_due_and_nothing_that_is_at_work(progress):
    progress.goal = {"hcd-prepare"}
    assert due(progress) == {"prepare"} and [kernel.slug for kernel in progress.wanted] == ["hcd-prepare"]
    push = Push(push_id="p", bundle_id="b", identity="i", limit=1.0, state=PUSHED)
    progress.entry(progress.wanted[0]).pushes.append(push)
    assert due(progress) == set()


def test_another_input_or_another_config_makes_it_another_output(progress):
    finish(progress, "weights", "prepare", "train", "inference")
    progress.ledger.kernels["hcd-prepare"].output.key = "other tiles"
    assert done(progress) == {"weights", "prepare"}
    finish(progress, "train", "inference")
    assert "inference" in done(progress)
    expected, wiser = (
        replace(kernel, configs=(load_experiment("resnet34", [knob]).config,))
        for kernel, knob in zip(
            [kernel for kernel in progress.kernels if kernel.kind == "train"][:2],
            ["expected_hours=9", "seed=3"],
            strict=True,
        )
    )
    assert progress.is_done(expected) and not progress.is_done(wiser)  # how long it takes decides nothing


def test_what_a_report_is_told_decides_its_output(progress):
    finish(progress, "weights", "prepare", "train", "inference", "report")
    assert "report" in done(progress)
    progress.tell(REPORT_SLUG, {"score": 0.9})
    assert "report" not in done(progress) and {"inference", "train"} <= done(progress)
