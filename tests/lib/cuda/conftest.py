"""A null GPU, built where there is a compiler, and the results of the checks that ran on it."""

import json
import os
from pathlib import Path

import pytest
from filelock import FileLock
from null_gpu import NoNullGpuError, build_null_gpu, run_on_null_gpu

_CHECKS = Path(__file__).with_name("cuda_checks.py")
_LIMIT = 500  # seconds for all checks


@pytest.fixture(scope="session")
def null_gpu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library of the null GPU, built once; a test is skipped where it cannot be."""
    base = tmp_path_factory.getbasetemp()
    # The processes of pytest-xdist have folders of their own in one that they share.
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "null-gpu"
    built = folder / "built"
    with FileLock(f"{folder}.lock"):
        if not built.is_file():
            folder.mkdir(exist_ok=True)
            try:
                library = build_null_gpu(folder)
            except NoNullGpuError as error:
                pytest.skip(str(error))
            built.write_text(str(library))
    return Path(built.read_text())


@pytest.fixture(scope="session")
def cuda_results(null_gpu: Path) -> dict[str, str]:
    """Traceback of each check on the null GPU by its name; empty where it passed."""
    results = null_gpu.with_name("results.json")
    with FileLock(f"{results}.lock"):
        if not results.is_file():
            done = run_on_null_gpu(null_gpu, _CHECKS, str(results), timeout=_LIMIT)
            text = f"exit code {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
            assert results.is_file(), text
    checked: dict[str, str] = json.loads(results.read_text())
    return checked
