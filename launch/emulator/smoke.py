"""`smoke`: the campaign of `run`, by the same code and the real client, against an emulated Kaggle."""

import contextlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from launch.campaign.commands import Result, run
from launch.campaign.ledger import campaign_lock
from launch.campaign.report import EMULATOR_NOTE, REHEARSAL_NOTES
from launch.campaign.spec import CampaignSpec, RunOptions, campaign_name
from launch.campaign.waits import REHEARSAL
from launch.emulator.account import Settings
from launch.emulator.faults import Fault
from launch.emulator.kaggle import EmulatedKaggle
from launch.emulator.server import Server
from launch.errors import LaunchError
from launch.kaggle_api.calls import RetryPolicy
from launch.kaggle_api.client import connect
from launch.local import WEIGHTS_FOLDER, attached_datasets, link_or_copy
from launch.packaging.builder import read_source
from launch.plan import Experiment, searched_encoders, with_teachers
from launch.sandbox import isolation
from lib.files import write_atomic
from lib.search_space import SearchSpace

_FINISHED = "finished"  # the note that a rehearsal came to its end, so that the next one starts anew
_LOCK = "rehearsal.lock"
_IDENTITY = "identity.json"  # what the rehearsal is of; another one starts anew
_PATIENCE = RetryPolicy(call_timeout=60.0, upload_timeout=300.0, attempts=5, delay=0.2, max_delay=2.0)
# A new version of a dataset is mounted some seconds after its upload returned; a score takes a moment.
_SETTINGS = Settings(dataset_delay=2.0, score_delay=0.5)


def smoke(
    experiments: Sequence[Experiment],
    *,
    data: Path | None,
    tiles: int | None,
    out: Path,
    attach: Sequence[Path] = (),
    thin: bool = False,
    average: str = "mean",
    search: SearchSpace | None = None,
    faults: Sequence[Fault] = (),
    owner: str,
    say: Callable[[str], None],
) -> Result:
    """Rehearse a campaign: drawn tiles, or a part of a folder in competition layout.

    A run that was interrupted goes on; one that came to its end is followed by a fresh one.

    Args:
        experiments: to rehearse; several are averaged.
        data: a folder in competition layout; None draws tiles.
        tiles: labelled tiles to take or to draw.
        out: where everything is left.
        attach: folders the kernels see as datasets.
        thin: kernels that import the library from the dataset.
        average: how inference averages members: mean, logit or rank.
        search: rehearse this search, and nothing else but what it reads.
        faults: what the emulated Kaggle shall do wrong, and when.
        owner: the account's name.
        say: takes a line.

    Raises:
        LaunchError: something failed; the message says what and what to do.
    """
    with campaign_lock(out, name=_LOCK):  # before anything of an earlier rehearsal is cleared away
        return _rehearse(
            experiments,
            data=data,
            tiles=tiles,
            out=out,
            attach=attach,
            thin=thin,
            average=average,
            search=search,
            faults=faults,
            owner=owner,
            say=say,
        )


