"""Which kernels there are, what each reads, and what it is called: the one place that knows."""

import itertools
import subprocess
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from launch.errors import LaunchError
from lib.config import FOLD_OPTIONS, PREPARE_OPTIONS, Config, ConfigError, apply_overrides, parse_toml
from lib.search_space import SearchSpace, draw_trials, parse_search
from lib.validation import UNREADABLE

ROOT = Path(__file__).resolve().parent.parent
LIBRARY_SLUG = "hcd-lib"
WEIGHTS_SLUG = "hcd-weights"
REPORT_SLUG = "hcd-report"
NOTEBOOK_KINDS = ("report",)  # kernels that are notebooks; all others are scripts
DEFAULT_SEARCH = "baseline"
GPU_SESSIONS, CPU_SESSIONS = 2, 5  # what Kaggle runs at a time for one account
ENCODERS_SLUG = "hcd-encoders"  # a dataset with the output of a weights kernel that ran on the user's machine


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One kernel of a campaign.

    Attributes:
        kind: weights, prepare, pretrain, embed, train, inference, search, report or environment_check: the recipe under kernels/.
        slug: its name on Kaggle.
        experiments: names of the experiments it serves; none for weights and prepare, which serve all alike.
        configs: of the experiments, in the same order; for prepare the defaults with the knobs that matter to it.
        fold: for train kernels.
        folds: for the inference kernel: which folds of each experiment it averages.
        encoders: for the weights kernel.
        needs_gpu: ask for two T4 cards.
        internet: on only where something is downloaded.
        competition: whether it reads the competition's own files.
        sources: slugs of the kernels whose output it reads.
        datasets: owner/slug of datasets the user attached.
        average: for the inference kernel: mean, logit or rank.
        facts: for the report: what no kernel knows, such as the leaderboard's score.
        search: for the search kernel: what is tried.
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
    def file_name(self) -> str:
        """Of its source."""
        return f"{self.slug}.ipynb" if self.kind in NOTEBOOK_KINDS else f"{self.slug}.py"


@dataclass(frozen=True)
class Experiment:
    """A named config; the name carries a hash of the config when --set changed it."""

    name: str
    config: Config
    teacher: "Experiment | None" = None  # whose folds label test tiles for those of this one


def experiment_names(root: Path = ROOT) -> list[str]:
    """The experiments there are."""
    return sorted(path.stem for path in (root / "experiments").glob("*.toml"))


def described(root: Path = ROOT) -> Iterator[tuple[str, list[str]]]:
    """Every experiment and search there is, as one types it, and lines on it: facts, and how its file begins.

    Raises:
        LaunchError: a file cannot be used.
    """
    for name in experiment_names(root):
        loaded = load_experiments([name], root=root)
        of = [
            f"{e.config.backbone} at {e.config.input_size} px, {e.config.num_folds} {e.config.fold_split} folds"
            for e in loaded
        ]
        facts = of[0] if len(loaded) == 1 else f"a list: {', '.join(each.name for each in loaded)}"
        yield name, [facts, *_opening(name, root)]
    for name in search_names(root):
        space = load_search(name, root=root)
        yield (
            f"--search {name}",
            [f"{space.method} over {', '.join(space.space)}", *_opening(f"searches/{name}", root)],
        )


def _opening(name: str, root: Path) -> list[str]:
    """The comment at the head of a file in experiments/."""
    lines = (root / "experiments" / f"{name}.toml").read_text(encoding="utf-8").splitlines()
    return [
        line.removeprefix("#").removeprefix(" ")
        for line in itertools.takewhile(lambda line: line.startswith("#"), lines)
    ]


def load_experiments(
    names: Sequence[str], overrides: Sequence[str] = (), *, root: Path = ROOT
) -> list[Experiment]:
    """Experiments by their names; a file that holds nothing but `experiments = [...]` stands for all it names.

    Raises:
        LaunchError: there is no such experiment, a list names a list, one comes twice, or the values cannot be used.
    """
    loaded: list[Experiment] = []
    for name in names:
        loaded += [load_experiment(each, overrides, root=root) for each in _listed(name, root) or [name]]
    twice = sorted({each.name for each in loaded if sum(each.name == other.name for other in loaded) > 1})
    if twice:
        raise LaunchError(
            f"{', '.join(twice)} is named more than once: an experiment counts once in an average"
        )
    return loaded


