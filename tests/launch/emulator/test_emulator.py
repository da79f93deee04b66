"""The emulated Kaggle: first by the unmodified `kaggle` command line, then request by request."""

import base64
import gzip
import io
import json
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
import requests
from emulated_wire import FAST, Wire
from emulated_world import TOKEN

from launch.emulator.faults import Fault, load_faults
from launch.emulator.scheduler import KernelExecutor
from launch.errors import LaunchError

COMPETITION = "histopathologic-cancer-detection"
KAGGLE = str(Path(sys.executable).parent / "kaggle")


def cli(kaggle, *arguments, **changes):
    environment = {**kaggle.environment(), **changes}
    return subprocess.run(
        [KAGGLE, *arguments],
        env=environment,
        cwd=kaggle.folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def kernel(folder: Path, slug: str, source: str, **metadata) -> Path:
    """Write the folder of a kernel, as a user would."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "code.py").write_text(source)
    content = {
        "id": f"alice/{slug}",
        "title": slug.replace("-", " "),
        "code_file": "code.py",
        "language": "python",
        "kernel_type": "script",
        "enable_internet": False,
        **metadata,
    }
    (folder / "kernel-metadata.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def real(world):
    """A world whose kernels are real scripts in the sandbox."""
    kaggle = world()
    kaggle.kaggle.sessions.use(KernelExecutor(2, {}))
    return kaggle


def wait_for(kaggle, slug: str, text: str) -> str:
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline:
        status = cli(kaggle, "kernels", "status", f"alice/{slug}").stdout
        if text in status:
            return status
    raise AssertionError(f"{slug}: {status}")


def test_kernels_by_the_command_line(real, tmp_path):
    folder = kernel(
        tmp_path / "one",
        "first-kernel",
        "import os, pathlib\n"
        "print('hello from', os.getcwd().split('/')[-1])\n"
        "pathlib.Path('left.txt').write_text('something')\n"
        "pathlib.Path('sub').mkdir()\npathlib.Path('sub/deep.txt').write_text('deep')\n",
        competition_sources=[COMPETITION],
    )
    saved = cli(real, "kernels", "push", "-p", str(folder), "--no-run")
    assert "successfully saved without running" in saved.stdout, saved
    assert "NEW_SCRIPT" in cli(real, "kernels", "status", "alice/first-kernel").stdout
    pushed = cli(real, "kernels", "push", "-p", str(folder))
    assert "Kernel version 2 successfully pushed." in pushed.stdout, pushed
    assert 'alice/first-kernel has status "KernelWorkerStatus.COMPLETE"' in wait_for(
        real, "first-kernel", "COMPLETE"
    )
    assert "NEW_SCRIPT" in cli(real, "kernels", "status", "alice/first-kernel/1").stdout
    assert "COMPLETE" in cli(real, "kernels", "status", "alice/first-kernel/2").stdout
    assert cli(real, "kernels", "status", "alice/first-kernel/3").returncode == 1
    out = tmp_path / "out"
    fetched = cli(real, "kernels", "output", "alice/first-kernel", "-p", str(out))
    assert fetched.returncode == 0, fetched
    assert (out / "left.txt").read_text() == "something"
    assert (out / "sub" / "deep.txt").read_text() == "deep"
    assert sorted(path.name for path in out.iterdir()) == ["first-kernel.log", "left.txt", "sub"]
    assert "hello from working" in cli(real, "kernels", "logs", "alice/first-kernel").stdout
    pulled = cli(real, "kernels", "pull", "alice/first-kernel", "-p", str(tmp_path / "pulled"), "-m")
    assert pulled.returncode == 0, pulled
    assert "hello from" in next((tmp_path / "pulled").glob("*.py")).read_text()
    assert "first-kernel" in cli(real, "kernels", "list", "-m").stdout
    assert "left.txt" in cli(real, "kernels", "files", "alice/first-kernel").stdout

    # A second kernel sees the output of the first where Kaggle mounts it, read-only, with kind Kaggle adds to
    # it.
    reader = kernel(
        tmp_path / "two",
        "second-kernel",
        "import os, pathlib\n"
        "root = pathlib.Path(os.environ['HCD_INPUT'])\n"
        "print('found', (root / 'notebooks/alice/first-kernel/left.txt').read_text())\n"
        "print('added', (root / 'notebooks/alice/first-kernel/__results__.html').exists())\n"
        f"print('competition', (root / 'competitions/{COMPETITION}/train_labels.csv').exists())\n",
        kernel_sources=["alice/first-kernel"],
        competition_sources=[COMPETITION],
    )
    assert "successfully pushed" in cli(real, "kernels", "push", "-p", str(reader)).stdout
    wait_for(real, "second-kernel", "COMPLETE")
    log = cli(real, "kernels", "logs", "alice/second-kernel").stdout
    assert "found something" in log and "added True" in log and "competition True" in log
    assert cli(real, "kernels", "delete", "alice/first-kernel", "-y").returncode == 0
    assert "first-kernel" not in cli(real, "kernels", "list", "-m").stdout


def test_a_notebook_by_the_command_line(real, tmp_path):
    code = ["print('hello from a cell')", "open('left.txt', 'w').write('x')"]
    cells = [nbformat.v4.new_code_cell(text) for text in code]
    folder = kernel(tmp_path / "one", "first-notebook", "", code_file="code.ipynb", kernel_type="notebook")
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "code.ipynb")
    assert "successfully pushed" in cli(real, "kernels", "push", "-p", str(folder)).stdout
    wait_for(real, "first-notebook", "COMPLETE")
    assert "hello from a cell" in cli(real, "kernels", "logs", "alice/first-notebook").stdout
    fetched = cli(real, "kernels", "output", "alice/first-notebook", "-p", str(tmp_path / "out"))
    assert fetched.returncode == 0 and (tmp_path / "out" / "left.txt").read_text() == "x"
    assert (
        cli(real, "kernels", "pull", "alice/first-notebook", "-p", str(tmp_path / "pulled")).returncode == 0
    )
    pulled = nbformat.read(next((tmp_path / "pulled").glob("*.ipynb")), as_version=4)
    assert [cell.source for cell in pulled.cells] == code
    script = kernel(tmp_path / "two", "first-notebook", "print(1)")
    assert "Kernel type cannot be changed" in cli(real, "kernels", "push", "-p", str(script)).stdout


def test_a_kernel_that_fails_and_one_that_exceeds_its_time_limit(real, tmp_path):
    bad = kernel(tmp_path / "bad", "bad-kernel", "raise RuntimeError('on purpose')\n")
    slow = kernel(
        tmp_path / "slow", "slow-kernel", "import time\nprint('begun', flush=True)\ntime.sleep(60)\n"
    )
    assert "successfully pushed" in cli(real, "kernels", "push", "-p", str(bad)).stdout
    assert "successfully pushed" in cli(real, "kernels", "push", "-p", str(slow), "-t", "3").stdout
    assert "Failure message" in wait_for(real, "bad-kernel", "ERROR")
    assert "on purpose" in cli(real, "kernels", "logs", "alice/bad-kernel").stdout
    wait_for(real, "slow-kernel", "CANCEL_ACKNOWLEDGED")
    assert "begun" in cli(real, "kernels", "logs", "alice/slow-kernel").stdout


def test_datasets_by_the_command_line(world, tmp_path):
    kaggle = world(settings={"dataset_delay": 6.0})
    folder = tmp_path / "data"
    (folder / "lib" / "inner").mkdir(parents=True)
    (folder / "lib" / "inner" / "code.py").write_text("x = 1\n")
    (folder / "VERSION").write_text("one")
    metadata = {"id": "alice/my-data", "title": "My data set", "licenses": [{"name": "CC0-1.0"}]}
    (folder / "dataset-metadata.json").write_text(json.dumps(metadata))
    created = cli(kaggle, "datasets", "create", "-p", str(folder), "-r", "zip")
    assert "is being created" in created.stdout, created
    assert "ready" not in cli(kaggle, "datasets", "status", "alice/my-data").stdout
    time.sleep(6)
    assert "ready" in cli(kaggle, "datasets", "status", "alice/my-data").stdout
    files = cli(kaggle, "datasets", "files", "alice/my-data").stdout
    assert "lib/inner/code.py" in files and "VERSION" in files
    assert "already in use" in cli(kaggle, "datasets", "create", "-p", str(folder), "-r", "zip").stdout
    version = cli(kaggle, "datasets", "version", "-p", str(folder), "-m", "two", "-r", "zip")
    assert "version is being created" in version.stdout, version
    early = cli(kaggle, "datasets", "status", "alice/my-data", "--format", "json").stdout
    assert json.loads(early) == {
        "status": "ready",
        "current_version_number": 1,
    }  # of the version before
    time.sleep(6)
    late = cli(kaggle, "datasets", "status", "alice/my-data", "--format", "json").stdout
    assert json.loads(late)["current_version_number"] == 2


def test_competition_and_quota_by_the_command_line(world, tmp_path):
    kaggle = world()
    submission = tmp_path / "submission.csv"
    submission.write_text((kaggle.data / "sample_submission.csv").read_text().replace(",0", ",0.5"))
    sent = cli(kaggle, "competitions", "submit", COMPETITION, "-f", str(submission), "-m", "by hand")
    assert "Successfully submitted to Histopathologic Cancer Detection" in sent.stdout, sent
    assert "Submission ref: 5000" in sent.stdout, sent
    time.sleep(0.3)
    listed = cli(kaggle, "competitions", "submissions", COMPETITION).stdout
    assert "by hand" in listed and "0.50000" in listed  # the AUC of constant predictions
    (tmp_path / "bad.csv").write_text("id,label\nx,0.5\n")
    cli(kaggle, "competitions", "submit", COMPETITION, "-f", str(tmp_path / "bad.csv"), "-m", "bad")
    time.sleep(0.3)
    assert "ERROR" in cli(kaggle, "competitions", "submissions", COMPETITION).stdout
    assert "30.00h" in cli(kaggle, "quota").stdout
    done = cli(kaggle, "competitions", "download", COMPETITION, "-p", str(tmp_path / "down"))
    assert done.returncode == 0, done
    with zipfile.ZipFile(next((tmp_path / "down").glob("*.zip"))) as archive:
        assert "train_labels.csv" in archive.namelist()
    one = cli(
        kaggle, "competitions", "download", COMPETITION, "-f", "train_labels.csv", "-p", str(tmp_path / "one")
    )
    assert one.returncode == 0, one
    assert (tmp_path / "one" / "train_labels.csv").read_bytes() == (
        kaggle.data / "train_labels.csv"
    ).read_bytes()
    assert "train_labels.csv" in cli(kaggle, "competitions", "files", COMPETITION).stdout


def test_the_client_resumes_an_upload_that_was_cut_off(world, tmp_path):
    kaggle = world(Fault("upload", "503", slug="large.bin"))
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "large.bin").write_bytes(bytes(range(256)) * 4000)
    metadata = {"id": "alice/my-data", "title": "My data set", "licenses": [{"name": "CC0-1.0"}]}
    (folder / "dataset-metadata.json").write_text(json.dumps(metadata))
    created = cli(kaggle, "datasets", "create", "-p", str(folder), TMPDIR=str(tmp_path))
    assert "is being created" in created.stdout, created
    arrived = kaggle.kaggle.account.folder / "datasets" / "my-data" / "v1" / "large.bin"
    assert arrived.read_bytes() == (folder / "large.bin").read_bytes()
    statuses = [json.loads(line)["status"] for line in _log(kaggle.kaggle.account) if '"upload"' in line]
    assert statuses == [503, 308, 200]


def test_the_log_of_a_running_kernel_is_streamed(real, tmp_path):
    source = "import time\nprint('begun', flush=True)\ntime.sleep(3)\nprint('done')\n"
    folder = kernel(tmp_path / "one", "slow-kernel", source)
    assert "successfully pushed" in cli(real, "kernels", "push", "-p", str(folder)).stdout
    followed = cli(real, "kernels", "logs", "alice/slow-kernel", "-f").stdout
    assert "begun" in followed and "done" in followed
    assert "COMPLETE" in wait_for(real, "slow-kernel", "COMPLETE")


def test_another_token_is_refused_and_no_token_is_logged(world):
    kaggle = world()
    refused = cli(kaggle, "quota", KAGGLE_API_TOKEN="KGAT_" + "0" * 32)
    assert refused.returncode != 0
    assert "KGAT_" not in refused.stdout + refused.stderr
    log = (kaggle.kaggle.account.folder / "requests.jsonl").read_text()
    assert TOKEN not in log and "KGAT_" not in log


def test_a_refused_push_has_the_message_of_kaggle(world, tmp_path):
    kaggle = world(seconds=30.0)
    kernels = [kernel(tmp_path / f"k{n}", f"gpu-kernel-{n}", _script(), enable_gpu=True) for n in range(3)]
    for folder in kernels[:2]:
        assert "successfully pushed" in cli(kaggle, "kernels", "push", "-p", str(folder)).stdout
    refused = cli(kaggle, "kernels", "push", "-p", str(kernels[2]))
    assert "Kernel push error: Maximum batch GPU session count of 2 reached." in refused.stdout
    assert refused.returncode == 0  # the client's exit code does not show the refusal
    # The refused first push left an empty kernel.
    again = cli(kaggle, "kernels", "push", "-p", str(kernels[2]))
    assert "Kernel push error: Notebook not found" in again.stdout
    kaggle.kaggle.clear_faults()
    cli(kaggle, "kernels", "delete", "alice/gpu-kernel-2", "-y")
    assert "version 1 successfully pushed" in cli(kaggle, "kernels", "push", "-p", str(kernels[2])).stdout
    lost = kernel(tmp_path / "lost", "lost-kernel", _script(), dataset_sources=["alice/none"])
    assert "not valid dataset sources" in cli(kaggle, "kernels", "push", "-p", str(lost)).stdout
    large = kernel(tmp_path / "large", "large-kernel", "#" * 1_000_001)
    assert "less than 1 megabytes" in cli(kaggle, "kernels", "push", "-p", str(large)).stderr


def test_a_restarted_server_runs_its_sessions_again(world, tmp_path):
    kaggle = world(seconds=1.5)
    folder = kernel(tmp_path / "one", "hcd-prepare", _script())
    assert "successfully pushed" in cli(kaggle, "kernels", "push", "-p", str(folder)).stdout
    kaggle.__exit__()
    state = json.loads((kaggle.folder / "kaggle" / "state.json").read_text())
    assert state["kernels"]["hcd-prepare"]["versions"][0]["status"] in ("QUEUED", "RUNNING")
    kaggle.__enter__()
    wait_for(kaggle, "hcd-prepare", "COMPLETE")
    assert [slug for slug, _ in kaggle.kernels.ran] == ["hcd-prepare", "hcd-prepare"]


def _script():
    from dataclasses import asdict

    from lib.config import Config

    parameters = {
        "kind": "prepare",
        "slug": "hcd-prepare",
        "experiments": [],
        "configs": [asdict(Config())],
        "push_id": "p",
        "bundle_id": "b",
        "git_commit": "",
        "fold": -1,
        "folds": [],
        "encoders": [],
    }
    return f"PARAMETERS = {parameters!r}\n"


def test_faults_are_read_from_a_file_and_all_problems_are_listed(tmp_path):
    path = tmp_path / "faults.json"
    path.write_text('[{"on": "SaveKernel", "kind": "500", "times": 2}]')
    assert load_faults(path) == [Fault("SaveKernel", "500", times=2)]
    path.write_text('[{"on": "nowhere", "kind": "500"}, {"kind": 5, "colour": "red"}, 7]')
    with pytest.raises(LaunchError) as failure:
        load_faults(path)
    assert all(
        text in str(failure.value)
        for text in ("'nowhere'", "colour", "on is missing", "kind must be", "entry 3")
    )


# --- on the wire


def _log(account) -> list[str]:
    return (account.folder / "requests.jsonl").read_text().splitlines()


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


@pytest.mark.parametrize("kind", ["400", "401", "403", "404", "429", "500", "503"])
def test_a_refusal_has_its_status_and_no_effect(wire, kind):
    kaggle = wire(Fault("SaveKernel", kind, value=7 if kind == "429" else None))
    answer = kaggle.ask("SaveKernel", **kaggle.push_body("one-kernel"))
    assert answer.status_code == int(kind) and answer.json()["code"] == int(kind)
    assert answer.headers.get("Retry-After") == ("7" if kind == "429" else None)
    assert kaggle.effects("SaveKernel") == 0
    assert kaggle.push("one-kernel")["versionNumber"] == 1


@pytest.mark.parametrize(("kind", "effects"), [("reset-before", 0), ("reset-after", 1), ("timeout", 1)])
def test_a_connection_that_is_reset(wire, kind, effects):
    kaggle = wire(Fault("SaveKernel", kind, value=0.1 if kind == "timeout" else None))
    with pytest.raises(requests.exceptions.RequestException) as failure:
        kaggle.ask("SaveKernel", **kaggle.push_body("one-kernel"))
    assert "reset by peer" in str(failure.value)  # a reset, not an end of the stream
    assert kaggle.effects("SaveKernel") == effects


@pytest.mark.parametrize(("kind", "effects"), [("html", 0), ("html-after", 1), ("empty", 0)])
def test_an_answer_without_content(wire, kind, effects):
    kaggle = wire(Fault("SaveKernel", kind))
    answer = kaggle.ask("SaveKernel", **kaggle.push_body("one-kernel"))
    assert answer.status_code == 200
    assert answer.text == "{}" if kind == "empty" else answer.headers["Content-Type"].startswith("text/html")
    assert kaggle.effects("SaveKernel") == effects


def test_faults_count_the_requests_they_match(wire):
    kaggle = wire(Fault("GetKernelSessionStatus", "status", slug="fold", nth=2, times=2, value="WARMING_UP"))
    kaggle.push("hcd-fold-0")
    kaggle.push("hcd-other")
    kaggle.wait_for("hcd-other", "COMPLETE")
    assert [kaggle.status("hcd-fold-0") == "WARMING_UP" for _ in range(4)] == [False, True, True, False]
    assert len(kaggle.kaggle.account.faults.fired) == 2


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("capacity", "Maximum batch GPU session count of 2 reached."),
        ("quota", "Maximum weekly GPU quota of 30.00 hours reached."),
    ],
)
def test_a_refused_first_push_leaves_an_empty_kernel(wire, kind, message):
    kaggle = wire(Fault("SaveKernel", kind))
    assert kaggle.push("one-kernel", enableGpu=True)["error"] == message
    assert kaggle.push("one-kernel", enableGpu=True)["error"] == "Notebook not found"
    assert kaggle.kernel("GetKernelSessionStatus", "one-kernel").json() == {
        "code": 404,
        "message": "No runs found",
    }
    assert kaggle.kernel("GetKernel", "one-kernel").status_code == 500
    assert kaggle.effects("SaveKernel") == 0
    assert kaggle.kernel("DeleteKernel", "one-kernel").status_code == 200
    assert kaggle.push("one-kernel", enableGpu=True)["versionNumber"] == 1


def test_capacity_is_counted_by_machine_and_a_quick_save_needs_none(wire):
    kaggle = wire(held=True)
    for number in range(5):
        assert kaggle.push(f"cpu-kernel-{number}")["versionNumber"] == 1
    assert kaggle.push("cpu-kernel-5")["error"] == "Maximum batch CPU session count of 5 reached."
    assert kaggle.push("gpu-kernel-0", enableGpu=True)["versionNumber"] == 1
    # The second version runs beside the first one and needs a session of its own.
    assert kaggle.push("gpu-kernel-0", enableGpu=True)["versionNumber"] == 2
    assert kaggle.push("gpu-kernel-0", enableGpu=True)["error"].startswith("Maximum batch GPU")
    assert kaggle.push("gpu-kernel-0", enableGpu=True, kernelExecutionType="QUICK_SAVE")["versionNumber"] == 3
    # No empty kernel is left.
    assert kaggle.push("gpu-kernel-1", enableGpu=True, kernelExecutionType="QUICK_SAVE")["versionNumber"] == 1
    assert kaggle.status("gpu-kernel-1") == "NEW_SCRIPT"


def test_concurrent_sessions_have_different_gpus(wire):
    kaggle = wire(held=True)
    kaggle.push("gpu-a", enableGpu=True, sessionTimeoutSeconds="0.3s")
    kaggle.push("gpu-b", enableGpu=True)
    kaggle.wait_for("gpu-a", "CANCEL_ACKNOWLEDGED")
    kaggle.push("gpu-c", enableGpu=True)
    kaggle.wait_for("gpu-c", "RUNNING")
    assert {job.slug: job.slot for job in kaggle.executor.jobs} == {"gpu-a": 0, "gpu-b": 1, "gpu-c": 0}


def test_sources_that_are_dropped_are_named_and_the_push_succeeds(wire):
    kaggle = wire(Fault("SaveKernel", "drop-sources", slug="second"))
    kaggle.dataset("my-data")
    sources = {"datasetDataSources": ["alice/my-data", "alice/none"], "kernelDataSources": ["bob/any"]}
    answer = kaggle.push("first-kernel", **sources, competitionDataSources=[COMPETITION, "titanic"])
    assert answer["versionNumber"] == 1
    assert answer["invalidDatasetSources"] == ["alice/none"]
    assert answer["invalidKernelSources"] == ["bob/any"]
    assert answer["invalidCompetitionSources"] == ["titanic"]
    kaggle.wait_for("first-kernel", "COMPLETE")
    mounts = {mount.target for mount in kaggle.executor.jobs[0].mounts}
    assert mounts == {f"competitions/{COMPETITION}", "datasets/alice/my-data"}
    answer = kaggle.push("second-kernel", **sources)
    assert answer["invalidDatasetSources"] == sources["datasetDataSources"]
    kaggle.wait_for("second-kernel", "COMPLETE")
    assert kaggle.executor.jobs[1].mounts == ()


def test_pushes_under_another_slug_and_refused_pushes(wire):
    kaggle = wire(
        Fault("SaveKernel", "wrong-slug", slug="one"),
        Fault("SaveKernel", "error", slug="two", value="Phone needed"),
    )
    assert kaggle.push("one-kernel")["ref"] == "/code/alice/one-kernel-copy"
    assert kaggle.push("two-kernel") == {"error": "Phone needed"}
    assert kaggle.push("third-kernel", newTitle="Another: title")["ref"] == "/code/alice/another-title"
    kaggle.dataset("my-data")
    assert kaggle.ask("SaveKernel", **kaggle.push_body("my-data")).status_code == 409
    assert kaggle.ask("SaveKernel", **kaggle.push_body("x-kernel", slug="bob/x-kernel")).status_code == 403
    assert kaggle.ask("SaveKernel", **kaggle.push_body("x-kernel", text="#" * 1_000_000)).status_code == 400
    assert kaggle.ask("SaveKernel", **kaggle.push_body("x-kernel", newTitle="x" * 51)).status_code == 400
    assert kaggle.push("x" * 50)["versionNumber"] == 1
    new = {"ownerSlug": "alice", "slug": "other-data", "title": "x" * 51, "files": []}
    assert kaggle.ask("CreateDataset", **new).status_code == 400
    assert "Python only" in kaggle.push("x-kernel", language="r")["error"]
    assert "Phone" in wire(settings={"phone_verified": False}).push("x-kernel", enableInternet=True)["error"]


def test_a_kernel_created_again_has_nothing_of_the_deleted_one(wire):
    kaggle = wire(held=True)
    kaggle.push("one-kernel")
    kaggle.wait_for("one-kernel", "RUNNING")
    first = kaggle.executor.jobs[0]
    assert kaggle.kernel("DeleteKernel", "one-kernel").status_code == 200
    assert first.stop.is_set()
    assert kaggle.push("one-kernel")["versionNumber"] == 1
    kaggle.wait_for("one-kernel", "RUNNING")
    time.sleep(0.2)  # the end of the deleted session must not end the new one
    assert kaggle.status("one-kernel") == "RUNNING"
    assert [file["fileName"] for file in kaggle.listing("one-kernel")["files"]] == ["left-0.txt"]
    assert kaggle.executor.jobs[1].folder != first.folder
    kaggle.executor.let_end()
    kaggle.wait_for("one-kernel", "COMPLETE")


def test_the_status_may_be_that_of_the_version_before(wire):
    kaggle = wire(Fault("GetKernelSessionStatus", "stale"), held=True, settings={"status_delay": 0.4})
    kaggle.push("one-kernel")
    assert kaggle.status("one-kernel") == "404"
    time.sleep(0.5)
    kaggle.wait_for("one-kernel", "RUNNING")
    kaggle.executor.let_end()
    kaggle.wait_for("one-kernel", "COMPLETE")
    kaggle.executor._end.clear()
    kaggle.push("one-kernel")
    assert kaggle.status("one-kernel") == "COMPLETE"  # of version 1, as some users saw for a minute
    time.sleep(0.5)
    assert kaggle.status("one-kernel") == "RUNNING"
    label = kaggle.kernel("GetKernelSessionStatus", "one-kernel", versionLabel="v1")
    assert label.json() == {"status": "COMPLETE"}


@pytest.mark.parametrize(
    ("kind", "value", "names", "token"),
    [
        ("missing", "deep", ["left-0.txt"], None),
        ("truncated", None, ["deep/file.txt"], None),
        ("traversal", None, ["deep/file.txt", "left-0.txt", "../x"], None),
        ("surrogates", None, ["deep/file.txt", "left-0.txt"], None),
        ("stale", None, [], None),
    ],
)
def test_faults_of_an_output_listing(wire, kind, value, names, token):
    kaggle = wire(Fault("ListKernelSessionOutput", kind, value=value))
    kaggle.push("one-kernel")
    kaggle.wait_for("one-kernel", "COMPLETE")
    deep = kaggle.executor.jobs[0].folder / "working" / "deep"
    deep.mkdir()
    (deep / "file.txt").write_text("y")
    listed = kaggle.listing("one-kernel")
    assert [file["fileName"] for file in listed["files"]] == names
    assert listed.get("nextPageToken") == token
    assert ("\ud83d" in json.loads(listed["log"] or "[{}]")[0].get("data", "")) is (kind == "surrogates")
    right = kaggle.listing("one-kernel")
    # The files that Kaggle adds are not listed.
    assert [file["fileName"] for file in right["files"]] == ["deep/file.txt", "left-0.txt"]
    assert json.loads(right["log"])[0] == {"stream_name": "stdout", "time": 0.0, "data": "begun\n"}


def test_a_listing_has_pages(wire):
    kaggle = wire()
    kaggle.push("one-kernel")
    kaggle.wait_for("one-kernel", "COMPLETE")
    for number in range(30):
        (kaggle.executor.jobs[0].folder / "working" / f"{number:02}.txt").write_text("z")
    for method, key in (("ListKernelSessionOutput", "fileName"), ("ListKernelFiles", "name")):
        first = kaggle.kernel(method, "one-kernel", pageSize=20).json()
        second = kaggle.kernel(method, "one-kernel", pageSize=20, pageToken=first["nextPageToken"]).json()
        assert "nextPageToken" not in second
        names = [file[key] for file in first["files"] + second["files"]]
        assert len(set(names)) == 31


def test_faults_of_an_output_file(wire):
    kinds = ("expired", "short", "cut", "html", "403")
    kaggle = wire(*(Fault("output", kind, nth=number) for number, kind in enumerate(kinds, start=1)))
    kaggle.push("one-kernel")
    kaggle.wait_for("one-kernel", "COMPLETE")
    url = kaggle.listing("one-kernel")["files"][0]["url"]
    expired = requests.get(url, timeout=10)
    assert expired.status_code == 403 and "text/html" in expired.headers["Content-Type"]
    short = requests.get(url, timeout=10)
    assert len(short.content) == 500 and short.headers["Content-Length"] == "500"
    with pytest.raises(requests.exceptions.RequestException):
        _ = requests.get(url, timeout=10).content
    assert "<html>" in requests.get(url, timeout=10).text
    assert requests.get(url, timeout=10).status_code == 403
    assert requests.get(url, timeout=10).content == b"x" * 1000
    part = requests.get(url, headers={"Range": "bytes=900-"}, timeout=10)
    assert part.status_code == 206 and len(part.content) == 100
    for other in (
        url.replace("left-0", "left-1"),
        url.replace("signature=", "signature=0"),
        url.replace("until=1", "until=0"),
    ):
        assert requests.get(other, timeout=10).status_code == 403


@pytest.mark.parametrize("kind", ["error", "cancelled", "no-output"])
def test_faults_of_a_session(wire, kind):
    kaggle = wire(Fault("session", kind))
    kaggle.push("one-kernel", enableGpu=True)
    kaggle.wait_for(
        "one-kernel", {"error": "ERROR", "cancelled": "CANCEL_ACKNOWLEDGED", "no-output": "COMPLETE"}[kind]
    )
    assert kaggle.listing("one-kernel")["files"] == []
    if kind == "error":
        assert "failureMessage" in kaggle.kernel("GetKernelSessionStatus", "one-kernel").json()
        assert "injected" in kaggle.listing("one-kernel")["log"]


def test_a_session_that_never_ends_holds_its_slot_even_after_a_restart(wire):
    kaggle = wire(Fault("session", "endless"), settings={"gpu_sessions": 1})
    kaggle.push("one-kernel", enableGpu=True)
    kaggle.stop()
    kaggle.start()
    assert kaggle.status("one-kernel") == "RUNNING"
    assert "session count of 1" in kaggle.push("two-kernel", enableGpu=True)["error"]
    assert kaggle.executor.jobs == []
    kaggle.kernel("DeleteKernel", "one-kernel")
    kaggle.kernel("DeleteKernel", "two-kernel")
    assert kaggle.push("two-kernel", enableGpu=True)["versionNumber"] == 1


def test_a_cancelled_session_may_hold_its_slot_until_its_kernel_is_deleted(wire):
    kaggle = wire(Fault("session", "held-slot"), settings={"gpu_sessions": 1})
    kaggle.push("one-kernel", enableGpu=True)
    assert kaggle.status("one-kernel") == "CANCEL_ACKNOWLEDGED"
    assert "session count of 1" in kaggle.push("one-kernel", enableGpu=True)["error"]
    kaggle.stop()
    kaggle.start()
    assert "session count of 1" in kaggle.push("one-kernel", enableGpu=True)["error"]
    used = kaggle.call("GetAcceleratorQuotaStatistics")["gpuQuota"]["timeUsed"]
    assert float(used.removesuffix("s")) == 0.0  # it costs no quota
    kaggle.kernel("DeleteKernel", "one-kernel")
    assert kaggle.push("one-kernel", enableGpu=True)["versionNumber"] == 1


def test_a_version_is_named_by_v_and_its_number_only(wire):
    kaggle = wire()
    kaggle.push("one-kernel")
    kaggle.wait_for("one-kernel", "COMPLETE")
    for method in ("GetKernelSessionStatus", "ListKernelSessionOutput", "ListKernelFiles"):
        assert kaggle.kernel(method, "one-kernel", versionLabel="v1").status_code == 200
        for label in ("1", "v2", "vv1"):
            assert kaggle.kernel(method, "one-kernel", versionLabel=label).status_code == 404
    for method in ("GetKernelSessionStatus", "ListKernelSessionOutput", "GetKernel", "DeleteKernel"):
        assert kaggle.kernel(method, "one-kernel/1").status_code == 403
    assert kaggle.status("one-kernel") == "COMPLETE"


@pytest.mark.parametrize(
    ("kind", "names"), [("flat", ["VERSION"]), ("no-path", ["VERSION", "b.txt", "config.py"])]
)
def test_faults_of_a_datasets_listing(wire, kind, names):
    kaggle = wire(Fault("ListDatasetFiles", kind))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as files:
        files.writestr("b.txt", "b")
        files.writestr("deep/config.py", "x = 1")
    kaggle.dataset("my-data", [("VERSION", b"one"), ("lib.zip", archive.getvalue())])
    assert sorted(kaggle.dataset_files("my-data")) == names
    assert sorted(kaggle.dataset_files("my-data")) == ["VERSION", "lib/b.txt", "lib/deep/config.py"]


def test_a_quota_that_shrinks(wire):
    kaggle = wire(Fault("GetAcceleratorQuotaStatistics", "shrunk", nth=2, value=4))
    allowed = [kaggle.call("GetAcceleratorQuotaStatistics")["gpuQuota"]["totalTimeAllowed"] for _ in range(3)]
    assert allowed == ["108000s", "14400s", "108000s"]


def test_a_new_version_of_a_dataset_is_listed_and_mounted_late(wire):
    kaggle = wire(Fault("dataset", "old-version", nth=2, value=1.0), settings={"dataset_delay": 0.5})
    kaggle.dataset("my-data")
    assert kaggle.dataset_state("my-data") == ("BLOBS_RECEIVED", 0)
    time.sleep(0.6)
    assert kaggle.dataset_state("my-data") == ("READY", 1)
    kaggle.dataset("my-data", [("VERSION", b"two"), ("more", b"2")])
    assert kaggle.dataset_state("my-data") == ("READY", 1)  # READY is the status of the version before
    assert kaggle.dataset_files("my-data") == ["VERSION"]
    kaggle.push("early-kernel", datasetDataSources=["alice/my-data"])
    time.sleep(0.6)
    assert kaggle.dataset_state("my-data") == ("READY", 1)  # the fault
    assert kaggle.dataset_files("my-data") == ["VERSION", "more"]
    kaggle.push("late-kernel", datasetDataSources=["alice/my-data"])
    kaggle.wait_for("late-kernel", "COMPLETE")
    seen = {job.slug: (job.mounts[0].source / "VERSION").read_text() for job in kaggle.executor.jobs}
    assert seen == {"early-kernel": "one", "late-kernel": "two"}
    time.sleep(1.0)
    assert kaggle.dataset_state("my-data") == ("READY", 2)
    facts = kaggle.call("GetDataset", ownerSlug="alice", datasetSlug="my-data")
    assert [version["versionNotes"] for version in facts["versions"]] == ["", "again"]


def test_a_dataset_that_fails_or_loses_a_file(wire):
    kaggle = wire(Fault("dataset", "failed", slug="bad"), Fault("dataset", "drop-file", slug="holes"))
    kaggle.dataset("bad-data")
    assert kaggle.dataset_state("bad-data")[0] == "FAILED"
    kaggle.dataset("holes-data", [(name, b"x") for name in ("a", "b", "c")])
    assert kaggle.dataset_files("holes-data") == ["a", "c"]
    assert (
        "already in use"
        in kaggle.call("CreateDataset", ownerSlug="alice", slug="bad-data", files=[])["error"]
    )


def test_archives_in_datasets_are_unpacked(wire):
    inner, outer, tar = io.BytesIO(), io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("leaf.txt", "leaf")
    with zipfile.ZipFile(outer, "w") as archive:
        archive.writestr("inner.zip", inner.getvalue())
        archive.writestr("deep/config.py", "x = 1")
    with tarfile.open(fileobj=tar, mode="w:gz") as archive:
        entry = tarfile.TarInfo("a/b.txt")
        entry.size = 1
        archive.addfile(entry, io.BytesIO(b"b"))
    files = [
        ("lib.zip", outer.getvalue()),
        ("more.tar.gz", tar.getvalue()),
        ("table.csv.gz", gzip.compress(b"id\n")),
    ]
    kaggle = wire()
    kaggle.dataset("my-data", [*files, ("no.zip", b"no archive"), ("weights.safetensors", b"w")])
    assert kaggle.dataset_files("my-data") == [
        "lib/deep/config.py",
        "lib/inner/leaf.txt",
        "more/a/b.txt",
        "no.zip",
        "table.csv",
        "weights.safetensors",
    ]  # fmt: skip


def test_uploads_are_taken_up_where_they_stopped(wire):
    kaggle = wire(
        Fault("upload", "reset", slug="reset"),
        Fault("upload", "404", slug="gone"),
        Fault("upload", "503", slug="cut"),
    )
    content = bytes(range(100))

    def start(name: str) -> str:
        return str(kaggle.call("StartBlobUpload", type="DATASET", name=name, contentLength=100)["createUrl"])

    def put(url: str, body: bytes, asked: str = "") -> requests.Response:
        return requests.put(url, data=body, headers={"Content-Range": asked} if asked else {}, timeout=10)

    assert put(start("gone.bin"), content).status_code == 404
    with pytest.raises(requests.exceptions.ConnectionError):
        put(reset := start("reset.bin"), content)
    assert put(reset, b"", "bytes */100").headers["Range"] == "bytes=0-49"
    cut = start("cut.bin")
    assert put(cut, content).status_code == 503
    where = put(cut, b"", "bytes */100")
    assert (where.status_code, where.headers["Range"]) == (308, "bytes=0-49")
    assert put(cut, content[60:], "bytes 60-99/100").status_code == 308  # with a hole
    assert put(cut, content[50:80], "bytes 50-79/100").status_code == 308  # more is to come
    token = cut.split("/")[-1]
    early = kaggle.ask("CreateDataset", ownerSlug="alice", slug="my-data", files=[{"token": token}])
    assert early.status_code == 400 and "not complete" in early.text
    kaggle.stop()
    kaggle.faults = ()
    kaggle.start()  # on another port; the bytes that arrived are kept
    cut = f"{kaggle.address}/upload/{token}"
    assert put(cut, content[80:], "bytes 80-99/100").status_code == 200
    assert put(cut, b"", "bytes */100").status_code == 200
    kaggle.call("CreateDataset", ownerSlug="alice", slug="my-data", title="my-data", files=[{"token": token}])
    assert (kaggle.kaggle.account.folder / "datasets/my-data/v1/cut.bin").read_bytes() == content
    assert put(start("long.bin"), bytes(101)).status_code == 400
    assert put(f"{kaggle.address}/upload/nobody", b"x").status_code == 404
    empty = kaggle.call("StartBlobUpload", type="DATASET", name="empty")["createUrl"]
    # The client sends an empty file in chunks.
    assert requests.put(empty, data=iter(()), timeout=10).status_code == 200


def test_submissions_are_checked_and_scored_as_on_kaggle(wire):
    kaggle = wire()
    sample = (kaggle.data / "sample_submission.csv").read_text()
    truth = (kaggle.folder / "held-back.csv").read_text()
    for text in (
        truth,
        sample.replace(",0", ",nan"),
        sample + sample.splitlines()[1],
        "id,label\nx\n",
        "a,b\n1,2\n",
    ):
        assert (
            kaggle.submit(text).json()["message"]
            == "Successfully submitted to Histopathologic Cancer Detection"
        )
    submissions = kaggle.submissions()[::-1]
    assert (submissions[0]["publicScore"], submissions[0]["privateScore"]) == ("1.00000", "1.00000")
    assert [entry["status"] for entry in submissions] == ["COMPLETE", "ERROR", "ERROR", "ERROR", "ERROR"]
    for entry, text in zip(
        submissions[1:],
        ("null values", "more than once", "could not be read", "could not be read"),
        strict=True,
    ):
        assert text in kaggle.call("GetSubmission", ref=entry["ref"])["errorDescription"]
    refused = kaggle.submit(truth)
    assert refused.status_code == 400
    assert (
        "used its daily Submission allowance (5) today, please try again tomorrow UTC ("
        in refused.json()["message"]
    )
    assert kaggle.call("GetSubmissionLimits", competitionName=COMPETITION)["numAllowedNow"] == 0
    unscored = wire(scored=False)
    unscored.submit((unscored.data / "sample_submission.csv").read_text())
    assert (
        unscored.submissions()[0]["status"] == "COMPLETE" and "publicScore" not in unscored.submissions()[0]
    )


def test_submissions_that_are_refused_or_never_scored(wire):
    message = (
        "Your team has used its daily Submission allowance (5) today, "
        "please try again tomorrow UTC (9.1 hours from now)."
    )
    kaggle = wire(
        Fault("CreateSubmission", "400", value=message),
        Fault("CreateSubmission", "404", nth=2),
        Fault("score", "pending"),
        Fault("score", "error", nth=2),
    )
    truth = (kaggle.folder / "held-back.csv").read_text()
    assert kaggle.submit(truth).json() == {"code": 400, "message": message}
    assert kaggle.submit(truth).status_code == 404
    assert kaggle.submit(truth).status_code == kaggle.submit(truth).status_code == 200
    assert [entry["status"] for entry in kaggle.submissions()] == ["ERROR", "PENDING"]
    closed = wire(settings={"rules_accepted": False})
    assert closed.submit(truth).status_code == 403
    assert closed.ask("DownloadDataFiles", competitionName=COMPETITION).status_code == 403
    assert closed.call("GetCompetition", competitionName=COMPETITION)["userHasEntered"] is False


def test_the_competitions_files_need_signed_links(wire):
    kaggle = wire()
    link = kaggle.ask("DownloadDataFile", competitionName=COMPETITION, fileName="train_labels.csv").headers[
        "Location"
    ]
    assert requests.get(link, timeout=10).content == (kaggle.data / "train_labels.csv").read_bytes()
    assert requests.get(link.replace("train_labels", "sample_submission"), timeout=10).status_code == 403
    assert requests.get(link.split("?")[0], timeout=10).status_code == 403
    for name in ("../held-back.csv", str(kaggle.folder / "held-back.csv"), "none.csv"):
        assert kaggle.ask("DownloadDataFile", competitionName=COMPETITION, fileName=name).status_code == 404
    whole = kaggle.ask("DownloadDataFiles", competitionName=COMPETITION).headers["Location"]
    part = requests.get(whole, headers={"Range": "bytes=10-"}, timeout=10)
    assert part.status_code == 206 and part.content == requests.get(whole, timeout=10).content[10:]


def test_the_quota_counts_gpu_time_until_its_reset(wire):
    kaggle = wire(held=True, settings={"gpu_hours_used": 29.9999, "quota_refresh": 2.0})
    kaggle.push("one-kernel", enableGpu=True)
    time.sleep(0.5)
    assert "weekly GPU quota of 30.00 hours" in kaggle.push("two-kernel", enableGpu=True)["error"]
    assert kaggle.push("cpu-kernel")["versionNumber"] == 1
    used = kaggle.call("GetAcceleratorQuotaStatistics")["gpuQuota"]
    assert float(used["timeUsed"].removesuffix("s")) >= 108_000 and used["totalTimeAllowed"] == "108000s"
    kaggle.kernel("DeleteKernel", "one-kernel")
    after = kaggle.call("GetAcceleratorQuotaStatistics")["gpuQuota"]["timeUsed"]
    assert float(after.removesuffix("s")) >= 108_000  # deleting a kernel gives no quota back
    kaggle.stop()
    time.sleep(2.0)
    kaggle.start()
    assert kaggle.call("GetAcceleratorQuotaStatistics")["gpuQuota"]["timeUsed"] == "0.000s"


def test_time_without_a_server_costs_no_quota(wire):
    kaggle = wire(held=True)
    kaggle.push("one-kernel", enableGpu=True)
    kaggle.wait_for("one-kernel", "RUNNING")
    kaggle.stop()
    state = kaggle.kaggle.account.folder / "state.json"
    content = json.loads(state.read_text())
    content["kernels"]["one-kernel"]["versions"][0]["started_at"] -= 40 * 3600
    state.write_text(json.dumps(content))
    kaggle.start()
    assert float(kaggle.call("GetAcceleratorQuotaStatistics")["gpuQuota"]["timeUsed"].removesuffix("s")) < 60


def test_a_session_that_is_run_again_has_the_same_folder_and_inputs(wire):
    kaggle = wire(held=True)
    kaggle.dataset("my-data")
    kaggle.push("one-kernel", datasetDataSources=["alice/my-data"])
    kaggle.wait_for("one-kernel", "RUNNING")
    kaggle.dataset("my-data", [("VERSION", b"two")])
    kaggle.stop()
    kaggle.start()
    kaggle.executor.let_end()
    kaggle.wait_for("one-kernel", "COMPLETE")
    before, after = kaggle.executor.jobs
    assert before.folder == after.folder
    assert [(mount.source / "VERSION").read_text() for mount in after.mounts] == ["one"]
    assert [file["fileName"] for file in kaggle.listing("one-kernel")["files"]] == [
        "left-0.txt",
        "left-1.txt",
    ]
    assert kaggle.effects("SaveKernel") == 1


def test_only_complete_versions_are_mounted(wire):
    kaggle = wire(Fault("session", "cancelled", nth=2))
    for _ in range(2):
        kaggle.push("one-kernel")
        time.sleep(0.2)
    kaggle.push("one-kernel", kernelExecutionType="QUICK_SAVE")
    kaggle.push("saved-kernel", kernelExecutionType="QUICK_SAVE")
    kaggle.push("two-kernel", kernelDataSources=["alice/one-kernel", "alice/saved-kernel"])
    kaggle.wait_for("two-kernel", "COMPLETE")
    [mount] = kaggle.executor.jobs[-1].mounts
    assert mount.target == "notebooks/alice/one-kernel" and mount.source.parent.name == "v1"
    assert (mount.source / "__results__.html").is_file()


def test_a_session_without_the_outputs_of_its_sources(wire):
    kaggle = wire(Fault("session", "no-mount", slug="two"))
    kaggle.push("one-kernel")
    kaggle.wait_for("one-kernel", "COMPLETE")
    for _ in range(2):
        kaggle.push("two-kernel", kernelDataSources=["alice/one-kernel"])
        kaggle.wait_for("two-kernel", "COMPLETE")
    assert [len(job.mounts) for job in kaggle.executor.jobs] == [0, 0, 1]


def test_a_folder_or_port_in_use_is_refused(wire):
    from launch.emulator.server import Server

    kaggle = wire()
    with pytest.raises(LaunchError, match="another emulated Kaggle uses"):
        Wire(kaggle.folder)
    with pytest.raises(LaunchError, match="cannot be used"):
        Server(kaggle.kaggle, port=kaggle.server.port)
    kaggle.stop()
    kaggle.start()


def test_a_state_of_another_version_is_refused_and_the_folder_unlocked(wire):
    kaggle = wire()
    kaggle.push("one-kernel")
    kaggle.stop()
    path = kaggle.kaggle.account.folder / "state.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps({**state, "format": 1}))
    with pytest.raises(LaunchError, match="written by another version"):
        kaggle.start()
    path.write_text(json.dumps(state))
    kaggle.start()
    assert kaggle.effects("SaveKernel") == 1


def test_requests_of_other_accounts_are_refused(wire):
    kaggle = wire()
    kaggle.push("one-kernel")

    def basic(user: str, key: str) -> dict[str, str]:
        return {"Authorization": "Basic " + base64.b64encode(f"{user}:{key}".encode()).decode()}

    for headers in ({}, {"Authorization": "Bearer no"}, basic("alice", "no"), basic("bob", TOKEN)):
        refused = kaggle.ask("GetAcceleratorQuotaStatistics", headers=headers)
        assert (refused.status_code, refused.json()) == (401, {"code": 401, "message": "Unauthenticated"})
    assert kaggle.ask("GetAcceleratorQuotaStatistics", headers=basic("alice", TOKEN)).status_code == 200
    assert kaggle.call("IntrospectToken", token="no") == {"active": False}
    assert kaggle.ask("GetKernelSessionStatus", userName="bob", kernelSlug="one-kernel").status_code == 403
    assert kaggle.ask("GetDatasetStatus", ownerSlug="bob", datasetSlug="any-data").status_code == 403
    assert kaggle.ask("GetCompetition", competitionName="titanic").status_code == 404
    assert kaggle.ask("NoSuchMethod").json()["code"] == 404
    requests.put(f"{kaggle.address}/upload/{TOKEN}", data=b"x", timeout=10)
    requests.get(f"{kaggle.address}/{TOKEN}", timeout=10)
    assert TOKEN not in kaggle.requests()
    line = next(
        line for line in map(json.loads, kaggle.requests().splitlines()) if line["method"] == "SaveKernel"
    )
    assert (line["slug"], line["status"], line["version"], line["changes"]) == ("one-kernel", 200, 1, True)


def test_hooks_are_called_before_and_after_a_change_is_durable(wire):
    kaggle = wire(Fault("SaveKernel", "capacity", slug="refused"))
    calls, state = [], kaggle.kaggle.account.folder / "state.json"

    def durable() -> int:
        return len(json.loads(state.read_text())["changes"]) if state.is_file() else 0

    kaggle.kaggle.account.before_change = lambda method, slug: calls.append(
        ("before", method, slug, durable())
    )
    kaggle.kaggle.account.after_change = lambda method, slug: calls.append(("after", method, slug, durable()))
    kaggle.push("refused-kernel")
    assert calls == []  # a refusal is no change
    kaggle.push("one-kernel")
    kaggle.dataset("my-data")
    assert [call for call in calls if call[1] in ("SaveKernel", "CreateDataset")] == [
        ("before", "SaveKernel", "one-kernel", 0),
        ("after", "SaveKernel", "one-kernel", 1),
        ("before", "CreateDataset", "my-data", 1),
        ("after", "CreateDataset", "my-data", 2),
    ]
    assert {call[1] for call in calls} == {"SaveKernel", "CreateDataset", "StartBlobUpload", "upload"}
    kaggle.stop()
    kaggle.start()
    assert [change["method"] for change in kaggle.kaggle.account.changes()] == ["SaveKernel", "CreateDataset"]


def test_concurrent_pushes_lose_no_version(wire):
    kaggle = wire()
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda: answers.append(kaggle.push("one-kernel").get("versionNumber", 0)))
        for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken = sorted(number for number in answers if number)
    assert taken == list(range(1, len(taken) + 1)) and len(taken) >= 5
    assert kaggle.effects("SaveKernel") == len(taken)


def test_a_refused_log_stream_and_faults_that_are_not_valid(wire):
    kaggle = wire(Fault("log", "503"), Fault("log", "surrogates", nth=4), held=True)
    kaggle.push("one-kernel")
    kaggle.wait_for("one-kernel", "RUNNING")
    url = f"{kaggle.address}/api/v1/kernels/logs/stream/alice/one-kernel"
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert requests.get(url, headers=headers, timeout=10).status_code == 503
    threading.Timer(0.3, kaggle.executor.let_end).start()
    lines = requests.get(url, headers=headers, timeout=10).text.split("\n\n")
    assert lines == [
        'data: {"stream_name": "stdout", "time": 0.0, "data": "begun\\n"}',
        "data: END_OF_LOG",
        "",
    ]
    assert requests.get(f"{url}?versionLabel=v1", headers=headers, timeout=10).json()[0]["data"] == "begun\n"
    assert "\ud83d" in requests.get(url, headers=headers, timeout=10).json()[0]["data"]
    assert requests.get(f"{url}?versionLabel=1", headers=headers, timeout=10).status_code == 404
    for fault in (
        Fault("SaveKernel", "reset_after"),
        Fault("nowhere", "500"),
        Fault("score", "error", nth=0),
    ):
        with pytest.raises(LaunchError):
            wire(fault)
    for fault in (
        Fault("GetKernelSessionStatus", "status"),
        Fault("SaveKernel", "timeout", value="long"),
        Fault("GetAcceleratorQuotaStatistics", "shrunk"),
    ):
        with pytest.raises(LaunchError):
            wire(fault)
