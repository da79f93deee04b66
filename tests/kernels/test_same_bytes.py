"""The same seed on the same machine gives the same bytes, wherever the script runs."""

from pathlib import Path

import workbench

from launch.packaging.builder import Built


def test_a_fold_trained_twice_is_the_same(
    tmp_path: Path, built: Built, prepared: Path, folds: list[Path]
) -> None:
    working, inputs = tmp_path / "elsewhere" / "working", tmp_path / "input"
    workbench.mount(inputs, prepared, "hcd-prepare")  # another layout of mounts, too
    done = workbench.run(workbench.script_of(built, "train"), working=working, inputs=inputs)
    assert done.returncode == 0, done.stderr
    first, second = workbench.contents(folds[0]), workbench.contents(working)
    assert {
        "oof-0-member-0.csv",
        "fold-0-member-0.safetensors",
        "history-0-member-0.jsonl",
        "fold-table.csv",
    } < set(first)
    del first["run.json"], second["run.json"]  # they hold times
    assert second == first


def test_the_folds_differ(folds: list[Path]) -> None:
    assert workbench.outputs(folds[0])["fold-table.csv"] == workbench.outputs(folds[1])["fold-table.csv"]
    checkpoints = [
        workbench.outputs(fold)[f"fold-{number}-member-0.safetensors"] for number, fold in enumerate(folds)
    ]
    assert checkpoints[0] != checkpoints[1]
