"""Count, means and centred scatter of a batch of rows, and how two of them add up."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lens_linear._checks import require_finite
from lens_linear.errors import InvalidArgumentError
from lens_linear.linalg.precision import COMPUTE_DTYPE, gram

# Squares of centred entries must fit in float64; only float64 input can break this.
_LARGEST = 1e150


class State(NamedTuple):
    """Count, means and centred scatter of some rows; never changed in place."""

    n: int
    mean_x: Tensor
    mean_y: Tensor
    sxx: Tensor
    sxy: Tensor
    syy: Tensor  # [d_out], or [d_out, d_out] when the whole matrix is kept


def empty(d_in: int, d_out: int, *, full: bool, device: torch.device) -> State:
    """No rows yet."""

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=COMPUTE_DTYPE, device=device)

    syy = zeros(d_out, d_out) if full else zeros(d_out)
    return State(0, zeros(d_in), zeros(d_out), zeros(d_in, d_in), zeros(d_in, d_out), syy)


def _centred(name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Column means and centred rows in float64; refuses entries that are not finite."""
    mean = x.sum(0, dtype=COMPUTE_DTYPE) / x.shape[0]
    if not bool(torch.isfinite(mean).all()):  # one NaN or infinity anywhere spoils its column
        require_finite(name, x)
    if x.dtype == COMPUTE_DTYPE and float(x.abs().amax()) > _LARGEST:
        raise InvalidArgumentError(
            f"{name} must stay below {_LARGEST:g} in size, so that its squares fit in float64, got "
            f"{float(x.abs().amax()):g}; rescale it"
        )
    return mean, x - mean


def summarise(x: Tensor, y: Tensor, *, full: bool) -> State:
    """The statistics of one batch, centred by its own mean before the products."""
    mean_x, xc = _centred("x", x)
    mean_y, yc = _centred("y", y)
    syy = gram(yc) if full else yc.square().sum(0)
    return State(x.shape[0], mean_x, mean_y, gram(xc), xc.T @ yc, syy)


def combine(a: State, b: State) -> State:
    """Chan's formula: scatter about the common mean, exact up to roundoff."""
    if a.n == 0 or b.n == 0:
        return b if a.n == 0 else a
    n = a.n + b.n
    step_x, step_y = b.mean_x - a.mean_x, b.mean_y - a.mean_y
    share = b.n / n
    weight = a.n * share
    if a.syy.ndim == 2:
        syy = torch.addr(a.syy + b.syy, step_y, step_y, alpha=weight)
    else:
        syy = a.syy + b.syy + weight * step_y.square()
    return State(
        n,
        a.mean_x + share * step_x,
        a.mean_y + share * step_y,
        torch.addr(a.sxx + b.sxx, step_x, step_x, alpha=weight),
        torch.addr(a.sxy + b.sxy, step_x, step_y, alpha=weight),
        syy,
    )


def about(state: State, mean_x: Tensor, mean_y: Tensor) -> State:
    """The scatter of ``state`` about another centre."""
    step_x, step_y = state.mean_x - mean_x, state.mean_y - mean_y
    if state.syy.ndim == 2:
        syy = torch.addr(state.syy, step_y, step_y, alpha=state.n)
    else:
        syy = state.syy + state.n * step_y.square()
    return State(
        state.n,
        mean_x,
        mean_y,
        torch.addr(state.sxx, step_x, step_x, alpha=state.n),
        torch.addr(state.sxy, step_x, step_y, alpha=state.n),
        syy,
    )
