"""`run` and its companions: a campaign from a checkout to a score, and single steps of it by hand."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.campaign.board import LiveTable, quota_line, standings_table
from launch.campaign.clock import seconds_since
from launch.campaign.ledger import Ledger, SubmissionEntry, campaign_lock, new_ledger, read_ledger
from launch.campaign.loop import Campaign
from launch.campaign.outputs import LOGS, OUTPUTS, fetch_output, peek_record
from launch.campaign.report import NOTEBOOK, PAGE, leave_notebook, report_facts
from launch.campaign.spec import CampaignSpec, order_of, plan_of, search_of
from launch.campaign.standings import ledger_standings
from launch.campaign.state import CampaignStoppedError
from launch.campaign.submission import LEADERBOARD, PICTURE, submit_file, write_leaderboard
from launch.errors import LaunchError
from launch.kaggle_api.client import Kaggle
from launch.kaggle_api.errors import ClientError
from launch.kaggle_api.types import ACTIVE
from launch.packaging.builder import build
from launch.packaging.metadata import PLACEHOLDER_OWNER, owner_of, read_base
from launch.plan import (
    DEFAULT_SEARCH,
    LIBRARY_SLUG,
    REPORT_SLUG,
    Kernel,
    load_search,
    needed_for,
)
from launch.summary import print_ranking, print_summary, summarise
from lib.config import EXPECTATIONS, Config
from lib.evaluation.out_of_fold import Summary
from lib.files import write_atomic
from lib.runtime.run_record import RECORD_NAME, read_run_record


@dataclass(frozen=True)
class Result:
    """What a campaign came to."""

    summaries: list[Summary]
    submission: SubmissionEntry | None
    ledger: Ledger


def run(order: CampaignSpec, *, connect: Callable[[], Kaggle], started: float | None = None) -> Result:
    """A campaign from where it stands to its end; safe to repeat.

    Raises:
        LaunchError: it stopped; the message says why and what to do. Nothing that was done is lost.
    """
    started = time.monotonic() if started is None else started
    with (
        campaign_lock(order.folder.parent),
        LiveTable(f"campaign {order.name or order.folder.name}") as board,
    ):
        kaggle = connect()
        campaign = open_campaign(order, kaggle, board)
        campaign.run()
        if order.search is not None:
            kernel = next(kernel for kernel in campaign.progress.kernels if kernel.kind == "search")
            print_ranking(order.folder / OUTPUTS / kernel.slug, seconds=time.monotonic() - started)
            return Result([], None, campaign.desk.ledger)
        done = _read_outputs(order, campaign.progress.kernels)
        entry = _submit(order, campaign, done, say=board.say) if order.submit else None
        problem = _report(order, campaign)
    print_summary(done.summaries, done.submission, done.sample, seconds=time.monotonic() - started)
    if entry is not None:
        print_score(entry, order)
    if problem:
        raise LaunchError(
            f"everything but the report is done and kept. {problem}\nOn this machine: build_kernel.py report"
        )
    print(
        f"report: {order.folder / OUTPUTS / REPORT_SLUG / PAGE}, to be run in Jupyter: {order.folder / NOTEBOOK}",
        flush=True,
    )
    return Result(done.summaries, entry, campaign.desk.ledger)


def _report(order: CampaignSpec, campaign: Campaign) -> str:
    """Run the report kernel over everything else, the score included; what went wrong, or an empty text."""
    progress = campaign.progress
    progress.tell(REPORT_SLUG, report_facts(order.folder, progress.kernels))
    progress.goal = {each.slug for each in needed_for(progress.kernels, "report")}
    kernel = next(each for each in progress.kernels if each.slug == REPORT_SLUG)
    leave_notebook(campaign.desk.source, kernel, order.folder)
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


def _read_outputs(order: CampaignSpec, kernels: Sequence[Kernel]) -> _Done:
    def folder_of(slug: str) -> Path:
        return order.folder / OUTPUTS / slug

    def one(kind: str) -> Path:
        return folder_of(next(kernel.slug for kernel in kernels if kernel.kind == kind))

    summaries = [summarise(experiment.name, kernels, folder_of) for experiment in order.experiments]
    return _Done(summaries, one("inference") / "submission.csv", one("prepare") / "sample_submission.csv")


def _submit(
    order: CampaignSpec, campaign: Campaign, done: _Done, *, say: Callable[[str], None]
) -> SubmissionEntry:
    pooled = ", ".join(f"{summary.experiment} OOF {summary.pooled:.4f}" for summary in done.summaries)
    entry = submit_file(
        campaign.desk.kaggle,
        campaign.desk.ledger,
        done.submission,
        sample=done.sample,
        text=order.message or pooled,
        pace=order.score_pace,
        say=say,
    )
    records = {
        kernel.slug: read_run_record(
            order.folder / OUTPUTS / kernel.slug, kind=kernel.kind, fetched_only=True
        )
        for kernel in campaign.progress.wanted
    }
    write_leaderboard(
        order.folder,
        ledger=campaign.desk.ledger,
        entry=entry,
        summaries=done.summaries,
        records=records,
        judge=order.judge,
    )
    return entry


def print_score(entry: SubmissionEntry, order: CampaignSpec) -> None:
    """What the submission scored, and where that is written down."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    if entry.public is None and entry.private is None:
        console.print(f"accepted by {order.judge}, submission {entry.ref}; it gave no score")
    else:
        shown = [
            f"{n} {s:.4f}" for n, s in (("public", entry.public), ("private", entry.private)) if s is not None
        ]
        console.print(f"scored by {order.judge}: AUC {', '.join(shown)} (submission {entry.ref})")
    console.print(f"record: {order.folder / LEADERBOARD}, picture: {order.folder / PICTURE}")


