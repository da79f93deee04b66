"""`watch` repeats the status: through an outage, until nothing runs, and not with refused credentials."""

from types import SimpleNamespace

import pytest

from launch.campaign.ledger import PUSHED, KernelEntry, Ledger, Output, Push, new_ledger
from launch.campaign.spec import CampaignSpec
from launch.campaign.status import CampaignStatus, watch
from launch.campaign.waits import Timeouts, stamp
from launch.kaggle_api.errors import CredentialsError, NoResponseError
from launch.kaggle_api.types import COMPLETE, RUNNING, Quota, RunStatus


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    """The ledger of a campaign with one open push."""
    ledger = new_ledger(tmp_path / "one", campaign="one", spec=CampaignSpec(owner="alice"))
    push = Push(push_id="p", bundle_id="b", identity="i", limit=1.0, state=PUSHED, pushed_at=stamp())
    ledger.kernels = {"hcd-x": KernelEntry(kind="train", pushes=[push])}
    ledger.save()
    return ledger


@pytest.fixture
def watched(ledger, monkeypatch):
    """Watch that campaign; the responses of Kaggle are given in their order."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)

    def run(*responses) -> None:
        left = list(responses)

        def status(slug: str) -> RunStatus:
            response = left.pop(0)
            if isinstance(response, Exception):
                raise response
            return RunStatus(response)

        kaggle = SimpleNamespace(status=status, quota=lambda: Quota(0.0, 30.0, None))
        watch(ledger.folder, connect=lambda: kaggle, every=60.0)
        assert left == []

    return run


def test_it_continues_through_an_outage_and_ends_with_the_last_run(watched, capsys):
    watched(RUNNING, NoResponseError("no response"), NoResponseError("no response"), RUNNING, COMPLETE)
    printed = capsys.readouterr().out
    assert printed.count("its state on Kaggle is unknown: no response") == 2
    assert printed.count("next status in 60 s") == 4 and printed.count("hcd-x: running") == 2
    assert printed.endswith("no kernel runs on Kaggle; `run` fetches the outputs and continues\n")


def test_an_outage_that_lasts_ends_it(watched, monkeypatch):
    now = iter(range(0, 10**6, 1000))
    monkeypatch.setattr("launch.campaign.status.steady", lambda: float(next(now)))
    with pytest.raises(NoResponseError):
        watched(*[NoResponseError("no response")] * int(Timeouts().outage_timeout / 1000 + 2))


def test_refused_credentials_end_it_at_once(watched):
    with pytest.raises(CredentialsError):
        watched(CredentialsError("refused"))


def test_what_comes_next_follows_from_the_state(ledger, capsys):
    """A kernel that runs can be followed; a scored campaign needs neither `report` nor `run` again."""
    from launch.cli.on_kaggle import _next_of_campaign

    status = CampaignStatus(ledger, on_kaggle={"hcd-x": "RUNNING"})
    _next_of_campaign(status, ledger.folder)
    assert "next: build_kernel.py logs hcd-x --follow" in capsys.readouterr().out
    status.on_kaggle.clear()
    _next_of_campaign(status, ledger.folder)
    assert "run" in capsys.readouterr().out and not status.is_fetched
    for kind in ("x", "inference"):
        output = Output(push_id="p", bundle_id="b", identity="i", key="k")
        ledger.kernels[f"hcd-{kind}"] = KernelEntry(kind="train" if kind == "x" else kind, output=output)
    _next_of_campaign(status, ledger.folder)
    assert "next: build_kernel.py report" in capsys.readouterr().out
    ledger.submissions.append(SimpleNamespace(state="scored"))
    _next_of_campaign(status, ledger.folder)
    printed = capsys.readouterr().out
    assert "ensemble select" in printed and "predict --tiles DIR" in printed and "report" not in printed
