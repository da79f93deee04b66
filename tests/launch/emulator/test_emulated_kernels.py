"""Kernels and sessions of the emulated Kaggle, request by request."""

import json
import threading
import time

import pytest
import requests

from launch.emulator.faults import Fault

COMPETITION = "histopathologic-cancer-detection"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("capacity", "Maximum batch GPU session count of 2 reached."),
        ("quota", "Maximum weekly GPU quota of 30.00 hours reached."),
    ],
)
def test_a_refused_first_push_leaves_an_empty_kernel(wire, kind, message):
    kaggle = wire(Fault("SaveKernel", kind))
    assert kaggle.push("one-kernel", enableGpu=True)["error"] == message
    assert kaggle.push("one-kernel", enableGpu=True)["error"] == "Notebook not found"
    assert kaggle.kernel("GetKernelSessionStatus", "one-kernel").json() == {
        "code": 404,
        "message": "No runs found",
    }
    assert kaggle.kernel("GetKernel", "one-kernel").status_code == 500
    assert kaggle.effects("SaveKernel") == 0
    assert kaggle.kernel("DeleteKernel", "one-kernel").status_code == 200
    assert kaggle.push("one-kernel", enableGpu=True)["versionNumber"] == 1


def test_capacity_is_counted_by_machine_and_a_quick_save_needs_none(wire):
    kaggle = wire(held=True)
    for number in range(5):
        assert kaggle.push(f"cpu-kernel-{number}")["versionNumber"] == 1
    assert kaggle.push("cpu-kernel-5")["error"] == "Maximum batch CPU session count of 5 reached."
    assert kaggle.push("gpu-kernel-0", enableGpu=True)["versionNumber"] == 1
    # The second version runs beside the first one and needs a session of its own.
    assert kaggle.push("gpu-kernel-0", enableGpu=True)["versionNumber"] == 2
    assert kaggle.push("gpu-kernel-0", enableGpu=True)["error"].startswith("Maximum batch GPU")
    assert kaggle.push("gpu-kernel-0", enableGpu=True, kernelExecutionType="QUICK_SAVE")["versionNumber"] == 3
    # No empty kernel is left.
    assert kaggle.push("gpu-kernel-1", enableGpu=True, kernelExecutionType="QUICK_SAVE")["versionNumber"] == 1
    assert kaggle.status("gpu-kernel-1") == "NEW_SCRIPT"


def test_concurrent_sessions_have_different_gpus(wire):
    kaggle = wire(held=True)
    kaggle.push("gpu-a", enableGpu=True, sessionTimeoutSeconds="0.3s")
    kaggle.push("gpu-b", enableGpu=True)
    kaggle.wait_for("gpu-a", "CANCEL_ACKNOWLEDGED")
    kaggle.push("gpu-c", enableGpu=True)
    kaggle.wait_for("gpu-c", "RUNNING")
    assert {job.slug: job.slot for job in kaggle.executor.jobs} == {"gpu-a": 0, "gpu-b": 1, "gpu-c": 0}


def test_sources_that_are_dropped_are_named_and_the_push_succeeds(wire):
    kaggle = wire(Fault("SaveKernel", "drop-sources", slug="second"))
    kaggle.dataset("my-data")
    sources = {"datasetDataSources": ["alice/my-data", "alice/none"], "kernelDataSources": ["bob/any"]}
    answer = kaggle.push("first-kernel", **sources, competitionDataSources=[COMPETITION, "titanic"])
    assert answer["versionNumber"] == 1
    assert answer["invalidDatasetSources"] == ["alice/none"]
    assert answer["invalidKernelSources"] == ["bob/any"]
    assert answer["invalidCompetitionSources"] == ["titanic"]
    kaggle.wait_for("first-kernel", "COMPLETE")
    mounts = {mount.target for mount in kaggle.executor.jobs[0].mounts}
    assert mounts == {f"competitions/{COMPETITION}", "datasets/alice/my-data"}
    answer = kaggle.push("second-kernel", **sources)
    assert answer["invalidDatasetSources"] == sources["datasetDataSources"]
    kaggle.wait_for("second-kernel", "COMPLETE")
    assert kaggle.executor.jobs[1].mounts == ()


