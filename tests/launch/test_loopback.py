"""The unmodified `kaggle` command line, as a person would type it, against the loopback Kaggle."""

import json
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from loopback_world import TOKEN

from launch.errors import LaunchError
from launch.rehearsal.faults import Fault, load_faults
from launch.rehearsal.scheduler import KernelExecutor

COMPETITION = "histopathologic-cancer-detection"
KAGGLE = str(Path(sys.executable).parent / "kaggle")


def cli(kaggle, *arguments, **changes):
    environment = {**kaggle.environment(), **changes}
    return subprocess.run(
        [KAGGLE, *arguments], env=environment, cwd=kaggle.folder, capture_output=True, text=True, timeout=60, check=False
    )


def kernel(folder: Path, slug: str, source: str, **metadata) -> Path:
    """A kernel's folder, as a person writes it."""
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
    """A world whose kernels are run as scripts."""
    kaggle = world()
    kaggle.kaggle.use(KernelExecutor(2, {}))
    return kaggle


def wait_for(kaggle, slug: str, words: str) -> str:
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline:
        said = cli(kaggle, "kernels", "status", f"alice/{slug}").stdout
        if words in said:
            return said
    raise AssertionError(f"{slug}: {said}")


def test_kernels_by_hand(real, tmp_path):
    folder = kernel(
        tmp_path / "one",
        "first-kernel",
        "import os, pathlib\n"
        "print('hello from', os.getcwd().split('/')[-1])\n"
        "pathlib.Path('left.txt').write_text('something')\n"
        "pathlib.Path('sub').mkdir()\npathlib.Path('sub/deep.txt').write_text('deep')\n",
        competition_sources=[COMPETITION],
    )
    pushed = cli(real, "kernels", "push", "-p", str(folder))
    assert "Kernel version 1 successfully pushed." in pushed.stdout, pushed
    assert 'alice/first-kernel has status "KernelWorkerStatus.COMPLETE"' in wait_for(real, "first-kernel", "COMPLETE")
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

    # A second kernel sees the output of the first where Kaggle mounts it, read-only, with what Kaggle adds to it.
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


def test_a_kernel_that_fails_and_one_that_takes_too_long(real, tmp_path):
    bad = kernel(tmp_path / "bad", "bad-kernel", "raise RuntimeError('on purpose')\n")
    slow = kernel(tmp_path / "slow", "slow-kernel", "import time\nprint('begun', flush=True)\ntime.sleep(60)\n")
    assert "successfully pushed" in cli(real, "kernels", "push", "-p", str(bad)).stdout
    assert "successfully pushed" in cli(real, "kernels", "push", "-p", str(slow), "-t", "3").stdout
    assert "Failure message" in wait_for(real, "bad-kernel", "ERROR")
    assert "on purpose" in cli(real, "kernels", "logs", "alice/bad-kernel").stdout
    wait_for(real, "slow-kernel", "CANCEL_ACKNOWLEDGED")
    assert "begun" in cli(real, "kernels", "logs", "alice/slow-kernel").stdout


def test_datasets_by_hand(world, tmp_path):
    kaggle = world(settings={"dataset_delay": 2.0})
    folder = tmp_path / "data"
    (folder / "lib" / "inner").mkdir(parents=True)
    (folder / "lib" / "inner" / "code.py").write_text("x = 1\n")
    (folder / "VERSION").write_text("one")
    metadata = {"id": "alice/my-data", "title": "My data set", "licenses": [{"name": "CC0-1.0"}]}
    (folder / "dataset-metadata.json").write_text(json.dumps(metadata))
    created = cli(kaggle, "datasets", "create", "-p", str(folder), "-r", "zip")
    assert "is being created" in created.stdout, created
    assert "ready" not in cli(kaggle, "datasets", "status", "alice/my-data").stdout
    time.sleep(2)
    assert "ready" in cli(kaggle, "datasets", "status", "alice/my-data").stdout
    files = cli(kaggle, "datasets", "files", "alice/my-data").stdout
    assert "lib/inner/code.py" in files and "VERSION" in files
    assert "already in use" in cli(kaggle, "datasets", "create", "-p", str(folder), "-r", "zip").stdout
    version = cli(kaggle, "datasets", "version", "-p", str(folder), "-m", "two", "-r", "zip")
    assert "version is being created" in version.stdout, version
    early = cli(kaggle, "datasets", "status", "alice/my-data", "--format", "json").stdout
    assert json.loads(early) == {"status": "ready", "current_version_number": 1}  # of the version before: KAGGLE.md d
    time.sleep(2)
    late = cli(kaggle, "datasets", "status", "alice/my-data", "--format", "json").stdout
    assert json.loads(late)["current_version_number"] == 2


