"""Faults of the emulated Kaggle: where they are read from, and failed requests."""

import pytest
import requests

from launch.emulator.faults import Fault, load_faults
from launch.errors import LaunchError


def test_faults_are_read_from_a_file_and_all_problems_are_listed(tmp_path):
    path = tmp_path / "faults.json"
    path.write_text('[{"on": "SaveKernel", "kind": "500", "times": 2}]')
    assert load_faults(path) == [Fault("SaveKernel", "500", times=2)]
    path.write_text('[{"on": "nowhere", "kind": "500"}, {"kind": 5, "colour": "red"}, 7]')
    with pytest.raises(LaunchError) as failure:
        load_faults(path)
    assert all(
        text in str(failure.value)
        for text in ("'nowhere'", "colour", "on is missing", "kind must be", "entry 3")
    )


@pytest.mark.parametrize("kind", ["400", "401", "403", "404", "429", "500", "503"])
def test_a_refusal_has_its_status_and_no_effect(wire, kind):
    kaggle = wire(Fault("SaveKernel", kind, value=7 if kind == "429" else None))
    answer = kaggle.ask("SaveKernel", **kaggle.push_body("one-kernel"))
    assert answer.status_code == int(kind) and answer.json()["code"] == int(kind)
    assert answer.headers.get("Retry-After") == ("7" if kind == "429" else None)
    assert kaggle.effects("SaveKernel") == 0
    assert kaggle.push("one-kernel")["versionNumber"] == 1


@pytest.mark.parametrize(("kind", "effects"), [("reset-before", 0), ("reset-after", 1), ("timeout", 1)])
def test_a_connection_that_is_reset(wire, kind, effects):
    kaggle = wire(Fault("SaveKernel", kind, value=0.1 if kind == "timeout" else None))
    with pytest.raises(requests.exceptions.RequestException) as failure:
        kaggle.ask("SaveKernel", **kaggle.push_body("one-kernel"))
    assert "reset by peer" in str(failure.value)  # a reset, not an end of the stream
    assert kaggle.effects("SaveKernel") == effects


@pytest.mark.parametrize(("kind", "effects"), [("html", 0), ("html-after", 1), ("empty", 0)])
def test_an_answer_without_content(wire, kind, effects):
    kaggle = wire(Fault("SaveKernel", kind))
    answer = kaggle.ask("SaveKernel", **kaggle.push_body("one-kernel"))
    assert answer.status_code == 200
    assert answer.text == "{}" if kind == "empty" else answer.headers["Content-Type"].startswith("text/html")
    assert kaggle.effects("SaveKernel") == effects


def test_faults_count_the_requests_they_match(wire):
    kaggle = wire(Fault("GetKernelSessionStatus", "status", slug="fold", nth=2, times=2, value="WARMING_UP"))
    kaggle.push("hcd-fold-0")
    kaggle.push("hcd-other")
    kaggle.wait_for("hcd-other", "COMPLETE")
    assert [kaggle.status("hcd-fold-0") == "WARMING_UP" for _ in range(4)] == [False, True, True, False]
    assert len(kaggle.kaggle.account.faults.fired) == 2
