"""Networks are built on the user's machine, before anything is pushed or trained."""

import logging
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf

from launch.cli import command_line
from launch.errors import LaunchError
from launch.experiments import load_experiment
from launch.packaging import network_check
from launch.packaging.builder import build
from launch.packaging.network_check import built_networks, require_networks
from launch.plan import first_networks
from lib.config import Config
from lib.runtime.inputs import encoder_folder

SMALL = {"backbone": "test_resnet", "weights": "none", "input_size": 32}


def _save(folder: Path, backbone: str) -> None:
    folder.mkdir(parents=True)
    save_file(timm.create_model(backbone).state_dict(), folder / "mine.safetensors")


def test_all_networks_that_cannot_be_built_are_named_at_once(tmp_path: Path) -> None:
    _save(tmp_path / "attached" / "sub", "test_efficientnet")
    configs = [
        Config(**SMALL),
        Config(**{**SMALL, "backbone": "resnet34.no_such_tag_x"}),
        Config(**{**SMALL, "backbone": "test_vit", "stem": "no_pool"}),
        Config(**{**SMALL, "backbone": "test_efficientnet", "weights": "mine.safetensors"}),
        Config(**{**SMALL, "weights": "mine.safetensors"}),
        Config(**{**SMALL, "weights": "on-kaggle.safetensors"}),  # in a dataset on Kaggle
        Config(backbone="hf-hub:someone/encoder"),  # only the hub has its config.json
    ]
    tasks = [network_check._task(config, [tmp_path / "attached"], tmp_path / "absent") for config in configs]
    assert [sorted(task) for task in tasks] == [["config"]] * 3 + [["config", "file"]] * 2 + [["config"], []]
    tag, stem, file = network_check._build(tasks[:-1])
    assert "'resnet34.no_such_tag_x'" in tag
    assert "'test_vit' cannot be built with stem = no_pool" in stem
    assert "mine.safetensors does not hold the weights of test_resnet" in file


def test_a_network_that_cannot_be_built_is_refused(tmp_path: Path) -> None:
    """In a process of its own, because the launcher imports no torch."""
    with pytest.raises(LaunchError, match=r"cannot be built:\n  - .*'absent'"):
        require_networks([Config(**{**SMALL, "backbone": "absent"})], fetched=tmp_path)
    require_networks([], fetched=tmp_path)


def test_a_fetched_encoder_is_built_from_its_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = "hf-hub:someone/encoder"
    folder = tmp_path / encoder_folder(encoder)
    save_for_hf(timm.create_model("test_vit", img_size=32), str(folder), safe_serialization=True)
    task = network_check._task(Config(backbone=encoder, stem="no_pool"), [], tmp_path)
    assert task["folder"] == str(folder)
    [problem] = network_check._build([task])
    assert "stem = no_pool" in problem


def test_without_torch_the_kernels_check(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.INFO, logger="launch")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    require_networks([Config(**{**SMALL, "backbone": "absent"})], fetched=tmp_path)
    assert "torch is not installed here" in caplog.text


def test_check_finds_the_networks_of_a_build(tmp_path: Path) -> None:
    experiments = [
        load_experiment("smoke", ["stem=no_stride"]),
        load_experiment("resnet18", ["weights=pretrain", "pretrain_weights=mine.pth", "epochs=7"]),
    ]
    built = build(experiments, out=tmp_path / "dist", owner="me", datasets=["me/mine"], folds=[0, 1])
    wanted = first_networks(experiments)
    assert [(each.stem, each.weights) for each in wanted] == [("no_stride", "timm"), ("keep", "mine.pth")]
    assert set(built_networks(tmp_path / "dist")) == set(wanted)
    script = next(kernel for kernel in built.kernels if kernel.kind == "train")
    built.script(script).write_text("PARAMETERS = {")
    assert set(built_networks(tmp_path / "dist")) == set(wanted)  # another fold has it


@pytest.mark.parametrize(
    "command",
    [
        ["smoke", "smoke"],
        ["run", "smoke", "--campaign", "that-does-not-exist"],
        ["local", "smoke", "--data", "."],
    ],
    ids=lambda command: command[0],
)
def test_commands_build_the_networks_before_anything_else(
    command: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[Config] = []

    def refuse(configs: list[Config], **places: object) -> None:
        asked.extend(configs)
        raise LaunchError("the stem does not suit")

    monkeypatch.setattr(network_check, "require_networks", refuse)
    monkeypatch.setattr("launch.campaign.spec.CAMPAIGNS", tmp_path / "campaigns", raising=False)
    out = [] if command[0] == "run" else ["--out", str(tmp_path / "out")]
    assert command_line([*command, *out, "--set", "stem=no_stride"]) == 1
    assert "the stem does not suit" in capsys.readouterr().err
    assert [each.stem for each in asked] == ["no_stride"]
    assert not list(tmp_path.iterdir())


def test_check_builds_the_networks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build([load_experiment("smoke")], out=tmp_path / "dist", owner="me", folds=[0])
    asked: list[Config] = []
    monkeypatch.setattr(network_check, "require_networks", lambda configs, **places: asked.extend(configs))
    assert command_line(["check", "--out", str(tmp_path / "dist")]) == 0
    assert asked == first_networks([load_experiment("smoke")])
