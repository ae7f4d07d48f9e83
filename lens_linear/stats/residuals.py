"""Sums of squares of a site's residuals, in the precision that the rows deserve.

Rows of float32 are multiplied in float32, about their means, where the map does not blow rounding up: the
sum over inputs of (spread × weight)² is at most 1,000 times the variance of the outputs, and where so many
numbers are added that their rounding cancels. Everything else is float64. Squares are added up by token in
the same precision, over tokens in float64.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lens_linear.linalg import LinearFit
from lens_linear.linalg.more_rows import Step
from lens_linear.linalg.precision import checked_to_compute, compute_device
from lens_linear.stats.resume import Key

_AMPLIFIED = 1000.0
_WIDE = 256  # outputs; below, float32 saves little and moves R² by more than 1e-9


class Reading(NamedTuple):
    """Maps to be scored, and on which positions: those after the first ``skip``.

    ``spread`` is the standard deviation of each input on the rows fitted; ``steps`` holds, for some maps,
    how they differ from those of the last reading.
    """

    skip: int
    fits: dict[Key, LinearFit]
    mean_x: dict[Key, Tensor]
    spread: dict[Key, Tensor]
    steps: dict[Key, Step]


def _amplification(fit: LinearFit, spread: Float[Tensor, " d_in"]) -> float:
    """``Σ (spread × weight)² / variance of y``: how much larger the terms of a prediction are than it."""
    terms = (spread[:, None] * fit.weight).square().sum()
    return float(terms * fit.n / fit.scatter_y.sum())


def _whole(reading: Reading, base: Reading, key: Key) -> LinearFit:
    """The map with its weights, which are not kept where it is a step from another."""
    fit = reading.fits[key]
    if len(fit.weight):
        return fit
    step = reading.steps[key]
    return replace(fit, weight=base.fits[key].weight + step.along @ step.amount)


class SiteScorer:
    """Residual and total sums by sequence for every reading of one layer and site.

    The last reading's map is applied in full; where another's is a thin step away, only the step is.
    """

    def __init__(self, readings: list[Reading], key: Key, x: Tensor) -> None:
        self.readings, base = readings, readings[-1]
        fits = [_whole(reading, base, key) for reading in readings]
        device = compute_device(x.device)
        worst = max(_amplification(f, r.spread[key]) for f, r in zip(fits, readings, strict=True))
        wide = len(fits[-1].mean_y) >= _WIDE
        single = x.dtype.itemsize <= 4 and wide and worst <= _AMPLIFIED
        self.dtype = torch.float32 if single else torch.float64
        self.device = device
        self.x0 = base.mean_x[key].to(device, self.dtype)
        self.y0 = fits[-1].mean_y.to(device, self.dtype)
        self.maps: list[tuple[int, Tensor, Tensor | None, Tensor, Tensor, Tensor]] = []
        for reading, fit in zip(readings, fits, strict=True):
            inside, outside = self.x0.double(), self.y0.double()
            weight, bias, mean_y = (t.to(device) for t in (fit.weight, fit.bias, fit.mean_y))
            shift = bias + inside @ weight - outside
            centre = mean_y - outside
            update = centre - (reading.mean_x[key].to(device) - inside)
            step = reading.steps.get(key)
            first = (weight if step is None else step[0]).to(device, self.dtype)
            second = None if step is None else step[1].to(device, self.dtype)
            rows = [t.to(self.dtype) for t in (shift, centre, update)]
            self.maps.append((reading.skip, first, second, rows[0], rows[1], rows[2]))

    def __call__(
        self,
        x: Float[Tensor, "sequence position d_in"],
        y: Float[Tensor, "sequence position d_out"],
    ) -> Float[Tensor, "reading 3 sequence"]:
        """Residual, total, total of the update (0: widths differ, or y − x is rounding), by sequence."""
        first = min(skip for skip, *_ in self.maps)
        xc = x.detach().to(self.device, self.dtype) - self.x0
        yc = y.detach().to(self.device, self.dtype) - self.y0
        added = yc - xc if x.shape == y.shape else None
        # y − x carries the rounding of y: what lies below it is no update, and has no variance to explain.
        eps = torch.finfo(torch.promote_types(y.dtype, torch.float32)).eps
        noise = 4 * eps * torch.linalg.vector_norm(y.detach().to(self.device, self.dtype), dim=-1)
        base = yc - xc @ self.maps[-1][1]
        out = torch.zeros(len(self.maps), 3, len(x), dtype=torch.float64)
        for (skip, one, two, shift, centre, update), sums in zip(self.maps, out, strict=True):
            cut = slice(skip - first, None)
            if two is not None:
                left = base[:, cut] - xc[:, cut] @ one @ two
            elif one is self.maps[-1][1]:
                left = base[:, cut]
            else:
                left = yc[:, cut] - xc[:, cut] @ one
            sums[0] = _by_sequence(left - shift).cpu()
            sums[1] = _by_sequence(yc[:, cut] - centre).cpu()
            if added is not None:
                moved = _by_sequence(added[:, cut] - update)
                lost = moved <= checked_to_compute(noise[:, cut]).square().sum(1)
                sums[2] = torch.where(lost, torch.zeros_like(moved), moved).cpu()
        return out


def _by_sequence(rows: Tensor) -> Float[Tensor, " sequence"]:
    return checked_to_compute(torch.linalg.vector_norm(rows, dim=-1)).square().sum(1)
