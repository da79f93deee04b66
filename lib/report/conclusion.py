"""The conclusion: sentences that follow from the numbers, and what the numbers cannot tell."""

from collections.abc import Mapping, Sequence
from typing import Any

from lib.explain.hard_tiles import CENTRE_SHARE
from lib.report.formatting import count, decimals, interval, is_number, percent, several
from lib.report.numbers import GROUPED, split_pairs

_ENOUGH_GROUPS = (
    30  # fewer give an interval that is itself uncertain (a rule of thumb for cluster bootstraps)
)
_SAME = 5e-5  # AUCs that agree to four decimals
_REHEARSED = (
    "a rehearsal on this machine, on labels it held back itself: not comparable with Kaggle's leaderboard"
)


def conclude(numbers: Mapping[str, Any]) -> list[str]:
    """What can be said, each sentence true of these numbers; empty where there is no result."""
    experiments = numbers["experiments"]
    if not experiments:
        return []
    ranked = sorted(experiments, key=lambda name: -experiments[name]["auc"])
    best = experiments[ranked[0]]
    sentences = [
        _best(ranked, experiments),
        *_chance(ranked[0], best),
        *_order(ranked, experiments),
        *_spread(ranked[0], best),
        *_mean(numbers, best["auc"]),
    ]
    for name in ranked:
        sentences += _calibration(name, experiments[name])
        sentences += _decision(name, experiments[name])
        sentences += _attribution(name, experiments[name])
    sentences += _score(numbers)
    sentences += _flatter(numbers, ranked)
    return sentences


def limitations(numbers: Mapping[str, Any]) -> list[str]:
    """What is not known, and why."""
    found = []
    experiments = numbers["experiments"]
    if not experiments:
        found.append("Any score: no fold of any experiment could be scored.")
    found += numbers["rehearsal"]
    found += [f"How {name} scores: {reason}" for name, reason in numbers["failed"].items()]
    found += _unknown_score(numbers)
    if numbers["is_full"] is False:
        found.append(
            f"What the full competition would give: these are {count(numbers['labelled'])} labelled and "
            f"{count(numbers['test_tiles'])} test tiles, a part of it or other tiles."
        )
    for name, each in experiments.items():
        found += _unknown_of(name, each, numbers)
    if experiments and not numbers["searches"]:
        found.append("Whether other settings would be better: no search was made.")
    if experiments:
        found.append(
            "Whether any of it holds for tiles of other laboratories and scanners: all tiles come from one data set."
        )
    if numbers["problems"]:
        found.append(
            f"What {several(len(numbers['problems']), 'output')} held that could not be used (see The data)."
        )
    return found


def _chance(name: str, best: Mapping[str, Any]) -> list[str]:
    low, high = best["interval_95"]
    if not is_number(low) or not low <= 0.5 <= high:
        return []
    return [f"{name} cannot be told from chance: its interval holds 0.5."]


def _best(ranked: Sequence[str], experiments: Mapping[str, Any]) -> str:
    best = experiments[ranked[0]]
    low, high = best["interval_95"]
    resampled = ", with no interval, because no groups are known"
    if is_number(low):
        resampled = f" (95 % interval {interval(low, high)}, resampling {several(best['groups'], best['grouping'][:-1])})"
    part = ""
    if len(best["folds"]) < best["folds_expected"]:
        part = f" of {len(best['folds'])} of {best['folds_expected']} folds"
    lead = (
        f"{ranked[0]} reached"
        if len(ranked) == 1
        else f"Of {len(ranked)} experiments {ranked[0]} has the highest"
    )
    mark = " This score is transductive." if best["transductive"] else ""
    return (
        f"{lead} {'a' if len(ranked) == 1 else ''} pooled out-of-fold AUC".replace("  ", " ")
        + f"{' of' if len(ranked) == 1 else ','} {decimals(best['auc'])} on {count(best['tiles'])} tiles{part}{resampled}.{mark}"
    )


