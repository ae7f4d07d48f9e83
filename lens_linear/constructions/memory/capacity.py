"""How many random patterns a Hopfield memory holds, measured, against the known scaling.

Store K random ±1 patterns of d bits, show the memory one of them (with a fraction ``noise`` of the
bits flipped), update every bit once, and count the bits that come out wrong. The capacity is the K
at which the bit error passes ``max_bit_error``. The default, 0.36 %, is the error of one update at
the classical capacity 0.138 d: ``P(N(0, 1) > 1/√0.138) = 0.0036``.

    energy        theory                                  slope fitted
    quadratic     0.138 d                                 log K against log d: 1
    polynomial-n  d^(n-1) · 0.138 / (2n - 3)!!            log K against log d: n - 1
    exponential   between exp(d I/2) and exp(d I)         log K against d: I/2 to I

with ``I = ½[(2 - 2ρ) log(2 - 2ρ) + 2ρ log 2ρ]`` at noise ρ (log 2 at ρ = 0). The lower figure is
what Demircigil et al. guarantee; above the upper one a random pattern is nearer to the query than
the stored one, so no memory could answer.

Limits: one update, random patterns, small d for the exponential energy. It says nothing about
correlated patterns; for the keys of a real head see :mod:`lens_linear.constructions.memory.head_memory`.

>>> from lens_linear import memory_capacity
>>> result = memory_capacity(energies="quadratic", dims=(64, 128), seeds=3)
>>> result.capacity().energy.tolist()
['quadratic', 'quadratic']

Source: Hopfield 1982; Amit et al. 1985 (0.138 d); Krotov & Hopfield 2016, section 2 (polynomial);
Demircigil et al. 2017 (exponential).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lens_linear.checks import (
    counted,
    require_float,
    require_int,
    require_ints,
    require_seed,
)
from lens_linear.constructions.memory.binary_patterns import (
    draw_signs,
    expected_capacity,
    field,
    flip,
    own_field,
    wrong_bits,
)
from lens_linear.constructions.memory.energies import Energy, parse_energies, parse_energy
from lens_linear.errors import InvalidArgumentError
from lens_linear.tables import Result, cells

ENERGIES = ("quadratic", "polynomial-3", "polynomial-4", "exponential")
_DIMS = {
    "quadratic": (128, 256, 512, 1024),
    "polynomial-3": (48, 64, 96, 128, 192),
    "polynomial-4": (32, 48, 64, 80, 96),
    "exponential": (10, 12, 14, 16, 18),
}
_POLYNOMIAL_DIMS = (16, 20, 24, 32)  # of higher degree
# Default sizes grow until they hold 8 patterns: noise costs capacity.
_LEAST, _LARGEST_D = 8, 16_384
_SPAN = (-2.5, 1.75)  # octaves around the expected capacity that are measured
_PER_OCTAVE = 4


@dataclass(frozen=True, eq=False)
class CapacityCurve:
    """Retrieval against the number of stored patterns, for one energy and one number of bits."""

    energy: str
    d: int
    n_patterns: tuple[int, ...]
    bit_error: Float[Tensor, "k seeds"]  # fraction of wrong bits after one update
    recall: Float[Tensor, "k seeds"]  # fraction of queries with every bit right
    capacity: Float[Tensor, " seeds"]  # patterns at max_bit_error; NaN where not bracketed
    expected: float  # theory at this d, see binary_patterns.expected_capacity


@dataclass(frozen=True, eq=False)
class MemoryCapacity(Result):
    """Measured capacities of several energies, the curves behind them, and the fitted slopes."""

    _figure = "memory_capacity"

    curves: tuple[CapacityCurve, ...]
    noise: float
    max_bit_error: float
    beta: float
    queries: int
    seeds: int
    seed: int

    def __repr__(self) -> str:
        parts = [
            f"{energy} {'not known' if math.isnan(slope) else f'{slope:.2f}'}"
            + (" (no spread known)" if math.isnan(se) else f" ± {se:.2f}")
            for energy, slope, se in self.slopes()[["energy", "slope", "se"]].to_numpy().tolist()
        ]
        return (
            f"MemoryCapacity: {counted(len(self.curves), 'curve')}, {self.queries} queries × {self.seeds} "
            f"seeds, noise {self.noise:g}, bit error {self.max_bit_error:g}; slopes: "
            + ", ".join(parts)
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Curves: ``energy``, ``d``, ``n_patterns``, ``seed``, ``bit_error``, ``recall``."""
        frames = []
        for curve in self.curves:
            axes: dict[str, Sequence[Any]] = {
                "energy": [curve.energy],
                "d": [curve.d],
                "n_patterns": curve.n_patterns,
                "seed": range(self.seed, self.seed + self.seeds),
            }
            frames.append(cells(axes, {"bit_error": curve.bit_error, "recall": curve.recall}))
        return pd.concat(frames, ignore_index=True)

    def summary(self) -> pd.DataFrame:
        """The curves' mean and standard deviation over seeds: ``bit_error``, ``bit_error_sd``, ..."""
        names = ["bit_error", "recall"]
        groups = self.to_dataframe().groupby(["energy", "d", "n_patterns"], sort=False)[names]
        return groups.mean().join(groups.std().add_suffix("_sd")).reset_index()

    def capacity(self) -> pd.DataFrame:
        """One row an energy and d: ``capacity`` (seeds' mean), ``sd``, ``expected``, ``seeds``."""
        rows = []
        for curve in self.curves:
            found = curve.capacity[~curve.capacity.isnan()]
            mean = float(found.mean()) if len(found) else math.nan
            sd = float(found.std()) if len(found) > 1 else math.nan
            rows.append((curve.energy, curve.d, mean, sd, curve.expected, len(found)))
        return pd.DataFrame(rows, columns=["energy", "d", "capacity", "sd", "expected", "seeds"])

    def slopes(self) -> pd.DataFrame:
        """One row an energy: how log capacity grows.

        Columns: ``energy``, ``against`` (``"log d"`` or ``"d"``), ``slope`` (mean over seeds),
        ``se`` (standard error over seeds), ``theory_low`` and ``theory_high`` (asymptotic; equal
        for polynomials), ``expected`` (the same fit to the finite-d theory).
        """
        rows = []
        for name in dict.fromkeys(curve.energy for curve in self.curves):
            energy = parse_energy(name)
            curves = [c for c in self.curves if c.energy == name]
            dims = np.array([c.d for c in curves], dtype=float)
            axis = dims if energy.degree is None else np.log(dims)
            low, high = theory_slopes(energy, self.noise)
            logs = np.log(torch.stack([c.capacity for c in curves]).numpy())
            logs = logs[:, ~np.isnan(logs).any(0)]
            fits = _fit(axis, logs)
            rows.append(
                {
                    "energy": name,
                    "against": "d" if energy.degree is None else "log d",
                    "slope": float(fits.mean()) if len(fits) else math.nan,
                    "se": float(fits.std(ddof=1) / len(fits) ** 0.5) if len(fits) > 1 else math.nan,
                    "theory_low": low,
                    "theory_high": high,
                    "expected": float(_fit(axis, np.log([[c.expected] for c in curves]))[0])
                    if len(curves) > 1
                    else math.nan,
                }
            )
        return pd.DataFrame(rows)


