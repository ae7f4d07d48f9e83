"""Sums over the processes of ``torch.distributed``, or nothing when there is one process."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Processes in the default group; 1 when none is initialised."""
    if not dist.is_available() or not dist.is_initialized():
        return 1
    return dist.get_world_size()


def _device() -> torch.device:
    """Where collectives want their tensors: the GPU for nccl, otherwise the CPU."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def gather_ints(values: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The values of every process, by rank."""
    mine = torch.tensor(values, dtype=torch.int64, device=_device())
    every = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(every, mine)
    return [tuple(int(v) for v in row) for row in every]


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum of ``x`` over processes, on the device of ``x``; ``x`` itself is left alone."""
    total = x.to(_device(), copy=True).contiguous()
    dist.all_reduce(total)
    return total.to(x.device)
