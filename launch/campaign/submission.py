"""The submission: sent once, waited for, recorded with everything that stands behind it."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.campaign.clock import stamp
from launch.campaign.ledger import FAILED, INTENDED, Ledger, SubmissionEntry
from launch.campaign.waits import Timeouts
from launch.errors import LaunchError
from launch.kaggle_api.client import Kaggle
from launch.kaggle_api.errors import ClientError, CredentialsError, NoResponseError, RefusedError
from launch.kaggle_api.types import Submission
from lib.errors import KernelError
from lib.evaluation.calibration import calibration_numbers
from lib.evaluation.out_of_fold import Summary, average_experiments
from lib.files import sha256_of, write_atomic
from lib.inference.submission import check_submission
from lib.runtime.inputs import COMPETITION

LEADERBOARD, PICTURE = "leaderboard.json", "leaderboard.png"
_SENT, _SCORED = "sent", "scored"
_TRIES = 3


def submit_file(
    kaggle: Kaggle,
    ledger: Ledger,
    path: Path,
    *,
    sample: Path,
    text: str,
    timeouts: Timeouts,
    say: Callable[[str], None],
) -> SubmissionEntry:
    """Send a submission unless it was sent already, and wait for its score.

    Args:
        kaggle: the account.
        ledger: where it is noted before it is sent.
        path: submission.csv.
        sample: sample_submission.csv, which it must match.
        text: what the message says besides campaign and hash.
        timeouts: limits of the waits.
        say: takes a line that stays.

    Raises:
        LaunchError: the file is not a submission, it was refused, it scored with an error, or no score came.
    """
    try:
        check_submission(path.read_text(encoding="utf-8"), sample.read_bytes())
    except KernelError as error:
        raise LaunchError(f"{path}: {error}") from error
    digest = sha256_of(path)
    mark = f"hcd {ledger.id} {digest[:16]}"
    entry = next(
        (each for each in ledger.submissions if each.sha256 == digest and each.state != FAILED), None
    )
    if entry is None:
        entry = SubmissionEntry(sha256=digest, message=f"{mark} {text}".strip(), at=stamp())
        ledger.submissions.append(entry)
        ledger.save()
        _send(kaggle, ledger, entry, path, say)
    for _ in range(_TRIES):
        if entry.state != INTENDED or _is_listed(kaggle, ledger, entry, mark, timeouts):
            break
        say("the submission did not arrive, sending it")
        _send(kaggle, ledger, entry, path, say)
    if entry.state == INTENDED and not _is_listed(kaggle, ledger, entry, mark, timeouts):
        raise LaunchError(
            f"the submission was sent {_TRIES + 1} times and never arrived. The same command tries again."
        )
    if entry.state == _SENT:
        _wait_for_score(kaggle, ledger, entry, mark, timeouts, say)
    return entry


def _send(
    kaggle: Kaggle, ledger: Ledger, entry: SubmissionEntry, path: Path, say: Callable[[str], None]
) -> None:
    """Once. What the service refuses did not happen; what it does not answer is proved by the list."""
    try:
        said = kaggle.submit(path, message=entry.message)
    except CredentialsError:
        raise
    except RefusedError as error:
        entry.state, entry.note = FAILED, str(error)
        ledger.save()
        remedy = {
            400: "Kaggle takes a few submissions a day; after the day's end (UTC) the same command submits this file.",
            403: f"Accept the rules once in the browser: kaggle.com/competitions/{COMPETITION}/rules",
            404: "The competition takes no submissions any more, or is not yours to see.",
        }.get(error.status, "")
        raise LaunchError(f"{error}\n{remedy} Everything else is done and kept.") from error
    except NoResponseError as error:
        say(f"{error}; looking whether the submission arrived before sending it again")
        return
    entry.state = _SENT
    ledger.save()
    say(f"submitted: {said or 'Kaggle said nothing more'}")


def _is_listed(kaggle: Kaggle, ledger: Ledger, entry: SubmissionEntry, mark: str, timeouts: Timeouts) -> bool:
    """Whether the list shows the submission; a list lags, so its absence is believed after a while only."""
    until = time.monotonic() + timeouts.score_settle
    while True:
        found = _find(kaggle, mark)
        if found is not None:
            entry.state, entry.ref = _SENT, found.ref
            ledger.save()
            return True
        if time.monotonic() > until:
            return False
        time.sleep(timeouts.score_poll)


def _find(kaggle: Kaggle, mark: str) -> Submission | None:
    return next((each for each in kaggle.submissions() if each.message.startswith(mark)), None)


def _wait_for_score(
    kaggle: Kaggle,
    ledger: Ledger,
    entry: SubmissionEntry,
    mark: str,
    timeouts: Timeouts,
    say: Callable[[str], None],
) -> None:
    started = time.monotonic()
    trouble = ""
    while True:
        try:
            found = _find(kaggle, mark)
            trouble = "" if found is not None else "it is not listed"
        except CredentialsError:
            raise
        except ClientError as error:
            found, trouble = None, str(error)
        if found is not None and found.status == "COMPLETE":
            entry.state, entry.ref, entry.public, entry.private = (
                _SCORED,
                found.ref,
                found.public,
                found.private,
            )
            ledger.save()
            return
        if found is not None and found.status == "ERROR":
            entry.state, entry.ref, entry.note = FAILED, found.ref, found.error or "no reason given"
            ledger.save()
            raise LaunchError(
                f"Kaggle could not score the submission ({entry.note}); submission {found.ref}, {entry.message!r}. "
                "The file matches the sample: look at it on the competition's page, then run the same command again."
            )
        if time.monotonic() - started > timeouts.score_timeout:
            seen = trouble or f"its status is {found.status if found is not None else 'unknown'}"
            raise LaunchError(
                f"no score after {timeouts.score_timeout:.0f} s ({seen}). The submission was sent; the same command looks again "
                "and does not send it twice."
            )
        time.sleep(timeouts.score_poll)


def write_leaderboard(
    folder: Path,
    *,
    ledger: Ledger,
    entry: SubmissionEntry,
    summaries: Sequence[Summary],
    records: Mapping[str, Any],
    scored_by: str,
) -> Path:
    """Write leaderboard.json and a picture of the result; returns the path of the record.

    Args:
        folder: of the campaign.
        ledger: of the campaign.
        entry: the scored submission.
        summaries: of its experiments.
        records: the run records of the inference kernel and of every fold, by slug.
        scored_by: who scored it: Kaggle, or the rehearsal's emulated Kaggle.
    """
    members = {}
    for slug, record in records.items():
        output = ledger.kernels[slug].output
        members[slug] = {
            "kind": record.kind,
            "push_id": record.push_id,
            "version": output.version if output is not None else None,
            "bundle_id": record.bundle_id,
            "git_commit": record.git_commit,
            "data_id": record.data_id,
            "fold_table_id": record.fold_table_id,
            "auc": output.auc if output is not None else None,
        }
    content = {
        "competition": COMPETITION,
        "scored_by": scored_by,
        "submission": {
            "ref": entry.ref,
            "message": entry.message,
            "sha256": entry.sha256,
            "public_auc": entry.public,
            "private_auc": entry.private,
            "at": entry.at,
        },
        "campaign": {
            "name": ledger.campaign,
            "id": ledger.id,
            "owner": ledger.owner,
            "created": ledger.created,
        },
        "out_of_fold": {
            summary.experiment: {
                "auc": summary.pooled,
                "interval_95": list(summary.interval),
                "resampled_groups": summary.groups,
                "resampled": summary.grouping,
                "calibration": calibration_numbers(summary.calibration),
                "tiles": len(summary.table),
                "folds": {str(row.fold): row.auc for row in summary.folds.itertuples()},
            }
            for summary in summaries
        },
        "mean_of_experiments_auc": average_experiments(summaries).pooled if len(summaries) > 1 else None,
        "kernels": members,
        "experiments": {each.name: each.config.to_dict() for each in ledger.spec.experiments},
    }
    path = folder / LEADERBOARD
    write_atomic(path, json.dumps(content, indent=1) + "\n")
    _draw(folder / PICTURE, entry=entry, summaries=summaries, scored_by=scored_by)
    return path


def _draw(path: Path, *, entry: SubmissionEntry, summaries: Sequence[Summary], scored_by: str) -> None:
    """Folds, pooled out-of-fold AUC with its interval, and the two leaderboards, side by side."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    labels: list[str] = []
    figure = Figure(figsize=(max(5.0, 1.8 + 1.3 * (2 * len(summaries) + 2)), 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for summary in summaries:
        folds = summary.folds["auc"].to_numpy()
        axes.plot([len(labels)] * len(folds), folds, "o", color="0.45", fillstyle="none")
        labels.append(f"{summary.experiment}\n{len(folds)} folds, each")
        low, high = summary.interval
        at = len(labels)
        axes.errorbar(
            at,
            summary.pooled,
            [[summary.pooled - low], [high - summary.pooled]],
            fmt="s",
            color="black",
            capsize=4,
        )
        axes.annotate(
            f"{summary.pooled:.4f}",
            (at, summary.pooled),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
        )
        labels.append(f"pooled\n95 %, {summary.groups} groups")
    for name, score in (("public", entry.public), ("private", entry.private)):
        at = len(labels)
        labels.append(f"{name}\nleaderboard")
        if score is None:
            axes.annotate("no score", (at, axes.get_ylim()[0]), ha="center", va="bottom", color="0.3")
            continue
        axes.plot([at], [score], "D", color="black")
        axes.annotate(f"{score:.4f}", (at, score), xytext=(8, 0), textcoords="offset points", va="center")
    axes.set_xticks(range(len(labels)), labels, fontsize=8)
    axes.set_xlim(-0.5, len(labels) - 0.3)
    axes.set_ylabel("ROC AUC")
    axes.grid(axis="y", color="0.9")
    tiles = sum(len(summary.table) for summary in summaries[:1])
    axes.set_title(f"Out of fold (n = {tiles:,} tiles) and as scored by {scored_by}", fontsize=10)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130)
    write_atomic(path, stream.getvalue())
