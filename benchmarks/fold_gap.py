"""What a stratified split flatters: pooled out-of-fold AUC under two kinds of folds, and their gap with an interval.

    python benchmarks/fold_gap.py runs/stratified runs/stain

Both runs must hold the same tiles and the same experiment but for its split. The interval resamples the stain groups of
the second run, both runs' predictions together, because tiles of one slide are not independent.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from lib.evaluation.metrics import auc, group_interval, probability  # noqa: E402


def read_run(run: Path) -> pd.DataFrame:
    """id, label, stain_group, probability, fold of every labelled tile of a finished run."""
    kernels = (
        run / "kaggle" / "kernels" if (run / "kaggle").is_dir() else run
    )  # a rehearsal, or a run of `local`
    prepared = next(path.parent for path in kernels.glob("hcd-prepare*/**/working/index-train.csv"))
    index = pd.read_csv(prepared / "index-train.csv", dtype={"id": str}).set_index("id")
    paths = sorted(kernels.glob("hcd-*-fold-*/**/working/oof-*-member-*.csv"))
    parts = [pd.read_csv(path, dtype={"id": str}).assign(fold=int(path.name.split("-")[1])) for path in paths]
    table = pd.concat(parts)
    table["probability"] = probability(table["logit"].to_numpy())
    mean = table.groupby("id").agg(probability=("probability", "mean"), fold=("fold", "first"))
    return index[["label", "stain_group"]].join(mean, how="left", validate="one_to_one")


def main() -> None:
    """Print sizes, class shares, AUCs and the gap."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stratified", type=Path)
    parser.add_argument("grouped", type=Path)
    arguments = parser.parse_args()
    first, second = read_run(arguments.stratified), read_run(arguments.grouped)
    if (
        not first.index.equals(second.index)
        or first["probability"].isna().any()
        or second["probability"].isna().any()
    ):
        sys.exit("the two runs do not hold predictions of the same tiles")
    labels = second["label"].to_numpy()
    for name, table in (("stratified", first), ("grouped", second)):
        for fold, rows in table.groupby("fold"):
            score = auc(rows["label"].to_numpy(), rows["probability"].to_numpy())
            print(
                f"{name} fold {fold}: {len(rows):,} tiles, {rows['label'].mean():.4f} tumour, AUC {score:.4f}"
            )
    left, right = first["probability"].to_numpy(), second["probability"].to_numpy()
    groups = second["stain_group"].to_numpy()
    gap = auc(labels, left) - auc(labels, right)
    low, high = group_interval(
        lambda r: auc(labels[r], left[r]) - auc(labels[r], right[r]), groups, seed=0, rounds=2000
    )
    print(
        f"pooled out-of-fold AUC: stratified {auc(labels, left):.4f}, grouped {auc(labels, right):.4f}, n = {len(labels):,}"
    )
    print(
        f"gap {gap:+.4f}, 95 % interval {low:+.4f} to {high:+.4f} (2,000 resamples of {len(np.unique(groups))} stain groups)"
    )


if __name__ == "__main__":
    main()
