"""Training on this machine without Kaggle: run each kernel once its inputs exist, resume after a stop."""

import hashlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from launch import ROOT
from launch.errors import LaunchError
from launch.experiments import Experiment, searched_encoders, with_teachers
from launch.packaging.builder import Built, build
from launch.plan import GPU_SESSIONS, LOCAL_PLAN, REPORT_PAGE, REPORT_SLUG, Kernel, needed_for, plan_kernels
from launch.sandbox import Mount, Outcome, add_kaggle_files, cpu_workers, gpus, isolation, run_script
from launch.summary import print_ranking, print_summary, summarise
from lib.config import NEUTRAL_OPTIONS
from lib.evaluation.out_of_fold import Summary
from lib.files import is_system_file, link_or_copy, sha256_of, write_atomic
from lib.runtime.inputs import COMPETITION
from lib.runtime.run_record import RECORD_NAME, RunRecordError, read_run_record
from lib.search_space import SearchSpace
from lib.validation import UNREADABLE

logger = logging.getLogger(__name__)

WEIGHTS_FOLDER = ROOT / "input" / "weights"
_REFRESH = 2.0  # seconds between two updates of the table
_SHOWN_LOG_LINES = 25  # of a kernel that failed


class KernelFailedError(LaunchError):
    """A kernel failed; the message holds the end of its log."""


