"""Canaries: pushed once whatever happens, waited for within bounds, and what they see is held against what the code assumes."""

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
    expectations,
    kept_results,
    plan_environment_checks,
    run_environment_checks,
)
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
PACE = Timeouts(
    poll=0.0,
    settle=0.05,
    capacity=0.0,
    capacity_patience=0.3,
    queue_patience=0.3,
    overrun=-899.7,
    stale_patience=0.3,
    unknown_patience=0.3,
    outage=0.3,
    quota_patience=0.0,
    foreign_patience=0.3,
    quota_every=0.0,
    pushes=1,
)
ON = dict.fromkeys(("address", "huggingface", "pypi"), "reached")
OFF = dict.fromkeys(("address", "huggingface", "pypi"), "TimeoutError")
CARD = {"name": "Tesla T4", "capability": "7.5", "memory": 15_843_721_216, "bfloat16": False}
CARD["float16"] = {"right": True, "tflops": 24.1}
VERSIONS = {
    "python": "3.12.13",
    "torch": "2.11.0",
    "timm": "1.0.28",
    "numpy": "2.1.3",
    "pandas": "2.2.3",
    "scikit-learn": "1.6.1",
}


def scores_of(slug: str, *, mounted: str = "") -> dict[str, Any]:
    """What a canary sees where everything is as the code assumes."""
    facts: dict[str, Any] = {
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
        "cards": [CARD, CARD] if slug == GPU else [],
        "all_reduce": {"skipped": "it needs two cards, here are 0"},
        "tiles": {"absent": "the competition's data is not among the inputs"},
    }
    if slug == GPU:
        facts["all_reduce"] = {"backend": "nccl", "processes": 2, "right": True, "gigabytes_per_second": 5.0}
    if slug == MOUNT:
        place = f"notebooks/alice/{CPU}"
        facts["mounts"] = [
            {"place": f"competitions/{COMPETITION}", "kind": ""},
            {"place": place, "kind": "environment_check"},
        ]
        added = ["__results__.html", "custom.css"]
        facts["outputs"] = [
            {"place": place, "push_id": mounted, "added": added, "seconds_since_it_ended": 75.0}
        ]
        facts["tiles"] = {
            "place": f"competitions/{COMPETITION}",
            "listing": {"entries": 220_025, "seconds": 2.0},
            "alone": {"tiles": 500, "median_milliseconds": 4.0},
            "together": {"tiles": 1500, "readers": 8, "tiles_per_second": 900.0},
        }
    return facts


def parameters_in(source: str) -> dict[str, Any]:
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "PARAMETERS":
            return ast.literal_eval(node.value)
    raise AssertionError("no PARAMETERS")


