"""What the tests of the launcher share."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from emulated_world import FAST, World

from launch.emulator.faults import Fault


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Callable[..., World]]:
    """Makes worlds that end with the test."""
    worlds: list[World] = []

    def make(*faults: Fault, settings: dict[str, Any] | None = None, **executor: Any) -> World:
        made = World(
            tmp_path / f"world-{len(worlds)}",
            faults=faults,
            settings=replace(FAST, **settings or {}),
            **executor,
        )
        worlds.append(made.__enter__())
        return worlds[-1]

    yield make
    for each in worlds:
        each.__exit__(None, None, None)
