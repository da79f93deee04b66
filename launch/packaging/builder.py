"""`build` writes dist/, complete for the plain Kaggle client; `check` holds it against every rule at once."""

import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.errors import LaunchError
from launch.packaging.bundle import (
    SOURCE_LIMIT,
    bundle_id,
    kernel_parameters,
    library_files,
    render_notebook,
    render_script,
)
from launch.packaging.metadata import (
    DATASET_METADATA,
    METADATA,
    PLACEHOLDER_OWNER,
    check_dataset_metadata,
    check_kernel_metadata,
    dataset_metadata,
    kernel_metadata,
    owner_of,
    read_base,
    render,
)
from launch.packaging.secret_scan import own_secrets, paths_in, refuse_secrets, secrets_in, texts_in
from launch.plan import LIBRARY_SLUG, NOTEBOOK_KINDS, ROOT, Experiment, Kernel, git_commit, plan_kernels
from lib.files import write_atomic
from lib.search_space import SearchSpace
from lib.validation import UNREADABLE, is_safe_name


@dataclass(frozen=True)
class Source:
    """What every kernel of a build is rendered from.

    Attributes:
        base: the root's kernel-metadata.json.
        owner: of every slug.
        files: what is embedded, by relative path.
        bundle: the hash of these files.
        commit: of the checkout.
        thin: whether scripts import the library from the dataset.
        strict_bundle: whether inference refuses folds trained by different code.
    """

    base: dict[str, Any]
    owner: str
    files: dict[str, str]
    bundle: str
    commit: str
    thin: bool = False
    strict_bundle: bool = False

    def write_kernel(
        self,
        kernel: Kernel,
        folder: Path,
        *,
        push_id: str = "",
        limit: float = 0.0,
        inputs: Mapping[str, str] | None = None,
        finished: Sequence[Mapping[str, Any]] = (),
    ) -> int:
        """Write script and metadata of a kernel, complete for the plain client; returns the script's bytes.

        Args:
            kernel: what to write.
            folder: made if it is not there.
            push_id: proves which push an output came from.
            limit: seconds after which the service will end the session; 0 says nothing.
            inputs: slug to push id of the outputs it must find mounted; others are refused as earlier ones.
            finished: for a search: records of trials that need not be run again.

        Raises:
            LaunchError: what is written into it holds a secret; the library was looked through when it was read.
        """
        parameters = kernel_parameters(
            kernel,
            owner=self.owner,
            bundle=self.bundle,
            commit=self.commit,
            strict_bundle=self.strict_bundle,
            push_id=push_id,
            limit=limit,
            inputs=inputs,
            finished=finished,
        )
        write = render_notebook if kernel.kind in NOTEBOOK_KINDS else render_script
        script = write(kernel, self.files, parameters, thin=self.thin).encode()
        metadata = render(kernel_metadata(kernel, base=self.base, owner=self.owner, thin=self.thin))
        written = json.dumps(parameters, indent=1)
        refuse_secrets(
            {f"the parameters of {kernel.slug}": written, f"{METADATA} of {kernel.slug}": metadata}
        )
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / kernel.file_name, script)
        write_atomic(folder / METADATA, metadata)
        return len(script)


def read_source(
    *, owner: str | None = None, thin: bool = False, strict_bundle: bool = False, root: Path = ROOT
) -> Source:
    """The checkout as it is now.

    Raises:
        LaunchError: the root's metadata or the library cannot be used, or the owner is no user name, or the library holds a
            secret.
    """
    base = read_base(root)
    owner = owner or owner_of(base)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*", owner):
        raise LaunchError(f"the owner {owner!r} is not a Kaggle user name")
    files = library_files(root)
    refuse_secrets(files)
    return Source(base, owner, files, bundle_id(files), git_commit(root), thin, strict_bundle)


@dataclass(frozen=True)
class Built:
    """What a build left.

    Attributes:
        out: the folder with dataset/ and kernels/.
        source: what it was rendered from.
        kernels: in an order in which they can run.
        sizes: bytes of each script, by slug.
    """

    out: Path
    source: Source
    kernels: tuple[Kernel, ...]
    sizes: dict[str, int]

    @property
    def owner(self) -> str:
        """Of every slug."""
        return self.source.owner

    @property
    def bundle(self) -> str:
        """The hash of the embedded files."""
        return self.source.bundle

    @property
    def thin(self) -> bool:
        """Whether the scripts import the library from the dataset."""
        return self.source.thin

    def script(self, kernel: Kernel) -> Path:
        """The kernel's source."""
        return self.out / "kernels" / kernel.slug / kernel.file_name


