"""Publish the library dataset: upload it once, wait until Kaggle serves the new version, and check its files.

Kaggle calls a dataset ready while it still serves the version before, and a client may drop a file silently.
So a version counts as published when its number is higher than before, it is ready, and it lists every file.
"""

import logging
import shutil
import time
from pathlib import Path

from launch.campaign.ledger import FAILED, INTENDED, DatasetEntry, Ledger
from launch.campaign.waits import Timeouts, WaitTimers, describe_seconds, stamp
from launch.errors import LaunchError
from launch.kaggle_api.client import Kaggle
from launch.kaggle_api.errors import ClientError, CredentialsError, NoResponseError
from launch.packaging.metadata import DATASET_METADATA
from launch.plan import LIBRARY_SLUG

logger = logging.getLogger(__name__)

_UPLOADED, _READY = "uploaded", "ready"


class Publisher:
    """Publishes one dataset, one step at a time.

    Attributes:
        problems: why it was not published.
    """

    def __init__(
        self,
        kaggle: Kaggle,
        ledger: Ledger,
        folder: Path | None,
        bundle: str,
        timeouts: Timeouts,
        *,
        slug: str = LIBRARY_SLUG,
    ) -> None:
        """Continue from the ledger; a failed upload is tried again.

        Args:
            kaggle: the account.
            ledger: where the upload is recorded.
            folder: the dataset; None publishes nothing.
            bundle: the hash of the files in it.
            timeouts: limits of the waits.
            slug: of the dataset.
        """
        self.kaggle, self.ledger, self.folder, self.bundle = kaggle, ledger, folder, bundle
        self.timeouts, self.slug = timeouts, slug
        self.problems: list[str] = []
        self._timers = WaitTimers()
        if self.failed:  # the user reran the command
            self.ledger.dataset = None

    @property
    def _entry(self) -> DatasetEntry | None:
        entry = self.ledger.dataset
        return entry if entry is not None and entry.bundle_id == self.bundle else None

    @property
    def is_ready(self) -> bool:
        """Whether kernels that start now can mount this version."""
        return self._entry is not None and self._entry.state == _READY

    @property
    def failed(self) -> bool:
        """Whether waiting will not make it ready."""
        return self._entry is not None and self._entry.state == FAILED

    @property
    def is_settled(self) -> bool:
        """Whether there is nothing more to do."""
        return self.folder is None or self.is_ready or self.failed

    def step(self) -> None:
        """Poll the dataset once, and upload it where that is due.

        Raises:
            CredentialsError: the service does not accept the credentials any more.
        """
        if self.is_settled:
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
                self._confirm(entry)
            else:
                self._check_version(entry)
        except CredentialsError:
            raise
        except NoResponseError as error:
            if self._timers.waited(self.slug, "response") > self.timeouts.dataset_timeout:
                self._fail(str(error))
        except ClientError as error:
            self._fail(str(error))
        else:
            self._timers.stop(self.slug, "response")

    def finish(self) -> None:
        """Step until there is nothing more to do.

        Raises:
            LaunchError: the dataset was not published.
        """
        while not self.is_settled:
            self.step()
            if not self.is_settled:
                time.sleep(self.timeouts.poll)
        if self.failed:
            raise LaunchError("; ".join(self.problems) + ". Rerun the command to try again.")

    def _upload(self, entry: DatasetEntry) -> None:
        assert self.folder is not None, "without a folder there is nothing to do"
        temporary = self.ledger.folder / "uploads" / f"{self.bundle[:12]}-{entry.attempts}"
        notes = f"bundle {self.bundle[:12]}, campaign {self.ledger.id}"
        self.kaggle.upload_dataset(self.folder, notes=notes, new=entry.before == 0, temporary=temporary)
        shutil.rmtree(temporary.parent, ignore_errors=True)
        entry.state, entry.at = _UPLOADED, stamp()
        self.ledger.save()
        logger.info("%s: uploaded, bundle %s", self.slug, self.bundle[:12])

    def _confirm(self, entry: DatasetEntry) -> None:
        """Find out by the version number whether an upload happened that got no response."""
        current = self.kaggle.dataset(self.slug)
        if current is not None and current.version > entry.before:
            entry.state, entry.at = _UPLOADED, stamp()
            self.ledger.save()
        elif self._timers.waited(self.slug, "proof") >= self.timeouts.settle:
            self._timers.stop(self.slug, "proof")
            if entry.attempts >= self.timeouts.uploads + 1:
                self._fail(f"{self.slug}: {entry.attempts} uploads did not arrive")
                return
            entry.attempts += 1
            self.ledger.save()
            self._upload(entry)

    def _check_version(self, entry: DatasetEntry) -> None:
        current = self.kaggle.dataset(self.slug)
        if current is not None and current.status == "failed" and current.version > entry.before:
            self._again(entry, before=current.version, why="Kaggle failed to process it")
        elif current is not None and current.status == "ready" and current.version > entry.before:
            listed = self.kaggle.dataset_files(self.slug)
            expected = self._files()
            if any("/" in name for name in expected) and not any("/" in name for name in listed):
                # Some services list no files in folders, or list them without their folder.
                logger.info(
                    "%s: Kaggle lists no files in its folders, so only those beside them are checked",
                    self.slug,
                )
                expected = {name: size for name, size in expected.items() if "/" not in name}
            missing = sorted(name for name, size in expected.items() if listed.get(name) != size)
            if missing:
                shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
                self._again(entry, before=current.version, why=f"version {current.version} lacks {shown}")
                return
            entry.state, entry.at = _READY, stamp()
            self.ledger.save()
            logger.info("%s: version %s is ready, %d files", self.slug, current.version, len(expected))
        elif self._timers.waited(self.slug, "ready") > self.timeouts.dataset_timeout:
            seen = f"{current.status} at version {current.version}" if current else "absent"
            self._fail(
                f"{self.slug}: after {describe_seconds(self.timeouts.dataset_timeout)} it is {seen}, "
                f"version {entry.before + 1} or later was expected"
            )

    def _again(self, entry: DatasetEntry, *, before: int, why: str) -> None:
        if entry.attempts >= self.timeouts.uploads:
            self._fail(f"{self.slug}: {why}, {entry.attempts} times")
            return
        logger.info("%s: %s; uploading it again", self.slug, why)
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
