"""`smoke` and `local`: the built kernels on this machine, from the competition's folder to a submission."""

import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from launch.build import Built, build
from launch.errors import LaunchError
from launch.plan import ROOT, Experiment, change, plan_kernels
from launch.rehearsal.runner import LocalRun, clear_run
from launch.rehearsal.session import isolation
from launch.rehearsal.summary import Summary, print_summary, summarise
from lib.files import write_whole
from lib.run_record import RunRecordError, read_run_record

WEIGHTS_FOLDER = ROOT / "input" / "weights"
_REHEARSAL_LIMIT = 12 * 3600.0  # seconds: what Kaggle gives a session
_FINISHED = "finished"  # the note that a run came to its end, so that the next one starts anew


def has_weights(folder: Path, encoders: Sequence[str]) -> bool:
    """Whether a weights kernel left these encoders here."""
    from lib.session import peek_kind

    if peek_kind(folder) != "weights":
        return False
    try:
        record = read_run_record(folder, kind="weights")
    except RunRecordError:
        return False
    return set(encoders) <= set(record.scores.get("encoders", {}))


def _datasets(attach: Sequence[Path], owner: str) -> dict[str, Path]:
    attached: dict[str, Path] = {}
    for folder in attach:
        if not folder.is_dir():
            raise LaunchError(f"--attach {folder}: there is no such folder")
        name = f"{owner}/{folder.resolve().name}"
        if name in attached:
            raise LaunchError(f"--attach {folder}: another attached folder has the same name")
        attached[name] = folder
    return attached


def smoke(
    experiment: Experiment,
    *,
    data: Path | None,
    tiles: int | None,
    out: Path,
    attach: Sequence[Path] = (),
    thin: bool = False,
    owner: str,
    say: Callable[[str], None],
) -> list[Summary]:
    """Rehearse a campaign: drawn tiles, or a part of a folder in competition layout.

    A run that was interrupted goes on; one that came to its end is followed by a fresh one.

    Raises:
        LaunchError: something failed; the message says what and what to do.
    """
    started = time.monotonic()
    config = experiment.config
    if config.weights == "timm" and not has_weights(WEIGHTS_FOLDER, [config.backbone]):
        say(
            f"the weights of {config.backbone} are not on this machine (build_kernel.py weights fetches them): "
            "rehearsing from random weights, so the scores say nothing about the experiment"
        )
        experiment = change(experiment, ["weights=none"])
    folder = _competition_folder(out, data=data, tiles=tiles, seed=config.seed, say=say)
    attached = _datasets(attach, owner)
    built = build([experiment], out=out / "build", owner=owner, datasets=tuple(attached), thin=thin)
    return _run(
        built,
        [experiment],
        out=out,
        data=folder,
        place="rehearsal",
        attached=attached,
        limit=_REHEARSAL_LIMIT,
        anew=True,
        started=started,
        say=say,
    )


def local(
    experiments: Sequence[Experiment],
    *,
    data: Path,
    out: Path,
    attach: Sequence[Path] = (),
    owner: str,
    say: Callable[[str], None],
) -> list[Summary]:
    """The whole training on this machine; what is finished is never done again.

    Raises:
        LaunchError: something failed; the message says what and what to do.
    """
    started = time.monotonic()
    if not (data / "train_labels.csv").is_file():
        raise LaunchError(
            f"{data} does not hold the competition's data (no train_labels.csv): "
            "fetch it with build_kernel.py download, or name another folder with --data"
        )
    attached = _datasets(attach, owner)
    encoders = [e.config.backbone for e in experiments if e.config.weights == "timm"]
    if encoders and not has_weights(WEIGHTS_FOLDER, encoders):
        fetch_weights(experiments, owner=owner, say=say)
    built = build(experiments, out=out / "build", owner=owner, datasets=tuple(attached))
    return _run(
        built,
        experiments,
        out=out,
        data=data,
        place="local",
        attached=attached,
        limit=None,
        anew=False,
        started=started,
        say=say,
    )


