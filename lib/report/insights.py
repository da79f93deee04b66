"""Insights: the effect of balance, augmentation, schedule, views and others, where runs show them."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd

from lib.config import NEUTRAL_OPTIONS, Config
from lib.evaluation.out_of_fold import Summary
from lib.report.formatting import decimals, is_number, percent, several
from lib.report.inputs import KernelOutput, read_history
from lib.search_space import TABLE

_FEW_VALUES = 6  # of an option in a search: each gets a row; more are split at their median
_LISTED = 6  # options in which two experiments differ
# Options that change no score, or whose effect the section on splits shows.
_IGNORED = {
    *NEUTRAL_OPTIONS,
    "device",
    "eval_every",
    "eval_tiles",
    "eval_batch_size",
    "seed",
    "verify",
    "fold_split",
}
# The loss of a training is not the cross-entropy of its tiles with these.
_OTHER_LOSS = ("mixup", "cutmix", "label_smoothing")
SUBJECTS = {
    "balance": ("class_balance",),
    "augmentation": (
        "flip",
        "rotate",
        "hed_jitter",
        "brightness",
        "contrast",
        "saturation",
        "hue",
        "stain_normalisation",
        "mixup",
        "cutmix",
    ),
    "schedule": ("schedule", "learning_rate", "warmup_epochs", "epochs", "layer_decay", "freeze_epochs"),
    "test-time views": ("tta_views",),
    "networks per fold": ("num_members",),
}
_OTHER = "other options"


@dataclass(frozen=True)
class Insight:
    """An observation.

    Attributes:
        subject: a key of `SUBJECTS`, or other options.
        text: sentences.
        source: the run or search that shows it.
        varied: whether the source has runs or predictions with and without it.
    """

    subject: str
    text: str
    source: str
    varied: bool = False


def insights(
    summaries: Sequence[Summary],
    folds: Mapping[str, Sequence[KernelOutput]],
    searches: Sequence[KernelOutput],
) -> list[Insight]:
    """All observations, in the order of `SUBJECTS`, and for a subject without one that nothing varied it.

    Raises:
        InputError: a history or the table of a search cannot be read.
    """
    found = [*_compared(summaries)]
    for output in searches:
        found += _searched(output)
    for summary in summaries:
        outputs = folds[summary.experiment]
        found += [*_balance(summary), *_augmentation(summary, outputs)]
        found += [*_schedule(summary, outputs), *_views(summary, outputs), *_networks(summary)]
    order = [*SUBJECTS, _OTHER]
    varied = {insight.subject for insight in found if insight.varied}
    for subject, options in SUBJECTS.items():
        if subject not in varied:
            text = (
                f"Not varied: no two comparable experiments and no search differ in {_either(options)} "
                "alone, so the "
                "effect is not known."
            )
            found.append(Insight(subject, text, "nothing in this report"))
    return sorted(found, key=lambda insight: order.index(insight.subject))


def _either(options: Sequence[str]) -> str:
    names = [option.replace("_", " ") for option in options]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _subject(options: Sequence[str]) -> str:
    """The subject that all of these options belong to."""
    for subject, members in SUBJECTS.items():
        if all(option in members for option in options):
            return subject
    return _OTHER


def _compared(summaries: Sequence[Summary]) -> Iterator[Insight]:
    """Every pair of experiments: the options in which they differ, and the difference of their AUC."""
    for first, second in itertools.combinations(summaries, 2):
        if first.config.fold_split != second.config.fold_split or first.transductive != second.transductive:
            continue  # their scores cannot be compared
        changed = _differences(first.config, second.config)
        if not changed:
            continue
        better, worse = (first, second) if first.pooled >= second.pooled else (second, first)
        values = [
            f"{name} {getattr(better.config, name)} instead of {getattr(worse.config, name)}"
            for name in changed[:_LISTED]
        ]
        more = f" and {len(changed) - _LISTED} more" if len(changed) > _LISTED else ""
        text = (
            f"{better.experiment} ({', '.join(values)}{more}) has an AUC "
            f"{decimals(better.pooled - worse.pooled)} above "
            f"{worse.experiment}."
        )
        ends = [*better.interval, *worse.interval]
        if all(map(is_number, ends)) and better.interval[0] <= worse.interval[1]:
            text += " Their intervals overlap."
        if len(changed) > 1:
            text += " They differ in more than one option, so the effect of each is not known."
        yield Insight(_subject(changed), text, f"{first.experiment} and {second.experiment}", varied=True)


def _differences(first: Config, second: Config) -> list[str]:
    return [
        field.name
        for field in fields(Config)
        if field.name not in _IGNORED and getattr(first, field.name) != getattr(second, field.name)
    ]


def _searched(output: KernelOutput) -> Iterator[Insight]:
    """Of each option of a search: the mean AUC of its trials by value."""
    for effect in search_effects(output):
        best, worst = max(effect.rows, key=lambda row: row.mean), min(effect.rows, key=lambda row: row.mean)
        text = (
            f"{effect.option.replace('_', ' ')} {best.value}: mean AUC {decimals(best.mean)} of "
            f"{several(best.trials, 'trial')}; {worst.value}: {decimals(worst.mean)} of "
            f"{several(worst.trials, 'trial')}."
        )
        source = f"search of {output.record.experiment}; other options vary too"
        yield Insight(_subject([effect.option]), text, source, varied=True)


@dataclass(frozen=True)
class EffectRow:
    """The trials of a search with one value, or a range of values, of an option."""

    value: str
    trials: int
    mean: float
    best: float


@dataclass(frozen=True)
class Effect:
    """An option of a search with the scores of its values."""

    option: str
    rows: Sequence[EffectRow]


def search_effects(output: KernelOutput) -> list[Effect]:
    """The scores of a search by the values of each option; options with one value only are left out.

    Pruned and failed trials are not used: a pruned trial trained for fewer epochs.

    Raises:
        InputError: the table of the search cannot be read.
    """
    space = (output.record.scores.get("search") or {}).get("space") or {}
    options = list(space.get("space") or {})
    if not output.holds(TABLE) or not options:
        return []
    table = output.read_table(TABLE, ("status", "auc"))
    scored = table[(table["status"] == "finished") & table["auc"].notna()]
    effects = []
    for option in (name for name in options if name in scored):
        rows = _rows_of(scored[option], scored["auc"])
        if len(rows) > 1:
            effects.append(Effect(option, rows))
    return effects


def _rows_of(values: "pd.Series[Any]", scores: "pd.Series[Any]") -> list[EffectRow]:
    numeric = pd.to_numeric(values, errors="coerce")
    if values.nunique() > _FEW_VALUES and numeric.notna().all():
        upper = numeric > numeric.median()
        halves = [mask for mask in (~upper, upper) if mask.any()]
        masks = {f"{numeric[half].min():.3g} to {numeric[half].max():.3g}": half for half in halves}
    else:
        masks = {str(value): values == value for value in sorted(values.unique(), key=str)}
    return [
        EffectRow(name, int(mask.sum()), float(scores[mask].mean()), float(scores[mask].max()))
        for name, mask in masks.items()
    ]


def _balance(summary: Summary) -> Iterator[Insight]:
    """What the balance of the data does to decisions at 0.5."""
    (_, false_positives), (false_negatives, true_positives) = summary.decisions["confusion_at_half"]
    tiles = len(summary.table)
    called = (true_positives + false_positives) / tiles
    share = (true_positives + false_negatives) / tiles
    balanced = {
        "none": "Without class balancing",
        "loss": "With positives weighted in the loss",
        "sampler": "With both classes drawn equally often",
    }[summary.config.class_balance]
    if summary.config.train_mode == "linear_probe":
        balanced = "Without class balancing"
    text = (
        f"{balanced}, {percent(called)} of the tiles are called tumour at threshold 0.5, where "
        f"{percent(share)} are: "
        f"{'too many' if called > share else 'too few' if called < share else 'as many as there are'}"
        f"{f', by {percent(abs(called - share))} of all tiles' if called != share else ''}."
    )
    yield Insight("balance", text, f"out-of-fold decisions of {summary.experiment}")


def _augmentation(summary: Summary, outputs: Sequence[KernelOutput]) -> Iterator[Insight]:
    """The gap between training and out-of-fold loss, which augmentation is to keep small."""
    config = summary.config
    if config.class_balance == "loss" or any(getattr(config, name) for name in _OTHER_LOSS):
        return
    losses = [lines[-1]["loss"] for lines in _histories(outputs) if is_number(lines[-1].get("loss"))]
    if not losses:
        return
    scores = summary.table["probability"].to_numpy().clip(1e-7, 1 - 1e-7)
    labels = summary.table["label"].to_numpy()
    outside = float(-np.where(labels == 1, np.log(scores), np.log1p(-scores)).mean())
    inside = float(np.mean(losses))
    verdict = (
        "the networks fit the tiles that they learn from better than new ones, so stronger augmentation may "
        "help"
        if outside > 1.2 * inside
        else "the networks do not overfit, so stronger augmentation is not called for"
    )
    text = (
        f"The mean cross-entropy is {decimals(inside, 3)} in the last epoch of training (augmented tiles) "
        "and "
        f"{decimals(outside, 3)} out of fold: {verdict}."
    )
    yield Insight("augmentation", text, f"loss of {several(len(losses), 'network')} of {summary.experiment}")


def _schedule(summary: Summary, outputs: Sequence[KernelOutput]) -> Iterator[Insight]:
    """Where the validation AUC stood before the learning rate fell, and at the end."""
    validated = [
        [(line["epoch"], line["validation_auc"]) for line in lines if is_number(line.get("validation_auc"))]
        for lines in _histories(outputs)
    ]
    curves = [curve for curve in validated if len(curve) > 1 and curve[0][0] != curve[-1][0]]
    if not curves:
        return
    first, last = (float(np.mean([curve[end][1] for curve in curves])) for end in (0, -1))
    behind = [max(score for _, score in curve) - curve[-1][1] for curve in curves]
    at_end = sum(gap <= 0 for gap in behind)
    text = (
        f"The validation AUC goes from {decimals(first)} after epoch {curves[0][0][0]} to {decimals(last)} "
        "after epoch "
        f"{curves[0][-1][0]}, when the rate has fallen to zero. It is highest at the end in {at_end} of "
        f"{several(len(curves), 'network')}"
    )
    text += (
        "." if at_end == len(curves) else f"; in the others it was {decimals(max(behind))} higher at most."
    )
    yield Insight("schedule", text, f"history of {several(len(curves), 'network')} of {summary.experiment}")


def _views(summary: Summary, outputs: Sequence[KernelOutput]) -> Iterator[Insight]:
    """The AUC of all views minus that of one, on the same tiles and weights."""
    pairs = [
        (lines[-1]["validation_auc"], lines[-1]["all_views_auc"])
        for lines in _histories(outputs)
        if is_number(lines[-1].get("validation_auc")) and is_number(lines[-1].get("all_views_auc"))
    ]
    if not pairs:
        return
    gains = [after - before for before, after in pairs]
    text = (
        f"{summary.config.tta_views} views instead of one change the AUC by {np.mean(gains):+.4f} on average "
        f"({min(gains):+.4f} to {max(gains):+.4f}), with the same weights and tiles."
    )
    source = f"{several(len(pairs), 'network')} of {summary.experiment}, one view and all views"
    yield Insight("test-time views", text, source, varied=True)


def _networks(summary: Summary) -> Iterator[Insight]:
    """The AUC of a fold's average minus the mean AUC of its networks."""
    gains = []
    for record in summary.records:
        members = [
            float(member.get("auc", "nan"))
            for member in record.scores.get("members") or ()
            if isinstance(member, Mapping)
        ]
        together = (record.scores.get("fold") or {}).get("auc")
        if len(members) > 1 and all(map(is_number, members)) and is_number(together):
            gains.append(together - float(np.mean(members)))
    if not gains:
        return
    text = (
        f"The average of a fold's networks has an AUC {np.mean(gains):+.4f} from the mean of the single "
        "networks "
        f"({min(gains):+.4f} to {max(gains):+.4f})."
    )
    source = f"{several(len(gains), 'fold')} of {summary.experiment}, single networks and their average"
    yield Insight("networks per fold", text, source, varied=True)


def _histories(outputs: Sequence[KernelOutput]) -> list[list[dict[str, Any]]]:
    """The lines of every network that has a history with losses."""
    histories = [read_history(output, member) for output in outputs for member in output.record.members]
    return [lines for lines in histories if lines and is_number(lines[-1].get("loss"))]
