"""One logit from any backbone, with its own preprocessing; a message if it cannot be built."""

import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torchvision.models import ResNet18_Weights
from torchvision.transforms.functional import normalize

from lib.config import Config
from lib.data.tiff import decode_tile
from lib.model.network import (
    NetworkError,
    StemError,
    autocast,
    build_network,
    choose_precision,
    refine_stem,
)

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit", "test_efficientnet"])
def test_every_kind_of_backbone_gives_one_logit_a_tile(backbone: str) -> None:
    network = build_network(Config(backbone=backbone, input_size=64)).eval()
    with torch.no_grad():
        assert network(torch.rand(3, 3, 96, 96)).shape == (3,)
        assert network(torch.rand(1, 3, 96, 96)).shape == (1,)


@pytest.mark.parametrize(
    ("backbone", "stem"), [("test_resnet", "keep"), ("test_resnet", "no_pool"), ("test_efficientnet", "keep")]
)
def test_channels_last_is_kept_from_the_stem_to_the_pooling(backbone: str, stem: str) -> None:
    """One layer with the other layout would make tensor cores convert every map before and after it."""
    network = build_network(Config(backbone=backbone, input_size=64, stem=stem)).eval()
    layouts: dict[str, bool] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, torch.Tensor) and output.ndim == 4 and min(output.shape[1:]) > 1:
                layouts[name] = output.is_contiguous(memory_format=torch.channels_last)

        return hook

    for name, module in network.named_modules():
        module.register_forward_hook(note(name))
    with torch.no_grad():
        network(torch.rand(2, 3, 96, 96))
    assert len(layouts) > 20 and all(layouts.values()), [name for name, kept in layouts.items() if not kept]


@pytest.mark.parametrize(
    ("backbone", "pooling"), [("test_resnet", "native"), ("test_convnext", "avgmax"), ("test_vit", "gem")]
)
def test_the_forward_pass_is_one_graph_for_the_compiler(backbone: str, pooling: str) -> None:
    """`fullgraph` fails at the first break; the backend `eager` needs no compiler of the machine."""
    network = build_network(Config(backbone=backbone, pooling=pooling, input_size=64)).train()
    images = torch.rand(4, 3, 96, 96)
    torch.manual_seed(0)
    plain = network(images)
    plain.sum().backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    network.zero_grad()
    torch.manual_seed(0)
    compiled = torch.compile(network, backend="eager", fullgraph=True)(images)
    compiled.sum().backward()
    torch.testing.assert_close(compiled, plain)
    torch.testing.assert_close([parameter.grad for parameter in network.parameters()], gradients)


def test_the_network_normalises_with_its_own_figures_and_keeps_them_with_the_weights(tiny: Config) -> None:
    network = build_network(tiny).eval()
    settings = network.backbone.pretrained_cfg
    assert network.mean.flatten().tolist() == pytest.approx(list(settings["mean"]))
    assert network.std.flatten().tolist() == pytest.approx(list(settings["std"]))
    assert {"mean", "std"} <= set(network.state_dict())
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        by_hand = network.backbone((images - network.mean) / network.std).squeeze(-1)
        assert torch.equal(network(images), by_hand)


def test_tiles_are_resized_to_the_input_size(tiny: Config) -> None:
    network = build_network(tiny).eval()
    seen: list[torch.Size] = []
    network.backbone.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].shape))
    with torch.no_grad():
        network(torch.rand(2, 3, 96, 96))
        grey = torch.full((1, 3, 96, 96), 0.3)
        torch.testing.assert_close(network(grey), network(grey[..., :32, :32]))
    assert seen[0] == (2, 3, 32, 32)


def test_the_seed_decides_the_first_weights(tiny: Config) -> None:
    def built(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([parameter.flatten() for parameter in build_network(tiny).parameters()])

    assert torch.equal(built(1), built(1)) and not torch.equal(built(1), built(2))


def test_dropout_acts_in_training_only() -> None:
    network = build_network(Config(backbone="test_resnet", input_size=32, drop_rate=0.9))
    assert network.training
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        network.eval()
        assert torch.equal(network(images), network(images))
        network.train()
        assert not torch.equal(network(images), network(images))


@pytest.mark.parametrize("backbone", ["resnet_of_dreams", "resnet18.no_such_tag", "hf hub"])
def test_an_unknown_backbone_is_named(backbone: str) -> None:
    with pytest.raises(NetworkError, match=backbone):
        build_network(Config(backbone=backbone, input_size=32))


def test_an_input_size_the_backbone_does_not_accept_is_named() -> None:
    with pytest.raises(NetworkError, match=r"test_vit"):
        build_network(Config(backbone="test_vit", input_size=50))


def test_precision_on_a_cpu() -> None:
    cpu = torch.device("cpu")
    assert choose_precision("auto", cpu) == torch.float32
    assert choose_precision("bfloat16", cpu) == torch.bfloat16
    with pytest.raises(NetworkError, match="precision=float32"):
        choose_precision("float16", cpu)


@pytest.mark.parametrize(
    ("capability", "wanted"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)]
)
def test_auto_trusts_the_hardware_not_the_emulation(
    capability: tuple[int, int], wanted: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *arguments: True)
    assert choose_precision("auto", torch.device("cuda")) == wanted


def test_lower_precision_leaves_the_parameters_alone(tiny: Config) -> None:
    network = build_network(tiny).eval()
    with torch.no_grad(), autocast(torch.device("cpu"), torch.bfloat16):
        low = network(torch.rand(2, 3, 32, 32))
    assert low.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


# The head


