"""Environment checks are pushed once, waited for within limits, and compared with what the code assumes."""

import ast
import copy
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launch.campaign.ledger import LEDGER_NAME
from launch.campaign.waits import Timeouts
from launch.doctor.environment_check import (
    CPU,
    GPU,
    MOUNT,
    compare_with_assumptions,
    kept_results,
    plan_environment_checks,
    run_environment_checks,
)
from launch.doctor.finding import OK, PROBLEM, WARNING
from launch.emulator.synthetic_tiles import write_competition
from launch.errors import LaunchError
from launch.kaggle_api.errors import (
    CapacityError,
    EmptyKernelError,
    NoResponseError,
    QuotaError,
    RefusedError,
    SourcesDroppedError,
)
from launch.kaggle_api.types import ABSENT, COMPLETE, RUNNING, Listing, PulledKernel, Pushed, Quota, RunStatus
from launch.packaging.builder import read_checkout
from launch.packaging.metadata import check_kernel_metadata
from launch.sandbox import Mount, isolation, run_script
from lib.config import Config
from lib.runtime import environment_check
from lib.runtime.run_record import RunRecord, describe_files, write_run_record

SLUGS = [CPU, GPU, MOUNT]
COMPETITION = "histopathologic-cancer-detection"
TIMEOUTS = Timeouts(
    poll=0.0,
    settle=0.05,
    session_retry=0.0,
    session_timeout=0.3,
    queue_timeout=0.3,
    overrun=-899.7,
    output_timeout=0.3,
    status_timeout=0.3,
    outage_timeout=0.3,
    quota_timeout=0.0,
    foreign_run_timeout=2.0,  # a first rendering of a script takes a second on a busy machine
    quota_refresh=0.0,
    pushes=1,
)
ON = dict.fromkeys(("address", "huggingface", "pypi"), "reached")
OFF = dict.fromkeys(("address", "huggingface", "pypi"), "TimeoutError")
T4 = {"name": "Tesla T4", "capability": "7.5", "memory": 15_843_721_216, "bfloat16": False}
T4["float16"] = {"correct": True, "tflops": 24.1}
VERSIONS = {
    "python": "3.12.13",
    "torch": "2.11.0",
    "timm": "1.0.28",
    "numpy": "2.1.3",
    "pandas": "2.2.3",
    "scikit-learn": "1.6.1",
}


def scores_of(slug: str, *, mounted: str = "") -> dict[str, Any]:
    """What a kernel measures where everything is as the code assumes."""
    scores: dict[str, Any] = {
        "place": "kaggle",
        "paths": {
            "working": "/kaggle/working",
            "input": "/kaggle/input",
            "script": "/kaggle/src/script.py",
            "script_folder_writable": False,
            "free": {"working": 21_000_000_000, "temporary": 60_000_000_000},
        },
        "environment": {"names": ["KAGGLE_KERNEL_RUN_TYPE"], "run_type": "Batch"},
        "machine": {"cores": 4, "memory": 31_000_000_000, "memory_free": 30_000_000_000},
        "mounts": [],
        "outputs": [],
        "internet": ON if slug == CPU else OFF,
        "imports": {"kernels.train": "ok in 3.0 s"},
        "gpus": [T4, T4] if slug == GPU else [],
        "all_reduce": {"skipped": "two GPUs are needed, there are 0"},
        "tiles": {"absent": "the competition's data is not among the inputs"},
    }
    if slug == GPU:
        scores["all_reduce"] = {
            "backend": "nccl",
            "processes": 2,
            "correct": True,
            "gigabytes_per_second": 5.0,
        }
    if slug == MOUNT:
        place = f"notebooks/alice/{CPU}"
        scores["mounts"] = [
            {"place": f"competitions/{COMPETITION}", "kind": ""},
            {"place": place, "kind": "environment_check"},
        ]
        added = ["__results__.html", "custom.css"]
        scores["outputs"] = [
            {"place": place, "push_id": mounted, "added": added, "seconds_since_it_ended": 75.0}
        ]
        scores["tiles"] = {
            "place": f"competitions/{COMPETITION}",
            "listing": {"entries": 220_025, "seconds": 2.0},
            "alone": {"tiles": 500, "median_milliseconds": 4.0},
            "together": {"tiles": 1500, "readers": 8, "tiles_per_second": 900.0},
        }
    return scores


