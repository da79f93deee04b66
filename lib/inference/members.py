"""Members of an ensemble, and their predictions in as few passes over the tiles as possible."""

import hashlib
import io
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from lib.config import Config
from lib.files import sha256_of, write_atomic
from lib.inference.ensemble import EnsembleError, FoldOutput
from lib.model.checkpoint import Identity, config_of, load_checkpoint, read_identity
from lib.model.network import Classifier
from lib.model.predict import predict_on_all
from lib.runtime.run_record import RunRecord
from lib.validation import UNREADABLE

logger = logging.getLogger(__name__)

_WEIGHTS_LIMIT = 3 << 30  # bytes of weights on a device: a T4 has 14.6 GiB, and activations need memory


@dataclass(frozen=True)
class Member:
    """A trained network or head in a checkpoint file."""

    path: Path
    identity: Identity
    auc: float  # out of fold

    @property
    def name(self) -> str:
        """The name of its column in members.csv."""
        return f"{self.identity.experiment}-fold-{self.identity.fold}-member-{self.identity.member}"

    @property
    def config(self) -> Config:
        """The config it was trained with."""
        return config_of(self.identity)

    def table_row(self) -> dict[str, str | int | float]:
        """Its row in the table of members."""
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
    """The members of a fold, each checked against the fold's run.json.

    Raises:
        EnsembleError: a checkpoint is not the one that run.json describes.
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
                f"{output.folder}: run.json does not list the checkpoint of {named[:3]}: train it again"
            )
        yield Member(path, identity, _score_of(record, number))


def _score_of(record: RunRecord, number: int) -> float:
    """The out-of-fold AUC of a member in its fold's run.json; NaN if it is absent."""
    try:
        return float(record.scores["members"][number]["auc"])
    except (KeyError, IndexError, TypeError, ValueError):
        return float("nan")


def groups_of_one_pass(members: Sequence[Member]) -> list[list[Member]]:
    """Groups of members with the same architecture, input size and views, as many as fit on a device."""
    groups: dict[tuple[object, ...], list[list[Member]]] = {}
    free: dict[tuple[object, ...], int] = {}
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
        if key not in groups or free[key] < size:
            groups.setdefault(key, []).append([])
            free[key] = _WEIGHTS_LIMIT
        groups[key][-1].append(member)
        free[key] -= size
    return [group for of_key in groups.values() for group in of_key]


@dataclass(frozen=True)
class KeptLogits:
    """The logits of finished passes in a folder, from which an interrupted inference continues.

    Attributes:
        folder: for the files, which `clear` removes.
        causes: all that decides the logits beside the members: tiles, code and kind of device.
    """

    folder: Path
    causes: tuple[str, ...]

    def path(self, members: Sequence[Member]) -> Path:
        """The file of a pass."""
        causes = [[*self.causes], [[asdict(member.identity), sha256_of(member.path)] for member in members]]
        key = hashlib.sha256(json.dumps(causes, sort_keys=True).encode()).hexdigest()
        return self.folder / f".logits-{key[:32]}.npy"

    def read(self, members: Sequence[Member], *, tiles: int) -> np.ndarray | None:
        """The logits of a pass (N, number of members) float32; None where there is no whole file of them."""
        try:
            values: np.ndarray = np.load(self.path(members), allow_pickle=False)
        except (EOFError, *UNREADABLE):
            return None
        is_whole = values.shape == (tiles, len(members)) and values.dtype == np.float32
        return values if is_whole and np.isfinite(values).all() else None

    def write(self, members: Sequence[Member], values: np.ndarray) -> None:
        """Keep the logits of a pass."""
        content = io.BytesIO()
        np.save(content, values.astype(np.float32), allow_pickle=False)
        write_atomic(self.path(members), content.getvalue())

    def clear(self) -> None:
        """Remove the files, once run.json is written."""
        for path in self.folder.glob(".logits-*.npy"):
            path.unlink()


def predict_members(
    members: Sequence[Member],
    tiles: np.ndarray,
    *,
    devices: Sequence[torch.device],
    stage: Callable[..., AbstractContextManager[None]],
    kept: KeptLogits | None = None,
) -> dict[str, np.ndarray]:
    """The logits (N,) float32 of the tiles from every member, by its name.

    Args:
        members: networks, not heads.
        tiles: (N, 96, 96, 3) uint8.
        devices: of one kind.
        stage: measures the time of a named stage (lib.runtime.session.Session.stage).
        kept: where the logits of each pass are kept, and read after an interruption.
    """
    logits: dict[str, np.ndarray] = {}
    for group in groups_of_one_pass(members):
        config = group[0].config
        names = ", ".join(member.name for member in group)
        values = None if kept is None else kept.read(group, tiles=len(tiles))
        if values is not None:
            logger.info("%s: predicted before, not again", names)
            logits |= {member.name: values[:, column] for column, member in enumerate(group)}
            continue
        with stage(f"predict {names}", note=f"{config.tta_views} views"):
            values = predict_on_all(
                [member.load() for member in group],
                tiles,
                views=config.tta_views,
                batch_size=config.eval_batch_size,
                devices=devices,
                precision=config.precision,
            )
        if kept is not None:
            kept.write(group, values)
        logits |= {member.name: values[:, column] for column, member in enumerate(group)}
    return {member.name: logits[member.name] for member in members}
