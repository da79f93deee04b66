"""Plan the kernels of a campaign: their kinds, slugs, inputs and machines."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from launch.errors import LaunchError
from launch.experiments import Experiment, searched_encoders, with_teachers
from lib.config import PREPARE_OPTIONS, Config
from lib.evaluation.averages import parse_weights
from lib.search_space import SearchSpace

LIBRARY_SLUG = "hcd-lib"
REPORT_SLUG = "hcd-report"
ENCODERS_SLUG = "hcd-encoders"  # a dataset: the output of a weights kernel that ran on the user's machine
REPORT_PAGE = "report.html"  # in the output of the report kernel
NOTEBOOK_KINDS = ("report",)  # kernels that are notebooks; all others are scripts
LOCAL_PLAN = "plan.json"  # in the folder of `local`: its kernels and how far they are
_HASH_DIGITS = 6  # of the hashes in slugs
GPU_SESSIONS, CPU_SESSIONS = 2, 5  # that Kaggle runs at the same time for one account


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One kernel of a campaign.

    Attributes:
        kind: weights, prepare, pretrain, embed, train, inference, search, report or environment_check: the
            recipe under kernels/.
        slug: its name on Kaggle.
        experiments: names of the experiments it serves; none for weights and prepare, which serve all of
            them.
        configs: of the experiments, in the same order; for prepare the defaults with the options that it
            depends on.
        fold: for train kernels.
        folds: for the inference kernel: the folds that it averages, for each experiment.
        encoders: for the weights kernel: the backbones whose weights it downloads, sorted; none for the one
            that tries the files of weights in attached datasets, whose configs name them.
        needs_gpu: runs on two T4 GPUs.
        internet: on only where something is downloaded.
        competition: reads the competition's own files.
        sources: slugs of the kernels whose output it reads.
        datasets: owner/slug of datasets the user attached.
        average: for the inference kernel: mean, logit or rank.
        facts: for the report: what only the user's machine knows, such as the leaderboard's score.
        search: for the search kernel: its search space.
    """

    kind: str
    slug: str
    experiments: tuple[str, ...]
    configs: tuple[Config, ...]
    fold: int = -1
    folds: tuple[tuple[int, ...], ...] = ()
    encoders: tuple[str, ...] = ()
    needs_gpu: bool = False
    internet: bool = False
    competition: bool = False
    sources: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    average: str = "mean"
    facts: Mapping[str, Any] = field(default_factory=dict)
    search: SearchSpace | None = None

    @property
    def weight_configs(self) -> tuple[Config, ...]:
        """The configs whose `weights` this kernel reads; none for a kernel that reads no weights."""
        if self.kind == "pretrain":
            return tuple(config.for_pretraining for config in self.configs)
        if self.kind == "weights":
            return () if self.encoders else self.configs
        return self.configs if self.kind in ("embed", "train", "search") else ()

    @property
    def file_name(self) -> str:
        """The name of its source file."""
        return f"{self.slug}.ipynb" if self.kind in NOTEBOOK_KINDS else f"{self.slug}.py"


