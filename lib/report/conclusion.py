"""Conclusion of the report: sentences that follow from the numbers, and the limitations of the numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

from lib.evaluation.holdout_grade import caution_of
from lib.evaluation.out_of_fold import describe_interval
from lib.explain.hard_tiles import CENTRE_SHARE
from lib.report.formatting import count, decimals, interval, is_number, percent, several
from lib.report.numbers import GROUPED, split_pairs

_ENOUGH_GROUPS = (
    30  # fewer give an interval that is itself uncertain (a rule of thumb for cluster bootstraps)
)
_SAME = 5e-5  # AUCs that agree to four decimals
_REHEARSAL = (
    "a rehearsal on this machine, with labels that the rehearsal held back: not comparable with Kaggle"
)


def conclude(numbers: Mapping[str, Any]) -> list[str]:
    """Sentences that are true of these numbers; empty where no experiment could be scored."""
    experiments = numbers["experiments"]
    if not experiments:
        return []
    ranked = sorted(experiments, key=lambda name: -experiments[name]["auc"])
    best = experiments[ranked[0]]
    sentences = [
        _best(ranked, experiments),
        *_no_better_than_random(ranked[0], best),
        *_runner_up(ranked, experiments),
        *_range_of_folds(ranked[0], best),
        *_average(numbers, best["auc"]),
    ]
    for name in ranked:
        sentences += _calibration(name, experiments[name])
        sentences += _thresholds(name, experiments[name])
        sentences += _attribution(name, experiments[name])
    sentences += _holdout(numbers)
    sentences += _score(numbers)
    sentences += _optimism_of_splits(numbers, ranked)
    return sentences


def limitations(numbers: Mapping[str, Any]) -> list[str]:
    """What these numbers do not show, and why."""
    sentences = []
    experiments = numbers["experiments"]
    if not experiments:
        sentences.append("No score is known: no fold of any experiment could be scored.")
    sentences += numbers["rehearsal"]
    sentences += [
        f"The score of {name} is not known: {reason}." for name, reason in numbers["failed"].items()
    ]
    sentences += _score_not_known(numbers)
    if numbers["is_full"] is False:
        sentences.append(
            f"The result on the full competition is not known: these are {count(numbers['labelled'])} "
            f"labelled and {count(numbers['test_tiles'])} test tiles, a subset of it or other tiles."
        )
    for name, scores in experiments.items():
        sentences += [f"{name}: {text}" for text in _limitations_of(name, scores, numbers)]
    if experiments and not numbers["searches"]:
        sentences.append("Other hyperparameters may be better: no search was made.")
    if experiments:
        sentences.append(
            "Tiles of other laboratories and scanners were not tested: all tiles come from one data set."
        )
    if numbers["problems"]:
        number = several(len(numbers["problems"]), "output")
        sentences.append(
            f"{number} could not be used and {_is_or_are(numbers['problems'])} missing (see The data)."
        )
    return sentences


def caveats(numbers: Mapping[str, Any]) -> list[str]:
    """The three most important limitations, for the summary, the most important first."""
    experiments = numbers["experiments"]
    ranked = sorted(experiments, key=lambda name: -experiments[name]["auc"])
    best = experiments[ranked[0]] if ranked else None
    sentences = [" ".join(numbers["rehearsal"])] if numbers["rehearsal"] else []
    if best is None:
        sentences.append("No fold of any experiment could be scored.")
    elif best["transductive"]:
        sentences.append(f"{ranked[0]} is transductive: {best['transductive']}.")
    if numbers["is_full"] is False:
        sentences.append(
            f"These are {count(numbers['labelled'])} labelled tiles, not the competition's: the score says "
            "nothing "
            "about the full data."
        )
    if best is not None:
        missing = best["folds_expected"] - len(best["folds"])
        if missing:
            sentences.append(
                f"{several(missing, 'fold')} of {best['folds_expected']} {_is_or_are([0] * missing)} missing."
            )
        if best["split"] == "stratified":
            sentences.append(
                "The folds are random: tiles of one slide are in training and validation folds, so the "
                "out-of-fold AUC "
                "is usually optimistic."
            )
        elif best["grouping"] == "stain groups":
            sentences.append(
                "The slides are not known: stain groups replace them, and may split or join slides."
            )
        if not is_number(best["interval_95"][0]):
            sentences.append("The uncertainty of the AUC is not known: there is no interval.")
        if len(ranked) > 1:
            sentences.append(
                f"{ranked[0]} was chosen as the best of {len(ranked)} experiments by the AUC that is shown."
            )
        if best["members"] == 1:
            sentences.append("Each fold was trained once: other seeds may give other scores.")
    if not _is_kaggle(numbers["leaderboard"]):
        sentences.append("The score on Kaggle's leaderboard is not known.")
    sentences += [
        "All tiles come from one data set: other laboratories and scanners were not tested.",
        "A probability for a tile is no diagnosis: it says nothing about a slide or a patient.",
        "The labels were taken as they are; wrong labels were not looked for.",
    ]
    return sentences[:3]


def future_work(numbers: Mapping[str, Any]) -> list[str]:
    """The next experiments, each with its reason in the numbers."""
    experiments = numbers["experiments"]
    sentences = []
    incomplete = [
        name for name, scores in experiments.items() if len(scores["folds"]) < scores["folds_expected"]
    ]
    if incomplete:
        sentences.append(f"Train the missing folds of {' and '.join(incomplete)}.")
    if numbers["is_full"] is False:
        sentences.append("Run the same campaign on all tiles of the competition.")
    compared = {pair["stratified"]["experiment"] for pair in split_pairs(numbers)}
    for name, scores in experiments.items():
        if scores["split"] == "stratified" and name not in compared:
            sentences.append(
                f"Run {name} on grouped folds as well (--set fold_split=stain), to measure how optimistic "
                "its random "
                "folds are."
            )
        if scores["split"] == "stain":
            sentences.append(
                f"Run {name} with a tile-to-slide map (fold_split = slide), so that folds keep real slides."
            )
        share = scores["explained"]["mean"] if scores["explained"] else None
        if share is not None and share < CENTRE_SHARE * 1.5:
            sentences.append(
                f"Make {name} look at the centre that decides the label (pooling = attention, or a stem "
                "without strides): "
                f"only {percent(share)} of its attribution is there."
            )
        calibration = scores["calibration"]
        if (
            calibration is not None
            and calibration["expected_calibration_error"][1] < calibration["expected_calibration_error"][0]
        ):
            sentences.append(
                f"Use the Platt scaling of {name} where probabilities are used: it lowers the calibration "
                "error."
            )
    if experiments and not numbers["searches"]:
        sentences.append("Search learning rate, augmentation and class balance: no option was varied here.")
    if len(experiments) == 1:
        sentences.append("Average with a second, different backbone: single experiments are rarely the best.")
    if not _is_kaggle(numbers["leaderboard"]):
        sentences.append("Submit to Kaggle, to compare the out-of-fold score with the leaderboard.")
    sentences.append(
        "Test on tiles of another laboratory and scanner before any use outside the competition."
    )
    return sentences


def _is_or_are(items: Sequence[Any]) -> str:
    return "is" if len(items) == 1 else "are"


def _best(ranked: Sequence[str], experiments: Mapping[str, Any]) -> str:
    best = experiments[ranked[0]]
    low, high = best["interval_95"]
    uncertainty = f" ({describe_interval([None, None], groups=best['groups'], grouping=best['grouping'])})"
    if is_number(low):
        groups = several(best["groups"], best["grouping"].removesuffix("s"))
        uncertainty = f" (95 % interval {interval(low, high)}, bootstrap over {groups})"
    part = ""
    if len(best["folds"]) < best["folds_expected"]:
        part = f" of {len(best['folds'])} of {best['folds_expected']} folds"
    subject = f"{ranked[0]} has a"
    if len(ranked) > 1:
        subject = f"Of {len(ranked)} experiments, {ranked[0]} has the highest"
    transductive = " This score is transductive." if best["transductive"] else ""
    return (
        f"{subject} pooled out-of-fold AUC{',' if len(ranked) > 1 else ' of'} {decimals(best['auc'])} on "
        f"{count(best['tiles'])} tiles{part}{uncertainty}.{transductive}"
    )


def _no_better_than_random(name: str, best: Mapping[str, Any]) -> list[str]:
    low, high = best["interval_95"]
    if not is_number(low) or not low <= 0.5 <= high:
        return []
    return [f"{name} is not shown to be better than a random guess: its interval contains 0.5."]


def _runner_up(ranked: Sequence[str], experiments: Mapping[str, Any]) -> list[str]:
    if len(ranked) < 2:
        return []
    best, other = experiments[ranked[0]], experiments[ranked[1]]
    ahead = best["auc"] - other["auc"]
    if abs(ahead) < _SAME:
        text = f"The AUC of {ranked[1]} is equal to four decimals"
    else:
        text = f"It is {decimals(ahead)} above the next experiment, {ranked[1]}"
    cautions = []
    if len({experiments[name]["split"] for name in ranked[:2]}) > 1:
        cautions.append("the two used different kinds of folds, so they cannot be ranked")
    if best["tiles"] != other["tiles"]:
        cautions.append("the two were scored on different numbers of tiles")
    ends = [*best["interval_95"], *other["interval_95"]]
    if not cautions and all(is_number(end) for end in ends):
        apart = best["interval_95"][0] > other["interval_95"][1]
        overlap = "their intervals overlap, so these tiles do not decide which is better"
        cautions.append("their intervals do not overlap" if apart else overlap)
    return ["; ".join([text, *cautions]) + "."]


def _range_of_folds(name: str, scores: Mapping[str, Any]) -> list[str]:
    scored = [fold for fold in scores["folds"] if is_number(fold["auc"])]
    if len(scored) < 2:
        return []
    low, high = min(scored, key=lambda fold: fold["auc"]), max(scored, key=lambda fold: fold["auc"])
    return [
        f"The folds of {name} range from {decimals(low['auc'])} (fold {low['fold']}) to "
        f"{decimals(high['auc'])} (fold {high['fold']}), a difference of "
        f"{decimals(high['auc'] - low['auc'])}."
    ]


def _average(numbers: Mapping[str, Any], best: float) -> list[str]:
    average = numbers["experiment_average"]
    if average is None:
        return []
    gain = average["auc"] - best
    comparison = f"{decimals(abs(gain))} {'above' if gain > 0 else 'below'}"
    if abs(gain) < _SAME:
        comparison = "equal to four decimals to"
    return [
        f"The unweighted mean of all experiments has AUC {decimals(average['auc'])} on "
        f"{count(average['tiles'])} tiles, {comparison} the best single experiment."
    ]


def calibration_verdict(calibration: Mapping[str, Any]) -> str:
    """Sentences on the calibration: error, bias of the probabilities, effect of Platt scaling."""
    before, after = calibration["expected_calibration_error"]
    slopes = [scaling["slope"] for scaling in calibration["platt_scaling"]]
    if min(slopes) > 1:
        bias = "are too close to 0.5 (the slope is above 1 in every fold)"
    elif max(slopes) < 1:
        bias = "are too close to 0 and 1 (the slope is below 1 in every fold)"
    else:
        bias = "have no consistent bias (the slope is above 1 in some folds, not in all)"
    change = f"{'lowers' if after < before else 'raises'} the error to {decimals(after)}"
    if abs(after - before) < _SAME:
        change = "does not change the error"
    return (
        f"The expected calibration error is {decimals(before)}. The probabilities {bias}. "
        f"Platt scaling fitted on the other folds {change}."
    )


def _calibration(name: str, scores: Mapping[str, Any]) -> list[str]:
    calibration = scores["calibration"]
    return [] if calibration is None else [f"{name}: {calibration_verdict(calibration)}"]


def _thresholds(name: str, scores: Mapping[str, Any]) -> list[str]:
    if scores.get("f1_at_thresholds") is None:
        return []
    half, tuned = scores["f1_at_half"], scores["f1_at_thresholds"]
    change = f"{decimals(tuned)} ({'higher' if tuned > half else 'lower'})"
    if abs(tuned - half) < _SAME:
        change = "the same"
    text = f"F1 is {decimals(half)} at threshold 0.5 and {change} at thresholds chosen on the other folds"
    return [f"{name}: {text}."]


def _attribution(name: str, scores: Mapping[str, Any]) -> list[str]:
    explained = scores["explained"]
    if explained is None:
        return []
    share = explained["mean"]
    return [
        f"{name}: {percent(share)} of the attribution ({explained['method']}, "
        f"{several(explained['tiles'], 'tumour tile')}) is in the centre that decides the label, "
        f"{share / CENTRE_SHARE:.2f} times the {percent(CENTRE_SHARE)} of a uniform map."
    ]


def _holdout(numbers: Mapping[str, Any]) -> list[str]:
    holdout = numbers["holdout"]
    if holdout is None:
        return []
    low, high = holdout["interval_95"]
    uncertainty = f" (95 % interval {interval(low, high)})" if is_number(low) else ""
    medal = f", MLE-bench's grade {holdout['medal']}" if holdout["medal"] else ""
    return [
        f"On the hold-out {holdout['name']}, which no fold learned from, the ensemble has AUC "
        f"{decimals(holdout['auc'])} on {count(holdout['tiles'])} tiles{uncertainty}{medal}. "
        f"{caution_of(holdout['name'])}"
    ]


def _is_kaggle(score: Mapping[str, Any] | None) -> bool:
    return score is not None and score["scored_by"] == "Kaggle"


def _is_scored(score: Mapping[str, Any] | None) -> bool:
    return score is not None and (is_number(score["public"]) or is_number(score["private"]))


def _score(numbers: Mapping[str, Any]) -> list[str]:
    score = numbers["leaderboard"]
    if score is None or not _is_scored(score):
        return []
    shown = " and ".join(
        f"{decimals(score[name])} {name}" for name in ("public", "private") if is_number(score[name])
    )
    if _is_kaggle(score):
        return [f"The submission scored {shown} on Kaggle's leaderboard."]
    return [f"The submission scored {shown}, scored by {scored_by(score)}: {_REHEARSAL}."]


def scored_by(score: Mapping[str, Any]) -> str:
    """The name of the service that scored the submission."""
    return score["scored_by"] or "an unnamed service"


def _optimism_of_splits(numbers: Mapping[str, Any], ranked: Sequence[str]) -> list[str]:
    experiments = numbers["experiments"]
    sentences = []
    for pair in split_pairs(numbers):
        stratified, grouped, gap = pair["stratified"], pair["grouped"], pair["difference"]
        comparison = f"an AUC {decimals(abs(gap))} {'higher' if gap > 0 else 'lower'} than"
        if abs(gap) < _SAME:
            comparison = "the same AUC to four decimals as"
        sentences.append(
            f"Stratified folds ({stratified['experiment']}, {decimals(stratified['auc'])}) gave {comparison} "
            f"{grouped['split']} folds ({grouped['experiment']}, {decimals(grouped['auc'])})."
        )
    if stratified_names := [name for name in ranked if experiments[name]["split"] == "stratified"]:
        sentences.append(
            f"The folds of {' and '.join(stratified_names)} are stratified: tiles of one slide are in "
            "training and validation folds at the same time, so such scores are usually optimistic."
        )
    if transductive := [name for name in ranked if experiments[name]["transductive"]]:
        sentences.append(
            f"Transductive, so not comparable with scores that are not: {', '.join(transductive)}."
        )
    if len(ranked) > 1:
        sentences.append(
            "The best experiment was chosen by the score that is reported for it: this is optimistic."
        )
    return sentences


def _score_not_known(numbers: Mapping[str, Any]) -> list[str]:
    score = numbers["leaderboard"]
    sentences = []
    if score is None:
        sentences.append(
            "The leaderboard score is not known: no submission of this campaign has been scored."
        )
    elif not _is_scored(score):
        sentences.append(
            f"The leaderboard score is not known: {scored_by(score)} accepted the submission without a score."
        )
    elif not _is_kaggle(score):
        sentences.append(f"The score on Kaggle is not known: the score shown is {_REHEARSAL}.")
    if numbers["place"] == "rehearsal" and (score is None or _is_kaggle(score)):
        sentences.append("The result on Kaggle's machines is not known: this report was made in a rehearsal.")
    if not numbers["has_inference"]:
        sentences.append(
            "The test tiles have no predictions: there is no usable output of an inference kernel."
        )
    return sentences


def _limitations_of(name: str, scores: Mapping[str, Any], numbers: Mapping[str, Any]) -> list[str]:
    """The limitations of one experiment, without its name."""
    sentences = []
    folds, expected = len(scores["folds"]), scores["folds_expected"]
    if folds < expected:
        missing = several(expected - folds, "fold")
        sentences.append(f"{missing} of {expected} {'is' if expected - folds == 1 else 'are'} missing.")
    compared = any(pair["stratified"]["experiment"] == name for pair in split_pairs(numbers))
    if scores["split"] == "stratified" and not compared:
        sentences.append("it was not run on grouped folds, so it is not known how optimistic its folds are.")
    if scores["split"] in GROUPED and scores["grouping"] == "stain groups":
        sentences.append("its slides are not known; stain groups replace them, and may split or join slides.")
    if not is_number(scores["interval_95"][0]):
        reason = describe_interval([None, None], groups=scores["groups"], grouping=scores["grouping"])
        sentences.append(f"the uncertainty of its AUC is not known: {reason}.")
    elif scores["groups"] < _ENOUGH_GROUPS:
        groups = f"{scores['groups']} {scores['grouping']}"
        sentences.append(f"its interval is itself uncertain, because only {groups} are resampled.")
    if folds > 1 and scores["calibration"] is None:
        sentences.append("its calibration is not known: Platt scaling cannot be fitted to these scores.")
    elif folds == 1:
        sentences.append("a tuned threshold and the calibration need at least two folds.")
    if scores["members"] == 1 and scores["train_mode"] != "linear_probe":
        sentences.append(
            "other seeds may give other scores: each fold was trained once, and the folds were drawn once."
        )
    else:
        sentences.append(
            f"other folds may give other scores: the folds were drawn once, with seed {scores['seed']}."
        )
    if scores["explained"] is None:
        sentences.append("it is not known how much of its attribution is in the centre.")
    return sentences
