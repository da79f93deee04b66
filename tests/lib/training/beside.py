"""Run by the tests of the workers in processes of their own: one rank of a training, or a supervisor."""

import json
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist

from lib.config import config_from_dict
from lib.runtime.session import log_to_stdout
from lib.training import epoch as engine
from lib.training import fold
from lib.training import time_budget as budget
from lib.training.distributed import DistributedContext
from lib.training.fold import FoldTask, train_member
from lib.training.time_budget import Budget
from lib.training.workers import init_process_group, train_fold


def main() -> None:
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    facts = json.loads((folder / ".facts.json").read_text())
    table = pd.read_csv(folder / ".table.csv", dtype={"id": str})
    task = FoldTask(
        experiment="x",
        config=config_from_dict(facts["config"]),
        fold=facts["fold"],
        tiles=np.load(folder / ".tiles.npy"),
        index=table[["id", "label"]],
        folds=table["fold"].to_numpy(),
        data_id="d" * 64,
        fold_table_id="f" * 64,
        bundle_id="b" * 64,
        weights={},
    )
    log_to_stdout(time.monotonic())
    if facts["what"] == "supervise":
        train_fold(task, folder=folder, devices=[torch.device("cpu")] * 2, invalidate_record=lambda: None)
        return
    torch.set_num_threads(1)
    context = DistributedContext(rank, facts["size"])
    if context.size > 1:
        init_process_group(context, f"file://{folder}/.store")
    if facts["what"] == "double":
        real = fold.build_network
        fold.build_network = lambda *rest, **options: real(*rest, **options).double()
    if facts["what"] == "hurry":
        began = time.monotonic()
        budget._CLOSING, budget._FIRST_CHECK, engine._CHECK_EVERY = 0.0, 2, 1
        fold.Budget = partial(Budget, now=lambda: began + 10 * (time.monotonic() - began))
        task = FoldTask(**{**vars(task), "deadline": began + facts["share"]})
        steps: list[fold.OptimizerStep] = []
        make = fold.OptimizerStep

        def noted(*rest, **options):
            steps.append(make(*rest, **options))
            return steps[-1]

        fold.OptimizerStep = noted
    train_member(
        task,
        0,
        folder=folder,
        context=context,
        invalidate_record=lambda: None,
    )
    if facts["what"] == "hurry":
        end = {"applied": steps[0].applied, "total": steps[0].total, "learning_rate": steps[0].learning_rate}
        (folder / f".end-{rank}.json").write_text(json.dumps(end))
    if context.size > 1:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
