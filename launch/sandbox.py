"""Sandbox for one kernel, as on Kaggle: no repository, read-only inputs, a time limit, no network.

Linux namespaces (`unshare`) block the network and protect the inputs. On a system without them Python's
sockets are guarded (launch/network_guard.py) and inputs are links. The first line of the kernel's log names
the kind of isolation.
"""

import contextlib
import fcntl
import functools
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from launch.errors import LaunchError
from lib.runtime.inputs import ADDED_BY_KAGGLE, EXECUTED_NOTEBOOK

# Only these variables of the user's environment reach a kernel. Others might make a script work here and fail
# on Kaggle.
_PASSED = (
    "PATH",
    "LANG",
    "LC_ALL",
    "TZ",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
)
_PASSED_WITH_NETWORK = (
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "HF_ENDPOINT", "HF_TOKEN",
)  # fmt: skip
_LOCK_WAIT = 5.0  # seconds
_POLL = 0.5  # seconds between checks of the stop event
# Files that run inside a kernel's process. They are started by path: the kernel does not see this package.
_NETWORK_GUARD = Path(__file__).with_name("network_guard.py")
_NOTEBOOK_RUNNER = Path(__file__).with_name("notebook_runner.py")


@dataclass(frozen=True)
class Mount:
    """A folder that a kernel sees under its input root."""

    source: Path
    target: str  # relative to the input root, such as competitions/<slug>


@dataclass(frozen=True)
class Outcome:
    """The result of a run; `timed_out` when the time limit or the stop event ended it."""

    code: int  # the exit code; 0 is success
    seconds: float
    log: Path
    timed_out: bool = False


