"""Numbers of the report as plain values, for the sections, the conclusion and results.json."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lib.data.competition import TEST_TILES, TRAIN_TILES
from lib.evaluation.calibration import calibration_numbers
from lib.evaluation.metrics import MetricError
from lib.evaluation.out_of_fold import ExperimentAverage, Summary, average_experiments
from lib.report.formatting import is_number, plain
from lib.report.inputs import Inputs, KernelOutput

_HASH = re.compile(r"-[0-9a-f]{6}$")  # --set appends it to the name of an experiment
GROUPED = ("stain", "slide")


def collect_numbers(
    inputs: Inputs,
    summaries: Sequence[Summary],
    *,
    failed: Mapping[str, str],
    campaign: Mapping[str, Any],
    place: str,
    date: str,
) -> dict[str, Any]:
    """All numbers of the report, None for each that does not exist.

    Args:
        inputs: the outputs of the kernels.
        summaries: of the experiments that could be scored.
        failed: by name, why the other experiments could not be scored.
        campaign: what no output holds: campaign (its name), leaderboard, other_campaigns, rehearsal
            (sentences that say what was not real).
        place: kaggle, rehearsal or local.
        date: of the report, such as 2026-11-24.
    """
    eda = inputs.eda() or {}
    labelled, test = eda.get("train", {}).get("tiles"), eda.get("test", {}).get("tiles")
    holdout = eda.get("holdout") or {}
    labelled_in_all = labelled + int(holdout.get("tiles", 0)) if is_number(labelled) else None
    others = campaign.get("other_campaigns") or ()
    numbers = {
        "campaign": str(campaign.get("campaign", "")),
        "rehearsal": [str(sentence) for sentence in campaign.get("rehearsal") or ()],
        "place": place,
        "date": date,
        "code": _code(inputs),
        "labelled": labelled,
        "test_tiles": test,
        "is_full": (labelled_in_all, test) == (TRAIN_TILES, TEST_TILES) if eda else None,
        "group_auc": eda.get("stain_groups", {}).get("auc_of_group_number"),
        "experiments": {s.experiment: _of_experiment(s, inputs.folds[s.experiment]) for s in summaries},
        "failed": dict(failed),
        "experiment_average": average_numbers(average_of_experiments(summaries)),
        "leaderboard": leaderboard_numbers(campaign.get("leaderboard")),
        "other_campaigns": [dict(other) for other in others if isinstance(other, Mapping)],
        "holdout": holdout_numbers(inputs.inference),
        "searches": len(inputs.searches),
        "best_trial": best_trial(inputs.searches),
        "has_inference": inputs.inference is not None,
        "problems": inputs.all_problems,
    }
    return dict(plain(numbers))


def _code(inputs: Inputs) -> list[str]:
    """The code of the folds, or of the other outputs where there are none: bundle and commit."""
    outputs = [output for folds in inputs.folds.values() for output in folds]
    outputs = outputs or [*inputs.searches, *filter(None, (inputs.prepare, inputs.inference))]
    return sorted({code_of(output) for output in outputs})


def code_of(output: KernelOutput) -> str:
    """The code that wrote an output."""
    bundle, commit = output.record.bundle_id, output.record.git_commit
    return f"bundle {bundle[:8] or 'unknown'}" + (f", commit {commit[:8]}" if commit else "")


def best_trial(searches: Sequence[KernelOutput]) -> dict[str, Any] | None:
    """The trial with the highest out-of-fold AUC of all searches; None without one."""
    best = None
    for output in searches:
        result = output.record.scores.get("search")
        if not isinstance(result, Mapping) or not is_number(result.get("auc")):
            continue
        if best is None or result["auc"] > best["auc"]:
            low, high = result.get("interval") or (None, None)
            values = result.get("values")
            best = {
                "experiment": output.record.experiment,
                "auc": result["auc"],
                "interval_95": [low, high],
                "trials": int(result.get("finished") or 0) + int(result.get("pruned") or 0),
                "values": dict(values) if isinstance(values, Mapping) else {},
            }
    return best


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


def holdout_numbers(inference: KernelOutput | None) -> dict[str, Any] | None:
    """The grade of the hold-out in the record of inference; None without one."""
    grade = inference.record.scores.get("holdout") if inference is not None else None
    if not isinstance(grade, Mapping) or not is_number(grade.get("auc")):
        return None
    low, high = grade.get("interval_95") or (None, None)
    return {
        "name": str(grade.get("name", "")),
        "tiles": grade.get("tiles"),
        "positives": grade.get("positives"),
        "auc": grade["auc"],
        "interval_95": [low, high],
        "groups": grade.get("groups"),
        "grouping": str(grade.get("grouping", "")),
        "medal": str(grade.get("medal", "")),
        "medal_lines": dict(grade.get("medal_lines") or {}),
    }


def average_of_experiments(summaries: Sequence[Summary]) -> ExperimentAverage | None:
    """The mean of several experiments; None for fewer than two, or without common tiles of both classes."""
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
    """Share of the attribution in the centre: mean over the tiles of all folds; None without maps."""
    rows: list[dict[str, Any]] = []
    methods = set()
    for output in outputs:
        if not is_explained(output):
            continue
        explained = output.record.scores["explained"]
        share = explained["share_in_centre"]
        if not is_number(share.get("mean")) or not is_number(explained.get("tiles")):
            continue
        methods.add(str(explained.get("method", "an unnamed method")))
        row = {"fold": output.record.fold, "tiles": int(explained["tiles"])}
        rows.append(row | {name: share.get(name) for name in ("mean", "q25", "median", "q75")})
    tiles: list[int] = [row["tiles"] for row in rows]
    if not sum(tiles):
        return None
    mean = float(np.average([row["mean"] for row in rows], weights=tiles))
    return {"method": " and ".join(sorted(methods)), "tiles": sum(tiles), "mean": mean, "folds": rows}


def is_explained(output: KernelOutput) -> bool:
    """Whether a fold has attribution maps that mean something."""
    explained = output.record.scores.get("explained")
    return isinstance(explained, Mapping) and isinstance(explained.get("share_in_centre"), Mapping)


def why_not_explained(outputs: Sequence[KernelOutput]) -> list[str]:
    """The reasons why folds have no attribution maps, each once."""
    reasons = set()
    for output in outputs:
        explained = output.record.scores.get("explained")
        if explained is None:
            reasons.add("the run kept no maps (earlier code made it, or maps were off)")
        elif isinstance(explained, Mapping) and explained.get("missing"):
            reasons.add(str(explained["missing"]))
    return sorted(reasons)


def leaderboard_numbers(content: Any) -> dict[str, Any] | None:
    """The scores in leaderboard.json; None where there are none."""
    if not isinstance(content, Mapping) or not isinstance(content.get("submission"), Mapping):
        return None
    submission = content["submission"]
    return {
        "scored_by": str(content.get("scored_by", "")),
        "public": submission.get("public_auc"),
        "private": submission.get("private_auc"),
        "sha256": str(submission.get("sha256", "")),
        "ref": submission.get("ref"),
        "at": str(submission.get("at", "")),
    }


def split_pairs(numbers: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The same experiment on stratified and on grouped folds, here or in another campaign.

    The difference of the two shows how optimistic stratified folds are. Two experiments are the same when
    their backbones agree, or, where one names none, their names without the hash that --set appends.

    Returns:
        Pairs with stratified and grouped (rows of `split_rows`) and their difference in AUC.
    """
    rows = [row for row in split_rows(numbers) if is_number(row["auc"])]
    return [
        {"stratified": first, "grouped": second, "difference": first["auc"] - second["auc"]}
        for first in rows
        for second in rows
        if first["split"] == "stratified" and second["split"] in GROUPED and _is_same(first, second)
    ]


