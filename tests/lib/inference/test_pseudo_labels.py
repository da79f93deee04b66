"""Pseudo-labels: the most confident predictions in the class proportions, from the same fold only."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.inference import pseudo_labels as pseudo
from lib.inference.ensemble import EnsembleError
from lib.inference.pseudo_labels import choose_confident, find_teacher


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 300), share=st.floats(0.01, 1), prevalence=st.floats(0, 1), seed=st.integers(0, 99)
)
def test_the_most_confident_of_each_class_in_the_proportion_of_the_labels(
    count: int, share: float, prevalence: float, seed: int
) -> None:
    chances = np.random.default_rng(seed).random(count).round(2)
    chosen = choose_confident(chances, share=share, prevalence=prevalence)
    number = round(share * count)
    assert len(chosen) == number and chosen["row"].is_unique and chosen["row"].is_monotonic_increasing
    assert int(chosen["label"].sum()) == round(number * prevalence)
    taken = {label: chances[chosen["row"][chosen["label"] == label]] for label in (0, 1)}
    left = np.delete(chances, chosen["row"])
    if len(left):
        assert taken[0].max(initial=0) <= left.min() and taken[1].min(initial=1) >= left.max()


class Record:
    def __init__(self, **facts: Any) -> None:
        self.experiment, self.fold, self.data_id, self.fold_table_id = "plain", 0, "d", "f"
        vars(self).update(facts)


def test_only_the_same_fold_of_the_named_experiment_may_label(monkeypatch: pytest.MonkeyPatch) -> None:
    records = {"a": Record(fold=1), "b": Record(experiment="other"), "c": Record()}
    monkeypatch.setattr(pseudo, "read_run_record", lambda folder, kind: records[folder.name])
    wanted = {"experiment": "plain", "fold": 0, "data_id": "d", "fold_table_id": "f"}
    found = find_teacher([Path(name) for name in "abc"], **wanted)  # type: ignore[arg-type]
    assert found.folder == Path("c")
    with pytest.raises(EnsembleError, match=r"mounted: fold 1 of plain, fold 0 of other"):
        find_teacher([Path("a"), Path("b")], **wanted)  # type: ignore[arg-type]
    with pytest.raises(EnsembleError, match="no fold"):
        find_teacher([], **wanted)  # type: ignore[arg-type]
    for wrong in ({"data_id": "e"}, {"fold_table_id": "g"}):
        with pytest.raises(EnsembleError, match="other data or other folds"):
            find_teacher([Path("c")], **{**wanted, **wrong})  # type: ignore[arg-type]
