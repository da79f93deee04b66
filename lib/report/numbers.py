"""Every number of the report as plain values: what the sections show, the conclusion is built from, and results.json holds."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lib.data.competition import TEST_TILES, TRAIN_TILES
from lib.evaluation.calibration import calibration_numbers
from lib.evaluation.metrics import MetricError
from lib.evaluation.out_of_fold import ExperimentAverage, Summary, average_experiments
from lib.report.formatting import is_number, plain
from lib.report.inputs import Inputs, KernelOutput

_HASH = re.compile(r"-[0-9a-f]{6}$")  # what --set adds to an experiment's name
GROUPED = ("stain", "slide")


def collect_numbers(
    inputs: Inputs,
    summaries: Sequence[Summary],
    *,
    failed: Mapping[str, str],
    facts: Mapping[str, Any],
    place: str,
) -> dict[str, Any]:
    """All numbers, None for each that does not exist.

    Args:
        inputs: what the kernels left.
        summaries: of the experiments that could be scored.
        failed: why others could not, by name.
        facts: what no output holds: leaderboard, beside, campaign, rehearsal (sentences on what was not real).
        place: kaggle, rehearsal or local.
    """
    eda = inputs.exploration() or {}
    labelled, test = eda.get("train", {}).get("tiles"), eda.get("test", {}).get("tiles")
    found = {
        "campaign": str(facts.get("campaign", "")),
        "rehearsal": [str(each) for each in facts.get("rehearsal") or ()],
        "place": place,
        "labelled": labelled,
        "test_tiles": test,
        "is_full": (labelled, test) == (TRAIN_TILES, TEST_TILES) if eda else None,
        "group_auc": eda.get("stain_groups", {}).get("auc_of_group_number"),
        "experiments": {s.experiment: _of_experiment(s, inputs.folds[s.experiment]) for s in summaries},
        "failed": dict(failed),
        "experiment_average": average_numbers(average_of_experiments(summaries)),
        "leaderboard": leaderboard_numbers(facts.get("leaderboard")),
        "beside": [dict(each) for each in facts.get("beside") or () if isinstance(each, Mapping)],
        "searches": len(inputs.searches),
        "has_inference": inputs.inference is not None,
        "problems": inputs.all_problems,
    }
    return dict(plain(found))


def _of_experiment(summary: Summary, outputs: Sequence[KernelOutput]) -> dict[str, Any]:
    from sklearn.metrics import average_precision_score

    labels, scores = summary.table["label"].to_numpy(), summary.table["probability"].to_numpy()
    config = summary.config
    return {
        "backbone": config.backbone,
        "split": config.fold_split,
        "seed": config.seed,
        "members": max(len(record.members) for record in summary.records),
        "train_mode": config.train_mode,
        "transductive": summary.transductive,
        "folds_expected": config.num_folds,
        "tiles": len(labels),
        "positives": int(labels.sum()),
        "auc": summary.pooled,
        "interval_95": list(summary.interval),
        "groups": summary.groups,
        "grouping": summary.grouping,
        "average_precision": float(average_precision_score(labels, scores)),
        "folds": summary.folds.to_dict("records"),
        **summary.decisions,
        "calibration": calibration_numbers(summary.calibration),
        "explained": explained_numbers(outputs),
    }


def average_of_experiments(summaries: Sequence[Summary]) -> ExperimentAverage | None:
    """The mean of several experiments; None where there are not two, or no common tiles of both classes."""
    if len(summaries) < 2:
        return None
    try:
        return average_experiments(summaries)
    except MetricError:
        return None


def average_numbers(average: ExperimentAverage | None) -> dict[str, Any] | None:
    """A mean of experiments as plain values."""
    if average is None:
        return None
    return {"auc": average.pooled, "interval_95": list(average.interval), "tiles": average.tiles}


def explained_numbers(outputs: Sequence[KernelOutput]) -> dict[str, Any] | None:
    """How much of the attribution lies in the centre, the mean over the tiles of all folds; None where no fold has maps."""
    rows: list[dict[str, Any]] = []
    methods = set()
    for output in outputs:
        said = output.record.scores.get("explained")
        share = said.get("share_in_centre") if isinstance(said, Mapping) else None
        if not isinstance(said, Mapping) or not isinstance(share, Mapping):
            continue
        if not is_number(share.get("mean")) or not is_number(said.get("tiles")):
            continue
        methods.add(str(said.get("method", "a method that is not named")))
        rows.append(
            {"fold": output.record.fold, "tiles": int(said["tiles"]), **{k: share.get(k) for k in _SHARES}}
        )
    tiles: list[int] = [row["tiles"] for row in rows]
    if not sum(tiles):
        return None
    mean = float(np.average([row["mean"] for row in rows], weights=tiles))
    return {"method": " and ".join(sorted(methods)), "tiles": sum(tiles), "mean": mean, "folds": rows}


_SHARES = ("mean", "q25", "median", "q75")


def why_not_explained(outputs: Sequence[KernelOutput]) -> list[str]:
    """Of the folds without maps, why; each reason once."""
    reasons = []
    for output in outputs:
        said = output.record.scores.get("explained")
        if said is None:
            reasons.append("the run left none (it was made before maps were kept, or without them)")
        elif isinstance(said, Mapping) and said.get("missing"):
            reasons.append(str(said["missing"]))
    return sorted(set(reasons))


def leaderboard_numbers(content: Any) -> dict[str, Any] | None:
    """What leaderboard.json says of the score; None where there is none."""
    if not isinstance(content, Mapping) or not isinstance(content.get("submission"), Mapping):
        return None
    sent = content["submission"]
    return {
        "scored_by": str(content.get("scored_by", "")),
        "public": sent.get("public_auc"),
        "private": sent.get("private_auc"),
        "sha256": str(sent.get("sha256", "")),
        "ref": sent.get("ref"),
        "at": str(sent.get("at", "")),
    }


def split_pairs(numbers: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The same experiment scored on stratified and on grouped folds, here or in another campaign: what stratified flatters.

    Two are the same when their backbones agree, or, where one names none, their names without the hash that --set adds.

    Returns:
        Pairs with stratified and grouped (rows of `split_rows`) and their difference.
    """
    rows = split_rows(numbers)
    pairs = []
    for one in rows:
        for other in rows:
            scored = is_number(one["auc"]) and is_number(other["auc"])
            if scored and one["split"] == "stratified" and other["split"] in GROUPED and _same(one, other):
                pairs.append({"stratified": one, "grouped": other, "difference": one["auc"] - other["auc"]})
    return pairs


