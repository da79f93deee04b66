"""Insights: what a run or a search shows about an option, and nothing where neither varies it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import campaigns
import pytest

from lib.config import Config
from lib.report.document import Report
from lib.report.insights import Insight, insights
from lib.report.options import TRAINING_ROWS, first_weights, training_column


def shown(report: Report, **changes: Any) -> list[Insight]:
    context = report.context
    summaries = [replace(summary, **changes) for summary in context.summaries]
    return insights(summaries, context.inputs.folds, context.inputs.searches)


@pytest.fixture
def smoke(campaign: Path, tmp_path: Path) -> Report:
    """The report of both experiments and a search."""
    return campaigns.report_of(campaign, tmp_path / "out", experiments=tuple(campaigns.EXPERIMENTS))


def text_of(found: list[Insight], subject: str) -> str:
    return "\n".join(f"{insight.text} [{insight.source}]" for insight in found if insight.subject == subject)


def test_a_search_shows_the_effect_of_its_options(smoke: Report) -> None:
    found = shown(smoke)
    # The sampler's trials 1, 3, 9 and 11 finished (5 was pruned, 7 failed): 0.92 + 0.001 * number.
    assert "class balance sampler: mean AUC 0.9260 of 4 trials; none: 0.9050 of 6 trials" in text_of(
        found, "balance"
    )
    assert "search of smoke" in text_of(found, "balance") and "learning rate 0.00" in text_of(
        found, "schedule"
    )


def test_views_networks_schedule_and_loss_come_from_the_runs(smoke: Report) -> None:
    found = shown(smoke)
    assert "8 views instead of one change the AUC by +0.0100" in text_of(found, "test-time views")
    assert "from 0.7000 after epoch 2 to 0.8000 after epoch 4" in text_of(found, "schedule")
    assert "3 folds of smoke, single networks" in text_of(found, "networks per fold")
    assert "cross-entropy is 0.195 in the last epoch" in text_of(found, "augmentation")
    assert "Not varied" in text_of(found, "augmentation")  # no two runs differ in it
    assert "Not varied" not in text_of(found, "balance") + text_of(found, "test-time views")


def test_two_experiments_are_compared_only_where_their_scores_can_be(smoke: Report) -> None:
    assert not [insight for insight in shown(smoke) if insight.source == "smoke and grouped-1a2b3c"]
    first = smoke.context.summaries[0]
    other = replace(first, experiment="sampled", pooled=first.pooled + 0.01)
    context = smoke.context
    folds = context.inputs.folds | {"sampled": context.inputs.folds["smoke"]}
    for changes, subject, more in (
        ({"class_balance": "sampler"}, "balance", False),
        ({"class_balance": "sampler", "epochs": 9}, "other options", True),
    ):
        pair = [first, replace(other, config=replace(first.config, **changes))]
        [compared] = [i for i in insights(pair, folds, []) if i.source == "smoke and sampled"]
        assert compared.subject == subject and "class_balance sampler instead of none" in compared.text
        assert "AUC 0.0100 above smoke. Their intervals overlap." in compared.text
        assert ("more than one option" in compared.text) is more


def test_a_loss_of_another_kind_is_not_compared(smoke: Report) -> None:
    mixed = replace(smoke.context.summaries[0].config, mixup=0.2)
    assert "cross-entropy" not in text_of(shown(smoke, config=mixed), "augmentation")


@pytest.mark.parametrize(
    ("options", "row", "expected"),
    [
        ({}, "optimiser", "AdamW"),
        (
            {"learning_rate": 3e-4, "layer_decay": 0.8},
            "peak learning rate",
            "0.0003, times 0.8 per layer below",
        ),
        ({"warmup_epochs": 1.0, "epochs": 4}, "schedule", "1 epoch of linear warm-up, then a cosine to zero"),
        ({"schedule": "one_cycle"}, "schedule", "one cycle: up in the first 30 %"),
        ({"weight_decay": 0.05}, "weight decay", "0.05, decoupled"),
        ({"label_smoothing": 0.1}, "loss", "binary cross-entropy of the logit, label smoothing 0.1"),
        ({"class_balance": "loss"}, "class balance", "pos_weight"),
        ({"batch_size": 64, "grad_accum_steps": 2}, "batch", "64 tiles a step in 2 passes"),
        ({"epochs": 7, "freeze_epochs": 2}, "epochs", "7, the first 2 of the head alone"),
        ({}, "precision", "float16 with a gradient scaler"),
        ({"mixup": 0.3, "drop_rate": 0.2}, "regularisation", "dropout 0.2, mixup 0.3"),
        (
            {"hed_jitter": 0.05},
            "augmentation",
            "flips and quarter turns; jitter: hed jitter 0.05, brightness 0.1",
        ),
        ({"ema_decay": 0.999}, "weights that predict", "moving average"),
        ({"tta_views": 4}, "prediction", "mean logit of 4 views"),
        ({"train_mode": "linear_probe", "num_members": 1}, "optimiser", "logistic regression"),
        ({"train_mode": "lora", "lora_rank": 4}, "optimiser", "adapters (LoRA, rank 4) and the head"),
        ({"train_mode": "last_blocks"}, "optimiser", "on the last 2 blocks and the head"),
    ],
)
def test_the_training_is_described_by_its_options(options: dict[str, Any], row: str, expected: str) -> None:
    column = training_column(Config(**options), {"precision": "float16"})
    assert expected in dict(zip(TRAINING_ROWS, column, strict=True))[row]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"weights": "none"}, "random"),
        ({}, "timm's weights of resnet34, tag tv_in1k (ImageNet-1k): m.safetensors, SHA-256 abcdef01"),
        ({"backbone": "vit.augreg_in21k_ft_in1k"}, "(fine-tuned on ImageNet-1k)"),
        ({"weights": "own.pth"}, "the file own.pth: m.safetensors"),
        ({"weights": "pretrain"}, "Barlow Twins on these tiles, 40 epochs, from random weights"),
    ],
)
def test_pretrained_says_what_was_loaded(options: dict[str, Any], expected: str) -> None:
    scores = {"first_weights": {"file": "m.safetensors", "sha256": "abcdef0123456789"}}
    assert expected in first_weights(Config(**options), scores)


def test_a_report_with_a_search_alone_leads_with_its_best_trial(
    one_experiment: Callable[..., Path], tmp_path: Path
) -> None:
    root = one_experiment("prepare", "smoke-search")
    report = campaigns.report_of(root, tmp_path / "out", experiments=())
    page = report.section("summary")._repr_html_() + report.section("search")._repr_html_()
    assert "Out-of-fold AUC of the best trial" in page and "0.9310" in page
    assert "class_balance = sampler" in page and "8 trials" not in page
    assert [picture.name for picture in report.section("search").pictures] == ["search-smoke.png"]
    assert "search of smoke" in report.section("insights")._repr_html_()
