"""The competition on the emulated Kaggle: its facts and files, what is submitted to it, and the scores."""

import csv
import hashlib
import io
import math
import shutil
import threading
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from launch.emulator.account import Account, ApiError, Json, page, stamp
from launch.emulator.uploads import Uploads
from lib.runtime.inputs import COMPETITION

_TITLE = "Histopathologic Cancer Detection"


class EmulatedCompetition:
    """The one competition there is.

    Args:
        account: who enters it.
        data: its files; None for a competition without data.
    """

    def __init__(self, account: Account, data: Path | None) -> None:
        self._account, self._data = account, data
        self._archive_lock = threading.Lock()

    @staticmethod
    def check(body: Json) -> None:
        """There is one competition only."""
        if str(body.get("competitionName") or COMPETITION) != COMPETITION:
            raise ApiError(404, "Competition not found")

    def get(self) -> Json:
        """Facts of the competition."""
        return {
            "id": 1,
            "ref": COMPETITION,
            "title": _TITLE,
            "url": f"https://www.kaggle.com/competitions/{COMPETITION}",
            "userHasEntered": self._account.settings.rules_accepted,
            "evaluationMetric": "Area Under Receiver Operating Characteristic Curve",
            "maxDailySubmissions": self._account.settings.submissions_a_day,
        }

    def files(self) -> Json:
        """The competition's tables; its tiles are not listed."""
        tables = sorted(self._data.glob("*.csv")) if self._data is not None else []
        return {"files": [{"name": path.name, "totalBytes": path.stat().st_size} for path in tables]}

    def link(self, body: Json, base: str) -> str:
        """Where a file of the competition, or all of it as an archive, can be fetched for a while."""
        if not self._account.settings.rules_accepted:
            raise ApiError(403, "You must accept this competition's rules before you can continue")
        name = str(body.get("fileName", ""))
        outside = Path(name).is_absolute() or ".." in Path(name).parts
        if self._data is None or outside or (name and not (self._data / name).is_file()):
            raise ApiError(404, "no such file")
        return f"{base}/data/{Path(name).name or COMPETITION + '.zip'}?{self._account.signed('data', name)}"

    def file(self, name: str) -> Path:
        """The file behind a link; without a name all of them as an archive."""
        if not name:
            return self._archive()
        if self._data is None or not (self._data / name).is_file():
            raise ApiError(404, "no such file")
        return self._data / name

    def _archive(self) -> Path:
        """The competition's data as one archive, made when it is first asked for; for small data."""
        with self._archive_lock:
            path = self._account.folder / "competition.zip"
            if self._data is not None and not path.is_file():
                beside = path.with_suffix(".part")
                with zipfile.ZipFile(beside, "w", zipfile.ZIP_STORED) as archive:
                    for file in sorted(self._data.rglob("*")):
                        if file.is_file():
                            archive.write(file, file.relative_to(self._data).as_posix())
                beside.replace(path)
            return path


