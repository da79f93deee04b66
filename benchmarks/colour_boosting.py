"""Gradient boosting on colour statistics: a baseline on the tiles and folds of a finished run.

    python benchmarks/colour_boosting.py runs/smoke

Each tile is described by 144 numbers. None of them depends on a shape larger than a pixel and its
neighbours. For the whole tile, its 32 x 32 centre and the rest, they are: mean, standard deviation and
quantiles of red, green and blue and of haematoxylin, eosin and residual (Ruifrok and Johnston 2001), and
the mean size of gradients. Folds, labels and tiles come from the run's own prepare and fold kernels.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score

# Optical densities of red, green and blue: haematoxylin, eosin, residual (Ruifrok, Johnston 2001, table 1).
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def colour_statistics(tiles: np.ndarray) -> np.ndarray:
    """Compute the statistics: (N, 144) float32 from (N, 96, 96, 3) uint8."""
    centre = np.zeros((96, 96), dtype=bool)
    centre[32:64, 32:64] = True
    unmix = np.linalg.inv(STAINS / np.linalg.norm(STAINS, axis=1, keepdims=True))
    rows = []
    for tile in tiles:
        colour = tile.astype(np.float32) / 255
        stain = -np.log((tile.astype(np.float32) + 1) / 256) @ unmix.astype(np.float32)
        planes = np.concatenate([colour, stain], axis=2)  # (96, 96, 6)
        slope = np.abs(np.diff(planes, axis=0)[:, :-1]) + np.abs(np.diff(planes, axis=1)[:-1])
        numbers = []
        for region in (np.ones_like(centre), centre, ~centre):
            pixels = planes[region]  # (P, 6)
            numbers += [pixels.mean(axis=0), pixels.std(axis=0), *np.quantile(pixels, QUANTILES, axis=0)]
            numbers.append(slope[region[:-1, :-1]].mean(axis=0))
        rows.append(np.concatenate(numbers))
    return np.asarray(rows, dtype=np.float32)


def main() -> None:
    """Score the baseline on the folds of a run and print it beside the run's own network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the folder of a finished smoke or local run")
    run = parser.parse_args().run
    # A rehearsal keeps its kernels under kaggle/kernels, a run of `local` directly in its folder.
    kernels = run / "kaggle" / "kernels" if (run / "kaggle").is_dir() else run
    prepared = next(path.parent for path in kernels.glob("hcd-prepare*/**/working/index-train.csv"))
    index = pd.read_csv(prepared / "index-train.csv", dtype={"id": str})
    fold_table = next(kernels.glob("hcd-*-fold-0/**/working/fold-table.csv"))
    folds = pd.read_csv(fold_table, dtype={"id": str}).set_index("id")["fold"].loc[index["id"]].to_numpy()
    oof = [
        pd.read_csv(path, dtype={"id": str})
        for path in sorted(kernels.glob("hcd-*-fold-*/**/working/oof-*-member-*.csv"))
    ]
    network = pd.concat(oof).groupby("id")["logit"].mean().loc[index["id"]].to_numpy()
    labels = index["label"].to_numpy()

    started = time.perf_counter()
    features = colour_statistics(np.load(prepared / "tiles-train.npy"))
    seconds = time.perf_counter() - started
    print(f"{features.shape[1]} colour statistics of {len(features):,} tiles in {seconds:.0f} s")
    scores = np.empty(len(labels))
    for fold in np.unique(folds):
        inside = folds == fold
        booster = HistGradientBoostingClassifier(
            max_iter=300, learning_rate=0.06, l2_regularization=1.0, random_state=0
        )
        scores[inside] = booster.fit(features[~inside], labels[~inside]).predict_proba(features[inside])[:, 1]
        print(f"fold {fold}: {describe(labels[inside], network[inside], scores[inside])}")
    # Pool probabilities over the folds, not logits, because probabilities are averaged and submitted.
    print(f"pooled: {describe(labels, 1 / (1 + np.exp(-network)), scores)}")


def describe(labels: np.ndarray, network: np.ndarray, boosting: np.ndarray) -> str:
    """AUC of the network and of boosting on the same tiles."""
    aucs = roc_auc_score(labels, network), roc_auc_score(labels, boosting)
    return f"network {aucs[0]:.4f}, boosting on colour statistics {aucs[1]:.4f}, n = {len(labels):,}"


if __name__ == "__main__":
    main()
