"""The head of a frozen encoder: logistic regression on standardised features, its penalty chosen without the fold."""

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save

from lib.evaluation.metrics import auc
from lib.files import write_atomic
from lib.model.checkpoint import CheckpointError, Identity, read_identity

logger = logging.getLogger(__name__)

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # C of LogisticRegression: the larger, the weaker
_UNASKED = 1e-2  # where there are too few groups to ask
_INNER_FOLDS = 3
_STEPS = 500  # of L-BFGS


@dataclass(frozen=True)
class Head:
    """logit = weight . (features - mean) / spread + bias; all (C,) float32 but the bias."""

    weight: np.ndarray
    bias: float
    mean: np.ndarray
    spread: np.ndarray

    def logits(self, features: np.ndarray) -> np.ndarray:
        """(N,) float32 of features (N, C)."""
        found = ((np.asarray(features, np.float32) - self.mean) / self.spread) @ self.weight + np.float32(
            self.bias
        )
        return np.asarray(found, dtype=np.float32)


def fit_head(
    features: np.ndarray, labels: np.ndarray, groups: np.ndarray, *, seed: int
) -> tuple[Head, float]:
    """Fit on these tiles, with the penalty whose mean AUC over three inner folds by group is the highest.

    Args:
        features: (N, C) float32.
        labels: (N,) 0 or 1.
        groups: (N,) the stain group or slide of each; no group is on both sides of an inner fold.
        seed: of the inner folds.

    Returns:
        The head, and the C that was chosen.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(_INNER_FOLDS, shuffle=True, random_state=seed % 2**32)
    parts = [] if len(np.unique(groups)) < _INNER_FOLDS else list(splitter.split(features, labels, groups))
    parts = [part for part in parts if all(len(np.unique(labels[side])) == 2 for side in part)]
    if not parts:
        logger.info("too few groups for inner folds with both classes: C %g", _UNASKED)
        return _fit(features, labels, _UNASKED), _UNASKED
    scores = []
    for penalty in PENALTIES:
        each = [
            auc(labels[held], _fit(features[rest], labels[rest], penalty).logits(features[held]))
            for rest, held in parts
        ]
        scores.append(float(np.mean(each)))
    chosen = PENALTIES[int(np.argmax(scores))]
    shown = ", ".join(f"C {penalty:g}: {score:.4f}" for penalty, score in zip(PENALTIES, scores, strict=True))
    logger.info("mean AUC of %d inner folds by group: %s; chosen: C %g", len(parts), shown, chosen)
    return _fit(features, labels, chosen), chosen


def _fit(features: np.ndarray, labels: np.ndarray, penalty: float) -> Head:
    from sklearn.linear_model import LogisticRegression

    mean = features.mean(axis=0, dtype=np.float64).astype(np.float32)
    spread = features.std(axis=0, dtype=np.float64).astype(np.float32)
    spread[spread < 1e-6] = 1.0  # a number that never changes says nothing
    model = LogisticRegression(C=penalty, max_iter=_STEPS)
    model.fit((features - mean) / spread, labels)
    return Head(model.coef_[0].astype(np.float32), float(np.float32(model.intercept_[0])), mean, spread)


def save_head(path: Path, head: Head, identity: Identity) -> None:
    """Write head and identity as one safetensors file, whole."""
    tensors = {
        "weight": head.weight,
        "bias": np.array([head.bias], np.float32),
        "mean": head.mean,
        "spread": head.spread,
    }
    write_atomic(path, save(tensors, metadata={"checkpoint": json.dumps(asdict(identity), sort_keys=True)}))


def load_head(path: Path) -> tuple[Head, Identity]:
    """Read back what `save_head` wrote.

    Raises:
        CheckpointError: it is damaged, of another format, or no head.
    """
    identity = read_identity(path)
    tensors = load_file(path)
    width = tensors["weight"].shape if "weight" in tensors else ()
    shapes = {"weight": width, "bias": (1,), "mean": width, "spread": width}
    if len(width) != 1 or {name: tensor.shape for name, tensor in tensors.items()} != shapes:
        raise CheckpointError(f"{path.name} is no head of a frozen encoder. Train this member again.")
    return Head(tensors["weight"], float(tensors["bias"][0]), tensors["mean"], tensors["spread"]), identity