def build(
    experiments: Sequence[Experiment],
    *,
    out: Path,
    owner: str | None = None,
    datasets: Sequence[str] = (),
    folds: Sequence[int] | None = None,
    average: str = "mean",
    thin: bool = False,
    strict_bundle: bool = False,
    search: SearchSpace | None = None,
    root: Path = ROOT,
) -> Built:
    """Write dataset/ and kernels/ under `out`, whole: a failed build leaves the earlier one.

    Raises:
        LaunchError: with everything that is wrong.
    """
    source = read_source(owner=owner, thin=thin, strict_bundle=strict_bundle, root=root)
    kernels = plan_kernels(experiments, datasets=datasets, folds=folds, average=average, search=search)
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        sizes = {
            kernel.slug: source.write_kernel(kernel, beside / "kernels" / kernel.slug) for kernel in kernels
        }
        _write_dataset(beside / "dataset", source.files, bundle=source.bundle, owner=source.owner, root=root)
        beside.chmod(0o755)
        for part in ("dataset", "kernels"):
            out.mkdir(exist_ok=True)
            shutil.rmtree(out / part, ignore_errors=True)
            (beside / part).rename(out / part)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return Built(out, source, tuple(kernels), sizes)


def _write_dataset(folder: Path, files: dict[str, str], *, bundle: str, owner: str, root: Path) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text.encode())
    (folder / "BUNDLE_ID").write_text(bundle + "\n", encoding="utf-8")
    metadata = render(dataset_metadata(root=root, owner=owner))
    refuse_secrets({DATASET_METADATA: metadata})
    (folder / DATASET_METADATA).write_text(metadata, encoding="utf-8")


def check(out: Path) -> tuple[list[str], list[str], list[str]]:
    """Hold a build against the rules of client and service.

    Returns:
        What was looked at (one line a kernel), problems, and warnings.
    """
    problems: list[str] = []
    warnings: list[str] = []
    looked: list[str] = []
    folders = sorted(path for path in (out / "kernels").glob("*") if path.is_dir()) if out.is_dir() else []
    if not folders:
        return [], [f"{out} holds no build: run build_kernel.py build first"], []
    metadata: dict[str, dict[str, object]] = {}
    for folder in folders:
        try:
            content = json.loads((folder / METADATA).read_text(encoding="utf-8"))
        except UNREADABLE as error:
            problems.append(f"{folder.name}: {METADATA} cannot be read: {error}")
            continue
        if isinstance(content, dict):
            metadata[folder.name] = content
        else:
            problems.append(f"{folder.name}: {METADATA} holds no JSON object")
    for slug, entry in metadata.items():
        folder = out / "kernels" / slug
        problems += [f"{slug}: {problem}" for problem in check_kernel_metadata(entry, folder)]
        if str(entry.get("id", "")).partition("/")[2] != slug:
            problems.append(f"{slug}: its id is {entry.get('id')!r}")
        sources = entry.get("kernel_sources")
        for read in sources if isinstance(sources, list) else []:
            if str(read).partition("/")[2] not in metadata:
                problems.append(f"{slug}: reads {read}, which this build does not hold")
        code = str(entry.get("code_file"))
        script = folder / code
        if not is_safe_name(code) or not script.is_file():
            continue
        source = script.read_bytes()
        found = _check_source(source, name=script.name)
        problems += [f"{slug}: {problem}" for problem in found]
        looked.append(f"{slug}: {len(source):,} bytes, {len(source) / SOURCE_LIMIT:.0%} of the limit")
    owners = {str(entry.get("id", "")).partition("/")[0] for entry in metadata.values()}
    if len(owners) > 1:
        problems.append(f"the kernels belong to different owners: {', '.join(sorted(owners))}")
    if PLACEHOLDER_OWNER in owners:
        warnings.append(
            f"the owner is still {PLACEHOLDER_OWNER!r}: write yours into {METADATA} (or build with --owner) before you push"
        )
    try:
        dataset = json.loads((out / "dataset" / DATASET_METADATA).read_text(encoding="utf-8"))
        if not isinstance(dataset, dict):
            raise ValueError("it holds no JSON object")
        problems += [f"{LIBRARY_SLUG}: {problem}" for problem in check_dataset_metadata(dataset)]
        if len(list((out / "dataset").iterdir())) > 50:
            problems.append(f"{LIBRARY_SLUG}: more than 50 files at the top")
        for name, text in texts_in(out / "dataset").items():
            problems += [f"{LIBRARY_SLUG}/{name}: {problem}" for problem in _leaks(text)]
    except UNREADABLE as error:
        problems.append(f"{LIBRARY_SLUG}: {DATASET_METADATA} cannot be read: {error}")
    return looked, problems, warnings


def _check_source(content: bytes, *, name: str) -> list[str]:
    problems = []
    if len(content) >= SOURCE_LIMIT:
        problems.append(f"{len(content):,} bytes, Kaggle takes less than {SOURCE_LIMIT:,}")
    try:
        text = content.decode("utf-8")
        for code in _code_of(text, name):
            compile(code, name, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, KeyError, TypeError) as error:
        return [*problems, f"does not compile: {error}"]
    return problems + _leaks(text)


def _code_of(text: str, name: str) -> list[str]:
    """What a source holds to be compiled: a script is one piece, a notebook one a cell."""
    if not name.endswith(".ipynb"):
        return [text]
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    return ["".join(cell["source"]) for cell in cells]


def _leaks(text: str) -> list[str]:
    """Secrets, and paths of the machine it was built on."""
    problems = secrets_in(text, own=own_secrets())
    if found := paths_in(text):
        problems.append(f"holds a path of a machine: {', '.join(found[:3])}")
    return problems