def open_campaign(order: CampaignSpec, kaggle: Kaggle, board: LiveTable) -> Campaign:
    """The campaign's ledger, checked against the order, and its kernels, built.

    Raises:
        LaunchError: the account is not the owner, or the ledger belongs to another plan.
    """
    owner = order.owner or owner_of(read_base())
    if owner == PLACEHOLDER_OWNER and kaggle.user != owner:
        board.say(
            f"kernel-metadata.json names no owner yet: using {kaggle.user}, whose credentials these are"
        )
        owner = kaggle.user
    if owner.lower() != kaggle.user.lower():
        raise LaunchError(
            f"the owner is {owner} (kernel-metadata.json, or --owner), the credentials are those of {kaggle.user}: "
            "use the credentials of that account, or write your own name"
        )
    search = order.search or search_of(order.folder)
    built = build(
        order.experiments,
        out=order.folder / "build",
        owner=owner,
        datasets=order.datasets,
        folds=order.folds,
        average=order.average,
        thin=order.thin,
        strict_bundle=order.strict_bundle,
        search=search,
    )
    ledger = _ledger_for(order, owner)
    searching = {kernel.slug for kernel in needed_for(built.kernels, "search")}
    # The report comes later: it tells of the score.
    goal = (
        searching
        if order.search is not None
        else {kernel.slug for kernel in needed_for(built.kernels, "inference")}
    )
    board.say(
        f"campaign {ledger.campaign} ({ledger.id}): {len(goal)} kernels, bundle {built.bundle[:12]}, as {owner}"
    )
    return Campaign(
        kaggle=kaggle,
        source=built.source,
        kernels=built.kernels,
        ledger=ledger,
        folder=order.folder,
        dataset=built.out / "dataset",
        pace=order.pace,
        say=board.say,
        show=board.show,
        reuse=order.reuse,
        goal=goal,
    )


