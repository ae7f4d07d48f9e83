"""Slow memory in the weights, fast memory in the context, and what a covariance shift costs.

A trained layer holds L: the geometry ``(XᵀX)^{-1} = L Lᵀ`` of the data it was built on (and, in the
paper's form, the labels in P). The context holds ``Kᵀ V``: whatever stands in the prompt now.

* :func:`swap_memories` exchanges one and keeps the other, and measures whose regression the answer
  is.
* :func:`covariance_shift` keeps the weights, moves the context's covariance away, and measures the
  error of the fixed layer, of one gradient step (von Oswald et al. 2023), of several, and of
  Newton-Schulz layers that recompute the inverse in context at a stated cost.

>>> from lens_linear.constructions.least_squares.slow_fast import covariance_shift
>>> curve = covariance_shift(conditions=(1, 16), layers=12, seeds=2)
>>> frame = curve.to_dataframe()
>>> bool(frame[frame.method == "fixed weights"].error.min() > 0.01)
True

Source: Tan & Zhao 2026, arXiv 2604.13656 (slow and fast memory; sensitivity to covariance shift).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lens_linear._tl import derive_generator
from lens_linear.checks import (
    counted,
    require_choice,
    require_float,
    require_int,
    require_list,
    require_seed,
)
from lens_linear.constructions.least_squares.newton_schulz import NewtonSchulzAttention
from lens_linear.constructions.least_squares.ols import FORMS, Form, OLSAttention
from lens_linear.constructions.least_squares.spectral import (
    as_design,
    as_outputs,
    explains_nothing,
    power_of_two,
    spectral_root,
)
from lens_linear.errors import InvalidArgumentError
from lens_linear.tables import Result, cells

_SIDES = ("first", "second")


@dataclass(frozen=True, eq=False)
class MemorySwap(Result):
    """Whose regression does the layer answer with? Relative errors for every pair of memories.

    ``to_context_ols[w, c]``: distance of the prediction, weights from data w and context from data
    c, to least squares on the *context*; ``to_weights_ols[w, c]``: to least squares on the data the
    *weights* came from. Both in units of the least-squares prediction's norm; w, c = first, second.
    """

    _figure = "memory_swap"

    to_context_ols: Float[Tensor, "2 2"]
    to_weights_ols: Float[Tensor, "2 2"]
    geometry_distance: float  # ‖L₁ᵀ C₂ L₁ - I‖ / √rank, C₂ = X₂ᵀX₂ n₁/n₂; 0: the same covariance
    form: Form
    n: tuple[int, int]
    p: int

    def __repr__(self) -> str:
        kept = float(self.to_context_ols[[0, 1], [1, 0]].max())
        return (
            f"MemorySwap ({self.form} form): n = {self.n[0]} and {self.n[1]}, p = {self.p}; own "
            f"context error {float(self.to_context_ols.diagonal().max()):.2g}, swapped {kept:.2g}, "
            f"geometry distance {self.geometry_distance:.2g}"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row a pair: ``weights``, ``context``, ``to_context_ols``, ``to_weights_ols``."""
        found = {"to_context_ols": self.to_context_ols, "to_weights_ols": self.to_weights_ols}
        return cells({"weights": _SIDES, "context": _SIDES}, found)


