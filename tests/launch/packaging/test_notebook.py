"""A kernel that is a notebook: its cells with the library in a folded one, run as Kaggle runs it."""

import json
import os
import time
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import pytest

from launch import ROOT
from launch.errors import LaunchError
from launch.experiments import load_experiment
from launch.packaging.builder import Built, build
from launch.packaging.bundle import LIBRARY_TAG, SOURCE_LIMIT
from launch.packaging.check import check
from launch.plan import NOTEBOOK_KINDS
from launch.sandbox import Outcome, run_script
from lib.runtime.inputs import EXECUTED_NOTEBOOK
from lib.runtime.notebook import KEPT_NOTEBOOK, keep_executed_notebook


@pytest.fixture(scope="module", params=[False, True], ids=["whole", "thin"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    out = tmp_path_factory.mktemp("build") / "dist"
    return build([load_experiment("smoke")], out=out, owner="me", thin=request.param)


def notebook_of(built: Built) -> tuple[Path, Any]:
    path = built.script(next(kernel for kernel in built.kernels if kernel.kind in NOTEBOOK_KINDS))
    return path, nbformat.read(path, as_version=4)


def test_the_cells_are_those_of_the_source_and_the_library_is_in_one_folded_cell(built: Built) -> None:
    path, notebook = notebook_of(built)
    nbformat.validate(notebook)
    assert path.suffix == ".ipynb"
    source = jupytext.read(ROOT / "kernels" / "report.py")
    assert len(notebook.cells) == len(source.cells) > 20
    changed = [
        ours
        for ours, theirs in zip(notebook.cells, source.cells, strict=True)
        if ours.source != theirs.source
    ]
    assert [cell.metadata["tags"] for cell in changed] == [[LIBRARY_TAG]]
    assert changed[0].metadata["jupyter"]["source_hidden"] and changed[0].metadata["_kg_hide-input"]
    assert built.bundle in changed[0].source
    assert not any(cell.get("outputs") for cell in notebook.cells)
    # Nothing but a few lines is above the problem, and the source is far from Kaggle's limit.
    assert notebook.cells.index(changed[0]) == 1 and len(changed[0].source.splitlines()) < 220
    assert path.stat().st_size < SOURCE_LIMIT / 3
    assert check(built.out).problems == []


def test_the_same_tree_gives_the_same_bytes(built: Built, tmp_path: Path) -> None:
    again = build([load_experiment("smoke")], out=tmp_path / "dist", owner="me", thin=built.thin)
    assert notebook_of(again)[0].read_bytes() == notebook_of(built)[0].read_bytes()


def test_check_finds_a_cell_that_does_not_compile(built: Built, tmp_path: Path) -> None:
    again = build([load_experiment("smoke")], out=tmp_path / "dist", owner="me", thin=built.thin)
    path, notebook = notebook_of(again)
    notebook.cells.append(nbformat.v4.new_code_cell("this is no Python"))
    nbformat.write(notebook, path)
    problems = check(tmp_path / "dist").problems
    assert [problem for problem in problems if "hcd-report: does not compile" in problem]


def run(folder: Path, *cells: str, **options: Any) -> Outcome:
    """Run cells as a kernel."""
    path = folder / "written.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells]), path)
    keywords = {"mounts": [], "place": "rehearsal", "threads": 1, "network": False, "limit": 60.0, **options}
    return run_script(path, folder=folder / "run", **keywords)


def test_a_notebook_runs_alone_in_its_working_folder_and_leaves_its_cells_with_their_outputs(
    tmp_path: Path,
) -> None:
    ended = run(
        tmp_path,
        "import importlib.util, os\nprint('works in', os.getcwd(), 'as', os.environ['HCD_PLACE'])",
        "print([name for name in ('lib', 'launch', 'kernels') if importlib.util.find_spec(name)])\n41 + 1",
    )
    log = ended.log.read_text()
    assert ended.code == 0, log
    assert f"works in {tmp_path / 'run' / 'working'} as rehearsal" in log
    assert "\n[]\n" in log  # nothing of the repository can be imported
    executed = nbformat.read(tmp_path / "run" / "working" / EXECUTED_NOTEBOOK, as_version=4)
    assert executed.cells[1].outputs[-1].data["text/plain"] == "42"


def test_a_notebook_keeps_itself_with_the_outputs_so_far(tmp_path: Path) -> None:
    ended = run(
        tmp_path,
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n'the first output'",
        "from pathlib import Path\nfrom lib.runtime.notebook import keep_executed_notebook\n"
        "print(keep_executed_notebook(Path.cwd()))",
    )
    assert ended.code == 0 and f"{{'{KEPT_NOTEBOOK}': True}}" in ended.log.read_text()
    kept = nbformat.read(tmp_path / "run" / "working" / KEPT_NOTEBOOK, as_version=4)
    nbformat.validate(kept)
    assert [len(cell.outputs) for cell in kept.cells] == [1, 0]
    assert kept.cells[0].outputs[0].data["text/plain"] == "'the first output'"


@pytest.mark.parametrize(
    "content", [None, "", "[]", "{}", '{"cells": 3}', '{"cells": [{"outputs": []}]}', '{"cells": ["x"]}']
)
def test_a_notebook_without_outputs_or_none_is_not_kept(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / EXECUTED_NOTEBOOK).write_text(content)
    assert keep_executed_notebook(tmp_path) == {}
    assert not (tmp_path / KEPT_NOTEBOOK).exists()


def test_a_notebook_that_fails_stops_at_that_cell_and_says_why(tmp_path: Path) -> None:
    ended = run(tmp_path, "print('before')", "raise ValueError('the cause')", "print('never')")
    log = ended.log.read_text()
    assert ended.code == 1
    assert "before" in log and "ValueError: the cause" in log and "never" not in log
    assert "Traceback (most recent call last)" in log  # how a campaign tells an error of the kernel's own
    assert "\x1b" not in log
    assert (tmp_path / "run" / "working" / EXECUTED_NOTEBOOK).is_file()


def test_a_notebook_that_takes_too_long_is_ended_with_its_process(tmp_path: Path) -> None:
    cell = "import os, time\nopen('process', 'w').write(str(os.getpid()))\ntime.sleep(600)"
    ended = run(tmp_path, cell, limit=8.0)
    assert ended.timed_out
    process = int((tmp_path / "run" / "working" / "process").read_text())
    deadline = time.monotonic() + 10
    while Path(f"/proc/{process}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_a_source_without_a_place_for_the_library_is_refused(tmp_path: Path) -> None:
    import shutil

    for name in ("lib", "kernels", "experiments"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("kernel-metadata.json", "dataset-metadata.json"):
        shutil.copy(ROOT / name, tmp_path / name)
    path = tmp_path / "kernels" / "report.py"
    path.write_text(path.read_text().replace('tags=["library"]', ""))
    from launch.packaging.bundle import kernel_parameters, library_files, render_notebook
    from launch.plan import plan_kernels

    kernel = plan_kernels([load_experiment("smoke")])[-1]
    parameters = kernel_parameters(kernel, owner="me", bundle="b", commit="", strict_bundle=False)
    with pytest.raises(LaunchError, match="needs one cell with the tag library, it has 0"):
        render_notebook(kernel, library_files(tmp_path), parameters, root=tmp_path)
    assert json.dumps(parameters)
