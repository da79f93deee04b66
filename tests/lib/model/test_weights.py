"""Weights must hold every tensor of the backbone, or the run stops."""

import dataclasses
import json
import re
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
from lib.model.weights import WeightsError, fetch_encoder


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


def test_mean_and_std_can_be_given(file: Path, folder: Path, tiny: Config) -> None:
    """A file of weights names none; where they are given, they come before those of the backbone."""
    given = dataclasses.replace(tiny, mean="0.7 0.5 0.6", std="0.2, 0.25, 0.3")
    for weights in ({"file": file}, {"folder": folder}, {}):
        network = build_network(given, **weights)
        assert network.mean.flatten().tolist() == pytest.approx([0.7, 0.5, 0.6])
        assert network.std.flatten().tolist() == pytest.approx([0.2, 0.25, 0.3])
    own = build_network(tiny, file=file)
    one = build_network(dataclasses.replace(tiny, mean="0.7 0.5 0.6"), file=file)
    assert torch.equal(one.std, own.std) and not torch.equal(one.mean, own.mean)
    image = torch.rand(1, 3, 96, 96)
    wanted = (image - given_as_tensor(given.mean_rgb)) / given_as_tensor(given.std_rgb)
    torch.testing.assert_close(build_network(given, file=file).normalise(image), wanted)


def given_as_tensor(values: tuple[float, ...] | None) -> torch.Tensor:
    assert values is not None
    return torch.tensor(values).view(1, 3, 1, 1)


def test_a_file_without_a_classifier_is_good_enough(
    file: Path, source: torch.nn.Module, tiny: Config
) -> None:
    tensors = {name: tensor for name, tensor in load_file(file).items() if not name.startswith("fc.")}
    save_file(tensors, file)
    assert _same_but_for_the_classifier(build_network(tiny, file=file), source)


@pytest.mark.parametrize("backbone", ["test_vit", "test_efficientnet", "resnet18"])
def test_the_file_of_another_backbone_is_refused(file: Path, backbone: str) -> None:
    with pytest.raises(
        WeightsError, match=rf"(?s)encoder.safetensors does not hold the weights of {backbone}.*is missing"
    ):
        build_network(Config(backbone=backbone, input_size=64), file=file)


def test_one_tensor_missing_or_of_another_shape_is_named(file: Path, tiny: Config) -> None:
    tensors = load_file(file)
    missing, reshaped = "conv1.0.weight", "layer1.0.conv1.weight"
    missing = missing if missing in tensors else next(name for name in tensors if name.startswith("conv1"))
    shape = tuple(tensors[reshaped].shape)
    tensors[reshaped] = torch.zeros(3, 3)
    del tensors[missing]
    save_file(tensors, file)
    with pytest.raises(WeightsError) as refused:
        build_network(tiny, file=file)
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


# Files as people have them


def _random(name: str, **options: object) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {key: value.contiguous() for key, value in timm.create_model(name, **options).state_dict().items()}


def _saved(tensors: dict[str, torch.Tensor], folder: Path) -> Path:
    save_file(tensors, folder / "mine.safetensors")
    return folder / "mine.safetensors"


