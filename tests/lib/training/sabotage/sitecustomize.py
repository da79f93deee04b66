"""Python runs this at its start when its folder is on the path: workers fail as SABOTAGE says."""

import json
import os
import signal
import sys

if "SABOTAGE" in os.environ and "lib.training.workers" in " ".join(sys.orig_argv):
    _plan = json.loads(os.environ["SABOTAGE"])
    _arguments = json.loads(sys.orig_argv[-1])
    # One of all workers, whether they work together or each for itself.
    _number = _arguments["rank"] + _arguments["group"]

    def _arm() -> None:
        import torch

        from lib.training import epoch as engine
        from lib.training import fold

        if _plan["how"] == "oom":
            real_epoch, real_loss = fold.train_one_epoch, torch.nn.functional.binary_cross_entropy_with_logits
            late = {"now": False}

            def epoch(*arguments, **rest):
                late["now"] = rest["epoch"] >= 1 and _number == 0
                return real_epoch(*arguments, **rest)

            def loss(logits, *rest, **options):
                if late["now"] and len(logits) > _plan["above"]:
                    raise torch.OutOfMemoryError("CUDA out of memory")
                return real_loss(logits, *rest, **options)

            fold.train_one_epoch = epoch
            engine.functional.binary_cross_entropy_with_logits = loss
        elif _plan["how"] == "tiles":
            real_epoch = fold.train_one_epoch

            def crowded(network, training_set, *arguments, **rest):
                if rest["config"].tiles_on != "host" and _number == 0:
                    training_set.tiles.resident = torch.zeros(1)  # as on a GPU
                    raise torch.OutOfMemoryError("CUDA out of memory")
                return real_epoch(network, training_set, *arguments, **rest)

            fold.train_one_epoch = crowded
        elif _number == _plan["rank"]:

            def fail(*arguments, **rest):
                if _plan["how"] == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                if _plan["how"] == "flags":
                    enabled = torch.are_deterministic_algorithms_enabled()
                    raise ValueError(f"deterministic {enabled} {os.environ.get('CUBLAS_WORKSPACE_CONFIG')}")
                raise ValueError("sabotaged")

            fold.train_one_epoch = fail

    _arm()
