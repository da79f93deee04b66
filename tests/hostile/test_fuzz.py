"""Hostile input is accepted or refused with a message of ours, without crash, hang, or file elsewhere.

HCD_FUZZ=20000 runs 20,000 cases of each target, and HCD_FUZZ_SEED selects another set. Target, seed and
number identify a case.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from targets import TARGETS

ROOT = Path(__file__).resolve().parents[2]
CASES = int(os.environ.get("HCD_FUZZ", "0"))
SEED = int(os.environ.get("HCD_FUZZ_SEED", "2018"))


@pytest.mark.parametrize("name", TARGETS)
def test_hostile_input_is_accepted_or_refused_with_a_message_of_ours(name, tmp_path):
    cases = CASES or TARGETS[name].few
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "2",
    }
    command = [
        sys.executable,
        "-W",
        "ignore",
        str(Path(__file__).with_name("fuzz_child.py")),
        name,
        str(cases),
        str(SEED),
        str(tmp_path),
    ]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120 + cases * 5, cwd=tmp_path
    )
    at = (tmp_path / "at").read_text() if (tmp_path / "at").is_file() else "before the first"
    assert done.returncode == 0, f"ended with {done.returncode} at case {at} of {name}: {done.stderr[-2000:]}"
    report = json.loads((tmp_path / "report.json").read_text())
    if CASES:
        print(json.dumps(report))
    assert report["failures"] == {}
    assert report["cases"] == cases == sum(count for _, count in report["outcomes"])
    assert len(report["outcomes"]) > 1 or not TARGETS[name].refuses, (
        "every case went the same way: the target is not reached"
    )
