"""The cosine regulariser: pulls the residual stream before and after a block together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from lens_linear.checks import require_float, require_float_tensor, require_list
from lens_linear.errors import InvalidArgumentError, NonFiniteError

# Relative, of a gradient in float16; rounding alone loses 0.0003.
_MAX_LOSS = 0.01
_MAX_TOKEN_LOSS = 0.05  # of one token's
# Of the gradient of a unit row that points along the row, and so is 0 for the state, float32 leaves 3 to 11
# eps (measured, widths 2 to 4,096).
_RESIDUE = 32 * torch.finfo(torch.float32).eps


class CosineRegularizer:
    """Penalty on the angle between the residual stream before and after every block.

    ``weight * sum_l (1 - cos(x_{l-1}, x_l))``, averaged over tokens. Dimensionless: 0 when no block
    turns the stream, ``weight * n_layers`` when every block turns it by 90 degrees, at most twice that.
    A token whose state is zero has no direction: it counts as turned by 90 degrees, without a gradient.
    One below the normal numbers of the computation (1e-38 in float32) keeps its angle, without a gradient.

    Args:
        weight: the factor λ; finite, may be negative (then angles are rewarded).

    Returns:
        (when called) a scalar tensor, float32 or wider, to add to the language-model loss; gradients flow
        into it.

    Raises:
        InvalidArgumentError: fewer than two states, or states of different shapes.
        NonFiniteError: (when gradients are taken) float16 states, and float16 would round more than 1 %
            of their gradient away, or more than 5 % of one token's (large states have small gradients), or
            cannot hold it. Tokens that turn a hundred times less than the rest do not count, and what float32
            leaves of the gradient of exactly opposed states (it is 0) is 0.

    Source: Razzhigaev et al. 2024, arXiv 2405.12250, section 5 (regularisation during pretraining).

    Example:
        >>> import torch
        >>> x = torch.tensor([[[3.0, 4.0]]])
        >>> y = torch.tensor([[[4.0, 3.0]]])
        >>> round(CosineRegularizer(0.5)([x, y]).item(), 4)
        0.02
    """

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = require_float("weight", weight)

    def __repr__(self) -> str:
        return f"CosineRegularizer: {self.weight} × mean over tokens of Σ_l (1 - cos(x_l-1, x_l))"

    def __call__(self, states: Sequence[Float[Tensor, "*token d_model"]]) -> Float[Tensor, ""]:
        """Return the penalty for the residual stream at every layer boundary, first to last."""
        states = list(states) if isinstance(states, torch.Tensor) and states.ndim else states
        for state in require_list("states", states, of="tensors [..., d_model]"):
            require_float_tensor("states", state, finite=False)
        if len(states) < 2:
            raise InvalidArgumentError(
                f"states must hold at least two layer boundaries, got {len(states)}; "
                "pass the stream before the first block and after each block"
            )
        shapes = {tuple(state.shape) for state in states}
        if len(shapes) > 1:
            raise InvalidArgumentError(
                f"states must have one shape, got {sorted(shapes)}; pass whole layers"
            )
        if 0 in min(shapes):
            raise InvalidArgumentError(
                f"states must hold at least one token of at least one number, got shape {min(shapes)}; pass "
                "the stream of a batch that is not empty"
            )
        units = [_unit(state) for state in states]
        turns = [_turn(before, after).mean() for before, after in pairwise(units)]
        return self.weight * torch.stack(turns).sum()


def _unit(state: Float[Tensor, "*token d_model"]) -> Float[Tensor, "*token d_model"]:
    """Rows of length 1, float32 or wider; rows of zeros stay zeros and get no gradient."""
    # In bfloat16 1 - cos comes in steps of 0.004 near cos = 1: float32 at least.
    x = state.to(torch.promote_types(state.dtype, torch.float32))
    whole = x
    size = x.detach().abs().amax(-1, keepdim=True)  # squares of 1e-30 underflow, of 1e30 overflow
    empty = size == 0
    # The gradient of a row goes with 1 / size, which would leave the range.
    x = torch.where(size < torch.finfo(x.dtype).tiny, x.detach(), x)
    x = torch.where(empty, torch.ones_like(x), x / size.where(~empty, torch.ones_like(size)))
    unit = torch.where(empty, torch.zeros_like(x), x / x.norm(dim=-1, keepdim=True))
    if state.dtype == torch.float16 and x.requires_grad:
        sizes = state.detach().float().norm(dim=-1)
        pulls = torch.zeros_like(sizes)

        def note(
            gradient: Tensor,
        ) -> None:  # runs before the hook of the state, which the gradient meets later
            pulls.copy_(gradient.detach().norm(dim=-1))

        def keep(gradient: Tensor) -> Tensor:
            residue = gradient.norm(dim=-1) * sizes <= _RESIDUE * pulls
            gradient = gradient.masked_fill(residue[..., None], 0.0)
            _require_kept(gradient, sizes)
            return gradient

        unit.register_hook(note)
        whole.register_hook(keep)
    return unit


def _turn(before: Tensor, after: Tensor) -> Float[Tensor, "*token"]:
    """``1 - cos`` of unit rows as ``‖u - v‖² / 2``, which keeps its digits near 0; 1 for a row of zeros."""
    empty = (before == 0).all(-1) | (after == 0).all(-1)
    return torch.where(empty, 1.0, (before - after).square().sum(-1) / 2)


def _require_kept(
    gradient: Float[Tensor, "*token d_model"], sizes: Float[Tensor, "*token"]
) -> None:
    """Refuse a gradient that float16 would round away or cannot hold: its numbers are 6e-8 to 65504.

    A token's gradient goes with the angle over the size of its state, so tokens are weighed by the product
    of gradient and size: the norm over all tokens would be that of the smallest states alone.
    """
    advice = "use bfloat16 or float32 states, or scale the loss"
    largest = float(gradient.abs().amax()) if gradient.numel() else 0.0
    if not largest <= torch.finfo(torch.float16).max:
        raise NonFiniteError(
            f"states are float16, and this penalty's gradient reaches {largest:.3g}, more than its 65504; "
            f"{advice} by less"
            if math.isfinite(largest)
            else "the gradient that reaches this penalty is NaN or infinite; look at the loss and its scale"
        )
    off = (gradient.half().to(gradient.dtype) - gradient).norm(dim=-1)
    whole = gradient.norm(dim=-1)
    turn = whole * sizes
    counts = turn >= _MAX_LOSS * turn.square().mean().sqrt()
    lost = float(off.norm() / whole.norm()) if largest else 0.0
    tokens = int((counts & (off > _MAX_TOKEN_LOSS * whole)).sum())
    if lost > _MAX_LOSS or tokens:
        raise NonFiniteError(
            f"states are float16, which rounds {lost:.1%} of this penalty's gradient away, and more than "
            f"{_MAX_TOKEN_LOSS:.0%} of it for {tokens} of {whole.numel()} tokens (a mean over tokens and "
            f"large states make entries below 6e-8); {advice} by more (torch.amp.GradScaler)"
        )
