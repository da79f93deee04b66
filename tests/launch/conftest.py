"""Fixtures of the tests of launch."""

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


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout with experiments of its own."""
    folder = tmp_path / "experiments"
    folder.mkdir()
    for name in ("a", "b", "c"):
        (folder / f"{name}.toml").write_text(
            f'backbone = "test_resnet"\nweights = "none"\nepochs = {ord(name)}\n'
        )
    for name, text in {
        "pair": 'experiments = ["a", "b"]',
        "nested": 'experiments = ["pair", "c"]',
        "mixed": 'experiments = ["a"]\nepochs = 3',
        "none": "experiments = []",
        "odd": "experiments = [1]",
        "absent": 'experiments = ["a", "z"]',
    }.items():
        (folder / f"{name}.toml").write_text(text + "\n")
    return tmp_path
