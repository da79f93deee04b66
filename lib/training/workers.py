"""Train a fold on all GPUs: one member per GPU, or one member on all GPUs.

One GPU, or a CPU, trains in this process. For more, a supervisor starts `python -m lib.training.workers` once
per GPU and shares its one copy of the tiles with them. When a worker fails, the supervisor ends the others
and raises the first failure. When a worker runs out of memory, the workers of the same member restart from
the last whole epoch: without the tiles in device memory if they were there, then with half as many tiles per
pass. Under torchrun all processes exist already, and train
one member after the other together.
"""

import json
import logging
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
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.distributed as dist

from lib.config import Config, config_from_dict
from lib.data.device_memory import TilesInTheWay, is_out_of_memory
from lib.data.shared_memory import SharedMemory, map_shared
from lib.errors import KernelError
from lib.runtime.run_record import RECORD_NAME
from lib.runtime.session import log_to_stdout
from lib.training.algorithms import select_algorithms
from lib.training.distributed import DistributedContext
from lib.training.fold import (
    FoldTask,
    MemberFiles,
    collect_outputs,
    double_grad_accum_steps,
    is_finished,
    train_member,
)

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.2  # between two polls of the workers
_SETTLE_SECONDS = 0.5  # for the other workers to fail, too, so that the first failure can be found
# Exit codes of a worker: restart with smaller passes, or with the tiles in host memory.
_OUT_OF_MEMORY, _TILES_IN_THE_WAY = 77, 78
_COLLECTIVE_TIMEOUT = timedelta(minutes=30)  # the other ranks wait while rank 0 predicts and writes
_TRACEBACK = 6000  # characters of it that are shown


class FoldInputError(KernelError):
    """The fold does not exist."""


class WorkerError(KernelError):
    """A worker failed; the message is the worker's own.

    Attributes:
        kinds: names of the error's class and of its base classes; empty when the worker left no message.
    """

    def __init__(self, message: str, kinds: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.kinds = tuple(kinds)


@dataclass
class WorkerGroup:
    """The worker processes that train the same members, one member at a time, one process per device."""

    devices: list[torch.device]
    members: list[int] = field(default_factory=list)
    grad_accum_steps: int = 1
    tiles_on: str = ""  # instead of the config's
    module: str = __name__  # that the processes run
    attempt: int = 0
    processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def end(self) -> None:
        """Kill the processes that still run."""
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
    invalidate_record: Callable[[], None],
    started: float | None = None,
) -> tuple[dict[str, bool], dict[str, Any]] | None:
    """Train the members of a fold that are not finished yet.

    Args:
        task: the fold.
        folder: for the files; an earlier run's unfinished work in it is resumed.
        devices: to compute on.
        invalidate_record: called before the first file that readers trust is written.
        started: start of the session on the monotonic clock, for the times in the workers' log.

    Returns:
        The names of the files, with whether to fetch them, and the scores for run.json; None in a process of
        torchrun other than rank 0, which writes.

    Raises:
        FoldInputError: there is no such fold.
        TrainingError: the loss is not finite; members finished before are intact.
        WorkerError: a worker failed.
    """
    config = task.config
    if not 0 <= task.fold < config.num_folds:
        raise FoldInputError(f"fold {task.fold} does not exist: there are folds 0 to {config.num_folds - 1}")
    with (
        select_algorithms(devices[0], deterministic=config.deterministic),
        _torchrun(devices) as torchrun,
    ):
        processes = torchrun.size if torchrun else len(devices) if config.ddp else 1  # per member
        to_train = []
        for member in range(config.num_members):
            if is_finished(task, member, folder=folder, processes=processes):
                logger.info("%s, member %d: finished before, not trained again", task.name, member)
            else:
                to_train.append(member)
        if config.ddp:
            assignments = [(list(devices), to_train)]
        else:
            assignments = [
                ([device], to_train[index :: len(devices)]) for index, device in enumerate(devices)
            ]
        assignments = [(group, members) for group, members in assignments if members]
        if torchrun or (len(assignments) < 2 and processes == 1):
            context = torchrun or DistributedContext(device=devices[0])
            for number, member in enumerate(to_train):
                train_member(
                    task,
                    member,
                    folder=folder,
                    context=context,
                    invalidate_record=invalidate_record,
                    members_left=len(to_train) - number,
                )
        else:
            groups = [WorkerGroup(group, members, config.grad_accum_steps) for group, members in assignments]
            _supervise(task, groups, folder=folder, started=started)
        if torchrun and torchrun.rank:
            return None
    return collect_outputs(task, folder=folder)


