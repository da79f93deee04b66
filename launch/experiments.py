"""Load experiments and searches from experiments/*.toml, and check what no single file can check."""

import itertools
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from launch import ROOT
from launch.errors import LaunchError
from lib.config import FOLD_OPTIONS, Config, ConfigError, apply_overrides, parse_toml
from lib.errors import listed
from lib.search_space import SearchSpace, check_search, parse_search, searched_backbones
from lib.validation import UNREADABLE

DEFAULT_SEARCH = "baseline"
EXPERIMENTS_FORMAT = 1  # of the JSON document; it changes when a key is removed or means something else


@dataclass(frozen=True)
class Experiment:
    """A named configuration. When --set changed its result, the name ends with a hash of the configuration.

    Attributes:
        name: of its file, perhaps with that hash.
        config: its options.
        teacher: the experiment whose folds label the test tiles for it, where pseudo_labels names one.
    """

    name: str
    config: Config
    teacher: "Experiment | None" = None


def experiment_names(root: Path = ROOT) -> list[str]:
    """The names of all experiments."""
    return sorted(path.stem for path in (root / "experiments").glob("*.toml"))


def search_names(root: Path = ROOT) -> list[str]:
    """The names of all searches."""
    return sorted(path.stem for path in (root / "experiments" / "searches").glob("*.toml"))


def filter_names(known: Sequence[str], words: Sequence[str], *, kind: str) -> list[str]:
    """The known names that contain one of the words, in any case; all of them without words.

    Args:
        known: the names.
        words: parts of names.
        kind: what the names name, for the message.

    Raises:
        LaunchError: a word is in no name.
    """
    absent = [word for word in words if not any(word.lower() in name.lower() for name in known)]
    if absent:
        close = [name for word in absent for name in get_close_matches(word, known, n=3, cutoff=0.5)]
        hint = (
            f"did you mean {', '.join(dict.fromkeys(close))}?" if close else f"there are: {', '.join(known)}"
        )
        raise LaunchError(f"no {kind} has {', '.join(absent)} in its name; {hint}")
    return [name for name in known if not words or any(word.lower() in name.lower() for word in words)]


def describe_experiments(words: Sequence[str] = (), root: Path = ROOT) -> Iterator[tuple[str, list[str]]]:
    """Experiments and searches as a user types them, with a summary and the comment that opens their file.

    Args:
        words: parts of the names; without them every one is listed.
        root: of the checkout.

    Raises:
        LaunchError: a file cannot be used, or a word is in no name.
    """
    catalogue = list_experiments(words, root)
    for entry in catalogue["experiments"]:
        yield entry["name"], [entry["summary"], *entry["comment"].splitlines()]
    for entry in catalogue["searches"]:
        yield f"--search {entry['name']}", [entry["summary"], *entry["comment"].splitlines()]


def list_experiments(words: Sequence[str] = (), root: Path = ROOT) -> dict[str, Any]:
    """The document of `experiments --json`: experiments and searches; docs/json.md describes its keys.

    Args:
        words: parts of the names; without them every one is listed.
        root: of the checkout.

    Raises:
        LaunchError: a file cannot be used, or a word is in no name.
    """
    experiments, searches = [], []
    known = [*experiment_names(root), *search_names(root)]
    chosen = filter_names(known, words, kind="experiment or search")
    for name in [name for name in experiment_names(root) if name in chosen]:
        loaded = load_experiments([name], root=root)
        members = _listed_experiments(name, root)
        config = loaded[0].config
        folds = f"{config.num_folds} {config.fold_split} folds"
        summary = f"{config.backbone} at {config.input_size} px, {folds}"
        experiments.append(
            {
                "name": name,
                "summary": f"a list: {', '.join(members)}" if members else summary,
                "comment": _opening_comment(name, root),
                "members": members,
                "config": None if members else config.to_dict(),
            }
        )
    for name in [name for name in search_names(root) if name in chosen]:
        search = load_search(name, root=root)
        searches.append(
            {
                "name": name,
                "summary": f"{search.method} over {', '.join(search.space)}",
                "comment": _opening_comment(f"searches/{name}", root),
                "values": search.to_dict(),
            }
        )
    return {"format": EXPERIMENTS_FORMAT, "experiments": experiments, "searches": searches}


def _opening_comment(name: str, root: Path) -> str:
    lines = (root / "experiments" / f"{name}.toml").read_text(encoding="utf-8").splitlines()
    comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in comment)


def load_experiments(
    names: Sequence[str], overrides: Sequence[str] = (), *, root: Path = ROOT
) -> list[Experiment]:
    """Load experiments by name. A file with only `experiments = [...]` stands for all that it lists.

    Raises:
        LaunchError: an experiment is unknown or named twice, a list names a list, or values cannot be used.
    """
    loaded = [
        load_experiment(experiment, overrides, root=root)
        for name in names
        for experiment in _listed_experiments(name, root) or [name]
    ]
    counts = Counter(experiment.name for experiment in loaded)
    if repeated := sorted(name for name, count in counts.items() if count > 1):
        raise LaunchError(
            f"{', '.join(repeated)} is named more than once: name each experiment once, it counts once in an "
            "average"
        )
    return loaded


