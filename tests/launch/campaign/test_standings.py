"""How kernels stand: at the start of a campaign, and as a ledger alone tells."""

import time

from launch.campaign.clock import stamp
from launch.campaign.ledger import DONE, PUSHED, UNFINISHED, KernelEntry, Ledger, Output, Push
from launch.campaign.spec import CampaignSpec
from launch.campaign.standings import KernelStatus, ledger_standings, plan_standings
from launch.experiments import load_experiment
from launch.plan import plan_kernels


def push(state, **facts):
    return Push(push_id="p", bundle_id="b", identity="i", limit=1.0, state=state, pushed_at=stamp(), **facts)


def test_a_state_that_stays_goes_on_and_what_is_known_is_kept():
    standing = KernelStatus("hcd-x")
    assert standing.turn("pushed", version=3, url="https://x", expected=60.0)
    since = standing.since
    time.sleep(0.02)
    assert not standing.turn("pushed") and standing.since == since
    assert standing.turn("done", auc=0.9) and standing.since > since
    assert (standing.version, standing.url, standing.expected, standing.auc) == (3, "https://x", 60.0, 0.9)


def test_where_a_campaign_begins_what_ended_without_output_waits_again_and_a_ledger_alone_tells_how_it_ended():
    kernels = plan_kernels([load_experiment("resnet34")])
    weights, prepare, *folds = (kernel.slug for kernel in kernels)
    output = Output(push_id="p", bundle_id="b", identity="i", key="k", version=2, auc=0.9)
    ledger = Ledger(campaign="x", id="1", spec=CampaignSpec(owner="alice"))
    ledger.kernels = {
        weights: KernelEntry(kind="weights", pushes=[push(DONE)], output=output),
        prepare: KernelEntry(kind="prepare", pushes=[push(PUSHED, version=4, url="https://x")]),
        folds[0]: KernelEntry(kind="train", pushes=[push(UNFINISHED)]),
    }
    begun = plan_standings(kernels, ledger)
    assert list(begun) == [kernel.slug for kernel in kernels]
    assert [begun[slug].state for slug in (weights, prepare, *folds[:2])] == [
        "done",
        "pushed",
        "waiting",
        "waiting",
    ]
    assert (begun[prepare].version, begun[prepare].url) == (4, "https://x")
    assert (begun[weights].version, begun[weights].auc) == (2, 0.9)
    told = {standing.slug: standing.state for standing in ledger_standings(ledger)}
    assert [told[slug] for slug in (weights, prepare, folds[0])] == ["done", "pushed", "unfinished"]
