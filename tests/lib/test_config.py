"""Options: each can be set, nothing else can, and one message names everything that is wrong."""

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lib.config import NEUTRAL_OPTIONS, Config, ConfigError, apply_overrides, config_from_dict, parse_toml

FIELDS = {field.name: field for field in dataclasses.fields(Config)}
ROOMY = Config(epochs=1000, num_members=1)  # leaves room for every warm-up, and for a frozen encoder
_TEXTS = {
    "backbone": ["resnet18.tv_in1k", "hf-hub:someone/thing", "test_vit"],
    "weights": ["none", "encoder.safetensors"],
    "pretrain_weights": ["timm", "encoder.safetensors"],
    "mean": ["0.485 0.456 0.406", "0.5, 0.5, 0.5", "0 0 0"],
    "std": ["0.229 0.224 0.225", "1 1 1"],
    "pseudo_labels": ["smoke", "strong-12ab34"],
    "holdout": ["mlebench", "mine.csv"],
    "slide_map": ["slides.csv", "a file.csv"],
}
by_name = pytest.mark.parametrize("name", FIELDS)


def _changed(name: str) -> st.SearchStrategy[Any]:
    """Valid values of a field that are not its default."""
    field = FIELDS[name]
    low, high = field.metadata["low"], field.metadata["high"]
    now = getattr(ROOMY, name)
    if field.metadata["choices"]:
        return st.sampled_from([choice for choice in field.metadata["choices"] if choice != now])
    if field.type is bool:
        return st.just(not now)
    if field.type is str:
        return st.sampled_from(_TEXTS[name])
    numbers = st.integers(low, high) if field.type is int else st.floats(low, high)
    return numbers.filter(lambda value: value != now)


def _wrong(name: str) -> list[tuple[Any, str]]:
    """Values a field must refuse, and a piece of what the message must say about them."""
    field = FIELDS[name]
    type_errors: dict[Any, list[Any]] = {
        bool: [1, 0.5, "true", None],
        int: [True, 5.0, "5", None, [5]],
        float: [True, "0.5", None, math.nan, math.inf],
        str: [True, 5, 0.5, None, ["none"]],
    }
    cases = [(value, "expected") for value in type_errors[field.type]]
    low, high = field.metadata["low"], field.metadata["high"]
    if low is not None:
        cases += [(field.type(low - 1), "from"), (field.type(high * 2 + 1), "from")]
    if field.metadata["choices"]:
        cases.append((3 if field.type is int else "nonsense", "one of"))
    return cases


def _written(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool) else str(value)


@by_name
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_every_option_can_be_overridden_and_changes_only_itself(name: str, data: st.DataObject) -> None:
    value = data.draw(_changed(name))
    changed = apply_overrides(ROOMY, [f"{name}={_written(value)}"])
    assert changed.to_dict() == {**ROOMY.to_dict(), name: value}
    assert type(getattr(changed, name)) is FIELDS[name].type
    assert (changed.hash != ROOMY.hash) is (name not in NEUTRAL_OPTIONS)  # which decide no result
    assert config_from_dict(json.loads(json.dumps(changed.to_dict()))) == changed  # as it travels in run.json


@by_name
def test_every_option_refuses_wrong_types_and_ranges(name: str) -> None:
    for value, message in _wrong(name):
        with pytest.raises(ConfigError) as refused:
            config_from_dict({name: value})
        assert f"{name} = {value!r}" in str(refused.value) and message in str(refused.value)
        with pytest.raises(ConfigError):
            dataclasses.replace(ROOMY, **{name: value})


@by_name
def test_both_ends_of_a_range_are_allowed(name: str) -> None:
    low, high = FIELDS[name].metadata["low"], FIELDS[name].metadata["high"]
    for end in (low, high):
        if end is not None:
            assert getattr(apply_overrides(ROOMY, [f"{name}={end}"]), name) == end


