"""`predict` on pictures of a user's own: the numbers of the inference kernel, labels, bad files, export."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import workbench
from PIL import Image

from launch.cli import command_line
from lib.data.tiff import decode_tile
from lib.evaluation.metrics import auc
from lib.inference.predict_folder import Options, predict_folder
from lib.inference.predictor import Predictor
from lib.report.external_test_page import write_page

NAME = workbench.experiment().name


@pytest.fixture(scope="session")
def members(tmp_path_factory: pytest.TempPathFactory, folds: list[Path]) -> Path:
    """A folder like that of `local`, with the outputs of both folds. Not to be changed."""
    root = tmp_path_factory.mktemp("members")
    for number, fold in enumerate(folds):
        shutil.copytree(fold, root / f"hcd-smoke-fold-{number}" / "working")
    return root


def _write_pictures(competition: Path, folder: Path, number: int = 20) -> pd.DataFrame:
    """Pictures of labelled tiles as PNG in nested folders, with names of their own; tile, id and label."""
    labels = pd.read_csv(competition / "train_labels.csv", dtype={"id": str}).head(number)
    rows = []
    for row in labels.itertuples():
        name = f"slide {row.Index % 4}/Tile_{row.Index:02d}.{'PNG' if row.Index % 2 else 'png'}"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = decode_tile((competition / "train" / f"{row.id}.tif").read_bytes())
        Image.fromarray(pixels).save(folder / name)
        rows.append((name, row.id, row.label))
    for junk in ("Thumbs.db", ".DS_Store", "__MACOSX/x.png", "README.png", "slide 0/notes.txt"):
        (folder / junk).parent.mkdir(exist_ok=True)
        (folder / junk).write_bytes(b"junk")
    return pd.DataFrame(rows, columns=["tile", "id", "label"])


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory, competition: Path) -> tuple[Path, pd.DataFrame]:
    folder = tmp_path_factory.mktemp("pictures")
    return folder, _write_pictures(competition, folder)


def test_20_pngs_have_the_predictions_of_the_inference_kernel_on_the_same_pixels(
    bench: Any,
    competition: Path,
    prepared: Path,
    folds: list[Path],
    members: Path,
    pictures: tuple[Path, pd.DataFrame],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The kernel reads the tiles from the array that prepare made of their TIFF files."""
    folder, table = pictures
    data = bench.folder / "competition"
    shutil.copytree(competition, data)
    shutil.rmtree(data / "test")
    (data / "test").mkdir()
    for name in table["id"]:
        shutil.copyfile(competition / "train" / f"{name}.tif", data / "test" / f"{name}.tif")
    table[["id"]].assign(label=0).to_csv(data / "sample_submission.csv", index=False)
    bench.mount(data, workbench.COMPETITION)
    store = bench.mount_copy(prepared, "notebooks/someone/hcd-prepare")
    index = pd.read_csv(store / "index-train.csv", dtype={"id": str}).set_index("id")
    np.save(store / "tiles-test.npy", np.load(store / "tiles-train.npy")[index.loc[table["id"], "row"]])
    table[["id"]].rename_axis("row").to_csv(store / "index-test.csv")
    shutil.copyfile(data / "sample_submission.csv", store / "sample_submission.csv")
    workbench.reseal(store)
    for number, fold in enumerate(folds):
        bench.mount(fold, f"notebooks/someone/hcd-smoke-fold-{number}")
    code, _, errors = bench.run("inference")
    assert (code, errors) == (0, "")
    kernel = pd.read_csv(bench.working / "submission.csv", dtype={"id": str}).set_index("id")["label"]

    out = bench.folder / "predictions.csv"
    assert (
        command_line(["predict", "--tiles", str(folder), "--members", str(members), "--out", str(out)]) == 0
    )
    printed = capfd.readouterr().out
    ours = pd.read_csv(out)
    assert list(ours.columns) == ["tile", "probability", "spread", "calibrated"]
    assert ours["tile"].tolist() == sorted(table["tile"])
    by_kernel = table.set_index("tile").loc[ours["tile"], "id"].map(kernel)
    np.testing.assert_allclose(ours["probability"], by_kernel, rtol=0, atol=1e-6)
    assert (ours["spread"] > 0).all() and ours["calibrated"].between(0, 1).all()
    assert "2 members of smoke-" in printed and "tiles/s" in printed
    assert "1 other files are ignored: slide 0/notes.txt" in printed
    assert not list(bench.folder.glob(".predictions*"))


