"""Rehearse a campaign against the emulated Kaggle (`smoke`), or serve the emulated Kaggle alone (`emulator`).

A rehearsal runs the campaign code of `run` and the real Kaggle client; only the service is emulated.
"""

import contextlib
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from launch.campaign.commands import Result, run
from launch.campaign.ledger import campaign_lock
from launch.campaign.report import EMULATOR_NOTE, REHEARSAL_NOTES
from launch.campaign.spec import CampaignSpec, RunOptions, campaign_name
from launch.campaign.waits import EMULATOR_TIMEOUTS, steady
from launch.emulator.account import Settings
from launch.emulator.faults import Fault
from launch.emulator.kaggle import EmulatedKaggle
from launch.emulator.server import Server
from launch.errors import LaunchError
from launch.experiments import Experiment, with_teachers
from launch.kaggle_api.calls import RetryPolicy
from launch.kaggle_api.client import connect
from launch.local import WEIGHTS_FOLDER, attached_datasets, pretrained_encoders
from launch.packaging.builder import read_checkout
from launch.sandbox import isolation
from lib.files import link_or_copy, write_atomic
from lib.search_space import SearchSpace

logger = logging.getLogger(__name__)

_FINISHED = "finished"  # this file marks a finished rehearsal: the next one starts from an empty campaign
_LOCK = "rehearsal.lock"
_IDENTITY = (
    "identity.json"  # code, experiments and data of the rehearsal: others start from an empty campaign
)
_RETRY_POLICY = RetryPolicy(call_timeout=60.0, upload_timeout=300.0, attempts=5, delay=0.2, max_delay=2.0)
_SETTINGS = Settings(dataset_delay=2.0, score_delay=0.5)
_SYNTHETIC_NOTE = (
    "Its tiles are synthetic: no tissue and no patients. Its scores say nothing about real tiles."
)


def smoke(
    experiments: Sequence[Experiment],
    *,
    data: Path | None,
    tiles: int | None,
    folds: Sequence[int] | None = None,
    out: Path,
    attach: Sequence[Path] = (),
    thin: bool = False,
    average: str = "mean",
    search: SearchSpace | None = None,
    faults: Sequence[Fault] = (),
    owner: str,
) -> Result:
    """Rehearse a campaign on synthetic tiles, or on a sample of a folder in competition layout.

    An interrupted rehearsal is resumed. After a finished one the next call starts a new rehearsal.

    Args:
        experiments: to rehearse; several are averaged.
        data: a folder in competition layout; None makes synthetic tiles.
        tiles: number of labelled tiles to take or to make.
        folds: to train and average; all when None.
        out: folder of the data, the campaign and the emulator's state.
        attach: folders that kernels see as datasets.
        thin: kernels import the library from the dataset.
        average: how inference averages members: mean, logit or rank.
        search: rehearse only this search and the kernels it reads from.
        faults: of the emulated Kaggle.
        owner: the account's name.

    Raises:
        LaunchError: a step failed; the message names the cause and the remedy.
    """
    with campaign_lock(out, name=_LOCK):  # before the files of an earlier rehearsal are removed
        return _rehearse(
            experiments,
            data=data,
            tiles=tiles,
            folds=folds,
            out=out,
            attach=attach,
            thin=thin,
            average=average,
            search=search,
            faults=faults,
            owner=owner,
        )


