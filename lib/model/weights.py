"""Pretrained weights of a backbone: download an encoder, check a weight file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from lib.errors import KernelError, listed

WEIGHTS_NAME = "model.safetensors"
_HUB = "hf-hub:"


class WeightsError(KernelError):
    """Weights cannot be downloaded or do not belong to the backbone."""


def check_weight_file(path: Path, *, backbone: nn.Module, name: str) -> None:
    """Check that a weight file holds every tensor of the backbone except the classifier.

    With another number of classes timm ignores missing tensors and leaves them at their random values.

    Raises:
        WeightsError: the file cannot be read, or tensors are missing or have other shapes; with examples.
    """
    try:
        with safe_open(path, framework="pt") as content:
            shapes = {key: tuple(content.get_slice(key).get_shape()) for key in content.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path.name} is not a safetensors file, or is damaged: {error}") from error
    classifier = tuple(f"{prefix}." for prefix in _classifier_names(backbone))
    problems = []
    for key, tensor in backbone.state_dict().items():
        if key.startswith(classifier) or key.endswith("num_batches_tracked"):
            continue
        if key not in shapes:
            problems.append(f"{key} is missing")
        elif (
            shapes[key] != tuple(tensor.shape) and "pos_embed" not in key
        ):  # timm resamples position embeddings
            problems.append(f"{key} is {shapes[key]}, the backbone has {tuple(tensor.shape)}")
    if problems:
        lead = f"{path.name} does not hold the weights of {name}: {len(problems)} tensors differ, such as:"
        remedy = "Name the backbone that it was saved from, with --set backbone=..."
        raise WeightsError(listed(lead, problems[:5], remedy=remedy))


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

    try:
        network = timm.create_model(encoder, pretrained=True)
    except Exception as error:  # the hub's errors have no common class: no network, not found, gated
        raise WeightsError(
            f"the weights of {encoder} could not be fetched: {type(error).__name__}: {error}\n"
            "Check the name (with the tag of its weights), that the kernel has internet, and that a gated "
            "licence is accepted; or train from random weights: --set weights=none."
        ) from error
    save_for_hf(network, str(folder), safe_serialization=True)
    settings = getattr(network, "pretrained_cfg", {}) or {}
    millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    del network
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return {"parameters_millions": round(millions, 3), "license": _licence(encoder, settings)}


def _licence(encoder: str, settings: Mapping[str, Any]) -> str:
    """The licence that timm records, else that of the encoder's page on the hub."""
    stated = settings.get("license")
    if not stated and encoder.startswith(_HUB):
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError

        try:
            page = huggingface_hub.model_info(encoder.removeprefix(_HUB).split("@")[0]).card_data
            stated = getattr(page, "license_name", None) or getattr(page, "license", None)
        except (HfHubHTTPError, OSError, ValueError):  # the weights are there: no reason to stop
            stated = None
    return str(stated or "not stated")
