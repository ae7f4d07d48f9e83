"""Two different things called Procrustes: the best *linear* map, and the best *rotation*.

:func:`procrustes_similarity` is the score of "Your Transformer is Secretly Linear": any matrix
may map x to y, so it is the in-sample R² of least squares, not a Procrustes problem in the
classical sense. :func:`orthogonal_procrustes` is the classical problem: a rotation or reflection,
and by default one common scale.

>>> import torch
>>> x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
>>> round(procrustes_similarity(x, x @ torch.tensor([[1.0, 2, 0], [0, 1, 0], [0, 0, 3]])), 9)
1.0
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lens_linear.checks import counted, require_bool, require_rows
from lens_linear.errors import InvalidArgumentError
from lens_linear.linalg.least_squares import centred_rows, fit_linear, fitted_rows, require_pair
from lens_linear.linalg.precision import checked_to_compute
from lens_linear.tables import Result


def procrustes_similarity(x: Float[Tensor, "... d_in"], y: Float[Tensor, "... d_out"]) -> float:
    """Generalised Procrustes score of two activation matrices: how linear is the map from x to y.

    ``1 − min_A ‖X̃ A − Ỹ‖²``, X̃ and Ỹ centred by column and divided by their Frobenius norms.
    The scale of x drops out of the minimum, so this is the pooled in-sample R² of least squares.

    Dimensionless, in [0, 1]; 1 when y is an affine function of x. A y independent of x scores
    ``rank(x) / (n − 1)``, not 0: 0.5 at n = 2 d. For a held-out number use ``linearity_profile``
    or :meth:`Moments.score`. For the score without the residual pass ``y − x`` as y.

    Args:
        x: activations before, [n, d]; leading axes are flattened to rows.
        y: activations after, same rows.

    Returns:
        The score as a float. Rank-deficient x gives the score of its span, finite.

    Raises:
        NotEnoughDataError: ``n <= d + 1``: any y would score 1.
        NonFiniteError: NaN or infinity in x or y.
        InvalidArgumentError: shapes disagree, or y is constant.

    Source: Razzhigaev et al. 2024, arXiv 2405.12250, section 3, equation 1.

    Example:
        >>> import torch
        >>> g = torch.Generator().manual_seed(0)
        >>> x, noise = torch.randn(2, 400, 200, generator=g)
        >>> 0.45 < procrustes_similarity(x, noise) < 0.55
        True
    """
    return fit_linear(x, y).r_squared


@dataclass(frozen=True, eq=False)
class OrthogonalProcrustes(Result):
    """Best rotation (or reflection) of x onto y: ``y ≈ scale · (x − mean_x) @ rotation + mean_y``.

    Attributes:
        rotation: [d, d], orthogonal; a reflection is allowed.
        scale: common factor; 1 when it was not fitted.
        mean_x: [d].
        mean_y: [d].
        r_squared: ``1 − ‖Yc − scale Xc R‖² / ‖Yc‖²``, dimensionless, at most 1.
        n: rows.
        scaled: whether the scale was fitted.
    """

    rotation: Float[Tensor, "d d"]
    scale: float
    mean_x: Float[Tensor, " d"]
    mean_y: Float[Tensor, " d"]
    r_squared: float
    n: int
    scaled: bool

    def predict(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """Apply the map, in float64.

        Args:
            x: [..., d].

        Returns:
            [..., d].
        """
        centred = fitted_rows(x, self.rotation) - self.mean_x
        return self.scale * centred @ self.rotation + self.mean_y

    def to_dataframe(self) -> pd.DataFrame:
        """One row: r_squared, scale, scaled, n, d."""
        values = [self.r_squared, self.scale, self.scaled, self.n, len(self.mean_x)]
        return pd.DataFrame([values], columns=["r_squared", "scale", "scaled", "n", "d"])

    def __repr__(self) -> str:
        what = "rotation and scale" if self.scaled else "rotation"
        return (
            f"OrthogonalProcrustes (best {what}, not the linear-map score): "
            f"R² = {self.r_squared:.4f}, scale {self.scale:.4g}, n = {counted(self.n, 'row')}, "
            f"d = {len(self.mean_x)}"
        )


def orthogonal_procrustes(
    x: Float[Tensor, "... d"], y: Float[Tensor, "... d"], *, scale: bool = True
) -> OrthogonalProcrustes:
    """Best rotation or reflection of the rows of x onto the rows of y, after centring.

    ``min ‖s Xc R − Yc‖²`` over orthogonal R and, with ``scale``, s ≥ 0: with
    ``Xcᵀ Yc = U S Vᵀ``, ``R = U Vᵀ`` and ``s = Σ S / ‖Xc‖²``.

    R² is dimensionless and at most 1; with ``scale`` it is ``(Σ S)² / (‖Xc‖² ‖Yc‖²)``, in [0, 1],
    and it can be negative without. A y independent of x scores above 0, less than the linear map.

    Args:
        x: [n, d]; leading axes are flattened to rows.
        y: same shape.
        scale: fit the scale too (otherwise it is 1).

    Returns:
        The map and its in-sample R².

    Raises:
        NotEnoughDataError: fewer than 2 rows.
        NonFiniteError: NaN or infinity.
        InvalidArgumentError: shapes disagree, or x or y is constant.

    Source: Schönemann 1966; with scale, Gower & Dijksterhuis 2004, *Procrustes Problems*, 4.2.

    Example:
        >>> import torch
        >>> x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
        >>> turned = 3 * x @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
        >>> round(orthogonal_procrustes(x, turned).scale, 5)
        3.0
    """
    x, y = require_pair(x, y)
    if x.shape != y.shape:
        raise InvalidArgumentError(
            f"x and y must have as many columns for a rotation, got {x.shape[1]} and {y.shape[1]}; "
            "use fit_linear for maps between widths"
        )
    n = require_rows("x", x.shape[0], minimum=2, why="a rotation needs two points")
    xc, mean_x = centred_rows("x", checked_to_compute(x))
    yc, mean_y = centred_rows("y", checked_to_compute(y))
    u, s, vt = torch.linalg.svd(xc.T @ yc)
    size_x, size_y, overlap = float(xc.square().sum()), float(yc.square().sum()), float(s.sum())
    scale = require_bool("scale", scale)
    factor = overlap / size_x if scale else 1.0
    residual = factor**2 * size_x + size_y - 2 * factor * overlap
    return OrthogonalProcrustes(
        rotation=u @ vt,
        scale=factor,
        mean_x=mean_x,
        mean_y=mean_y,
        r_squared=1 - residual / size_y,
        n=n,
        scaled=scale,
    )
