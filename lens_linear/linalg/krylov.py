"""Small orthonormal bases for large linear systems that are known only through products.

Columns are vectors here: ``A v``, bases [d, order], as in the state-space literature
(``r_{l+1} = A r_l + B u``). Everything runs in float64; products may come in any precision.

>>> import torch
>>> matrix = torch.diag(torch.arange(1.0, 7.0, dtype=torch.float64))
>>> krylov_basis(lambda v: v @ matrix.T, torch.ones(6), order=3)
KrylovBasis: order 3 in 6 dimensions, no breakdown
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lens_linear.checks import (
    counted,
    require_callable,
    require_finite,
    require_float,
    require_float_tensor,
    require_int,
    require_seed,
)
from lens_linear.errors import InvalidArgumentError
from lens_linear.linalg.precision import to_compute
from lens_linear.tables import Result


@dataclass(frozen=True, eq=False)
class KrylovBasis(Result):
    """Orthonormal bases of ``span{v, A v, A² v, …}``, one per start vector.

    Attributes:
        basis: [d, order], or [batch, d, order] when several starts were given.
        projected: [order, order] (or batched), ``basisᵀ A basis``; upper Hessenberg but for the
            columns from a breakdown on.
        exact_order: [] or [batch], columns that span the Krylov space; the rest are random
            completions after a breakdown (then ``A`` maps the first ones into themselves).
        rtol: a new direction shorter than this fraction of the product is a breakdown.
        seed: of the random completions.
    """

    basis: Float[Tensor, "*batch d order"]
    projected: Float[Tensor, "*batch order order"]
    exact_order: Tensor
    rtol: float
    seed: int

    def to_dataframe(self) -> pd.DataFrame:
        """One row per start vector: d, order, exact_order, rtol, seed."""
        d, order = self.basis.shape[-2:]
        return pd.DataFrame(
            {
                "d": d,
                "order": order,
                "exact_order": self.exact_order.reshape(-1).tolist(),
                "rtol": self.rtol,
                "seed": self.seed,
            }
        ).rename_axis("start")

    def __repr__(self) -> str:
        d, order = self.basis.shape[-2:]
        lowest = int(self.exact_order.min())
        end = "no breakdown" if lowest == order else f"breakdown after {counted(lowest, 'column')}"
        batch = f"{self.basis.shape[0]} bases of " if self.basis.ndim == 3 else ""
        return f"KrylovBasis: {batch}order {order} in {counted(d, 'dimension')}, {end}"


def _against(basis: Tensor, w: Tensor) -> Tensor:
    """Remove from w [b, d] its parts along basis [b, d, k], twice (once is not enough)."""
    for _ in range(2):
        w = w - torch.einsum("bdk,bk->bd", basis, torch.einsum("bdk,bd->bk", basis, w))
    return w


def _next_column(
    basis: Tensor, w: Tensor, scale: Tensor, rtol: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Unit vectors [b, d] orthogonal to basis: along w, or random where w has no new direction.

    Also returns the mask of the random ones. Draws depend on the seed and the column alone, so a
    start vector gets the same basis in any batch.
    """
    rest = _against(basis, w)
    norm = rest.norm(dim=-1)
    broken = norm <= rtol * scale
    if bool(broken.any()):
        generator = torch.Generator().manual_seed(seed * 100_003 + basis.shape[-1])
        draw = torch.randn(w.shape[-1], generator=generator, dtype=w.dtype).to(w.device)
        fresh = _against(basis, draw.expand_as(w))
        fresh = _against(basis, fresh / fresh.norm(dim=-1, keepdim=True))
        rest = torch.where(broken[:, None], fresh, rest)
    unit = rest / rest.norm(dim=-1, keepdim=True)
    return unit, broken


def _starts(name: str, value: Tensor) -> Tensor:
    """Unit rows [b, d] of a vector [d] or of several [b, d]."""
    require_float_tensor(name, value)
    if value.ndim not in (1, 2) or value.numel() == 0:
        raise InvalidArgumentError(
            f"{name} must have shape [d] or [batch, d], got {tuple(value.shape)}; reshape it"
        )
    rows = to_compute(value).reshape(-1, value.shape[-1])
    norms = rows.norm(dim=-1, keepdim=True)
    if not bool((norms > 0).all()):
        raise InvalidArgumentError(f"{name} must not be zero; pass a direction")
    unit: Tensor = rows / norms
    return unit


