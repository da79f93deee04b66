"""Predictor: all members of a folder, ready to predict tiles; the Python interface of `predict`.

from lib.inference.predictor import Predictor
predictor = Predictor.load("runs/local")
table = predictor.predict(tiles)  # (N, 96, 96, 3) uint8, RGB
"""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lib.config import Config
from lib.data.tiff import TILE_SHAPE
from lib.errors import KernelError, PreflightError, listed
from lib.evaluation.calibration import CalibrationError, PlattScaling, fit_platt_scaling, logit
from lib.evaluation.metrics import probability
from lib.evaluation.out_of_fold import ResultError, read_out_of_fold
from lib.inference.ensemble import EnsembleError, FoldOutput, validate_members
from lib.inference.exported import is_exported, read_exported
from lib.inference.members import KeptLogits, Member, members_of, predict_members
from lib.model.checkpoint import CheckpointError, load_checkpoint
from lib.model.features import Embedder, encoder_options
from lib.model.linear_head import Head, load_head
from lib.model.network import Classifier, build_network
from lib.runtime.finished_folds import FinishedFold, find_folds, outputs_below
from lib.runtime.hardware import choose_devices
from lib.runtime.inputs import find_weights
from lib.runtime.run_record import RunRecordError

logger = logging.getLogger(__name__)


class PredictorError(KernelError):
    """The members cannot predict; the message says why and what to do."""


@dataclass(frozen=True)
class _LoadedMember(Member):
    """A member whose network is read once, and not for every block of tiles."""

    networks: dict[Path, Classifier]

    def load(self) -> Classifier:
        if self.path not in self.networks:
            self.networks[self.path] = super().load()
        return self.networks[self.path]


