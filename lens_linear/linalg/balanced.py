"""Balanced reduction: keep the states that inputs reach *and* outputs see.

Columns are vectors here, as in :mod:`lens_linear.linalg.krylov`. A state that is easy to reach but
invisible, or visible but out of reach, is dropped; an orthogonal basis cannot tell them apart.

>>> import torch
>>> eye = torch.eye(2, dtype=torch.float64)
>>> balanced_truncation(eye, eye * torch.tensor([3.0, 1.0]), order=1)
BalancedReduction: order 1 of 2, keeps 75.00% of the sum of 2 Hankel singular values
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lens_linear.checks import require_float, require_float_tensor, require_int, require_rows
from lens_linear.errors import InvalidArgumentError
from lens_linear.linalg.precision import EPS, to_compute
from lens_linear.tables import Result


@dataclass(frozen=True, eq=False)
class BalancedReduction(Result):
    """Oblique projection onto the directions that are both reached and seen.

    The reduced system of ``x' = A x + B u, y = C x`` is ``leftᵀ A right``, ``leftᵀ B``,
    ``C right``; ``leftᵀ right`` is the identity.

    Attributes:
        right: [d, order], columns that rebuild the state: ``x ≈ right @ z``.
        left: [d, order], columns that read it: ``z = leftᵀ x``.
        hankel: all Hankel singular values, largest first, in units of output per input.
        order: columns kept; below the order asked for when the values ran out.
        rtol: Hankel values below this fraction of the largest count as zero.
    """

    right: Float[Tensor, "d order"]
    left: Float[Tensor, "d order"]
    hankel: Float[Tensor, " k"]
    order: int
    rtol: float

    @property
    def error_bound(self) -> float:
        """Twice the sum of the discarded Hankel values: H∞ error bound for exact Gramians."""
        return 2 * float(self.hankel[self.order :].sum())

    def to_dataframe(self) -> pd.DataFrame:
        """One row per Hankel singular value: hankel, kept."""
        kept = [i < self.order for i in range(len(self.hankel))]
        frame = pd.DataFrame({"hankel": self.hankel.cpu().numpy(), "kept": kept})
        return frame.rename_axis("state")

    def __repr__(self) -> str:
        share = float(self.hankel[: self.order].sum() / self.hankel.sum())
        return (
            f"BalancedReduction: order {self.order} of {self.right.shape[0]}, keeps {share:.2%} "
            f"of the sum of {len(self.hankel)} Hankel singular values"
        )


def balanced_truncation(
    controllability_factor: Float[Tensor, "d p"],
    observability_factor: Float[Tensor, "d q"],
    *,
    order: int,
    rtol: float | None = None,
) -> BalancedReduction:
    """Balanced reduction from factors of the two Gramians (or from snapshots: balanced POD).

    With ``W_c = L_c L_cᵀ``, ``W_o = L_o L_oᵀ`` and ``L_oᵀ L_c = U Σ Vᵀ``:
    ``right = L_c V Σ^{−1/2}``, ``left = L_o U Σ^{−1/2}``, leading ``order`` columns. Only a q × p
    matrix is decomposed.

    Σ are the Hankel singular values, in units of output per input; 0 for a state that no input
    reaches or no output sees.

    Args:
        controllability_factor: L_c [d, p]; for a finite horizon its columns are the responses
            ``A … A B`` to each input.
        observability_factor: L_o [d, q]; its columns are the adjoint responses ``Aᵀ … Aᵀ Cᵀ``.
        order: columns wanted, at least 1; fewer are returned when fewer values are nonzero.
        rtol: relative size below which a Hankel value counts as zero; default
            ``eps · max(p, q, d)``, eps = 2.2e-16, the rule of ``numpy.linalg.matrix_rank``.

    Returns:
        Left and right bases with the Hankel singular values.

    Raises:
        InvalidArgumentError: shapes disagree, or no state is both reached and seen.
        NonFiniteError: NaN or infinity.

    Source: Laub et al. 1987 (square-root algorithm); Rowley 2005, model reduction by
        balanced proper orthogonal decomposition, section 3.

    Example:
        >>> import torch
        >>> eye = torch.eye(3, dtype=torch.float64)
        >>> balanced_truncation(eye * torch.tensor([4.0, 2, 1]), eye, order=2).hankel.tolist()
        [4.0, 2.0, 1.0]
    """
    factors = []
    for name, factor in (
        ("controllability_factor", controllability_factor),
        ("observability_factor", observability_factor),
    ):
        require_float_tensor(name, factor, ndim=2)
        require_rows(name, factor.shape[1], minimum=1, why="one column a response")
        factors.append(to_compute(factor))
    reach, see = factors[0], factors[1].to(factors[0].device)
    if reach.shape[0] != see.shape[0]:
        raise InvalidArgumentError(
            "observability_factor must have as many rows as controllability_factor, got "
            f"{see.shape[0]} and {reach.shape[0]}; both are [d, responses]"
        )
    order = require_int("order", order, minimum=1)
    if rtol is None:
        rtol = EPS * max(*reach.shape, see.shape[1])
    rtol = require_float("rtol", rtol, minimum=0.0, maximum=1.0)
    u, hankel, vt = torch.linalg.svd(see.T @ reach, full_matrices=False)
    if not float(hankel[0]) > 0:
        raise InvalidArgumentError(
            "controllability_factor and observability_factor must share a direction, but no state "
            "is both reached and seen; check that they belong to one system"
        )
    kept = min(order, int((hankel > rtol * hankel[0]).sum()))
    root = hankel[:kept].rsqrt()
    right, left = reach @ vt[:kept].T * root, see @ u[:, :kept] * root
    return BalancedReduction(right, left, hankel, kept, rtol)
