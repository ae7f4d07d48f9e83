"""Whether what the best affine map misses is a sum of a few products of two linear readings of x.

``r ≈ Σ_k (a_k·x)(b_k·x) c_k``, r the residual of the affine fit, which is refitted together with the
products. A gated FFN without a nonlinearity would be exactly of this form. The gain ΔR² over the affine
fit is taken held out, at several ranks, and a small gain says that what is missed is not a few
position-wise products.

>>> import torch
>>> from lens_linear.models.open.toy import toy_model
>>> tokens = torch.randint(64, (60, 32), generator=torch.Generator().manual_seed(0))
>>> model = toy_model(n_layers=1, d_model=16, attn_only=False)
>>> probe = bilinear_probe(model, tokens, 0, rank=(1, 2))
>>> [int(k) for k in probe["rank"]]
[0, 1, 2]

Limits. The fit is not convex: the gain found is a lower bound on the gain there is. Products are found on
the training half, so with few rows a high rank can lower the held-out score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_linear.checks import require_int, require_ints, require_seed, shown
from lens_linear.errors import InvalidArgumentError
from lens_linear.linalg import Moments, to_compute
from lens_linear.linalg.least_squares import Ridge, require_halves, require_ridge
from lens_linear.linalg.precision import own_modes
from lens_linear.linearity.measure.first_position import both_readings, probe_site
from lens_linear.linearity.measure.intervals import few_rows, held_out_null, ratio_interval
from lens_linear.linearity.measure.products import Products, fit_products
from lens_linear.models.capture import Site
from lens_linear.models.checked import ModelLike
from lens_linear.stats.collect import SiteRows
from lens_linear.tables import Result
from lens_linear.text.task import Task
from lens_linear.token_rows import TokenRows


@dataclass(frozen=True, eq=False)
class BilinearProbe(Result):
    """Held-out R² of affine plus bilinear fits, by rank; acts as its table.

    Attributes:
        ranks: numbers of products; 0, the affine fit alone, comes first.
        r2: [rank], held out, of the whole output.
        gains: [rank], ``r2 − affine r2``.
        gain_intervals: [rank, 2], 95 % bootstrap over test sequences; NaN without sequences.
        train_gains: [rank], the same on the training rows: what overfitting looks like.
        affine_interval: [2], 95 % of the affine fit's R².
        a, b: [k, d_in], the readings at the highest rank; ``c`` [k, d_out] what each product writes.
        where: what was probed, in words.
        n_fit: training rows.
        n_tokens: test rows.
        seed: of the halves and of the starts.
        ridge: of the affine fit.
        first_share: share of the output's variance in the first position; NaN where it is left out.
        without_first: the same probe, fitted and scored without it; None where it is left out.
    """

    _figure = "bilinear_gain"
    _columns = (
        "rank",
        "r2",
        "gain",
        "gain_low",
        "gain_high",
        "share_of_residual",
        "null_r2",
        "n_tokens",
    )

    ranks: tuple[int, ...]
    r2: Float[Tensor, " rank"]
    gains: Float[Tensor, " rank"]
    gain_intervals: Float[Tensor, "rank 2"]
    train_gains: Float[Tensor, " rank"]
    affine_interval: Float[Tensor, "2"]
    a: Float[Tensor, "k d_in"]
    b: Float[Tensor, "k d_in"]
    c: Float[Tensor, "k d_out"]
    where: str
    n_fit: int
    n_tokens: int
    seed: int
    ridge: Ridge = 0.0
    first_share: float = float("nan")
    without_first: BilinearProbe | None = None

    @property
    def affine_r2(self) -> float:
        """Held-out R² of the affine fit alone."""
        return float(self.r2[0])

    def to_dataframe(self) -> pd.DataFrame:
        """One row per rank: rank, r2, gain, gain_low, gain_high, train_gain, share_of_residual.

        ``share_of_residual`` is the gain over what the affine fit left, ``gain / (1 − affine r2)``. Then
        null_r2 of the affine fit, n_tokens, n_fit, r2_without_first, gain_without_first and first_share.
        """
        other = self.without_first or self
        return pd.DataFrame(
            {
                "rank": self.ranks,
                "r2": self.r2.numpy(),
                "gain": self.gains.numpy(),
                "gain_low": self.gain_intervals[:, 0].numpy(),
                "gain_high": self.gain_intervals[:, 1].numpy(),
                "train_gain": self.train_gains.numpy(),
                "share_of_residual": (self.gains / (1 - self.r2[0])).numpy(),
                "null_r2": held_out_null(self.n_fit, self.a.shape[1]),
                "n_tokens": self.n_tokens,
                "n_fit": self.n_fit,
                "r2_without_first": other.r2.numpy(),
                "gain_without_first": other.gains.numpy(),
                "first_share": self.first_share,
            }
        )

    @property
    def first_position(self) -> str:
        """A clause with both readings, where the affine fit's differ by more than its interval."""
        other = self.without_first or self
        low, high = self.affine_interval.tolist()
        differ = other.affine_r2 < low or other.affine_r2 > high
        return both_readings(
            self.first_share, "affine R²", self.affine_r2, other.affine_r2, differ=differ
        )

    def __repr__(self) -> str:
        best = int(self.gains.argmax())
        return (
            f"BilinearProbe of {self.where}: affine R² = {self.affine_r2:.4f} held out, best gain "
            f"{float(self.gains[best]):+.4f} with {self.ranks[best]} products (of ranks "
            f"{list(self.ranks[1:])}); n = {self.n_tokens:,} test rows, fitted on {self.n_fit:,}"
            f"{self.first_position}{few_rows(self.n_fit, self.a.shape[1], ridge=self.ridge)}"
        )


