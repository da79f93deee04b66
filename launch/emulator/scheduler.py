"""Pushed kernels at work: each session on a thread of its own, run as Kaggle runs it."""

import os
import threading
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from launch.sandbox import Mount, Outcome, cpu_workers, gpus, run_script


@dataclass(frozen=True, kw_only=True)
class Job:
    """One session.

    Attributes:
        slug: of the kernel.
        version: of the kernel.
        script: what was pushed.
        folder: holds working/ and the log; an interrupted session goes on in it.
        mounts: its inputs.
        gpu: whether it asked for one.
        internet: whether it has a network.
        limit: seconds after which it is ended.
        slot: its number among the sessions of its machine that run at a time.
        stop: set when it shall end at once.
    """

    slug: str
    version: int
    script: Path
    folder: Path
    mounts: tuple[Mount, ...]
    gpu: bool
    internet: bool
    limit: float
    slot: int
    stop: threading.Event = field(default_factory=threading.Event)


class Executor(Protocol):
    """What runs a session."""

    def run(self, job: Job) -> Outcome:
        """Run it to its end."""


@dataclass
class KernelExecutor:
    """The real one: the script alone, inputs read-only, no network unless asked for, a time limit.

    Attributes:
        gpu_sessions: how many GPU sessions share this machine.
        environ: what kernels with a network are given of it.
    """

    gpu_sessions: int
    environ: Mapping[str, str]

    def run(self, job: Job) -> Outcome:
        """Run it to its end."""
        cards = gpus()
        cores = os.cpu_count() or 1
        return run_script(
            job.script,
            folder=job.folder,
            mounts=job.mounts,
            place="rehearsal",
            threads=max(1, cores // self.gpu_sessions) if job.gpu else cores,
            network=job.internet,
            limit=job.limit,
            workers=cpu_workers(job.slug),
            gpu=cards[job.slot % len(cards)] if cards and job.gpu else None,
            stop=job.stop,
            environ=self.environ,
        )


class Scheduler:
    """Runs jobs and tells when each begins and ends."""

    def __init__(
        self,
        executor: Executor,
        *,
        sessions: int,
        began: Callable[[Job], None],
        ended: Callable[[Job, Outcome | None], None],
    ) -> None:
        self._executor, self._began, self._ended = executor, began, ended
        self._pool = ThreadPoolExecutor(max_workers=sessions, thread_name_prefix="session")
        self._jobs: set[Job] = set()
        self._lock = threading.Lock()
        self._closed = False

    def start(self, job: Job) -> None:
        """Run a job; returns at once."""
        with self._lock:
            if self._closed:
                return
            self._jobs.add(job)
        self._pool.submit(self._run, job)

    def _run(self, job: Job) -> None:
        outcome: Outcome | None = None
        try:
            self._began(job)
            outcome = self._executor.run(job)
        except Exception:  # whatever breaks a session, the server goes on and the session's log says it
            with (job.folder / "log.txt").open("a", encoding="utf-8") as stream:
                stream.write(f"the session broke:\n{traceback.format_exc()}")
        finally:
            with self._lock:
                self._jobs.discard(job)
                closed = self._closed
            if not closed:
                self._ended(job, outcome)

    def stop(self, slug: str, version: int | None = None) -> None:
        """End the sessions of a kernel, or of one of its versions."""
        with self._lock:
            for job in self._jobs:
                if job.slug == slug and version in (None, job.version):
                    job.stop.set()

    def close(self) -> None:
        """End all sessions without a word about how they ended: a later start runs them again."""
        with self._lock:
            self._closed = True
            for job in self._jobs:
                job.stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
