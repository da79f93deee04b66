"""Run one script as Kaggle runs it: alone, its working folder its own, inputs read-only, a time limit, no network.

Where the system allows it, network and write protection come from namespaces of the kernel (Linux, `unshare`); elsewhere
Python's sockets are guarded and inputs are links. The log says which.
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

# Of the user's environment only this reaches a kernel; the rest might make a script work here and fail on Kaggle.
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
# What Kaggle adds to the output of a script when it mounts it; readers must not stumble over it.
ADDED_BY_KAGGLE = ("__script__.py", "__results__.html", "__output__.json", "custom.css")
EXECUTED = "__notebook__.ipynb"  # what it adds to that of a notebook, in place of the script: the cells with their outputs
_LOCK_WAIT = 5.0  # seconds
_LOOK_EVERY = 0.5  # seconds between looks at the wish to stop
_GUARD = '''\
"""No network for this kernel: connections are refused, except to this machine."""
import socket as _socket


def _guarded(self, *arguments, way):
    address = arguments[-1]
    local = self.family == getattr(_socket, "AF_UNIX", None) or (
        isinstance(address, tuple) and str(address[0]) in ("127.0.0.1", "::1", "localhost")
    )
    if not local:
        raise OSError(f"no network in this kernel (enable_internet is false): {address!r}")
    return way(self, *arguments)


for _name in ("connect", "connect_ex", "sendto"):
    _way = getattr(_socket.socket, _name)
    setattr(_socket.socket, _name, lambda self, *arguments, way=_way: _guarded(self, *arguments, way=way))
'''

# Runs a notebook as Kaggle does, cell after cell: what they print goes to the log, the first error ends it, and the cells with
# their outputs are left in the working folder either way. Its kernel is reached over a socket file: there may be no network,
# not even a loopback device; the path of such a file may have no more than about 100 characters.
_EXECUTE = """\
import re
import sys
import tempfile
from pathlib import Path

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

source, target = Path(sys.argv[1]), Path(sys.argv[2])
notebook = nbformat.read(source, as_version=4)


class Client(NotebookClient):
    def create_kernel_manager(self):
        self.km = AsyncKernelManager(transport="ipc", ip=folder + "/k", connection_file=folder + "/connection.json")
        return self.km


def show(cell, cell_index, execute_reply):
    for output in cell.get("outputs", []):
        if output.output_type == "stream":
            print(output.text, end="", flush=True)


with tempfile.TemporaryDirectory(prefix="hcd-", dir="/tmp") as folder:
    client = Client(notebook, timeout=None, resources={"metadata": {"path": "."}}, on_cell_executed=show)
    code = 0
    try:
        client.execute()
    except CellExecutionError as error:
        print(re.sub(r"\\x1b\\[[0-9;]*m", "", str(error)), file=sys.stderr, flush=True)
        code = 1
    nbformat.write(notebook, target)
