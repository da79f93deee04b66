"""Pretrained weights of a backbone: download an encoder, read a weight file, load it into the backbone."""

import json
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from lib.errors import KernelError, listed
from lib.model.dinov2_layout import LayoutError, timm_arguments, to_dinov2_names
from lib.model.hub_encoders import HUB, known_encoder, repository_of, with_layers

logger = logging.getLogger(__name__)

WEIGHTS_NAME = "model.safetensors"
_LOCAL = "local-dir:"
_CLASSIFIERS = ("fc", "head.fc", "head", "classifier", "head_dist", "last_linear")
# Entries of a training's file that hold its weights: Lightning, the examples of PyTorch, fastai and timm.
_ENTRIES = ("state_dict", "model_state_dict", "model")
# Prefixes that a wrapper adds to every name: DataParallel, torch.compile, Lightning, fastai.
_WRAPPERS = ("module", "_orig_mod", "model", "backbone", "encoder", "network", "net")
_SHOWN = 5  # tensors named in a message
_SIZE_MISMATCH = re.compile(
    r"size mismatch for (\S+): .*?torch\.Size\(\[([\d, ]*)\]\).*?torch\.Size\(\[([\d, ]*)\]\)"
)

# Creates the backbone with this number of classes, with `pretrained_cfg_overlay`.
CreateBackbone = Callable[[int, dict[str, Any]], nn.Module]


class WeightsError(KernelError):
    """Weights cannot be downloaded or do not belong to the backbone."""


def load_weights(backbone: nn.Module, path: Path, *, name: str, create: CreateBackbone) -> None:
    """Load a weight file into a backbone, in place, all but the classifier.

    timm loads the file into a second network with the file's number of classes, because its filters (old
    names, position embeddings of other sizes) can be reached in no other way, and because it tolerates
    missing and unused tensors when the number of classes differs.

    Args:
        backbone: a timm network with any number of classes.
        path: the file, see `read_weights`.
        name: of the backbone, for messages.
        create: makes the second network.

    Raises:
        WeightsError: the file cannot be read, has tensors that are not finite, lacks tensors of the backbone,
            holds tensors that the backbone does not use, or has other shapes; with examples.
    """
    tensors = read_weights(path, backbone=backbone)
    classifiers = {*_CLASSIFIERS, *_classifier_names(backbone)}
    heads = [tensors[f"{prefix}.weight"] for prefix in classifiers if f"{prefix}.weight" in tensors]
    heads = [head for head in heads if head.ndim > 1]
    classes = len(heads[0]) if heads else 0
    # No custom_load: it reads .npz files. An attached file has no background class to cut off.
    overlay = {"state_dict": tensors, "source": "", "custom_load": False, "label_offset": 0}
    try:
        loaded = create(classes, {**overlay, "num_classes": classes}).state_dict()
    except (RuntimeError, ValueError, AssertionError, LookupError, TypeError, AttributeError) as error:
        # What timm's filters raise on a file that they do not expect has no common class.
        problems = _problems(str(error)) or [str(error) or type(error).__name__]
        lead = f"{path.name} does not hold the weights of {name}: {len(problems)} tensors differ, such as:"
        remedy = "Name the backbone that it was saved from, with --set backbone=..."
        raise WeightsError(listed(lead, problems[:_SHOWN], remedy=remedy)) from error
    own = tuple(f"{prefix}." for prefix in _classifier_names(backbone))
    backbone.load_state_dict(
        {key: tensor for key, tensor in loaded.items() if not key.startswith(own)}, strict=False
    )


def _problems(text: str) -> list[str]:
    """The tensors that torch's message on a strict loading names, one line each."""
    problems = []
    for kind, remark in (("Missing", "is missing"), ("Unexpected", "is in the file, the backbone has none")):
        for names in re.findall(rf"{kind} key\(s\) in state_dict: ([^\n]*)", text):
            problems += [f"{key} {remark}" for key in re.findall(r'"([^"]+)"', names)]
    for key, given, wanted in _SIZE_MISMATCH.findall(text):
        problems.append(f"{key} is ({given}), the backbone has ({wanted})")
    return problems


