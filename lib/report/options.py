"""Options of an experiment in words: optimiser, schedule, loss, precision, augmentation, first weights."""

from collections.abc import Mapping
from typing import Any

from lib.config import Config
from lib.report.formatting import ABSENT, count, several

TRAINING_ROWS = (
    "optimiser",
    "peak learning rate",
    "schedule",
    "weight decay",
    "loss",
    "class balance",
    "batch",
    "epochs",
    "precision",
    "regularisation",
    "augmentation",
    "weights that predict",
    "seed",
    "prediction",
)
_BALANCE = {
    "none": "as in the data",
    "loss": "positives weighted in the loss by negatives per positive (pos_weight)",
    "sampler": "both classes drawn equally often",
}
_PRECISIONS = {
    "float32": "float32",
    "float16": "float16 with a gradient scaler; weights in float32",
    "bfloat16": "bfloat16; weights in float32",
}
# Parts of timm's tags that name the data of a pretraining; the first that fits.
_TAGS = {
    "ft_in1k": "fine-tuned on ImageNet-1k",
    "in22k": "ImageNet-22k",
    "in21k": "ImageNet-21k",
    "in12k": "ImageNet-12k",
    "lvd": "self-supervised on natural images",
    "laion": "image and text pairs of LAION",
    "in1k": "ImageNet-1k",
}


def training_column(config: Config, scores: Mapping[str, Any]) -> list[str]:
    """How an experiment was trained: one text for each of `TRAINING_ROWS`.

    Args:
        config: of the experiment.
        scores: of one of its folds in run.json, for what the options leave open.
    """
    make = _linear_probe if config.train_mode == "linear_probe" else _network
    texts = make(config, scores)
    return [texts.get(name, ABSENT) for name in TRAINING_ROWS]


def _network(config: Config, scores: Mapping[str, Any]) -> dict[str, str]:
    return {
        "optimiser": f"AdamW (betas 0.9 and 0.999){_trained_part(config)}",
        "peak learning rate": _rate(config),
        "schedule": _schedule(config),
        "weight decay": f"{config.weight_decay:g}, decoupled; none on biases and norms",
        "loss": _loss(config),
        "class balance": _BALANCE[config.class_balance],
        "batch": _batch(config),
        "epochs": _epochs(config),
        "precision": _precision(config, scores),
        "regularisation": _regularisation(config),
        "augmentation": f"{geometry(config)}; {colour(config)}; drawn for each tile and epoch",
        "weights that predict": "moving average of the weights"
        if config.ema_decay
        else "those after the last step; none is selected by a score",
        "seed": f"{config.seed}; each network has its own first weights and order of tiles",
        "prediction": _views(config),
    }


def _trained_part(config: Config) -> str:
    """The part of the network that learns; empty where all of it does."""
    return {
        "last_blocks": f", on the last {several(config.train_blocks, 'block')} and the head",
        "lora": f", on low-rank adapters (LoRA, rank {config.lora_rank}) and the head",
    }.get(config.train_mode, "")


def _linear_probe(config: Config, scores: Mapping[str, Any]) -> dict[str, str]:
    return {
        "optimiser": "logistic regression on the standardised features of a frozen encoder",
        "weight decay": "L2 penalty, chosen by cross-validation on the other folds",
        "loss": "cross-entropy",
        "seed": str(config.seed),
        "prediction": _views(config),
    }


def _views(config: Config) -> str:
    if config.tta_views == 1:
        return "logit of the tile as it is (1 view)"
    return f"mean logit of {config.tta_views} views"


def _rate(config: Config) -> str:
    layers = f", times {config.layer_decay:g} per layer below" if config.layer_decay != 1 else ""
    return f"{config.learning_rate:g}{layers}"


def _schedule(config: Config) -> str:
    if config.schedule == "one_cycle":
        return "one cycle: up in the first 30 % of the steps, then a cosine to zero"
    warmup = (
        f"{several_epochs(config.warmup_epochs)} of linear warm-up, then a" if config.warmup_epochs else "a"
    )
    return f"{warmup} cosine to zero"