def theory_slopes(energy: Energy, noise: float) -> tuple[float, float]:
    """Asymptotic growth of log capacity: ``n - 1`` twice, or ``(I/2, I)`` for the exponential."""
    if energy.degree is not None:
        return float(energy.degree - 1), float(energy.degree - 1)
    terms = [x * math.log(x) for x in (2 - 2 * noise, 2 * noise) if x > 0]
    information = sum(terms) / 2
    return information / 2, information


def memory_capacity(
    *,
    energies: str | Sequence[str] = ENERGIES,
    dims: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    noise: float = 0.0,
    max_bit_error: float = 0.0036,
    beta: float = 1.0,
    queries: int = 256,
    seeds: int = 8,
    seed: int = 0,
    max_patterns: int = 200_000,
) -> MemoryCapacity:
    """Retrieval against the number of stored patterns, and the capacity, for each energy.

    The stored patterns are nested: the first K of one random list, for every K, so a curve is one
    pass. Each query's own pattern is stored beside K - 1 others, which the queries of one seed
    share.

    Capacity: the number of patterns at which the bit error (0 to 1/2) passes ``max_bit_error``.

    Args:
        energies: one name or several: ``"quadratic"`` (``"linear"``), ``"polynomial-n"``,
            ``"exponential"``.
        dims: numbers of bits, for all energies or by energy name; None takes sizes that run in
            seconds, larger ones where noise leaves room for few patterns.
        noise: fraction of flipped bits in the query, from 0 to below 1/2.
        max_bit_error: capacity criterion, the fraction of wrong bits after one update.
        beta: inverse temperature of the exponential energy, ``F = exp(β o)``. The default 1 is
            Demircigil et al.'s; the theory of the slopes is for it and above.
        queries: patterns asked for a seed.
        seeds: independent memories; they give the error bars.
        seed: first seed.
        max_patterns: refuse sizes that would need more stored patterns than this.

    Returns:
        MemoryCapacity: ``.to_dataframe()`` (curves), ``.capacity()``, ``.slopes()``.

    Raises:
        InvalidArgumentError: an unknown energy, or a size given in ``dims`` whose curve needs more
            than ``max_patterns``.

    Source: Hopfield 1982; Amit et al. 1985 (0.138 d); Krotov & Hopfield 2016, section 2 (polynomial);
        Demircigil et al. 2017 (exponential).

    Example:
        >>> result = memory_capacity(energies="linear", dims=(128, 256), seeds=3)
        >>> (result.capacity().capacity / result.capacity().d).round(2).tolist()
        [0.14, 0.14]
    """
    kinds = parse_energies(energies)
    noise = require_float("noise", noise, minimum=0.0, maximum=0.49)
    max_bit_error = require_float("max_bit_error", max_bit_error, minimum=1e-6, maximum=0.4)
    beta = require_float("beta", beta, minimum=1e-6)
    max_patterns = require_int("max_patterns", max_patterns, minimum=2)
    queries = require_int("queries", queries, minimum=1)
    seeds, seed = require_int("seeds", seeds, minimum=1), require_seed(seed)
    if not kinds:
        raise InvalidArgumentError("energies must name at least one, got none; pass 'quadratic'")
    knobs = _Knobs(noise, max_bit_error, beta, queries, seeds, seed)
    sizes = [(kind, d) for kind in kinds for d in _sizes(kind, dims, knobs, max_patterns)]
    grids = [_grid(kind, d, knobs, max_patterns) for kind, d in sizes]
    curves = tuple(
        _curve(kind, d, grid, knobs) for (kind, d), grid in zip(sizes, grids, strict=True)
    )
    return MemoryCapacity(curves, *knobs)


