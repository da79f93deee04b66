"""Every knob of an experiment: its unit, its range, its default.

An experiment is a TOML file under `experiments/` that holds only what differs from the defaults below. `--set KEY=VALUE`
changes one knob more. Unknown keys, wrong types and values out of range are refused together, in one message.
"""

import dataclasses
import hashlib
import json
import math
import tomllib
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Value = bool | int | float | str


# Knobs that say what is expected, and decide nothing.
EXPECTATIONS = ("expected_hours", "pretrain_hours")
FOLD_OPTIONS = (
    "fold_split",
    "num_folds",
    "seed",
    "stain_groups",
    "slide_map",
)  # what a fold table is a function of
PREPARE_OPTIONS = (
    "verify",
    "stain_groups",
    "slide_map",
    "seed",
)  # what decides the output of the prepare kernel


class ConfigError(ValueError):
    """A configuration cannot be used; the message lists everything that is wrong with it."""


def _option(
    default: Value,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[Value, ...] = (),
) -> Any:
    """A field of Config with its meaning and its inclusive range."""
    metadata = {"help": help, "low": low, "high": high, "choices": choices}
    return dataclasses.field(default=default, metadata=types.MappingProxyType(metadata))


@dataclass(frozen=True, kw_only=True)
class Config:
    """One experiment. All fields are plain values, so a config travels as TOML, as JSON and in a slug's hash."""

    # The data
    fold_split: str = _option(
        "stratified",
        "how folds are made: stratified (optimistic: neighbours of a tile on both sides), stain, or slide (needs a map)",
        choices=("stratified", "stain", "slide"),
    )
    num_folds: int = _option(5, "number of folds", low=2, high=20)
    seed: int = _option(2018, "root of every other seed", low=0, high=2**32 - 1)
    verify: str = _option(
        "count",
        "tiles whose pixels do not hash to their id: count (stop above 0.1 %) or strict (stop at the first)",
        choices=("count", "strict"),
    )
    stain_groups: int = _option(60, "clusters of stain and background the tiles are put into", low=2, high=5000)

    slide_map: str = _option(
        "", "name of a CSV file (id,wsi) in an attached dataset, for fold_split = slide; empty: none"
    )

    # The network
    backbone: str = _option("resnet34.tv_in1k", "any timm model, with the tag of its weights")
    weights: str = _option(
        "timm",
        "what the backbone starts from: timm (ImageNet, fetched by the weights kernel), none (random), pretrain (self-supervised "
        "on the competition's own tiles, by a kernel of its own), or the name of a .safetensors file in an attached dataset",
    )
    train_mode: str = _option(
        "full",
        "full (the whole network learns) or linear_probe (the backbone stays frozen: every tile is embedded once, by a kernel of its "
        "own, and the folds fit a logistic regression on that, on CPUs)",
        choices=("full", "linear_probe"),
    )
    input_size: int = _option(96, "side in pixels to which tiles are resized on the device", low=32, high=1024)
    drop_rate: float = _option(0.0, "dropout before the logit", low=0.0, high=0.9)
    pooling: str = _option(
        "native",
        "from the last feature map to one vector: native (as the backbone does), avg, avgmax (mean and maximum side by side), "
        "gem (generalised mean, its power learned) or attention (gated attention, which begins at the centre)",
        choices=("native", "avg", "avgmax", "gem", "attention"),
    )
    stem: str = _option(
        "keep",
        "the first layers: keep, no_pool (without the max-pool) or no_stride (nor the stride of the first convolution): a finer "
        "feature map, at about 4 times the cost for each; convolutional networks only",
        choices=("keep", "no_pool", "no_stride"),
    )
    stain_normalisation: str = _option(
        "none",
        "bring every tile's stains to one reference before anything else: none, macenko (stain vectors and their strength) or "
        "reinhard (mean and spread in the space of Ruderman, l alpha beta)",
        choices=("none", "macenko", "reinhard"),
    )

    # The training
    num_members: int = _option(
        2,
        "networks trained per fold, each from its own seed, averaged later; one a card at a time",
        low=1,
        high=16,
    )
    ddp: bool = _option(False, "all cards work on one member together instead (torch.distributed)")
    sync_batchnorm: bool = _option(False, "with ddp: batch norms see the tiles of all cards, not of their own")
    epochs: int = _option(5, "passes over the training tiles of the fold", low=1, high=1000)
    batch_size: int = _option(256, "tiles per optimiser step, of all cards together", low=1, high=8192)
    grad_accum_steps: int = _option(
        1,
        "forward passes a step's tiles are cut into (gradient accumulation) where memory is short; 0: as few as fit, by trial. "
        "Doubled when memory runs out later",
        low=0,
        high=8192,
    )
    compile: bool = _option(
        False, "compile the network for training (torch.compile): minutes first, faster steps then"
    )
    learning_rate: float = _option(3e-4, "peak learning rate of AdamW", low=1e-8, high=10.0)
    weight_decay: float = _option(
        1e-4, "decoupled weight decay; biases and norms are exempt", low=0.0, high=10.0
    )
    warmup_epochs: float = _option(0.0, "epochs of linear warm-up before the cosine", low=0.0, high=100.0)
    schedule: str = _option(
        "cosine",
        "cosine (after warmup_epochs, down to zero) or one_cycle (up for the first 30 % of the steps, then down to zero)",
        choices=("cosine", "one_cycle"),
    )
    layer_decay: float = _option(
        1.0,
        "the learning rate of each layer, as a factor of the next one's towards the logit; 1: all alike",
        low=0.1,
        high=1.0,
    )
    freeze_epochs: int = _option(
        0, "epochs in which only the head learns, before the backbone joins in", low=0, high=100
    )
    ema_decay: float = _option(
        0.0,
        "decay of the running average of the weights, which is what predicts; 0: the last weights do",
        low=0.0,
        high=0.99999,
    )
    label_smoothing: float = _option(0.0, "share of the label spread over both classes", low=0.0, high=0.5)
    mixup: float = _option(0.0, "alpha of mixup: tiles are blended in pairs; 0: not", low=0.0, high=10.0)
    cutmix: float = _option(
        0.0, "alpha of cutmix: a rectangle comes from another tile; 0: not", low=0.0, high=10.0
    )
    clip_grad_norm: float = _option(
        0.0, "largest norm of the gradient; 0 leaves it as it is", low=0.0, high=1e6
    )
    class_balance: str = _option(
        "none",
        "against the 59.5 / 40.5 imbalance: none, loss (pos_weight) or sampler (classes drawn equally often)",
        choices=("none", "loss", "sampler"),
    )
    precision: str = _option(
        "auto",
        "auto: float16 with a gradient scaler on a T4, bfloat16 where the GPU has it, float32 on a CPU",
        choices=("auto", "float32", "float16", "bfloat16"),
    )
    device: str = _option(
        "auto", "auto, cuda (an error where there is none) or cpu", choices=("auto", "cuda", "cpu")
    )
    eval_every: int = _option(
        1,
        "epochs between validations that are logged (never used to choose weights); 0: only at the end",
        low=0,
        high=1000,
    )

    fixed_schedule: bool = _option(
        False,
        "the clock may not shorten the plan of a fold that does not fit its session: it is an error instead",
    )
    expected_hours: float = _option(
        2.0,
        "hours one fold (with train_mode = linear_probe: the embedding) is expected to take on 2 x T4: what a campaign counts against the "
        "quota before a fold has run; three times this (1 to 12) is the time limit of the push, inside which a fold shortens its "
        "plan if it must",
        low=0.01,
        high=12.0,
    )

    pseudo_labels: str = _option(
        "",
        "name of another experiment: fold k learns from test tiles, too, with the labels that fold k of that experiment gives "
        "them (a declared variant: what comes of it is transductive); empty: not",
    )
    pseudo_share: float = _option(
        0.5,
        "share of the test tiles that are used: the most confident ones of each class",
        low=0.01,
        high=1.0,
    )

    # Self-supervised pretraining, for weights = pretrain
    pretrain_epochs: int = _option(40, "passes over the tiles", low=1, high=10_000)
    pretrain_batch_size: int = _option(
        256, "tiles per optimiser step, of all cards together, each seen twice", low=8, high=8192
    )
    pretrain_learning_rate: float = _option(1e-3, "peak learning rate of AdamW", low=1e-8, high=10.0)
    projector_dim: int = _option(
        1024, "numbers of the projection whose redundancy is reduced", low=8, high=16384
    )
    pretrain_tiles: str = _option(
        "all",
        "all (labelled tiles and test tiles) or train (labelled ones only); no label is seen either way",
        choices=("all", "train"),
    )
    pretrain_hours: float = _option(
        4.0, "hours it is expected to take on 2 x T4, as `expected_hours` is for a fold", low=0.01, high=12.0
    )

    # The augmentation, each sample with its own draw
    flip: bool = _option(True, "mirror at random")
    rotate: str = _option(
        "quarter",
        "none, quarter (multiples of 90 degrees, exact) or any (any angle, bilinear, reflected borders)",
        choices=("none", "quarter", "any"),
    )
    hed_jitter: float = _option(
        0.0,
        "stains: haematoxylin, eosin and DAB, unmixed, are each multiplied by 1 +- this and shifted by +- this; 0: left alone",
        low=0.0,
        high=0.5,
    )
    brightness: float = _option(0.1, "factor drawn from 1 +- this", low=0.0, high=0.9)
    contrast: float = _option(0.1, "factor drawn from 1 +- this", low=0.0, high=0.9)
    saturation: float = _option(0.1, "factor drawn from 1 +- this", low=0.0, high=0.9)
    hue: float = _option(
        0.02, "turn of the hue circle drawn from +- this; 0.5 is half a turn", low=0.0, high=0.5
    )

    # The prediction
    tta_views: int = _option(
        8, "D4 views of a tile whose logits are averaged: 1, 4 (rotations) or 8", choices=(1, 4, 8)
    )
    eval_batch_size: int = _option(
        512, "tiles per forward pass when predicting, views not counted", low=1, high=65536
    )

    def __post_init__(self) -> None:
        problems = [
            problem for field in _fields() for problem in _problems_of(field, getattr(self, field.name))
        ]
        if (
            not problems
            and self.weights not in ("timm", "none", "pretrain")
            and not self.weights.endswith(".safetensors")
        ):
            problems.append(
                f"weights = {self.weights!r}: timm, none, pretrain, or the name of a file that ends in .safetensors"
            )
        if not problems and not self.backbone.strip():
            problems.append("backbone is empty: name a timm model, such as resnet34.tv_in1k")
        if not problems and self.warmup_epochs >= self.epochs:
            problems.append(
                f"warmup_epochs = {self.warmup_epochs} leaves nothing of epochs = {self.epochs}: lower it, or train longer"
            )
        if not problems and self.freeze_epochs >= self.epochs:
            problems.append(f"freeze_epochs = {self.freeze_epochs} leaves nothing of epochs = {self.epochs}")
        if not problems and self.train_mode == "linear_probe" and self.pseudo_labels:
            problems.append(
                "pseudo_labels with train_mode = linear_probe: only networks that learn take them"
            )
        if not problems and self.train_mode == "linear_probe":
            problems += self._problems_of_a_head()
        if not problems and self.schedule == "one_cycle" and self.warmup_epochs:
            problems.append("warmup_epochs is for schedule = cosine: one_cycle climbs by itself")
        if problems:
            raise ConfigError(_message(problems))

    def _problems_of_a_head(self) -> list[str]:
        problems = []
        if self.num_members != 1:
            problems.append(
                "train_mode = linear_probe needs num_members = 1: a logistic regression comes out the same from every seed"
            )
        if self.pooling in ("gem", "attention"):
            problems.append(
                f"train_mode = linear_probe with pooling = {self.pooling}: it has numbers to learn; use native, avg or avgmax"
            )
        if self.weights == "none":
            problems.append(
                "train_mode = linear_probe with weights = none: a frozen encoder of random numbers; name its weights"
            )
        return problems

    def to_dict(self) -> dict[str, Value]:
        """All fields, in their order, as plain values."""
        return dataclasses.asdict(self)

    @property
    def hash(self) -> str:
        """The first 8 hexadecimal digits of the SHA-256 of all fields: two configs share it when they are equal."""
        plain = {
            name: value + 0.0 if isinstance(value, float) else value for name, value in self.to_dict().items()
        }
        text = json.dumps(plain, sort_keys=True)  # -0.0 + 0.0 is 0.0: they are equal, so they share the hash
        return hashlib.sha256(text.encode()).hexdigest()[:8]


