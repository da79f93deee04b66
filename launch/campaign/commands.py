"""`run` and its companions: a campaign from a checkout to a score, and single steps of it by hand."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from launch.campaign.board import LiveTable, quota_line, standings_table
from launch.campaign.clock import seconds_since
from launch.campaign.ledger import Ledger, SubmissionEntry, campaign_lock, new_ledger, read_ledger, spec_of
from launch.campaign.loop import Campaign
from launch.campaign.outputs import LOGS, OUTPUTS, fetch_output, peek_record
from launch.campaign.report import NOTEBOOK, leave_notebook, report_facts
from launch.campaign.spec import CampaignSpec, RunOptions, different_campaign, same_campaign
from launch.campaign.standings import ledger_standings
from launch.campaign.state import CampaignStoppedError
from launch.campaign.submission import LEADERBOARD, PICTURE, submit_file, write_leaderboard
from launch.errors import LaunchError
from launch.experiments import DEFAULT_SEARCH, load_search
from launch.kaggle_api.client import Kaggle
from launch.kaggle_api.errors import ClientError
from launch.kaggle_api.types import ACTIVE
from launch.packaging.builder import build
from launch.packaging.metadata import PLACEHOLDER_OWNER, owner_of, read_base
from launch.plan import LIBRARY_SLUG, REPORT_PAGE, REPORT_SLUG, Kernel, needed_for
from launch.summary import print_ranking, print_summary, summarise
from lib.evaluation.out_of_fold import Summary
from lib.files import write_atomic
from lib.runtime.run_record import RECORD_NAME, read_run_record


@dataclass(frozen=True)
class Result:
    """What a campaign came to."""

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
        spec: what is computed; it must continue the campaign in the folder, where there is one.
        options: of this run.
        connect: makes the client.
        started: when the command began, by time.monotonic; now by default.

    Raises:
        LaunchError: it stopped; the message names the cause and the remedy. Nothing that was done is lost.
    """
    started = time.monotonic() if started is None else started
    with campaign_lock(options.folder.parent), _table(options) as board:
        campaign = open_campaign(spec, options, connect(), board)
        campaign.run()
        if options.search_only:
            kernel = next(kernel for kernel in campaign.progress.kernels if kernel.kind == "search")
            print_ranking(options.folder / OUTPUTS / kernel.slug, seconds=time.monotonic() - started)
            return Result([], None, campaign.desk.ledger)
        done = _read_outputs(options, campaign)
        entry = _submit(options, campaign, done, say=board.say) if options.submit else None
        problem = _report(options, campaign)
    print_summary(done.summaries, done.submission, done.sample, seconds=time.monotonic() - started)
    if entry is not None:
        print_score(entry, options)
    if problem:
        raise LaunchError(
            f"everything but the report is done and kept. {problem}\nOn this machine: build_kernel.py report"
        )
    page, notebook = options.folder / OUTPUTS / REPORT_SLUG / REPORT_PAGE, options.folder / NOTEBOOK
    print(f"report: {page}, to be run in Jupyter: {notebook}", flush=True)
    return Result(done.summaries, entry, campaign.desk.ledger)


def _table(options: RunOptions) -> LiveTable:
    return LiveTable(f"campaign {options.name or options.folder.name}")


def _report(options: RunOptions, campaign: Campaign) -> str:
    """Run the report kernel over everything else, the score included; what went wrong, or an empty text."""
    progress = campaign.progress
    progress.tell(REPORT_SLUG, report_facts(options.folder, progress.kernels))
    progress.goal = {kernel.slug for kernel in needed_for(progress.kernels, "report")}
    kernel = next(kernel for kernel in progress.kernels if kernel.slug == REPORT_SLUG)
    leave_notebook(campaign.desk.source, kernel, options.folder)
    try:
        campaign.run()
    except CampaignStoppedError as error:
        return str(error)
    return ""


@dataclass(frozen=True)
class _Done:
    """What lies in outputs/ once every kernel is done."""

    summaries: list[Summary]
    submission: Path
    sample: Path


def _read_outputs(options: RunOptions, campaign: Campaign) -> _Done:
    kernels = campaign.progress.kernels

    def folder_of(slug: str) -> Path:
        return options.folder / OUTPUTS / slug

    def only(kind: str) -> Path:
        return folder_of(next(kernel.slug for kernel in kernels if kernel.kind == kind))

    experiments = campaign.desk.ledger.spec.experiments
    summaries = [summarise(experiment.name, kernels, folder_of) for experiment in experiments]
    return _Done(summaries, only("inference") / "submission.csv", only("prepare") / "sample_submission.csv")


