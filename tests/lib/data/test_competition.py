"""The competition's folder is compared with its tables; one message lists every problem."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from lib.data.competition import CompetitionError, data_id, read_competition

IDS = [f"{number:040x}" for number in range(12)]
TRAIN, TEST = IDS[:8], IDS[8:]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part, ids in (("train", TRAIN), ("test", TEST)):
        (tmp_path / part).mkdir()
        for name in ids:
            (tmp_path / part / f"{name}.tif").touch()
    labels = [(name, at % 2) for at, name in enumerate(TRAIN)]
    _write(tmp_path / "train_labels.csv", list(reversed(labels)))
    _write(tmp_path / "sample_submission.csv", [(name, 0) for name in reversed(TEST)])
    return tmp_path


def _write(path: Path, rows: list[tuple[str, object]], header: str = "id,label") -> None:
    path.write_text("\n".join([header, *(f"{name},{label}" for name, label in rows)]) + "\n")


def test_labels_come_sorted_and_test_tiles_in_the_order_of_the_sample(folder: Path) -> None:
    found = read_competition(folder, expect_full=False)
    assert found.train["id"].tolist() == TRAIN
    assert found.train["label"].tolist() == [0, 1] * 4
    assert found.test_ids == list(reversed(TEST))
    assert found.sample == (folder / "sample_submission.csv").read_bytes()
    assert not found.is_full


def test_ids_that_look_like_numbers_stay_text(folder: Path) -> None:
    odd = ["0" * 40, "1" * 40, "12e4".rjust(40, "0")]
    for part, table in (("train", "train_labels.csv"), ("test", "sample_submission.csv")):
        for file in (folder / part).iterdir():
            file.unlink()
        for name in odd:
            (folder / part / f"{name}.tif").touch()
        _write(folder / table, list(zip(odd, [0, 1, 1], strict=True)))
    found = read_competition(folder, expect_full=False)
    assert sorted(found.test_ids) == found.train["id"].tolist() == sorted(odd)


def _spoil_label(folder: Path) -> None:
    _write(folder / "train_labels.csv", [*((name, 0) for name in TRAIN[:6]), (TRAIN[6], 2), (TRAIN[7], "")])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "train_labels.csv").unlink(), "train_labels.csv is missing"),
        (lambda folder: (folder / "train_labels.csv").write_text(""), "train_labels.csv is empty"),
        (lambda folder: (folder / "train_labels.csv").write_text("id,label\n"), "a header and no rows"),
        (
            lambda folder: (folder / "train_labels.csv").write_bytes(b"id,label\n\xff\xfe,1\n"),
            "not a CSV file",
        ),
        (lambda folder: (folder / "train_labels.csv").write_text("id,label\na,1\nb,1,1\n"), "not a CSV file"),
        (lambda folder: _write(folder / "train_labels.csv", [("a", 1)], "id,target"), "columns id, target"),
        (_spoil_label, "2 labels that are not 0 or 1"),
        (
            lambda folder: _write(folder / "train_labels.csv", [(name, 1) for name in TRAIN]),
            "nothing to learn",
        ),
        (
            lambda folder: _write(folder / "train_labels.csv", [(name, 1) for name in [*TRAIN, TRAIN[0]]]),
            "more than once",
        ),
        (
            lambda folder: (folder / "train" / f"{TRAIN[0]}.tif").unlink(),
            "1 ids of train_labels.csv have no file",
        ),
        (
            lambda folder: (folder / "test" / "more.tif").touch(),
            "1 files in test/ are not in sample_submission.csv: more",
        ),
        (lambda folder: (folder / "test" / "notes.txt").touch(), "not .tif: notes.txt"),
        (lambda folder: [file.unlink() for file in (folder / "test").iterdir()], "the folder test/ is empty"),
    ],
)
def test_each_defect_is_named(folder: Path, spoil: Callable[[Path], object], said: str) -> None:
    spoil(folder)
    with pytest.raises(CompetitionError) as refused:
        read_competition(folder, expect_full=False)
    assert said in str(refused.value) and str(folder) in str(refused.value)


def test_all_defects_are_listed_at_once(folder: Path) -> None:
    _spoil_label(folder)
    (folder / "train" / f"{TRAIN[0]}.tif").unlink()
    (folder / "sample_submission.csv").unlink()
    for file in (folder / "test").iterdir():
        file.unlink()
    with pytest.raises(CompetitionError) as refused:
        read_competition(folder, expect_full=True)
    for piece in (
        "not 0 or 1",
        "have no file in train/",
        "sample_submission.csv is missing",
        "test/ is empty",
        "220,025",
    ):
        assert piece in str(refused.value)


def test_a_part_is_not_the_full_competition(folder: Path) -> None:
    with pytest.raises(CompetitionError, match="8 rows, the full data 220,025"):
        read_competition(folder, expect_full=True)


def test_files_that_a_desktop_leaves_do_not_count(folder: Path) -> None:
    (folder / "train" / ".DS_Store").touch()
    assert len(read_competition(folder, expect_full=False).train) == 8


def test_real_tables_are_read(real_tiles: Path) -> None:
    found = read_competition(real_tiles, expect_full=False)
    assert (len(found.train), len(found.test_ids)) == (480, 120)
    assert 0.2 < found.train["label"].mean() < 0.8


def test_the_data_id_is_that_of_the_labels_not_of_their_order() -> None:
    table = pd.DataFrame({"id": TRAIN, "label": [0, 1] * 4})
    same = data_id(table)
    assert data_id(table.sample(frac=1, random_state=1)) == same
    assert data_id(table.assign(label=table["label"].astype(str))) == same
    assert data_id(table.assign(label=[1, 0] + [0, 1] * 3)) != same
    assert data_id(table.iloc[1:]) != same


def test_files_of_windows_and_macos_are_ignored(folder: Path) -> None:
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", f"._{TRAIN[0]}.tif"):
        (folder / "train" / name).touch()
    (folder / "test" / "__MACOSX").mkdir()
    assert read_competition(folder, expect_full=False).train["id"].tolist() == TRAIN


def test_labels_may_be_written_as_floats(folder: Path) -> None:
    """After a merge pandas writes 1.0 and 0.0."""
    _write(folder / "train_labels.csv", [(name, float(at % 2)) for at, name in enumerate(TRAIN)])
    assert ",1.0\n" in (folder / "train_labels.csv").read_text()
    assert read_competition(folder, expect_full=False).train["label"].tolist() == [0, 1] * 4


def test_a_folder_that_mle_bench_prepared_is_read_as_it_is(folder: Path) -> None:
    """prepared/public: the same four parts, with the text of the task and, for some tasks, the archives."""
    (folder / "description.md").write_text("# Overview\n", encoding="utf-8")
    (folder / "train.zip").touch()
    (folder / "test.zip").touch()
    found = read_competition(folder, expect_full=False)
    assert (len(found.train), len(found.test_ids)) == (len(TRAIN), len(TEST))
    assert found.labelled_order == list(reversed(TRAIN))  # as in the file: MLE-bench's rule depends on it