def _listed(name: str, root: Path) -> list[str]:
    """The experiments a file stands for; none when it is an experiment itself, or does not exist."""
    values = _list_of(name, root)
    if values is None:
        return []
    names = values["experiments"]
    if (
        len(values) > 1
        or not isinstance(names, list)
        or not names
        or not all(isinstance(each, str) for each in names)
    ):
        raise LaunchError(
            f'experiments/{name}.toml: beside `experiments = ["...", "..."]` a list of experiments holds nothing'
        )
    if nested := [each for each in names if _list_of(each, root) is not None]:
        raise LaunchError(
            f"experiments/{name}.toml names {', '.join(nested)}, which is a list itself: name its experiments"
        )
    return names


def _list_of(name: str, root: Path) -> dict[str, Any] | None:
    path = root / "experiments" / f"{name}.toml"
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except UNREADABLE:  # load_experiment says what is wrong with it
        return None
    return values if "experiments" in values else None


def load_experiment(name: str, overrides: Sequence[str] = (), *, root: Path = ROOT) -> Experiment:
    """An experiment by its name, changed by `KEY=VALUE` texts.

    Raises:
        LaunchError: there is no such experiment, or the values cannot be used.
    """
    found = _own_values(name, overrides, root)
    return (
        replace(found, teacher=_teacher(found.name, found.config, root))
        if found.config.pseudo_labels
        else found
    )


def search_names(root: Path = ROOT) -> list[str]:
    """The searches there are."""
    return sorted(path.stem for path in (root / "experiments" / "searches").glob("*.toml"))


def load_search(name: str, *, root: Path = ROOT) -> SearchSpace:
    """A search by its name.

    Raises:
        LaunchError: there is no such search, or it cannot be used.
    """
    path = root / "experiments" / "searches" / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(search_names(root)) or "none"
        raise LaunchError(
            f"there is no search {name!r} (experiments/searches/{name}.toml); there are: {known}"
        )
    try:
        return parse_search(path.read_text(encoding="utf-8"), name=name)
    except ConfigError as error:
        raise LaunchError(str(error)) from error


def _own_values(name: str, overrides: Sequence[str], root: Path) -> Experiment:
    path = root / "experiments" / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(experiment_names(root))
        raise LaunchError(f"there is no experiment {name!r} (experiments/{name}.toml); there are: {known}")
    try:
        config = parse_toml(path.read_text(encoding="utf-8"), name=name)
        changed = apply_overrides(config, overrides)
    except ConfigError as error:
        raise LaunchError(str(error)) from error
    except ValueError as error:  # not UTF-8
        raise LaunchError(f"experiments/{name}.toml cannot be read: {error}") from error
    if (
        changed.fold_split == "slide" and not changed.slide_map
    ):  # the folds would say so, after prepare and on a GPU
        raise LaunchError(
            f"{name}: fold_split = slide needs a tile-to-slide map (columns id, wsi): attach a dataset or folder that holds one and "
            "name the file, --set slide_map=FILE.csv; or take --set fold_split=stain"
        )
    return Experiment(name if changed == config else f"{name}-{changed.hash[:6]}", changed)


def _teacher(name: str, config: Config, root: Path) -> Experiment:
    """The experiment whose folds label test tiles.

    Raises:
        LaunchError: it cannot be used, is this one, takes pseudo-labels itself, or has other folds.
    """
    teacher = _own_values(config.pseudo_labels, (), root)
    problems = []
    if teacher.config.pseudo_labels:
        problems.append(f"{teacher.name} takes pseudo-labels itself")
    if teacher.config.train_mode == "linear_probe":
        problems.append(f"{teacher.name} has a frozen encoder, whose folds have no network to ask")
    for knob in FOLD_OPTIONS:
        theirs, ours = getattr(teacher.config, knob), getattr(config, knob)
        if theirs != ours:
            problems.append(
                f"{knob} is {theirs!r} there and {ours!r} here: its fold k saw tiles of this one's fold k"
            )
    if problems:
        raise LaunchError(
            f"{name}: pseudo_labels = {config.pseudo_labels} cannot be used:\n  - " + "\n  - ".join(problems)
        )
    return teacher


