"""Every network the experiments name takes a step, is written, read back, and predicts the same."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lib.config import Config
from lib.model.checkpoint import Identity, load_checkpoint, save_checkpoint
from lib.model.network import build_network
from lib.model.predict import predict_logits
from lib.training.engine import Part, train_one_epoch
from lib.training.optimizer import OptimizerStep, build_optimizer

CPU = torch.device("cpu")
# With the knobs that the experiments would give it, at the smallest side that its strides allow.
NETWORKS = {
    "resnet18": {},
    "resnet34": {"pooling": "gem"},
    "resnet50": {"stem": "no_pool"},
    "seresnext50_32x4d": {"pooling": "avgmax", "stem": "no_pool"},
    "densenet121": {"pooling": "avgmax"},
    "densenet169": {"stem": "no_stride"},
    "efficientnet_b0": {},
    "efficientnet_b3": {"pooling": "attention"},
    "convnext_tiny": {"layer_decay": 0.8},
    "convnext_small": {"freeze_epochs": 1, "epochs": 2},
    "vit_small_patch16_224": {"layer_decay": 0.75, "pooling": "attention"},
    "vit_small_patch8_224": {"freeze_epochs": 1, "epochs": 2},
}


@pytest.mark.parametrize("backbone", NETWORKS)
def test_it_learns_is_written_and_predicts(backbone: str, tmp_path: Path) -> None:
    size = 32 if "vit" in backbone or "conv" in backbone else 64
    config = Config(
        **{"epochs": 1, "weights": "none", "views": 1, "batch_size": 4, **NETWORKS[backbone]}, backbone=backbone, input_size=size
    )
    torch.manual_seed(0)
    network = build_network(config)
    tiles = np.random.default_rng(0).integers(0, 256, (4, 96, 96, 3), dtype=np.uint8)
    part = Part(tiles=tiles, labels=np.array([0, 1, 0, 1], np.float32), rows=np.arange(4), entropy=(0, 0, 0))
    step = OptimizerStep(build_optimizer(network, config), peak=1e-3, total=1, warmup=0, clip=0.0, scaled=False)
    before = torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
    loss = train_one_epoch(network, part, step, epoch=0, config=config, device=CPU, precision=torch.float32)
    assert 0 < loss < 20 and step.applied == 1
    assert not torch.equal(before, torch.cat([parameter.detach().flatten() for parameter in network.parameters()]))
    identity = Identity(experiment="x", fold=0, member=0, data_id="d", fold_table_id="f", config=config.to_dict())
    save_checkpoint(tmp_path / "x.safetensors", network, identity)

    def predict(some: torch.nn.Module) -> np.ndarray:
        rows = np.arange(4)
        found: np.ndarray = predict_logits(some, tiles, rows, views=1, batch_size=4, device=CPU, precision=torch.float32)  # type: ignore[arg-type]
        return found

    assert np.array_equal(predict(load_checkpoint(tmp_path / "x.safetensors")[0]), predict(network))