@settings(max_examples=60, deadline=None)
@given(key=st.text(max_size=20), text=st.text(max_size=20))
@example(key="num_folds", text="2020-01-01")
@example(key="num_folds", text="[2")
@example(key="", text="1")
@example(key="hash", text="1")
@example(key="__class__", text="1")
def test_nothing_else_can_be_set(key: str, text: str) -> None:
    try:
        config = apply_overrides(Config(), [f"{key}={text}"])
    except ConfigError:
        return
    assert key.partition("=")[0].strip() in FIELDS
    assert set(vars(config)) == set(FIELDS)


@pytest.mark.parametrize(
    "text", ["9" * 5000, "9" * 400, "0x" + "f" * 300], ids=["5000 digits", "400 digits", "hexadecimal"]
)
@pytest.mark.parametrize("name", ["learning_rate", "num_folds"])
def test_a_number_too_long_for_the_machine_is_refused_like_any_other(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=name):
        apply_overrides(Config(), [f"{name}={text}"])
    with pytest.raises(ConfigError, match="long"):
        parse_toml(f"{name} = {text}", name="long")


def test_an_override_cannot_smuggle_a_second_line() -> None:
    with pytest.raises(ConfigError, match="num_folds"):
        apply_overrides(Config(), ["num_folds=3\nseed = 1"])


def test_all_problems_are_listed_together() -> None:
    overrides = [
        "fold=3",
        "epochs",
        "seed=x",
        "tta_views=3",
        "hue=0.7",
        "flip=1",
        "num_folds=3",
        "num_folds=4",
    ]
    with pytest.raises(ConfigError) as refused:
        apply_overrides(Config(), overrides)
    message = str(refused.value)
    assert "did you mean num_folds?" in message
    for piece in (
        "'epochs': KEY=VALUE",
        "seed = 'x'",
        "tta_views = 3",
        "hue = 0.7",
        "flip = 1",
        "folds is set twice",
    ):
        assert piece in message
    assert message.startswith("7 things")


def test_a_file_names_itself_and_all_its_problems() -> None:
    with pytest.raises(ConfigError) as refused:
        parse_toml('epochs = 0\nfold_split = "random"\nbatchsize = 3', name="mine")
    for piece in ("'mine'", "epochs = 0", "fold_split = 'random'", "did you mean batch_size?"):
        assert piece in str(refused.value)
    with pytest.raises(ConfigError, match="'mine' is not valid TOML"):
        parse_toml("epochs = ", name="mine")


def test_a_file_holds_only_differences() -> None:
    assert parse_toml("weight_decay = 0\nepochs = 2", name="mine") == Config(weight_decay=0.0, epochs=2)
    assert parse_toml("", name="mine") == Config()


@pytest.mark.parametrize(
    "options",
    [{"weights": "imagenet"}, {"weights": ""}, {"backbone": " "}, {"warmup_epochs": 5.0, "epochs": 5}],
    ids=["weights", "no weights", "backbone", "warm-up"],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="|".join(options)):
        Config(**options)


def test_text_needs_no_quotes_and_loses_those_it_has() -> None:
    for written in ("none", '"none"', "'none'"):
        assert apply_overrides(Config(), [f"weights = {written}"]).weights == "none"
    assert apply_overrides(Config(slide_map="a.csv"), ["slide_map="]).slide_map == ""


