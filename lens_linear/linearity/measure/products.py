"""Fit ``r ≈ Σ_k (a_k·x)(b_k·x) c_k + affine(x)``: greedy starts, then L-BFGS with c solved exactly.

r is already free of its best affine map. A product of readings is not, on a finite sample, so the part of
each product that is affine in x is taken out of it: affine map and products are then fitted together
(Frisch, Waugh and Lovell), while a, b and c are all that is searched for.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

_STARTS = 4  # random directions tried for each product
_POWER_STEPS = 5  # of the power iteration on one of them


@dataclass(frozen=True, eq=False)
class Products:
    """``x ↦ ((x − shift) @ aᵀ · (x − shift) @ bᵀ − (x − shift) @ linear − offset) @ c``."""

    a: Float[Tensor, "k d_in"]
    b: Float[Tensor, "k d_in"]
    c: Float[Tensor, "k d_out"]
    shift: Float[Tensor, " d_in"]
    linear: Float[Tensor, "d_in k"]
    offset: Float[Tensor, " k"]

    def predict(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_out"]:
        """What the products say of the residual."""
        x = x - self.shift
        return ((x @ self.a.T) * (x @ self.b.T) - x @ self.linear - self.offset) @ self.c


class _Whitened:
    """Training rows with unit covariance: columns ``z = (x − mean) @ turn``."""

    def __init__(self, x: Tensor) -> None:
        self.mean = x.mean(0)
        centred = x - self.mean
        scale = centred.square().mean(0).sqrt()
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        _, s, vt = torch.linalg.svd(centred / scale, full_matrices=False)
        # Directions with almost no spread would be blown up to unit size and invite overfitting.
        kept = s > 1e-6 * s[0]
        self.turn = (vt[kept].T / s[kept]) * len(x) ** 0.5 / scale[:, None]
        self.exact = centred @ self.turn
        self.z = self.exact.float()


def fit_products(
    x: Float[Tensor, "n d_in"],
    r: Float[Tensor, "n d_out"],
    rank: int,
    *,
    keep: Collection[int],
    iterations: int,
    seed: int,
) -> dict[int, Products]:
    """Products at every rank in ``keep``, each started from the rank below."""
    white = _Whitened(x)
    z = white.z
    r32 = (r / r.square().mean().sqrt().clamp(min=1e-30)).float()
    generator = torch.Generator().manual_seed(seed)
    a = z.new_zeros(0, z.shape[1])
    b = z.new_zeros(0, z.shape[1])
    out: dict[int, Products] = {}
    for k in range(1, rank + 1):
        left = r32 - _explained(z, a, b, r32) if k > 1 else r32
        new_a, new_b = _leading_product(z, left, generator)
        a, b = torch.cat([a, new_a[None]]), torch.cat([b, new_b[None]])
        a, b = _improve(z, r32, a, b, iterations)
        if k in keep:
            out[k] = _finish(white, x, r, a.double(), b.double())
    return out


def _features(z: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Products, centred and without their part that is linear in z (whitened: zᵀ z = n)."""
    raw = (z @ a.T) * (z @ b.T)
    return raw - raw.mean(0) - z @ (z.T @ raw / len(z))


def _coefficients(features: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """Least-squares c and the cross products; a trace of ridge keeps equal products apart."""
    gram = features.T @ features
    ridge = 1e-6 * gram.diagonal().mean()
    gram = gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    cross = features.T @ r
    return torch.linalg.solve(gram, cross), cross


def _explained(z: Tensor, a: Tensor, b: Tensor, r: Tensor) -> Tensor:
    features = _features(z, a, b)
    return features @ _coefficients(features, r)[0]


def _leading_product(z: Tensor, r: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A start: power iteration between an output direction u and the best product for ``r @ u``.

    The quadratic form ``Σ (u·r) z zᵀ`` closest to a product ``sym(a bᵀ)`` keeps its largest positive and
    its most negative eigenvalue. Several random u; the best is kept.
    """
    starts: list[tuple[float, Tensor, Tensor]] = []
    for _ in range(_STARTS):
        u = torch.randn(r.shape[1], generator=generator, dtype=torch.float32).to(r)
        u = (r.T @ (r @ u)) / len(r)
        a = b = feature = u
        for _ in range(_POWER_STEPS):
            u = u / u.norm().clamp(min=1e-30)
            form = (z * (r @ u)[:, None]).T @ z / len(z)
            values, vectors = torch.linalg.eigh(form)
            up = values[-1].clamp(min=0).sqrt() * vectors[:, -1]
            down = (-values[0]).clamp(min=0).sqrt() * vectors[:, 0]
            a, b = up + down, up - down
            feature = _features(z, a[None], b[None])[:, 0]
            u = r.T @ feature
        size = float(u.norm() / feature.norm().clamp(min=1e-30))
        starts.append((size, a / a.norm().clamp(min=1e-30), b / b.norm().clamp(min=1e-30)))
    _, a, b = max(starts, key=lambda start: start[0])
    return a, b


def _improve(z: Tensor, r: Tensor, a: Tensor, b: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """L-BFGS on a and b together; c is solved exactly inside."""
    a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
    total = r.square().sum()
    optimizer = torch.optim.LBFGS(
        [a, b], max_iter=iterations, history_size=10, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        with torch.enable_grad():
            features = _features(z, a, b)
            coefficients, cross = _coefficients(features, r)
            loss = 1 - (coefficients * cross).sum() / total
            loss.backward()
        return loss

    optimizer.step(closure)
    a, b = a.detach(), b.detach()
    if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise FloatingPointError("the bilinear fit left the finite numbers; try another seed")
    return a / a.norm(dim=1, keepdim=True).clamp(min=1e-30), b / b.norm(dim=1, keepdim=True).clamp(
        min=1e-30
    )


def _finish(white: _Whitened, x: Tensor, r: Tensor, a: Tensor, b: Tensor) -> Products:
    """Back to the coordinates of x, with c refitted in float64."""
    raw = (white.exact @ a.T) * (white.exact @ b.T)
    inner = white.exact.T @ raw / len(x)
    features = raw - raw.mean(0) - white.exact @ inner
    c, _ = _coefficients(features, r)
    return Products(
        a @ white.turn.T, b @ white.turn.T, c, white.mean, white.turn @ inner, raw.mean(0)
    )
