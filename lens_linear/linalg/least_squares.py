"""Best affine map between two activation matrices, and its fraction of explained variance.

``y ≈ x W + b``, row vectors, W = argmin ‖Yc − Xc W‖² + ridge ‖W‖², columns centred. Use
:func:`fit_linear` on data that fits in memory, ``Moments`` on streams. A high in-sample R² is no
evidence while ``n`` is a small multiple of the rank: independent noise scores ``rank / (n − 1)``.

>>> import torch
>>> x = torch.randn(100, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
>>> fit_linear(x, x @ torch.ones(3, 2, dtype=torch.float64) + 5).bias.round(decimals=6).tolist()
[5.0, 5.0]
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lens_linear.checks import (
    counted,
    require_float,
    require_float_tensor,
    require_int,
    require_rows,
)
from lens_linear.errors import InvalidArgumentError
from lens_linear.linalg.conditioning import smallest_directions
from lens_linear.linalg.precision import (
    checked_to_compute,
    compute_device,
    constant_columns,
    largest_entry,
    row_error,
    to_compute,
)
from lens_linear.linalg.scatter import Factor, Products, Scatter, Target, summarise
from lens_linear.tables import Result

Solver = Literal["svd", "cholesky", "eigh"]
Ridge = float | Literal["loo"]


def fitted_rows(x: Float[Tensor, "... d_in"], weight: Float[Tensor, "d_in d_out"]) -> Tensor:
    """Accept rows with the columns that a map was fitted on; in float64 on its device."""
    require_float_tensor("x", x, finite=False)
    if x.ndim == 0 or x.shape[-1] != len(weight):
        raise InvalidArgumentError(
            f"x must have {len(weight)} columns as in the fit, got shape {tuple(x.shape)}; "
            "pass activations of the same site"
        )
    return checked_to_compute(x, device=weight.device)


@dataclass(frozen=True, eq=False)
class LinearFit(Result):
    """Affine map ``y = x @ weight + bias`` with the knobs that produced it (tensors in float64).

    Attributes:
        weight: [d_in, d_out].
        bias: [d_out], ``mean_y − mean_x @ weight``.
        mean_y: [d_out], mean of the y it was fitted on; held-out scores subtract this mean.
        core: [rank, d_out]; ``coreᵀ core`` is the scatter of the fitted values (plus the ridge
            term), so its right singular vectors are their principal directions.
        scatter_y: [d_out], ``Σ (y − mean_y)²`` by column.
        r_squared: in-sample, pooled over output columns; dimensionless, at most 1.
        n: rows it was fitted on.
        rank: directions of the centred x that the map uses.
        dropped: directions left out because they hold nothing but rounding, ``d_in − rank``.
        map_rank: largest rank ``weight`` can have: ``min(rank, d_out)``, or what ``truncate`` kept.
        tolerance: standard deviation below which a direction of x counts as rounding, columns scaled
            to a root mean square of one.
        ridge: penalty λ in ``‖Yc − Xc W‖² + λ ‖W‖²``, in squared units of x summed over rows.
        solver: "cholesky" of the products of the rows, "eigh" of them where more than a few directions
            are empty, or "svd" of a triangular factor (float64, few or ill-conditioned rows).
    """

    weight: Float[Tensor, "d_in d_out"]
    bias: Float[Tensor, " d_out"]
    mean_y: Float[Tensor, " d_out"]
    core: Float[Tensor, "rank d_out"]
    scatter_y: Float[Tensor, " d_out"]
    r_squared: float
    n: int
    rank: int
    dropped: int
    map_rank: int
    tolerance: float
    ridge: float
    solver: Solver

    @property
    def null_r2(self) -> float:
        """In-sample R² expected of a y independent of x: ``rank / (n − 1)``."""
        return self.rank / (self.n - 1)

    def predict(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        """``x @ weight + bias`` in float64.

        Args:
            x: [..., d_in], any floating dtype.

        Returns:
            [..., d_out] in float64, on the device of the fit.

        Raises:
            InvalidArgumentError: the last axis is not d_in.
        """
        return fitted_rows(x, self.weight) @ self.weight + self.bias

    def truncate(self, rank: int) -> LinearFit:
        """Best map of rank at most ``rank`` in the least-squares metric (reduced-rank regression).

        ``W_r = W V Vᵀ``, V the leading ``rank`` principal directions of the fitted values ``Xc W``
        (with ridge: of the fitted values of the ridge problem, penalty included).

        Args:
            rank: number of directions of y kept, at least 1.

        Returns:
            A new fit with its own ``r_squared``; unchanged numbers when ``rank`` is not smaller.

        Raises:
            InvalidArgumentError: ``rank`` is no whole number of at least 1.

        Source: Izenman 1975, *Reduced-rank regression for the multivariate linear model*, with the
            identity as weight matrix.
        """
        rank = require_int("rank", rank, minimum=1)
        if rank >= self.map_rank:
            return self
        _, _, vt = torch.linalg.svd(self.core, full_matrices=False)
        directions = vt[:rank].T
        weight = (self.weight @ directions) @ directions.T
        offset = self.mean_y - self.bias  # mean_x @ weight of the full map
        core = (self.core @ directions) @ directions.T
        explained = core.square().sum() + self.ridge * weight.square().sum()
        return replace(
            self,
            weight=weight,
            bias=self.mean_y - (offset @ directions) @ directions.T,
            core=core,
            r_squared=float(explained / self.scatter_y.sum()),
            map_rank=rank,
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row per output column: bias, weight_norm, r_squared (in-sample; NaN if constant)."""
        explained = self.core.square().sum(0) + self.ridge * self.weight.square().sum(0)
        fraction = explained / self.scatter_y
        return pd.DataFrame(
            {
                "bias": self.bias.cpu().numpy(),
                "weight_norm": self.weight.norm(dim=0).cpu().numpy(),
                "r_squared": torch.where(self.scatter_y > 0, fraction, torch.nan).cpu().numpy(),
            }
        ).rename_axis("output")

    def __repr__(self) -> str:
        d_in, d_out = self.weight.shape
        knobs = f", ridge {self.ridge:g}" if self.ridge else ""
        low = f", map of rank {self.map_rank}" if self.map_rank < min(self.rank, d_out) else ""
        return (
            f"LinearFit {d_in} -> {d_out}: in-sample R² = {self.r_squared:.4f} "
            f"(independent noise would score {self.null_r2:.4f}), n = {counted(self.n, 'row')}, "
            f"rank {self.rank} of {d_in}{low}{knobs}, by {self.solver}"
        )


