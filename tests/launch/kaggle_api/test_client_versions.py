"""Campaigns with kaggle 2.2.4 and its SDK, in a folder of its own before the installed 2.2.5."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from test_emulated_command_line import _script, kernel
from test_faults import FINISHES, STOPS

OTHER = ("kaggle==2.2.4", "kagglesdk==0.1.37")
pytestmark = pytest.mark.slow
# Faults in which the client takes part: it reads a response, uploads, or resumes.
FAULTS_OF_THE_CLIENT = (
    "push reset after it happened",
    "push answered by HTML after it happened",
    "push answered by nothing",
    "status unknown for a while",
    "second page never comes",
    "a name like ../x",
    "blob upload cut and resumed",
    "blob upload reset",
    "dataset reset after it happened",
    "submission reset after it happened",
    "quota answered by nothing",
)


@pytest.fixture(scope="session")
def other_client(tmp_path_factory) -> Path:
    """Folder with the other client, without its dependencies: those of the installed one serve both."""
    folder = tmp_path_factory.mktemp("client") / "site"
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(folder),
        *OTHER,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        pytest.skip(f"kaggle 2.2.4 could not be installed: {done.stderr.strip().splitlines()[-1]}")
    return folder


@pytest.fixture
def older(world, other_client):
    def make(*faults, **options):
        kaggle = world(*faults, **options)
        plain = kaggle.environment

        def environment():
            values = plain()
            return {**values, "PYTHONPATH": os.pathsep.join([str(other_client), values["PYTHONPATH"]])}

        kaggle.environment = environment
        return kaggle

    return make


def cli(kaggle, *arguments):
    command = [
        sys.executable,
        "-c",
        "import sys; from kaggle.cli import main; sys.argv[0] = 'kaggle'; main()",
        *arguments,
    ]
    return subprocess.run(
        command,
        env=kaggle.environment(),
        cwd=kaggle.folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_installed_client_is_2_2_5():
    assert metadata.version("kaggle") == "2.2.5"


def test_a_campaign_finishes_with_the_other_client(older, other_client):
    kaggle = older()
    assert "2.2.4" in cli(kaggle, "--version").stdout
    ended = kaggle.run()
    assert ended.code == 0, ended
    assert f"SDK: {other_client}" in ended.out  # not the one that is installed, from which it was forked
    kaggle.assert_finished_once()


@pytest.mark.parametrize("name", FAULTS_OF_THE_CLIENT)
def test_a_campaign_survives_faults_with_the_other_client(older, name):
    kaggle = older(*FINISHES[name])
    ended = kaggle.run()
    assert ended.code == 0, ended
    assert kaggle.kaggle.account.faults.fired
    kaggle.assert_finished_once()


@pytest.mark.parametrize("name", ["401", "filed elsewhere", "daily allowance", "unknown status for ever"])
def test_a_campaign_stops_with_a_message_with_the_other_client(older, name):
    faults, words = STOPS[name]
    kaggle = older(*faults)
    ended = kaggle.run(limit=1.0)
    assert ended.code == 1 and words in ended.err, ended


def test_the_command_line_of_the_other_client_works_by_hand(older, tmp_path):
    kaggle = older()
    folder = kernel(tmp_path / "one", "hcd-prepare", _script())
    assert "successfully pushed" in cli(kaggle, "kernels", "push", "-p", str(folder)).stdout
    # This client sends no version number, so it names none of the versions.
    assert "COMPLETE" in cli(kaggle, "kernels", "status", "alice/hcd-prepare/7").stdout
    fetched = cli(kaggle, "kernels", "output", "alice/hcd-prepare", "-p", str(tmp_path / "out"))
    assert fetched.returncode == 0 and (tmp_path / "out" / "run.json").is_file(), fetched
    submission = tmp_path / "submission.csv"
    submission.write_text((kaggle.data / "sample_submission.csv").read_text().replace(",0", ",0.5"))
    sent = cli(
        kaggle,
        "competitions",
        "submit",
        "histopathologic-cancer-detection",
        "-f",
        str(submission),
        "-m",
        "by hand",
    )
    assert "Successfully submitted" in sent.stdout, sent
    assert kaggle.changes()[-1][0] == "CreateSubmission"
    assert "30.00h" in cli(kaggle, "quota").stdout
