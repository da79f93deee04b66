"""Members of one architecture predict in one pass, as many as fit on a device."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lib.config import Config
from lib.inference import members as module
from lib.inference.members import KeptLogits, Member, groups_of_one_pass, predict_members
from lib.model.checkpoint import Identity
from lib.runtime.run_record import RunRecord


def _member(folder: Path, number: int, config: Config, *, size: int = 10) -> Member:
    path = folder / f"{number}.safetensors"
    path.write_bytes(b"x" * size)
    identity = Identity(
        experiment="x", fold=number, member=0, data_id="d", fold_table_id="f", config=config.to_dict()
    )
    return Member(path, identity, 0.9)


def test_those_of_one_architecture_and_the_same_views_go_together(tmp_path: Path) -> None:
    one = Config()
    others = [
        one,
        replace(one, input_size=224),
        one,
        replace(one, tta_views=4),
        replace(one, learning_rate=1.0),
        replace(one, seed=1),
        replace(one, stain_normalisation="macenko"),
    ]
    members = [_member(tmp_path, number, config) for number, config in enumerate(others)]
    groups = [[member.identity.fold for member in group] for group in groups_of_one_pass(members)]
    assert groups == [[0, 2, 4, 5], [1], [3], [6]]


def test_no_more_go_together_than_a_device_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WEIGHTS_LIMIT", 25)
    members = [
        _member(tmp_path, number, Config(), size=size) for number, size in enumerate([10, 10, 10, 100, 10])
    ]
    groups = [[member.identity.fold for member in group] for group in groups_of_one_pass(members)]
    assert groups == [[0, 1], [2], [3], [4]]
    assert members[0].name == "x-fold-0-member-0"


@pytest.mark.parametrize("scores", [{}, {"members": []}, {"members": [{"auc": "high"}]}, {"members": None}])
def test_a_record_without_a_score_is_no_reason_to_stop(scores: dict[str, object]) -> None:
    record = RunRecord.__new__(RunRecord)
    object.__setattr__(record, "scores", scores)
    assert np.isnan(module._score_of(record, 0))
    object.__setattr__(record, "scores", {"members": [{"auc": 0.75}]})
    assert module._score_of(record, 0) == 0.75


class Interrupted(Exception):
    """Stands for the end of a session at its time limit."""


@pytest.fixture
def passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, np.ndarray]]:
    """Predict six tiles with three members in two passes; `sizes` notes the passes that computed."""
    (tmp_path / "members").mkdir()
    members = [
        _member(tmp_path / "members", number, config)
        for number, config in enumerate([Config(), replace(Config(), input_size=224), Config()])
    ]
    monkeypatch.setattr(Member, "load", lambda self: self.identity.fold)

    def run(*causes: str, sizes: list[int], most: int = 9) -> dict[str, np.ndarray]:
        def predict(networks: list[int], tiles: np.ndarray, **options: Any) -> np.ndarray:
            if len(sizes) == most:
                raise Interrupted
            sizes.append(len(networks))
            return np.outer(np.arange(len(tiles)), 1.0 + np.array(networks)).astype(np.float32)

        monkeypatch.setattr(module, "predict_on_all", predict)
        return predict_members(
            members,
            np.zeros((6, 96, 96, 3), np.uint8),
            devices=[torch.device("cpu")],
            stage=lambda name, note: nullcontext(),
            kept=KeptLogits(tmp_path, causes),
        )

    return run


def test_an_interrupted_inference_predicts_only_what_is_missing(
    passes: Callable[..., dict[str, np.ndarray]], tmp_path: Path
) -> None:
    whole = passes("other tiles", sizes=[])
    KeptLogits(tmp_path, ()).clear()
    sizes: list[int] = []
    with pytest.raises(Interrupted):
        passes("tiles", "code", sizes=sizes, most=1)
    again = passes("tiles", "code", sizes=sizes)
    assert sizes == [2, 1]
    assert list(again) == list(whole)
    for name, logits in whole.items():
        np.testing.assert_array_equal(again[name], logits)


@pytest.mark.parametrize("damage", ["other code", "empty", "cut", "another number of tiles", "not finite"])
def test_logits_of_something_else_are_not_taken(
    passes: Callable[..., dict[str, np.ndarray]], tmp_path: Path, damage: str
) -> None:
    whole = passes("tiles", "code", sizes=[])
    for path in tmp_path.glob(".logits-*.npy"):
        content = path.read_bytes()
        if damage == "empty":
            path.write_bytes(b"")
        elif damage == "cut":
            path.write_bytes(content[:-3])
        elif damage != "other code":
            np.save(path, np.load(path)[:5] if "number" in damage else np.full_like(np.load(path), np.nan))
    sizes: list[int] = []
    again = passes("tiles", "other code" if damage == "other code" else "code", sizes=sizes)
    assert sizes == [2, 1]
    for name, logits in whole.items():
        np.testing.assert_array_equal(again[name], logits)
    KeptLogits(tmp_path, ()).clear()
    assert not list(tmp_path.glob(".logits-*"))
