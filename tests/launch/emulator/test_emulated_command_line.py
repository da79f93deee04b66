"""The emulated Kaggle, used by the unmodified `kaggle` command line."""

import json
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import nbformat
import pytest
from emulated_world import TOKEN

from launch.emulator.faults import Fault
from launch.emulator.scheduler import KernelExecutor

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
    statuses = [
        json.loads(line)["status"]
        for line in (kaggle.kaggle.account.folder / "requests.jsonl").read_text().splitlines()
        if '"upload"' in line
    ]
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