def _rehearse(
    experiments: Sequence[Experiment],
    *,
    data: Path | None,
    tiles: int | None,
    out: Path,
    attach: Sequence[Path],
    thin: bool,
    average: str,
    search: SearchSpace | None,
    faults: Sequence[Fault],
    owner: str,
    say: Callable[[str], None],
) -> Result:
    started = time.monotonic()
    folder, labels = _competition_folder(
        out, data=data, tiles=tiles, seed=experiments[0].config.seed, say=say
    )
    attached = attached_datasets(attach, owner)
    identity = {
        "bundle": read_source(owner=owner).bundle,
        "experiment": {experiment.name: experiment.config.to_dict() for experiment in experiments},
        "data": str(folder.resolve()),
        "attached": {name: str(path.resolve()) for name, path in attached.items()},
        "thin": thin,
        "search": None if search is None else search.to_dict(),
    }
    _start_anew_if_needed(out, json.dumps(identity, sort_keys=True), say=say)
    say(f"rehearsal in {out}: the kernels are isolated by {isolation()}")
    with ExitStack() as stack:
        environment, notes = dict(os.environ), [EMULATOR_NOTE]
        if data is None:
            notes.append(
                "Its tiles were drawn by the project: no tissue, no patients; its scores say nothing about real tiles."
            )
        encoders = [
            each.config.backbone for each in with_teachers(experiments) if each.config.weights == "timm"
        ]
        if search is not None:
            encoders += searched_encoders(search, experiments[0].config)
        if encoders:
            from launch.emulator.hub import Hub

            hub = stack.enter_context(Hub(out / "hub", encoders=encoders, fetched=WEIGHTS_FOLDER, say=say))
            environment |= hub.environment()
            if hub.random:
                lead = f"The weights of {', '.join(hub.random)} were random numbers in the place of pretrained ones"
                notes.append(f"{lead}: nothing here tells what pretraining is worth.")
        kaggle = EmulatedKaggle(
            out / "kaggle",
            data=folder,
            labels=labels,
            owner=owner,
            token=f"KGAT_{secrets.token_hex(16)}",
            settings=_SETTINGS,
            faults=faults,
            environ=environment,
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
            datasets=tuple(attached),
            thin=thin,
            average=average,
            search=search,
        )
        options = RunOptions(
            folder=out / "campaign",
            name=campaign_name(experiments),
            search_only=search is not None,
            timeouts=REHEARSAL,
        )
        try:
            result = run(spec, options, connect=lambda: connect(_PATIENCE), started=started)
        finally:
            requests = out / "kaggle" / "requests.jsonl"
            if requests.is_file() and options.folder.is_dir():
                shutil.copyfile(requests, options.folder / requests.name)
    write_atomic(out / _FINISHED, "the next rehearsal starts anew\n")
    return result


