"""Batch norms that use the tiles of all processes: the same network otherwise."""

import pytest
import timm
import torch
from torch import nn

from lib.training.distributed import synchronise_batch_norms


@pytest.mark.parametrize(
    "backbone", ["densenet121", "test_efficientnet", "resnet18", "mobilenetv3_small_050"]
)
def test_synchronised_batch_norms_keep_their_activations_and_weights(backbone: str) -> None:
    torch.manual_seed(0)
    network = timm.create_model(backbone, num_classes=1).eval()
    images, weights = torch.rand(2, 3, 64, 64), dict(network.named_parameters())
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    with torch.no_grad():
        wanted = network(images)
        for _ in range(2):  # again after the frozen epochs
            synchronise_batch_norms(network)
            assert torch.equal(network(images), wanted)
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in network.modules()) == norms > 0
    assert all(parameter is weights[name] for name, parameter in network.named_parameters())
