"""Binary Hopfield memories: one update of every bit at once, and what theory expects of it.

Bit i of a state s is compared with its flip: with ``h_μ = Σ_{j≠i} ξ_μj s_j`` it takes the sign of

    Σ_μ F(h_μ + ξ_μi) - F(h_μ - ξ_μi)  =  Σ_μ ξ_μi g(h_μ),     g(h) = F(h + 1) - F(h - 1)

(Krotov & Hopfield 2016, section 2). The sum splits into the target's term and the noise of the others.
In terms of the full overlap ``o = h + ξ_μi s_i`` it is two matrix products, so nothing of size
patterns × bits × queries is ever stored.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import torch
from jaxtyping import Float
from torch import Tensor

from lens_linear.constructions.memory.energies import Energy

_CHUNK = 8192  # patterns scored at once
_TIE = 1e-12  # fields this small beside the largest are exact ties blurred by rounding


def draw_signs(generator: torch.Generator, *shape: int) -> Tensor:
    """Independent fair ±1, float64."""
    return torch.randint(0, 2, shape, generator=generator).double() * 2 - 1


def flip(
    patterns: Float[Tensor, "q d"], noise: float, generator: torch.Generator
) -> Float[Tensor, "q d"]:
    """Flip exactly ``round(noise · d)`` bits of every row, chosen at random."""
    q, d = patterns.shape
    count = round(noise * d)
    where = torch.rand(q, d, generator=generator, dtype=torch.float32).argsort(1)[:, :count]
    return patterns.scatter(1, where, -patterns.gather(1, where))


def scaled(energy: Energy, overlap: Tensor, d: int, beta: float) -> Tensor:
    """F up to a positive factor that keeps it in range: overlaps reach ±(d + 2)."""
    if energy.degree is None:
        return torch.exp(beta * (overlap - d))
    base = overlap / d
    power = base * base
    for _ in range(energy.degree - 2):  # a third less time than ** at degree 4, measured
        power = power * base
    return power


def _weights(energy: Energy, overlap: Tensor, d: int, beta: float) -> tuple[Tensor, Tensor]:
    """G where the bits agree, and where they differ."""
    here = scaled(energy, overlap, d, beta)
    down, up = (scaled(energy, overlap + step, d, beta) for step in (-2, 2))
    return here - down, up - here


def field(
    energy: Energy, patterns: Float[Tensor, "k d"], state: Float[Tensor, "q d"], *, beta: float
) -> Float[Tensor, "q d"]:
    """``s_i Σ_μ ξ_μi g(h_μ)``: positive where bit i of the state wants to stay."""
    d = state.shape[1]
    total = torch.zeros_like(state)
    for block in patterns.split(_CHUNK):
        overlap = block @ state.T
        down, up = _weights(energy, overlap, d, beta)
        total += ((down - up) / 2).sum(0)[:, None] + state * (((down + up) / 2).T @ block)
    return total


def own_field(
    energy: Energy, pattern: Float[Tensor, "q d"], state: Float[Tensor, "q d"], *, beta: float
) -> Float[Tensor, "q d"]:
    """:func:`field` of one pattern a query: the target's own term."""
    d = state.shape[1]
    agree = pattern * state
    overlap = agree.sum(1, keepdim=True)
    down, up = _weights(energy, overlap, d, beta)
    return torch.where(agree > 0, down, -up)


def wrong_bits(
    total: Float[Tensor, "q d"], state: Float[Tensor, "q d"], target: Float[Tensor, "q d"]
) -> Float[Tensor, "q d"]:
    """1 where the updated bit differs from the target's, 1/2 for a tie, else 0."""
    towards = total * state * target
    tie = towards.abs() <= _TIE * total.abs().amax()
    return torch.where(tie, 0.5, (towards < 0).double())


def expected_capacity(
    energy: Energy, d: int, *, noise: float, max_bit_error: float, beta: float
) -> float:
    """Stored patterns at which the bit error after one update should reach ``max_bit_error``.

    The noise is a sum of many terms, taken as Gaussian with the exact variance ``(K - 1) E[g(h)²]``
    at this d. For the exponential energy a single competitor may be enough: the error is ``(K - 1)/2``
    times the chance that a random pattern's g exceeds the target's (half for a tie), the variance
    counts the weaker patterns only, and the lower of the two capacities is the expected one.
    """
    flips = round(noise * d)
    log_probability = torch.tensor([_log_binomial(d - 1, k) for k in range(d)], dtype=torch.float64)
    h = 2 * torch.arange(d, dtype=torch.float64) - (d - 1)
    # Bits that were flipped see one disagreement less in the other d - 1, so their h is larger.
    seen = torch.tensor([d - 2 * flips - 1, d - 2 * flips + 1], dtype=torch.float64)
    share = torch.tensor([d - flips, flips], dtype=torch.float64) / d
    probability = log_probability.exp()
    alone = math.inf
    if energy.degree is None:
        tail = [(probability * ((h > s) + 0.5 * (h == s))).sum() for s in seen]
        chance = float((torch.stack(tail) * share).sum())
        alone = 1 + 2 * max_bit_error / chance if chance else math.inf
        ratios = [(probability * torch.exp(2 * beta * (h - s)))[h < s].sum().sqrt() for s in seen]
        spread = torch.stack(ratios)
    else:
        noise_term = _step(energy, h, d, beta)
        spread = (probability * noise_term.square()).sum().sqrt() / _step(energy, seen, d, beta)

    def error(others: float) -> float:
        """Bit error where ``spread`` is one pattern's noise beside the target's term."""
        normal = NormalDist()
        return sum(
            float(w) * normal.cdf(-1 / (float(s) * math.sqrt(others)))
            for w, s in zip(share, spread, strict=True)
            if w > 0 and s > 0
        )

    low, high = 1e-9, 1e30
    for _ in range(200):  # bisection in the logarithm: the error rises with the load
        middle = math.sqrt(low * high)
        low, high = (middle, high) if error(middle) < max_bit_error else (low, middle)
    return min(1 + low, alone)


def _step(energy: Energy, h: Tensor, d: int, beta: float) -> Tensor:
    return scaled(energy, h + 1, d, beta) - scaled(energy, h - 1, d, beta)


def _log_binomial(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2)
