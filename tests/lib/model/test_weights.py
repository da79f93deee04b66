"""Weights must hold every tensor of the backbone, or the run stops."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

from lib.config import Config
from lib.model.checkpoint import Identity, load_checkpoint, save_checkpoint
from lib.model.network import NetworkError, build_network
from lib.model.weights import WeightsError, check_weight_file


@pytest.fixture(scope="module")
def source() -> torch.nn.Module:
    """A network as timm's hub holds it: a thousand classes, weights nobody would draw by chance."""
    torch.manual_seed(5)
    network = timm.create_model("test_resnet")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.01)
        network(torch.rand(4, 3, 64, 64))
    return network


@pytest.fixture
def file(tmp_path: Path, source: torch.nn.Module) -> Path:
    path = tmp_path / "encoder.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in source.state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, source: torch.nn.Module) -> Path:
    path = tmp_path_factory.mktemp("weights") / "test_resnet"
    save_for_hf(source, str(path), safe_serialization=True)
    return path


def _same_but_for_the_classifier(network: torch.nn.Module, source: torch.nn.Module) -> bool:
    wanted = {name: tensor for name, tensor in source.state_dict().items() if not name.startswith("fc.")}
    found = network.backbone.state_dict()
    assert len(wanted) > 20
    return all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_a_file_really_is_loaded(file: Path, source: torch.nn.Module, tiny: Config) -> None:
    assert _same_but_for_the_classifier(build_network(tiny, file=file), source)
    assert not _same_but_for_the_classifier(build_network(tiny), source)


def test_a_folder_of_the_weights_kernel_really_is_loaded(
    folder: Path, file: Path, source: torch.nn.Module, tiny: Config
) -> None:
    from_folder, from_file = build_network(tiny, folder=folder).eval(), build_network(tiny, file=file).eval()
    assert _same_but_for_the_classifier(from_folder, source)
    from_folder.backbone.fc.load_state_dict(from_file.backbone.fc.state_dict())  # its own is drawn anew
    images = torch.rand(3, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(from_folder(images), from_file(images))


def test_a_folder_brings_its_own_preprocessing(folder: Path, tmp_path: Path, tiny: Config) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    settings = json.loads((folder / "config.json").read_text())
    settings["pretrained_cfg"]["mean"] = [0.1, 0.2, 0.3]
    (moved / "config.json").write_text(json.dumps(settings))
    assert build_network(tiny, folder=moved).mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_a_file_without_a_classifier_is_good_enough(
    file: Path, source: torch.nn.Module, tiny: Config
) -> None:
    tensors = {name: tensor for name, tensor in load_file(file).items() if not name.startswith("fc.")}
    save_file(tensors, file)
    check_weight_file(file, backbone=source, name="test_resnet")
    assert _same_but_for_the_classifier(build_network(tiny, file=file), source)


@pytest.mark.parametrize("backbone", ["test_vit", "test_efficientnet", "resnet18"])
def test_the_file_of_another_backbone_is_refused(file: Path, backbone: str) -> None:
    with pytest.raises(
        WeightsError, match=rf"(?s)encoder.safetensors does not hold the weights of {backbone}.*is missing"
    ):
        build_network(Config(backbone=backbone, input_size=64), file=file)


def test_one_tensor_missing_or_of_another_shape_is_named(file: Path, source: torch.nn.Module) -> None:
    tensors = load_file(file)
    missing, reshaped = "conv1.0.weight", "layer1.0.conv1.weight"
    missing = missing if missing in tensors else next(name for name in tensors if name.startswith("conv1"))
    shape = tuple(tensors[reshaped].shape)
    tensors[reshaped] = torch.zeros(3, 3)
    del tensors[missing]
    save_file(tensors, file)
    with pytest.raises(WeightsError) as refused:
        check_weight_file(file, backbone=source, name="test_resnet")
    assert f"{missing} is missing" in str(refused.value)
    assert f"{reshaped} is (3, 3), the backbone has {shape}" in str(refused.value)
    assert "2 tensors differ" in str(refused.value)


@pytest.mark.parametrize("length", [0, 4, 100, 400_000])
def test_a_cut_file_is_refused(file: Path, tiny: Config, length: int) -> None:
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(WeightsError, match="encoder.safetensors"):
        build_network(tiny, file=file)


def test_a_folder_that_contradicts_itself_or_is_empty_is_refused(
    folder: Path, tmp_path: Path, tiny: Config
) -> None:
    mixed, empty = tmp_path / "mixed", tmp_path / "empty"
    for each in (mixed, empty):
        each.mkdir()
    (mixed / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    settings = (folder / "config.json").read_text().replace("test_resnet", "test_efficientnet")
    (mixed / "config.json").write_text(settings)
    with pytest.raises(WeightsError, match="model.safetensors does not hold"):
        build_network(tiny, folder=mixed)
    with pytest.raises(NetworkError, match="config.json"):
        build_network(tiny, folder=empty)
    (empty / "config.json").write_text(settings)
    with pytest.raises(WeightsError, match="model.safetensors"):
        build_network(tiny, folder=empty)


@pytest.mark.parametrize(
    ("settings", "card", "said"),
    [
        ({"license": "apache-2.0"}, {"license": "mit"}, "apache-2.0"),
        ({}, {"license": "apache-2.0"}, "apache-2.0"),
        ({}, {"license": "other", "license_name": "lunit-non-commercial"}, "lunit-non-commercial"),
        ({}, {}, "not stated"),
        ({}, None, "not stated"),
        ({}, OSError("no network"), "not stated"),
    ],
)
def test_the_licence_is_what_timm_or_the_encoders_page_says(
    settings, card, said, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    from lib.model.weights import _licence

    asked = []

    def model_info(name: str) -> object:
        asked.append(name)
        if isinstance(card, Exception):
            raise card
        return SimpleNamespace(card_data=None if card is None else SimpleNamespace(**card))

    monkeypatch.setattr(huggingface_hub, "model_info", model_info)
    assert _licence("hf-hub:owner/encoder@main", settings) == said
    assert asked == ([] if settings else ["owner/encoder"])
    assert _licence("resnet18.tv_in1k", settings) == settings.get("license", "not stated")


def test_a_checkpoint_of_a_hub_encoder_loads_offline(folder: Path, tmp_path: Path, tiny: Config) -> None:
    config = dataclasses.replace(tiny, backbone="hf-hub:nobody/such-an-encoder", weights="timm")
    network = build_network(config, folder=folder).eval()
    identity = Identity(
        experiment="x", fold=0, member=0, data_id="d", fold_table_id="f", config=config.to_dict()
    )
    save_checkpoint(tmp_path / "member.safetensors", network, identity)
    loaded, _ = load_checkpoint(tmp_path / "member.safetensors")
    images = torch.rand(3, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(loaded(images), network(images))


# Download and checkpoint
