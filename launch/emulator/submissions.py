"""The competition of the emulated Kaggle: metadata, files, submissions and their scores."""

import csv
import hashlib
import io
import math
import shutil
import threading
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from launch.emulator.account import Account, ApiError, JsonObject, format_time, paginate
from launch.emulator.uploads import Uploads
from lib.runtime.inputs import COMPETITION

_TITLE = "Histopathologic Cancer Detection"
_FIRST_REF = 5000


class EmulatedCompetition:
    """The only competition of the emulated Kaggle.

    Args:
        account: the account that entered it.
        data: the competition's files; None for a competition without data.
    """

    def __init__(self, account: Account, data: Path | None) -> None:
        self._account, self._data = account, data
        self._archive_lock = threading.Lock()

    @staticmethod
    def check(body: JsonObject) -> None:
        """Refuse a request about another competition."""
        if str(body.get("competitionName") or COMPETITION) != COMPETITION:
            raise ApiError(404, "Competition not found")

    def get(self) -> JsonObject:
        """Metadata of the competition."""
        return {
            "id": 1,
            "ref": COMPETITION,
            "title": _TITLE,
            "url": f"https://www.kaggle.com/competitions/{COMPETITION}",
            "userHasEntered": self._account.settings.rules_accepted,
            "evaluationMetric": "Area Under Receiver Operating Characteristic Curve",
            "maxDailySubmissions": self._account.settings.submissions_a_day,
        }

    def files(self) -> JsonObject:
        """The competition's tables; tiles are not listed."""
        tables = sorted(self._data.glob("*.csv")) if self._data is not None else []
        return {"files": [{"name": path.name, "totalBytes": path.stat().st_size} for path in tables]}

    def link(self, body: JsonObject, base: str) -> str:
        """A temporary link to a file of the competition, or to an archive of all files."""
        if not self._account.settings.rules_accepted:
            raise ApiError(403, "You must accept this competition's rules before you can continue")
        name = str(body.get("fileName", ""))
        outside = Path(name).is_absolute() or ".." in Path(name).parts
        if self._data is None or outside or (name and not (self._data / name).is_file()):
            raise ApiError(404, "no such file")
        file_name = Path(name).name or f"{COMPETITION}.zip"
        return f"{base}/data/{file_name}?{self._account.sign_link('data', name)}"

    def file(self, name: str) -> Path:
        """The file of a link; an empty name is the archive of all files."""
        if not name:
            return self._archive()
        if self._data is None or not (self._data / name).is_file():
            raise ApiError(404, "no such file")
        return self._data / name

    def _archive(self) -> Path:
        """An archive of all files, made on the first call."""
        with self._archive_lock:
            path = self._account.folder / "competition.zip"
            if self._data is not None and not path.is_file():
                part = path.with_suffix(".part")
                with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
                    for file in sorted(self._data.rglob("*")):
                        if file.is_file():
                            archive.write(file, file.relative_to(self._data).as_posix())
                part.replace(path)
            return path


