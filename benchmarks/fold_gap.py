"""Optimism of stratified folds: out-of-fold AUC under stratified and grouped folds, and the difference.

    python benchmarks/fold_gap.py runs/stratified runs/stain

Both runs must hold the same tiles and the same experiment, except for fold_split. The interval of the
difference resamples the stain groups of the second run, with the predictions of both runs together, because
tiles of one slide are not independent.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from lib.evaluation.metrics import auc, group_interval, probability  # noqa: E402


def read_run(run: Path) -> pd.DataFrame:
    """Read label, stain_group, probability and fold of every labelled tile of a finished run, by id."""
    # A rehearsal keeps its kernels under kaggle/kernels, a run of `local` directly in its folder.
    kernels = run / "kaggle" / "kernels" if (run / "kaggle").is_dir() else run
    prepared = next(path.parent for path in kernels.glob("hcd-prepare*/**/working/index-train.csv"))
    index = pd.read_csv(prepared / "index-train.csv", dtype={"id": str}).set_index("id")
    paths = sorted(kernels.glob("hcd-*-fold-*/**/working/oof-*-member-*.csv"))
    table = pd.concat(
        pd.read_csv(path, dtype={"id": str}).assign(fold=int(path.name.split("-")[1])) for path in paths
    )
    table["probability"] = probability(table["logit"].to_numpy())
    mean = table.groupby("id").agg(probability=("probability", "mean"), fold=("fold", "first"))
    return index[["label", "stain_group"]].join(mean, how="left", validate="one_to_one")


def main() -> None:
    """Print size, class share and AUC of each fold, then the pooled AUCs and their difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stratified", type=Path, help="a finished run with fold_split=stratified")
    parser.add_argument("grouped", type=Path, help="a finished run with fold_split=stain or slide")
    arguments = parser.parse_args()
    stratified, grouped = read_run(arguments.stratified), read_run(arguments.grouped)
    missing = stratified["probability"].isna().any() or grouped["probability"].isna().any()
    if missing or not stratified.index.equals(grouped.index):
        sys.exit(
            "the two runs do not hold predictions of the same tiles: run all folds of both on the same data"
        )
    labels = grouped["label"].to_numpy()
    for name, table in (("stratified", stratified), ("grouped", grouped)):
        for fold, rows in table.groupby("fold"):
            score = auc(rows["label"].to_numpy(), rows["probability"].to_numpy())
            share = rows["label"].mean()
            print(f"{name} fold {fold}: {len(rows):,} tiles, {share:.4f} tumour, AUC {score:.4f}")
    left, right = stratified["probability"].to_numpy(), grouped["probability"].to_numpy()
    groups = grouped["stain_group"].to_numpy()

    def difference(rows: np.ndarray) -> float:
        return auc(labels[rows], left[rows]) - auc(labels[rows], right[rows])

    low, high = group_interval(difference, groups, seed=0, rounds=2000)
    both = auc(labels, left), auc(labels, right)
    print(f"pooled out-of-fold AUC: stratified {both[0]:.4f}, grouped {both[1]:.4f}, n = {len(labels):,}")
    print(
        f"difference {both[0] - both[1]:+.4f}, 95 % interval {low:+.4f} to {high:+.4f} "
        f"(2,000 resamples of {len(np.unique(groups))} stain groups)"
    )


if __name__ == "__main__":
    main()
