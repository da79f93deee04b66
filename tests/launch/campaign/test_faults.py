"""Faults of Kaggle, one at a time: the campaign finishes, or stops with a message and loses nothing.

After a fault in FINISHES there is a score, and every push, upload and submission was made once. After a fault
in STOPS a message names the cause, and the same command finishes once the fault is gone.
"""

import re
import time
from collections import Counter

import pytest
from child import LONG
from fault_table import faults_in_tests, known_faults

from launch.emulator.faults import Fault

DAILY = (
    "Your team has used its daily Submission allowance (5) today, "
    "please try again tomorrow UTC (9.1 hours from now)."
)

# name: the faults
FINISHES = {
    "capacity refused": [Fault("SaveKernel", "capacity", slug="fold-1", times=2)],
    "empty kernel": [Fault("SaveKernel", "empty-kernel", slug="fold-1")],
    "push answered 429": [Fault("SaveKernel", "429", slug="fold-0", value=0)],
    "push answered 500": [Fault("SaveKernel", "500", slug="fold-0")],
    "push answered 503": [Fault("SaveKernel", "503", slug="prepare")],
    "push reset before it happened": [Fault("SaveKernel", "reset-before", slug="fold-0")],
    "push reset after it happened": [Fault("SaveKernel", "reset-after", slug="fold-0")],
    "push answered by HTML after it happened": [Fault("SaveKernel", "html-after", slug="fold-2")],
    "push answered by HTML": [Fault("SaveKernel", "html", slug="fold-2")],
    "push never answered": [Fault("SaveKernel", "timeout", slug="inference", value=4)],
    "push answered by nothing": [Fault("SaveKernel", "empty", slug="fold-0")],
    "status 404 for a while": [Fault("GetKernelSessionStatus", "404", slug="fold-0", nth=2, times=5)],
    "status 403 for a while": [Fault("GetKernelSessionStatus", "403", slug="fold-0", nth=2, times=5)],
    "status 429": [Fault("GetKernelSessionStatus", "429", times=3, value=0)],
    "status 500": [Fault("GetKernelSessionStatus", "500", nth=3, times=2)],
    "status 503": [Fault("GetKernelSessionStatus", "503", nth=3, times=2)],
    "status reset": [Fault("GetKernelSessionStatus", "reset-before", nth=2, times=2)],
    "status is HTML": [Fault("GetKernelSessionStatus", "html", nth=2, times=2)],
    "status never answered": [Fault("GetKernelSessionStatus", "timeout", nth=2, value=4)],
    "status of the previous version": [Fault("GetKernelSessionStatus", "stale", slug="fold", nth=2, times=3)],
    "status unknown for a while":
        [Fault("GetKernelSessionStatus", "status", slug="fold-0", nth=2, times=4, value="WARMING_UP")],
    "status unknown at a push":
        [Fault("GetKernelSessionStatus", "status", slug="fold-0", times=4, value="WARMING_UP")],
    "quota unknown": [Fault("GetAcceleratorQuotaStatistics", "500", times=0)],
    "quota answered by nothing": [Fault("GetAcceleratorQuotaStatistics", "empty", times=0)],
    "listing lacks a file": [Fault("ListKernelSessionOutput", "missing", slug="fold-0", value="oof")],
    "listing lacks the record":
        [Fault("ListKernelSessionOutput", "missing", slug="fold-0", value="run.json")],
    "second page never comes": [Fault("ListKernelSessionOutput", "truncated", slug="fold-0")],
    "a name like ../x": [Fault("ListKernelSessionOutput", "traversal", times=0)],
    "output of an earlier push": [Fault("ListKernelSessionOutput", "stale", slug="fold-1")],
    "listing 500, then 502":
        [Fault("ListKernelSessionOutput", "500"), Fault("ListKernelSessionOutput", "502", nth=2)],
    "file short": [Fault("output", "short", nth=2)],
    "file cut": [Fault("output", "cut", nth=2)],
    "link expired": [Fault("output", "expired", nth=2)],
    "file is HTML": [Fault("output", "html", nth=3)],
    "dataset ready at the old version": [Fault("dataset", "old-version", value=1.0)],
    "dataset failed once": [Fault("dataset", "failed")],
    "dataset failed for ever": [Fault("dataset", "failed", times=0)],
    "one uploaded file dropped": [Fault("dataset", "drop-file")],
    "blob upload cut and resumed": [Fault("upload", "503")],
    "blob upload reset": [Fault("upload", "reset")],
    "dataset reset after it happened": [Fault("CreateDataset", "reset-after")],
    "dataset answered by HTML": [Fault("CreateDataset", "html-after")],
    "submission reset after it happened": [Fault("CreateSubmission", "reset-after")],
    "submission reset before it happened": [Fault("CreateSubmission", "reset-before")],
    "submission answered 500": [Fault("CreateSubmission", "500")],
    "submission answered by HTML": [Fault("CreateSubmission", "html-after")],
    "submissions list 503": [Fault("ListSubmissions", "503", times=2)],
    "token not introspected at first": [Fault("IntrospectToken", "503", times=2)],
    "sources dropped once": [Fault("SaveKernel", "drop-sources", slug="fold-0")],
    "inputs not mounted yet": [Fault("session", "no-mount", slug="fold-1")],
    "ended without output once": [Fault("session", "no-output", slug="fold-1")],
    "an input replaced by another campaign": [Fault("session", "replaced-input", slug="fold-1")],
    "an input replaced by other data": [Fault("session", "replaced-input", slug="fold-1", value="e" * 64)],
    "pushed over by hand": [Fault("SaveKernel", "pushed-over", slug="fold-0")],
    "pushed over by another checkout":
        [Fault("SaveKernel", "pushed-over", slug="fold-1", value="0123abcd")],
}  # fmt: skip
# What the campaign says of a fault.
SAYS = {
    "pushed over by hand": "version 2 was pushed by hand (its source carries no push id",
    "pushed over by another checkout": "fold-1: reused from an earlier campaign (push 0123abcd.",
}
# After these a push or an upload is repeated, as it should be, or somebody else makes one: the kernels of all
# pushes behind the first one of each.
AGAIN = {
    "sources dropped once": ["fold-0"],
    "inputs not mounted yet": ["fold-1"],
    "ended without output once": ["fold-1"],
    "an input replaced by another campaign": ["fold-1"],  # the new one is taken over
    "an input replaced by other data": ["fold-1", "hcd-prepare"],
    "pushed over by hand": ["fold-0", "fold-0"],
    "pushed over by another checkout": ["fold-1"],
    "dataset failed once": [],
    "one uploaded file dropped": [],
    "dataset failed for ever": [],
}

