"""Linear head of a frozen encoder: logistic regression on standardised features, fitted, saved and loaded."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save

from lib.files import write_atomic
from lib.model.checkpoint import CheckpointError, Identity, read_identity

_ITERATIONS = 500  # of L-BFGS


@dataclass(frozen=True)
class Head:
    """logit = weight . (features - mean) / spread + bias; all are (C,) float32 except the bias."""

    weight: np.ndarray
    bias: float
    mean: np.ndarray
    spread: np.ndarray

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Features (N, C) to logits (N,) float32."""
        standardised = (np.asarray(features, np.float32) - self.mean) / self.spread  # (N, C)
        return np.asarray(standardised @ self.weight + np.float32(self.bias), dtype=np.float32)


def fit_head(features: np.ndarray, labels: np.ndarray, *, penalty: float) -> Head:
    """Fit the regression on these tiles.

    Args:
        features: (N, C) float32.
        labels: (N,) 0 or 1.
        penalty: C of scikit-learn's LogisticRegression: the larger it is, the weaker the penalty.
    """
    from sklearn.linear_model import LogisticRegression

    mean = features.mean(axis=0, dtype=np.float64).astype(np.float32)  # (C,)
    spread = features.std(axis=0, dtype=np.float64).astype(np.float32)  # (C,)
    spread[spread < 1e-6] = 1.0  # a constant feature: do not divide by zero
    model = LogisticRegression(C=penalty, max_iter=_ITERATIONS)
    model.fit((features - mean) / spread, labels)
    return Head(model.coef_[0].astype(np.float32), float(np.float32(model.intercept_[0])), mean, spread)


def save_head(path: Path, head: Head, identity: Identity) -> None:
    """Write head and identity as one safetensors file, atomically."""
    tensors = {
        "weight": head.weight,
        "bias": np.array([head.bias], np.float32),
        "mean": head.mean,
        "spread": head.spread,
    }
    write_atomic(path, save(tensors, metadata={"checkpoint": json.dumps(asdict(identity), sort_keys=True)}))


def load_head(path: Path) -> tuple[Head, Identity]:
    """Read a file of `save_head`.

    Raises:
        CheckpointError: it is damaged, of another format, or not a head.
    """
    identity = read_identity(path)
    tensors = load_file(path)
    shape = tensors["weight"].shape if "weight" in tensors else ()
    shapes = {"weight": shape, "bias": (1,), "mean": shape, "spread": shape}
    if len(shape) != 1 or {name: tensor.shape for name, tensor in tensors.items()} != shapes:
        raise CheckpointError(f"{path.name} is not the head of a frozen encoder. Train this member again.")
    return Head(tensors["weight"], float(tensors["bias"][0]), tensors["mean"], tensors["spread"]), identity