class Submissions:
    """The account's submissions.

    Args:
        account: the owner.
        uploads: the uploaded files.
        data: the competition's files; a submission is checked against the sample in it. None accepts any
            file.
        labels: the labels of the test tiles (id,label); without them submissions get no score.
    """

    def __init__(self, account: Account, uploads: Uploads, *, data: Path | None, labels: Path | None) -> None:
        self._account, self._uploads, self._labels = account, uploads, labels
        self._truth = labels or (data / "sample_submission.csv" if data is not None else None)
        self._scores: dict[int, JsonObject] = {}

    def submit(self, body: JsonObject) -> JsonObject:
        """Accept a submission."""
        account = self._account
        if not account.settings.rules_accepted:
            raise ApiError(403, "You must accept this competition's rules before you'll be able to submit.")
        if self._remaining_today() <= 0:
            now = datetime.fromtimestamp(account.now(), UTC)
            midnight = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
            hours = (midnight - now).total_seconds() / 3600
            raise ApiError(
                400,
                f"Your team has used its daily Submission allowance ({account.settings.submissions_a_day}) "
                f"today, please try again tomorrow UTC ({hours:.1f} hours from now).",
            )
        [(name, path)] = self._uploads.completed([str(body.get("blobFileTokens"))])
        fault = account.faults.take("score", name)

        def act() -> JsonObject:
            ref = _FIRST_REF + len(account.state["submissions"])
            self._file(ref).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, self._file(ref))
            submission = {
                "ref": ref,
                "description": str(body.get("submissionDescription", "")),
                "file_name": name,
                "submitted_at": account.now(),
                "fault": fault.kind if fault is not None else "",
            }
            account.state["submissions"].append(submission)
            account.record_change("CreateSubmission", name)
            return {"message": f"Successfully submitted to {_TITLE}", "ref": ref}

        return account.change("CreateSubmission", name, act)

    def _file(self, ref: int) -> Path:
        return self._account.folder / "submissions" / f"{ref}.csv"

    def _remaining_today(self) -> int:
        today = datetime.fromtimestamp(self._account.now(), UTC).date()
        times = [entry["submitted_at"] for entry in self._account.state["submissions"]]
        used = sum(datetime.fromtimestamp(time, UTC).date() == today for time in times)
        return self._account.settings.submissions_a_day - used

    def limits(self) -> JsonObject:
        """Today's used and remaining submissions."""
        remaining = self._remaining_today()
        return {
            "numToday": self._account.settings.submissions_a_day - remaining,
            "numTotal": len(self._account.state["submissions"]),
            "numAllowedNow": max(0, remaining),
        }

    def listing(self, body: JsonObject) -> JsonObject:
        """One page of the submissions, the newest first."""
        entries, next_page = paginate(list(reversed(self._account.state["submissions"])), body)
        return {"submissions": [self._describe(entry) for entry in entries], **next_page}

    def get(self, body: JsonObject) -> JsonObject:
        """One submission."""
        for entry in self._account.state["submissions"]:
            if entry["ref"] == int(body.get("ref") or 0):
                return self._describe(entry)
        raise ApiError(404, "Submission not found")

    def clear_faults(self) -> None:
        """Let every submission get its score; the caller holds the lock and saves."""
        for entry in self._account.state["submissions"]:
            entry["fault"] = ""

    def _describe(self, entry: JsonObject) -> JsonObject:
        """A submission in the format of the API, with its score once the delay is over."""
        answer = {
            "ref": entry["ref"],
            "date": format_time(entry["submitted_at"]),
            "description": entry["description"],
            "fileName": entry["file_name"],
            "submittedBy": self._account.owner,
            "status": "PENDING",
        }
        scored_at = entry["submitted_at"] + self._account.settings.score_delay
        if entry["fault"] == "pending" or self._account.now() < scored_at:
            return answer
        if entry["fault"] == "error":
            return answer | _evaluation_error("injected")
        with self._account.lock:
            if entry["ref"] not in self._scores:
                self._scores[entry["ref"]] = self._score(self._file(entry["ref"]))
            return answer | self._scores[entry["ref"]]

    def _score(self, path: Path) -> JsonObject:
        """ROC AUC on two halves of the test tiles, public and private.

        The parity of the SHA-256 of a tile's id chooses its half. Without labels the file is only checked
        against the sample.
        """
        from sklearn.metrics import roc_auc_score

        if self._truth is None:
            return {"status": "COMPLETE"}
        truth = dict(_read_table(self._truth.read_text(encoding="utf-8")))
        try:
            rows = _read_table(path.read_text(encoding="utf-8"))
            predictions = {name: float(value) for name, value in rows}
        except (ValueError, TypeError, KeyError, csv.Error) as error:
            return _evaluation_error(f"Submission could not be read: {error}")
        if len(predictions) < len(rows):
            return _evaluation_error(f"Submission contains {len(rows) - len(predictions)} ids more than once")
        if set(predictions) != set(truth):
            missing, unknown = len(set(truth) - set(predictions)), len(set(predictions) - set(truth))
            return _evaluation_error(f"{missing} ids are missing, {unknown} are unknown")
        if null := [name for name, value in predictions.items() if not math.isfinite(value)]:
            return _evaluation_error(
                f"Submission contains null values: {len(null)}, the first for id {null[0]}"
            )
        if self._labels is None:
            return {"status": "COMPLETE"}
        halves: tuple[list[str], list[str]] = ([], [])
        for name in sorted(truth):
            halves[hashlib.sha256(name.encode()).digest()[0] & 1].append(name)
        scores = {}
        for key, names in zip(("publicScore", "privateScore"), halves, strict=True):
            labels = [int(float(truth[name])) for name in names]
            if len(set(labels)) == 2:
                scores[key] = f"{roc_auc_score(labels, [predictions[name] for name in names]):.5f}"
        return {"status": "COMPLETE", **scores}


def _evaluation_error(text: str) -> JsonObject:
    return {"status": "ERROR", "errorDescription": f"Evaluation Exception: {text}"}


def _read_table(text: str) -> list[tuple[str, str]]:
    return [(row["id"], row["label"]) for row in csv.DictReader(io.StringIO(text))]