def serve(
    *,
    port: int,
    data: Path | None,
    faults: Sequence[Fault],
    out: Path,
    owner: str,
    say: Callable[[str], None],
) -> None:
    """Serve the emulated Kaggle until it is interrupted; what it holds is kept in `out` and served again next time."""
    with campaign_lock(out, name=_LOCK):
        folder, labels = _competition_folder(out, data=data, tiles=None, seed=2018, say=say)
        note = out / "token"
        if not note.is_file():
            write_atomic(note, f"KGAT_{secrets.token_hex(16)}")
        kaggle = EmulatedKaggle(
            out / "kaggle",
            data=folder,
            labels=labels,
            owner=owner,
            token=note.read_text(encoding="utf-8").strip(),
            settings=_SETTINGS,
            faults=faults,
        )
        with Server(kaggle, port=port) as server:
            say(f"an emulated Kaggle on port {server.port}, account {owner}. In another terminal:")
            for name, value in server.environment().items():
                say(f"export {name}='{value}'")
            with contextlib.suppress(KeyboardInterrupt):
                while True:
                    time.sleep(3600)
    say("stopped; the same command goes on with what it holds")


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Point the client, which reads the environment, at the loopback; everything as before afterwards."""
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


def _start_anew_if_needed(out: Path, identity: str, *, say: Callable[[str], None]) -> None:
    note = out / _IDENTITY
    same = note.is_file() and note.read_text(encoding="utf-8") == identity
    if not same or (out / _FINISHED).is_file():
        if (out / "campaign").is_dir():
            say(f"starting anew: what an earlier rehearsal left in {out} is removed (another --out keeps it)")
        for part in ("kaggle", "campaign"):
            shutil.rmtree(out / part, ignore_errors=True)
        (out / _FINISHED).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(note, identity)


def _competition_folder(
    out: Path, *, data: Path | None, tiles: int | None, seed: int, say: Callable[[str], None]
) -> tuple[Path, Path | None]:
    """The folder the kernels see as the competition: drawn, given, or a stratified part of what was given.

    Returns:
        The folder, and a table of the labels that were held back (id,label), or None where nobody holds them.
    """
    if data is not None and not (data / "train_labels.csv").is_file():
        raise LaunchError(f"--data {data}: no folder in competition layout (it holds no train_labels.csv)")
    if data is None:
        from launch.emulator.synthetic_tiles import write_competition

        labelled = tiles or 1000
        folder = out / f"drawn-{labelled}-{seed}"
        labels = folder.with_suffix(".held-back.csv")
        if not folder.is_dir():
            say(f"drawing {labelled:,} labelled and {labelled // 4:,} test tiles (synthetic, H&E-like)")
            out.mkdir(parents=True, exist_ok=True)
            write_competition(
                folder, labelled=labelled, unlabelled=max(2, labelled // 4), seed=seed, held_back=labels
            )
        return folder, labels
    if tiles is None:
        return data, None
    return _take_part(data, out / f"part-{tiles}-{seed}", tiles=tiles, seed=seed, say=say)


def _take_part(
    data: Path, folder: Path, *, tiles: int, seed: int, say: Callable[[str], None]
) -> tuple[Path, Path | None]:
    """A stratified part of the labelled tiles, and a quarter as many others as test tiles, in competition layout.

    The test tiles are labelled ones, too, as long as there are enough: their labels are held back, so that the rehearsal
    can score a submission. Where there are not, tiles of the test folder are taken, which nobody can score.
    """
    from lib.data.competition import CompetitionError, read_competition

    try:
        competition = read_competition(data, expect_full=False)
    except CompetitionError as error:
        raise LaunchError(str(error)) from error
    train = competition.train
    if tiles >= len(train):
        return data, None
    say(f"taking {tiles:,} of {len(train):,} labelled tiles of {data}, stratified")
    generator = np.random.default_rng(seed)
    share = tiles / len(train)
    parts = []
    for label, group in train.groupby("label"):
        count = (
            max(1, round(share * len(group)))
            if label
            else max(1, tiles - round(share * int(train["label"].sum())))
        )
        parts.append(group.iloc[np.sort(generator.permutation(len(group))[:count])])
    chosen = pd.concat(parts).sort_values("id")
    held_back = _held_back(
        train[~train["id"].isin(chosen["id"])], count=max(2, tiles // 4), generator=generator
    )
    if held_back is not None:
        test, part_of_test = held_back["id"].tolist(), "train"
    else:
        wanted = min(len(competition.test_ids), max(2, tiles // 4))
        test = [
            competition.test_ids[at]
            for at in sorted(generator.permutation(len(competition.test_ids))[:wanted])
        ]
        part_of_test = "test"
    beside, labels = folder.with_name(f".{folder.name}.part"), folder.with_suffix(".held-back.csv")
    shutil.rmtree(beside, ignore_errors=True)
    for name, source, ids in (("train", "train", chosen["id"]), ("test", part_of_test, test)):
        (beside / name).mkdir(parents=True)
        for tile in ids:
            link_or_copy(str(data / source / f"{tile}.tif"), str(beside / name / f"{tile}.tif"))
    chosen.to_csv(beside / "train_labels.csv", index=False, lineterminator="\n")
    pd.DataFrame({"id": test, "label": 0}).to_csv(
        beside / "sample_submission.csv", index=False, lineterminator="\n"
    )
    if held_back is not None:
        write_atomic(labels, held_back[["id", "label"]].to_csv(index=False, lineterminator="\n"))
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)
    return folder, labels if held_back is not None else None


def _held_back(rest: pd.DataFrame, *, count: int, generator: np.random.Generator) -> pd.DataFrame | None:
    """Labelled tiles that are not trained on, of both labels; None where there are too few."""
    if len(rest) < count:
        return None
    chosen = rest.iloc[sorted(generator.permutation(len(rest))[:count])].sort_values("id")
    return chosen if chosen["label"].nunique() == 2 else None
