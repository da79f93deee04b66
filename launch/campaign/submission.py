"""Submit predictions: send a file once, confirm that it arrived, and wait for its score."""

import logging
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from launch.campaign.ledger import FAILED, INTENDED, Ledger, SubmissionEntry
from launch.campaign.waits import Timeouts, describe_seconds, stamp, steady
from launch.errors import LaunchError
from launch.kaggle_api.client import Kaggle
from launch.kaggle_api.errors import ClientError, CredentialsError, NoResponseError, RefusedError
from launch.kaggle_api.types import Submission
from lib.errors import KernelError
from lib.files import sha256_of
from lib.inference.submission import check_submission
from lib.runtime.inputs import COMPETITION

logger = logging.getLogger(__name__)

_SENT, _SCORED = "sent", "scored"
_ATTEMPTS = 4
_REMEDIES = {  # by HTTP status of the refusal
    400: "Kaggle accepts a few submissions a day: rerun the command after the end of the day (UTC).",
    403: f"Accept the rules once in the browser: kaggle.com/competitions/{COMPETITION}/rules",
    404: "The competition takes no submissions any more, or your account cannot see it.",
}


def submit_file(
    kaggle: Kaggle, ledger: Ledger, path: Path, *, sample: Path, text: str, timeouts: Timeouts
) -> SubmissionEntry:
    """Send a submission unless it was sent already, and wait for its score.

    Args:
        kaggle: the account.
        ledger: where the submission is recorded before it is sent.
        path: submission.csv.
        sample: sample_submission.csv, which it must match.
        text: the description, behind the campaign's id and the file's hash.
        timeouts: limits of the waits.

    Raises:
        LaunchError: the file is not a submission, Kaggle refused it or could not score it, or no score came
            in time.
    """
    try:
        check_submission(path.read_text(encoding="utf-8"), sample.read_bytes())
    except KernelError as error:
        raise LaunchError(f"{path}: {error}") from error
    digest = sha256_of(path)
    entry = next(
        (item for item in ledger.submissions if item.sha256 == digest and item.state != FAILED), None
    )
    if entry is not None:
        sender = _Sender(kaggle, ledger, entry, path, timeouts)
    elif (earlier := _sent_before(kaggle, digest)) is not None:
        logger.info(
            "this file was submitted before (submission %s, %r), which this ledger does not know: it is not "
            "submitted again",
            earlier.ref,
            earlier.message,
        )
        entry = SubmissionEntry(
            sha256=digest, message=earlier.message, state=_SENT, at=_stamp_of(earlier), ref=earlier.ref
        )
        ledger.submissions.append(entry)
        ledger.save()
        sender = _Sender(kaggle, ledger, entry, path, timeouts)
    else:
        message = f"hcd {ledger.id} {digest[:16]} {text}".strip()
        entry = SubmissionEntry(sha256=digest, message=message, at=stamp())
        ledger.submissions.append(entry)
        ledger.save()
        sender = _Sender(kaggle, ledger, entry, path, timeouts)
        sender.send()
    sender.confirm()
    if sender.entry.state == _SENT:
        sender.wait_for_score()
    return sender.entry


def was_sent(ledger: Ledger, sha256: str) -> bool:
    """Whether a campaign sent this file already, and Kaggle did not refuse it."""
    return any(item.sha256 == sha256 and item.state in (_SENT, _SCORED) for item in ledger.submissions)


def _sent_before(kaggle: Kaggle, sha256: str) -> Submission | None:
    """The latest submission of this file by any campaign, unless Kaggle could not score it.

    The message of a submission carries the hash of its file, so a ledger that was deleted costs no second
    submission.

    Raises:
        LaunchError: the list cannot be read.
    """
    mark = re.compile(rf"hcd [0-9a-f]+ {sha256[:16]}(?: |$)")
    try:
        submissions = kaggle.submissions()
    except CredentialsError:
        raise
    except ClientError as error:
        raise LaunchError(
            f"{error}\nNothing was submitted: the list of submissions tells whether this file was submitted "
            "before. Rerun the command when Kaggle answers."
        ) from error
    return next(
        (
            submission
            for submission in submissions
            if mark.match(submission.message) and submission.status != "ERROR"
        ),
        None,
    )


