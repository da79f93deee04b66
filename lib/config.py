"""The options of an experiment: defaults, units, ranges; reading them from TOML, JSON, the command line.

An experiment is a TOML file under `experiments/` that holds only what differs from the defaults. `--set
KEY=VALUE` changes one more option. Unknown keys, wrong types and values out of range are refused together, in
one message.
"""

import dataclasses
import hashlib
import json
import math
import re
import tomllib
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Value = bool | int | float | str


EXPECTATIONS = ("expected_hours", "pretrain_hours")  # estimates for planning
# These change no result: no name, no plan and no comparison depends on them.
NEUTRAL_OPTIONS = (*EXPECTATIONS, "tiles_on")
# These decide the fold table.
FOLD_OPTIONS = ("fold_split", "num_folds", "seed", "stain_groups", "slide_map", "holdout")
# These decide the network that a training starts from.
NETWORK_OPTIONS = (
    "backbone",
    "weights",
    "mean",
    "std",
    "train_mode",
    "train_blocks",
    "lora_rank",
    "input_size",
    "pooling",
    "stem",
)
WEIGHT_ENDINGS = (".safetensors", ".pth", ".pt")
_KNOWS_THE_TEST_LABELS = re.compile(r"pcam|patch_?camelyon|tiatoolbox", re.IGNORECASE)
# These decide the output of the prepare kernel.
PREPARE_OPTIONS = ("verify", "stain_groups", "slide_map", "seed", "holdout")


class ConfigError(ValueError):
    """A configuration cannot be used; the message lists everything that is wrong with it."""


def _option(
    default: Value,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[Value, ...] = (),
    group: str = "",
) -> Any:
    """A field of Config: help text, inclusive range, and the heading above it in the docs."""
    metadata = {"help": help, "low": low, "high": high, "choices": choices, "group": group}
    return dataclasses.field(default=default, metadata=types.MappingProxyType(metadata))


