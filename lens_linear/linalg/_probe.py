"""Directions in which x hardly varies, measured apart so that squaring does not drown them.

The scatter of x, scaled to unit columns, holds a direction of relative standard deviation s with
a relative error of about ``eps / s²``: 2e-4 at s = 1e-6. So directions with s below ``THRESHOLD``
are found once, on the first rows (the *probe*, [d, k]), and ``z = (x − mean) @ probe`` is formed
row by row before any product. In the coordinates ``[z, L]``, L spanning the rest, the scatter is
well conditioned, and least squares is as accurate as from the rows themselves. Normalised
activations have one such direction (their entries sum to zero), so k and the cost are small.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from lens_linear.linalg._scatter import State
from lens_linear.linalg._solve import (
    Solution,
    column_scale,
    constant_columns,
    extreme_eigenvalues,
    ridge_rows,
    scale_scatter,
    solve_cholesky,
    solve_factor,
    solve_scatter,
)

THRESHOLD = 3e-4
_BLOCK = 16


def _small_directions(scaled: Float[Tensor, "d d"]) -> Float[Tensor, "d k"]:
    """Orthonormal eigenvectors of eigenvalues below ``THRESHOLD²`` of the largest.

    Inverse iteration on a block first, which costs one Cholesky factor; eigh only if that block is
    not enough.
    """
    d = len(scaled)
    if d > 8 * _BLOCK:
        shift = 1e-13 * d
        eye = torch.eye(d, dtype=scaled.dtype, device=scaled.device)
        root, failed = torch.linalg.cholesky_ex(scaled + shift * eye, upper=True)
        if not int(failed):
            generator = torch.Generator().manual_seed(0)
            block = torch.randn(d, _BLOCK, generator=generator, dtype=scaled.dtype)
            low, high = block.to(scaled.device), block.to(scaled.device)[:, :2]
            for _ in range(6):
                low = torch.linalg.qr(solve_cholesky(low, root))[0]
                high = torch.linalg.qr(scaled @ high)[0]
            largest = torch.linalg.eigvalsh(high.T @ (scaled @ high))[-1]
            values, turn = torch.linalg.eigh(low.T @ (scaled @ low))
            small = values < THRESHOLD**2 * largest
            if not bool(small.all()):
                return low @ turn[:, small]
    values, vectors = torch.linalg.eigh(scaled)
    return vectors[:, values < THRESHOLD**2 * values[-1]]


def find_probe(state: State) -> Float[Tensor, "d k"]:
    """Directions of the state's x that need a probe, k of them, perhaps none."""
    constant = constant_columns(state.sxx.diagonal(), state.mean_x, state.n)
    scaled, _, inverse = scale_scatter(state.sxx, constant)
    # A constant column is no small direction: it has nothing to say and is left out by the solver.
    scaled.diagonal().add_(constant.to(scaled.dtype))
    return _small_directions(scaled) * inverse[:, None]