def _fields() -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(Config)


def _type_name(field: dataclasses.Field[Any]) -> str:
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[field.type]  # type: ignore[index]


def _problems_of(field: dataclasses.Field[Any], value: object) -> list[str]:
    name, meta = field.name, field.metadata
    # bool is an int in Python, and an int is a fine float; nothing else stands for anything else.
    fits = isinstance(value, field.type) and (field.type is bool or not isinstance(value, bool))  # type: ignore[arg-type]
    if not fits:
        return [f"{name} = {value!r}: {_type_name(field)} expected"]
    if isinstance(value, float) and not math.isfinite(value):
        return [f"{name} = {value!r}: a finite number expected"]
    if meta["choices"] and value not in meta["choices"]:
        return [f"{name} = {value!r}: one of {', '.join(str(choice) for choice in meta['choices'])} expected"]
    low, high = meta["low"], meta["high"]
    if (low is not None and value < low) or (high is not None and value > high):  # type: ignore[operator]
        return [f"{name} = {value!r}: from {low:g} to {high:g} expected"]
    return []


def _message(problems: list[str]) -> str:
    lead = (
        "the configuration cannot be used:"
        if len(problems) == 1
        else f"{len(problems)} things in the configuration:"
    )
    return "\n  - ".join([lead, *problems])


