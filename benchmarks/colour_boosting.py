"""Gradient boosting on colour statistics: a baseline on the tiles and folds of a finished run.

    python benchmarks/colour_boosting.py runs/smoke

Each tile is described by 204 numbers. None of them depends on a shape larger than 8 pixels. In six planes
(red, green and blue, and haematoxylin, eosin and residual after Ruifrok and Johnston 2001), for the 32 x 32
centre, the surround and the whole tile, they are: mean, standard deviation, skewness and quantiles, and the
mean size of gradients at the scales of 1, 2 and 4 pixels. Some are differences of centre and surround.
Folds, labels and tiles come from the run's own prepare and fold kernels.
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
SCALES = (1, 2, 4)  # pixels


def colour_statistics(tiles: np.ndarray) -> np.ndarray:
    """Compute the statistics: (N, 204) float32 from (N, 96, 96, 3) uint8."""
    unmix = np.linalg.inv(STAINS / np.linalg.norm(STAINS, axis=1, keepdims=True)).astype(np.float32)
    return np.asarray([_statistics(tile, unmix) for tile in tiles], dtype=np.float32)


def _statistics(tile: np.ndarray, unmix: np.ndarray) -> np.ndarray:
    """Compute the (204,) statistics of one tile (96, 96, 3) uint8."""
    stain = -np.log((tile.astype(np.float32) + 1) / 256) @ unmix
    planes = np.concatenate([tile.astype(np.float32) / 255, stain], axis=2)  # (96, 96, 6)
    numbers: list[np.ndarray] = []
    for scale in SCALES:
        side = 96 // scale
        coarse = planes.reshape(side, scale, side, scale, 6).mean(axis=(1, 3))  # (side, side, 6)
        inside = np.zeros((side, side), dtype=bool)
        inside[side // 3 : side // 3 * 2, side // 3 : side // 3 * 2] = True
        centre, surround, whole = coarse[inside], coarse[~inside], coarse.reshape(-1, 6)  # (P, 6) each
        if scale == 1:
            of_centre, of_surround = _moments(centre), _moments(surround)
            numbers += [*of_centre, *of_surround, *(of_centre[:2] - of_surround[:2])]
            numbers += [*np.quantile(centre, QUANTILES, axis=0), *np.quantile(whole, QUANTILES, axis=0)]
        else:
            numbers += [centre.std(axis=0), whole.std(axis=0)]
        slope = np.abs(np.diff(coarse, axis=0)[:, :-1]) + np.abs(np.diff(coarse, axis=1)[:-1])
        near, far = slope[inside[:-1, :-1]].mean(axis=0), slope[~inside[:-1, :-1]].mean(axis=0)
        numbers += [near, far, near - far, slope.reshape(-1, 6).std(axis=0)]
    return np.concatenate(numbers)


def _moments(pixels: np.ndarray) -> np.ndarray:
    """Mean, standard deviation and skewness: (3, 6) from (P, 6)."""
    mean, spread = pixels.mean(axis=0), pixels.std(axis=0)
    skewness = (((pixels - mean) / (spread + 1e-6)) ** 3).mean(axis=0)
    return np.stack([mean, spread, skewness])


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
