"""The competition's data through the Kaggle client, into a folder that appears whole or not at all."""

import errno
import lzma
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from launch.kaggle_api.calls import service_message
from launch.kaggle_api.client import connect
from launch.kaggle_api.errors import CREDENTIALS, RULES, ClientError
from lib.runtime.session import COMPETITION
from lib.validation import is_safe_name

_ARCHIVE = f"{COMPETITION}.zip"
_BESIDE = ".one"  # the folder of the file that is being unpacked
# What zipfile raises on damaged archives: encrypted members are RuntimeErrors, unknown compressions NotImplementedErrors.
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    RuntimeError,
    ValueError,
    IndexError,
    struct.error,
    lzma.LZMAError,
)


def download_competition(folder: Path, *, say: Callable[[str], None]) -> None:
    """Fetch the competition's archive and unpack it into `folder`, which appears whole or not at all.

    An interrupted download or unpacking goes on where it stopped.

    Raises:
        ClientError: no credentials, rules not accepted, the service refused or went away, a damaged archive, no room.
    """
    import requests

    if (folder / "train_labels.csv").is_file():
        say(f"{folder} is there already; remove it to fetch the data again")
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    archive, beside = folder.parent / _ARCHIVE, folder.with_name(f".{folder.name}.part")
    kaggle = connect()
    say(f"downloading {COMPETITION} (about 6.3 GB) into {folder.parent}")
    try:
        kaggle.api.competition_download_files(COMPETITION, path=str(folder.parent), force=False, quiet=True)
    except requests.HTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        remedy = {401: CREDENTIALS, 403: RULES}.get(
            status, "Try again later: the same command goes on where it stopped."
        )
        raise ClientError(
            f"Kaggle refused the download (HTTP {status}: {kaggle.clean(service_message(error))}).\n{remedy}"
        ) from error
    except (requests.RequestException, OSError, ValueError) as error:
        text = (
            f"the download broke off: {kaggle.clean(str(error))}\nThe same command goes on where it stopped."
        )
        raise ClientError(text) from error
    if not archive.is_file():
        raise ClientError(f"the client reported no error, but {archive} is not there: try again")
    _unpack(archive, beside, say=say)
    if not (beside / "train_labels.csv").is_file():
        raise ClientError(
            f"{archive} holds no train_labels.csv: it is not the competition's data. Remove it and try again."
        )
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)
    archive.unlink()
    say(f"{folder} is complete")


def _unpack(archive: Path, folder: Path, *, say: Callable[[str], None]) -> None:
    """Unpack what is not there yet; every file is checked against the archive's CRC as it is written."""
    try:
        with zipfile.ZipFile(archive) as content:
            members = [member for member in content.infolist() if not member.is_dir()]
            outside = sorted(
                m.filename for m in members if not is_safe_name(m.filename) or m.filename.startswith(_BESIDE)
            )
            if outside:
                raise ClientError(
                    f"{archive} names files outside its folder, such as {outside[0]!r}: it is not unpacked. Remove it"
                )
            folder.mkdir(parents=True, exist_ok=True)
            left = [m for m in members if not _is_there(folder / m.filename, m.file_size)]
            size, free = sum(member.file_size for member in left), shutil.disk_usage(folder).free
            if size > free:
                raise ClientError(
                    f"unpacking takes {size / 2**30:.1f} GiB, {folder.parent} has {free / 2**30:.1f} GiB free"
                )
            say(f"unpacking {len(left):,} of {len(members):,} files ({size / 2**30:.1f} GiB)")
            for member in left:
                content.extract(
                    member, folder / _BESIDE
                )  # beside, then rename: a kill leaves no half of a tile
                target = folder / member.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                (folder / _BESIDE / member.filename).replace(target)
            shutil.rmtree(folder / _BESIDE, ignore_errors=True)
    except (*_DAMAGED, OSError) as error:
        if (
            isinstance(error, OSError) and error.errno != errno.EINVAL
        ):  # a place before the file's beginning; else the disk
            raise
        raise ClientError(
            f"{archive} is damaged ({error}): remove it and run the same command again"
        ) from error


def _is_there(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
