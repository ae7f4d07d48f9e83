"""How many directions a set of activations uses, counted in several ways.

Linear counts from singular values σ (:class:`Spectrum`): effective rank, participation ratio,
anisotropy, gaps and groups of near-equal values. A nonlinear count from distances between
neighbours (:func:`intrinsic_dimension`).

>>> import torch
>>> x = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
>>> 3.9 < spectrum(x).participation_ratio <= 4
True
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lens_linear.checks import (
    counted,
    require_bool,
    require_choice,
    require_float,
    require_int,
    require_rows,
    require_seed,
)
from lens_linear.errors import InvalidArgumentError
from lens_linear.linalg.least_squares import centred_rows, require_matrix
from lens_linear.linalg.precision import checked_to_compute, gram, row_error
from lens_linear.tables import Result


@dataclass(frozen=True, eq=False)
class Spectrum(Result):
    """Singular values of an activation matrix, largest first, and what they say.

    Attributes:
        values: [min(n, d)], in units of the activations times √n.
        n: rows.
        d: columns.
        centered: whether column means were removed.
        tolerance: share of the largest below which a value is rounding (the rows' precision).
    """

    values: Float[Tensor, " k"]
    n: int
    d: int
    centered: bool
    tolerance: float = row_error(torch.float64)

    @property
    def rank(self) -> int:
        """Singular values above ``tolerance`` times the largest."""
        return int((self.values > self.tolerance * self.values[0]).sum())

    @property
    def effective_rank(self) -> float:
        """Entropy rank ``exp(−Σ p log p)``, ``p = σ / Σ σ`` (Roy & Vetterli 2007); 1 to d."""
        p = self.values / self.values.sum()
        return float(torch.special.entr(p).sum().exp())

    @property
    def participation_ratio(self) -> float:
        """``(Σ σ²)² / Σ σ⁴``; 1 to d."""
        power = (self.values / self.values[0]).square()
        return float(power.sum().square() / power.square().sum())

    @property
    def anisotropy(self) -> float:
        """``σ₁² / Σ σ²``: the share of variance on the first direction; 1/d to 1."""
        power = (self.values / self.values[0]).square()
        return float(power[0] / power.sum())

    @property
    def gaps(self) -> Float[Tensor, " k_minus_1"]:
        """Relative gaps ``1 − σ_{i+1} / σ_i`` (0 where σ_i is 0): 0 for equal, 1 for a cliff."""
        upper = self.values[:-1]
        ratio = self.values[1:] / torch.where(upper > 0, upper, torch.ones_like(upper))
        return torch.where(upper > 0, 1 - ratio, torch.zeros_like(upper))

    def degenerate_groups(self, *, rtol: float = 0.05) -> list[range]:
        """Runs of near-equal singular values, whose single directions mean nothing by themselves.

        Neighbours belong to one run when their relative gap is at most ``rtol``. Inside a run only
        the spanned subspace is determined by the data; never interpret or compare its single
        vectors. A run may span more than ``rtol`` from end to end.

        Args:
            rtol: largest relative gap inside a run, in [0, 1].

        Returns:
            Runs of two or more indices.

        Example:
            >>> import torch
            >>> Spectrum(torch.tensor([3.0, 2.0, 2.0, 1.0]), 9, 4, True).degenerate_groups()
            [range(1, 3)]
        """
        rtol = require_float("rtol", rtol, minimum=0.0, maximum=1.0)
        runs, start = [], 0
        for i, gap in enumerate([*self.gaps.tolist(), float("inf")]):
            if gap > rtol:
                runs.append(range(start, i + 1))
                start = i + 1
        return [run for run in runs if len(run) > 1]

    def to_dataframe(self) -> pd.DataFrame:
        """One row per direction: singular_value, variance_share, cumulative_share."""
        share = self.values.square() / self.values.square().sum()
        return pd.DataFrame(
            {
                "singular_value": self.values.cpu().numpy(),
                "variance_share": share.cpu().numpy(),
                "cumulative_share": share.cumsum(0).cpu().numpy(),
            }
        ).rename_axis("direction")

    def __repr__(self) -> str:
        return (
            f"Spectrum of {counted(self.n, 'row')} in {counted(self.d, 'dimension')}: rank {self.rank}, "
            f"effective rank "
            f"{self.effective_rank:.1f}, participation ratio {self.participation_ratio:.1f}, "
            f"first direction {self.anisotropy:.1%} of the variance"
        )


def _rows(x: Tensor, minimum: int, why: str) -> Tensor:
    rows = checked_to_compute(require_matrix("x", x))
    require_rows("x", len(rows), minimum=minimum, why=why)
    return rows


def spectrum(x: Float[Tensor, "... d"], *, center: bool = True) -> Spectrum:
    """Singular values of an activation matrix, centred by column unless told otherwise.

    Args:
        x: [n, d]; leading axes are flattened to rows.
        center: remove column means first.

    Returns:
        The singular values with effective rank, participation ratio, anisotropy, gaps.

    Raises:
        NotEnoughDataError: fewer than 2 rows.
        NonFiniteError: NaN or infinity.
        InvalidArgumentError: every row is equal (or zero, without centring).

    Source: Roy & Vetterli 2007, *The effective rank*, definition 1.

    Example:
        >>> x = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> found = spectrum(x * torch.tensor([3.0, 1.0]))
        >>> found.values.round(decimals=6).tolist(), round(found.anisotropy, 6)
        ([6.0, 2.0], 0.9)
    """
    rows = _rows(x, 2, "a spectrum of differences")
    matrix = centred_rows("x", rows)[0] if require_bool("center", center) else rows
    if not bool(matrix.any()):
        raise InvalidArgumentError("x must not be zero everywhere; check the data")
    values = torch.linalg.svdvals(matrix)
    return Spectrum(values, rows.shape[0], rows.shape[1], center, row_error(x.dtype))


def anisotropy(x: Float[Tensor, "... d"]) -> float:
    """Share of the variance that lies on the first principal direction.

    ``σ₁² / Σ σ²``, σ the singular values of x centred by column.

    Dimensionless, between ``1 / min(n − 1, d)`` (round cloud) and 1 (a line); a standard normal
    cloud gives about ``(1 + √(d/n))² / d``.

    Args:
        x: [n, d]; leading axes are flattened to rows.

    Returns:
        The share as a float, the same as ``spectrum(x).anisotropy`` but without the SVD.

    Raises:
        NotEnoughDataError: fewer than 2 rows.
        NonFiniteError: NaN or infinity.
        InvalidArgumentError: every row is equal.

    Source: Razzhigaev et al. 2024, arXiv 2311.05928, section 3.1.

    Example:
        >>> import torch
        >>> anisotropy(torch.tensor([[0.0, 0.0], [1.0, 2.0], [2.0, 4.0]]))
        1.0
    """
    rows, _ = centred_rows("x", _rows(x, 2, "a spectrum of differences"))
    rows = rows / rows.abs().amax()
    scatter = gram(rows if rows.shape[0] >= rows.shape[1] else rows.T.contiguous())
    return min(1.0, float(torch.linalg.eigvalsh(scatter)[-1] / scatter.trace()))


Coinciding = Literal["once", "reference"]

_ZERO = 1e-8  # distances below this fraction of the mean length are none, as in the reference
_SAME = 1e-6  # of the mean length: below the roundoff of float32 activations


@dataclass(frozen=True, eq=False)
class IntrinsicDimension(Result):
    """TwoNN estimate of the dimension of the surface a cloud of points lies on.

    Attributes:
        dimension: the estimate, dimensionless.
        n: points used as centres and as neighbours (after sampling).
        n_removed: of these, points that coincide with an earlier one, or whose two nearest
            neighbours are equally far.
        n_fitted: ratios that entered the straight-line fit.
        keep: fraction of the smallest ratios that was fitted.
        seed: of the sampling; -1 when every point was used.
    """

    dimension: float
    n: int
    n_removed: int
    n_fitted: int
    keep: float
    seed: int

    def __float__(self) -> float:
        return self.dimension

    def to_dataframe(self) -> pd.DataFrame:
        """One row with the fields as columns."""
        return pd.DataFrame([vars(self)])

    def __repr__(self) -> str:
        return (
            f"IntrinsicDimension {self.dimension:.2f} (TwoNN, n = {counted(self.n, 'point')}, "
            f"{self.n_removed} removed, line through {self.n_fitted} ratios)"
        )


def _squared_apart(x: Float[Tensor, "n d"], start: int, stop: int) -> Float[Tensor, "c n"]:
    """Squared distances of rows start to stop from all rows, by products.

    Cancellation leaves errors of about 1e-16 of the squared length of x.
    """
    square = x.square().sum(1)
    return square[start:stop, None] + square - 2 * x[start:stop] @ x.T


def _distinct(x: Float[Tensor, "n d"], chunk: int) -> Float[Tensor, "m d"]:
    """Rows without those that coincide with an earlier one, within ``_SAME``."""
    first = []
    for start in range(0, len(x), chunk):
        same = _squared_apart(x, start, min(start + chunk, len(x))) < _SAME**2
        first.append(same.to(torch.uint8).argmax(1))
    own = torch.arange(len(x), device=x.device)
    return x[torch.cat(first) >= own]


def _neighbour_distances(x: Float[Tensor, "n d"], chunk: int) -> Float[Tensor, "n 2"]:
    """Distances to the first and second nearest other row: candidates by products, then exactly."""
    out = []
    for start in range(0, len(x), chunk):
        stop = min(start + chunk, len(x))
        apart = _squared_apart(x, start, stop)
        apart[torch.arange(stop - start, device=x.device), torch.arange(start, stop)] = torch.inf
        near = apart.topk(min(8, len(x) - 1), largest=False).indices
        exact = (x[near] - x[start:stop, None]).norm(dim=-1)
        out.append(exact.topk(2, largest=False).values)
    return torch.cat(out)


def intrinsic_dimension(
    x: Float[Tensor, "... d"],
    *,
    keep: float = 0.2,
    coinciding: Coinciding = "once",
    max_rows: int | None = 10_000,
    chunk: int = 256,
    seed: int = 0,
) -> IntrinsicDimension:
    """TwoNN: dimension from the ratio of the distances to the two nearest neighbours.

    For points of locally uniform density on a d-dimensional surface ``μ = r₂ / r₁`` has
    ``P(μ ≤ m) = 1 − m^{−d}``, so ``−log(1 − F(μ)) = d log μ``: d is the slope of the line through
    the origin, by least squares over the smallest ``keep`` of the ratios, F their empirical
    distribution (rank / number of points).

    Dimensionless, above 0; about d for a d-dimensional surface sampled densely, too low in high
    dimension. Its relative error is about ``1 / √(keep · n)``. Points that coincide (within 1e-6 of
    the mean length; the same token at the first position, say) count once. The reference
    implementation of the linearity paper keeps them at the bottom of F instead
    (``coinciding="reference"``), which biases it upwards: 17.3 for a 5-dimensional surface of 1,000
    points with 100 of them doubled, where counting them once gives 5.2. Without coinciding points
    the two agree.

    Args:
        x: [n, d]; leading axes are flattened to rows.
        keep: fraction of the smallest ratios that enters the fit, in (0, 1]; the reference
            implementation of the linearity paper keeps one fifth.
        coinciding: "once" leaves out points that coincide with an earlier one; "reference" keeps
            them as the paper's reference implementation does, to compare with its numbers.
        max_rows: at most this many points, drawn without replacement; None uses all.
        chunk: points compared with all others at once; memory is ``chunk × n`` numbers. The result
            does not depend on it.
        seed: of the draw.

    Returns:
        The estimate and the counts behind it.

    Raises:
        NotEnoughDataError: fewer than 20 points, or too few distinct ones.
        NonFiniteError: NaN or infinity.

    Source: Facco et al. 2017, *Sci. Rep.* 7:12140, equations 3 to 5; as used in arXiv 2311.05928.

    Example:
        >>> import torch
        >>> flat = torch.rand(2000, 2, generator=torch.Generator().manual_seed(0))
        >>> curved = torch.cat([flat, (3 * flat).sin()], dim=1)
        >>> 1.8 < intrinsic_dimension(curved).dimension < 2.2
        True
    """
    keep = require_float("keep", keep, minimum=0.0, maximum=1.0)
    require_choice("coinciding", coinciding, ("once", "reference"))
    chunk, seed = require_int("chunk", chunk, minimum=1), require_seed(seed)
    points = _rows(x, 20, "TwoNN fits a line through many neighbour ratios")
    rows, _ = centred_rows("x", points)
    sampled = max_rows is not None and len(rows) > require_int("max_rows", max_rows, minimum=20)
    if sampled:
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(rows), generator=generator)[:max_rows].to(rows.device)
        rows = rows[chosen]
    n = len(rows)
    distinct = rows / rows.norm(dim=1).mean()
    if coinciding == "once":
        distinct = _distinct(distinct, chunk)
    require_rows("x", len(distinct), minimum=20, why="distinct points")
    first, second = _neighbour_distances(distinct, chunk).unbind(1)
    # Equal distances (tokens by positions make a lattice) differ by rounding only.
    tie = _SAME if coinciding == "once" else _ZERO * first
    usable = (first >= _ZERO) & (second > first + tie)
    ratios = (second / first)[usable].sort().values
    # The reference keeps ties at the bottom of the empirical distribution; a smooth one has none.
    total = len(ratios) if coinciding == "once" else len(distinct)
    places = torch.arange(1, total + 1, device=rows.device, dtype=rows.dtype)
    distribution = places[total - len(ratios) :] / total
    fitted = min(int(len(ratios) * keep + 1e-9), len(ratios) - 1)
    require_rows("x", fitted, minimum=2, why="distinct neighbour ratios in the fit")
    log_ratio, log_tail = ratios[:fitted].log(), -torch.log1p(-distribution[:fitted])
    dimension = float((log_ratio * log_tail).sum() / log_ratio.square().sum())
    return IntrinsicDimension(dimension, n, n - len(ratios), fitted, keep, seed if sampled else -1)
