"""Compare a submission with earlier ones before it is sent: gain, submissions left, gap to the leaderboard.

Only campaigns that the same service scored are compared: the score of a rehearsal says nothing about Kaggle.
"""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.campaign.leaderboard import LEADERBOARD
from launch.campaign.ledger import spec_of
from launch.campaign.report import finished_experiments
from launch.errors import LaunchError
from launch.kaggle_api.client import Kaggle
from lib.errors import KernelError
from lib.evaluation.averages import parse_weights
from lib.evaluation.out_of_fold import ExperimentAverage, Summary, average_experiments, gain_of_averages

_CAMPAIGNS_FOR_A_GAP = 3  # with fewer earlier campaigns nothing is said about a gap
_SMALLEST_DEVIATION = 0.005  # AUC
_DEVIATIONS = 3.0  # standard deviations, estimated by the median absolute deviation
_MAD_TO_SIGMA = 1.4826  # of a normal distribution
_SAME_AUC = 1e-9


@dataclass(frozen=True)
class EarlierSubmission:
    """A submission that leaderboard.json of a campaign records.

    Attributes:
        folder: of the campaign.
        name: of the campaign.
        auc: pooled out-of-fold AUC of what was submitted.
        public: AUC on the public leaderboard; None where there is none.
        splits: the fold splits of its experiments, sorted.
        sha256: of the submitted file.
    """

    folder: Path
    name: str
    auc: float
    public: float | None
    splits: tuple[str, ...]
    sha256: str


def earlier_submissions(folder: Path, *, scored_by: str) -> list[EarlierSubmission]:
    """The submissions of all campaigns beside the one in `folder`, and the last one of its own.

    Records that cannot be read, and those of another service, are left out.
    """
    paths = sorted(folder.parent.glob(f"*/{LEADERBOARD}"))
    found = [_read_record(path, scored_by=scored_by) for path in paths]
    return [submission for submission in found if submission is not None]


