"""`predict` on pictures of a user's own: the numbers of the inference kernel, labels, bad files, export."""

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import workbench
from PIL import Image

from launch.cli import command_line
from lib.data.pictures import read_pictures
from lib.data.prepared import read_index
from lib.data.tiff import decode_tile
from lib.evaluation.metrics import auc
from lib.evaluation.out_of_fold import score_experiment
from lib.inference.onnx_file import PACKAGES, OnnxError, write_onnx
from lib.inference.predict_folder import Options, predict_folder
from lib.inference.predictor import Predictor
from lib.model.network import build_network
from lib.model.predict import predict_logits
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


@pytest.mark.parametrize("case", ["twice", "absent", "damaged", "nothing", "other data"])
def test_members_that_cannot_be_used_are_refused(case: str, tmp_path: Path, members: Path) -> None:
    if case != "nothing":
        shutil.copytree(members, tmp_path, dirs_exist_ok=True)
    first = tmp_path / "hcd-smoke-fold-0" / "working"
    experiments: tuple[str, ...] = ()
    if case == "twice":
        other = shutil.copytree(first, tmp_path / "other")
        workbench.reseal(other, push_id="another")
        expected = f"fold 0 of {NAME} is found more than once"
    elif case == "other data":
        workbench.reseal(first, experiment="other", data_id="e" * 64)
        expected = "trained on different data:(.|\n)*other: data eeeeeeee(.|\n)*--experiment"
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


def test_an_exported_folder_predicts_the_same_and_describes_itself(
    tmp_path: Path, members: Path, prepared: Path, pictures: tuple[Path, pd.DataFrame]
) -> None:
    from lib.inference.export_folder import Options as ExportOptions
    from lib.inference.export_folder import export_folder

    run, out = tmp_path / "run", tmp_path / "exported"
    shutil.copytree(members, run)
    shutil.copytree(prepared, run / "hcd-prepare" / "working")
    export_folder(ExportOptions(members=str(run), out=str(out)))
    tiles = read_pictures(pictures[0], pictures[1]["tile"].tolist())
    before, after = (Predictor.load(folder, device="cpu").predict(tiles) for folder in (run, out))
    pd.testing.assert_frame_equal(before, after)
    content = json.loads((out / "config.json").read_text())
    first = content["members"][0]
    assert content["id2label"]["1"].startswith("tumour") and len(first["mean"]) == len(first["std"]) == 3
    text = (out / "README.md").read_text()
    summary = score_experiment(
        NAME, sorted(run.glob("*fold*/working")), read_index(prepared / "index-train.csv")
    )
    assert (
        f"AUC {summary.pooled:.4f} on n = 60 tiles (no interval: 8 stain groups, and 10 are needed)" in text
    )
    for part in ("2 of 2 folds, stratified", "optimistic", "random weights", "license: unknown", "library "):
        assert part in text
    names = {path.name for path in out.iterdir()}
    assert names == {"README.md", "config.json", *(each["file"] for each in content["members"])}
    with pytest.raises(Exception, match="exists and is not empty"):
        export_folder(ExportOptions(members=str(run), out=str(out)))
    with pytest.raises(Exception, match="exported folder already"):
        export_folder(ExportOptions(members=str(out), out=str(tmp_path / "again")))
    workbench.flip_byte(out / first["file"])
    with pytest.raises(Exception, match="is damaged"):
        Predictor.load(out)


def test_onnx_files_give_the_logits_of_torch_in_any_batch(
    tmp_path: Path, members: Path, pictures: tuple[Path, pd.DataFrame]
) -> None:
    """With all eight views, and a resize that reduces: the two parts that ONNX could get wrong."""
    from lib.inference.export_folder import Options as ExportOptions
    from lib.inference.export_folder import export_folder

    out = tmp_path / "exported"
    if any(importlib.util.find_spec(name) is None for name in PACKAGES):
        with pytest.raises(OnnxError, match=r"is not installed.*pip install -e '.\[onnx\]'"):
            export_folder(ExportOptions(members=str(members), out=str(out), onnx=True))
        pytest.skip(f"not installed here: one of {', '.join(PACKAGES)}")
    export_folder(ExportOptions(members=str(members), out=str(out), onnx=True))
    import onnxruntime

    tiles = read_pictures(pictures[0], pictures[1]["tile"].tolist()[:7])
    logits = Predictor.load(out, device="cpu").logits(tiles)
    images = tiles.transpose(0, 3, 1, 2).astype(np.float32) / 255
    for column, entry in enumerate(json.loads((out / "config.json").read_text())["members"]):
        session = onnxruntime.InferenceSession(str(out / entry["onnx"]))
        for size in (1, 7):
            found = session.run(["logit"], {"tiles": images[:size]})[0]
            np.testing.assert_allclose(found, logits[:size, column], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("size", "views"), [(32, 1), (96, 8), (160, 4)])
def test_views_and_sizes_are_inside_the_onnx_file(tmp_path: Path, size: int, views: int) -> None:
    for name in PACKAGES:
        pytest.importorskip(name, reason=f"{name} is not installed here")
    torch.manual_seed(0)
    network = build_network(replace(workbench.experiment().config, input_size=size)).eval()
    tiles = np.random.default_rng(1).integers(0, 256, (8, 96, 96, 3), dtype=np.uint8)
    device = torch.device("cpu")
    logits = predict_logits(
        network, tiles, np.arange(8), views=views, batch_size=8, device=device, precision=torch.float32
    )
    assert write_onnx(tmp_path / "x.onnx", network, None, views=views, logits=logits, tiles=tiles) <= 1e-4
    with pytest.raises(OnnxError, match="differ from torch's by"):
        write_onnx(tmp_path / "y.onnx", network, None, views=views, logits=logits + 1e-3, tiles=tiles)