class Predictor:
    """The members of all folds of one or more experiments.

    A member sees a tile exactly as in the inference kernel: its own normalisation, size, views and precision.

    Attributes:
        members: networks and heads of frozen encoders, in the order of experiment, fold and number.
        folds: the outputs they come from; none for an exported folder.
        scaling: Platt scaling fitted on their out-of-fold predictions; None where that is undefined.
        without_scaling: why there is none; empty where there is one.
        warnings: what a user should know about the members.
    """

    def __init__(
        self,
        folds: Sequence[FinishedFold],
        members: Sequence[Member],
        *,
        devices: Sequence[torch.device],
        encoders: dict[str, Embedder],
        scaling: tuple[PlattScaling | None, str],
        warnings: Sequence[str] = (),
    ) -> None:
        """Take members that `load` has checked; use `load`."""
        networks: dict[Path, Classifier] = {}
        self.folds, self.devices = list(folds), list(devices)
        self.members = [_LoadedMember(each.path, each.identity, each.auc, networks) for each in members]
        self.warnings = list(warnings)
        self._encoders = encoders
        self._heads = {each.name: load_head(each.path)[0] for each in self.members if _is_head(each.config)}
        self.scaling, self.without_scaling = scaling

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        experiments: Sequence[str] = (),
        device: str = "auto",
        weights: Sequence[str | Path] = (),
    ) -> "Predictor":
        """Load every member of every finished fold below a folder.

        Args:
            folder: a campaign, a rehearsal, the folder of `local`, a folder of outputs, one output, or a
                folder that `export` wrote.
            experiments: names; all that are found when empty.
            device: auto, cpu or cuda.
            weights: folders with the weights of frozen encoders, beside those in `folder`.

        Raises:
            KernelError: members are missing, damaged or do not belong together, or an encoder's weights are
                missing; every problem is listed.
        """
        if is_exported(Path(folder)):
            return cls._load_exported(Path(folder), experiments, device)
        folds = find_folds(Path(folder), experiments=experiments)
        outputs = [FoldOutput(fold.folder, fold.record) for fold in folds]
        wanted = {
            fold.record.experiment: (
                sorted(
                    other.record.fold for other in folds if other.record.experiment == fold.record.experiment
                ),
                int(fold.record.config["num_members"]),
            )
            for fold in folds
        }
        _require_one_data(folds)
        _, warnings = validate_members(
            outputs, wanted=wanted, data_id=folds[0].record.data_id, strict_bundle=False
        )
        for name, (numbers, _) in wanted.items():
            number = next(fold.record.config["num_folds"] for fold in folds if fold.record.experiment == name)
            if len(numbers) < number:
                warnings.append(f"{name}: {len(numbers)} of {number} folds are here, and are averaged")
        members, problems = [], []
        for output in outputs:
            try:
                members += list(members_of(output))
            except (CheckpointError, EnsembleError) as error:
                problems.append(str(error))
        if problems:
            raise PredictorError(listed("the members cannot be used:", problems))
        devices = choose_devices(replace(members[0].config, device=device), gpu_required=False)
        encoders = _load_encoders(
            members, [*map(Path, weights), *outputs_below(Path(folder), ("weights", "pretrain"))], devices
        )
        return cls(
            folds,
            members,
            devices=devices,
            encoders=encoders,
            scaling=_fit_scaling(folds),
            warnings=warnings,
        )

    @classmethod
    def _load_exported(cls, folder: Path, experiments: Sequence[str], device: str) -> "Predictor":
        exported = read_exported(folder)
        members = [
            each for each in exported.members if not experiments or each.identity.experiment in experiments
        ]
        if not members:
            raise PredictorError(f"{folder} holds no member of {', '.join(experiments)}")
        devices = choose_devices(replace(members[0].config, device=device), gpu_required=False)
        encoders: dict[str, Embedder] = {}
        for member in members:
            key = _encoder_key(member.config)
            if member.name in exported.encoders and key not in encoders:
                network = load_checkpoint(exported.encoders[member.name])[0]
                encoders[key] = _embedder(network, member.config, devices)
        scaling = (exported.scaling, exported.without_scaling)
        if len(members) < len(exported.members):
            scaling = (None, "Platt scaling was fitted for all members together, and some were left out")
        return cls([], members, devices=devices, encoders=encoders, scaling=scaling)

    def encoder_of(self, member: Member) -> Classifier | None:
        """The frozen encoder of a head, on its device; None for a network."""
        if member.name not in self._heads:
            return None
        return next(iter(self._encoders[_encoder_key(member.config)].replicas.values()))

    def head_of(self, member: Member) -> Head | None:
        """The head of a frozen encoder; None for a network."""
        return self._heads.get(member.name)

    def logits(self, tiles: np.ndarray, *, kept: KeptLogits | None = None) -> np.ndarray:
        """The logit of every member, the mean over its views.

        Args:
            tiles: (N, 96, 96, 3) uint8, RGB.
            kept: where logits are kept for a repeated run.

        Returns:
            (N, number of members) float32, in the order of `members`.

        Raises:
            PredictorError: the tiles have another shape or type.
        """
        if tiles.shape[1:] != TILE_SHAPE or tiles.dtype != np.uint8:
            raise PredictorError(
                f"the tiles are {tiles.shape} {tiles.dtype}, not (N, 96, 96, 3) uint8: decode them with "
                "lib.data.pictures.read_pictures"
            )
        features = {key: embed(tiles) for key, embed in self._encoders.items()}
        values = {
            each.name: self._heads[each.name].logits(features[_encoder_key(each.config)])
            for each in self.members
            if each.name in self._heads
        }
        networks = [each for each in self.members if each.name not in self._heads]
        if networks:
            values |= predict_members(networks, tiles, devices=self.devices, stage=_no_stage, kept=kept)
        return np.stack([values[each.name] for each in self.members], axis=1)

    def predict(self, tiles: np.ndarray, *, kept: KeptLogits | None = None) -> pd.DataFrame:
        """Predict tiles.

        Args:
            tiles: (N, 96, 96, 3) uint8, RGB.
            kept: as in `logits`.

        Returns:
            A row a tile: probability of tumour, the mean over the members; spread, the standard deviation of
            the members' probabilities; calibrated, the probability after Platt scaling, NaN without one.
        """
        members = probability(self.logits(tiles, kept=kept))  # (N, M)
        # Sorted, so that the sum does not depend on the order of the members, as in the inference kernel.
        mean = np.sort(members, axis=1).mean(axis=1)
        calibrated = np.full(len(mean), np.nan)
        if self.scaling is not None:
            calibrated = self.scaling.recalibrate(logit(mean))
        return pd.DataFrame({"probability": mean, "spread": members.std(axis=1), "calibrated": calibrated})


