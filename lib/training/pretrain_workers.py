"""Pretrain on all GPUs: one process for each, which all train the same encoder.

One GPU, or a CPU, pretrains in this process. For more, a supervisor starts `python -m
lib.training.pretrain_workers` once per GPU and shares its one copy of the tiles with them. When one fails,
the supervisor ends the others and raises the first failure. When one runs out of memory with the tiles in
that of its device, all restart without.
"""

import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from lib.config import config_from_dict
from lib.data.shared_memory import SharedMemory, map_shared
from lib.runtime.run_record import RECORD_NAME
from lib.runtime.session import log_to_stdout
from lib.training.barlow_twins import USE_SMALLER_BATCHES, PretrainTask, pretrain
from lib.training.distributed import DistributedContext
from lib.training.workers import WorkerError, WorkerGroup, init_process_group, run_worker, supervise

_RESULT = "result.json"


def pretrain_on_all(
    task: PretrainTask,
    *,
    memory: SharedMemory,
    folder: Path,
    devices: Sequence[torch.device],
    invalidate_record: Callable[[], None],
    started: float,
) -> tuple[list[str], dict[str, Any]]:
    """Pretrain the backbone on all devices, see `pretrain`.

    Args:
        task: tiles and options.
        memory: holds the tiles.
        folder: for the files.
        devices: of one kind.
        invalidate_record: called before the first file that readers trust is written.
        started: start of the session on the monotonic clock, for the times in the log.

    Returns:
        The names of the files, and the scores for run.json.

    Raises:
        TrainingError: in this process, see `pretrain`.
        WorkerError: a process failed.
    """
    if len(devices) == 1:
        context = DistributedContext(device=devices[0])
        return pretrain(task, folder=folder, context=context, invalidate_record=invalidate_record)
    with tempfile.TemporaryDirectory(prefix="workers-") as name:
        scratch = Path(name)
        shared = {
            "config": task.config.to_dict(),
            "shape": list(task.tiles.shape),
            "data_id": task.data_id,
            "bundle_id": task.bundle_id,
            "weights": {name: str(path.resolve()) for name, path in task.weights.items()},
            "deadline": None if math.isinf(task.deadline) else task.deadline,
            "folder": str(folder.resolve()),
            "started": started,
        }
        (scratch / "task.json").write_text(json.dumps(shared))
        group = WorkerGroup(list(devices), module=__name__)
        supervise([group], scratch, memory, use_less_memory=_cannot_use_less)
        names, scores = json.loads((scratch / _RESULT).read_text())
    return names, scores


def _cannot_use_less(group: WorkerGroup) -> None:
    raise WorkerError(f"out of memory on {', '.join(map(str, group.devices))}: {USE_SMALLER_BATCHES}")


def _work(scratch: Path, arguments: dict[str, Any]) -> None:
    """Pretrain in this process, one of all."""
    shared = json.loads((scratch / "task.json").read_text())
    log_to_stdout(shared["started"])
    context = DistributedContext(arguments["rank"], arguments["size"], torch.device(arguments["device"]))
    if context.device.type == "cuda":
        torch.cuda.set_device(context.device)
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // context.size))
    folder = Path(shared["folder"])
    config = config_from_dict(shared["config"])
    if arguments["tiles_on"]:
        config = replace(config, tiles_on=arguments["tiles_on"])
    task = PretrainTask(
        config=config,
        tiles=map_shared(arguments["tiles"], tuple(shared["shape"])),
        data_id=shared["data_id"],
        bundle_id=shared["bundle_id"],
        weights={name: Path(path) for name, path in shared["weights"].items()},
        deadline=math.inf if shared["deadline"] is None else shared["deadline"],
    )
    init_process_group(context, f"file://{arguments['store']}")
    result = pretrain(
        task,
        folder=folder,
        context=context,
        invalidate_record=lambda: (folder / RECORD_NAME).unlink(missing_ok=True),
    )
    if context.rank == 0:
        (scratch / _RESULT).write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    os._exit(run_worker(_work, Path(sys.argv[1]), json.loads(sys.argv[2])))