def _listed_experiments(name: str, root: Path) -> list[str]:
    """The experiments that a file lists; empty when it is an experiment itself, or does not exist."""
    values = _list_file(name, root)
    if values is None:
        return []
    names = values["experiments"]
    are_names = isinstance(names, list) and all(isinstance(item, str) for item in names)
    if len(values) > 1 or not names or not are_names:
        raise LaunchError(
            f'experiments/{name}.toml: a list of experiments holds only `experiments = ["...", "..."]`'
        )
    if nested := [item for item in names if _list_file(item, root) is not None]:
        raise LaunchError(
            f"experiments/{name}.toml names {', '.join(nested)}, which is a list itself: name its experiments"
        )
    return list(names)


def _list_file(name: str, root: Path) -> dict[str, Any] | None:
    """The values of a file that lists experiments; None for every other file."""
    path = root / "experiments" / f"{name}.toml"
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except UNREADABLE:  # load_experiment reports the error
        return None
    return values if "experiments" in values else None


def load_experiment(name: str, overrides: Sequence[str] = (), *, root: Path = ROOT) -> Experiment:
    """Load an experiment by name, change it by `KEY=VALUE` texts, and load its teacher.

    Raises:
        LaunchError: the experiment is unknown, or its values cannot be used.
    """
    experiment = _load_without_teacher(name, overrides, root)
    if not experiment.config.pseudo_labels:
        return experiment
    return replace(experiment, teacher=_load_teacher(experiment, root))


def _load_without_teacher(name: str, overrides: Sequence[str], root: Path) -> Experiment:
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
    # Checked here: the fold kernels would find it only after prepare, on a GPU.
    if changed.fold_split == "slide" and not changed.slide_map:
        raise LaunchError(
            f"{name}: fold_split = slide needs a tile-to-slide map (columns id, wsi): attach a dataset or "
            "folder "
            "that holds one and name the file with --set slide_map=FILE.csv, or use --set fold_split=stain"
        )
    return Experiment(name if changed.hash == config.hash else f"{name}-{changed.hash[:6]}", changed)


def changed_experiment(experiment: Experiment, **changes: int | float) -> Experiment:
    """An experiment with other options, named as `--set` would name it.

    Raises:
        ConfigError: the options cannot be used together.
    """
    before, config = experiment.config.hash, replace(experiment.config, **changes)  # type: ignore[arg-type]
    if config.hash == before:
        return replace(experiment, config=config)
    name = experiment.name.removesuffix(f"-{before[:6]}")
    return replace(experiment, name=f"{name}-{config.hash[:6]}", config=config)


def _load_teacher(student: Experiment, root: Path) -> Experiment:
    """Load the experiment that `pseudo_labels` names.

    Raises:
        LaunchError: it cannot be used, uses pseudo-labels itself, has no network, or has other folds.
    """
    # The teacher must not learn from the hold-out either.
    holdout = [f"holdout={student.config.holdout}"] if student.config.holdout else []
    teacher = _load_without_teacher(student.config.pseudo_labels, holdout, root)
    problems = []
    if teacher.config.pseudo_labels:
        problems.append(f"{teacher.name} uses pseudo-labels itself")
    if teacher.config.train_mode == "linear_probe":
        problems.append(f"{teacher.name} is a linear probe: its folds have no network that could label tiles")
    for option in FOLD_OPTIONS:
        theirs, ours = getattr(teacher.config, option), getattr(student.config, option)
        if theirs != ours:
            problems.append(
                f"{option} is {theirs!r} in {teacher.name} and {ours!r} in {student.name}: its fold k would "
                "have "
                "trained on tiles of the other's fold k"
            )
    if problems:
        lead = f"{student.name}: pseudo_labels = {student.config.pseudo_labels} cannot be used:"
        raise LaunchError(listed(lead, problems))
    return teacher


def with_teachers(experiments: Sequence[Experiment]) -> list[Experiment]:
    """The experiments, each after its teacher; none twice."""
    by_name: dict[str, Experiment] = {}
    for experiment in experiments:
        for member in (experiment.teacher, experiment):
            if member is not None:
                by_name.setdefault(member.name, member)
    return list(by_name.values())


def load_search(name: str, *, root: Path = ROOT) -> SearchSpace:
    """Load a search by name.

    Raises:
        LaunchError: the search is unknown, or cannot be used.
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


def searched_encoders(search: SearchSpace, config: Config) -> tuple[str, ...]:
    """The backbones whose pretrained weights a search reads.

    Raises:
        LaunchError: the experiment cannot be searched over this space.
    """
    try:
        check_search(search, config)
    except ConfigError as error:
        raise LaunchError(str(error)) from error
    return searched_backbones(search, config)
