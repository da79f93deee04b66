"""What the tests of the kernels share: run a built script as Kaggle would, and look at what it left."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import warm_python

from launch.experiments import Experiment, load_experiment
from launch.packaging.builder import Built
from launch.packaging.bundle import kernel_parameters
from launch.plan import Kernel, plan_kernels

ROOT = Path(__file__).resolve().parents[2]
COMPETITION = "competitions/histopathologic-cancer-detection"
BUNDLE = "b" * 64  # of kernels that run in this process
# A fold in a fraction of a second: what is tested is what the kernels do, not how well they learn.
KNOBS = {
    "backbone": "test_resnet",
    "weights": "none",
    "input_size": "32",
    "epochs": "2",
    "warmup_epochs": "0",
    "batch_size": "16",
    "num_folds": "2",
    "tta_views": "1",
    "stain_groups": "8",
}
_REST_OF_A_WRITE = re.compile(r"\..+\.\d+\.part")  # lib.files.write_atomic, killed


def experiment(**knobs: str) -> Experiment:
    """The smoke experiment with the knobs above, and those given."""
    return load_experiment("smoke", [f"{key}={value}" for key, value in {**KNOBS, **knobs}.items()])


def kernel_of(kernels: Iterable[Kernel], kind: str, fold: int = 0) -> Kernel:
    """The kernel of a kind; of the train kernels, that of a fold."""
    return next(
        kernel for kernel in kernels if kernel.kind == kind and (kind != "train" or kernel.fold == fold)
    )


def script_of(built: Built, kind: str, fold: int = 0) -> Path:
    """The built script of a kernel."""
    return built.script(kernel_of(built.kernels, kind, fold))


def parameters_of(
    kind: str,
    *,
    fold: int = 0,
    strict_bundle: bool = False,
    experiments: list[Experiment] | None = None,
    **knobs: str,
) -> dict[str, Any]:
    """What the builder would write into a kernel, for recipes that run in this process."""
    kernel = kernel_of(plan_kernels(experiments or [experiment(**knobs)]), kind, fold)
    return kernel_parameters(kernel, owner="someone", bundle=BUNDLE, commit="", strict_bundle=strict_bundle)


def mount(inputs: Path, source: Path, place: str) -> None:
    """Put a folder where a kernel looks for its inputs."""
    at = inputs / place
    at.parent.mkdir(parents=True, exist_ok=True)
    at.symlink_to(source, target_is_directory=True)


def environment(folder: Path, inputs: Path) -> dict[str, str]:
    """All that a kernel sees of the environment."""
    (folder / "tmp").mkdir(exist_ok=True)
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(folder / "tmp"),
        "TMPDIR": str(folder / "tmp"),
        "HCD_INPUT": str(inputs),
        "HCD_PLACE": "rehearsal",
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "Agg",
    }


def start(script: Path, *, working: Path, inputs: Path, log: Path) -> warm_python.Popen:
    """Start a script alone in its working folder; its output goes to `log`, errors included."""
    working.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as stream:
        return warm_python.Popen(
            [sys.executable, str(script)],
            cwd=working,
            env=environment(inputs.parent, inputs),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )


def run(script: Path, *, working: Path, inputs: Path) -> "subprocess.CompletedProcess[str]":
    """Run a script to its end."""
    working.mkdir(parents=True, exist_ok=True)
    return warm_python.run(
        [sys.executable, str(script)], cwd=working, env=environment(inputs.parent, inputs), timeout=120
    )


def sha256(content: bytes) -> str:
    """In hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def contents(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file, but for what a killed write left beside."""
    files = sorted(
        path for path in folder.rglob("*") if path.is_file() and not _REST_OF_A_WRITE.fullmatch(path.name)
    )
    return {path.relative_to(folder).as_posix(): sha256(path.read_bytes()) for path in files}


def record_of(folder: Path) -> dict[str, Any]:
    """run.json as it is."""
    record: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return record


def outputs(folder: Path) -> dict[str, str]:
    """What run.json stands for: itself and the files it lists, by their SHA-256."""
    found = contents(folder)
    return {name: found.get(name, "missing") for name in ("run.json", *record_of(folder)["files"])}


def reseal(folder: Path, **changes: object) -> None:
    """Change run.json, and make it agree with the files again: a record that only its meaning can refuse."""
    record = record_of(folder) | changes
    for name, entry in record["files"].items():
        content = (folder / name).read_bytes()
        entry |= {"bytes": len(content), "sha256": sha256(content)}
    (folder / "run.json").write_text(json.dumps(record))


def flip_byte(path: Path, at: int = -100) -> None:
    """Damage a file without changing its size."""
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(content)


def one_error(stderr: str) -> str:
    """The message of a kernel that refused: one, without a traceback."""
    assert stderr.startswith("error: "), stderr
    assert "Traceback" not in stderr
    assert len(re.findall(r"^error:", stderr, re.MULTILINE)) == 1, stderr
    return stderr.removeprefix("error: ")
