"""Files that appear whole or not at all, and what they hash to."""

import hashlib
import os
from pathlib import Path

_CHUNK = 1 << 22  # bytes read at a time when hashing


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write beside, flush to disk, rename: after a crash the file is the old one or the new one, never a part.

    Raises:
        OSError: the disk is full or the folder cannot be written; the old file, if any, is intact.
    """
    data = content.encode() if isinstance(content, str) else content
    beside = path.with_name(
        f".{path.name}.part"
    )  # one name, so that the rest of a killed write is written over
    try:
        with beside.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest()
