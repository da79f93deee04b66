"""Every network the experiments name takes a step, is written, read back, and predicts the same."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.models import save_for_hf

from lib.config import Config
from lib.model.checkpoint import Identity, load_checkpoint, save_checkpoint
from lib.model.network import Classifier, build_network
from lib.model.predict import predict_logits
from lib.training.epoch import TrainingSet, train_one_epoch
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
    "vit_small_patch16_dinov3": {"layer_decay": 0.75, "pooling": "avgmax"},
}


@pytest.mark.parametrize("backbone", NETWORKS)
def test_it_learns_is_written_and_predicts(backbone: str, tmp_path: Path) -> None:
    size = 32 if "vit" in backbone or "conv" in backbone else 64
    config = Config(
        **{"epochs": 1, "weights": "none", "tta_views": 1, "batch_size": 4, **NETWORKS[backbone]},
        backbone=backbone,
        input_size=size,
    )
    torch.manual_seed(0)
    network = build_network(config)
    learn_write_and_predict(network, config, tmp_path)


# The worked examples of the experiment `pathology`, with less depth and width: architecture, arguments, and
# the published mean and deviation.
PATHOLOGY: dict[str, tuple[str, dict[str, Any], list[float], list[float]]] = {
    "hf-hub:bioptimus/H-optimus-0": (
        "vit_giant_patch14_reg4_dinov2",
        {"global_pool": "token", "init_values": 1e-5, "embed_dim": 96, "num_heads": 3},
        [0.7072, 0.5787, 0.7036],
        [0.2119, 0.2301, 0.1775],
    ),
    "hf-hub:1aurent/vit_small_patch8_224.lunit_dino": (
        "vit_small_patch8_224",
        {},
        [0.7032, 0.5361, 0.6610],
        [0.2172, 0.2608, 0.2072],
    ),
    "hf-hub:1aurent/vit_small_patch16_224.kaiko_ai_towards_large_pathology_fms": (
        "vit_small_patch16_224",
        {"dynamic_img_size": True},
        [0.5, 0.5, 0.5],
        [0.5, 0.5, 0.5],
    ),
}


@pytest.mark.parametrize("encoder", PATHOLOGY)
@pytest.mark.parametrize("train_mode", ["full", "linear_probe"])
def test_a_pathology_encoder_brings_its_own_normalisation_and_learns_or_embeds(
    encoder: str, train_mode: str, tmp_path: Path
) -> None:
    architecture, arguments, mean, std = PATHOLOGY[encoder]
    original = timm.create_model(architecture, num_classes=0, depth=2, **arguments)
    save_for_hf(
        original, str(tmp_path / "encoder"), model_args={"depth": 2, **arguments}, safe_serialization=True
    )
    path = tmp_path / "encoder" / "config.json"
    content = json.loads(path.read_text())
    content["pretrained_cfg"] |= {"mean": mean, "std": std}
    path.write_text(json.dumps(content))
    config = Config(
        backbone=encoder,
        weights="timm",
        train_mode=train_mode,
        num_members=1,
        tta_views=1,
        input_size=112,
        batch_size=4,
        layer_decay=0.8,
    )
    torch.manual_seed(0)
    network = build_network(config, folder=tmp_path / "encoder")
    assert network.mean.flatten().tolist() == pytest.approx(
        mean
    ) and network.std.flatten().tolist() == pytest.approx(std)
    first = next(name for name in original.state_dict() if name.startswith("blocks.0."))
    assert torch.equal(
        network.backbone.state_dict()[first], original.state_dict()[first]
    )  # its weights, not random ones
    if train_mode == "linear_probe":
        embedded = network.eval().embed(torch.zeros(2, 3, 96, 96))
        assert embedded.shape == (2, original.num_features)
        return
    learn_write_and_predict(network, config, tmp_path)


def learn_write_and_predict(network: Classifier, config: Config, folder: Path) -> None:
    """A step changes it; its checkpoint, read back without anything else, predicts the same."""
    tiles = np.random.default_rng(0).integers(0, 256, (4, 96, 96, 3), dtype=np.uint8)
    part = TrainingSet(
        tiles=tiles, labels=np.array([0, 1, 0, 1], np.float32), rows=np.arange(4), entropy=(0, 0, 0)
    )
    step = OptimizerStep(
        build_optimizer(network, config), peak=1e-3, total=1, warmup=0, clip=0.0, scaled=False
    )
    before = torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
    loss = train_one_epoch(network, part, step, epoch=0, config=config, device=CPU, precision=torch.float32)
    assert 0 < loss < 20 and step.applied == 1
    assert not torch.equal(
        before, torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
    )
    identity = Identity(
        experiment="x", fold=0, member=0, data_id="d", fold_table_id="f", config=config.to_dict()
    )
    save_checkpoint(folder / "x.safetensors", network, identity)

    def predict(some: torch.nn.Module) -> np.ndarray:
        rows = np.arange(4)
        found: np.ndarray = predict_logits(
            some, tiles, rows, views=1, batch_size=4, device=CPU, precision=torch.float32
        )  # type: ignore[arg-type]
        return found

    assert np.array_equal(predict(load_checkpoint(folder / "x.safetensors")[0]), predict(network))
