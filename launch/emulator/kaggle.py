"""The emulated Kaggle: one account with its datasets, kernels, sessions, competition and submissions.

Its behaviour follows docs/platform.md, which records the client's source and the reports of users.
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
    """The service behind the server: one account and all its parts.

    Args:
        folder: of the state and all files.
        data: the competition's files; None for a competition without data.
        labels: the labels of the test tiles (id,label); without them submissions get no score.
        owner: the account's name.
        token: authenticates the account.
        settings: limits and delays.
        faults: to inject.
        executor: runs sessions; by default the sandbox does.
        environ: source of the environment variables of kernels with a network; by default that of this
            process.

    Raises:
        LaunchError: another server uses the folder, its state cannot be read, or a fault is not valid.
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
        """Remove all faults and end all sessions, as a user would on Kaggle's page."""
        self.account.faults.clear()
        with self.account.lock:
            self.submissions.clear_faults()
            self.sessions.cancel()
            self.account.save()

    def close(self) -> None:
        """End all sessions and unlock the folder; a later start runs the sessions again."""
        if self.closed.is_set():
            return
        self.closed.set()
        self.sessions.close()
        self.account.close()
