"""Encoders of the hub that need more than a config.json: arguments, and the layout of transformers."""

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn import functional

from lib.config import Config
from lib.model.hub_encoders import ENCODERS, known_encoder, layer_arguments, licence_terms, with_layers
from lib.model.network import build_network
from lib.model.weights import WeightsError, fetch_encoder

HIBOU = "hf-hub:histai/hibou-b"
WIDTH, HEADS, DEPTH, SIDE = 768, 12, 2, 6  # SIDE: patches
MEAN, STD = [0.71, 0.58, 0.72], [0.2, 0.23, 0.18]


def checkpoint(*, swiglu: bool) -> dict[str, torch.Tensor]:
    """Random tensors by the names and shapes of transformers' Dinov2WithRegistersModel (4.49)."""
    generator = torch.Generator().manual_seed(1)
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, WIDTH),
        "embeddings.mask_token": (1, WIDTH),
        "embeddings.register_tokens": (1, 4, WIDTH),
        "embeddings.position_embeddings": (1, 1 + SIDE**2, WIDTH),
        "embeddings.patch_embeddings.projection.weight": (WIDTH, 3, 14, 14),
        "embeddings.patch_embeddings.projection.bias": (WIDTH,),
        "layernorm.weight": (WIDTH,),
        "layernorm.bias": (WIDTH,),
    }
    hidden = 2048 if swiglu else 4 * WIDTH
    first, second = ("weights_in", "weights_out") if swiglu else ("fc1", "fc2")
    for number in range(DEPTH):
        layers = {
            **{f"attention.attention.{part}": (WIDTH, WIDTH) for part in ("query", "key", "value")},
            "attention.output.dense": (WIDTH, WIDTH),
            f"mlp.{first}": (hidden * (2 if swiglu else 1), WIDTH),
            f"mlp.{second}": (WIDTH, hidden),
        }
        block = f"encoder.layer.{number}"
        for layer, shape in layers.items():
            shapes |= {f"{block}.{layer}.weight": shape, f"{block}.{layer}.bias": shape[:1]}
        for norm in ("norm1", "norm2"):
            shapes |= {f"{block}.{norm}.weight": (WIDTH,), f"{block}.{norm}.bias": (WIDTH,)}
        shapes |= {f"{block}.layer_scale{part}.lambda1": (WIDTH,) for part in (1, 2)}
    return {name: 0.05 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def dinov2(tensors: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """DINOv2 with registers (Darcet et al. 2024) from these tensors; images (B, 3, H, W) to (B, WIDTH)."""

    def linear(name: str, vectors: torch.Tensor) -> torch.Tensor:
        return vectors @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]

    def norm(name: str, vectors: torch.Tensor) -> torch.Tensor:
        centred = vectors - vectors.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return scaled * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]

    projection = "embeddings.patch_embeddings.projection"
    patches = functional.conv2d(
        images, tensors[f"{projection}.weight"], tensors[f"{projection}.bias"], stride=14
    )
    tokens = patches.flatten(2).transpose(1, 2)
    count = len(images)
    tokens = torch.cat([tensors["embeddings.cls_token"].expand(count, -1, -1), tokens], dim=1)
    tokens = tokens + tensors["embeddings.position_embeddings"]
    registers = tensors["embeddings.register_tokens"].expand(count, -1, -1)
    tokens = torch.cat([tokens[:, :1], registers, tokens[:, 1:]], dim=1)
    for number in range(DEPTH):
        block = f"encoder.layer.{number}"
        inner = norm(f"{block}.norm1", tokens)
        query, key, value = (
            linear(f"{block}.attention.attention.{part}", inner).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        weights = torch.softmax(query @ key.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5, dim=-1)
        mixed = linear(f"{block}.attention.output.dense", (weights @ value).transpose(1, 2).flatten(2))
        tokens = tokens + mixed * tensors[f"{block}.layer_scale1.lambda1"]
        inner = norm(f"{block}.norm2", tokens)
        if f"{block}.mlp.fc1.weight" in tensors:
            inner = linear(f"{block}.mlp.fc2", functional.gelu(linear(f"{block}.mlp.fc1", inner)))
        else:
            gate, values = linear(f"{block}.mlp.weights_in", inner).chunk(2, dim=-1)
            inner = linear(f"{block}.mlp.weights_out", gate * torch.sigmoid(gate) * values)
        tokens = tokens + inner * tensors[f"{block}.layer_scale2.lambda1"]
    return norm("layernorm", tokens)[:, 0]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the only repository; a file that is not there is not found, as on a hub."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    folder = tmp_path / "hub"
    folder.mkdir()

    def download(repository: str, name: str, *, revision: str | None) -> str:
        assert (repository, revision) == ("histai/hibou-b", None)
        if not (folder / name).is_file():
            raise EntryNotFoundError(f"no {name}")
        return str(folder / name)

    class Card:
        card_data = type("Data", (), {"license": "apache-2.0"})

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "model_info", lambda name: Card)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": MEAN, "image_std": STD}))
    return folder