def _rehearse(
    experiments: Sequence[Experiment],
    *,
    data: Path | None,
    tiles: int | None,
    folds: Sequence[int] | None,
    out: Path,
    attach: Sequence[Path],
    thin: bool,
    average: str,
    search: SearchSpace | None,
    faults: Sequence[Fault],
    owner: str,
) -> Result:
    started = steady()
    folder, labels = _competition_folder(out, data=data, tiles=tiles, seed=experiments[0].config.seed)
    attached = attached_datasets(attach, owner)
    identity = {
        "bundle": read_checkout(owner=owner).bundle,
        "experiment": {experiment.name: experiment.config.to_dict() for experiment in experiments},
        "data": str(folder.resolve()),
        "attached": {name: str(path.resolve()) for name, path in attached.items()},
        "thin": thin,
        "search": None if search is None else search.to_dict(),
    }
    _remove_other_rehearsal(out, json.dumps(identity, sort_keys=True))
    maps = {each.config.slide_map for each in with_teachers(experiments)} - {""}
    attached = _without_held_back(attached, out / "attached", maps=maps, labels=labels)
    logger.info("rehearsal in %s; isolation of the kernels by %s", out, isolation())
    with ExitStack() as stack:
        kernel_environment, notes = dict(os.environ), [EMULATOR_NOTE]
        if data is None:
            notes.append(_SYNTHETIC_NOTE)
        if encoders := pretrained_encoders(experiments, search=search):
            from launch.emulator.hub import Hub

            hub = stack.enter_context(Hub(out / "hub", encoders=encoders, fetched=WEIGHTS_FOLDER))
            kernel_environment |= hub.environment()
            notes += [
                f"The weights of {encoder} are real ImageNet weights, from the package {package}."
                for encoder, package in hub.packaged.items()
            ]
            if hub.random:
                notes.append(
                    f"The weights of {', '.join(hub.random)} were random numbers instead of pretrained ones: "
                    "the scores say nothing about pretraining."
                )
        kaggle = EmulatedKaggle(
            out / "kaggle",
            data=folder,
            labels=labels,
            owner=owner,
            token=f"KGAT_{secrets.token_hex(16)}",
            settings=_SETTINGS,
            faults=faults,
            environ=kernel_environment,
        )
        for name, path in attached.items():
            kaggle.datasets.attach(name.split("/")[1], path)
        server = stack.enter_context(Server(kaggle))
        stack.enter_context(_environment(server.environment()))
        (out / "campaign").mkdir(exist_ok=True)
        write_atomic(out / "campaign" / REHEARSAL_NOTES, json.dumps(notes))
        spec = CampaignSpec(
            experiments=tuple(experiments),
            owner=owner,
            folds=None if folds is None else tuple(folds),
            datasets=tuple(attached),
            thin=thin,
            average=average,
            search=search,
        )
        options = RunOptions(
            folder=out / "campaign",
            name=campaign_name(experiments),
            search_only=search is not None,
            timeouts=EMULATOR_TIMEOUTS,
        )
        try:
            result = run(spec, options, connect=lambda: connect(_RETRY_POLICY), started=started)
        finally:
            requests = out / "kaggle" / "requests.jsonl"
            if requests.is_file() and options.folder.is_dir():
                shutil.copyfile(requests, options.folder / requests.name)
    write_atomic(out / _FINISHED, "the next rehearsal starts from an empty campaign\n")
    return result


def serve(*, port: int, data: Path | None, faults: Sequence[Fault], out: Path, owner: str) -> None:
    """Serve the emulated Kaggle until Ctrl-C; its state is kept in `out` for the next call."""
    with campaign_lock(out, name=_LOCK):
        folder, labels = _competition_folder(out, data=data, tiles=None, seed=2018)
        token_file = out / "token"
        if not token_file.is_file():
            write_atomic(token_file, f"KGAT_{secrets.token_hex(16)}")
        kaggle = EmulatedKaggle(
            out / "kaggle",
            data=folder,
            labels=labels,
            owner=owner,
            token=token_file.read_text(encoding="utf-8").strip(),
            settings=_SETTINGS,
            faults=faults,
        )
        with Server(kaggle, port=port) as server:
            logger.info(
                "an emulated Kaggle on port %d, account %s. In another terminal run:", server.port, owner
            )
            for name, value in server.environment().items():
                logger.info("export %s='%s'", name, value)
            with contextlib.suppress(KeyboardInterrupt):
                while True:
                    time.sleep(3600)
    logger.info("stopped; the same command serves the same state again")


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set the environment variables that point the Kaggle client at the emulator; restore them afterwards."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _remove_other_rehearsal(out: Path, identity: str) -> None:
    """Remove a rehearsal that finished, or that had another identity; keep one to resume."""
    identity_file = out / _IDENTITY
    same = identity_file.is_file() and identity_file.read_text(encoding="utf-8") == identity
    if not same or (out / _FINISHED).is_file():
        if (out / "campaign").is_dir():
            logger.info("removing the earlier rehearsal in %s (use another --out to keep it)", out)
        for part in ("kaggle", "campaign"):
            shutil.rmtree(out / part, ignore_errors=True)
        (out / _FINISHED).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(identity_file, identity)