# name: the faults, and a part of the message
STOPS = {
    "401": ([Fault("GetKernelSessionStatus", "401", nth=3, times=0)], "API token"),
    "401 at the push": ([Fault("SaveKernel", "401", slug="fold-0", times=0)], "API token"),
    "push refused for good": ([Fault("SaveKernel", "403", slug="fold-0", times=0)], "HTTP 403"),
    "push refused as a conflict": ([Fault("SaveKernel", "409", slug="fold-0", times=0)], "HTTP 409"),
    "push answered 500 for ever":
        ([Fault("SaveKernel", "500", slug="fold-0", times=0)], "sent 5 times and never arrived"),
    "push answered emptily for ever":
        ([Fault("SaveKernel", "empty", slug="fold-0", times=0)], "sent 5 times and never arrived"),
    "push refused with a word":
        ([Fault("SaveKernel", "error", slug="fold-0", times=0, value="Phone needed")], "Phone needed"),
    "filed elsewhere": ([Fault("SaveKernel", "wrong-slug", slug="fold-0")], "Kaggle stored"),
    "sources dropped every time":
        ([Fault("SaveKernel", "drop-sources", slug="fold-0", times=0)], "without some of its inputs"),
    "capacity refused for ever": ([Fault("SaveKernel", "capacity", slug="fold", times=0)], "session count"),
    "unknown status for ever":
        ([Fault("GetKernelSessionStatus", "status", slug="fold-0", times=0, value="X")], "unknown value"),
    "running endlessly": ([Fault("session", "endless", slug="fold-0")], "RUNNING"),
    "kernel ERROR": ([Fault("session", "error", slug="fold-0", times=0)], "fold-0"),
    "complete with a traceback at the end of its log":
        ([Fault("session", "traceback", slug="fold-0")], "log ends with an uncaught error (RuntimeError"),
    "complete with scores that are not those of its predictions":
        ([Fault("session", "wrong-scores", slug="fold-0")], "its predictions give 0."),
    "kernel ERROR, lone surrogates in its log": (
        [
            Fault("session", "error", slug="fold-0", times=0),
            Fault("ListKernelSessionOutput", "surrogates", times=0),
        ],
        "RuntimeError: injected \ufffd \ufffd",
    ),
    "week without enough quota":
        ([Fault("GetAcceleratorQuotaStatistics", "shrunk", nth=2, times=0, value=0.01)], "it can never run"),
    "inputs never mounted": ([Fault("session", "no-mount", slug="fold-0", times=0)], "had not mounted"),
    "cancelled by a person":
        ([Fault("session", "cancelled", slug="fold-0", times=0)], "the run was cancelled on Kaggle"),
    "pushed over by hand every time":
        ([Fault("SaveKernel", "pushed-over", slug="fold-0", times=0)],
         "was pushed by hand (its source carries no push id: the plain client, or Kaggle's site), over"),
    "no output every time": ([Fault("session", "no-output", slug="fold-0", times=0)], "did not finish"),
    "listing short for ever":
        ([Fault("ListKernelSessionOutput", "missing", slug="fold-0", times=0, value="oof")], "without"),
    "links expired for ever": ([Fault("output", "expired", nth=4, times=0)], "HTTP 403"),
    "service gone": ([Fault("GetKernelSessionStatus", "503", nth=4, times=0)], "not answered"),
    "daily allowance": ([Fault("CreateSubmission", "400", value=DAILY)], "allowance"),
    "rules not accepted": ([Fault("CreateSubmission", "403", times=0)], "/rules"),
    "competition closed": ([Fault("CreateSubmission", "404", times=0)], "takes no submissions"),
    "score pending for ever": ([Fault("score", "pending", times=0)], "no score after"),
    "score ERROR": ([Fault("score", "error")], "could not score"),
}  # fmt: skip


