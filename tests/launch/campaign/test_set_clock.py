"""The clock of the machine is set by a day, back or forward, while a campaign runs."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from emulated_world import KNOBS, ROOT
from instant import write_data

from launch.emulator.faults import Fault

DAY = 86400
CHILD = Path(__file__).parents[1] / "child.py"


@pytest.fixture(scope="module")
def preloaded(tmp_path_factory) -> str:
    """What a process loads to see a clock that the tests set."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here to build the clock that is set")
    library = tmp_path_factory.mktemp("clock") / "set_clock.so"
    source = Path(__file__).parents[1] / "set_clock.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    return str(library)


def command(
    order: dict, folder: Path, environment: dict[str, str], preloaded: str
) -> subprocess.CompletedProcess:
    path = folder / "order.json"
    path.write_text(json.dumps({"folder": str(folder / "campaigns" / "one"), "knobs": KNOBS, **order}))
    environment = {**environment, "LD_PRELOAD": preloaded, "HCD_CLOCK": str(folder / "clock")}
    return subprocess.run(
        [sys.executable, str(CHILD), str(path)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_the_clock_is_set(preloaded, tmp_path):
    (tmp_path / "clock").write_text(str(-DAY))
    now = (
        "import time, datetime; "
        "print(time.time(), datetime.datetime.now(datetime.UTC).timestamp(), time.monotonic())"
    )
    environment = {"PATH": os.environ["PATH"], "LD_PRELOAD": preloaded}

    def clocks(**more: str) -> list[float]:
        printed = subprocess.run(
            [sys.executable, "-c", now], env=environment | more, capture_output=True, text=True, check=True
        )
        return [float(value) for value in printed.stdout.split()]

    true, off = clocks(), clocks(HCD_CLOCK=str(tmp_path / "clock"))
    assert [round((b - a) / 600) for a, b in zip(true, off, strict=True)] == [-144, -144, 0]


@pytest.mark.parametrize("seconds", [-DAY, DAY])
@pytest.mark.parametrize("nth", [1, 4, 8])
def test_a_campaign_whose_clock_is_set_pushes_nothing_twice(world, preloaded, nth, seconds):
    kaggle, changes = world(), [0]

    def hook(method: str, slug: str) -> None:
        changes[0] += 1
        if changes[0] == nth:
            (kaggle.folder / "clock").write_text(str(seconds))

    kaggle.kaggle.account.after_change = hook
    ended = command({}, kaggle.folder, kaggle.environment(), preloaded)
    assert ended.returncode == 0, ended
    assert changes[0] > nth
    kaggle.assert_finished_once()


def test_the_end_of_a_run_that_was_never_seen_is_noticed_though_the_clock_was_set_back(world, preloaded):
    """The age of a push decides whether an end may be that of the run before: this wait ends, too."""
    kaggle = world(Fault("session", "no-output", "hcd-prepare"))

    def set_back() -> None:
        (kaggle.folder / "clock").write_text(str(-DAY))

    def hook(method: str, slug: str) -> None:
        if method == "SaveKernel":
            threading.Timer(0.15, set_back).start()  # once the push is in the ledger, before it is old

    kaggle.kaggle.account.after_change = hook
    ended = command({}, kaggle.folder, kaggle.environment(), preloaded)
    assert ended.returncode == 0, ended
    assert [slug for method, slug in kaggle.changes() if method == "SaveKernel"].count("hcd-prepare") == 2


@pytest.mark.parametrize("seconds", [-DAY, DAY])
@pytest.mark.parametrize("call", [2, 7, 13])
def test_a_rehearsal_whose_clock_is_set(tmp_path, preloaded, call, seconds):
    """The emulated Kaggle lives in the same process: its own clock is not affected."""
    write_data(tmp_path / "competition")
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(CHILD.parent)]),
    }
    order = {
        "serve": str(tmp_path),
        "hook": "after_change",
        "set_clock_at_call": call,
        "set_clock_by": seconds,
    }
    ended = command(order, tmp_path, environment, preloaded)
    assert ended.returncode == 0, ended
    seen = [
        each["method"] for each in json.loads((tmp_path / "kaggle" / "state.json").read_text())["changes"]
    ]
    assert (seen.count("SaveKernel"), seen.count("CreateDataset"), seen.count("CreateSubmission")) == (
        6,
        1,
        1,
    )
    record = json.loads((tmp_path / "campaigns" / "one" / "leaderboard.json").read_text())
    assert 0 <= record["submission"]["public_auc"] <= 1
