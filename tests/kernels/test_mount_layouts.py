"""Every kernel finds its inputs in both mount layouts: /kaggle/input/KIND/OWNER/SLUG and the flat one."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import workbench
from safetensors.torch import save_file
from timm.models import save_for_hf

from lib.config import Config
from lib.model.network import build_network
from lib.runtime.inputs import encoder_folder
from lib.runtime.run_record import RunRecord, describe_files, write_run_record

ENCODER = "test_resnet.r160_in1k"
HEAD = {
    "train_mode": "linear_probe",
    "num_members": "1",
    "weights": "mine.safetensors",
    "input_size": "32",
    "tta_views": "1",
}
LAYOUTS = ("2026", "flat")


def place(layout: str, kind: str, slug: str) -> str:
    """Where a source is mounted, under /kaggle/input."""
    if layout == "flat":
        return slug
    return f"competitions/{slug}" if kind == "competition" else f"{kind}s/someone/{slug}"


def done(bench: Any, kind: str, **knobs: Any) -> dict[str, str]:
    """Run a recipe; the SHA-256 of what it left, less run.json, which holds times."""
    code, _, errors = bench.run(kind, **knobs)
    assert (code, errors) == (0, "")
    return {name: content for name, content in workbench.outputs(bench.working).items() if name != "run.json"}


def hand_on(bench: Any, layout: str, slug: str) -> None:
    """Mount what a kernel left, and give the next one an empty working folder."""
    target = bench.inputs / place(layout, "notebook", slug)
    shutil.copytree(bench.working, target)
    shutil.rmtree(bench.working)
    bench.working.mkdir()


def test_prepare_finds_a_flat_competition(bench: Any, competition: Path, prepared: Path) -> None:
    bench.mount(competition, place("flat", "competition", "histopathologic-cancer-detection"))
    bench.draws_figures = True
    left = done(bench, "prepare")
    assert left == {
        name: content for name, content in workbench.outputs(prepared).items() if name != "run.json"
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_inference_finds_competition_prepare_and_folds(
    layout: str, bench: Any, competition: Path, prepared: Path, folds: list[Path]
) -> None:
    bench.mount(competition, place(layout, "competition", "histopathologic-cancer-detection"))
    bench.mount(prepared, place(layout, "notebook", "hcd-prepare"))
    for fold, output in enumerate(folds):
        bench.mount(output, place(layout, "notebook", f"hcd-x-fold-{fold}"))
    assert "submission.csv" in done(bench, "inference")
    assert (
        workbench.record_of(bench.working)["scores"]["members"]
        == 2 * workbench.experiment().config.num_members
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_fold_finds_the_output_of_weights(layout: str, bench: Any, prepared: Path, tmp_path: Path) -> None:
    bench.mount(prepared, place(layout, "notebook", "hcd-prepare"))
    output = bench.inputs / place(layout, "notebook", "hcd-weights")
    folder = output / encoder_folder(ENCODER)
    torch.manual_seed(7)
    save_for_hf(timm.create_model(ENCODER, pretrained=False), str(folder), safe_serialization=True)
    names = {f"{folder.name}/{path.name}": False for path in folder.iterdir()}
    facts: dict[str, Any] = dict.fromkeys(("experiment", "push_id", "bundle_id", "git_commit", "data_id"), "")
    write_run_record(
        output,
        RunRecord(
            kind="weights",
            config=Config().to_dict(),
            complete=True,
            files=describe_files(output, names),
            **facts,
        ),
    )
    assert "fold-0-member-0.safetensors" in done(bench, "train", backbone=ENCODER, weights="timm", epochs="1")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_frozen_encoder_finds_its_file_and_its_features(
    layout: str, bench: Any, competition: Path, prepared: Path, tmp_path: Path
) -> None:
    bench.mount(competition, place(layout, "competition", "histopathologic-cancer-detection"))
    bench.mount(prepared, place(layout, "notebook", "hcd-prepare"))
    torch.manual_seed(5)
    weights = build_network(workbench.experiment(**HEAD).config).backbone.state_dict()
    file = bench.inputs / place(layout, "dataset", "mine") / "mine.safetensors"
    file.parent.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, file)
    done(bench, "embed", **HEAD)
    hand_on(bench, layout, "hcd-x-embed")
    for fold in (0, 1):
        done(bench, "train", fold=fold, **HEAD)
        hand_on(bench, layout, f"hcd-x-fold-{fold}")
    assert "submission.csv" in done(bench, "inference", **HEAD)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pretraining_finds_prepare_and_a_fold_finds_pretraining(
    layout: str, bench: Any, prepared: Path
) -> None:
    knobs = {
        "weights": "pretrain",
        "pretrain_epochs": "1",
        "pretrain_batch_size": "16",
        "projector_dim": "16",
        "epochs": "1",
    }
    bench.mount(prepared, place(layout, "notebook", "hcd-prepare"))
    done(bench, "pretrain", **knobs)
    hand_on(bench, layout, "hcd-x-pretrain")
    assert "fold-0-member-0.safetensors" in done(bench, "train", **knobs)