@dataclass(frozen=True, kw_only=True)
class Config:
    """The options of one experiment, as plain values: stored as TOML and JSON, and hashed for slugs."""

    # Data
    fold_split: str = _option(
        "stratified",
        "How folds are made. stratified: by label only; optimistic, because neighbouring tiles are on both "
        "sides. stain: whole stain groups per fold. slide: whole slides per fold; needs slide_map. "
        "Tiles that the map does not name are then grouped by stain.",
        choices=("stratified", "stain", "slide"),
        group="Data",
    )
    num_folds: int = _option(
        5,
        "Number of folds. Fewer folds cost less quota, and each network learns from fewer tiles.",
        low=2,
        high=20,
    )
    seed: int = _option(
        2018, "Root of all random seeds: folds, first weights, order and augmentation.", low=0, high=2**32 - 1
    )
    verify: str = _option(
        "count",
        "Tiles whose pixels do not match the hash in their id. count: stop if they are more than 0.1 % of "
        "the tiles. strict: stop at the first.",
        choices=("count", "strict"),
    )
    stain_groups: int = _option(
        60,
        "Number of clusters of tiles with similar stain and background: a substitute for slides. Used by "
        "fold_split = stain and by confidence intervals.",
        low=2,
        high=5000,
    )
    slide_map: str = _option(
        "", "Name of a CSV file (id,wsi) in an attached dataset, for fold_split = slide. Empty: no map."
    )
    holdout: str = _option(
        "",
        "Labelled tiles that no fold learns from; inference scores the ensemble on them once. mlebench: the "
        "random split of MLE-bench. Or the name of a .csv file with a column id in an attached dataset. "
        "Empty: none.",
    )

    # Network
    backbone: str = _option(
        "resnet34.tv_in1k", "Name of a timm model, with the tag of its pretrained weights.", group="Network"
    )
    weights: str = _option(
        "timm",
        "First weights of the backbone. timm: pretrained (ImageNet), downloaded by the weights kernel. "
        "none: random. pretrain: self-supervised on the competition's own tiles, by the pretrain kernel. Or "
        "the name of a .safetensors, .pth or .pt file in an attached dataset.",
    )
    mean: str = _option(
        "",
        "Mean of red, green and blue that the backbone expects, such as 0.485 0.456 0.406: pixels from 0 to "
        "1 are fed as (pixel - mean) / std. Empty: that of the backbone's pretrained weights. For a file of "
        "weights that were trained with another.",
    )
    std: str = _option("", "Standard deviation of red, green and blue that the backbone expects; see mean.")
    train_mode: str = _option(
        "full",
        "full: train the whole network. last_blocks: only the last train_blocks blocks and the head. lora: "
        "low-rank adapters of all linear layers, and the head; they are merged into the weights at the end. "
        "linear_probe: keep the backbone frozen; the embed kernel computes "
        "the features of all tiles once, and the folds fit a logistic regression on them, on CPUs.",
        choices=("full", "last_blocks", "lora", "linear_probe"),
    )
    train_blocks: int = _option(
        2, "With train_mode = last_blocks: blocks that learn, counted from the logit.", low=1, high=1000
    )
    lora_rank: int = _option(
        8,
        "With train_mode = lora: rank of the adapters. A higher rank learns more and needs more memory.",
        low=1,
        high=1024,
    )
    input_size: int = _option(
        96,
        "Side in pixels to which tiles (96 px) are resized on the GPU. Time and memory grow with its square.",
        low=32,
        high=1024,
    )
    drop_rate: float = _option(0.0, "Probability of dropout before the logit. 0: off.", low=0.0, high=0.9)
    pooling: str = _option(
        "native",
        "From the last feature map to one vector. native: the backbone's own. avg: mean. avgmax: mean and "
        "maximum, concatenated. gem: generalised mean with a learned power. attention: gated attention, "
        "initialised on the centre of the tile.",
        choices=("native", "avg", "avgmax", "gem", "attention"),
    )
    stem: str = _option(
        "keep",
        "The first layers. keep: unchanged. no_pool: without the max-pool. no_stride: also without the "
        "stride of the first convolution. Each change doubles the side of the feature map and costs about 4 "
        "times the time. Convolutional networks only.",
        choices=("keep", "no_pool", "no_stride"),
    )
    stain_normalisation: str = _option(
        "none",
        "Map every tile to one reference stain before augmentation and prediction. none: off. macenko: by "
        "stain vectors and their concentrations. reinhard: by mean and standard deviation in Ruderman's "
        "l-alpha-beta colour space.",
        choices=("none", "macenko", "reinhard"),
    )

    # Training
    num_members: int = _option(
        2,
        "Networks per fold, each trained from its own seed; their predictions are averaged. Each GPU trains "
        "one at a time, so two members on two GPUs take as long as one.",
        low=1,
        high=16,
        group="Training",
    )
    ddp: bool = _option(
        False,
        "Train each member on all GPUs together (DistributedDataParallel) instead of one member per GPU. "
        "Use it when one member would not finish in the session.",
    )
    sync_batchnorm: bool = _option(
        False,
        "With ddp: batch norms use the tiles of all GPUs, not only of their own. Use it when a GPU has few "
        "tiles per step.",
    )
    epochs: int = _option(5, "Passes over the training tiles of the fold.", low=1, high=1000)
    batch_size: int = _option(256, "Tiles per optimiser step, over all GPUs.", low=1, high=8192)
    grad_accum_steps: int = _option(
        1,
        "Gradient accumulation: forward passes per optimiser step. More of them need less GPU memory and "
        "change the result only through batch norms. 0: the fewest that fit, found by trial. Doubled "
        "automatically when memory runs out.",
        low=0,
        high=8192,
    )
    compile: bool = _option(
        False,
        "Compile the network for training (torch.compile). It takes minutes at the start; later steps are "
        "faster.",
    )
    learning_rate: float = _option(3e-4, "Peak learning rate of AdamW.", low=1e-8, high=10.0)
    weight_decay: float = _option(
        1e-4, "Decoupled weight decay of AdamW. Biases and norms have none.", low=0.0, high=10.0
    )
    warmup_epochs: float = _option(
        0.0, "Epochs of linear warm-up before the cosine schedule. 0: none.", low=0.0, high=100.0
    )
    schedule: str = _option(
        "cosine",
        "Learning rate schedule. cosine: after warmup_epochs, half a cosine to zero. one_cycle: up for the "
        "first 30 % of the steps, then down to zero.",
        choices=("cosine", "one_cycle"),
    )
    layer_decay: float = _option(
        1.0,
        "Learning rate of a layer divided by that of the next layer towards the logit. 1: the same rate "
        "everywhere. Below 1 for fine-tuning large pretrained networks.",
        low=0.1,
        high=1.0,
    )
    freeze_epochs: int = _option(
        0, "First epochs, in which only the head learns and the backbone is frozen.", low=0, high=100
    )
    ema_decay: float = _option(
        0.0,
        "Decay per step of the exponential moving average (EMA) of the weights, which then predicts instead "
        "of the last weights. 0: no average.",
        low=0.0,
        high=0.99999,
    )
    label_smoothing: float = _option(
        0.0, "Share of the label that is spread over both classes. 0: off.", low=0.0, high=0.5
    )
    mixup: float = _option(
        0.0, "Alpha of mixup, which blends tiles and labels in pairs. 0: off.", low=0.0, high=10.0
    )
    cutmix: float = _option(
        0.0,
        "Alpha of CutMix, which replaces a rectangle by that of another tile. The label is weighted by the "
        "share of the tile's centre that is replaced. 0: off.",
        low=0.0,
        high=10.0,
    )
    clip_grad_norm: float = _option(
        0.0,
        "Largest norm of the gradient; a larger gradient is scaled down to it. 0: off.",
        low=0.0,
        high=1e6,
    )
    class_balance: str = _option(
        "none",
        "Against the imbalance of 59.5 % negatives to 40.5 % positives. loss: positives have a larger "
        "weight in the loss (pos_weight). sampler: both classes are drawn equally often.",
        choices=("none", "loss", "sampler"),
    )
    precision: str = _option(
        "auto",
        "Number format of the forward pass. auto: float16 with a gradient scaler on a T4, bfloat16 where "
        "the GPU supports it, float32 on a CPU. Use float32 if the loss is not finite.",
        choices=("auto", "float32", "float16", "bfloat16"),
    )
    device: str = _option(
        "auto",
        "Where to compute. auto: on GPUs if there are any. cuda: on GPUs; an error without one. cpu: on the "
        "CPU.",
        choices=("auto", "cuda", "cpu"),
    )
    tiles_on: str = _option(
        "auto",
        "Memory that holds the tiles of a training. auto: that of the GPU, where there is room for all of "
        "them (5.7 GiB) beside the training (6 GiB for 256 tiles of 96 px); else that of the host. host: "
        "always; a thread sends batches ahead. device: that of the GPU wherever the tiles alone fit. When "
        "memory runs out, it is given up first. It changes no result and no name.",
        choices=("auto", "host", "device"),
    )
    eval_every: int = _option(
        1,
        "Epochs between validations. They are only logged: no weights are chosen by them. 0: only at the "
        "end.",
        low=0,
        high=1000,
    )
    eval_tiles: int = _option(
        4096,
        "Tiles of the fold in each of these validations: the same ones in every epoch, both classes in their "
        "proportion. The predictions at the end are of all tiles. 0: all tiles in every validation, too.",
        low=0,
        high=10**6,
    )
    fixed_schedule: bool = _option(
        False,
        "A fold whose planned steps do not fit the session is an error. false: its plan is shortened "
        "instead, which depends on the speed of the machine.",
    )
    deterministic: bool = _option(
        False,
        "Train and pretrain with deterministic algorithms only: the same machine and versions give the same "
        "bits. Slower on a GPU. An operation without such an algorithm is an error. For the same number of "
        "steps, too, add fixed_schedule.",
    )
    expected_hours: float = _option(
        0.0,
        "Hours that one fold (with train_mode = linear_probe: the embedding) is expected to take on 2 x T4. "
        "A campaign plans its quota and the time limit of its first fold with it, and the rest with the "
        "measured time. 0: estimated from backbone, tiles and epochs. It changes no result and no name.",
        low=0.0,
        high=12.0,
    )
    pseudo_labels: str = _option(
        "",
        "Name of another experiment, whose fold k labels test tiles for fold k of this one to learn from, "
        "too. The result is transductive and reported as such. Empty: off.",
    )
    pseudo_share: float = _option(
        0.5,
        "With pseudo_labels: share of the test tiles that are used, the most confident ones of each class.",
        low=0.01,
        high=1.0,
    )

    # Self-supervised pretraining, for weights = pretrain
    pretrain_weights: str = _option(
        "none",
        "First weights of the pretraining. none: random. timm: pretrained (ImageNet), downloaded by the "
        "weights kernel. Or the name of a .safetensors, .pth or .pt file in an attached dataset.",
        group="Self-supervised pretraining (weights = pretrain)",
    )
    pretrain_epochs: int = _option(40, "Passes over the tiles.", low=1, high=10_000)
    pretrain_batch_size: int = _option(
        256, "Tiles per optimiser step, over all GPUs; each tile is used in two views.", low=8, high=8192
    )
    pretrain_learning_rate: float = _option(1e-3, "Peak learning rate of AdamW.", low=1e-8, high=10.0)
    projector_dim: int = _option(
        1024, "Dimensions of the projection on which the Barlow Twins loss is computed.", low=8, high=16384
    )
    pretrain_tiles: str = _option(
        "all",
        "all: labelled tiles and test tiles. train: labelled tiles only. No label is used in either case.",
        choices=("all", "train"),
    )
    pretrain_hours: float = _option(
        0.0,
        "Hours that the pretraining is expected to take on 2 x T4; used like expected_hours. 0: estimated.",
        low=0.0,
        high=12.0,
    )

    # Augmentation, drawn for each tile and epoch
    flip: bool = _option(
        True, "Mirror tiles at random.", group="Augmentation (drawn for each tile and epoch)"
    )
    rotate: str = _option(
        "quarter",
        "Random rotation. none: off. quarter: multiples of 90 degrees, exact. any: any angle, bilinear with "
        "reflected borders.",
        choices=("none", "quarter", "any"),
    )
    hed_jitter: float = _option(
        0.0,
        "Stain jitter x: the unmixed haematoxylin, eosin and DAB are each multiplied by a factor from 1 - x "
        "to 1 + x and shifted by -x to x. 0: off.",
        low=0.0,
        high=0.5,
    )
    brightness: float = _option(
        0.1, "Brightness jitter x: a factor drawn from 1 - x to 1 + x. 0: off.", low=0.0, high=0.9
    )
    contrast: float = _option(
        0.1, "Contrast jitter x: a factor drawn from 1 - x to 1 + x. 0: off.", low=0.0, high=0.9
    )
    saturation: float = _option(
        0.1, "Saturation jitter x: a factor drawn from 1 - x to 1 + x. 0: off.", low=0.0, high=0.9
    )
    hue: float = _option(
        0.02,
        "Hue jitter x: a rotation of the hue circle drawn from -x to x; 0.5 is half a turn. 0: off.",
        low=0.0,
        high=0.5,
    )

    # Prediction
    tta_views: int = _option(
        8,
        "Test-time augmentation: views of a tile whose logits are averaged. 1: the tile. 4: its rotations. "
        "8: rotations and mirror images (D4). Prediction time is proportional to it.",
        choices=(1, 4, 8),
        group="Prediction",
    )
    eval_batch_size: int = _option(
        512,
        "Tiles per forward pass in prediction, whatever the number of views. Lower it if GPU memory runs "
        "out.",
        low=1,
        high=65536,
    )

    def __post_init__(self) -> None:
        problems = [
            problem for field in _fields() for problem in _problems_of(field, getattr(self, field.name))
        ]
        if not problems:
            problems += self._weights_problems() + self._file_problems() + self._normalisation_problems()
        if not problems and not self.backbone.strip():
            problems.append("backbone is empty: name a timm model, such as resnet34.tv_in1k")
        if not problems and self.warmup_epochs >= self.epochs:
            problems.append(
                f"warmup_epochs = {self.warmup_epochs} is not below epochs = {self.epochs}: "
                "lower it, or train longer"
            )
        if not problems and self.freeze_epochs >= self.epochs:
            problems.append(f"freeze_epochs = {self.freeze_epochs} is not below epochs = {self.epochs}")
        if not problems and self.train_mode == "linear_probe" and self.pseudo_labels:
            problems.append(
                "pseudo_labels needs train_mode = full, last_blocks or lora: a linear probe does not use them"
            )
        if not problems and self.train_mode == "linear_probe":
            problems += self._linear_probe_problems()
        if not problems and self.schedule == "one_cycle" and self.warmup_epochs:
            problems.append("warmup_epochs is for schedule = cosine: one_cycle has its own warm-up")
        if problems:
            raise ConfigError(_message(problems))

    def _weights_problems(self) -> list[str]:
        problems = []
        for option, sources in (
            ("weights", ("timm", "none", "pretrain")),
            ("pretrain_weights", ("none", "timm")),
        ):
            value = getattr(self, option)
            if value not in sources and not value.endswith(WEIGHT_ENDINGS):
                problems.append(
                    f"{option} = {value!r}: {', '.join(sources)}, or the name of a file that ends in "
                    f"{', '.join(WEIGHT_ENDINGS)} expected"
                )
        for option in ("backbone", "weights", "pretrain_weights"):
            if _KNOWS_THE_TEST_LABELS.search(value := getattr(self, option)):
                problems.append(
                    f"{option} = {value!r}: weights trained on PatchCamelyon have seen the labels of this "
                    "competition's test tiles. Take weights that were trained on something else"
                )
        return problems

    def _file_problems(self) -> list[str]:
        """Paths where the name of a file in an attached dataset belongs."""
        problems = []
        if self.holdout not in ("", "mlebench") and not self.holdout_file:
            problems.append(
                f"holdout = {self.holdout!r}: mlebench, or the name of a file that ends in .csv (a name, not "
                "a path) expected"
            )
        for option in ("weights", "pretrain_weights", "slide_map"):
            value = getattr(self, option)
            folder, _, name = value.replace("\\", "/").rpartition("/")
            if folder or value.startswith(("/", "\\")):
                problems.append(
                    f"{option} = {value!r} is a path: give the name of the file, {option} = {name!r}, and "
                    f"attach its folder (--attach {folder or '/'}) or a dataset that holds it (--dataset)"
                )
        return problems

    def _normalisation_problems(self) -> list[str]:
        problems = []
        for option in ("mean", "std"):
            text = getattr(self, option)
            numbers = _three_numbers(text)
            valid = numbers is not None and all((0 if option == "mean" else 1e-3) <= x <= 1 for x in numbers)
            if text and not valid:
                low, example = (
                    ("0", "0.485 0.456 0.406") if option == "mean" else ("0.001", "0.229 0.224 0.225")
                )
                problems.append(
                    f"{option} = {text!r}: three numbers from {low} to 1 for red, green and blue expected, "
                    f"such as {example}"
                )
        return problems

    def _linear_probe_problems(self) -> list[str]:
        problems = []
        if self.num_members != 1:
            problems.append(
                "train_mode = linear_probe needs num_members = 1: a logistic regression is the same with "
                "every seed"
            )
        if self.pooling in ("gem", "attention"):
            problems.append(
                f"train_mode = linear_probe with pooling = {self.pooling}, which has learned weights: "
                "use native, avg or avgmax"
            )
        if self.weights == "none":
            problems.append(
                "train_mode = linear_probe with weights = none is a frozen encoder with random weights: "
                "name pretrained ones"
            )
        return problems

    def to_dict(self) -> dict[str, Value]:
        """All fields, in their order, as plain values."""
        return dataclasses.asdict(self)

    def result_options(self) -> dict[str, Value]:
        """The options that decide a result."""
        return without_neutral(self.to_dict())

    @property
    def weights_file(self) -> str:
        """The name of the file with the first weights; empty where they come from elsewhere."""
        return self.weights if self.weights.endswith(WEIGHT_ENDINGS) else ""

    @property
    def holdout_file(self) -> str:
        """The name of the file with the ids of the hold-out; empty where there is none."""
        is_name = self.holdout.endswith(".csv") and not {"/", "\\"} & set(self.holdout)
        return self.holdout if is_name else ""

    @property
    def for_pretraining(self) -> "Config":
        """The pretrain kernel's view of this config: `weights` are the first weights of the pretraining."""
        return dataclasses.replace(
            self, weights=self.pretrain_weights, pretrain_weights="none", train_mode="full"
        )

    @property
    def network(self) -> "Config":
        """The defaults with the options that decide the network: what can be checked before any training."""
        options = {option: getattr(self, option) for option in NETWORK_OPTIONS}
        if self.train_mode == "linear_probe":  # it trains no part of its network
            options["train_mode"] = "full"
        return Config(**options)

    @property
    def downloads_weights(self) -> bool:
        """Whether a kernel of the experiment starts from timm's weights of its backbone."""
        return "timm" in (self.weights, self.pretrain_weights if self.weights == "pretrain" else "")

    @property
    def mean_rgb(self) -> tuple[float, ...] | None:
        """`mean` as three numbers; None where it is that of the backbone."""
        return _three_numbers(self.mean)

    @property
    def std_rgb(self) -> tuple[float, ...] | None:
        """`std` as three numbers; None where it is that of the backbone."""
        return _three_numbers(self.std)

    @property
    def hash(self) -> str:
        """The first 8 hexadecimal digits of the SHA-256 of all options that decide a result."""
        plain = {
            name: value + 0.0 if isinstance(value, float) else value
            for name, value in self.result_options().items()
        }
        text = json.dumps(plain, sort_keys=True)  # -0.0 + 0.0 is 0.0: equal values have the same hash
        return hashlib.sha256(text.encode()).hexdigest()[:8]


