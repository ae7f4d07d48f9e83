"""Two ways to the least-squares coefficients: from rows (QR, SVD) and from scatter (eigh).

Both scale the columns of x to unit norm first, count the rank against a tolerance on the scaled
singular values, drop the directions below it, and return the solution of minimum norm in the
original coordinates, as ``numpy.linalg.lstsq`` does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lens_linear.linalg.precision import CONSTANT_RTOL


@dataclass(frozen=True, eq=False)
class Solution:
    """Coefficients, the projection of y on the kept directions, and how many were kept."""

    weight: Float[Tensor, "d_in d_out"]
    core: Float[Tensor, "rank d_out"]  # core^T core = weight^T (sxx + ridge) weight
    rank: int


def constant_columns(
    scatter_diagonal: Float[Tensor, " d"], mean: Float[Tensor, " d"], n: int
) -> Tensor:
    """Mask of columns that are constant up to float64 roundoff."""
    return scatter_diagonal <= n * (CONSTANT_RTOL * mean).square()


def _column_scale(
    diagonal: Float[Tensor, " d"], constant: Tensor
) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
    """Norms of the columns (1 where constant) and their inverses (0 where constant)."""
    norms = torch.where(constant, torch.ones_like(diagonal), diagonal.clamp(min=0).sqrt())
    return norms, torch.where(constant, torch.zeros_like(norms), 1 / norms)


def _minimum_norm(weight: Tensor, null: Float[Tensor, "d k"], norms: Float[Tensor, " d"]) -> Tensor:
    """Remove from ``weight`` its part in the null space, given in scaled coordinates."""
    if null.shape[1] == 0:
        return weight
    # x = z * norms, so z v = 0 exactly when x (v / norms) = 0.
    basis, _ = torch.linalg.qr(null / norms[:, None])
    return weight - basis @ (basis.T @ weight)


def solve_rows(
    x: Float[Tensor, "n d_in"],
    y: Float[Tensor, "n d_out"],
    constant: Tensor,
    *,
    rtol: float,
    ridge: float,
) -> Solution:
    """Least squares from centred rows by QR of x, then SVD of its small triangular factor."""
    d = x.shape[1]
    if ridge > 0:  # ridge is least squares on d more rows, sqrt(ridge) * identity against zeros
        x = torch.cat([x, ridge**0.5 * torch.eye(d, dtype=x.dtype, device=x.device)])
        y = torch.cat([y, y.new_zeros(d, y.shape[1])])
        constant = torch.zeros_like(constant)
    norms, inverse = _column_scale(x.square().sum(0), constant)
    q, r = torch.linalg.qr(x * inverse)
    u, s, vt = torch.linalg.svd(r)
    rank = int((s > rtol * s[0]).sum()) if len(s) and s[0] > 0 else 0
    core = u[:, :rank].T @ (q.T @ y)
    weight = inverse[:, None] * (vt[:rank].T @ (core / s[:rank, None]))
    return Solution(_minimum_norm(weight, vt[rank:].T, norms), core, rank)


def solve_scatter(
    sxx: Float[Tensor, "d_in d_in"],
    sxy: Float[Tensor, "d_in d_out"],
    constant: Tensor,
    *,
    rtol: float,
    ridge: float,
) -> Solution:
    """Least squares from centred scatter by eigh of the scaled scatter (a correlation matrix)."""
    diagonal = sxx.diagonal() + ridge
    if ridge > 0:
        constant = torch.zeros_like(constant)
    norms, inverse = _column_scale(diagonal, constant)
    scaled = sxx * inverse[:, None] * inverse
    scaled.diagonal().copy_(torch.where(constant, torch.zeros_like(norms), torch.ones_like(norms)))
    values, vectors = torch.linalg.eigh(scaled)
    values, vectors = values.flip(0), vectors.flip(1)
    kept = values > rtol**2 * values[0] if values[0] > 0 else values < values
    rank = int(kept.sum())
    root = values[:rank].sqrt()
    core = (vectors[:, :rank].T @ (sxy * inverse[:, None])) / root[:, None]
    weight = inverse[:, None] * (vectors[:, :rank] @ (core / root[:, None]))
    return Solution(_minimum_norm(weight, vectors[:, rank:], norms), core, rank)