def _unknown(key: str) -> str:
    import difflib

    names = [field.name for field in _fields()]
    close = difflib.get_close_matches(key, names, n=1)
    hint = f"; did you mean {close[0]}?" if close else f"; known: {', '.join(names)}"
    return f"unknown key {key!r}{hint}"


def config_from_dict(values: Mapping[str, object], *, base: Config | None = None) -> Config:
    """A config from plain values; what is not named keeps the value of `base`, or the default.

    Raises:
        ConfigError: unknown keys, wrong types, values out of range; all of them in one message.
    """
    fields = {field.name: field for field in _fields()}
    problems = [_unknown(key) for key in values if key not in fields]
    accepted: dict[str, Any] = {}
    for key, value in values.items():
        if key not in fields:
            continue
        value = _as_float(value) if fields[key].type is float else value  # TOML's `weight_decay = 0`
        problems += _problems_of(fields[key], value)
        accepted[key] = value
    if problems:
        raise ConfigError(_message(problems))
    return dataclasses.replace(base or Config(), **accepted)


def config_from_record(values: Mapping[str, object]) -> Config:
    """The config in a record or a checkpoint, which holds every option: none is read with its default.

    Raises:
        ConfigError: options that are unknown, absent or out of range; all of them in one message.
    """
    absent = [f"{field.name} is absent" for field in _fields() if field.name not in values]
    try:
        config = config_from_dict(values)
    except ConfigError as error:
        raise ConfigError("\n  - ".join([str(error), *absent])) from error
    if absent:
        raise ConfigError(_message(absent))
    return config


