"""Experiments and searches as files: lists, teachers, and values that cannot be used."""

from pathlib import Path

import pytest

from launch.errors import LaunchError
from launch.experiments import changed_experiment, load_experiment, load_experiments
from launch.plan import plan_kernels
from lib.config import ConfigError


def test_a_list_stands_for_the_experiments_that_it_names(root: Path) -> None:
    assert [each.name for each in load_experiments(["pair"], root=root)] == ["a", "b"]
    assert [each.name for each in load_experiments(["c", "pair"], root=root)] == ["c", "a", "b"]
    changed = load_experiments(["pair"], ["tta_views=4"], root=root)
    assert all(each.config.tta_views == 4 and each.name[:2] in ("a-", "b-") for each in changed)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["nested"], "which is a list itself"),
        (["mixed"], "holds only"),
        (["none"], "holds only"),
        (["odd"], "holds only"),
        (["absent"], "there is no experiment 'z'"),
        (["pair", "b"], "b is named more than once"),
        (["z"], "there is no experiment 'z'"),
    ],
)
def test_a_list_that_cannot_be_used_says_why(names: list[str], message: str, root: Path) -> None:
    with pytest.raises(LaunchError, match=message):
        load_experiments(names, root=root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('pseudo_labels = "self"', "uses pseudo-labels itself"),
        ('pseudo_labels = "z"', "there is no experiment 'z'"),
        ('pseudo_labels = "a"\nnum_folds = 3', "num_folds is 5 in a and 3 in self"),
        ('pseudo_labels = "a"\nfold_split = "stain"', "fold_split is 'stratified' in a and 'stain' in self"),
    ],
)
def test_a_teacher_that_cannot_label_says_why(text: str, message: str, root: Path) -> None:
    (root / "experiments" / "self.toml").write_text(f'backbone = "test_resnet"\nweights = "none"\n{text}\n')
    with pytest.raises(LaunchError, match=message):
        load_experiments(["self"], root=root)


def test_slide_folds_without_a_map_are_refused_before_anything_is_built():
    with pytest.raises(LaunchError, match="fold_split = slide needs a tile-to-slide map.*slide_map=FILE.csv"):
        load_experiment("resnet18", ["fold_split=slide"])
    assert load_experiment("resnet18", ["fold_split=slide", "slide_map=map.csv"]).config.fold_split == "slide"


# --- expectations name nothing ---


def test_what_is_expected_of_an_experiment_does_not_rename_it():
    plain = load_experiment("resnet34")
    for text in ("expected_hours=3", "pretrain_hours=2"):
        expecting = load_experiment("resnet34", [text])
        assert expecting.name == plain.name and expecting.config != plain.config
        assert expecting.config.hash == plain.config.hash
        slugs = [[kernel.slug for kernel in plan_kernels([each])] for each in (plain, expecting)]
        assert slugs[0] == slugs[1]
        both, seeded = (load_experiment("resnet34", options) for options in ([text, "seed=3"], ["seed=3"]))
        assert both.name == seeded.name != plain.name


def test_a_changed_experiment_has_the_name_that_the_command_line_would_give_it():
    for before in ([], ["seed=3"], ["expected_hours=4"]):
        changed = changed_experiment(load_experiment("resnet34", before), epochs=2, num_members=1)
        assert changed == load_experiment("resnet34", [*before, "epochs=2", "num_members=1"])
    plain = load_experiment("resnet34")
    assert changed_experiment(plain, expected_hours=3.0).name == plain.name
    with pytest.raises(ConfigError, match="epochs"):
        changed_experiment(plain, epochs=0)
