"""Check of a file of weights before any GPU reads it: load it into its network, and predict a batch."""

from pathlib import Path
from typing import Any

import torch

from lib.config import Config
from lib.files import sha256_of
from lib.model.network import build_network
from lib.model.tuning import prepare_tuning
from lib.model.weights import WeightsError

_TILES = 4
_TILE_SIDE = 96  # pixels


def try_weights(config: Config, file: Path) -> dict[str, Any]:
    """Load a file into the network of an experiment, and predict a batch of random tiles on the CPU.

    Args:
        config: the options that decide the network, see Config.network.
        file: of weights.

    Returns:
        The SHA-256 of the file and the millions of parameters of the network.

    Raises:
        WeightsError: the file does not hold the weights of the backbone, or an output is not finite.
        NetworkError: the network cannot be built or tuned as the experiment says.
    """
    torch.manual_seed(0)
    network = build_network(config, file=file)
    prepare_tuning(network, config)
    tiles = torch.rand(_TILES, 3, _TILE_SIDE, _TILE_SIDE)
    with torch.no_grad():
        logits, vectors = network.eval()(tiles), network.embed(tiles)  # (B,) and (B, C)
    for name, values in (("features", vectors), ("logits", logits)):
        if not torch.isfinite(values).all():
            raise WeightsError(
                f"the {name} of {config.backbone} with {file.name} are not finite for random tiles: its "
                "weights are damaged, or too large. Take weights of an earlier epoch."
            )
    if len(vectors.flatten(1).unique(dim=0)) == 1:
        raise WeightsError(
            f"{config.backbone} with {file.name} has the same features for different tiles: its weights "
            "do not depend on the picture. Take another file."
        )
    millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    return {"sha256": sha256_of(file), "parameters_millions": round(millions, 3)}
