"""One fold on a subset of the tiles, trained by the report's notebook where that is asked for."""

from pathlib import Path

import pandas as pd
import pytest
import workbench
from sklearn.metrics import roc_auc_score

from lib.data.prepared import TRAIN_TILES
from lib.runtime.session import Session, read_parameters
from lib.training.subset import SubsetError, train_on_subset


def session_of(bench, **knobs: str) -> Session:
    parameters = read_parameters(workbench.parameters_of("report", **knobs))
    return Session(parameters=parameters, input=bench.inputs, working=bench.working, place="rehearsal")


def test_a_fold_is_trained_on_some_tiles_and_leaves_nothing_behind(
    bench, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.mount(prepared, "notebooks/someone/hcd-prepare")
    seen: list[tuple[pd.DataFrame, pd.DataFrame]] = []
    from lib.training import subset

    original = subset.train_fold

    def watched(task, *, folder, **options):
        trained = original(task, folder=folder, **options)
        predicted = pd.read_csv(folder / "oof-0-member-0.csv", dtype={"id": str})
        seen.append((task.index.assign(fold=task.folds), predicted))
        return trained

    monkeypatch.setattr(subset, "train_fold", watched)
    monkeypatch.setenv("TMPDIR", str(bench.folder))
    before = workbench.outputs(prepared)
    trained = train_on_subset(session_of(bench), tiles=40, epochs=3)
    [(index, predicted)] = seen
    labels = pd.read_csv(prepared / "index-train.csv", dtype={"id": str}).set_index("id")["label"]
    assert len(index) == 40 and (labels[index["id"]].to_numpy() == index["label"].to_numpy()).all()
    assert set(predicted["id"]) == set(index.loc[index["fold"] == 0, "id"]) and trained.predicted == 20
    assert trained.auc == pytest.approx(roc_auc_score(labels[predicted["id"]], predicted["logit"]), abs=1e-9)
    assert list(trained.history["epoch"]) == [1, 2, 3]
    assert trained.note == "40 of 60 tiles, 3 epochs, stratified folds (optimistic)"
    assert not list(bench.working.iterdir()) and workbench.outputs(prepared) == before


def test_weights_that_are_not_mounted_are_replaced_by_random_ones(bench, prepared: Path) -> None:
    bench.mount(prepared, "notebooks/someone/hcd-prepare")
    trained = train_on_subset(session_of(bench, weights="timm"), tiles=24, epochs=1)
    assert "from random weights, because those of 'timm' are not among the inputs" in trained.note


def test_fetched_outputs_without_tiles_say_where_the_cell_works(bench, prepared: Path) -> None:
    place = bench.mount_copy(prepared, "notebooks/someone/hcd-prepare")
    (place / TRAIN_TILES).unlink()
    with pytest.raises(SubsetError, match=r"tiles-train.npy is not among the inputs.*on Kaggle"):
        train_on_subset(session_of(bench), tiles=24, epochs=1)


def test_a_linear_probe_has_no_network_to_train(bench) -> None:
    with pytest.raises(SubsetError, match="linear probe"):
        train_on_subset(session_of(bench, train_mode="linear_probe", weights="timm"), tiles=24, epochs=1)