def _named_backbones() -> list[str]:
    """The architectures of experiments/*.toml, without the tags of their weights; a hub encoder's last."""
    named = {
        str(tomllib.loads(path.read_text()).get("backbone", Config().backbone))
        for path in (ROOT / "experiments").glob("*.toml")
    }
    architectures = {name.split(".")[0] for name in named if not name.startswith("hf-hub:")}
    assert len(architectures) >= 5
    return sorted(architectures | {"efficientnet_b0", "mobilenetv3_small_100", "vit_tiny_patch16_224"})


@pytest.mark.parametrize("pooling", ["native", "avgmax"])
@pytest.mark.parametrize("backbone", _named_backbones())
def test_the_first_logits_are_near_zero(backbone: str, pooling: str) -> None:
    """timm draws the one-logit classifier of some families in +-1: the first losses were above 3."""
    torch.manual_seed(4)
    network = build_network(Config(backbone=backbone, pooling=pooling, input_size=64, weights="none"))
    labels = torch.tensor([0.0, 1, 1, 0, 1, 0, 0, 1])
    images = torch.rand(8, 3, 96, 96)
    with torch.no_grad():
        for mode in (True, False):
            logits = network.train(mode)(images)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
            assert 0.6 < loss < 0.8, (mode, logits)
    heads = [name for name, _ in network.named_parameters() if name.startswith(network.head_names())]
    assert network.head_names() and {f"{network.head_names()[-1]}{part}" for part in ("weight", "bias")} <= {
        *heads
    }


def test_the_seed_decides_the_first_weights_of_the_head() -> None:
    config = Config(backbone="test_efficientnet", input_size=64, weights="none")

    def built(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        classifier: torch.nn.Linear = build_network(config).backbone.get_classifier()
        assert classifier.weight.std() > 0 and classifier.bias.item() == 0
        return classifier.weight.detach()

    assert torch.equal(built(1), built(1)) and not torch.equal(built(1), built(2))


# Comparison with other libraries


@pytest.mark.parametrize("size", [32, 64, 128, 224])
def test_a_tile_is_resized_as_pillow_resizes_it(tiny: Config, tissue: list[Path], size: int) -> None:
    """Smaller: averaged over what falls into a pixel. Larger: as OpenCV does it, too."""
    network = build_network(replace(tiny, input_size=size))
    tiles = np.stack([decode_tile(path.read_bytes()) for path in tissue]).astype(np.float32) / 255
    found = network.resize(torch.from_numpy(tiles).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    for tile, result in zip(tiles, found, strict=True):
        channels = [Image.fromarray(np.ascontiguousarray(tile[..., at])) for at in range(3)]
        theirs = np.stack(
            [np.asarray(channel.resize((size, size), Image.Resampling.BILINEAR)) for channel in channels],
            axis=2,
        )
        np.testing.assert_allclose(result, theirs, rtol=0, atol=2e-5)
        if size > 96:
            np.testing.assert_allclose(result, cv2.resize(tile, (size, size)), rtol=0, atol=2e-5)


def test_the_logit_is_that_of_timms_network_after_torchvisions_normalisation(
    random_tiles: Callable[..., np.ndarray],
) -> None:
    images = torch.from_numpy(random_tiles(3)).permute(0, 3, 1, 2).float() / 255
    network = build_network(Config(backbone="resnet18.tv_in1k", weights="none")).eval()
    theirs = timm.create_model("resnet18.tv_in1k", num_classes=1).eval()
    theirs.load_state_dict(network.backbone.state_dict())
    preset = ResNet18_Weights.IMAGENET1K_V1.transforms()
    with torch.no_grad():
        wanted = theirs(normalize(images, preset.mean, preset.std)).squeeze(1)
        torch.testing.assert_close(network(images), wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            network.normalise(images), normalize(images, preset.mean, preset.std), rtol=0, atol=2e-6
        )


def _side(network: torch.nn.Module, pixels: int = 64) -> int:
    with torch.no_grad():
        found: torch.Tensor = network.eval().forward_features(torch.zeros(1, 3, pixels, pixels))  # type: ignore[operator]
    return found.shape[-1]


@pytest.mark.parametrize(
    "backbone", ["test_resnet", "resnet18", "densenet121", "seresnext26d_32x4d", "resnetv2_50"]
)
@pytest.mark.parametrize(("stem", "finer"), [("keep", 1), ("no_pool", 2), ("no_stride", 4)])
def test_the_map_is_finer_and_the_weights_still_fit(backbone: str, stem: str, finer: int) -> None:
    plain, refined = (timm.create_model(backbone, num_classes=0) for _ in range(2))
    refine_stem(refined, stem)
    assert _side(refined) == finer * _side(plain)
    refined.load_state_dict(plain.state_dict(), strict=True)


def test_without_a_max_pool_only_the_stride_can_go() -> None:
    network = timm.create_model("efficientnet_b0", num_classes=0)
    with pytest.raises(StemError, match="no max-pool"):
        refine_stem(network, "no_pool")
    before = _side(network)
    refine_stem(network, "no_stride")
    assert _side(network) == 2 * before


@pytest.mark.parametrize("backbone", ["test_vit", "test_convnext"])
def test_patch_embeddings_are_not_refined(backbone: str) -> None:
    with pytest.raises(StemError, match="stem = keep"):
        refine_stem(timm.create_model(backbone, num_classes=0), "no_stride")


def test_the_config_decides_the_stem() -> None:
    network = build_network(Config(backbone="test_resnet", input_size=64, weights="none", stem="no_pool"))
    assert _side(network.backbone) == 2 * _side(
        build_network(Config(backbone="test_resnet", input_size=64)).backbone
    )
