"""Gradient descent finds the least-squares attention layer from random weights.

Two experiments. In the paper's form the layer ``(X W_Q)(X W_K)ᵀ(X W_V) W_O`` is trained on one data
set, ``y = 2x + ε`` by default. In the in-context form the labels are the values, and the layer
``(X W_Q)(X W_K)ᵀ Y`` is trained on many tasks at once: each output column is one regression.

What can be recovered? Only what the loss sees. ``W_Q A, W_K A^{-T}`` computes the same scores for
every invertible A, so at most ``G = W_Q W_Kᵀ`` is determined; in the construction it is
``(XᵀX)^{-1}``.

* Paper's form: the prediction is ``X G XᵀX W_V W_O``, and any invertible G is undone by the next
  two matrices. The function converges to least squares; the geometry does not. With one input the
  two differ by a scale only, and the distance is zero by definition.
* In-context form with at least as many tasks as inputs: ``G XᵀY`` must equal ``(XᵀX)^{-1}XᵀY``
  for all of them, so G itself is determined, and training reaches the construction.

``geometry_error`` measures it: ``‖c G XᵀX - I‖ / √p``, 0 for the construction. The scale c is free
in the paper's form, where W_V W_O absorbs it, and 1 in the in-context form.

>>> from lens_linear import train_ols_attention
>>> run = train_ols_attention(epochs=200, seeds=2)
>>> bool((run.epochs_to_converge <= 200).all())
True

Source: Tan & Zhao 2026, arXiv 2604.13656 (y = 2x + ε, at most 1000 epochs).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lens_linear.checks import (
    counted,
    require_choice,
    require_float,
    require_int,
    require_rows,
    require_seed,
)
from lens_linear.constructions.least_squares.ols import FORMS, Form, OLSAttention
from lens_linear.constructions.least_squares.spectral import (
    as_design,
    as_outputs,
    explains_nothing,
    power_of_two,
    spectral_root,
)
from lens_linear.errors import InvalidArgumentError, NonFiniteError
from lens_linear.linalg.precision import own_modes
from lens_linear.tables import Result, cells

Optimizer = Literal["gd", "adam"]
_CURVES = ("loss", "prediction_error", "geometry_error")
# With inputs and labels at unit root mean square. Over 2000 starts of the paper's experiment 0.02
# lost one to divergence and left 13 near the saddle at zero; 0.05 lost 9 and left one.
_PAPER_RATE = 0.02
_IN_CONTEXT_RATE = 0.05  # an input, from four on: the gradient of G shrinks as 1/p
_ADAM_RATE = 0.01
_LEAST_COLUMN = 1e-7  # of the largest: its square is the rounding of a product
_TASKS_PER_INPUT = 8  # few tasks leave directions of G that the loss hardly sees


@dataclass(frozen=True, eq=False)
class OLSTraining(Result):
    """Curves over epochs (epoch 0 is the random start) for each seed, and the trained weights.

    ``prediction_error`` is ``‖Ŷ - Ŷ_OLS‖ / ‖Ŷ_OLS‖`` on the training rows; ``geometry_error`` is
    ``‖c W_Q W_Kᵀ XᵀX - I‖ / √p``. Both are 0 for the construction and about 1 for unrelated
    weights.
    """

    _figure = "ols_convergence"

    loss: Float[Tensor, "epochs seeds"]  # mean squared error, squared units of y
    prediction_error: Float[Tensor, "epochs seeds"]
    geometry_error: Float[Tensor, "epochs seeds"]
    epochs_to_converge: Float[Tensor, " seeds"]  # NaN where it did not
    ols_loss: float  # what least squares itself leaves
    tolerance: float  # on prediction_error
    form: Form
    optimizer: Optimizer
    learning_rate: float
    seed: int
    x: Float[Tensor, "n p"]
    y: Float[Tensor, "n m"]
    weights: tuple[Tensor, ...]  # W_Q, W_K (, W_V, W_O), each with a leading seeds axis

    def __repr__(self) -> str:
        done = self.epochs_to_converge[~self.epochs_to_converge.isnan()]
        n, p = self.x.shape
        when = f"after {done.median():.0f} epochs (median)" if len(done) else "yet"
        lost = f"; {self.diverged} diverged" if self.diverged else ""
        return (
            f"OLSTraining ({self.form} form, {self.optimizer}): n = {n}, p = {p}, "
            f"m = {self.y.shape[1]}; {len(done)} of {counted(len(self.epochs_to_converge), 'seed')} within "
            f"{self.tolerance:g} of least squares {when}, of {len(self.loss) - 1} run{lost}"
        )

    @property
    def diverged(self) -> int:
        """Seeds whose loss is no longer finite at the end."""
        return int((~self.loss[-1].isfinite()).sum())

    def to_dataframe(self) -> pd.DataFrame:
        """One row a seed and epoch: ``loss``, ``prediction_error``, ``geometry_error``."""
        epochs, seeds = self.loss.shape
        axes = {"epoch": range(epochs), "seed": range(self.seed, self.seed + seeds)}
        frame = cells(axes, {name: getattr(self, name) for name in _CURVES})
        return frame[["seed", "epoch", *_CURVES]]

    def summary(self) -> pd.DataFrame:
        """One row a quantity and epoch: ``median``, ``low`` and ``high`` (extremes over seeds).

        Seeds that diverged are left out from the epoch at which they did. One seed has no extremes (NaN).
        """
        frames = []
        for name in _CURVES:
            curve = getattr(self, name)
            curve = curve.where(self.loss.isfinite() & curve.isfinite(), torch.nan)
            low, median, high = curve.nanquantile(
                curve.new_tensor([0.0, 0.5, 1.0]), dim=1, interpolation="lower"
            )
            several = curve.isfinite().sum(1) > 1
            low, high = (end.where(several, torch.nan) for end in (low, high))
            columns = {
                "quantity": name,
                "epoch": range(len(curve)),
                "median": median.numpy(),
                "low": low.numpy(),
                "high": high.numpy(),
            }
            frames.append(pd.DataFrame(columns))
        return pd.concat(frames, ignore_index=True)

    def model(self, index: int = 0) -> OLSAttention:
        """The trained layer of one seed (0 is the first), hooked like the construction."""
        index = require_int("index", index, minimum=0, maximum=self.loss.shape[1] - 1)
        weights = [w[index] for w in self.weights]
        identity = torch.eye(self.y.shape[1], dtype=self.y.dtype)
        w_v, w_o = weights[2:] if self.form == "paper" else (identity, identity)
        return OLSAttention(
            w_q=weights[0],
            w_k=weights[1],
            w_v=w_v,
            w_o=w_o,
            context_x=self.x,
            context_y=self.y,
            form=self.form,
            origin="trained",
        )


def regression_data(
    *, n: int = 100, d: int = 1, outputs: int = 1, noise: float = 0.1, seed: int = 0
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n m"]]:
    """Gaussian inputs and linear labels with noise: ``y = 2x + ε`` for one input and one output.

    Otherwise the slopes are drawn from N(0, 1).

    Args:
        n: rows.
        d: inputs.
        outputs: columns of y.
        noise: standard deviation of ε, in units of y.
        seed: of the local generator.

    Returns:
        x ``[n, d]`` and y ``[n, outputs]``, float64.

    Raises:
        InvalidArgumentError: a size below 1, or negative noise.

    Source: Tan & Zhao 2026, arXiv 2604.13656 (y = 2x + ε).

    Example:
        >>> x, y = regression_data(n=1000, noise=0.1)
        >>> round(float((y - 2 * x).std()), 2)
        0.1
    """
    generator = torch.Generator().manual_seed(require_seed(seed))
    n, d = require_int("n", n, minimum=1), require_int("d", d, minimum=1)
    outputs = require_int("outputs", outputs, minimum=1)
    noise = require_float("noise", noise, minimum=0.0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = draw(n, d)
    slopes = x.new_full((1, 1), 2.0) if d == outputs == 1 else draw(d, outputs)
    return x, x @ slopes + noise * draw(n, outputs)


@own_modes()
def train_ols_attention(
    x: Any = None,
    y: Any = None,
    *,
    form: Form = "paper",
    d: int = 1,
    n: int = 100,
    noise: float = 0.1,
    epochs: int = 1000,
    optimizer: Optimizer = "gd",
    learning_rate: float | None = None,
    tolerance: float = 1e-3,
    seeds: int = 8,
    seed: int = 0,
) -> OLSTraining:
    """Train a linear-attention layer from random weights and compare it with the construction.

    One epoch is one full-batch step on the mean squared error. Inputs and labels are brought to
    unit root mean square for training and the weights are mapped back, so that the learning rate
    does not depend on units; columns of very different size still slow it down, so standardise
    them. All seeds run at once. In the paper's form zero weights are a saddle: a start whose
    weights are all small can stay there longer than 1000 epochs (about 1 of 150 does).

    Args:
        x: ``[n, p]`` inputs; None draws :func:`regression_data` from ``n``, ``d`` and ``noise``.
        y: ``[n]`` or ``[n, m]`` labels. The in-context form needs ``m >= p`` tasks to determine its
            geometry; drawn data have 8 a column of x.
        form: ``"paper"`` (W_Q, W_K, W_V, W_O are learned) or ``"in-context"`` (W_Q and W_K are).
        d: inputs of drawn data.
        n: rows of drawn data.
        noise: standard deviation of ε in drawn data.
        epochs: gradient steps.
        optimizer: ``"gd"`` (plain) or ``"adam"``.
        learning_rate: None takes 0.02 (paper), 0.05 for each input but at least 0.2 (in-context),
            or 0.01 (Adam).
        tolerance: a seed has converged when ``prediction_error`` stays below it to the end.
        seeds: number of random starts; start i uses seed ``seed + i``.
        seed: first seed, and the seed of drawn data.

    Returns:
        OLSTraining: curves, epochs to convergence, trained weights.

    Raises:
        NotEnoughDataError: fewer rows than inputs.
        InvalidArgumentError: inputs without full column rank or with columns 1e7 times as large as
            others, labels that x explains nothing of, or every seed diverged.
        NonFiniteError: x or y so large or small that weights or loss would leave float64.

    Source: Tan & Zhao 2026, arXiv 2604.13656. Step size, start and noise level are ours.

    Example:
        >>> run = train_ols_attention(form="in-context", d=2, epochs=300, seeds=2)
        >>> bool(run.geometry_error[-1].max() < 1e-3)
        True
    """
    require_choice("form", form, FORMS)
    require_choice("optimizer", optimizer, ("gd", "adam"))
    epochs, seeds = require_int("epochs", epochs, minimum=1), require_int("seeds", seeds, minimum=1)
    tolerance = require_float("tolerance", tolerance, minimum=0.0)
    x, y, keys = _data(x, y, form, n=n, d=d, noise=noise, seed=seed)
    if learning_rate is None:
        rate = _default_rate(form, optimizer, x.shape[1])
    else:
        rate = require_float("learning_rate", learning_rate, minimum=0.0)
    x_scale, y_scale = _scale("x", x, power=1), _scale("y", y, power=2)
    seed = require_seed(seed)
    start = _random_weights(form, x.shape[1], y.shape[1], seeds=seeds, seed=seed)
    weights, curves = _descend(x / x_scale, y / y_scale, start, epochs, rate, optimizer)
    loss, prediction_error, geometry_error = curves
    if not bool(torch.isfinite(loss[-1]).any()):
        raise InvalidArgumentError(
            f"learning_rate = {rate:g} made all {seeds} seeds diverge; pass a smaller one"
        )
    per_input = (len(x) ** 0.5) * x_scale  # the trained scores are divided by n
    back = [weights[0] / per_input, weights[1] / per_input]
    if form == "paper":
        back += [weights[2] / x_scale, weights[3] * y_scale]
    return OLSTraining(
        loss=loss * y_scale**2,
        prediction_error=prediction_error,
        geometry_error=geometry_error,
        epochs_to_converge=_first_stay_below(prediction_error, tolerance),
        ols_loss=float((y - keys @ (keys.T @ y)).square().mean()),
        tolerance=tolerance,
        form=form,
        optimizer=optimizer,
        learning_rate=rate,
        seed=seed,
        x=x,
        y=y,
        weights=tuple(back),
    )


def _default_rate(form: Form, optimizer: Optimizer, p: int) -> float:
    if optimizer == "adam":
        return _ADAM_RATE
    return _PAPER_RATE if form == "paper" else _IN_CONTEXT_RATE * max(p, 4)


def _data(
    x: Any, y: Any, form: Form, *, n: int, d: int, noise: float, seed: int
) -> tuple[Float[Tensor, "n p"], Float[Tensor, "n m"], Float[Tensor, "n p"]]:
    """Data that can be learned from, and their orthonormal keys."""
    if (x is None) != (y is None):
        raise InvalidArgumentError("x and y must be given together; pass both or neither")
    if x is None:
        outputs = _TASKS_PER_INPUT * require_int("d", d, minimum=1) if form != "paper" else 1
        x, y = regression_data(n=n, d=d, outputs=outputs, noise=noise, seed=seed)
    x = as_design("x", x)
    y, _ = as_outputs("y", y, len(x))
    require_rows("x", len(x), minimum=x.shape[1], why="one for each input")
    columns = power_of_two(x, dim=0)
    fit = spectral_root(x / columns)
    if fit.rank < x.shape[1]:
        raise InvalidArgumentError(
            f"x must have full column rank, got rank {fit.rank} of {x.shape[1]} columns; "
            "drop the columns that others determine"
        )
    if (least := float((columns / columns.max()).min())) < _LEAST_COLUMN:
        raise InvalidArgumentError(
            f"x must have columns of like size, but one is {least:.0e} of the largest: products of "
            "columns, which gradients are made of, hold no digit of it; divide each column by its size"
        )
    keys = x / columns @ fit.root
    if explains_nothing(keys @ (keys.T @ y), y):
        raise InvalidArgumentError(
            "y must be explained by x in part, but its least-squares prediction is zero everywhere: there "
            "is nothing to learn; pass other labels"
        )
    return x, y, keys


def _scale(name: str, rows: Float[Tensor, "n k"], *, power: int) -> Tensor:
    """Root mean square, refused where its power would leave the range of float64."""
    unit = power_of_two(rows)
    scale = (rows / unit).square().mean().sqrt() * unit
    limit = torch.finfo(rows.dtype)
    low, high = ((end) ** (1 / power) for end in (limit.tiny / limit.eps, limit.max * limit.eps))
    if not low <= float(scale) <= high:
        raise NonFiniteError(
            f"{name} must have a root mean square of {low:.0e} to {high:.0e}, got {float(scale):.3g}: "
            + ("the loss is its square" if power == 2 else "weights are its inverse")
            + f", which float64 cannot hold; divide {name} by its size"
        )
    return scale


def _random_weights(form: Form, p: int, m: int, *, seeds: int, seed: int) -> list[Tensor]:
    """N(0, 1/fan-in) weights, a generator each, so that no start depends on the others."""
    shapes = [(p, p), (p, p), (p, p), (p, m)] if form == "paper" else [(p, p), (p, p)]
    starts = []
    for i in range(seeds):
        generator = torch.Generator().manual_seed(seed + i)
        starts.append(
            [torch.randn(s, generator=generator, dtype=torch.float64) / p**0.5 for s in shapes]
        )
    return [torch.stack(layer) for layer in zip(*starts, strict=True)]


@torch.enable_grad()  # notebooks often switch gradients off at the top
def _descend(
    x: Tensor, y: Tensor, start: list[Tensor], epochs: int, rate: float, optimizer: Optimizer
) -> tuple[list[Tensor], list[Tensor]]:
    """Full-batch steps for all seeds at once; curves of loss, prediction and geometry error.

    ``‖Y - XM‖² = ‖Y - Xβ‖² + ‖R(M - β)‖²`` with β the least-squares slopes and ``RᵀR = XᵀX``: the
    same loss and gradients as over the n rows, at the cost of p.
    """
    n = len(x)
    weights = [w.clone().requires_grad_() for w in start]
    kind = torch.optim.SGD if optimizer == "gd" else torch.optim.Adam
    descent = kind(weights, lr=rate)
    gram, cross = x.T @ x / n, x.T @ y / n
    basis, half = torch.linalg.qr(x / n**0.5)
    best = torch.linalg.solve_triangular(half, basis.T @ y / n**0.5, upper=True)
    left = (y - x @ best).square().mean()
    size = (half @ best).norm()
    curves: list[list[Tensor]] = [[], [], []]
    for epoch in range(epochs + 1):
        geometry = weights[0] @ weights[1].mT  # G, [seeds, p, p]
        slopes = geometry @ gram @ weights[2] @ weights[3] if len(weights) > 2 else geometry @ cross
        excess = (half @ (slopes - best)).square().sum(dim=(1, 2))
        curves[0].append(excess.detach() / y.shape[1] + left)
        curves[1].append(excess.detach().sqrt() / size)
        curves[2].append(_geometry_error(geometry.detach() @ gram, free_scale=len(weights) > 2))
        if epoch < epochs:
            descent.zero_grad()
            (excess / y.shape[1]).sum().backward()
            descent.step()
    return [w.detach() for w in weights], [torch.stack(c) for c in curves]


def _geometry_error(
    product: Float[Tensor, "seeds p p"], *, free_scale: bool
) -> Float[Tensor, " seeds"]:
    """``min_c ‖c G XᵀX - I‖ / √p`` with c free or 1."""
    p = product.shape[-1]
    identity = torch.eye(p, dtype=product.dtype)
    if free_scale:
        trace = product.diagonal(dim1=1, dim2=2).sum(1)
        product = product * (trace / product.square().sum(dim=(1, 2)))[:, None, None]
    distance: Tensor = (product - identity).norm(dim=(1, 2)) / p**0.5
    return distance


def _first_stay_below(
    errors: Float[Tensor, "epochs seeds"], tolerance: float
) -> Float[Tensor, " seeds"]:
    """The first epoch from which the error never exceeds the tolerance again; NaN if none."""
    above = ~(errors < tolerance)  # NaN counts as above
    epochs = torch.arange(1, len(errors) + 1, dtype=errors.dtype)
    first = (above * epochs[:, None]).amax(0)
    return torch.where(first < len(errors), first, torch.full_like(first, torch.nan))
