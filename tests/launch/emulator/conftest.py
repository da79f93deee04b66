"""The emulated Kaggle on the wire."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from emulated_wire import FAST, Wire

from launch.emulator.faults import Fault


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Callable[..., Wire]]:
    """Start emulated Kaggles that end with the test."""
    started: list[Wire] = []

    def make(*faults: Fault, settings: dict | None = None, **options) -> Wire:
        folder = tmp_path / f"wire-{len(started)}"
        started.append(Wire(folder, *faults, settings=replace(FAST, **settings or {}), **options))
        return started[-1]

    yield make
    for kaggle in started:
        kaggle.stop()
