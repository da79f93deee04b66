"""Fixtures: a finished campaign with two experiments, made once."""

import shutil
from collections.abc import Callable
from pathlib import Path

import campaigns
import pytest
from made_once import made_once

from lib.report.document import Report


@pytest.fixture(scope="session")
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of prepare for 480 labelled and 120 test tiles, real ones where available. Read-only."""

    def make(folder: Path) -> None:
        try:
            competition = request.getfixturevalue("real_tiles")
        except pytest.skip.Exception:
            from launch.emulator.synthetic_tiles import write_competition

            competition = folder / "competition"
            write_competition(competition, labelled=480, unlabelled=120, seed=1)
        campaigns.write_prepare(competition, folder / "hcd-prepare")

    return made_once(tmp_path_factory, "report-prepared", make) / "hcd-prepare"


@pytest.fixture(scope="session")
def campaign(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Outputs of two experiments with three folds each. Read-only."""

    def make(folder: Path) -> None:
        campaigns.write_campaign(folder, prepared, campaigns.EXPERIMENTS)
        campaigns.write_search(folder / "hcd-smoke-search")

    return made_once(tmp_path_factory, "report-campaign", make)


@pytest.fixture(scope="session")
def written(campaign: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path, dict[str, bool]]:
    """The report of the campaign, the folder it was written into, and the names. Read-only."""
    folder = tmp_path_factory.mktemp("report")
    facts = {"campaign": "a campaign", "leaderboard": campaigns.leaderboard()}
    report = campaigns.report_of(campaign, folder, experiments=tuple(campaigns.EXPERIMENTS), facts=facts)
    return report, folder, report.write(folder)


@pytest.fixture
def one_experiment(campaign: Path, prepared: Path, tmp_path: Path) -> Callable[..., Path]:
    """A function: names of outputs of the experiment smoke to a folder with copies, which may be changed."""

    def make(*parts: str) -> Path:
        root = tmp_path / "outputs"
        root.mkdir()
        for part in parts:
            if part == "prepare":
                names = ("index-train.csv", "index-test.csv")
                shutil.copytree(
                    prepared, root / "hcd-prepare", ignore=shutil.ignore_patterns("tiles-*.npy", "input-of-*")
                )
                assert all((root / "hcd-prepare" / name).is_file() for name in names)
            else:
                shutil.copytree(campaign / f"hcd-{part}", root / f"hcd-{part}")
        return root

    return make