def test_equal_configs_share_their_hash() -> None:
    assert Config(hue=-0.0) == Config(hue=0.0)
    assert Config(hue=-0.0).hash == Config(hue=0.0).hash


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze_epochs": 5}, "is not below epochs = 5"),
        ({"schedule": "one_cycle", "warmup_epochs": 1.0}, "one_cycle has its own warm-up"),
        ({"weights": "imagenet"}, "timm, none, pretrain, or the name of a file"),
        ({"train_mode": "linear_probe"}, "num_members = 1"),
        (
            {"train_mode": "linear_probe", "num_members": 1, "pseudo_labels": "x"},
            "train_mode = full, last_blocks or lora",
        ),
    ],
)
def test_options_that_contradict_each_other_name_the_problem(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config(**options)


def test_every_option_has_a_sentence_of_help_and_options_have_headings() -> None:
    for field in FIELDS.values():
        text, choices = field.metadata["help"], field.metadata["choices"]
        assert text.endswith(".") and (text[0].isupper() or text.startswith(tuple(map(str, choices)))), (
            field.name
        )
    groups = [field.metadata["group"] for field in FIELDS.values() if field.metadata["group"]]
    assert FIELDS["fold_split"].metadata["group"] == groups[0] and len(set(groups)) == len(groups) == 6


@pytest.mark.parametrize("name", ["mine.safetensors", "resnet34-333f7ec4.pth", "best.pt"])
def test_files_of_weights(name: str) -> None:
    assert Config(weights=name).weights_file == name
    assert Config(weights="timm").weights_file == ""
    assert Config(weights="pretrain", pretrain_weights=name).for_pretraining.weights_file == name


@pytest.mark.parametrize("option", ["weights", "pretrain_weights", "slide_map"])
@pytest.mark.parametrize(
    ("folder", "separator"), [("/home/x", "/"), ("folder", "/"), ("..", "/"), (r"C:\\models", "\\")]
)
def test_a_path_where_a_files_name_belongs_is_refused(option: str, folder: str, separator: str) -> None:
    """A dataset is mounted elsewhere on Kaggle: a path leads nowhere, or to a file that Kaggle cannot see."""
    with pytest.raises(ConfigError) as refused:
        Config(**{option: f"{folder}{separator}mine.pth"})
    message = str(refused.value)
    assert "is a path" in message and f"{option} = 'mine.pth'" in message and "--attach" in message


def test_mean_and_std_are_three_numbers() -> None:
    config = Config(mean="0.7, 0.5 0.7", std="0.2 0.2 0.2")
    assert (config.mean_rgb, config.std_rgb) == ((0.7, 0.5, 0.7), (0.2, 0.2, 0.2))
    assert (Config().mean_rgb, Config().std_rgb) == (None, None)
    for option, wrong in [
        ("mean", "0.5"),
        ("mean", "124 116 104"),
        ("mean", "a b c"),
        ("mean", "nan 0.5 0.5"),
        ("std", "0 0.2 0.2"),
        ("std", "0.1 0.1 0.1 0.1"),
    ]:
        with pytest.raises(ConfigError, match=f"{option} = '{wrong}': three numbers from"):
            Config(**{option: wrong})


def test_a_pretraining_may_start_from_weights() -> None:
    assert not Config(weights="pretrain").downloads_weights
    assert Config(weights="pretrain", pretrain_weights="timm").downloads_weights
    assert not Config(weights="none", pretrain_weights="timm").downloads_weights
    assert Config(weights="timm").downloads_weights
    with pytest.raises(ConfigError, match="pretrain_weights = 'imagenet': none, timm, or the name of a file"):
        Config(weights="pretrain", pretrain_weights="imagenet")
    probe = Config(weights="pretrain", train_mode="linear_probe", num_members=1)
    assert probe.for_pretraining.weights == "none"  # which a linear probe itself refuses


@pytest.mark.parametrize(
    "options",
    [
        {"weights": "resnet18-pcam.pth"},
        {"weights": "PatchCamelyon.safetensors"},
        {"backbone": "hf-hub:1aurent/resnet18.tiatoolbox-pcam"},
        {"backbone": "hf-hub:someone/densenet121-PCAM"},
        {"pretrain_weights": "resnet18-pcam.pth"},
    ],
)
def test_weights_that_know_the_test_labels_are_refused(options: dict[str, str]) -> None:
    [value] = options.values()
    with pytest.raises(ConfigError, match=rf"{value}.*PatchCamelyon have seen the labels"):
        Config(**options)
