"""Backbones that cannot be built are refused before anything is pushed, by every command that builds."""

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launch.doctor.command import run_checks
from launch.errors import LaunchError
from launch.experiments import Experiment, experiment_names, load_experiments, load_search, search_names
from launch.packaging import backbones
from launch.packaging.backbones import check_backbones
from launch.packaging.builder import build
from launch.packaging.check import check

FOLDER = "local-dir:/home/me/encoder"


def smoke(name: str = "", **options: Any) -> Experiment:
    [experiment] = load_experiments(["smoke"], [f"{key}={value}" for key, value in options.items()])
    return replace(experiment, name=name or experiment.name)


@pytest.fixture
def no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: Any, **options: Any) -> None:
        raise AssertionError("timm was imported for a name that its source holds")

    monkeypatch.setattr(backbones.subprocess, "run", run)


def test_names_of_the_experiments_need_no_program(no_program: None) -> None:
    names = [each.config.backbone for name in experiment_names() for each in load_experiments([name])]
    for name in search_names():
        names += [str(backbone) for backbone in load_search(name).space.get("backbone", ())]
    assert len(set(names)) > 5
    assert check_backbones([*names, "resnet50", "vit_base_patch16_224.augreg2_in21k_ft_in1k"]) == []


def test_timm_itself_is_asked_about_the_others() -> None:
    names = ["resnet43", "resnet34.nonsense", "ResNet18", "tf_efficientnet_b0_ns", "test_resnet"]
    first, second, third = check_backbones(names)
    assert "knows no backbone 'resnet43': close names: resnet34, " in first
    assert "knows no pretrained weights 'nonsense' of resnet34: it has resnet34." in second
    assert "'ResNet18': close names: resnet18, " in third


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hf-hub:1aurent/vit_small_patch8_224.lunit_dino", ""),
        ("hf-hub:timm/resnet18.a1_in1k@main", ""),
        ("hf-hub:resnet18", "write hf-hub:OWNER/NAME"),
        ("https://huggingface.co/timm/resnet18", "write hf-hub:OWNER/NAME"),
        (FOLDER, "is a folder of this machine"),
    ],
)
def test_names_of_a_hub_or_a_folder_are_judged_by_their_form(no_program: None, name: str, said: str) -> None:
    problems = check_backbones([name])
    assert problems == [] if not said else said in problems[0]


def test_without_timm_or_its_answer_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: Any, **options: Any) -> None:
        raise subprocess.TimeoutExpired("python", 1.0)

    with monkeypatch.context() as context:
        context.setattr(backbones.subprocess, "run", run)
        assert check_backbones(["resnet43"]) == []
    monkeypatch.setattr(backbones, "_source", lambda: "")
    assert check_backbones(["resnet43"]) == []
    assert len(check_backbones(["hf-hub:x"])) == 1


@pytest.mark.parametrize(
    ("experiment", "said"),
    [
        (smoke(backbone=FOLDER), "is a folder of this machine"),
        (smoke("under_score"), "becomes the slug"),
        (smoke("ünï"), "plain characters"),
        (smoke("a-name-that-is-far-too-long-for-a-title-on-kaggle"), "must be 5 to 50 plain characters"),
    ],
    ids=["backbone", "underscore", "letters", "length"],
)
def test_build_and_doctor_refuse_the_same(
    experiment: Experiment, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.doctor.command.check_clock", lambda: [])  # it needs a network
    with pytest.raises(LaunchError, match=said):
        build([experiment], out=tmp_path / "dist", owner="me")
    assert not (tmp_path / "dist").exists()
    findings = run_checks(None, experiments=[experiment], folder=tmp_path, environment={}, home=tmp_path)
    [scripts] = [finding for finding in findings if finding.name == "scripts"]
    assert scripts.level == "problem" and said in scripts.text


def test_a_searched_backbone_is_checked_too(tmp_path: Path) -> None:
    search = load_search("baseline")
    search = replace(search, space={**search.space, "backbone": ("resnet18.tv_in1k", FOLDER)})
    with pytest.raises(LaunchError, match="is a folder of this machine"):
        build([smoke()], out=tmp_path / "dist", owner="me", search=search)


def test_check_finds_a_backbone_in_a_build_that_was_edited(tmp_path: Path) -> None:
    built = build([smoke()], out=tmp_path / "dist", owner="me", search=load_search("smoke"))
    assert check(built.out).problems == []
    kernel = next(kernel for kernel in built.kernels if kernel.fold == 0)
    fold = built.script(kernel)
    fold.write_text(fold.read_text().replace(repr(kernel.configs[0].backbone), repr(FOLDER)))
    search = built.script(next(kernel for kernel in built.kernels if kernel.search is not None))
    search.write_text(search.read_text().replace("'test_efficientnet.r160_in1k'", "'hf-hub:x'"))
    problems = "\n".join(check(built.out).problems)
    assert "is a folder of this machine" in problems and "'hf-hub:x' is no name of a model" in problems


def test_a_build_says_the_terms_of_dinov3_and_nothing_for_other_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", logger="launch")
    build(load_experiments(["dinov3", "convnext-dinov3"]), out=tmp_path, owner="me")
    [terms] = [message for message in caplog.messages if "terms of their own" in message]
    assert "vit_small_patch16_dinov3.lvd1689m" in terms and "convnext_tiny.dinov3_lvd1689m" in terms
    assert "https://ai.meta.com/resources/models-and-libraries/dinov3-license/" in terms
    caplog.clear()
    build(load_experiments(["resnet18", "strong"]), out=tmp_path, owner="me")
    assert not caplog.messages
