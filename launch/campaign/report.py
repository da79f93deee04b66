"""Collect the facts for the report of a campaign, and run its notebook on this machine."""

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from launch.campaign.leaderboard import LEADERBOARD
from launch.campaign.ledger import LEDGER_NAME, campaign_lock, read_ledger, spec_of
from launch.campaign.outputs import OUTPUTS
from launch.campaign.spec import uses_emulator
from launch.errors import LaunchError
from launch.packaging.builder import Checkout, read_checkout
from launch.plan import REPORT_PAGE, Kernel
from launch.sandbox import Mount, run_script
from launch.summary import summarise
from lib.config import Config
from lib.evaluation.out_of_fold import Summary
from lib.runtime.run_record import RunRecordError, read_run_record

logger = logging.getLogger(__name__)

REHEARSAL_NOTES = "rehearsal.json"  # in the folder of a campaign: sentences for its report
EMULATOR_NOTE = (
    "This is a rehearsal: its kernels ran against an emulated Kaggle, on this machine. Nothing in it was "
    "scored by "
    "Kaggle."
)
NOTEBOOK = "report.ipynb"
REPORT_NUMBERS = "results.json"  # beside the page
REPORT_FORMAT = 1  # of the JSON document; it changes when a key is removed or means something else
_LOG_LINES_SHOWN = 25  # of a notebook that failed


def report_facts(folder: Path, kernels: Sequence[Kernel]) -> dict[str, Any]:
    """The facts that only this machine knows: campaign, scores, notes of a rehearsal, other campaigns.

    Args:
        folder: of the campaign; those it is compared with are beside it.
        kernels: of its plan.
    """
    ledger = read_ledger(folder)
    facts: dict[str, Any] = {"campaign": ledger.campaign if ledger is not None else folder.name}
    try:
        content = json.loads((folder / LEADERBOARD).read_bytes())
        names = ("scored_by", "submission", "mean_of_experiments_auc")
        facts["leaderboard"] = {name: content[name] for name in names}
    except (OSError, ValueError, KeyError):
        pass  # not submitted, or not yet: the report says so
    if notes := _rehearsal_notes(folder):
        facts["rehearsal"] = notes
    if others := _other_splits(folder, kernels):
        facts["other_campaigns"] = others
    return facts


def _rehearsal_notes(folder: Path) -> list[str]:
    """The notes of a rehearsal, which was not on Kaggle and perhaps not on real tiles or weights."""
    try:
        return [str(line) for line in json.loads((folder / REHEARSAL_NOTES).read_bytes())]
    except (OSError, ValueError, TypeError):
        return [EMULATOR_NOTE] if uses_emulator() else []


def _other_splits(folder: Path, kernels: Sequence[Kernel]) -> list[dict[str, Any]]:
    """Results of other campaigns with an experiment that differs from one of these only in the split."""
    configs = {kernel.experiments[0]: kernel.configs[0] for kernel in kernels if kernel.kind == "train"}

    def is_other_split(config: Config) -> bool:
        return any(
            config.fold_split != own.fold_split and replace(config, fold_split=own.fold_split) == own
            for own in configs.values()
        )

    folders = [path.parent for path in sorted(folder.parent.glob(f"*/{LEDGER_NAME}"))]
    return [
        {
            "name": other.name,
            "experiment": name,
            "backbone": config.backbone,
            "split": config.fold_split,
            "pooled": summary.pooled,
            "interval": list(summary.interval),
            "tiles": len(summary.table),
            "folds": summary.folds["auc"].tolist(),
            "transductive": summary.transductive,
        }
        for other in folders
        if other != folder
        for name, config, summary in finished_experiments(other)
        if is_other_split(config)
    ]


def finished_experiments(folder: Path) -> list[tuple[str, Config, Summary]]:
    """The experiments of a campaign with their results; none where its plan or its outputs cannot be read."""
    try:
        spec = spec_of(folder)
        kernels = spec.plan()
        return [
            (
                experiment.name,
                experiment.config,
                summarise(experiment.name, kernels, lambda slug: folder / OUTPUTS / slug),
            )
            for experiment in spec.experiments
        ]
    except (LaunchError, RunRecordError, OSError, ValueError, KeyError):
        return []  # made by other code, or not finished: nothing to compare with


def write_notebook(source: Checkout, kernel: Kernel, folder: Path) -> Path:
    """Write report.ipynb into the folder of a campaign, where it finds the outputs when Jupyter opens it."""
    scratch = folder / ".report"
    source.write_kernel(kernel, scratch)
    path = folder / NOTEBOOK
    (scratch / kernel.file_name).replace(path)
    shutil.rmtree(scratch)
    return path


def make_report(folder: Path) -> Path:
    """Make the report of a campaign on this machine, from the outputs that were fetched. Returns the page.

    The report names outputs that are missing.

    Raises:
        LaunchError: nothing was fetched yet, or the notebook failed.
    """
    outputs = folder / OUTPUTS
    with campaign_lock(folder.parent):
        spec = spec_of(folder)
        kernels = spec.plan()
        kernel = next(kernel for kernel in kernels if kernel.kind == "report")
        searches = [kernel.slug for kernel in kernels if kernel.kind == "search"]
        fetched_searches = [slug for slug in searches if (outputs / slug).is_dir()]
        facts = report_facts(folder, kernels)
        kernel = replace(kernel, facts=facts, sources=(*kernel.sources, *fetched_searches))
        fetched = [slug for slug in kernel.sources if (outputs / slug).is_dir()]
        if not fetched:
            raise LaunchError(f"{outputs} holds no output yet: run build_kernel.py run, which fetches them")
        source = read_checkout(owner=spec.owner or None, thin=spec.thin, strict_bundle=spec.strict_bundle)
        notebook = write_notebook(source, kernel, folder)
        total = len(kernel.sources)
        logger.info(
            "%s: opens in Jupyter; running it here, on %d of %d outputs", notebook, len(fetched), total
        )
        place = folder / "report"
        owner = spec.owner or "owner"
        outcome = run_script(
            notebook,
            folder=place,
            mounts=[Mount(outputs / slug, f"notebooks/{owner}/{slug}") for slug in fetched],
            place="local",
            threads=1,
            network=False,
            limit=None,
        )
    if outcome.code != 0:
        lines = outcome.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES_SHOWN:]
        shown = "\n".join(f"    {line}" for line in lines)
        raise LaunchError(
            "the report failed. Fix the cause and rerun the command. The end of its log "
            f"({outcome.log}):\n{shown}"
        )
    read_run_record(place / "working", kind="report")
    return place / "working" / REPORT_PAGE


def report_document(page: Path) -> dict[str, Any]:
    """The document of `report --json`: where the report is, and its numbers; docs/json.md describes its keys.

    Args:
        page: that `make_report` returned.
    """
    numbers = json.loads((page.parent / REPORT_NUMBERS).read_bytes())
    return {"format": REPORT_FORMAT, "page": str(page), "numbers": numbers}