@dataclass(frozen=True, eq=False)
class Solution:
    """Coefficients in units of the columns' sizes, and what they explain."""

    weight: Float[Tensor, "d_in d_out"]
    core: Float[Tensor, "k d_out"]  # coreᵀ core is the scatter of the fitted values
    empty: Float[Tensor, "d_in left_out"]  # orthonormal directions left out
    solver: Solver
    root: Tensor | None = None  # Cholesky factor of the second moments, empty directions filled
    least: float = 0.0  # smallest eigenvalue kept, where root is known


def _from_factor(form: Factor, size: Tensor, n: int, tolerance: float, ridge: float) -> Solution:
    """Least squares by SVD of the triangular factor of x; ridge is d more rows."""
    root, image = form.root / size, form.image
    if ridge > 0:
        root = torch.cat([root, ridge**0.5 * torch.diag(1 / size)])
        image = torch.cat([image, image.new_zeros(len(size), image.shape[1])])
    if len(root) > len(size):
        q, root = torch.linalg.qr(root)
        image = q.T @ image
    u, s, vt = torch.linalg.svd(root, full_matrices=True)
    rank = int((s > tolerance * n**0.5).sum())
    core = u[:, :rank].T @ image
    return Solution(vt[:rank].T @ (core / s[:rank, None]), core, vt[rank:].T, "svd")


