"""Members are averaged only if they agree, aligned by id, in any order."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import spearmanr

from lib.config import Config
from lib.evaluation.metrics import probability
from lib.evaluation.out_of_fold import ResultError, check_fold_scores
from lib.inference.ensemble import (
    EnsembleError,
    FoldOutput,
    average_members,
    average_weighted,
    member_table,
    read_fold_outputs,
    validate_members,
)
from lib.model.checkpoint import CHECKPOINT_FORMAT, LABEL_SET
from lib.runtime.run_record import RunRecord, describe_files, write_run_record

DATA, TABLE, CODE = "d" * 64, "f" * 64, "b" * 64


def _record(fold: int, experiment: str = "x", **changes: Any) -> RunRecord:
    record = RunRecord(
        kind="train",
        experiment=experiment,
        config=Config().to_dict(),
        push_id="",
        bundle_id=CODE,
        git_commit="",
        data_id=DATA,
        fold_table_id=TABLE,
        checkpoint_format=CHECKPOINT_FORMAT,
        fold=fold,
        members=[0, 1],
        label_set=LABEL_SET,
        complete=True,
    )
    return dataclasses.replace(record, **changes)


def _output(fold: int, experiment: str = "x", **changes: Any) -> FoldOutput:
    return FoldOutput(Path(f"/input/{experiment}-{fold}"), _record(fold, experiment, **changes))


def _admit(
    outputs: list[FoldOutput], *, strict: bool = False, wanted: dict[str, tuple[int, int]] | None = None
) -> tuple[list[FoldOutput], list[str]]:
    return validate_members(
        outputs, wanted=wanted or {"x": (range(3), 2)}, data_id=DATA, strict_bundle=strict
    )


def test_all_folds_are_accepted_in_their_order() -> None:
    outputs = [_output(fold) for fold in (2, 0, 1)]
    assert _admit(outputs) == ([outputs[1], outputs[2], outputs[0]], [])


def test_several_experiments_come_one_after_the_other_and_may_have_fold_tables_of_their_own() -> None:
    outputs = [_output(fold, name, fold_table_id=name * 64) for fold in (1, 0) for name in ("y", "x")]
    chosen, _ = _admit(outputs, wanted={"x": (range(2), 2), "y": (range(2), 2)})
    assert [output.name for output in chosen] == ["fold 0 of x", "fold 1 of x", "fold 0 of y", "fold 1 of y"]


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        ([_output(0), _output(2)], "fold 1 of x is missing"),
        (
            [_output(0), _output(1), _output(2), _output(1)],
            "fold 1 of x is mounted more than once, at /input/x-1 and /input/x-1",
        ),
        ([_output(0), _output(1), _output(2, members=[0])], "fold 2 of x has members [0], 2 expected"),
        (
            [_output(0), _output(1), _output(2, data_id="e" * 64)],
            "trained on data eeeeeeee..., the prepared data are dddddddd...",
        ),
        ([_output(0), _output(1), _output(2, checkpoint_format=99)], "checkpoint format 99"),
        ([_output(0), _output(1), _output(2, label_set=[0, 1, 2])], "has the labels [0, 1, 2]"),
        ([_output(0), _output(1), _output(2, fold_table_id="0" * 64)], "different fold tables"),
        (
            [_output(0), _output(1), _output(2), _output(0, "y")],
            "outputs of other experiments are mounted: y",
        ),
        ([], "fold 0 of x is missing"),
    ],
)
def test_each_reason_against_averaging_is_named(outputs: list[FoldOutput], said: str) -> None:
    with pytest.raises(EnsembleError) as refused:
        _admit(outputs)
    assert said in str(refused.value)


def test_all_reasons_are_listed_with_what_to_run_again() -> None:
    outputs = [_output(0, data_id="e" * 64), _output(2, members=[0], checkpoint_format=99), _output(0, "y")]
    with pytest.raises(EnsembleError) as refused:
        _admit(outputs)
    for piece in (
        "fold 1 of x is missing",
        "trained on data",
        "members [0]",
        "format 99",
        "experiments are mounted: y",
    ):
        assert piece in str(refused.value)
    assert "push fold-0" in str(refused.value) and "push fold-2" in str(refused.value)


def test_other_code_is_a_warning_unless_it_is_made_an_error() -> None:
    outputs = [_output(0), _output(1), _output(2, bundle_id="c" * 64)]
    chosen, warnings = _admit(outputs)
    assert len(chosen) == 3 and len(warnings) == 1 and "cccccccc" in warnings[0] and "bbbbbbbb" in warnings[0]
    with pytest.raises(EnsembleError, match="different code"):
        _admit(outputs, strict=True)


def _predict(folder: Path, fold: int) -> None:
    """Out-of-fold predictions of two members; their mean has AUC 0.75, the members 0.75 and 1."""
    for member, logits in enumerate(([0.0, 2.0, 1.0, 3.0], [0.0, 0.1, 0.2, 0.3])):
        table = pd.DataFrame({"id": list("abcd"), "label": [0, 0, 1, 1], "logit": logits})
        table.to_csv(folder / f"oof-{fold}-member-{member}.csv", index=False)


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ({"fold": {"auc": 0.75}}, ""),
        ({"fold": {"auc": 0.75}, "members": [{"auc": 0.75}, {"auc": 1.0}]}, ""),
        ({"fold": {"auc": 0.75 + 1e-9}}, ""),
        ({"fold": {"auc": 0.76}}, "the fold: run.json says AUC 0.760000, its predictions give 0.750000"),
        ({"fold": {"auc": float("nan")}}, "the fold: run.json says AUC nan"),
        ({"fold": {"auc": True}}, "the fold: run.json holds no AUC"),
        ({}, "the fold: run.json holds no AUC, its predictions give 0.750000"),
        (
            {"fold": {"auc": 0.75}, "members": [{"auc": 0.75}, {"auc": 0.75}]},
            "member 1: run.json says AUC 0.75",
        ),
        ({"fold": {"auc": 0.75}, "members": [{"auc": 0.75}]}, "member 1: run.json holds no AUC"),
    ],
)
def test_scores_that_are_not_those_of_the_predictions_are_refused(
    tmp_path: Path, scores: dict[str, Any], said: str
) -> None:
    _predict(tmp_path, 3)
    record = _record(3, scores=scores)
    if not said:
        check_fold_scores(record, tmp_path)
        return
    with pytest.raises(ResultError) as refused:
        check_fold_scores(record, tmp_path)
    assert said in str(refused.value) and "build_kernel.py push fold-3" in str(refused.value)


def test_every_damaged_output_is_listed(tmp_path: Path) -> None:
    folders = [tmp_path / f"fold-{fold}" for fold in range(4)]
    for fold, folder in enumerate(folders):
        folder.mkdir()
        (folder / "weights").write_bytes(b"whole")
        _predict(folder, fold)
        scores = {"fold": {"auc": 0.75}}
        write_run_record(
            folder, _record(fold, files=describe_files(folder, {"weights": True}), scores=scores)
        )
    outputs, problems = read_fold_outputs(folders)
    assert [output.record.fold for output in outputs] == [0, 1, 2, 3] and not problems
    (folders[1] / "weights").write_bytes(b"other")
    (folders[2] / "run.json").unlink()
    outputs, problems = read_fold_outputs(folders)
    assert [output.record.fold for output in outputs] == [0, 3]
    with pytest.raises(EnsembleError) as refused:
        validate_members(
            outputs, wanted={"x": (range(4), 2)}, data_id="e" * 64, strict_bundle=False, damaged=problems
        )
    for piece in (
        "weights is damaged",
        f"{folders[2]} has no run.json",
        "fold 1 of x is missing",
        "trained on data",
    ):
        assert piece in str(refused.value)


# The mean


@st.composite
def members(draw: st.DrawFn) -> pd.DataFrame:
    count, number = draw(st.integers(1, 12)), draw(st.integers(1, 6))
    values = draw(
        st.lists(
            st.lists(st.floats(-60, 60, width=32), min_size=number, max_size=number),
            min_size=count,
            max_size=count,
        )
    )
    table = pd.DataFrame(values, columns=[f"x fold {at}" for at in range(number)])
    return table.assign(id=[f"{at:04x}" for at in range(count)])


@settings(max_examples=60, deadline=None)
@given(table=members(), seed=st.integers(0, 2**32 - 1))
def test_neither_the_order_of_members_nor_of_rows_changes_a_bit(table: pd.DataFrame, seed: int) -> None:
    generator = np.random.default_rng(seed)
    ids = table["id"].tolist()
    plain = average_members(table, ids)
    shuffled = table.iloc[generator.permutation(len(table))][list(generator.permutation(table.columns))]
    assert np.array_equal(average_members(shuffled, ids), plain)
    order = generator.permutation(len(ids))
    assert np.array_equal(average_members(table, [ids[at] for at in order]), plain[order])
    assert plain.dtype == np.float64 and (plain >= 0).all() and (plain <= 1).all()


@settings(max_examples=40, deadline=None)
@given(table=members())
def test_it_is_the_mean_of_probabilities_not_of_logits(table: pd.DataFrame) -> None:
    logits = table.drop(columns="id").to_numpy(dtype=np.float64)
    by_hand = (1 / (1 + np.exp(-logits))).mean(axis=1)
    np.testing.assert_allclose(average_members(table, table["id"].tolist()), by_hand, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(  # a member counted twice with all others counted twice changes nothing
        average_members(
            pd.concat([table, table.drop(columns="id").add_suffix(" again")], axis=1), table["id"].tolist()
        ),
        by_hand,
        rtol=1e-9,
        atol=1e-12,
    )


TABLE_OF_TWO = pd.DataFrame({"id": ["a", "b", "c"], "one": [0.0, 1.0, -1.0], "two": [2.0, 0.5, 0.0]})


@pytest.mark.parametrize(
    ("logits", "ids", "said"),
    [
        (TABLE_OF_TWO.iloc[:2], "abc", "1 ids have no logits, such as c"),
        (TABLE_OF_TWO, "ab", "1 ids are unknown, such as c"),
        (TABLE_OF_TWO.assign(id=["a", "b", "b"]), "ab", "1 ids occur more than once"),
        (TABLE_OF_TWO.assign(two=[2.0, np.nan, np.inf]), "abc", "2 logits are not finite"),
        (TABLE_OF_TWO[["id"]], "abc", "there is no member"),
    ],
)
def test_holes_and_doubles_are_refused(logits: pd.DataFrame, ids: str, said: str) -> None:
    with pytest.raises(EnsembleError) as refused:
        average_members(logits, list(ids))
    assert said in str(refused.value)


def test_everything_that_is_wrong_with_the_logits_is_listed() -> None:
    with pytest.raises(EnsembleError) as refused:
        average_members(TABLE_OF_TWO.assign(id=["a", "a", "z"], one=[np.nan, 1, 1]), ["a", "b"])
    for piece in ("more than once", "such as b", "such as z", "1 logits are not finite"):
        assert piece in str(refused.value)


# Other averages, and the table of members


def test_the_mean_logit_and_the_mean_rank_by_hand() -> None:
    table = pd.DataFrame({"id": ["a", "b", "c"], "one": [0.0, 2.0, -1.0], "two": [3.0, 3.0, -5.0]})
    found = average_members(table, ["c", "a", "b"], how="logit")
    np.testing.assert_allclose(found, 1 / (1 + np.exp([3.0, -1.5, -2.5])))
    # Ranks of one: 2, 3, 1; of two: 2.5, 2.5, 1 (a tie shares); divided by 3 tiles.
    np.testing.assert_allclose(
        average_members(table, ["c", "a", "b"], how="rank"), np.array([1.0, 2.25, 2.75]) / 3
    )


def test_the_averages_of_pandas_and_scipy() -> None:
    """Values as a real ensemble has them, with ties; pandas aligns by id on its own."""
    generator = np.random.default_rng(0)
    ids = [f"{number:040x}" for number in generator.permutation(500)]
    members = {
        f"m{at}": pd.Series(generator.normal(0, 4, 500).round(1), index=generator.permutation(ids))
        for at in range(5)
    }
    table = pd.DataFrame(members)  # outer join on the id
    chances = table.apply(expit)
    wanted = {
        "mean": chances.mean(axis=1),
        "logit": expit(table.mean(axis=1)),
        "rank": table.rank(pct=True).mean(axis=1),
    }
    for how, values in wanted.items():
        found = average_members(table.rename_axis("id").reset_index(), ids, how=how)
        np.testing.assert_allclose(found, values.loc[ids], rtol=0, atol=1e-12)


@pytest.mark.parametrize("how", ["mean", "logit", "rank"])
def test_no_average_depends_on_the_order_of_members_or_rows(how: str) -> None:
    generator = np.random.default_rng(0)
    table = pd.DataFrame(
        {"id": [str(at) for at in range(50)], **{f"m{at}": generator.normal(0, 9, 50) for at in range(7)}}
    )
    plain = average_members(table, table["id"].tolist(), how=how)
    turned = table[["m3", "m0", "id", "m6", "m1", "m5", "m2", "m4"]].sample(frac=1, random_state=1)
    assert np.array_equal(average_members(turned, table["id"].tolist(), how=how), plain)
    assert plain.min() >= 0 and plain.max() <= 1
    with pytest.raises(EnsembleError, match="not finite"):
        average_members(table.assign(m0=np.inf), table["id"].tolist(), how=how)


def test_the_member_table_compares_members() -> None:
    generator = np.random.default_rng(1)
    shared = generator.normal(0, 2, 400)
    logits = pd.DataFrame(
        {
            "id": range(400),
            **{f"m{at}": shared + generator.normal(0, 1 + 3 * (at == 2), 400) for at in range(3)},
        }
    )
    about = pd.DataFrame({"out_of_fold_auc": [0.9, 0.8, 0.7]}, index=["m0", "m1", "m2"])
    table, correlations = member_table(logits, about)
    assert table["name"].tolist() == ["m0", "m1", "m2"] and table["out_of_fold_auc"].tolist() == [
        0.9,
        0.8,
        0.7,
    ]
    chances = 1 / (1 + np.exp(-logits[["m0", "m1", "m2"]].to_numpy()))
    np.testing.assert_allclose(table["mean_probability"], chances.mean(axis=0))
    by_hand = np.corrcoef(chances[:, 0], chances[:, 1:].mean(axis=1))[0, 1]
    assert table["pearson_with_others"][0] == pytest.approx(by_hand)
    assert table["spearman_with_others"].idxmin() == 2
    assert correlations.loc["m0", "m1"] == pytest.approx(spearmanr(logits["m0"], logits["m1"]).statistic)
    assert np.allclose(np.diag(correlations), 1)
    alone, _ = member_table(logits[["id", "m1"]], about)
    assert alone["name"].tolist() == ["m1"] and np.isnan(alone["pearson_with_others"][0])


def test_weights_are_of_experiments_not_of_their_members() -> None:
    generator = np.random.default_rng(3)
    ids = [f"{n:02d}" for n in range(8)]
    logits = pd.DataFrame({"id": ids, **{name: generator.normal(size=8) for name in ("a0", "a1", "b0")}})
    columns, weights = {"a": ["a0", "a1"], "b": ["b0"]}, {"a": 3, "b": 1}
    expected = (3 * probability(logits[["a0", "a1"]]).mean(axis=1) + probability(logits["b0"])) / 4
    shuffled = logits.sample(frac=1, random_state=1)
    np.testing.assert_allclose(
        average_weighted(shuffled, ids, columns=columns, weights=weights), expected, rtol=1e-12
    )
