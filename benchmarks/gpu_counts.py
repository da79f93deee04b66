"""Kernel launches and bytes of a training step and of a prediction on a GPU, counted without one.

    python benchmarks/gpu_counts.py                                     a minute or two
    python benchmarks/gpu_counts.py --networks resnet34:96 --batch 256  NAME:SIDE, in pixels

It runs on the null GPU of tests/lib/cuda: torch's own CUDA code, whose kernels compute nothing. What is not
a network (augmentation, optimiser, EMA) is counted by the launches that reach the CUDA runtime, and by the
calls of cuBLAS. Networks are counted by torch's operations, views left out, because there is no cuDNN here:
an operation is one launch, a backward of a convolution two. Bytes are those of the operands and results of
each operation, as if nothing stayed in a cache.

From these follow lower limits of a step's time, which are no measurements: launches at `LAUNCH` seconds, one
after the other, and bytes at the bandwidth of a T4.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "lib" / "cuda")]
from null_gpu import NoNullGpuError, NullGpu, build_null_gpu, run_on_null_gpu  # noqa: E402

from benchmarks.rounds import write_result  # noqa: E402
from benchmarks.training import backbone_of  # noqa: E402
from lib.config import Config  # noqa: E402
from lib.data.batches import as_images  # noqa: E402
from lib.image.augment import DRAWS, augment  # noqa: E402
from lib.image.dihedral import transform  # noqa: E402
from lib.model.network import Classifier, autocast  # noqa: E402
from lib.training.ema import WeightAverage  # noqa: E402
from lib.training.epoch import FiniteBuffers  # noqa: E402
from lib.training.optimizer import OptimizerStep, build_optimizer  # noqa: E402

NETWORKS = ("resnet18:96", "resnet34:96", "convnext_tiny:96", "vit_small_patch16_224:96")
LAUNCH = 10e-6  # seconds to launch a kernel from Python: 5 to 10 microseconds
BANDWIDTH = 320e9  # bytes a second of a T4's memory, by its data sheet
PCIE = 12e9  # bytes a second from pinned memory over 16 lanes of the third generation, about
GEMM = ("blas cublasGemm", "blas cublasSgemm", "blas cublasHgemm", "blas cublasLtMatmul")
TWO_KERNELS = ("aten::convolution_backward",)
NO_KERNEL = ("aten::empty", "aten::detach", "aten::_local_scalar", "aten::lift_fresh", "prim::")
GPU = torch.device("cuda", 0)


class CountedOperations(TorchDispatchMode):
    """Operations of torch that compute, and the bytes that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        """Run an operation and count it."""
        result = function(*arguments, **(options or {}))
        name = function._schema.name
        if not function.is_view and not name.startswith(NO_KERNEL):
            self.launches += 2 if name in TWO_KERNELS else 1
            leaves = tree_leaves((arguments, options, result))
            tensors = {id(leaf): leaf for leaf in leaves if isinstance(leaf, torch.Tensor)}
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        return result


def counted(action: Callable[[], Any]) -> dict[str, int]:
    """Operations and bytes of an action, the second time it runs."""
    action()
    with CountedOperations() as counts:
        action()
    return {"launches": counts.launches, "bytes": counts.bytes}


def launched(action: Callable[[], Any]) -> dict[str, int]:
    """Launches of an action as the CUDA runtime and cuBLAS saw them, and the bytes of its operations."""
    gpu = NullGpu()
    counts = counted(action)
    launches = gpu.counted("launch", action)
    return {"launches": launches + sum(gpu.count(name) for name in GEMM), "bytes": counts["bytes"]}


