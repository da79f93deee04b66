"""Kernels of the emulated Kaggle: pushes and the versions they make, their status, output and logs."""

import contextlib
import json
from pathlib import Path
from typing import Any

from launch.emulator.account import Account, ApiError, Json, page, stamp
from launch.emulator.datasets import Datasets
from launch.emulator.faults import Fault
from launch.emulator.sessions import ACTIVE, Sessions, source_name
from launch.packaging.bundle import SOURCE_LIMIT
from launch.packaging.metadata import MACHINE_SHAPE
from launch.sandbox import ADDED_BY_KAGGLE, EXECUTED
from lib.runtime.inputs import COMPETITION


class Kernels:
    """The account's kernels.

    Args:
        account: whose they are.
        datasets: what they may name as sources; no kernel has the slug of one.
        sessions: run their versions.
    """

    def __init__(self, account: Account, datasets: Datasets, sessions: Sessions) -> None:
        self._account, self._datasets, self._sessions = account, datasets, sessions

    def push(self, body: Json, fault: Fault | None) -> Json:
        """A new version, of a new kernel where there is none of its slug."""
        account, full, title = self._account, str(body.get("slug", "")), str(body.get("newTitle", ""))
        what = fault.what if fault is not None else ""
        if "/" in full:
            account.check_owner(full.split("/")[0])
        if what == "error":
            return {"error": str(fault.value if fault is not None else "")}
        if len(str(body.get("text", "")).encode()) >= SOURCE_LIMIT:
            raise ApiError(400, "The kernel source must be less than 1 megabytes in size.")
        slug = full.split("/")[-1]
        if slug not in account.state["kernels"] and title:
            slug = _slugify(title)  # a new kernel is filed under its title, whatever its id says
        if what == "wrong-slug":
            slug += "-copy"
        if not slug:
            raise ApiError(400, "Kernel slug must be specified")
        if slug in self._datasets.slugs():
            raise ApiError(409, f"The slug {slug} is used by a dataset of yours")
        if not account.settings.phone_verified and (body.get("enableGpu") or body.get("enableInternet")):
            return {"error": "Phone verification is required to use GPUs and internet."}
        if (
            body.get("kernelType", "script") not in ("script", "notebook")
            or body.get("language", "python") != "python"
        ):
            return {"error": "the emulated Kaggle runs Python only"}  # Kaggle runs R, too
        filed = self._sessions.versions(slug)
        if filed and filed[-1]["type"] != body.get("kernelType", "script"):
            return {"error": f"Kernel type cannot be changed from {filed[-1]['type']}"}
        refusal = self._refusal(slug, body, what)
        if refusal:
            return {"error": refusal, "versionNumber": 0}
        return account.change("SaveKernel", slug, lambda: self._add_version(slug, body, what))

    def _refusal(self, slug: str, body: Json, what: str) -> str:
        """Why no session can start; on the first push of a kernel that leaves a ghost, which takes no push any more."""
        kernel = self._account.state["kernels"].get(slug, {})
        if kernel.get("ghost"):
            return "Notebook not found"
        if _is_quick(body):
            return ""
        refusal = self._sessions.refusal(gpu=bool(body.get("enableGpu")), what=what)
        if refusal and not kernel.get("versions"):
            self._kernel(slug)["ghost"] = True
            self._account.save()
        return refusal

    def _kernel(self, slug: str) -> Json:
        """A kernel, made if need be.

        One made again after it was deleted gets a folder of its own: its first version must not find what an earlier
        first version left.
        """
        state = self._account.state
        if slug not in state["kernels"]:
            number = self._account.number()
            folder = f"{slug}.{number}" if slug in state.setdefault("gone", []) else slug
            state["kernels"][slug] = {"id": number, "folder": folder, "versions": []}
        kernel: Json = state["kernels"][slug]
        return kernel

    def _add_version(self, slug: str, body: Json, what: str) -> Json:
        account, kernel, gpu = self._account, self._kernel(slug), bool(body.get("enableGpu"))
        dropped = self._invalid_sources(body)
        if what == "drop-sources":
            dropped = {
                "invalidKernelSources": list(body.get("kernelDataSources") or []),
                "invalidDatasetSources": list(body.get("datasetDataSources") or []),
                "invalidCompetitionSources": list(body.get("competitionDataSources") or []),
            }
        number = len(kernel["versions"]) + 1
        folder = self._sessions.folder(slug, number)
        folder.mkdir(parents=True, exist_ok=True)
        name = source_name(str(body.get("kernelType", "script")))
        (folder / name).write_text(str(body.get("text", "")), encoding="utf-8")
        gone = {source for sources in dropped.values() for source in sources}
        longest = account.settings.session_limit
        version = {
            "number": number,
            "status": "QUEUED",
            "message": "",
            "pushed": self._account.now(),
            "started": 0.0,
            "ended": 0.0,
            "gpu": gpu,
            "slot": self._sessions.free_slot(gpu),
            "quick": _is_quick(body),
            "internet": bool(body.get("enableInternet", False)),
            "limit": min(_duration(body.get("sessionTimeoutSeconds")) or longest, longest),
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
        account.took_effect("SaveKernel", slug)
        if version["quick"]:
            version["status"], version["ended"] = "COMPLETE", self._account.now()
        else:
            self._sessions.begin(slug, version)
        answer = {
            "ref": f"/code/{account.owner}/{slug}",
            "url": f"https://www.kaggle.com/code/{account.owner}/{slug}",
            "versionNumber": number,
            "kernelId": kernel["id"],
        }
        return answer | {name: values for name, values in dropped.items() if values}

    def _invalid_sources(self, body: Json) -> dict[str, list[str]]:
        def bare(source: str) -> str:
            return "/".join(source.split("/")[:2])

        owner, filed = self._account.owner, self._account.state["kernels"]
        kernels = {f"{owner}/{slug}".lower() for slug, each in filed.items() if each["versions"]}
        datasets = {f"{owner}/{slug}".lower() for slug in self._datasets.slugs()}
        return {
            "invalidKernelSources": [
                s for s in body.get("kernelDataSources") or [] if bare(s).lower() not in kernels
            ],
            "invalidDatasetSources": [
                s for s in body.get("datasetDataSources") or [] if bare(s).lower() not in datasets
            ],
            "invalidCompetitionSources": [
                s for s in body.get("competitionDataSources") or [] if s != COMPETITION
            ],
        }

    def delete(self, body: Json) -> Json:
        """Delete a kernel and end its run."""
        slug, state = str(body.get("kernelSlug", "")), self._account.state
        if slug not in state["kernels"]:
            raise ApiError(404, "Kernel not found")

        def act() -> Json:
            self._sessions.stop(slug)
            if state["kernels"].pop(slug)[
                "versions"
            ]:  # its files stay: a kernel at work may have them mounted
                state.setdefault("gone", []).append(slug)
            self._account.took_effect("DeleteKernel", slug)
            return {}

        return self._account.change("DeleteKernel", slug, act)

    def status(self, body: Json, fault: Fault | None) -> Json:
        """How the latest run stands."""
        slug = str(body.get("kernelSlug", "")).split("/")[0]
        versions = self._versions(slug)
        if fault is not None and fault.what == "status":
            return {"status": str(fault.value)}
        version = _labelled(versions, body)
        fresh = self._account.now() - version["pushed"] < self._account.settings.status_delay
        if (fault is not None and fault.what == "stale") or fresh:
            if version["number"] == 1:
                if fresh:
                    raise ApiError(404, "No runs found")
                return {"status": "COMPLETE"}
            version = versions[-2]
        answer = {"status": version["status"]}
        return answer | ({"failureMessage": version["message"]} if version["message"] else {})

    def _versions(self, slug: str) -> list[Json]:
        versions = self._sessions.versions(slug)
        if not versions:
            raise ApiError(404, "No runs found")
        return versions

    def output(self, body: Json, fault: Fault | None, base: str) -> Json:
        """A page of the files of the latest run, and its log."""
        slug = str(body.get("kernelSlug", ""))
        versions = self._versions(slug)
        version = _labelled(versions, body)
        what = fault.what if fault is not None else ""
        folder = self._sessions.folder(slug, version["number"])
        if what == "stale":
            folder = (
                self._sessions.folder(slug, versions[-2]["number"])
                if len(versions) > 1
                else folder / "nothing"
            )
        names = _output_names(folder / "working") if version.get("fault") != "no-output" else []
        if what == "missing":
            names = [name for name in names if str(fault.value if fault is not None else "") not in name]
        asked, following = page(names, body if what != "page" else body | {"pageSize": 1})
        place = f"{folder.parent.name}/{folder.name}"
        files = [{"fileName": name, "url": self._link(base, place, name)} for name in asked]
        if what == "traversal":
            files.append({"fileName": "../x", "url": self._link(base, place, names[0] if names else "x")})
        return {"files": files, "log": _log(folder), **({} if what == "page" else following)}

    def _link(self, base: str, place: str, name: str) -> str:
        return f"{base}/output/{place}?{self._account.signed(place, name)}"

    def output_file(self, place: str, name: str) -> Path:
        """A file of the output of a version; the place is that of its link."""
        path = self._account.folder / "kernels" / place / "working" / name
        if not path.is_file():
            raise ApiError(404, "no such file")
        return path

    def files(self, body: Json) -> Json:
        """A page of names and sizes of the output."""
        slug = str(body.get("kernelSlug", ""))
        version = _labelled(self._versions(slug), body)
        working, date = self._sessions.folder(slug, version["number"]) / "working", stamp(version["pushed"])
        names, following = page(_output_names(working), body)
        files = []
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # a kernel at work may remove what it wrote
                files.append({"name": name, "size": (working / name).stat().st_size, "creationDate": date})
        return {"files": files, **following}

    def log_events(self, slug: str, label: str = "") -> tuple[bool, list[Json]]:
        """Whether the latest run, or that of a version, is over, and its log so far."""
        with self._account.lock:
            version = _labelled(self._versions(slug), {"versionLabel": label})
        text = _log(self._sessions.folder(slug, version["number"]))
        return version["status"] not in ACTIVE, json.loads(text) if text else []

    def get(self, body: Json) -> Json:
        """Source and metadata of the latest version."""
        slug = str(body.get("kernelSlug", "")).split("/")[0]
        kernel = self._account.state["kernels"].get(slug)
        if kernel is None:
            raise ApiError(404, "Kernel not found")
        if not kernel["versions"]:
            raise ApiError(500, "Internal error")
        version = kernel["versions"][-1]
        folder = self._sessions.folder(slug, version["number"])
        source = (folder / source_name(version["type"])).read_text(encoding="utf-8")
        return {
            "metadata": self._facts(slug, kernel, version),
            "blob": {
                "source": source,
                "language": version["language"],
                "kernelType": version["type"],
                "slug": slug,
            },
        }

    def listing(self, body: Json) -> Json:
        """A page of the account's kernels."""
        found = [
            self._facts(slug, kernel, kernel["versions"][-1])
            for slug, kernel in self._account.state["kernels"].items()
            if kernel["versions"] and str(body.get("search") or "") in slug
        ]
        number, size = max(1, int(body.get("page") or 1)), int(body.get("pageSize") or 20)
        return {"kernels": found[(number - 1) * size : number * size]}

    def _facts(self, slug: str, kernel: Json, version: Json) -> Json:
        return {
            "id": kernel["id"],
            "ref": f"{self._account.owner}/{slug}",
            "title": version["title"],
            "author": self._account.owner,
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


def _labelled(versions: list[Json], body: Json) -> Json:
    """The version a request names, the latest where it names none."""
    label = str(body.get("versionLabel") or "").removeprefix("v")
    if not label:
        return versions[-1]
    found = next((each for each in versions if str(each["number"]) == label), None)
    if found is None:
        raise ApiError(404, "No such version")
    return found


def _output_names(working: Path) -> list[str]:
    found = (path for path in sorted(working.rglob("*")) if path.is_file())
    names = [path.relative_to(working).as_posix() for path in found]
    return [name for name in names if name not in (*ADDED_BY_KAGGLE, EXECUTED)]


def _log(folder: Path) -> str:
    path = folder / "log.txt"
    if not path.is_file():
        return ""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    return json.dumps(
        [{"stream_name": "stdout", "time": float(n), "data": line} for n, line in enumerate(lines)]
    )


def _is_quick(body: Json) -> bool:
    """Whether a push saves without running (2.2.5 `--no-run`); it needs no session."""
    return body.get("kernelExecutionType") == "QUICK_SAVE"


def _slugify(title: str) -> str:
    from slugify import slugify

    return str(slugify(title))


def _duration(value: Any) -> float:
    if value is None:
        return 0.0
    return float(str(value).removesuffix("s"))
