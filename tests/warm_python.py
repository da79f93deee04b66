"""Python processes that start in milliseconds: forked from one that has imported torch and more.

`warm_python.Popen` stands in for `subprocess.Popen` where a test needs many processes of `python SCRIPT` or
`python -m MODULE` and their start is not what it tests: a fresh interpreter imports for four seconds. The
fork has imported nothing of this project. It has the arguments, environment, folder and files of its own that
a new process would have.

Run as a script, this file is the process that is forked.
"""

import array
import atexit
import contextlib
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

IMPORTED = (
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "pandas",
    "PIL.Image",
    "safetensors.torch",
    "scipy.stats",
    "sklearn.cluster",
    "sklearn.linear_model",
    "sklearn.metrics",
    "timm",
    "torch",
    "torch.distributed",
    "torch.nn.parallel",
)
_REQUEST = 1 << 20  # bytes


class _Server:
    """The process that is forked, and the socket to it; it ends with this process."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.owner = os.getpid()
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__, str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        theirs.close()
        atexit.register(self._end)

    def fork(self, request: Mapping[str, Any], files: Sequence[int]) -> int:
        """Start a process with these files; its id."""
        passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))]
        self._socket.sendmsg([json.dumps(request).encode()], passed)
        return int(self._socket.recv(64))

    def _end(self) -> None:
        if os.getpid() == self.owner:
            self._socket.close()
            self._process.wait()


_servers: list[_Server] = []
_one_at_a_time = threading.Lock()


class Popen:
    """The part of `subprocess.Popen` that this project uses."""

    def __init__(
        self,
        args: Sequence[str],
        *,
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: Any = None,
        stdout: Any = None,
        stderr: Any = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        assert args[0] == sys.executable, args
        self.args, self.returncode, self.stdin = list(args), None, None
        closed: list[int] = []
        if stdin == subprocess.PIPE:
            source, sink = os.pipe()
            closed.append(source)
            self.stdin = os.fdopen(sink, "wb")
        else:
            source = _opened(stdin, 0, closed)
        out = _opened(stdout, 1, closed)
        error = out if stderr == subprocess.STDOUT else _opened(stderr, 2, closed)
        self._status, status = os.pipe()
        closed.append(status)
        request = {
            "args": self.args[1:],
            "cwd": str(cwd or Path.cwd()),
            "env": dict(os.environ if env is None else env),
            "numbers": [0, 1, 2, *pass_fds],
        }
        try:
            with _one_at_a_time:
                if not _servers or _servers[-1].owner != os.getpid():
                    _servers.append(_Server())
                self.pid = _servers[-1].fork(request, [status, source, out, error, *pass_fds])
        finally:
            for file in closed:
                os.close(file)

    def poll(self) -> int | None:
        """The exit code, negative after a signal; None while the process runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; the exit code."""
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            status = os.read(self._status, 64)
            self.returncode = os.waitstatus_to_exitcode(int(status)) if status else -signal.SIGKILL
            os.close(self._status)
        return self.returncode

    def kill(self) -> None:
        """End the process, if it runs."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


def _opened(file: Any, number: int, closed: list[int]) -> int:
    """The descriptor of stdin, stdout or stderr; one that was opened here is added to `closed`."""
    if file is None:
        return number
    if file == subprocess.DEVNULL:
        closed.append(os.open(os.devnull, os.O_RDWR))
        return closed[-1]
    return file if isinstance(file, int) else int(file.fileno())


def run(args: Sequence[str], *, timeout: float, **options: Any) -> "subprocess.CompletedProcess[str]":
    """As `subprocess.run` with `capture_output` and `text`; the process is killed at the time limit."""
    import tempfile

    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as error:
        process = Popen(args, stdin=subprocess.DEVNULL, stdout=out, stderr=error, **options)
        try:
            process.wait(timeout)
        finally:
            process.kill()
        texts = [os.pread(file.fileno(), 1 << 30, 0).decode() for file in (out, error)]
    return subprocess.CompletedProcess(args, process.wait(), *texts)


# --- the process that is forked -----------------------------------------------------------------------------


def _serve(channel: socket.socket) -> None:
    """Fork for each request, and tell each exit status; until the other side closes the socket."""
    for name in IMPORTED:
        importlib.import_module(name)
    awake, wake = os.pipe()
    for end in (awake, wake):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    running: dict[int, int] = {}  # where to write the exit status, by process id
    while True:
        ready, _, _ = select.select([channel, awake], [], [])
        if awake in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(awake, 4096)
        while running:
            process, status = os.waitpid(-1, os.WNOHANG)
            if not process:
                break
            with contextlib.suppress(BrokenPipeError), os.fdopen(running.pop(process), "w") as stream:
                stream.write(str(status))
        if channel not in ready:
            continue
        message, files, _, _ = socket.recv_fds(channel, _REQUEST, 64)
        if not message:
            for process in running:
                os.kill(process, signal.SIGKILL)
            return
        process = os.fork()
        if not process:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for file in (channel.fileno(), awake, wake, *running.values()):
                os.close(file)
            channel.detach()
            _become(json.loads(message), files)
        running[process] = files[0]
        for file in files[1:]:
            os.close(file)
        channel.send(str(process).encode())


def _become(request: dict[str, Any], files: list[int]) -> None:
    """Run what the request asks for in this process, and end it."""
    code = 1
    try:
        _take(files, request["numbers"])
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        for name in ("stdin", "stdout", "stderr"):
            number = ("stdin", "stdout", "stderr").index(name)
            setattr(sys, name, open(number, "r" if not number else "w", closefd=False, buffering=1))  # noqa: PTH123, SIM115
        arguments: list[str] = request["args"]
        sys.orig_argv[:] = [sys.executable, *arguments]
        module = arguments[0] == "-m"
        first = str(Path.cwd()) if module else str(Path(arguments[0]).resolve().parent)
        added = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
        sys.path[:] = [first, *added, *sys.path]
        if any((Path(path) / "sitecustomize.py").is_file() for path in added):
            sys.modules.pop("sitecustomize", None)
            importlib.import_module("sitecustomize")
        sys.argv[:] = arguments[1:] if module else arguments
        if module:
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(arguments[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as a new process would
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _take(files: list[int], numbers: list[int]) -> None:
    """Give the files, all but the first, these numbers, and close what they were."""
    os.close(files[0])  # the process that forks writes the status
    above = max(*numbers, *files) + 1
    for place, file in enumerate(files[1:]):
        os.dup2(file, above + place)
        os.close(file)
    for place, number in enumerate(numbers):
        os.dup2(above + place, number)
        os.close(above + place)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
