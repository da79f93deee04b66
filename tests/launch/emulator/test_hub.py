"""The rehearsal's model hub: what the real weights kernel fetches from it."""

import json
import os
import shutil
import tracemalloc
from pathlib import Path

import pytest
import requests
import torch
from safetensors.torch import load_file

from launch.emulator import hub as hub_module
from launch.emulator.hub import Hub
from launch.errors import LaunchError
from launch.packaging.builder import build
from launch.plan import Experiment
from launch.sandbox import run_script
from lib.config import Config
from lib.files import sha256_of
from lib.model.network import build_network
from lib.runtime.run_record import read_run_record

ENCODER = "test_resnet.r160_in1k"
WEIGHTS = f"timm/{ENCODER}/resolve/main/model.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a hub that has made its weights, and the output of the weights kernel that fetched them."""
    folder = tmp_path_factory.mktemp("hub")
    said: list[str] = []
    experiment = Experiment("tiny", Config(backbone=ENCODER, num_folds=2))
    built = build([experiment], out=folder / "build", owner="someone")
    kernel = next(kernel for kernel in built.kernels if kernel.kind == "weights")
    with Hub(folder / "made", encoders=[ENCODER], fetched=folder / "absent", say=said.append) as hub:
        assert hub.source(ENCODER) == "random"
        # The discard port stands for the user's proxy: whatever went through it would fail.
        environ = {
            **os.environ,
            "HTTP_PROXY": "http://127.0.0.1:9",
            "http_proxy": "http://127.0.0.1:9",
            **hub.environment(),
        }
        outcome = run_script(
            built.script(kernel), folder=folder / "run", mounts=[], place="rehearsal", threads=1, network=True, limit=120,
            environ=environ,
        )  # fmt: skip
    assert outcome.code == 0, outcome.log.read_text()
    assert len(said) == 1 and "random numbers" in said[0] and ENCODER in said[0]
    return folder, folder / "run" / "working", experiment


def made_weights(folder: Path) -> Path:
    (path,) = folder.rglob("*.safetensors")
    return path


@pytest.fixture
def no_timm(monkeypatch):
    """What is kept must be enough: asking timm again costs seconds."""

    def refuse(*arguments):
        raise AssertionError(f"timm was asked again: {arguments}")

    monkeypatch.setattr(hub_module, "_run_timm", refuse)


def test_the_weights_kernel_fetches_what_the_folds_can_load(made):
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
    with Hub(tmp_path / "damaged", encoders=[ENCODER], fetched=None, say=print):
        assert damaged.read_bytes() == first.read_bytes()
    assert sorted(path.name for path in (tmp_path / "damaged").iterdir()) == ["lock", ENCODER]


def test_what_was_made_is_taken_over(made, no_timm):
    first = made_weights(made[0] / "made")
    before = first.stat().st_mtime_ns
    said: list[str] = []
    with Hub(made[0] / "made", encoders=[ENCODER, ENCODER], fetched=None, say=said.append):
        assert first.stat().st_mtime_ns == before
    assert len(said) == 1


def test_fetched_weights_come_first(made, no_timm):
    folder, working, _ = made
    said: list[str] = []
    with Hub(folder / "made", encoders=[ENCODER], fetched=working, say=said.append) as hub:
        assert hub.source(ENCODER) == "fetched"
        for name in ("config.json", "model.safetensors"):  # made weights come without the former
            got = requests.get(
                f"{hub.environment()['HF_ENDPOINT']}/timm/{ENCODER}/resolve/main/{name}", timeout=10
            )
            assert got.content == (working / ENCODER / name).read_bytes()
    assert said == []


def test_the_repository_of_fetched_weights_is_asked_of_timm_and_nothing_is_made(made, tmp_path):
    with Hub(tmp_path, encoders=[ENCODER], fetched=made[1], say=print) as hub:
        assert requests.head(f"{hub.environment()['HF_ENDPOINT']}/{WEIGHTS}", timeout=10).status_code == 200
    assert json.loads((tmp_path / ENCODER / "about.json").read_text())["repository"] == f"timm/{ENCODER}"
    assert not list(tmp_path.rglob("*.safetensors"))