def count_network(name: str, size: int, batch: int) -> dict[str, Any]:
    """Counts of one training step and one prediction of a network, in float16 with the scaler, as on a T4."""
    config = Config(batch_size=batch, input_size=size, ema_decay=0.999)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(GPU)
    network: Classifier = Classifier(
        backbone_of(name, size=size), input_size=size, mean=(0.5,) * 3, std=(0.2,) * 3
    ).to(GPU, memory_format=torch.channels_last)  # type: ignore[call-overload]
    step = OptimizerStep(
        build_optimizer(network, config), peak=1e-4, total=10**6, warmup=0, clip=0.0, scaled=True
    )
    average, buffers = WeightAverage(network, decay=0.999), FiniteBuffers(network)
    images, labels = torch.rand(batch, 3, size, size, device=GPU), torch.rand(batch, device=GPU)

    def loss() -> torch.Tensor:
        with autocast(GPU, torch.float16):
            logits = network(images)
        return functional.binary_cross_entropy_with_logits(logits.float(), labels, reduction="mean")

    both = counted(lambda: loss().backward())
    gradients = [parameter.grad for parameter in network.parameters()]

    def step_only() -> None:
        for parameter, gradient in zip(network.parameters(), gradients, strict=True):
            parameter.grad = gradient
        step([torch.zeros((), device=GPU, requires_grad=True)])

    peak = torch.cuda.max_memory_allocated(GPU)
    network.eval()

    def predict() -> None:
        with torch.inference_mode(), autocast(GPU, torch.float16):
            for view in range(8):
                network(transform(images, view))

    return {
        "network": f"{name}:{size}",
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "forward and backward": both,
        "step": launched(step_only),
        "EMA": launched(lambda: average.update_after(network, step)),
        "statistics after an overflow": launched(buffers.restore),
        "prediction, 8 views": counted(predict),
        "GiB of torch's allocator, without cuDNN": round(peak / 2**30, 2),
    }


def count_all(networks: list[str], batch: int) -> dict[str, Any]:
    """All counts, on the null GPU."""
    generator = np.random.default_rng(0)
    tiles = torch.from_numpy(generator.integers(0, 256, (batch, 96, 96, 3), dtype=np.uint8))
    images, draws = tiles.permute(0, 3, 1, 2).to(GPU), torch.rand(batch, DRAWS).to(GPU)
    jitter = Config(hed_jitter=0.05)
    every = Config(hed_jitter=0.05, rotate="any")
    words = tiles.flatten(1).view(torch.int64).to(GPU)
    order = torch.randint(batch, (batch,)).to(GPU)
    return {
        "batch": batch,
        "tiles": {
            "bytes of a batch over PCIe": tiles.nbytes,
            "gathered on the device": launched(lambda: torch.index_select(words, 0, order)),
        },
        "augmentation": launched(lambda: augment(images, draws, Config())),
        "augmentation, stain jitter": launched(lambda: augment(images, draws, jitter)),
        "augmentation, stain jitter and any angle": launched(lambda: augment(images, draws, every)),
        "cast to float32 only": launched(lambda: as_images(images)),
        "networks": [
            count_network(name, int(size or 96), batch)
            for name, _, size in (network.partition(":") for network in networks)
        ],
    }


def table(counts: dict[str, Any]) -> str:
    """The counts as rows of Markdown: launches, MiB, and the milliseconds that follow from each."""
    rows = [
        (f"batch of {counts['batch']}: {name}", value)
        for name, value in counts.items()
        if "launches" in str(value)
    ]
    lines = [
        "| what | launches | ms at 10 us each | MiB read and written | ms at 320 GB/s |",
        "|---|---|---|---|---|",
    ]

    def add(name: str, value: dict[str, int]) -> None:
        lines.append(
            f"| {name} | {value['launches']:,} | {1e3 * LAUNCH * value['launches']:.2f} "
            f"| {value['bytes'] / 2**20:,.0f} | {1e3 * value['bytes'] / BANDWIDTH:.2f} |"
        )

    for name, value in rows:
        if "launches" in value:
            add(name, value)
    copied = counts["tiles"]["bytes of a batch over PCIe"]
    add("gather on the device", counts["tiles"]["gathered on the device"])
    for network in counts["networks"]:
        for name, value in network.items():
            if isinstance(value, dict):
                add(f"{network['network']}: {name}", value)
    lines.append(f"\nA batch over PCIe: {copied / 2**20:.2f} MiB, {1e3 * copied / PCIE:.2f} ms at 12 GB/s.")
    lines += [
        f"{network['network']}: {network['parameters'] / 1e6:.1f} million parameters, "
        f"{network[memory]} {memory}"
        for memory in ["GiB of torch's allocator, without cuDNN"]
        for network in counts["networks"]
    ]
    return "\n".join(lines)


def main() -> None:
    """Build the null GPU, and count on it in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), metavar="NAME:SIDE")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)  # on the null GPU
    arguments = parser.parse_args()
    if arguments.child:
        counts = count_all(arguments.networks, arguments.batch)
        print(table(counts))
        write_result("gpu-counts", counts)
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            library = build_null_gpu(Path(folder))
        except NoNullGpuError as error:
            sys.exit(str(error))
        done = run_on_null_gpu(library, Path(__file__), *sys.argv[1:], "--child", timeout=3600)
    print(done.stdout, end="")
    if done.returncode:
        sys.exit(done.stderr[-4000:])


if __name__ == "__main__":
    main()
