"""One dial from linear attention to softmax: where regression ends and retrieval starts.

Scores of a query with the context's rows are ``s_j = x* (XᵀX/n)⁻¹ x_jᵀ``: the least-squares layer's, for
one average row. Turn up one number, β, in ``out = Σ_j softmax(β s)_j y_j``.

* As β → 0 the weights are ``(1 + β (s_j - s̄)) / n``, so ``ȳ + (out - ȳ)/β`` *is* least squares with an
  intercept: softmax attention with a gain of 1/β.
* For Gaussian rows it stays least squares at every β as n → ∞ (tilting a Gaussian by ``exp(β s)`` moves
  its mean by β x*). At finite n the tilt leaves ``n exp(-β² ‖x*‖²)`` rows to average over.
* Past ``β = √(2 log n) / ‖x*‖`` one row holds the weight (the freezing of the random energy model): the
  nearest stored row is retrieved. For keys of equal length that is Nadaraya-Watson regression with a
  Gaussian kernel of width 1/√β.

The *order* of the energy is another way of turning it: weights ``s^(n-1)``, n = 2 linear, and growing n
towards the exponential (:mod:`lens_linear.constructions.memory.energies`).

>>> dial = attention_dial(betas=(0.001, 0.3, 20.0), orders=(2,), seeds=2)
>>> [round(float(error), 2) for error in dial.summary().ols_error]  # order 2, then β rising
[0.0, 0.0, 0.09, 0.6]

Source: Tan & Zhao 2026, arXiv 2604.13656 (the passage from linear to exponential); Nadaraya 1964 and
Watson 1964; Lucibello & Mézard 2024 (freezing); the dial and its measures are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    require_float,
    require_floats,
    require_int,
    require_ints,
    require_seed,
)
from lens_linear.constructions.memory.head_memory import attention_head_memory
from lens_linear.errors import InvalidArgumentError
from lens_linear.tables import Result

MEASURES = (
    "gain", "ols_error", "raw_error", "kernel_error", "truth_error", "effective_rows", "best_share",
    "capacity",
)  # fmt: skip
ENOUGH = 0.1  # relative distance to least squares up to which the readout counts as regression
HELD = 0.5  # share of the weights in one row from which it counts as retrieval


@dataclass(frozen=True, eq=False)
class AttentionDial(Result):
    """Readouts of one context at every setting of the dial.

    ``values[measure, setting, seed]``, measures in the order of ``MEASURES``:

    * ``gain``: the one factor that brings the centred readout nearest to least squares (1/β in theory);
    * ``ols_error``: relative distance to least squares after that factor, ``raw_error`` before it;
    * ``kernel_error``: of the raw readout to Nadaraya-Watson regression of width 1/√β (NaN for orders);
    * ``truth_error``: after the factor, to the noiseless labels, 1 for predicting their mean;
    * ``effective_rows``: exp(entropy of the absolute weights), median over queries, 1 to n;
    * ``best_share``: largest absolute weight, median over queries, 0 to 1;
    * ``capacity``: stored rows among which one, asked for with noise, still holds half of the weights.
    """

    _figure = "attention_dial"
    _columns = (
        "dial",
        "setting",
        "seed",
        "gain",
        "ols_error",
        "kernel_error",
        "best_share",
        "capacity",
    )

    values: Float[Tensor, "measure setting seed"]
    dial: tuple[str, ...]  # "order" or "temperature" of each setting
    setting: tuple[float, ...]  # n of the energy, or β
    levels: Float[Tensor, "two seed"]  # truth_error of least squares, and of the best kernel width
    #: β at which the random energy model freezes, median over queries.
    frozen_at: Float[Tensor, " seed"]
    n: int
    d: int
    queries: int
    bend: float
    noise: float
    seed: int

    def __repr__(self) -> str:
        ends = self.regimes().set_index("regime")["beta"]
        return (
            f"AttentionDial: {counted(len(self.setting), 'setting')}, n = {counted(self.n, 'row')}, d = "
            f"{self.d}, "
            f"{counted(self.values.shape[2], 'seed')}; softmax is regression (with a gain) up to "
            f"{_place_text(ends['regression ends'])} and retrieval from "
            f"{_place_text(ends['retrieval starts'])}"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row a setting and seed: ``dial``, ``setting``, ``seed`` and the measures."""
        seeds = self.values.shape[2]
        frame = pd.DataFrame(
            {
                "dial": np.repeat(self.dial, seeds),
                "setting": np.repeat(self.setting, seeds),
                "seed": np.tile(np.arange(self.seed, self.seed + seeds), len(self.setting)),
            }
        )
        for measure, values in zip(MEASURES, self.values, strict=True):
            frame[measure] = values.reshape(-1).numpy()
        return frame

    def summary(self) -> pd.DataFrame:
        """One row a setting: the median of each measure, and ``_low`` and ``_high`` (95 % of the seeds).

        One seed has no spread (NaN).
        """
        groups = self.to_dataframe().groupby(["dial", "setting"], sort=False)
        return medians(groups, MEASURES).assign(n_seeds=self.values.shape[2]).reset_index()

    def regimes(self) -> pd.DataFrame:
        """Where softmax stops being regression and starts being retrieval.

        Columns: ``regime``, ``beta`` (a middle seed's), ``beta_low``, ``beta_high`` (95 % of them;
        NaN for one seed), ``rule``. Infinite where the dial was not turned that far, 0 where it lies
        below the β asked, NaN where these are more than a factor of 2 apart there.
        """
        warm = [i for i, dial in enumerate(self.dial) if dial == "temperature"]
        betas = [self.setting[i] for i in warm]
        error = self.values[MEASURES.index("ols_error")][warm]
        share = self.values[MEASURES.index("best_share")][warm]
        cases = (
            ("regression ends", crossings(betas, error, ENOUGH), f"ols_error passes {ENOUGH:g}"),
            ("retrieval starts", crossings(betas, share, HELD), f"best_share passes {HELD:g}"),
            ("freezing (theory)", self.frozen_at, "√(2 log n) / ‖x*‖"),
        )
        rows = []
        for regime, found, rule in cases:
            ordered = found.sort().values
            ends = [float(ordered[round(q * (len(ordered) - 1))]) for q in (0.5, 0.025, 0.975)]
            ends[1:] = ends[1:] if len(ordered) > 1 else [math.nan, math.nan]
            rows.append((regime, *ends, rule))
        return pd.DataFrame(rows, columns=["regime", "beta", "beta_low", "beta_high", "rule"])


