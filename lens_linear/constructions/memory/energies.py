"""Hopfield energies ``E(s) = -Σ_μ F(ξ_μ · s)`` and the update each one amounts to.

The state s is a query, the stored patterns ξ_μ are keys and values at once, ``o_μ = ξ_μ · s`` are
the scores. Following the negative gradient of E gives ``s' = Σ_μ F'(o_μ) ξ_μ``: attention with
weights ``F'(o)``.

    energy        F(o)            weights F'(o)     attention             patterns it holds
    quadratic     o²/2            o                 linear: (s Ξᵀ) Ξ      ≈ 0.14 d
    polynomial-n  oⁿ/n            oⁿ⁻¹              power of the scores   ~ d^(n-1)
    exponential   exp(β o)/β      exp(β o)          softmax, normalised   exponential in d

For the exponential energy one takes the logarithm of the sum, which has the same minima: the
gradient of ``(1/β) log Σ_μ exp(β o_μ)`` is ``Σ_μ softmax(β o)_μ ξ_μ``. One update step *is* one
softmax attention readout with queries s, keys and values Ξ, and scale β.

>>> import torch
>>> from torch.nn.functional import scaled_dot_product_attention as attention
>>> s, xi = torch.randn(2, 8, dtype=torch.float64), torch.randn(5, 8, dtype=torch.float64)
>>> step = hopfield_update(s, xi, energy="exponential", beta=0.7)
>>> torch.allclose(step, attention(s[None], xi[None], xi[None], scale=0.7)[0])
True

Source: Hopfield 1982; Krotov & Hopfield 2016 (polynomial); Demircigil et al. 2017 (exponential);
Ramsauer et al. 2020, Eq. 3 (softmax attention); Tan & Zhao 2026, arXiv 2604.13656 (the passage from
linear to exponential memory).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lens_linear.checks import require_float, require_float_tensor, require_list
from lens_linear.errors import InvalidArgumentError


@dataclass(frozen=True)
class Energy:
    """One member of the family. ``degree`` is n for quadratic (2) and polynomial, None for exp."""

    name: str
    degree: int | None

    def log_weights(self, overlap: Tensor) -> Tensor:
        """``log |F'(o)|`` at β = 1, which stays finite where F' itself would overflow."""
        if self.degree is None:
            return overlap
        return (self.degree - 1) * overlap.abs().log()


def parse_energy(name: str) -> Energy:
    """An energy by name: ``"quadratic"`` (also ``"linear"``), ``"polynomial-n"``,
    ``"exponential"``.

    ``"polynomial"`` alone is degree 3; ``"softmax"`` is another word for ``"exponential"``.

    Raises:
        InvalidArgumentError: no energy goes by that name, or the degree is below 2.
    """
    text = str(name).lower()
    if text in ("exponential", "softmax"):
        return Energy("exponential", None)
    if text in ("quadratic", "linear"):
        return Energy("quadratic", 2)
    match = re.fullmatch(r"polynomial(?:-(\d+))?", text)
    degree = int(match[1] or 3) if match else 0
    if not 2 <= degree <= 20:
        raise InvalidArgumentError(
            f"energy must be 'quadratic', 'polynomial-n' with n from 2 to 20, or 'exponential', "
            f"got {name!r}; pass e.g. 'polynomial-3'"
        )
    return Energy("quadratic" if degree == 2 else f"polynomial-{degree}", degree)


def parse_energies(names: str | Sequence[str]) -> list[Energy]:
    """Energies by name, each once."""
    several = [names] if isinstance(names, str) else names
    return list(
        dict.fromkeys(map(parse_energy, require_list("energies", several, of="names of energies")))
    )


def hopfield_energy(
    state: Float[Tensor, "q d"],
    patterns: Float[Tensor, "k d"],
    *,
    energy: str = "exponential",
    beta: float = 1.0,
) -> Float[Tensor, " q"]:
    """``-Σ_μ F(ξ_μ · s)``; for the exponential energy ``-(1/β) log Σ_μ exp(β ξ_μ · s)``.

    With ``+ ‖s‖²/2`` the latter is the energy of Ramsauer et al. (up to a constant), which the
    update never raises.

    Args:
        state: ``[q, d]`` states.
        patterns: ``[k, d]`` stored patterns.
        energy: name of the energy, see :func:`parse_energy`.
        beta: inverse temperature; only the exponential energy has one.

    Returns:
        ``[q]`` energies, float64, in units of ``F``.

    Raises:
        InvalidArgumentError: shapes that do not fit, an unknown energy, or ``beta`` not above 0.

    Source: Krotov & Hopfield 2016 (polynomial); Demircigil et al. 2017 and Ramsauer et al. 2020
        (exponential).

    Example:
        >>> state, patterns = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 1.0], [1.0, -1.0]])
        >>> hopfield_energy(state, patterns, energy="quadratic").tolist()  # both overlaps are 2
        [-4.0]
        >>> round(hopfield_energy(state, patterns).item(), 4)  # -(2 + log 2)
        -2.6931
    """
    kind, overlaps, beta = _scores(state, patterns, energy, beta)
    if kind.degree is None:
        return -torch.logsumexp(beta * overlaps, dim=-1) / beta
    return -(overlaps**kind.degree / kind.degree).sum(-1)


def hopfield_update(
    state: Float[Tensor, "q d"],
    patterns: Float[Tensor, "k d"],
    *,
    energy: str = "exponential",
    beta: float = 1.0,
) -> Float[Tensor, "q d"]:
    """One update ``s' = -∇E(s)``: linear, polynomial or softmax attention of s over the patterns.

    Args:
        state: ``[q, d]`` states, the queries.
        patterns: ``[k, d]`` stored patterns, keys and values.
        energy: name of the energy, see :func:`parse_energy`.
        beta: inverse temperature of the exponential energy; 1/√d_head in a transformer.

    Returns:
        ``[q, d]``; for binary patterns take its sign.

    Raises:
        InvalidArgumentError: shapes that do not fit, an unknown energy, or ``beta`` not above 0.

    Source: Ramsauer et al. 2020, Eq. 3 (softmax attention); Krotov & Hopfield 2016 (polynomial).

    Example:
        >>> import math
        >>> patterns = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
        >>> state = torch.tensor([[0.0, math.log(3) / 2]])  # softmax weights 3/4 and 1/4
        >>> hopfield_update(state, patterns).round(decimals=6).tolist()
        [[1.0, 0.5]]
    """
    kind, overlaps, beta = _scores(state, patterns, energy, beta)
    if kind.degree is None:
        return torch.softmax(beta * overlaps, dim=-1) @ patterns.to(overlaps)
    return overlaps ** (kind.degree - 1) @ patterns.to(overlaps)


def _scores(
    state: Tensor, patterns: Tensor, energy: str, beta: float
) -> tuple[Energy, Tensor, float]:
    kind = parse_energy(energy)
    beta = require_float("beta", beta, minimum=0.0)
    if beta == 0:
        raise InvalidArgumentError("beta must be above 0, got 0; pass e.g. 1 / sqrt(d)")
    require_float_tensor("state", state, ndim=2)
    require_float_tensor("patterns", patterns, ndim=2)
    if state.shape[1] != patterns.shape[1] or not len(patterns):
        raise InvalidArgumentError(
            f"state and patterns must have the same last axis and at least one pattern, got "
            f"{tuple(state.shape)} and {tuple(patterns.shape)}; pass [q, d] and [k, d]"
        )
    dtype = torch.promote_types(state.dtype, patterns.dtype)
    return kind, state.to(dtype) @ patterns.to(dtype).T, beta
