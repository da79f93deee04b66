"""Write dist/: the library dataset and every kernel of a campaign, complete for the plain Kaggle client."""

import json
import logging
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
from launch.packaging.backbones import check_backbones
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
    MACHINE_SHAPE,
    METADATA,
    check_kernel_metadata,
    dataset_metadata,
    kernel_metadata,
    owner_of,
    read_base,
    render,
)
from launch.packaging.secret_scan import refuse_secrets
from launch.plan import NOTEBOOK_KINDS, Kernel, plan_kernels
from lib.errors import listed
from lib.files import write_atomic
from lib.model.hub_encoders import licence_terms
from lib.search_space import SearchSpace, values_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkout:
    """The checkout that every kernel of a build is rendered from.

    Attributes:
        base: kernel-metadata.json of the root.
        owner: Kaggle user name in every slug.
        files: the library, relative path to text.
        bundle: hash of these files.
        commit: git commit.
        thin: scripts import the library from the dataset.
        strict_bundle: inference refuses folds that were trained with different code.
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
        """Write the script and the metadata of a kernel, complete for the plain client.

        Args:
            kernel: the kernel.
            folder: created where it does not exist.
            push_id: copied to run.json; it proves which push an output came from.
            limit: seconds after which the service ends the session; 0 where that is unknown.
            inputs: slug to push id of the outputs that must be mounted; those of other pushes are refused.
            finished: for a search: records of trials that need not run again.

        Returns:
            The size of the script in bytes.

        Raises:
            LaunchError: the script cannot be rendered, or its parameters or metadata hold a secret. (The
                library was checked when it was read.)
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
        render_source = render_notebook if kernel.kind in NOTEBOOK_KINDS else render_script
        script = render_source(kernel, self.files, parameters, thin=self.thin).encode()
        metadata = render(kernel_metadata(kernel, base=self.base, owner=self.owner, thin=self.thin))
        refuse_secrets(
            {
                f"the parameters of {kernel.slug}": json.dumps(parameters, indent=1),
                f"{METADATA} of {kernel.slug}": metadata,
            }
        )
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / kernel.file_name, script)
        write_atomic(folder / METADATA, metadata)
        return len(script)


def read_checkout(
    *, owner: str | None = None, thin: bool = False, strict_bundle: bool = False, root: Path = ROOT
) -> Checkout:
    """Read the library, the metadata of the root and the git commit.

    Raises:
        LaunchError: the library or the metadata cannot be used, the metadata name another machine, the owner
            is no user name, or a secret is in the library.
    """
    base = read_base(root)
    if base.get("machine_shape", MACHINE_SHAPE) != MACHINE_SHAPE:
        raise LaunchError(
            f"machine_shape in {METADATA} is {base['machine_shape']!r}: kernels, limits and quota are planned"
            f" for {MACHINE_SHAPE}, two T4 GPUs. Write {MACHINE_SHAPE}, or remove the line"
        )
    owner = owner or owner_of(base)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*", owner):
        raise LaunchError(f"the owner {owner!r} is not a Kaggle user name")
    files = library_files(root)
    refuse_secrets(files)
    return Checkout(base, owner, files, bundle_id(files), git_commit(root), thin, strict_bundle)


@dataclass(frozen=True)
class Built:
    """A finished build.

    Attributes:
        out: the folder with dataset/ and kernels/.
        source: the checkout it was rendered from.
        kernels: in an order in which they can run.
        sizes: slug to size of the script in bytes.
    """

    out: Path
    source: Checkout
    kernels: tuple[Kernel, ...]
    sizes: dict[str, int]

    @property
    def owner(self) -> str:
        """The Kaggle user name in every slug."""
        return self.source.owner

    @property
    def bundle(self) -> str:
        """The hash of the library."""
        return self.source.bundle

    @property
    def thin(self) -> bool:
        """Scripts import the library from the dataset."""
        return self.source.thin

    def script(self, kernel: Kernel) -> Path:
        """The path of the kernel's source."""
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
    """Write dataset/ and kernels/ under `out`. A build that fails leaves the earlier one as it was.

    Args:
        experiments: see `launch.plan.plan_kernels`, as datasets, folds, average and search.
        out: the folder; other files in it stay.
        owner: Kaggle user name; None takes the one in kernel-metadata.json.
        datasets: attached by the user.
        folds: to train and average.
        average: mean, logit or rank.
        thin: scripts import the library from the dataset.
        strict_bundle: inference refuses folds that were trained with different code.
        search: the search space, where a search kernel is built.
        root: the checkout.

    Raises:
        LaunchError: a kernel cannot be planned, rendered or published, or needs a file of weights and has no
            dataset; the message lists every problem.
    """
    source = read_checkout(owner=owner, thin=thin, strict_bundle=strict_bundle, root=root)
    kernels = plan_kernels(experiments, datasets=datasets, folds=folds, average=average, search=search)
    _require_datasets(kernels)
    _require_known_backbones(kernels)
    _warn_of_terms(kernels)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        sizes = {
            kernel.slug: source.write_kernel(kernel, temporary / "kernels" / kernel.slug)
            for kernel in kernels
        }
        _require_valid_metadata(temporary / "kernels")
        _write_dataset(
            temporary / "dataset", source.files, bundle=source.bundle, owner=source.owner, root=root
        )
        temporary.chmod(0o755)
        for part in ("dataset", "kernels"):
            out.mkdir(exist_ok=True)
            shutil.rmtree(out / part, ignore_errors=True)
            (temporary / part).rename(out / part)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Built(out, source, tuple(kernels), sizes)