class Submissions:
    """What the account submitted.

    Args:
        account: who submits.
        uploads: where the files come from.
        data: the competition's files, with the sample every submission is held against; None takes any.
        labels: the held-back labels of the test tiles (id,label); without them submissions get no score.
    """

    def __init__(self, account: Account, uploads: Uploads, *, data: Path | None, labels: Path | None) -> None:
        self._account, self._uploads, self._labels = account, uploads, labels
        self._truth = labels or (data / "sample_submission.csv" if data is not None else None)
        self._scored: dict[int, Json] = {}

    def submit(self, body: Json) -> Json:
        """Take a submission."""
        account = self._account
        if not account.settings.rules_accepted:
            raise ApiError(403, "You must accept this competition's rules before you'll be able to submit.")
        if self._allowed_now() <= 0:
            now = datetime.fromtimestamp(self._account.now(), UTC)
            midnight = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
            raise ApiError(
                400,
                f"Your team has used its daily Submission allowance ({account.settings.submissions_a_day}) today, please try "
                f"again tomorrow UTC ({(midnight - now).total_seconds() / 3600:.1f} hours from now).",
            )
        [(name, path)] = self._uploads.taken([str(body.get("blobFileTokens"))])
        fault = account.faults.take("score", name)

        def act() -> Json:
            ref = 5000 + len(account.state["submissions"])
            self._file(ref).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, self._file(ref))
            account.state["submissions"].append(
                {
                    "ref": ref,
                    "description": str(body.get("submissionDescription", "")),
                    "fileName": name,
                    "at": self._account.now(),
                    "fault": fault.what if fault is not None else "",
                }
            )
            account.took_effect("CreateSubmission", name)
            return {"message": f"Successfully submitted to {_TITLE}", "ref": ref}

        return account.change("CreateSubmission", name, act)

    def _file(self, ref: int) -> Path:
        return self._account.folder / "submissions" / f"{ref}.csv"

    def _allowed_now(self) -> int:
        today = datetime.fromtimestamp(self._account.now(), UTC).date()
        used = sum(
            datetime.fromtimestamp(each["at"], UTC).date() == today
            for each in self._account.state["submissions"]
        )
        return self._account.settings.submissions_a_day - used

    def limits(self) -> Json:
        """What is left of the day's allowance."""
        total, left = len(self._account.state["submissions"]), self._allowed_now()
        return {
            "numToday": self._account.settings.submissions_a_day - left,
            "numTotal": total,
            "numAllowedNow": max(0, left),
        }

    def listing(self, body: Json) -> Json:
        """A page of them, the newest first."""
        asked, following = page(list(reversed(self._account.state["submissions"])), body)
        return {"submissions": [self._facts(each) for each in asked], **following}

    def get(self, body: Json) -> Json:
        """One of them."""
        for each in self._account.state["submissions"]:
            if each["ref"] == int(body.get("ref") or 0):
                return self._facts(each)
        raise ApiError(404, "Submission not found")

    def clear_faults(self) -> None:
        """No fault stands between a submission and its score any more; the caller holds the lock and saves."""
        for entry in self._account.state["submissions"]:
            entry["fault"] = ""

    def _facts(self, entry: Json) -> Json:
        answer = {
            "ref": entry["ref"],
            "date": stamp(entry["at"]),
            "description": entry["description"],
            "fileName": entry["fileName"],
            "submittedBy": self._account.owner,
            "status": "PENDING",
        }
        if (
            entry["fault"] == "pending"
            or self._account.now() < entry["at"] + self._account.settings.score_delay
        ):
            return answer
        if entry["fault"] == "error":
            return answer | _unscored("injected")
        with self._account.lock:
            if entry["ref"] not in self._scored:
                self._scored[entry["ref"]] = self._score(self._file(entry["ref"]))
            return answer | self._scored[entry["ref"]]

    def _score(self, path: Path) -> Json:
        """ROC AUC of the two halves of the test tiles; which half a tile belongs to is the parity of its id's SHA-256.

        Without held-back labels the file is held against the sample, and gets no score.
        """
        from sklearn.metrics import roc_auc_score

        if self._truth is None:
            return {"status": "COMPLETE"}
        truth = dict(_table(self._truth.read_text(encoding="utf-8")))
        try:
            rows = _table(path.read_text(encoding="utf-8"))
            given = {name: float(value) for name, value in rows}
        except (ValueError, TypeError, KeyError, csv.Error) as error:
            return _unscored(f"Submission could not be read: {error}")
        if len(given) < len(rows):
            return _unscored(f"Submission contains {len(rows) - len(given)} ids more than once")
        if set(given) != set(truth):
            lacking = len(set(truth) - set(given))
            return _unscored(f"{lacking} ids are missing, {len(set(given) - set(truth))} are unknown")
        if bad := [name for name, value in given.items() if not math.isfinite(value)]:
            return _unscored(f"Submission contains null values: {len(bad)}, the first for id {bad[0]}")
        if self._labels is None:
            return {"status": "COMPLETE"}
        halves: tuple[list[str], list[str]] = ([], [])
        for name in sorted(truth):
            halves[hashlib.sha256(name.encode()).digest()[0] & 1].append(name)
        scores = {}
        for key, names in zip(("publicScore", "privateScore"), halves, strict=True):
            labels = [int(float(truth[name])) for name in names]
            if len(set(labels)) == 2:
                scores[key] = f"{roc_auc_score(labels, [given[name] for name in names]):.5f}"
        return {"status": "COMPLETE", **scores}


def _unscored(text: str) -> Json:
    return {"status": "ERROR", "errorDescription": f"Evaluation Exception: {text}"}


def _table(text: str) -> list[tuple[str, str]]:
    return [(row["id"], row["label"]) for row in csv.DictReader(io.StringIO(text))]