def _from_products(
    form: Products, moments: Tensor, size: Tensor, n: int, tolerance: float, ridge: float
) -> Solution:
    """Least squares from second moments, by Cholesky with the few empty directions set apart.

    By eigh, several times as slow, when these are more than a few.
    """
    if ridge > 0:
        moments.diagonal().add_(ridge / n / size.square())
    target = form.sxy / n**0.5 / size[:, None]
    dead = moments.diagonal() <= tolerance**2
    moments[dead], moments[:, dead], target[dead] = 0.0, 0.0, 0.0
    moments.diagonal()[dead] = 1.0
    found = smallest_directions(moments, tolerance**2)
    gone = torch.eye(len(size), dtype=size.dtype, device=size.device)[:, dead]
    if found is not None:
        above = found.values > tolerance**2
        empty, least = found.directions[:, ~above], float(found.values[above][0])
        root = found.root
        # Without empty directions the shift in root, a quarter of the floor, changes the smallest direction
        # by less than 2.5e-7 of itself. With some, rounding divided by the shift would leak into others.
        if root is None or empty.shape[1] or least < 1e6 * tolerance**2:
            filled = torch.addmm(moments, empty, empty.T)
            root, failed = torch.linalg.cholesky_ex(filled, upper=True)
            root = None if int(failed) else root
        if root is not None:
            target = target - empty @ (empty.T @ target)
            core = torch.linalg.solve_triangular(root.T, target, upper=False)
            weight = torch.linalg.solve_triangular(root, core, upper=True)
            weight = weight - empty @ (empty.T @ weight)
            gone = torch.cat([gone, empty], 1)
            return Solution(weight / n**0.5, core, gone, "cholesky", root, least)
    moments.diagonal()[dead] = 0.0
    values, vectors = torch.linalg.eigh(moments)
    kept = values > tolerance**2
    scale = values[kept].sqrt()[:, None]
    core = vectors[:, kept].T @ target / scale
    weight = vectors[:, kept] @ (core / scale) / n**0.5
    return Solution(weight, core, vectors[:, ~kept], "eigh")


def shortest(
    weight: Float[Tensor, "d_in d_out"],
    empty: Float[Tensor, "d_in left_out"],
    size: Float[Tensor, " d_in"],
) -> tuple[Tensor, Tensor, Tensor]:
    """The coefficients with their part along the empty directions removed, and that step as a product.

    Shortest in the units of x, as ``numpy.linalg.lstsq`` gives it. Columns below 1e-4 of the largest
    count as that long: the rounding in an empty direction must not be blown up along them.
    """
    largest = float(size[size.isfinite()].max())
    unit = size.clamp(min=1e-4 * largest, max=largest)
    basis, _ = torch.linalg.qr(empty / unit[:, None])
    along, amount = -unit[:, None] * basis, basis.T @ (weight / unit[:, None])
    return weight + along @ amount, along, amount


def solve(scatter: Scatter, *, ridge: float = 0.0) -> LinearFit:
    """Least squares of y on x from their statistics; refuses a y that does not vary.

    Raises:
        InvalidArgumentError: y is constant up to roundoff, so R² has no meaning.
    """
    return solve_keeping(scatter, ridge=ridge)[0]