def several_epochs(epochs: float) -> str:
    """A number of epochs, whole or not."""
    return f"{epochs:g} epoch{'' if epochs == 1 else 's'}"


def _loss(config: Config) -> str:
    smoothing = f", label smoothing {config.label_smoothing:g}" if config.label_smoothing else ""
    return f"binary cross-entropy of the logit{smoothing}"


def _batch(config: Config) -> str:
    passes = f" in {count(config.grad_accum_steps)} passes" if config.grad_accum_steps > 1 else ""
    passes = " in the fewest passes that fit the memory" if not config.grad_accum_steps else passes
    devices = ", all devices together (DDP)" if config.ddp else ""
    norms = ", synchronised batch norms" if config.sync_batchnorm else ""
    return f"{several(config.batch_size, 'tile')} a step{passes}{devices}{norms}"


def _epochs(config: Config) -> str:
    frozen = f", the first {config.freeze_epochs} of the head alone" if config.freeze_epochs else ""
    return f"{config.epochs}{frozen}"


def _precision(config: Config, scores: Mapping[str, Any]) -> str:
    recorded = str(scores.get("precision") or config.precision)
    return _PRECISIONS.get(recorded, "auto: by the device (the run did not record which)")


def _regularisation(config: Config) -> str:
    parts = [
        (config.drop_rate, f"dropout {config.drop_rate:g}"),
        (config.mixup, f"mixup {config.mixup:g}"),
        (config.cutmix, f"CutMix {config.cutmix:g}"),
        (config.clip_grad_norm, f"gradient norm clipped at {config.clip_grad_norm:g}"),
        (config.ema_decay, f"moving average of the weights, decay {config.ema_decay:g}"),
        (config.pseudo_labels, f"pseudo-labels by {config.pseudo_labels}"),
    ]
    return ", ".join(text for used, text in parts if used) or "none"


def geometry(config: Config) -> str:
    """Flips and turns of the augmentation."""
    turns = {"none": "", "quarter": "quarter turns", "any": "turns by any angle"}[config.rotate]
    return (
        " and ".join(part for part in ("flips" if config.flip else "", turns) if part) or "no flips or turns"
    )


def colour(config: Config) -> str:
    """Jitter of colours and stains, and stain normalisation."""
    parts = [
        f"{name.replace('_', ' ')} {value:g}"
        for name in ("hed_jitter", "brightness", "contrast", "saturation", "hue")
        if (value := getattr(config, name))
    ]
    jitter = f"jitter: {', '.join(parts)}" if parts else "no jitter"
    if config.stain_normalisation == "none":
        return jitter
    return f"stain normalisation ({config.stain_normalisation}), {jitter}"


def first_weights(config: Config, scores: Mapping[str, Any]) -> str:
    """What the backbone was loaded with before training.

    Args:
        config: of the experiment.
        scores: of one of its folds in run.json; earlier code recorded no file there.
    """
    recorded = scores.get("first_weights")
    file = ""
    if isinstance(recorded, Mapping) and recorded.get("file"):
        file = f": {recorded['file']}, SHA-256 {str(recorded.get('sha256', ''))[:8]}"
    if config.weights == "none":
        return "random"
    if config.weights == "pretrain":
        epochs = several(config.pretrain_epochs, "epoch")
        start = {"none": "random weights", "timm": _timm_weights(config.backbone)}
        begun = start.get(config.pretrain_weights, f"the file {config.pretrain_weights}")
        return f"self-supervised by Barlow Twins on these tiles, {epochs}, from {begun}{file}"
    if config.weights == "timm":
        return f"{_timm_weights(config.backbone)}{file}"
    return f"the file {config.weights}{file if recorded else ''}"


def _timm_weights(backbone: str) -> str:
    """The pretrained weights of a timm name: its tag, and the data that the tag stands for."""
    name, _, tag = backbone.partition(".")
    if not tag:
        return f"timm's default weights of {name}"
    source = next((text for part, text in _TAGS.items() if part in tag), "")
    return f"timm's weights of {name}, tag {tag}" + (f" ({source})" if source else "")