@own_modes()
def bilinear_probe(
    model: ModelLike,
    tokens: Int[Tensor, "sequence position"] | TokenRows | Task,
    layer: int,
    *,
    rank: int | Sequence[int] = (1, 2, 4, 8),
    site: Site = "ffn",
    ridge: Ridge = 0.0,
    skip: int = 0,
    max_rows: int = 20_000,
    iterations: int = 60,
    seed: int = 0,
    batch_size: int | None = None,
) -> BilinearProbe:
    """Gain of a low-rank bilinear term over the affine fit of one FFN (or block), held out.

    ``ΔR² = R²(affine + Σ_k (a_k·x)(b_k·x) c_k) − R²(affine)``; dimensionless, at most ``1 − R²(affine)``;
    about 0, or slightly below, when the residual holds no such products.

    Products are added one at a time, each started at the leading product of what is still missed, and
    after each addition all a and b are improved together by L-BFGS with the best c solved exactly
    (variable projection). x is whitened first, so outlier dimensions do not slow this down.

    Args:
        model: a bridge.
        tokens: ids [sequence, position]; half of the sequences fit, half score.
        layer: which layer.
        rank: number of products, or several.
        site: "ffn" (default), "block" or "attn".
        ridge: penalty of the affine fit, or "loo" for the one of least leave-one-out error (for fewer than
            three rows an input). The products have none: with few rows a high rank loses.
        skip: leading positions left out.
        max_rows: rows kept per half, drawn with the seed; this probe needs its data in memory.
        iterations: L-BFGS steps after each addition.
        seed: of the halves, the draw and the starts.
        batch_size: sequences a forward pass; as many as memory allows by default.

    Returns:
        BilinearProbe; its ``to_dataframe()`` has one row per rank, rank 0 first.

    Raises:
        NotEnoughDataError: too few rows.
        InvalidArgumentError: bad rank, layer or site.

    Source: Whipp 2026, arXiv 2606.19379 (bilinear residual probe).

    Example:
        >>> import torch
        >>> from lens_linear.models.open.toy import toy_model
        >>> model = toy_model(n_layers=2, d_model=16, attn_only=False)
        >>> tokens = torch.randint(64, (60, 16), generator=torch.Generator().manual_seed(0))
        >>> len(bilinear_probe(model, tokens, 1, rank=2)) > 0
        True
    """
    require_int("max_rows", max_rows, minimum=2)

    def probe(train: SiteRows, test: SiteRows, where: str) -> BilinearProbe:
        return bilinear_on_rows(
            train.x,
            train.y,
            test.x,
            test.y,
            rank=rank,
            ridge=ridge,
            iterations=iterations,
            seed=seed,
            sequence=test.sequence,
            where=where,
        )

    return probe_site(
        probe,
        model,
        tokens,
        layer,
        site,
        skip=skip,
        max_rows=max_rows,
        seed=seed,
        batch_size=batch_size,
    )