def _require_one_data(folds: Sequence[FinishedFold]) -> None:
    """Check that all experiments were trained on the same labelled tiles.

    Raises:
        PredictorError: they were not; their mean would be calibrated on tiles that not all predicted.
    """
    data: dict[str, set[str]] = {}
    for fold in folds:
        data.setdefault(fold.record.experiment, set()).add(fold.record.data_id)
    if len(set.union(*data.values())) > 1 and all(len(ids) == 1 for ids in data.values()):
        trained = [f"{name}: data {next(iter(ids))[:8]}..." for name, ids in data.items()]
        remedy = "Choose those of one data id with --experiment NAME."
        raise PredictorError(
            listed("these experiments were trained on different data:", trained, remedy=remedy)
        )


@contextmanager
def _no_stage(name: str, note: str) -> Iterator[None]:
    yield


def _is_head(config: Config) -> bool:
    return config.train_mode == "linear_probe"


def _encoder_key(config: Config) -> str:
    return repr([encoder_options(config), config.precision, config.eval_batch_size])


def _load_encoders(
    members: Sequence[Member], places: Sequence[Path], devices: Sequence[torch.device]
) -> dict[str, Embedder]:
    """The frozen encoders of the heads among the members.

    Raises:
        PredictorError: the weights of an encoder are in none of the places.
    """
    encoders: dict[str, Embedder] = {}
    for member in members:
        config = member.config
        key = _encoder_key(config)
        if not _is_head(config) or key in encoders:
            continue
        with tempfile.TemporaryDirectory() as root:
            for number, place in enumerate(places):
                (Path(root) / f"{number:03d}").symlink_to(place.resolve(), target_is_directory=True)
            try:
                found = find_weights(Path(root), config, experiment=member.identity.experiment)
                network = build_network(config, folder=found.get("folder"), file=found.get("file"))
            except PreflightError as error:
                raise PredictorError(_missing_encoder(member, places)) from error
        encoders[key] = _embedder(network, config, devices)
    return encoders


def _embedder(network: Classifier, config: Config, devices: Sequence[torch.device]) -> Embedder:
    return Embedder(
        network,
        views=config.tta_views,
        batch_size=config.eval_batch_size,
        devices=devices,
        precision=config.precision,
    )


def _missing_encoder(member: Member, places: Sequence[Path]) -> str:
    """The message about an encoder whose weights are in none of the places."""
    config, name = member.config, member.identity.experiment
    where = {
        "timm": f"Download them: build_kernel.py weights {name}.",
        "pretrain": "They are in the output of its pretrain kernel, which Kaggle keeps.",
    }.get(config.weights, f"They are in the file {config.weights}, which was attached to the training.")
    searched = ", ".join(str(place) for place in places) or "none"
    return (
        f"{name} is a linear probe: its members hold no weights of their encoder {config.backbone}, and no "
        f"folder that was searched has them ({searched}). {where} Name one that does with --weights DIR."
    )


def _fit_scaling(folds: Sequence[FinishedFold]) -> tuple[PlattScaling | None, str]:
    """Platt scaling on the out-of-fold predictions of all folds, or why there is none.

    Out of fold, a tile is predicted by the members of one fold; a new tile by all members.
    """
    try:
        tables = []
        for name in dict.fromkeys(fold.record.experiment for fold in folds):
            own = [fold.folder for fold in folds if fold.record.experiment == name]
            tables.append(read_out_of_fold(own, None)[0].set_index("id"))
        table = tables[0][["label"]].assign(
            probability=pd.concat([each["probability"] for each in tables], axis=1, join="inner").mean(axis=1)
        )
        table = table.dropna()
        scaling = fit_platt_scaling(table["label"].to_numpy(), logit(table["probability"].to_numpy()))
    except (CalibrationError, ResultError, RunRecordError) as error:
        return None, str(error)
    return scaling, ""
