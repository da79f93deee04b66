"""Head of a frozen encoder: equal to scikit-learn's regression, saved and loaded."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lib.config import Config
from lib.model.checkpoint import CheckpointError, Identity, count_parameters
from lib.model.linear_head import Head, fit_head, load_head, save_head


def drawn(count: int = 600, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    features = generator.normal(2, 3, (count, 12)).astype(np.float32)
    features[:, 11] = 7.0  # says nothing
    labels = (features[:, 0] - features[:, 1] + generator.normal(0, 3, count) > 0).astype(int)
    return features, labels, generator.integers(0, 30, count)


@pytest.mark.parametrize("penalty", [1e-4, 1e-2, 1.0])
def test_the_head_is_the_regression_of_scikit_learn(penalty: float) -> None:
    features, labels, _ = drawn()
    head = fit_head(features, labels, penalty=penalty)
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=500)).fit(
        features, labels
    )
    np.testing.assert_allclose(
        head.logits(features), reference.decision_function(features), rtol=1e-2, atol=2e-2
    )


def test_a_head_comes_back_from_its_file(tmp_path: Path) -> None:
    features, labels, _ = drawn()
    head = fit_head(features, labels, penalty=1e-2)
    config = Config(train_mode="linear_probe", num_members=1)
    identity = Identity(
        experiment="x", fold=1, member=0, data_id="d", fold_table_id="f", config=config.to_dict()
    )
    save_head(tmp_path / "a.safetensors", head, identity)
    save_head(tmp_path / "b.safetensors", head, identity)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    again, found = load_head(tmp_path / "a.safetensors")
    assert found == identity and np.array_equal(again.logits(features), head.logits(features))


def test_the_parameters_of_a_head_are_its_weights_and_its_bias(tmp_path: Path) -> None:
    zeros = np.zeros(7, np.float32)
    facts = {"experiment": "x", "fold": 0, "member": 0, "data_id": "d", "fold_table_id": "f"}
    save_head(
        tmp_path / "head.safetensors",
        Head(zeros, 0.0, zeros, zeros),
        Identity(**facts, config=Config().to_dict()),
    )
    assert count_parameters(tmp_path / "head.safetensors") == 8


def test_a_file_without_a_head_is_refused(tmp_path: Path) -> None:
    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_head(tmp_path / "x.safetensors")
    identity = Identity(
        experiment="x", fold=1, member=0, data_id="d", fold_table_id="f", config=Config().to_dict()
    )
    import json
    from dataclasses import asdict

    save_file(
        {"weight": np.zeros(3, np.float32)},
        tmp_path / "y.safetensors",
        {"checkpoint": json.dumps(asdict(identity))},
    )
    with pytest.raises(CheckpointError, match="not the head"):
        load_head(tmp_path / "y.safetensors")