def _competition_folder(
    out: Path, *, data: Path | None, tiles: int | None, seed: int
) -> tuple[Path, Path | None]:
    """The competition's folder for the kernels: synthetic tiles, all given tiles, or a sample of them.

    Returns:
        The folder, and a table of the test tiles' labels (id,label), or None where these labels are unknown.
    """
    if data is not None and not (data / "train_labels.csv").is_file():
        raise LaunchError(f"--data {data}: not a folder in competition layout (train_labels.csv is missing)")
    if data is None:
        from launch.emulator.synthetic_tiles import write_competition

        labelled = tiles or 1000
        folder = out / f"synthetic-{labelled}-{seed}"
        labels = folder.with_suffix(".held-back.csv")
        if not folder.is_dir():
            logger.info(
                "making %s labelled and %s test tiles (synthetic)", f"{labelled:,}", f"{labelled // 4:,}"
            )
            out.mkdir(parents=True, exist_ok=True)
            write_competition(
                folder, labelled=labelled, unlabelled=max(2, labelled // 4), seed=seed, held_back=labels
            )
        return folder, labels
    if tiles is None:
        return data, None
    return _sample_competition(data, out / f"sample-{tiles}-{seed}", tiles=tiles, seed=seed)


def _sample_competition(data: Path, folder: Path, *, tiles: int, seed: int) -> tuple[Path, Path | None]:
    """Write a stratified sample of the labelled tiles, and a quarter as many test tiles, as a new folder.

    The test tiles are other labelled tiles where there are enough: then their labels are known and the
    emulator can score the submission. Otherwise they come from the test folder and the submission gets no
    score.
    """
    from lib.data.competition import CompetitionError, read_competition

    try:
        competition = read_competition(data, expect_full=False)
    except CompetitionError as error:
        raise LaunchError(str(error)) from error
    train = competition.train
    if tiles >= len(train):
        return data, None
    logger.info("taking a stratified sample of %s of %s labelled tiles", f"{tiles:,}", f"{len(train):,}")
    generator = np.random.default_rng(seed)
    share = tiles / len(train)
    positives = max(1, round(share * int(train["label"].sum())))
    negatives = max(1, tiles - round(share * int(train["label"].sum())))
    samples = []
    for label, group in train.groupby("label"):
        count = positives if label else negatives
        samples.append(group.iloc[np.sort(generator.permutation(len(group))[:count])])
    sample = pd.concat(samples).sort_values("id")
    test_count = max(2, tiles // 4)
    rest = train[~train["id"].isin(sample["id"])]
    held_back = _sample_held_back(rest, count=test_count, generator=generator)
    if held_back is not None:
        test_ids, test_source = held_back["id"].tolist(), "train"
    else:
        order = generator.permutation(len(competition.test_ids))
        test_ids = [competition.test_ids[index] for index in sorted(order[:test_count])]
        test_source = "test"
    part, labels = folder.with_name(f".{folder.name}.part"), folder.with_suffix(".held-back.csv")
    shutil.rmtree(part, ignore_errors=True)
    for name, source, ids in (("train", "train", sample["id"]), ("test", test_source, test_ids)):
        (part / name).mkdir(parents=True)
        for tile in ids:
            link_or_copy(str(data / source / f"{tile}.tif"), str(part / name / f"{tile}.tif"))
    submission = pd.DataFrame({"id": test_ids, "label": 0})
    sample.to_csv(part / "train_labels.csv", index=False, lineterminator="\n")
    submission.to_csv(part / "sample_submission.csv", index=False, lineterminator="\n")
    if held_back is not None:
        write_atomic(labels, held_back[["id", "label"]].to_csv(index=False, lineterminator="\n"))
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    return folder, labels if held_back is not None else None


def _without_held_back(
    attached: Mapping[str, Path], out: Path, *, maps: Collection[str], labels: Path | None
) -> dict[str, Path]:
    """The attached folders, with tile-to-slide maps that do not name the rehearsal's own test tiles.

    A map of all labelled tiles is right. Some of them are test tiles of the rehearsal, and prepare refuses a
    map that names test tiles.

    Args:
        attached: folders by owner/slug.
        out: for the copies of folders that hold such a map.
        maps: the names of the maps.
        labels: a table of the labelled tiles that are test tiles here; None where there are none.
    """
    shutil.rmtree(out, ignore_errors=True)
    if labels is None or not maps:
        return dict(attached)
    held_back = set(pd.read_csv(labels, dtype=str)["id"])
    changed = dict(attached)
    for slug, folder in attached.items():
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        if not any(path.name in maps for path in files):
            continue
        changed[slug] = out / slug
        for path in files:
            target = changed[slug] / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            lines = path.read_bytes().splitlines(keepends=True) if path.name in maps else []
            kept = [line for line in lines if not held_back & _fields(line)]
            if len(kept) < len(lines):
                target.write_bytes(b"".join(kept))
                logger.info("%s: left out the %s test tiles", path.name, f"{len(lines) - len(kept):,}")
            else:
                link_or_copy(str(path), str(target))
    return changed


def _fields(line: bytes) -> set[str]:
    """The fields of a line of a CSV file, without quotes."""
    return {field.strip().strip('"') for field in line.decode("utf-8", errors="replace").split(",")}


def _sample_held_back(
    rest: pd.DataFrame, *, count: int, generator: np.random.Generator
) -> pd.DataFrame | None:
    """Labelled tiles of both labels that nothing is trained on; None where there are too few."""
    if len(rest) < count:
        return None
    sample = rest.iloc[sorted(generator.permutation(len(rest))[:count])].sort_values("id")
    return sample if sample["label"].nunique() == 2 else None
