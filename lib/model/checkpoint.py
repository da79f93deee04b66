"""Checkpoint of a trained member: weights and identity in one safetensors file, never unpickled."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from lib.config import Config, ConfigError, config_from_record
from lib.errors import KernelError
from lib.files import write_atomic
from lib.model.network import Classifier, NetworkError, build_network
from lib.model.tuning import merged_state
from lib.validation import UNREADABLE, type_errors

CHECKPOINT_FORMAT = 2
LABEL_SET = [0, 1]
_AGAIN = "Train this member again."
# Tensors that are not learnt: running statistics, the normalisation of pixels or features.
_NOT_LEARNT = ("running_mean", "running_var", "num_batches_tracked", "mean", "std", "spread")


class CheckpointError(KernelError):
    """A checkpoint is damaged, of another format, or does not fit its network."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """The experiment, fold, member, data and config of a checkpoint."""

    experiment: str
    fold: int
    member: int
    data_id: str
    fold_table_id: str
    config: dict[str, bool | int | float | str]
    encoder: str = ""  # see Classifier.encoder
    format: int = CHECKPOINT_FORMAT


def save_checkpoint(path: Path, network: Classifier, identity: Identity) -> None:
    """Write weights, with adapters merged, and identity atomically; the same network gives the same bytes."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in merged_state(network).items()}
    # A single entry: safetensors writes several in the order of a randomly seeded hash table.
    metadata = {"checkpoint": json.dumps({**asdict(identity), "encoder": network.encoder}, sort_keys=True)}
    write_atomic(path, save(tensors, metadata=metadata))


def read_identity(path: Path) -> Identity:
    """Read the identity of a checkpoint without its weights.

    Raises:
        CheckpointError: the file cannot be read, has another format, or was written by another version.
    """
    try:
        with safe_open(path, framework="pt") as content:
            values = json.loads((content.metadata() or {})["checkpoint"])
    except (SafetensorError, KeyError, *UNREADABLE) as error:
        raise CheckpointError(
            f"{path.name} is damaged or not a checkpoint of this project: {error}. {_AGAIN}"
        ) from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path.name} is damaged or not a checkpoint of this project. {_AGAIN}")
    if values.get("format") != CHECKPOINT_FORMAT:
        raise CheckpointError(
            f"{path.name} has format {values.get('format')}, this code reads {CHECKPOINT_FORMAT}. {_AGAIN}"
        )
    try:
        identity = Identity(**values)
    except TypeError as error:
        raise CheckpointError(f"{path.name} does not fit its network: {error}. {_AGAIN}") from error
    if wrong := type_errors(Identity, values):
        raise CheckpointError(f"{path.name} has an invalid identity: {'; '.join(wrong)}. {_AGAIN}")
    try:
        config_from_record(identity.config)
    except ConfigError as error:
        raise CheckpointError(
            f"{path.name} was written by another version of this code: {error}\n{_AGAIN}"
        ) from error
    return identity


def count_parameters(path: Path) -> int:
    """The number of learnt parameters of a member, or of its head; the weights are not read.

    Raises:
        CheckpointError: the file cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as content:
            names = [name for name in content.keys() if name.split(".")[-1] not in _NOT_LEARNT]  # noqa: SIM118
            return sum(math.prod(content.get_slice(name).get_shape()) for name in names)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path.name} is damaged or not a checkpoint of this project: {error}. {_AGAIN}"
        ) from error


def load_checkpoint(path: Path) -> tuple[Classifier, Identity]:
    """Rebuild the network of a checkpoint and load all of its weights.

    Returns:
        The network in evaluation mode, on the CPU, and the identity.

    Raises:
        CheckpointError: the file cannot be read, has another format, or does not fit.
    """
    identity = read_identity(path)
    try:
        with safe_open(path, framework="pt") as content:
            tensors: dict[str, torch.Tensor] = {key: content.get_tensor(key) for key in content.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path.name} is damaged or not a checkpoint of this project: {error}. {_AGAIN}"
        ) from error
    try:
        network = build_network(config_from_record(identity.config), encoder=identity.encoder)
        network.load_state_dict(tensors, strict=True)
    except (TypeError, AttributeError, RuntimeError, ConfigError, NetworkError) as error:
        raise CheckpointError(f"{path.name} does not fit its network: {error}. {_AGAIN}") from error
    return network.eval(), identity


def config_of(identity: Identity) -> Config:
    """The config a member was trained with."""
    return config_from_record(identity.config)
