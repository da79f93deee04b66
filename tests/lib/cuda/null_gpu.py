"""The null GPU of null_gpu.cpp: compile it, run a script on it, and control it from that script."""

import ctypes
import fcntl
import multiprocessing
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from multiprocessing import reduction
from pathlib import Path
from typing import Any

_SOURCE = Path(__file__).with_name("null_gpu.cpp")
_STUBBED = re.compile(r"(cuda|cublas|nccl|cu[A-Z])\w+")
_CALLERS = ("torch_cuda", "c10_cuda", "torch_python", "caffe2_nvrtc")  # libraries of torch that call CUDA


class NoNullGpuError(Exception):
    """The null GPU cannot be built here; the message says why."""


def build_null_gpu(folder: Path) -> Path:
    """Compile null_gpu.cpp for the installed torch.

    Every other function of CUDA, cuBLAS and NCCL that torch calls becomes a stub that returns success.

    Args:
        folder: for the library and its sources; exists.

    Returns:
        The library.

    Raises:
        NoNullGpuError: torch has no CUDA, or there is no compiler, or the headers of CUDA are absent.
    """
    torch_folder = Path(str(find_spec("torch").origin)).parent  # type: ignore[union-attr]
    packages = torch_folder.parent
    libraries = [torch_folder / "lib" / f"lib{name}.so" for name in _CALLERS]
    headers = [path.parent for path in sorted((packages / "nvidia").glob("*/include/cuda_runtime_api.h"))]
    headers.append(
        packages / "triton" / "backends" / "nvidia" / "include"
    )  # what NVIDIA's package leaves out
    if sys.platform != "linux" or not libraries[0].is_file():
        raise NoNullGpuError("no null GPU: torch is not built with CUDA here")
    if not (shutil.which("g++") and shutil.which("nm")):
        raise NoNullGpuError("no null GPU: g++ and nm are needed to compile it")
    if not all(
        any((each / name).is_file() for each in headers)
        for name in ("cuda_runtime_api.h", "crt/host_defines.h")
    ):
        raise NoNullGpuError("no null GPU: the headers of CUDA are not installed")
    table = subprocess.run(
        ["nm", "-D", "--undefined-only", *libraries], capture_output=True, text=True, check=True
    )
    called = {line.split()[-1].split("@")[0] for line in table.stdout.splitlines() if " U " in line}
    own = _SOURCE.read_text()
    names = sorted(name for name in called if _STUBBED.fullmatch(name) and f" {name}(" not in own)
    stubs = folder / "stubs.cpp"
    stubs.write_text(
        'extern "C" {\nvoid null_gpu_called(const char*);\n'
        + "".join(f'int {name}() {{ null_gpu_called("{name}"); return 0; }}\n' for name in names)
        + "}\n"
    )
    library = folder / "libnullgpu.so"
    includes = [f"-I{each}" for each in headers]
    command = ["g++", "-std=c++17", "-O1", "-shared", "-fPIC", *includes, "-o", library, _SOURCE, stubs]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[-3000:]
    (folder / "libcuda.so.1").symlink_to(library.name)  # the driver, for what torch loads by its name
    return library


def run_on_null_gpu(
    library: Path, script: Path, *arguments: str, timeout: float
) -> "subprocess.CompletedProcess[str]":
    """Run a Python script in a process that has two null GPUs, for at most `timeout` seconds."""
    root = Path(__file__).resolve().parents[3]
    environment = {
        **os.environ,
        "LD_PRELOAD": str(library),
        "LD_LIBRARY_PATH": str(library.parent),
        "NULL_GPU": str(library),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).with_name("child")), str(root)]),
        "OMP_NUM_THREADS": "1",
        "DISABLE_ADDMM_CUDA_LT": "1",  # cuBLASLt needs answers of a real device
        "PYTORCH_NVML_BASED_CUDA_CHECK": "0",
    }
    command = [sys.executable, str(script), *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )


class NullGpu:
    """The controls of null_gpu.cpp."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(os.environ["NULL_GPU"])
        self._library.null_gpu_set.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
        self._library.null_gpu_count.argtypes = [ctypes.c_char_p]
        self._library.null_gpu_count.restype = ctypes.c_long

    @contextmanager
    def setting(self, name: str, value: int, *, otherwise: int = 0) -> Iterator[None]:
        """A setting for a while."""
        self._library.null_gpu_set(name.encode(), value)
        try:
            yield
        finally:
            self._library.null_gpu_set(name.encode(), otherwise)

    def counted(self, prefix: str, action: Callable[[], Any]) -> int:
        """How many calls whose names begin so the action makes."""
        self._library.null_gpu_set(b"counts", 0)
        action()
        return self.count(prefix)

    def count(self, prefix: str) -> int:
        """How many calls whose names begin so there were since `counted` began."""
        return int(self._library.null_gpu_count(prefix.encode()))


# --- processes ----------------------------------------------------------------------------------------------


class _Descriptor:
    """A file descriptor that goes with a process's arguments to the process."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __getstate__(self) -> dict[str, Any]:
        return {"copy": reduction.DupFd(self.number)}

    def take(self) -> int:
        """The descriptor in the new process; its number is above those that a command names."""
        return fcntl.fcntl(vars(self)["copy"].detach(), fcntl.F_DUPFD_CLOEXEC, 500)


def _run_command(
    command: list[str], environment: dict[str, str], cwd: str | None, descriptors: dict[int, _Descriptor]
) -> None:
    """Run `-m MODULE`, `-c CODE` or a script with its arguments, as Python does at its start."""
    os.environ.clear()
    os.environ.update(environment)
    if cwd:
        os.chdir(cwd)
    taken = {target: descriptor.take() for target, descriptor in descriptors.items()}
    for target, descriptor in taken.items():
        os.dup2(descriptor, target)
        os.close(descriptor)
    if 0 in taken:
        sys.stdin = open(0, closefd=False)  # noqa: PTH123, SIM115
    sys.argv = command[1:] if command[0] == "-m" else ["-c", *command[2:]] if command[0] == "-c" else command
    if command[0] == "-m":
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    elif command[0] == "-c":
        exec(compile(command[1], "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102
    else:
        runpy.run_path(command[0], run_name="__main__")
    sys.stdout.flush()


class ForkedProcess:
    """What `subprocess.Popen` is for a command of Python, but forked by a process that has imported torch.

    That process is Python's fork server. It has used no GPU, so the new one is as one that was started. An
    import of torch and timm costs four seconds. `text` is taken for granted.
    """

    def __init__(
        self,
        command: list[str],
        *,
        env: dict[str, str] | None = None,
        cwd: Path | str | None = None,
        pass_fds: tuple[int, ...] = (),
        text: bool = False,
        **streams: int | None,
    ) -> None:
        assert command[0] == sys.executable
        self.args, self.returncode = command, None
        self.stdin = self.stdout = self.stderr = None
        descriptors = {number: _Descriptor(number) for number in pass_fds}
        of_child = []
        for target, name in enumerate(("stdin", "stdout", "stderr")):
            stream = streams.pop(name, None)
            if stream == subprocess.PIPE:
                ends = os.pipe()
                own, child = reversed(ends) if target == 0 else ends
                setattr(self, name, os.fdopen(own, "wb" if target == 0 else "r"))
            elif stream == subprocess.DEVNULL:
                child = os.open(os.devnull, os.O_RDWR)
            else:
                assert stream is None
                continue
            of_child.append(child)
            descriptors[target] = _Descriptor(child)
        assert not streams, streams
        context = multiprocessing.get_context("forkserver")
        arguments = (command[1:], dict(env or os.environ), cwd and str(cwd), descriptors)
        self._process = context.Process(target=_run_command, args=arguments)
        self._process.start()
        for descriptor in of_child:
            os.close(descriptor)

    def __enter__(self) -> "ForkedProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()

    def poll(self) -> int | None:
        """The exit code, or None."""
        self.returncode = self._process.exitcode
        return self.returncode

    def wait(self) -> int | None:
        """Wait for the end of the process."""
        self._process.join()
        return self.poll()

    def kill(self) -> None:
        """End the process."""
        self._process.kill()

    def communicate(self, input: None = None, timeout: float | None = None) -> tuple[Any, Any]:
        """Wait for the end; returns what the process wrote, a few kilobytes. All checks have a time limit."""
        written = [stream.read() if stream else None for stream in (self.stdout, self.stderr)]
        self.wait()
        return written[0], written[1]


@contextmanager
def forked_processes() -> Iterator[list[ForkedProcess]]:
    """Fork the processes of Python that the project would start; yields those that were."""
    started: list[ForkedProcess] = []

    def start(command: list[str], **options: Any) -> ForkedProcess:
        started.append(ForkedProcess(command, **options))
        return started[-1]

    real = subprocess.Popen
    subprocess.Popen = start  # type: ignore[assignment,misc]
    try:
        yield started
    finally:
        subprocess.Popen = real  # type: ignore[misc]