def test_pushes_under_another_slug_and_refused_pushes(wire):
    kaggle = wire(
        Fault("SaveKernel", "wrong-slug", slug="one"),
        Fault("SaveKernel", "error", slug="two", value="Phone needed"),
    )
    assert kaggle.push("one-kernel")["ref"] == "/code/alice/one-kernel-copy"
    assert kaggle.push("two-kernel") == {"error": "Phone needed"}
    assert kaggle.push("third-kernel", newTitle="Another: title")["ref"] == "/code/alice/another-title"
    kaggle.dataset("my-data")
    assert kaggle.ask("SaveKernel", **kaggle.push_body("my-data")).status_code == 409
    assert kaggle.ask("SaveKernel", **kaggle.push_body("x-kernel", slug="bob/x-kernel")).status_code == 403
    assert kaggle.ask("SaveKernel", **kaggle.push_body("x-kernel", text="#" * 1_000_000)).status_code == 400
    assert kaggle.ask("SaveKernel", **kaggle.push_body("x-kernel", newTitle="x" * 51)).status_code == 400
    assert kaggle.push("x" * 50)["versionNumber"] == 1
    new = {"ownerSlug": "alice", "slug": "other-data", "title": "x" * 51, "files": []}
    assert kaggle.ask("CreateDataset", **new).status_code == 400
    assert "Python only" in kaggle.push("x-kernel", language="r")["error"]
    assert "Phone" in wire(settings={"phone_verified": False}).push("x-kernel", enableInternet=True)["error"]


def test_a_kernel_created_again_has_nothing_of_the_deleted_one(wire):
    kaggle = wire(held=True)
    kaggle.push("one-kernel")
    kaggle.wait_for("one-kernel", "RUNNING")
    first = kaggle.executor.jobs[0]
    assert kaggle.kernel("DeleteKernel", "one-kernel").status_code == 200
    assert first.stop.is_set()
    assert kaggle.push("one-kernel")["versionNumber"] == 1
    kaggle.wait_for("one-kernel", "RUNNING")
    time.sleep(0.2)  # the end of the deleted session must not end the new one
    assert kaggle.status("one-kernel") == "RUNNING"
    assert [file["fileName"] for file in kaggle.listing("one-kernel")["files"]] == ["left-0.txt"]
    assert kaggle.executor.jobs[1].folder != first.folder
    kaggle.executor.let_end()
    kaggle.wait_for("one-kernel", "COMPLETE")


def test_the_status_may_be_that_of_the_version_before(wire):
    kaggle = wire(Fault("GetKernelSessionStatus", "stale"), held=True, settings={"status_delay": 0.4})
    kaggle.push("one-kernel")
    assert kaggle.status("one-kernel") == "404"
    time.sleep(0.5)
    kaggle.wait_for("one-kernel", "RUNNING")
    kaggle.executor.let_end()
    kaggle.wait_for("one-kernel", "COMPLETE")
    kaggle.executor._end.clear()
    kaggle.push("one-kernel")
    assert kaggle.status("one-kernel") == "COMPLETE"  # of version 1, as some users saw for a minute
    time.sleep(0.5)
    assert kaggle.status("one-kernel") == "RUNNING"
    label = kaggle.kernel("GetKernelSessionStatus", "one-kernel", versionLabel="v1")
    assert label.json() == {"status": "COMPLETE"}


@pytest.mark.parametrize(
    ("kind", "value", "names", "token"),
    [
        ("missing", "deep", ["left-0.txt"], None),
        ("truncated", None, ["deep/file.txt"], None),
        ("traversal", None, ["deep/file.txt", "left-0.txt", "../x"], None),
        ("surrogates", None, ["deep/file.txt", "left-0.txt"], None),
        ("stale", None, [], None),
    ],
)
def test_faults_of_an_output_listing(wire, kind, value, names, token):
    kaggle = wire(Fault("ListKernelSessionOutput", kind, value=value))
    kaggle.push("one-kernel")
    kaggle.wait_for("one-kernel", "COMPLETE")
    deep = kaggle.executor.jobs[0].folder / "working" / "deep"
    deep.mkdir()
    (deep / "file.txt").write_text("y")
    listed = kaggle.listing("one-kernel")
    assert [file["fileName"] for file in listed["files"]] == names
    assert listed.get("nextPageToken") == token
    assert ("\ud83d" in json.loads(listed["log"] or "[{}]")[0].get("data", "")) is (kind == "surrogates")
    right = kaggle.listing("one-kernel")
    # The files that Kaggle adds are not listed.
    assert [file["fileName"] for file in right["files"]] == ["deep/file.txt", "left-0.txt"]
    assert json.loads(right["log"])[0] == {"stream_name": "stdout", "time": 0.0, "data": "begun\n"}


