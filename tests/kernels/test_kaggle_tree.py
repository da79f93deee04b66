"""The built scripts on Kaggle's own paths, from prepare to a submission, in a mount namespace.

A session on Kaggle requires all 220,025 tiles and a GPU, so HCD_PLACE declares these runs a rehearsal.
Nothing else is set: the scripts must find their inputs themselves. One run sets nothing: it must act as a
real session.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
import pytest
import workbench

from launch.packaging.builder import Built
from lib.runtime.inputs import ADDED_BY_KAGGLE

# Arguments: the new root; the folder with src and working; pairs of a folder and its place under
# /kaggle/input; `--`; the command. All of it is gone with the process: mounts made here are seen by nobody
# else.
_ENTER = r"""
set -e
root=$1 own=$2
shift 2
mount -t tmpfs tmpfs "$root"
for entry in /*; do
    case $entry in /kaggle|/tmp) continue ;; esac
    if [ -L "$entry" ]; then cp -P "$entry" "$root$entry"
    elif [ -d "$entry" ]; then mkdir "$root$entry"; mount --rbind "$entry" "$root$entry"
    fi
done
mkdir -m 1777 "$root/tmp"
mkdir -p "$root/kaggle/src" "$root/kaggle/working" "$root/kaggle/input"
mount --bind "$own/working" "$root/kaggle/working"
readonly_bind() { mkdir -p "$2"; mount --bind "$1" "$2"; mount -o remount,bind,ro "$2"; }
readonly_bind "$own/src" "$root/kaggle/src"
while [ "$1" != -- ]; do
    readonly_bind "$1" "$root/kaggle/input/$2"
    shift 2
done
shift
exec chroot "$root" sh -c 'cd /kaggle/working && exec "$@"' sh "$@"
"""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def enter(
    folder: Path, mounts: Mapping[str, Path], command: list[str], **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Run a command where /kaggle is what is asked for."""
    root = folder / "root"
    root.mkdir(exist_ok=True)
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    pairs = [text for place, source in mounts.items() for text in (str(source.resolve()), place)]
    return subprocess.run(
        [
            "unshare",
            *user,
            "--mount",
            "sh",
            "-c",
            _ENTER,
            "sh",
            str(root),
            str(folder),
            *pairs,
            "--",
            *command,
        ],
        env={
            "PATH": os.environ["PATH"],
            "OMP_NUM_THREADS": "1",
            "KAGGLE_KERNEL_RUN_TYPE": "Batch",
            **environment,
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture
def kaggle(tmp_path: Path) -> Run:
    """Run a built script at /kaggle/src/script.py in /kaggle/working."""
    if sys.platform != "linux" or not shutil.which("unshare") or not shutil.which("chroot"):
        pytest.skip("mount namespaces (unshare) are Linux's")
    if Path(sys.prefix).is_relative_to(tempfile.gettempdir()):
        pytest.skip("Python lies in the temporary folder, which is another one inside")
    for part in ("src", "working"):
        (tmp_path / "trial" / part).mkdir(parents=True)
    trial = enter(tmp_path / "trial", {"a/b": tmp_path}, [sys.executable, "-c", "import torch"])
    if trial.returncode:
        pytest.skip(f"a private /kaggle cannot be mounted here: {trial.stderr.strip()[-200:]}")

    def run(
        name: str, script: Path, mounts: Mapping[str, Path], **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        folder = tmp_path / name
        for part in ("src", "working"):
            (folder / part).mkdir(parents=True)
        shutil.copy(script, folder / "src" / "script.py")
        return enter(folder, mounts, [sys.executable, "/kaggle/src/script.py"], **environment)

    return run


def left(tmp_path: Path, name: str) -> Path:
    """What a script left, with what Kaggle adds to it before it is mounted."""
    working = tmp_path / name / "working"
    for added in ADDED_BY_KAGGLE:
        (working / added).touch()
    return working


def same(working: Path, reference: Path) -> bool:
    """Whether an output holds the bytes of another, less run.json, which holds times."""
    names = set(workbench.record_of(reference)["files"])
    found, wanted = workbench.contents(working), workbench.contents(reference)
    return {name: found.get(name) for name in names} == {name: wanted[name] for name in names}


def test_from_prepare_to_a_submission_on_kaggles_paths(
    kaggle: Run, tmp_path: Path, built: Built, competition: Path, prepared: Path, folds: list[Path]
) -> None:
    place = {"HCD_PLACE": "rehearsal"}
    data = {"competitions/histopathologic-cancer-detection": competition}
    done = kaggle("prepare", workbench.script_of(built, "prepare"), data, **place)
    assert done.returncode == 0, done.stderr
    assert same(left(tmp_path, "prepare"), prepared)
    outputs = {"notebooks/someone/hcd-prepare": left(tmp_path, "prepare")}
    for fold in (0, 1):
        name = f"hcd-x-fold-{fold}"
        done = kaggle(
            name,
            workbench.script_of(built, "train", fold),
            {"notebooks/someone/hcd-prepare": prepared},
            **place,
        )
        assert done.returncode == 0, done.stderr
        assert same(left(tmp_path, name), folds[fold])
        outputs[f"notebooks/someone/{name}"] = left(tmp_path, name)
    done = kaggle("inference", workbench.script_of(built, "inference"), {**data, **outputs}, **place)
    assert done.returncode == 0, done.stderr
    assert "on rehearsal" in done.stdout
    submission = pd.read_csv(left(tmp_path, "inference") / "submission.csv", dtype={"id": str})
    assert (
        submission["id"].tolist()
        == pd.read_csv(competition / "sample_submission.csv", dtype={"id": str})["id"].tolist()
    )
    assert submission["label"].between(0, 1).all()


def test_a_script_told_nothing_takes_kaggle_for_kaggle(
    kaggle: Run, tmp_path: Path, built: Built, competition: Path
) -> None:
    script = workbench.script_of(built, "prepare")
    done = kaggle("prepare", script, {"competitions/histopathologic-cancer-detection": competition})
    assert done.returncode == 1
    message = workbench.one_error(done.stderr)
    assert "on kaggle" in done.stdout  # and so it demands the full data:
    assert "/kaggle/input/competitions/histopathologic-cancer-detection is not in the layout of" in message
    assert "train_labels.csv has 60 rows, the full data 220,025" in message
    assert not [
        path for path in (tmp_path / "prepare" / "working").iterdir() if not path.name.startswith(".")
    ]
