"""Laws of a campaign for every sequence of answers: it ends, says what to do next, and bounds its requests.

The loop, its decisions, state, timers and capacity are the real ones. Kaggle answers by a script of numbers
that hypothesis draws, and the script begins again when it is over; waiting moves a clock of its own.
`HCD_CAMPAIGNS=20000` runs more of them.
"""

import json
import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from decision_table import NEXT_STEPS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launch.campaign import loop, outputs, waits
from launch.campaign.ledger import Ledger, new_ledger
from launch.campaign.loop import Campaign
from launch.campaign.spec import CampaignSpec
from launch.campaign.state import CampaignStoppedError
from launch.campaign.waits import Timeouts
from launch.kaggle_api.errors import (
    CapacityError,
    CredentialsError,
    EmptyKernelError,
    NoResponseError,
    QuotaError,
    RefusedError,
    SourcesDroppedError,
    UnexpectedResponseError,
)
from launch.kaggle_api.types import (
    ABSENT,
    CANCEL_REQUESTED,
    CANCELLED,
    COMPLETE,
    ERROR,
    NEW,
    QUEUED,
    RUNNING,
    Listing,
    PulledKernel,
    Pushed,
    Quota,
    RunStatus,
)
from launch.packaging.metadata import MACHINE_SHAPE
from launch.plan import Kernel
from lib.config import Config
from lib.runtime.inputs import MISSING_INPUTS
from lib.runtime.run_record import RECORD_NAME, RunRecord, write_run_record

CAMPAIGNS = int(os.environ.get("HCD_CAMPAIGNS", "1000"))
SLUG = "hcd-prepare"
KERNEL = Kernel(kind="prepare", slug=SLUG, experiments=(), configs=(Config(),), needs_gpu=True)
RIVAL = f"0123abcd.{SLUG}.1"
TIMEOUTS = Timeouts(poll=300.0, session_timeout=6 * 3600.0, quota_timeout=12 * 3600.0)
MOST_POLLS = 5000
KILLED = "killed"


class NeverEndsError(AssertionError):
    """The campaign polls on and on."""


class KilledError(BaseException):
    """The campaign's process ends, as by `kill -9`."""


@dataclass
class ScriptedKaggle:
    """A Kaggle whose answers are numbers of a script; the rest of the client's interface is not used.

    Attributes:
        script: each answer is the next number of it, modulo the number of possible answers.
        kills: how often the campaign's process may still be killed.
        now: seconds.
    """

    script: list[int]
    record: dict[str, Any]
    kills: int = 2
    now: float = 0.0
    position: int = 0
    polls: int = 0
    push_id: str = "none.yet"
    happened: Counter[str] = field(default_factory=Counter)  # pushes that Kaggle accepted, by push id
    unanswered: Counter[str] = field(default_factory=Counter)  # requests without an answer, by push id

    def pick(self, *answers: Any) -> Any:
        number = self.script[self.position % len(self.script)]
        self.position += 1
        answer = answers[number % len(answers)]
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def sleep(self, seconds: float) -> None:
        self.polls += 1
        if self.polls > MOST_POLLS:
            raise NeverEndsError(f"after {self.now / 3600:.0f} h")
        step = self.pick(1, 12, 144, KILLED)
        self.now += seconds * (1 if step == KILLED else step)
        if step == KILLED and self.kills > 0:
            self.kills -= 1
            raise KilledError

    # --- the client ---

    def push(self, folder: Path, *, limit: float) -> Pushed:
        try:
            version = self.pick(
                1, NoResponseError("reset"), CapacityError("session count"), QuotaError("quota"),
                EmptyKernelError("gone"), SourcesDroppedError("lacks x", version=3), RefusedError("no"),
                UnexpectedResponseError("odd"), CredentialsError("401"),
            )  # fmt: skip
        except NoResponseError:
            self.unanswered[self.push_id] += 1
            raise
        except SourcesDroppedError:
            self.happened[self.push_id] += 1
            raise
        self.happened[self.push_id] += 1
        return Pushed(version, "https://k")

    def status(self, slug: str) -> RunStatus:
        name = self.pick(
            COMPLETE, RUNNING, ABSENT, ERROR, CANCELLED, QUEUED, NEW, CANCEL_REQUESTED,
            UnexpectedResponseError("unknown value"), NoResponseError("503"),
        )  # fmt: skip
        return RunStatus(name)

    def pull(self, slug: str) -> PulledKernel | None:
        source, version = self.pick(
            (self.push_id, 3), (RIVAL, 4), ("", 4), (RIVAL, 2), (None, 0), NoResponseError("500")
        )
        if source is None:
            return None
        return PulledKernel(f"{{'push_id': '{source}'}}", version, MACHINE_SHAPE, internet=False)

    def output(self, slug: str) -> Listing:
        record, log = self.pick(
            (self.push_id, self.push_id), (RIVAL, RIVAL), ("", ""), (None, self.push_id), (None, ""),
            (None, f"{self.push_id}\nerror: {MISSING_INPUTS}"), (None, f"{self.push_id}\nerror: no tumour"),
            NoResponseError("502"), RefusedError("404"), UnexpectedResponseError("pages repeat"),
        )  # fmt: skip
        return Listing({} if record is None else {RECORD_NAME: record}, log)

    def fetch(self, url: str, path: Path, **expected: Any) -> None:
        change = self.pick({}, {}, {"complete": False}, {"bundle_id": "other"}, NoResponseError("cut"))
        path.write_text(json.dumps(self.record | {"push_id": url} | change))

    def quota(self) -> Quota | None:
        return self.pick(Quota(used=1.0, allowed=30.0, refresh=None), None, NoResponseError("500"))

    def delete(self, slug: str) -> None:
        self.pick(None, NoResponseError("500"))

    # --- the checkout ---

    bundle, owner, thin = "b", "alice", False

    def write_kernel(self, kernel: Kernel, folder: Path, *, push_id: str, **parameters: Any) -> int:
        self.push_id = push_id
        return 0


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """The run.json of an output that fits. No disk cache is flushed any more, and nothing is logged."""
    made = own_record(tmp_path)
    monkeypatch.setattr(Ledger, "save", lambda self: None)
    monkeypatch.setattr(outputs, "write_atomic", lambda path, text: None)
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    yield made
    logging.disable(before)


