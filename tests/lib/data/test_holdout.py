"""Hold-out: MLE-bench's rule as MLE-bench writes it, files of ids, and the grade."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lib.config import Config, ConfigError
from lib.data import competition as competition_module
from lib.data import holdout as holdout_module
from lib.data.competition import Competition
from lib.data.holdout import MLE_BENCH, HoldoutError, hold_out, mle_bench_tables
from lib.data.prepared import index_tables
from lib.data.stain_groups import FEATURES
from lib.evaluation.holdout_grade import MEDAL_LINES, describe_grade, grade_holdout, medal_of
from lib.evaluation.metrics import auc


def _competition(labelled: int = 300, test: int = 80, *, seed: int = 3) -> Competition:
    """A competition whose labels file is in random order, as the real one."""
    generator = np.random.default_rng(seed)
    ids = [hashlib.sha1(bytes([seed]) + bytes(str(n), "ascii")).hexdigest() for n in range(labelled)]
    order = [ids[n] for n in generator.permutation(labelled)]
    train = pd.DataFrame({"id": sorted(ids), "label": generator.integers(0, 2, labelled)})
    return Competition(Path(), train, [f"test-{n:03d}" for n in range(test)], b"", labelled_order=order)


def _mle_bench(competition: Competition) -> dict[str, pd.DataFrame]:
    """MLE-bench's split, from a table in the order of the file, in its own words."""
    from sklearn.model_selection import train_test_split

    old_train = competition.train.set_index("id").loc[competition.labelled_order].reset_index()
    test_ratio = len(competition.test_ids) / (len(old_train) + len(competition.test_ids))
    train_ids, test_ids = train_test_split(old_train["id"], test_size=test_ratio, random_state=0)
    return {
        "train_labels.csv": old_train[old_train["id"].isin(train_ids)],
        "answers.csv": old_train[old_train["id"].isin(test_ids)],
    }


@pytest.mark.parametrize(("labelled", "test"), [(300, 80), (301, 77), (1000, 261)])
def test_the_split_is_that_of_mle_bench(labelled: int, test: int) -> None:
    competition = _competition(labelled, test)
    expected = _mle_bench(competition)
    split = hold_out(competition, MLE_BENCH)
    assert set(split.holdout["id"]) == set(expected["answers.csv"]["id"])
    assert set(split.train["id"]) == set(expected["train_labels.csv"]["id"])
    tables = mle_bench_tables(competition, set(split.holdout["id"]))
    for name, table in expected.items():
        assert tables[name] == table.to_csv(index=False).encode()
    sample = expected["answers.csv"].assign(label=0)
    assert tables["sample_submission.csv"] == sample.to_csv(index=False).encode()


def test_labels_stay_with_their_ids_and_both_parts_are_sorted() -> None:
    competition = _competition()
    split = hold_out(competition, MLE_BENCH)
    both = pd.concat([split.train, split.holdout]).sort_values("id", ignore_index=True)
    assert both.equals(competition.train)
    for part in (split.train, split.holdout):
        assert part["id"].is_monotonic_increasing
        assert part.index.tolist() == list(range(len(part)))
    assert split.labelled_order == competition.labelled_order


def test_the_full_data_must_give_the_tables_of_mle_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    competition = _competition()
    monkeypatch.setattr(competition_module, "TRAIN_TILES", 300)
    monkeypatch.setattr(competition_module, "TEST_TILES", 80)
    assert competition.is_full
    with pytest.raises(HoldoutError) as caught:
        hold_out(competition, MLE_BENCH)
    message = str(caught.value)
    assert all(name in message for name in ("train_labels.csv", "sample_submission.csv", "answers.csv"))
    assert "806d8b128caeeaf4d0091bd6034cd0fb" in message and "--holdout FILE.csv" in message

    held_out = set(_mle_bench(competition)["answers.csv"]["id"])
    right = {
        name: hashlib.md5(content, usedforsecurity=False).hexdigest()
        for name, content in mle_bench_tables(competition, held_out).items()
    }
    monkeypatch.setattr(holdout_module, "_MLE_BENCH_TABLES", right)
    split = hold_out(competition, MLE_BENCH)
    assert split.is_full
    assert len(split.holdout) == len(held_out)


