"""A campaign in a process of its own, which a test may kill: `python -m tests.launch.child ORDER.json`.

The order file holds folder, knobs, folds, datasets, submit, and `die_after_saves`: the write of the ledger
after which the process kills itself, `full_disk_at`: files of which names cannot be written, `limit`: seconds
a push may take, `timeouts`: limits in place of those below, `serve`: a folder for a Kaggle in the same
process, which dies with it at call `die_at_call` of `hook`; at call `set_clock_at_call` the machine's clock
is set by `set_clock_by` seconds (`set_clock.c`).
"""

import errno
import hashlib
import json
import os
import signal
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import launch.campaign.push
import launch.packaging.builder
from launch.campaign.commands import run
from launch.campaign.ledger import Ledger
from launch.campaign.spec import CampaignSpec, RunOptions
from launch.campaign.waits import Timeouts
from launch.errors import LaunchError
from launch.experiments import load_experiment
from launch.kaggle_api.calls import RetryPolicy
from launch.kaggle_api.client import connect

TIMEOUTS = Timeouts(
    poll=0.03,
    settle=0.4,
    session_retry=0.2,
    session_timeout=6.0,
    queue_timeout=4.0,
    overrun=1.5,
    output_timeout=2.5,
    status_timeout=2.0,
    outage_timeout=4.0,
    quota_refresh=0.3,
    score_poll=0.05,
    score_settle=0.5,
    score_timeout=3.0,
)
# For campaigns that finish: a limit that a busy machine makes them miss says nothing.
LONG = {
    "session_timeout": 60.0,
    "queue_timeout": 40.0,
    "overrun": 30.0,
    "output_timeout": 25.0,
    "status_timeout": 20.0,
    "outage_timeout": 40.0,
    "score_timeout": 30.0,
}
PATIENCE = RetryPolicy(call_timeout=3.0, upload_timeout=10.0, attempts=3, delay=0.05, max_delay=0.2)


def order_from(values: dict) -> tuple[CampaignSpec, RunOptions]:
    """The arguments of a fast `run`."""
    folds = values.get("folds")
    spec = CampaignSpec(
        experiments=(load_experiment("smoke", values.get("knobs", [])),),
        owner=values.get("owner", "alice"),
        folds=None if folds is None else tuple(folds),
        thin=values.get("thin", False),
        datasets=tuple(values.get("datasets", ())),
    )
    options = RunOptions(
        folder=Path(values["folder"]),
        submit=values.get("submit", True),
        reuse=values.get("reuse", False),
        scored_by="the test",
        timeouts=replace(TIMEOUTS, **values.get("timeouts", {})),
    )
    return spec, options


def _fill_the_disk(name: str) -> None:
    """Every file whose name holds this text cannot be written any more."""
    opened = Path.open

    def full(self: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if name in self.name and "w" in mode:
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(self, mode, *arguments, **options)

    Path.open = full  # type: ignore[method-assign]


def _with_a_kaggle_of_its_own(values: dict) -> None:
    """Campaign and service in one process, as in `smoke`: both die at once, at the nth call of a hook."""
    from instant import InstantKernels

    from launch.emulator.account import Settings
    from launch.emulator.kaggle import EmulatedKaggle
    from launch.emulator.server import Server

    folder, calls = Path(values["serve"]), [0]
    data = folder / "competition"
    settings = Settings(dataset_delay=0.1, score_delay=0.1)
    kaggle = EmulatedKaggle(
        folder / "kaggle",
        data=data,
        labels=folder / "held-back.csv",
        owner="alice",
        token="KGAT_" + "0" * 32,
        settings=settings,
        executor=InstantKernels(data),
    )

    def hook(method: str, slug: str) -> None:
        calls[0] += 1
        if calls[0] == values.get("die_at_call"):
            os.kill(os.getpid(), signal.SIGKILL)
        if calls[0] == values.get("set_clock_at_call"):
            Path(os.environ["HCD_CLOCK"]).write_text(str(values["set_clock_by"]))

    setattr(kaggle.account, values["hook"], hook)
    with Server(kaggle) as server:
        os.environ.update(server.environment())
        run(*order_from(values), connect=lambda: connect(PATIENCE))
    print(f"calls: {calls[0]}")


def main() -> int:
    values = json.loads(Path(sys.argv[1]).read_text())
    after = values.get("die_after_saves", 0)
    saves, save = [0], Ledger.save

    def counted(self: Ledger) -> None:
        save(self)
        saves[0] += 1
        if saves[0] == after:
            os.kill(os.getpid(), signal.SIGKILL)

    Ledger.save = counted  # type: ignore[method-assign]
    if limit := values.get("limit"):
        launch.campaign.push.time_limit = lambda kernel, ledger=None, least=0.0: limit
    if code := values.get("code"):
        launch.packaging.builder.bundle_id = lambda files: hashlib.sha256(code.encode()).hexdigest()
    if name := values.get("full_disk_at"):
        _fill_the_disk(name)
    try:
        if values.get("serve"):
            _with_a_kaggle_of_its_own(values)
        else:
            run(*order_from(values), connect=lambda: connect(PATIENCE))
    except LaunchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # as build_kernel.py does
        print(f"error: the disk is full ({error})", file=sys.stderr)
        return 1
    finally:
        print(f"saves: {saves[0]}")
        print(f"SDK: {getattr(sys.modules.get('kagglesdk'), '__file__', None)}")
    return 0


def run_child(order: str, environment: dict[str, str], folder: str, out: str, err: str) -> None:
    """`main` in a forked process: the environment, folder and output of a fresh one."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, path in ((1, out), (2, err)):
        stream = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(stream, number)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    first = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = first + [path for path in sys.path if path not in first]
    if any(Path(path, "kagglesdk").is_dir() for path in first):  # another client: with its own SDK
        for name in [name for name in sys.modules if name.split(".")[0] == "kagglesdk"]:
            del sys.modules[name]
    sys.argv = ["child", order]
    code = 1
    try:
        code = main()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