def _require_valid_metadata(folder: Path) -> None:
    """Check the metadata of every kernel that was written, before anything is pushed.

    Raises:
        LaunchError: the client or the service would refuse or silently change some; every problem is listed.
    """
    problems = []
    for kernel in sorted(folder.iterdir()):
        metadata = json.loads((kernel / METADATA).read_text(encoding="utf-8"))
        problems += [f"{kernel.name}: {problem}" for problem in check_kernel_metadata(metadata, kernel)]
    if problems:
        remedy = f"Change the name of the experiment, {METADATA} in the root, or the attached datasets."
        raise LaunchError(listed("Kaggle would not take these kernels:", problems, remedy=remedy))


def _require_known_backbones(kernels: Sequence[Kernel]) -> None:
    """Check the backbones of all experiments and searches, as far as that is possible here.

    Raises:
        LaunchError: timm does not know one, or Kaggle could not load it; every problem is listed.
    """
    names = [str(config.backbone) for kernel in kernels for config in kernel.configs if kernel.experiments]
    for kernel in kernels:
        names += kernel.encoders
        if kernel.search is not None:
            names += [str(name) for name in values_of(kernel.search, kernel.configs[0], "backbone")]
    if problems := check_backbones(names):
        remedy = "Change backbone in the experiment or the search, or use --set backbone=NAME."
        raise LaunchError(listed("these backbones cannot be built:", problems, remedy=remedy))


def _warn_of_terms(kernels: Sequence[Kernel]) -> None:
    """Log the terms of weights that go beyond the name of a licence, before anything downloads them."""
    encoders: dict[str, list[str]] = {}
    for kernel in kernels:
        for encoder in kernel.encoders:
            if terms := licence_terms(encoder):
                encoders.setdefault(terms, []).append(encoder)
    for terms, names in encoders.items():
        logger.warning("the weights of %s have terms of their own: %s", ", ".join(names), terms)


def _require_datasets(kernels: Sequence[Kernel]) -> None:
    """Check that each kernel that reads a file of weights or of a hold-out has a dataset that could hold it.

    The kernel would find it only when it runs; one with weights after prepare, on a GPU.
    """
    files = set()
    for kernel in kernels:
        if kernel.datasets:
            continue
        for config in kernel.weight_configs:
            if config.weights_file:
                files.add(f"{kernel.slug}: weights = {config.weights_file}")
        for config in kernel.configs:
            if kernel.kind == "prepare" and config.holdout_file:
                files.add(f"{kernel.slug}: holdout = {config.holdout_file}")
    if files:
        remedy = (
            "Attach the dataset or the folder that holds it (--dataset, --attach), or use --set weights=timm "
            "or --set holdout=mlebench."
        )
        raise LaunchError(
            listed("a file is named, and no dataset is attached:", sorted(files), remedy=remedy)
        )


def _write_dataset(folder: Path, files: dict[str, str], *, bundle: str, owner: str, root: Path) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text.encode())
    (folder / "BUNDLE_ID").write_text(bundle + "\n", encoding="utf-8")
    metadata = render(dataset_metadata(root=root, owner=owner))
    refuse_secrets({DATASET_METADATA: metadata})
    (folder / DATASET_METADATA).write_text(metadata, encoding="utf-8")
