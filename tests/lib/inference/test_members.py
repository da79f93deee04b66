"""Members of one architecture predict in one pass, as many as fit on a device."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lib.config import Config
from lib.inference import members as module
from lib.inference.members import Member, groups_of_one_pass
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