def read_weights(path: Path, *, backbone: nn.Module) -> dict[str, torch.Tensor]:
    """Read a weight file, and remove what a training wrapped around the backbone's names.

    Args:
        path: a .safetensors file, or a .pth or .pt file that `torch.save` wrote: only tensors are read from
            it, never code.
        backbone: its names tell wrappers from layers.

    Raises:
        WeightsError: the file cannot be read, or holds something else or numbers that are not finite.
    """
    try:
        content: object = load_file(path) if path.suffix == ".safetensors" else _read_torch(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path.name} is not a safetensors file, or is damaged: {error}") from error
    for entry in _ENTRIES:
        if isinstance(content, Mapping) and isinstance(content.get(entry), Mapping):
            logger.info("%s: the weights are its entry %r", path.name, entry)
            content = content[entry]
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(value, torch.Tensor) for value in content.values())
    ):
        raise WeightsError(
            f"{path.name} holds no tensors by name. Save them with "
            "torch.save(network.state_dict(), ...) or safetensors.torch.save_file(network.state_dict(), ...)."
        )
    tensors = {str(key): value for key, value in content.items()}
    broken = [key for key, value in tensors.items() if value.is_floating_point() and not _is_finite(value)]
    if broken:
        lead = f"{path.name} has {len(broken)} tensors with NaN or infinite numbers, such as:"
        raise WeightsError(listed(lead, broken[:_SHOWN], remedy="Take weights of an earlier epoch."))
    return _unwrap(tensors, path.name, children=[name for name, _ in backbone.named_children()])


