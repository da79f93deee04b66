"""Whether a kernel may start: sessions, and what is left of the quota; and what is said while it may not."""

from types import SimpleNamespace

import pytest

from launch.campaign.clock import stamp
from launch.campaign.ledger import PUSHED, KernelEntry, Ledger, Push
from launch.campaign.progress import Progress
from launch.campaign.quota import Capacity
from launch.campaign.spec import CampaignSpec
from launch.campaign.standings import plan_standings
from launch.campaign.state import CampaignState, CampaignStoppedError
from launch.campaign.waits import Timeouts
from launch.experiments import load_experiment
from launch.kaggle_api.errors import CapacityError, NoResponseError, QuotaError
from launch.kaggle_api.types import Quota
from launch.plan import plan_kernels

KERNELS = plan_kernels([load_experiment("resnet34", ["expected_hours=2"])])
FOLDS = [kernel for kernel in KERNELS if kernel.kind == "train"]
PREPARE = next(kernel for kernel in KERNELS if kernel.kind == "prepare")
PACE = Timeouts()


def at_work() -> KernelEntry:
    push = Push(push_id="p", bundle_id="b", identity="i", limit=6 * 3600.0, state=PUSHED, pushed_at=stamp())
    return KernelEntry(kind="train", pushes=[push])


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def capacity(tmp_path, said):
    """A service with so many hours used, None where it does not say, and these kernels at work."""

    def of(used: float | None, *running, pace: Timeouts = PACE, allowed: float = 30.0) -> Capacity:
        def quota() -> Quota:
            if used is None:
                raise NoResponseError("no answer")
            return Quota(used, allowed, None)

        ledger = Ledger(campaign="x", id="1", spec=CampaignSpec(owner="alice"), folder=tmp_path)
        ledger.kernels = {kernel.slug: at_work() for kernel in running}
        desk = CampaignState(
            kaggle=SimpleNamespace(quota=quota),
            source=SimpleNamespace(bundle="b", thin=False),
            ledger=ledger,
            folder=tmp_path,
            pace=pace,
            say=said.append,
            standings=plan_standings(KERNELS, ledger),
        )
        return Capacity(desk, Progress(KERNELS, ledger))

    return of


@pytest.mark.parametrize(("used", "starts"), [(26.5, False), (25.9, True)])
def test_what_runs_counts_against_the_quota(capacity, said, used, starts):
    """Kaggle counts a session when it has ended; the hours of one that runs are not there to be spent again."""
    account = capacity(used, FOLDS[0])
    assert account.has_quota(FOLDS[1]) is starts  # 3.5 or 4.1 h are left, of which two will go into what runs
    assert any("needs about 2.0 h, 1.5 h are left" in line for line in said) is not starts
    assert account.has_quota(PREPARE)  # costs none


def test_two_sessions_of_the_gpu_machine_are_taken_and_then_one_that_was_refused_waits(capacity, said):
    assert capacity(0.0, FOLDS[0]).has_session(FOLDS[1])
    assert not capacity(0.0, *FOLDS[:2]).has_session(FOLDS[2])
    assert capacity(0.0, *FOLDS[:2]).has_session(PREPARE)
    account = capacity(0.0)
    for _ in range(2):
        account.sessions_were_taken(FOLDS[0], CapacityError("all are taken."))
    assert not account.has_session(FOLDS[0]) and account.has_session(PREPARE)
    assert said == ["all are taken. Waiting for a free one: other sessions of yours run"]
    account.was_granted(FOLDS[0])
    assert account.has_session(FOLDS[0])


def test_a_refusal_counts_more_than_the_figures_and_patience_ends(capacity, said):
    account = capacity(0.0)
    account.quota_was_spent(FOLDS[0], QuotaError("no quota is left"))
    assert not account.has_quota(FOLDS[0])
    assert [line.split(". Waiting until")[0] for line in said] == ["no quota is left"]
    account.was_granted(FOLDS[1])
    assert account.has_quota(FOLDS[0])
    impatient = capacity(0.0, pace=Timeouts(quota_patience=0.0))
    impatient.quota_was_spent(FOLDS[0], QuotaError("no quota is left"))
    assert list(impatient.desk.failures) == [FOLDS[0].slug]


def test_not_knowing_the_quota_is_no_reason_to_stop(capacity, said):
    account = capacity(None)
    account.announce()
    assert account.has_quota(FOLDS[0]) and account.quota is None
    assert said[0] == "no answer: going on without knowing the quota"
    assert "Kaggle does not say what is left" in said[1]


def test_what_a_campaign_costs_is_said_before_it_begins_and_what_can_never_run_stops_it(capacity, said):
    capacity(25.0).announce()
    assert said[0].startswith("about 10.2 h of GPU quota to spend; 5.0 of 30.0 h are left, full again ")
    assert [line.split(":")[0].split()[0] for line in said[1:]] == ["now", "from"]
    with pytest.raises(
        CampaignStoppedError, match=r"fold-0 is expected to take 2.0 h, .* 1.5 h: it can never run"
    ):
        capacity(0.0, allowed=1.5).announce()


def test_sessions_are_held_for_good_only_when_what_failed_holds_them_all(capacity):
    one, two = capacity(0.0, FOLDS[0]), capacity(0.0, *FOLDS[:2])
    one.desk.fail(FOLDS[0], "Kaggle does not end it")
    one.sessions_were_taken(
        FOLDS[2], CapacityError("all are taken.")
    )  # by other sessions of the account, which end
    assert not one.has_session(FOLDS[2]) and one.is_blocked(FOLDS[2]) == ""
    two.desk.fail(FOLDS[0], "Kaggle does not end it")
    assert two.is_blocked(FOLDS[2]) == ""
    two.desk.fail(FOLDS[1], "Kaggle does not end it")
    assert f"{FOLDS[0].slug}, {FOLDS[1].slug} failed here" in two.is_blocked(FOLDS[2])
    assert two.is_blocked(PREPARE) == ""