def run_to_its_end(kaggle: Any, ledger: Ledger, folder: Path) -> str:
    """Run a campaign, also through kills; why it stopped, or an empty text."""
    while True:
        campaign = Campaign(
            kaggle=kaggle,
            source=kaggle,
            kernels=[KERNEL],
            ledger=ledger,
            folder=folder,
            dataset=None,
            timeouts=TIMEOUTS,
        )
        try:
            campaign.run()
        except KilledError:
            continue
        except CredentialsError:
            return "Kaggle does not accept the credentials: make a token and rerun the command"
        except CampaignStoppedError as error:
            stopped = [*campaign.state.failures.values()] or [str(error)]
            assert all(any(step in text.lower() for step in NEXT_STEPS) for text in stopped), stopped
            return str(error)
        return ""


@settings(
    max_examples=CAMPAIGNS,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(script=st.lists(st.integers(0, 89), min_size=1, max_size=40))
def test_a_campaign_ends_whatever_kaggle_answers(script, record, tmp_path, monkeypatch):
    """It ends in an output, or in a sentence that names the next step; pushes and requests are bounded."""
    kaggle = ScriptedKaggle(script, record)
    patch_the_clock(monkeypatch, kaggle)
    ledger = new_ledger(tmp_path / "one", campaign="one", spec=CampaignSpec(owner="alice"))
    for _ in range(2):  # and the command is run again
        pushes, kaggle.polls, kaggle.kills = len(ledger.entry(SLUG, "prepare").pushes), 0, 2
        before, unanswered = Counter(kaggle.happened), Counter(kaggle.unanswered)
        stopped = run_to_its_end(kaggle, ledger, tmp_path / "one")
        entry = ledger.kernels[SLUG]
        assert (entry.output is not None) == (stopped == "")
        assert stopped or entry.open is None
        assert len(entry.pushes) - pushes <= TIMEOUTS.pushes + 1  # one may have been open or refused before
        assert sum((kaggle.happened - before).values()) <= TIMEOUTS.pushes + 1
        assert all(count <= TIMEOUTS.sends + 1 for count in (kaggle.unanswered - unanswered).values())
        if not stopped:
            break


def own_record(folder: Path) -> dict[str, Any]:
    """The run.json of an output that fits."""
    config = json.loads(json.dumps(Config().to_dict()))
    record = RunRecord(
        kind="prepare", experiment="", config=config, push_id="", bundle_id="b", git_commit="",
        data_id="d" * 64, seconds={"total": 1.0}, complete=True,
    )  # fmt: skip
    write_run_record(folder, record)
    return dict(json.loads((folder / RECORD_NAME).read_text()))


def patch_the_clock(monkeypatch: pytest.MonkeyPatch, kaggle: ScriptedKaggle) -> None:
    """Time is what the script says."""

    began = datetime(2026, 1, 1, tzinfo=UTC)

    def stamp(moment: datetime | None = None) -> str:
        return (began + timedelta(seconds=kaggle.now)).isoformat()

    def seconds_since(text: str) -> float:
        return kaggle.now - (datetime.fromisoformat(text) - began).total_seconds()

    monkeypatch.setattr(waits, "steady", lambda: kaggle.now)
    monkeypatch.setattr(waits, "stamp", stamp)
    monkeypatch.setattr(waits, "seconds_since", seconds_since)
    monkeypatch.setattr(loop, "time", SimpleNamespace(sleep=kaggle.sleep))
