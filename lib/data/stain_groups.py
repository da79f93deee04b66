"""Stain groups of tiles that may come from the same slide, and the tile-to-slide map.

All tiles of a slide share its dyes and its lamp: the directions of the stain vectors in optical density and
the white of the background. The amount of stain in a tile depends on its cells, so on tumour, and is not
used.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from lib.data.competition import read_table
from lib.errors import KernelError, listed

FEATURES = (
    "haematoxylin_red",
    "haematoxylin_blue",
    "eosin_red",
    "eosin_blue",
    "white_red",
    "white_green",
    "white_blue",
)

UNNAMED = "unnamed-stain-group-"  # begins the group of tiles that a tile-to-slide map does not name

_PIXEL_STRIDE = 3  # every third row and column: 1,024 of 9,216 pixels give the same directions
_TISSUE_DENSITY = 0.15  # optical density below which a pixel is background (Macenko et al. 2009, beta)
_ANGLE_PERCENTILES = (1.0, 99.0)  # robust extremes of the stain angle (Macenko et al. 2009, alpha = 1)
_WHITE_PERCENTILE = 99.0
# Five grey levels. Most tiles have the same white, and smaller noise must not decide the clusters.
_LEAST_SPREAD = 0.02
_BATCH = 512  # tiles at a time: about 60 MiB of float64 optical densities


class GroupError(KernelError):
    """A tile-to-slide map cannot be used; the message lists every problem."""


def stain_features(tiles: np.ndarray) -> np.ndarray:
    """The features that all tiles of a slide share: stain vectors and the white of the background.

    Stain vectors as in Macenko et al. 2009 ("A method for normalizing histology slides for quantitative
    analysis"): the extreme angles in the plane of the two largest principal directions of the optical
    density.

    Args:
        tiles: (N, 96, 96, 3) uint8, RGB.

    Returns:
        (N, 7) float64: the red and blue components of the two stain vectors (of length 1, so green follows),
        and the white of the background in units of 255. Finite for any input, also for blank tiles.
    """
    starts = range(0, len(tiles), _BATCH)
    return np.concatenate([_features_of(tiles[start : start + _BATCH]) for start in starts])


def _features_of(tiles: np.ndarray) -> np.ndarray:
    pixels = tiles[:, ::_PIXEL_STRIDE, ::_PIXEL_STRIDE].reshape(len(tiles), -1, 3)  # (B, P, 3)
    white = np.percentile(pixels, _WHITE_PERCENTILE, axis=1) / 255.0  # (B, 3)
    density = -np.log((pixels.astype(np.float64) + 1.0) / 256.0)  # (B, P, 3)
    tissue = (density.min(axis=2) > _TISSUE_DENSITY).astype(np.float64)[..., None]  # (B, P, 1)
    count = np.maximum(tissue.sum(axis=1), 1.0)  # (B, 1)
    mean = (density * tissue).sum(axis=1) / count  # (B, 3)
    centred = (density - mean[:, None]) * tissue
    covariance = np.einsum("bpi,bpj->bij", centred, centred) / count[..., None]
    _, vectors = np.linalg.eigh(covariance)  # ascending
    plane = vectors[:, :, [2, 1]]  # (B, 3, 2), the largest first
    # The sign of a direction is arbitrary.
    plane = plane * np.where(plane.sum(axis=1, keepdims=True) < 0, -1.0, 1.0)
    projected = np.einsum("bpi,bik->bpk", density, plane)  # (B, P, 2)
    angle = np.arctan2(projected[..., 1], projected[..., 0])  # (B, P)
    angle = np.where(tissue[..., 0] > 0, angle, np.nan)
    blank = tissue[..., 0].sum(axis=1) < 10
    angle[blank] = 0.0
    low, high = _extremes(angle)
    features = np.empty((len(tiles), len(FEATURES)))
    stains = []
    for extreme in (low, high):
        vector = plane[:, :, 0] * np.cos(extreme)[:, None] + plane[:, :, 1] * np.sin(extreme)[:, None]
        stains.append(vector / np.maximum(np.linalg.norm(vector, axis=1, keepdims=True), 1e-12))
    # Haematoxylin absorbs more red than eosin.
    first_is_haematoxylin = (stains[0][:, 0] > stains[1][:, 0])[:, None]  # (B, 1)
    haematoxylin = np.where(first_is_haematoxylin, stains[0], stains[1])  # (B, 3)
    eosin = np.where(first_is_haematoxylin, stains[1], stains[0])  # (B, 3)
    features[:, 0], features[:, 1] = haematoxylin[:, 0], haematoxylin[:, 2]
    features[:, 2], features[:, 3] = eosin[:, 0], eosin[:, 2]
    features[:, 4:] = white
    return features


def _extremes(angle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Low and high percentile of each row without NaN, which a sort puts last."""
    ordered = np.sort(angle, axis=1)
    count = np.isfinite(ordered).sum(axis=1)
    rows = np.arange(len(angle))
    low, high = (
        (np.maximum(count - 1, 0) * share / 100.0).round().astype(int) for share in _ANGLE_PERCENTILES
    )
    return ordered[rows, low], ordered[rows, high]


def stain_groups(features: np.ndarray, *, number: int, seed: int) -> np.ndarray:
    """Cluster tiles by their stain features (k-means on robustly scaled features).

    Args:
        features: (N, 7), in the order of the sorted ids, so that the groups do not depend on the table's
            order.
        number: clusters; fewer if there are fewer than 4 tiles for each.
        seed: of the clustering.

    Returns:
        (N,) int64, group numbers from 0. The same input gives the same bytes, because one thread computes:
        several would add their partial sums in the order in which they finish.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    middle = np.median(features, axis=0)
    spread = np.maximum(
        np.percentile(features, 75, axis=0) - np.percentile(features, 25, axis=0), _LEAST_SPREAD
    )
    scaled = np.clip(
        (features - middle) / spread, -5.0, 5.0
    )  # so that a blank tile gets no cluster of its own
    clusters = max(2, min(number, len(features) // 4))
    with threadpool_limits(limits=1):
        groups = KMeans(n_clusters=clusters, n_init=3, random_state=seed % 2**32).fit_predict(scaled)
    return groups.astype(np.int64)


def read_slide_map(path: Path, *, train_ids: list[str], test_ids: list[str]) -> np.ndarray:
    """Read the slides of the training tiles from a CSV file with the columns id and wsi.

    It is joined on the id, never on the row, and used for folds only.

    Returns:
        (N,) of text, in the order of `train_ids`; empty for a tile that the map does not name, or names
        without a slide.

    Raises:
        GroupError: wrong columns, duplicate ids, no training tile with a slide, a slide whose name is kept
            for tiles without one, or any test id: a map of test tiles would reveal what the competition
            hides.
    """
    problems: list[str] = []
    table = read_table(path, ["id", "wsi"], problems)
    if table is not None:
        named = set(table["id"])
        if tests := named & set(test_ids):
            problems.append(
                f"it names {len(tests):,} test tiles, such as {min(tests)}: only training tiles are allowed"
            )
        slides = table["wsi"].str.strip()
        if not set(table["id"][slides != ""]) & set(train_ids):
            problems.append(f"it names the slide of none of the {len(train_ids):,} training tiles")
        if kept := sorted({slide for slide in slides if slide.startswith(UNNAMED)}):
            problems.append(f"it names a slide {kept[0]}: tiles without a slide get names like this")
    if problems:
        raise GroupError(listed(f"the tile-to-slide map {path.name} cannot be used:", problems))
    assert table is not None
    joined = table.set_index("id")["wsi"].reindex(train_ids).fillna("")
    return joined.where(joined.str.strip() != "", "").to_numpy(dtype=str)


def complete_slides(slides: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The slides of all tiles: where none is named, a group of its own for the tiles of a stain group.

    Args:
        slides: (N,) of text, empty where no slide is named.
        groups: (N,) stain groups.

    Returns:
        (N,) of text, none empty; invented names begin with `UNNAMED`.
    """
    return np.asarray(
        [slide or f"{UNNAMED}{group}" for slide, group in zip(slides, groups, strict=True)], dtype=str
    )


def group_auc(labels: np.ndarray, groups: np.ndarray, *, seed: int, number: int = 5) -> float:
    """The AUC of the group number alone under stratified folds, where a group is on both sides of the split.

    Each tile is scored by the share of tumour among the tiles of its group in the other folds. So this is the
    gain from knowing the slide with `fold_split = "stratified"`; a split by group prevents it.
    """
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold

    number = min(number, int(np.bincount(labels).min()))
    if number < 2:
        return float("nan")
    scores = np.empty(len(labels))
    table = pd.DataFrame({"group": groups, "label": labels})
    for inside, outside in StratifiedKFold(number, shuffle=True, random_state=seed % 2**32).split(
        groups, labels
    ):
        share = table.iloc[inside].groupby("group")["label"].mean()
        scores[outside] = table["group"].iloc[outside].map(share).fillna(labels[inside].mean()).to_numpy()
    return float(roc_auc_score(labels, scores))