def test_a_listing_has_pages(wire):
    kaggle = wire()
    kaggle.push("one-kernel")
    kaggle.wait_for("one-kernel", "COMPLETE")
    for number in range(30):
        (kaggle.executor.jobs[0].folder / "working" / f"{number:02}.txt").write_text("z")
    for method, key in (("ListKernelSessionOutput", "fileName"), ("ListKernelFiles", "name")):
        first = kaggle.kernel(method, "one-kernel", pageSize=20).json()
        second = kaggle.kernel(method, "one-kernel", pageSize=20, pageToken=first["nextPageToken"]).json()
        assert "nextPageToken" not in second
        names = [file[key] for file in first["files"] + second["files"]]
        assert len(set(names)) == 31


def test_faults_of_an_output_file(wire):
    kinds = ("expired", "short", "cut", "html", "403")
    kaggle = wire(*(Fault("output", kind, nth=number) for number, kind in enumerate(kinds, start=1)))
    kaggle.push("one-kernel")
    kaggle.wait_for("one-kernel", "COMPLETE")
    url = kaggle.listing("one-kernel")["files"][0]["url"]
    expired = requests.get(url, timeout=10)
    assert expired.status_code == 403 and "text/html" in expired.headers["Content-Type"]
    short = requests.get(url, timeout=10)
    assert len(short.content) == 500 and short.headers["Content-Length"] == "500"
    with pytest.raises(requests.exceptions.RequestException):
        _ = requests.get(url, timeout=10).content
    assert "<html>" in requests.get(url, timeout=10).text
    assert requests.get(url, timeout=10).status_code == 403
    assert requests.get(url, timeout=10).content == b"x" * 1000
    part = requests.get(url, headers={"Range": "bytes=900-"}, timeout=10)
    assert part.status_code == 206 and len(part.content) == 100
    for other in (
        url.replace("left-0", "left-1"),
        url.replace("signature=", "signature=0"),
        url.replace("until=1", "until=0"),
    ):
        assert requests.get(other, timeout=10).status_code == 403


@pytest.mark.parametrize("kind", ["error", "cancelled", "no-output"])
def test_faults_of_a_session(wire, kind):
    kaggle = wire(Fault("session", kind))
    kaggle.push("one-kernel", enableGpu=True)
    kaggle.wait_for(
        "one-kernel", {"error": "ERROR", "cancelled": "CANCEL_ACKNOWLEDGED", "no-output": "COMPLETE"}[kind]
    )
    assert kaggle.listing("one-kernel")["files"] == []
    if kind == "error":
        assert "failureMessage" in kaggle.kernel("GetKernelSessionStatus", "one-kernel").json()
        assert "injected" in kaggle.listing("one-kernel")["log"]


def test_a_session_that_never_ends_holds_its_slot_even_after_a_restart(wire):
    kaggle = wire(Fault("session", "endless"), settings={"gpu_sessions": 1})
    kaggle.push("one-kernel", enableGpu=True)
    kaggle.stop()
    kaggle.start()
    assert kaggle.status("one-kernel") == "RUNNING"
    assert "session count of 1" in kaggle.push("two-kernel", enableGpu=True)["error"]
    assert kaggle.executor.jobs == []
    kaggle.kernel("DeleteKernel", "one-kernel")
    kaggle.kernel("DeleteKernel", "two-kernel")
    assert kaggle.push("two-kernel", enableGpu=True)["versionNumber"] == 1