def train_in_subprocess(
    task: FoldTask,
    *,
    folder: Path,
    device: torch.device,
    started: float,
    concurrent: int,
    stop: threading.Event,
) -> None:
    """Train a fold of one member in a process of its own, while other threads train other folds.

    Each training needs its own process, because torch has one global random generator per process. A failed
    training also leaves nothing behind on its GPU.

    Args:
        task: the fold, with `num_members = 1` and its tiles in shared memory.
        folder: for the files.
        device: to compute on.
        started: start of the session on the monotonic clock, for the times in the worker's log.
        concurrent: number of trainings that run at a time; they share the CPU cores.
        stop: the worker is ended when this is set.

    Raises:
        TrainingError: two tiles do not fit the device's memory.
        WorkerError: the worker failed, or was ended.
    """
    assert task.config.num_members == 1
    if not is_finished(task, 0, folder=folder, processes=1):
        group = WorkerGroup([device], [0], task.config.grad_accum_steps)
        _supervise(task, [group], folder=folder, started=started, concurrent=concurrent, stop=stop)


def clear_progress(folder: Path, task: FoldTask) -> None:
    """Remove the unfinished states and finished notes, once run.json is written."""
    for member in range(task.config.num_members):
        files = MemberFiles(task.fold, member)
        (folder / files.finished).unlink(missing_ok=True)
        (folder / files.unfinished).unlink(missing_ok=True)
        (folder / files.unfinished_events).unlink(missing_ok=True)


# --- the supervisor -----------------------------------------------------------------------------------------


def _supervise(
    task: FoldTask,
    worker_groups: list[WorkerGroup],
    *,
    folder: Path,
    started: float | None,
    concurrent: int = 0,
    stop: threading.Event | None = None,
) -> None:
    """Start all workers and wait until all of them are done."""
    memory = task.memory
    if (
        memory is None
    ):  # the tiles are in memory of this process only: copy them (6 GB for the whole competition)
        memory = SharedMemory()
        memory.allocate(task.tiles.nbytes).reshape(task.tiles.shape)[...] = task.tiles
    with tempfile.TemporaryDirectory(prefix="workers-") as scratch_name:
        scratch = Path(scratch_name)
        table = task.index[["id", "label"]].assign(fold=task.folds)
        table.to_csv(scratch / "table.csv", index=False)
        shared = {
            "experiment": task.experiment,
            "config": task.config.to_dict(),
            "fold": task.fold,
            "shape": list(task.tiles.shape),
            "data_id": task.data_id,
            "fold_table_id": task.fold_table_id,
            "bundle_id": task.bundle_id,
            "extra_id": task.extra_id,
            "weights": {name: str(path.resolve()) for name, path in task.weights.items()},
            "deadline": None if math.isinf(task.deadline) else task.deadline,
            "reserved_tiles": task.reserved_tiles,
            "pause_after": task.pause_after,
            "log_prefix": task.log_prefix,
            "started": time.monotonic() if started is None else started,
            "folder": str(folder.resolve()),
            "workers": concurrent or sum(len(group.devices) for group in worker_groups),
        }
        (scratch / "task.json").write_text(json.dumps(shared))

        def use_less_memory(group: WorkerGroup) -> None:
            group.grad_accum_steps = double_grad_accum_steps(task, group.grad_accum_steps, len(group.devices))

        supervise(worker_groups, scratch, memory, use_less_memory=use_less_memory, stop=stop)


def supervise(
    worker_groups: Sequence[WorkerGroup],
    scratch: Path,
    memory: SharedMemory,
    *,
    use_less_memory: Callable[[WorkerGroup], None],
    stop: threading.Event | None = None,
) -> None:
    """Start all workers, and wait until all of them are done.

    Args:
        worker_groups: of new workers.
        scratch: a folder with the task, for what the workers leave to this process.
        memory: holds the tiles.
        use_less_memory: called before a group that ran out of memory is restarted; an exception ends all.
        stop: the workers are ended when this is set.

    Raises:
        WorkerError: a worker failed, or was ended.
    """
    try:
        for number, group in enumerate(worker_groups):
            _start(group, number, scratch, memory)
        while any(group.processes for group in worker_groups):
            time.sleep(_POLL_SECONDS)
            if stop is not None and stop.is_set():
                raise WorkerError("ended, because another worker failed")
            for number, group in enumerate(worker_groups):
                code = _poll(group, scratch)
                if not code:
                    continue
                if code == _TILES_IN_THE_WAY:
                    group.tiles_on = "host"
                    logger.info("the device's memory did not suffice: the tiles are not kept there any more")
                else:
                    use_less_memory(group)
                _start(group, number, scratch, memory)
    finally:
        for group in worker_groups:
            group.end()


