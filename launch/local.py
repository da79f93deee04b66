"""The whole training on this machine, without Kaggle: each kernel when its inputs are there, resumed where it stopped."""

import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path

from launch.campaign.report import PAGE
from launch.errors import LaunchError
from launch.packaging.builder import Built, build
from launch.plan import (
    GPU_SESSIONS,
    REPORT_SLUG,
    ROOT,
    Experiment,
    Kernel,
    needed_for,
    plan_kernels,
    searched_encoders,
    with_teachers,
)
from launch.sandbox import Mount, Outcome, add_kaggle_files, cpu_workers, gpus, isolation, run_script
from launch.summary import print_ranking, print_summary, summarise
from lib.evaluation.out_of_fold import Summary
from lib.files import write_atomic
from lib.runtime.run_record import RECORD_NAME, RunRecordError, read_run_record
from lib.runtime.session import COMPETITION
from lib.search_space import SearchSpace
from lib.validation import UNREADABLE

WEIGHTS_FOLDER = ROOT / "input" / "weights"
_LOG_LINES = 25  # of a failed kernel, shown on the terminal


class KernelFailedError(LaunchError):
    """A kernel ended with an error; the message holds the end of its log."""


@dataclass
class LocalRun:
    """A folder with one sub-folder per kernel.

    Attributes:
        folder: runs/smoke or the like.
        built: the build to run.
        data: a folder in competition layout.
        attached: folders to mount as datasets, by name.
        weights: the output of a weights kernel run earlier, or None.
        say: takes a line of progress.
    """

    folder: Path
    built: Built
    data: Path
    attached: dict[str, Path]
    weights: Path | None
    say: Callable[[str], None]
    seconds: dict[str, float] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)

    def working(self, slug: str) -> Path:
        """Where a kernel leaves its output."""
        if self.weights is not None and slug in {k.slug for k in self.built.kernels if k.kind == "weights"}:
            return self.weights
        return self.folder / slug / "working"

    def run(self) -> None:
        """Run every kernel that is not finished yet, fold kernels side by side.

        Raises:
            KernelFailedError: a kernel failed; those already running are waited for, no other is started.
        """
        waiting = [
            kernel for kernel in self.built.kernels if kernel.kind != "weights" or self.weights is None
        ]
        done = {kernel.slug for kernel in self.built.kernels} - {kernel.slug for kernel in waiting}
        cards = gpus()
        slots: list[str | None] = list(cards) if cards else [None] * min(GPU_SESSIONS, os.cpu_count() or 1)
        free = list(slots)
        running: dict[Future[Outcome], tuple[Kernel, str | None]] = {}
        failure: LaunchError | None = None
        with ThreadPoolExecutor(max_workers=len(slots)) as pool:
            while waiting or running:
                ready = (
                    [kernel for kernel in waiting if set(kernel.sources) <= done] if failure is None else []
                )
                for kernel in ready:
                    if self._is_finished(kernel):
                        self.say(f"{kernel.slug}: finished before, not run again")
                        waiting.remove(kernel)
                        done.add(kernel.slug)
                    elif free and (kernel.kind == "train" or not running):
                        slot = free.pop(0)
                        waiting.remove(kernel)
                        shared = (
                            len(slots) if kernel.needs_gpu else 1
                        )  # as in the rehearsal, so that both compute the same
                        running[pool.submit(self._run_one, kernel, slot, shared)] = (kernel, slot)
                        if kernel.kind != "train":
                            break
                if not running:
                    if failure is not None:
                        raise failure
                    if not any(set(kernel.sources) <= done for kernel in waiting) and waiting:
                        missing = sorted({source for kernel in waiting for source in kernel.sources} - done)
                        raise LaunchError(f"nothing can run: {', '.join(missing)} will never be there")
                    continue
                try:
                    finished, _ = wait(running, return_when=FIRST_COMPLETED)
                except KeyboardInterrupt:
                    self.stop.set()  # the kernels live in sessions of their own and did not hear Ctrl-C
                    raise
                for future in finished:
                    kernel, slot = running.pop(future)
                    free.append(slot)
                    try:
                        self._judge(kernel, future.result())
                    except LaunchError as error:
                        failure = failure or error
                        self.say(f"{kernel.slug}: failed")
                    else:
                        done.add(kernel.slug)
        if failure is not None:
            raise failure

    def _run_one(self, kernel: Kernel, slot: str | None, shared: int) -> Outcome:
        self.say(f"{kernel.slug}: started")
        folder = self.folder / kernel.slug
        folder.mkdir(parents=True, exist_ok=True)
        # Which script and inputs a working folder belongs to: another plan starts from an empty folder, the same plan
        # goes on with what an interrupted run left.
        note, identity = folder / "identity.json", self._identity(kernel)
        if not note.is_file() or note.read_text() != identity:
            self._set_aside(kernel, folder)
        write_atomic(note, identity)
        return run_script(
            self.built.script(kernel),
            folder=folder,
            mounts=self._mounts(kernel),
            place="local",
            threads=max(1, (os.cpu_count() or 1) // shared),
            network=kernel.internet,
            limit=None,
            gpu=",".join(gpus()) or None
            if kernel.kind == "search"
            else slot,  # it runs alone, a trial a card
            workers=cpu_workers(kernel.slug),
            stop=self.stop,
        )

    def _set_aside(self, kernel: Kernel, folder: Path) -> None:
        """Make room for another plan. A finished training is kept, once: it may have taken hours."""
        working, earlier = folder / "working", folder / "earlier"
        if kernel.kind in ("pretrain", "embed", "train") and (working / RECORD_NAME).is_file():
            shutil.rmtree(earlier, ignore_errors=True)
            working.rename(earlier)
            self.say(
                f"{kernel.slug}: code, config or data changed since it was trained; that output is kept in {earlier}"
            )
        if (
            kernel.kind == "search" and working.is_dir()
        ):  # trials tell by their ids what they are of: those that fit are kept
            for path in working.iterdir():
                if path.is_file():
                    path.unlink()
            return
        shutil.rmtree(working, ignore_errors=True)

    def _mounts(self, kernel: Kernel) -> list[Mount]:
        owner = self.built.owner
        mounts = [Mount(self.data, f"competitions/{COMPETITION}")] if kernel.competition else []
        for slug in kernel.sources:
            mounts.append(Mount(self.working(slug), f"notebooks/{owner}/{slug}"))
        if kernel.datasets:
            mounts += [Mount(source, f"datasets/{name}") for name, source in self.attached.items()]
        return mounts

    def _judge(self, kernel: Kernel, outcome: Outcome) -> None:
        lines = outcome.log.read_text(encoding="utf-8", errors="replace").splitlines()
        if outcome.code != 0:
            shown = "\n".join(f"    {line}" for line in lines[-_LOG_LINES:])
            how = (
                f"was killed by signal {-outcome.code}"
                if outcome.code < 0
                else f"ended with exit code {outcome.code}"
            )
            raise KernelFailedError(f"{kernel.slug} {how}; the end of its log ({outcome.log}):\n{shown}")
        try:
            read_run_record(self.working(kernel.slug), kind=kernel.kind)
        except RunRecordError as error:
            raise KernelFailedError(f"{kernel.slug} ended with exit code 0 but: {error}") from error
        add_kaggle_files(self.working(kernel.slug))
        self.seconds[kernel.slug] = outcome.seconds
        self.say(f"{kernel.slug}: done in {outcome.seconds:.1f} s")

    def _identity(self, kernel: Kernel) -> str:
        """What decides a kernel's output: its script, less the commit it was built from, and its inputs' records."""
        script = self.built.script(kernel).read_text(encoding="utf-8")
        kept = "\n".join(
            line for line in script.splitlines() if not line.strip(' "').startswith("'git_commit':")
        )
        facts: dict[str, object] = {"script": hashlib.sha256(kept.encode()).hexdigest()}
        if kernel.competition:
            facts["data"] = _fingerprint(self.data)
        for slug in kernel.sources:
            facts[slug] = _record_of(self.working(slug))
        for name, source in self.attached.items() if kernel.datasets else ():
            facts[name] = sorted(
                (path.name, path.stat().st_size) for path in source.iterdir() if path.is_file()
            )
        return json.dumps(facts, sort_keys=True)

    def _is_finished(self, kernel: Kernel) -> bool:
        note = self.folder / kernel.slug / "identity.json"
        if not note.is_file() or note.read_text() != self._identity(kernel):
            return False
        try:
            record = read_run_record(self.working(kernel.slug), kind=kernel.kind)
        except RunRecordError:
            return False
        add_kaggle_files(self.working(kernel.slug))  # the command may have been killed right before it did
        self.seconds[kernel.slug] = float(record.seconds.get("total", 0.0))
        return True


def _fingerprint(data: Path) -> str:
    """The competition's tables and where the tiles lie; the tiles themselves are proved by prepare."""
    digest = hashlib.sha256(str(data.resolve()).encode())
    for name in ("train_labels.csv", "sample_submission.csv"):
        path = data / name
        digest.update(path.read_bytes() if path.is_file() else b"absent")
    return digest.hexdigest()


def _record_of(working: Path) -> str:
    """The files an input's run.json lists: the same files mean the same input, whenever they were made."""
    try:
        files = json.loads((working / RECORD_NAME).read_bytes())["files"]
    except (KeyError, TypeError, *UNREADABLE):
        return "absent"
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def attached_datasets(attach: Sequence[Path], owner: str) -> dict[str, Path]:
    """The folders a user attached, by the owner/slug the kernels see them under.

    Raises:
        LaunchError: a folder is missing, or two have the same name.
    """
    attached: dict[str, Path] = {}
    for folder in attach:
        if not folder.is_dir():
            raise LaunchError(f"--attach {folder}: there is no such folder")
        name = f"{owner}/{folder.resolve().name}"
        if name in attached:
            raise LaunchError(f"--attach {folder}: another attached folder has the same name")
        attached[name] = folder
    return attached


def local(
    experiments: Sequence[Experiment],
    *,
    data: Path,
    out: Path,
    attach: Sequence[Path] = (),
    average: str = "mean",
    search: SearchSpace | None = None,
    owner: str,
    say: Callable[[str], None],
) -> list[Summary]:
    """The whole training on this machine, or a search alone (and then no summaries); what is finished is never done again.

    Raises:
        LaunchError: something failed; the message says what and what to do.
    """
    started = time.monotonic()
    if not (data / "train_labels.csv").is_file():
        raise LaunchError(
            f"{data} does not hold the competition's data (no train_labels.csv): "
            "fetch it with build_kernel.py download, or name another folder with --data"
        )
    attached = attached_datasets(attach, owner)
    encoders = [e.config.backbone for e in with_teachers(experiments) if e.config.weights == "timm"]
    encoders += searched_encoders(search, experiments[0].config) if search is not None else ()
    if encoders and not has_weights(WEIGHTS_FOLDER, encoders):
        fetch_weights(experiments, search=search, owner=owner, say=say)
    built = build(
        experiments, out=out / "build", owner=owner, datasets=tuple(attached), average=average, search=search
    )
    if search is not None:
        built = replace(built, kernels=tuple(needed_for(built.kernels, "search")))
    weights = WEIGHTS_FOLDER if encoders else None
    run = LocalRun(out, built, data, attached, weights, say)
    say(f"{len(built.kernels)} kernels, bundle {built.bundle[:12]}, isolation by {isolation()}")
    run.run()
    if search is not None:
        print_ranking(run.working(built.kernels[-1].slug), seconds=time.monotonic() - started)
        return []
    summaries = [summarise(experiment.name, built.kernels, run.working) for experiment in experiments]
    inference = next(kernel for kernel in built.kernels if kernel.kind == "inference")
    submission = run.working(inference.slug) / "submission.csv"
    print_summary(summaries, submission, data / "sample_submission.csv", seconds=time.monotonic() - started)
    say(f"report: {run.working(REPORT_SLUG) / PAGE}")
    return summaries


def fetch_weights(
    experiments: Sequence[Experiment],
    *,
    search: SearchSpace | None = None,
    owner: str,
    say: Callable[[str], None],
) -> Path:
    """Run the weights kernel on this machine, with network, into input/weights.

    Raises:
        LaunchError: no experiment starts from timm's weights, or they cannot be fetched.
    """
    kernels = [kernel for kernel in plan_kernels(experiments, search=search) if kernel.kind == "weights"]
    if not kernels:
        raise LaunchError("none of these experiments starts from timm's weights: there is nothing to fetch")
    out = ROOT / "runs" / "weights"
    built = build(experiments, out=out / "build", owner=owner, search=search)
    one = replace(
        kernels[0], encoders=tuple(dict.fromkeys(each for kernel in kernels for each in kernel.encoders))
    )
    built.source.write_kernel(one, built.script(one).parent)  # into one folder, whichever kernels read it
    run = LocalRun(out, replace(built, kernels=(one,)), ROOT, {}, None, say)
    run.run()
    source = run.working(one.slug)
    WEIGHTS_FOLDER.parent.mkdir(parents=True, exist_ok=True)
    beside = WEIGHTS_FOLDER.with_name(".weights.part")
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(source, beside, copy_function=link_or_copy)
    shutil.rmtree(WEIGHTS_FOLDER, ignore_errors=True)
    beside.rename(WEIGHTS_FOLDER)
    return WEIGHTS_FOLDER


def has_weights(folder: Path, encoders: Sequence[str]) -> bool:
    """Whether a weights kernel left these encoders here."""
    from lib.runtime.session import peek_kind

    if peek_kind(folder) != "weights":
        return False
    try:
        record = read_run_record(folder, kind="weights")
    except RunRecordError:
        return False
    return set(encoders) <= set(record.scores.get("encoders", {}))


def link_or_copy(source: str, target: str) -> str:
    """Link a file where that can be done, else copy it; takes the place of `shutil.copy2`."""
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
    return target