def _read_record(path: Path, *, scored_by: str) -> EarlierSubmission | None:
    try:
        content = json.loads(path.read_bytes())
        if content["scored_by"] != scored_by:
            return None
        scores = [float(scores["auc"]) for scores in content["out_of_fold"].values()]
        mean, public = content["mean_of_experiments_auc"], content["submission"]["public_auc"]
        splits = {str(config["fold_split"]) for config in content["experiments"].values()}
        return EarlierSubmission(
            folder=path.parent,
            name=str(content["campaign"]["name"]),
            auc=scores[0] if mean is None else float(mean),
            public=None if public is None else float(public),
            splits=tuple(sorted(splits)),
            sha256=str(content["submission"]["sha256"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return None


def describe_before_sending(
    summaries: Sequence[Summary],
    *,
    kaggle: Kaggle,
    folder: Path,
    earlier: Sequence[EarlierSubmission],
    sha256: str,
    weights: Mapping[str, int] | None = None,
) -> list[str]:
    """Lines to print before a submission is sent. What cannot be computed is a line, and never an error.

    Args:
        summaries: of the experiments that are averaged in it.
        kaggle: the account.
        folder: of the campaign.
        earlier: submissions that were scored by the same service.
        sha256: of the file.
        weights: of the experiments, where they are not averaged equally.
    """
    others = [submission for submission in earlier if submission.sha256 != sha256]
    of_others = [submission for submission in others if submission.folder != folder]
    try:
        average = average_experiments(summaries, weights=weights)
    except KernelError as error:
        return [f"out-of-fold AUC of what is submitted: unknown ({error})"]
    parts: list[tuple[str, Callable[[], list[str]]]] = [
        ("out-of-fold AUC", lambda: [_describe_auc(average, len(summaries))]),
        (
            "gain over the best submitted before",
            lambda: [_describe_gain(summaries, average.pooled, others, weights)],
        ),
        ("submissions left today (UTC)", lambda: [_describe_left(kaggle)]),
        ("gap to the leaderboard", lambda: _describe_gaps(_splits(summaries), average.pooled, of_others)),
    ]
    return [line for name, describe in parts for line in _never_failing(name, describe)]


def weights_of(folder: Path) -> dict[str, int]:
    """The weights of the experiments in the average of a campaign; empty where it has none.

    Raises:
        LaunchError: the ledger cannot be read.
    """
    spec = spec_of(folder)
    return parse_weights(spec.average, [experiment.name for experiment in spec.experiments])


def _never_failing(name: str, describe: Callable[[], list[str]]) -> list[str]:
    try:
        return describe()
    except (LaunchError, KernelError, OSError, ValueError, KeyError, TypeError) as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        return [f"{name}: unknown ({first})"]


def _describe_auc(average: ExperimentAverage, experiments: int) -> str:
    what = (
        "out-of-fold AUC" if experiments == 1 else f"out-of-fold AUC of the mean of {experiments} experiments"
    )
    low, high = average.interval
    interval = (
        f"95 % interval {low:.4f} to {high:.4f}"
        if low == low
        else "no interval: fewer than 10 groups are known"
    )
    return f"{what}: {average.pooled:.4f} ({interval}, n = {average.tiles:,} tiles)"


def _describe_gain(
    summaries: Sequence[Summary],
    pooled: float,
    earlier: Sequence[EarlierSubmission],
    weights: Mapping[str, int] | None,
) -> str:
    """The gain in out-of-fold AUC, with its interval where the earlier predictions are still here."""
    if not earlier:
        return "gain over the best submitted before: none was submitted from this folder of campaigns"
    best = max(earlier, key=lambda submission: submission.auc)
    against = f"gain over the best submitted before (campaign {best.name}, out-of-fold AUC {best.auc:.4f})"
    theirs = [summary for _, _, summary in finished_experiments(best.folder)]
    their_weights = weights_of(best.folder) if theirs else {}
    if not theirs or abs(average_experiments(theirs, weights=their_weights).pooled - best.auc) > _SAME_AUC:
        return f"{against}: {pooled - best.auc:+.4f} (no interval: its predictions are not here any more)"
    gain, (low, high), tiles = gain_of_averages(
        summaries, theirs, weights=weights, other_weights=their_weights
    )
    interval = f"95 % interval {low:+.4f} to {high:+.4f}, " if low == low else ""
    return f"{against}: {gain:+.4f} ({interval}on the {tiles:,} tiles that both predicted)"


def _describe_left(kaggle: Kaggle) -> str:
    left = kaggle.submissions_left()
    return f"submissions left today (UTC): {'Kaggle does not say' if left is None else left}"


def _splits(summaries: Sequence[Summary]) -> tuple[str, ...]:
    return tuple(sorted({summary.config.fold_split for summary in summaries}))


def _gaps(earlier: Sequence[EarlierSubmission], splits: tuple[str, ...]) -> dict[str, float]:
    """Public leaderboard AUC minus out-of-fold AUC, by campaign, of those with the same kind of folds."""
    return {
        submission.name: submission.public - submission.auc
        for submission in earlier
        if submission.public is not None and submission.splits == splits
    }


def _describe_gaps(splits: tuple[str, ...], pooled: float, earlier: Sequence[EarlierSubmission]) -> list[str]:
    gaps = _gaps(earlier, splits)
    kind = f"{' and '.join(splits)} folds"
    if len(gaps) < _CAMPAIGNS_FOR_A_GAP:
        return [
            f"gap to the leaderboard: {len(gaps)} earlier campaigns with {kind} have a score; "
            f"{_CAMPAIGNS_FOR_A_GAP} are needed to say anything"
        ]
    middle = statistics.median(gaps.values())
    lines = [
        f"gap to the leaderboard (public minus out-of-fold AUC) in {len(gaps)} earlier campaigns with "
        f"{kind}: median {middle:+.4f} ({min(gaps.values()):+.4f} to {max(gaps.values()):+.4f}); "
        f"this submission would score about {min(pooled + middle, 1.0):.4f}"
    ]
    for name, gap in gaps.items():
        others = [value for other, value in gaps.items() if other != name]
        if is_out_of_line(gap, others):
            lines.append(f"out of line with the other campaigns: {name}, gap {gap:+.4f}")
    return lines


def describe_gap(
    summaries: Sequence[Summary],
    public: float | None,
    *,
    folder: Path,
    earlier: Sequence[EarlierSubmission],
    weights: Mapping[str, int] | None = None,
) -> str:
    """A sentence about the gap of a submission that got its score; empty where nothing can be said."""
    gaps = _gaps([submission for submission in earlier if submission.folder != folder], _splits(summaries))
    if public is None or len(gaps) < _CAMPAIGNS_FOR_A_GAP:
        return ""
    gap = public - average_experiments(summaries, weights=weights).pooled
    middle = statistics.median(gaps.values())
    text = f"gap to the leaderboard: {gap:+.4f}, median of {len(gaps)} earlier campaigns {middle:+.4f}"
    if not is_out_of_line(gap, list(gaps.values())):
        return f"{text}: in line"
    return (
        f"{text}: out of line. Before you trust either score, compare folds, data and code of the campaigns "
        f"({LEADERBOARD} of each)"
    )


def is_out_of_line(gap: float, others: Sequence[float]) -> bool:
    """Whether a gap differs from those of other campaigns by more than 0.005 and three standard deviations.

    Centre and deviation are the median and 1.4826 times the median absolute deviation, so that one odd
    campaign does not hide another. With fewer than three others nothing is out of line.
    """
    if len(others) < _CAMPAIGNS_FOR_A_GAP:
        return False
    middle = statistics.median(others)
    deviation = _MAD_TO_SIGMA * statistics.median(abs(other - middle) for other in others)
    return abs(gap - middle) > max(_SMALLEST_DEVIATION, _DEVIATIONS * deviation)
