"""Gradient boosting on colour statistics, on the same tiles and folds as a finished run: the rival a network must beat.

    python benchmarks/colour_boosting.py runs/smoke

Per tile 144 numbers, none of which knows a shape larger than one pixel's neighbour: for the whole tile, its 32 x 32 centre
and the rest, moments and quantiles of red, green, blue and of haematoxylin, eosin and residual (Ruifrok and Johnston 2001),
and the mean size of gradients. Folds, labels and tiles come from the run's own prepare and fold kernels.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score

# Haematoxylin, eosin and a residual as optical densities of red, green, blue (Ruifrok and Johnston 2001, table 1).
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def colour_statistics(tiles: np.ndarray) -> np.ndarray:
    """(N, 144) float32 from (N, 96, 96, 3) uint8."""
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
        for part in (np.ones_like(centre), centre, ~centre):
            pixels = planes[part]  # (P, 6)
            numbers += [pixels.mean(axis=0), pixels.std(axis=0), *np.quantile(pixels, QUANTILES, axis=0)]
            numbers.append(slope[part[:-1, :-1]].mean(axis=0))
        rows.append(np.concatenate(numbers))
    return np.asarray(rows, dtype=np.float32)


def main() -> None:
    """Score the rival on the folds of a run and print it beside the run's own network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the folder of a finished smoke or local run")
    run = parser.parse_args().run
    kernels = (
        run / "kaggle" / "kernels" if (run / "kaggle").is_dir() else run
    )  # a rehearsal, or a run of `local`
    prepared = next(path.parent for path in kernels.glob("hcd-prepare*/**/working/index-train.csv"))
    index = pd.read_csv(prepared / "index-train.csv", dtype={"id": str})
    folds = pd.read_csv(
        next(kernels.glob("hcd-*-fold-0/**/working/fold-table.csv")), dtype={"id": str}
    ).set_index("id")["fold"]
    fold = folds.loc[index["id"]].to_numpy()
    oof = [
        pd.read_csv(path, dtype={"id": str})
        for path in sorted(kernels.glob("hcd-*-fold-*/**/working/oof-*-member-*.csv"))
    ]
    network = pd.concat(oof).groupby("id")["logit"].mean().loc[index["id"]].to_numpy()
    labels = index["label"].to_numpy()

    started = time.perf_counter()
    features = colour_statistics(np.load(prepared / "tiles-train.npy"))
    print(
        f"{features.shape[1]} colour statistics of {len(features):,} tiles in {time.perf_counter() - started:.0f} s"
    )
    scores = np.empty(len(labels))
    for at in np.unique(fold):
        inside = fold == at
        booster = HistGradientBoostingClassifier(
            max_iter=300, learning_rate=0.06, l2_regularization=1.0, random_state=0
        )
        scores[inside] = booster.fit(features[~inside], labels[~inside]).predict_proba(features[inside])[:, 1]
        pair = roc_auc_score(labels[inside], network[inside]), roc_auc_score(labels[inside], scores[inside])
        print(
            f"fold {at}: network {pair[0]:.4f}, boosting on colour statistics {pair[1]:.4f}, n = {int(inside.sum()):,}"
        )
    # Probabilities, not logits, are pooled over folds: that is what is averaged and submitted.
    pooled = roc_auc_score(labels, 1 / (1 + np.exp(-network))), roc_auc_score(labels, scores)
    print(
        f"pooled: network {pooled[0]:.4f}, boosting on colour statistics {pooled[1]:.4f}, n = {len(labels):,}"
    )


if __name__ == "__main__":
    main()