def _equal_to(network: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> bool:
    held = network.backbone.state_dict()
    names = [name for name in held if not name.startswith(("fc.", "head.", "classifier."))]
    assert len(names) > 20
    return all(torch.equal(held[name], tensors[name]) for name in names)


def test_tensors_that_the_backbone_does_not_use_are_refused(tmp_path: Path) -> None:
    """The layers of a ResNet18 are a part of a ResNet34; LayerScale and registers change the features."""
    file = _saved(_random("resnet34"), tmp_path)
    with pytest.raises(WeightsError, match=r"layer1\.2\.\S+ is in the file, the backbone has none"):
        build_network(Config(backbone="resnet18", input_size=64), file=file)
    plain = Config(backbone="deit_tiny_patch16_224.fb_in1k", input_size=96)
    vit = {"num_classes": 0, "img_size": 96}
    file = _saved(_random("vit_tiny_patch16_224", init_values=1e-5, **vit), tmp_path)
    with pytest.raises(WeightsError, match=r"blocks\.0\.ls1\.gamma is in the file"):
        build_network(plain, file=file)
    file = _saved(_random("vit_tiny_patch16_224", reg_tokens=4, **vit), tmp_path)
    with pytest.raises(WeightsError, match=r"mine.safetensors does not hold the weights of deit_tiny"):
        build_network(plain, file=file)


def test_a_file_goes_through_the_filters_of_timm(tmp_path: Path) -> None:
    tensors = _random("densenet121")
    old = {
        re.sub(r"(denselayer\d+)\.(norm|conv)([12])\.", r"\1.\2.\3.", name): tensor
        for name, tensor in tensors.items()
        if "num_batches" not in name
    }
    assert len(old.keys() - tensors.keys()) > 100
    config = Config(backbone="densenet121.tv_in1k", input_size=32)
    assert _equal_to(build_network(config, file=_saved(old, tmp_path)), tensors)

    swin = "swin_tiny_patch4_window7_224"  # its tables of relative positions depend on the input size
    tensors = _random(swin)
    network = build_network(Config(backbone=f"{swin}.ms_in1k", input_size=96), file=_saved(tensors, tmp_path))
    name = "layers.3.blocks.0.attn.qkv.weight"
    assert torch.equal(network.backbone.state_dict()[name], tensors[name])

    tensors = _random("vit_tiny_patch16_224")  # timm loads these weights of its own from .npz files
    config = Config(backbone="vit_tiny_patch16_224.augreg_in21k_ft_in1k", input_size=224)
    assert _equal_to(build_network(config, file=_saved(tensors, tmp_path)), tensors)


def test_beit_at_another_size(tmp_path: Path) -> None:
    """Each block has a table of relative positions, which timm resamples to the window of the input size."""
    small = {"depth": 2, "embed_dim": 48, "num_heads": 3}
    torch.manual_seed(0)
    source = timm.create_model("beit_base_patch16_224", **small)
    save_for_hf(source, str(tmp_path), safe_serialization=True, model_args=small)
    config = Config(backbone="beit_base_patch16_224", input_size=96)
    loaded = build_network(config, folder=tmp_path).backbone.state_dict()
    tensors = source.state_dict()
    tables = [name for name in loaded if name.endswith("relative_position_bias_table")]
    assert len(tables) == 2
    assert all(loaded[name].shape == (11**2 + 3, 3) for name in tables)  # 6 x 6 patches, and the class token
    assert all(tensors[name].shape == (27**2 + 3, 3) for name in tables)
    same = [
        name for name in tensors if name in loaded and not name.startswith("head.") and name not in tables
    ]
    assert len(same) > 20
    assert all(
        torch.equal(loaded[name], tensors[name]) for name in same if "relative_position_index" not in name
    )


def _in_a_sequence(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names that fastai gives to the layers of a ResNet, and its own head."""
    children = [name for name, _ in timm.create_model("resnet18").named_children()]
    numbered = {}
    for name, tensor in tensors.items():
        first, _, rest = name.partition(".")
        if first != "fc":
            numbered[f"0.{children.index(first)}.{rest}"] = tensor
    return {**numbered, "1.8.weight": torch.zeros(2, 512)}


@pytest.mark.parametrize("ending", ["pth", "pt", "safetensors"])
@pytest.mark.parametrize(
    ("wrap", "prefix"),
    [
        (lambda tensors: tensors, ""),
        (lambda tensors: {f"module.{name}": tensor for name, tensor in tensors.items()}, "module."),
        (lambda tensors: {f"model.backbone.{name}": tensor for name, tensor in tensors.items()}, "backbone."),
        (
            lambda tensors: {
                **{f"backbone.{name}": tensor for name, tensor in tensors.items() if "fc." not in name},
                "head.weight": torch.zeros(2, 512),
            },
            "backbone.",
        ),
        (lambda tensors: {f"0.model.{name}": tensor for name, tensor in tensors.items()}, "model."),
        (_in_a_sequence, "0."),
    ],
    ids=["plain", "DataParallel", "Lightning", "Lightning with a head", "fastai with timm", "fastai"],
)
def test_what_a_training_wrapped_around_the_names_is_removed(
    wrap, prefix: str, ending: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = _random("resnet18")
    file = tmp_path / f"mine.{ending}"
    if ending == "safetensors":
        save_file(wrap(tensors), file)
    else:
        torch.save({"epoch": 3, "state_dict": wrap(tensors)} if ending == "pt" else wrap(tensors), file)
    with caplog.at_level("INFO", logger="lib.model.weights"):
        network = build_network(Config(backbone="resnet18", input_size=64, weights=file.name), file=file)
    assert _equal_to(network, tensors)
    assert f"removed the prefix {prefix!r}" in caplog.text if prefix else "prefix" not in caplog.text
    assert ("entry 'state_dict'" in caplog.text) == (ending == "pt")


class _Harmful:
    def __reduce__(self):
        return print, ("this would run",)


@pytest.mark.parametrize("content", [{"a": _Harmful()}, {"state_dict": {}}, [1], {"epoch": 3}, b"no zip"])
def test_a_file_of_torch_gives_tensors_or_is_refused(
    content, tmp_path: Path, tiny: Config, capsys: pytest.CaptureFixture
) -> None:
    file = tmp_path / "mine.pth"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(WeightsError, match=r"(?s)^mine.pth .*torch\.save\(network\.state_dict\(\)"):
        build_network(tiny, file=file)
    assert "this would run" not in capsys.readouterr().out


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(file: Path, tiny: Config, value: float) -> None:
    tensors = load_file(file)
    tensors["layer1.0.conv1.weight"][0, 0, 0, 0] = value
    save_file(tensors, file)
    with pytest.raises(WeightsError, match=r"(?s)encoder.safetensors has 1 .*NaN.*layer1.0.conv1.weight"):
        build_network(tiny, file=file)


@pytest.mark.parametrize(
    "arguments",
    [
        {"init_values": 1e-5},
        {"patch_size": 32},
        {"reg_tokens": 4, "no_embed_class": True, "init_values": 1e-5},
    ],
    ids=["LayerScale", "patch size", "register tokens"],
)
def test_an_encoder_of_a_hub_keeps_its_arguments(arguments: dict[str, object], tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = {"img_size": 64, **arguments}
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=0, **options).eval()
    for module in theirs.modules():
        if isinstance(getattr(module, "gamma", None), torch.nn.Parameter):
            torch.nn.init.uniform_(module.gamma, 0.01, 0.2)  # as after a training
    save_for_hf(theirs, str(tmp_path / "hub"), safe_serialization=True, model_args=options)
    fetch_encoder(f"local-dir:{tmp_path / 'hub'}", tmp_path / "fetched")
    config = Config(backbone="vit_tiny_patch16_224", input_size=64)
    ours = build_network(config, folder=tmp_path / "fetched").eval().backbone
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        features = ours.forward_head(ours.forward_features(images), pre_logits=True)
        torch.testing.assert_close(features, theirs(images))