class _Coordinates:
    """The well-conditioned coordinates ``[z, L]`` of a state, and the scatter in them."""

    def __init__(self, state: State) -> None:
        constant = constant_columns(state.sxx.diagonal(), state.mean_x, state.n)
        self.norms, self.inverse = column_scale(state.sxx.diagonal(), constant)
        k = self.k = state.probe.shape[1]
        # x = xs * norms, z = xs @ (norms * probe) = xs @ Q[:, :k] @ triangle, L = xs @ Q[:, k:].
        # Q stays a product of k reflections: applying it costs k d² instead of d³.
        self._reflections, self._tau = torch.geqrf(state.probe * self.norms[:, None])
        self.triangle = self._reflections[:k].triu()
        self.scaled = state.sxx * self.inverse[:, None] * self.inverse
        turned = self._turn(self.scaled)
        mixed = state.szx * self.inverse
        # Scatter of [z, L] against x (scaled), against y, and against itself.
        self.to_x = torch.cat([mixed, turned[k:]])
        self.to_y = torch.cat([state.szy, self._turn(state.sxy * self.inverse[:, None])[k:]])
        corner = self._turn(mixed.T)[k:]
        rest = self._turn(turned.T)[k:, k:]
        self.scatter = torch.cat(
            [torch.cat([state.szz, corner.T], 1), torch.cat([corner, (rest + rest.T) / 2], 1)]
        )

    def _turn(self, v: Float[Tensor, "d m"], *, back: bool = False) -> Tensor:
        """``Qᵀ v``, or ``Q v``."""
        if v.shape[1] == 0:
            return v
        return torch.ormqr(self._reflections, self._tau, v, left=True, transpose=not back)

    def express(self, scaled: Float[Tensor, "d m"]) -> Tensor:
        """``M`` with ``xs @ scaled = [z, L] @ M``, xs the scaled x."""
        turned = self._turn(scaled)
        top = torch.linalg.solve_triangular(self.triangle, turned[: self.k], upper=True)
        return torch.cat([top, turned[self.k :]])

    def back(self, coefficients: Tensor) -> Tensor:
        """Coefficients on the scaled x of the map with ``coefficients`` on ``[z, L]``."""
        top = self.triangle @ coefficients[: self.k]
        return self._turn(torch.cat([top, coefficients[self.k :]]), back=True)

    def transposed_back(self, v: Tensor) -> Tensor:
        """The transpose of :meth:`back`."""
        turned = self._turn(v)
        return torch.cat([self.triangle.T @ turned[: self.k], turned[self.k :]])

    def factor(self) -> tuple[Tensor, Tensor]:
        """``B``, ``C`` with ``BᵀB`` the scatter of the scaled x and ``BᵀC`` that with y."""
        scaled, norms, inverse = scale_scatter(self.scatter, self.scatter.diagonal() <= 0)
        values, vectors = torch.linalg.eigh(scaled)
        kept = values > 1e-15 * len(values) * values[-1]
        root, vectors = values[kept].sqrt(), vectors[:, kept]
        turn = self.express(torch.eye(len(scaled), dtype=scaled.dtype, device=scaled.device))
        target = vectors.T @ (self.to_y * inverse[:, None]) / root[:, None]
        return root[:, None] * (vectors.T @ (norms[:, None] * turn)), target

    def solve_full_rank(self, rtol: float) -> Solution | None:
        """By Cholesky, if the scaled x is safely of full rank at ``rtol``; None if it is not."""
        scaled, _, inverse = scale_scatter(self.scatter, self.scatter.diagonal() <= 0)
        root, failed = torch.linalg.cholesky_ex(scaled, upper=True)
        if int(failed):
            return None

        def invert(v: Tensor) -> Tensor:
            inner = solve_cholesky(inverse[:, None] * self.transposed_back(v), root)
            return self.back(inverse[:, None] * inner)

        conditioned, _ = extreme_eigenvalues(
            lambda v: scaled @ v, lambda v: solve_cholesky(v, root), scaled
        )
        smallest, largest = extreme_eigenvalues(lambda v: self.scaled @ v, invert, scaled)
        if not (smallest > 100 * rtol**2 * largest and conditioned > 1e-10):
            return None
        core = torch.linalg.solve_triangular(root.T, inverse[:, None] * self.to_y, upper=False)
        inner = inverse[:, None] * torch.linalg.solve_triangular(root, core, upper=True)
        return Solution(self.inverse[:, None] * self.back(inner), core, len(scaled))


def with_probe(state: State, probe: Tensor) -> State:
    """The state with its small directions measured along another probe."""
    if state.probe is probe or torch.equal(state.probe, probe):
        return state._replace(probe=probe)
    if state.probe.shape[1] == 0:
        szx = probe.T @ state.sxx
        return state._replace(probe=probe, szx=szx, szy=probe.T @ state.sxy, szz=szx @ probe)
    here = _Coordinates(state)
    change = here.express(probe * here.norms[:, None])
    return state._replace(
        probe=probe,
        szx=change.T @ here.to_x * here.norms,
        szy=change.T @ here.to_y,
        szz=change.T @ here.scatter @ change,
    )


def common_probe(a: Tensor, b: Tensor) -> Tensor:
    """The probe with more directions; the first of two equals."""
    return b if b.shape[1] > a.shape[1] else a


def solve_state(state: State, *, rtol: float, ridge: float) -> Solution:
    """Least squares of y on x from the statistics."""
    constant = constant_columns(state.sxx.diagonal(), state.mean_x, state.n)
    if state.probe.shape[1] == 0:
        return solve_scatter(state.sxx, state.sxy, constant, rtol=rtol, ridge=ridge)
    here = _Coordinates(state)
    quick = here.solve_full_rank(rtol) if ridge == 0 and not bool(constant.any()) else None
    if quick is not None:
        return quick
    factor, target = here.factor()
    if ridge > 0:
        rows, target = ridge_rows(factor * here.norms, target, ridge)
        norms, inverse = column_scale(rows.square().sum(0), torch.zeros_like(constant))
        return solve_factor(rows * inverse, target, norms, inverse, rtol)
    return solve_factor(factor, target, here.norms, here.inverse, rtol)


def residual_scatter(state: State, weight: Float[Tensor, "d_in d_out"]) -> float:
    """``‖Yc − Xc W‖²`` for any W, from the statistics."""
    total = state.scatter_y.sum()
    if state.probe.shape[1] == 0:
        cross = (weight * state.sxy).sum()
        return float(total - 2 * cross + (weight * (state.sxx @ weight)).sum())
    here = _Coordinates(state)
    # W as coefficients on [z, L]: there its large entries meet small, accurate scatter.
    inner = here.express(here.norms[:, None] * weight)
    cross = (inner * here.to_y).sum()
    return float(total - 2 * cross + (inner * (here.scatter @ inner)).sum())