def plan_kernels(
    experiments: Sequence[Experiment],
    *,
    datasets: Sequence[str] = (),
    folds: Sequence[int] | None = None,
    average: str = "mean",
    search: SearchSpace | None = None,
) -> list[Kernel]:
    """Plan the kernels of a campaign, in an order in which they can run.

    Args:
        experiments: one or more; one inference kernel averages them.
        datasets: owner/slug of datasets to attach to every kernel that may look for a file in them. With
            hcd-encoders among them the pretrained weights come from there, and no kernel downloads any.
        folds: the folds to train and average; all of them when None.
        average: what inference averages: mean (probabilities), logit, rank, or weights of the experiments.
        search: what a search kernel tries over the only experiment; no other kernel depends on it.

    Raises:
        LaunchError: the experiments differ in an option that prepare depends on, a fold does not exist, the
            average is unknown, or the experiments cannot be searched.
    """
    try:
        parse_weights(average, [experiment.name for experiment in experiments])
    except ValueError as error:
        raise LaunchError(str(error)) from error
    attached = tuple(datasets)
    trained = with_teachers(experiments)
    weights = [] if _has_encoders(attached) else plan_weights(trained)
    weights += plan_weights_check(trained, attached)
    prepare = plan_prepare(trained, attached)
    pretrains = [
        _plan_pretrain(each, prepare, weights, attached)
        for each in trained
        if each.config.weights == "pretrain"
    ]
    encoders = {each.name: _encoder_source(each, weights) for each in trained}
    embeds = [
        _plan_embed(each, prepare, encoders[each.name], attached) for each in trained if _is_probe(each)
    ]
    folds_of = {each.name: _fold_numbers(each, folds) for each in trained}
    trains = [
        kernel
        for each in trained
        for kernel in plan_folds(
            each, folds_of[each.name], prepare=prepare, encoder=encoders[each.name], datasets=attached
        )
    ]
    inference = plan_inference(
        experiments, folds_of, prepare=prepare, embeds=embeds, trains=trains, average=average
    )
    report = plan_report(inference, prepare=prepare, trains=trains)
    kernels = [*weights, prepare, *_by_experiment(trained, pretrains, embeds), *trains, inference, report]
    if search is not None:
        kernels += plan_search(search, experiments, prepare=prepare, weights=weights, datasets=attached)
    return kernels


def plan_weights(experiments: Sequence[Experiment]) -> list[Kernel]:
    """The kernel that downloads the pretrained weights of these experiments; empty when they need none."""
    needed = {experiment.config.backbone for experiment in experiments if experiment.config.downloads_weights}
    return _weights_kernel(needed)


def plan_weights_check(experiments: Sequence[Experiment], datasets: tuple[str, ...]) -> list[Kernel]:
    """The kernel that tries the files of weights in attached datasets, on a CPU; empty when none is named.

    The kernels that read the files wait for it, so that a wrong file costs no GPU quota. Its slug names the
    networks, as that of the kernel that downloads weights names the encoders.
    """
    networks = tuple(config for config in first_networks(experiments) if config.weights_file)
    if not networks:
        return []
    digest = hashlib.sha256("\n".join(sorted(config.hash for config in networks)).encode())
    return [
        Kernel(
            kind="weights",
            slug=f"hcd-weights-check-{digest.hexdigest()[:_HASH_DIGITS]}",
            experiments=(),
            configs=networks,
            datasets=datasets,
        )
    ]


def _weights_kernel(encoders: Collection[str]) -> list[Kernel]:
    """The kernel that downloads these encoders; empty for none.

    Its slug names what it downloads: campaigns with other backbones do not replace each other's weights.
    """
    names = tuple(sorted(set(encoders)))
    if not names:
        return []
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:_HASH_DIGITS]
    return [
        Kernel(
            kind="weights",
            slug=f"hcd-weights-{digest}",
            experiments=(),
            configs=(Config(),),
            encoders=names,
            internet=True,
        )
    ]


def plan_prepare(experiments: Sequence[Experiment], datasets: tuple[str, ...]) -> Kernel:
    """The kernel whose prepared tiles serve all experiments.

    Raises:
        LaunchError: the experiments differ in an option that it depends on.
    """
    configs = [experiment.config for experiment in experiments]
    differing = [
        option for option in PREPARE_OPTIONS if len({getattr(config, option) for config in configs}) > 1
    ]
    if differing:
        raise LaunchError(
            f"the experiments differ in {', '.join(differing)}, which prepare depends on: "
            "give them the same value, or build them one at a time"
        )
    config = replace(Config(), **{option: getattr(configs[0], option) for option in PREPARE_OPTIONS})
    # It reads no attached dataset but those with the tile-to-slide map and the hold-out.
    attached = datasets if config.slide_map or config.holdout_file else ()
    slug = "hcd-prepare" if config == Config() else f"hcd-prepare-{config.hash[:_HASH_DIGITS]}"
    return Kernel(
        kind="prepare",
        slug=slug,
        experiments=(),
        configs=(config,),
        competition=True,
        datasets=attached,
    )


