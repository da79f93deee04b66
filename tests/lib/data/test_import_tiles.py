"""`import`: tiles of a user's own become a folder in competition layout that prepare reads."""

import hashlib
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from launch.cli import command_line
from lib.data.competition import read_competition
from lib.data.import_tiles import ImportTilesError, import_tiles
from lib.data.stain_groups import read_slide_map
from lib.data.tiff import decode_tile


@pytest.fixture
def own(tmp_path: Path, random_tiles: Callable[..., np.ndarray]) -> tuple[Path, Path]:
    """30 PNG and JPEG pictures of six slides with a table of float labels."""
    folder, rows = tmp_path / "own", []
    for number, pixels in enumerate(random_tiles(30)):
        name = f"slide{number % 6}/tile {number}.{'jpg' if number % 10 == 9 else 'png'}"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)
        rows.append((name, f"{number % 2}.0", f"slide{number % 6}"))
    (folder / "Thumbs.db").touch()
    table = tmp_path / "labels.csv"
    pd.DataFrame(rows, columns=["file", "label", "slide"]).to_csv(table, index=False)
    return folder, table


def _pixels_of(out: Path, identity: str, part: str) -> np.ndarray:
    pixels = decode_tile((out / part / f"{identity}.tif").read_bytes())
    assert hashlib.sha1(pixels.tobytes()).hexdigest() == identity
    return pixels