def test_competition_and_quota_by_hand(world, tmp_path):
    kaggle = world()
    submission = tmp_path / "submission.csv"
    submission.write_text((kaggle.data / "sample_submission.csv").read_text().replace(",0", ",0.5"))
    sent = cli(kaggle, "competitions", "submit", COMPETITION, "-f", str(submission), "-m", "by hand")
    assert "Successfully submitted to Histopathologic Cancer Detection" in sent.stdout, sent
    time.sleep(0.3)
    listed = cli(kaggle, "competitions", "submissions", COMPETITION).stdout
    assert "by hand" in listed and "0.50000" in listed  # the AUC of a constant
    (tmp_path / "bad.csv").write_text("id,label\nx,0.5\n")
    cli(kaggle, "competitions", "submit", COMPETITION, "-f", str(tmp_path / "bad.csv"), "-m", "bad")
    time.sleep(0.3)
    assert "ERROR" in cli(kaggle, "competitions", "submissions", COMPETITION).stdout
    assert "30.00h" in cli(kaggle, "quota").stdout
    done = cli(kaggle, "competitions", "download", COMPETITION, "-p", str(tmp_path / "down"))
    assert done.returncode == 0, done
    with zipfile.ZipFile(next((tmp_path / "down").glob("*.zip"))) as archive:
        assert "train_labels.csv" in archive.namelist()


def test_who_is_not_the_owner_is_refused(world):
    kaggle = world()
    refused = cli(kaggle, "quota", KAGGLE_API_TOKEN="KGAT_" + "0" * 32)
    assert refused.returncode != 0
    assert "KGAT_" not in refused.stdout + refused.stderr
    log = (kaggle.kaggle.folder / "requests.jsonl").read_text()
    assert TOKEN not in log and "KGAT_" not in log


def test_the_refusals_of_a_push_have_kaggles_words(world, tmp_path):
    kaggle = world(seconds=30.0)
    kernels = [kernel(tmp_path / f"k{n}", f"gpu-kernel-{n}", _script(), enable_gpu=True) for n in range(3)]
    for folder in kernels[:2]:
        assert "successfully pushed" in cli(kaggle, "kernels", "push", "-p", str(folder)).stdout
    refused = cli(kaggle, "kernels", "push", "-p", str(kernels[2]))
    assert "Kernel push error: Maximum batch GPU session count of 2 reached." in refused.stdout
    assert refused.returncode == 0  # the client's own exit code says nothing
    assert "Kernel push error: Notebook not found" in cli(kaggle, "kernels", "push", "-p", str(kernels[2])).stdout  # the ghost
    kaggle.kaggle.mend()
    cli(kaggle, "kernels", "delete", "alice/gpu-kernel-2", "-y")
    assert "version 1 successfully pushed" in cli(kaggle, "kernels", "push", "-p", str(kernels[2])).stdout
    lost = kernel(tmp_path / "lost", "lost-kernel", _script(), dataset_sources=["alice/none"])
    assert "not valid dataset sources" in cli(kaggle, "kernels", "push", "-p", str(lost)).stdout
    large = kernel(tmp_path / "large", "large-kernel", "#" * 1_000_001)
    assert "less than 1 megabytes" in cli(kaggle, "kernels", "push", "-p", str(large)).stderr


def test_a_server_that_is_started_again_goes_on(world, tmp_path):
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
        "kind": "prepare", "slug": "hcd-prepare", "experiments": [], "configs": [asdict(Config())], "push_id": "p",
        "bundle_id": "b", "git_commit": "", "fold": -1, "folds": [], "encoders": [],
    }  # fmt: skip
    return f"PARAMETERS = {parameters!r}\n"


def test_faults_are_read_from_a_file_and_every_mistake_is_listed(tmp_path):
    path = tmp_path / "faults.json"
    path.write_text('[{"on": "SaveKernel", "what": "500", "times": 2}]')
    assert load_faults(path) == [Fault("SaveKernel", "500", times=2)]
    path.write_text('[{"on": "nowhere", "what": "500"}, {"what": 5, "colour": "red"}, 7]')
    with pytest.raises(LaunchError) as failure:
        load_faults(path)
    assert all(words in str(failure.value) for words in ("'nowhere'", "colour", "on is missing", "what must be", "entry 3"))
