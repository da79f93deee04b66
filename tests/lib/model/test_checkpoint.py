"""A checkpoint gives back the same network, is the same bytes each time, and is never half believed."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from lib.config import Config
from lib.errors import KernelError
from lib.model.checkpoint import (
    CHECKPOINT_FORMAT,
    CheckpointError,
    Identity,
    config_of,
    count_parameters,
    load_checkpoint,
    save_checkpoint,
)
from lib.model.network import Classifier, build_network

NAME = "fold-0-member-0.safetensors"


def _identity(config: Config, **changes: Any) -> Identity:
    facts: dict[str, Any] = {
        "experiment": "x",
        "fold": 0,
        "member": 0,
        "data_id": "d" * 64,
        "fold_table_id": "f" * 64,
        "config": config.to_dict(),
    }
    return Identity(**{**facts, **changes})


@pytest.fixture(scope="module")
def network() -> Classifier:
    torch.manual_seed(0)
    built = build_network(Config(backbone="test_resnet", input_size=32, weights="none"))
    with torch.no_grad():
        built(torch.rand(8, 3, 32, 32))  # moves the statistics of BatchNorm
        built.mean += 0.01  # as another source of weights would have it
    return built


@pytest.fixture
def path(tmp_path: Path, network: Classifier, tiny: Config) -> Path:
    save_checkpoint(tmp_path / NAME, network, _identity(tiny))
    return tmp_path / NAME


def test_a_network_comes_back_with_the_same_logits(path: Path, network: Classifier, tiny: Config) -> None:
    loaded, identity = load_checkpoint(path)
    assert not loaded.training
    images = torch.rand(4, 3, 96, 96)
    network.eval()
    with torch.no_grad():
        assert torch.equal(loaded(images), network(images))
    assert identity == _identity(tiny) and config_of(identity) == tiny


@pytest.mark.parametrize("knobs", [{}, {"pooling": "attention"}, {"backbone": "test_vit"}])
def test_parameters_are_counted_without_statistics(
    tmp_path: Path, tiny: Config, knobs: dict[str, Any]
) -> None:
    config = dataclasses.replace(tiny, **knobs)
    network = build_network(config)
    save_checkpoint(tmp_path / NAME, network, _identity(config))
    assert count_parameters(tmp_path / NAME) == sum(parameter.numel() for parameter in network.parameters())


def test_the_parameters_of_a_damaged_checkpoint_are_not_counted(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match="damaged"):
        count_parameters(tmp_path / NAME)


def test_saving_twice_gives_the_same_bytes(
    path: Path, tmp_path: Path, network: Classifier, tiny: Config
) -> None:
    save_checkpoint(tmp_path / "again.safetensors", network, _identity(tiny))
    loaded, identity = load_checkpoint(path)
    save_checkpoint(tmp_path / "loaded.safetensors", loaded, identity)
    assert (
        (tmp_path / "again.safetensors").read_bytes()
        == path.read_bytes()
        == (tmp_path / "loaded.safetensors").read_bytes()
    )


def _refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as refused:
        load_checkpoint(path)
    assert path.name in str(refused.value) and "Train this member again" in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.5, 0.999999])
def test_a_cut_checkpoint_is_refused(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert "damaged" in _refused(path)


@pytest.mark.parametrize(
    "content", [b"", b"not safetensors at all, but long enough to look at", b"\0" * 1000, b"\x80\x02}q\0."]
)
def test_another_file_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert "damaged or not a checkpoint" in _refused(path)


def test_a_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    _refused(tmp_path / NAME)


def test_weights_without_an_identity_are_no_checkpoint(path: Path, network: Classifier) -> None:
    path.write_bytes(save({name: tensor.contiguous() for name, tensor in network.state_dict().items()}))
    assert "not a checkpoint of this project" in _refused(path)


def _rewrite(path: Path, facts: object, drop: str = "", **tensors: torch.Tensor) -> None:
    kept = {name: tensor for name, tensor in load(path.read_bytes()).items() if name != drop}
    path.write_bytes(save({**kept, **tensors}, metadata={"checkpoint": json.dumps(facts)}))


def test_another_format_is_refused_by_its_number(path: Path, tiny: Config) -> None:
    _rewrite(path, dataclasses.asdict(_identity(tiny, format=CHECKPOINT_FORMAT + 1)))
    assert f"has format {CHECKPOINT_FORMAT + 1}, this code reads {CHECKPOINT_FORMAT}" in _refused(path)


def test_tensors_missing_added_or_of_another_shape_are_refused(path: Path, tiny: Config) -> None:
    facts = dataclasses.asdict(_identity(tiny))
    whole = path.read_bytes()
    name = "backbone.fc.weight"
    _rewrite(path, facts, drop=name)
    assert name in _refused(path)
    path.write_bytes(whole)
    _rewrite(path, facts, extra=torch.zeros(3))
    assert "extra" in _refused(path)
    path.write_bytes(whole)
    _rewrite(path, facts, **{name: torch.zeros(2, 5)})
    assert name in _refused(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"config": {**Config().to_dict(), "views": 1}},
            "another version of this code(.|\n)*unknown key 'views'",
        ),
        ({"config": {**Config().to_dict(), "epochs": -1}}, "another version of this code(.|\n)*epochs"),
        (
            {"config": {"backbone": "test_resnet", "input_size": 32}},
            "another version of this code(.|\n)*epochs is absent",
        ),
        (
            {"config": {**Config().to_dict(), "backbone": "test_efficientnet", "input_size": 32}},
            "does not fit",
        ),
        ({"surprise": 1}, "does not fit"),
    ],
    ids=["unknown option", "out of range", "absent options", "another network", "unknown field"],
)
def test_an_identity_that_does_not_fit_is_refused(
    path: Path, tiny: Config, change: dict[str, Any], message: str
) -> None:
    _rewrite(path, {**dataclasses.asdict(_identity(tiny)), **change})
    assert re.search(message, _refused(path)) and "Train this member again" in _refused(path)


def test_a_backbone_that_this_timm_does_not_know_names_the_file(path: Path, tiny: Config) -> None:
    _rewrite(
        path, dataclasses.asdict(_identity(dataclasses.replace(tiny, backbone="test_resnet_of_tomorrow")))
    )
    assert "test_resnet_of_tomorrow" in _refused(path)


@pytest.mark.parametrize("facts", [[], None, "text", {"format": 1, "config": []}], ids=str)
def test_an_identity_of_another_kind_is_refused(path: Path, tiny: Config, facts: object) -> None:
    whole = dataclasses.asdict(_identity(tiny))
    _rewrite(path, {**whole, **facts} if isinstance(facts, dict) else facts)
    _refused(path)


def test_a_flipped_bit_in_the_header_is_refused_or_harmless_but_never_a_crash(path: Path) -> None:
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    refused = 0
    for at in range(0, length + 8, length // 60):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << (at % 8)
        path.write_bytes(bytes(damaged))
        try:
            load_checkpoint(path)
        except CheckpointError as error:
            assert path.name in str(error)
            refused += 1
    assert refused > 20


def test_an_earlier_checkpoint_survives_a_failed_save(
    path: Path, network: Classifier, tiny: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(path, network, _identity(tiny, fold=1))
    assert path.read_bytes() == before and [each.name for each in path.parent.iterdir()] == [NAME]
    assert issubclass(CheckpointError, KernelError)