def solve_keeping(
    scatter: Scatter, *, ridge: float = 0.0
) -> tuple[LinearFit, Solution, Float[Tensor, " d_in"]]:
    """The same with what it was made of: coefficients before the shortest were chosen, sizes of columns."""
    n, form = scatter.n, scatter.form
    scatter_y = form.scatter_y
    constant = constant_columns(scatter_y, scatter.mean_y, n, torch.float64)
    if bool(constant.all()):
        raise InvalidArgumentError(
            f"y must vary, but all its {len(constant)} columns are constant over {n} rows, so R² is "
            "0/0; check that y is the activation you meant, or leave this site out"
        )
    scatter_y = torch.where(constant, torch.zeros_like(scatter_y), scatter_y)
    # A column of zeros has no size to measure in: its coefficient is 0.
    dead = scatter.size <= torch.finfo(scatter.size.dtype).tiny
    size = scatter.size.masked_fill(dead & ~dead.all(), torch.inf)
    while True:
        if isinstance(form, Products):
            moments, tolerance = scatter.second_moments(size)
            solution = _from_products(form, moments, size, n, tolerance, ridge)
        else:
            tolerance = row_error(scatter.dtype)
            solution = _from_factor(form, size, n, tolerance, ridge)
        overflow = (solution.weight / size[:, None]).abs().amax(1) > largest_entry(scatter.dtype)
        if not bool(overflow.any()):
            break
        size = size.masked_fill(overflow, torch.inf)  # such columns are no use to a model
    weight, explained = solution.weight, solution.core.square().sum(0)
    dropped = solution.empty.shape[1]
    if dropped:
        weight, along, amount = shortest(weight, solution.empty, size)
        explained = explained + _gain(form, size, solution.weight, along, amount, ridge)
    weight = weight / size[:, None]
    explained = explained + ridge * weight.square().sum(0)
    fit = LinearFit(
        weight=weight,
        bias=scatter.mean_y - scatter.mean_x @ weight,
        mean_y=scatter.mean_y,
        core=solution.core,
        scatter_y=scatter_y,
        r_squared=float(explained.sum() / scatter_y.sum()),
        n=n,
        rank=len(size) - dropped,
        dropped=dropped,
        map_rank=min(len(size) - dropped, len(constant)),
        tolerance=tolerance,
        ridge=ridge,
        solver=solution.solver,
    )
    return fit, solution, size


def require_ridge(ridge: Ridge) -> Ridge:
    """A penalty λ ≥ 0, or "loo"."""
    if isinstance(ridge, str) and ridge == "loo":
        return "loo"
    return require_float("ridge", ridge, minimum=0.0)


def leave_one_out_ridge(scatter: Scatter) -> float:
    """The penalty with the smallest leave-one-out error of the rows, estimated from their statistics.

    Minimises generalised cross-validation ``n RSS(λ) / (n − 1 − df(λ))²``, the form of leave-one-out that
    does not depend on the choice of axes, over 61 penalties from 1e-12 to 1e3 times the mean variance of a
    column, summed over rows. Rows are taken as independent: tokens of one sequence are less than that.

    Source: Golub, Heath & Wahba 1979, *Generalized cross-validation as a method for choosing a good ridge
        parameter*, equation 1.3.
    """
    products = scatter.products
    values, vectors = torch.linalg.eigh(products.sxx)
    values = values.clamp(min=0)
    seen = (vectors.T @ products.sxy).square().sum(1)
    floor = row_error(scatter.dtype) ** 2 * values[-1]
    steps = torch.logspace(-12, 3, 61, dtype=values.dtype, device=values.device)
    ridges = (steps * values.mean()).clamp(min=float(floor))[:, None]
    left = products.scatter_y.sum() - (seen * (values + 2 * ridges) / (values + ridges) ** 2).sum(1)
    freedom = scatter.n - 1 - (values / (values + ridges)).sum(1)
    error = left.clamp(min=0) / freedom.clamp(min=1e-9).square()
    return float(ridges[error.argmin(), 0])


