"""A reader accepts nothing whose run.json is missing, incomplete, or does not match the files."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lib.config import Config
from lib.runtime import run_record
from lib.runtime.run_record import (
    RECORD_FORMAT,
    RECORD_NAME,
    RunRecord,
    RunRecordError,
    describe_files,
    peek_kind,
    read_run_record,
    write_run_record,
)


def _record(folder: Path, **changes: Any) -> RunRecord:
    values: dict[str, Any] = {
        "kind": "train",
        "experiment": "resnet18",
        "config": Config().to_dict(),
        "push_id": "campaign/fold-0/1",
        "bundle_id": "b" * 64,
        "git_commit": "c" * 40,
        "data_id": "d" * 64,
        "files": describe_files(folder, {"big.npy": False, "a.csv": True, "b.csv": True}),
        "complete": True,
    }
    return RunRecord(**{**values, **changes})


@pytest.fixture
def output(tmp_path: Path) -> Path:
    for name in ("big.npy", "a.csv", "b.csv"):
        (tmp_path / name).write_bytes(f"content of {name}".encode())
    write_run_record(tmp_path, _record(tmp_path))
    return tmp_path


def _edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads((folder / RECORD_NAME).read_text())
    change(content)
    (folder / RECORD_NAME).write_text(json.dumps(content))


def test_what_was_written_is_read(output: Path) -> None:
    record = read_run_record(output, kind="train")
    assert record == _record(output)
    assert not record.files["big.npy"].fetch and record.files["a.csv"].fetch
    assert peek_kind(output) == "train"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content.update(complete=False), "complete: true"),
        (lambda content: content.update(complete="true"), "complete: true"),
        (lambda content: content.pop("complete"), "complete: true"),
        (
            lambda content: content.update(format=RECORD_FORMAT - 1),
            f"has format {RECORD_FORMAT - 1}, this code reads",
        ),
        (lambda content: content.pop("data_id"), "format"),
        (lambda content: content.update(surprise=1), "format"),
        (
            lambda content: content["config"].update(views=8),
            "unknown key 'views'(.|\n)*Run that kernel again",
        ),
        (
            lambda content: content["config"].pop("tta_views"),
            "another version of this code(.|\n)*tta_views is absent",
        ),
        (lambda content: content["config"].update(epochs=-1), "epochs"),
        (lambda content: content.update(files=["a.csv"]), "lists its files"),
        (lambda content: content["files"].update({"a.csv": {"bytes": 3}}), "lists its files"),
        (lambda content: content["files"]["a.csv"].update(sha256="0" * 64), "a.csv is damaged"),
        (lambda content: content["files"]["a.csv"].update(bytes=3), "a.csv has 16 bytes, 3 recorded"),
    ],
)
def test_a_record_with_other_content_is_refused(
    output: Path, change: Callable[[dict[str, Any]], Any], said: str
) -> None:
    _edit(output, change)
    with pytest.raises(RunRecordError, match=said):
        read_run_record(output, kind="train")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'"complete"'])
def test_a_record_that_cannot_be_read_is_refused(output: Path, content: bytes) -> None:
    (output / RECORD_NAME).write_bytes(content)
    with pytest.raises(RunRecordError, match=RECORD_NAME):
        read_run_record(output, kind="train")
    assert peek_kind(output) == ""


def test_every_cut_of_a_record_is_refused(output: Path) -> None:
    whole = (output / RECORD_NAME).read_bytes()
    for length in range(0, len(whole) - 2, 40):
        (output / RECORD_NAME).write_bytes(whole[:length])
        with pytest.raises(RunRecordError):
            read_run_record(output, kind="train")


def test_no_record_means_the_kernel_did_not_finish(output: Path) -> None:
    (output / RECORD_NAME).unlink()
    with pytest.raises(RunRecordError, match="did not finish"):
        read_run_record(output, kind="train")


def test_the_wrong_kind_names_both(output: Path) -> None:
    with pytest.raises(RunRecordError, match="from a train kernel, not from prepare"):
        read_run_record(output, kind="prepare")


def test_all_files_that_do_not_match_are_listed_at_once(output: Path) -> None:
    (output / "a.csv").unlink()
    (output / "b.csv").write_bytes(b"content of c.csv")
    (output / "big.npy").write_bytes(b"short")
    with pytest.raises(RunRecordError) as refused:
        read_run_record(output, kind="train")
    for piece in ("a.csv is missing", "b.csv is damaged", "big.npy has 5 bytes", "again"):
        assert piece in str(refused.value)


def test_of_a_large_file_only_the_size_is_checked(output: Path) -> None:
    (output / "big.npy").write_bytes(b"CONTENT OF big.npy")
    assert read_run_record(output, kind="train", hashed_by_reader=("big.npy",)).kind == "train"
    with pytest.raises(RunRecordError, match="damaged"):
        read_run_record(output, kind="train")
    (output / "big.npy").write_bytes(b"cut")
    with pytest.raises(RunRecordError, match="3 bytes"):
        read_run_record(output, kind="train", hashed_by_reader=("big.npy",))


def test_scores_that_are_not_finite_are_refused_in_a_record(output: Path) -> None:
    before = (output / RECORD_NAME).read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        write_run_record(output, dataclasses.replace(_record(output), scores={"auc": float("nan")}))
    assert (output / RECORD_NAME).read_bytes() == before
    assert sorted(path.name for path in output.iterdir()) == ["a.csv", "b.csv", "big.npy", RECORD_NAME]


def test_an_earlier_record_survives_a_full_disk(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (output / RECORD_NAME).read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_run_record(output, _record(output, experiment="other"))
    assert (output / RECORD_NAME).read_bytes() == before
    assert not list(output.glob(".*"))  # nothing left beside it


def test_a_known_hash_is_not_computed_again(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"big.npy": False, "a.csv": True}
    read = describe_files(output, names)
    hashed: list[str] = []
    real = run_record.sha256_of
    monkeypatch.setattr(run_record, "sha256_of", lambda path: hashed.append(path.name) or real(path))
    assert describe_files(output, names, hashes={"big.npy": read["big.npy"].sha256}) == read
    assert hashed == ["a.csv"]