def check_value(key: str, value: object) -> tuple[Any, list[str]]:
    """A value as its knob takes it (a whole number where a float is meant), and all that is wrong with it and with the key."""
    fields = {field.name: field for field in _fields()}
    if key not in fields:
        return value, [_unknown(key)]
    value = _as_float(value) if fields[key].type is float else value
    return value, _problems_of(fields[key], value)


def to_toml(config: Config) -> str:
    """The text of an experiment's TOML: what differs from the defaults, a line each."""
    lines = []
    for field in _fields():
        value = getattr(config, field.name)
        if value != field.default:
            shown = json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool) else repr(value)
            lines.append(f"{field.name} = {shown}\n")
    return "".join(lines)


def parse_toml(text: str, *, name: str) -> Config:
    """A config from the text of `experiments/<name>.toml`.

    Raises:
        ConfigError: the text is not TOML, or its values cannot be used; the message names the experiment.
    """
    try:
        values = tomllib.loads(text)
    except (
        ValueError,
        RecursionError,
    ) as error:  # not TOMLDecodeError alone: a number of 5,000 digits is a ValueError
        raise ConfigError(f"experiment {name!r} is not valid TOML: {error}") from error
    try:
        return config_from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"experiment {name!r}: {error}") from error


def apply_overrides(config: Config, overrides: Iterable[str]) -> Config:
    """Change knobs by `KEY=VALUE`; values are written as in TOML, and text needs no quotes.

    Raises:
        ConfigError: no `=`, a key twice, unknown keys, wrong types, values out of range; all of them in one message.
    """
    fields = {field.name: field for field in _fields()}
    problems: list[str] = []
    values: dict[str, object] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        key, text = key.strip(), text.strip()
        if not equals:
            problems.append(f"{override!r}: KEY=VALUE expected")
        elif key not in fields:
            problems.append(_unknown(key))
        elif key in values:
            problems.append(f"{key} is set twice")
        else:
            values[key] = value = _parse_value(text, wanted=fields[key].type)
            problems += _problems_of(fields[key], value)
    if problems:
        raise ConfigError(_message(problems))
    return config_from_dict(values, base=config)


def _parse_value(text: str, *, wanted: object) -> object:
    if wanted is str:
        quoted = len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'"
        return text[1:-1] if quoted else text
    try:
        values = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text  # refused by its type, with the text shown
    if set(values) != {"value"}:  # a second line
        return text
    return _as_float(values["value"]) if wanted is float else values["value"]


def _as_float(value: object) -> object:
    """A whole number as the float it stands for, infinity when it is too large for one; all else as it is."""
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    try:
        return float(value)
    except OverflowError:
        return math.inf


def describe() -> list[tuple[str, str, str]]:
    """(name, default, meaning) of every knob, for `--help` and the report."""
    return [(field.name, str(field.default), field.metadata["help"]) for field in _fields()]