_BETAS: tuple[float, ...] = tuple(np.geomspace(1e-3, 100, 21).tolist())


def attention_dial(
    *,
    betas: Sequence[float] = _BETAS,
    orders: Sequence[int] = (2, 3, 4, 6, 8),
    d: int = 4,
    n: int = 256,
    queries: int = 64,
    bend: float = 0.5,
    noise: float = 0.1,
    seeds: int = 8,
    seed: int = 0,
) -> AttentionDial:
    """Turn one number from linear attention to softmax on the same data and scores.

    Rows from N(0, I), labels ``y = b·x + bend (cos(2 a·x) - mean) + ε`` with unit a and b: a line that least
    squares can find and a bend that only a local method can.

    Args:
        betas: inverse temperatures, each above 0; scores are those of one average row (about ‖x*‖²).
        orders: orders of the polynomial energies, at least 2; 2 is linear attention.
        d: inputs.
        n: context rows; more than d + 1.
        queries: fresh rows.
        bend: size of the part that no line follows.
        noise: standard deviation of ε.
        seeds: repetitions with their own data.
        seed: first seed.

    Returns:
        AttentionDial: ``.summary()``, ``.regimes()``; relative errors, 0 is equal.

    Raises:
        InvalidArgumentError: a value out of range, or neither betas nor orders.

    Source: Tan & Zhao 2026, arXiv 2604.13656; see the module's head.

    Example:
        >>> dial = attention_dial(betas=(0.01, 10.0), orders=(), seeds=2)
        >>> dial.summary().best_share.round(1).tolist()  # from averaging to one row
        [0.0, 1.0]
    """
    warm = set(require_floats("betas", betas, minimum=1e-6))
    powers = dict.fromkeys(require_ints("orders", orders, minimum=2, maximum=20))
    if not warm and not powers:
        raise InvalidArgumentError(
            "betas and orders must name at least one setting; pass betas=(1.0,)"
        )
    d = require_int("d", d, minimum=1)
    n = require_int("n", n, minimum=d + 2)
    queries = require_int("queries", queries, minimum=2)
    bend, noise = require_float("bend", bend), require_float("noise", noise, minimum=0.0)
    seeds, seed = require_int("seeds", seeds, minimum=1), require_seed(seed)
    settings = [("order", float(o)) for o in powers] + [("temperature", b) for b in sorted(warm)]
    tasks = [_Context(d, n, queries, bend, noise, seed + s) for s in range(seeds)]
    measured = [[task.measure(*one) for one in settings] for task in tasks]
    values = torch.tensor(measured, dtype=torch.float64)
    return AttentionDial(
        values=values.permute(2, 1, 0).contiguous(),
        dial=tuple(dial for dial, _ in settings),
        setting=tuple(value for _, value in settings),
        levels=torch.tensor([task.levels() for task in tasks], dtype=torch.float64).T,
        frozen_at=torch.stack([task.frozen_at() for task in tasks]),
        n=n,
        d=d,
        queries=queries,
        bend=bend,
        noise=noise,
        seed=seed,
    )