def swap_memories(
    first: tuple[Any, Any], second: tuple[Any, Any], *, form: Form = "in-context"
) -> MemorySwap:
    """Cross the weights of two data sets with their contexts; queries are the context's own rows.

    In-context form: with the same covariance on both sides, swapped contexts are answered exactly
    (the labels were only in the context), whatever their numbers of rows; otherwise the fixed L costs
    an error. Paper's form: the answer follows the labels the weights were built on.

    ``geometry_distance`` compares covariances in units of the first: ``‖L₁ᵀ X₂ᵀX₂ L₁ n₁/n₂ - I‖ /
    √rank``, 0 where they agree and infinite where the second data vary along a direction in which the
    first do not vary at all. Two samples of one distribution are about ``√(p/n₁ + p/n₂)`` apart.

    Args:
        first: ``(x, y)`` with x ``[n, p]`` and y ``[n]`` or ``[n, m]``.
        second: ``(x, y)`` with the same p and m, any number of rows.
        form: form of the layer.

    Returns:
        MemorySwap: relative errors [weights, context]; 0 where the answer is that regression.

    Raises:
        InvalidArgumentError: shapes that do not fit, or predictions of least squares that are all
            zero (up to rounding), so that no relative error exists.

    Source: Tan & Zhao 2026, arXiv 2604.13656 (slow and fast memory).

    Example:
        >>> x = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
        >>> swap = swap_memories((x, torch.tensor([4.0, 5.0])), (x, torch.tensor([3.0, 0.0])))
        >>> bool(swap.to_context_ols.max() < 1e-12)  # the labels were only in the context
        True
    """
    require_choice("form", form, FORMS)
    models = []
    for name, data in zip(_SIDES, (first, second), strict=True):
        if not isinstance(data, (tuple, list)) or len(data) != 2:
            raise InvalidArgumentError(
                f"{name} must be a pair (x, y), got {type(data).__name__}; pass two tensors"
            )
        x, y = as_design(f"{name}[0]", data[0]), data[1]
        models.append(OLSAttention.from_data(x, as_outputs(f"{name}[1]", y, len(x))[0], form=form))
    shapes = [(len(model.W_Q), model.context_y.shape[1]) for model in models]
    if shapes[0] != shapes[1]:
        raise InvalidArgumentError(
            f"second must have {shapes[0][0]} inputs and {shapes[0][1]} outputs like first, got "
            f"{shapes[1][0]} and {shapes[1][1]}; pass data with the same columns"
        )
    for name, model in zip(_SIDES, models, strict=True):
        if explains_nothing(model.forward(model.context_x).detach(), model.context_y):
            raise InvalidArgumentError(
                f"{name} must have labels that x explains in part, but its least-squares prediction is zero "
                "everywhere, so no relative error exists; pass other labels"
            )
    to_context, to_weights = torch.zeros(2, 2, 2, dtype=torch.float64)
    for c, context in enumerate(models):
        x, y = context.context_x, context.context_y
        for w, weights in enumerate(models):
            got = weights.with_context(x, y).predict(x).reshape(len(x), -1)
            for out, oracle in ((to_context, context), (to_weights, weights)):
                want = oracle.predict(x).reshape(len(x), -1)
                out[w, c] = _relative(got, want)
    return MemorySwap(
        to_context_ols=to_context,
        to_weights_ols=to_weights,
        geometry_distance=_geometry_distance(models[0].context_x, models[1].context_x),
        form=form,
        n=(len(models[0].context_x), len(models[1].context_x)),
        p=models[0].context_x.shape[1],
    )


def _geometry_distance(first: Float[Tensor, "n p"], second: Float[Tensor, "n2 p"]) -> float:
    """``‖L₁ᵀ C₂ L₁ - I‖ / √rank`` of covariances; infinite where the second goes beyond the first."""
    fit = spectral_root(first)
    keys = second @ fit.root * (len(first) / len(second)) ** 0.5
    # Rows of the second along directions that the first lacks: what no map of its keys rebuilds.
    seen = second @ fit.root @ torch.linalg.pinv(fit.root)
    size = second.abs().amax(0)
    beyond = fit.rank < fit.p and bool(((second - seen).abs() > 1e-8 * size.amax()).any())
    if beyond:
        return math.inf
    identity = torch.eye(fit.rank, dtype=keys.dtype)
    return float((keys.T @ keys - identity).norm() / max(1, fit.rank) ** 0.5)


