"""Summary: the result, its uncertainty, how it was obtained, and the three most important caveats."""

from collections.abc import Mapping
from typing import Any

from lib.evaluation.out_of_fold import describe_interval
from lib.report.conclusion import caveats, scored_by
from lib.report.context import ReportContext
from lib.report.formatting import count, decimals, interval, is_number, several
from lib.report.page import Block, Fact, Facts, Heading, Items

_FOLDS = {
    "stratified": "random tiles, both classes in proportion; tiles of one slide are on both sides",
    "stain": "whole stain groups",
    "slide": "whole slides",
}


def summary(context: ReportContext) -> list[Block]:
    """The box with the result, and three caveats."""
    numbers = context.numbers
    facts = [
        _result(numbers),
        *_holdout(numbers),
        *_leaderboard(numbers),
        *_folds(context),
        _tiles(numbers),
        Fact("Report made", numbers["date"], "UTC"),
        _code(numbers),
    ]
    return [Facts(facts), Heading("Three caveats"), Items(caveats(numbers))]


def _result(numbers: Mapping[str, Any]) -> Fact:
    experiments = numbers["experiments"]
    if not experiments:
        return _trial(numbers)
    name = max(experiments, key=lambda each: experiments[each]["auc"])
    scores, average = experiments[name], numbers["experiment_average"]
    label = "Pooled out-of-fold AUC" + (
        f" of {name}, the best of {len(experiments)}" if len(experiments) > 1 else ""
    )
    details = [describe_interval(scores["interval_95"], groups=scores["groups"], grouping=scores["grouping"])]
    details.append(f"n = {count(scores['tiles'])} tiles")
    if scores["transductive"]:
        details.append("transductive")
    if average is not None:
        details.append(f"mean of all experiments {decimals(average['auc'])}")
    return Fact(label, decimals(scores["auc"]), "; ".join(details))


def _trial(numbers: Mapping[str, Any]) -> Fact:
    """The best trial of a search, where no experiment was trained on all folds."""
    trial = numbers["best_trial"]
    if trial is None:
        return Fact("Pooled out-of-fold AUC", "not known", "no fold of any experiment could be scored")
    chosen = f"the best of {several(trial['trials'], 'trial')} of the search of {trial['experiment']}"
    uncertainty = (
        f"95 % interval {interval(*trial['interval_95'])}; " if is_number(trial["interval_95"][0]) else ""
    )
    return Fact(
        "Out-of-fold AUC of the best trial",
        decimals(trial["auc"]),
        f"{uncertainty}{chosen}: chosen by this score, so optimistic",
    )


def _holdout(numbers: Mapping[str, Any]) -> list[Fact]:
    holdout = numbers["holdout"]
    if holdout is None:
        return []
    details = [
        describe_interval(holdout["interval_95"], groups=holdout["groups"] or 0, grouping=holdout["grouping"])
    ]
    details.append(f"n = {count(holdout['tiles'])} tiles that no fold learned from")
    return [Fact(f"Hold-out {holdout['name']}, the ensemble", decimals(holdout["auc"]), "; ".join(details))]


def _leaderboard(numbers: Mapping[str, Any]) -> list[Fact]:
    score = numbers["leaderboard"]
    if score is None:
        return [Fact("Leaderboard", "no score", "no submission of this campaign has been scored")]
    shown = ", ".join(
        f"{name} {decimals(score[name])}" for name in ("private", "public") if is_number(score[name])
    )
    label = "Kaggle's leaderboard" if score["scored_by"] == "Kaggle" else f"Scored by {scored_by(score)}"
    if not shown:
        label = f"Submission to {scored_by(score)}"
    return [
        Fact(label, shown or "accepted, no score", f"submission of {score['at'][:10]}" if score["at"] else "")
    ]


def _folds(context: ReportContext) -> list[Fact]:
    """How the folds were made; one fact for each kind among the experiments."""
    kinds: dict[tuple[str, int, int], list[str]] = {}
    for name, scores in context.numbers["experiments"].items():
        kinds.setdefault((scores["split"], scores["folds_expected"], scores["seed"]), []).append(name)
    facts = []
    for (split, folds, seed), names in kinds.items():
        members = sorted({context.numbers["experiments"][name]["members"] for name in names})
        networks = f"{' or '.join(map(str, members))} network{'' if members == [1] else 's'} per fold"
        label = "Folds" + (f" of {', '.join(names)}" if len(kinds) > 1 else "")
        facts.append(Fact(label, f"{folds}, {split}", f"{_FOLDS.get(split, split)}; seed {seed}; {networks}"))
    return facts


def _tiles(numbers: Mapping[str, Any]) -> Fact:
    value = f"{count(numbers['labelled'])} labelled, {count(numbers['test_tiles'])} test"
    parts = {True: "all of the competition", False: "not all of the competition", None: ""}
    return Fact("Tiles", value, parts[numbers["is_full"]])


def _code(numbers: Mapping[str, Any]) -> Fact:
    return Fact("Code", "; ".join(numbers["code"]) or "not recorded")
