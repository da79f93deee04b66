"""One trained member as one safetensors file that says what it is. Never unpickled."""

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
from lib.validation import UNREADABLE, type_errors

CHECKPOINT_FORMAT = 2
LABEL_SET = [0, 1]
_AGAIN = "Train this member again."
# Tensors of a checkpoint that nothing learns: running statistics, the normalisation of pixels or features.
_NOT_LEARNT = ("running_mean", "running_var", "num_batches_tracked", "mean", "std", "spread")


class CheckpointError(KernelError):
    """A checkpoint is damaged, of another format, or does not fit the network it names."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a checkpoint was trained as and on; what must agree before members are averaged."""

    experiment: str
    fold: int
    member: int
    data_id: str
    fold_table_id: str
    config: dict[str, bool | int | float | str]
    encoder: str = ""  # see Classifier.encoder
    format: int = CHECKPOINT_FORMAT


def save_checkpoint(path: Path, network: Classifier, identity: Identity) -> None:
    """Write the weights and the identity, whole; the same network gives the same bytes."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    # One entry: safetensors writes several in the order of a randomly seeded hash table.
    metadata = {"checkpoint": json.dumps({**asdict(identity), "encoder": network.encoder}, sort_keys=True)}
    write_atomic(path, save(tensors, metadata=metadata))


def read_identity(path: Path) -> Identity:
    """What a checkpoint says of itself, without its weights.

    Raises:
        CheckpointError: the file cannot be read or has another format.
    """
    try:
        with safe_open(path, framework="pt") as content:
            facts = json.loads((content.metadata() or {})["checkpoint"])
    except (SafetensorError, KeyError, *UNREADABLE) as error:
        raise CheckpointError(
            f"{path.name} is damaged or no checkpoint of this project: {error}. {_AGAIN}"
        ) from error
    if not isinstance(facts, dict):
        raise CheckpointError(f"{path.name} is damaged or no checkpoint of this project. {_AGAIN}")
    if facts.get("format") != CHECKPOINT_FORMAT:
        raise CheckpointError(
            f"{path.name} has format {facts.get('format')}, this code reads {CHECKPOINT_FORMAT}. {_AGAIN}"
        )
    try:
        identity = Identity(**facts)
    except TypeError as error:
        raise CheckpointError(f"{path.name} does not fit the network it names: {error}. {_AGAIN}") from error
    if wrong := type_errors(Identity, facts):
        raise CheckpointError(f"{path.name} has an invalid identity: {'; '.join(wrong)}. {_AGAIN}")
    try:
        config_from_record(identity.config)
    except ConfigError as error:
        raise CheckpointError(
            f"{path.name} was written by another version of this code: {error}\n{_AGAIN}"
        ) from error
    return identity


def count_parameters(path: Path) -> int:
    """How many numbers of a member were learnt; of a frozen encoder, those of its head. Its weights are not read.

    Raises:
        CheckpointError: the file cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as content:
            learnt = [name for name in content.keys() if name.split(".")[-1] not in _NOT_LEARNT]  # noqa: SIM118
            return sum(math.prod(content.get_slice(name).get_shape()) for name in learnt)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path.name} is damaged or no checkpoint of this project: {error}. {_AGAIN}"
        ) from error


def load_checkpoint(path: Path) -> tuple[Classifier, Identity]:
    """Rebuild the network a checkpoint names and load all of its weights.

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
            f"{path.name} is damaged or no checkpoint of this project: {error}. {_AGAIN}"
        ) from error
    try:
        network = build_network(config_from_record(identity.config), encoder=identity.encoder)
        network.load_state_dict(tensors, strict=True)
    except (TypeError, AttributeError, RuntimeError, ConfigError, NetworkError) as error:
        raise CheckpointError(f"{path.name} does not fit the network it names: {error}. {_AGAIN}") from error
    return network.eval(), identity


def config_of(identity: Identity) -> Config:
    """The config a member was trained with."""
    return config_from_record(identity.config)