def without_neutral(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options without those that decide no result."""
    return {name: value for name, value in options.items() if name not in NEUTRAL_OPTIONS}


def _three_numbers(text: str) -> tuple[float, ...] | None:
    """Three numbers separated by spaces or commas; None for any other text."""
    try:
        numbers = tuple(float(number) for number in text.replace(",", " ").split())
    except ValueError:
        return None
    return numbers if len(numbers) == 3 and all(map(math.isfinite, numbers)) else None


def _fields() -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(Config)


def _type_name(field: dataclasses.Field[Any]) -> str:
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[field.type]  # type: ignore[index]


def _problems_of(field: dataclasses.Field[Any], value: object) -> list[str]:
    name, meta = field.name, field.metadata
    # bool is a subclass of int in Python: it is no number here.
    valid = isinstance(value, field.type) and (field.type is bool or not isinstance(value, bool))  # type: ignore[arg-type]
    if not valid:
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
    """A value converted to the type of its option, and everything that is wrong with it or its key."""
    fields = {field.name: field for field in _fields()}
    if key not in fields:
        return value, [_unknown(key)]
    value = _as_float(value) if fields[key].type is float else value
    return value, _problems_of(fields[key], value)


def to_toml(config: Config) -> str:
    """The text of an experiment's TOML: one line for each option that differs from its default."""
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
    """Change options by `KEY=VALUE`; values are written as in TOML, and text needs no quotes.

    Raises:
        ConfigError: no `=`, a key twice, unknown keys, wrong types, values out of range; all of them in one
            message.
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
    """A whole number as a float (infinity if it is too large for one); any other value unchanged."""
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    try:
        return float(value)
    except OverflowError:
        return math.inf


def describe() -> list[tuple[str, str, str]]:
    """(name, default, help text) of every option."""
    return [(field.name, str(field.default), field.metadata["help"]) for field in _fields()]


def option_schema() -> list[dict[str, Any]]:
    """Every option: name, type, default, help, choices, and inclusive limits; None where there are none."""
    return [
        {
            "name": field.name,
            "type": getattr(field.type, "__name__", str(field.type)),
            "default": field.default,
            "help": field.metadata["help"],
            "choices": list(field.metadata["choices"]) or None,
            "low": field.metadata["low"],
            "high": field.metadata["high"],
        }
        for field in _fields()
    ]
