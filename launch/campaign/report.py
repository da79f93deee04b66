"""The report of a campaign: what its notebook is told that no kernel knows, and the same notebook run on this machine."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from launch.campaign.ledger import LEDGER_NAME, campaign_lock, read_ledger, spec_of
from launch.campaign.outputs import OUTPUTS
from launch.campaign.spec import uses_emulator
from launch.campaign.submission import LEADERBOARD
from launch.errors import LaunchError
from launch.packaging.builder import Checkout, read_checkout
from launch.plan import REPORT_PAGE, Kernel
from launch.sandbox import Mount, run_script
from launch.summary import summarise
from lib.evaluation.out_of_fold import Summary
from lib.runtime.run_record import RunRecordError, read_run_record

REHEARSAL_NOTES = "rehearsal.json"  # in a campaign's folder: sentences for its report
EMULATOR_NOTE = "This is a rehearsal: its kernels ran against an emulated Kaggle, on this machine. Nothing in it was scored by Kaggle."
NOTEBOOK = "report.ipynb"
_LOG_LINES = 25  # of a notebook that failed, shown


def report_facts(folder: Path, kernels: Sequence[Kernel]) -> dict[str, Any]:
    """What the report is told: the campaign's name, the leaderboard's answer, and results of other campaigns beside it.

    Args:
        folder: of the campaign; those it is compared with lie beside it.
        kernels: of its plan.
    """
    ledger = read_ledger(folder)
    facts: dict[str, Any] = {"campaign": ledger.campaign if ledger is not None else folder.name}
    try:
        content = json.loads((folder / LEADERBOARD).read_bytes())
        facts["leaderboard"] = {
            name: content[name] for name in ("scored_by", "submission", "mean_of_experiments_auc")
        }
    except (OSError, ValueError, KeyError):
        pass  # not submitted, or not yet: the report says so
    if rehearsal := _rehearsal(folder):
        facts["rehearsal"] = rehearsal
    if beside := _other_splits(folder, kernels):
        facts["other_campaigns"] = beside
    return facts


def _rehearsal(folder: Path) -> list[str]:
    """What the report must say of a rehearsal: what was not Kaggle, not the competition's tiles, not real weights."""
    try:
        return [str(line) for line in json.loads((folder / REHEARSAL_NOTES).read_bytes())]
    except (OSError, ValueError, TypeError):
        return [EMULATOR_NOTE] if uses_emulator() else []


def _other_splits(folder: Path, kernels: Sequence[Kernel]) -> list[dict[str, Any]]:
    """Results of other campaigns whose experiments differ from one of these in nothing but the split."""
    ours = {kernel.experiments[0]: kernel.configs[0] for kernel in kernels if kernel.kind == "train"}
    found = []
    for place in sorted(folder.parent.glob(f"*/{LEDGER_NAME}")):
        if place.parent == folder:
            continue
        for name, config, summary in _finished(place.parent):
            if any(
                replace(config, fold_split=each.fold_split) == each and config.fold_split != each.fold_split
                for each in ours.values()
            ):
                found.append(
                    {
                        "name": place.parent.name,
                        "experiment": name,
                        "backbone": config.backbone,
                        "split": config.fold_split,
                        "pooled": summary.pooled,
                        "interval": list(summary.interval),
                        "tiles": len(summary.table),
                        "folds": summary.folds["auc"].tolist(),
                        "transductive": summary.transductive,
                    }
                )
    return found


def _finished(folder: Path) -> list[tuple[str, Any, Summary]]:
    """The experiments of a campaign whose folds are all here; none where its plan or its outputs cannot be read."""
    try:
        spec = spec_of(folder)
        kernels = spec.plan()
        return [
            (each.name, each.config, summarise(each.name, kernels, lambda slug: folder / OUTPUTS / slug))
            for each in spec.experiments
        ]
    except (LaunchError, RunRecordError, OSError, ValueError, KeyError):
        return []  # of other code, or not at its end: nothing to compare with


def leave_notebook(source: Checkout, kernel: Kernel, folder: Path) -> Path:
    """Write report.ipynb into a campaign's folder, where it finds the outputs when it is opened in Jupyter."""
    scratch = folder / ".report"
    source.write_kernel(kernel, scratch)
    path = folder / NOTEBOOK
    (scratch / kernel.file_name).replace(path)
    shutil.rmtree(scratch)
    return path


def make_report(folder: Path, *, say: Callable[[str], None]) -> Path:
    """Make the report of a campaign on this machine, from the outputs that were fetched; returns the page.

    What is not there yet is named in the report.

    Raises:
        LaunchError: nothing was fetched yet, or the notebook failed.
    """
    with campaign_lock(folder.parent):
        spec = spec_of(folder)
        kernels = spec.plan()
        kernel = next(each for each in kernels if each.kind == "report")
        searched = tuple(
            each.slug for each in kernels if each.kind == "search" and (folder / OUTPUTS / each.slug).is_dir()
        )
        kernel = replace(kernel, facts=report_facts(folder, kernels), sources=(*kernel.sources, *searched))
        there = [slug for slug in kernel.sources if (folder / OUTPUTS / slug).is_dir()]
        if not there:
            raise LaunchError(
                f"{folder / OUTPUTS} holds no output yet: build_kernel.py run makes and fetches them"
            )
        notebook = leave_notebook(read_checkout(owner=spec.owner or None), kernel, folder)
        say(
            f"{notebook}: opens in Jupyter; running it here, on {len(there)} of {len(kernel.sources)} outputs"
        )
        place = folder / "report"
        outcome = run_script(
            notebook,
            folder=place,
            mounts=[
                Mount(folder / OUTPUTS / slug, f"notebooks/{spec.owner or 'owner'}/{slug}") for slug in there
            ],
            place="local",
            threads=1,
            network=False,
            limit=None,
        )
    if outcome.code != 0:
        lines = outcome.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
        raise LaunchError(
            f"the report failed; the end of its log ({outcome.log}):\n"
            + "\n".join(f"    {each}" for each in lines)
        )
    read_run_record(place / "working", kind="report")
    return place / "working" / REPORT_PAGE
