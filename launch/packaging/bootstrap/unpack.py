"""Bootstrap of a kernel that carries its files: unpack them into a temporary folder, then run the recipe.

`launch.packaging.bundle` renders a script from this file: the docstring becomes the kernel's summary, and
each placeholder gets its value. Unrendered it is an ordinary module without files.
"""

import hashlib
import importlib
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

PARAMETERS: dict[str, Any] = {}  # placeholder
FILES: dict[str, str] = {}  # placeholder
FILES_ID: str = ""  # placeholder
RECIPE: str = ""  # placeholder


def hash_of_files() -> str:
    """The SHA-256 over names and contents of the files that this script carries."""
    digest = hashlib.sha256()
    for name, text in sorted(FILES.items()):
        content = text.encode()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def is_intact(folder: Path) -> bool:
    """Whether only this user can write to a folder, and it holds exactly the files of this script."""
    try:
        status = folder.lstat()
        if os.name == "posix" and (status.st_uid != os.getuid() or status.st_mode & 0o22):
            return False  # beside the right sources there may be compiled code of another user
        paths = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "__pycache__"]
        names = {path.relative_to(folder).as_posix() for path in paths}
        return names == set(FILES) and all(
            (folder / name).read_bytes() == text.encode() for name, text in FILES.items()
        )
    except OSError:
        return False


def unpack() -> Path:
    """Write the files into a folder named by their hash and return it; several processes may at once."""
    if hash_of_files() != FILES_ID:
        sys.exit(
            "error: this script was changed after it was built (its files do not match FILES_ID): "
            "build it again"
        )
    folder = Path(tempfile.gettempdir()) / f"hcd-{FILES_ID[:16]}"
    if is_intact(folder):
        return folder
    own = Path(tempfile.mkdtemp(prefix="hcd-"))  # readable by this user alone
    for name, text in FILES.items():
        (own / name).parent.mkdir(parents=True, exist_ok=True)
        (own / name).write_bytes(text.encode())
    try:
        own.rename(folder)
    except OSError:  # the folder exists: another process was first, or somebody else made it
        return folder if is_intact(folder) else own
    return folder


if __name__ == "__main__":
    sys.path.insert(0, str(unpack()))
    if RECIPE:  # a notebook has none: its cells are the recipe
        sys.exit(importlib.import_module(RECIPE).main(PARAMETERS))