def test_a_cancelled_session_may_hold_its_slot_until_its_kernel_is_deleted(wire):
    kaggle = wire(Fault("session", "held-slot"), settings={"gpu_sessions": 1})
    kaggle.push("one-kernel", enableGpu=True)
    assert kaggle.status("one-kernel") == "CANCEL_ACKNOWLEDGED"
    assert "session count of 1" in kaggle.push("one-kernel", enableGpu=True)["error"]
    kaggle.stop()
    kaggle.start()
    assert "session count of 1" in kaggle.push("one-kernel", enableGpu=True)["error"]
    used = kaggle.call("GetAcceleratorQuotaStatistics")["gpuQuota"]["timeUsed"]
    assert float(used.removesuffix("s")) == 0.0  # it costs no quota
    kaggle.kernel("DeleteKernel", "one-kernel")
    assert kaggle.push("one-kernel", enableGpu=True)["versionNumber"] == 1


def test_a_version_is_named_by_v_and_its_number_only(wire):
    kaggle = wire()
    kaggle.push("one-kernel")
    kaggle.wait_for("one-kernel", "COMPLETE")
    for method in ("GetKernelSessionStatus", "ListKernelSessionOutput", "ListKernelFiles"):
        assert kaggle.kernel(method, "one-kernel", versionLabel="v1").status_code == 200
        for label in ("1", "v2", "vv1"):
            assert kaggle.kernel(method, "one-kernel", versionLabel=label).status_code == 404
    for method in ("GetKernelSessionStatus", "ListKernelSessionOutput", "GetKernel", "DeleteKernel"):
        assert kaggle.kernel(method, "one-kernel/1").status_code == 403
    assert kaggle.status("one-kernel") == "COMPLETE"


def test_a_session_that_is_run_again_has_the_same_folder_and_inputs(wire):
    kaggle = wire(held=True)
    kaggle.dataset("my-data")
    kaggle.push("one-kernel", datasetDataSources=["alice/my-data"])
    kaggle.wait_for("one-kernel", "RUNNING")
    kaggle.dataset("my-data", [("VERSION", b"two")])
    kaggle.stop()
    kaggle.start()
    kaggle.executor.let_end()
    kaggle.wait_for("one-kernel", "COMPLETE")
    before, after = kaggle.executor.jobs
    assert before.folder == after.folder
    assert [(mount.source / "VERSION").read_text() for mount in after.mounts] == ["one"]
    assert [file["fileName"] for file in kaggle.listing("one-kernel")["files"]] == [
        "left-0.txt",
        "left-1.txt",
    ]
    assert kaggle.effects("SaveKernel") == 1


def test_only_complete_versions_are_mounted(wire):
    kaggle = wire(Fault("session", "cancelled", nth=2))
    for _ in range(2):
        kaggle.push("one-kernel")
        time.sleep(0.2)
    kaggle.push("one-kernel", kernelExecutionType="QUICK_SAVE")
    kaggle.push("saved-kernel", kernelExecutionType="QUICK_SAVE")
    kaggle.push("two-kernel", kernelDataSources=["alice/one-kernel", "alice/saved-kernel"])
    kaggle.wait_for("two-kernel", "COMPLETE")
    [mount] = kaggle.executor.jobs[-1].mounts
    assert mount.target == "notebooks/alice/one-kernel" and mount.source.parent.name == "v1"
    assert (mount.source / "__results__.html").is_file()


def test_a_session_without_the_outputs_of_its_sources(wire):
    kaggle = wire(Fault("session", "no-mount", slug="two"))
    kaggle.push("one-kernel")
    kaggle.wait_for("one-kernel", "COMPLETE")
    for _ in range(2):
        kaggle.push("two-kernel", kernelDataSources=["alice/one-kernel"])
        kaggle.wait_for("two-kernel", "COMPLETE")
    assert [len(job.mounts) for job in kaggle.executor.jobs] == [0, 0, 1]


def test_concurrent_pushes_lose_no_version(wire):
    kaggle = wire()
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda: answers.append(kaggle.push("one-kernel").get("versionNumber", 0)))
        for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken = sorted(number for number in answers if number)
    assert taken == list(range(1, len(taken) + 1)) and len(taken) >= 5
    assert kaggle.effects("SaveKernel") == len(taken)