def split_rows(numbers: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every result with its split: campaign, experiment, backbone, split, auc, interval_95, folds, tiles."""
    return [*_rows_of_this_campaign(numbers), *map(_row_of_another_campaign, numbers["other_campaigns"])]


def _rows_of_this_campaign(numbers: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    campaign = numbers["campaign"] or "this campaign"
    kept = ("backbone", "split", "auc", "interval_95", "tiles", "transductive")
    for name, scores in numbers["experiments"].items():
        row = {"campaign": campaign, "experiment": name, "folds": len(scores["folds"])}
        yield row | {key: scores[key] for key in kept}


def _row_of_another_campaign(other: Mapping[str, Any]) -> dict[str, Any]:
    folds = other.get("folds")
    return {
        "campaign": str(other.get("name", "another campaign")),
        "experiment": str(other.get("experiment", "")),
        "backbone": str(other.get("backbone", "")),
        "split": str(other.get("split", "")),
        "auc": other.get("pooled"),
        "interval_95": other.get("interval") or [None, None],
        "folds": len(folds) if isinstance(folds, (list, tuple, Mapping)) else folds,
        "tiles": other.get("tiles"),
        "transductive": str(other.get("transductive") or ""),
    }


def _is_same(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    if first["tiles"] and second["tiles"] and first["tiles"] != second["tiles"]:
        return False
    if bool(first["transductive"]) != bool(second["transductive"]):
        return False
    if first["backbone"] and second["backbone"]:
        return bool(first["backbone"] == second["backbone"])
    return _HASH.sub("", first["experiment"]) == _HASH.sub("", second["experiment"])
