"""What the loopback Kaggle holds and how it answers: kernels, runs, outputs, quota.

Behaviour follows the record of the platform (what the client's source and users' reports say). Everything is on disk before
it is answered, so a server that was killed goes on where it stood; sessions that ran then are run again.
"""

import contextlib
import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.bundle import SOURCE_LIMIT
from launch.metadata import MACHINE_SHAPE
from launch.rehearsal.account import Account, ApiError, Json, Settings, page, stamp
from launch.rehearsal.datasets import Datasets
from launch.rehearsal.faults import Fault
from launch.rehearsal.scheduler import Executor, Job, KernelExecutor, Scheduler
from launch.rehearsal.submissions import Competition, Submissions
from launch.rehearsal.uploads import Uploads
from launch.sandbox import ADDED_BY_KAGGLE, EXECUTED, Mount, Outcome, decorate
from lib.session import COMPETITION

_ACTIVE = ("QUEUED", "RUNNING", "CANCEL_REQUESTED")
_THREW = "Your notebook threw an error"


class LoopbackKaggle:
    """One account on a Kaggle of our own.

    Args:
        folder: where everything is kept.
        data: the competition's files; None for a competition without data.
        labels: the held-back labels of the test tiles (id,label); without them submissions get no score.
        owner: the account.
        token: what authenticates it.
        settings: how it behaves.
        faults: what goes wrong, and when.
        executor: runs sessions; the default runs the scripts.
        environ: what kernels with a network are given; this process's environment by default.

    Raises:
        LaunchError: another server is at work in the folder, its state cannot be read, or a fault makes no sense.
    """

    def __init__(
        self,
        folder: Path,
        *,
        data: Path | None,
        labels: Path | None,
        owner: str,
        token: str,
        settings: Settings | None = None,
        faults: Sequence[Fault] = (),
        executor: Executor | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        settings = settings or Settings()
        self.account = Account(folder, owner=owner, token=token, settings=settings, faults=faults)
        self._data = data
        self.uploads = Uploads(self.account)
        self.datasets = Datasets(self.account, self.uploads)
        self.competition = Competition(self.account, data)
        self.submissions = Submissions(self.account, self.uploads, data=data, labels=labels)
        self.closed = threading.Event()
        environ = dict(os.environ) if environ is None else dict(environ)
        self.use(executor or KernelExecutor(self.account.settings.gpu_sessions, environ))

    def use(self, executor: Executor) -> None:
        """Let this run the sessions from now on."""
        settings = self.account.settings
        sessions = settings.gpu_sessions + settings.cpu_sessions + 8  # of versions pushed over running ones, too
        self._scheduler = Scheduler(executor, sessions=sessions, began=self._began, ended=self._ended)

    # --- state -------------------------------------------------------------------------------------------------------

    def resume(self) -> None:
        """Run again what was at work when the server ended."""
        with self.account.lock:
            for slug, kernel in self.account.state["kernels"].items():
                for version in kernel["versions"]:
                    if version["status"] not in _ACTIVE:
                        continue
                    if version["status"] == "RUNNING":
                        version["started"] = time.time()  # the hours for which no server was there cost no quota
                    if not version.get("for_ever"):
                        self._scheduler.start(self._job(slug, version))
            self.account.save()

    def close(self) -> None:
        """End what runs; a later start runs it again."""
        if self.closed.is_set():
            return
        self.closed.set()
        self._scheduler.close()
        with self.account.lock:
            for version in self._running():
                self._charge(version)
            self.account.save()
        self.account.close()

    def _running(self) -> list[Json]:
        return [
            each for kernel in self.account.state["kernels"].values() for each in kernel["versions"] if each["status"] in _ACTIVE
        ]

    def _charge(self, version: Json) -> None:
        """Take the GPU time of a session until now off the quota."""
        if version["gpu"] and version["status"] == "RUNNING":
            self.account.state["gpu_seconds"] += time.time() - version["started"]
            version["started"] = time.time()

    def _finish(self, version: Json, status: str, message: str = "") -> None:
        self._charge(version)
        version["status"], version["message"], version["ended"] = status, message, time.time()

    def mend(self) -> None:
        """Everything works from now on, and every session that is still at work is ended, as a person would."""
        self.account.faults.clear()
        with self.account.lock:
            self.submissions.mend()
            for slug, kernel in self.account.state["kernels"].items():
                for version in kernel["versions"]:
                    if version["status"] in _ACTIVE:
                        self._finish(version, "CANCEL_ACKNOWLEDGED")
                self._scheduler.stop(slug)
            self.account.save()

    # --- kernels -----------------------------------------------------------------------------------------------------

    def save_kernel(self, body: Json, fault: Fault | None) -> Json:
        """A push."""
        full, title = str(body.get("slug", "")), str(body.get("newTitle", ""))
        what = fault.what if fault is not None else ""
        if "/" in full:
            self.account.check_owner(full.split("/")[0])
        if what == "error":
            return {"error": str(fault.value if fault is not None else "")}
        if len(str(body.get("text", "")).encode()) >= SOURCE_LIMIT:
            raise ApiError(400, "The kernel source must be less than 1 megabytes in size.")
        slug = full.split("/")[-1]
        if slug not in self.account.state["kernels"] and title:
            slug = _slugify(title)  # a new kernel is filed under its title, whatever its id says
        if what == "wrong-slug":
            slug += "-copy"
        if not slug:
            raise ApiError(400, "Kernel slug must be specified")
        if slug in self.datasets.slugs():
            raise ApiError(409, f"The slug {slug} is used by a dataset of yours")
        if not self.account.settings.phone_verified and (body.get("enableGpu") or body.get("enableInternet")):
            return {"error": "Phone verification is required to use GPUs and internet."}
        if body.get("kernelType", "script") not in ("script", "notebook") or body.get("language", "python") != "python":
            return {"error": "the loopback Kaggle runs Python only"}  # Kaggle runs R, too
        filed = self.account.state["kernels"].get(slug, {}).get("versions")
        if filed and filed[-1]["type"] != body.get("kernelType", "script"):
            return {"error": f"Kernel type cannot be changed from {filed[-1]['type']}"}
        refusal = self._refusal(slug, body, what)
        if refusal:
            return {"error": refusal, "versionNumber": 0}
        return self.account.change("SaveKernel", slug, lambda: self._push(slug, body, what))

    def _refusal(self, slug: str, body: Json, what: str) -> str:
        """Why no session can start; on the first push of a kernel that leaves a ghost, which takes no push any more."""
        kernel, gpu = self.account.state["kernels"].get(slug), bool(body.get("enableGpu"))
        if kernel is not None and kernel.get("ghost"):
            return "Notebook not found"
        if _is_quick(body):
            return ""
        running = sum(version["gpu"] == gpu for version in self._running())
        most = self.account.settings.gpu_sessions if gpu else self.account.settings.cpu_sessions
        refusal = ""
        if what in ("capacity", "ghost") or running >= most:
            refusal = f"Maximum batch {'GPU' if gpu else 'CPU'} session count of {most} reached."
        elif what == "quota" or (gpu and self._gpu_hours() >= self.account.settings.weekly_gpu_hours):
            refusal = f"Maximum weekly GPU quota of {self.account.settings.weekly_gpu_hours:.2f} hours reached."
        if refusal and not (kernel or {}).get("versions"):
            self._kernel(slug)["ghost"] = True
            self.account.save()
        return refusal

    def _kernel(self, slug: str) -> Json:
        """A kernel, made if need be.

        One made again after it was deleted gets a folder of its own: its first version must not find what an earlier
        first version left.
        """
        kernels = self.account.state["kernels"]
        if slug not in kernels:
            number = self.account.number()
            folder = f"{slug}.{number}" if slug in self.account.state.setdefault("gone", []) else slug
            kernels[slug] = {"id": number, "folder": folder, "versions": []}
        kernel: Json = kernels[slug]
        return kernel

    def _free_slot(self, gpu: bool) -> int:
        """The lowest number no session of this machine has: sessions that run at a time get different cards."""
        taken = {version.get("slot", 0) for version in self._running() if version["gpu"] == gpu}
        return next(number for number in range(len(taken) + 1) if number not in taken)

    def _push(self, slug: str, body: Json, what: str) -> Json:
        kernel, gpu = self._kernel(slug), bool(body.get("enableGpu"))
        dropped = self._invalid_sources(body)
        if what == "drop-sources":
            dropped = {
                "invalidKernelSources": list(body.get("kernelDataSources") or []),
                "invalidDatasetSources": list(body.get("datasetDataSources") or []),
                "invalidCompetitionSources": list(body.get("competitionDataSources") or []),
            }
        number = len(kernel["versions"]) + 1
        folder = self._version_folder(slug, number)
        folder.mkdir(parents=True, exist_ok=True)
        name = _source_name(str(body.get("kernelType", "script")))
        (folder / name).write_text(str(body.get("text", "")), encoding="utf-8")
        gone = {source for sources in dropped.values() for source in sources}
        version = {
            "number": number,
            "status": "QUEUED",
            "message": "",
            "pushed": time.time(),
            "started": 0.0,
            "ended": 0.0,
            "gpu": gpu,
            "slot": self._free_slot(gpu),
            "quick": _is_quick(body),
            "internet": bool(body.get("enableInternet", False)),
            "limit": min(
                _duration(body.get("sessionTimeoutSeconds")) or self.account.settings.session_limit,
                self.account.settings.session_limit,
            ),
            "kernels": [each for each in body.get("kernelDataSources") or [] if each not in gone],
            "datasets": [each for each in body.get("datasetDataSources") or [] if each not in gone],
            "competitions": [each for each in body.get("competitionDataSources") or [] if each not in gone],
            "machine_shape": str(body.get("machineShape") or (MACHINE_SHAPE if gpu else "None")),
            "title": str(body.get("newTitle", "")),
            "language": body.get("language", "python"),
            "type": body.get("kernelType", "script"),
            "private": bool(body.get("isPrivate", True)),
        }
        kernel["versions"].append(version)
        self.account.took_effect("SaveKernel", slug)
        if version["quick"]:
            version["status"], version["ended"] = "COMPLETE", time.time()
        else:
            self._begin(slug, version)
        answer = {
            "ref": f"/code/{self.account.owner}/{slug}",
            "url": f"https://www.kaggle.com/code/{self.account.owner}/{slug}",
            "versionNumber": number,
            "kernelId": kernel["id"],
        }
        return answer | {name: values for name, values in dropped.items() if values}

    def _invalid_sources(self, body: Json) -> dict[str, list[str]]:
        def bare(source: str) -> str:
            return "/".join(source.split("/")[:2])

        kernels = {
            f"{self.account.owner}/{slug}".lower() for slug, each in self.account.state["kernels"].items() if each["versions"]
        }
        datasets = {f"{self.account.owner}/{slug}".lower() for slug in self.datasets.slugs()}
        return {
            "invalidKernelSources": [s for s in body.get("kernelDataSources") or [] if bare(s).lower() not in kernels],
            "invalidDatasetSources": [s for s in body.get("datasetDataSources") or [] if bare(s).lower() not in datasets],
            "invalidCompetitionSources": [s for s in body.get("competitionDataSources") or [] if s != COMPETITION],
        }

    def _begin(self, slug: str, version: Json) -> None:
        fault = self.account.faults.take("session", slug)
        what = fault.what if fault is not None else ""
        if what:
            version["fault"] = what
        if what == "for-ever":
            version["status"], version["started"], version["for_ever"] = "RUNNING", time.time(), True
        elif what == "error":
            self._note_log(slug, version, "Traceback (most recent call last):\nRuntimeError: injected\n")
            self._finish(version, "ERROR", _THREW)
        elif what == "cancelled":
            self._note_log(slug, version, "cancelled\n")
            self._finish(version, "CANCEL_ACKNOWLEDGED")
        else:
            self._scheduler.start(self._job(slug, version))

    def _note_log(self, slug: str, version: Json, text: str) -> None:
        (self._version_folder(slug, version["number"]) / "log.txt").write_text(text)

    def _version_folder(self, slug: str, number: int) -> Path:
        name = str(self.account.state["kernels"].get(slug, {}).get("folder", slug))
        return self.account.folder / "kernels" / name / f"v{number}"

    def _job(self, slug: str, version: Json) -> Job:
        if "inputs" not in version:
            version["inputs"] = self._inputs(version)
        mounts = []
        if COMPETITION in version["competitions"] and self._data is not None:
            mounts.append(Mount(self._data, f"competitions/{COMPETITION}"))
        for place, source in version["inputs"].items():
            attached = self.datasets.attached(place.split("/")[-1]) if place.startswith("datasets/") else None
            mounts.append(Mount(attached or self.account.folder / source, place))
        folder = self._version_folder(slug, version["number"])
        return Job(
            slug=slug,
            version=version["number"],
            script=folder / _source_name(version["type"]),
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
        inputs = {}
        for source in version["datasets"]:
            name = source.split("/")[1]
            folder = self.datasets.mounted(name)
            if folder is not None:
                inputs[f"datasets/{self.account.owner}/{name}"] = os.path.relpath(folder, self.account.folder)
        for source in version["kernels"] if version.get("fault") != "no-mount" else ():
            name = source.split("/")[1]
            versions = self.account.state["kernels"].get(name, {"versions": []})["versions"]
            done = [each for each in versions if each["status"] == "COMPLETE" and not each.get("quick")]
            if done:
                working = self._version_folder(name, done[-1]["number"]) / "working"
                working.mkdir(parents=True, exist_ok=True)
                inputs[f"notebooks/{self.account.owner}/{name}"] = os.path.relpath(working, self.account.folder)
        return inputs

    def _version(self, job: Job) -> Json | None:
        """The version a session is of; None when it was deleted, though one of the same number may have followed it."""
        if self._version_folder(job.slug, job.version) != job.folder:
            return None
        versions = self.account.state["kernels"].get(job.slug, {"versions": []})["versions"]
        return next((version for version in versions if version["number"] == job.version), None)

    def _began(self, job: Job) -> None:
        with self.account.lock:
            version = self._version(job)
            if version is not None and version["status"] == "QUEUED":
                version["status"], version["started"] = "RUNNING", time.time()
                self.account.save()

    def _ended(self, job: Job, outcome: Outcome | None) -> None:
        with self.account.lock:
            version = self._version(job)
            if version is None or version["status"] not in _ACTIVE:
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
                decorate(working)
                self._finish(version, "COMPLETE")
            self.account.save()

    def kernel_status(self, body: Json, fault: Fault | None) -> Json:
        """How the latest run stands."""
        slug = str(body.get("kernelSlug", "")).split("/")[0]
        versions = self._versions(slug)
        if fault is not None and fault.what == "status":
            return {"status": str(fault.value)}
        version = self._labelled(versions, body)
        fresh = time.time() - version["pushed"] < self.account.settings.status_delay
        if (fault is not None and fault.what == "stale") or fresh:
            if version["number"] == 1:
                if fresh:
                    raise ApiError(404, "No runs found")
                return {"status": "COMPLETE"}
            version = versions[-2]
        answer = {"status": version["status"]}
        return answer | ({"failureMessage": version["message"]} if version["message"] else {})

    def _versions(self, slug: str) -> list[Json]:
        versions: list[Json] = self.account.state["kernels"].get(slug, {"versions": []})["versions"]
        if not versions:
            raise ApiError(404, "No runs found")
        return versions

    @staticmethod
    def _labelled(versions: list[Json], body: Json) -> Json:
        label = str(body.get("versionLabel") or "").removeprefix("v")
        if not label:
            return versions[-1]
        found = next((each for each in versions if str(each["number"]) == label), None)
        if found is None:
            raise ApiError(404, "No such version")
        return found

    def kernel_output(self, body: Json, fault: Fault | None, base: str) -> Json:
        """A page of the files of the latest run, and its log."""
        slug = str(body.get("kernelSlug", ""))
        versions = self._versions(slug)
        version = self._labelled(versions, body)
        what = fault.what if fault is not None else ""
        folder = self._version_folder(slug, version["number"])
        if what == "stale":
            folder = self._version_folder(slug, versions[-2]["number"]) if len(versions) > 1 else folder / "nothing"
        names = self._output_names(folder / "working") if version.get("fault") != "no-output" else []
        if what == "missing":
            names = [name for name in names if str(fault.value if fault is not None else "") not in name]
        asked, following = page(names, body if what != "page" else body | {"pageSize": 1})
        files = [{"fileName": name, "url": self._sign(base, f"{folder.parent.name}/{folder.name}", name)} for name in asked]
        if what == "traversal":
            url = self._sign(base, f"{folder.parent.name}/{folder.name}", names[0] if names else "x")
            files.append({"fileName": "../x", "url": url})
        return {"files": files, "log": self._log(folder), **({} if what == "page" else following)}

    @staticmethod
    def _output_names(working: Path) -> list[str]:
        found = (path for path in sorted(working.rglob("*")) if path.is_file())
        names = [path.relative_to(working).as_posix() for path in found]
        return [name for name in names if name not in (*ADDED_BY_KAGGLE, EXECUTED)]

    def _log(self, folder: Path) -> str:
        path = folder / "log.txt"
        if not path.is_file():
            return ""
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        return json.dumps([{"stream_name": "stdout", "time": float(n), "data": line} for n, line in enumerate(lines)])

    def _sign(self, base: str, place: str, name: str) -> str:
        return f"{base}/output/{place}?{self.account.signed(place, name)}"

    def output_file(self, place: str, name: str) -> Path:
        """A file of the output of a version; the place is that of its link."""
        path = self.account.folder / "kernels" / place / "working" / name
        if not path.is_file():
            raise ApiError(404, "no such file")
        return path

    def kernel_files(self, body: Json) -> Json:
        """A page of names and sizes of the output."""
        slug = str(body.get("kernelSlug", ""))
        version = self._labelled(self._versions(slug), body)
        working, date = self._version_folder(slug, version["number"]) / "working", stamp(version["pushed"])
        names, following = page(self._output_names(working), body)
        files = []
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # a kernel at work may remove what it wrote
                files.append({"name": name, "size": (working / name).stat().st_size, "creationDate": date})
        return {"files": files, **following}

    def get_kernel(self, body: Json) -> Json:
        """Source and metadata of the latest version."""
        slug = str(body.get("kernelSlug", "")).split("/")[0]
        kernel = self.account.state["kernels"].get(slug)
        if kernel is None:
            raise ApiError(404, "Kernel not found")
        if not kernel["versions"]:
            raise ApiError(500, "Internal error")
        version = kernel["versions"][-1]
        folder = self._version_folder(slug, version["number"])
        source = (folder / _source_name(version["type"])).read_text(encoding="utf-8")
        return {
            "metadata": self._kernel_facts(slug, kernel, version),
            "blob": {"source": source, "language": version["language"], "kernelType": version["type"], "slug": slug},
        }

    def _kernel_facts(self, slug: str, kernel: Json, version: Json) -> Json:
        return {
            "id": kernel["id"],
            "ref": f"{self.account.owner}/{slug}",
            "title": version["title"],
            "author": self.account.owner,
            "slug": slug,
            "lastRunTime": stamp(version["pushed"]),
            "language": version["language"],
            "kernelType": version["type"],
            "isPrivate": version["private"],
            "enableGpu": version["gpu"],
            "enableInternet": version["internet"],
            "datasetDataSources": version["datasets"],
            "kernelDataSources": version["kernels"],
            "competitionDataSources": version["competitions"],
            "currentVersionNumber": version["number"],
            "machineShape": version["machine_shape"],
        }

    def list_kernels(self, body: Json) -> Json:
        """The account's kernels."""
        found = [
            self._kernel_facts(slug, kernel, kernel["versions"][-1])
            for slug, kernel in self.account.state["kernels"].items()
            if kernel["versions"] and str(body.get("search") or "") in slug
        ]
        page, size = max(1, int(body.get("page") or 1)), int(body.get("pageSize") or 20)
        return {"kernels": found[(page - 1) * size : page * size]}

    def delete_kernel(self, body: Json) -> Json:
        """Delete a kernel and end its run."""
        slug = str(body.get("kernelSlug", ""))
        if slug not in self.account.state["kernels"]:
            raise ApiError(404, "Kernel not found")

        def act() -> Json:
            self._scheduler.stop(slug)
            kernel = self.account.state["kernels"].pop(slug)
            for version in kernel["versions"]:
                self._charge(version)
            if kernel["versions"]:  # its files stay: a kernel at work may have them mounted
                self.account.state.setdefault("gone", []).append(slug)
            self.account.took_effect("DeleteKernel", slug)
            return {}

        return self.account.change("DeleteKernel", slug, act)

    def log_events(self, slug: str, label: str = "") -> tuple[bool, list[Json]]:
        """Whether the latest run, or that of a version, is over, and its log so far."""
        with self.account.lock:
            version = self._labelled(self._versions(slug), {"versionLabel": label})
        text = self._log(self._version_folder(slug, version["number"]))
        return version["status"] not in _ACTIVE, json.loads(text) if text else []

    def quota(self) -> Json:
        """The week's GPU hours."""
        used = self._gpu_hours() * 3600
        allowed = self.account.settings.weekly_gpu_hours * 3600
        return {
            "quotaRefreshTime": stamp(self.account.state["refresh_at"]),
            "gpuQuota": {"timeUsed": f"{used:.3f}s", "totalTimeAllowed": f"{allowed:.0f}s"},
            "tpuQuota": {"timeUsed": "0s", "totalTimeAllowed": "72000s"},
        }

    def _gpu_hours(self) -> float:
        with self.account.lock:
            if time.time() > self.account.state["refresh_at"]:
                self.account.state["gpu_seconds"] = 0.0
                while self.account.state["refresh_at"] < time.time():
                    self.account.state["refresh_at"] += 7 * 86400.0
            seconds = float(self.account.state["gpu_seconds"])
            for kernel in self.account.state["kernels"].values():
                for version in kernel["versions"]:
                    if version["gpu"] and version["status"] == "RUNNING":
                        seconds += time.time() - version["started"]
            return seconds / 3600


def _is_quick(body: Json) -> bool:
    """Whether a push saves without running (2.2.5 `--no-run`); it needs no session."""
    return body.get("kernelExecutionType") == "QUICK_SAVE"


def _slugify(title: str) -> str:
    from slugify import slugify

    return str(slugify(title))


def _source_name(kernel_type: str) -> str:
    """What a version's source is called in its folder."""
    return "script.ipynb" if kernel_type == "notebook" else "script.py"


def _duration(value: Any) -> float:
    if value is None:
        return 0.0
    return float(str(value).removesuffix("s"))
