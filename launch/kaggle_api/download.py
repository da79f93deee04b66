"""Download the competition's data through the Kaggle client."""

import errno
import logging
import lzma
import shutil
import struct
import zipfile
import zlib
from pathlib import Path

from launch.kaggle_api.calls import service_message
from launch.kaggle_api.client import connect
from launch.kaggle_api.errors import CREDENTIALS, RULES, ClientError
from lib.runtime.inputs import COMPETITION
from lib.validation import is_safe_name

logger = logging.getLogger(__name__)

_ARCHIVE = f"{COMPETITION}.zip"
_UNPACKING = ".one"  # folder of the file that is being unpacked
# What zipfile raises for damaged archives. Encrypted members give RuntimeError, unknown compressions its
# subclass NotImplementedError.
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


def download_competition(folder: Path) -> None:
    """Fetch the competition's archive and unpack it into `folder`, which appears complete or not at all.

    After an interruption the same call resumes the download or the unpacking.

    Raises:
        ClientError: no credentials, rules not accepted, interrupted, a damaged archive, or a full disk.
    """
    import requests

    if (folder / "train_labels.csv").is_file():
        logger.info("%s is there already; remove it to fetch the data again", folder)
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    archive, part = folder.parent / _ARCHIVE, folder.with_name(f".{folder.name}.part")
    kaggle = connect()
    logger.info("downloading %s (about 6.3 GB) into %s", COMPETITION, folder.parent)
    try:
        kaggle.api.competition_download_files(COMPETITION, path=str(folder.parent), force=False, quiet=True)
    except requests.HTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        resume = "Run the same command again later: it resumes the download."
        remedy = {401: CREDENTIALS, 403: RULES}.get(status, resume)
        message = kaggle.clean(service_message(error))
        raise ClientError(f"Kaggle refused the download (HTTP {status}: {message}).\n{remedy}") from error
    except (requests.RequestException, OSError, ValueError) as error:
        raise ClientError(
            f"the download was interrupted: {kaggle.clean(str(error))}\n"
            "Run the same command again: it resumes the download."
        ) from error
    if not archive.is_file():
        raise ClientError(
            f"the client reported no error, but {archive} does not exist: run the command again"
        )
    _unpack(archive, part)
    if not (part / "train_labels.csv").is_file():
        raise ClientError(
            f"{archive} contains no train_labels.csv, so it is not the competition's data. "
            "Remove it and run the same command again."
        )
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    archive.unlink()
    logger.info("%s is complete", folder)


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack the members that are not unpacked yet; zipfile checks the CRC of each."""
    try:
        with zipfile.ZipFile(archive) as content:
            members = [member for member in content.infolist() if not member.is_dir()]
            names = [member.filename for member in members]
            unsafe = sorted(name for name in names if not is_safe_name(name) or name.startswith(_UNPACKING))
            if unsafe:
                raise ClientError(
                    f"{archive} names files outside its folder, such as {unsafe[0]!r}, and is not unpacked. "
                    "Remove it and run the same command again."
                )
            folder.mkdir(parents=True, exist_ok=True)
            missing = [
                member for member in members if not _is_unpacked(folder / member.filename, member.file_size)
            ]
            size, free = sum(member.file_size for member in missing), shutil.disk_usage(folder).free
            if size > free:
                raise ClientError(
                    f"unpacking takes {size / 2**30:.1f} GiB, {folder.parent} has {free / 2**30:.1f} GiB. "
                    "Free some space and run the same command again."
                )
            logger.info(
                "unpacking %s of %s files (%.1f GiB)", f"{len(missing):,}", f"{len(members):,}", size / 2**30
            )
            for member in missing:
                # Into a folder of its own, then renamed: an interruption leaves no half of a tile.
                content.extract(member, folder / _UNPACKING)
                target = folder / member.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                (folder / _UNPACKING / member.filename).replace(target)
            shutil.rmtree(folder / _UNPACKING, ignore_errors=True)
    except (*_DAMAGED, OSError) as error:
        # EINVAL is a seek to before the beginning of the archive; other OSErrors are about the disk.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise ClientError(
            f"{archive} is damaged ({error}): remove it and run the same command again"
        ) from error


def _is_unpacked(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