def _gain(
    form: Products | Factor,
    size: Tensor,
    weight: Tensor,
    along: Float[Tensor, "d_in k"],
    amount: Float[Tensor, "k d_out"],
    ridge: float,
) -> Float[Tensor, " d_out"]:
    """What moving the coefficients along empty directions adds to the explained scatter.

    ``2 stepᵀ (Sxy − S W) − stepᵀ S step`` (diagonals), step = along @ amount, S with the ridge, all in
    units of ``size``.
    """
    step = along @ amount
    if isinstance(form, Factor):
        moved, left = form.root / size @ along @ amount, form.image - form.root / size @ weight
        gain = 2 * (moved * left).sum(0) - moved.square().sum(0)
    else:
        moved = (form.sxx @ (along / size[:, None])) @ amount / size[:, None]
        target = form.sxy / size[:, None]
        gain = 2 * (step * target).sum(0) - (moved * (2 * weight + step)).sum(0)
    if ridge > 0:
        penalty = ridge * step / size[:, None].square()
        gain = gain - 2 * (penalty * weight).sum(0) - (penalty * step).sum(0)
    return gain


def require_halves(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor) -> None:
    """Accept rows to fit and rows to score: same columns, and at least two to score."""
    for name, value in {"x": x, "y": y, "x_test": x_test, "y_test": y_test}.items():
        require_float_tensor(name, value, ndim=2)
    require_pair(x, y)
    if len(x_test) != len(y_test):
        raise InvalidArgumentError(
            f"x_test and y_test must have the same rows, got {len(x_test)} and {len(y_test)}; row i of "
            "y_test must belong to row i of x_test"
        )
    for name, fitted, scored in (("x", x, x_test), ("y", y, y_test)):
        if fitted.shape[1] != scored.shape[1]:
            raise InvalidArgumentError(
                f"{name}_test must have the {fitted.shape[1]} columns of {name}, got {scored.shape[1]}; "
                "pass rows of the same kind"
            )
    require_rows("x_test", len(x_test), minimum=2, why="a held-out score")


def require_matrix(name: str, value: Tensor, *, finite: bool = True) -> Tensor:
    """Accept a floating tensor of at least two axes; returns it flattened to [n, d]."""
    require_float_tensor(name, value, finite=finite)
    if value.ndim < 2:
        raise InvalidArgumentError(
            f"{name} must have shape [n, d] (or more leading axes), got {tuple(value.shape)}; "
            f"use {name}[:, None] for a single column"
        )
    if value.shape[-1] == 0:
        raise InvalidArgumentError(f"{name} must have at least one column, got none")
    return value.detach().reshape(-1, value.shape[-1])


def centred_rows(name: str, rows: Float[Tensor, "n d"]) -> tuple[Tensor, Tensor]:
    """Rows minus their mean, and the mean; refuses rows that do not vary."""
    mean = rows.mean(0)
    centred = rows - mean
    if bool(constant_columns(centred.square().sum(0), mean, len(rows), torch.float64).all()):
        raise InvalidArgumentError(
            f"{name} must vary, but its {len(rows)} rows are all equal; check the data"
        )
    return centred, mean


def require_pair(x: Tensor, y: Tensor, *, finite: bool = True) -> tuple[Tensor, Tensor]:
    """Accept two floating matrices with as many rows; returns them flattened to [n, d]."""
    flat_x, flat_y = (require_matrix(n, v, finite=finite) for n, v in (("x", x), ("y", y)))
    if x.shape[:-1] != y.shape[:-1]:
        raise InvalidArgumentError(
            f"x and y must have the same rows, got shapes {tuple(x.shape)} and {tuple(y.shape)}; "
            "row i of y must belong to row i of x"
        )
    return flat_x, flat_y


def require_overdetermined(n: int, d: int) -> None:
    """Refuse ``n <= d + 1`` rows: any y would be fitted exactly."""
    require_rows("x", n, minimum=d + 2, why=f"{n} rows fit any y exactly with {d} inputs")