def _submit(
    options: RunOptions, campaign: Campaign, done: _Done, *, say: Callable[[str], None]
) -> SubmissionEntry:
    pooled = ", ".join(f"{summary.experiment} OOF {summary.pooled:.4f}" for summary in done.summaries)
    entry = submit_file(
        campaign.desk.kaggle,
        campaign.desk.ledger,
        done.submission,
        sample=done.sample,
        text=options.message or pooled,
        timeouts=options.timeouts,
        say=say,
    )
    outputs = options.folder / OUTPUTS
    records = {
        kernel.slug: read_run_record(outputs / kernel.slug, kind=kernel.kind, fetched_only=True)
        for kernel in campaign.progress.wanted
    }
    write_leaderboard(
        options.folder,
        ledger=campaign.desk.ledger,
        entry=entry,
        summaries=done.summaries,
        records=records,
        scored_by=options.scored_by,
    )
    return entry


def print_score(entry: SubmissionEntry, options: RunOptions) -> None:
    """Print the score of a submission, and the files that record it."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    if entry.public is None and entry.private is None:
        console.print(f"accepted by {options.scored_by}, submission {entry.ref}; it gave no score")
    else:
        console.print(f"scored by {options.scored_by}: AUC {_scores(entry)} (submission {entry.ref})")
    console.print(f"record: {options.folder / LEADERBOARD}, picture: {options.folder / PICTURE}")


def _scores(entry: SubmissionEntry) -> str:
    """The scores that a submission has: `public 0.9552, private 0.9541`."""
    scores = {"public": entry.public, "private": entry.private}
    return ", ".join(f"{name} {score:.4f}" for name, score in scores.items() if score is not None)


def open_campaign(spec: CampaignSpec, options: RunOptions, kaggle: Kaggle, board: LiveTable) -> Campaign:
    """Open the ledger of a campaign, check the specification against it, save it there, and build the kernels.

    Raises:
        LaunchError: the account is not the owner, or the ledger belongs to another campaign.
    """
    owner = spec.owner or owner_of(read_base())
    if owner == PLACEHOLDER_OWNER and kaggle.user != owner:
        board.say(
            f"kernel-metadata.json names no owner yet: using {kaggle.user}, the user of the credentials"
        )
        owner = kaggle.user
    if owner.lower() != kaggle.user.lower():
        raise LaunchError(
            f"the owner is {owner} (kernel-metadata.json, or --owner), the credentials are those of {kaggle.user}: "
            "use the credentials of that account, or write your own name"
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
    board.say(
        f"campaign {ledger.campaign} ({ledger.id}): {len(goal)} kernels, bundle {built.bundle[:12]}, as {owner}"
    )
    return Campaign(
        kaggle=kaggle,
        source=built.source,
        kernels=built.kernels,
        ledger=ledger,
        folder=options.folder,
        dataset=built.out / "dataset",
        pace=options.timeouts,
        say=board.say,
        show=board.show,
        reuse=options.reuse,
        goal=goal,
    )


def _continued(spec: CampaignSpec, ledger: Ledger | None, folder: Path) -> CampaignSpec:
    """A specification as the next one of a campaign: a search that it does not name is kept, so its output is not lost.

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


# --- single steps ----------------------------------------------------------------------------------------------------


def resolve(name: str, kernels: Sequence[Kernel]) -> Kernel:
    """The kernel a person means: its slug, its kind, or fold-K (EXPERIMENT-fold-K where there are several).

    Raises:
        LaunchError: there is none, or more than one.
    """
    found = [
        kernel
        for kernel in kernels
        if name in (kernel.slug, kernel.slug.removeprefix("hcd-"), kernel.kind)
        or (kernel.kind == "train" and name == f"fold-{kernel.fold}")
    ]
    found = [
        kernel for kernel in found if kernel.slug == f"hcd-{name}"
    ] or found  # a search may have weights of its own
    if len(found) != 1:
        what = "no kernel is called" if not found else "more than one kernel is called"
        raise LaunchError(
            f"{what} {name!r}; there are: {', '.join(k.slug.removeprefix('hcd-') for k in kernels)}"
        )
    return found[0]


def push(
    spec: CampaignSpec, names: Sequence[str], options: RunOptions, *, connect: Callable[[], Kaggle]
) -> None:
    """Push single kernels, or the dataset, under the rules of a campaign. The kernels that they read must be done.

    A campaign that exists keeps its specification; a fold that is pushed becomes one of its folds.

    Raises:
        LaunchError: an unknown name, a missing input, or a push that was refused.
    """
    with campaign_lock(options.folder.parent), _table(options) as board:
        spec = _pushed(spec, names, read_ledger(options.folder))
        campaign = open_campaign(spec, options, connect(), board)
        kernels = campaign.progress.kernels
        if "report" in names or REPORT_SLUG in names:
            campaign.progress.tell(REPORT_SLUG, report_facts(options.folder, kernels))
            kernels = campaign.progress.kernels
        chosen = [resolve(name, kernels) for name in names if name not in ("dataset", LIBRARY_SLUG)]
        if len(chosen) < len(names):
            campaign.publisher.finish(campaign.desk.pace.poll)
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
        )
    if spec.search is None and any(name.endswith("search") for name in names):
        spec = replace(spec, search=load_search(DEFAULT_SEARCH))
    if ledger is None or ledger.spec.folds is None:
        return spec
    kernels = spec.plan()  # with all folds
    chosen = [resolve(name, kernels) for name in names if name not in ("dataset", LIBRARY_SLUG)]
    pushed = {kernel.fold for kernel in chosen if kernel.kind == "train"}
    return replace(spec, folds=tuple(sorted({*ledger.spec.folds, *pushed})))


