"""Sums over the processes of ``torch.distributed``, or nothing when there is one process."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from lens_linear.errors import InvalidArgumentError
from lens_linear.linalg._probe import with_probe
from lens_linear.linalg._scatter import SCATTERS, State, about, empty
from lens_linear.linalg.precision import COMPUTE_DTYPE


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


def agree_on_sizes(n: int, d_in: int, d_out: int, keep_yy: bool) -> tuple[int, int, int]:
    """Rows of all processes together and the sizes they share (0, 0, 0 when nobody has rows).

    Raises:
        InvalidArgumentError: sizes or ``keep_yy`` disagree.
    """
    every = gather_ints((n, d_in, d_out, int(keep_yy)))
    sizes = {(row[1], row[2]) for row in every if row[0]}
    if len(sizes) > 1 or len({row[3] for row in every}) > 1:
        raise InvalidArgumentError(
            "every process must hold Moments of the same sizes and keep_yy, got (n, d_in, d_out, "
            f"keep_yy) = {every}; build them alike"
        )
    d_in, d_out = sizes.pop() if sizes else (0, 0)
    return sum(row[0] for row in every), d_in, d_out


def _agree_on_probe(state: State | None, d_in: int, device: torch.device) -> Tensor:
    """The probe with most directions among all processes, on each of them."""
    k = 0 if state is None else state.probe.shape[1]
    sizes = [row[0] for row in gather_ints((k,))]
    mine = torch.zeros(d_in, max(sizes), dtype=COMPUTE_DTYPE, device=device)
    if state is not None and dist.get_rank() == sizes.index(max(sizes)):
        mine = state.probe
    return all_reduce_sum(mine)


def all_reduce_state(
    state: State | None, n: int, d_in: int, d_out: int, *, full: bool, device: torch.device
) -> State:
    """Statistics of the ``n`` rows of all processes together; None stands for no rows."""
    probe = _agree_on_probe(state, d_in, device)
    mine = empty(probe, d_out, full=full) if state is None else with_probe(state, probe)
    # First agree on the common mean, then sum the scatters about it: nothing cancels.
    mean_x = all_reduce_sum(mine.mean_x * (mine.n / n))
    mean_y = all_reduce_sum(mine.mean_y * (mine.n / n))
    mine = about(mine, mean_x, mean_y)
    return mine.with_scatters(n, {name: all_reduce_sum(getattr(mine, name)) for name in SCATTERS})
