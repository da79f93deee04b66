"""Sessions and quota: whether a kernel may start, what it costs, and in which week it runs."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.campaign.decide import QUOTA, SESSION, Elapsed, NoteRefusal, Observation, PushReply, decide
from launch.campaign.ledger import PUSHED, KernelEntry, Ledger, Output, Push
from launch.campaign.quota import (
    Capacity,
    expected_hours,
    expected_seconds,
    next_reset,
    plan_over_weeks,
    time_limit,
)
from launch.campaign.spec import CampaignSpec
from launch.campaign.state import CampaignState, CampaignStoppedError
from launch.campaign.waits import LONGEST_SESSION, Timeouts, stamp
from launch.experiments import load_experiment
from launch.kaggle_api.errors import NoResponseError, QuotaError
from launch.kaggle_api.types import Quota
from launch.plan import plan_kernels

KERNELS = plan_kernels([load_experiment("resnet34", ["expected_hours=2"])])
FOLDS = [kernel for kernel in KERNELS if kernel.kind == "train"]
PREPARE = next(kernel for kernel in KERNELS if kernel.kind == "prepare")
TIMEOUTS = Timeouts()


NO_SESSION = NoteRefusal(note="all are taken.", lacks=SESSION)
NO_QUOTA = NoteRefusal(note="no quota is left", lacks=QUOTA)
NO_QUOTA_REPLY = Observation(reply=PushReply(error=QuotaError("no quota is left")))


def no_quota_entry() -> KernelEntry:
    return KernelEntry(kind="train", pushes=[Push(push_id="p", bundle_id="b", identity="i", limit=1.0)])


def open_push() -> KernelEntry:
    push = Push(push_id="p", bundle_id="b", identity="i", limit=6 * 3600.0, state=PUSHED, pushed_at=stamp())
    return KernelEntry(kind="train", pushes=[push])


@pytest.fixture
def capacity(tmp_path, caplog):
    """A service with so many hours used, None where it does not say, and open pushes of these kernels."""
    caplog.set_level("INFO")

    def of(used: float | None, *running, timeouts: Timeouts = TIMEOUTS, allowed: float = 30.0) -> Capacity:
        def quota() -> Quota:
            if used is None:
                raise NoResponseError("no answer")
            return Quota(used, allowed, None)

        ledger = Ledger(campaign="x", id="1", spec=CampaignSpec(owner="alice"), folder=tmp_path)
        ledger.kernels = {kernel.slug: open_push() for kernel in running}
        return Capacity(SimpleNamespace(quota=quota), CampaignState(KERNELS, ledger), timeouts)

    return of


@pytest.mark.parametrize(("used", "starts"), [(26.5, False), (25.9, True)])
def test_open_pushes_count_against_the_quota(capacity, caplog, used, starts):
    """Kaggle counts a session when it has ended: the hours of a running one are not free."""
    account = capacity(used, FOLDS[0])
    assert account.has_quota(FOLDS[1]) is starts  # 3.5 or 4.1 h are left, of which two will go into what runs
    assert any("needs about 2.0 h, 1.5 h are left" in line for line in caplog.messages) is not starts
    assert account.has_quota(PREPARE)  # costs none


def test_two_gpu_sessions_are_used_and_a_refused_push_waits(capacity, caplog):
    assert capacity(0.0, FOLDS[0]).has_session(FOLDS[1])
    assert not capacity(0.0, *FOLDS[:2]).has_session(FOLDS[2])
    assert capacity(0.0, *FOLDS[:2]).has_session(PREPARE)
    account = capacity(0.0)
    for _ in range(2):
        account.note_refusal(FOLDS[0], NO_SESSION)
    assert not account.has_session(FOLDS[0]) and account.has_session(PREPARE)
    [message] = caplog.messages
    assert message.startswith(
        "all are taken. Waiting until another session of your account ends. A cancelled run"
    )
    assert "until its kernel is deleted" in message
    account.note_accepted(FOLDS[0])
    assert account.has_session(FOLDS[0])


def test_a_refusal_counts_more_than_the_figures_and_the_wait_ends(capacity, caplog):
    account = capacity(0.0)
    account.note_refusal(FOLDS[0], NO_QUOTA)
    assert not account.has_quota(FOLDS[0])
    assert [line.split(". Waiting until")[0] for line in caplog.messages] == ["no quota is left"]
    account.note_accepted(FOLDS[1])
    assert account.has_quota(FOLDS[0])
    assert decide(no_quota_entry(), NO_QUOTA_REPLY, Elapsed(), Timeouts()).failure == ""
    impatient = decide(no_quota_entry(), NO_QUOTA_REPLY, Elapsed(), Timeouts(quota_timeout=0.0))
    assert impatient.failure.startswith("no quota is left, for 0.0 s. ")


def test_an_unknown_quota_stops_nothing(capacity, caplog):
    account = capacity(None)
    account.announce()
    assert account.has_quota(FOLDS[0]) and account.quota is None
    assert caplog.messages[0] == "no answer: continuing with an unknown quota"
    assert "Kaggle does not say what is left" in caplog.messages[1]


def test_the_cost_is_logged_first_and_a_kernel_that_can_never_run_stops_the_campaign(capacity, caplog):
    capacity(25.0).announce()
    assert caplog.messages[0].startswith(
        "about 10.2 h of GPU quota to spend; 5.0 of 30.0 h are left, full again "
    )
    assert [line.split(":")[0].split()[0] for line in caplog.messages[1:]] == ["now", "from"]
    with pytest.raises(
        CampaignStoppedError, match=r"fold-0 is expected to take 2.0 h, .* 1.5 h: it can never run"
    ):
        capacity(0.0, allowed=1.5).announce()


def test_a_kernel_is_blocked_only_when_failed_kernels_hold_all_sessions(capacity):
    one, two = capacity(0.0, FOLDS[0]), capacity(0.0, *FOLDS[:2])
    one.state.fail(FOLDS[0], "Kaggle does not end it")
    one.note_refusal(FOLDS[2], NO_SESSION)  # other sessions of the account are taken, and will end
    assert not one.has_session(FOLDS[2]) and one.is_blocked(FOLDS[2]) == ""
    two.state.fail(FOLDS[0], "Kaggle does not end it")
    assert two.is_blocked(FOLDS[2]) == ""
    two.state.fail(FOLDS[1], "Kaggle does not end it")
    assert f"{FOLDS[0].slug}, {FOLDS[1].slug} failed here" in two.is_blocked(FOLDS[2])
    assert two.is_blocked(PREPARE) == ""


# --- what kernels cost ---

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)  # a Tuesday


def kernels():
    return plan_kernels([load_experiment("resnet34")])


def test_a_fold_is_expected_to_take_what_other_folds_took():
    folds = [kernel for kernel in kernels() if kernel.kind == "train"]
    ledger = Ledger(campaign="x", id="1", spec=CampaignSpec(owner="alice"))
    assert expected_hours(folds[0], ledger) == folds[0].configs[0].expected_hours
    output = Output(push_id="p", bundle_id="b", identity="i", key="k", seconds=5400.0)
    ledger.kernels[folds[1].slug] = KernelEntry(kind="train", output=output)
    assert expected_hours(folds[0], ledger) == 1.5


@pytest.mark.parametrize(
    ("hours", "limit"), [(0.05, 3600), (1.0, 3 * 3600), (2.0, 6 * 3600), (12.0, LONGEST_SESSION)]
)
def test_every_push_has_a_limit_between_one_hour_and_twelve(hours, limit):
    fold = plan_kernels([load_experiment("resnet34", [f"expected_hours={hours}"])])[2]
    assert fold.kind == "train"
    assert time_limit(fold) == limit
    assert time_limit(fold, ended_before=1) == min(2 * limit, LONGEST_SESSION)


def test_the_reset_is_what_kaggle_says_else_saturday():
    announced = NOW + timedelta(days=2)
    assert next_reset(Quota(1, 30, announced), NOW) == announced
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


def test_a_rehearsal_expects_what_it_measured_and_no_hours_of_kaggle(monkeypatch):
    ledger = Ledger(campaign="x", id="1", spec=CampaignSpec(owner="alice"))
    assert expected_seconds(FOLDS[1], ledger) == expected_hours(FOLDS[1], ledger) * 3600 > 600
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "LOCALHOST")
    assert expected_seconds(FOLDS[1], ledger) is None
    output = Output(push_id="p", bundle_id="b", identity="i", key="k", seconds=12.5)
    ledger.kernels = {FOLDS[0].slug: KernelEntry(kind="train", output=output)}
    assert expected_seconds(FOLDS[1], ledger) == 12.5
    assert expected_seconds(PREPARE, ledger) is None
