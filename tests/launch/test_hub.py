"""The rehearsal's model hub: what the real weights kernel fetches from it."""

import os

import pytest
import requests
from safetensors import safe_open

from launch.build import build
from launch.errors import LaunchError
from launch.plan import Experiment
from launch.rehearsal.hub import Hub
from launch.rehearsal.session import run_script
from lib.config import Config
from lib.model.network import build_network
from lib.run_record import read_run_record

ENCODER = "test_resnet.r160_in1k"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a hub that has made its weights, and the output of the weights kernel that fetched them."""
    folder = tmp_path_factory.mktemp("hub")
    said: list[str] = []
    experiment = Experiment("tiny", Config(backbone=ENCODER, folds=2))
    built = build([experiment], out=folder / "build", owner="someone")
    kernel = next(kernel for kernel in built.kernels if kernel.kind == "weights")
    with Hub(folder / "made", encoders=[ENCODER], fetched=None, say=said.append) as hub:
        environ = {**os.environ, "HTTP_PROXY": "http://127.0.0.1:9", **hub.environment()}
        outcome = run_script(
            built.script(kernel), folder=folder / "run", mounts=[], place="rehearsal", threads=1, network=True, limit=120,
            environ=environ,
        )  # fmt: skip
    assert outcome.code == 0, outcome.log.read_text()
    assert len(said) == 1 and "random numbers" in said[0]
    return folder, folder / "run" / "working", experiment


def test_the_weights_kernel_fetches_what_the_folds_can_load(made):
    folder, working, experiment = made
    record = read_run_record(working, kind="weights")
    assert f"{ENCODER}/model.safetensors" in record.files
    network = build_network(experiment.config, folder=working / ENCODER)
    with safe_open(next((folder / "made").rglob("*.safetensors")), framework="pt") as served:
        name = "conv1.0.weight" if "conv1.0.weight" in served.keys() else "conv1.weight"  # noqa: SIM118
        assert (dict(network.backbone.state_dict())[name] == served.get_tensor(name)).all()


def test_random_weights_are_made_once_and_are_the_same_everywhere(made, tmp_path):
    folder, _, _ = made
    first = next((folder / "made").rglob("*.safetensors"))
    before = first.stat().st_mtime_ns
    with Hub(folder / "made", encoders=[ENCODER], fetched=None, say=print):
        assert first.stat().st_mtime_ns == before
    with Hub(tmp_path, encoders=[ENCODER], fetched=None, say=print):
        assert next(tmp_path.rglob("*.safetensors")).read_bytes() == first.read_bytes()


def test_fetched_weights_come_first(made, tmp_path):
    _, working, _ = made
    said: list[str] = []
    with Hub(tmp_path, encoders=[ENCODER], fetched=working, say=said.append) as hub:
        url = hub.environment()["HF_ENDPOINT"]
        got = requests.get(f"{url}/timm/{ENCODER}/resolve/main/model.safetensors", timeout=10)
        assert got.content == (working / ENCODER / "model.safetensors").read_bytes()
        assert requests.get(f"{url}/timm/{ENCODER}/resolve/main/../../secret", timeout=10).status_code == 404
        assert requests.head(f"{url}/timm/resnet18.tv_in1k/resolve/main/model.safetensors", timeout=10).status_code == 404
    assert said == [] and list(tmp_path.iterdir()) == []


def test_an_encoder_nobody_knows_is_named(tmp_path):
    with pytest.raises(LaunchError, match="timm cannot make no_such_network"):
        Hub(tmp_path, encoders=["no_such_network.x"], fetched=None, say=print)
    with pytest.raises(LaunchError, match="build_kernel.py weights"):
        Hub(tmp_path, encoders=["hf-hub:someone/encoder"], fetched=None, say=print)
