"""kill -9 after every write of the ledger, and around every request that changes something.

After each, the same command finishes, and the service has seen each push, upload and submission once.
A folder with another version of the client in PYTHONPATH puts that version before the installed one.
"""

import json
import os
import re
import signal
import threading
import time

import pytest
from emulated_world import KNOBS, ROOT, Ended, Running
from instant import write_data

# Writes of the ledger in an undisturbed campaign of six kernels that are all seen running; the test below
# holds it to the truth.
SAVES = 31
CHANGES = (
    "StartBlobUpload",
    "upload",
    "CreateDataset",
    "SaveKernel",
    "StartSubmissionUpload",
    "CreateSubmission",
)


def test_the_count_of_writes_is_covered(world):
    ended = world().run()
    assert ended.code == 0, ended
    assert int(re.search(r"saves: (\d+)", ended.out)[1]) <= SAVES


@pytest.mark.parametrize("after", range(1, SAVES + 1))
def test_killed_after_a_write_of_the_ledger(world, after):
    kaggle = world()
    ended = kaggle.run(die_after_saves=after)
    # A run may end before it is seen running; then there is one write less.
    assert ended.code == -signal.SIGKILL or (ended.code == 0 and after > SAVES - 6), ended
    again = kaggle.run()
    assert again.code == 0, again
    kaggle.assert_finished_once()


def _nth_change(nth):
    """Requests that change something, in the order in which a campaign makes them."""
    return [("StartBlobUpload", 1), ("upload", 1), ("CreateDataset", 1),
            *(("SaveKernel", n) for n in range(1, 6)),
            ("StartSubmissionUpload", 1), ("CreateSubmission", 1), ("SaveKernel", 6)][nth]  # fmt: skip


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("nth", range(11))
def test_killed_at_a_request_that_changes_something(world, when, nth):
    wanted, occurrence = _nth_change(nth)
    kaggle = world()
    seen, process, killed = [0], [], threading.Event()
    ready = threading.Event()

    def hook(method, slug):
        if method == wanted and not killed.is_set():
            seen[0] += 1
            if seen[0] == occurrence:
                ready.wait(10)
                os.kill(process[0].pid, signal.SIGKILL)
                killed.set()
                time.sleep(0.1)  # until it is dead

    setattr(kaggle.kaggle.account, f"{when}_change", hook)
    process.append(kaggle.start())
    ready.set()
    process[0].communicate(timeout=60)
    assert killed.is_set(), f"{wanted} was called {seen[0]} times only"
    assert process[0].returncode == -signal.SIGKILL
    again = kaggle.run()
    assert again.code == 0, again
    kaggle.assert_finished_once()


def _alone(folder, **order):
    """A campaign and its service in one process."""
    path = folder / "order.json"
    values = {"folder": str(folder / "campaigns" / "one"), "knobs": KNOBS, "serve": str(folder), **order}
    path.write_text(json.dumps(values))
    modules = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH", ""), str(ROOT)]))
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": modules}
    running = Running(path, environment, folder)
    out, err = running.communicate(timeout=90)
    assert running.returncode is not None
    return Ended(running.returncode, out, err)


@pytest.mark.parametrize("hook", ["before_change", "after_change"])
@pytest.mark.parametrize("call", range(1, 16))
def test_killed_together_with_the_service(tmp_path, hook, call):
    write_data(tmp_path / "competition")
    killed = _alone(tmp_path, hook=hook, die_at_call=call)
    assert killed.code == -signal.SIGKILL, killed
    again = _alone(tmp_path, hook=hook)
    assert again.code == 0, again
    changes = json.loads((tmp_path / "kaggle" / "state.json").read_text())["changes"]
    seen = [each["method"] for each in changes]
    assert (seen.count("SaveKernel"), seen.count("CreateDataset"), seen.count("CreateSubmission")) == (
        6,
        1,
        1,
    )
    assert len({each["slug"] for each in changes if each["method"] == "SaveKernel"}) == 6
