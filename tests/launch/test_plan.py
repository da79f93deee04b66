"""Experiments by name, alone and in lists; the kernels they come to."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from launch.campaign.quota import expected_hours, time_limit
from launch.campaign.waits import LONGEST_SESSION
from launch.errors import LaunchError
from launch.experiments import experiment_names, load_experiment, load_experiments, load_search
from launch.hours import trial_hours
from launch.packaging.builder import build
from launch.packaging.check import check
from launch.packaging.metadata import METADATA
from launch.plan import (
    Kernel,
    first_networks,
    needed_for,
    plan_kernels,
    plan_weights,
)
from lib.config import Config


@pytest.mark.parametrize("name", experiment_names())
def test_every_experiment_of_the_repository_can_be_planned(name: str) -> None:
    experiments = load_experiments([name])
    kernels = plan_kernels(experiments)
    assert {kernel.kind for kernel in kernels} >= {"prepare", "train", "inference"}
    inference, report = kernels[-2:]
    assert report.kind == "report" and report.sources[-1] == inference.slug and not report.needs_gpu
    assert inference.experiments == tuple(each.name for each in experiments)
    frozen = sum(each.config.train_mode == "linear_probe" for each in experiments)
    assert len(inference.sources) == 1 + frozen + sum(each.config.num_folds for each in experiments)
    assert inference.needs_gpu == (frozen < len(experiments))


def test_the_slug_of_the_weights_names_what_is_downloaded() -> None:
    """Campaigns with other backbones do not replace each other's weights; those with the same share them."""

    def weights(*names: str) -> list[str]:
        kernels = plan_kernels([load_experiment(name) for name in names])
        assert all(kernels[0].slug in kernel.sources for kernel in kernels if kernel.kind == "train")
        return [kernel.slug for kernel in kernels if kernel.kind == "weights"]

    assert weights("resnet18", "resnet34") == weights("resnet34", "resnet18")
    slugs = [weights("resnet18"), weights("resnet34"), weights("resnet18", "resnet34")]
    assert len({slug for [slug] in slugs}) == 3
    assert all(slug.startswith("hcd-weights-") for [slug] in slugs)


def test_prepare_reads_a_dataset_only_for_a_slide_map() -> None:
    """Otherwise a file of weights that one campaign attaches would keep others from its prepared tiles."""
    attached = {"datasets": ["me/files"]}
    plain = plan_kernels([load_experiment("smoke", ["weights=x.safetensors"])], **attached)
    mapped = plan_kernels([load_experiment("smoke", ["fold_split=slide", "slide_map=m.csv"])], **attached)
    [plain, mapped] = [
        next(kernel for kernel in kernels if kernel.kind == "prepare") for kernels in (plain, mapped)
    ]
    assert (plain.datasets, mapped.datasets) == ((), ("me/files",))


def test_a_frozen_encoder_is_asked_once_and_its_folds_need_no_gpu() -> None:
    kernels = plan_kernels([load_experiment("pathology")])
    assert [kernel.slug for kernel in kernels if kernel.needs_gpu] == ["hcd-pathology-embed"]
    folds = [kernel for kernel in kernels if kernel.kind == "train"]
    assert all(kernel.sources == ("hcd-prepare", "hcd-pathology-embed") for kernel in folds)


def test_a_pretrained_experiment_has_a_kernel_before_its_folds() -> None:
    kernels = plan_kernels([load_experiment("smoke", ["weights=pretrain"])])
    kinds = [kernel.kind for kernel in kernels]
    assert kinds == ["prepare", "pretrain", *["train"] * 5, "inference", "report"]
    assert all(kernel.sources == ("hcd-prepare", kernels[1].slug) for kernel in kernels[2:7])


def test_the_average_belongs_to_inference_alone() -> None:
    plain, other = (plan_kernels([load_experiment("smoke")], average=how) for how in ("mean", "rank"))
    differing = [one.kind for one, two in zip(plain, other, strict=True) if one != two]
    assert differing == ["inference"]


def test_the_folds_of_the_teacher_come_before_those_that_learn_from_them(root: Path) -> None:
    (root / "experiments" / "student.toml").write_text(
        'backbone = "test_resnet"\nweights = "none"\npseudo_labels = "a"\n'
    )
    [student] = load_experiments(["student"], root=root)
    kernels = plan_kernels([student])
    slugs = [kernel.slug for kernel in kernels]
    for fold in range(5):
        own = kernels[slugs.index(f"hcd-student-fold-{fold}")]
        assert own.sources == ("hcd-prepare", f"hcd-a-fold-{fold}")
        assert slugs.index(f"hcd-a-fold-{fold}") < slugs.index(own.slug)
    for kernel in kernels[-2:]:
        assert not any(
            "hcd-a-" in source for source in kernel.sources
        )  # the teacher is neither averaged nor reported
    both = plan_kernels(load_experiments(["a", "student"], root=root))
    assert len(both) == len(kernels) and any("hcd-a-" in source for source in both[-1].sources)


def test_a_search_comes_last_and_nothing_depends_on_it() -> None:
    plain = plan_kernels([load_experiment("resnet34")])
    kernels = plan_kernels([load_experiment("resnet34")], search=load_search("baseline"))
    assert (
        kernels[: len(plain)] == plain
    )  # the folds' own weights are what they were: no finished fold is trained again
    extra, search = kernels[len(plain) :]
    assert (extra.kind, extra.slug, extra.encoders) == (
        "weights",
        plan_weights([load_experiment("resnet18")])[0].slug,
        ("resnet18.tv_in1k",),
    )
    assert (search.kind, search.slug, search.needs_gpu) == ("search", "hcd-resnet34-search", True)
    assert search.sources == ("hcd-prepare", plain[0].slug, extra.slug)
    assert not any(search.slug in kernel.sources for kernel in kernels)
    assert needed_for(kernels, "inference") == plain[:-1] and needed_for(kernels, "report") == plain
    assert [kernel.slug for kernel in needed_for(kernels, "search")] == [
        plain[0].slug,
        "hcd-prepare",
        extra.slug,
        search.slug,
    ]