class _Context:
    """One seed: rows, labels, queries, and the two regressions that the dial lies between."""

    def __init__(self, d: int, n: int, queries: int, bend: float, noise: float, seed: int) -> None:
        def draw(what: str, *shape: int) -> Tensor:
            generator = derive_generator(seed, f"attention dial: {what}")
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        x, new = draw("rows", n, d), draw("queries", queries, d)
        line, wave = (torch.nn.functional.normalize(draw(w, d), dim=0) for w in ("line", "wave"))

        def clean(rows: Tensor) -> Tensor:
            return rows @ line + bend * ((2 * rows @ wave).cos() - math.exp(-2))

        self.y, self.truth, self.seed = clean(x) + noise * draw("noise", n), clean(new), seed
        mean = x.mean(0)
        # Whitened by the covariance of the rows: the least-squares layer's geometry for one average row.
        values, vectors = torch.linalg.eigh((x - mean).T @ (x - mean) / n)
        root = vectors / values.sqrt()
        self.keys, self.asked = (x - mean) @ root, (new - mean) @ root
        self.scores = self.asked @ self.keys.T
        self.ols = self.y.mean() + self.scores @ (self.y - self.y.mean()) / n

    def measure(self, dial: str, value: float) -> list[float]:
        """The measures at one setting, in their order."""
        if dial == "temperature":
            weights = torch.softmax(value * self.scores, dim=1)
            kernel = _distance(weights @ self.y, self.kernel(value), self.y.mean())
            energy, beta = "exponential", value
        else:
            weights = self.scores ** (int(value) - 1) / len(self.keys)
            kernel, energy, beta = math.nan, f"polynomial-{int(value)}", 1.0
        centred = weights @ (self.y - self.y.mean())
        want = self.ols - self.y.mean()
        gain = float(centred @ want / (centred @ centred).clamp_min(1e-300))
        out = self.y.mean() + gain * centred
        share = weights.abs() / weights.abs().sum(1, keepdim=True).clamp_min(1e-300)
        entropy = -(share * share.clamp_min(1e-300).log()).sum(1)
        memory = attention_head_memory(
            self.keys, beta=beta, energies=energy, draws=1, max_queries=64, seed=self.seed
        )
        capacity = float(memory.position()[f"capacity_{memory.energies[0]}"].iloc[0])
        return [
            gain,
            _distance(out, self.ols, self.y.mean()),
            _distance(self.y.mean() + centred, self.ols, self.y.mean()),
            kernel,
            _distance(out, self.truth, self.truth.mean()),
            float(entropy.exp().median()),
            float(share.amax(1).median()),
            min(capacity, float(len(self.keys))),
        ]

    def kernel(self, beta: float) -> Float[Tensor, " q"]:
        """Nadaraya-Watson regression with a Gaussian kernel of width 1/√β."""
        far = torch.cdist(self.asked, self.keys).square()
        return torch.softmax(-beta * far / 2, dim=1) @ self.y

    def levels(self) -> tuple[float, float]:
        """Distance to the truth of least squares, and of the kernel of least leave-one-out error."""
        far = torch.cdist(self.keys, self.keys).square()
        far.fill_diagonal_(torch.inf)
        widths = [float(b) for b in np.geomspace(0.1, 100, 31)]
        missed = [
            float((torch.softmax(-b * far / 2, dim=1) @ self.y - self.y).square().mean())
            for b in widths
        ]
        best = self.kernel(widths[missed.index(min(missed))])
        mean = self.truth.mean()
        return _distance(self.ols, self.truth, mean), _distance(best, self.truth, mean)

    def frozen_at(self) -> Float[Tensor, ""]:
        """``√(2 log n) / ‖x*‖`` at the median query."""
        edge: Tensor = ((2 * math.log(len(self.keys))) ** 0.5 / self.asked.norm(dim=1)).median()
        return edge


