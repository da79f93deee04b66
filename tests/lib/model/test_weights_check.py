"""The check of a file of weights: it fits, and its network gives finite outputs that depend on the tile."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lib.config import Config
from lib.files import sha256_of
from lib.model.network import NetworkError, build_network
from lib.model.weights import WeightsError
from lib.model.weights_check import try_weights

CONFIG = Config(backbone="test_resnet", weights="mine.safetensors", input_size=32)


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    network = build_network(CONFIG)
    return {name: tensor.contiguous() for name, tensor in network.backbone.state_dict().items()}


def _written(tensors: dict[str, torch.Tensor], folder: Path) -> Path:
    save_file(tensors, folder / "mine.safetensors")
    return folder / "mine.safetensors"


def test_a_file_that_fits_is_described(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    file = _written(tensors, tmp_path)
    described = try_weights(CONFIG, file)
    assert described["sha256"] == sha256_of(file)
    assert 0.3 < described["parameters_millions"] < 0.6


def test_finite_weights_with_outputs_that_are_not_are_refused(
    tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    large = {name: tensor * 1e25 if tensor.ndim == 4 else tensor for name, tensor in tensors.items()}
    for name in large:
        if name.endswith("running_var"):
            large[name] = torch.zeros_like(large[name])  # no norm makes them small again
    with pytest.raises(WeightsError, match=r"features of test_resnet with mine.safetensors are not finite"):
        try_weights(CONFIG, _written(large, tmp_path))


def test_weights_that_ignore_the_picture_are_refused(
    tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    zero = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    with pytest.raises(WeightsError, match="the same features for different tiles"):
        try_weights(CONFIG, _written(zero, tmp_path))


def test_a_network_that_cannot_be_tuned_is_found_here(
    tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    config = Config(backbone="test_resnet", weights="mine.safetensors", input_size=32, train_mode="lora")
    with pytest.raises(NetworkError, match="has no linear layers"):
        try_weights(config, _written(tensors, tmp_path))