def test_pictures_and_a_table_become_a_competition(
    own: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, table = own
    out = tmp_path / "mine"
    assert command_line(["import", str(folder), "--table", str(table), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    read = read_competition(out, expect_full=False)
    assert len(read.train) == 25 and len(read.test_ids) == 5  # one of six slides: at least 10 %
    imported = pd.read_csv(out / "imported.csv", dtype=str)
    original = pd.read_csv(table, dtype=str).set_index("file")
    for row in imported.itertuples():
        pixels = _pixels_of(out, row.id, row.part)
        assert float(original.loc[row.tile, "label"]) == float(row.label)
        np.testing.assert_array_equal(pixels, np.array(Image.open(folder / row.tile)))
    test = imported[imported["part"] == "test"]
    assert test["group"].nunique() == 1 and test["group"].iloc[0] not in set(
        imported.loc[imported["part"] == "train", "group"]
    )
    hidden = pd.read_csv(out / "test_labels.csv", dtype=str)
    assert hidden["id"].tolist() == test["id"].tolist()
    slides = read_slide_map(
        out / "slide-map" / "slides.csv", train_ids=read.train["id"].tolist(), test_ids=read.test_ids
    )
    assert len(slides) == 25 and len(set(slides)) == 5
    for part in (
        "SHA-1 of their pixels",
        "3 pictures are JPEG",
        "drawn as test tiles",
        "fold_split=slide",
        "next: ",
    ):
        assert part in said
    assert command_line(["import", str(folder), "--table", str(table), "--out", str(out)]) == 1
    assert "exists and is not empty" in capsys.readouterr().err


def test_tiles_without_a_label_are_the_test_tiles_and_excluded_ones_are_left_out(
    own: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, table = own
    content = pd.read_csv(table, dtype=str).drop(columns="slide")
    content.loc[20:24, "label"] = ""
    content.iloc[:25].to_csv(table, index=False)
    exclude = tmp_path / "exclude.txt"
    exclude.write_text("id\ntile 0\nslide1/tile 1.png\nunknown\n")
    said = import_tiles(folder, table=table, out=tmp_path / "mine", exclude=exclude)
    read = read_competition(tmp_path / "mine", expect_full=False)
    assert (len(read.train), len(read.test_ids)) == (18, 10)
    assert not (tmp_path / "mine" / "test_labels.csv").exists()
    assert any(text.startswith("10 tiles have no label") for text in said)
    assert any("2 tiles are left out, as exclude.txt says" in text for text in said)
    assert any("1 names in exclude.txt are those of no tile: unknown" in text for text in said)


def test_a_folder_of_test_tiles_and_copies(own: tuple[Path, Path], tmp_path: Path) -> None:
    folder, table = own
    test = tmp_path / "test"
    test.mkdir()
    for number in (1, 2, 3):
        Image.new("RGB", (96, 96), (number, 0, 0)).save(test / f"{number}.png")
    Image.new("RGB", (96, 96), (1, 0, 0)).save(test / "again.png")
    (test / "labelled.png").write_bytes((folder / "slide1" / "tile 1.png").read_bytes())
    (folder / "copy.png").write_bytes((folder / "slide0" / "tile 0.png").read_bytes())
    with table.open("a") as stream:
        stream.write("copy.png,0,slide0\n")
    said = import_tiles(folder, table=table, out=tmp_path / "mine", test=test)
    read = read_competition(tmp_path / "mine", expect_full=False)
    assert (len(read.train), len(read.test_ids)) == (30, 3)
    assert any("1 pictures are copies" in text for text in said)
    assert any("2 test tiles are copies" in text for text in said)
    table.write_text(table.read_text().replace("copy.png,0", "copy.png,1"))
    with pytest.raises(ImportTilesError, match=r"different labels:\n.*copy.png.*slide0/tile 0.png"):
        import_tiles(folder, table=table, out=tmp_path / "other", test=test)
    assert not list(tmp_path.glob("*other*"))


def _fake_h5(monkeypatch: pytest.MonkeyPatch, files: dict[str, dict[str, np.ndarray]]) -> None:
    """h5py that is not a dependency: a file is a dictionary of arrays."""
    fake: Any = types.ModuleType("h5py")
    fake.File = lambda path: files[Path(path).name]
    monkeypatch.setitem(sys.modules, "h5py", fake)


def test_the_valid_split_of_patchcamelyon_is_imported_with_its_slides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, random_tiles: Callable[..., np.ndarray]
) -> None:
    stem = "camelyonpatch_level_2_split_valid"
    tiles, labels = random_tiles(20), (np.arange(20) % 2).reshape(-1, 1, 1, 1)
    _fake_h5(monkeypatch, {f"{stem}_x.h5": {"x": tiles}, f"{stem}_y.h5": {"y": labels}})
    for name in ("x", "y"):
        (tmp_path / f"{stem}_{name}.h5").touch()
    meta = pd.DataFrame({"wsi": [f"slide {row // 4}" for row in range(20)], "center_tumor_patch": True})
    meta.to_csv(tmp_path / f"{stem}_meta.csv")
    out = tmp_path / "pcam"
    said = import_tiles(tmp_path / f"{stem}_x.h5", table=None, out=out)
    imported = pd.read_csv(out / "imported.csv", dtype={"tile": str})
    for row in imported.itertuples():
        np.testing.assert_array_equal(_pixels_of(out, row.id, row.part), tiles[int(row.tile)])
        assert (row.label, row.group) == (int(row.tile) % 2, f"slide {int(row.tile) // 4}")
    assert any("never submit to the competition" in text for text in said)


@pytest.mark.parametrize("name", ["camelyonpatch_level_2_split_test_x.h5", "pcam_TEST_x.h5", "test.h5"])
def test_the_test_split_of_patchcamelyon_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fake_h5(monkeypatch, {})
    with pytest.raises(ImportTilesError, match="hidden labels of this competition"):
        import_tiles(tmp_path / name, table=None, out=tmp_path / "out")
    with pytest.raises(ImportTilesError, match="hidden labels of this competition"):
        import_tiles(tmp_path / "mine_x.h5", table=tmp_path / name, out=tmp_path / "out")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportTilesError, match="pip install h5py"):
        import_tiles(tmp_path / "split_valid_x.h5", table=None, out=tmp_path / "out")


def test_nothing_is_written_where_something_is_wrong(own: tuple[Path, Path], tmp_path: Path) -> None:
    folder, table = own
    before = sorted(tmp_path.iterdir())
    Image.new("L", (96, 96)).save(folder / "grey.png")
    with pytest.raises(Exception, match="grey.png: mode L"):
        import_tiles(folder, table=table, out=tmp_path / "mine")
    (folder / "grey.png").unlink()
    with pytest.raises(ImportTilesError, match="name a CSV file with --table"):
        import_tiles(folder, table=None, out=tmp_path / "mine")
    table.write_text("id,label\ntile 0,1\ntile 1,1\n")
    with pytest.raises(ImportTilesError, match="2 labelled tiles with 1 label"):
        import_tiles(folder, table=table, out=tmp_path / "mine")
    assert sorted(tmp_path.iterdir()) == before