def split_rows(numbers: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every result at hand with its split: campaign, experiment, backbone, split, auc, interval_95, folds, tiles."""
    campaign = numbers["campaign"] or "this campaign"
    rows = [
        {"campaign": campaign, "experiment": name, "folds": len(each["folds"])}
        | {key: each[key] for key in ("backbone", "split", "auc", "interval_95", "tiles", "transductive")}
        for name, each in numbers["experiments"].items()
    ]
    for each in numbers["beside"]:
        folds = each.get("folds")
        rows.append(
            {
                "campaign": str(each.get("name", "another campaign")),
                "experiment": str(each.get("experiment", "")),
                "backbone": str(each.get("backbone", "")),
                "split": str(each.get("split", "")),
                "auc": each.get("pooled"),
                "interval_95": each.get("interval") or [None, None],
                "folds": len(folds) if isinstance(folds, (list, tuple, Mapping)) else folds,
                "tiles": each.get("tiles"),
                "transductive": str(each.get("transductive") or ""),
            }
        )
    return rows


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    if one["tiles"] and other["tiles"] and one["tiles"] != other["tiles"]:
        return False
    if bool(one["transductive"]) != bool(other["transductive"]):
        return False
    if one["backbone"] and other["backbone"] and one["backbone"] != other["backbone"]:
        return False
    return _HASH.sub("", one["experiment"]) == _HASH.sub("", other["experiment"]) or bool(
        one["backbone"] and other["backbone"]
    )