def _poll(group: WorkerGroup, scratch: Path) -> int:
    """Check the exit codes of a group; that of a process that ran out of memory, or 0. It ends the group.

    Raises:
        WorkerError: a worker failed.
    """
    codes = [process.poll() for process in group.processes]
    if any(codes):  # the others may be about to fail because of it
        time.sleep(_SETTLE_SECONDS)
        codes = [process.poll() for process in group.processes]
    for out_of_memory in (_TILES_IN_THE_WAY, _OUT_OF_MEMORY):
        if out_of_memory in codes:
            group.end()
            return out_of_memory
    if any(code not in (None, 0) for code in codes):
        raise _first_failure(scratch, group, codes)
    if codes and all(code == 0 for code in codes):
        group.end()
        group.processes = []
    return 0


def _start(group: WorkerGroup, number: int, scratch: Path, memory: SharedMemory) -> None:
    """Start one process per device of a group."""
    group.attempt += 1
    library = Path(__file__).resolve().parents[2]
    group.processes = []
    for rank, device in enumerate(group.devices):
        arguments = {
            "group": number,
            "rank": rank,
            "size": len(group.devices),
            "device": str(device),
            "members": group.members,
            "grad_accum_steps": group.grad_accum_steps,
            "tiles_on": group.tiles_on,
            "store": str(scratch / f"store-{number}-{group.attempt}"),
            "tiles": memory.descriptor,
        }
        # The parent's PYTHONPATH, not its sys.path: pytest, a notebook or torchrun may have changed that.
        path = os.pathsep.join([str(library), os.environ.get("PYTHONPATH", "")]).rstrip(":")
        group.processes.append(
            subprocess.Popen(
                [sys.executable, "-m", group.module, str(scratch), json.dumps(arguments)],
                env={**os.environ, "PYTHONPATH": path},
                # The pipe closes when this process dies, for whatever reason: then the workers end
                # themselves.
                stdin=subprocess.PIPE,
                pass_fds=(memory.descriptor,),  # the worker maps the tiles through it: no second copy
            )
        )


def _first_failure(scratch: Path, group: WorkerGroup, codes: Sequence[int | None]) -> WorkerError:
    """The error of the worker that failed first; the others failed because of it."""
    for rank, code in enumerate(codes):
        if code is not None and code < 0:
            killed = f"the worker on {group.devices[rank]} was killed by signal {-code}"
            return WorkerError(f"{killed}: perhaps the machine ran out of memory", ["MemoryError"])
    failures = [json.loads(path.read_text()) for path in scratch.glob("failure-*.json")]
    if failures:
        first = min(failures, key=lambda failure: float(failure["time"]))
        return WorkerError(str(first["message"]), first["kinds"])
    code = next(code for code in codes if code)
    return WorkerError(f"a worker ended with exit code {code} and without a message")


# --- one worker ---------------------------------------------------------------------------------------------


def _work(scratch: Path, arguments: dict[str, Any]) -> None:
    """Train the members of this worker's group."""
    shared = json.loads((scratch / "task.json").read_text())
    log_to_stdout(shared["started"])
    config, device = config_from_dict(shared["config"]), torch.device(arguments["device"])
    if arguments["tiles_on"]:
        config = replace(config, tiles_on=arguments["tiles_on"])
    with select_algorithms(device, deterministic=config.deterministic):
        _train_group(scratch, arguments, shared, config=config, device=device)