def fetch_weights(experiments: Sequence[Experiment], *, owner: str, say: Callable[[str], None]) -> Path:
    """Run the weights kernel on this machine, with network, into input/weights.

    Raises:
        LaunchError: no experiment starts from timm's weights, or they cannot be fetched.
    """
    kernels = [kernel for kernel in plan_kernels(experiments) if kernel.kind == "weights"]
    if not kernels:
        raise LaunchError("none of these experiments starts from timm's weights: there is nothing to fetch")
    out = ROOT / "runs" / "weights"
    built = build(experiments, out=out / "build", owner=owner)
    only = Built(built.out, built.owner, built.bundle, tuple(kernels), built.sizes)
    run = LocalRun(out, only, ROOT, "local", {}, None, None, say)
    run.run()
    source = run.working(kernels[0].slug)
    WEIGHTS_FOLDER.parent.mkdir(parents=True, exist_ok=True)
    beside = WEIGHTS_FOLDER.with_name(".weights.part")
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(source, beside, copy_function=_link_or_copy)
    shutil.rmtree(WEIGHTS_FOLDER, ignore_errors=True)
    beside.rename(WEIGHTS_FOLDER)
    return WEIGHTS_FOLDER


def _run(
    built: Built,
    experiments: Sequence[Experiment],
    *,
    out: Path,
    data: Path,
    place: str,
    attached: dict[str, Path],
    limit: float | None,
    anew: bool,
    started: float,
    say: Callable[[str], None],
) -> list[Summary]:
    finished = out / _FINISHED
    if anew and finished.is_file():
        clear_run(out, built.kernels)
    finished.unlink(missing_ok=True)
    encoders = [e.config.backbone for e in experiments if e.config.weights == "timm"]
    weights = WEIGHTS_FOLDER if encoders else None
    run = LocalRun(out, built, data, place, attached, weights, limit, say)
    say(f"{len(built.kernels)} kernels, bundle {built.bundle[:12]}, isolation by {isolation()}")
    run.run()
    summaries = [summarise(run, experiment.name) for experiment in experiments]
    print_summary(run, summaries, seconds=time.monotonic() - started)
    write_whole(finished, built.bundle + "\n")
    return summaries


def _competition_folder(out: Path, *, data: Path | None, tiles: int | None, seed: int, say: Callable[[str], None]) -> Path:
    """The folder the kernels see as the competition: drawn, given, or a stratified part of what was given."""
    if data is not None and not (data / "train_labels.csv").is_file():
        raise LaunchError(f"--data {data}: no folder in competition layout (it holds no train_labels.csv)")
    if data is None:
        from launch.rehearsal.competition import write_competition

        labelled = tiles or 1000
        folder = out / f"drawn-{labelled}-{seed}"
        if not folder.is_dir():
            say(f"drawing {labelled:,} labelled and {labelled // 4:,} test tiles (synthetic, H&E-like)")
            out.mkdir(parents=True, exist_ok=True)
            write_competition(folder, labelled=labelled, unlabelled=max(2, labelled // 4), seed=seed)
        return folder
    if tiles is None:
        return data
    return _take_part(data, out / f"part-{tiles}-{seed}", tiles=tiles, seed=seed, say=say)


def _take_part(data: Path, folder: Path, *, tiles: int, seed: int, say: Callable[[str], None]) -> Path:
    """A stratified part of the labelled tiles, and a quarter as many test tiles, in competition layout."""
    import numpy as np
    import pandas as pd

    from lib.data.competition import CompetitionError, read_competition

    try:
        competition = read_competition(data, expect_full=False)
    except CompetitionError as error:
        raise LaunchError(str(error)) from error
    train = competition.train
    if tiles >= len(train):
        return data
    say(f"taking {tiles:,} of {len(train):,} labelled tiles of {data}, stratified")
    generator = np.random.default_rng(seed)
    share = tiles / len(train)
    parts = []
    for label, group in train.groupby("label"):
        count = max(1, round(share * len(group))) if label else max(1, tiles - round(share * int(train["label"].sum())))
        parts.append(group.iloc[np.sort(generator.permutation(len(group))[:count])])
    chosen = pd.concat(parts).sort_values("id")
    wanted = min(len(competition.test_ids), max(2, tiles // 4))
    picked = sorted(generator.permutation(len(competition.test_ids))[:wanted])
    test = [competition.test_ids[at] for at in picked]
    beside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    for name, ids in (("train", chosen["id"]), ("test", test)):
        (beside / name).mkdir(parents=True)
        for tile in ids:
            _link_or_copy(str(data / name / f"{tile}.tif"), str(beside / name / f"{tile}.tif"))
    chosen.to_csv(beside / "train_labels.csv", index=False, lineterminator="\n")
    pd.DataFrame({"id": test, "label": 0}).to_csv(beside / "sample_submission.csv", index=False, lineterminator="\n")
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)
    return folder


def _link_or_copy(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
    return target
