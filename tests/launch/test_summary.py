"""Summaries of folds: every tile once, members aligned by id, scores equal to those of scikit-learn."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from instant import leave, write_data
from sklearn.metrics import f1_score, roc_auc_score

from launch.experiments import load_experiment
from launch.plan import plan_kernels
from launch.summary import summarise
from lib.evaluation.out_of_fold import ResultError, average_experiments, read_out_of_fold
from lib.runtime.run_record import describe_files

KNOBS = ["weights=none", "num_folds=3", "num_members=2"]


@pytest.fixture
def outputs(tmp_path):
    """Kernels of a campaign and the folder of their outputs: the second member lists its tiles backwards."""
    data, _ = write_data(tmp_path / "competition")
    kernels = plan_kernels([load_experiment("smoke", KNOBS)])
    for kernel in kernels:
        if kernel.kind not in ("prepare", "train"):
            continue
        folder = tmp_path / kernel.slug
        folder.mkdir()
        parameters = {
            "kind": kernel.kind,
            "configs": [kernel.configs[0].to_dict()],
            "fold": kernel.fold,
            "experiments": list(kernel.experiments),
            "push_id": kernel.slug,
            "bundle_id": "b",
            "git_commit": "",
        }
        leave(folder, parameters, data, data_id="d" * 64)
        if kernel.kind == "train":
            path = folder / f"oof-{kernel.fold}-member-1.csv"
            table = pd.read_csv(path, dtype={"id": str})
            table["logit"] = -0.5 * table["logit"] + np.random.default_rng(9).normal(0, 1, len(table))
            table[::-1].to_csv(path, index=False)
            reseal(folder)
    return kernels, tmp_path


def reseal(folder):
    """Make a record agree with files that were changed."""
    record = json.loads((folder / "run.json").read_text())
    names = {name: entry["fetch"] for name, entry in record["files"].items()}
    record["files"] = {name: vars(entry) for name, entry in describe_files(folder, names).items()}
    (folder / "run.json").write_text(json.dumps(record))


def members(folder, fold):
    """id and the mean probability of both members, joined by pandas."""
    both = [
        pd.read_csv(folder / f"oof-{fold}-member-{at}.csv", dtype={"id": str}).set_index("id")
        for at in (0, 1)
    ]
    return pd.DataFrame(
        {"label": both[0]["label"], "chance": sum(1 / (1 + np.exp(-each["logit"])) for each in both) / 2}
    )


def test_members_are_averaged_by_id_and_scored_as_scikit_learn_does(outputs):
    kernels, root = outputs
    summary = summarise(kernels[-1].experiments[0], kernels, lambda slug: root / slug)
    folds = [kernel for kernel in kernels if kernel.kind == "train"]
    wanted = pd.concat(
        [members(root / kernel.slug, kernel.fold).assign(fold=kernel.fold) for kernel in folds]
    )
    table = summary.table.set_index("id")
    assert len(table) == len(wanted) == 40
    np.testing.assert_allclose(table["probability"], wanted.loc[table.index, "chance"], rtol=0, atol=1e-12)
    assert table["fold"].tolist() == wanted.loc[table.index, "fold"].tolist()
    assert summary.pooled == pytest.approx(roc_auc_score(wanted["label"], wanted["chance"]))
    for row in summary.folds.itertuples():
        own = wanted[wanted["fold"] == row.fold]
        assert (row.tiles, row.auc) == (len(own), pytest.approx(roc_auc_score(own["label"], own["chance"])))
        assert row.f1_at_half == pytest.approx(f1_score(own["label"], own["chance"] >= 0.5))
        assert row.f1_at_threshold == pytest.approx(f1_score(own["label"], own["chance"] >= row.threshold))
    assert summary.interval[0] <= summary.pooled <= summary.interval[1] and summary.groups == 10


def test_experiments_are_averaged_by_id(outputs):
    kernels, root = outputs
    one = summarise(kernels[-1].experiments[0], kernels, lambda slug: root / slug)
    turned = one.table.sample(frac=1, random_state=1)
    turned = turned.assign(probability=np.random.default_rng(3).random(len(turned)))
    together = average_experiments([one, replace(one, experiment="other", table=turned)])
    joined = one.table.merge(turned, on="id")
    mean = (joined["probability_x"] + joined["probability_y"]) / 2
    assert together.tiles == 40 and together.pooled == pytest.approx(roc_auc_score(joined["label_x"], mean))


def test_a_tile_without_a_prediction_or_with_two_is_refused(outputs):
    kernels, root = outputs
    folders = [root / kernel.slug for kernel in kernels if kernel.kind == "train"]
    index = pd.read_csv(root / "hcd-prepare" / "index-train.csv", dtype={"id": str})
    table, _ = read_out_of_fold(folders[:2], index)  # two of three folds: their tiles
    assert 0 < len(table) < len(index)
    for member in (0, 1):
        path = folders[0] / f"oof-0-member-{member}.csv"
        whole = pd.read_csv(path, dtype={"id": str}).sort_values("id")
        whole[1:].to_csv(path, index=False)
    reseal(folders[0])
    with pytest.raises(ResultError, match="1 tiles have no out-of-fold prediction"):
        read_out_of_fold(folders, index)
