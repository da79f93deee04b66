"""Experiments by name, alone and in lists; the kernels they come to."""

from pathlib import Path

import pytest

from launch.errors import LaunchError
from launch.plan import experiment_names, load_experiment, load_experiments, plan_kernels


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout with experiments of its own."""
    folder = tmp_path / "experiments"
    folder.mkdir()
    for name in ("a", "b", "c"):
        (folder / f"{name}.toml").write_text(f'backbone = "test_resnet"\nweights = "none"\nepochs = {ord(name)}\n')
    for name, text in {
        "pair": 'experiments = ["a", "b"]',
        "nested": 'experiments = ["pair", "c"]',
        "mixed": 'experiments = ["a"]\nepochs = 3',
        "none": "experiments = []",
        "odd": "experiments = [1]",
        "absent": 'experiments = ["a", "z"]',
    }.items():
        (folder / f"{name}.toml").write_text(text + "\n")
    return tmp_path


def test_a_list_stands_for_the_experiments_it_names(root: Path) -> None:
    assert [each.name for each in load_experiments(["pair"], root=root)] == ["a", "b"]
    assert [each.name for each in load_experiments(["c", "pair"], root=root)] == ["c", "a", "b"]
    changed = load_experiments(["pair"], ["views=4"], root=root)
    assert all(each.config.views == 4 and each.name[:2] in ("a-", "b-") for each in changed)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["nested"], "which is a list itself"),
        (["mixed"], "holds nothing"),
        (["none"], "holds nothing"),
        (["odd"], "holds nothing"),
        (["absent"], "there is no experiment 'z'"),
        (["pair", "b"], "b is named more than once"),
        (["z"], "there is no experiment 'z'"),
    ],
)
def test_a_list_that_cannot_be_used_says_why(names: list[str], said: str, root: Path) -> None:
    with pytest.raises(LaunchError, match=said):
        load_experiments(names, root=root)


@pytest.mark.parametrize("name", experiment_names())
def test_every_experiment_of_the_repository_can_be_planned(name: str) -> None:
    experiments = load_experiments([name])
    kernels = plan_kernels(experiments)
    assert {kernel.kind for kernel in kernels} >= {"prepare", "train", "inference"}
    inference, report = kernels[-2:]
    assert report.kind == "report" and report.sources[-1] == inference.slug and not report.needs_gpu
    assert inference.experiments == tuple(each.name for each in experiments)
    frozen = sum(each.config.tune == "head" for each in experiments)
    assert len(inference.sources) == 1 + frozen + sum(each.config.folds for each in experiments)
    assert inference.needs_gpu == (frozen < len(experiments))


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
    (root / "experiments" / "student.toml").write_text('backbone = "test_resnet"\nweights = "none"\npseudo_labels = "a"\n')
    [student] = load_experiments(["student"], root=root)
    kernels = plan_kernels([student])
    slugs = [kernel.slug for kernel in kernels]
    for fold in range(5):
        own = kernels[slugs.index(f"hcd-student-fold-{fold}")]
        assert own.sources == ("hcd-prepare", f"hcd-a-fold-{fold}")
        assert slugs.index(f"hcd-a-fold-{fold}") < slugs.index(own.slug)
    for kernel in kernels[-2:]:
        assert not any("hcd-a-" in source for source in kernel.sources)  # the teacher is neither averaged nor reported
    both = plan_kernels(load_experiments(["a", "student"], root=root))
    assert len(both) == len(kernels) and any("hcd-a-" in source for source in both[-1].sources)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('pseudo_labels = "self"', "takes pseudo-labels itself"),
        ('pseudo_labels = "z"', "there is no experiment 'z'"),
        ('pseudo_labels = "a"\nfolds = 3', "folds is 5 there and 3 here"),
        ('pseudo_labels = "a"\nsplit = "stain"', "split is 'stratified' there and 'stain' here"),
    ],
)
def test_a_teacher_that_cannot_label_says_why(text: str, said: str, root: Path) -> None:
    (root / "experiments" / "self.toml").write_text(f'backbone = "test_resnet"\nweights = "none"\n{text}\n')
    with pytest.raises(LaunchError, match=said):
        load_experiments(["self"], root=root)
