"""Datasets of the emulated Kaggle: their versions, what becomes of uploaded archives, and what kernels find mounted."""

import gzip
import shutil
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from launch.emulator.account import Account, ApiError, Json, page
from launch.emulator.uploads import Uploads

_ARCHIVES = (".tar.gz", ".tgz", ".tar", ".zip", ".gz")
_READY_SINCE_EVER = {"number": 1, "notes": "", "at": 0.0, "ready": 0.0, "shown": 0.0, "failed": False}


class Datasets:
    """The account's datasets: uploaded ones, and folders of this machine that are attached as such.

    Args:
        account: whose they are.
        uploads: where their files come from.
    """

    def __init__(self, account: Account, uploads: Uploads) -> None:
        self._account, self._uploads = account, uploads
        self._attached: dict[str, Path] = {}

    def attach(self, slug: str, folder: Path) -> None:
        """Let a folder be one of the account's datasets, ready since ever."""
        self._attached[slug] = folder

    def attached(self, slug: str) -> Path | None:
        """The folder that is attached as this dataset."""
        return self._attached.get(slug)

    def slugs(self) -> set[str]:
        """Of all datasets, attached or uploaded, ready or not."""
        return {*self._account.state["datasets"], *self._attached}

    def mounted(self, slug: str) -> Path | None:
        """The folder a session that starts now finds; None while no version is ready."""
        if slug in self._attached:
            return self._attached[slug]
        versions = self._account.state["datasets"].get(slug, {"versions": []})["versions"]
        ready = [each for each in versions if self._account.now() >= each["ready"] and not each["failed"]]
        return self._version_folder(slug, ready[-1]["number"]) if ready else None

    def create(self, body: Json) -> Json:
        """A new dataset."""
        slug = str(body.get("slug", ""))
        self._account.check_owner(str(body.get("ownerSlug", "")))
        if slug in self.slugs():
            return {
                "status": "error",
                "error": f'The requested slug "{slug}" is already in use by a dataset.',
            }
        if slug in self._account.state["kernels"]:
            raise ApiError(400, f"the slug {slug} is used by a kernel of yours")
        facts = {
            "title": body.get("title", slug),
            "private": bool(body.get("isPrivate", True)),
            "id": self._account.number(),
        }
        return self._add_version("CreateDataset", slug, body.get("files") or [], notes="", facts=facts)

    def create_version(self, body: Json) -> Json:
        """A new version of a dataset."""
        slug, inner = str(body.get("datasetSlug", "")), body.get("body") or {}
        if slug not in self._account.state["datasets"]:
            raise ApiError(404, "Dataset not found")
        notes = str(inner.get("versionNotes", ""))
        return self._add_version(
            "CreateDatasetVersion", slug, inner.get("files") or [], notes=notes, facts=None
        )

    def _add_version(
        self, method: str, slug: str, files: Sequence[Json], *, notes: str, facts: Json | None
    ) -> Json:
        account = self._account
        taken = self._uploads.taken([str(file["token"]) for file in files])
        fault = account.faults.take("dataset", slug)
        what = fault.what if fault is not None else ""

        def act() -> Json:
            dataset = account.state["datasets"].setdefault(slug, {**(facts or {}), "versions": []})
            number = len(dataset["versions"]) + 1
            folder = self._version_folder(slug, number)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            for name, path in taken:
                _unpack(name, path, folder)
            if what == "drop-file":
                victims = sorted(path for path in folder.rglob("*") if path.is_file())
                victims[len(victims) // 2].unlink()
            ready = account.now() + account.settings.dataset_delay
            shown = ready + (
                float(fault.value or 1.0) if fault is not None and what == "old-version" else 0.0
            )
            dataset["versions"].append(
                {
                    "number": number,
                    "notes": notes,
                    "at": account.now(),
                    "ready": ready,
                    "shown": shown,
                    "failed": what == "failed",
                }
            )
            account.took_effect(method, slug)
            return {
                "ref": f"{account.owner}/{slug}",
                "url": f"https://www.kaggle.com/datasets/{account.owner}/{slug}",
                "status": "Ok",
                "error": "",
            }

        return account.change(method, slug, act)

    def _version_folder(self, slug: str, number: int) -> Path:
        return self._account.folder / "datasets" / slug / f"v{number}"

    def _asked(self, body: Json) -> tuple[str, Json]:
        slug = str(body.get("datasetSlug", ""))
        if slug in self._attached:
            return slug, {"title": slug, "id": 1, "private": True, "versions": [_READY_SINCE_EVER]}
        if slug not in self._account.state["datasets"]:
            raise ApiError(404, "Dataset not found")
        return slug, self._account.state["datasets"][slug]

    def status(self, body: Json) -> Json:
        """Ready, failed or on its way; right after an upload it still speaks of the version before."""
        _, dataset = self._asked(body)
        last, before = dataset["versions"][-1], dataset["versions"][:-1]
        if last["failed"] and self._account.now() >= last["ready"]:
            return {"status": "FAILED"}
        if self._account.now() < last["ready"] and not before:
            return {"status": "BLOBS_RECEIVED"}
        return {"status": "READY"}

    def get(self, body: Json) -> Json:
        """Facts of a dataset; the current version is one that can be mounted."""
        slug, dataset = self._asked(body)
        shown = [version for version in dataset["versions"] if self._account.now() >= version["shown"]]
        current = shown[-1]["number"] if shown else 0
        return {
            "id": dataset["id"],
            "ref": f"{self._account.owner}/{slug}",
            "title": dataset["title"],
            "isPrivate": dataset["private"],
            "ownerRef": self._account.owner,
            "currentVersionNumber": current,
            "versions": [
                {"versionNumber": each["number"], "versionNotes": each["notes"], "status": "Ready"}
                for each in shown
            ],
        }

    def files(self, body: Json) -> Json:
        """A page of the files of the version that can be mounted."""
        slug, _ = self._asked(body)
        folder = self.mounted(slug)
        if folder is None:
            return {"datasetFiles": []}
        found, following = page(sorted(path for path in folder.rglob("*") if path.is_file()), body)
        files = [
            {"name": path.relative_to(folder).as_posix(), "totalBytes": path.stat().st_size} for path in found
        ]
        return {"datasetFiles": files, **following}


def _unpack(name: str, path: Path, folder: Path) -> None:
    """Archives, those in archives, too, become folders of their name and gzipped files plain ones; all else is a file."""
    target, opened = folder / _stem(name), True
    if name.endswith(".zip") and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            archive.extractall(target)
    elif name.endswith((".tar", ".tar.gz", ".tgz")) and tarfile.is_tarfile(path):
        with tarfile.open(path) as tar:
            tar.extractall(target, filter="data")
    elif name.endswith(".gz") and _is_gzip(path):
        with gzip.open(path) as stream, target.open("wb") as plain:
            shutil.copyfileobj(stream, plain)
    else:
        opened = False
        shutil.copyfile(path, folder / name)
    if opened and target.is_dir():
        for inner in sorted(target.rglob("*")):
            if inner.is_file() and inner.name.endswith(_ARCHIVES):
                packed = inner.rename(inner.with_name(f".{inner.name}.packed"))
                _unpack(inner.name, packed, inner.parent)
                packed.unlink()


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


def _stem(name: str) -> str:
    return next((name.removesuffix(suffix) for suffix in _ARCHIVES if name.endswith(suffix)), name)
