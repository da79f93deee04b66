"""Session of a kernel: the log, timed stages, the time limit, and errors that end it with one message."""

import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lib.config import Config
from lib.errors import PreflightError
from lib.runtime.session import Parameters, Session, log_to_stdout, run_kernel


@pytest.fixture(autouse=True)
def no_handler_is_left() -> Iterator[None]:
    yield
    for name in ("lib", "kernels"):
        logging.getLogger(name).handlers.clear()


def _session(folder: Path) -> Session:
    parameters = Parameters(
        kind="train", slug="hcd-x-fold-0", experiments=("x",), configs=(Config(),), owner="someone"
    )
    return Session(parameters=parameters, input=folder, working=folder, place="local")


def test_a_kernel_error_ends_a_kernel_with_one_message(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    values = {
        "kind": "train",
        "slug": "s",
        "experiments": ["x"],
        "configs": [Config().to_dict()],
        "owner": "someone",
    }

    def stop(error: Exception) -> Callable[[Session], None]:
        def recipe(_: Session) -> None:
            raise error

        return recipe

    assert run_kernel(lambda session: None, values) == 0
    capsys.readouterr()
    assert run_kernel(stop(PreflightError("no tiles")), values) == 1
    assert capsys.readouterr().err == "error: no tiles\n"
    assert run_kernel(stop(OSError(28, "No space left on device")), values) == 1
    assert "the disk is full" in capsys.readouterr().err
    for error in (ValueError("a mistake of ours"), FileNotFoundError(2, "gone")):
        with pytest.raises(type(error)):  # keeps its traceback
            run_kernel(stop(error), values)


def test_messages_are_printed_with_seconds_once_and_warnings_are_marked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lib.runtime.session.time.monotonic", lambda: 112.34)
    log_to_stdout(50.0)
    log_to_stdout(100.0)  # replaces the first
    logging.getLogger("lib.data.tile_store").info("%d of 30 tiles, 5 %% of all", 3)
    logging.getLogger("kernels.train").warning("older than tested")
    logging.getLogger("kernels.train").debug("not shown")
    logging.getLogger("timm").info("not shown")
    assert capsys.readouterr().out == (
        "[   12.3 s] 3 of 30 tiles, 5 % of all\n[   12.3 s] warning: older than tested\n"
    )


def test_a_stage_logs_its_start_and_its_duration(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    session = _session(tmp_path)
    with caplog.at_level(logging.INFO), session.stage("read the tiles", note="12 MiB"):
        assert caplog.messages == ["read the tiles ... (12 MiB)"]
    assert caplog.messages[1:] == [f"read the tiles took {session.seconds['read the tiles']:.1f} s"]


def test_the_deadline_leaves_time_for_what_surrounds_the_run(tmp_path: Path) -> None:
    def deadline(limit: float) -> float:
        parameters = Parameters(
            kind="train", slug="x", experiments=(), configs=(Config(),), owner="someone", limit=limit
        )
        return Session(parameters, tmp_path, tmp_path, "kaggle", started=100.0).deadline

    assert math.isinf(deadline(0.0))
    assert deadline(43_200.0) == 100.0 + 43_200.0 - 180.0
    assert deadline(1000.0) == 100.0 + 950.0
