"""Write the record and the picture of a scored submission: leaderboard.json and leaderboard.png."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.campaign.ledger import Ledger, SubmissionEntry
from lib.evaluation.averages import parse_weights
from lib.evaluation.calibration import calibration_numbers
from lib.evaluation.out_of_fold import Summary, average_experiments
from lib.files import write_atomic
from lib.runtime.inputs import COMPETITION

LEADERBOARD, PICTURE = "leaderboard.json", "leaderboard.png"


def write_leaderboard(
    folder: Path,
    *,
    ledger: Ledger,
    entry: SubmissionEntry,
    summaries: Sequence[Summary],
    records: Mapping[str, Any],
    scored_by: str,
) -> Path:
    """Write leaderboard.json and leaderboard.png. Returns the path of the record.

    Args:
        folder: of the campaign.
        ledger: of the campaign.
        entry: the scored submission.
        summaries: of its experiments.
        records: the run records of the inference kernel and of every fold, by slug.
        scored_by: who scored it: Kaggle, or the emulated Kaggle of a rehearsal.
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
    mean = None
    if len(summaries) > 1:
        names = [experiment.name for experiment in ledger.spec.experiments]
        weights = parse_weights(ledger.spec.average, names)
        mean = average_experiments(summaries, weights=weights).pooled
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
                "interval_95": summary.ends,
                "resampled_groups": summary.groups,
                "resampled": summary.grouping,
                "calibration": calibration_numbers(summary.calibration),
                "tiles": len(summary.table),
                "folds": {str(row.fold): row.auc for row in summary.folds.itertuples()},
            }
            for summary in summaries
        },
        "mean_of_experiments_auc": mean,
        "kernels": members,
        "experiments": {
            experiment.name: experiment.config.to_dict() for experiment in ledger.spec.experiments
        },
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
        position = len(labels)
        axes.errorbar(
            position,
            summary.pooled,
            [[summary.pooled - low], [high - summary.pooled]],
            fmt="s",
            color="black",
            capsize=4,
        )
        axes.annotate(
            f"{summary.pooled:.4f}",
            (position, summary.pooled),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
        )
        labels.append(f"pooled\n95 %, {summary.groups} groups")
    for name, score in (("public", entry.public), ("private", entry.private)):
        position = len(labels)
        labels.append(f"{name}\nleaderboard")
        if score is None:
            axes.annotate("no score", (position, axes.get_ylim()[0]), ha="center", va="bottom", color="0.3")
            continue
        axes.plot([position], [score], "D", color="black")
        axes.annotate(
            f"{score:.4f}", (position, score), xytext=(8, 0), textcoords="offset points", va="center"
        )
    axes.set_xticks(range(len(labels)), labels, fontsize=8)
    axes.set_xlim(-0.5, len(labels) - 0.3)
    axes.set_ylabel("ROC AUC")
    axes.grid(axis="y", color="0.9")
    tiles = sum(len(summary.table) for summary in summaries[:1])
    axes.set_title(f"Out of fold (n = {tiles:,} tiles) and as scored by {scored_by}", fontsize=10)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130)
    write_atomic(path, stream.getvalue())
