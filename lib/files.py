"""Atomic writing of files, and their SHA-256."""

import hashlib
import os
import shutil
from pathlib import Path

# Written by Windows and macOS into folders that were looked at or packed there.
_SYSTEM_FILES = ("thumbs.db", "desktop.ini", ".ds_store", "__macosx")
_CHUNK = 1 << 22  # bytes read at a time when hashing


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write to a temporary name, flush and rename: after a crash the file is whole, the old or the new one.

    Raises:
        OSError: the disk is full or the folder cannot be written; the old file, if any, is intact.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.part")  # a fixed name, so that a killed write is overwritten
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def is_system_file(name: str) -> bool:
    """Whether Windows or macOS added a file or folder of this name: it says nothing about the data."""
    return name.lower() in _SYSTEM_FILES or name.startswith("._")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest()


def link_or_copy(source: str, target: str) -> str:
    """Hard-link a file, or copy it where links are not possible; has the signature of `shutil.copy2`."""
    try:
        os.link(source, target)
    except OSError:  # the target is on another file system, or on one without hard links
        shutil.copyfile(source, target)
    return target
