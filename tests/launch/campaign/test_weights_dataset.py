"""Command `weights --upload`: a private dataset with the downloaded weights, uploaded once."""

import json

import pytest
from emulated_world import TOKEN

from launch.campaign.weights_dataset import upload_weights
from launch.emulator.faults import Fault
from launch.errors import LaunchError
from launch.experiments import load_experiment
from launch.kaggle_api.calls import RetryPolicy
from launch.kaggle_api.client import connect
from launch.plan import plan_kernels
from lib.config import Config
from lib.runtime.run_record import RunRecord, describe_files, write_run_record

ENCODER = "resnet34.tv_in1k"


@pytest.fixture
def weights(tmp_path):
    folder = tmp_path / "weights"
    (folder / ENCODER).mkdir(parents=True)
    (folder / ENCODER / "model.safetensors").write_bytes(bytes(range(256)) * 100)
    (folder / ENCODER / "config.json").write_text("{}")
    files = describe_files(folder, {f"{ENCODER}/model.safetensors": False, f"{ENCODER}/config.json": False})
    record = RunRecord(
        kind="weights",
        experiment="",
        config=Config().to_dict(),
        push_id="",
        bundle_id="b",
        git_commit="",
        data_id="",
        files=files,
        scores={"encoders": {ENCODER: {}}},
        complete=True,
    )
    write_run_record(folder, record)
    return folder


def upload(kaggle, weights, monkeypatch):
    for name, value in kaggle.server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(kaggle.folder))
    account = connect(RetryPolicy(call_timeout=5, attempts=3, delay=0.05))
    work = kaggle.folder / "work"
    return upload_weights(account, weights=weights, work=work, poll=0.05, settle=0.3)


@pytest.mark.parametrize(
    "fault",
    [
        None,
        Fault("CreateDataset", "reset-after"),
        Fault("upload", "503"),
        Fault("ListDatasetFiles", "flat", times=0),
        Fault("ListDatasetFiles", "no-path", times=0),
    ],
)
def test_the_weights_are_uploaded_completely_and_once(world, weights, monkeypatch, caplog, fault):
    caplog.set_level("INFO", logger="launch")
    kaggle = world(*([fault] if fault else []))
    assert upload(kaggle, weights, monkeypatch) == "alice/hcd-encoders"
    stored = kaggle.folder / "kaggle" / "datasets" / "hcd-encoders" / "v1"
    names = [f"{ENCODER}/model.safetensors", f"{ENCODER}/config.json", "run.json"]
    assert [(stored / name).read_bytes() for name in names] == [
        (weights / name).read_bytes() for name in names
    ]
    assert kaggle.changes() == [("CreateDataset", "hcd-encoders")]
    state = json.loads((kaggle.folder / "kaggle" / "state.json").read_text())
    assert state["datasets"]["hcd-encoders"]["private"] is True
    upload(kaggle, weights, monkeypatch)
    assert kaggle.changes() == [("CreateDataset", "hcd-encoders")]  # the same weights are not uploaded twice
    assert "hcd-encoders: version 1 is ready" in caplog.text
    is_unlisted = fault is not None and fault.on == "ListDatasetFiles"
    assert ("lists no files in its folders" in caplog.text) is is_unlisted
    assert TOKEN not in caplog.text


def test_without_weights_the_upload_is_refused(world, tmp_path, monkeypatch):
    with pytest.raises(LaunchError, match="there are no weights to upload"):
        upload(world(), tmp_path, monkeypatch)


def test_with_the_dataset_attached_no_kernel_downloads_weights():
    experiment = load_experiment("resnet34")
    assert "weights" in {kernel.kind for kernel in plan_kernels([experiment])}
    kernels = plan_kernels([experiment], datasets=["alice/hcd-encoders"])
    assert "weights" not in {kernel.kind for kernel in kernels}
    folds = [kernel for kernel in kernels if kernel.kind == "train"]
    assert all(kernel.datasets == ("alice/hcd-encoders",) for kernel in folds)
    assert not any("hcd-weights" in source for kernel in folds for source in kernel.sources)