def show_status(folder: Path, *, connect: Callable[[], Kaggle]) -> bool:
    """Print how a campaign stands, as the ledger and Kaggle tell; whether anything is still at work."""
    from rich.console import Console

    ledger = read_ledger(folder)
    assert ledger is not None
    kaggle = connect()
    standings = ledger_standings(ledger)
    for standing in standings:
        if ledger.kernels[standing.slug].open is not None:
            try:
                standing.turn(kaggle.status(standing.slug).name.lower().replace("_", " "))
            except ClientError as error:
                standing.turn(str(error))
    try:
        quota = kaggle.quota()
    except ClientError:
        quota = None
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(standings_table(f"campaign {ledger.campaign} ({ledger.id})", standings, quota))
    else:
        for standing in standings:
            auc = "" if standing.auc is None else f", AUC {standing.auc:.4f}"
            version = "" if standing.version is None else f", version {standing.version}"
            console.print(f"{standing.slug}: {standing.state}{version}{auc}", soft_wrap=True)
        console.print(quota_line(quota))
    for entry in ledger.submissions:
        scores = _scores(entry)
        console.print(
            f"submission {entry.ref or '?'}: {entry.state}{', ' + scores if scores else ''} {entry.note}".rstrip()
        )
    return any(entry.open is not None for entry in ledger.kernels.values())


def watch(folder: Path, *, connect: Callable[[], Kaggle], every: float) -> None:
    """Show the status again and again until nothing is at work on Kaggle any more. Changes nothing."""
    kaggle = connect()
    while show_status(folder, connect=lambda: kaggle):
        ledger = read_ledger(folder)
        assert ledger is not None
        running = [slug for slug, entry in ledger.kernels.items() if entry.open is not None]
        if not any(kaggle.status(slug).name in ACTIVE for slug in running):
            break
        longest = max(
            seconds_since(entry.open.pushed_at) for entry in ledger.kernels.values() if entry.open is not None
        )
        print(f"looking again in {every:.0f} s; at work for {longest / 60:.0f} min so far", flush=True)
        time.sleep(every)
    print("nothing is at work on Kaggle; build_kernel.py run fetches what has ended and goes on", flush=True)


def show_log(folder: Path, name: str, *, follow: bool, connect: Callable[[], Kaggle]) -> None:
    """Print the log of a kernel: as Kaggle holds it, line by line while it runs with `follow`."""
    kernel = resolve(name, spec_of(folder).plan())
    kaggle = connect()
    if follow:
        for line in kaggle.follow(kernel.slug):
            print(line, flush=True)
        return
    log = kaggle.output(kernel.slug).log
    if not log:
        kept = folder / LOGS / f"{kernel.slug}.log"
        raise LaunchError(
            f"Kaggle holds no log of {kernel.slug} (yet)"
            + (f"; an earlier one is in {kept}" if kept.is_file() else "")
        )
    print(log, end="" if log.endswith("\n") else "\n")


def pull_outputs(
    folder: Path, names: Sequence[str], *, to: Path | None, connect: Callable[[], Kaggle]
) -> None:
    """Fetch the outputs of kernels, whoever pushed them, held against their run.json."""
    kernels = spec_of(folder).plan()
    kaggle = connect()
    target = to or folder / "pulled"
    for kernel in [resolve(name, kernels) for name in names]:
        listing = kaggle.output(kernel.slug)
        content = peek_record(kaggle, kernel.slug, listing, folder=target)
        record = fetch_output(kaggle, kernel.slug, listing, content, kind=kernel.kind, folder=target)
        write_atomic(target / kernel.slug / f"{kernel.slug}.log", listing.log)
        fetched = sum(entry.fetch for entry in record.files.values())
        print(
            f"{target / kernel.slug}: {fetched} of {len(record.files)} files and {RECORD_NAME}, push {record.push_id}",
            flush=True,
        )


def submit_only(options: RunOptions, *, connect: Callable[[], Kaggle]) -> SubmissionEntry:
    """Submit the result of the campaign in `options.folder`, and wait for the score.

    Raises:
        LaunchError: there is nothing to submit yet, or the submission failed.
    """
    spec = spec_of(options.folder)
    with campaign_lock(options.folder.parent), _table(options) as board:
        campaign = open_campaign(spec, options, connect(), board)
        unfinished = [
            kernel.slug for kernel in campaign.progress.wanted if not campaign.progress.is_done(kernel)
        ]
        if unfinished:
            raise LaunchError(
                f"nothing to submit yet: {', '.join(unfinished)} are not done. Run build_kernel.py run first"
            )
        entry = _submit(options, campaign, _read_outputs(options, campaign), say=board.say)
    print_score(entry, options)
    return entry
