"""Bootstrap of a thin kernel: find the mounted library dataset, check its files, then run the recipe.

`launch.packaging.bundle` renders a script from this file, in the same way as from unpack.py.
"""

import hashlib
import importlib
import os
import sys
from pathlib import Path
from typing import Any

PARAMETERS: dict[str, Any] = {}  # placeholder
DIGESTS: dict[str, str] = {}  # placeholder
DATASET: str = "owner/slug"  # placeholder
RECIPE: str = ""  # placeholder


def find_library() -> Path:
    """The folder of the library dataset; the files that this kernel uses are those it was built with."""
    root = Path(os.environ.get("HCD_INPUT", "/kaggle/input"))
    slug = DATASET.split("/")[-1]
    places = (f"datasets/{DATASET}", f"datasets/organizations/{DATASET}", slug)
    folders = [root / place for place in places if (root / place / "lib").is_dir()]
    if not folders:
        sys.exit(
            f"error: the dataset {DATASET} is not mounted under {root}: attach it, or build without --thin"
        )
    problems = []
    for name, digest in DIGESTS.items():
        path = folders[0] / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            problems.append(f"{name} differs")
    if problems:
        sys.exit(
            f"error: {folders[0]} is not the library this script was built with:\n  - "
            + "\n  - ".join(problems)
            + "\nUpload dist/dataset, wait until the new version is ready, and push again; "
            + "or build without --thin."
        )
    return folders[0]


if __name__ == "__main__":
    sys.dont_write_bytecode = True  # datasets are mounted read-only
    sys.path.insert(0, str(find_library()))
    if RECIPE:  # a notebook has none: its cells are the recipe
        sys.exit(importlib.import_module(RECIPE).main(PARAMETERS))
