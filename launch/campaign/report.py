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
from launch.packaging.bundle import LIBRARY_TAG
from launch.plan import REPORT_PAGE, Kernel
from launch.sandbox import Mount, run_script
from launch.summary import summarise
from lib.config import Config
from lib.evaluation.out_of_fold import Summary
from lib.files import write_atomic
from lib.runtime.notebook import KEPT_NOTEBOOK
from lib.runtime.run_record import RunRecordError, read_run_record
from lib.validation import UNREADABLE

logger = logging.getLogger(__name__)

REHEARSAL_NOTES = "rehearsal.json"  # in the folder of a campaign: sentences for its report
EMULATOR_NOTE = (
    "This is a rehearsal: its kernels ran against an emulated Kaggle, on this machine. Nothing in it was "
    "scored by "
    "Kaggle."
)
NOTEBOOK = KEPT_NOTEBOOK  # in the folder of a campaign, beside its outputs
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
            "interval": summary.ends,
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


def fill_notebook(notebook: Path, executed: Path) -> bool:
    """Put the outputs of an executed notebook into the one beside the outputs, which opens with its results.

    The two differ in their parameters: a pushed notebook accepts the outputs of certain pushes only.

    Args:
        notebook: that `write_notebook` wrote.
        executed: KEPT_NOTEBOOK among the outputs of the report.

    Returns:
        False where there is no such file or its cells are others; then the notebook stays without outputs.
    """
    try:
        ours, theirs = (json.loads(path.read_bytes()) for path in (notebook, executed))
        cells = [cell for cell in ours["cells"] if cell["cell_type"] == "code"]
        ran = {cell["id"]: cell for cell in theirs["cells"] if cell["cell_type"] == "code"}
        for cell in cells:
            other = ran[cell["id"]]
            if LIBRARY_TAG not in cell["metadata"].get("tags", ()) and _text(other) != _text(cell):
                return False
            cell |= {"outputs": other["outputs"], "execution_count": other["execution_count"]}
    except (*UNREADABLE, KeyError, TypeError, AttributeError):
        return False
    write_atomic(notebook, json.dumps(ours, indent=1, ensure_ascii=False, sort_keys=True) + "\n")
    return True


def _text(cell: dict[str, Any]) -> str:
    """The source of a cell, which is one text or a list of lines."""
    return "".join(cell["source"])


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
    fill_notebook(notebook, place / "working" / KEPT_NOTEBOOK)
    return place / "working" / REPORT_PAGE


def report_document(page: Path) -> dict[str, Any]:
    """The document of `report --json`: where the report is, and its numbers; docs/json.md describes its keys.

    Args:
        page: that `make_report` returned.
    """
    numbers = json.loads((page.parent / REPORT_NUMBERS).read_bytes())
    return {"format": REPORT_FORMAT, "page": str(page), "numbers": numbers}