@dataclass
class LocalRun:
    """A run of a build's kernels on this machine, with one sub-folder per kernel.

    Attributes:
        folder: of the run, such as runs/local.
        built: the build to run.
        data: a folder in competition layout.
        attached: folders to mount as datasets, by owner/slug.
        weights: the output of an earlier run of the weights kernel, or None.
        seconds: duration of each finished kernel, by slug.
        states: of the kernels, by slug: waiting, running, done or failed. They are kept in a file for
            `status --local`.
        refresh: called whenever a state changes and every few seconds in between.
        stop: when set, all running kernels are killed.
    """

    folder: Path
    built: Built
    data: Path
    attached: dict[str, Path]
    weights: Path | None
    seconds: dict[str, float] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    refresh: Callable[[], None] = lambda: None
    stop: threading.Event = field(default_factory=threading.Event)

    def working(self, slug: str) -> Path:
        """The output folder of a kernel."""
        weights_slugs = {kernel.slug for kernel in self.built.kernels if kernel.encoders}
        if self.weights is not None and slug in weights_slugs:
            return self.weights
        return self.folder / slug / "working"

    def run(self) -> None:
        """Run every kernel that is not finished yet; fold kernels run in parallel.

        Raises:
            KernelFailedError: a kernel failed. Running kernels are finished first, but no other is started.
        """
        waiting = [kernel for kernel in self.built.kernels if not kernel.encoders or self.weights is None]
        done = {kernel.slug for kernel in self.built.kernels} - {kernel.slug for kernel in waiting}
        # A slot runs one kernel: a GPU, or None where there is no GPU.
        slots: list[str | None] = list(gpus()) or [None] * min(GPU_SESSIONS, os.cpu_count() or 1)
        free_slots = list(slots)
        self.states = {kernel.slug: "waiting" for kernel in waiting}
        self._set_state()
        running: dict[Future[Outcome], tuple[Kernel, str | None]] = {}
        failure: LaunchError | None = None
        with ThreadPoolExecutor(max_workers=len(slots)) as pool:
            while waiting or running:
                ready = [kernel for kernel in waiting if set(kernel.sources) <= done and failure is None]
                for kernel in ready:
                    if self._is_finished(kernel):
                        logger.info("%s: finished before, not run again", kernel.slug)
                        waiting.remove(kernel)
                        done.add(kernel.slug)
                        self._set_state(kernel, "done")
                    elif free_slots and (kernel.kind == "train" or not running):
                        slot = free_slots.pop(0)
                        waiting.remove(kernel)
                        # The same share of the CPU as in the rehearsal, so that both compute the same
                        # numbers.
                        share = len(slots) if kernel.needs_gpu else 1
                        self._set_state(kernel, "running")
                        running[pool.submit(self.run_kernel, kernel, slot, share)] = (kernel, slot)
                        if kernel.kind != "train":
                            break
                if not running:
                    if failure is not None:
                        raise failure
                    if waiting and not any(set(kernel.sources) <= done for kernel in waiting):
                        missing = sorted({source for kernel in waiting for source in kernel.sources} - done)
                        raise LaunchError(f"no kernel can run: no kernel makes {', '.join(missing)}")
                    continue
                try:
                    finished, _ = wait(running, timeout=_REFRESH, return_when=FIRST_COMPLETED)
                except KeyboardInterrupt:
                    self.stop.set()  # Ctrl-C does not reach the kernels: they run in sessions of their own
                    raise
                self.refresh()
                for future in finished:
                    kernel, slot = running.pop(future)
                    free_slots.append(slot)
                    try:
                        self.check_outcome(kernel, future.result())
                    except LaunchError as error:
                        failure = failure or error
                        logger.info("%s: failed", kernel.slug)
                        self._set_state(kernel, "failed")
                    else:
                        done.add(kernel.slug)
                        self._set_state(kernel, "done")
        if failure is not None:
            raise failure

    def _set_state(self, kernel: Kernel | None = None, state: str = "") -> None:
        """Keep the new state of a kernel where `status --local` finds it."""
        if kernel is not None:
            self.states[kernel.slug] = state
        kernels = [
            {"slug": each.slug, "kind": each.kind, "fold": each.fold, "state": self.states[each.slug]}
            for each in self.built.kernels
            if each.slug in self.states
        ]
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self.folder / LOCAL_PLAN, json.dumps({"format": 1, "kernels": kernels}, indent=1) + "\n")
        self.refresh()

    def run_kernel(self, kernel: Kernel, slot: str | None, share: int) -> Outcome:
        """Run one kernel on a slot, with 1/share of the CPU's threads."""
        logger.info("%s: started", kernel.slug)
        folder = self.folder / kernel.slug
        folder.mkdir(parents=True, exist_ok=True)
        # The script and inputs that working/ belongs to. The same ones resume an interrupted run, others
        # start again.
        identity_file, identity = folder / "identity.json", self._identity(kernel)
        if not identity_file.is_file() or identity_file.read_text() != identity:
            self._clear_working(kernel, folder)
        write_atomic(identity_file, identity)
        all_gpus = ",".join(gpus()) or None
        return run_script(
            self.built.script(kernel),
            folder=folder,
            mounts=self._mounts(kernel),
            place="local",
            threads=max(1, (os.cpu_count() or 1) // share),
            network=kernel.internet,
            limit=None,
            gpu=all_gpus if kernel.kind == "search" else slot,  # a search runs alone, with one trial per GPU
            workers=cpu_workers(kernel.slug),
            stop=self.stop,
        )

    def _clear_working(self, kernel: Kernel, folder: Path) -> None:
        """Remove the output of other code, config or data.

        A finished training is moved to earlier/, because it may have taken hours. A search keeps its trials:
        their ids show which of them the new search can reuse.
        """
        working, earlier = folder / "working", folder / "earlier"
        if kernel.kind in ("pretrain", "embed", "train") and (working / RECORD_NAME).is_file():
            shutil.rmtree(earlier, ignore_errors=True)
            working.rename(earlier)
            logger.info(
                "%s: code, config or data changed since it was trained; that output is kept in %s",
                kernel.slug,
                earlier,
            )
        if kernel.kind == "search" and working.is_dir():
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

    def check_outcome(self, kernel: Kernel, outcome: Outcome) -> None:
        """Accept the output of a kernel that ended.

        Raises:
            KernelFailedError: its exit code is not 0, or its output is not complete.
        """
        if outcome.code != 0:
            lines = outcome.log.read_text(encoding="utf-8", errors="replace").splitlines()
            log_end = "\n".join(f"    {line}" for line in lines[-_SHOWN_LOG_LINES:])
            if outcome.code < 0:
                reason = f"was killed by signal {-outcome.code}"
            else:
                reason = f"ended with exit code {outcome.code}"
            raise KernelFailedError(f"{kernel.slug} {reason}; the end of its log ({outcome.log}):\n{log_end}")
        try:
            read_run_record(self.working(kernel.slug), kind=kernel.kind)
        except RunRecordError as error:
            raise KernelFailedError(f"{kernel.slug} ended with exit code 0 but: {error}") from error
        add_kaggle_files(self.working(kernel.slug))
        self.seconds[kernel.slug] = outcome.seconds
        logger.info("%s: done in %.1f s", kernel.slug, outcome.seconds)

    def _identity(self, kernel: Kernel) -> str:
        """What decides a kernel's output, as JSON: inputs, and script without commit and expected hours."""
        script = self.built.script(kernel).read_text(encoding="utf-8")
        without = ("git_commit", *NEUTRAL_OPTIONS)
        lines = [line for line in script.splitlines() if not any(f"'{name}':" in line for name in without)]
        identity: dict[str, object] = {"script": hashlib.sha256("\n".join(lines).encode()).hexdigest()}
        if kernel.competition:
            identity["data"] = _data_hash(self.data)
        for slug in kernel.sources:
            identity[slug] = _output_hash(self.working(slug))
        if kernel.datasets:
            for name, source in self.attached.items():
                identity[name] = {
                    path.relative_to(source).as_posix(): _file_hash(
                        path, path.stat().st_size, path.stat().st_mtime_ns
                    )
                    for path in sorted(source.rglob("*"))
                    if path.is_file() and not is_system_file(path.name)
                }
        return json.dumps(identity, sort_keys=True)

    def _is_finished(self, kernel: Kernel) -> bool:
        identity_file = self.folder / kernel.slug / "identity.json"
        if not identity_file.is_file() or identity_file.read_text() != self._identity(kernel):
            return False
        try:
            record = read_run_record(self.working(kernel.slug), kind=kernel.kind)
        except RunRecordError:
            return False
        add_kaggle_files(self.working(kernel.slug))  # an earlier command may have been killed before this
        self.seconds[kernel.slug] = float(record.seconds.get("total", 0.0))
        return True


@cache
def _file_hash(path: Path, size: int, changed: int) -> str:
    """The SHA-256 of a file, computed once for as long as its size and time of change stay."""
    return sha256_of(path)


def _data_hash(data: Path) -> str:
    """A hash of the competition's folder name and tables; prepare checks the tiles themselves."""
    digest = hashlib.sha256(str(data.resolve()).encode())
    for name in ("train_labels.csv", "sample_submission.csv"):
        path = data / name
        digest.update(path.read_bytes() if path.is_file() else b"absent")
    return digest.hexdigest()


def _output_hash(working: Path) -> str:
    """A hash of the files that an output's run.json lists; the time they were made does not count."""
    try:
        files = json.loads((working / RECORD_NAME).read_bytes())["files"]
    except (KeyError, TypeError, *UNREADABLE):
        return "absent"
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def attached_datasets(attach: Sequence[Path], owner: str) -> dict[str, Path]:
    """The folders that a user attached, by the owner/slug under which kernels see them.

    Raises:
        LaunchError: a folder is missing, or two folders have the same name.
    """
    attached: dict[str, Path] = {}
    for folder in attach:
        if not folder.is_dir():
            raise LaunchError(f"--attach {folder}: this folder does not exist")
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
    folds: Sequence[int] | None = None,
    attach: Sequence[Path] = (),
    average: str = "mean",
    search: SearchSpace | None = None,
    owner: str,
    board: Callable[[Path], AbstractContextManager[Callable[[], None]]] | None = None,
) -> list[Summary]:
    """Train experiments on this machine, or run a search alone; finished kernels are not run again.

    Args:
        experiments: to train; several are averaged.
        data: a folder in competition layout.
        out: the folder of the run.
        folds: to train and average; all when None.
        attach: folders that kernels see as datasets.
        average: how inference averages members: mean, logit or rank.
        search: run only this search and the kernels it reads from.
        owner: the account's name.
        board: opens a display of the run in a folder, and gives the function that brings it up to date; None
            for none.

    Returns:
        A summary per experiment; none for a search.

    Raises:
        LaunchError: the data are missing or a kernel failed.
    """
    started = time.monotonic()
    if not (data / "train_labels.csv").is_file():
        raise LaunchError(
            f"{data} does not hold the competition's data (train_labels.csv is missing): "
            "download them with build_kernel.py download, name another folder with --data, or write one from "
            "tiles "
            "of your own with build_kernel.py import"
        )
    attached = attached_datasets(attach, owner)
    encoders = pretrained_encoders(experiments, search=search)
    if encoders and not has_weights(WEIGHTS_FOLDER, encoders):
        fetch_weights(experiments, search=search, owner=owner)
    built = build(
        experiments,
        out=out / "build",
        owner=owner,
        datasets=tuple(attached),
        folds=folds,
        average=average,
        search=search,
    )
    if search is not None:
        built = replace(built, kernels=tuple(needed_for(built.kernels, "search")))
    weights = WEIGHTS_FOLDER if encoders else None
    run = LocalRun(out, built, data, attached, weights)
    logger.info("%d kernels, bundle %s, isolation by %s", len(built.kernels), built.bundle[:12], isolation())
    if board is None:
        run.run()
    else:
        with board(out) as run.refresh:
            run.run()
    if search is not None:
        print_ranking(run.working(built.kernels[-1].slug), seconds=time.monotonic() - started)
        return []
    summaries = [summarise(experiment.name, built.kernels, run.working) for experiment in experiments]
    inference = next(kernel for kernel in built.kernels if kernel.kind == "inference")
    submission = run.working(inference.slug) / "submission.csv"
    print_summary(summaries, submission, data / "sample_submission.csv", seconds=time.monotonic() - started)
    logger.info("report: %s", run.working(REPORT_SLUG) / REPORT_PAGE)
    return summaries


