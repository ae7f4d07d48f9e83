"""Sums over the processes of ``torch.distributed``; with one process, nothing happens."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def process() -> tuple[int, int]:
    """Return the rank of this process and how many there are.

    Returns:
        The rank of this process and the number of processes, 0 and 1 without ``torch.distributed``.

    Example:
        >>> process()
        (0, 1)
    """
    if not dist.is_available() or not dist.is_initialized():
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def _device() -> torch.device:
    """Where collectives want their tensors: the GPU for nccl, otherwise the CPU."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def gather_ints(values: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The values of every process, by rank."""
    if process()[1] == 1:
        return [values]
    mine = torch.tensor(values, dtype=torch.int64, device=_device())
    every = [torch.empty_like(mine) for _ in range(process()[1])]
    dist.all_gather(every, mine)
    return [tuple(int(v) for v in row) for row in every]


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum a tensor over processes; every one of them must call this.

    Args:
        x: of the same shape in every process; left alone.

    Returns:
        The sum, on the device of ``x``; ``x`` itself when there is one process.

    Example:
        >>> all_reduce_sum(torch.tensor([1.0, 2.0])).tolist()
        [1.0, 2.0]
    """
    if process()[1] == 1:
        return x
    total = x.to(_device(), copy=True).contiguous()
    dist.all_reduce(total)
    return total.to(x.device)
