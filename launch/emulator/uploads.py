"""Uploads to the emulated Kaggle: a place for the bytes, and the files of datasets and submissions that came that way."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from launch.emulator.account import Account, ApiError, Json


class Uploads:
    """Files that were announced, and those of them that arrived.

    Args:
        account: whose they are.
    """

    def __init__(self, account: Account) -> None:
        self._account = account

    def start(self, method: str, body: Json, base: str) -> Json:
        """A place to put a file."""
        account, name = self._account, str(body.get("name") or body.get("fileName") or "file")

        def act() -> Json:
            token = hashlib.sha256(f"{account.token}{account.number()}{account.now()}".encode()).hexdigest()[
                :24
            ]
            account.state["blobs"][token] = {
                "name": Path(name).name,
                "size": int(body.get("contentLength") or 0),
                "complete": False,
            }
            (account.folder / "blobs").mkdir(exist_ok=True)
            return {"token": token, "createUrl": f"{base}/upload/{token}"}

        return account.change(method, name, act)

    def blob(self, token: str) -> tuple[Json, Path]:
        """A started upload and where its bytes lie."""
        entry = self._account.state["blobs"].get(token)
        if entry is None:
            raise ApiError(404, "the upload has expired")
        return entry, self._account.folder / "blobs" / token

    def complete(self, token: str) -> None:
        """All bytes are there.

        Raises:
            ApiError: they are more than were announced.
        """
        entry, path = self.blob(token)
        if path.stat().st_size > entry["size"]:
            path.unlink()
            raise ApiError(400, f"{entry['name']}: more bytes than the {entry['size']} that were announced")

        def act() -> None:
            entry["complete"] = True

        self._account.change("upload", entry["name"], act)

    def taken(self, tokens: Sequence[str]) -> list[tuple[str, Path]]:
        """Name and place of each complete upload.

        Raises:
            ApiError: one of them is not there, or not complete.
        """
        files = []
        for token in tokens:
            entry, path = self.blob(token)
            if not entry["complete"]:
                raise ApiError(400, f"the upload of {entry['name']} is not complete")
            files.append((entry["name"], path))
        return files