def _distance(got: Tensor, want: Tensor, mean: Tensor) -> float:
    """``‖got - want‖ / ‖want - mean‖``: 0 is equal, 1 as far as predicting the mean."""
    return float((got - want).norm() / (want - mean).norm())


def medians(grouped: Any, measures: Sequence[str]) -> pd.DataFrame:
    """The median of each measure, and ``_low`` and ``_high`` (95 % of the rows; NaN of one row)."""
    groups = grouped[list(measures)]
    frame: pd.DataFrame = groups.median()
    for end, level in (("low", 0.025), ("high", 0.975)):
        known = groups.quantile(level).where(groups.count() > 1)
        frame = frame.join(known.add_suffix(f"_{end}"))
    return frame


def crossings(
    betas: Sequence[float], values: Float[Tensor, "setting seed"], level: float
) -> Float[Tensor, " seed"]:
    """The β at which each seed's curve first passes the level, interpolated in logarithm.

    Infinite where it never does, 0 where it lies above it from the first β on, NaN where the two β around it
    are more than a factor of 2 apart, or there are none: interpolated wider, it would follow the β asked. NaN
    too where the curve has no value.
    """
    found = []
    for curve in values.T.tolist():
        above = next((i for i, v in enumerate(curve) if v > level), None)
        if above is None:
            found.append(math.nan if all(map(math.isnan, curve)) else math.inf)
        elif above == 0:
            found.append(0.0)
        elif betas[above] > 2 * betas[above - 1]:
            found.append(math.nan)
        else:
            before, after = curve[above - 1], curve[above]
            part = (level - before) / (after - before)
            found.append(betas[above - 1] * (betas[above] / betas[above - 1]) ** part)
    return torch.tensor(found, dtype=torch.float64)


def _place_text(beta: float) -> str:
    """A crossing in words."""
    if math.isnan(beta):
        return "a β that these settings do not tell"
    if beta == 0:
        return "a β below those asked"
    return "a β beyond those asked" if math.isinf(beta) else f"β = {beta:.3g}"