def _train_group(
    scratch: Path,
    arguments: dict[str, Any],
    shared: dict[str, Any],
    *,
    config: Config,
    device: torch.device,
) -> None:
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // shared["workers"]))
    table = pd.read_csv(scratch / "table.csv", dtype={"id": str})
    task = FoldTask(
        experiment=shared["experiment"],
        config=config,
        fold=shared["fold"],
        tiles=map_shared(arguments["tiles"], tuple(shared["shape"])),
        index=table[["id", "label"]],
        folds=table["fold"].to_numpy(),
        data_id=shared["data_id"],
        fold_table_id=shared["fold_table_id"],
        bundle_id=shared["bundle_id"],
        extra_id=shared["extra_id"],
        weights={name: Path(path) for name, path in shared["weights"].items()},
        deadline=math.inf if shared["deadline"] is None else shared["deadline"],
        reserved_tiles=shared["reserved_tiles"],
        pause_after=shared["pause_after"],
        log_prefix=shared["log_prefix"],
    )
    context = DistributedContext(arguments["rank"], arguments["size"], device)
    folder = Path(shared["folder"])
    if context.size > 1:
        init_process_group(context, f"file://{arguments['store']}")
    to_train = [
        member
        for member in arguments["members"]
        if not is_finished(task, member, folder=folder, processes=context.size)
    ]
    for number, member in enumerate(to_train):
        train_member(
            task,
            member,
            folder=folder,
            context=context,
            invalidate_record=lambda: (folder / RECORD_NAME).unlink(missing_ok=True),
            grad_accum_steps=arguments["grad_accum_steps"],
            members_left=len(to_train) - number,
        )
    if context.size > 1:
        dist.barrier()
        dist.destroy_process_group()


def init_process_group(context: DistributedContext, init_method: str, *, share_gpu: bool = False) -> None:
    """Let the processes that train together find each other; NCCL on GPUs, gloo elsewhere.

    Args:
        context: this process among them.
        init_method: a URL of torch.distributed: where they meet.
        share_gpu: several of them compute on one GPU. They use gloo, because NCCL demands a GPU for each.
    """
    on_gpu = context.device.type == "cuda"
    if (share_gpu or not on_gpu) and sys.platform == "linux":
        # By loopback: gloo otherwise resolves the machine's own name, which may have no entry anywhere.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    backend = "nccl" if on_gpu and not share_gpu and dist.is_nccl_available() else "gloo"
    if on_gpu and backend == "gloo" and context.rank == 0:
        why = "several processes share a GPU" if share_gpu else "this torch has no NCCL"
        logger.warning("%s: the processes exchange gradients by gloo, which is slower", why)
    dist.init_process_group(
        backend,
        init_method=init_method,
        rank=context.rank,
        world_size=context.size,
        timeout=_COLLECTIVE_TIMEOUT,
    )


@contextmanager
def _torchrun(devices: Sequence[torch.device]) -> Iterator[DistributedContext | None]:
    """The process group of torchrun, which its environment variables describe; None without torchrun."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield None
        return
    rank, size, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    device = devices[local_rank % len(devices)]
    if device.type == "cuda":
        torch.cuda.set_device(device)
    context = DistributedContext(rank, size, device)
    share_gpu = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > len(devices)
    init_process_group(context, "env://", share_gpu=share_gpu)
    try:
        yield context
        dist.barrier()
    finally:
        dist.destroy_process_group()


def _end_with_parent() -> None:
    """Wait for the end of standard input, whose other end the parent holds, and end this process then."""
    sys.stdin.buffer.read()
    os._exit(1)


def run_worker(work: Callable[[Path, dict[str, Any]], None], scratch: Path, arguments: dict[str, Any]) -> int:
    """Do the work of a worker process; the exit code. A failure is left in the scratch folder."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        work(scratch, arguments)
    except TilesInTheWay:
        return _TILES_IN_THE_WAY
    except Exception as error:
        if is_out_of_memory(error):
            return _OUT_OF_MEMORY
        if isinstance(error, KernelError):
            message = str(error)
        else:
            message = f"the worker on {arguments['device']} failed:\n{traceback.format_exc()[-_TRACEBACK:]}"
        failure = {
            "time": time.monotonic(),
            "message": message,
            "kinds": [kind.__name__ for kind in type(error).__mro__],
        }
        path = scratch / f"failure-{arguments['group']}-{arguments['rank']}.json"
        path.write_text(json.dumps(failure))
        return 1
    return 0


if __name__ == "__main__":
    os._exit(run_worker(_work, Path(sys.argv[1]), json.loads(sys.argv[2])))
