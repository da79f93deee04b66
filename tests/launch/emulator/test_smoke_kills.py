"""`kill -9` of a whole rehearsal, with its kernels and service: the submission keeps its bytes.

It takes minutes per kill, so it runs only on request:

    HCD_SMOKE_KILLS=50 pytest tests/launch/emulator/test_smoke_kills.py
"""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
KILLS = int(os.environ.get("HCD_SMOKE_KILLS") or 0)
REAL = ROOT.parent / "shared" / "tiles" / "unpack.py"
_KILL_AFTER = (1.0, 14.0)  # seconds between a start and its kill
_KILLS_PER_CAMPAIGN = 8  # then it runs to its end


@pytest.mark.skipif(not KILLS, reason="minutes long: set HCD_SMOKE_KILLS to the number of kills")
@pytest.mark.skipif(not REAL.is_file(), reason="no real tiles here: ../shared/tiles is absent")
def test_a_rehearsal_killed_at_random_times_ends_with_the_same_submission(tmp_path):
    data = tmp_path / "real"
    subprocess.run([sys.executable, str(REAL), str(data)], check=True, capture_output=True)

    def start(out: Path) -> subprocess.Popen:
        command = [
            sys.executable,
            "build_kernel.py",
            "smoke",
            "--data",
            str(data),
            "--tiles",
            "300",
            "--set",
            "backbone=test_resnet.r160_in1k",
            "--out",
            str(out),
        ]
        return subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def submission(out: Path) -> bytes:
        return next((out / "campaign" / "outputs").glob("hcd-*-inference/submission.csv")).read_bytes()

    output, _ = (undisturbed := start(tmp_path / "undisturbed")).communicate(timeout=600)
    assert undisturbed.returncode == 0, output
    expected = submission(tmp_path / "undisturbed")
    generator, killed, late, campaigns = random.Random(0), 0, 0, 0
    while killed < KILLS:
        out = tmp_path / f"killed-{campaigns}"
        campaigns += 1
        for _ in range(min(_KILLS_PER_CAMPAIGN, KILLS - killed)):
            process = start(out)
            try:
                process.communicate(timeout=generator.uniform(*_KILL_AFTER))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                killed += 1
            else:
                late += 1  # it ended before the kill
                break
        output, _ = (last := start(out)).communicate(timeout=600)
        assert last.returncode == 0, f"after {killed} kills: {output}"
        assert submission(out) == expected, f"after {killed} kills the submission differs"
        print(f"{campaigns} campaigns, {killed} kills, {late} ended before the kill", flush=True)
