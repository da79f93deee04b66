"""Sessions and quota: whether a kernel may start, what it costs, and in which week it runs."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.campaign.decide import QUOTA, SESSION, Elapsed, NoteRefusal, Observation, PushReply, decide
from launch.campaign.ledger import (
    DONE,
    LIMIT_NOTE,
    PUSHED,
    UNFINISHED,
    KernelEntry,
    Ledger,
    Output,
    Push,
)
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
from launch.hours import fold_hours, inference_hours
from launch.kaggle_api.errors import NoResponseError, QuotaError
from launch.kaggle_api.types import Quota
from launch.plan import Kernel, plan_kernels

KERNELS = plan_kernels([load_experiment("resnet34", ["expected_hours=2"])])
FOLDS = [kernel for kernel in KERNELS if kernel.kind == "train"]
PREPARE = next(kernel for kernel in KERNELS if kernel.kind == "prepare")
COST = sum(expected_hours(kernel) for kernel in KERNELS if kernel.needs_gpu)
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

    def of(
        used: float | None,
        *running,
        timeouts: Timeouts = TIMEOUTS,
        allowed: float = 30.0,
        reserve: float = 0.0,
        kernels=KERNELS,
    ) -> Capacity:
        def quota() -> Quota:
            if used is None:
                raise NoResponseError("no answer")
            return Quota(used, allowed, None)

        ledger = Ledger(campaign="x", id="1", spec=CampaignSpec(owner="alice"), folder=tmp_path)
        ledger.kernels = {kernel.slug: open_push() for kernel in running}
        state = CampaignState(kernels, ledger)
        return Capacity(SimpleNamespace(quota=quota), state, timeouts, reserve=reserve)

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
    assert [line.split(". What fits")[0] for line in caplog.messages] == ["no quota is left"]
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
        f"about {COST:.1f} h of GPU quota to spend (estimated, not measured); 5.0 of 30.0 h are left, full "
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


def folds_of(*overrides: str, name: str = "resnet34") -> list[Kernel]:
    return [kernel for kernel in plan_kernels([load_experiment(name, overrides)]) if kernel.kind == "train"]


def finished(seconds: float) -> KernelEntry:
    output = Output(push_id="p", bundle_id="b", identity="i", key="k", seconds=seconds)
    return KernelEntry(kind="train", output=output)


def ledger_of(**entries: KernelEntry) -> Ledger:
    """A ledger with these entries: `fold_0=...` for the first fold of resnet34."""
    ledger = Ledger(campaign="x", id="1", spec=CampaignSpec(owner="alice"))
    ledger.kernels = {
        f"hcd-resnet34-{name.replace('_', '-')}": entry for name, entry in entries.items() if entry
    }
    return ledger


def test_a_fold_is_expected_to_take_what_other_folds_took():
    fold = folds_of()[0]
    assert expected_hours(fold, ledger_of()) == fold_hours(fold.configs[0])
    assert expected_hours(folds_of("expected_hours=3")[0], ledger_of()) == 3.0
    assert expected_hours(fold, ledger_of(fold_1=finished(5400.0), fold_2=finished(3600.0))) == 1.5


def test_inference_is_as_much_slower_than_its_estimate_as_the_folds_are():
    *_, fold, inference, _ = kernels()
    estimate, hours = expected_hours(inference), fold_hours(fold.configs[0])
    assert estimate == inference_hours(inference.configs, [5])
    assert expected_hours(inference, ledger_of(fold_1=finished(2 * 3600 * hours))) == pytest.approx(
        2 * estimate
    )


@pytest.mark.parametrize(
    ("hours", "seconds"),
    [
        (0.1, 3 * 360 + 600),
        (1.0, 3 * 3600 + 600),
        (2.0, 5 * 3600 + 600),  # at most three hours more than the estimate
        (12.0, LONGEST_SESSION),
    ],
)
def test_a_first_fold_gets_more_than_its_estimate_and_a_hang_ends_in_time(hours, seconds):
    [fold, *_] = folds_of(f"expected_hours={hours}")
    assert time_limit(fold) == pytest.approx(seconds)
    assert time_limit(fold, least=11 * 3600) == max(seconds, 11 * 3600)
    assert time_limit(PREPARE) > 3600 and time_limit(kernels()[0]) == 3600  # CPUs cost no quota


def test_the_folds_after_the_first_get_limits_from_its_measured_time():
    fold = folds_of()[1]
    assert time_limit(fold, ledger_of(fold_0=finished(420.0))) == 2 * 420 + 600
    assert time_limit(fold, ledger_of(fold_0=finished(7 * 3600.0))) == LONGEST_SESSION


def limited(limit: float, state: str = UNFINISHED) -> Push:
    note = "" if state == DONE else LIMIT_NOTE
    return Push(push_id="p", bundle_id="b", identity="i", limit=limit, state=state, note=note)


@settings(max_examples=40, deadline=None)
@given(estimate=st.floats(0.02, 12), truth=st.floats(0.1, 11.9), reruns=st.integers(1, 3))
def test_a_wrong_estimate_never_loops(estimate, truth, reruns):
    """Each push after one that reached its limit gets twice as long, over reruns of the command, too."""
    [fold, *_] = folds_of(f"expected_hours={estimate}")
    entry = KernelEntry(kind="train")
    ledger = ledger_of(fold_0=entry)
    limits = [time_limit(fold, ledger)]
    while limits[-1] < truth * 3600:
        entry.pushes.append(limited(limits[-1]))
        entry.series = len(entry.pushes) if len(entry.pushes) % reruns == 0 else entry.series
        limits.append(time_limit(fold, ledger))
        assert limits[-1] == min(2 * limits[-2], LONGEST_SESSION)
    assert len(limits) <= 8


def test_a_limit_that_was_reached_before_a_success_is_forgotten():
    entry = finished(420.0)
    entry.pushes = [limited(3600.0), limited(7200.0, DONE)]
    assert time_limit(folds_of()[0], ledger_of(fold_0=entry)) == 2 * 420 + 600


def test_the_reset_is_what_kaggle_says_else_saturday():
    announced = NOW + timedelta(days=2)
    assert next_reset(Quota(1, 30, announced), NOW) == announced
    assert next_reset(Quota(1, 30, None), NOW) == datetime(2026, 11, 28, tzinfo=UTC)
    saturday = datetime(2026, 11, 28, 0, 0, 1, tzinfo=UTC)
    assert next_reset(Quota(1, 30, None), saturday) == datetime(2026, 12, 5, tzinfo=UTC)


def test_five_folds_of_eight_hours_take_two_weeks():
    hours = {f"fold-{fold}": 8.0 for fold in range(5)} | {"inference": 0.25}
    after = {"inference": [f"fold-{fold}" for fold in range(5)]}
    lines = plan_over_weeks(hours, Quota(4, 30, None), moment=NOW, after=after)
    assert lines == [
        "now: fold-0, fold-1, fold-2 (about 24.0 h of GPU quota)",
        "from Sat 28 Nov 00:00 UTC: fold-3, fold-4, inference (about 16.2 h of GPU quota)",
    ]
    spent = plan_over_weeks(hours, Quota(30, 30, None), moment=NOW, after=after)
    assert spent[0] == "now: nothing fits what is left of the week's quota"
    assert len(spent) == 3


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.1, 40), min_size=1, max_size=20), st.floats(0, 30), st.data())
def test_every_kernel_is_in_one_week_after_what_it_reads_and_no_week_is_overspent(costs, used, data):
    hours = {f"k{number}": cost for number, cost in enumerate(costs)}
    after = {
        name: data.draw(st.sets(st.sampled_from(list(hours)[:number]))) if number else set()
        for number, name in enumerate(hours)
    }
    lines = plan_over_weeks(hours, Quota(used, 30, None), moment=NOW, after=after)
    weeks = [
        line.split(" UTC: ")[-1].removeprefix("now: ").split(" (")[0].split(", ")
        for line in lines
        if "nothing fits" not in line and not line.startswith("never")
    ]
    named = [name for week in weeks for name in week]
    assert sorted(named) == sorted(name for name, cost in hours.items() if cost <= 30)
    place = {name: number for number, week in enumerate(weeks) for name in week}
    assert all(place.get(before, 0) <= place[name] for name in named for before in after[name])
    for number, week in enumerate(weeks):
        is_now = number == 0 and "nothing fits" not in lines[0]
        assert sum(hours[name] for name in week) <= (30 - used if is_now else 30) + 1e-6
    assert (lines[-1].startswith("never")) is any(cost > 30 for cost in costs)


# --- a quota that is short, shared, or shrinks ---


def shrink(account: Capacity, *, used: float, allowed: float = 30.0) -> None:
    """Kaggle says something else from now on."""
    account._kaggle.quota = lambda: Quota(used, allowed, None)
    account.read_quota()


def test_with_less_quota_than_a_guess_what_fits_starts(capacity, caplog):
    both = plan_kernels(
        [load_experiment("resnet34", ["expected_hours=2"]), load_experiment("resnet18", ["expected_hours=1"])]
    )
    account = capacity(28.5, kernels=both)
    account.announce()
    folds = [kernel for kernel in both if kernel.kind == "train"]
    assert [account.has_quota(fold) for fold in (folds[0], folds[5])] == [False, True]
    message = next(line for line in caplog.messages if line.startswith("hcd-resnet34-fold-0 needs"))
    assert "1.5 h are left. What fits starts now; the rest waits until Sat" in message.replace("\n", " ")
    now, then, *_ = message.splitlines()[1:]
    assert now == "  now: hcd-resnet18-fold-0 (about 1.0 h of GPU quota)"
    assert then.startswith("  from Sat") and "hcd-resnet34-fold-0" in then


@pytest.mark.parametrize(("reserve", "starts"), [(0.0, True), (3.0, True), (3.5, False)])
def test_reserved_hours_are_left_to_other_work(capacity, caplog, reserve, starts):
    account = capacity(25.0, reserve=reserve)  # 5 h are left, a fold takes 2
    account.announce()
    assert (f"{reserve:g} h of them reserved for other work" in caplog.messages[0]) is bool(reserve)
    assert account.has_quota(FOLDS[0]) is starts
    if not starts:
        assert "1.5 h are left beside the 3.5 h reserved for other work" in caplog.messages[-1]


def test_a_reserve_that_leaves_nothing_is_told_with_its_option(capacity):
    with pytest.raises(CampaignStoppedError, match=r"29 h are reserved \(--reserve-hours\): it can never"):
        capacity(0.0, reserve=29.0).announce()


def test_a_reserve_beside_an_unknown_quota_is_told(capacity, caplog):
    capacity(None, reserve=4.0).announce()
    assert caplog.messages[-1].endswith("does not say what is left, so 4 h cannot be reserved")


def test_a_quota_that_shrinks_ends_in_a_wait_or_in_a_message(capacity, caplog):
    account = capacity(0.0)
    account.announce()
    assert account.has_quota(FOLDS[0])
    shrink(account, used=29.0)
    assert not account.has_quota(FOLDS[0]) and not account.state.failures  # waits for the reset
    assert "needs about 2.0 h, 1.0 h are left" in caplog.messages[-1]
    shrink(account, used=0.0, allowed=1.5)  # no week has enough any more: waiting would never end
    assert not account.has_quota(FOLDS[0])
    assert "the weekly quota is 1.5 h: it can never run" in account.state.failures[FOLDS[0].slug]
    assert "--set expected_hours=" in account.state.failures[FOLDS[0].slug]


def test_a_wait_for_quota_that_never_comes_ends(capacity):
    account = capacity(29.0, timeouts=Timeouts(quota_timeout=-1.0))
    assert not account.has_quota(FOLDS[0])
    assert "1.0 h are left, for " in account.state.failures[FOLDS[0].slug]


def finish(account: Capacity, kernel: Kernel, seconds: float) -> None:
    account.state.ledger.kernels[kernel.slug] = finished(seconds)
    account.note_finished(kernel)


def test_the_first_fold_that_is_done_plans_the_rest(capacity, caplog):
    account = capacity(0.0)
    finish(account, FOLDS[0], 600.0)
    [message] = caplog.messages
    assert message.startswith(f"{FOLDS[0].slug} took 10 min (expected: 2.0 h). The rest is planned with")
    assert message.endswith("and at most 30 min for each of its folds")
    finish(account, FOLDS[1], 620.0)
    finish(account, PREPARE, 620.0)
    assert len(caplog.messages) == 1


def test_more_hours_than_the_campaign_was_fitted_to_are_told(capacity, caplog):
    account = capacity(0.0)
    account.state.ledger.spec = CampaignSpec(owner="alice", hours=3.0)
    finish(account, FOLDS[0], 7200.0)
    assert f"expected to take {COST:.1f} h, more than its --hours 3" in caplog.messages[-1]


def test_a_plan_that_the_limit_shortened_is_told_with_the_way_to_a_whole_one(capacity, caplog, tmp_path):
    account, outputs = capacity(0.0), tmp_path / "outputs" / FOLDS[1].slug
    outputs.mkdir(parents=True)
    (outputs / "history-1-member-0.jsonl").write_text('{"epoch": 1}\n{"epoch": 2, "shortened_to": 1200}\n')
    (outputs / "history-1-member-1.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n')
    finish(account, FOLDS[1], 600.0)
    assert "shortened to 1,200 steps" in caplog.messages[-1] and "`push fold-1`" in caplog.messages[-1]
    entry = account.state.ledger.kernels[FOLDS[1].slug]
    entry.output, entry.pushes = None, [limited(4 * 3600.0, DONE)]  # as `push fold-1` leaves it
    assert time_limit(FOLDS[1], account.state.ledger) == 8 * 3600.0


def test_a_rehearsal_expects_what_it_measured_and_no_hours_of_kaggle(monkeypatch):
    ledger = Ledger(campaign="x", id="1", spec=CampaignSpec(owner="alice"))
    assert expected_seconds(FOLDS[1], ledger) == expected_hours(FOLDS[1], ledger) * 3600 > 600
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "LOCALHOST")
    assert expected_seconds(FOLDS[1], ledger) is None
    output = Output(push_id="p", bundle_id="b", identity="i", key="k", seconds=12.5)
    ledger.kernels = {FOLDS[0].slug: KernelEntry(kind="train", output=output)}
    assert expected_seconds(FOLDS[1], ledger) == 12.5
    assert expected_seconds(PREPARE, ledger) is None