def plan_kernels(
    experiments: Sequence[Experiment],
    *,
    datasets: Sequence[str] = (),
    folds: Sequence[int] | None = None,
    average: str = "mean",
    search: SearchSpace | None = None,
) -> list[Kernel]:
    """The kernels of a campaign in an order in which they can run.

    Args:
        experiments: one or more; more are averaged by one inference kernel.
        datasets: owner/slug of datasets to attach to every kernel that may look for a file in them. With hcd-encoders
            among them, the encoders' weights come from there, and no kernel fetches any.
        folds: which folds to train and average; all of them when None.
        average: how inference averages: mean (of probabilities), logit or rank.
        search: what a search kernel tries over the only experiment; nothing else depends on it.

    Raises:
        LaunchError: the experiments differ in a knob that prepare depends on, a fold does not exist, or there is nothing that
            could be searched so.
    """
    names = tuple(experiment.name for experiment in experiments)
    configs = tuple(experiment.config for experiment in experiments)
    attached = tuple(datasets)
    kernels = []
    asked = with_teachers(experiments)
    encoders = tuple(dict.fromkeys(e.config.backbone for e in asked if e.config.weights == "timm"))
    uploaded = any(dataset.split("/")[-1] == ENCODERS_SLUG for dataset in datasets)
    if encoders and not uploaded:
        kernels.append(
            Kernel(
                kind="weights",
                slug=WEIGHTS_SLUG,
                experiments=(),
                configs=(Config(),),
                encoders=encoders,
                internet=True,
            )
        )
    prepare = Kernel(
        kind="prepare",
        slug=_prepare_slug([experiment.config for experiment in asked]),
        experiments=(),
        configs=(_prepare_config([experiment.config for experiment in asked]),),
        competition=True,
        datasets=attached,
    )
    kernels.append(prepare)
    chosen = [_chosen_folds(experiment, folds) for experiment in experiments]
    trained, embedded = [], []
    for experiment in asked:
        numbers = _chosen_folds(experiment, folds)
        weights = (WEIGHTS_SLUG,) if experiment.config.weights == "timm" and not uploaded else ()
        if experiment.config.weights == "pretrain":
            weights = (f"hcd-{experiment.name}-pretrain",)
            kernels.append(
                Kernel(
                    kind="pretrain",
                    slug=weights[0],
                    experiments=(experiment.name,),
                    configs=(experiment.config,),
                    needs_gpu=True,
                    sources=(prepare.slug,),
                )
            )
        frozen = experiment.config.train_mode == "linear_probe"
        if frozen:
            kernels.append(
                Kernel(
                    kind="embed",
                    slug=f"hcd-{experiment.name}-embed",
                    experiments=(experiment.name,),
                    configs=(experiment.config,),
                    needs_gpu=True,
                    sources=(prepare.slug, *weights),
                    datasets=attached,
                )
            )
            weights = (kernels[-1].slug,)
            embedded.append(kernels[-1].slug)
        for fold in numbers:
            trained.append(
                Kernel(
                    kind="train",
                    slug=f"hcd-{experiment.name}-fold-{fold}",
                    experiments=(experiment.name,),
                    configs=(experiment.config,),
                    fold=fold,
                    needs_gpu=not frozen,
                    sources=(prepare.slug, *weights, *_teachers_fold(experiment, fold)),
                    datasets=attached,
                )
            )
    kernels += trained
    averaged = tuple(fold.slug for fold in trained if fold.experiments[0] in names)  # a teacher's are not
    inference = f"hcd-{names[0]}-inference" if len(names) == 1 else "hcd-ensemble-inference"
    kernels.append(
        Kernel(
            kind="inference",
            slug=inference,
            experiments=names,
            configs=configs,
            folds=tuple(chosen),
            needs_gpu=any(config.train_mode == "full" for config in configs),
            competition=True,
            sources=(prepare.slug, *embedded, *averaged),
            average=average,
        )
    )
    kernels.append(
        Kernel(
            kind="report",
            slug=REPORT_SLUG,
            experiments=names,
            configs=configs,
            folds=tuple(chosen),
            sources=(prepare.slug, *averaged, inference),
        )
    )
    if search is not None:
        kernels += _plan_search(
            search, experiments, prepare=prepare.slug, fetched=encoders, datasets=attached
        )
    return kernels


