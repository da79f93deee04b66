"""Datasets of the emulated Kaggle: versions, unpacking of uploaded archives, folders that kernels mount."""

import gzip
import shutil
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from launch.emulator.account import Account, ApiError, JsonObject, paginate
from launch.emulator.faults import Fault
from launch.emulator.uploads import Uploads
from launch.packaging.metadata import TITLE_LIMIT

_ARCHIVES = (".tar.gz", ".tgz", ".tar", ".zip", ".gz")
# The version of an attached folder.
_ALWAYS_READY = {
    "number": 1,
    "notes": "",
    "created_at": 0.0,
    "ready_at": 0.0,
    "listed_at": 0.0,
    "failed": False,
}


class Datasets:
    """The account's datasets: uploaded ones, and local folders that are attached as datasets.

    Args:
        account: the owner.
        uploads: the uploaded files.
    """

    def __init__(self, account: Account, uploads: Uploads) -> None:
        self._account, self._uploads = account, uploads
        self._attached: dict[str, Path] = {}

    def attach(self, slug: str, folder: Path) -> None:
        """Make a local folder one of the account's datasets; it is ready at once."""
        self._attached[slug] = folder

    def attached(self, slug: str) -> Path | None:
        """The folder that is attached as this dataset, or None."""
        return self._attached.get(slug)

    def slugs(self) -> set[str]:
        """The slugs of all datasets, ready or not."""
        return {*self._account.state["datasets"], *self._attached}

    def mounted(self, slug: str) -> Path | None:
        """The folder that a session which starts now mounts; None while no version is ready."""
        if slug in self._attached:
            return self._attached[slug]
        now = self._account.now()
        versions = self._account.state["datasets"].get(slug, {"versions": []})["versions"]
        ready = [version for version in versions if now >= version["ready_at"] and not version["failed"]]
        return self._version_folder(slug, ready[-1]["number"]) if ready else None

    def create(self, body: JsonObject) -> JsonObject:
        """Create a dataset."""
        slug = str(body.get("slug", ""))
        self._account.check_owner(str(body.get("ownerSlug", "")))
        title = str(body.get("title", slug))
        if not 6 <= len(title) <= TITLE_LIMIT:
            raise ApiError(400, f"The dataset title must be between 6 and {TITLE_LIMIT} characters")
        if slug in self.slugs():
            message = f'The requested slug "{slug}" is already in use by a dataset.'
            return {"status": "error", "error": message}
        if slug in self._account.state["kernels"]:
            raise ApiError(400, f"the slug {slug} is used by a kernel of yours")
        dataset = {
            "title": title,
            "private": bool(body.get("isPrivate", True)),
            "id": self._account.next_id(),
            "versions": [],
        }
        return self._add_version("CreateDataset", slug, body.get("files") or [], notes="", dataset=dataset)

    def create_version(self, body: JsonObject) -> JsonObject:
        """Create a new version of a dataset."""
        slug, version = str(body.get("datasetSlug", "")), body.get("body") or {}
        dataset = self._account.state["datasets"].get(slug)
        if dataset is None:
            raise ApiError(404, "Dataset not found")
        notes = str(version.get("versionNotes", ""))
        files = version.get("files") or []
        return self._add_version("CreateDatasetVersion", slug, files, notes=notes, dataset=dataset)

    def _add_version(
        self, method: str, slug: str, files: Sequence[JsonObject], *, notes: str, dataset: JsonObject
    ) -> JsonObject:
        account = self._account
        uploads = self._uploads.completed([str(file["token"]) for file in files])
        fault = account.faults.take("dataset", slug)
        kind = fault.kind if fault is not None else ""

        def act() -> JsonObject:
            number = len(dataset["versions"]) + 1
            folder = self._version_folder(slug, number)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            for name, path in uploads:
                _unpack(name, path, folder)
            if kind == "drop-file":
                paths = sorted(path for path in folder.rglob("*") if path.is_file())
                paths[len(paths) // 2].unlink()
            now = account.now()
            ready_at = listed_at = now + account.settings.dataset_delay
            if fault is not None and kind == "old-version":
                listed_at += float(fault.value or 1.0)
            version = {
                "number": number,
                "notes": notes,
                "created_at": now,
                "ready_at": ready_at,
                "listed_at": listed_at,
                "failed": kind == "failed",
            }
            dataset["versions"].append(version)
            account.state["datasets"][slug] = dataset
            account.record_change(method, slug)
            return {
                "ref": f"{account.owner}/{slug}",
                "url": f"https://www.kaggle.com/datasets/{account.owner}/{slug}",
                "status": "Ok",
                "error": "",
            }

        return account.change(method, slug, act)

    def _version_folder(self, slug: str, number: int) -> Path:
        return self._account.folder / "datasets" / slug / f"v{number}"

    def _requested(self, body: JsonObject) -> tuple[str, JsonObject]:
        """Slug and entry of the dataset that a request names."""
        slug = str(body.get("datasetSlug", ""))
        if slug in self._attached:
            return slug, {"title": slug, "id": 1, "private": True, "versions": [_ALWAYS_READY]}
        if slug not in self._account.state["datasets"]:
            raise ApiError(404, "Dataset not found")
        return slug, self._account.state["datasets"][slug]

    def status(self, body: JsonObject) -> JsonObject:
        """The processing status; right after the upload of a new version it is that of the version before."""
        _, dataset = self._requested(body)
        last, earlier = dataset["versions"][-1], dataset["versions"][:-1]
        if last["failed"] and self._account.now() >= last["ready_at"]:
            return {"status": "FAILED"}
        if self._account.now() < last["ready_at"] and not earlier:
            return {"status": "BLOBS_RECEIVED"}
        return {"status": "READY"}

    def get(self, body: JsonObject) -> JsonObject:
        """Metadata of a dataset; the current version is the latest that can be mounted."""
        slug, dataset = self._requested(body)
        now = self._account.now()
        listed = [version for version in dataset["versions"] if now >= version["listed_at"]]
        return {
            "id": dataset["id"],
            "ref": f"{self._account.owner}/{slug}",
            "title": dataset["title"],
            "isPrivate": dataset["private"],
            "ownerRef": self._account.owner,
            "currentVersionNumber": listed[-1]["number"] if listed else 0,
            "versions": [
                {"versionNumber": version["number"], "versionNotes": version["notes"], "status": "Ready"}
                for version in listed
            ],
        }

    def files(self, body: JsonObject, fault: Fault | None) -> JsonObject:
        """One page of the files of the version that can be mounted."""
        fault_kind = fault.kind if fault is not None else ""
        slug, _ = self._requested(body)
        folder = self.mounted(slug)
        if folder is None:
            return {"datasetFiles": []}
        found = folder.glob("*") if fault_kind == "flat" else folder.rglob("*")
        paths, next_page = paginate(sorted(path for path in found if path.is_file()), body)
        files = []
        for path in paths:
            name = path.name if fault_kind == "no-path" else path.relative_to(folder).as_posix()
            files.append({"name": name, "totalBytes": path.stat().st_size})
        return {"datasetFiles": files, **next_page}


def _unpack(name: str, path: Path, folder: Path) -> None:
    """Store an uploaded file as Kaggle does.

    An archive becomes a folder with its name, also inside another archive; a gzipped file is unpacked;
    another file is copied.
    """
    target, unpacked = folder / _stem(name), True
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
        unpacked = False
        shutil.copyfile(path, folder / name)
    if unpacked and target.is_dir():
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
