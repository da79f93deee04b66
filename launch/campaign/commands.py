"""The commands on campaigns: run, push, logs, output and submit."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from launch.campaign.board import LiveTable
from launch.campaign.code_versions import require_one_code, warn_of_other_code
from launch.campaign.comparison import (
    describe_before_sending,
    describe_gap,
    earlier_submissions,
    weights_of,
)
from launch.campaign.leaderboard import LEADERBOARD, PICTURE, write_leaderboard
from launch.campaign.ledger import Ledger, SubmissionEntry, campaign_lock, new_ledger, read_ledger, spec_of
from launch.campaign.loop import Campaign
from launch.campaign.outputs import OUTPUTS, fetch_output, log_file, peek_record
from launch.campaign.pick import fit_hours
from launch.campaign.report import NOTEBOOK, fill_notebook, report_facts, write_notebook
from launch.campaign.spec import CampaignSpec, RunOptions, different_campaign, same_campaign
from launch.campaign.state import CampaignStoppedError
from launch.campaign.status import describe_scores
from launch.campaign.submission import submit_file, was_sent
from launch.campaign.waits import steady
from launch.console import print_text
from launch.errors import LaunchError
from launch.experiments import DEFAULT_SEARCH, load_search
from launch.kaggle_api.client import Kaggle
from launch.packaging.builder import build
from launch.packaging.metadata import PLACEHOLDER_OWNER, owner_of, read_base
from launch.plan import LIBRARY_SLUG, REPORT_PAGE, REPORT_SLUG, Kernel, needed_for
from launch.summary import print_ranking, print_summary, summarise
from lib.evaluation.out_of_fold import Summary
from lib.files import sha256_of, write_atomic
from lib.runtime.run_record import RECORD_NAME, read_run_record

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """The result of a campaign: summaries of its experiments, its submission, and its ledger."""

    summaries: list[Summary]
    submission: SubmissionEntry | None
    ledger: Ledger


def run(
    spec: CampaignSpec,
    options: RunOptions,
    *,
    connect: Callable[[], Kaggle],
    started: float | None = None,
) -> Result:
    """Run a campaign from its present state to its end; safe to repeat.

    Args:
        spec: what is computed; it must continue the campaign in the folder, where there is one. With hours,
            what fits them is picked from it.
        options: of this run.
        connect: makes the client.
        started: when the command began, by `steady`; now by default.

    Raises:
        LaunchError: it stopped; the message names the cause and the remedy. Nothing that was done is lost.
    """
    started = steady() if started is None else started
    with campaign_lock(options.folder.parent), _table(options) as board:
        kaggle = connect()
        spec = fit_hours(spec, read_ledger(options.folder))
        campaign = open_campaign(spec, options, kaggle, board)
        _check_code(campaign, options)
        campaign.run()
        if options.search_only:
            kernel = next(kernel for kernel in campaign.state.progress.kernels if kernel.kind == "search")
            print_ranking(options.folder / OUTPUTS / kernel.slug, seconds=steady() - started)
            return Result([], None, campaign.state.ledger)
        done = _read_outputs(options, campaign)
        entry = _submit(options, kaggle, campaign, done) if options.submit else None
        problem = _report(options, campaign)
    print_summary(done.summaries, done.submission, done.sample, seconds=steady() - started)
    if entry is not None:
        print_score(entry, options)
    if problem:
        raise LaunchError(
            f"everything but the report is done and kept. {problem}\nOn this machine: build_kernel.py report"
        )
    page, notebook = options.folder / OUTPUTS / REPORT_SLUG / REPORT_PAGE, options.folder / NOTEBOOK
    print_text(f"report: {page}, to be run in Jupyter: {notebook}")
    return Result(done.summaries, entry, campaign.state.ledger)


def _check_code(campaign: Campaign, options: RunOptions) -> None:
    """Warn of outputs that other code made; refuse to average folds of different code where that was asked.

    Raises:
        LaunchError: `--strict-bundle`, and the folds would come from different code.
    """
    progress, bundle, name = campaign.state.progress, campaign.source.bundle, options.folder.name
    if campaign.state.ledger.spec.strict_bundle and not options.search_only:
        require_one_code(progress, bundle, campaign=name)
    warn_of_other_code(progress, bundle, campaign=name)


def _table(options: RunOptions) -> LiveTable:
    return LiveTable(f"campaign {options.name or options.folder.name}")


def _report(options: RunOptions, campaign: Campaign) -> str:
    """Run the report kernel over everything else, the score included; what went wrong, or an empty text."""
    progress = campaign.state.progress
    progress.set_report_facts(REPORT_SLUG, report_facts(options.folder, progress.kernels))
    progress.goal = {kernel.slug for kernel in needed_for(progress.kernels, "report")}
    kernel = next(kernel for kernel in progress.kernels if kernel.slug == REPORT_SLUG)
    notebook = write_notebook(campaign.source, kernel, options.folder)
    try:
        campaign.run()
    except CampaignStoppedError as error:
        return str(error)
    fill_notebook(notebook, options.folder / OUTPUTS / REPORT_SLUG / NOTEBOOK)
    return ""


@dataclass(frozen=True)
class _Done:
    """The outputs of a campaign whose kernels are done."""

    summaries: list[Summary]
    submission: Path
    sample: Path


def _read_outputs(options: RunOptions, campaign: Campaign) -> _Done:
    kernels = campaign.state.progress.kernels

    def folder_of(slug: str) -> Path:
        return options.folder / OUTPUTS / slug

    def only(kind: str) -> Path:
        return folder_of(next(kernel.slug for kernel in kernels if kernel.kind == kind))

    experiments = campaign.state.ledger.spec.experiments
    summaries = [summarise(experiment.name, kernels, folder_of) for experiment in experiments]
    return _Done(summaries, only("inference") / "submission.csv", only("prepare") / "sample_submission.csv")


def _submit(options: RunOptions, kaggle: Kaggle, campaign: Campaign, done: _Done) -> SubmissionEntry:
    pooled = ", ".join(f"{summary.experiment} OOF {summary.pooled:.4f}" for summary in done.summaries)
    earlier = earlier_submissions(options.folder, scored_by=options.scored_by)
    digest, weights = sha256_of(done.submission), weights_of(options.folder)
    if not was_sent(campaign.state.ledger, digest):
        for line in describe_before_sending(
            done.summaries,
            kaggle=kaggle,
            folder=options.folder,
            earlier=earlier,
            sha256=digest,
            weights=weights,
        ):
            logger.info("%s", line)
    entry = submit_file(
        kaggle,
        campaign.state.ledger,
        done.submission,
        sample=done.sample,
        text=options.message or pooled,
        timeouts=options.timeouts,
    )
    outputs = options.folder / OUTPUTS
    records = {
        kernel.slug: read_run_record(outputs / kernel.slug, kind=kernel.kind, fetched_only=True)
        for kernel in campaign.state.progress.wanted
    }
    write_leaderboard(
        options.folder,
        ledger=campaign.state.ledger,
        entry=entry,
        summaries=done.summaries,
        records=records,
        scored_by=options.scored_by,
    )
    if text := describe_gap(
        done.summaries, entry.public, folder=options.folder, earlier=earlier, weights=weights
    ):
        logger.info("%s", text)
    return entry


def print_score(entry: SubmissionEntry, options: RunOptions) -> None:
    """Print the score of a submission, and the files that record it."""
    if entry.public is None and entry.private is None:
        print_text(f"accepted by {options.scored_by}, submission {entry.ref}; it gave no score")
    else:
        print_text(f"scored by {options.scored_by}: AUC {describe_scores(entry)} (submission {entry.ref})")
    print_text(f"record: {options.folder / LEADERBOARD}, picture: {options.folder / PICTURE}")


def open_campaign(spec: CampaignSpec, options: RunOptions, kaggle: Kaggle, board: LiveTable) -> Campaign:
    """Check the specification against the ledger, save it there, and build the kernels.

    Raises:
        LaunchError: the account is not the owner, or the ledger belongs to another campaign.
    """
    owner = spec.owner or owner_of(read_base())
    if owner == PLACEHOLDER_OWNER and kaggle.user != owner:
        logger.info(
            "kernel-metadata.json names no owner yet: using %s, the user of the credentials", kaggle.user
        )
        owner = kaggle.user
    if owner.lower() != kaggle.user.lower():
        raise LaunchError(
            f"the owner is {owner} (kernel-metadata.json, or --owner), the credentials are those of "
            f"{kaggle.user}: use the credentials of that account, or set your own name"
        )
    ledger = read_ledger(options.folder)
    spec = _continued(replace(spec, owner=owner), ledger, options.folder)
    built = build(
        spec.experiments,
        out=options.folder / "build",
        owner=owner,
        datasets=spec.datasets,
        folds=spec.folds,
        average=spec.average,
        thin=spec.thin,
        strict_bundle=spec.strict_bundle,
        search=spec.search,
    )
    if ledger is None:
        ledger = new_ledger(options.folder, campaign=options.name or options.folder.name, spec=spec)
    ledger.spec = spec
    ledger.save()
    # The report comes later, because it shows the score.
    last = "search" if options.search_only else "inference"
    goal = {kernel.slug for kernel in needed_for(built.kernels, last)}
    logger.info(
        "campaign %s (%s): %d kernels%s, bundle %s, as %s",
        ledger.campaign,
        ledger.id,
        len(goal),
        "" if options.search_only else " and the report",
        built.bundle[:12],
        owner,
    )
    return Campaign(
        kaggle=kaggle,
        source=built.source,
        kernels=built.kernels,
        ledger=ledger,
        folder=options.folder,
        dataset=built.out / "dataset",
        timeouts=options.timeouts,
        show=board.show,
        reuse=options.reuse,
        reserve=options.reserve_hours,
        goal=goal,
    )


def _continued(spec: CampaignSpec, ledger: Ledger | None, folder: Path) -> CampaignSpec:
    """The specification that continues a campaign: it keeps a search that it does not name.

    Raises:
        LaunchError: it is the specification of another campaign.
    """
    folds = None if spec.folds is None else tuple(sorted(set(spec.folds)))
    spec = replace(spec, folds=folds)
    if ledger is None:
        return spec
    if problems := same_campaign(ledger.spec, spec):
        raise different_campaign(folder, problems)
    return replace(spec, search=spec.search or ledger.spec.search)


# --- single steps


def resolve(name: str, kernels: Sequence[Kernel]) -> Kernel:
    """Find a kernel by its slug, its kind, fold-K, or EXPERIMENT-fold-K; weights are those of the folds.

    Raises:
        LaunchError: no kernel has this name, or more than one.
    """
    matches = [
        kernel
        for kernel in kernels
        if name in (kernel.slug, kernel.slug.removeprefix("hcd-"), kernel.kind)
        or (kernel.kind == "train" and name == f"fold-{kernel.fold}")
    ]
    if name == "weights":
        matches = matches[:1]  # a search may have a weights kernel of its own, behind that of the folds
    if len(matches) != 1:
        problem = "more than one kernel is called" if matches else "no kernel is called"
        names = ", ".join(kernel.slug.removeprefix("hcd-") for kernel in kernels)
        raise LaunchError(f"{problem} {name!r}; there are: {names}")
    return matches[0]


def push(
    spec: CampaignSpec, names: Sequence[str], options: RunOptions, *, connect: Callable[[], Kaggle]
) -> None:
    """Push single kernels, or the dataset, under the rules of a campaign.

    A campaign that exists keeps its specification; a fold that is pushed becomes one of its folds.

    Raises:
        LaunchError: an unknown name, a missing input, or a push that was refused.
    """
    with campaign_lock(options.folder.parent), _table(options) as board:
        spec = _pushed(spec, names, read_ledger(options.folder))
        campaign = open_campaign(spec, options, connect(), board)
        kernels = campaign.state.progress.kernels
        if "report" in names or REPORT_SLUG in names:
            campaign.state.progress.set_report_facts(REPORT_SLUG, report_facts(options.folder, kernels))
            kernels = campaign.state.progress.kernels
        chosen = [resolve(name, kernels) for name in names if name not in ("dataset", LIBRARY_SLUG)]
        if len(chosen) < len(names):
            campaign.publisher.finish()
        campaign.push_only(chosen)


def _pushed(spec: CampaignSpec, names: Sequence[str], ledger: Ledger | None) -> CampaignSpec:
    """The specification of a campaign whose kernels are pushed by name."""
    if ledger is None and not spec.experiments:
        raise LaunchError("there is no such campaign yet: name its experiments with --experiment")
    if ledger is not None:
        saved = ledger.spec
        spec = replace(
            spec,
            experiments=spec.experiments or saved.experiments,
            owner=spec.owner or saved.owner,
            datasets=spec.datasets or saved.datasets,
            average=saved.average,
            search=spec.search or saved.search,
            thin=saved.thin,
            strict_bundle=saved.strict_bundle,
            hours=saved.hours,
        )
    if spec.search is None and any(name.endswith("search") for name in names):
        spec = replace(spec, search=load_search(DEFAULT_SEARCH))
    if ledger is None or ledger.spec.folds is None:
        return spec
    kernels = spec.plan()  # with all folds
    chosen = [resolve(name, kernels) for name in names if name not in ("dataset", LIBRARY_SLUG)]
    pushed = {kernel.fold for kernel in chosen if kernel.kind == "train"}
    return replace(spec, folds=tuple(sorted({*ledger.spec.folds, *pushed})))


def show_log(folder: Path, name: str, *, follow: bool, connect: Callable[[], Kaggle]) -> None:
    """Print the log of a kernel. With `follow`, print each line as it appears, until the kernel ends."""
    kernel = resolve(name, spec_of(folder).plan())
    kaggle = connect()
    if follow:
        for line in kaggle.follow(kernel.slug):
            print(line, flush=True)
        return
    log = kaggle.output(kernel.slug).log
    if not log:
        kept = log_file(folder, kernel.slug)
        earlier = f"; an earlier one is in {kept}" if kept.is_file() else ""
        raise LaunchError(f"Kaggle holds no log of {kernel.slug} yet{earlier}")
    print(log, end="" if log.endswith("\n") else "\n")


def fetch_outputs(
    folder: Path,
    names: Sequence[str],
    *,
    out: Path | None,
    connect: Callable[[], Kaggle],
    with_weights: bool = False,
) -> None:
    """Fetch the outputs of kernels, whoever pushed them, and verify them against their run.json.

    Args:
        folder: of the campaign.
        names: of kernels; all folds when empty.
        out: the folder for the outputs; by default fetched/ in that of the campaign.
        connect: opens the client.
        with_weights: fetch the weights of the members, too.
    """
    kernels = spec_of(folder).plan()
    kaggle = connect()
    target = out or folder / "fetched"
    folds = [kernel for kernel in kernels if kernel.kind == "train"]
    for kernel in [resolve(name, kernels) for name in names] or folds:
        listing = kaggle.output(kernel.slug)
        content = peek_record(kaggle, kernel.slug, listing, folder=target)
        record = fetch_output(
            kaggle, kernel.slug, listing, content, kind=kernel.kind, folder=target, with_weights=with_weights
        )
        write_atomic(target / kernel.slug / f"{kernel.slug}.log", listing.log)
        fetched = sum((target / kernel.slug / name).is_file() for name in record.files)
        print_text(
            f"{target / kernel.slug}: {fetched} of {len(record.files)} files and {RECORD_NAME}, push "
            f"{record.push_id}"
        )


def submit_only(options: RunOptions, *, connect: Callable[[], Kaggle]) -> SubmissionEntry:
    """Submit the result of the campaign in `options.folder`, and wait for the score.

    Raises:
        LaunchError: there is nothing to submit yet, or the submission failed.
    """
    spec = spec_of(options.folder)
    with campaign_lock(options.folder.parent), _table(options) as board:
        kaggle = connect()
        campaign = open_campaign(spec, options, kaggle, board)
        unfinished = [
            kernel.slug
            for kernel in campaign.state.progress.wanted
            if not campaign.state.progress.is_done(kernel)
        ]
        if unfinished:
            raise LaunchError(
                f"nothing to submit yet: {', '.join(unfinished)} are not done. Run build_kernel.py run first"
            )
        entry = _submit(options, kaggle, campaign, _read_outputs(options, campaign))
    print_score(entry, options)
    return entry
