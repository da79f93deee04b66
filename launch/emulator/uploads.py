"""Uploads to the emulated Kaggle: the files of datasets and submissions, and their bytes."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from launch.emulator.account import Account, ApiError, JsonObject


class Uploads:
    """The uploaded files of an account.

    Args:
        account: the owner.
    """

    def __init__(self, account: Account) -> None:
        self._account = account

    def start(self, method: str, body: JsonObject, base: str) -> JsonObject:
        """Announce a file; the response holds its token and the address for its bytes."""
        account, name = self._account, str(body.get("name") or body.get("fileName") or "file")

        def act() -> JsonObject:
            seed = f"{account.token}{account.next_id()}{account.now()}"
            token = hashlib.sha256(seed.encode()).hexdigest()[:24]
            account.state["blobs"][token] = {
                "name": Path(name).name,
                "size": int(body.get("contentLength") or 0),
                "complete": False,
            }
            (account.folder / "blobs").mkdir(exist_ok=True)
            return {"token": token, "createUrl": f"{base}/upload/{token}"}

        return account.change(method, name, act)

    def blob(self, token: str) -> tuple[JsonObject, Path]:
        """An announced file and the path of its bytes.

        Raises:
            ApiError: no file was announced with this token.
        """
        entry = self._account.state["blobs"].get(token)
        if entry is None:
            raise ApiError(404, "the upload has expired")
        return entry, self._account.folder / "blobs" / token

    def complete(self, token: str) -> None:
        """Mark a file as complete.

        Raises:
            ApiError: more bytes arrived than were announced.
        """
        entry, path = self.blob(token)
        if path.stat().st_size > entry["size"]:
            path.unlink()
            raise ApiError(400, f"{entry['name']}: more bytes than the {entry['size']} that were announced")

        def act() -> None:
            entry["complete"] = True

        self._account.change("upload", entry["name"], act)

    def completed(self, tokens: Sequence[str]) -> list[tuple[str, Path]]:
        """Name and path of each file.

        Raises:
            ApiError: a file is unknown or not complete.
        """
        files = []
        for token in tokens:
            entry, path = self.blob(token)
            if not entry["complete"]:
                raise ApiError(400, f"the upload of {entry['name']} is not complete")
            files.append((entry["name"], path))
        return files
