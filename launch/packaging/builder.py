"""Write dist/: the library dataset and every kernel of a campaign, complete for the plain Kaggle client."""

import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch import ROOT
from launch.errors import LaunchError
from launch.experiments import Experiment
from launch.packaging.bundle import (
    bundle_id,
    git_commit,
    kernel_parameters,
    library_files,
    render_notebook,
    render_script,
)
from launch.packaging.metadata import (
    DATASET_METADATA,
    METADATA,
    dataset_metadata,
    kernel_metadata,
    owner_of,
    read_base,
    render,
)
from launch.packaging.secret_scan import refuse_secrets
from launch.plan import NOTEBOOK_KINDS, Kernel, plan_kernels
from lib.files import write_atomic
from lib.search_space import SearchSpace


@dataclass(frozen=True)
class Checkout:
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


def read_checkout(
    *, owner: str | None = None, thin: bool = False, strict_bundle: bool = False, root: Path = ROOT
) -> Checkout:
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
    return Checkout(base, owner, files, bundle_id(files), git_commit(root), thin, strict_bundle)


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
    source: Checkout
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
    source = read_checkout(owner=owner, thin=thin, strict_bundle=strict_bundle, root=root)
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