def _is_finite(tensor: torch.Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _read_torch(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the errors of pickle, which is not imported here, of zip files and of torch
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise WeightsError(
            f"{path.name} cannot be read without running code of its author, or is damaged: {first}\n"
            "Where it came from, save the tensors alone: torch.save(network.state_dict(), ...), or "
            "safetensors.torch.save_file(network.state_dict(), ...)."
        ) from error


def _unwrap(tensors: dict[str, torch.Tensor], name: str, *, children: list[str]) -> dict[str, torch.Tensor]:
    """Remove the prefixes of wrappers, and a head beside the wrapped backbone; the log names both."""
    while tensors:
        firsts = {key.partition(".")[0] for key in tensors}
        if firsts <= {"0", "1"} and "0" in firsts and "0" not in children:  # fastai: body and head
            wrapper = "0"
        else:
            wrapper = next((first for first in _WRAPPERS if first in firsts and first not in children), "")
            others = firsts - {wrapper, "fc", "head", "classifier"}
            if others:
                return tensors
        if not wrapper:
            return tensors
        inner = {
            key.partition(".")[2]: value for key, value in tensors.items() if key.startswith(f"{wrapper}.")
        }
        logger.info("%s: removed the prefix %r from %d names", name, f"{wrapper}.", len(inner))
        if len(inner) < len(tensors):
            logger.info("%s: left out %d tensors of its head", name, len(tensors) - len(inner))
        if wrapper == "0":
            inner = _number_to_name(inner, children)
        tensors = inner
    return tensors


def _number_to_name(tensors: dict[str, torch.Tensor], children: list[str]) -> dict[str, torch.Tensor]:
    """Convert the numbers that fastai gives to a body's layers to the names of the network's children."""
    named = {}
    for key, value in tensors.items():
        first, _, rest = key.partition(".")
        known = first.isdigit() and int(first) < len(children)
        named[f"{children[int(first)]}.{rest}" if known else key] = value
    return named


def _classifier_names(backbone: nn.Module) -> tuple[str, ...]:
    settings = getattr(backbone, "pretrained_cfg", None) or {}
    names = settings.get("classifier") or ("fc", "head.fc", "head", "classifier")
    return (names,) if isinstance(names, str) else tuple(names)


def fetch_encoder(encoder: str, folder: Path) -> dict[str, float | str]:
    """Download a timm encoder from its hub and save it so that `local-dir:` loads it without a network.

    Args:
        encoder: a timm name with the tag of its weights, such as `resnet34.tv_in1k`, or `hf-hub:OWNER/NAME`.
        folder: where config.json and model.safetensors are written.

    Returns:
        For run.json: the parameters in millions, and the licence of the weights.

    Raises:
        WeightsError: timm does not know it, it has no weights, or the hub cannot be reached.
    """
    import timm
    from timm.models import save_for_hf

    known = known_encoder(encoder)
    try:
        if known.layout == "dinov2":
            network, arguments = _fetch_dinov2(encoder)
        else:
            arguments = {**_model_arguments(encoder), **known.arguments}
            network = timm.create_model(encoder, pretrained=True, **with_layers(arguments))
    except Exception as error:  # the hub's errors have no common class: no network, not found, gated
        access = "that a gated licence is accepted (build_kernel.py doctor --check-gated)"
        if known.gated:
            access = (
                "that its terms are accepted (doctor --check-gated). A kernel on Kaggle has no token: "
                "download it on your machine, build_kernel.py weights EXPERIMENT --upload"
            )
        raise WeightsError(
            f"the weights of {encoder} could not be fetched: {type(error).__name__}: {error}\n"
            f"Check the name (with the tag of its weights), that the kernel has internet, and {access}; "
            "or train from random weights: --set weights=none."
        ) from error
    # Without the arguments timm would build the architecture's default: no LayerScale, another patch size.
    save_for_hf(network, str(folder), safe_serialization=True, model_args=arguments)
    settings = getattr(network, "pretrained_cfg", {}) or {}
    millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    del network
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return {"parameters_millions": round(millions, 3), "license": _licence(encoder, settings)}


def current_arguments(encoder: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that build an encoder as it is now, for timm's `save_for_hf`.

    timm 1.0.31 and later write classes, size and pool into config.json themselves, and refuse to save a
    network with others: with one logit instead of 1,000 classes, for example. timm 1.0.28 saves what it is
    given.

    Args:
        encoder: a network of timm.
        arguments: the `model_args` of the config.json that it was built from.
    """
    pool = getattr(getattr(encoder, "head", None), "global_pool", None)
    pool = getattr(encoder, "global_pool", pool)
    current = {
        "num_classes": encoder.num_classes,
        "global_pool": getattr(pool, "pool_type", pool),
        "img_size": getattr(getattr(encoder, "patch_embed", None), "img_size", None),
    }
    return {name: value if current.get(name) is None else current[name] for name, value in arguments.items()}


def _fetch_dinov2(encoder: str) -> tuple[nn.Module, dict[str, Any]]:
    """Download a checkpoint in transformers' layout of DINOv2 into timm's network; no code of the hub runs.

    Returns:
        The network, and timm's arguments for it in JSON's types.

    Raises:
        LayoutError: the tensors or the normalisation are not those of such an encoder.
        RuntimeError: a tensor of the network is missing, of another shape, or not in the network.
    """
    import timm
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    repository, _, revision = encoder.removeprefix(HUB).partition("@")

    def download(name: str) -> Path:
        return Path(hf_hub_download(repository, name, revision=revision or None))

    try:
        content: object = load_file(download(WEIGHTS_NAME))
    except EntryNotFoundError:
        content = _read_torch(download("pytorch_model.bin"))
    tensors = to_dinov2_names(cast(dict[str, torch.Tensor], content))
    architecture, arguments = timm_arguments(tensors)
    pixels = json.loads(download("preprocessor_config.json").read_text(encoding="utf-8"))
    try:
        mean, std = ([float(number) for number in pixels[name]] for name in ("image_mean", "image_std"))
    except (KeyError, TypeError, ValueError) as error:
        raise LayoutError(f"preprocessor_config.json has no image_mean and image_std: {error}") from error
    overlay = {"state_dict": tensors, "source": "", "num_classes": 0}
    network: nn.Module = timm.create_model(
        architecture, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay, **with_layers(arguments)
    )
    kept = {
        key: value
        for key, value in cast(Any, network).pretrained_cfg.items()
        if key not in ("state_dict", "url")
    }
    kept |= {"mean": mean, "std": std, "license": _licence(encoder, {}), "hf_hub_id": repository}
    size = arguments["img_size"]
    network.pretrained_cfg = {**kept, "tag": None, "input_size": (3, size, size)}  # type: ignore[assignment]
    return network, arguments


def _model_arguments(encoder: str) -> dict[str, Any]:
    """What a hub's config.json changes of its architecture, such as init_values, patch_size or reg_tokens."""
    from timm.models import load_model_config_from_hf
    from timm.models._hub import load_model_config_from_path

    if encoder.startswith(HUB):
        return dict(load_model_config_from_hf(encoder.removeprefix(HUB))[2] or {})
    if encoder.startswith(_LOCAL):
        return dict(load_model_config_from_path(encoder.removeprefix(_LOCAL))[2] or {})
    return {}


def _licence(encoder: str, settings: Mapping[str, Any]) -> str:
    """The licence that timm records, else that of the encoder's page on the hub."""
    stated = settings.get("license")
    if not stated and encoder.startswith(HUB):
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError

        try:
            page = huggingface_hub.model_info(repository_of(encoder)).card_data
            stated = getattr(page, "license_name", None) or getattr(page, "license", None)
        except (HfHubHTTPError, OSError, ValueError):  # the weights are there: no reason to stop
            stated = None
    return str(stated or "not stated")