def _stamp_of(submission: Submission) -> str:
    """The time stamp of a submission in the list; now where Kaggle gives none."""
    try:
        moment = datetime.fromisoformat(submission.date)
    except ValueError:
        return stamp()
    return stamp(moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC))


@dataclass
class _Sender:
    """One submission: its entry in the ledger, and its file."""

    kaggle: Kaggle
    ledger: Ledger
    entry: SubmissionEntry
    path: Path
    timeouts: Timeouts

    @property
    def mark(self) -> str:
        """What its message begins with: hcd, the id of a campaign, and the hash of the file."""
        return " ".join(self.entry.message.split()[:3])

    def send(self) -> None:
        """Send the file once. After a refusal it was not submitted; without a response the list tells."""
        try:
            response = self.kaggle.submit(self.path, message=self.entry.message)
        except CredentialsError:
            raise
        except RefusedError as error:
            self._record(FAILED, note=str(error))
            remedy = _REMEDIES.get(error.status, "Fix the cause and rerun the command.")
            raise LaunchError(f"{error}\n{remedy} Everything else is done and kept.") from error
        except NoResponseError as error:
            logger.info("%s; checking whether the submission arrived before sending it again", error)
            return
        self._record(_SENT)
        logger.info("submitted: %s", response or "Kaggle gave no message")

    def confirm(self) -> None:
        """Send the file again while a submission that got no response is not listed.

        Raises:
            LaunchError: it never arrived.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            if self.entry.state != INTENDED or self._is_listed():
                return
            if attempt < _ATTEMPTS:
                logger.info("the submission did not arrive; sending it again")
                self.send()
        raise LaunchError(
            f"the submission was sent {_ATTEMPTS} times and never arrived. Rerun the command to try again."
        )

    def wait_for_score(self) -> None:
        """Poll the list until the submission has its score.

        Raises:
            LaunchError: it could not be scored, or has no score in time.
        """
        limit, started = self.timeouts.score_timeout, steady()
        while True:
            try:
                submission = self._find()
                problem = "it is not listed"
            except CredentialsError:
                raise
            except ClientError as error:
                submission, problem = None, str(error)
            if submission is not None and submission.status == "COMPLETE":
                self.entry.public, self.entry.private = submission.public, submission.private
                self._record(_SCORED, ref=submission.ref)
                return
            if submission is not None and submission.status == "ERROR":
                self._record(FAILED, ref=submission.ref, note=submission.error or "no reason given")
                raise LaunchError(
                    f"Kaggle could not score the submission ({self.entry.note}); submission "
                    f"{submission.ref}, "
                    f"{self.entry.message!r}. The file matches the sample: see the competition's page for "
                    "the "
                    "cause, then rerun the command."
                )
            if steady() - started > limit:
                reason = problem if submission is None else f"its status is {submission.status}"
                raise LaunchError(
                    f"no score after {describe_seconds(limit)} ({reason}). The submission was sent: rerun "
                    "the "
                    "command to check again. It is not sent twice."
                )
            time.sleep(self.timeouts.score_poll)

    def _is_listed(self) -> bool:
        """Whether the list shows the submission. The list lags, so it is polled for a while."""
        started = steady()
        while True:
            if (submission := self._find()) is not None:
                self._record(_SENT, ref=submission.ref)
                return True
            if steady() - started > self.timeouts.score_settle:
                return False
            time.sleep(self.timeouts.score_poll)

    def _find(self) -> Submission | None:
        return next((item for item in self.kaggle.submissions() if item.message.startswith(self.mark)), None)

    def _record(self, state: str, *, ref: int = 0, note: str = "") -> None:
        self.entry.state, self.entry.ref = state, ref or self.entry.ref
        self.entry.note = note or self.entry.note
        self.ledger.save()