def test_a_search_costs_its_trials_two_at_a_time_and_at_most_a_session() -> None:
    def search(*overrides: str) -> Kernel:
        return plan_kernels([load_experiment("resnet34", overrides)], search=load_search("baseline"))[-1]

    estimated, small, large = search(), search("expected_hours=0.1"), search("expected_hours=10")
    assert expected_hours(estimated) == pytest.approx(8 * trial_hours(estimated.configs[0]) / 2)
    assert expected_hours(small) == pytest.approx(0.4)
    assert time_limit(small) == pytest.approx(3 * 0.4 * 3600 + 600)
    assert expected_hours(large) == 12 and time_limit(large) == LONGEST_SESSION


def test_a_search_is_built_complete_for_the_plain_client(tmp_path: Path) -> None:
    built = build(
        [load_experiment("resnet34")], out=tmp_path / "dist", owner="someone", search=load_search("baseline")
    )
    result = check(tmp_path / "dist")
    assert not result.problems and any(line.startswith("hcd-resnet34-search:") for line in result.sizes)
    metadata = json.loads((built.script(built.kernels[-1]).parent / METADATA).read_text())
    assert metadata["enable_gpu"] is True and metadata["enable_internet"] is False
    assert metadata["kernel_sources"] == [f"someone/{slug}" for slug in built.kernels[-1].sources]


def test_uploaded_encoders_serve_a_search_too() -> None:
    kernels = plan_kernels(
        [load_experiment("resnet34")], search=load_search("baseline"), datasets=["me/hcd-encoders"]
    )
    assert not any(kernel.kind == "weights" for kernel in kernels)
    assert kernels[-1].sources == ("hcd-prepare",) and kernels[-1].datasets == ("me/hcd-encoders",)


def test_a_pretraining_from_weights_reads_them_from_a_kernel_or_a_dataset() -> None:
    def pretrain(*options: str, datasets: tuple[str, ...] = ()) -> tuple[list[str], Kernel]:
        """The kinds of the plan's kernels, and its pretrain kernel."""
        kernels = plan_kernels([load_experiment("smoke", ["weights=pretrain", *options])], datasets=datasets)
        return [kernel.kind for kernel in kernels], next(each for each in kernels if each.kind == "pretrain")

    kinds, kernel = pretrain(datasets=("me/slides",))
    assert "weights" not in kinds and kernel.datasets == () and kernel.sources == ("hcd-prepare",)
    kinds, kernel = pretrain("pretrain_weights=timm")
    assert kinds[0] == "weights" and kernel.sources[0] == "hcd-prepare"
    assert kernel.sources[1].startswith("hcd-weights-") and len(kernel.sources) == 2
    kinds, kernel = pretrain("pretrain_weights=mine.pth", datasets=("me/mine",))
    assert kinds.count("weights") == 1 and kernel.datasets == ("me/mine",)
    assert kernel.sources[1].startswith("hcd-weights-check-") and len(kernel.sources) == 2
    kinds, kernel = pretrain("pretrain_weights=timm", datasets=("me/hcd-encoders",))
    assert "weights" not in kinds and kernel.datasets == ("me/hcd-encoders",)


def test_the_first_networks_are_told_by_what_decides_them() -> None:
    """Not the epochs: one network is built once, however it is trained."""
    options = [
        ["weights=mine.pth", "stem=no_pool", "epochs=9"],
        ["weights=mine.pth", "stem=no_pool", "epochs=8"],
        ["weights=pretrain", "pretrain_weights=other.pth"],
    ]
    experiments = [replace(load_experiment("smoke", each), name=f"n{k}") for k, each in enumerate(options)]
    assert [(each.weights, each.stem, each.epochs) for each in first_networks(experiments)] == [
        ("mine.pth", "no_pool", Config().epochs),
        ("other.pth", "keep", Config().epochs),
    ]


def test_a_search_over_a_pretrained_experiment_reads_its_encoder(root: Path) -> None:
    folder = root / "experiments" / "searches"
    folder.mkdir()
    (folder / "rate.toml").write_text('method = "grid"\n[space]\nlearning_rate = [1e-3, 1e-4]\n')
    kernels = plan_kernels(
        [load_experiment("smoke", ["weights=pretrain"])], search=load_search("rate", root=root)
    )
    pretrain = next(kernel.slug for kernel in kernels if kernel.kind == "pretrain")
    assert kernels[-1].sources == ("hcd-prepare", pretrain)


def test_what_cannot_be_searched_says_why(root: Path) -> None:
    with pytest.raises(LaunchError, match="there is no search 'z'.*there are: baseline, smoke"):
        load_search("z")
    with pytest.raises(LaunchError, match="over one experiment, not over 2"):
        plan_kernels(load_experiments(["pair"], root=root), search=load_search("baseline"))
    with pytest.raises(LaunchError, match="frozen"):
        plan_kernels([load_experiment("pathology")], search=load_search("baseline"))
    folder = root / "experiments" / "searches"
    folder.mkdir()
    (folder / "odd.toml").write_text('method = "grid"\n[space]\nfold_split = ["stain"]\n')
    with pytest.raises(LaunchError, match="it decides the folds"):
        load_search("odd", root=root)
    assert "searches" not in experiment_names()
