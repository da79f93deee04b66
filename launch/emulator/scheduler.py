"""Scheduler of the emulated Kaggle: run each session on a thread of its own, in the sandbox."""

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
        script: the pushed source.
        folder: holds working/ and the log; an interrupted session is resumed in it.
        mounts: the inputs.
        gpu: whether the kernel requested a GPU.
        internet: whether the session has a network.
        limit: seconds until the session is killed.
        slot: its number among the sessions of the same machine that run at a time.
        stop: set to end the session at once.
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
    """Runs sessions; tests replace it."""

    def run(self, job: Job) -> Outcome:
        """Run a session to its end."""


@dataclass
class KernelExecutor:
    """Runs sessions in the sandbox.

    Attributes:
        gpu_sessions: number of GPU sessions that share the CPU of this machine.
        environ: the source of the environment variables of kernels with a network.
    """

    gpu_sessions: int
    environ: Mapping[str, str]

    def run(self, job: Job) -> Outcome:
        """Run a session to its end."""
        gpu_names = gpus()
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
            gpu=gpu_names[job.slot % len(gpu_names)] if gpu_names and job.gpu else None,
            stop=job.stop,
            environ=self.environ,
        )


class Scheduler:
    """Runs jobs on threads.

    Args:
        executor: runs one job.
        sessions: most threads at a time.
        began: called when a job starts.
        ended: called when a job has ended; its outcome is None where the executor raised.
    """

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
        except Exception:  # an error of one session must not end the server: it goes to the session's log
            with (job.folder / "log.txt").open("a", encoding="utf-8") as stream:
                stream.write(f"the session failed in the emulator:\n{traceback.format_exc()}")
        finally:
            with self._lock:
                self._jobs.discard(job)
                closed = self._closed
            if not closed:
                self._ended(job, outcome)

    def stop(self, slug: str, version: int | None = None) -> None:
        """End the sessions of a kernel, or of one version."""
        with self._lock:
            for job in self._jobs:
                if job.slug == slug and version in (None, job.version):
                    job.stop.set()

    def close(self) -> None:
        """End all sessions without a call of `ended`: a later start runs them again."""
        with self._lock:
            self._closed = True
            for job in self._jobs:
                job.stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
