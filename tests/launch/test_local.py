"""A kernel that ran on this machine runs again when an attached file has changed."""

from pathlib import Path

import pytest

from launch.experiments import load_experiment
from launch.local import LocalRun, attached_datasets
from launch.packaging.builder import build


@pytest.mark.parametrize("name", ["map.csv", "sub/map.csv"])
def test_an_attached_file_counts_by_its_content(name: str, tmp_path: Path) -> None:
    """Also one of the same size, and one in a folder."""
    attach = tmp_path / "attach"
    (attach / name).parent.mkdir(parents=True)
    datasets = attached_datasets([attach], "me")
    built = build([load_experiment("smoke")], out=tmp_path / "build", owner="me", datasets=tuple(datasets))
    run = LocalRun(tmp_path, built, tmp_path / "data", datasets, None)
    kernel = next(kernel for kernel in built.kernels if kernel.kind == "prepare")
    (attach / name).write_text("id,wsi\na,b\n")
    first = run._identity(kernel)
    assert run._identity(kernel) == first
    (attach / ".DS_Store").touch()
    assert run._identity(kernel) == first
    (attach / name).write_text("id,wsi\na,c\n")
    assert run._identity(kernel) != first