def _ledger_for(order: CampaignSpec, owner: str) -> Ledger:
    wanted = {experiment.name: dict(experiment.config.to_dict()) for experiment in order.experiments}
    folds = None if order.folds is None else sorted(set(order.folds))
    ledger = read_ledger(order.folder)
    if ledger is None:
        ledger = new_ledger(
            order.folder,
            campaign=order.name or order.folder.name,
            owner=owner,
            experiments=wanted,
            datasets=list(order.datasets),
            folds=folds,
        )
    problems = []
    if ledger.owner != owner:
        problems.append(f"it belongs to {ledger.owner}, not to {owner}")
    if set(ledger.experiments) != set(wanted):
        problems.append(f"it is about {', '.join(ledger.experiments)}, not about {', '.join(wanted)}")
    if ledger.datasets != list(order.datasets):
        problems.append(
            f"its attached datasets are {ledger.datasets or 'none'}, not {list(order.datasets) or 'none'}"
        )
    for name, config in wanted.items():
        before = {
            **Config().to_dict(),
            **ledger.experiments.get(name, config),
        }  # a knob it does not know is a new one
        changed = [
            knob
            for knob in sorted({*config, *before})
            if config.get(knob) != before.get(knob) and knob not in EXPECTATIONS
        ]
        problems += [f"{name}: {knob} was {before.get(knob)!r}, is {config.get(knob)!r}" for knob in changed]
    if problems:
        raise LaunchError(
            f"the campaign in {order.folder} was started differently:\n  - "
            + "\n  - ".join(problems)
            + "\nName another with --campaign, or give it what it was started with."
        )
    for name, config in wanted.items():
        ledger.experiments[name] = config  # `expected_hours` may have been corrected
    ledger.folds = folds
    if (
        order.search is not None
    ):  # another space is no other campaign: the trials that both hold are not run again
        ledger.search = {"name": order.search.name, "values": order.search.to_dict()}
    ledger.save()
    return ledger


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


def push(order: CampaignSpec, names: Sequence[str], *, connect: Callable[[], Kaggle]) -> None:
    """Push single kernels, or the dataset, under the rules of a campaign; what they read must be done.

    Raises:
        LaunchError: a name nobody knows, inputs that are missing, or a push that was refused.
    """
    if order.search is None and any(name.endswith("search") for name in names):
        order.search = search_of(order.folder) or load_search(DEFAULT_SEARCH)
    with (
        campaign_lock(order.folder.parent),
        LiveTable(f"campaign {order.name or order.folder.name}") as board,
    ):
        campaign = open_campaign(order, connect(), board)
        if "report" in names or REPORT_SLUG in names:
            campaign.progress.tell(REPORT_SLUG, report_facts(order.folder, campaign.progress.kernels))
        chosen = [
            resolve(name, campaign.progress.kernels)
            for name in names
            if name not in ("dataset", LIBRARY_SLUG)
        ]
        if len(chosen) < len(names):
            campaign.publisher.finish(campaign.desk.pace.poll)
        campaign.push_only(chosen)


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
        scores = ", ".join(
            f"{n} {s:.4f}" for n, s in (("public", entry.public), ("private", entry.private)) if s is not None
        )
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
    order = order_of(folder)
    kernel = resolve(name, plan_of(order))
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
    order = order_of(folder)
    kaggle = connect()
    target = to or folder / "pulled"
    for kernel in [resolve(name, plan_of(order)) for name in names]:
        listing = kaggle.output(kernel.slug)
        content = peek_record(kaggle, kernel.slug, listing, folder=target)
        record = fetch_output(kaggle, kernel.slug, listing, content, kind=kernel.kind, folder=target)
        write_atomic(target / kernel.slug / f"{kernel.slug}.log", listing.log)
        fetched = sum(entry.fetch for entry in record.files.values())
        print(
            f"{target / kernel.slug}: {fetched} of {len(record.files)} files and {RECORD_NAME}, push {record.push_id}",
            flush=True,
        )


def submit_only(folder: Path, *, message: str, connect: Callable[[], Kaggle]) -> SubmissionEntry:
    """Submit what the campaign's inference left, and wait for the score.

    Raises:
        LaunchError: there is nothing to submit yet, or the submission failed.
    """
    order = order_of(folder)
    order.message = message
    with campaign_lock(folder.parent), LiveTable(f"campaign {folder.name}") as board:
        campaign = open_campaign(order, connect(), board)
        open_ = [kernel.slug for kernel in campaign.progress.wanted if not campaign.progress.is_done(kernel)]
        if open_:
            raise LaunchError(
                f"nothing to submit yet: {', '.join(open_)} are not done. build_kernel.py run does it all"
            )
        entry = _submit(order, campaign, _read_outputs(order, campaign.progress.kernels), say=board.say)
    print_score(entry, order)
    return entry