def _order(ranked: Sequence[str], experiments: Mapping[str, Any]) -> list[str]:
    if len(ranked) < 2:
        return []
    best, other = experiments[ranked[0]], experiments[ranked[1]]
    ahead = best["auc"] - other["auc"]
    if abs(ahead) < _SAME:
        text = f"{ranked[1]} is level with it to four decimals"
    else:
        text = f"It is {decimals(ahead)} above the next, {ranked[1]}"
    cautions = []
    if len({experiments[name]["split"] for name in ranked[:2]}) > 1:
        cautions.append("they were scored on different kinds of folds, so this is no ranking")
    if best["tiles"] != other["tiles"]:
        cautions.append("they were scored on different numbers of tiles")
    ends = [*best["interval_95"], *other["interval_95"]]
    if not cautions and all(is_number(end) for end in ends):
        apart = best["interval_95"][0] > other["interval_95"][1]
        cautions.append(
            "their intervals do not overlap"
            if apart
            else "their intervals overlap, so these tiles do not settle the order"
        )
    return [f"{text}{'; ' if cautions else ''}{'; '.join(cautions)}."]


def _spread(name: str, found: Mapping[str, Any]) -> list[str]:
    scored = [fold for fold in found["folds"] if is_number(fold["auc"])]
    if len(scored) < 2:
        return []
    low, high = min(scored, key=lambda fold: fold["auc"]), max(scored, key=lambda fold: fold["auc"])
    return [
        f"The folds of {name} range from {decimals(low['auc'])} (fold {low['fold']}) to {decimals(high['auc'])} "
        f"(fold {high['fold']}), {decimals(high['auc'] - low['auc'])} apart."
    ]


def _mean(numbers: Mapping[str, Any], best: float) -> list[str]:
    average = numbers["experiment_average"]
    if average is None:
        return []
    more = average["auc"] - best
    beside = (
        "level with" if abs(more) < _SAME else f"{decimals(abs(more))} {'above' if more > 0 else 'below'}"
    )
    return [
        f"The plain mean of all experiments reaches {decimals(average['auc'])} on {count(average['tiles'])} tiles, "
        f"{beside} the best of them alone."
    ]


def calibration_verdict(found: Mapping[str, Any]) -> str:
    """What slopes and errors say of the probabilities, in a sentence without its subject's name."""
    (before, after), scalings = found["expected_calibration_error"], found["platt_scaling"]
    slopes = [scaling["slope"] for scaling in scalings]
    if min(slopes) > 1:
        lean = "lie too close to one half (the slope is above 1 in every fold)"
    elif max(slopes) < 1:
        lean = "lie too close to 0 and 1 (the slope is below 1 in every fold)"
    else:
        lean = "do not lean one way (the slope is not on one side of 1 in every fold)"
    if abs(after - before) < _SAME:
        change = "leaves that error as it is"
    else:
        change = f"{'lowers' if after < before else 'raises'} that error to {decimals(after)}"
    return (
        f"probabilities are off by {decimals(before)} on average (expected calibration error) and {lean}; "
        f"a line fitted on the other folds {change}"
    )


def _calibration(name: str, found: Mapping[str, Any]) -> list[str]:
    return (
        [] if found["calibration"] is None else [f"{name}: its {calibration_verdict(found['calibration'])}."]
    )


def _decision(name: str, found: Mapping[str, Any]) -> list[str]:
    if found.get("f1_at_thresholds") is None:
        return []
    half, tuned = found["f1_at_half"], found["f1_at_thresholds"]
    if abs(tuned - half) < _SAME:
        text = f"F1 is {decimals(half)} at 0.5 and the same at thresholds chosen on the other folds"
    else:
        word = "higher" if tuned > half else "lower"
        text = f"F1 is {decimals(half)} at 0.5 and {word} at thresholds chosen on the other folds, {decimals(tuned)}"
    return [f"{name}: {text}."]


def _attribution(name: str, found: Mapping[str, Any]) -> list[str]:
    explained = found["explained"]
    if explained is None:
        return []
    share = explained["mean"]
    times = (
        f"{share / CENTRE_SHARE:.2f} times the {percent(CENTRE_SHARE)} of a map that is the same everywhere"
    )
    return [
        f"{name}: {percent(share)} of the attribution ({explained['method']}, {several(explained['tiles'], 'tile')}) lies in the "
        f"centre that decides the label, {times}."
    ]


def _is_kaggle(score: Mapping[str, Any] | None) -> bool:
    return score is not None and score["scored_by"] == "Kaggle"


def _is_scored(score: Mapping[str, Any] | None) -> bool:
    return score is not None and (is_number(score["public"]) or is_number(score["private"]))


