"""Checkpoints of DINOv2 with registers in the layout of the package transformers, such as Hibou, for timm.

The names are those of Dinov2WithRegistersModel (transformers 4). Nothing is executed from the hub: tensors
are read, renamed, and loaded into timm's network, which must have every one of them.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch

_ARCHITECTURES = {768: "vit_base_patch14_reg4_dinov2", 1024: "vit_large_patch14_reg4_dinov2"}
_REGISTERS = 4
_PATCH = 14  # pixels
# Tensors outside the blocks. The original DINOv2 names; timm converts them and the mask token.
_OUTSIDE = {
    "embeddings.cls_token": "cls_token",
    "embeddings.mask_token": "mask_token",
    "embeddings.register_tokens": "register_tokens",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
_BLOCK = re.compile(r"encoder\.layer\.(\d+)\.(.+)")
_INSIDE = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attention.output.dense": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "mlp.weights_in": "mlp.w12",
    "mlp.weights_out": "mlp.w3",
}
_QKV = re.compile(r"attention\.attention\.(query|key|value)\.(weight|bias)")


class LayoutError(ValueError):
    """The tensors are not those of a DINOv2 with registers; the message says which are not."""


def to_dinov2_names(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of transformers' layout by the names of the original DINOv2, which timm's filter reads.

    Raises:
        LayoutError: tensors have no counterpart, or some of the three of an attention are absent.
    """
    renamed: dict[str, torch.Tensor] = {}
    attention: dict[tuple[str, str], dict[str, torch.Tensor]] = {}
    unknown = []
    for name, tensor in tensors.items():
        block = _BLOCK.fullmatch(name)
        if block is None:
            if name in _OUTSIDE:
                renamed[_OUTSIDE[name]] = tensor
            else:
                unknown.append(name)
            continue
        number, inner = block.groups()
        layer, _, kind = inner.rpartition(".")
        if part := _QKV.fullmatch(inner):
            attention.setdefault((number, part[2]), {})[part[1]] = tensor
        elif scale := re.fullmatch(r"layer_scale([12])\.lambda1", inner):
            renamed[f"blocks.{number}.ls{scale[1]}.gamma"] = tensor
        elif layer in _INSIDE:
            renamed[f"blocks.{number}.{_INSIDE[layer]}.{kind}"] = tensor
        else:
            unknown.append(name)
    for (number, kind), parts in attention.items():
        if len(parts) == 3:
            joined = torch.cat([parts[part] for part in ("query", "key", "value")])
            renamed[f"blocks.{number}.attn.qkv.{kind}"] = joined
        else:
            unknown.append(f"encoder.layer.{number}.attention (query, key and value are not together)")
    if unknown:
        raise LayoutError(f"{len(unknown)} tensors are not of DINOv2 with registers, such as {unknown[0]}")
    return renamed


def timm_arguments(tensors: Mapping[str, torch.Tensor]) -> tuple[str, dict[str, Any]]:
    """Name timm's architecture of tensors by DINOv2's names, and its arguments in JSON's types.

    Raises:
        LayoutError: there is no such architecture.
    """
    try:
        width = tensors["cls_token"].shape[-1]
        patch = tensors["patch_embed.proj.weight"].shape[-1]
        registers = tensors["register_tokens"].shape[1]
        positions = tensors["pos_embed"].shape[1] - 1  # without the class token's
    except (KeyError, IndexError) as error:
        raise LayoutError(f"no DINOv2 with registers: {error} is absent") from error
    side = round(positions**0.5)
    depth = 1 + max((int(name.split(".")[1]) for name in tensors if name.startswith("blocks.")), default=-1)
    if width not in _ARCHITECTURES or (patch, registers) != (_PATCH, _REGISTERS) or side * side != positions:
        raise LayoutError(
            f"width {width}, patches of {patch} px, {registers} registers and {positions} positions are no "
            f"network of timm ({', '.join(_ARCHITECTURES.values())})"
        )
    arguments: dict[str, Any] = {"img_size": side * _PATCH, "depth": depth}
    if "blocks.0.mlp.w12.weight" in tensors:
        hidden = tensors["blocks.0.mlp.w12.weight"].shape[0]  # of the gate and the value together
        arguments |= {
            "mlp_ratio": (hidden + 0.5) / width,  # timm multiplies by the width and rounds down
            "mlp_layer": "SwiGLUPacked",
            "act_layer": "SiLU",
        }
    return _ARCHITECTURES[width], arguments
