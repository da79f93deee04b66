"""A kernel that ran on this machine runs again when an attached file has changed."""

from dataclasses import replace
from pathlib import Path

import pytest

from launch.experiments import load_experiment
from launch.local import LocalRun, attached_datasets, local
from launch.packaging.builder import build


@pytest.mark.parametrize("name", ["map.csv", "sub/map.csv"])
def test_an_attached_file_counts_by_its_content(name: str, tmp_path: Path) -> None:
    """Also one of the same size, and one in a folder."""
    attach = tmp_path / "attach"
    (attach / name).parent.mkdir(parents=True)
    datasets = attached_datasets([attach], "me")
    experiment = load_experiment("smoke", ["slide_map=map.csv"])  # prepare reads the attached folder
    built = build([experiment], out=tmp_path / "build", owner="me", datasets=tuple(datasets))
    run = LocalRun(tmp_path, built, tmp_path / "data", datasets, None)
    kernel = next(kernel for kernel in built.kernels if kernel.kind == "prepare")
    (attach / name).write_text("id,wsi\na,b\n")
    first = run._identity(kernel)
    assert run._identity(kernel) == first
    (attach / ".DS_Store").touch()
    assert run._identity(kernel) == first
    (attach / name).write_text("id,wsi\na,c\n")
    assert run._identity(kernel) != first


def test_hours_that_are_expected_run_no_kernel_again(tmp_path: Path) -> None:
    identities = []
    for number, options in enumerate(([], ["expected_hours=3"], ["seed=3"])):
        built = build([load_experiment("smoke", options)], out=tmp_path / str(number), owner="me")
        run = LocalRun(tmp_path, built, tmp_path, {}, None)
        fold = next(kernel for kernel in built.kernels if kernel.kind == "train")
        identities.append(run._identity(replace(fold, sources=())))
    assert identities[0] == identities[1] != identities[2]


def test_folds_pick_the_folds_that_are_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []

    class StoppedError(Exception):
        """Nothing is trained here."""

    def stop(run: LocalRun) -> None:
        started.extend(kernel.slug for kernel in run.built.kernels if kernel.kind == "train")
        raise StoppedError

    monkeypatch.setattr(LocalRun, "run", stop)
    (tmp_path / "train_labels.csv").touch()
    with pytest.raises(StoppedError):
        local(
            [load_experiment("smoke", ["weights=none"])],
            data=tmp_path,
            out=tmp_path / "out",
            folds=(1,),
            owner="me",
        )
    assert [slug[-7:] for slug in started] == ["-fold-1"]
