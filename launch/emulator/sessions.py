"""Sessions of the emulated Kaggle: runs of kernel versions, their mounts, results and GPU quota.

Sessions that ran when a server was killed are run again by the next server.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from launch.emulator.account import Account, JsonObject, format_time
from launch.emulator.datasets import Datasets
from launch.emulator.faults import Fault
from launch.emulator.scheduler import Executor, Job, Scheduler
from launch.sandbox import Mount, Outcome, add_kaggle_files
from lib.runtime.inputs import COMPETITION
from lib.runtime.run_record import RECORD_NAME

ACTIVE = ("QUEUED", "RUNNING", "CANCEL_REQUESTED")
_TRACEBACK = "Traceback (most recent call last):\nRuntimeError: injected\n"
_KERNEL_FAILED = "Your notebook threw an error"  # Kaggle's words


class Sessions:
    """The sessions of the account's kernels.

    `begin`, `stop` and `cancel` are part of a change: their caller holds the lock and saves.

    Args:
        account: the owner.
        datasets: that kernels may mount.
        data: the competition's files; None for a competition without data.
        executor: runs the sessions.
    """

    def __init__(
        self, account: Account, datasets: Datasets, *, data: Path | None, executor: Executor
    ) -> None:
        self._account, self._datasets, self._data = account, datasets, data
        self.use(executor)

    def use(self, executor: Executor) -> None:
        """Run all later sessions by this executor."""
        settings = self._account.settings
        sessions = (
            settings.gpu_sessions + settings.cpu_sessions + 8
        )  # sessions that are being stopped need some
        self._scheduler = Scheduler(executor, sessions=sessions, began=self._began, ended=self._ended)

    def versions(self, slug: str) -> list[JsonObject]:
        """The versions of a kernel in order; empty for an unknown kernel."""
        versions: list[JsonObject] = self._account.state["kernels"].get(slug, {"versions": []})["versions"]
        return versions

    def folder(self, slug: str, number: int) -> Path:
        """The folder of a version's source, log and output."""
        name = str(self._account.state["kernels"].get(slug, {}).get("folder", slug))
        return self._account.folder / "kernels" / name / f"v{number}"

    def refusal(self, *, gpu: bool, fault_kind: str) -> str:
        """The reason why no session can start now, in Kaggle's words; empty where one can start.

        Args:
            gpu: whether the session needs a GPU.
            fault_kind: of the push's fault.
        """
        settings = self._account.settings
        running = sum(version["gpu"] == gpu for version in self._versions(self._holds_slot))
        most = settings.gpu_sessions if gpu else settings.cpu_sessions
        if fault_kind in ("capacity", "empty-kernel") or running >= most:
            return f"Maximum batch {'GPU' if gpu else 'CPU'} session count of {most} reached."
        if fault_kind == "quota" or (gpu and self._gpu_hours() >= settings.weekly_gpu_hours):
            return f"Maximum weekly GPU quota of {settings.weekly_gpu_hours:.2f} hours reached."
        return ""

    def free_slot(self, gpu: bool) -> int:
        """The lowest number that no running session of this kind has, so that sessions get different GPUs."""
        held = self._versions(self._holds_slot)
        taken = {version.get("slot", 0) for version in held if version["gpu"] == gpu}
        return next(number for number in range(len(taken) + 1) if number not in taken)

    def begin(self, slug: str, version: JsonObject) -> None:
        """Start the session of a version that was pushed."""
        fault = self._account.faults.take("session", slug)
        kind = fault.kind if fault is not None else ""
        if kind:
            version["fault"], version["fault_value"] = kind, fault.value if fault is not None else None
        if kind == "endless":
            version["status"], version["started_at"] = "RUNNING", self._account.now()
        elif kind == "error":
            self._write_log(slug, version, _TRACEBACK)
            self._finish(version, "ERROR", _KERNEL_FAILED)
        elif kind in ("cancelled", "held-slot"):
            self._write_log(slug, version, "cancelled\n")
            self._finish(version, "CANCEL_ACKNOWLEDGED")
        else:
            self._scheduler.start(self._job(slug, version))

    def resume(self) -> None:
        """Run again the sessions that ran when the server ended."""
        with self._account.lock:
            for slug, kernel in self._account.state["kernels"].items():
                for version in kernel["versions"]:
                    if version["status"] not in ACTIVE:
                        continue
                    if version["status"] == "RUNNING":
                        version["started_at"] = self._account.now()  # time without a server costs no quota
                    if version.get("fault") != "endless":
                        self._scheduler.start(self._job(slug, version))
            self._account.save()

    def stop(self, slug: str) -> None:
        """End the sessions of a kernel that is deleted; the GPU time they used counts."""
        self._scheduler.stop(slug)
        for version in self.versions(slug):
            self._charge(version)

    def cancel(self) -> None:
        """End all sessions, as a user would on Kaggle's page."""
        for slug in self._account.state["kernels"]:
            for version in self.versions(slug):
                if version["status"] in ACTIVE:
                    self._finish(version, "CANCEL_ACKNOWLEDGED")
            self._scheduler.stop(slug)

    def close(self) -> None:
        """End all sessions; a later start runs them again."""
        self._scheduler.close()
        with self._account.lock:
            for version in self._running():
                self._charge(version)
            self._account.save()

    def _versions(self, condition: Callable[[JsonObject], bool]) -> list[JsonObject]:
        kernels = self._account.state["kernels"].values()
        versions = [version for kernel in kernels for version in kernel["versions"]]
        return [version for version in versions if condition(version)]

    @staticmethod
    def _holds_slot(version: JsonObject) -> bool:
        """Whether a version holds a session: its run is active, or a fault keeps the session after it."""
        return version["status"] in ACTIVE or version.get("fault") == "held-slot"

    def _running(self) -> list[JsonObject]:
        return self._versions(lambda version: version["status"] in ACTIVE)

    def _finish(self, version: JsonObject, status: str, message: str = "") -> None:
        self._charge(version)
        version["status"], version["message"], version["ended_at"] = status, message, self._account.now()

    def _write_log(self, slug: str, version: JsonObject, text: str) -> None:
        (self.folder(slug, version["number"]) / "log.txt").write_text(text)

    def _job(self, slug: str, version: JsonObject) -> Job:
        if "inputs" not in version:
            version["inputs"] = self._inputs(version)
        mounts = []
        if COMPETITION in version["competitions"] and self._data is not None:
            mounts.append(Mount(self._data, f"competitions/{COMPETITION}"))
        for target, source in version["inputs"].items():
            attached = None
            if target.startswith("datasets/"):
                attached = self._datasets.attached(target.split("/")[-1])
            mounts.append(Mount(attached or self._account.folder / source, target))
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

    def _inputs(self, version: JsonObject) -> dict[str, str]:
        """The folder of each source by its mount target, chosen at the start of the session.

        They are kept: a session that is run again sees the same versions. A kernel without a complete version
        is not mounted.
        """
        account, inputs = self._account, {}
        if version.get("fault") == "replaced-input" and version["kernels"]:
            self._replace(version["kernels"][0].split("/")[1], data_id=version.get("fault_value"))
        for source in version["datasets"]:
            name = source.split("/")[1]
            folder = self._datasets.mounted(name)
            if folder is not None:
                inputs[f"datasets/{account.owner}/{name}"] = os.path.relpath(folder, account.folder)
        for source in version["kernels"] if version.get("fault") != "no-mount" else ():
            name = source.split("/")[1]
            complete = [other for other in self.versions(name) if other["status"] == "COMPLETE"]
            if complete:
                working = self.folder(name, complete[-1]["number"]) / "working"
                working.mkdir(parents=True, exist_ok=True)
                inputs[f"notebooks/{account.owner}/{name}"] = os.path.relpath(working, account.folder)
        return inputs

    def _replace(self, slug: str, *, data_id: str | None) -> None:
        """Add a version of a kernel as if another campaign had pushed it, and its run were complete."""
        last = self.versions(slug)[-1]
        version = {**last, "number": last["number"] + 1, "pushed_at": self._account.now()}
        folder = self.folder(slug, version["number"])
        shutil.copytree(self.folder(slug, last["number"]), folder)
        path = folder / "working" / RECORD_NAME
        assert path.is_file(), f"the fault replaced-input needs a complete output of {slug}"
        record = json.loads(path.read_text(encoding="utf-8"))
        push_id = f"0123abcd.{slug}.{version['number']}"
        source = folder / source_name(version["type"])
        text = source.read_text(encoding="utf-8").replace(record["push_id"], push_id)
        source.write_text(text, encoding="utf-8")
        record |= {"push_id": push_id, "data_id": data_id or record["data_id"]}
        path.write_text(json.dumps(record), encoding="utf-8")
        self.versions(slug).append(version)

    def _version(self, job: Job) -> JsonObject | None:
        """The version of a session; None where its kernel was deleted, even if a new one has its slug."""
        if self.folder(job.slug, job.version) != job.folder:
            return None
        return next(
            (version for version in self.versions(job.slug) if version["number"] == job.version), None
        )

    def _began(self, job: Job) -> None:
        with self._account.lock:
            version = self._version(job)
            if version is not None and version["status"] == "QUEUED":
                version["status"], version["started_at"] = "RUNNING", self._account.now()
                self._account.save()

    def _ended(self, job: Job, outcome: Outcome | None) -> None:
        with self._account.lock:
            version = self._version(job)
            if version is None or version["status"] not in ACTIVE:
                return
            if outcome is None:
                self._finish(version, "ERROR", "the session failed in the emulator")
            elif outcome.timed_out:
                self._finish(version, "CANCEL_ACKNOWLEDGED")
            elif outcome.code != 0:
                self._finish(version, "ERROR", _KERNEL_FAILED)
            else:
                working = job.folder / "working"
                working.mkdir(exist_ok=True)
                add_kaggle_files(working)
                self._spoil(job, version, working)
                self._finish(version, "COMPLETE")
            self._account.save()

    def _spoil(self, job: Job, version: JsonObject, working: Path) -> None:
        """Change the output of a run that completes as the fault of its session says."""
        if version.get("fault") == "traceback":
            log = (job.folder / "log.txt").read_text(encoding="utf-8", errors="replace")
            self._write_log(job.slug, version, f"{log}{_TRACEBACK}")
        record = working / RECORD_NAME
        if version.get("fault") == "wrong-scores" and record.is_file():
            content = json.loads(record.read_text(encoding="utf-8"))
            content["scores"]["fold"]["auc"] -= 0.05
            record.write_text(json.dumps(content), encoding="utf-8")

    def quota(self, fault: Fault | None) -> JsonObject:
        """The used and allowed GPU time of the week."""
        hours = self._account.settings.weekly_gpu_hours
        if fault is not None and fault.kind == "shrunk":
            hours = float(fault.value)
        used, allowed = self._gpu_hours() * 3600, hours * 3600
        return {
            "quotaRefreshTime": format_time(self._account.state["refresh_at"]),
            "gpuQuota": {"timeUsed": f"{used:.3f}s", "totalTimeAllowed": f"{allowed:.0f}s"},
            "tpuQuota": {"timeUsed": "0s", "totalTimeAllowed": "72000s"},
        }

    def _charge(self, version: JsonObject) -> None:
        """Count the GPU time of a session until now."""
        if version["gpu"] and version["status"] == "RUNNING":
            self._account.state["gpu_seconds"] += self._account.now() - version["started_at"]
            version["started_at"] = self._account.now()

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
                    seconds += self._account.now() - version["started_at"]
            return seconds / 3600


def source_name(kernel_type: str) -> str:
    """The file name of a version's source."""
    return "script.ipynb" if kernel_type == "notebook" else "script.py"