def pretrained_encoders(experiments: Sequence[Experiment], *, search: SearchSpace | None) -> list[str]:
    """The encoders that start from timm's weights, of the experiments, their teachers and a search."""
    configs = [experiment.config for experiment in with_teachers(experiments)]
    encoders = [config.backbone for config in configs if config.downloads_weights]
    if search is not None:
        encoders += searched_encoders(search, experiments[0].config)
    return encoders


def fetch_weights(
    experiments: Sequence[Experiment],
    *,
    search: SearchSpace | None = None,
    owner: str,
) -> Path:
    """Run the weights kernel on this machine, with a network, and move its output to input/weights.

    Raises:
        LaunchError: no experiment starts from timm's weights, or they cannot be downloaded.
    """
    kernels = [kernel for kernel in plan_kernels(experiments, search=search) if kernel.encoders]
    if not kernels:
        raise LaunchError("none of these experiments starts from timm's weights: no weights to download")
    out = ROOT / "runs" / "weights"
    built = build(experiments, out=out / "build", owner=owner, search=search)
    # A plan may have several weights kernels; here one kernel downloads the encoders of all of them.
    encoders = tuple(dict.fromkeys(encoder for kernel in kernels for encoder in kernel.encoders))
    kernel = replace(kernels[0], encoders=encoders)
    built.source.write_kernel(kernel, built.script(kernel).parent)
    run = LocalRun(out, replace(built, kernels=(kernel,)), ROOT, {}, None)
    run.run()
    WEIGHTS_FOLDER.parent.mkdir(parents=True, exist_ok=True)
    part = WEIGHTS_FOLDER.with_name(".weights.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(run.working(kernel.slug), part, copy_function=link_or_copy)
    shutil.rmtree(WEIGHTS_FOLDER, ignore_errors=True)
    part.rename(WEIGHTS_FOLDER)
    return WEIGHTS_FOLDER


def has_weights(folder: Path, encoders: Sequence[str]) -> bool:
    """Whether the folder is the output of a weights kernel with these encoders."""
    from lib.runtime.run_record import peek_kind

    if peek_kind(folder) != "weights":
        return False
    try:
        record = read_run_record(folder, kind="weights")
    except RunRecordError:
        return False
    return set(encoders) <= set(record.scores.get("encoders", {}))