@pytest.mark.parametrize("swiglu", [True, False], ids=["SwiGLU, as Hibou", "MLP"])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_checkpoint_in_the_layout_of_transformers_gives_the_same_features(
    hub: Path, tmp_path: Path, swiglu: bool, file: str
) -> None:
    tensors = checkpoint(swiglu=swiglu)
    if file == "model.safetensors":
        save_file(tensors, hub / file)
    else:
        torch.save(tensors, hub / file)
    facts = fetch_encoder(HIBOU, tmp_path / "fetched")
    assert facts["license"] == "apache-2.0"
    config = Config(backbone=HIBOU, weights="timm", input_size=14 * SIDE)
    network = build_network(config, folder=tmp_path / "fetched").eval()
    assert network.mean.flatten().tolist() == pytest.approx(MEAN)
    assert network.std.flatten().tolist() == pytest.approx(STD)
    images = torch.rand(3, 3, 14 * SIDE, 14 * SIDE)
    with torch.no_grad():
        wanted = dinov2(tensors, network.normalise(images))
        torch.testing.assert_close(network.embed(images), wanted, atol=2e-5, rtol=1e-4)
        larger = build_network(
            Config(backbone=HIBOU, weights="timm", input_size=112), folder=tmp_path / "fetched"
        )
        assert larger.embed(torch.rand(1, 3, 112, 112)).shape == (1, WIDTH)  # other positions


def _without(tensors: dict[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if part not in name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: _without(tensors, "encoder.layer.1.norm2.bias"), "blocks.1.norm2.bias"),
        (lambda tensors: _without(tensors, "layer.0.attention.attention.key.w"), "are not together"),
        (lambda tensors: _without(tensors, "register_tokens"), "register_tokens"),
        (lambda tensors: tensors | {"embeddings.other": torch.ones(3)}, "embeddings.other"),
        (lambda tensors: tensors | {"encoder.layer.0.mlp.fc9.weight": torch.ones(3)}, "mlp.fc9.weight"),
        (lambda tensors: tensors | {"embeddings.cls_token": torch.ones(1, 1, 64)}, "width 64"),
    ],
)
def test_tensors_that_are_no_dinov2_with_registers_are_refused_by_name(
    hub: Path, tmp_path: Path, change, message: str
) -> None:
    save_file(change(checkpoint(swiglu=True)), hub / "model.safetensors")
    with pytest.raises(WeightsError, match=message):
        fetch_encoder(HIBOU, tmp_path / "fetched")


def test_a_checkpoint_without_its_normalisation_is_refused(hub: Path, tmp_path: Path) -> None:
    save_file(checkpoint(swiglu=True), hub / "model.safetensors")
    (hub / "preprocessor_config.json").write_text("{}")
    with pytest.raises(WeightsError, match="no image_mean and image_std"):
        fetch_encoder(HIBOU, tmp_path / "fetched")


# Architecture and arguments in the config.json on the hub, and the published millions of parameters.
PUBLISHED = {
    "MahmoodLab/UNI2-h": ("vit_giant_patch14_224", {}, 681.4),
    "MahmoodLab/UNI": ("vit_large_patch16_224", {"num_classes": 0}, 303.4),
    "paige-ai/Virchow2": (
        "vit_huge_patch14_224",
        {"init_values": 1e-5, "num_classes": 0, "reg_tokens": 4, "mlp_ratio": 5.3375, "global_pool": ""},
        631.2,
    ),
    "bioptimus/H-optimus-0": ("vit_giant_patch14_reg4_dinov2", {"num_classes": 0, "img_size": 224}, 1134.8),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_arguments_of_the_registry_make_the_published_network(name: str) -> None:
    architecture, config, millions = PUBLISHED[name]
    arguments = {**config, **ENCODERS[name].arguments}
    assert json.loads(json.dumps(arguments)) == arguments  # the config.json that is kept holds them
    with torch.device("meta"):
        network = timm.create_model(architecture, **with_layers(arguments))
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(
        millions, abs=0.6
    )


def test_layers_are_read_from_a_config_and_other_texts_stay(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(
        json.dumps({"model_args": {"act_layer": "SiLU", "norm_layer": "rmsnorm", "global_pool": "GELU"}})
    )
    assert layer_arguments(config) == {"act_layer": torch.nn.SiLU, "norm_layer": "rmsnorm"}
    for content in ("{}", "[]", '{"model_args": 3}'):
        config.write_text(content)
        assert layer_arguments(config) == {}


def test_names_are_known_in_any_case_and_with_a_revision() -> None:
    assert known_encoder("hf-hub:histai/Hibou-B@main").layout == "dinov2"
    assert known_encoder("hf-hub:mahmoodlab/uni2-h").gated
    assert known_encoder("resnet18.tv_in1k") == known_encoder("hf-hub:someone/else")
    assert not known_encoder("hf-hub:someone/else").gated
    assert "DINOv3 License" in licence_terms("convnext_tiny.dinov3_lvd1689m")
    assert licence_terms("resnet18.tv_in1k") == ""