sys.exit(code)
"""


@dataclass(frozen=True)
class Mount:
    """A folder a kernel sees under the input root."""

    source: Path
    place: str  # relative to the input root, such as competitions/<slug>


@dataclass(frozen=True)
class Outcome:
    """How a run ended: 0 is success; `timed_out` when the time limit did it."""

    code: int
    seconds: float
    log: Path
    timed_out: bool = False


@functools.cache
def isolation() -> str:
    """What this system offers: `namespaces` (no network, inputs read-only) or `guard`."""
    if sys.platform != "linux" or not shutil.which("unshare") or not shutil.which("mount"):
        return "guard"
    with tempfile.TemporaryDirectory() as folder:
        for name in ("source", "place"):
            (Path(folder) / name).mkdir()
        mounts = [(Path(folder) / "source", Path(folder) / "place")]
        probe = _namespace_command(
            ["sh", "-c", f"! touch {shlex.quote(folder)}/place/x 2>/dev/null"], mounts, network=False
        )
        try:
            done = subprocess.run(probe, capture_output=True, timeout=20, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return "guard"
    return "namespaces" if done.returncode == 0 else "guard"


def _namespace_command(command: list[str], mounts: list[tuple[Path, Path]], *, network: bool) -> list[str]:
    lines = []
    for source, place in mounts:
        ends = f"{shlex.quote(str(source))} {shlex.quote(str(place))}"
        lines.append(f"mount --bind {ends} && mount -o remount,bind,ro {shlex.quote(str(place))}")
    lines += [] if network else ["{ ip link set lo up 2>/dev/null || true; }"]
    # Entering a user namespace takes back the wish to die with the parent; setpriv (util-linux) makes it again.
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
    """Run a built script, or a built notebook, and wait for it.

    Args:
        script: the built script or .ipynb; a copy is run, alone in its folder.
        folder: of this kernel; working/ in it survives, so that an interrupted run goes on. All else is made anew.
        mounts: its inputs.
        place: what `lib.runtime.session` is told: rehearsal or local.
        threads: processor threads it may use.
        network: whether it may use the network.
        limit: seconds until it is killed, or None.
        gpu: the GPU it may see, or None for all there are.
        workers: processes it trains with where there is no GPU.
        stop: when it is set the script is killed, as by the time limit.
        environ: what the few variables that reach a kernel are taken from; this process's environment by default.

    Raises:
        LaunchError: another run is at work in this folder.
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
        real = isolation() == "namespaces"
        bound = []
        for mount in mounts:
            at = inputs / mount.place
            at.parent.mkdir(parents=True, exist_ok=True)
            if real:
                at.mkdir()
                bound.append((mount.source.resolve(), at))
            else:
                at.symlink_to(mount.source.resolve(), target_is_directory=True)
        command = [sys.executable, str(copy)]
        if script.suffix == ".ipynb":
            command = [sys.executable, "-c", _EXECUTE, str(copy), str(working / EXECUTED)]
        if real:
            command = _namespace_command(command, bound, network=network)
        environment = _environment(
            folder,
            place=place,
            threads=threads,
            workers=workers,
            network=network,
            guarded=not real,
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
                pass_fds=(
                    lock.fileno(),
                ),  # the lock holds for as long as the kernel lives, whatever becomes of us
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509
            )
            try:
                code = _wait(process, until=None if limit is None else started + limit, stop=stop)
            finally:
                _kill_group(process)
        for part in (source, folder / "home", folder / "tmp", folder / "guard"):
            shutil.rmtree(part, ignore_errors=True)
    timed_out = code is None
    return Outcome(-signal.SIGKILL if code is None else code, time.monotonic() - started, log, timed_out)


def workers_of(slug: str) -> int:
    """How many processes a kernel trains with on a CPU: of each experiment fold 0 and the search rehearse two cards."""
    return 2 if slug.endswith(("-fold-0", "-search")) else 1


def decorate(working: Path) -> None:
    """Add to a finished output what Kaggle adds."""
    notebook = (working / EXECUTED).exists()
    for name in ADDED_BY_KAGGLE:
        if not (working / name).exists() and not (notebook and name == "__script__.py"):
            (working / name).touch()


def _wait(
    process: "subprocess.Popen[bytes]", *, until: float | None, stop: threading.Event | None
) -> int | None:
    """The exit code, or None when the time was up or somebody asked to stop."""
    while not (stop is not None and stop.is_set()) and (until is None or time.monotonic() < until):
        with contextlib.suppress(subprocess.TimeoutExpired):
            left = _LOOK_EVERY if until is None else min(_LOOK_EVERY, max(until - time.monotonic(), 0.01))
            return process.wait(timeout=left)
    return None


def _acquire(lock: IO[str], folder: Path) -> None:
    """Take the folder's lock; a kernel whose command was just killed gets a moment to die."""
    deadline = time.monotonic() + _LOCK_WAIT
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError:
            if time.monotonic() > deadline:
                text = f"another run is at work in {folder}: wait for it, or choose another folder with --out"
                raise LaunchError(text) from None
            time.sleep(0.1)


def _describe(*, network: bool) -> str:
    if isolation() == "namespaces":
        return (
            f"namespaces: inputs read-only, {'network on, as the kernel asks' if network else 'no network'}"
        )
    return f"no namespaces here: inputs are links, {'network on, as the kernel asks' if network else 'sockets guarded'}"


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
        (folder / "guard" / "sitecustomize.py").write_text(_GUARD)
        environment["PYTHONPATH"] = str(folder / "guard")
    return environment


def _die_with_parent() -> None:
    """Linux: a kernel does not outlive the command that started it, even one ended by kill -9."""
    import ctypes

    parent_death_signal = 1
    ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGKILL)


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def gpus() -> list[str]:
    """The GPUs of this machine, as CUDA_VISIBLE_DEVICES names them; empty without a driver."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip() not in ("", "-1")]
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(number) for number in range(done.stdout.count("GPU "))]
