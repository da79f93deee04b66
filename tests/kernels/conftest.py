"""Data, a build, and outputs of kernels, each made once: a kernel's start costs seconds."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import workbench
from made_once import made_once
from PIL import Image

from launch.packaging.builder import Built, build
from lib.data import prepared as names

_TILES = workbench.ROOT.parent / "shared" / "tiles" / "unpack.py"


@pytest.fixture(scope="session")
def competition(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 labelled and 15 test tiles, real where there are any, else drawn. Tests do not change them."""

    def make(folder: Path) -> None:
        if _TILES.is_file():
            command = [sys.executable, str(_TILES), str(folder / "competition")]
            command += ["--pack", "exact", "--limit", "60"]
            subprocess.run(command, check=True, capture_output=True)
        else:
            from launch.emulator.synthetic_tiles import write_competition

            write_competition(folder / "competition", labelled=60, unlabelled=15, seed=1)

    return made_once(tmp_path_factory, "kernels-competition", make) / "competition"


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build([workbench.experiment()], out=tmp_path_factory.mktemp("build") / "dist", owner="someone")


def _run_once(folder: Path, script: Path, mounts: dict[str, Path]) -> None:
    for place, source in mounts.items():
        workbench.mount(folder / "input", source, place)
    done = workbench.run(script, working=folder / "working", inputs=folder / "input")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, built: Built, competition: Path) -> Path:
    """What the prepare script left. Not to be changed."""
    mounts = {workbench.COMPETITION: competition}
    script = workbench.script_of(built, "prepare")
    made = made_once(tmp_path_factory, "kernels-prepare", lambda folder: _run_once(folder, script, mounts))
    return made / "working"


@pytest.fixture(scope="session")
def folds(tmp_path_factory: pytest.TempPathFactory, built: Built, prepared: Path) -> list[Path]:
    """What the scripts of both folds left. Not to be changed."""
    mounts = {"notebooks/someone/hcd-prepare": prepared}

    def make(folder: Path) -> None:
        for fold in range(2):
            (folder / f"fold-{fold}").mkdir()
            _run_once(folder / f"fold-{fold}", workbench.script_of(built, "train", fold), mounts)

    made = made_once(tmp_path_factory, "kernels-folds", make)
    return [made / f"fold-{fold}" / "working" for fold in range(2)]


def _placeholders(folder: Path, *_: object, **__: object) -> list[str]:
    """In place of the figures of the data: a white pixel under the name of each."""
    drawn = [names.SHEET, names.BRIGHTNESS, names.FOCUS, names.OUTLIERS]
    drawn += [names.GROUPS, names.GROUP_STAINS, names.STAINS, names.SPLITS]
    for name in drawn:
        Image.new("L", (1, 1), 255).save(folder / name)
    return drawn


@dataclass
class Bench:
    """A place for one run: inputs, and a working folder that may hold an earlier, complete output."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    capfd: pytest.CaptureFixture[str]
    working: Path
    draws_figures: bool = False  # of the data: to draw them takes most of the time of prepare

    @property
    def inputs(self) -> Path:
        return self.folder / "input"

    def mount(self, source: Path, place: str) -> Path:
        """Mount a folder as it is."""
        workbench.mount(self.inputs, source, place)
        return source

    def mount_copy(self, source: Path, place: str) -> Path:
        """Mount a copy that may be changed."""
        at = self.inputs / place
        shutil.copytree(source, at)
        return at

    def earlier(self, output: Path) -> None:
        """Put a complete earlier output into the working folder."""
        shutil.copytree(output, self.working, dirs_exist_ok=True)

    def run(self, kind: str, **knobs: Any) -> tuple[int, str, str]:
        """Run a recipe in this process: its exit code, what it said, and its errors."""
        parameters = knobs.pop("parameters", None) or workbench.parameters_of(kind, **knobs)
        self.monkeypatch.chdir(self.working)
        self.monkeypatch.setenv("HCD_INPUT", str(self.inputs))
        self.monkeypatch.setenv("HCD_PLACE", "rehearsal")
        self.capfd.readouterr()
        recipe = import_module(f"kernels.{kind}")
        if kind == "prepare" and not self.draws_figures:
            self.monkeypatch.setattr(recipe, "draw_eda_figures", _placeholders)
        code = recipe.main(parameters)
        said = self.capfd.readouterr()
        return code, said.out, said.err

    def refused(self, kind: str, **knobs: Any) -> str:
        """Run a recipe that must refuse; its message. An earlier output must be as it was."""
        before = workbench.outputs(self.working) if (self.working / "run.json").is_file() else {}
        code, _, errors = self.run(kind, **knobs)
        message = workbench.one_error(errors)
        assert code == 1
        after = workbench.outputs(self.working) if before else {}
        assert after == before, "the earlier output was touched"
        return message


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Bench:
    bench = Bench(tmp_path, monkeypatch, capfd, tmp_path / "working")
    bench.inputs.mkdir()
    bench.working.mkdir()
    return bench


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """Make a disk of a given size; skips where that is not allowed."""
    made: list[Path] = []

    def make(size: str) -> Path:
        folder = tmp_path / f"disk-{len(made)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"a small tmpfs cannot be mounted here (it needs root): {error}")
        made.append(folder)
        return folder

    try:
        yield make
    finally:
        os.chdir("/")  # monkeypatch goes back to where it was later
        for folder in made:
            subprocess.run(["umount", "-l", str(folder)], check=True)
