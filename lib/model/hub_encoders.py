"""Encoders of the model hub that need more than a config.json: arguments, other layouts, access, licences.

The tables need no torch: the launcher reads them, too.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

HUB = "hf-hub:"
_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class HubEncoder:
    """An encoder of the hub.

    Attributes:
        arguments: of timm.create_model, which its author documents and its config.json lacks; a layer is
            given by a name of `_LAYERS`, because JSON cannot hold a class.
        layout: of its checkpoint. timm: as timm publishes it. dinov2: that of Dinov2WithRegisters in the
            package transformers, see lib.model.dinov2_layout.
        gated: whether its authors are known to let in each user by hand, or after terms are accepted. The hub
            decides: `doctor --check-gated` calls it.
    """

    arguments: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    layout: str = "timm"
    gated: bool = True


_SWIGLU = {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}
# By OWNER/NAME. The arguments are those of the authors' pages.
ENCODERS: Mapping[str, HubEncoder] = MappingProxyType(
    {
        "MahmoodLab/UNI": HubEncoder({"init_values": 1e-5, "dynamic_img_size": True}),
        "MahmoodLab/UNI2-h": HubEncoder(
            {
                "img_size": 224,
                "patch_size": 14,
                "depth": 24,
                "num_heads": 24,
                "init_values": 1e-5,
                "embed_dim": 1536,
                "mlp_ratio": 2.66667 * 2,
                "num_classes": 0,
                "no_embed_class": True,
                "reg_tokens": 8,
                "dynamic_img_size": True,
                **_SWIGLU,
            }
        ),
        "paige-ai/Virchow": HubEncoder(_SWIGLU),
        "paige-ai/Virchow2": HubEncoder(_SWIGLU),
        "bioptimus/H-optimus-0": HubEncoder({"init_values": 1e-5, "dynamic_img_size": False}),
        "bioptimus/H-optimus-1": HubEncoder({"init_values": 1e-5, "dynamic_img_size": False}),
        "prov-gigapath/prov-gigapath": HubEncoder(),
        "histai/hibou-b": HubEncoder(layout="dinov2", gated=False),
        "histai/hibou-L": HubEncoder(layout="dinov2"),
    }
)
_BY_LOWER_CASE = {name.lower(): encoder for name, encoder in ENCODERS.items()}

_DINOV3 = (
    "DINOv3 License, https://ai.meta.com/resources/models-and-libraries/dinov3-license/ : pass on weights, "
    "and networks trained from them, only under this licence and with a copy of it; name DINOv3 in "
    "publications; military and some other uses are excluded. Whoever uses the weights accepts it"
)
# By a part of the encoder's name, in lower case: terms that go beyond the name of a licence.
_TERMS = {"dinov3": _DINOV3}


def repository_of(encoder: str) -> str:
    """OWNER/NAME of an encoder of the hub, without a revision; empty for another name."""
    return encoder.removeprefix(HUB).split("@")[0] if encoder.startswith(HUB) else ""


def known_encoder(encoder: str) -> HubEncoder:
    """The entry of an encoder, whatever the case of its letters; an empty one where there is none."""
    return _BY_LOWER_CASE.get(repository_of(encoder).lower(), HubEncoder(gated=False))


def licence_terms(encoder: str) -> str:
    """Terms that a user must know before the weights are downloaded; empty where none are recorded here."""
    return next((terms for part, terms in _TERMS.items() if part in encoder.lower()), "")


def with_layers(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of timm.create_model with the layers that JSON holds by name."""
    from timm.layers import SwiGLUPacked
    from torch import nn

    layers = {"SwiGLUPacked": SwiGLUPacked, "SiLU": nn.SiLU, "GELU": nn.GELU}
    return {
        name: layers.get(value, value)
        if isinstance(value, str) and re.fullmatch(r"\w+_layer", name)
        else value
        for name, value in arguments.items()
    }


def layer_arguments(config: Path) -> dict[str, Any]:
    """The arguments in an encoder's config.json that are layers; timm reads the others itself."""
    content = json.loads(config.read_text(encoding="utf-8"))
    arguments = content.get("model_args") if isinstance(content, dict) else None
    named = {
        name: value
        for name, value in (arguments if isinstance(arguments, dict) else {}).items()
        if isinstance(value, str) and name.endswith("_layer")
    }
    return with_layers(named)