class _Knobs(NamedTuple):
    """What all curves of one call share, in the order of MemoryCapacity's fields."""

    noise: float
    max_bit_error: float
    beta: float
    queries: int
    seeds: int
    seed: int


def _sizes(
    kind: Energy,
    dims: Sequence[int] | Mapping[str, Sequence[int]] | None,
    knobs: _Knobs,
    max_patterns: int,
) -> list[int]:
    chosen: Sequence[int] | None
    if isinstance(dims, Mapping):
        by_name = {parse_energy(name).name: sizes for name, sizes in dims.items()}
        chosen = by_name.get(kind.name)
    else:
        chosen = dims
    if chosen is None:
        return _default_sizes(kind, knobs, max_patterns)
    sizes = sorted(set(require_ints("dims", chosen, minimum=2)))
    if not sizes:
        raise InvalidArgumentError("dims must name at least one size, got none; pass (64, 128)")
    return sizes


def _default_sizes(kind: Energy, knobs: _Knobs, max_patterns: int) -> list[int]:
    """Sizes that hold a few patterns or more, and whose curves fit into ``max_patterns``."""
    base = _DIMS.get(kind.name, _POLYNOMIAL_DIMS)
    # Multiples of this many bits have a whole number of flipped ones, so that sizes compare.
    unit = Fraction(knobs.noise).limit_denominator(20).denominator

    def sizes(scale: float) -> list[int]:
        return sorted({max(2, unit * max(1, round(scale * d / unit))) for d in base})

    scale = 1.0
    while _expected(kind, sizes(scale)[0], knobs) < _LEAST and sizes(scale)[-1] < _LARGEST_D:
        scale *= 1.25
    while _expected(kind, sizes(scale)[-1], knobs) * 2 ** _SPAN[1] > max_patterns and sizes(
        scale / 1.1
    ) != sizes(scale / 100):
        scale /= 1.1
    return sizes(scale)