def test_with_labels_it_is_an_external_test(
    tmp_path: Path, members: Path, pictures: tuple[Path, pd.DataFrame]
) -> None:
    folder, table = pictures
    labels, out = tmp_path / "labels.csv", tmp_path / "sub" / "out.csv"
    rows = table.assign(
        File=[name.rpartition("/")[2] for name in table["tile"]],
        Label=[f"{label}.0" for label in table["label"]],
        Slide=[f"s{row % 10}" for row in range(len(table))],
    )
    rows = rows[["File", "Label", "Slide"]].iloc[1:]
    rows.loc[len(table)] = ["absent.png", "1", "s0"]
    rows.to_csv(labels, index=False, sep=";")
    report = predict_folder(
        Options(tiles=str(folder), members=str(members), out=str(out), labels=str(labels), device="cpu")
    )
    assert json.loads(out.with_suffix(".json").read_text()) == report
    scores = report["scores"]
    predictions = pd.read_csv(out).set_index("tile")
    scored = table.iloc[1:].set_index("tile")
    by_hand = auc(scored["label"].to_numpy(), predictions.loc[scored.index, "probability"].to_numpy())
    assert scores["auc"] == pytest.approx(by_hand, abs=1e-9) and scores["tiles"] == 19
    assert sum(map(sum, scores["confusion_at_half"])) == 19
    assert scores["interval"] == "resampling 10 groups (slide)" and len(scores["interval_95"]) == 2
    assert [text.split(" ")[0] for text in report["not_scored"]] == ["1", "1"]
    page = write_page(out).read_text()
    assert f"{scores['auc']:.4f}" in page and "absent.png" in page and "<script" not in page


def test_all_that_is_wrong_with_pictures_is_listed_at_once(
    tmp_path: Path, members: Path, pictures: tuple[Path, pd.DataFrame]
) -> None:
    folder = tmp_path / "tiles"
    folder.mkdir()
    good = Image.open(pictures[0] / pictures[1]["tile"][0])
    good.save(folder / "good.png")
    good.convert("L").save(folder / "grey.png")
    good.resize((96, 80)).save(folder / "oblong.jpg")
    (folder / "empty.tif").touch()
    (folder / "text.jpeg").write_bytes(b"no picture")
    options = Options(tiles=str(folder), members=str(members), out=str(tmp_path / "p.csv"), device="cpu")
    with pytest.raises(Exception, match="4 of 5 pictures") as caught:
        predict_folder(options)
    message = str(caught.value)
    for part in ("grey.png: mode L (greyscale)", "oblong.jpg: 96 x 80", "empty.tif: the file is empty"):
        assert part in message
    assert "text.jpeg: not a PNG, JPEG or TIFF" in message and "--skip-bad" in message
    assert not list(tmp_path.glob("*.csv"))
    report = predict_folder(Options(**{**vars(options), "skip_bad": True}))
    assert pd.read_csv(tmp_path / "p.csv")["tile"].tolist() == ["good.png"]
    assert sorted(report["refused"]) == ["empty.tif", "grey.png", "oblong.jpg", "text.jpeg"]


