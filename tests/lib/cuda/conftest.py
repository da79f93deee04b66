"""A null GPU, built where there is a compiler, and the results of the checks that ran on it."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from filelock import FileLock

_SOURCE = Path(__file__).with_name("null_gpu.cpp")
_CHECKS = Path(__file__).with_name("cuda_checks.py")
_STUBBED = re.compile(r"(cuda|cublas|nccl|cu[A-Z])\w+")
_CALLERS = ("torch_cuda", "c10_cuda", "torch_python", "caffe2_nvrtc")  # libraries of torch that call CUDA
_LIMIT = 500  # seconds for all checks


def build_null_gpu(folder: Path) -> Path:
    """Compile null_gpu.cpp for the installed torch; skip where that cannot be done.

    Every other function of CUDA, cuBLAS and NCCL that torch calls becomes a stub that returns success.
    """
    torch_folder = Path(str(find_spec("torch").origin)).parent  # type: ignore[union-attr]
    packages = torch_folder.parent
    libraries = [torch_folder / "lib" / f"lib{name}.so" for name in _CALLERS]
    headers = [path.parent for path in sorted((packages / "nvidia").glob("*/include/cuda_runtime_api.h"))]
    headers.append(
        packages / "triton" / "backends" / "nvidia" / "include"
    )  # what NVIDIA's package leaves out
    if sys.platform != "linux" or not libraries[0].is_file():
        pytest.skip("no null GPU: torch is not built with CUDA here")
    if not (shutil.which("g++") and shutil.which("nm")):
        pytest.skip("no null GPU: g++ and nm are needed to compile it")
    if not all(
        any((each / name).is_file() for each in headers)
        for name in ("cuda_runtime_api.h", "crt/host_defines.h")
    ):
        pytest.skip("no null GPU: the headers of CUDA are not installed")
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


def run_on_null_gpu(library: Path, script: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a Python script in a process that has two null GPUs."""
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
        command, env=environment, capture_output=True, text=True, timeout=_LIMIT, check=False
    )


@pytest.fixture(scope="session")
def cuda_results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Traceback of each check on the null GPU by its name; empty where it passed."""
    base = tmp_path_factory.getbasetemp()
    # The processes of pytest-xdist have folders of their own in one that they share.
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "null-gpu"
    results = folder / "results.json"
    with FileLock(f"{folder}.lock"):
        if not results.is_file():
            folder.mkdir(exist_ok=True)
            done = run_on_null_gpu(build_null_gpu(folder), _CHECKS, str(results))
            text = f"exit code {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
            assert results.is_file(), text
    checked: dict[str, str] = json.loads(results.read_text())
    return checked
