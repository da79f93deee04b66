"""Submissions, files and quota of the emulated Kaggle, request by request."""

import json
import time

import requests

from launch.emulator.faults import Fault

COMPETITION = "histopathologic-cancer-detection"


def test_submissions_are_checked_and_scored_as_on_kaggle(wire):
    kaggle = wire()
    sample = (kaggle.data / "sample_submission.csv").read_text()
    truth = (kaggle.folder / "held-back.csv").read_text()
    for text in (
        truth,
        sample.replace(",0", ",nan"),
        sample + sample.splitlines()[1],
        "id,label\nx\n",
        "a,b\n1,2\n",
    ):
        assert (
            kaggle.submit(text).json()["message"]
            == "Successfully submitted to Histopathologic Cancer Detection"
        )
    submissions = kaggle.submissions()[::-1]
    assert (submissions[0]["publicScore"], submissions[0]["privateScore"]) == ("1.00000", "1.00000")
    assert [entry["status"] for entry in submissions] == ["COMPLETE", "ERROR", "ERROR", "ERROR", "ERROR"]
    for entry, text in zip(
        submissions[1:],
        ("null values", "more than once", "could not be read", "could not be read"),
        strict=True,
    ):
        assert text in kaggle.call("GetSubmission", ref=entry["ref"])["errorDescription"]
    refused = kaggle.submit(truth)
    assert refused.status_code == 400
    assert (
        "used its daily Submission allowance (5) today, please try again tomorrow UTC ("
        in refused.json()["message"]
    )
    assert kaggle.call("GetSubmissionLimits", competitionName=COMPETITION)["numAllowedNow"] == 0
    unscored = wire(scored=False)
    unscored.submit((unscored.data / "sample_submission.csv").read_text())
    assert (
        unscored.submissions()[0]["status"] == "COMPLETE" and "publicScore" not in unscored.submissions()[0]
    )


def test_submissions_that_are_refused_or_never_scored(wire):
    message = (
        "Your team has used its daily Submission allowance (5) today, "
        "please try again tomorrow UTC (9.1 hours from now)."
    )
    kaggle = wire(
        Fault("CreateSubmission", "400", value=message),
        Fault("CreateSubmission", "404", nth=2),
        Fault("score", "pending"),
        Fault("score", "error", nth=2),
    )
    truth = (kaggle.folder / "held-back.csv").read_text()
    assert kaggle.submit(truth).json() == {"code": 400, "message": message}
    assert kaggle.submit(truth).status_code == 404
    assert kaggle.submit(truth).status_code == kaggle.submit(truth).status_code == 200
    assert [entry["status"] for entry in kaggle.submissions()] == ["ERROR", "PENDING"]
    closed = wire(settings={"rules_accepted": False})
    assert closed.submit(truth).status_code == 403
    assert closed.ask("DownloadDataFiles", competitionName=COMPETITION).status_code == 403
    assert closed.call("GetCompetition", competitionName=COMPETITION)["userHasEntered"] is False


def test_the_competitions_files_need_signed_links(wire):
    kaggle = wire()
    link = kaggle.ask("DownloadDataFile", competitionName=COMPETITION, fileName="train_labels.csv").headers[
        "Location"
    ]
    assert requests.get(link, timeout=10).content == (kaggle.data / "train_labels.csv").read_bytes()
    assert requests.get(link.replace("train_labels", "sample_submission"), timeout=10).status_code == 403
    assert requests.get(link.split("?")[0], timeout=10).status_code == 403
    for name in ("../held-back.csv", str(kaggle.folder / "held-back.csv"), "none.csv"):
        assert kaggle.ask("DownloadDataFile", competitionName=COMPETITION, fileName=name).status_code == 404
    whole = kaggle.ask("DownloadDataFiles", competitionName=COMPETITION).headers["Location"]
    part = requests.get(whole, headers={"Range": "bytes=10-"}, timeout=10)
    assert part.status_code == 206 and part.content == requests.get(whole, timeout=10).content[10:]


def test_the_quota_counts_gpu_time_until_its_reset(wire):
    kaggle = wire(held=True, settings={"gpu_hours_used": 29.9999, "quota_refresh": 2.0})
    kaggle.push("one-kernel", enableGpu=True)
    time.sleep(0.5)
    assert "weekly GPU quota of 30.00 hours" in kaggle.push("two-kernel", enableGpu=True)["error"]
    assert kaggle.push("cpu-kernel")["versionNumber"] == 1
    used = kaggle.call("GetAcceleratorQuotaStatistics")["gpuQuota"]
    assert float(used["timeUsed"].removesuffix("s")) >= 108_000 and used["totalTimeAllowed"] == "108000s"
    kaggle.kernel("DeleteKernel", "one-kernel")
    after = kaggle.call("GetAcceleratorQuotaStatistics")["gpuQuota"]["timeUsed"]
    assert float(after.removesuffix("s")) >= 108_000  # deleting a kernel gives no quota back
    kaggle.stop()
    time.sleep(2.0)
    kaggle.start()
    assert kaggle.call("GetAcceleratorQuotaStatistics")["gpuQuota"]["timeUsed"] == "0.000s"


def test_time_without_a_server_costs_no_quota(wire):
    kaggle = wire(held=True)
    kaggle.push("one-kernel", enableGpu=True)
    kaggle.wait_for("one-kernel", "RUNNING")
    kaggle.stop()
    state = kaggle.kaggle.account.folder / "state.json"
    content = json.loads(state.read_text())
    content["kernels"]["one-kernel"]["versions"][0]["started_at"] -= 40 * 3600
    state.write_text(json.dumps(content))
    kaggle.start()
    assert float(kaggle.call("GetAcceleratorQuotaStatistics")["gpuQuota"]["timeUsed"].removesuffix("s")) < 60


def test_a_quota_that_shrinks(wire):
    kaggle = wire(Fault("GetAcceleratorQuotaStatistics", "shrunk", nth=2, value=4))
    allowed = [kaggle.call("GetAcceleratorQuotaStatistics")["gpuQuota"]["totalTimeAllowed"] for _ in range(3)]
    assert allowed == ["108000s", "14400s", "108000s"]
