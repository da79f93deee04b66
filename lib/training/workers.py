"""A fold on all the cards there are: one member a card, or all cards on one member.

One card, or a CPU, trains in this process. For more, a supervisor starts `python -m lib.training.workers` once a card, lends
all of them its one copy of the tiles, and waits: when one fails it ends the others and shows that first failure; when one runs
out of memory those that train the same member begin again from the last whole epoch with half as many tiles a pass. Under
torchrun every process is already there, and all of them train one member after the other together.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.distributed as dist

from lib.config import config_from_dict
from lib.data.shared_memory import SharedMemory, map_shared
from lib.errors import KernelError
from lib.runtime.run_record import RECORD_NAME
from lib.training.distributed import DistributedContext
from lib.training.fold import FoldTask, MemberFiles, collect, is_finished, more_passes, train_member

_LOOK_EVERY = 0.2  # seconds between looks at the workers
_SETTLE = 0.5  # seconds
_OUT_OF_MEMORY = 77  # a worker's exit code: begin again with smaller passes
_PATIENCE = timedelta(minutes=30)  # for the others: rank 0 may predict and write while they wait
_TRACEBACK = 6000  # characters of it that are shown


class FoldInputError(KernelError):
    """The fold asked for does not exist."""


class WorkerError(KernelError):
    """A worker failed; the message is what it said.

    Attributes:
        kinds: the names of the error's class and of those it is derived from; empty when it said nothing.
    """

    def __init__(self, said: str, kinds: Sequence[str] = ()) -> None:
        super().__init__(said)
        self.kinds = tuple(kinds)


@dataclass
class _WorkerGroup:
    """The workers of one member at a time."""

    devices: list[torch.device]
    members: list[int]
    passes: int
    attempt: int = 0
    processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def end(self) -> None:
        """Kill those that are left."""
        for process in self.processes:
            process.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()


def train_fold(
    task: FoldTask,
    *,
    folder: Path,
    devices: Sequence[torch.device],
    say: Callable[[str], None],
    replace: Callable[[], None],
    started: float | None = None,
) -> tuple[dict[str, bool], dict[str, Any]] | None:
    """Train what is not finished yet of a fold.

    Args:
        task: the fold.
        folder: takes the files; work that an earlier run left there is taken up.
        devices: to compute on.
        say: takes a line of progress.
        replace: called before the first file that readers trust is written.
        started: on the monotonic clock, for the time that workers print.

    Returns:
        The names of the files, with whether to fetch them, and the scores for run.json; None where torchrun started this
        process and another one writes.

    Raises:
        FoldInputError: there is no such fold.
        TrainingError: the loss is not finite; what was finished before is intact.
        WorkerError: a worker failed.
    """
    config = task.config
    if not 0 <= task.fold < config.num_folds:
        raise FoldInputError(f"fold {task.fold} does not exist: there are folds 0 to {config.num_folds - 1}")
    with _torchrun(devices) as world:
        together = world.size if world else len(devices) if config.ddp else 1
        todo = []
        for member in range(config.num_members):
            if is_finished(task, member, folder=folder, processes=together):
                say(f"fold {task.fold}, member {member}: finished before, not done again")
            else:
                todo.append(member)
        crews = (
            [(list(devices), todo)]
            if config.ddp
            else [([d], todo[at :: len(devices)]) for at, d in enumerate(devices)]
        )
        crews = [crew for crew in crews if crew[1]]
        if world or len(crews) < 2 and together == 1:
            lone = world or DistributedContext(device=devices[0])
            for number, member in enumerate(todo):
                quiet = say if lone.rank == 0 else lambda text: None
                left = len(todo) - number
                train_member(
                    task, member, folder=folder, world=lone, say=quiet, replace=replace, members_left=left
                )
        else:
            _supervise(
                task,
                [_WorkerGroup(*crew, config.grad_accum_steps) for crew in crews],
                folder=folder,
                say=say,
                started=started,
            )
        if world and world.rank:
            return None
    return collect(task, folder=folder)


def train_apart(
    task: FoldTask,
    *,
    folder: Path,
    device: torch.device,
    say: Callable[[str], None],
    label: str,
    started: float,
    beside: int,
    stop: threading.Event,
) -> None:
    """Train a fold of one member in a process of its own, while other threads train others beside it.

    A process each, because the seed of the first weights is one a process; and whatever becomes of it leaves nothing behind.

    Args:
        task: the fold, with `num_members = 1` and its tiles in memory that is shared.
        folder: takes the files.
        device: to compute on.
        say: takes a line of progress of this process.
        label: what the worker's own lines begin with.
        started: on the monotonic clock, for the time that the worker prints.
        beside: how many processes are at work at a time; they share the cores.
        stop: when it is set the worker is ended.

    Raises:
        TrainingError: the device is too small for two tiles.
        WorkerError: the worker failed, or was ended.
    """
    assert task.config.num_members == 1
    if not is_finished(task, 0, folder=folder, processes=1):
        crew = _WorkerGroup([device], [0], task.config.grad_accum_steps)
        _supervise(
            task, [crew], folder=folder, say=say, started=started, label=label, beside=beside, stop=stop
        )


def clear_progress(folder: Path, task: FoldTask) -> None:
    """Remove the notes about progress, once run.json stands for the whole."""
    for member in range(task.config.num_members):
        files = MemberFiles(task.fold, member)
        (folder / files.finished).unlink(missing_ok=True)
        (folder / files.unfinished).unlink(missing_ok=True)


# --- the supervisor --------------------------------------------------------------------------------------------------


def _supervise(
    task: FoldTask,
    crews: list[_WorkerGroup],
    *,
    folder: Path,
    say: Callable[[str], None],
    started: float | None,
    label: str = "",
    beside: int = 0,
    stop: threading.Event | None = None,
) -> None:
    memory = task.memory
    if memory is None:  # the tiles lie elsewhere: one more copy
        memory = SharedMemory()
        memory.allocate(task.tiles.nbytes).reshape(task.tiles.shape)[...] = task.tiles
    with tempfile.TemporaryDirectory(prefix="workers-") as scratch:
        place = Path(scratch)
        table = task.index[["id", "label"]].assign(fold=task.folds)
        table.to_csv(place / "table.csv", index=False)
        facts = {
            "experiment": task.experiment,
            "config": task.config.to_dict(),
            "fold": task.fold,
            "shape": list(task.tiles.shape),
            "data_id": task.data_id,
            "fold_table_id": task.fold_table_id,
            "bundle_id": task.bundle_id,
            "extra_id": task.extra_id,
            "weights": {name: str(path.resolve()) for name, path in task.weights.items()},
            "until": None if math.isinf(task.until) else task.until,
            "started": time.monotonic() if started is None else started,
            "folder": str(folder.resolve()),
            "workers": beside or sum(len(crew.devices) for crew in crews),
            "label": label,
        }
        (place / "task.json").write_text(json.dumps(facts))
        try:
            for number, crew in enumerate(crews):
                _start(crew, number, place, memory)
            while any(crew.processes for crew in crews):
                time.sleep(_LOOK_EVERY)
                if stop is not None and stop.is_set():
                    raise WorkerError("ended, because another one failed")
                for number, crew in enumerate(crews):
                    codes = [process.poll() for process in crew.processes]
                    if any(
                        codes
                    ):  # the others may be about to fail because of it: let the cause come to light
                        time.sleep(_SETTLE)
                        codes = [process.poll() for process in crew.processes]
                    if any(code == _OUT_OF_MEMORY for code in codes):
                        crew.end()
                        crew.passes = more_passes(task, crew.passes, len(crew.devices), say)
                        _start(crew, number, place, memory)
                    elif any(code not in (None, 0) for code in codes):
                        raise _first_failure(place, crew, codes)
                    elif codes and all(code == 0 for code in codes):
                        crew.end()
                        crew.processes = []
        finally:
            for crew in crews:
                crew.end()


def _start(crew: _WorkerGroup, number: int, place: Path, memory: SharedMemory) -> None:
    crew.attempt += 1
    library = Path(__file__).resolve().parents[2]
    crew.processes = []
    for rank, device in enumerate(crew.devices):
        orders = {
            "crew": number,
            "rank": rank,
            "size": len(crew.devices),
            "device": str(device),
            "members": crew.members,
            "passes": crew.passes,
            "store": str(place / f"store-{number}-{crew.attempt}"),
            "tiles": memory.descriptor,
        }
        crew.processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "lib.training.workers", str(place), json.dumps(orders)],
                # The path is the parent's less what pytest, a notebook or torchrun put there.
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join([str(library), os.environ.get("PYTHONPATH", "")]).rstrip(
                        ":"
                    ),
                },
                stdin=subprocess.PIPE,  # closed when this process dies, whatever kills it: workers end themselves then
                pass_fds=(memory.descriptor,),
            )
        )


def _first_failure(place: Path, crew: _WorkerGroup, codes: Sequence[int | None]) -> WorkerError:
    """What the worker that failed first said; the others fail because it did."""
    for rank, code in enumerate(codes):
        if code is not None and code < 0:
            said = f"the worker on {crew.devices[rank]} was killed by signal {-code}: perhaps the machine ran out of memory"
            return WorkerError(said, ["MemoryError"])
    failures = [json.loads(path.read_text()) for path in place.glob("failure-*.json")]
    if failures:
        first = min(failures, key=lambda failure: float(failure["at"]))
        return WorkerError(str(first["said"]), first["kinds"])
    return WorkerError(
        f"a worker ended with exit code {next(code for code in codes if code)} and said nothing"
    )


# --- one worker ------------------------------------------------------------------------------------------------------


def _work(place: Path, orders: dict[str, Any]) -> None:
    facts = json.loads((place / "task.json").read_text())
    device = torch.device(orders["device"])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // facts["workers"]))
    table = pd.read_csv(place / "table.csv", dtype={"id": str})
    task = FoldTask(
        experiment=facts["experiment"],
        config=config_from_dict(facts["config"]),
        fold=facts["fold"],
        tiles=map_shared(orders["tiles"], tuple(facts["shape"])),
        index=table[["id", "label"]],
        folds=table["fold"].to_numpy(),
        data_id=facts["data_id"],
        fold_table_id=facts["fold_table_id"],
        bundle_id=facts["bundle_id"],
        extra_id=facts["extra_id"],
        weights={name: Path(path) for name, path in facts["weights"].items()},
        until=math.inf if facts["until"] is None else facts["until"],
    )
    world = DistributedContext(orders["rank"], orders["size"], device)
    folder = Path(facts["folder"])

    def say(text: str) -> None:
        if world.rank == 0:
            print(f"[{time.monotonic() - facts['started']:7.1f} s] {facts['label']}{text}", flush=True)

    if world.size > 1:
        _meet(world, f"file://{orders['store']}")
    todo = [
        member
        for member in orders["members"]
        if not is_finished(task, member, folder=folder, processes=world.size)
    ]
    for number, member in enumerate(todo):
        train_member(
            task,
            member,
            folder=folder,
            world=world,
            say=say,
            replace=lambda: (folder / RECORD_NAME).unlink(missing_ok=True),
            passes=orders["passes"],
            members_left=len(todo) - number,
        )
    if world.size > 1:
        dist.barrier()
        dist.destroy_process_group()


def _meet(world: DistributedContext, where: str) -> None:
    if world.device.type != "cuda" and sys.platform == "linux":
        os.environ.setdefault(
            "GLOO_SOCKET_IFNAME", "lo"
        )  # the machine's own name need not be known to any resolver
    backend = "nccl" if world.device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend, init_method=where, rank=world.rank, world_size=world.size, timeout=_PATIENCE
    )


@contextmanager
def _torchrun(devices: Sequence[torch.device]) -> Iterator[DistributedContext | None]:
    """The world that torchrun made, if it did: its environment says so."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield None
        return
    rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    device = devices[local % len(devices)]
    if device.type == "cuda":
        torch.cuda.set_device(device)
    world = DistributedContext(rank, size, device)
    _meet(world, "env://")
    try:
        yield world
        dist.barrier()
    finally:
        dist.destroy_process_group()


def _end_with_parent() -> None:
    """Wait for the end of standard input, which the parent holds, and end this process with it."""
    sys.stdin.buffer.read()
    os._exit(1)


def _main(place: Path, orders: dict[str, Any]) -> int:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _work(place, orders)
    except torch.OutOfMemoryError:
        return _OUT_OF_MEMORY
    except Exception as error:
        shown = str(error) if isinstance(error, KernelError) else traceback.format_exc()[-_TRACEBACK:]
        said = (
            shown if isinstance(error, KernelError) else f"the worker on {orders['device']} failed:\n{shown}"
        )
        note = {
            "at": time.monotonic(),
            "said": said,
            "kinds": [each.__name__ for each in type(error).__mro__],
        }
        (place / f"failure-{orders['crew']}-{orders['rank']}.json").write_text(json.dumps(note))
        return 1
    return 0


if __name__ == "__main__":
    os._exit(_main(Path(sys.argv[1]), json.loads(sys.argv[2])))
