"""The members of an ensemble, and which of them are asked in one pass over the tiles."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lib.config import Config
from lib.inference.ensemble import EnsembleError, FoldOutput
from lib.model.checkpoint import Identity, config_of, load_checkpoint, read_identity
from lib.model.network import Classifier
from lib.model.predict import predict_on_all
from lib.runtime.run_record import RunRecord

_AT_A_TIME = 3 << 30  # bytes of weights on a device: a T4 has 14.6 GiB, and activations need theirs


@dataclass(frozen=True)
class Member:
    """One trained network, on disk."""

    path: Path
    identity: Identity
    auc: float  # out of fold

    @property
    def name(self) -> str:
        """Its column in members.csv."""
        return f"{self.identity.experiment}-fold-{self.identity.fold}-member-{self.identity.member}"

    @property
    def config(self) -> Config:
        """What it was trained with."""
        return config_of(self.identity)

    def facts(self) -> dict[str, str | int | float]:
        """What the table of members says of it."""
        identity = self.identity
        return {
            "experiment": identity.experiment,
            "fold": identity.fold,
            "member": identity.member,
            "backbone": self.config.backbone,
            "out_of_fold_auc": self.auc,
        }

    def load(self) -> Classifier:
        """The network, on the CPU."""
        return load_checkpoint(self.path)[0]


def members_of(output: FoldOutput) -> Iterator[Member]:
    """The members of a fold, each held against what the fold's run.json says of it.

    Raises:
        EnsembleError: a checkpoint is another one than run.json says.
        CheckpointError: a checkpoint cannot be read.
    """
    record = output.record
    for number in record.members:
        path = output.folder / f"fold-{record.fold}-member-{number}.safetensors"
        identity = read_identity(path)
        named = (
            identity.experiment,
            identity.fold,
            identity.member,
            identity.data_id,
            identity.fold_table_id,
        )
        if named != (record.experiment, record.fold, number, record.data_id, record.fold_table_id):
            raise EnsembleError(
                f"{output.folder}: a checkpoint says it is {named[:3]}, which run.json does not: train it again"
            )
        yield Member(path, identity, _score_of(record, number))


def _score_of(record: RunRecord, number: int) -> float:
    """A member's out-of-fold AUC as its fold's run.json has it; not a number where it does not."""
    try:
        return float(record.scores["members"][number]["auc"])
    except (KeyError, IndexError, TypeError, ValueError):
        return float("nan")


def groups_of_one_pass(members: Sequence[Member]) -> list[list[Member]]:
    """Members of one architecture that see the same views of the same size together, as many as a device holds."""
    groups: dict[tuple[object, ...], list[list[Member]]] = {}
    room: dict[tuple[object, ...], int] = {}
    for member in members:
        config = member.config
        key = (
            config.backbone,
            config.input_size,
            config.tta_views,
            config.eval_batch_size,
            config.precision,
            config.stain_normalisation,
        )
        size = member.path.stat().st_size
        if key not in groups or room[key] < size:
            groups.setdefault(key, []).append([])
            room[key] = _AT_A_TIME
        groups[key][-1].append(member)
        room[key] -= size
    return [group for of_key in groups.values() for group in of_key]


def predict_members(
    members: Sequence[Member],
    tiles: np.ndarray,
    *,
    devices: Sequence[torch.device],
    stage: Callable[..., AbstractContextManager[None]],
) -> dict[str, np.ndarray]:
    """The logits every member gives the tiles, (N,) float32 by its name.

    Args:
        members: networks, no heads.
        tiles: (N, 96, 96, 3) uint8.
        devices: of one kind.
        stage: times what is done under a name (lib.runtime.session.Session.stage).
    """
    found: dict[str, np.ndarray] = {}
    for group in groups_of_one_pass(members):
        config = group[0].config
        with stage(f"predict {', '.join(member.name for member in group)}", note=f"{config.tta_views} views"):
            values = predict_on_all(
                [member.load() for member in group],
                tiles,
                views=config.tta_views,
                batch_size=config.eval_batch_size,
                devices=devices,
                precision=config.precision,
            )
        found |= {member.name: values[:, at] for at, member in enumerate(group)}
    return {member.name: found[member.name] for member in members}
