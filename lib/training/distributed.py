"""The processes that train one network together, and the collective operations between them."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class DistributedContext:
    """This process among the `size` processes that train one network.

    With `size` 1 no process group is needed: every operation returns its argument.

    Attributes:
        rank: number of this process; rank 0 writes the files and checks the time budget.
        size: number of processes.
        device: of this process; also holds the tensors that are sent.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    def wrap(self, network: nn.Module, *, sync_batchnorm: bool) -> nn.Module:
        """The network to call in training; its gradients are averaged over the processes (all-reduce).

        Args:
            network: has the weights of rank 0 in every process when this returns.
            sync_batchnorm: batch norms use the statistics of all processes instead of their own (GPU only).
        """
        if self.size == 1:
            return network
        on_gpu = self.device.type == "cuda"
        if sync_batchnorm and on_gpu:
            synchronise_batch_norms(network)
        # Buffers are broadcast once before a prediction (`broadcast_buffers`), not before every forward pass.
        # The gradients are views into the all-reduce buckets: one copy of all gradients less (85 MB for a
        # ResNet34).
        return DistributedDataParallel(
            network,
            device_ids=[self.device] if on_gpu else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )

    def no_sync(self, forward: nn.Module) -> AbstractContextManager[Any]:
        """Accumulate gradients in this process without all-reduce: for all passes of a step but the last."""
        return forward.no_sync() if isinstance(forward, DistributedDataParallel) else nullcontext()

    def sum(self, *numbers: float) -> list[float]:
        """The sum of each number over the processes."""
        if self.size == 1:
            return list(numbers)
        totals = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(totals)
        return [float(total) for total in totals]

    def max_int(self, number: int) -> int:
        """The largest value of the number over the processes."""
        if self.size == 1:
            return number
        largest = torch.tensor([number], dtype=torch.int64, device=self.device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return int(largest)

    def broadcast_int(self, number: int) -> int:
        """The value of the number on rank 0."""
        if self.size == 1:
            return number
        sent = torch.tensor([number], dtype=torch.int64, device=self.device)
        dist.broadcast(sent, src=0)
        return int(sent)

    def broadcast_buffers(self, network: nn.Module) -> None:
        """Copy the buffers of rank 0 to all: each process kept its own running statistics of batch norms."""
        if self.size == 1:
            return
        for buffer in network.buffers():
            dist.broadcast(buffer, src=0)

    def shard_rows(self, rows: np.ndarray) -> np.ndarray:
        """The rows this process predicts: every row is in the shard of exactly one process."""
        return np.array_split(rows, self.size)[self.rank]

    def gather_predictions(self, predictions: np.ndarray, *, total: int) -> np.ndarray:
        """(total,) float32, in the order of the rows.

        Args:
            predictions: (n,) float32, of the rows that `shard_rows` gave this process.
            total: number of rows of all processes.
        """
        if self.size == 1:
            return predictions
        longest = -(
            -total // self.size
        )  # all_gather needs the same shape everywhere: pad to the longest shard
        own = torch.zeros(longest, dtype=torch.float32, device=self.device)
        own[: len(predictions)] = torch.from_numpy(predictions)
        shards = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(shards, own)
        lengths = [len(rows) for rows in np.array_split(np.arange(total), self.size)]
        unpadded = [shard[:length].cpu().numpy() for shard, length in zip(shards, lengths, strict=True)]
        return np.concatenate(unpadded)


def synchronise_batch_norms(network: nn.Module) -> None:
    """Let the batch norms use the tiles of all processes, in place; a second call does nothing.

    timm's function keeps the activation that its networks fuse with a batch norm; torch's deletes it
    (DenseNet-121 has 121 of them). The weights stay the same tensors.
    """
    if not any(isinstance(module, nn.SyncBatchNorm) for module in network.modules()):
        convert_sync_batchnorm(network)


SINGLE_PROCESS = DistributedContext()
