"""The weights kernel against a hub on loopback, and what the train kernel does with its output."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load, save
from timm.layers import SwiGLUPacked
from timm.models import save_for_hf

from launch.experiments import Experiment
from launch.packaging.builder import build
from launch.plan import plan_kernels
from launch.sandbox import Mount, run_script
from lib.config import Config
from lib.model.checkpoint import Identity, load_checkpoint, save_checkpoint
from lib.model.network import build_network
from lib.runtime.run_record import read_run_record

ENCODER = "test_resnet.r160_in1k"


class Requests(list[tuple[str, str]]):
    """Methods and paths, and what the hub serves: path without the first slash to content."""

    def __init__(self) -> None:
        super().__init__()
        self.served: dict[str, bytes] = {}


@pytest.fixture(scope="module")
def weights_content():
    torch.manual_seed(7)
    network = timm.create_model(ENCODER, pretrained=False)
    return save({name: tensor.contiguous() for name, tensor in network.state_dict().items()})


@pytest.fixture
def hub(weights_content, monkeypatch):
    """What huggingface_hub asks of a hub: HEAD and GET of /OWNER/NAME/resolve/REVISION/FILE.

    It yields the requests; a test adds files to `served`.
    """
    asked = Requests()
    asked.served[f"timm/{ENCODER}/resolve/main/model.safetensors"] = weights_content

    class Hub(BaseHTTPRequestHandler):
        def _answer(self, *, body: bool):
            asked.append((self.command, self.path))
            content = asked.served.get(self.path.strip("/"))
            if content is None:
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def do_HEAD(self):  # noqa: N802
            self._answer(body=False)

        def do_GET(self):  # noqa: N802
            self._answer(body=True)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    yield asked
    server.shutdown()
    thread.join(timeout=10)
    server.server_close()


def experiment(**knobs) -> Experiment:
    return Experiment(
        "tiny", Config(backbone=ENCODER, weights="timm", input_size=32, epochs=1, num_folds=2, **knobs)
    )


def run_weights(tmp_path: Path, chosen: Experiment, *, network: bool = True):
    built = build([chosen], out=tmp_path / "build", owner="someone")
    kernel = next(kernel for kernel in built.kernels if kernel.kind == "weights")
    folder = tmp_path / kernel.slug
    script = built.script(kernel)
    return run_script(
        script, folder=folder, mounts=[], place="local", threads=1, network=network, limit=120
    ), folder / "working"


def test_fetched_weights_are_what_the_train_kernel_starts_from(hub, tmp_path, weights_content):
    outcome, working = run_weights(tmp_path, experiment())
    assert outcome.code == 0, outcome.log.read_text()
    assert any(path.endswith("model.safetensors") for _, path in hub)
    record = read_run_record(working, kind="weights")
    assert set(record.files) == {f"{ENCODER}/config.json", f"{ENCODER}/model.safetensors"}
    assert not any(entry.fetch for entry in record.files.values())  # they stay on Kaggle
    assert record.scores["encoders"][ENCODER]["parameters_millions"] > 0.1
    config = json.loads((working / ENCODER / "config.json").read_text())
    assert config["architecture"] == "test_resnet"

    served = load(weights_content)
    loaded = build_network(experiment().config, folder=working / ENCODER).backbone.state_dict()
    compared = [name for name in loaded if not name.startswith("fc.")]
    assert len(compared) > 20
    assert all(torch.equal(loaded[name], served[name]) for name in compared)


def test_a_hub_that_does_not_know_the_encoder_ends_in_one_message(hub, tmp_path):
    chosen = Experiment("tiny", Config(backbone="resnet18.tv_in1k", weights="timm", num_folds=2))
    outcome, working = run_weights(tmp_path, chosen)
    text = outcome.log.read_text()
    assert outcome.code == 1
    assert "error: the weights of resnet18.tv_in1k could not be fetched" in text
    assert "--set weights=none" in text
    assert not (working / "run.json").exists()


def test_only_the_weights_kernel_has_internet_and_the_folds_wait_for_it():
    kernels = plan_kernels([experiment()])
    [weights] = [kernel for kernel in kernels if kernel.internet]
    assert weights.kind == "weights"
    assert all(weights.slug in kernel.sources for kernel in kernels if kernel.kind == "train")


def test_the_train_kernel_loads_the_mounted_weights(hub, tmp_path):
    from launch.emulator.synthetic_tiles import write_competition

    chosen = experiment(stain_groups=4, batch_size=16, tta_views=1)
    outcome, weights = run_weights(tmp_path, chosen)
    assert outcome.code == 0, outcome.log.read_text()
    write_competition(tmp_path / "data", labelled=40, unlabelled=8, seed=3)
    built = build([chosen], out=tmp_path / "build", owner="someone")
    by_kind = {kernel.kind: kernel for kernel in reversed(built.kernels)}
    competition = Mount(tmp_path / "data", "competitions/histopathologic-cancer-detection")
    prepare, train = by_kind["prepare"], by_kind["train"]
    options = {"place": "rehearsal", "threads": 1, "network": False, "limit": 120}
    prepared = tmp_path / prepare.slug
    assert run_script(built.script(prepare), folder=prepared, mounts=[competition], **options).code == 0
    mounts = [
        Mount(prepared / "working", "notebooks/someone/hcd-prepare"),
        Mount(weights, "notebooks/someone/hcd-weights"),
    ]
    done = run_script(built.script(train), folder=tmp_path / "with", mounts=mounts, **options)
    assert done.code == 0, done.log.read_text()
    without = run_script(built.script(train), folder=tmp_path / "without", mounts=mounts[:1], **options)
    assert without.code == 1
    assert "the weights of test_resnet.r160_in1k are not among the inputs" in without.log.read_text()


def test_an_encoder_from_a_hub_is_rebuilt_from_its_checkpoint_without_the_hub(tmp_path):
    """The name leads to a hub; the mounted folder, and later the checkpoint alone, must be enough."""
    torch.manual_seed(1)
    save_for_hf(
        timm.create_model("test_vit", img_size=96), str(tmp_path / "encoder"), safe_serialization=True
    )
    config = Config(backbone="hf-hub:someone/encoder", input_size=48, num_folds=2)
    network = build_network(config, folder=tmp_path / "encoder").eval()
    identity = Identity(
        experiment="tiny", fold=0, member=0, data_id="d", fold_table_id="f", config=config.to_dict()
    )
    save_checkpoint(tmp_path / "member.safetensors", network, identity)
    loaded, _ = load_checkpoint(tmp_path / "member.safetensors")
    images = torch.rand(3, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(loaded(images), network(images))


def test_an_encoder_whose_config_lacks_its_layers_is_fetched_and_built_with_them(hub, tmp_path):
    """Virchow2's config.json on the hub does not say SwiGLU: its page tells people to pass the classes."""
    small = {
        "img_size": 32,
        "patch_size": 16,
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 2,
        "num_classes": 0,
        "mlp_ratio": 5.3375,
        "init_values": 1e-5,
        "reg_tokens": 4,
    }
    layers = {"mlp_layer": SwiGLUPacked, "act_layer": torch.nn.SiLU}
    torch.manual_seed(3)
    theirs = timm.create_model("vit_tiny_patch16_224", **small, **layers).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    save_for_hf(theirs, str(tmp_path / "hub"), safe_serialization=True, model_args=small)
    name = "paige-ai/Virchow2"
    for file in ("config.json", "model.safetensors"):
        hub.served[f"{name}/resolve/main/{file}"] = (tmp_path / "hub" / file).read_bytes()
    config = Config(backbone=f"hf-hub:{name}", weights="timm", input_size=32, num_folds=2)
    outcome, working = run_weights(tmp_path, Experiment("tiny", config))
    assert outcome.code == 0, outcome.log.read_text()
    network = build_network(config, folder=working / "hf-hub--paige-ai--Virchow2").eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network.embed(images), theirs(network.normalise(images)))
    identity = Identity(
        experiment="tiny", fold=0, member=0, data_id="d", fold_table_id="f", config=config.to_dict()
    )
    save_checkpoint(tmp_path / "member.safetensors", network, identity)
    loaded, _ = load_checkpoint(tmp_path / "member.safetensors")
    with torch.no_grad():
        assert torch.equal(loaded(images), network(images))


def test_the_terms_of_dinov3_are_in_the_log_before_the_weights_are_fetched(hub, tmp_path):
    config = Config(backbone="vit_small_patch16_dinov3.lvd1689m", weights="timm", num_folds=2)
    torch.manual_seed(0)
    network = timm.create_model("vit_small_patch16_dinov3", pretrained=False)
    content = save({name: tensor.contiguous() for name, tensor in network.state_dict().items()})
    hub.served["timm/vit_small_patch16_dinov3.lvd1689m/resolve/main/model.safetensors"] = content
    outcome, working = run_weights(tmp_path, Experiment("tiny", config))
    text = outcome.log.read_text()
    assert outcome.code == 0, text
    assert text.index("dinov3-license/") < text.index("fetch vit_small_patch16_dinov3")
    described = read_run_record(working, kind="weights").scores["encoders"]
    assert described[config.backbone]["license"] == "dinov3-license"
