"""Tuning of a part of a network: which parameters change, and adapters that are merged into the weights."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from lib.config import Config
from lib.model.network import Classifier, NetworkError, build_network
from lib.model.tuning import AdaptedLinear, merged_state, prepare_tuning
from lib.training.ema import WeightAverage
from lib.training.epoch import TrainingSet, train_one_epoch
from lib.training.optimizer import OptimizerStep, build_optimizer

CPU = torch.device("cpu")
# The last block of each, and what is behind it, as its modules are named in timm.
LAST_BLOCK = {
    "test_vit": ("blocks.5.", "norm."),
    "test_resnet": ("layer4.0.",),
    "test_convnext": ("stages.3.blocks.1.", "head.norm."),
    "vit_small_patch16_dinov3": ("blocks.11.", "norm."),
    "densenet121": ("features.denseblock4.denselayer16.", "features.norm5."),
}


def tuned(
    backbone: str, mode: str, *, pooling: str = "native", **options: float
) -> tuple[Classifier, Config]:
    config = Config(
        backbone=backbone,
        weights="none",
        train_mode=mode,
        pooling=pooling,
        input_size=64,
        batch_size=4,
        epochs=3,
        layer_decay=0.8,
        ema_decay=0.9,
        weight_decay=0.1,
        train_blocks=1,
        lora_rank=2,
        **options,  # type: ignore[arg-type]
    )
    torch.manual_seed(0)
    network = build_network(config)
    prepare_tuning(network, config)
    return network, config


def train(network: Classifier, config: Config) -> Classifier:
    """Train for two epochs of two steps; the network of the average."""
    generator = np.random.default_rng(0)
    tiles = generator.integers(0, 256, (8, 96, 96, 3), dtype=np.uint8)
    labels = np.tile([0.0, 1.0], 4).astype(np.float32)
    training_set = TrainingSet(tiles=tiles, labels=labels, rows=np.arange(8), entropy=(0, 0, 0))
    optimizer = build_optimizer(network, config)
    step = OptimizerStep(optimizer, peak=1e-2, total=4, warmup=0, clip=1.0, scaled=False)
    average = WeightAverage(network, decay=config.ema_decay)
    for epoch in range(2):
        train_one_epoch(
            network,
            training_set,
            step,
            epoch=epoch,
            config=config,
            device=CPU,
            precision=torch.float32,
            average=average,
        )
    module: Classifier = average.module
    return module


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


def state_of(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("pooling", ["native", "attention"])
@pytest.mark.parametrize("backbone", LAST_BLOCK)
def test_only_the_last_block_and_the_head_change(backbone: str, pooling: str) -> None:
    network, config = tuned(backbone, "last_blocks", pooling=pooling)
    before = state_of(network)
    average = train(network, config)
    inner = "backbone." if pooling == "native" else "backbone.backbone."
    wanted = tuple(inner + name for name in LAST_BLOCK[backbone]) + network.head_names()
    for after in (state_of(network), state_of(average)):
        names = changed(before, after)
        assert names and all(name.startswith(wanted) for name in names), names
        learnt = {name for name, _ in network.named_parameters() if name.startswith(wanted)}
        # Biases of keys have no effect on attention, and a bias before a batch norm has none on its output.
        still = learnt - names
        assert len(still) <= 0.1 * len(learnt), still


@pytest.mark.parametrize("backbone", ["test_vit", "test_convnext", "vit_small_patch16_dinov3"])
def test_only_adapters_and_the_head_change_and_the_merged_network_is_the_same(backbone: str) -> None:
    network, config = tuned(backbone, "lora", pooling="avgmax")
    before = state_of(network)
    average = train(network, config)
    adapters = {name for name in before if "adapter_" in name}
    layers = sum(isinstance(module, AdaptedLinear) for module in network.modules())
    assert len(adapters) == 2 * layers > 8
    names = changed(before, state_of(network))
    assert names == adapters | {"backbone.head.weight", "backbone.head.bias"}
    plain = build_network(config).eval()
    images = torch.rand(3, 3, 96, 96)
    for trained in (network, average):
        merged = merged_state(trained)
        assert merged.keys() == plain.state_dict().keys()
        assert len(changed(state_of(plain), merged)) >= layers
        plain.load_state_dict(merged)
        with torch.no_grad():
            torch.testing.assert_close(plain(images), trained.eval()(images), atol=1e-5, rtol=1e-5)


def test_fresh_adapters_change_no_output_and_an_adapter_is_the_published_sum() -> None:
    config = Config(backbone="test_vit", weights="none", input_size=64, train_mode="lora", lora_rank=3)
    network = build_network(config).eval()
    images = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        before = network(images)
        prepare_tuning(network, config)
        assert torch.equal(network(images), before)
    layer = nn.Linear(7, 5)
    adapted = AdaptedLinear(layer, rank=3)
    nn.init.normal_(adapted.adapter_up)
    vectors = torch.rand(4, 7)
    # Hu et al. 2021, section 4.1, with alpha = 2 r.
    published = functional.linear(
        vectors, layer.weight + 6 / 3 * adapted.adapter_up @ adapted.adapter_down, layer.bias
    )
    torch.testing.assert_close(adapted(vectors), published)
    torch.testing.assert_close(adapted.merged_weight() @ vectors.T + layer.bias[:, None], published.T)


def test_frozen_layers_have_no_gradient_and_no_moments() -> None:
    network, config = tuned("test_vit", "lora")
    optimizer = build_optimizer(network, config)
    held = sum(parameter.numel() for group in optimizer.param_groups for parameter in group["params"])
    trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    everything = sum(parameter.numel() for parameter in network.parameters())
    assert held == trained < 0.2 * everything
    network(torch.rand(2, 3, 64, 64)).sum().backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


@pytest.mark.parametrize(
    ("backbone", "options", "message"),
    [
        ("test_resnet", {"train_mode": "lora"}, "has no linear layers.*last_blocks"),
        ("beit_base_patch16_224", {"train_mode": "lora", "input_size": 32}, "blocks.0.attn.qkv.*last_blocks"),
        ("test_vit", {"train_mode": "last_blocks", "train_blocks": 9}, "has 7 blocks.*train_blocks = 9"),
    ],
)
def test_a_backbone_without_such_a_part_says_so(
    backbone: str, options: dict[str, object], message: str
) -> None:
    config = Config(backbone=backbone, weights="none", **options)  # type: ignore[arg-type]
    with pytest.raises(NetworkError, match=message):
        prepare_tuning(build_network(config), config)
