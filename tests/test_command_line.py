"""What the command line does when it is not allowed to write, and when somebody interrupts it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from build_kernel import command_line

ROOT = Path(__file__).resolve().parents[1]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="/sys and /proc are Linux's")


@LINUX
@pytest.mark.parametrize("command", ["build", "smoke"])
def test_a_folder_that_cannot_be_written_is_named_without_a_traceback(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody makes folders in /sys, root neither."""
    assert command_line([command, "--out", "/sys/hcd/out"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: /sys/hcd cannot be read or written") and "--out" in said and len(said.splitlines()) == 1


def _interruptible() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _processes_in(folder: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "cwd").readlink().is_relative_to(folder):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


@LINUX
def test_ctrl_c_twice_leaves_nothing_at_work_and_the_same_command_goes_on(tmp_path: Path) -> None:
    knobs = ["weights=none", "epochs=2", "warmup_epochs=0", "input_size=32", "views=1", "stain_groups=6"]
    command = [sys.executable, "build_kernel.py", "smoke", "--tiles", "60", "--folds", "2", "--out", str(tmp_path / "run")]
    command += [word for knob in knobs for word in ("--set", knob)]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # What a shell starts in the background ignores interrupts, and so do its children: these tests may be such.
            preexec_fn=_interruptible,
        )

    process = start()
    assert process.stdout is not None
    while "pushed, version 1" not in (line := process.stdout.readline()):
        assert line, process.communicate()
    time.sleep(0.5)
    for _ in range(2):  # as a person does who does not believe the first one
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.05)
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "goes on from here" in said or process.returncode == -signal.SIGINT
    deadline = time.monotonic() + 20
    while _processes_in(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not _processes_in(tmp_path)
    again = start()
    printed, said = again.communicate(timeout=240)
    assert again.returncode == 0, said
    assert "scored by the loopback Kaggle" in printed
