"""What a campaign costs, and how it spreads over the weeks."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.campaign.ledger import KernelEntry, Ledger, Output
from launch.campaign.schedule import LONGEST, expected_hours, next_reset, plan_over_weeks, time_limit
from launch.campaign.spec import CampaignSpec
from launch.experiments import load_experiment
from launch.kaggle_api.types import Quota
from launch.plan import plan_kernels

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)  # a Tuesday


def kernels():
    return plan_kernels([load_experiment("resnet34")])


def test_a_fold_is_expected_to_take_what_its_like_took():
    folds = [kernel for kernel in kernels() if kernel.kind == "train"]
    ledger = Ledger(campaign="x", id="1", spec=CampaignSpec(owner="alice"))
    assert expected_hours(folds[0], ledger) == folds[0].configs[0].expected_hours
    output = Output(push_id="p", bundle_id="b", identity="i", key="k", seconds=5400.0)
    ledger.kernels[folds[1].slug] = KernelEntry(kind="train", output=output)
    assert expected_hours(folds[0], ledger) == 1.5


@pytest.mark.parametrize(
    ("hours", "limit"), [(0.05, 3600), (1.0, 3 * 3600), (2.0, 6 * 3600), (12.0, LONGEST)]
)
def test_every_push_has_a_limit_between_one_hour_and_twelve(hours, limit):
    fold = plan_kernels([load_experiment("resnet34", [f"expected_hours={hours}"])])[2]
    assert fold.kind == "train"
    assert time_limit(fold) == limit
    assert time_limit(fold, ended_before=1) == min(2 * limit, LONGEST)


def test_the_reset_is_what_kaggle_says_else_saturday():
    said = NOW + timedelta(days=2)
    assert next_reset(Quota(1, 30, said), NOW) == said
    assert next_reset(Quota(1, 30, None), NOW) == datetime(2026, 11, 28, tzinfo=UTC)
    saturday = datetime(2026, 11, 28, 0, 0, 1, tzinfo=UTC)
    assert next_reset(Quota(1, 30, None), saturday) == datetime(2026, 12, 5, tzinfo=UTC)


def test_five_folds_of_eight_hours_take_two_weeks():
    hours = {f"fold-{fold}": 8.0 for fold in range(5)} | {"inference": 0.25}
    lines = plan_over_weeks(hours, Quota(4, 30, None), moment=NOW)
    assert lines == [
        "now: fold-0, fold-1, fold-2 (about 24.0 h of GPU quota)",
        "from Sat 28 Nov 00:00 UTC: fold-3, fold-4, inference (about 16.2 h of GPU quota)",
    ]
    spent = plan_over_weeks(hours, Quota(30, 30, None), moment=NOW)
    assert spent[0] == "now: nothing fits what is left of the week's quota"
    assert len(spent) == 3


@given(st.lists(st.floats(0.1, 12), min_size=1, max_size=20), st.floats(0, 30))
def test_every_kernel_is_in_one_week_and_no_week_is_overspent(costs, used):
    hours = {f"k{number}": cost for number, cost in enumerate(costs)}
    lines = plan_over_weeks(hours, Quota(used, 30, None), moment=NOW)
    named = [
        name
        for line in lines
        if "nothing fits" not in line
        for name in line.split(": ")[1].split(" (")[0].split(", ")
    ]
    assert named == list(hours)
    for line in lines[1:]:
        assert sum(hours[name] for name in line.split(" UTC: ")[1].split(" (")[0].split(", ")) <= 30 + 1e-9
