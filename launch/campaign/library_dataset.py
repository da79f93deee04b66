"""The library dataset on its way to Kaggle: uploaded once, waited for at its version, its files counted.

The service calls a dataset ready while it still serves the version before, and a client may drop a file without a word.
So a version counts as published when its number is higher than before, it is ready, and it lists every file.
"""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from launch.campaign.clock import stamp
from launch.campaign.ledger import FAILED, INTENDED, DatasetEntry, Ledger
from launch.campaign.waits import WaitTimers
from launch.errors import LaunchError
from launch.kaggle_api.client import Kaggle
from launch.kaggle_api.errors import ClientError, CredentialsError, NoResponseError
from launch.packaging.metadata import DATASET_METADATA
from launch.plan import LIBRARY_SLUG

_UPLOADED, _READY = "uploaded", "ready"
_PATIENCE = 1800.0  # seconds until a version must be ready
_UPLOADS = 2


@dataclass
class Publisher:
    """One dataset, one step at a time.

    Attributes:
        kaggle: the account.
        ledger: where the upload is noted.
        folder: what is uploaded; None: nothing.
        bundle: the hash of the files in it.
        settle: seconds for which the service may still show what was before an upload.
        say: takes a line that stays.
        slug: of the dataset.
        patience: seconds until a version must be ready.
    """

    kaggle: Kaggle
    ledger: Ledger
    folder: Path | None
    bundle: str
    settle: float
    say: Callable[[str], None]
    slug: str = LIBRARY_SLUG
    patience: float = _PATIENCE
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._clocks = WaitTimers(self.say)
        entry = self._entry
        if entry is not None and entry.state == FAILED:  # a person runs the command again
            self.ledger.dataset = None

    @property
    def _entry(self) -> DatasetEntry | None:
        entry = self.ledger.dataset
        return entry if entry is not None and entry.bundle_id == self.bundle else None

    @property
    def is_ready(self) -> bool:
        """Whether kernels that start now see this library."""
        return self._entry is not None and self._entry.state == _READY

    @property
    def failed(self) -> bool:
        """Whether it will not become ready by waiting."""
        return self._entry is not None and self._entry.state == FAILED

    @property
    def rests(self) -> bool:
        """Whether there is nothing more to do."""
        return self.folder is None or self.is_ready or self.failed

    def step(self) -> None:
        """One look, and what follows from it; only an upload takes long.

        Raises:
            CredentialsError: the service does not know us any more.
        """
        if self.rests:
            return
        try:
            entry = self._entry
            if entry is None:
                current = self.kaggle.dataset(self.slug)
                entry = DatasetEntry(
                    bundle_id=self.bundle, before=current.version if current else 0, at=stamp()
                )
                self.ledger.dataset = entry
                self.ledger.save()
                self._upload(entry)
            elif entry.state == INTENDED:
                self._prove(entry)
            else:
                self._look(entry)
        except CredentialsError:
            raise
        except NoResponseError as error:
            if self._clocks.waited(self.slug, "answer") > self.patience:
                self._fail(str(error))
        except ClientError as error:
            self._fail(str(error))
        else:
            self._clocks.forget(self.slug, "answer")

    def finish(self, poll: float) -> None:
        """Step until there is nothing more to do, with this many seconds between looks.

        Raises:
            LaunchError: the dataset was not published.
        """
        while not self.rests:
            self.step()
            if not self.rests:
                time.sleep(poll)
        if self.failed:
            raise LaunchError("; ".join(self.problems) + ". The same command tries again.")

    def _upload(self, entry: DatasetEntry) -> None:
        assert self.folder is not None, "without a folder there is nothing to do"
        temporary = self.ledger.folder / "uploads" / f"{self.bundle[:12]}-{entry.attempts}"
        notes = f"bundle {self.bundle[:12]}, campaign {self.ledger.id}"
        self.kaggle.upload_dataset(self.folder, notes=notes, new=entry.before == 0, temporary=temporary)
        shutil.rmtree(temporary.parent, ignore_errors=True)
        entry.state, entry.at = _UPLOADED, stamp()
        self.ledger.save()
        self.say(f"{self.slug}: uploaded, bundle {self.bundle[:12]}")

    def _prove(self, entry: DatasetEntry) -> None:
        """Whether an upload happened whose answer never came: the version number tells."""
        current = self.kaggle.dataset(self.slug)
        if current is not None and current.version > entry.before:
            entry.state, entry.at = _UPLOADED, stamp()
            self.ledger.save()
        elif self._clocks.waited(self.slug, "proof") >= self.settle:
            self._clocks.forget(self.slug, "proof")
            if entry.attempts >= _UPLOADS + 1:
                self._fail(f"{self.slug}: {entry.attempts} uploads did not arrive")
                return
            entry.attempts += 1
            self.ledger.save()
            self._upload(entry)

    def _look(self, entry: DatasetEntry) -> None:
        current = self.kaggle.dataset(self.slug)
        if current is not None and current.status == "failed" and current.version > entry.before:
            self._again(entry, before=current.version, why="Kaggle failed to process it")
        elif current is not None and current.status == "ready" and current.version > entry.before:
            there = self.kaggle.dataset_files(self.slug)
            wanted = self._files()
            lacking = sorted(name for name, size in wanted.items() if there.get(name) != size)
            if lacking:
                shown = ", ".join(lacking[:3]) + (f" and {len(lacking) - 3} more" if len(lacking) > 3 else "")
                self._again(entry, before=current.version, why=f"version {current.version} lacks {shown}")
                return
            entry.state, entry.at = _READY, stamp()
            self.ledger.save()
            self.say(f"{self.slug}: version {current.version} is ready, {len(wanted)} files")
        elif self._clocks.waited(self.slug, "ready") > self.patience:
            seen = f"{current.status} at version {current.version}" if current else "absent"
            self._fail(
                f"{self.slug}: after {self.patience:.0f} s it is {seen}, version {entry.before + 1} or later was expected"
            )

    def _again(self, entry: DatasetEntry, *, before: int, why: str) -> None:
        if entry.attempts >= _UPLOADS:
            self._fail(f"{self.slug}: {why}, {entry.attempts} times")
            return
        self.say(f"{self.slug}: {why}; uploading it again")
        entry.state, entry.before, entry.attempts, entry.at = INTENDED, before, entry.attempts + 1, stamp()
        self.ledger.save()
        self._upload(entry)

    def _files(self) -> dict[str, int]:
        assert self.folder is not None, "without a folder there is nothing to do"
        return {
            path.relative_to(self.folder).as_posix(): path.stat().st_size
            for path in self.folder.rglob("*")
            if path.is_file() and path.name != DATASET_METADATA
        }

    def _fail(self, text: str) -> None:
        assert self.ledger.dataset is not None or self._entry is None
        if self.ledger.dataset is None:
            self.ledger.dataset = DatasetEntry(bundle_id=self.bundle, before=0, at=stamp())
        self.ledger.dataset.bundle_id = self.bundle
        self.ledger.dataset.state, self.ledger.dataset.note = FAILED, text
        self.ledger.save()
        self.problems.append(f"the dataset {self.slug} was not published ({text})")