def krylov_basis(
    apply: Callable[[Float[Tensor, "batch d"]], Float[Tensor, "batch d"]],
    start: Float[Tensor, "*batch d"],
    *,
    order: int,
    rtol: float = 1e-10,
    seed: int = 0,
) -> KrylovBasis:
    """Arnoldi: orthonormal bases of the Krylov spaces of a linear map, from products alone.

    ``span{v, A v, …, A^{order−1} v}``; the first column is ``v / ‖v‖`` itself. Each new product is
    orthogonalised twice against the columns before it. When it brings nothing new (breakdown: the
    space is invariant) a seeded random direction completes the basis.

    Costs ``order`` calls of ``apply``; several starts share each call.

    Args:
        apply: the map on rows: [batch, d] float64 in, the products [batch, d] out (row i is
            ``A_i v_i``, so each start may have its own A).
        start: [d] or [batch, d], not zero.
        order: columns, from 1 to d.
        rtol: see :class:`KrylovBasis`. Raise it to 1e-5 for products in float32.
        seed: of the completions.

    Returns:
        The bases, the projected maps ``Pᵀ A P``, and where they broke down.

    Raises:
        InvalidArgumentError: bad shapes, zero start, or ``order`` above d.
        NonFiniteError: a product holds NaN or infinity.

    Source: Arnoldi 1951; for "twice is enough" Giraud et al. 2005 on the loss of orthogonality in the
        Gram-Schmidt process.

    Example:
        >>> import torch
        >>> matrix = torch.tensor([[2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 5.0]], dtype=torch.float64)
        >>> found = krylov_basis(lambda rows: rows @ matrix.T, torch.tensor([1.0, 0.0, 0.0]), order=3)
        >>> int(found.exact_order), found.projected.diagonal().round(decimals=9).tolist()
        (2, [2.0, 2.0, 5.0])
    """
    require_callable("apply", apply, advice="pass e.g. lambda rows: rows @ matrix")
    rows = _starts("start", start)
    batch, d = rows.shape
    order = require_int("order", order, minimum=1, maximum=d)
    rtol = require_float("rtol", rtol, minimum=0.0, maximum=1.0)
    seed = require_seed(seed)
    basis, products = rows.new_zeros(batch, d, order), rows.new_zeros(batch, d, order)
    exact = torch.full((batch,), order, device=rows.device)
    scale = rows.new_zeros(batch)
    basis[:, :, 0] = rows
    for j in range(order):
        product = apply(basis[:, :, j].clone())
        if not isinstance(product, Tensor) or product.shape != rows.shape:
            got = tuple(product.shape) if isinstance(product, Tensor) else type(product).__name__
            raise InvalidArgumentError(
                f"apply must return shape {tuple(rows.shape)}, got {got}; map rows to rows"
            )
        products[:, :, j] = to_compute(require_finite("apply(v)", product), device=rows.device)
        if j + 1 < order:
            w = products[:, :, j]
            scale = torch.maximum(scale, w.norm(dim=-1))
            basis[:, :, j + 1], broken = _next_column(basis[:, :, : j + 1], w, scale, rtol, seed)
            exact = torch.where(broken & (exact > j + 1), j + 1, exact)
    projected = basis.mT @ products
    if start.ndim == 1:
        basis, projected, exact = basis[0], projected[0], exact[0]
    return KrylovBasis(basis, projected, exact, rtol, seed)


def complete_basis(
    columns: Float[Tensor, "*batch d k"],
    *,
    order: int | None = None,
    rtol: float = 1e-10,
    seed: int = 0,
) -> Float[Tensor, "*batch d order"]:
    """Orthonormal columns: the given ones in order, made orthogonal, then random ones.

    The first column keeps its direction exactly. A column that depends on those before it (what is
    new is shorter than ``rtol`` times the column) is replaced by a random direction.

    Args:
        columns: [d, k] or [batch, d, k]; the first must not be zero.
        order: columns wanted, from 1 to d; default k.
        rtol: see above.
        seed: of the random directions.

    Returns:
        [d, order] or [batch, d, order] in float64.

    Raises:
        InvalidArgumentError: bad shapes, zero first column, or ``order`` out of range.
        NonFiniteError: NaN or infinity.

    Example:
        >>> import torch
        >>> p = complete_basis(torch.tensor([[3.0], [0.0], [0.0]]), order=3)
        >>> p[:, 0].tolist(), torch.allclose(p.T @ p, torch.eye(3, dtype=p.dtype))
        ([1.0, 0.0, 0.0], True)
    """
    require_float_tensor("columns", columns)
    if columns.ndim not in (2, 3) or columns.numel() == 0:
        raise InvalidArgumentError(
            f"columns must have shape [d, k] or [batch, d, k], got {tuple(columns.shape)}; reshape"
        )
    given = to_compute(columns).reshape(-1, *columns.shape[-2:])
    batch, d, k = given.shape
    order = k if order is None else order
    order = require_int("order", order, minimum=1, maximum=d)
    rtol = require_float("rtol", rtol, minimum=0.0, maximum=1.0)
    seed = require_seed(seed)
    basis = given.new_zeros(batch, d, order)
    basis[:, :, 0] = _starts("columns[..., 0]", given[:, :, 0])
    for j in range(1, order):
        w = given[:, :, j] if j < k else torch.zeros_like(given[:, :, 0])
        basis[:, :, j], _ = _next_column(basis[:, :, :j], w, w.norm(dim=-1), rtol, seed)
    return basis[0] if columns.ndim == 2 else basis