def test_blocks_and_a_repeated_run_give_the_same_predictions(
    tmp_path: Path,
    members: Path,
    pictures: tuple[Path, pd.DataFrame],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lib.inference import predict_folder as module
    from lib.model import predict as torch_part

    def options(name: str) -> Options:
        return Options(tiles=str(pictures[0]), members=str(members), out=str(tmp_path / name), device="cpu")

    predict_folder(options("whole.csv"))
    monkeypatch.setattr(module, "_BLOCK", 8)
    with monkeypatch.context() as patch:
        calls: list[int] = []
        read = module.read_pictures

        def read_two(folder: Path, names: list[str]) -> np.ndarray:
            calls.append(len(names))
            if len(calls) == 3:
                raise KeyboardInterrupt
            return read(folder, names)

        patch.setattr(module, "read_pictures", read_two)
        with pytest.raises(KeyboardInterrupt):
            predict_folder(options("blocks.csv"))
    computed: list[int] = []
    compute = torch_part.compute_in_batches

    def count(*arguments: Any, **more: Any) -> Any:
        computed.append(len(arguments[2]))
        return compute(*arguments, **more)

    monkeypatch.setattr(torch_part, "compute_in_batches", count)
    predict_folder(options("blocks.csv"))
    assert computed == [4]  # the last block: the two before it were finished
    whole, blocks = (pd.read_csv(tmp_path / name) for name in ("whole.csv", "blocks.csv"))
    pd.testing.assert_frame_equal(whole, blocks, rtol=0, atol=1e-6)


def _strip_weights(members: Path, to: Path) -> Path:
    """A campaign as `run` leaves it: outputs without weights."""
    for fold in members.iterdir():
        shutil.copytree(
            fold / "working", to / "outputs" / fold.name, ignore=shutil.ignore_patterns("*.safetensors")
        )
    (to / "ledger.json").write_text("{}")
    return to


def test_weights_that_stayed_on_kaggle_are_named_with_the_way_to_get_them(
    tmp_path: Path, members: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    campaign = _strip_weights(members, tmp_path / "strong")
    with pytest.raises(Exception, match="cannot be used") as caught:
        Predictor.load(campaign)
    message = str(caught.value)
    assert f"fold 0 of {NAME}: fold-0-member-0.safetensors" in message and f"fold 1 of {NAME}" in message
    assert "build_kernel.py output fold-0 fold-1 --weights --campaign strong" in message
    assert "kaggle kernels output" in message
    # What `output --weights` fetches beside the outputs completes them.
    for fold in members.iterdir():
        shutil.copytree(fold / "working", campaign / "fetched" / fold.name)
    assert len(Predictor.load(campaign).members) == 2


def test_a_rehearsal_finds_the_weights_that_stayed_on_the_emulated_kaggle(
    tmp_path: Path, members: Path
) -> None:
    _strip_weights(members, tmp_path / "campaign")
    for fold in members.iterdir():
        shutil.copytree(fold / "working", tmp_path / "kaggle" / "kernels" / fold.name / "v1" / "working")
    for folder in (tmp_path, tmp_path / "campaign"):
        assert len(Predictor.load(folder, device="cpu").members) == 2


@pytest.mark.parametrize("case", ["twice", "absent", "damaged", "nothing"])
def test_members_that_cannot_be_used_are_refused(case: str, tmp_path: Path, members: Path) -> None:
    if case != "nothing":
        shutil.copytree(members, tmp_path, dirs_exist_ok=True)
    first = tmp_path / "hcd-smoke-fold-0" / "working"
    experiments: tuple[str, ...] = ()
    if case == "twice":
        other = shutil.copytree(first, tmp_path / "other")
        workbench.reseal(other, push_id="another")
        expected = f"fold 0 of {NAME} is found more than once"
    elif case == "absent":
        experiments, expected = ("strong",), "strong has no finished fold here"
    elif case == "damaged":
        workbench.flip_byte(first / "fold-0-member-0.safetensors")
        expected = "fold-0-member-0.safetensors in .* is not the one of its run.json"
    else:
        expected = "no finished fold is here"
    with pytest.raises(Exception, match=expected):
        Predictor.load(tmp_path, experiments=experiments, device="cpu")


def test_without_calibration_the_reason_is_told(
    tmp_path: Path, members: Path, pictures: tuple[Path, pd.DataFrame]
) -> None:
    """Out-of-fold predictions that separate the classes perfectly allow no Platt scaling."""
    shutil.copytree(members, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.glob("*/working/oof-*.csv"):
        table = pd.read_csv(path, dtype={"id": str})
        table.assign(logit=table["label"] * 8.0 - 4).to_csv(path, index=False)
    for fold in tmp_path.iterdir():
        record = workbench.record_of(fold / "working")
        scores = record["scores"]
        for entry in (scores["fold"], *scores["members"]):
            entry["auc"] = 1.0
        workbench.reseal(fold / "working", scores=scores)
    out = tmp_path / "p.csv"
    report = predict_folder(
        Options(tiles=str(pictures[0]), members=str(tmp_path), out=str(out), device="cpu")
    )
    assert "separate the classes perfectly" in report["without_scaling"] and report["platt_scaling"] is None
    assert pd.read_csv(out)["calibrated"].isna().all()