def test_a_file_of_ids_is_held_out(tmp_path: Path) -> None:
    competition = _competition()
    ids = competition.train["id"].iloc[::5]
    path = tmp_path / "mine.csv"
    pd.DataFrame({"label": 1, "id": ids}).to_csv(path, index=False)  # its labels are not read
    split = hold_out(competition, "mine.csv", file=path)
    assert split.holdout["id"].tolist() == ids.tolist()
    assert split.holdout["label"].tolist() == competition.train["label"].iloc[::5].tolist()


def test_everything_wrong_with_a_file_of_ids_is_listed(tmp_path: Path) -> None:
    competition = _competition()
    path = tmp_path / "mine.csv"
    first = competition.train["id"].iloc[0]
    path.write_text(f"id\n{first}\n{first}\ntest-001\nnobody\n", encoding="utf-8")
    with pytest.raises(HoldoutError) as caught:
        hold_out(competition, "mine.csv", file=path)
    message = str(caught.value)
    for part in ("1 tiles more than once", "1 test tiles, such as test-001", "not labelled, such as nobody"):
        assert part in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a CSV file"),
        (b"\xff\xfe\x00", "not a CSV file"),
        (b"name\nx\n", "has no column id, only: name"),
        (b"id\n", "it names no tile"),
    ],
)
def test_a_file_that_is_no_hold_out_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "mine.csv"
    path.write_bytes(content)
    with pytest.raises(HoldoutError, match=message):
        hold_out(_competition(), "mine.csv", file=path)


def test_both_parts_need_both_labels(tmp_path: Path) -> None:
    competition = _competition(labelled=40)
    path = tmp_path / "mine.csv"
    competition.train.to_csv(path, index=False)
    with pytest.raises(HoldoutError, match="the rest has no tile with label 0"):
        hold_out(competition, "mine.csv", file=path)


def test_groups_do_not_depend_on_the_hold_out() -> None:
    competition = _competition()
    features = np.random.default_rng(1).normal(size=(300, len(FEATURES)))
    config = Config(stain_groups=6)
    whole, none = index_tables(competition, features, config, None)
    assert none is None
    split = hold_out(competition, MLE_BENCH)
    inside = competition.train["id"].isin(set(split.holdout["id"])).to_numpy()
    train, holdout = index_tables(split, features[~inside], config, None, holdout_features=features[inside])
    assert holdout is not None
    assert holdout["row"].tolist() == list(range(len(holdout)))
    for part in (train, holdout):
        same = part.merge(whole, on="id", suffixes=("", "_whole"))
        assert len(same) == len(part)
        assert (same["stain_group"] == same["stain_group_whole"]).all()
        assert (same["label"] == same["label_whole"]).all()


@pytest.mark.parametrize("name", ["MLEbench", "ids.txt", "folder/ids.csv", "C:\\ids.csv"])
def test_a_hold_out_is_a_known_name_or_the_name_of_a_file(name: str) -> None:
    with pytest.raises(ConfigError, match="holdout = "):
        Config(holdout=name)
    assert Config(holdout="ids.csv").holdout_file == "ids.csv"
    assert Config(holdout="mlebench").holdout_file == ""


def test_the_grade_has_the_medal_lines_only_for_mle_bench() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 400)
    scores = np.clip(labels * 0.4 + generator.normal(0.3, 0.2, 400), 0, 1)
    groups = generator.integers(0, 20, 400)
    grade = grade_holdout(labels, scores, groups, name="mlebench", grouping="stain groups")
    assert grade["auc"] == auc(labels, scores)
    assert grade["interval_95"][0] < grade["auc"] < grade["interval_95"][1]
    assert grade["medal_lines"] == MEDAL_LINES
    text = describe_grade(grade)
    assert f"AUC {grade['auc']:.4f} on n = 400 tiles" in text and "bronze 0.9738" in text
    own = grade_holdout(labels, scores, groups, name="mine.csv", grouping="stain groups")
    assert "medal" not in own and "MLE-bench" not in describe_grade(own)


@pytest.mark.parametrize(
    ("score", "medal"),
    [
        (0.9835, "gold"),
        (0.98, "silver"),
        (0.9738, "bronze"),
        (0.95, "above median"),
        (0.9477, "below median"),
    ],
)
def test_medals_begin_at_their_lines(score: float, medal: str) -> None:
    assert medal_of(score) == medal
