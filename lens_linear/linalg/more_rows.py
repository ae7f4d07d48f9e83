"""Two least-squares maps for little more than the price of one: of some rows, and of these and a few more.

k more rows change ``S = XᵀX`` by a matrix of rank k, so the second map is the first one plus a product of
two thin matrices (Woodbury's identity):

    W' = W + Z C,   Z = S⁻¹ Uᵀ,   C = (1 + U Z)⁻¹ (V − U W),

U and V the rows added. Nothing is approximated. Both maps must leave out the same directions of x: where
that is not plain from the numbers, the second map is solved for on its own.

>>> import torch
>>> from lens_linear.linalg.moments import Moments
>>> g = torch.Generator().manual_seed(0)
>>> x, y = torch.randn(2, 400, 90, generator=g)
>>> rest, more = Moments().update(x[4:], y[4:]), Moments().update(x[:4], y[:4])
>>> _, both, step = solve_both(rest.scatter, more.scatter, (rest + more).scatter)
>>> bool((both.weight - (rest + more).fit().weight).abs().max() < 1e-12), step is not None
(True, True)
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lens_linear.linalg.least_squares import LinearFit, Solution, shortest, solve, solve_keeping
from lens_linear.linalg.precision import constant_columns
from lens_linear.linalg.scatter import Factor, Products, Scatter

_SHARE = 4  # rows added up to a quarter of the columns


class Step(NamedTuple):
    """The difference of two maps, ``along @ amount``."""

    along: Float[Tensor, "d_in k"]
    amount: Float[Tensor, "k d_out"]


def solve_both(
    rest: Scatter, more: Scatter, whole: Scatter
) -> tuple[LinearFit, LinearFit, Step | None]:
    """The maps of ``rest`` and of ``whole``, which is ``rest`` with ``more``, and the step between them.

    The step is None where the two were solved for apart.
    """
    fit, solution, size = solve_keeping(rest)
    if isinstance(more.form, Factor) and isinstance(whole.form, Products):
        rows = _rows_between(rest, more, more.form)
        if solution.root is not None and len(rows[0]) <= len(size) // _SHARE:
            found = _stepped(fit, solution, solution.root, size, *rows, rest.n, whole)
            if found is not None:
                return fit, *found
    return fit, solve(whole), None


def _rows_between(rest: Scatter, more: Scatter, form: Factor) -> tuple[Tensor, Tensor]:
    """Rows U, V that make the scatter of ``rest`` that of all: the centred ones, and the step of the mean."""
    weight = (rest.n * more.n / (rest.n + more.n)) ** 0.5
    u = torch.cat([form.root, weight * (more.mean_x - rest.mean_x)[None]])
    v = torch.cat([form.image, weight * (more.mean_y - rest.mean_y)[None]])
    return u, v


def _stepped(
    fit: LinearFit,
    solution: Solution,
    root: Tensor,
    size: Tensor,
    u: Float[Tensor, "k d_in"],
    v: Float[Tensor, "k d_out"],
    n_rest: int,
    whole: Scatter,
) -> tuple[LinearFit, Step] | None:
    empty = solution.empty
    floor = fit.tolerance**2
    if not _same_directions(solution, size, whole.size, u, n_rest / whole.n, whole.n, floor):
        return None
    inside = (u / size).T / n_rest**0.5
    inside = inside - empty @ (empty.T @ inside)
    half = torch.linalg.solve_triangular(root.T, inside, upper=False)
    along = torch.linalg.solve_triangular(root, half, upper=True)
    along = (along - empty @ (empty.T @ along)) / n_rest**0.5 / size[:, None]
    before = solution.weight / size[:, None]
    one = torch.eye(len(u), dtype=u.dtype, device=u.device)
    amount = torch.linalg.solve(one + u @ along, v - u @ before)
    full = before + along @ amount
    explained = (full * whole.products.sxy).sum(0)
    core = torch.cat([solution.core + half @ amount, u @ full])
    if empty.shape[1]:
        along = shortest(along * size[:, None], empty, size)[0] / size[:, None]
    weight = fit.weight + along @ amount
    scatter_y = whole.form.scatter_y
    constant = constant_columns(scatter_y, whole.mean_y, whole.n, torch.float64)
    scatter_y = torch.where(constant, torch.zeros_like(scatter_y), scatter_y)
    both = replace(
        fit,
        weight=weight,
        bias=whole.mean_y - whole.mean_x @ weight,
        mean_y=whole.mean_y,
        core=core,
        scatter_y=scatter_y,
        r_squared=float(explained.sum() / scatter_y.sum()),
        n=whole.n,
    )
    return both, Step(along, amount)


def _same_directions(
    solution: Solution,
    size: Tensor,
    after: Tensor,
    u: Tensor,
    share: float,
    n: int,
    floor: float,
) -> bool:
    """Whether all rows leave out just the directions that the first ones leave out.

    Sizes of columns grow by the rows added, so the smallest direction kept may fall below the tolerance,
    and the rows added may lie along a direction that was empty.
    """
    if solution.least * share * float((size / after).min()) ** 2 <= 4 * floor:
        return False
    direction = solution.empty / size[:, None]
    direction = direction / (direction * after[:, None]).norm(dim=0)
    return bool(((u @ direction).square().sum(0) <= n * floor).all())
