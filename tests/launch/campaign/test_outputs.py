"""Which logs end with an uncaught error, although Kaggle calls the run complete."""

import pytest

from launch.campaign.outputs import TRACEBACK, uncaught_error

OWN = "[   12.3 s] run.json written: 9 files"
FRAMES = [TRACEBACK, '  File "/kaggle/src/script.py", line 3, in <module>', "    main()"]


@pytest.mark.parametrize(
    ("log", "error"),
    [
        ([], ""),
        ([OWN], ""),
        ([OWN, *FRAMES, "RuntimeError: CUDA error"], "RuntimeError: CUDA error"),
        ([*FRAMES, "KeyError: 3"], "KeyError: 3"),  # it failed before its first line
        ([OWN, *FRAMES], "a traceback"),  # the log was cut
        ([OWN, "Process SpawnProcess-1:", *FRAMES, "OSError: gone", "", "bye"], "OSError: gone"),
        ([OWN, f"NameError                      {TRACEBACK}", "NameError: x"], "NameError: x"),  # a notebook
        # Handled: the kernel logged more lines after it.
        (["[    1.0 s] start", *FRAMES, "ImportError: no triton", OWN], ""),
        # Python reports it and goes on: the exit code is 0.
        ([OWN, "Exception ignored in: <function Pool.__del__ at 0x7f>", *FRAMES, "OSError: closed"], ""),
        (
            [OWN, "Exception ignored in: <x>", *FRAMES, "OSError: closed", *FRAMES, "KeyError: 3"],
            "KeyError: 3",
        ),
    ],
)
def test_only_an_error_that_ended_the_run_counts(log: list[str], error: str) -> None:
    assert uncaught_error(log) == error