class FakeKaggle:
    """Keeps kernels and runs them at once; answers can be replaced by what a test plans."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.user = "alice"
        self.sources: dict[str, str] = {}
        self.pushed: list[str] = []  # slugs of versions that came to be
        self.asked: list[str] = []  # slugs of pushes that were asked for
        self.deleted: list[str] = []
        self.refusals: dict[str, list[Exception]] = {}  # raised in place of the next pushes
        self.lost: set[str] = set()  # pushes that happen, and whose answer does not come
        self.statuses: dict[str, list[RunStatus | Exception]] = {}  # answered first
        self.pulls: dict[str, Exception] = {}
        self.kept_back: dict[str, int] = {}  # how many listings still show the output of an earlier push
        self.logs: dict[str, str] = {}
        self.hours = Quota(used=2.0, allowed=30.0, refresh=None)

    def push(self, folder: Path, *, limit: float) -> Pushed:
        metadata = json.loads((folder / "kernel-metadata.json").read_text())
        slug = metadata["id"].split("/")[1]
        self.asked.append(slug)
        assert metadata["id"] == f"alice/{slug}"
        assert 0 < limit <= 900
        if self.refusals.get(slug):
            raise self.refusals[slug].pop(0)
        self.pushed.append(slug)
        self.sources[slug] = (folder / metadata["code_file"]).read_text()
        self._leave(slug, parameters_in(self.sources[slug]))
        if slug in self.lost:
            self.lost.discard(slug)
            raise NoResponseError("no answer from Kaggle")
        return Pushed(self.pushed.count(slug), "")

    def _leave(self, slug: str, parameters: dict[str, Any], *, push_id: str = "") -> None:
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
            answer = self.statuses[slug].pop(0)
            if isinstance(answer, BaseException):
                raise answer
            return answer
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
def source():
    return read_checkout(owner="alice")


@pytest.fixture
def run(kaggle, source, tmp_path):
    """Runs the probes; what was said is kept in `run.said`."""

    def probes(*, pace: Timeouts = PACE, say: Any = None):
        said: list[str] = []
        probes.said = said
        return run_environment_checks(
            kaggle, tmp_path / "check", say or said.append, pace=pace, source=source
        )

    return probes


def test_the_canaries_are_kernels_that_client_and_service_take(source, tmp_path):
    for kernel in plan_environment_checks():
        size = source.write_kernel(kernel, tmp_path / kernel.slug, push_id="x", limit=900)
        metadata = json.loads((tmp_path / kernel.slug / "kernel-metadata.json").read_text())
        assert check_kernel_metadata(metadata, tmp_path / kernel.slug) == []
        assert size < 1_000_000
        got = (
            metadata["enable_gpu"],
            metadata["enable_internet"],
            metadata["kernel_sources"],
            metadata["competition_sources"],
        )
        wanted = {
            CPU: (False, True, [], []),
            GPU: (True, False, [], []),
            MOUNT: (False, False, [f"alice/{CPU}"], [COMPETITION]),
        }
        assert got == wanted[kernel.slug]


def test_all_as_assumed_ends_in_nothing_to_do_and_is_kept_with_its_date(run, kaggle, tmp_path):
    findings = run()
    assert [finding for finding in findings if finding.ok is not True] == []
    assert len(findings) > 15
    assert kaggle.pushed == [CPU, GPU, MOUNT]
    cost = next(number for number, line in enumerate(run.said) if "h of GPU quota" in line)
    assert cost < next(number for number, line in enumerate(run.said) if ": pushed" in line)
    assert not (tmp_path / "check" / LEDGER_NAME).exists()
    date, records, again = kept_results(tmp_path / "check")
    assert again == findings
    assert date.tzinfo is not None
    assert set(records) == set(SLUGS)


def test_the_mount_canary_waits_for_the_one_it_mounts(run, kaggle):
    seen = []
    answers = [RunStatus(ABSENT), *[RunStatus(RUNNING)] * 4]

    def status(slug: str) -> RunStatus:
        if slug == CPU and answers:
            seen.append(list(kaggle.pushed))
            return answers.pop(0)
        return RunStatus(COMPLETE if slug in kaggle.sources else ABSENT)

    kaggle.status = status
    run()
    assert all(MOUNT not in pushed for pushed in seen)
    assert seen[-1] == [CPU, GPU]  # both at once


@pytest.mark.parametrize("moment", range(1, 7))
def test_interrupted_at_any_look_and_repeated_nothing_is_pushed_twice(moment, run, kaggle):
    looks = []
    status = kaggle.status

    def interrupted(slug: str) -> RunStatus:
        looks.append(slug)
        if len(looks) == moment:
            raise KeyboardInterrupt
        return status(slug)

    kaggle.status = interrupted
    with pytest.raises(KeyboardInterrupt):
        run()
    findings = run()
    assert kaggle.pushed == [CPU, GPU, MOUNT]
    assert all(finding.ok for finding in findings)


def test_killed_between_the_intention_and_the_push_it_is_pushed_under_the_noted_id(run, kaggle, tmp_path):
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
def test_a_push_without_an_answer_is_proved_before_it_is_asked_again(happened, run, kaggle):
    if happened:
        kaggle.lost = {GPU}
    else:
        kaggle.refusals[GPU] = [NoResponseError("no answer from Kaggle")]
    findings = run()
    assert kaggle.pushed.count(GPU) == 1
    assert kaggle.asked.count(GPU) == (1 if happened else 2)
    assert all(finding.ok for finding in findings)


def test_the_output_of_an_earlier_push_is_not_taken_for_this_one(run, kaggle):
    run()
    earlier = kaggle.folder / "earlier" / CPU
    earlier.parent.mkdir(parents=True)
    shutil.copytree(kaggle.folder / CPU, earlier)
    kaggle.kept_back[CPU] = 3
    findings = run()
    assert kaggle.pushed.count(CPU) == 2
    assert any("earlier push" in line for line in run.said)
    assert all(finding.ok for finding in findings)
    kaggle.kept_back[CPU] = 10**9
    findings = run()
    assert [finding.name for finding in findings if finding.ok is False] == [CPU, MOUNT]


def test_a_canary_that_fails_shows_its_log_and_the_others_are_kept(run, kaggle, tmp_path):
    kaggle.statuses[CPU] = [RunStatus(ABSENT), *[RunStatus(RUNNING)] * 2, RunStatus("ERROR", "exit code 1")]
    kaggle.logs[CPU] = "Traceback\nImportError: no module named torch\n"
    findings = run()
    wrong = {finding.name: finding for finding in findings if finding.ok is False}
    assert set(wrong) == {CPU, MOUNT}
    assert "exit code 1" in wrong[CPU].found
    assert "ImportError: no module named torch" in wrong[CPU].found
    assert MOUNT not in kaggle.asked
    assert any(finding.name.startswith("environment check gpu") and finding.ok for finding in findings)
    # The next time all three are pushed anew.
    assert all(finding.ok for finding in run())


def test_a_refusal_for_want_of_a_session_is_waited_out(run, kaggle):
    kaggle.refusals[GPU] = [CapacityError("Maximum batch GPU session count of 2 reached.")] * 2
    assert all(finding.ok for finding in run())
    assert kaggle.asked.count(GPU) == 3


def test_a_refusal_for_want_of_a_session_is_not_waited_out_for_ever(run, kaggle):
    kaggle.refusals[GPU] = [CapacityError("Maximum batch GPU session count of 2 reached.")] * 10**5
    wrong = [finding for finding in run() if finding.ok is False]
    assert [finding.name for finding in wrong] == [GPU]
    assert "End the other sessions" in wrong[0].remedy


def test_without_quota_the_gpu_canary_is_not_pushed_and_the_others_are(run, kaggle):
    kaggle.hours = Quota(used=29.95, allowed=30.0, refresh=None)
    wrong = [finding for finding in run() if finding.ok is False]
    assert [finding.name for finding in wrong] == [GPU]
    assert kaggle.asked == [CPU, MOUNT]


@pytest.mark.parametrize(
    ("slug", "error", "word"),
    [
        (GPU, QuotaError("Maximum weekly GPU quota of 30.00 hours reached."), "quota is back"),
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
    wrong = [finding for finding in run() if finding.ok is False]
    assert [finding.name for finding in wrong] == [slug]
    assert word in wrong[0].remedy
    assert kaggle.asked.count(slug) == 1


def test_a_ghost_is_deleted_once_it_is_proved_to_be_one(run, kaggle):
    kaggle.refusals[GPU] = [EmptyKernelError("Notebook not found")]
    kaggle.pulls[GPU] = NoResponseError("HTTP 500")
    assert all(finding.ok for finding in run())
    assert kaggle.deleted == [GPU]


def test_a_kernel_that_has_a_version_is_never_deleted(run, kaggle):
    kaggle.sources[GPU] = "print('precious')"
    kaggle.refusals[GPU] = [EmptyKernelError("Notebook not found")]
    wrong = [finding for finding in run() if finding.ok is False]
    assert [finding.name for finding in wrong] == [GPU]
    assert kaggle.deleted == []


def test_a_run_that_is_not_ours_is_waited_for_and_not_pushed_over(run, kaggle):
    kaggle.statuses[CPU] = [RunStatus(RUNNING)] * 5
    findings = run()
    assert any("did not push is RUNNING" in line for line in run.said)
    assert all(finding.ok for finding in findings)
    kaggle.statuses[CPU] = [RunStatus(RUNNING)] * 10**6
    pushed = kaggle.pushed.count(CPU)
    assert [finding.name for finding in run() if finding.ok is False] == [CPU, MOUNT]
    assert kaggle.pushed.count(CPU) == pushed


@pytest.mark.parametrize("state", ["QUEUED", "RUNNING", ABSENT])
def test_a_run_that_never_ends_is_not_waited_for_for_ever(state, run, kaggle):
    kaggle.statuses[GPU] = [RunStatus(ABSENT), *[RunStatus(state)] * 10**6]
    wrong = [finding for finding in run() if finding.ok is False]
    assert [finding.name for finding in wrong] == [GPU]
    assert (f"has been {state}" if state != ABSENT else "shows no run of it") in wrong[0].found


def test_an_outage_ends_the_command_and_the_same_command_goes_on(run, kaggle):
    statuses = [RunStatus(ABSENT), *[NoResponseError("no answer from Kaggle")] * 10**6]
    kaggle.statuses[CPU] = statuses
    with pytest.raises(LaunchError, match="the same command goes on"):
        run()
    statuses.clear()
    assert all(finding.ok for finding in run())
    assert kaggle.pushed == [CPU, GPU, MOUNT]


def test_the_state_of_another_account_is_not_taken_up(run, kaggle, tmp_path):
    kaggle.statuses[CPU] = [RunStatus(ABSENT), KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        run()
    state = tmp_path / "check" / LEDGER_NAME
    state.write_text(state.read_text().replace('"alice"', '"bob"'))
    run()
    assert kaggle.pushed.count(CPU) == 2


def test_a_second_probe_at_the_same_time_is_refused(run, kaggle):
    def status(slug: str) -> RunStatus:
        run()
        raise AssertionError("two at once")

    kaggle.status = status
    with pytest.raises(LaunchError, match="is at work in"):
        run()


# --- judging ---------------------------------------------------------------------------------------------------------


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
    # canary, where, what it saw, the finding, its verdict, a word of it
    (CPU, "scores.place", "local", "place", False, "KAGGLE_KERNEL_RUN_TYPE"),
    (CPU, "scores.place", "rehearsal", "place", None, "emulator"),
    (CPU, "scores.environment.run_type", "another word", "place", None, "another word"),
    (CPU, "scores.paths.working", "/somewhere", "paths", None, "/somewhere"),
    (CPU, "versions.python", "3.10.4", "python", False, "3.11"),
    (CPU, "versions.python", "3.14.0", "python", None, "3.14.0"),
    (GPU, "versions.torch", "2.6.0", "packages", None, "torch 2.6.0"),
    (GPU, "scores.imports", {"kernels.train": "ImportError: no timm"}, "packages", False, "no timm"),
    (CPU, "scores.paths.free.working", 8_000_000_000, "room", False, "7.7 GB"),
    (CPU, "scores.paths.free.working", 15_000_000_000, "room", None, "15.0 GB"),
    (CPU, "scores.machine.memory", 8_000_000_000, "room", False, "8.0 GB"),
    (GPU, "scores.machine.cores", 2, "room", None, "2 cores"),
    (CPU, "scores.internet", OFF, "internet on", False, "phone"),
    (CPU, "scores.internet", {**ON, "huggingface": "gaierror"}, "internet on", False, "huggingface"),
    (GPU, "scores.internet", ON, "internet off", None, "asked off"),
    (GPU, "scores.cards", [], "cards", False, "phone"),
    (GPU, "scores.cards", [CARD], "cards", None, "T4"),
    (GPU, "scores.cards", [{**CARD, "capability": "6.0"}], "cards", False, "machine_shape"),
    (
        GPU,
        "scores.cards",
        [CARD, {**CARD, "float16": {"error": "no kernel image"}}],
        "cards",
        False,
        "no kernel image",
    ),
    (GPU, "scores.cards", {"error": "cards: driver too old"}, "cards", None, "driver too old"),
    (GPU, "scores.all_reduce", {"error": "no end within 120 s"}, "two cards together", None, "120 s"),
    (GPU, "scores.all_reduce", {"right": False}, "two cards together", None, "wrong"),
    (MOUNT, "scores.tiles", {"absent": "nothing is mounted"}, "competition", False, "Accept the rules"),
    (MOUNT, "scores.tiles.place", COMPETITION, "competition", None, "found at"),
    (MOUNT, "scores.tiles.together.tiles_per_second", 50.0, "reading tiles", None, "50 tiles/s"),
    (MOUNT, "scores.tiles.together.tiles_per_second", 10.0, "reading tiles", False, "10 tiles/s"),
    (MOUNT, "scores.outputs", [], "mounted output", False, "0 times"),
    (MOUNT, "scores.outputs.0.push_id", "another", "mounted output", False, "earlier"),
    (MOUNT, "scores.outputs.0.added", ["surprise.bin"], "mounted output", None, "surprise.bin"),
    (MOUNT, "scores.outputs.0.place", CPU, "mounted output", None, "found at"),
    (MOUNT, "scores.outputs.0.problem", "run.json is damaged", "mounted output", False, "damaged"),
    (CPU, "scores.machine", None, "room", None, "does not say"),
]


@pytest.mark.parametrize(("slug", "where", "value", "name", "ok", "word"), DEVIATIONS)
def test_what_is_not_as_assumed_is_found(slug, where, value, name, ok, word):
    seen = records()
    *path, last = where.split(".")
    place = seen[slug]
    for part in path:
        place = place[int(part)] if isinstance(place, list) else place[part]
    place[last] = value
    changed = set(expectations(seen)) - set(expectations(records()))
    short = slug.removeprefix("hcd-").replace("-", " ")
    [found] = [finding for finding in changed if finding.name == f"{short}: {name}"]
    assert found.ok is ok
    assert word in found.found + found.remedy
    assert found.remedy


def test_as_assumed_is_as_assumed():
    assert {finding.ok for finding in expectations(records())} == {True}


# --- what really runs ------------------------------------------------------------------------------------------------


PLANTED = {
    "KAGGLE_USER_SECRETS_TOKEN": "planted-secret-one",
    "KAGGLE_DATA_PROXY_TOKEN": "planted-secret-two",
    "KAGGLE_KERNEL_RUN_TYPE": "planted-secret-three",
    "HTTPS_PROXY": "http://user:planted-secret-four@127.0.0.1:9",
}


@pytest.fixture(scope="module")
def ran(source, tmp_path_factory) -> dict[str, dict[str, Any]]:
    """The canaries of CPU and mount, run as lone scripts; the first with secrets in its environment."""
    folder = tmp_path_factory.mktemp("canaries")
    write_competition(folder / "data", labelled=60, unlabelled=10, seed=3)
    scripts = {}
    for kernel in plan_environment_checks():
        source.write_kernel(kernel, folder / kernel.slug, push_id=f"p.{kernel.slug}", limit=900)
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


def test_a_canary_runs_alone_and_every_look_answers(ran):
    for record in ran.values():
        failed = {
            name: fact
            for name, fact in record["scores"].items()
            if isinstance(fact, dict) and "error" in fact
        }
        assert failed == {}
        assert all(said.startswith("ok") for said in record["scores"]["imports"].values())
    assert set(ran[CPU]["scores"]["imports"]) >= {
        "kernels.train",
        "kernels.prepare",
        "kernels.inference",
        "kernels.weights",
    }
    assert ran[CPU]["scores"]["environment"]["run_type"] == "another word"


def test_the_mount_canary_sees_what_is_mounted(ran):
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
    names = {finding.name: finding.ok for finding in expectations(ran)}
    assert names["environment check mount: competition"] is True
    assert names["environment check mount: mounted output"] is True
    assert names["environment check mount: place"] is None  # a rehearsal is not Kaggle
    if isolation() == "namespaces":
        assert names["environment check mount: internet off"] is True


def test_a_damaged_mount_is_seen(ran, tmp_path):
    mount = tmp_path / "notebooks" / "alice" / CPU
    (mount / "environment-check").mkdir(parents=True)
    (mount / "run.json").write_text(json.dumps(ran[CPU]))
    (mount / environment_check.SAMPLE).write_bytes(environment_check.SAMPLE_BYTES[:-1] + b"x")
    [facts] = environment_check.mounted_outputs(tmp_path, kind="environment_check")
    assert "damaged" in facts["problem"]


def test_processes_sum_their_numbers_and_one_that_hangs_is_ended(monkeypatch, tmp_path):
    facts = environment_check.all_reduce(processes=2, backend="gloo", seconds=60)
    assert facts["right"] is True
    assert facts["gigabytes_per_second"] > 0
    # A time in which nobody can start: both are ended, and it says so.
    assert "no end within" in environment_check.all_reduce(processes=2, backend="gloo", seconds=0.2)["error"]
    assert (
        "ended with"
        in environment_check.all_reduce(processes=2, backend="no-such-backend", seconds=60)["error"]
    )


def test_reading_is_bounded_in_time_and_number(tmp_path):
    write_competition(tmp_path / "competitions" / COMPETITION, labelled=60, unlabelled=10, seed=3)
    few = environment_check.tiles(tmp_path, number=20)
    assert few["alone"]["tiles"] + few["together"]["tiles"] == 20
    none = environment_check.tiles(tmp_path, seconds=-1.0)
    assert none["together"] == {"tiles": 0}
    assert none["listing"]["entries"] == 1