def _plan_search(
    search: SearchSpace,
    experiments: Sequence[Experiment],
    *,
    prepare: str,
    fetched: Sequence[str],
    datasets: tuple[str, ...],
) -> list[Kernel]:
    """The search kernel; before it one that fetches the backbones that only the search asks for, so that the folds' own
    weights stay what they are and no finished fold is trained again.
    """
    if len(experiments) != 1:
        raise LaunchError(f"a search is over one experiment, not over {len(experiments)}: name one")
    name, config = experiments[0].name, experiments[0].config
    wanted = searched_encoders(search, config)
    uploaded = any(dataset.split("/")[-1] == ENCODERS_SLUG for dataset in datasets)
    sources: tuple[str, ...] = (WEIGHTS_SLUG,) if set(wanted) & set(fetched) and not uploaded else ()
    sources += (f"hcd-{name}-pretrain",) if config.weights == "pretrain" else ()
    kernels = []
    if (extra := tuple(each for each in wanted if each not in fetched)) and not uploaded:
        slug = f"hcd-{name}-search-weights"
        kernels.append(
            Kernel(
                kind="weights", slug=slug, experiments=(), configs=(Config(),), encoders=extra, internet=True
            )
        )
        sources += (slug,)
    kernels.append(
        Kernel(
            kind="search",
            slug=f"hcd-{name}-search",
            experiments=(name,),
            configs=(config,),
            needs_gpu=True,
            sources=(prepare, *sources),
            datasets=datasets,
            search=search,
        )
    )
    return kernels


def searched_encoders(search: SearchSpace, config: Config) -> tuple[str, ...]:
    """The backbones whose weights a search needs fetched.

    Raises:
        LaunchError: the experiment cannot be searched so.
    """
    try:
        trials = draw_trials(search, config)
    except ConfigError as error:
        raise LaunchError(str(error)) from error
    return tuple(dict.fromkeys(trial.config.backbone for trial in trials if trial.config.weights == "timm"))


def needed_for(kernels: Sequence[Kernel], kind: str) -> list[Kernel]:
    """The kernels of a kind with all that they read, directly or not, in their order."""
    wanted = {kernel.slug for kernel in kernels if kernel.kind == kind}
    for kernel in reversed(kernels):
        wanted |= set(kernel.sources) if kernel.slug in wanted else set()
    return [kernel for kernel in kernels if kernel.slug in wanted]


def with_teachers(experiments: Sequence[Experiment]) -> list[Experiment]:
    """The experiments, each after the one that labels test tiles for it; none twice."""
    found: dict[str, Experiment] = {}
    for experiment in experiments:
        for each in (experiment.teacher, experiment):
            if each is not None:
                found.setdefault(each.name, each)
    return list(found.values())


def _teachers_fold(experiment: Experiment, fold: int) -> tuple[str, ...]:
    return () if experiment.teacher is None else (f"hcd-{experiment.teacher.name}-fold-{fold}",)


def _chosen_folds(experiment: Experiment, folds: Sequence[int] | None) -> tuple[int, ...]:
    there = range(experiment.config.num_folds)
    if folds is None:
        return tuple(there)
    if absent := sorted(set(folds) - set(there)):
        known = f"{experiment.name} has folds 0 to {there[-1]}"
        raise LaunchError(f"there is no fold {', '.join(map(str, absent))}: {known}")
    if not folds:
        raise LaunchError("name at least one fold")
    return tuple(sorted(set(folds)))


def _prepare_config(configs: Sequence[Config]) -> Config:
    """The defaults with the knobs that prepare depends on: the same prepared data serve every experiment."""
    differing = [knob for knob in PREPARE_OPTIONS if len({getattr(config, knob) for config in configs}) > 1]
    if differing:
        raise LaunchError(
            f"the experiments differ in {', '.join(differing)}, which decides what prepare leaves: "
            "give them the same value, or build them one at a time"
        )
    return replace(Config(), **{knob: getattr(configs[0], knob) for knob in PREPARE_OPTIONS})


def _prepare_slug(configs: Sequence[Config]) -> str:
    config = _prepare_config(configs)
    return "hcd-prepare" if config == Config() else f"hcd-prepare-{config.hash[:6]}"


def git_commit(root: Path = ROOT) -> str:
    """The commit of the checkout, with `+changes` when tracked files differ from it; empty outside a repository."""

    def ask(*arguments: str) -> str:
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=root, capture_output=True, text=True, check=True, timeout=20
            )
        except (OSError, subprocess.SubprocessError):
            return ""
        return done.stdout.strip()

    commit = ask("rev-parse", "HEAD")
    return commit + ("+changes" if commit and ask("status", "--porcelain", "--untracked-files=no") else "")
