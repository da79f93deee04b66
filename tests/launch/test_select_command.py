"""`ensemble select` on outputs of folds, and a weighted average through inference."""

from pathlib import Path

import campaigns
import numpy as np
import pandas as pd
import pytest

from launch.errors import LaunchError
from launch.experiments import load_experiment
from launch.members.select import select
from launch.plan import plan_kernels
from lib.config import Config
from lib.evaluation.metrics import auc, probability

CONFIG = Config(**campaigns.OPTIONS | {"num_members": 1, "num_folds": 3})


def _write(
    root: Path, noises: dict[str, float], *, tiles: int = 300, groups: bool = True, campaign: str = ""
) -> None:
    """Folds of experiments whose logits are the label plus noise; and the index of prepare."""
    generator = np.random.default_rng(0)
    ids = [f"{n:040x}" for n in range(tiles)]
    labels = generator.integers(0, 2, tiles)
    if groups:
        rows = {"row": range(tiles), "id": ids, "label": labels}
        index = pd.DataFrame({**rows, "stain_group": generator.integers(0, 30, tiles), "slide": ""})
        text = index.to_csv(index=False)
        campaigns.seal(root / "hcd-prepare", "prepare", {"index-train.csv": text}, data_id="d" * 64)
    for name, noise in noises.items():
        logits = 2 * labels - 1 + noise * generator.normal(size=tiles)
        for fold in range(3):
            inside = np.arange(tiles) % 3 == fold
            table = pd.DataFrame(
                {"id": np.array(ids)[inside], "label": labels[inside], "logit": logits[inside]}
            )
            score = auc(labels[inside], probability(logits[inside]))
            campaigns.seal(
                root / f"hcd-{name}-fold-{fold}",
                "train",
                {f"oof-{fold}-member-0.csv": table.to_csv(index=False)},
                experiment=name,
                config=CONFIG.to_dict(),
                fold=fold,
                push_id=f"{campaign}.hcd-{name}-fold-{fold}.1",
                members=[0],
                data_id="d" * 64,
                fold_table_id="f" * 64,
                scores={"fold": {"auc": score}, "members": [{"auc": score}]},
            )


def test_the_weights_are_printed_as_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _write(tmp_path / "outputs", {"good": 1.5, "other": 1.5, "useless": 99.0})
    selection = select([], [tmp_path])
    printed = capsys.readouterr().out
    assert selection.is_better and selection.weights["useless"] == 0
    kept = {name: weight for name, weight in selection.weights.items() if weight}
    weights = ",".join(f"{name}={weight}" for name, weight in kept.items())
    assert f"build_kernel.py run good other --average {weights}" in printed
    assert "groups resampled" in printed


def test_without_a_gain_the_plain_mean_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _write(tmp_path / "outputs", {"one": 2.0, "two": 2.0})
    select([], [tmp_path])
    assert "keep the plain mean" in capsys.readouterr().out


def test_without_prepare_there_is_no_interval_and_so_no_other_average(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _write(tmp_path / "outputs", {"good": 1.5, "useless": 99.0}, groups=False)
    select([], [tmp_path])
    printed = capsys.readouterr().out
    assert (
        "no interval: fewer than 10 groups of tiles are known" in printed and "keep the plain mean" in printed
    )


def test_unknown_and_ambiguous_experiments_are_named_together(tmp_path: Path) -> None:
    for place in ("first", "second"):
        _write(tmp_path / place / "outputs", {"one": 1.0, "two": 1.0}, campaign=place)
    with pytest.raises(LaunchError) as caught:
        select(["one", "three"], [tmp_path / "first", tmp_path / "second"])
    message = str(caught.value)
    assert "three has no finished fold" in message and "one is found more than once" in message
    assert "--from" in message and "Experiments with finished folds: one, two." in message


def test_a_plan_refuses_weights_of_other_experiments() -> None:
    with pytest.raises(LaunchError, match="the experiments are smoke"):
        plan_kernels([load_experiment("smoke")], average="smoke=1,other=2")
    kernels = plan_kernels([load_experiment("smoke")], average="smoke=2")
    assert next(kernel for kernel in kernels if kernel.kind == "inference").average == "smoke=2"


def test_an_output_that_cannot_be_read_is_left_out_and_a_fetched_copy_is_the_same_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for place in ("outputs", "fetched"):
        _write(tmp_path / place, {"one": 2.0, "two": 2.0})
    _write(tmp_path / "outputs", {"broken": 1.0})
    for path in (tmp_path / "outputs").glob("hcd-broken-*/*.csv"):
        path.write_text("id,label,logit\n", encoding="utf-8")
    select([], [tmp_path])
    assert "keep the plain mean" in capsys.readouterr().out
    assert caplog.text.count("left out: ") == 3 and "hcd-broken-fold-2" in caplog.text
