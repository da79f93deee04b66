"""Sessions of the emulated Kaggle: versions of kernels at work, what they find mounted, how they end, and the quota they use.

Sessions that ran when a server was killed are run again by the next one.
"""

import os
from pathlib import Path

from launch.emulator.account import Account, Json, stamp
from launch.emulator.datasets import Datasets
from launch.emulator.scheduler import Executor, Job, Scheduler
from launch.sandbox import Mount, Outcome, add_kaggle_files
from lib.runtime.inputs import COMPETITION

ACTIVE = ("QUEUED", "RUNNING", "CANCEL_REQUESTED")
_THREW = "Your notebook threw an error"


class Sessions:
    """What of the account's kernels runs.

    `begin`, `stop` and `cancel` are part of a change: whoever makes it holds the lock and saves.

    Args:
        account: whose they are.
        datasets: what they may have mounted.
        data: the competition's files; None for a competition without data.
        executor: runs them.
    """

    def __init__(
        self, account: Account, datasets: Datasets, *, data: Path | None, executor: Executor
    ) -> None:
        self._account, self._datasets, self._data = account, datasets, data
        self.use(executor)

    def use(self, executor: Executor) -> None:
        """Let this run the sessions from now on."""
        settings = self._account.settings
        sessions = (
            settings.gpu_sessions + settings.cpu_sessions + 8
        )  # of versions pushed over running ones, too
        self._scheduler = Scheduler(executor, sessions=sessions, began=self._began, ended=self._ended)

    def versions(self, slug: str) -> list[Json]:
        """The versions of a kernel in order; none of one that does not exist."""
        versions: list[Json] = self._account.state["kernels"].get(slug, {"versions": []})["versions"]
        return versions

    def folder(self, slug: str, number: int) -> Path:
        """Where a version of a kernel has its source, log and output."""
        name = str(self._account.state["kernels"].get(slug, {}).get("folder", slug))
        return self._account.folder / "kernels" / name / f"v{number}"

    def refusal(self, *, gpu: bool, what: str) -> str:
        """Why no session can start now, in Kaggle's words; empty where one can.

        Args:
            gpu: whether it asks for one.
            what: the fault of the push.
        """
        settings = self._account.settings
        running = sum(version["gpu"] == gpu for version in self._running())
        most = settings.gpu_sessions if gpu else settings.cpu_sessions
        if what in ("capacity", "ghost") or running >= most:
            return f"Maximum batch {'GPU' if gpu else 'CPU'} session count of {most} reached."
        if what == "quota" or (gpu and self._gpu_hours() >= settings.weekly_gpu_hours):
            return f"Maximum weekly GPU quota of {settings.weekly_gpu_hours:.2f} hours reached."
        return ""

    def free_slot(self, gpu: bool) -> int:
        """The lowest number no session of this machine has: sessions that run at a time get different cards."""
        taken = {version.get("slot", 0) for version in self._running() if version["gpu"] == gpu}
        return next(number for number in range(len(taken) + 1) if number not in taken)

    def begin(self, slug: str, version: Json) -> None:
        """Start the session of a version that was pushed."""
        fault = self._account.faults.take("session", slug)
        what = fault.what if fault is not None else ""
        if what:
            version["fault"] = what
        if what == "for-ever":
            version["status"], version["started"], version["for_ever"] = "RUNNING", self._account.now(), True
        elif what == "error":
            self._note_log(slug, version, "Traceback (most recent call last):\nRuntimeError: injected\n")
            self._finish(version, "ERROR", _THREW)
        elif what == "cancelled":
            self._note_log(slug, version, "cancelled\n")
            self._finish(version, "CANCEL_ACKNOWLEDGED")
        else:
            self._scheduler.start(self._job(slug, version))

    def resume(self) -> None:
        """Run again what was at work when the server ended."""
        with self._account.lock:
            for slug, kernel in self._account.state["kernels"].items():
                for version in kernel["versions"]:
                    if version["status"] not in ACTIVE:
                        continue
                    if version["status"] == "RUNNING":
                        version["started"] = (
                            self._account.now()
                        )  # the hours for which no server was there cost no quota
                    if not version.get("for_ever"):
                        self._scheduler.start(self._job(slug, version))
            self._account.save()

    def stop(self, slug: str) -> None:
        """End the sessions of a kernel that is deleted; what they took so far counts."""
        self._scheduler.stop(slug)
        for version in self.versions(slug):
            self._charge(version)

    def cancel(self) -> None:
        """End every session that is still at work, as a person would."""
        for slug in self._account.state["kernels"]:
            for version in self.versions(slug):
                if version["status"] in ACTIVE:
                    self._finish(version, "CANCEL_ACKNOWLEDGED")
            self._scheduler.stop(slug)

    def close(self) -> None:
        """End what runs; a later start runs it again."""
        self._scheduler.close()
        with self._account.lock:
            for version in self._running():
                self._charge(version)
            self._account.save()

    def _running(self) -> list[Json]:
        kernels = self._account.state["kernels"].values()
        return [each for kernel in kernels for each in kernel["versions"] if each["status"] in ACTIVE]

    def _finish(self, version: Json, status: str, message: str = "") -> None:
        self._charge(version)
        version["status"], version["message"], version["ended"] = status, message, self._account.now()

    def _note_log(self, slug: str, version: Json, text: str) -> None:
        (self.folder(slug, version["number"]) / "log.txt").write_text(text)

    def _job(self, slug: str, version: Json) -> Job:
        if "inputs" not in version:
            version["inputs"] = self._inputs(version)
        mounts = []
        if COMPETITION in version["competitions"] and self._data is not None:
            mounts.append(Mount(self._data, f"competitions/{COMPETITION}"))
        for place, source in version["inputs"].items():
            attached = (
                self._datasets.attached(place.split("/")[-1]) if place.startswith("datasets/") else None
            )
            mounts.append(Mount(attached or self._account.folder / source, place))
        folder = self.folder(slug, version["number"])
        return Job(
            slug=slug,
            version=version["number"],
            script=folder / source_name(version["type"]),
            folder=folder,
            mounts=tuple(mounts),
            gpu=version["gpu"],
            internet=version["internet"],
            limit=version["limit"],
            slot=version.get("slot", 0),
        )

    def _inputs(self, version: Json) -> dict[str, str]:
        """Where each source is mounted, and the folder behind it as it stands at the start of the session.

        A session that is run again after the server ended sees the same. A kernel that has not completed is not mounted.
        """
        account, inputs = self._account, {}
        for source in version["datasets"]:
            name = source.split("/")[1]
            folder = self._datasets.mounted(name)
            if folder is not None:
                inputs[f"datasets/{account.owner}/{name}"] = os.path.relpath(folder, account.folder)
        for source in version["kernels"] if version.get("fault") != "no-mount" else ():
            name = source.split("/")[1]
            done = [
                each for each in self.versions(name) if each["status"] == "COMPLETE" and not each.get("quick")
            ]
            if done:
                working = self.folder(name, done[-1]["number"]) / "working"
                working.mkdir(parents=True, exist_ok=True)
                inputs[f"notebooks/{account.owner}/{name}"] = os.path.relpath(working, account.folder)
        return inputs

    def _version(self, job: Job) -> Json | None:
        """The version a session is of; None when it was deleted, though one of the same number may have followed it."""
        if self.folder(job.slug, job.version) != job.folder:
            return None
        return next(
            (version for version in self.versions(job.slug) if version["number"] == job.version), None
        )

    def _began(self, job: Job) -> None:
        with self._account.lock:
            version = self._version(job)
            if version is not None and version["status"] == "QUEUED":
                version["status"], version["started"] = "RUNNING", self._account.now()
                self._account.save()

    def _ended(self, job: Job, outcome: Outcome | None) -> None:
        with self._account.lock:
            version = self._version(job)
            if version is None or version["status"] not in ACTIVE:
                return
            if outcome is None:
                self._finish(version, "ERROR", "the session broke")
            elif outcome.timed_out:
                self._finish(version, "CANCEL_ACKNOWLEDGED")
            elif outcome.code != 0:
                self._finish(version, "ERROR", _THREW)
            else:
                working = job.folder / "working"
                working.mkdir(exist_ok=True)
                add_kaggle_files(working)
                self._finish(version, "COMPLETE")
            self._account.save()

    def quota(self) -> Json:
        """The week's GPU hours."""
        used, allowed = self._gpu_hours() * 3600, self._account.settings.weekly_gpu_hours * 3600
        return {
            "quotaRefreshTime": stamp(self._account.state["refresh_at"]),
            "gpuQuota": {"timeUsed": f"{used:.3f}s", "totalTimeAllowed": f"{allowed:.0f}s"},
            "tpuQuota": {"timeUsed": "0s", "totalTimeAllowed": "72000s"},
        }

    def _charge(self, version: Json) -> None:
        """Take the GPU time of a session until now off the quota."""
        if version["gpu"] and version["status"] == "RUNNING":
            self._account.state["gpu_seconds"] += self._account.now() - version["started"]
            version["started"] = self._account.now()

    def _gpu_hours(self) -> float:
        state = self._account.state
        with self._account.lock:
            if self._account.now() > state["refresh_at"]:
                state["gpu_seconds"] = 0.0
                while state["refresh_at"] < self._account.now():
                    state["refresh_at"] += 7 * 86400.0
            seconds = float(state["gpu_seconds"])
            for version in self._running():
                if version["gpu"] and version["status"] == "RUNNING":
                    seconds += self._account.now() - version["started"]
            return seconds / 3600


def source_name(kernel_type: str) -> str:
    """What a version's source is called in its folder."""
    return "script.ipynb" if kernel_type == "notebook" else "script.py"