def _score(numbers: Mapping[str, Any]) -> list[str]:
    score = numbers["leaderboard"]
    if score is None or not _is_scored(score):
        return []
    said = [f"{decimals(score[name])} {name}" for name in ("public", "private") if is_number(score[name])]
    if _is_kaggle(score):
        return [f"On Kaggle's leaderboard the submission scored {' and '.join(said)}."]
    return [
        f"The submission scored {' and '.join(said)} by {score['scored_by'] or 'a judge without a name'}: {_REHEARSED}."
    ]


def _flatter(numbers: Mapping[str, Any], ranked: Sequence[str]) -> list[str]:
    experiments = numbers["experiments"]
    sentences = []
    for pair in split_pairs(numbers):
        one, other, gap = pair["stratified"], pair["grouped"], pair["difference"]
        if abs(gap) < _SAME:
            text = "gave the same AUC to four decimals"
        else:
            text = f"gave {decimals(abs(gap))} {'more' if gap > 0 else 'less'}"
        sentences.append(
            f"Stratified folds ({one['experiment']}, {decimals(one['auc'])}) {text}{'' if abs(gap) < _SAME else ' AUC'} "
            f"{'as' if abs(gap) < _SAME else 'than'} folds by {other['split']} ({other['experiment']}, {decimals(other['auc'])})."
        )
    if stratified := [name for name in ranked if experiments[name]["split"] == "stratified"]:
        sentences.append(
            f"The folds of {' and '.join(stratified)} are stratified, so neighbours of a tile stand on both sides of the split: "
            "such scores are optimistic as a rule."
        )
    if transductive := [name for name in ranked if experiments[name]["transductive"]]:
        sentences.append(
            f"Transductive, so not comparable with scores that are not: {', '.join(transductive)}."
        )
    if len(ranked) > 1:
        sentences.append(
            "The best of several is chosen by the very score it is quoted with, which flatters it."
        )
    return sentences


def _unknown_score(numbers: Mapping[str, Any]) -> list[str]:
    score = numbers["leaderboard"]
    found = []
    if score is None:
        found.append("The leaderboard score: no submission of this campaign has one here.")
    elif not _is_scored(score):
        found.append(
            f"The leaderboard score: {score['scored_by'] or 'the judge'} took the submission and gave none."
        )
    elif not _is_kaggle(score):
        found.append(f"The score on Kaggle: what is shown is {_REHEARSED}.")
    if numbers["place"] == "rehearsal" and (score is None or _is_kaggle(score)):
        found.append("What Kaggle's machines would give: this report was made in a rehearsal.")
    if not numbers["has_inference"]:
        found.append("How the test tiles are predicted: there is no usable output of an inference kernel.")
    return found


def _unknown_of(name: str, found: Mapping[str, Any], numbers: Mapping[str, Any]) -> list[str]:
    unknown = []
    here, expected = len(found["folds"]), found["folds_expected"]
    if here < expected:
        unknown.append(f"{name}: how the other {several(expected - here, 'fold')} would score.")
    if found["split"] == "stratified" and not any(
        pair["stratified"]["experiment"] == name for pair in split_pairs(numbers)
    ):
        unknown.append(f"{name}: how much its stratified folds flatter; it was not run on grouped folds.")
    if found["split"] in GROUPED and found["grouping"] == "stain groups":
        unknown.append(
            f"{name}: the slides of its tiles; stain groups stand in for them, and may split or join slides."
        )
    if not is_number(found["interval_95"][0]):
        unknown.append(f"{name}: how uncertain its AUC is; there are no groups to resample.")
    elif found["groups"] < _ENOUGH_GROUPS:
        unknown.append(
            f"{name}: how far its interval can be trusted; it resamples only {found['groups']} {found['grouping']}."
        )
    if len(found["folds"]) > 1 and found["calibration"] is None:
        unknown.append(f"{name}: its calibration; no line can be fitted to these scores.")
    elif len(found["folds"]) == 1:
        unknown.append(f"{name}: a threshold and its calibration; both need a second fold.")
    if found["members"] == 1 and found["train_mode"] != "linear_probe":
        unknown.append(
            f"{name}: what another seed would give; each fold was trained once, and the folds were drawn once."
        )
    else:
        unknown.append(
            f"{name}: what other folds would give; they were drawn once, with seed {found['seed']}."
        )
    if found["explained"] is None:
        unknown.append(f"{name}: how much of what its networks look at lies in the centre.")
    return unknown