def _expected(kind: Energy, d: int, knobs: _Knobs) -> float:
    return expected_capacity(
        kind, d, noise=knobs.noise, max_bit_error=knobs.max_bit_error, beta=knobs.beta
    )


def _grid(kind: Energy, d: int, knobs: _Knobs, max_patterns: int) -> tuple[float, tuple[int, ...]]:
    """Expected capacity, and numbers of patterns around it, evenly spaced in logarithm."""
    expected = _expected(kind, d, knobs)
    steps = range(round(_SPAN[0] * _PER_OCTAVE), round(_SPAN[1] * _PER_OCTAVE) + 1)
    grid = tuple(sorted({max(2, round(expected * 2 ** (i / _PER_OCTAVE))) for i in steps}))
    if grid[-1] > max_patterns:
        raise InvalidArgumentError(
            f"dims = {d} for the {kind.name} energy needs {grid[-1]:.3g} stored patterns, "
            f"more than max_patterns = {max_patterns}; pass a smaller d or more noise"
        )
    return expected, grid


def _curve(
    kind: Energy, d: int, around: tuple[float, tuple[int, ...]], knobs: _Knobs
) -> CapacityCurve:
    """All seeds of one energy and size."""
    expected, grid = around
    runs = [_one_memory(kind, d, grid, knobs, knobs.seed + s) for s in range(knobs.seeds)]
    errors, recall = (torch.stack(side, dim=1) for side in zip(*runs, strict=True))
    capacity = [crossing(grid, errors[:, s], knobs.max_bit_error) for s in range(knobs.seeds)]
    return CapacityCurve(
        energy=kind.name,
        d=d,
        n_patterns=grid,
        bit_error=errors,
        recall=recall,
        capacity=torch.tensor(capacity, dtype=torch.float64),
        expected=expected,
    )


def _one_memory(
    kind: Energy, d: int, grid: tuple[int, ...], knobs: _Knobs, seed: int
) -> tuple[Tensor, Tensor]:
    """Bit error and recall at each number of patterns of the grid."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + d)
    target = draw_signs(generator, knobs.queries, d)
    state = flip(target, knobs.noise, generator)
    total = own_field(kind, target, state, beta=knobs.beta)
    errors, recall, stored = [], [], 1
    for count in grid:
        others = draw_signs(generator, count - stored, d)
        total = total + field(kind, others, state, beta=knobs.beta)
        stored = count
        wrong = wrong_bits(total, state, target)
        errors.append(wrong.mean())
        recall.append((wrong.sum(1) == 0).double().mean())
    return torch.stack(errors), torch.stack(recall)


def crossing(grid: tuple[int, ...], errors: Float[Tensor, " k"], level: float) -> float:
    """Number of patterns where the rising error passes the level; NaN when it does not."""
    rising = _isotonic(errors.tolist())
    if rising[0] >= level or rising[-1] < level:
        return math.nan
    i = next(i for i, e in enumerate(rising) if e >= level)
    part = (level - rising[i - 1]) / (rising[i] - rising[i - 1])
    return math.exp((1 - part) * math.log(grid[i - 1]) + part * math.log(grid[i]))


def _isotonic(values: list[float]) -> list[float]:
    """The nearest non-decreasing sequence (pool adjacent violators): sampling noise makes dips."""
    blocks: list[list[float]] = []  # [mean, length]
    for value in values:
        blocks.append([value, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            mean, length = blocks.pop()
            previous = blocks[-1]
            total = previous[1] + length
            previous[0] = (previous[0] * previous[1] + mean * length) / total
            previous[1] = total
    return [mean for mean, length in blocks for _ in range(int(length))]


def _fit(axis: np.ndarray, logs: np.ndarray) -> np.ndarray:
    """Least-squares slope of each column; empty when there is nothing to fit."""
    if len(axis) < 2 or not logs.size:
        return np.empty(0)
    centred = axis - axis.mean()
    return np.asarray(centred @ logs / (centred @ centred))
