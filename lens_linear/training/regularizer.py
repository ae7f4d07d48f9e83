"""The cosine regulariser: pulls the residual stream before and after a block together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from lens_linear.checks import require_float, require_float_tensor, require_list
from lens_linear.errors import InvalidArgumentError


class CosineRegularizer:
    """Penalty on the angle between the residual stream before and after every block.

    ``weight * sum_l (1 - cos(x_{l-1}, x_l))``, averaged over tokens. Dimensionless: 0 when no block
    turns the stream, ``weight * n_layers`` when every block turns it by 90 degrees, at most twice that.

    Args:
        weight: the factor λ; finite, may be negative (then angles are rewarded).

    Returns:
        (when called) a scalar tensor, float32 or wider, to add to the language-model loss; gradients flow
        into it.

    Raises:
        InvalidArgumentError: fewer than two states, or states of different shapes.

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
        states = list(states) if isinstance(states, torch.Tensor) else states
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
        # In bfloat16 1 - cos comes in steps of 0.004 near cos = 1: float32 at least.
        wide = [state.to(torch.promote_types(state.dtype, torch.float32)) for state in states]
        turns = [
            1 - torch.nn.functional.cosine_similarity(before, after, dim=-1).mean()
            for before, after in pairwise(wide)
        ]
        return self.weight * torch.stack(turns).sum()
