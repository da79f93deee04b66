"""Estimated hours: the published speeds of one T4, and the figures that the experiments' files state."""

import re

import pytest

from launch import ROOT
from launch.campaign.quota import expected_hours
from launch.experiments import experiment_names, load_experiment, load_experiments
from launch.hours import (
    FORWARD_SHARE,
    OTHER_SPEED,
    TRAINING_SPEEDS,
    embedding_hours,
    fold_hours,
    inference_hours,
    pretraining_hours,
    training_speed,
)
from launch.plan import plan_kernels
from lib.config import Config
from lib.data.competition import TRAIN_TILES
from lib.training import time_budget


@pytest.mark.parametrize(
    ("backbone", "options", "seconds"),
    [
        ("resnet34.tv_in1k", {}, 48),
        ("resnet18.tv_in1k", {}, 28),
        ("densenet121.ra_in1k", {}, 106),
        ("convnext_tiny.in12k_ft_in1k", {}, 118),
        ("seresnext50_32x4d.racm_in1k", {}, 120),
        ("seresnext50_32x4d.racm_in1k", {"stem": "no_pool"}, 480),
    ],
)
def test_an_epoch_takes_what_both_estimates_say(backbone, options, seconds):
    config = Config(backbone=backbone, **options)
    epoch = TRAIN_TILES * 4 / 5 / training_speed(config)
    assert epoch == pytest.approx(seconds, rel=0.04)


def test_a_fold_of_the_baseline_takes_minutes():
    assert 0.1 <= fold_hours(Config(epochs=5, num_members=2)) <= 0.3


def test_time_follows_size_members_views_epochs_and_validations():
    base = Config()
    seconds = 3600 * fold_hours(base) - 120
    for changes, factor in [
        ({"input_size": 192}, 4),
        ({"num_members": 1}, 1),  # two GPUs train two members at once
        ({"num_members": 3}, 2),
        ({"ddp": True}, 2 / 2 / 0.9),
        ({"stem": "no_stride"}, 16),
    ]:
        changed = Config(**changes)
        assert 3600 * fold_hours(changed) - 120 == pytest.approx(factor * seconds), changes
    for less in ({"epochs": base.epochs - 1}, {"tta_views": 1}, {"eval_every": 0}):
        assert fold_hours(Config(**less)) < fold_hours(base), less
    assert fold_hours(Config(eval_tiles=0)) > fold_hours(base) == fold_hours(Config(eval_tiles=4096))
    assert fold_hours(Config(pseudo_labels="other")) > fold_hours(base)


def test_an_unknown_backbone_is_taken_for_a_slow_one():
    assert training_speed(Config(backbone="some_new_network.v1")) == OTHER_SPEED
    assert min(TRAINING_SPEEDS.values()) > OTHER_SPEED
    hub = "hf-hub:1aurent/vit_small_patch8_224.lunit_dino"
    assert training_speed(Config(backbone=hub)) == TRAINING_SPEEDS["vit_small_patch8"]


def test_embedding_pretraining_and_inference_have_estimates():
    probe = load_experiment("pathology").config
    assert embedding_hours(probe) == pytest.approx(8 * 14 / 60 / 2, rel=0.05)
    assert pretraining_hours(Config(pretrain_tiles="train")) < pretraining_hours(Config())
    one, both = inference_hours([Config()], [5]), inference_hours([Config(), probe], [5, 5])
    assert one == both > inference_hours([Config()], [1])


def test_predictions_cost_the_share_of_a_step_that_the_kernels_assume():
    assert FORWARD_SHARE == time_budget._FORWARD_SHARE


@pytest.mark.parametrize("name", sorted(set(experiment_names()) - {"smoke"}))
def test_an_experiment_states_its_estimate_and_no_hours_of_its_own(name):
    text = (ROOT / "experiments" / f"{name}.toml").read_text(encoding="utf-8")
    assert "_hours" not in text, "the estimate follows the options; a number in the file does not"
    [line] = re.findall(r"^# Quota \(estimate, not measured\): (.*)", text, re.MULTILINE)
    stated = [float(hours) for hours in re.findall(r"([\d.]+) h\b", line)]
    kernels = [kernel for kernel in plan_kernels(load_experiments([name])) if kernel.needs_gpu]
    hours = {kernel.slug: expected_hours(kernel) for kernel in kernels}
    total = round(sum(hours.values()), 1)
    first = round(next(iter(hours.values())), 1)
    assert stated == ([total] if name in ("ensemble", "pathology") else [first, total])