def test_damaged_fetched_weights_end_in_one_message(made, tmp_path):
    fetched = shutil.copytree(made[1], tmp_path / "fetched")
    os.truncate(fetched / ENCODER / "model.safetensors", 1000)
    with pytest.raises(LaunchError, match=r"model.safetensors has 1,000 bytes(.|\n)*build_kernel.py weights"):
        Hub(tmp_path / "made", encoders=[ENCODER], fetched=fetched, say=print)


def test_what_a_hub_client_reads_of_an_answer(made, no_timm):
    path = made_weights(made[0] / "made")
    whole = path.read_bytes()
    with Hub(made[0] / "made", encoders=[ENCODER], fetched=None, say=print) as hub:
        endpoint = hub.environment()["HF_ENDPOINT"]
        head = requests.head(f"{endpoint}/{WEIGHTS}", timeout=10)
        assert head.headers["ETag"] == f'"{sha256_of(path)}"'
        assert head.headers["Content-Length"] == str(len(whole)) and len(head.headers["X-Repo-Commit"]) == 40
        # What was cut off goes on where it stopped.
        rest = requests.get(f"{endpoint}/{WEIGHTS}", headers={"Range": "bytes=1000-"}, timeout=10)
        assert rest.status_code == 206 and rest.content == whole[1000:]
        assert rest.headers["Content-Range"] == f"bytes 1000-{len(whole) - 1}/{len(whole)}"
        beyond = requests.get(f"{endpoint}/{WEIGHTS}", headers={"Range": f"bytes={len(whole)}-"}, timeout=10)
        assert beyond.status_code == 416 and beyond.headers["Content-Range"] == f"bytes */{len(whole)}"
        for address, code in {
            f"timm/{ENCODER}/resolve/main/config.json": "EntryNotFound",  # made weights come without; timm does not ask
            f"timm/{ENCODER}/resolve/main/..%2Fabout.json": "EntryNotFound",
            f"timm/{ENCODER}/resolve/main/about.json": "EntryNotFound",
            "timm/resnet18.tv_in1k/resolve/main/model.safetensors": "RepoNotFound",
            "api/models": "RepoNotFound",
            "": "RepoNotFound",
        }.items():
            got = requests.get(f"{endpoint}/{address}", timeout=10)
            assert (got.status_code, got.headers["X-Error-Code"]) == (404, code), address


def test_a_large_file_is_streamed(made, tmp_path, no_timm):
    """85 MB, as of resnet34, under a name from a hub; the test's own client keeps nothing, either."""
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
    with Hub(
        tmp_path / "made", encoders=["hf-hub:someone/large"], fetched=tmp_path / "fetched", say=print
    ) as hub:
        address = f"{hub.environment()['HF_ENDPOINT']}/someone/large/resolve/main/model.safetensors"
        tracemalloc.start()
        try:
            with requests.get(address, stream=True, timeout=30) as got:
                received = sum(len(block) for block in got.iter_content(1 << 20))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert received == size
    assert (
        peak < 24 << 20
    )  # 2 to 11 MB measured, for 85 MB as for 340 MB; a file held in memory would be all of it


def test_the_users_proxy_settings_are_kept_and_the_token_is_not(made, no_timm, monkeypatch):
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("NO_PROXY", "intranet.example,10.0.0.0/8")
    with Hub(made[0] / "made", encoders=[ENCODER], fetched=None, say=print) as hub:
        environment = hub.environment()
    assert (
        environment["NO_PROXY"]
        == environment["no_proxy"]
        == "intranet.example,10.0.0.0/8,127.0.0.1,localhost"
    )
    assert environment["HF_TOKEN"] == ""


def test_an_encoder_nobody_knows_is_named(tmp_path):
    with pytest.raises(LaunchError, match="timm cannot make no_such_network"):
        Hub(tmp_path, encoders=["no_such_network.x"], fetched=None, say=print)
    with pytest.raises(LaunchError, match="build_kernel.py weights"):
        Hub(tmp_path, encoders=["hf-hub:someone/encoder"], fetched=None, say=print)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_an_encoder_that_timm_takes_from_no_hub_is_named(tmp_path):
    with pytest.raises(LaunchError, match="from no model hub"):
        Hub(tmp_path, encoders=["gcvit_base.in1k"], fetched=None, say=print)
