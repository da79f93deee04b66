"""The server of the emulated Kaggle: its folder, accounts, durable changes, and log streams."""

import base64
import json
import threading

import pytest
import requests
from emulated_wire import Wire
from emulated_world import TOKEN

from launch.emulator.faults import Fault
from launch.errors import LaunchError


def test_a_folder_or_port_in_use_is_refused(wire):
    from launch.emulator.server import Server

    kaggle = wire()
    with pytest.raises(LaunchError, match="another emulated Kaggle uses"):
        Wire(kaggle.folder)
    with pytest.raises(LaunchError, match="cannot be used"):
        Server(kaggle.kaggle, port=kaggle.server.port)
    kaggle.stop()
    kaggle.start()


def test_a_state_of_another_version_is_refused_and_the_folder_unlocked(wire):
    kaggle = wire()
    kaggle.push("one-kernel")
    kaggle.stop()
    path = kaggle.kaggle.account.folder / "state.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps({**state, "format": 1}))
    with pytest.raises(LaunchError, match="written by another version"):
        kaggle.start()
    path.write_text(json.dumps(state))
    kaggle.start()
    assert kaggle.effects("SaveKernel") == 1


def test_requests_of_other_accounts_are_refused(wire):
    kaggle = wire()
    kaggle.push("one-kernel")

    def basic(user: str, key: str) -> dict[str, str]:
        return {"Authorization": "Basic " + base64.b64encode(f"{user}:{key}".encode()).decode()}

    for headers in ({}, {"Authorization": "Bearer no"}, basic("alice", "no"), basic("bob", TOKEN)):
        refused = kaggle.ask("GetAcceleratorQuotaStatistics", headers=headers)
        assert (refused.status_code, refused.json()) == (401, {"code": 401, "message": "Unauthenticated"})
    assert kaggle.ask("GetAcceleratorQuotaStatistics", headers=basic("alice", TOKEN)).status_code == 200
    assert kaggle.call("IntrospectToken", token="no") == {"active": False}
    assert kaggle.ask("GetKernelSessionStatus", userName="bob", kernelSlug="one-kernel").status_code == 403
    assert kaggle.ask("GetDatasetStatus", ownerSlug="bob", datasetSlug="any-data").status_code == 403
    assert kaggle.ask("GetCompetition", competitionName="titanic").status_code == 404
    assert kaggle.ask("NoSuchMethod").json()["code"] == 404
    requests.put(f"{kaggle.address}/upload/{TOKEN}", data=b"x", timeout=10)
    requests.get(f"{kaggle.address}/{TOKEN}", timeout=10)
    assert TOKEN not in kaggle.requests()
    line = next(
        line for line in map(json.loads, kaggle.requests().splitlines()) if line["method"] == "SaveKernel"
    )
    assert (line["slug"], line["status"], line["version"], line["changes"]) == ("one-kernel", 200, 1, True)


def test_hooks_are_called_before_and_after_a_change_is_durable(wire):
    kaggle = wire(Fault("SaveKernel", "capacity", slug="refused"))
    calls, state = [], kaggle.kaggle.account.folder / "state.json"

    def durable() -> int:
        return len(json.loads(state.read_text())["changes"]) if state.is_file() else 0

    kaggle.kaggle.account.before_change = lambda method, slug: calls.append(
        ("before", method, slug, durable())
    )
    kaggle.kaggle.account.after_change = lambda method, slug: calls.append(("after", method, slug, durable()))
    kaggle.push("refused-kernel")
    assert calls == []  # a refusal is no change
    kaggle.push("one-kernel")
    kaggle.dataset("my-data")
    assert [call for call in calls if call[1] in ("SaveKernel", "CreateDataset")] == [
        ("before", "SaveKernel", "one-kernel", 0),
        ("after", "SaveKernel", "one-kernel", 1),
        ("before", "CreateDataset", "my-data", 1),
        ("after", "CreateDataset", "my-data", 2),
    ]
    assert {call[1] for call in calls} == {"SaveKernel", "CreateDataset", "StartBlobUpload", "upload"}
    kaggle.stop()
    kaggle.start()
    assert [change["method"] for change in kaggle.kaggle.account.changes()] == ["SaveKernel", "CreateDataset"]


def test_a_refused_log_stream_and_faults_that_are_not_valid(wire):
    kaggle = wire(Fault("log", "503"), Fault("log", "surrogates", nth=4), held=True)
    kaggle.push("one-kernel")
    kaggle.wait_for("one-kernel", "RUNNING")
    url = f"{kaggle.address}/api/v1/kernels/logs/stream/alice/one-kernel"
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert requests.get(url, headers=headers, timeout=10).status_code == 503
    threading.Timer(0.3, kaggle.executor.let_end).start()
    lines = requests.get(url, headers=headers, timeout=10).text.split("\n\n")
    assert lines == [
        'data: {"stream_name": "stdout", "time": 0.0, "data": "begun\\n"}',
        "data: END_OF_LOG",
        "",
    ]
    assert requests.get(f"{url}?versionLabel=v1", headers=headers, timeout=10).json()[0]["data"] == "begun\n"
    assert "\ud83d" in requests.get(url, headers=headers, timeout=10).json()[0]["data"]
    assert requests.get(f"{url}?versionLabel=1", headers=headers, timeout=10).status_code == 404
    for fault in (
        Fault("SaveKernel", "reset_after"),
        Fault("nowhere", "500"),
        Fault("score", "error", nth=0),
    ):
        with pytest.raises(LaunchError):
            wire(fault)
    for fault in (
        Fault("GetKernelSessionStatus", "status"),
        Fault("SaveKernel", "timeout", value="long"),
        Fault("GetAcceleratorQuotaStatistics", "shrunk"),
    ):
        with pytest.raises(LaunchError):
            wire(fault)