@dataclass(frozen=True, eq=False)
class ShiftCurve(Result):
    """Error against covariance shift for each method, with its layers and cost.

    The shift is the condition number of the context's covariance as the base geometry sees it; 1 is
    no shift. The error is ``‖ŷ - ŷ_OLS‖ / ‖ŷ_OLS‖`` on fresh queries, OLS fitted on the context.
    """

    _figure = "covariance_shift"

    errors: Float[Tensor, "methods shifts seeds"]
    methods: tuple[str, ...]  # e.g. "Newton-Schulz from L"
    layers: tuple[int, ...]  # attention layers of each method, the readout included
    flops: tuple[int, ...]  # of one forward pass: all context rows and queries
    conditions: tuple[float, ...]
    base_condition: float
    base_rows: int
    n: int
    queries: int
    d: int
    noise: float
    seed: int

    def __repr__(self) -> str:
        _, shifts, seeds = self.errors.shape
        return (
            f"ShiftCurve: {len(set(self.methods))} methods × {shifts} covariance shifts up to "
            f"condition number {max(self.conditions):g}, n = {self.n}, d = {self.d}, {counted(seeds, 'seed')}"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row a method, depth, shift and seed.

        Columns: ``method``, ``layers``, ``flops``, ``condition``, ``seed``, ``error``.
        """
        seeds = range(self.seed, self.seed + self.errors.shape[2])
        axes = {"row": range(len(self.methods)), "condition": self.conditions, "seed": seeds}
        frame = cells(axes, {"error": self.errors})
        row = frame.pop("row").to_numpy()
        frame.insert(0, "method", [self.methods[i] for i in row])
        frame.insert(1, "layers", [self.layers[i] for i in row])
        frame.insert(2, "flops", [self.flops[i] for i in row])
        return frame

    def summary(self) -> pd.DataFrame:
        """Per method, depth and shift the median over seeds, with its spread.

        Columns: ``method``, ``layers``, ``flops``, ``condition``, ``error`` (median), ``error_low``
        and ``error_high`` (95 % of the seeds lie between them; NaN for one seed), ``n_seeds``.
        """
        keys = ["method", "layers", "flops", "condition"]
        groups = self.to_dataframe().groupby(keys, sort=False)["error"]
        spread = groups.quantile(np.array([0.5, 0.025, 0.975])).unstack()
        spread = spread[[0.5, 0.025, 0.975]].set_axis(["error", "error_low", "error_high"], axis=1)
        if self.errors.shape[2] == 1:
            spread[["error_low", "error_high"]] = math.nan
        return spread.assign(n_seeds=groups.size()).reset_index()

    def cost(self, *, tolerance: float = 1e-6) -> pd.DataFrame:
        """The fewest layers that bring the median error over seeds below ``tolerance``.

        Columns: ``method``, ``condition``, ``layers``, ``layers_low`` and ``layers_high`` (fewest
        and most that any seed needs; missing for one seed), ``reached`` (share of seeds that get there at
        all), ``flops``, ``ratio`` (flops over those of the fixed layer). Depths that were run and do not
        suffice give missing values.
        """
        require_float("tolerance", tolerance, minimum=0.0)
        fixed = self.flops[self.methods.index("fixed weights")]
        rows: list[dict[str, Any]] = []
        for method in dict.fromkeys(self.methods):
            at = [i for i, name in enumerate(self.methods) if name == method]
            for c, condition in enumerate(self.conditions):
                enough = self.errors[at, c] <= tolerance  # [depth, seed]
                middle = self.errors[at, c].quantile(0.5, dim=1) <= tolerance
                first = int(middle.int().argmax()) if bool(middle.any()) else None
                got = enough.any(0)
                each = enough.int().argmax(0)[got]
                several = len(got) > 1
                cost = None if first is None else self.flops[at[first]]
                rows.append(
                    {
                        "method": method,
                        "condition": condition,
                        "layers": None if first is None else self.layers[at[first]],
                        "layers_low": self.layers[at[int(each.min())]]
                        if several and len(each)
                        else None,
                        "layers_high": self.layers[at[int(each.max())]]
                        if several and bool(got.all())
                        else None,
                        "reached": float(got.double().mean()),
                        "flops": cost,
                        "ratio": None if cost is None else cost / fixed,
                    }
                )
        whole = dict.fromkeys(("layers", "layers_low", "layers_high", "flops"), "Int64")
        return pd.DataFrame(rows).astype(whole | {"ratio": "float64"})


def covariance_shift(
    *,
    conditions: Sequence[float] = (1, 2, 4, 8, 16, 32, 64, 128, 256),
    layers: int = 20,
    d: int = 8,
    n: int = 256,
    queries: int = 64,
    noise: float = 0.1,
    base_condition: float = 10.0,
    base_rows: int = 4096,
    seeds: int = 10,
    seed: int = 0,
) -> ShiftCurve:
    """Error of a layer built on one covariance and run on contexts with another.

    Base data: rows from N(0, Σ₀), Σ₀ with condition number ``base_condition``; L and the gradient
    step's rate come from ``base_rows`` of them, and L is rescaled to contexts of n rows. Context:
    rows from N(0, Σ₀^½ S Σ₀^½), S with eigenvalues spread evenly in logarithm from κ^-½ to κ^½
    along random axes, and labels ``y = β·x + ε``. Even at κ = 1 the fixed layer is off by about
    √(d/n): the covariance of the n rows in the context is not the one in the weights. All shifts of a
    seed share their random numbers, so curves differ by the shift alone, and a number does not depend
    on which others were asked for.

    Methods: ``fixed weights`` (OLSAttention), ``gradient step`` (one step, the rate that is best on
    the base data), ``gradient descent`` (k steps, step size 1/‖Kᵀ K‖_F taken in context),
    ``Newton-Schulz from L`` and ``Newton-Schulz from I`` (k layers and the readout).

    Args:
        conditions: condition numbers κ of S, each at least 1.
        layers: deepest stack; every depth below is measured too.
        d: inputs.
        n: rows of each context; at least d.
        queries: fresh rows on which the error is measured.
        noise: standard deviation of ε.
        base_condition: condition number of Σ₀.
        base_rows: rows the weights were built on; at least d.
        seeds: repetitions with their own data.
        seed: first seed.

    Returns:
        ShiftCurve: errors, layers and flops.

    Raises:
        InvalidArgumentError: no condition, one below 1, or sizes that do not fit.

    Source: Tan & Zhao 2026, arXiv 2604.13656 (sensitivity to covariance shift); measure and rivals are ours.

    Example:
        >>> cost = covariance_shift(conditions=(16,), layers=12, seeds=2).cost(tolerance=1e-6)
        >>> cost.dropna()[["method", "layers"]].values.tolist()  # what else was run never gets there
        [['Newton-Schulz from L', 9], ['Newton-Schulz from I', 10]]
    """
    conditions = require_list("conditions", conditions, of="numbers")
    kappas = tuple(dict.fromkeys(require_float("conditions", c, minimum=1.0) for c in conditions))
    if not kappas:
        raise InvalidArgumentError("conditions must name at least one shift, got none; pass (1, 4)")
    layers = require_int("layers", layers, minimum=1)
    d, queries = require_int("d", d, minimum=1), require_int("queries", queries, minimum=1)
    n, seeds = require_int("n", n, minimum=d), require_int("seeds", seeds, minimum=1)
    seed = require_seed(seed)
    noise = require_float("noise", noise, minimum=0.0)
    base_condition = require_float("base_condition", base_condition, minimum=1.0)
    base_rows = require_int("base_rows", base_rows, minimum=d)
    errors = []
    for s in range(seeds):
        task = _Task(d, n, base_rows, base_condition=base_condition, noise=noise, seed=seed + s)
        errors.append([task.errors(kappa, layers, queries) for kappa in kappas])
    names, depths, flops = zip(*_rows(layers, d=d, n=n, queries=queries), strict=True)
    return ShiftCurve(
        errors=torch.tensor(errors, dtype=torch.float64).permute(2, 1, 0).contiguous(),
        methods=names,
        layers=depths,
        flops=flops,
        conditions=kappas,
        base_condition=base_condition,
        base_rows=base_rows,
        n=n,
        queries=queries,
        d=d,
        noise=noise,
        seed=seed,
    )


def _rows(layers: int, *, d: int, n: int, queries: int) -> Iterator[tuple[str, int, int]]:
    """Name, depth and flops in the order of ``_Task.errors``."""
    readout = 2 * d * (n + queries)
    yield "fixed weights", 1, d * readout + readout
    yield "gradient step", 1, readout
    for k in range(1, layers + 1):
        yield "gradient descent", k, 2 * n * d * d + 4 * n * d * k + 2 * d * queries
    for start, saved in (("L", 0), ("I", d * readout)):
        for k in range(1, layers + 1):
            flops = NewtonSchulzAttention(d, layers=k).flops(n, queries) - saved
            yield f"Newton-Schulz from {start}", k + 1, flops


class _Task:
    """One seed: base data with its weights, and contexts at any shift."""

    def __init__(
        self, d: int, n: int, base_rows: int, *, base_condition: float, noise: float, seed: int
    ) -> None:
        self.n, self.d, self.noise, self.seed = n, d, noise, seed
        self.base = self._spread(base_condition, "base axes")  # Σ₀^½
        x = self._draw("base rows", base_rows, d) @ self.base
        # A context of n rows has an XᵀX n / base_rows times as large.
        self.root = spectral_root(x).root * (base_rows / n) ** 0.5
        # The rate that is best on average over labels, on the base data: min_η ‖I - η C‖_F.
        gram = x.T @ x / base_rows
        self.rate = float(gram.trace() / gram.square().sum())

    def errors(self, kappa: float, layers: int, queries: int) -> list[float]:
        mix = self._spread(kappa, "axes") @ self.base
        x, new = (
            self._draw("rows", self.n, self.d) @ mix,
            self._draw("queries", queries, self.d) @ mix,
        )
        y = x @ self._draw("slopes", self.d, 1) + self.noise * self._draw("noise", self.n, 1)
        root = spectral_root(x).root
        want = new @ (root @ ((x @ root).T @ y))
        answers = [
            (new @ self.root) @ ((x @ self.root).T @ y),  # OLSAttention with this L
            new @ (self.rate / self.n * (x.T @ y)),
            *_descent(x, y, new, layers),
            *_newton_schulz(x @ self.root, y, new @ self.root, layers),
            *_newton_schulz(x, y, new, layers),
        ]
        return [_relative(answer, want) for answer in answers]

    def _draw(self, what: str, *shape: int) -> Tensor:
        """Normal numbers of this seed and name: all shifts share them, and none depends on the others."""
        generator = derive_generator(self.seed, f"covariance shift: {what}")
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def _spread(self, condition: float, what: str) -> Float[Tensor, "d d"]:
        """Symmetric root of a covariance with that condition number and determinant 1."""
        axes, _ = torch.linalg.qr(self._draw(what, self.d, self.d))
        powers = torch.linspace(-0.25, 0.25, self.d, dtype=torch.float64)
        root: Tensor = (axes * condition**powers) @ axes.T
        return root


def _descent(x: Tensor, y: Tensor, new: Tensor, layers: int) -> list[Tensor]:
    """Predictions after 1 ... layers gradient steps from zero."""
    size = torch.linalg.matrix_norm(x.T @ x)
    slopes, out = torch.zeros_like(x.T @ y), []
    for _ in range(layers):
        slopes = slopes + x.T @ (y - x @ slopes) / size
        out.append(new @ slopes)
    return out


def _newton_schulz(k: Tensor, y: Tensor, q: Tensor, layers: int) -> list[Tensor]:
    """Predictions of stacks of 1 ... layers, layer by layer as NewtonSchulzAttention runs them."""
    size = torch.linalg.matrix_norm(k.T @ k).sqrt()
    q, k, out = q / size, k / size, []
    for _ in range(layers):
        memory = k.T @ k
        q, k = 1.5 * q - 0.5 * q @ memory, 1.5 * k - 0.5 * k @ memory
        out.append(q @ (k.T @ y))
    return out


def _relative(got: Tensor, want: Tensor) -> float:
    unit = power_of_two(want)  # squares of 1e-200 or 1e200 leave the range
    return float(((got - want) / unit).norm() / (want / unit).norm())
