"""An emulated Kaggle with instant kernels, and campaigns in processes that a test may kill."""

import json
import multiprocessing
import os
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
from child import run_child
from instant import InstantKernels, write_data

from launch.campaign.ledger import Ledger, read_ledger
from launch.emulator.account import Settings
from launch.emulator.faults import Fault
from launch.emulator.kaggle import EmulatedKaggle
from launch.emulator.server import Server

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "KGAT_" + "5ec4e7" * 6
KNOBS = ["weights=none", "num_folds=3"]
FAST = Settings(dataset_delay=0.1, score_delay=0.1, status_delay=0.0)


class World:
    """A folder with an emulated Kaggle in it, and campaigns against it."""

    def __init__(
        self, folder: Path, *, faults: Sequence[Fault] = (), settings: Settings = FAST, **executor: Any
    ) -> None:
        self.folder = folder
        self.data, self.labels = write_data(folder / "competition")
        self.kernels = InstantKernels(self.data, **executor)
        self.settings, self.faults = settings, faults
        self.kaggle: EmulatedKaggle
        self.server: Server

    def __enter__(self) -> "World":
        self.kaggle = EmulatedKaggle(
            self.folder / "kaggle",
            data=self.data,
            labels=self.labels,
            owner="alice",
            token=TOKEN,
            settings=self.settings,
            faults=self.faults,
            executor=self.kernels,
        )
        self.server = Server(self.kaggle)
        self.server.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self.server.__exit__(*exception)

    def environment(self) -> dict[str, str]:
        """Of a user whose home is empty and whose client points at this Kaggle."""
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        path = os.pathsep.join(
            filter(None, [str(ROOT), str(ROOT / "tests" / "launch"), os.environ.get("PYTHONPATH", "")])
        )
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "PYTHONPATH": path,
            **self.server.environment(),
        }

    def start(self, **order: Any) -> "Running":
        """Start a campaign in a process of its own."""
        values = {"folder": str(self.folder / "campaigns" / "one"), "knobs": KNOBS, **order}
        path = self.folder / f"order-{len(list(self.folder.glob('order-*')))}.json"
        path.write_text(json.dumps(values))
        return Running(path, self.environment(), self.folder)

    def run(self, *, timeout: float = 90, **order: Any) -> "Ended":
        """Run a campaign to its end."""
        process = self.start(**order)
        try:
            out, err = process.communicate(timeout=timeout)
        except TimeoutError:
            process.kill()
            out, err = process.communicate(timeout=30)
            raise AssertionError(f"the campaign did not end:\n{out}\n{err}") from None
        return Ended(process.returncode, out, err)

    @property
    def ledger(self) -> Ledger:
        """The ledger of the campaign, from its file."""
        ledger = read_ledger(self.folder / "campaigns" / "one")
        assert ledger is not None
        return ledger

    def changes(self) -> list[tuple[str, str]]:
        """Method and slug of every request that changed something at the service."""
        return [(each["method"], each["slug"]) for each in self.kaggle.account.changes()]

    def pushes(self) -> list[str]:
        """The slugs of all pushes that made a version, in order."""
        return [slug for method, slug in self.changes() if method == "SaveKernel"]

    def assert_finished_once(self) -> None:
        """The campaign has its score, and the service saw each push, upload and submission once."""
        slugs = [
            "hcd-prepare",
            *(f"{self._stem()}-fold-{fold}" for fold in range(3)),
            f"{self._stem()}-inference",
            "hcd-report",
        ]
        changed = self.changes()
        assert sorted(slug for method, slug in changed if method == "SaveKernel") == sorted(slugs)
        assert [method for method, _ in changed if "Dataset" in method] == ["CreateDataset"]
        assert [method for method, _ in changed if method == "CreateSubmission"] == ["CreateSubmission"]
        record = json.loads((self.folder / "campaigns" / "one" / "leaderboard.json").read_text())
        assert 0 <= record["submission"]["public_auc"] <= 1
        assert self.kernels.most[True] <= 2

    def _stem(self) -> str:
        return next(slug for slug in self.ledger.kernels if slug.endswith("-inference")).removesuffix(
            "-inference"
        )


# Processes are forked from one that has imported the slow packages and built a campaign once (`warm.py`).
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["warm"])


def fork(function: Callable[..., None], *arguments: Any) -> ForkServerProcess:
    """Call a function in a forked process."""
    # Python 3.11 gives the fork server no path, and it says nothing of an import that fails.
    places = [os.environ.get("PYTHONPATH", ""), str(ROOT / "tests" / "launch"), str(ROOT)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, places)))
        forkserver.ensure_running()
    process = _processes.Process(target=function, args=arguments)
    process.start()
    return process


class Running:
    """A campaign in a process of its own, with the part of `subprocess.Popen` that tests use."""

    def __init__(self, order: Path, environment: dict[str, str], folder: Path) -> None:
        self.printed = order.with_suffix(".out"), order.with_suffix(".err")
        names = [str(path) for path in self.printed]
        self._process = fork(run_child, str(order), environment, str(folder), *names)
        self.pid = self._process.pid

    def wait(self, timeout: float | None = None) -> None:
        """Until it has ended."""
        self._process.join(timeout)

    def kill(self) -> None:
        """At once."""
        self._process.kill()

    @property
    def returncode(self) -> int | None:
        """Negative: the signal that ended it."""
        return self._process.exitcode

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Wait for its end; what it printed."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise TimeoutError
        out, err = (path.read_text() if path.is_file() else "" for path in self.printed)
        return out, err


class Ended:
    """A campaign that came to an end."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def __repr__(self) -> str:
        return f"exit code {self.code}\n{self.out}\n{self.err}"