def test_every_fault_of_the_emulated_kaggle_is_met_by_a_campaign():
    missing = [fault for fault in known_faults() if fault not in faults_in_tests()]
    assert not missing, "add a row for each to FINISHES or STOPS, and run `make docs`"


@pytest.mark.parametrize("name", FINISHES)
def test_it_finishes(world, name):
    kaggle = world(*FINISHES[name])
    ended = kaggle.run(timeouts=LONG)
    assert ended.code == 0, ended
    assert kaggle.kaggle.account.faults.fired, f"the fault {name!r} was never met"
    if name not in AGAIN:
        kaggle.assert_finished_once()
    pushes = [slug for method, slug in kaggle.changes() if method == "SaveKernel"]
    again = [slug for slug, number in Counter(pushes).items() for _ in range(number - 1)]
    expected = AGAIN.get(name, [])
    assert len(again) == len(expected) and all(any(part in slug for slug in again) for part in expected), (
        again
    )
    assert "scored by the test" in ended.out and SAYS.get(name, "") in ended.out
    assert not (kaggle.folder / "campaigns" / "one" / "x").exists()


@pytest.mark.parametrize("name", STOPS)
def test_it_stops_with_a_name_and_goes_on_once_the_fault_is_gone(world, name):
    faults, words = STOPS[name]
    kaggle = world(*faults)
    ended = kaggle.run(limit=1.0)
    assert ended.code == 1, ended
    assert words in ended.err, ended
    assert "Traceback" not in ended.err or name.startswith(
        "kernel ERROR"
    )  # there it is the end of the kernel's log
    done = {slug for slug, entry in kaggle.ledger.kernels.items() if entry.output is not None}
    kaggle.kaggle.clear_faults()
    again = kaggle.run()
    assert again.code == 0, again
    assert "scored by the test" in again.out
    pushes = [slug for method, slug in kaggle.changes() if method == "SaveKernel"]
    assert all(pushes.count(slug) == 1 for slug in done)


def wait_until_printed(process, pattern):
    """The match of a pattern in what a campaign that runs has printed."""
    deadline = time.monotonic() + 60
    while True:
        text = process.printed[0].read_text() if process.printed[0].is_file() else ""
        if match := re.search(pattern, text):
            return match
        assert process.returncode is None and time.monotonic() < deadline, text
        time.sleep(0.05)


