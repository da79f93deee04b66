"""The processes that train one network together: who they are, and what they tell each other."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class DistributedContext:
    """One of `size` processes. A world of one needs nothing set up and asks nobody.

    Attributes:
        rank: which of them this is; 0 writes the files and looks at the clock.
        size: how many they are.
        device: of this process, for what is sent.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    def wrap(self, network: nn.Module, *, synchronise_norms: bool) -> nn.Module:
        """The network as it is called in training: its gradients are averaged over the world.

        Args:
            network: the same in every process when this returns.
            sync_batchnorm: let batch norms see the statistics of all processes (GPU only); otherwise of their own.
        """
        if self.size == 1:
            return network
        if synchronise_norms and self.device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(network)
        cards = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(
            network, device_ids=cards, broadcast_buffers=False, gradient_as_bucket_view=True
        )

    def no_sync(self, forward: nn.Module) -> AbstractContextManager[Any]:
        """While a step has more passes, gradients pile up here instead of being sent."""
        return forward.no_sync() if isinstance(forward, DistributedDataParallel) else nullcontext()

    def sum(self, *numbers: float) -> list[float]:
        """Each number, added up over the world."""
        if self.size == 1:
            return list(numbers)
        together = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(together)
        return [float(number) for number in together]

    def largest(self, number: int) -> int:
        """The largest of everyone's numbers."""
        if self.size == 1:
            return number
        together = torch.tensor([number], dtype=torch.int64, device=self.device)
        dist.all_reduce(together, op=dist.ReduceOp.MAX)
        return int(together)

    def broadcast_int(self, number: int) -> int:
        """The number rank 0 gives, for all."""
        if self.size == 1:
            return number
        sent = torch.tensor([number], dtype=torch.int64, device=self.device)
        dist.broadcast(sent, src=0)
        return int(sent)

    def share_buffers(self, network: nn.Module) -> None:
        """Give everyone the buffers of rank 0: each process kept its own running statistics of batch norms."""
        if self.size == 1:
            return
        for buffer in network.buffers():
            dist.broadcast(buffer, src=0)

    def my_part(self, rows: np.ndarray) -> np.ndarray:
        """The rows this process predicts; over the world every row comes once."""
        return np.array_split(rows, self.size)[self.rank]

    def gather_predictions(self, values: np.ndarray, *, total: int) -> np.ndarray:
        """(total,) float32 from what each process has for its part of the rows."""
        if self.size == 1:
            return values
        longest = -(-total // self.size)
        own = torch.zeros(longest, dtype=torch.float32, device=self.device)
        own[: len(values)] = torch.from_numpy(values)
        every = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(every, own)
        lengths = [len(part) for part in np.array_split(np.arange(total), self.size)]
        return np.concatenate(
            [part[:length].cpu().numpy() for part, length in zip(every, lengths, strict=True)]
        )


ALONE = DistributedContext()
