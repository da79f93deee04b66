"""Devices, disk and memory are checked before a run; a message lists everything that is missing."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from lib.config import Config
from lib.errors import PreflightError
from lib.runtime import hardware as module
from lib.runtime.hardware import choose_devices, preflight


def test_too_little_disk_and_memory_are_reported_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(9 << 30, 8 << 30, 1 << 30))
    monkeypatch.setattr(module, "free_memory", lambda: 2 << 30)
    with pytest.raises(PreflightError) as refused:
        preflight(tmp_path, disk=5 << 30, memory=7 << 30)
    for piece in ("1.00 GiB free", "writes 5.00 GiB", "2.00 GiB of memory", "about 7.00 GiB"):
        assert piece in str(refused.value)
    preflight(tmp_path, disk=1 << 30, memory=2 << 30)  # just enough is enough
    monkeypatch.setattr(module, "free_memory", lambda: None)
    preflight(tmp_path, disk=1 << 30, memory=7 << 30)  # unknown is not too little


def test_a_gpu_that_is_required_and_absent_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for config, required in ((Config(device="cuda"), False), (Config(), True)):
        with pytest.raises(PreflightError, match="NvidiaTeslaT4"):
            choose_devices(config, gpu_required=required)
    monkeypatch.delenv("HCD_WORKERS", raising=False)
    assert [device.type for device in choose_devices(Config(), gpu_required=False)] == ["cpu"]
    monkeypatch.setenv("HCD_WORKERS", "2")
    assert [device.type for device in choose_devices(Config(), gpu_required=False)] == ["cpu", "cpu"]
