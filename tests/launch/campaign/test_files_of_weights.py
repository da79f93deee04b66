"""A file of weights in an attached dataset is tried on a CPU before any GPU quota is spent."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from instant import InstantKernels, parameters_in
from safetensors.torch import save_file

from launch.campaign.ledger import read_ledger
from launch.emulator.scheduler import Job, KernelExecutor
from launch.experiments import Experiment
from launch.plan import plan_kernels
from launch.sandbox import Outcome
from lib.config import Config

KNOBS = ["backbone=test_resnet", "weights=mine.safetensors", "num_folds=3", "input_size=32"]
CHECK = "hcd-weights-check-"


class WithRealChecks(InstantKernels):
    """Instant kernels, except that the kernel which tries files of weights is the real one."""

    def run(self, job: Job) -> Outcome:
        if not job.slug.startswith(CHECK):
            return super().run(job)
        assert not job.gpu and not job.internet
        assert parameters_in(job.script)["encoders"] == []
        return KernelExecutor(gpu_sessions=2, environ={}).run(job)


def write_file(folder: Path, architecture: str) -> None:
    torch.manual_seed(0)
    folder.mkdir(exist_ok=True)
    network = timm.create_model(architecture)
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(tensors, folder / "mine.safetensors")


def gpu_pushes(kaggle: Any) -> list[str]:
    return [slug for slug in kaggle.pushes() if "fold" in slug or "inference" in slug]


@pytest.fixture
def kaggle(world):
    made = world()
    made.kernels = WithRealChecks(made.data)
    made.kaggle.sessions.use(made.kernels)
    return made


def test_a_wrong_file_costs_no_gpu_push_and_a_right_one_is_tried_once(kaggle) -> None:
    folder = kaggle.folder / "mine"
    write_file(folder, "test_vit")
    kaggle.kaggle.datasets.attach("mine", folder)
    order: dict[str, Any] = {"knobs": KNOBS, "datasets": ["alice/mine"], "timeout": 300}
    ended = kaggle.run(**order)
    assert ended.code == 1, ended
    assert gpu_pushes(kaggle) == []
    [check] = [slug for slug in kaggle.pushes() if slug.startswith(CHECK)]
    assert "mine.safetensors does not hold the weights of test_resnet" in ended.err + ended.out
    assert "weight is missing" in ended.err + ended.out

    write_file(folder, "test_resnet")  # the user uploads a new version, and reruns the command
    ended = kaggle.run(**order)
    assert ended.code == 0, ended
    pushes = kaggle.pushes()
    assert pushes.count(check) == 2 and len(gpu_pushes(kaggle)) == 4
    assert all(pushes.index(slug) > pushes.index(check) for slug in gpu_pushes(kaggle))
    ledger = read_ledger(kaggle.folder / "campaigns" / "one")
    assert ledger is not None
    assert kaggle.run(**order).code == 0
    assert kaggle.pushes() == pushes


def plan(*, datasets: tuple[str, ...] = ("alice/mine",), **options: Any):
    return plan_kernels([Experiment("mine", Config(**options))], datasets=datasets)


@pytest.mark.parametrize(
    ("options", "readers"),
    [
        ({"weights": "a.pth"}, {"train"}),
        ({"weights": "a.pth", "train_mode": "linear_probe", "num_members": 1}, {"embed"}),
        ({"weights": "pretrain", "pretrain_weights": "a.pth"}, {"pretrain"}),
    ],
)
def test_every_kernel_that_reads_the_file_waits_for_the_check(options, readers) -> None:
    kernels = plan(**options)
    [check] = [kernel for kernel in kernels if kernel.kind == "weights"]
    assert (check.needs_gpu, check.internet, check.datasets) == (False, False, ("alice/mine",))
    assert [config.weights for config in check.configs] == ["a.pth"]
    assert {kernel.kind for kernel in kernels if check.slug in kernel.sources} == readers
    assert all(kernel.datasets for kernel in kernels if check.slug in kernel.sources)


def test_the_check_is_of_the_networks_and_not_of_their_training() -> None:
    slugs = [
        next(kernel.slug for kernel in plan(weights="a.pth", **options) if kernel.kind == "weights")
        for options in (
            {},
            {"epochs": 9, "learning_rate": 1e-5},
            {"input_size": 128},
            {"train_mode": "last_blocks"},
        )
    ]
    assert slugs[0] == slugs[1] and len(set(slugs)) == 3


def test_downloads_and_files_are_kernels_of_their_own() -> None:
    experiments = [Experiment("a", Config(weights="a.pth")), Experiment("b", Config(weights="timm"))]
    kernels = plan_kernels(experiments, datasets=("alice/mine",))
    check, download = sorted(
        (kernel for kernel in kernels if kernel.kind == "weights"), key=lambda kernel: kernel.internet
    )
    assert check.encoders == () and download.encoders == ("resnet34.tv_in1k",)
    for kernel in kernels:
        if kernel.kind == "train":
            wanted = check if kernel.experiments == ("a",) else download
            assert {check.slug, download.slug} & set(kernel.sources) == {wanted.slug}
    assert not [kernel for kernel in plan(weights="timm", datasets=()) if kernel.slug.startswith(CHECK)]