@own_modes()
def bilinear_on_rows(
    x: Float[Tensor, "n d_in"],
    y: Float[Tensor, "n d_out"],
    x_test: Float[Tensor, "m d_in"],
    y_test: Float[Tensor, "m d_out"],
    *,
    rank: int | Sequence[int] = (1, 2, 4, 8),
    ridge: Ridge = 0.0,
    iterations: int = 60,
    seed: int = 0,
    sequence: Int[Tensor, " m"] | None = None,
    where: str = "rows",
) -> BilinearProbe:
    """The probe of :func:`bilinear_probe` on rows that are at hand.

    Args:
        x: training inputs.
        y: training outputs.
        x_test: test inputs.
        y_test: test outputs.
        rank: number of products, or several.
        ridge: of the affine fit, or "loo".
        iterations: L-BFGS steps after each addition.
        seed: of the starts.
        sequence: which sequence each test row is from; None gives no intervals.
        where: what these rows are, for the repr.

    Returns:
        BilinearProbe: held-out R² and gain over the affine fit, by number of products.

    Raises:
        NotEnoughDataError: fewer than two test rows, or too few to fit.

    Example:
        >>> import torch
        >>> x, new = torch.randn(2, 300, 4, generator=torch.Generator().manual_seed(0)).double()
        >>> found = bilinear_on_rows(x, x[:, :1] * x[:, 1:2], new, new[:, :1] * new[:, 1:2], rank=1)
        >>> float(found["r2"].max()) > 0.99
        True
    """
    require_halves(x, y, x_test, y_test)
    seed = require_seed(seed)
    _require_sequence(sequence, len(x_test))
    require_int("iterations", iterations, minimum=1)
    require_ridge(ridge)
    ranks = _ranks(rank)
    affine = Moments().update(x, y).fit(ridge=ridge)
    if affine.rank == 0:
        raise InvalidArgumentError(
            "x must vary from row to row, but all its columns are constant; pass other rows or another layer"
        )
    missed = to_compute(y) - affine.predict(x)
    test_missed = to_compute(y_test) - affine.predict(x_test)
    total = (to_compute(y_test) - affine.mean_y).square().sum(1)
    train_total = affine.scatter_y.sum()
    found = fit_products(
        to_compute(x), missed, max(ranks), keep=ranks, iterations=iterations, seed=seed
    )
    left = [test_missed.square().sum(1)]
    train_left = [missed.square().sum()]
    for k in ranks:
        left.append((test_missed - found[k].predict(to_compute(x_test))).square().sum(1))
        train_left.append((missed - found[k].predict(to_compute(x))).square().sum())
    residual = torch.stack(left).cpu()
    r2 = 1 - residual.sum(1) / total.sum().cpu()
    train = torch.stack(train_left).cpu()
    best: Products = found[max(ranks)]
    gains, affine_interval = _intervals(residual, total.cpu(), sequence, seed)
    return BilinearProbe(
        ranks=(0, *ranks),
        r2=r2,
        gains=r2 - r2[0],
        gain_intervals=gains,
        affine_interval=affine_interval,
        train_gains=(train[0] - train) / float(train_total),
        a=best.a,
        b=best.b,
        c=best.c,
        where=where,
        n_fit=len(x),
        n_tokens=len(x_test),
        seed=seed,
        ridge=ridge,
    )


def _require_sequence(sequence: Any, n: int) -> None:
    if sequence is not None and (not isinstance(sequence, Tensor) or sequence.shape != (n,)):
        raise InvalidArgumentError(
            f"sequence must be a tensor with one number for each of the {n} test rows, got "
            f"{shown(sequence)}; pass None for no intervals"
        )


def _ranks(rank: int | Sequence[int]) -> tuple[int, ...]:
    values = [rank] if isinstance(rank, int) else rank
    ranks = sorted(set(require_ints("rank", values, minimum=1)))
    if not ranks:
        raise InvalidArgumentError("rank must name at least one number of products, e.g. (1, 4)")
    return tuple(ranks)


def _intervals(
    residual: Tensor, total: Tensor, sequence: Tensor | None, seed: int
) -> tuple[Float[Tensor, "rank 2"], Float[Tensor, "2"]]:
    """Of the gain (what the products take off the residual, over the total, by sequence), and of R²."""
    if sequence is None:
        ends = torch.full((len(residual) + 1, 2), torch.nan, dtype=torch.float64)
        return ends[1:], ends[0]
    _, place = sequence.cpu().unique(return_inverse=True)
    n = int(place.max()) + 1
    sums = torch.zeros(len(residual), n, dtype=torch.float64).index_add_(1, place, residual)
    totals = torch.zeros(n, dtype=torch.float64).index_add_(0, place, total)
    # gain = 1 - (total - taken) / total, so it is an interval of the same kind as a score's.
    kept = totals - (sums[0] - sums)
    ends = ratio_interval(torch.cat([sums[:1], kept]), totals.expand(len(kept) + 1, -1), seed=seed)
    return ends[1:], ends[0]
