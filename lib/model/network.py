"""Network: a timm backbone with one logit and its own preprocessing, and the precision of a forward pass."""

import tempfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import timm
import torch
from torch import nn
from torch.nn import functional

from lib.config import Config
from lib.errors import KernelError
from lib.image.stain import normalise_stains
from lib.model.hub_encoders import layer_arguments
from lib.model.pooling import (
    PooledBackbone,
    build_pool,
    check_own_pool,
    feature_map,
    pre_logits,
    reset_head,
)
from lib.model.weights import WEIGHTS_NAME, load_weights

_ENCODER_CONFIG = "config.json"
_DEFAULT_MEAN = _DEFAULT_STD = (0.5, 0.5, 0.5)


class NetworkError(KernelError):
    """The network cannot be built; the message says why and what to do."""


class Classifier(nn.Module):
    """A network from images to one logit: resize, normalise, backbone.

    The normalisation is stored with the weights, so a caller cannot forget it or apply it twice.

    Attributes:
        encoder: the text of the config.json from which the backbone was built; empty if timm needs only its
            name. A checkpoint stores it, because an encoder of a hub cannot be looked up without internet.
    """

    mean: torch.Tensor
    std: torch.Tensor
    encoder: str = ""

    def __init__(
        self,
        backbone: nn.Module,
        *,
        input_size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        stain_normalisation: str = "none",
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.input_size = input_size
        self.stain_normalisation = stain_normalisation
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W) in [0, 1], after `normalise_stain`, to the vectors (B, C) before the logit."""
        body: Any = self.backbone
        images = self.normalise(self.resize(images))
        if isinstance(body, PooledBackbone):
            vectors: torch.Tensor = body.pooled(images)
        else:
            vectors = body.forward_head(body.forward_features(images), pre_logits=True)
        return vectors

    def head_names(self) -> tuple[str, ...]:
        """The prefixes of the names of the head's parameters; empty if the backbone does not tell them."""
        if isinstance(self.backbone, PooledBackbone):
            return ("backbone.pool.", "backbone.head.")
        return tuple(f"backbone.{name}." for name in _classifiers(self.backbone))

    def normalise_stain(self, images: torch.Tensor) -> torch.Tensor:
        """Normalise the stains of images (B, 3, H, W) in [0, 1]; after an augmentation it would undo it."""
        return normalise_stains(images, self.stain_normalisation)

    def resize(self, images: torch.Tensor) -> torch.Tensor:
        """Resize images (B, 3, H, W) to the backbone's input size; unchanged if they have it."""
        if images.shape[-1] == self.input_size:
            return images
        size = (self.input_size, self.input_size)
        return functional.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """(images - mean) / std of images (B, 3, H, W) in [0, 1], in one pass, channels last in memory."""
        images = images.to(self.mean.dtype)
        scale = 1 / self.std
        shift = -self.mean * scale
        differentiable = (
            torch.is_grad_enabled() and images.requires_grad
        )  # attribution needs it by the pixels
        if differentiable or torch.compiler.is_compiling():  # `out` would break the compiled graph in two
            return torch.addcmul(shift, images, scale).contiguous(memory_format=torch.channels_last)
        out = torch.empty_like(images, memory_format=torch.channels_last)
        return torch.addcmul(shift, images, scale, out=out)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of tumour, (B,), from images (B, 3, H, W) in [0, 1], RGB, after `normalise_stain`."""
        logits: torch.Tensor = self.backbone(self.normalise(self.resize(images)))
        return logits.squeeze(-1)


def _classifiers(backbone: nn.Module) -> dict[str, nn.Module]:
    """The classifiers of a timm network by their names; a distilled transformer has two, most have one."""
    got = backbone.get_classifier() if hasattr(backbone, "get_classifier") else None  # type: ignore[operator]
    wanted = got if isinstance(got, tuple | list) else (got,)
    return {
        name: module
        for name, module in backbone.named_modules()
        if name and any(module is classifier for classifier in wanted)
    }


class StemError(ValueError):
    """The first layers of this backbone have nothing to remove."""


def refine_stem(backbone: nn.Module, stem: str) -> None:
    """Make the feature map finer: remove the max-pool of the first layers, or the stride too, in place.

    No weight changes its shape.

    Args:
        backbone: a timm network.
        stem: keep, no_pool or no_stride, see Config.

    Raises:
        StemError: the backbone has no max-pool, or its first convolution has no stride smaller than its
            kernel.
    """
    if stem == "keep":
        return
    pools = [name for name, module in backbone.named_modules() if isinstance(module, nn.MaxPool2d)]
    if pools:
        *path, last = pools[0].split(".")
        owner = backbone.get_submodule(".".join(path))
        # DenseNet and others run their modules in sequence, ResNet by name: both accept an identity.
        setattr(owner, last, nn.Identity())
    if stem == "no_pool":
        if not pools:
            raise StemError("it has no max-pool in its first layers: use stem = keep, or no_stride")
        return
    first = next((module for module in backbone.modules() if isinstance(module, nn.Conv2d)), None)
    stride, kernel = (
        cast(tuple[int, int], getattr(first, name, (1, 1))) for name in ("stride", "kernel_size")
    )
    if stride[0] == 1 or stride[0] >= kernel[0]:
        raise StemError(
            f"its first convolution ({kernel[0]} wide, stride {stride[0]}) has no stride to remove: "
            "use stem = keep"
        )
    cast(nn.Conv2d, first).stride = (1, 1)


def build_network(
    config: Config, *, folder: Path | None = None, file: Path | None = None, encoder: str = ""
) -> Classifier:
    """Build the network of an experiment.

    Args:
        config: backbone, mean, std, input_size, drop_rate, pooling, stem, stain_normalisation.
        folder: a folder with config.json and model.safetensors, loaded through timm's `local-dir:`.
        file: a file with the backbone's weights, see `load_weights`. With neither, the weights are random.
        encoder: the text of a config.json to build the backbone from, without weights (see
            Classifier.encoder).

    Raises:
        NetworkError: timm does not know the backbone, or the backbone does not accept this input size.
        WeightsError: the weights do not belong to the backbone.
    """
    arguments: dict[str, Any] = {"num_classes": 1, "in_chans": 3, "drop_rate": config.drop_rate}
    if config.pooling != "native":
        arguments = {"num_classes": 0, "in_chans": 3}
    size = config.input_size
    with tempfile.TemporaryDirectory() as temporary:
        if encoder:
            (Path(temporary) / _ENCODER_CONFIG).write_text(encoder, encoding="utf-8")
        source = folder or Path(temporary)
        name = f"local-dir:{source}" if folder or encoder else config.backbone
        try:
            if folder or encoder:
                arguments |= layer_arguments(source / _ENCODER_CONFIG)
            backbone = _create(name, arguments, pretrained=False, input_size=size)
        except (RuntimeError, ValueError, AssertionError, OSError, TypeError) as error:
            raise NetworkError(
                f"timm cannot build the backbone {config.backbone!r} with one logit: {error}"
            ) from error
    if folder is not None:
        encoder = (folder / _ENCODER_CONFIG).read_text(encoding="utf-8")
        file = folder / WEIGHTS_NAME
    if file is not None:

        def create(classes: int, overlay: dict[str, Any]) -> nn.Module:
            options = {**arguments, "num_classes": classes}
            return _create(name, options, pretrained=True, input_size=size, overlay=overlay)

        load_weights(backbone, file, name=config.backbone, create=create)
    settings = getattr(backbone, "pretrained_cfg", {})
    try:
        refine_stem(backbone, config.stem)
        body = backbone if config.pooling == "native" else _pooled(backbone, config)
        for classifier in _classifiers(body).values():
            reset_head(classifier)
    except (ValueError, AttributeError, RuntimeError) as error:
        raise NetworkError(
            f"the backbone {config.backbone!r} cannot be built with stem = {config.stem}, "
            f"pooling = {config.pooling}: {error}"
        ) from error
    network = Classifier(
        body,
        input_size=config.input_size,
        mean=config.mean_rgb or tuple(settings.get("mean") or _DEFAULT_MEAN),
        std=config.std_rgb or tuple(settings.get("std") or _DEFAULT_STD),
        stain_normalisation=config.stain_normalisation,
    )
    network.encoder = encoder
    _check_forward(network, config)
    # Channels last halves the time of a forward pass of the smoke network on one core (2026-11-23), and
    # tensor cores need it.
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _pooled(backbone: nn.Module, config: Config) -> PooledBackbone:
    """The backbone with one of our pools; a forward pass gives the number of its channels."""
    check_own_pool(backbone)
    was_training = backbone.training
    with torch.no_grad():
        images = torch.zeros(1, 3, config.input_size, config.input_size)
        raw = backbone.eval().forward_features(images)  # type: ignore[operator]
        features = feature_map(backbone, raw)
        pool = build_pool(config.pooling, features.shape[1])
        vectors = pre_logits(backbone, features.mean(dim=(2, 3)), tokens=raw.ndim == 3)
    backbone.train(was_training)
    channels = vectors.shape[1] * int(pool.factor)  # type: ignore[arg-type]
    return PooledBackbone(backbone, pool, channels=channels, drop_rate=config.drop_rate, tokens=raw.ndim == 3)


def _create(
    name: str,
    options: dict[str, Any],
    *,
    pretrained: bool,
    input_size: int,
    overlay: dict[str, Any] | None = None,
) -> nn.Module:
    """timm.create_model; backbones with a fixed input size (vision transformers) get it as img_size."""
    arguments: dict[str, Any] = {"pretrained": pretrained, "pretrained_cfg_overlay": overlay, **options}
    try:
        return timm.create_model(name, img_size=input_size, **arguments)
    except TypeError:  # convolutional networks accept any size and have no img_size
        return timm.create_model(name, **arguments)


def _check_forward(network: Classifier, config: Config) -> None:
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            logits = network(torch.zeros(2, 3, config.input_size, config.input_size))
    except (RuntimeError, AssertionError) as error:
        text = f"the backbone {config.backbone!r} does not accept input_size = {config.input_size}: {error}"
        raise NetworkError(text) from error
    if logits.shape != (2,):
        raise NetworkError(
            f"the backbone {config.backbone!r} returns {tuple(logits.shape)} for two tiles, not two logits"
        )
    network.train(was_training)


def choose_precision(precision: str, device: torch.device) -> torch.dtype:
    """The data type of the forward pass, see Config.precision.

    Raises:
        NetworkError: float16 on a CPU.
    """
    named = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if precision != "auto":
        if precision == "float16" and device.type == "cpu":
            raise NetworkError("precision = float16 needs a GPU: use --set precision=float32 on a CPU")
        return named[precision]
    if device.type != "cuda":
        return torch.float32
    # T4 (7.5) emulates bfloat16, so torch calls it supported; the hardware has it from 8.0 on.
    return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16


def autocast(device: torch.device, precision: torch.dtype) -> AbstractContextManager[object]:
    """The context of a forward pass in this data type; parameters stay float32."""
    if precision == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=precision)
