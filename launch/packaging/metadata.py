"""Render kernel-metadata.json and dataset-metadata.json, and check them against the Kaggle client's rules.

The rules are those of kaggle 2.2.4 and 2.2.5 (`kernels_push`, `dataset_create_new`), and those of the service
in the client's documents. The owner is written in one place: kernel-metadata.json of the root.
"""

import json
from pathlib import Path
from typing import Any

from launch import ROOT
from launch.errors import LaunchError
from launch.plan import LIBRARY_SLUG, NOTEBOOK_KINDS, Kernel
from lib.runtime.inputs import COMPETITION
from lib.validation import UNREADABLE, is_safe_name

METADATA = "kernel-metadata.json"
DATASET_METADATA = "dataset-metadata.json"
PLACEHOLDER_OWNER = "your-kaggle-username"
MACHINE_SHAPE = "NvidiaTeslaT4"  # two T4 GPUs; without it, pushes have run on other machines
TITLE_LIMIT = 50  # characters
_LANGUAGES, _KERNEL_TYPES = ("python", "r", "rmarkdown"), ("script", "notebook")


def read_base(root: Path = ROOT) -> dict[str, Any]:
    """Read kernel-metadata.json of the root.

    Raises:
        LaunchError: it is missing or is not a JSON object with an id of the form owner/slug.
    """
    path = root / METADATA
    try:
        base = json.loads(path.read_text(encoding="utf-8"))
    except UNREADABLE as error:
        raise LaunchError(f"{METADATA} in the root cannot be read: {error}") from error
    if not isinstance(base, dict) or str(base.get("id", "")).count("/") != 1:
        raise LaunchError(f'{METADATA} in the root needs an "id" of the form owner/slug')
    return base


def owner_of(base: dict[str, Any]) -> str:
    """The owner of every slug, as the metadata of the root names it."""
    return str(base["id"]).split("/")[0]


def default_experiment(base: dict[str, Any]) -> str:
    """The experiment whose fold 0 is pushed by a plain `kaggle kernels push` in the root."""
    slug = str(base["id"]).split("/")[1]
    return slug.removeprefix("hcd-").removesuffix("-fold-0")


def title_of(slug: str) -> str:
    """A title from which the client computes this slug."""
    return slug.replace("hcd-", "HCD ", 1).replace("-", " ")


def kernel_metadata(kernel: Kernel, *, base: dict[str, Any], owner: str, thin: bool) -> dict[str, Any]:
    """The metadata of a kernel: those of the root, and every value that a client would otherwise default."""
    library = (f"{owner}/{LIBRARY_SLUG}",) if thin else ()
    metadata = {
        **base,
        "id": f"{owner}/{kernel.slug}",
        "title": title_of(kernel.slug),
        "code_file": kernel.file_name,
        "language": "python",
        "kernel_type": "notebook" if kernel.kind in NOTEBOOK_KINDS else "script",
        "is_private": base.get("is_private", True),
        "enable_gpu": kernel.needs_gpu,
        "enable_tpu": False,
        "enable_internet": kernel.internet,  # the client's own default is true
        "dataset_sources": [*library, *kernel.datasets],
        "kernel_sources": [f"{owner}/{slug}" for slug in kernel.sources],
        "competition_sources": [COMPETITION] if kernel.competition else [],
        "model_sources": [],
    }
    metadata.pop("machine_shape", None)  # a GPU shape on a CPU kernel is unrecorded
    if kernel.needs_gpu:
        metadata["machine_shape"] = MACHINE_SHAPE
    return metadata


def dataset_metadata(*, root: Path, owner: str) -> dict[str, Any]:
    """The metadata of the library dataset: those of the root with the owner of kernel-metadata.json."""
    try:
        metadata = json.loads((root / DATASET_METADATA).read_text(encoding="utf-8"))
    except UNREADABLE as error:
        raise LaunchError(f"{DATASET_METADATA} in the root cannot be read: {error}") from error
    if not isinstance(metadata, dict):
        raise LaunchError(f"{DATASET_METADATA} in the root must hold a JSON object")
    return {**metadata, "id": f"{owner}/{LIBRARY_SLUG}"}


