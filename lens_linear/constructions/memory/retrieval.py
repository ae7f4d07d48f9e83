"""Retrieval from a Hopfield memory against the number of patterns and the noise in the query.

Where :mod:`lens_linear.constructions.memory.capacity` asks for the number of patterns at one error, this
draws the whole surface: overlap with the target, and the fraction of queries recovered bit for bit,
after several updates. The quadratic memory falls off its cliff near 0.14 d patterns, while the
exponential one still answers at thousands.

>>> names = ("quadratic", "exponential")
>>> curve = retrieval_curve(energies=names, d=64, n_patterns=(2, 100), seeds=2)
>>> frame = curve.to_dataframe().groupby(["energy", "n_patterns"]).recall.mean().round(1)
>>> float(frame["quadratic", 100]), float(frame["exponential", 100])
(0.0, 1.0)

Source: Hopfield 1982; Krotov & Hopfield 2016; Demircigil et al. 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lens_linear._tl import derive_generator
from lens_linear.checks import (
    counted,
    require_float,
    require_int,
    require_ints,
    require_list,
    require_seed,
)
from lens_linear.constructions.memory.binary_patterns import draw_signs, field, flip
from lens_linear.constructions.memory.energies import Energy, parse_energies
from lens_linear.errors import InvalidArgumentError
from lens_linear.tables import Result, cells


@dataclass(frozen=True, eq=False)
class RetrievalCurve(Result):
    """Retrieval for each energy, number of stored patterns, noise level and seed.

    ``overlap`` is the mean of ``ξ · s / d`` with the target, 1 when retrieved, near 0 for an
    unrelated state; ``recall`` is the fraction of queries recovered bit for bit.
    """

    _figure = "retrieval"

    overlap: Float[Tensor, "energies k noise seeds"]
    recall: Float[Tensor, "energies k noise seeds"]
    energies: tuple[str, ...]
    n_patterns: tuple[int, ...]
    noise: tuple[float, ...]
    d: int
    steps: int
    beta: float
    queries: int
    seed: int

    def __repr__(self) -> str:
        return (
            f"RetrievalCurve: {', '.join(self.energies)}; d = {self.d} bits, up to "
            f"{counted(max(self.n_patterns), 'pattern')}, {counted(len(self.noise), 'noise level')}, "
            f"{self.queries} queries × {self.overlap.shape[-1]} seeds, {counted(self.steps, 'update')}"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row a cell: the knobs, ``seed``, ``overlap`` and ``recall``."""
        axes = {
            "energy": self.energies,
            "n_patterns": self.n_patterns,
            "noise": self.noise,
            "seed": range(self.seed, self.seed + self.overlap.shape[-1]),
        }
        return cells(axes, {"overlap": self.overlap, "recall": self.recall})

    def summary(self) -> pd.DataFrame:
        """Mean and standard deviation over seeds: ``overlap``, ``overlap_sd``, ``recall``, ..."""
        names = ["overlap", "recall"]
        groups = self.to_dataframe().groupby(["energy", "n_patterns", "noise"], sort=False)[names]
        return groups.mean().join(groups.std().add_suffix("_sd")).reset_index()


def retrieval_curve(
    *,
    energies: str | Sequence[str] = ("quadratic", "polynomial-3", "exponential"),
    d: int = 100,
    n_patterns: Sequence[int] = (2, 4, 8, 12, 16, 24, 32, 64, 128, 256, 512, 1024, 2048),
    noise: Sequence[float] = (0.0, 0.1, 0.2, 0.3),
    steps: int = 5,
    beta: float = 1.0,
    queries: int = 32,
    seeds: int = 5,
    seed: int = 0,
) -> RetrievalCurve:
    """Show noisy stored patterns to the memory and update ``steps`` times, all bits at once.

    Overlap is 1 when retrieved and near 0 for an unrelated state; recall lies between 0 and 1.

    Args:
        energies: one name or several, see :func:`~lens_linear.constructions.memory.energies.parse_energy`.
        d: bits of a pattern.
        n_patterns: numbers of stored patterns; at most ``queries`` of them are asked for.
        noise: fractions of flipped bits in the query, from 0 to below 1/2.
        steps: updates, at least 1; a state that no longer changes stops early.
        beta: inverse temperature of the exponential energy.
        queries: patterns asked for, each starting from its own noisy copy.
        seeds: independent memories.
        seed: first seed.

    Returns:
        RetrievalCurve: overlap and exact recall.

    Raises:
        InvalidArgumentError: an unknown energy, an empty list, or a value out of range.

    Source: Hopfield 1982; Krotov & Hopfield 2016; Demircigil et al. 2017.

    Example:
        >>> curve = retrieval_curve(energies="quadratic", d=64, n_patterns=(2, 100), noise=(0.1,), seeds=2)
        >>> curve.summary().recall.round(1).tolist()  # the cliff is near 0.14 d = 9 patterns
        [1.0, 0.0]
    """
    kinds = parse_energies(energies)
    counts = tuple(sorted(set(require_ints("n_patterns", n_patterns, minimum=1))))
    noise = require_list("noise", noise, of="numbers")
    levels = tuple(require_float("noise", v, minimum=0.0, maximum=0.49) for v in noise)
    if not (kinds and counts and levels):
        raise InvalidArgumentError(
            "energies, n_patterns and noise must each name at least one value; got an empty one"
        )
    d, steps = require_int("d", d, minimum=2), require_int("steps", steps, minimum=1)
    queries = require_int("queries", queries, minimum=1)
    seeds, seed = require_int("seeds", seeds, minimum=1), require_seed(seed)
    beta = require_float("beta", beta, minimum=1e-6)
    shape = (len(kinds), len(counts), len(levels), seeds)
    overlap = torch.zeros(shape, dtype=torch.float64)
    recall = torch.zeros(shape, dtype=torch.float64)
    for s in range(seeds):
        # A generator for each name, so that no number depends on which others were asked for.
        patterns = draw_signs(derive_generator(seed + s, "retrieval patterns"), counts[-1], d)
        starts = [
            [
                flip(patterns[: min(queries, k)], v, derive_generator(seed + s, "flips", k, v))
                for v in levels
            ]
            for k in counts
        ]
        for e, kind in enumerate(kinds):
            for i, count in enumerate(counts):
                stored = patterns[:count]
                for j, start in enumerate(starts[i]):
                    final = settle(kind, stored, start, steps=steps, beta=beta)
                    agree = final * stored[: len(final)]
                    overlap[e, i, j, s] = agree.mean()
                    recall[e, i, j, s] = (agree > 0).all(1).double().mean()
    return RetrievalCurve(
        overlap=overlap,
        recall=recall,
        energies=tuple(kind.name for kind in kinds),
        n_patterns=counts,
        noise=levels,
        d=d,
        steps=steps,
        beta=beta,
        queries=queries,
        seed=seed,
    )


def settle(
    energy: Energy,
    patterns: Float[Tensor, "k d"],
    state: Float[Tensor, "q d"],
    *,
    steps: int,
    beta: float,
) -> Float[Tensor, "q d"]:
    """Update all bits at once, ``steps`` times or until nothing changes; a tie keeps the bit."""
    for _ in range(steps):
        new = torch.where(field(energy, patterns, state, beta=beta) < 0, -state, state)
        if bool((new == state).all()):
            break
        state = new
    return state
