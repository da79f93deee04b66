"""Random weights of a timm encoder, as a program: `python random_weights.py ENCODER SEED PATH`.

The launcher imports no torch, so launch.emulator.hub starts this file. It prints one line of JSON: the model
hub's repository from which timm downloads the encoder. Where PATH is not empty it also writes random weights
there.
"""

import json
import sys


def make_random_weights(encoder: str, *, seed: int, path: str) -> str:
    """Write random weights of an encoder and return its repository on the hub, empty where timm names none.

    Args:
        encoder: a timm name with the tag of its weights.
        seed: of the random numbers.
        path: of the .safetensors file; empty to write nothing.
    """
    import timm
    import torch
    from safetensors.torch import save_file
    from timm.models import get_pretrained_cfg

    settings = get_pretrained_cfg(encoder, allow_unregistered=False)
    if settings is None:
        raise ValueError(f"unknown encoder {encoder}")
    if path and settings.hf_hub_id:
        torch.manual_seed(seed)
        network = timm.create_model(encoder, pretrained=False)
        save_file({key: tensor.contiguous().clone() for key, tensor in network.state_dict().items()}, path)
        # Load them once as timm loads downloaded weights, strictly and with its conversions: an encoder that
        # cannot be rehearsed fails here, before the rehearsal starts.
        timm.create_model(
            encoder, pretrained=True, pretrained_cfg_overlay={"file": path, "custom_load": False}
        )
    return settings.hf_hub_id or ""


if __name__ == "__main__":
    name, seed, path = sys.argv[1:]
    print(json.dumps({"repository": make_random_weights(name, seed=int(seed), path=path)}))