def render(metadata: dict[str, Any]) -> str:
    """Metadata as JSON text, with the keys in their order."""
    return json.dumps(metadata, indent=2, ensure_ascii=True) + "\n"


def check_kernel_metadata(metadata: dict[str, Any], folder: Path) -> list[str]:
    """List what the client or the service would refuse or silently change in the metadata of a kernel."""
    from slugify import slugify

    problems = []
    owner, _, slug = str(metadata.get("id", "")).partition("/")
    title = metadata.get("title", "")
    if not owner or not slug or "/" in slug:
        problems.append("id must be owner/slug, without a version")
    if len(slug) < 5:
        problems.append(f"the slug {slug!r} must have at least five characters")
    if (
        not isinstance(title, str)
        or not 5 <= len(title) <= TITLE_LIMIT
        or not title.isascii()
        or not title[:1].isalpha()
    ):
        rule = f"must be 5 to {TITLE_LIMIT} plain characters and start with a letter"
        problems.append(f"the title {title!r} {rule}")
    elif slugify(title) != slug:
        problems.append(f"the title {title!r} becomes the slug {slugify(title)!r}, not {slug!r}")
    if slug == LIBRARY_SLUG:
        problems.append("a kernel may not share its slug with the dataset")
    if metadata.get("language") not in _LANGUAGES:
        problems.append(f"language must be one of {', '.join(_LANGUAGES)}")
    if metadata.get("kernel_type") not in _KERNEL_TYPES:
        problems.append(f"kernel_type must be one of {', '.join(_KERNEL_TYPES)}")
    code = str(metadata.get("code_file") or "")
    if not is_safe_name(code):
        problems.append(f"the code file {code[:80]!r} is no file in the kernel's folder")
    elif not (folder / code).is_file():
        problems.append(f"the code file {code!r} is missing")
    for key in ("is_private", "enable_gpu", "enable_tpu", "enable_internet"):
        if not isinstance(metadata.get(key), bool):
            problems.append(f"{key} must be written out as true or false")
    for key in ("dataset_sources", "kernel_sources", "competition_sources", "model_sources", "keywords"):
        value = metadata.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            problems.append(f"{key} must be a list of texts")
        elif key in ("dataset_sources", "kernel_sources"):
            problems += [f"{key}: {item!r} is not owner/slug" for item in value if item.count("/") != 1]
    if metadata.get("enable_gpu") is True and metadata.get("machine_shape") != MACHINE_SHAPE:
        problems.append(f"a GPU kernel needs machine_shape {MACHINE_SHAPE}")
    if metadata.get("enable_gpu") is not True and "machine_shape" in metadata:
        problems.append("a CPU kernel takes no machine_shape")
    if metadata.get("docker_image_pinning_type", "original") not in ("original", "latest"):
        problems.append("docker_image_pinning_type must be original or latest")
    return problems


def check_dataset_metadata(metadata: dict[str, Any]) -> list[str]:
    """List everything in a dataset's metadata that the client would refuse."""
    problems = []
    slug = str(metadata.get("id", "")).partition("/")[2]
    if not 6 <= len(slug) <= 50:
        problems.append(f"the dataset's slug {slug!r} must have 6 to 50 characters, behind owner/")
    if not 6 <= len(str(metadata.get("title", ""))) <= 50:
        problems.append("the dataset's title must have 6 to 50 characters")
    licences = metadata.get("licenses")
    if (
        not isinstance(licences, list)
        or len(licences) != 1
        or not isinstance(licences[0], dict)
        or "name" not in licences[0]
    ):
        problems.append('licenses must be exactly one {"name": ...}')
    if "subtitle" in metadata and not 20 <= len(str(metadata["subtitle"])) <= 80:
        problems.append("the dataset's subtitle must have 20 to 80 characters")
    return problems
