"""One process or many: what torchrun tells, and what training does with it.

    torchrun --nproc-per-node 2 -m -- training train ...

The `--` keeps torchrun from reading the options of `train` as shortened ones of its own.

The batch size is that of all processes together, and each takes its share of the very batches that
one process would see. BatchNorm sees all of a batch on GPUs (SyncBatchNorm) and each process's
share on CPUs, where torch has no such layer.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

CPU = torch.device("cpu")
# The others wait while the first process finds the faces of a whole data set.
LONGEST_WAIT = timedelta(hours=12)


@dataclass(frozen=True)
class World:
    """The processes of a run, as one of them sees them."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @property
    def first(self) -> bool:
        """Whether this process writes files and measures."""
        return self.rank == 0

    def prepare(self, network: nn.Module) -> None:
        """Move `network` to this process's device; on GPUs its BatchNorm sees whole batches."""
        if self.size > 1 and self.device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        network.to(self.device).to(memory_format=torch.channels_last)

    def wrapped(self, network: nn.Module) -> nn.Module:
        """What to call in training: gradients come out averaged over all processes.

        Wrap anew whenever `requires_grad` of a parameter has changed.
        """
        if self.size == 1:
            return network
        devices = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(network, device_ids=devices)

    def mean(self, values: Tensor) -> Tensor:
        """The mean of every process's `values`."""
        if self.size > 1:
            dist.all_reduce(values)
        return values / self.size

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """The first process runs the block alone, then the others: they find its files there."""
        if self.size > 1 and not self.first:
            dist.barrier()
        yield
        if self.size > 1 and self.first:
            dist.barrier()


@contextmanager
def joined_world() -> Iterator[World]:
    """The world that torchrun's environment describes; a single process without it.

    GPUs talk through NCCL, CPUs through gloo.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    device = CPU
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if size == 1:
        yield World(device=device)
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=LONGEST_WAIT)
    try:
        yield World(rank, size, device)
    finally:
        dist.destroy_process_group()