def fit_linear(
    x: Float[Tensor, "... d_in"],
    y: Float[Tensor, "... d_out"],
    *,
    ridge: float = 0.0,
) -> LinearFit:
    """Least-squares affine map from the rows of x to the rows of y, from the data itself.

    ``R² = 1 − ‖Yc − Xc W‖² / ‖Yc‖²``, columns centred, pooled over output columns.

    Dimensionless, in [0, 1] in-sample; 1 is exact; a y independent of x scores
    ``rank / (n − 1)`` on average (``null_r2``). It says nothing about held-out data.

    The statistics of ``Moments`` and their solution, in one call. Float64 rows are never squared, so
    errors grow with the condition number of x, as in ``lstsq``; rows of less precision are.
    Directions that vary less than the precision of the rows are left out and counted (``dropped``).
    Memory: a few float64 copies of x and y.

    Args:
        x: [..., d_in]; leading axes are flattened to rows.
        y: [..., d_out], same leading axes.
        ridge: λ ≥ 0 in ``‖Yc − Xc W‖² + λ ‖W‖²`` (scikit-learn's ``Ridge(alpha=λ)``).

    Returns:
        The fit. Rank-deficient x gives the solution of minimum norm, and its rank.

    Raises:
        NotEnoughDataError: ``n <= d_in + 1``.
        NonFiniteError: NaN or infinity in x or y.
        InvalidArgumentError: shapes disagree, or y is constant.

    Source: Razzhigaev et al. 2024, arXiv 2405.12250, section 3 (the score without norms).

    Example:
        >>> import torch
        >>> g = torch.Generator().manual_seed(0)
        >>> x = torch.randn(50, 2, generator=g)
        >>> fit_linear(x, x.flip(1)).rank
        2
    """
    x, y = require_pair(x, y, finite=False)
    ridge = require_float("ridge", ridge, minimum=0.0)
    require_overdetermined(*x.shape)
    device = compute_device(x.device)
    scatter = summarise(x.to(device), Target(y.to(device)), full=False)
    return solve(scatter, ridge=ridge)


def r_squared(
    y: Float[Tensor, "... d_out"],
    prediction: Float[Tensor, "... d_out"],
    *,
    mean: Float[Tensor, " d_out"] | None = None,
) -> float:
    """Fraction of the variance of y that ``prediction`` explains.

    ``R² = 1 − ‖y − prediction‖² / ‖y − mean‖²``, pooled over columns.

    Dimensionless, at most 1, negative when the mean predicts better; about 0 under no relation
    when ``mean`` and ``prediction`` come from other data.

    Args:
        y: [..., d_out].
        prediction: same shape.
        mean: [d_out], what is subtracted from y: pass the *training* mean (``fit.mean_y``) for
            held-out data; default: the mean of y itself.

    Returns:
        R² as a float.

    Raises:
        InvalidArgumentError: shapes disagree, or y equals ``mean`` everywhere.
        NonFiniteError: NaN or infinity in y or the prediction.

    Example:
        >>> import torch
        >>> y = torch.tensor([[0.0], [2.0]])
        >>> r_squared(y, torch.tensor([[0.5], [1.5]]))
        0.75
    """
    require_float_tensor("y", y)
    require_float_tensor("prediction", prediction)
    if y.shape != prediction.shape or y.ndim < 2:
        raise InvalidArgumentError(
            f"y and prediction must have one shape [n, d], got {tuple(y.shape)} and "
            f"{tuple(prediction.shape)}; reshape them"
        )
    target = to_compute(y).reshape(-1, y.shape[-1])
    guess = to_compute(prediction, device=target.device).reshape(-1, y.shape[-1])
    if mean is None:
        centre = target.mean(0)
    else:
        centre = to_compute(require_float_tensor("mean", mean), device=target.device)
        if centre.shape != target.shape[1:]:
            raise InvalidArgumentError(
                f"mean must have shape [{target.shape[1]}], one number for each column of y, got "
                f"{tuple(centre.shape)}; pass e.g. fit.mean_y"
            )
    total = (target - centre).square().sum()
    if not len(target) or bool(constant_columns(total, centre.norm(), len(target), torch.float64)):
        raise InvalidArgumentError(
            "y must differ from mean somewhere, otherwise R² is 0/0; check y, or pass more rows"
        )
    return float(1 - (target - guess).square().sum() / total)
