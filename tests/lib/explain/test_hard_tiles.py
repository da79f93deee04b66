"""Hard tiles: their choice and order, their files and maps; a failed explanation does not fail the fold."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from lib.config import Config
from lib.explain import hard_tiles as module
from lib.explain.attribution import ExplainError, attribute, explain_hard_tiles, share_in_centre
from lib.explain.hard_tiles import MAX_EXPLAINED_TILES, ExplainedTiles, choose_hard_tiles, write_hard_tiles
from lib.model.checkpoint import CheckpointError, Identity, save_checkpoint
from lib.model.network import Classifier, build_network

CPU = torch.device("cpu")
CONFIG = Config(backbone="test_resnet", weights="none", input_size=96)


def test_the_worst_errors_come_first_and_only_errors_are_chosen() -> None:
    labels = np.array([0, 1] * 20)
    probabilities = np.linspace(0.01, 0.99, 40)
    found = choose_hard_tiles(labels, probabilities)
    by_kind = {kind: [row for row, each in found if each == kind] for kind in module.HARD_TILE_KINDS}
    assert by_kind["false_positive"] == [38, 36, 34, 32, 30, 28, 26, 24, 22, 20]  # ten above a half, no more
    assert by_kind["false_negative"] == [1, 3, 5, 7, 9, 11, 13, 15, 17, 19]
    assert by_kind["sure_tumour"] == [39, 37, 35, 33, 31, 29] and by_kind["sure_normal"] == [
        0,
        2,
        4,
        6,
        8,
        10,
    ]
    kinds = [kind for _, kind in found]
    assert kinds == sorted(kinds, key=list(module.HARD_TILE_KINDS).index)
    many = choose_hard_tiles(np.zeros(50, dtype=int), np.linspace(0.6, 0.9, 50))
    assert many == [(row, "false_positive") for row in range(49, 37, -1)]  # twelve
    assert choose_hard_tiles(np.array([0, 1]), np.array([0.5, 0.5])) == [
        (0, "false_positive"),
        (1, "sure_tumour"),
    ]  # as F1 at 0.5


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("checkpoint") / "fold-2-member-0.safetensors"
    identity = Identity(
        experiment="x", fold=2, member=0, data_id="d", fold_table_id="f", config=CONFIG.to_dict()
    )
    save_checkpoint(path, build_network(CONFIG), identity)
    return path


@pytest.fixture(scope="module")
def fold() -> tuple[np.ndarray, pd.DataFrame, np.ndarray]:
    """90 tiles, the fold is every third of them; their probabilities."""
    generator = np.random.default_rng(0)
    tiles = generator.integers(0, 256, (90, 96, 96, 3), dtype=np.uint8)
    rows = np.arange(1, 90, 3)
    index = pd.DataFrame({"row": rows, "id": [f"{row:040x}" for row in rows], "label": np.arange(30) % 2})
    return tiles, index, generator.random(30)


def explain(checkpoint: Path, fold: tuple[np.ndarray, pd.DataFrame, np.ndarray]) -> ExplainedTiles:
    tiles, index, probabilities = fold
    return explain_hard_tiles(
        checkpoint, tiles, index=index, probabilities=probabilities, device=CPU, entropy=(7, 2)
    )


def test_files_hold_the_tiles_of_the_fold_and_their_maps_row_by_row(checkpoint, fold, tmp_path) -> None:
    tiles, index, probabilities = fold
    found = explain(checkpoint, fold)
    names = write_hard_tiles(tmp_path, 2, found)
    assert names == {"hard-tiles-2.csv": True, "hard-tiles-2-images.npy": True, "hard-tiles-2-maps.npy": True}
    table = pd.read_csv(tmp_path / "hard-tiles-2.csv", dtype={"id": str})
    assert list(table.columns) == ["id", "label", "probability", "kind", "share_in_centre"]
    kept, maps = np.load(tmp_path / "hard-tiles-2-images.npy"), np.load(tmp_path / "hard-tiles-2-maps.npy")
    assert (kept.dtype, maps.dtype) == (np.uint8, np.float32) and len(kept) == len(maps) == len(table) > 20
    torch.manual_seed(3)
    network = build_network(CONFIG)
    for at, row in table.iterrows():
        place = index.index[index["id"] == row["id"]][0]
        tile = tiles[index["row"][place]]
        assert np.array_equal(kept[at], tile)
        assert (row["label"], row["probability"]) == (
            index["label"][place],
            pytest.approx(probabilities[place], abs=1e-12),
        )
        wanted = attribute(network, torch.from_numpy(tile).permute(2, 0, 1)[None].float() / 255)
        np.testing.assert_allclose(maps[at], wanted[0].numpy(), atol=1e-6)
        share = float(share_in_centre(wanted))
        assert row["share_in_centre"] == pytest.approx(share, abs=1e-5, nan_ok=True)


def test_the_summary_describes_tumour_tiles_and_can_be_written_as_json(checkpoint, fold, monkeypatch) -> None:
    summary = explain(checkpoint, fold).summary
    json.dumps(summary, allow_nan=False)
    assert summary["method"] == "Grad-CAM" and summary["uniform_share"] == pytest.approx(1 / 9)
    assert summary["tiles"] + summary["tiles_without_a_map"] == 15  # all there are
    share = summary["share_in_centre"]
    assert 0 <= share["q25"] <= share["median"] <= share["q75"] <= 1 and 0 < share["mean"] < 1
    monkeypatch.setattr("lib.explain.attribution.ATTRIBUTION_SAMPLE", 5)
    first, second = (explain(checkpoint, fold).summary for _ in range(2))
    assert first == second and first["tiles"] + first["tiles_without_a_map"] == 5


def test_no_more_tiles_are_explained_than_the_time_budget_reserves() -> None:
    labels = np.arange(4000) % 2
    hard = choose_hard_tiles(labels, np.random.default_rng(0).random(4000))
    assert len(hard) + module.ATTRIBUTION_SAMPLE == MAX_EXPLAINED_TILES


@pytest.mark.parametrize(
    "error", [ExplainError("no map"), RuntimeError("out of memory"), TypeError("a tuple"), KeyError("x")]
)
def test_a_failed_explanation_does_not_fail_the_fold(
    error: Exception, checkpoint, fold, tmp_path, monkeypatch
) -> None:
    whole = explain(checkpoint, fold)
    write_hard_tiles(tmp_path, 2, whole)

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("lib.explain.attribution.attribute", fail)
    found = explain(checkpoint, fold)
    assert set(found.summary) == {"missing"} and str(error) in found.summary["missing"]
    assert write_hard_tiles(tmp_path, 2, found) == {
        "hard-tiles-2.csv": True,
        "hard-tiles-2-images.npy": True,
    }  # known all the same
    assert not (tmp_path / "hard-tiles-2-maps.npy").exists()  # an earlier run's would be taken for these
    assert pd.read_csv(tmp_path / "hard-tiles-2.csv")["share_in_centre"].isna().all()
    assert np.array_equal(found.tiles, whole.tiles)


def test_unreadable_weights_are_an_error_and_not_a_missing_explanation(checkpoint, fold, tmp_path) -> None:
    damaged = tmp_path / "fold-2-member-0.safetensors"
    damaged.write_bytes(checkpoint.read_bytes()[:-10])
    with pytest.raises(CheckpointError):
        explain(damaged, fold)


def test_maps_with_too_few_cells_are_not_kept(fold, tmp_path) -> None:
    """At 64 pixels this network has 2 x 2 cells: any enlarged map has a ninth in the centre."""
    config = Config(backbone="test_resnet", weights="none", input_size=64)
    identity = Identity(
        experiment="x", fold=2, member=0, data_id="d", fold_table_id="f", config=config.to_dict()
    )
    torch.manual_seed(3)
    save_checkpoint(tmp_path / "small.safetensors", build_network(config), identity)
    found = explain(tmp_path / "small.safetensors", fold)
    torch.manual_seed(3)
    images = torch.from_numpy(np.array(fold[0][:32])).permute(0, 3, 1, 2).float() / 255
    shares = share_in_centre(attribute(build_network(config), images))
    assert shares.isfinite().any()
    assert torch.allclose(shares[shares.isfinite()], torch.tensor(1 / 9))
    assert found.maps is None
    assert found.summary == {"missing": "Grad-CAM on 2 x 2 cells: any such map has a ninth in the centre"}
    assert found.table["share_in_centre"].isna().all()


class NoEvidence(nn.Module):
    """Nothing in any tile is evidence for tumour."""

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, :1, ::8, ::8]

    def forward_head(self, features: torch.Tensor) -> torch.Tensor:
        return -features.mean(dim=(2, 3))


def test_a_fold_without_tumour_or_evidence_for_it_records_the_reason(checkpoint, fold, monkeypatch) -> None:
    tiles, index, probabilities = fold
    normal = explain(checkpoint, (tiles, index.assign(label=0), probabilities))
    assert normal.summary == {"missing": "the fold has no tumour tile"} and normal.maps is not None
    mute = Classifier(NoEvidence(), input_size=96, mean=(0.0,) * 3, std=(1.0,) * 3)
    monkeypatch.setattr("lib.explain.attribution.load_checkpoint", lambda path: (mute, None))
    found = explain(checkpoint, fold)
    assert found.summary == {"missing": "Grad-CAM finds no evidence for tumour in any of 15 tumour tiles"}
    assert found.table["share_in_centre"].isna().all() and found.maps is not None and not found.maps.any()