def first_networks(experiments: Sequence[Experiment]) -> list[Config]:
    """The networks that the experiments start from, by the options that decide them; none twice."""
    starts = [
        each.config.for_pretraining if each.config.weights == "pretrain" else each.config
        for each in experiments
    ]
    return list(dict.fromkeys(config.network for config in starts))


def _plan_pretrain(
    experiment: Experiment, prepare: Kernel, weights: Sequence[Kernel], datasets: tuple[str, ...]
) -> Kernel:
    """The kernel that pretrains a backbone, perhaps from given weights: only then it reads datasets."""
    start = replace(experiment, config=experiment.config.for_pretraining)
    return Kernel(
        kind="pretrain",
        slug=f"hcd-{experiment.name}-pretrain",
        experiments=(experiment.name,),
        configs=(experiment.config,),
        needs_gpu=True,
        sources=(prepare.slug, *_encoder_source(start, weights)),
        datasets=() if start.config.weights == "none" else datasets,
    )


def _plan_embed(
    experiment: Experiment, prepare: Kernel, encoder: tuple[str, ...], datasets: tuple[str, ...]
) -> Kernel:
    """The kernel that embeds every tile once, for the folds of a linear probe."""
    return Kernel(
        kind="embed",
        slug=f"hcd-{experiment.name}-embed",
        experiments=(experiment.name,),
        configs=(experiment.config,),
        needs_gpu=True,
        sources=(prepare.slug, *encoder),
        datasets=datasets,
    )


def plan_folds(
    experiment: Experiment,
    folds: Sequence[int],
    *,
    prepare: Kernel,
    encoder: tuple[str, ...],
    datasets: tuple[str, ...],
) -> list[Kernel]:
    """One train kernel for each fold. It reads the same fold of the teacher."""
    is_probe, teacher = _is_probe(experiment), experiment.teacher
    weights = (f"hcd-{experiment.name}-embed",) if is_probe else encoder
    return [
        Kernel(
            kind="train",
            slug=f"hcd-{experiment.name}-fold-{fold}",
            experiments=(experiment.name,),
            configs=(experiment.config,),
            fold=fold,
            needs_gpu=not is_probe,
            sources=(
                prepare.slug,
                *weights,
                *(() if teacher is None else (f"hcd-{teacher.name}-fold-{fold}",)),
            ),
            datasets=datasets,
        )
        for fold in folds
    ]


def plan_inference(
    experiments: Sequence[Experiment],
    folds: Mapping[str, tuple[int, ...]],
    *,
    prepare: Kernel,
    embeds: Sequence[Kernel],
    trains: Sequence[Kernel],
    average: str,
) -> Kernel:
    """The kernel that averages the folds of the experiments, without those of teachers."""
    names = tuple(experiment.name for experiment in experiments)
    averaged = [kernel.slug for kernel in trains if kernel.experiments[0] in names]
    return Kernel(
        kind="inference",
        slug=f"hcd-{names[0]}-inference" if len(names) == 1 else "hcd-ensemble-inference",
        experiments=names,
        configs=tuple(experiment.config for experiment in experiments),
        folds=tuple(folds[name] for name in names),
        needs_gpu=not all(_is_probe(experiment) for experiment in experiments),
        competition=True,
        sources=(prepare.slug, *(kernel.slug for kernel in embeds), *averaged),
        average=average,
    )


def plan_report(inference: Kernel, *, prepare: Kernel, trains: Sequence[Kernel]) -> Kernel:
    """The report notebook, over prepare, the averaged folds and inference."""
    averaged = [kernel.slug for kernel in trains if kernel.experiments[0] in inference.experiments]
    return Kernel(
        kind="report",
        slug=REPORT_SLUG,
        experiments=inference.experiments,
        configs=inference.configs,
        folds=inference.folds,
        sources=(prepare.slug, *averaged, inference.slug),
    )