def test_quota_that_is_exhausted_is_waited_for(world):
    kaggle = world(settings={"gpu_hours_used": 29.9})
    account, sessions = kaggle.kaggle.account, kaggle.kaggle.sessions
    answers, answer = [], sessions.quota

    def quota(fault):
        """The first answer is for the plan, the second for the fold that is due: then the week ends."""
        answers.append(answer(fault))
        if len(answers) == 2:
            account.state["refresh_at"] = account.now() + 1.0
        return answers[-1]

    sessions.quota = quota
    ended = kaggle.run()
    assert ended.code == 0, ended
    assert "the rest waits until" in ended.out
    assert "h of GPU quota)" in ended.out  # the plan over the weeks
    kaggle.assert_finished_once()


def test_quota_that_shrinks_in_the_middle_is_waited_for(world):
    shrunk = Fault("GetAcceleratorQuotaStatistics", "shrunk", nth=2, times=3, value=20.01)
    kaggle = world(shrunk, settings={"gpu_hours_used": 20.0})
    ended = kaggle.run(timeouts={"quota_refresh": 0.05})  # it is read again before the last push
    assert ended.code == 0, ended
    assert "the rest waits until" in ended.out
    kaggle.assert_finished_once()


def test_a_cancelled_run_that_holds_its_session_is_named_with_the_command_that_frees_it(world):
    kaggle = world(Fault("session", "held-slot", slug="fold-0"), settings={"gpu_sessions": 1})
    process = kaggle.start()
    slug = wait_until_printed(process, r"kaggle kernels delete alice/(hcd-\S+-fold-0)")[1]
    kaggle.kaggle.kernels.delete({"kernelSlug": slug})
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "the run was cancelled on Kaggle" in err, out + err
    ended = kaggle.run()
    assert ended.code == 0, ended
    assert kaggle.pushes().count(slug) == 2 and len(kaggle.pushes()) == 7


def test_a_dataset_that_does_not_exist_costs_one_push(world):
    kaggle = world()
    stopped = kaggle.run(datasets=["alice/my-map"])
    assert stopped.code == 1, stopped
    assert "the dataset alice/my-map: it does not exist" in stopped.err
    [prepare, fold] = kaggle.pushes()  # no second fold was pushed without it
    assert prepare == "hcd-prepare" and fold.endswith("-fold-0")
    kaggle.kaggle.datasets.attach("my-map", kaggle.data)
    ended = kaggle.run(datasets=["alice/my-map"])
    assert ended.code == 0, ended
    assert kaggle.pushes().count(fold) == 2 and len(kaggle.pushes()) == 7


def test_a_dataset_in_processing_is_waited_for(world):
    kaggle = world()
    kaggle.kaggle.datasets.create({"ownerSlug": "alice", "slug": "my-map", "files": []})
    [version] = kaggle.kaggle.account.state["datasets"]["my-map"]["versions"]
    version["ready_at"] = 1e12
    process = kaggle.start(datasets=["alice/my-map"])
    wait_until_printed(process, "Kaggle still processes the dataset alice/my-map")
    version["ready_at"] = 0.0
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err
    [_, fold, *_] = kaggle.pushes()
    assert kaggle.pushes().count(fold) == 2 and len(kaggle.pushes()) == 7


def test_quota_that_is_refused_is_waited_for(world):
    kaggle = world(Fault("SaveKernel", "quota", slug="fold-1", times=2))
    ended = kaggle.run()
    assert ended.code == 0, ended
    assert "weekly GPU quota" in ended.out
    kaggle.assert_finished_once()


def test_a_disk_that_is_full_while_downloading_loses_nothing(world, tmp_path):
    kaggle = world()
    ended = kaggle.run(full_disk_at="oof-1")
    assert ended.code == 1
    assert "the disk is full" in ended.err
    again = kaggle.run()
    assert again.code == 0, again
    kaggle.assert_finished_once()


def test_tokens_appear_nowhere(world):
    from emulated_world import TOKEN

    kaggle = world(
        Fault("GetKernelSessionStatus", "500", nth=2), Fault("SaveKernel", "reset-after", slug="fold-0")
    )
    ended = kaggle.run()
    assert ended.code == 0, ended
    stopped = world(Fault("GetKernelSessionStatus", "401", nth=3, times=0)).run()
    texts = {"out": ended.out, "err": ended.err, "stopped": stopped.out + stopped.err}
    for path in kaggle.folder.rglob("*"):
        if path.is_file():
            texts[str(path)] = path.read_bytes().decode("latin-1")
    assert len(texts) > 30
    assert [name for name, text in texts.items() if TOKEN in text] == []