@functools.cache
def isolation() -> str:
    """The isolation on this system: `namespaces` (no network, read-only inputs) or `guard` (sockets)."""
    if sys.platform != "linux" or not shutil.which("unshare") or not shutil.which("mount"):
        return "guard"
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "source", Path(folder) / "target"
        source.mkdir()
        target.mkdir()
        test_write = f"! touch {shlex.quote(str(target))}/x 2>/dev/null"
        probe = _namespace_command(["sh", "-c", test_write], [(source, target)], network=False)
        try:
            done = subprocess.run(probe, capture_output=True, timeout=20, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return "guard"
    return "namespaces" if done.returncode == 0 else "guard"


def _namespace_command(command: list[str], mounts: list[tuple[Path, Path]], *, network: bool) -> list[str]:
    """Wrap a command in new namespaces, with each (source, target) of `mounts` bound read-only."""
    lines = []
    for source, target in mounts:
        paths = f"{shlex.quote(str(source))} {shlex.quote(str(target))}"
        lines.append(f"mount --bind {paths} && mount -o remount,bind,ro {shlex.quote(str(target))}")
    lines += [] if network else ["{ ip link set lo up 2>/dev/null || true; }"]
    # Entering a user namespace clears the parent-death signal; setpriv (util-linux) sets it again.
    lines.append('exec setpriv --pdeathsig KILL "$@"' if shutil.which("setpriv") else 'exec "$@"')
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    unshare = ["unshare", *user, "--mount", *([] if network else ["--net"])]
    return [*unshare, "sh", "-c", " && ".join(lines), "sh", *command]


def run_script(
    script: Path,
    *,
    folder: Path,
    mounts: Sequence[Mount],
    place: str,
    threads: int,
    network: bool,
    limit: float | None,
    gpu: str | None = None,
    workers: int = 1,
    stop: threading.Event | None = None,
    environ: Mapping[str, str] | None = None,
) -> Outcome:
    """Run a built script or notebook and wait for its end.

    Args:
        script: the built .py or .ipynb file. A copy runs, alone in its folder.
        folder: of this kernel. Its working/ is kept, so that an interrupted run resumes; all else is created
            again.
        mounts: the kernel's inputs.
        place: the value of HCD_PLACE for `lib.runtime.session`: rehearsal or local.
        threads: CPU threads the kernel may use.
        network: whether the kernel has a network.
        limit: seconds until the kernel is killed, or None.
        gpu: the value of CUDA_VISIBLE_DEVICES, or None for all GPUs.
        workers: number of training processes where there is no GPU.
        stop: the kernel is killed when this event is set.
        environ: source of the few variables that reach a kernel; by default the environment of this process.

    Raises:
        LaunchError: another run uses this folder.
    """
    working, source, inputs = folder / "working", folder / "src", folder / "input"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        _acquire(lock, folder)
        for part in (source, inputs, folder / "home", folder / "tmp", folder / "guard"):
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
        working.mkdir(exist_ok=True)
        copy = source / f"script{script.suffix}"
        copy.write_bytes(script.read_bytes())
        namespaces = isolation() == "namespaces"
        bind_mounts = []
        for mount in mounts:
            target = inputs / mount.target
            target.parent.mkdir(parents=True, exist_ok=True)
            if namespaces:
                target.mkdir()
                bind_mounts.append((mount.source.resolve(), target))
            else:
                target.symlink_to(mount.source.resolve(), target_is_directory=True)
        command = [sys.executable, str(copy)]
        if script.suffix == ".ipynb":
            # -P: the runner's folder, this package, is not put on the module path.
            command = [
                sys.executable,
                "-P",
                str(_NOTEBOOK_RUNNER),
                str(copy),
                str(working / EXECUTED_NOTEBOOK),
            ]
        if namespaces:
            command = _namespace_command(command, bind_mounts, network=network)
        environment = _environment(
            folder,
            place=place,
            threads=threads,
            workers=workers,
            network=network,
            guarded=not namespaces,
            gpu=gpu,
            environ=os.environ if environ is None else environ,
        )
        started, log = time.monotonic(), folder / "log.txt"
        with log.open("wb") as stream:
            stream.write(f"isolation: {_describe(network=network)}\n".encode())
            stream.flush()
            process = subprocess.Popen(
                command,
                cwd=working,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # The child inherits the lock and holds it until it ends, even if this process is killed.
                pass_fds=(lock.fileno(),),
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509
            )
            try:
                code = _wait(process, deadline=None if limit is None else started + limit, stop=stop)
            finally:
                _kill_group(process)
        for part in (source, folder / "home", folder / "tmp", folder / "guard"):
            shutil.rmtree(part, ignore_errors=True)
    timed_out = code is None
    return Outcome(-signal.SIGKILL if code is None else code, time.monotonic() - started, log, timed_out)


def cpu_workers(slug: str) -> int:
    """The number of training processes on a CPU: 2 (for two GPUs) in fold 0 and in a search, else 1."""
    return 2 if slug.endswith(("-fold-0", "-search")) else 1


def add_kaggle_files(working: Path) -> None:
    """Add the files to a finished output that Kaggle adds."""
    notebook = (working / EXECUTED_NOTEBOOK).exists()
    for name in ADDED_BY_KAGGLE:
        if not (working / name).exists() and not (notebook and name == "__script__.py"):
            (working / name).touch()


def _wait(
    process: "subprocess.Popen[bytes]", *, deadline: float | None, stop: threading.Event | None
) -> int | None:
    """The exit code, or None when the deadline passed or `stop` was set."""
    while not (stop is not None and stop.is_set()) and (deadline is None or time.monotonic() < deadline):
        with contextlib.suppress(subprocess.TimeoutExpired):
            left = _POLL if deadline is None else min(_POLL, max(deadline - time.monotonic(), 0.01))
            return process.wait(timeout=left)
    return None


def is_running(folder: Path) -> bool:
    """Whether a kernel runs in this folder, started by any command on this machine."""
    file = folder / "lock"
    if not file.is_file():
        return False
    with file.open("r") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def _acquire(lock: IO[str], folder: Path) -> None:
    """Lock the folder.

    It waits a moment, because the kernel of a command that was just killed may still hold the lock. `flock`
    and not filelock: the kernel's process inherits this lock.
    """
    deadline = time.monotonic() + _LOCK_WAIT
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError:
            if time.monotonic() > deadline:
                raise LaunchError(
                    f"another run uses {folder}: wait for its end, or choose another folder with --out"
                ) from None
            time.sleep(0.1)


def _describe(*, network: bool) -> str:
    if isolation() == "namespaces":
        network_state = "network on, as the kernel requests" if network else "no network"
        return f"namespaces: inputs read-only, {network_state}"
    network_state = "network on, as the kernel requests" if network else "sockets guarded"
    return f"no namespaces here: inputs are links, {network_state}"


def _environment(
    folder: Path,
    *,
    place: str,
    threads: int,
    workers: int,
    network: bool,
    guarded: bool,
    gpu: str | None,
    environ: Mapping[str, str],
) -> dict[str, str]:
    names = (*_PASSED, *_PASSED_WITH_NETWORK) if network else _PASSED
    environment = {name: environ[name] for name in names if name in environ}
    environment |= {
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "HCD_INPUT": str(folder / "input"),
        "HCD_PLACE": place,
        "KAGGLE_KERNEL_RUN_TYPE": "Batch",
        "HCD_WORKERS": str(workers),
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "NO_ALBUMENTATIONS_UPDATE": "1",
        "PYTHONUNBUFFERED": "1",
    }
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    if guarded and not network:
        shutil.copyfile(_NETWORK_GUARD, folder / "guard" / "sitecustomize.py")
        environment["PYTHONPATH"] = str(folder / "guard")
    return environment


def _die_with_parent() -> None:
    """Linux: kill this process when its parent ends, even by `kill -9`."""
    import ctypes

    parent_death_signal = 1
    ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGKILL)


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def gpus() -> list[str]:
    """The GPUs of this machine by their names in CUDA_VISIBLE_DEVICES; empty without a driver."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip() not in ("", "-1")]
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(number) for number in range(done.stdout.count("GPU "))]
