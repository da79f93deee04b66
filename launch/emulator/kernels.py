"""Kernels of the emulated Kaggle: pushes, versions, status, output and logs."""

import contextlib
import json
import re
from pathlib import Path
from typing import Any

from launch.emulator.account import Account, ApiError, JsonObject, format_time, paginate
from launch.emulator.datasets import Datasets
from launch.emulator.faults import Fault
from launch.emulator.sessions import ACTIVE, Sessions, source_name
from launch.packaging.bundle import SOURCE_LIMIT
from launch.packaging.metadata import MACHINE_SHAPE, TITLE_LIMIT
from lib.runtime.inputs import ADDED_BY_KAGGLE, COMPETITION, EXECUTED_NOTEBOOK


class Kernels:
    """The account's kernels.

    Args:
        account: the owner.
        datasets: possible sources; no kernel has the slug of a dataset.
        sessions: run the versions.
    """

    def __init__(self, account: Account, datasets: Datasets, sessions: Sessions) -> None:
        self._account, self._datasets, self._sessions = account, datasets, sessions

    def push(self, body: JsonObject, fault: Fault | None) -> JsonObject:
        """Make a new version of a kernel, and the kernel where its slug is new."""
        account, full_slug, title = self._account, str(body.get("slug", "")), str(body.get("newTitle", ""))
        fault_kind = fault.kind if fault is not None else ""
        if "/" in full_slug:
            account.check_owner(full_slug.split("/")[0])
        if fault_kind == "error":
            return {"error": str(fault.value if fault is not None else "")}
        if len(str(body.get("text", "")).encode()) >= SOURCE_LIMIT:
            raise ApiError(400, "The kernel source must be less than 1 megabytes in size.")
        if len(title) > TITLE_LIMIT:
            raise ApiError(400, f"The title must have at most {TITLE_LIMIT} characters")
        slug = full_slug.split("/")[-1]
        if slug not in account.state["kernels"] and title:
            slug = _slugify(title)  # Kaggle files a new kernel under its title, not under its id
        if fault_kind == "wrong-slug":
            slug += "-copy"
        if not slug:
            raise ApiError(400, "Kernel slug must be specified")
        if slug in self._datasets.slugs():
            raise ApiError(409, f"The slug {slug} is used by a dataset of yours")
        if not account.settings.phone_verified and (body.get("enableGpu") or body.get("enableInternet")):
            return {"error": "Phone verification is required to use GPUs and internet."}
        kernel_type = body.get("kernelType", "script")
        if kernel_type not in ("script", "notebook") or body.get("language", "python") != "python":
            return {"error": "the emulated Kaggle runs Python only"}  # Kaggle also runs R
        versions = self._sessions.versions(slug)
        if versions and versions[-1]["type"] != kernel_type:
            return {"error": f"Kernel type cannot be changed from {versions[-1]['type']}"}
        refusal = self._refusal(slug, body, fault_kind)
        if refusal:
            return {"error": refusal, "versionNumber": 0}

        def act() -> JsonObject:
            answer = self._add_version(slug, body, fault_kind)
            if fault is not None and fault_kind == "pushed-over":
                self._push_over(slug, body, str(fault.value or ""))
            return answer

        return account.change("SaveKernel", slug, act)

    def _push_over(self, slug: str, body: JsonObject, campaign: str) -> None:
        """Make another version over the latest one, as somebody else would; see `launch.emulator.faults`."""
        text = "print('pushed by hand')\n"
        if campaign:
            text = re.sub(rf"[0-9a-f]{{8}}(?=\.{re.escape(slug)}\.\d)", campaign, str(body.get("text", "")))
        self._add_version(slug, body | {"text": text}, "")

    def _refusal(self, slug: str, body: JsonObject, fault_kind: str) -> str:
        """The reason why no session can start; empty where one can start.

        A refused first push leaves an empty kernel, without a version, which refuses all later pushes.
        """
        kernel = self._account.state["kernels"].get(slug, {})
        if kernel.get("empty"):
            return "Notebook not found"
        if _is_quick(body):
            return ""
        refusal = self._sessions.refusal(gpu=bool(body.get("enableGpu")), fault_kind=fault_kind)
        if refusal and not kernel.get("versions"):
            self._kernel(slug)["empty"] = True
            self._account.save()
        return refusal

    def _kernel(self, slug: str) -> JsonObject:
        """The state of a kernel, created where it is missing.

        A kernel that is created again after a deletion gets a folder of its own: its first version must not
        find the files of the deleted one.
        """
        state = self._account.state
        if slug not in state["kernels"]:
            number = self._account.next_id()
            folder = f"{slug}.{number}" if slug in state["deleted_kernels"] else slug
            state["kernels"][slug] = {"id": number, "folder": folder, "versions": []}
        kernel: JsonObject = state["kernels"][slug]
        return kernel

    def _add_version(self, slug: str, body: JsonObject, fault_kind: str) -> JsonObject:
        account, kernel, gpu = self._account, self._kernel(slug), bool(body.get("enableGpu"))
        sources = {
            key: list(body.get(f"{key}DataSources") or []) for key in ("kernel", "dataset", "competition")
        }
        invalid = sources if fault_kind == "drop-sources" else self._invalid_sources(sources)
        valid = {key: [name for name in sources[key] if name not in invalid[key]] for key in sources}
        number = len(kernel["versions"]) + 1
        folder = self._sessions.folder(slug, number)
        folder.mkdir(parents=True, exist_ok=True)
        name = source_name(str(body.get("kernelType", "script")))
        (folder / name).write_text(str(body.get("text", "")), encoding="utf-8")
        longest = account.settings.session_limit
        version = {
            "number": number,
            "status": "QUEUED",
            "message": "",
            "pushed_at": account.now(),
            "started_at": 0.0,
            "ended_at": 0.0,
            "gpu": gpu,
            "slot": self._sessions.free_slot(gpu),
            "quick": _is_quick(body),
            "internet": bool(body.get("enableInternet", False)),
            "limit": min(_duration(body.get("sessionTimeoutSeconds")) or longest, longest),
            "kernels": valid["kernel"],
            "datasets": valid["dataset"],
            "competitions": valid["competition"],
            "machine_shape": str(body.get("machineShape") or (MACHINE_SHAPE if gpu else "None")),
            "title": str(body.get("newTitle", "")),
            "language": body.get("language", "python"),
            "type": body.get("kernelType", "script"),
            "private": bool(body.get("isPrivate", True)),
        }
        kernel["versions"].append(version)
        account.record_change("SaveKernel", slug)
        if fault_kind == "pushed-over":
            version["status"], version["ended_at"] = "CANCEL_ACKNOWLEDGED", account.now()
        elif version["quick"]:
            version["status"], version["ended_at"] = "NEW_SCRIPT", account.now()  # saved, and never run
        else:
            self._sessions.begin(slug, version)
        answer = {
            "ref": f"/code/{account.owner}/{slug}",
            "url": f"https://www.kaggle.com/code/{account.owner}/{slug}",
            "versionNumber": number,
            "kernelId": kernel["id"],
        }
        return answer | {f"invalid{key.title()}Sources": names for key, names in invalid.items() if names}

    def _invalid_sources(self, sources: dict[str, list[str]]) -> dict[str, list[str]]:
        """The sources that do not exist, by kind; Kaggle drops them and names them in its answer."""

        def owner_and_slug(source: str) -> str:
            return "/".join(source.split("/")[:2]).lower()

        owner, kernels = self._account.owner, self._account.state["kernels"]
        known = {
            "kernel": {f"{owner}/{slug}".lower() for slug, kernel in kernels.items() if kernel["versions"]},
            # A dataset is known once its first version is processed.
            "dataset": {
                f"{owner}/{slug}".lower()
                for slug in self._datasets.slugs()
                if self._datasets.mounted(slug) is not None
            },
        }
        invalid = {
            key: [name for name in sources[key] if owner_and_slug(name) not in names]
            for key, names in known.items()
        }
        return invalid | {"competition": [name for name in sources["competition"] if name != COMPETITION]}

    def delete(self, body: JsonObject) -> JsonObject:
        """Delete a kernel and end its run."""
        slug, state = _slug(body), self._account.state
        if slug not in state["kernels"]:
            raise ApiError(404, "Kernel not found")

        def act() -> JsonObject:
            self._sessions.stop(slug)
            # The files of its versions stay, because a running kernel may have mounted them.
            if state["kernels"].pop(slug)["versions"]:
                state["deleted_kernels"].append(slug)
            self._account.record_change("DeleteKernel", slug)
            return {}

        return self._account.change("DeleteKernel", slug, act)

    def status(self, body: JsonObject, fault: Fault | None) -> JsonObject:
        """The status of the latest run, or of the version that the request names."""
        slug = _slug(body)
        if fault is not None and fault.kind == "status":
            return {"status": str(fault.value)}
        versions = self._versions(slug)
        version = _requested_version(versions, body)
        new = self._account.now() - version["pushed_at"] < self._account.settings.status_delay
        if (fault is not None and fault.kind == "stale") or new:
            if version["number"] == 1:
                if new:
                    raise ApiError(404, "No runs found")
                return {"status": "COMPLETE"}
            version = versions[-2]
        answer = {"status": version["status"]}
        return answer | ({"failureMessage": version["message"]} if version["message"] else {})

    def _versions(self, slug: str) -> list[JsonObject]:
        versions = self._sessions.versions(slug)
        if not versions:
            raise ApiError(404, "No runs found")
        return versions

    def output(self, body: JsonObject, fault: Fault | None, base: str) -> JsonObject:
        """One page of the output files of the latest run, and its log."""
        slug = _slug(body)
        versions = self._versions(slug)
        version = _requested_version(versions, body)
        fault_kind = fault.kind if fault is not None else ""
        folder = self._sessions.folder(slug, version["number"])
        if fault_kind == "stale" and len(versions) > 1:
            folder = self._sessions.folder(slug, versions[-2]["number"])
        elif fault_kind == "stale":
            folder /= "no-earlier-version"
        names = _output_names(folder / "working") if version.get("fault") != "no-output" else []
        if fault is not None and fault_kind == "missing":
            names = [name for name in names if str(fault.value) not in name]
        page_names, next_page = paginate(names, body)
        if fault_kind == "truncated":
            page_names, next_page = names[:1], {}
        place = f"{folder.parent.name}/{folder.name}"
        files = [{"fileName": name, "url": self._link(base, place, name)} for name in page_names]
        if fault_kind == "traversal":
            files.append({"fileName": "../x", "url": self._link(base, place, names[0] if names else "x")})
        log = _log(folder)
        if fault_kind == "surrogates":
            log = json.dumps([_with_surrogates(event) for event in json.loads(log or "[]")])
        return {"files": files, "log": log, **next_page}

    def _link(self, base: str, place: str, name: str) -> str:
        return f"{base}/output/{place}?{self._account.sign_link(place, name)}"

    def output_file(self, place: str, name: str) -> Path:
        """An output file of a version; `place` is the folder in its link."""
        path = self._account.folder / "kernels" / place / "working" / name
        if not path.is_file():
            raise ApiError(404, "no such file")
        return path

    def files(self, body: JsonObject) -> JsonObject:
        """One page of the names and sizes of the output files."""
        slug = _slug(body)
        version = _requested_version(self._versions(slug), body)
        working = self._sessions.folder(slug, version["number"]) / "working"
        date = format_time(version["pushed_at"])
        names, next_page = paginate(_output_names(working), body)
        files = []
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # a running kernel may remove its files
                files.append({"name": name, "size": (working / name).stat().st_size, "creationDate": date})
        return {"files": files, **next_page}

    def log_events(
        self, slug: str, label: str = "", *, surrogates: bool = False
    ) -> tuple[bool, list[JsonObject]]:
        """Whether the run of the latest or the named version is over, and the events of its log until now.

        Args:
            slug: of the kernel.
            label: of the version; empty for the latest.
            surrogates: the texts end in lone surrogates.
        """
        with self._account.lock:
            version = _requested_version(self._versions(slug), {"versionLabel": label})
        text = _log(self._sessions.folder(slug, version["number"]))
        events = json.loads(text) if text else []
        if surrogates:
            events = [_with_surrogates(event) for event in events]
        return version["status"] not in ACTIVE, events

    def get(self, body: JsonObject) -> JsonObject:
        """Source and metadata of the latest version."""
        slug = _slug(body)
        kernel = self._account.state["kernels"].get(slug)
        if kernel is None:
            raise ApiError(404, "Kernel not found")
        if not kernel["versions"]:
            raise ApiError(500, "Internal error")
        version = kernel["versions"][-1]
        folder = self._sessions.folder(slug, version["number"])
        source = (folder / source_name(version["type"])).read_text(encoding="utf-8")
        return {
            "metadata": self._describe(slug, kernel, version),
            "blob": {
                "source": source,
                "language": version["language"],
                "kernelType": version["type"],
                "slug": slug,
            },
        }

    def listing(self, body: JsonObject) -> JsonObject:
        """One page of the account's kernels."""
        kernels = [
            self._describe(slug, kernel, kernel["versions"][-1])
            for slug, kernel in self._account.state["kernels"].items()
            if kernel["versions"] and str(body.get("search") or "") in slug
        ]
        number, size = max(1, int(body.get("page") or 1)), int(body.get("pageSize") or 20)
        return {"kernels": kernels[(number - 1) * size : number * size]}

    def _describe(self, slug: str, kernel: JsonObject, version: JsonObject) -> JsonObject:
        """A kernel's metadata in the format of the API."""
        return {
            "id": kernel["id"],
            "ref": f"{self._account.owner}/{slug}",
            "title": version["title"],
            "author": self._account.owner,
            "slug": slug,
            "lastRunTime": format_time(version["pushed_at"]),
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


def _requested_version(versions: list[JsonObject], body: JsonObject) -> JsonObject:
    """The version that a request names, such as v1, or the latest. A bare number names none."""
    label = str(body.get("versionLabel") or "")
    if not label:
        return versions[-1]
    version = next((version for version in versions if f"v{version['number']}" == label), None)
    if version is None:
        raise ApiError(404, "No such version")
    return version


def _slug(body: JsonObject) -> str:
    """The kernel that a request names; Kaggle refuses one with a version in it."""
    slug = str(body.get("kernelSlug", ""))
    if "/" in slug:
        raise ApiError(403, "Permission 'kernels.get' was denied")
    return slug


def _output_names(working: Path) -> list[str]:
    """The files of an output, without those that Kaggle adds."""
    paths = (path for path in sorted(working.rglob("*")) if path.is_file())
    names = [path.relative_to(working).as_posix() for path in paths]
    return [name for name in names if name not in (*ADDED_BY_KAGGLE, EXECUTED_NOTEBOOK)]


def _log(folder: Path) -> str:
    """The log of a version in the format of the API, a JSON list of events; empty before its first line."""
    path = folder / "log.txt"
    if not path.is_file():
        return ""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    return json.dumps(
        [{"stream_name": "stdout", "time": float(n), "data": line} for n, line in enumerate(lines)]
    )


def _with_surrogates(event: JsonObject) -> JsonObject:
    """An event of a log whose text no encoding can write: it ends in halves of surrogate pairs."""
    return {**event, "data": str(event["data"]).rstrip("\n") + " \ud83d \udfff\n"}


def _is_quick(body: JsonObject) -> bool:
    """Whether a push saves without a run (`--no-run` of client 2.2.5); it needs no session."""
    return body.get("kernelExecutionType") == "QUICK_SAVE"


def _slugify(title: str) -> str:
    from slugify import slugify

    return str(slugify(title))


def _duration(value: Any) -> float:
    """Seconds of a duration such as "3600s"; 0 for None."""
    if value is None:
        return 0.0
    return float(str(value).removesuffix("s"))
