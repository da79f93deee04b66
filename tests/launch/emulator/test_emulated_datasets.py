"""Datasets and uploads of the emulated Kaggle, request by request."""

import gzip
import io
import tarfile
import time
import zipfile

import pytest
import requests

from launch.emulator.faults import Fault


@pytest.mark.parametrize(
    ("kind", "names"), [("flat", ["VERSION"]), ("no-path", ["VERSION", "b.txt", "config.py"])]
)
def test_faults_of_a_datasets_listing(wire, kind, names):
    kaggle = wire(Fault("ListDatasetFiles", kind))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as files:
        files.writestr("b.txt", "b")
        files.writestr("deep/config.py", "x = 1")
    kaggle.dataset("my-data", [("VERSION", b"one"), ("lib.zip", archive.getvalue())])
    assert sorted(kaggle.dataset_files("my-data")) == names
    assert sorted(kaggle.dataset_files("my-data")) == ["VERSION", "lib/b.txt", "lib/deep/config.py"]


def test_a_new_version_of_a_dataset_is_listed_and_mounted_late(wire):
    kaggle = wire(Fault("dataset", "old-version", nth=2, value=1.0), settings={"dataset_delay": 0.5})
    kaggle.dataset("my-data")
    assert kaggle.dataset_state("my-data") == ("BLOBS_RECEIVED", 0)
    time.sleep(0.6)
    assert kaggle.dataset_state("my-data") == ("READY", 1)
    kaggle.dataset("my-data", [("VERSION", b"two"), ("more", b"2")])
    assert kaggle.dataset_state("my-data") == ("READY", 1)  # READY is the status of the version before
    assert kaggle.dataset_files("my-data") == ["VERSION"]
    kaggle.push("early-kernel", datasetDataSources=["alice/my-data"])
    time.sleep(0.6)
    assert kaggle.dataset_state("my-data") == ("READY", 1)  # the fault
    assert kaggle.dataset_files("my-data") == ["VERSION", "more"]
    kaggle.push("late-kernel", datasetDataSources=["alice/my-data"])
    kaggle.wait_for("late-kernel", "COMPLETE")
    seen = {job.slug: (job.mounts[0].source / "VERSION").read_text() for job in kaggle.executor.jobs}
    assert seen == {"early-kernel": "one", "late-kernel": "two"}
    time.sleep(1.0)
    assert kaggle.dataset_state("my-data") == ("READY", 2)
    facts = kaggle.call("GetDataset", ownerSlug="alice", datasetSlug="my-data")
    assert [version["versionNotes"] for version in facts["versions"]] == ["", "again"]


def test_a_dataset_that_fails_or_loses_a_file(wire):
    kaggle = wire(Fault("dataset", "failed", slug="bad"), Fault("dataset", "drop-file", slug="holes"))
    kaggle.dataset("bad-data")
    assert kaggle.dataset_state("bad-data")[0] == "FAILED"
    kaggle.dataset("holes-data", [(name, b"x") for name in ("a", "b", "c")])
    assert kaggle.dataset_files("holes-data") == ["a", "c"]
    assert (
        "already in use"
        in kaggle.call("CreateDataset", ownerSlug="alice", slug="bad-data", files=[])["error"]
    )


def test_archives_in_datasets_are_unpacked(wire):
    inner, outer, tar = io.BytesIO(), io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("leaf.txt", "leaf")
    with zipfile.ZipFile(outer, "w") as archive:
        archive.writestr("inner.zip", inner.getvalue())
        archive.writestr("deep/config.py", "x = 1")
    with tarfile.open(fileobj=tar, mode="w:gz") as archive:
        entry = tarfile.TarInfo("a/b.txt")
        entry.size = 1
        archive.addfile(entry, io.BytesIO(b"b"))
    files = [
        ("lib.zip", outer.getvalue()),
        ("more.tar.gz", tar.getvalue()),
        ("table.csv.gz", gzip.compress(b"id\n")),
    ]
    kaggle = wire()
    kaggle.dataset("my-data", [*files, ("no.zip", b"no archive"), ("weights.safetensors", b"w")])
    assert kaggle.dataset_files("my-data") == [
        "lib/deep/config.py",
        "lib/inner/leaf.txt",
        "more/a/b.txt",
        "no.zip",
        "table.csv",
        "weights.safetensors",
    ]  # fmt: skip


def test_uploads_are_taken_up_where_they_stopped(wire):
    kaggle = wire(
        Fault("upload", "reset", slug="reset"),
        Fault("upload", "404", slug="gone"),
        Fault("upload", "503", slug="cut"),
    )
    content = bytes(range(100))

    def start(name: str) -> str:
        return str(kaggle.call("StartBlobUpload", type="DATASET", name=name, contentLength=100)["createUrl"])

    def put(url: str, body: bytes, asked: str = "") -> requests.Response:
        return requests.put(url, data=body, headers={"Content-Range": asked} if asked else {}, timeout=10)

    assert put(start("gone.bin"), content).status_code == 404
    with pytest.raises(requests.exceptions.ConnectionError):
        put(reset := start("reset.bin"), content)
    assert put(reset, b"", "bytes */100").headers["Range"] == "bytes=0-49"
    cut = start("cut.bin")
    assert put(cut, content).status_code == 503
    where = put(cut, b"", "bytes */100")
    assert (where.status_code, where.headers["Range"]) == (308, "bytes=0-49")
    assert put(cut, content[60:], "bytes 60-99/100").status_code == 308  # with a hole
    assert put(cut, content[50:80], "bytes 50-79/100").status_code == 308  # more is to come
    token = cut.split("/")[-1]
    early = kaggle.ask("CreateDataset", ownerSlug="alice", slug="my-data", files=[{"token": token}])
    assert early.status_code == 400 and "not complete" in early.text
    kaggle.stop()
    kaggle.faults = ()
    kaggle.start()  # on another port; the bytes that arrived are kept
    cut = f"{kaggle.address}/upload/{token}"
    assert put(cut, content[80:], "bytes 80-99/100").status_code == 200
    assert put(cut, b"", "bytes */100").status_code == 200
    kaggle.call("CreateDataset", ownerSlug="alice", slug="my-data", title="my-data", files=[{"token": token}])
    assert (kaggle.kaggle.account.folder / "datasets/my-data/v1/cut.bin").read_bytes() == content
    assert put(start("long.bin"), bytes(101)).status_code == 400
    assert put(f"{kaggle.address}/upload/nobody", b"x").status_code == 404
    empty = kaggle.call("StartBlobUpload", type="DATASET", name="empty")["createUrl"]
    # The client sends an empty file in chunks.
    assert requests.put(empty, data=iter(()), timeout=10).status_code == 200
