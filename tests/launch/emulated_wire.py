"""The emulated Kaggle on the wire, without the client, and sessions that a test lets end."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import requests
from emulated_world import TOKEN
from instant import write_data

from launch.emulator.account import Settings
from launch.emulator.faults import Fault
from launch.emulator.kaggle import EmulatedKaggle
from launch.emulator.scheduler import Job
from launch.emulator.server import Server
from launch.sandbox import Outcome

COMPETITION = "histopathologic-cancer-detection"
FAST = Settings(dataset_delay=0.0, score_delay=0.0)


class Held:
    """An executor whose sessions write a file and last until `let_end`; at once where not `held`."""

    def __init__(self, *, held: bool = False) -> None:
        self.held, self.jobs = held, list[Job]()
        self._end = threading.Event()

    def let_end(self) -> None:
        """All sessions complete, and those to come."""
        self._end.set()

    def run(self, job: Job) -> Outcome:
        self.jobs.append(job)
        working, log = job.folder / "working", job.folder / "log.txt"
        working.mkdir(parents=True, exist_ok=True)
        (working / f"left-{len(list(working.iterdir()))}.txt").write_text("x" * 1000)
        log.write_text("begun\n")
        until = time.monotonic() + job.limit
        while self.held and not self._end.wait(0.01):
            if job.stop.is_set() or time.monotonic() > until:
                return Outcome(-9, 1.0, log, timed_out=True)
        return Outcome(0, 1.0, log)


class Wire:
    """An emulated Kaggle of account alice in a folder, and requests to it."""

    def __init__(
        self,
        folder: Path,
        *faults: Fault,
        held: bool = False,
        settings: Settings = FAST,
        executor: Any = None,
        scored: bool = True,
    ) -> None:
        self.folder, self.faults, self.settings = folder, faults, settings
        self.executor = executor or Held(held=held)
        self.data, labels = folder / "competition", folder / "held-back.csv"
        if not self.data.is_dir():
            write_data(self.data)
        self.labels = labels if scored else None
        self.start()

    def start(self) -> None:
        """Serve what the folder holds."""
        self.kaggle = EmulatedKaggle(
            self.folder / "kaggle",
            data=self.data,
            labels=self.labels,
            owner="alice",
            token=TOKEN,
            settings=self.settings,
            faults=self.faults,
            executor=self.executor,
        )
        self.server = Server(self.kaggle)
        self.server.__enter__()

    def stop(self) -> None:
        """End the server and its sessions."""
        self.server.__exit__(None, None, None)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    def ask(self, method: str, *, headers: dict[str, str] | None = None, **body: Any) -> requests.Response:
        """An RPC, whatever comes of it."""
        headers = {"Authorization": f"Bearer {TOKEN}"} if headers is None else headers
        address = f"{self.address}/api/v1/any.Service/{method}"
        return requests.post(address, json=body, headers=headers, timeout=10, allow_redirects=False)

    def call(self, method: str, **body: Any) -> dict[str, Any]:
        """An RPC that must succeed."""
        answer = self.ask(method, **body)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def push_body(self, name: str, **body: Any) -> dict[str, Any]:
        given = {
            "slug": f"alice/{name}",
            "newTitle": name,
            "text": "print(1)",
            "language": "python",
            "kernelType": "script",
        }
        return {**given, "isPrivate": True, "enableInternet": False, **body}

    def push(self, slug: str, **body: Any) -> dict[str, Any]:
        return self.call("SaveKernel", **self.push_body(slug, **body))

    def kernel(self, method: str, slug: str, **body: Any) -> requests.Response:
        return self.ask(method, userName="alice", kernelSlug=slug, **body)

    def status(self, slug: str) -> str:
        answer = self.kernel("GetKernelSessionStatus", slug)
        return str(answer.json().get("status", answer.status_code))

    def wait_for(self, slug: str, status: str) -> None:
        deadline = time.monotonic() + 10
        while (now := self.status(slug)) != status:
            assert time.monotonic() < deadline, f"{slug} is {now}, not {status}"
            time.sleep(0.02)

    def listing(self, slug: str, **body: Any) -> dict[str, Any]:
        answer = self.kernel("ListKernelSessionOutput", slug, pageSize=200, **body)
        return dict(answer.json())

    def upload(self, name: str, content: bytes, *, method: str = "StartBlobUpload") -> str:
        started = self.call(method, name=name, fileName=name, contentLength=len(content))
        assert requests.put(started["createUrl"], data=content, timeout=10).status_code == 200
        return str(started["token"])

    def dataset(
        self, slug: str, files: Sequence[tuple[str, bytes]] = (("VERSION", b"one"),)
    ) -> dict[str, Any]:
        """A new dataset, or a new version of one."""
        tokens = [{"token": self.upload(name, content)} for name, content in files]
        if self.ask("GetDatasetStatus", ownerSlug="alice", datasetSlug=slug).status_code == 404:
            return self.call(
                "CreateDataset", ownerSlug="alice", slug=slug, title=slug, isPrivate=True, files=tokens
            )
        body = {"versionNotes": "again", "files": tokens}
        return self.call("CreateDatasetVersion", ownerSlug="alice", datasetSlug=slug, body=body)

    def dataset_state(self, slug: str) -> tuple[str, int]:
        names = {"ownerSlug": "alice", "datasetSlug": slug}
        return self.call("GetDatasetStatus", **names)["status"], self.call("GetDataset", **names)[
            "currentVersionNumber"
        ]

    def dataset_files(self, slug: str) -> list[str]:
        listed = self.call("ListDatasetFiles", ownerSlug="alice", datasetSlug=slug, pageSize=200)
        return [file["name"] for file in listed["datasetFiles"]]

    def submit(self, text: str, **body: Any) -> requests.Response:
        token = self.upload("submission.csv", text.encode(), method="StartSubmissionUpload")
        return self.ask(
            "CreateSubmission",
            competitionName=COMPETITION,
            blobFileTokens=token,
            submissionDescription="d",
            **body,
        )

    def submissions(self) -> list[dict[str, Any]]:
        return list(self.call("ListSubmissions", competitionName=COMPETITION)["submissions"])

    def effects(self, method: str) -> int:
        """How many requests of a kind took effect."""
        return sum(each["method"] == method for each in self.kaggle.account.changes())

    def requests(self) -> str:
        return (self.kaggle.account.folder / "requests.jsonl").read_text()