def parameters_in(source: str) -> dict[str, Any]:
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "PARAMETERS":
            return ast.literal_eval(node.value)
    raise AssertionError("no PARAMETERS")


class FakeKaggle:
    """Kaggle, where a pushed kernel has its output at once; a test can replace single responses."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.user = "alice"
        self.sources: dict[str, str] = {}
        self.pushed: list[str] = []  # slugs of versions that were created
        self.requested: list[str] = []  # slugs of all pushes, refused ones too
        self.deleted: list[str] = []
        self.refusals: dict[str, list[Exception]] = {}  # raised by the next pushes
        self.lost: set[str] = set()  # pushes that happen without a response
        self.statuses: dict[str, list[RunStatus | Exception]] = {}  # returned first
        self.pulls: dict[str, Exception] = {}
        self.kept_back: dict[str, int] = {}  # listings that still show an earlier output
        self.logs: dict[str, str] = {}
        self.hours = Quota(used=2.0, allowed=30.0, refresh=None)

    def push(self, folder: Path, *, limit: float) -> Pushed:
        metadata = json.loads((folder / "kernel-metadata.json").read_text())
        slug = metadata["id"].split("/")[1]
        self.requested.append(slug)
        assert metadata["id"] == f"alice/{slug}"
        assert 0 < limit <= 900
        if self.refusals.get(slug):
            raise self.refusals[slug].pop(0)
        self.pushed.append(slug)
        self.sources[slug] = (folder / metadata["code_file"]).read_text()
        self._write_output(slug, parameters_in(self.sources[slug]))
        if slug in self.lost:
            self.lost.discard(slug)
            raise NoResponseError("no response from Kaggle")
        return Pushed(self.pushed.count(slug), "")

    def _write_output(self, slug: str, parameters: dict[str, Any], *, push_id: str = "") -> None:
        working = self.folder / slug
        shutil.rmtree(working, ignore_errors=True)
        (working / environment_check.SAMPLE).parent.mkdir(parents=True)
        (working / environment_check.SAMPLE).write_bytes(environment_check.SAMPLE_BYTES)
        mounted = parameters_in(self.sources[CPU])["push_id"] if CPU in self.sources else ""
        record = RunRecord(
            kind="environment_check",
            experiment="",
            config=Config().to_dict(),
            push_id=push_id or parameters["push_id"],
            bundle_id="b",
            git_commit="",
            data_id="",
            versions=VERSIONS,
            scores=scores_of(slug, mounted=mounted),
            files=describe_files(working, {environment_check.SAMPLE: True}),
            complete=True,
        )
        write_run_record(working, record)

    def status(self, slug: str) -> RunStatus:
        if self.statuses.get(slug):
            status = self.statuses[slug].pop(0)
            if isinstance(status, BaseException):
                raise status
            return status
        return RunStatus(COMPLETE if slug in self.sources else ABSENT)

    def pull(self, slug: str) -> PulledKernel | None:
        if slug in self.pulls:
            raise self.pulls[slug]
        source = self.sources.get(slug)
        return None if source is None else PulledKernel(source, self.pushed.count(slug), "", False)

    def delete(self, slug: str) -> None:
        self.deleted.append(slug)
        self.pulls.pop(slug, None)

    def output(self, slug: str) -> Listing:
        folder = self.folder / slug
        if self.kept_back.get(slug, 0) > 0:
            self.kept_back[slug] -= 1
            folder = self.folder / "earlier" / slug
        files = {
            path.relative_to(folder).as_posix(): str(path) for path in folder.rglob("*") if path.is_file()
        }
        return Listing(files, self.logs.get(slug, ""))

    def fetch(self, url: str, path: Path, *, size: int | None = None, sha256: str = "") -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(url, path)

    def quota(self) -> Quota | None:
        return self.hours


@pytest.fixture
def kaggle(tmp_path: Path) -> FakeKaggle:
    return FakeKaggle(tmp_path / "kaggle")


@pytest.fixture(scope="module")
def checkout():
    return read_checkout(owner="alice")


@pytest.fixture
def run(kaggle, checkout, tmp_path, caplog):
    """Runs the environment checks; what they log is in caplog."""
    caplog.set_level("INFO", logger="launch")

    def checks():
        return run_environment_checks(kaggle, tmp_path / "check", timeouts=TIMEOUTS, checkout=checkout)

    return checks


def test_the_kernels_are_valid_for_client_and_service(checkout, tmp_path):
    for kernel in plan_environment_checks():
        size = checkout.write_kernel(kernel, tmp_path / kernel.slug, push_id="x", limit=900)
        metadata = json.loads((tmp_path / kernel.slug / "kernel-metadata.json").read_text())
        assert check_kernel_metadata(metadata, tmp_path / kernel.slug) == []
        assert size < 1_000_000
        settings = (
            metadata["enable_gpu"],
            metadata["enable_internet"],
            metadata["kernel_sources"],
            metadata["competition_sources"],
        )
        expected = {
            CPU: (False, True, [], []),
            GPU: (True, False, [], []),
            MOUNT: (False, False, [f"alice/{CPU}"], [COMPETITION]),
        }
        assert settings == expected[kernel.slug]


def test_without_deviations_there_is_no_problem_and_the_results_are_kept(run, kaggle, tmp_path, caplog):
    findings = run()
    assert [finding for finding in findings if finding.level != OK] == []
    assert len(findings) > 15
    assert kaggle.pushed == [CPU, GPU, MOUNT]
    cost = next(index for index, line in enumerate(caplog.messages) if "h of GPU quota" in line)
    assert cost < next(index for index, line in enumerate(caplog.messages) if ": pushed" in line)
    assert not (tmp_path / "check" / LEDGER_NAME).exists()
    date, records, again = kept_results(tmp_path / "check")
    assert again == findings
    assert date.tzinfo is not None
    assert set(records) == set(SLUGS)


def test_the_mount_kernel_waits_for_the_kernel_it_mounts(run, kaggle):
    pushed_before = []
    statuses = [RunStatus(ABSENT), *[RunStatus(RUNNING)] * 4]

    def status(slug: str) -> RunStatus:
        if slug == CPU and statuses:
            pushed_before.append(list(kaggle.pushed))
            return statuses.pop(0)
        return RunStatus(COMPLETE if slug in kaggle.sources else ABSENT)

    kaggle.status = status
    run()
    assert all(MOUNT not in pushed for pushed in pushed_before)
    assert pushed_before[-1] == [CPU, GPU]  # both at once


@pytest.mark.parametrize("moment", range(1, 7))
def test_interrupted_at_any_request_and_repeated_nothing_is_pushed_twice(moment, run, kaggle):
    requests = []
    status = kaggle.status

    def interrupted(slug: str) -> RunStatus:
        requests.append(slug)
        if len(requests) == moment:
            raise KeyboardInterrupt
        return status(slug)

    kaggle.status = interrupted
    with pytest.raises(KeyboardInterrupt):
        run()
    findings = run()
    assert kaggle.pushed == [CPU, GPU, MOUNT]
    assert all(finding.level == OK for finding in findings)


def test_killed_before_the_push_it_is_pushed_under_the_id_in_the_ledger(run, kaggle, tmp_path):
    push, ids = kaggle.push, []

    def killed(folder: Path, *, limit: float) -> Pushed:
        ledger = json.loads((tmp_path / "check" / LEDGER_NAME).read_text())
        ids.append(ledger["kernels"][CPU]["pushes"][0]["push_id"])
        raise KeyboardInterrupt

    kaggle.push = killed
    with pytest.raises(KeyboardInterrupt):
        run()
    kaggle.push = push
    run()
    assert kaggle.pushed.count(CPU) == 1
    assert ids[0] in kaggle.sources[CPU]


@pytest.mark.parametrize("happened", [True, False])
def test_a_push_without_a_response_is_confirmed_before_it_is_repeated(happened, run, kaggle):
    if happened:
        kaggle.lost = {GPU}
    else:
        kaggle.refusals[GPU] = [NoResponseError("no response from Kaggle")]
    findings = run()
    assert kaggle.pushed.count(GPU) == 1
    assert kaggle.requested.count(GPU) == (1 if happened else 2)
    assert all(finding.level == OK for finding in findings)


def test_the_output_of_an_earlier_push_is_not_used_for_this_one(run, kaggle, caplog):
    run()
    earlier = kaggle.folder / "earlier" / CPU
    earlier.parent.mkdir(parents=True)
    shutil.copytree(kaggle.folder / CPU, earlier)
    kaggle.kept_back[CPU] = 3
    findings = run()
    assert kaggle.pushed.count(CPU) == 2
    assert "Kaggle shows the output of another push; listing it again" in caplog.text
    assert all(finding.level == OK for finding in findings)
    kaggle.kept_back[CPU] = 10**9
    findings = run()
    assert [finding.name for finding in findings if finding.level == PROBLEM] == [CPU, MOUNT]


def test_a_kernel_that_fails_shows_its_log_and_the_results_of_the_others_are_kept(run, kaggle, tmp_path):
    kaggle.statuses[CPU] = [RunStatus(ABSENT), *[RunStatus(RUNNING)] * 2, RunStatus("ERROR", "exit code 1")]
    kaggle.logs[CPU] = "Traceback\nImportError: no module named torch\n"
    findings = run()
    problems = {finding.name: finding for finding in findings if finding.level == PROBLEM}
    assert set(problems) == {CPU, MOUNT}
    assert "exit code 1" in problems[CPU].text
    assert "ImportError: no module named torch" in problems[CPU].text
    assert MOUNT not in kaggle.requested
    assert any(
        finding.name.startswith("environment check gpu") and finding.level == OK for finding in findings
    )
    # The next run pushes all three again.
    assert all(finding.level == OK for finding in run())


def test_the_push_is_repeated_when_all_sessions_are_taken(run, kaggle):
    kaggle.refusals[GPU] = [CapacityError("Maximum batch GPU session count of 2 reached.")] * 2
    assert all(finding.level == OK for finding in run())
    assert kaggle.requested.count(GPU) == 3


def test_waiting_for_a_free_session_has_a_limit(run, kaggle):
    kaggle.refusals[GPU] = [CapacityError("Maximum batch GPU session count of 2 reached.")] * 10**5
    problems = [finding for finding in run() if finding.level == PROBLEM]
    assert [finding.name for finding in problems] == [GPU]
    assert "End the other sessions" in problems[0].remedy


def test_without_quota_the_gpu_kernel_is_not_pushed_and_the_others_are(run, kaggle):
    kaggle.hours = Quota(used=29.95, allowed=30.0, refresh=None)
    problems = [finding for finding in run() if finding.level == PROBLEM]
    assert [finding.name for finding in problems] == [GPU]
    assert kaggle.requested == [CPU, MOUNT]


@pytest.mark.parametrize(
    ("slug", "error", "word"),
    [
        (
            GPU,
            QuotaError("Maximum weekly GPU quota of 30.00 hours reached."),
            "after the quota's weekly reset",
        ),
        (
            MOUNT,
            SourcesDroppedError(f"without some of its inputs (competition {COMPETITION})", version=1),
            "Accept the rules",
        ),
        (GPU, RefusedError("You must verify your phone number"), "Verify your phone"),
    ],
)
def test_a_refusal_is_a_finding_with_its_remedy(slug, error, word, run, kaggle):
    kaggle.refusals[slug] = [error]
    problems = [finding for finding in run() if finding.level == PROBLEM]
    assert [finding.name for finding in problems] == [slug]
    assert word in problems[0].remedy
    assert kaggle.requested.count(slug) == 1


def test_an_empty_kernel_is_deleted_after_it_is_confirmed_to_be_empty(run, kaggle):
    kaggle.refusals[GPU] = [EmptyKernelError("Notebook not found")]
    kaggle.pulls[GPU] = NoResponseError("HTTP 500")
    assert all(finding.level == OK for finding in run())
    assert kaggle.deleted == [GPU]


def test_a_kernel_that_has_a_version_is_never_deleted(run, kaggle):
    kaggle.sources[GPU] = "print('kept')"
    kaggle.refusals[GPU] = [EmptyKernelError("Notebook not found")]
    problems = [finding for finding in run() if finding.level == PROBLEM]
    assert [finding.name for finding in problems] == [GPU]
    assert kaggle.deleted == []


def test_a_run_that_is_not_ours_is_waited_for_and_not_replaced(run, kaggle, caplog):
    kaggle.statuses[CPU] = [RunStatus(RUNNING)] * 2
    findings = run()
    assert "pushed by somebody else and is RUNNING: waiting for its end" in caplog.text
    assert all(finding.level == OK for finding in findings)
    kaggle.statuses[CPU] = [RunStatus(RUNNING)] * 10**6
    pushed = kaggle.pushed.count(CPU)
    assert [finding.name for finding in run() if finding.level == PROBLEM] == [CPU, MOUNT]
    assert kaggle.pushed.count(CPU) == pushed


@pytest.mark.parametrize("state", ["QUEUED", "RUNNING", ABSENT])
def test_waiting_for_the_end_of_a_run_has_a_limit(state, run, kaggle):
    kaggle.statuses[GPU] = [RunStatus(ABSENT), *[RunStatus(state)] * 10**6]
    problems = [finding for finding in run() if finding.level == PROBLEM]
    assert [finding.name for finding in problems] == [GPU]
    assert (f"has been {state}" if state != ABSENT else "shows no run of it") in problems[0].text


def test_an_outage_ends_the_command_and_the_same_command_resumes(run, kaggle):
    statuses = [RunStatus(ABSENT), *[NoResponseError("no response from Kaggle")] * 10**6]
    kaggle.statuses[CPU] = statuses
    with pytest.raises(LaunchError, match="it continues from here"):
        run()
    statuses.clear()
    assert all(finding.level == OK for finding in run())
    assert kaggle.pushed == [CPU, GPU, MOUNT]


def test_the_ledger_of_another_account_is_not_used(run, kaggle, tmp_path):
    kaggle.statuses[CPU] = [RunStatus(ABSENT), KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        run()
    state = tmp_path / "check" / LEDGER_NAME
    state.write_text(state.read_text().replace('"alice"', '"bob"'))
    run()
    assert kaggle.pushed.count(CPU) == 2


def test_a_second_environment_check_at_the_same_time_is_refused(run, kaggle):
    def status(slug: str) -> RunStatus:
        run()
        raise AssertionError("two at once")

    kaggle.status = status
    with pytest.raises(LaunchError, match="is running in"):
        run()


# --- judging


def records() -> dict[str, Any]:
    return {
        slug: {
            "push_id": f"p.{slug}",
            "versions": dict(VERSIONS),
            "scores": copy.deepcopy(scores_of(slug, mounted=f"p.{CPU}")),
        }
        for slug in SLUGS
    }


DEVIATIONS = [
    # kernel, changed entry of run.json, its value, the name of the finding, its level, a part of its text
    (CPU, "scores.place", "local", "place", PROBLEM, "KAGGLE_KERNEL_RUN_TYPE"),
    (CPU, "scores.place", "rehearsal", "place", WARNING, "emulator"),
    (CPU, "scores.environment.run_type", "another word", "place", WARNING, "another word"),
    (CPU, "scores.paths.working", "/somewhere", "paths", WARNING, "/somewhere"),
    (CPU, "versions.python", "3.10.4", "Python", PROBLEM, "3.11"),
    (CPU, "versions.python", "3.14.0", "Python", WARNING, "3.14.0"),
    (GPU, "versions.torch", "2.6.0", "packages", WARNING, "torch 2.6.0"),
    (GPU, "scores.imports", {"kernels.train": "ImportError: no timm"}, "packages", PROBLEM, "no timm"),
    (CPU, "scores.paths.free.working", 8_000_000_000, "disk and memory", PROBLEM, "7.7 GB"),
    (CPU, "scores.paths.free.working", 15_000_000_000, "disk and memory", WARNING, "15.0 GB"),
    (CPU, "scores.machine.memory", 8_000_000_000, "disk and memory", PROBLEM, "8.0 GB"),
    (GPU, "scores.machine.cores", 2, "disk and memory", WARNING, "2 cores"),
    (CPU, "scores.internet", OFF, "internet on", PROBLEM, "phone"),
    (CPU, "scores.internet", {**ON, "huggingface": "gaierror"}, "internet on", PROBLEM, "huggingface"),
    (GPU, "scores.internet", ON, "internet off", WARNING, "although internet was off"),
    (GPU, "scores.gpus", [], "GPUs", PROBLEM, "phone"),
    (GPU, "scores.gpus", [T4], "GPUs", WARNING, "T4"),
    (GPU, "scores.gpus", [{**T4, "capability": "6.0"}], "GPUs", PROBLEM, "machine_shape"),
    (
        GPU,
        "scores.gpus",
        [T4, {**T4, "float16": {"error": "no kernel image"}}],
        "GPUs",
        PROBLEM,
        "no kernel image",
    ),
    (GPU, "scores.gpus", {"error": "gpus: driver too old"}, "GPUs", WARNING, "driver too old"),
    (GPU, "scores.all_reduce", {"error": "no end within 120 s"}, "all-reduce", WARNING, "120 s"),
    (GPU, "scores.all_reduce", {"correct": False}, "all-reduce", WARNING, "is wrong"),
    (MOUNT, "scores.tiles", {"absent": "nothing is mounted"}, "competition", PROBLEM, "Accept the rules"),
    (MOUNT, "scores.tiles.place", COMPETITION, "competition", WARNING, "mounted at"),
    (MOUNT, "scores.tiles.together.tiles_per_second", 50.0, "reading tiles", WARNING, "50 tiles/s"),
    (MOUNT, "scores.tiles.together.tiles_per_second", 10.0, "reading tiles", PROBLEM, "10 tiles/s"),
    (MOUNT, "scores.outputs", [], "mounted output", PROBLEM, "0 times"),
    (MOUNT, "scores.outputs.0.push_id", "another", "mounted output", PROBLEM, "earlier"),
    (MOUNT, "scores.outputs.0.added", ["surprise.bin"], "mounted output", WARNING, "surprise.bin"),
    (MOUNT, "scores.outputs.0.place", CPU, "mounted output", WARNING, "mounted at"),
    (MOUNT, "scores.outputs.0.problem", "run.json is damaged", "mounted output", PROBLEM, "damaged"),
    (CPU, "scores.machine", WARNING, "disk and memory", WARNING, "did not record"),
]


@pytest.mark.parametrize(("slug", "entry", "value", "name", "level", "word"), DEVIATIONS)
def test_a_deviation_is_found(slug, entry, value, name, level, word):
    changed_records = records()
    *path, last = entry.split(".")
    place = changed_records[slug]
    for part in path:
        place = place[int(part)] if isinstance(place, list) else place[part]
    place[last] = value
    changed = set(compare_with_assumptions(changed_records)) - set(compare_with_assumptions(records()))
    short = slug.removeprefix("hcd-").replace("-", " ")
    [finding] = [finding for finding in changed if finding.name == f"{short}: {name}"]
    assert finding.level == level
    assert word in finding.text + finding.remedy
    assert finding.remedy


def test_without_deviations_every_finding_is_ok():
    assert {finding.level for finding in compare_with_assumptions(records())} == {OK}


# --- what really runs


PLANTED = {
    "KAGGLE_USER_SECRETS_TOKEN": "planted-secret-one",
    "KAGGLE_DATA_PROXY_TOKEN": "planted-secret-two",
    "KAGGLE_KERNEL_RUN_TYPE": "planted-secret-three",
    "HTTPS_PROXY": "http://user:planted-secret-four@127.0.0.1:9",
}


@pytest.fixture(scope="module")
def ran(checkout, tmp_path_factory) -> dict[str, dict[str, Any]]:
    """run.json of the CPU and the mount kernel, run as single scripts; the first has secrets around it."""
    folder = tmp_path_factory.mktemp("checks")
    write_competition(folder / "data", labelled=60, unlabelled=10, seed=3)
    scripts = {}
    for kernel in plan_environment_checks():
        checkout.write_kernel(kernel, folder / kernel.slug, push_id=f"p.{kernel.slug}", limit=900)
        scripts[kernel.slug] = folder / kernel.slug / f"{kernel.slug}.py"
    working = folder / "cpu"
    working.mkdir()
    (folder / "nothing").mkdir()
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "HCD_INPUT": str(folder / "nothing"),
        **PLANTED,
    }
    done = subprocess.run(
        [sys.executable, str(scripts[CPU])],
        cwd=working,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    everything = done.stdout + done.stderr + (working / "run.json").read_text()
    assert not re.findall(r"planted-secret\S*", everything)
    assert "KAGGLE_USER_SECRETS_TOKEN" in everything
    (working / "__results__.html").write_text("added")
    mounts = [Mount(folder / "data", f"competitions/{COMPETITION}"), Mount(working, f"notebooks/alice/{CPU}")]
    outcome = run_script(
        scripts[MOUNT],
        folder=folder / "mount",
        mounts=mounts,
        place="rehearsal",
        threads=1,
        network=False,
        limit=180,
    )
    assert outcome.code == 0, outcome.log.read_text()
    return {
        CPU: json.loads((working / "run.json").read_text()),
        MOUNT: json.loads((folder / "mount" / "working" / "run.json").read_text()),
    }


def test_every_measurement_succeeds_in_a_single_script(ran):
    for record in ran.values():
        failed = {
            name: value
            for name, value in record["scores"].items()
            if isinstance(value, dict) and "error" in value
        }
        assert failed == {}
        assert all(result.startswith("ok") for result in record["scores"]["imports"].values())
    assert set(ran[CPU]["scores"]["imports"]) >= {
        "kernels.train",
        "kernels.prepare",
        "kernels.inference",
        "kernels.weights",
    }
    assert ran[CPU]["scores"]["environment"]["run_type"] == "another word"


def test_the_mount_kernel_records_what_is_mounted(ran):
    scores = ran[MOUNT]["scores"]
    assert {mount["place"] for mount in scores["mounts"]} == {
        f"competitions/{COMPETITION}",
        f"notebooks/alice/{CPU}",
    }
    [output] = scores["outputs"]
    assert output["push_id"] == f"p.{CPU}"
    assert output["added"] == ["__results__.html"]
    assert 0 < output["seconds_since_it_ended"] < 300
    assert scores["tiles"]["listing"]["entries"] == 60
    assert scores["tiles"]["alone"]["tiles"] + scores["tiles"]["together"]["tiles"] == 60
    levels = {finding.name: finding.level for finding in compare_with_assumptions(ran)}
    assert levels["environment check mount: competition"] == OK
    assert levels["environment check mount: mounted output"] == OK
    assert levels["environment check mount: place"] == WARNING  # a rehearsal is not Kaggle
    if isolation() == "namespaces":
        assert levels["environment check mount: internet off"] == OK


def test_a_damaged_mount_is_found(ran, tmp_path):
    mount = tmp_path / "notebooks" / "alice" / CPU
    (mount / "environment-check").mkdir(parents=True)
    (mount / "run.json").write_text(json.dumps(ran[CPU]))
    (mount / environment_check.SAMPLE).write_bytes(environment_check.SAMPLE_BYTES[:-1] + b"x")
    [output] = environment_check.check_mounted_outputs(tmp_path, kind="environment_check")
    assert "damaged" in output["problem"]


def test_processes_sum_their_values_and_are_ended_at_the_time_limit(monkeypatch, tmp_path):
    result = environment_check.try_all_reduce(processes=2, backend="gloo", seconds=60)
    assert result["correct"] is True
    assert result["gigabytes_per_second"] > 0
    # No process can start in this time: both are ended.
    assert (
        "no end within" in environment_check.try_all_reduce(processes=2, backend="gloo", seconds=0.2)["error"]
    )
    assert (
        "ended with"
        in environment_check.try_all_reduce(processes=2, backend="no-such-backend", seconds=60)["error"]
    )


def test_reading_has_limits_in_time_and_number(tmp_path):
    write_competition(tmp_path / "competitions" / COMPETITION, labelled=60, unlabelled=10, seed=3)
    few = environment_check.measure_reading(tmp_path, number=20)
    assert few["alone"]["tiles"] + few["together"]["tiles"] == 20
    none = environment_check.measure_reading(tmp_path, seconds=-1.0)
    assert none["together"] == {"tiles": 0}
    assert none["listing"]["entries"] == 1
