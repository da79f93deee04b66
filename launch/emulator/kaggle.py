"""The emulated Kaggle: one account and its parts, each in a file of its own.

How they answer follows the record of the platform: what the client's source and users' reports say.
"""

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from launch.emulator.account import Account, Settings
from launch.emulator.datasets import Datasets
from launch.emulator.faults import Fault
from launch.emulator.kernels import Kernels
from launch.emulator.scheduler import Executor, KernelExecutor
from launch.emulator.sessions import Sessions
from launch.emulator.submissions import EmulatedCompetition, Submissions
from launch.emulator.uploads import Uploads


class EmulatedKaggle:
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
        executor = executor or KernelExecutor(
            settings.gpu_sessions, dict(os.environ) if environ is None else dict(environ)
        )
        self.account = Account(folder, owner=owner, token=token, settings=settings, faults=faults)
        self.uploads = Uploads(self.account)
        self.datasets = Datasets(self.account, self.uploads)
        self.sessions = Sessions(self.account, self.datasets, data=data, executor=executor)
        self.kernels = Kernels(self.account, self.datasets, self.sessions)
        self.competition = EmulatedCompetition(self.account, data)
        self.submissions = Submissions(self.account, self.uploads, data=data, labels=labels)
        self.closed = threading.Event()

    def clear_faults(self) -> None:
        """Everything works from now on, and every session that is still at work is ended, as a person would."""
        self.account.faults.clear()
        with self.account.lock:
            self.submissions.clear_faults()
            self.sessions.cancel()
            self.account.save()

    def close(self) -> None:
        """End what runs; a later start runs it again."""
        if self.closed.is_set():
            return
        self.closed.set()
        self.sessions.close()
        self.account.close()