def plan_search(
    search: SearchSpace,
    experiments: Sequence[Experiment],
    *,
    prepare: Kernel,
    weights: Sequence[Kernel],
    datasets: tuple[str, ...],
) -> list[Kernel]:
    """The search kernel, after a kernel that downloads the backbones that only the search needs.

    The weights kernel of the folds stays as it is, so that no finished fold is trained again.

    Raises:
        LaunchError: there is more than one experiment, or it cannot be searched over this space.
    """
    if len(experiments) != 1:
        raise LaunchError(f"a search is over one experiment, not over {len(experiments)}: name one")
    name, config = experiments[0].name, experiments[0].config
    downloaded = {encoder for kernel in weights for encoder in kernel.encoders}
    checks = tuple(kernel.slug for kernel in weights if not kernel.encoders) if config.weights_file else ()
    encoders = searched_encoders(search, config)
    own: list[Kernel] = []
    sources = checks
    if not _has_encoders(datasets):
        sources += tuple(kernel.slug for kernel in weights if set(kernel.encoders) & set(encoders))
        own = _weights_kernel(set(encoders) - downloaded)
    sources += (f"hcd-{name}-pretrain",) if config.weights == "pretrain" else ()
    kernel = Kernel(
        kind="search",
        slug=f"hcd-{name}-search",
        experiments=(name,),
        configs=(config,),
        needs_gpu=True,
        sources=(prepare.slug, *sources, *(kernel.slug for kernel in own)),
        datasets=datasets,
        search=search,
    )
    return [*own, kernel]


def needed_for(kernels: Sequence[Kernel], kind: str) -> list[Kernel]:
    """The kernels of a kind and all that they read, directly or indirectly, in their order."""
    needed = {kernel.slug for kernel in kernels if kernel.kind == kind}
    for kernel in reversed(kernels):
        needed |= set(kernel.sources) if kernel.slug in needed else set()
    return [kernel for kernel in kernels if kernel.slug in needed]


def _has_encoders(datasets: Sequence[str]) -> bool:
    """Whether the pretrained weights come from the user's dataset."""
    return any(dataset.split("/")[-1] == ENCODERS_SLUG for dataset in datasets)


def _is_probe(experiment: Experiment) -> bool:
    return experiment.config.train_mode == "linear_probe"


def _encoder_source(experiment: Experiment, weights: Sequence[Kernel]) -> tuple[str, ...]:
    """The kernel that makes an experiment's pretrained encoder, or tries its file; empty where none does."""
    if experiment.config.weights == "pretrain":
        return (f"hcd-{experiment.name}-pretrain",)
    if experiment.config.weights_file:
        return tuple(kernel.slug for kernel in weights if not kernel.encoders)
    downloads = experiment.config.weights == "timm"
    return tuple(kernel.slug for kernel in weights if kernel.encoders) if downloads else ()


def _by_experiment(experiments: Sequence[Experiment], *groups: Sequence[Kernel]) -> list[Kernel]:
    """Kernels of several groups, ordered by their experiment."""
    return [
        kernel
        for experiment in experiments
        for group in groups
        for kernel in group
        if kernel.experiments[0] == experiment.name
    ]


def _fold_numbers(experiment: Experiment, folds: Sequence[int] | None) -> tuple[int, ...]:
    known = range(experiment.config.num_folds)
    if folds is None:
        return tuple(known)
    if unknown := sorted(set(folds) - set(known)):
        numbers = ", ".join(map(str, unknown))
        raise LaunchError(
            f"there is no fold {numbers}: {experiment.name} has folds 0 to {known[-1]} "
            "(--folds names folds; their number is --set num_folds=...)"
        )
    if not folds:
        raise LaunchError("name at least one fold")
    return tuple(sorted(set(folds)))
