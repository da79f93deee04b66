"""Average the members of all folds on the test tiles and write submission.csv; score the hold-out once.

Reads: the competition; prepare; the folds of each experiment; embed for the members with a frozen encoder.
Leaves: submission.csv; the members' logits, table and correlations; with a hold-out holdout.csv.
"""

import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from lib.data import prepared
from lib.data.competition import read_competition
from lib.evaluation.averages import parse_weights
from lib.evaluation.holdout_grade import caution_of, describe_grade, grade_holdout
from lib.files import write_atomic
from lib.inference.ensemble import (
    EnsembleError,
    average_members,
    average_weighted,
    member_table,
    read_fold_outputs,
    validate_members,
)
from lib.inference.members import KeptLogits, Member, members_of, predict_members
from lib.inference.submission import check_submission, submission_csv
from lib.model.features import encoder_options, read_features
from lib.model.linear_head import load_head
from lib.runtime.hardware import choose_devices, describe_devices, preflight
from lib.runtime.inputs import find_competition, find_features, find_outputs, read_output
from lib.runtime.session import Session, run_kernel

logger = logging.getLogger(__name__)

_AVERAGES = {"mean": "mean probability", "logit": "mean logit", "rank": "mean rank"}


def recipe(session: Session) -> None:
    """Verify the folds, predict the test tiles with every member, average, check, write the outputs."""
    parameters, config = session.parameters, session.parameters.config
    with session.stage("read the prepared tables and the folds"):
        competition = read_competition(find_competition(session.input), expect_full=session.on_kaggle)
        folder, record = read_output(session.input, "prepare", hashed_by_reader=prepared.ARRAYS)
        data = prepared.read_prepared(folder, recorded_data_id=record.data_id, hashes=record.hashes)
        if data.test["id"].tolist() != competition.test_ids:
            raise EnsembleError(
                "the prepared test tiles are not those of sample_submission.csv: run prepare again"
            )
        experiments = zip(parameters.experiments, parameters.folds, parameters.configs, strict=True)
        outputs, damaged = read_fold_outputs(find_outputs(session.input, "train"))
        outputs, warnings = validate_members(
            outputs,
            wanted={name: (folds, each.num_members) for name, folds, each in experiments},
            data_id=data.data_id,
            strict_bundle=parameters.strict_bundle,
            damaged=damaged,
        )
    for warning in warnings:
        logger.warning("%s", warning)

    devices = choose_devices(config, gpu_required=parameters.needs_gpu and session.on_kaggle)
    members = [member for output in outputs for member in members_of(output)]
    logits = _predict(session, members, data, devices, part="test", ids=data.test["id"])
    probabilities = _average(logits, members, competition.test_ids, session)  # (N,)
    submission = submission_csv(competition.test_ids, probabilities)
    check_submission(submission, competition.sample)

    about = pd.DataFrame({member.name: member.table_row() for member in members}).T
    table, correlations = member_table(logits, about)
    logger.info(
        "submission.csv: %s tiles, %s of %d members, mean %.4f\n%s",
        f"{len(logits):,}",
        _AVERAGES.get(parameters.average, f"mean with weights {parameters.average}"),
        len(members),
        probabilities.mean(),
        table.round(4).to_string(index=False),
    )
    texts = {
        "members.csv": logits.to_csv(index=False, float_format="%.9g", lineterminator="\n"),
        "ensemble.csv": table.to_csv(index=False, float_format="%.6g", lineterminator="\n"),
        "correlations.csv": correlations.to_csv(float_format="%.6g", lineterminator="\n"),
        "submission.csv": submission,
    }
    scores = {
        "members": len(members),
        "mean_probability": float(probabilities.mean()),
        "average": parameters.average,
    }
    if data.holdout is not None:
        texts["holdout.csv"], scores["holdout"] = _score_holdout(session, members, data, devices)
    session.invalidate_record()
    for name, text in texts.items():
        write_atomic(session.working / name, text)
    session.write_outputs(
        dict.fromkeys(texts, True),
        data_id=data.data_id,
        fold_table_id=outputs[0].record.fold_table_id,
        devices=describe_devices(devices),
        scores=scores,
    )
    KeptLogits(session.working, ()).clear()


def _average(
    logits: pd.DataFrame, members: Sequence[Member], ids: Sequence[str], session: Session
) -> np.ndarray:
    """(N,) the average of the members, or the weighted mean of the experiments' means."""
    weights = parse_weights(session.parameters.average, session.parameters.experiments)
    if not weights:
        return average_members(logits, ids, how=session.parameters.average)
    columns = {
        name: [member.name for member in members if member.identity.experiment == name] for name in weights
    }
    return average_weighted(logits, ids, columns=columns, weights=weights)


def _score_holdout(
    session: Session, members: Sequence[Member], data: prepared.Prepared, devices: list[torch.device]
) -> tuple[str, dict[str, Any]]:
    """The text of holdout.csv (id,label,probability), and the grade."""
    parameters, holdout = session.parameters, data.holdout
    assert holdout is not None
    logits = _predict(session, members, data, devices, part="holdout", ids=holdout["id"])
    probabilities = _average(logits, members, holdout["id"].tolist(), session)  # (H,)
    mapped = bool((holdout["slide"] != "").all())
    grade = grade_holdout(
        holdout["label"].to_numpy(),
        probabilities,
        holdout["slide" if mapped else "stain_group"].to_numpy(),
        name=parameters.config.holdout,
        grouping="slides" if mapped else "stain groups",
    )
    logger.info("%s. %s", describe_grade(grade), caution_of(grade["name"]))
    table = holdout[["id", "label"]].assign(probability=probabilities)
    return table.to_csv(index=False, float_format="%.9g", lineterminator="\n"), grade


def _predict(
    session: Session,
    members: Sequence[Member],
    data: prepared.Prepared,
    devices: list[torch.device],
    *,
    part: str,
    ids: "pd.Series[str]",
) -> pd.DataFrame:
    """A table of logits, id and a column for each member: heads use stored features, networks the tiles.

    Args:
        session: of this kernel.
        members: of all folds.
        data: the prepared tiles.
        devices: to predict on.
        part: test or holdout.
        ids: of the tiles of this part, in the order of their array.
    """
    array = prepared.TEST_TILES if part == "test" else prepared.HOLDOUT_TILES
    heads = [member for member in members if member.config.train_mode == "linear_probe"]
    networks = [member for member in members if member.config.train_mode != "linear_probe"]
    logits: dict[str, np.ndarray] = {}
    for member in heads:
        folder = find_features(session.input, encoder_options(member.config), data_id=data.data_id)
        features = getattr(read_features(folder), part)
        if features is None:
            raise EnsembleError(f"{folder.name} has no features of the hold-out: run the embed kernel again")
        logits[member.name] = load_head(member.path)[0].logits(features)
    if networks:
        causes = (part, data.data_id, session.parameters.bundle_id, devices[0].type)
        preflight(session.working, disk=64 << 20, memory=data.bytes_of(array) + (2 << 30))
        logits |= predict_members(
            networks,
            data.read_tiles(array),
            devices=devices,
            stage=lambda name, note: session.stage(f"{part}: {name}", note=note),
            kept=KeptLogits(session.working, causes),
        )
    return pd.DataFrame({"id": ids, **{member.name: logits[member.name] for member in members}})


def main(parameters: Mapping[str, Any]) -> int:
    """Run with the parameters that the builder wrote into the script."""
    return run_kernel(recipe, parameters)


if __name__ == "__main__":
    sys.exit("this recipe runs inside a built kernel: python build_kernel.py build")
