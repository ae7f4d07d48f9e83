"""The pitfall: a linear layer trained by Adam stops short of the best linear layer.

Activations are ill-conditioned: a few outlier dimensions are hundreds of times the rest. Gradient descent
moves along directions of small variance so slowly that a trained "linear baseline" can understate how
linear a layer is, and make the layer look nonlinear. The closed form has no such trouble.

Source: Whipp 2026, arXiv 2606.19379.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_linear.checks import counted, require_float, require_int, require_seed
from lens_linear.linalg import Moments, r_squared, spectrum, to_compute
from lens_linear.linalg.least_squares import Ridge, require_halves, require_ridge
from lens_linear.linalg.precision import own_modes
from lens_linear.linearity.measure.first_position import DIFFERENT, both_readings, probe_site
from lens_linear.linearity.measure.intervals import few_rows, held_out_null
from lens_linear.models.capture import Site
from lens_linear.models.checked import ModelLike
from lens_linear.stats.collect import SiteRows
from lens_linear.tables import Result
from lens_linear.text.task import Task
from lens_linear.token_rows import TokenRows


@dataclass(frozen=True, eq=False)
class AdamBaseline(Result):
    """Held-out R² of an affine layer under training, beside the closed form; acts as its table.

    Attributes:
        steps: when it was scored.
        r2: [step], held out, of the trained layer.
        r2_standardized: [step], the same with every input column scaled to unit variance first.
        closed_form: held-out R² of least squares on the same rows.
        condition_number: largest over smallest singular value of the centred inputs, those below a
            millionth of the largest left out: float32 rounding, not data.
        learning_rate: of Adam.
        batch: rows a step.
        where: what was fitted, in words.
        d_in: inputs of the layer.
        n_fit: training rows.
        n_tokens: test rows.
        seed: of the halves, the rows and the batches.
        ridge: of the closed form.
        first_share: share of the output's variance in the first position; NaN where it is left out.
        without_first: the same without it; None where it is left out.
    """

    _figure = "adam_convergence"
    _columns = ("step", "r2", "r2_standardized", "closed_form", "shortfall", "null_r2", "n_tokens")

    steps: tuple[int, ...]
    r2: Float[Tensor, " step"]
    r2_standardized: Float[Tensor, " step"]
    closed_form: float
    condition_number: float
    learning_rate: float
    batch: int
    where: str
    d_in: int
    n_fit: int
    n_tokens: int
    seed: int
    ridge: Ridge = 0.0
    first_share: float = float("nan")
    without_first: AdamBaseline | None = None

    @property
    def first_position(self) -> str:
        """A clause with both readings, where the closed form's differ."""
        other = (self.without_first or self).closed_form
        differ = abs(other - self.closed_form) > DIFFERENT
        return both_readings(
            self.first_share, "closed form", self.closed_form, other, differ=differ
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row per score: step, r2, r2_standardized, closed_form, shortfall (closed form minus r2).

        Then null_r2 of the closed form, n_tokens, n_fit, r2_without_first, closed_form_without_first and
        first_share.
        """
        other = self.without_first or self
        return pd.DataFrame(
            {
                "step": self.steps,
                "r2": self.r2.numpy(),
                "r2_standardized": self.r2_standardized.numpy(),
                "closed_form": self.closed_form,
                "shortfall": self.closed_form - self.r2.numpy(),
                "null_r2": held_out_null(self.n_fit, self.d_in),
                "n_tokens": self.n_tokens,
                "n_fit": self.n_fit,
                "r2_without_first": other.r2.numpy(),
                "closed_form_without_first": other.closed_form,
                "first_share": self.first_share,
            }
        )

    def __repr__(self) -> str:
        return (
            f"AdamBaseline for {self.where}: held-out R² {float(self.r2[-1]):.4f} after "
            f"{counted(self.steps[-1], 'step')} of Adam at {self.learning_rate:g} "
            f"({float(self.r2_standardized[-1]):.4f} on "
            f"standardised inputs), closed form {self.closed_form:.4f}; condition number "
            f"{self.condition_number:.3g}, n = {self.n_tokens:,} test rows, fitted on {self.n_fit:,}"
            f"{self.first_position}{few_rows(self.n_fit, self.d_in, ridge=self.ridge)}"
        )


@own_modes()
def adam_baseline(
    model: ModelLike,
    tokens: Int[Tensor, "sequence position"] | TokenRows | Task,
    layer: int,
    *,
    site: Site = "ffn",
    ridge: Ridge = 0.0,
    steps: int = 2000,
    learning_rate: float = 1e-3,
    batch: int = 256,
    skip: int = 0,
    max_rows: int = 20_000,
    seed: int = 0,
    batch_size: int | None = None,
) -> AdamBaseline:
    """Train one affine layer by Adam to imitate an FFN, and compare with least squares.

    The layer starts at zero weight and minimises the mean squared error over random batches; the score is
    the held-out R² of section "R²_lin". Both see the same training rows.

    R² is dimensionless, at most 1, 0 at the start (nothing but the mean: negative before the bias is
    learnt).

    Args:
        model: a bridge.
        tokens: ids [sequence, position]; half of the sequences fit, half score.
        layer: which layer.
        site: "ffn" (default), "block" or "attn".
        ridge: penalty of the closed form, or "loo" for the one of least leave-one-out error (for fewer than
            three rows an input). Adam has none.
        steps: Adam steps.
        learning_rate: constant.
        batch: rows a step.
        skip: leading positions left out.
        max_rows: rows kept per half.
        seed: of the halves, rows and batches.
        batch_size: sequences a forward pass; as many as memory allows by default.

    Returns:
        AdamBaseline; its ``to_dataframe()`` has one row per scored step.

    Raises:
        NotEnoughDataError: too few rows.

    Source: Whipp 2026, arXiv 2606.19379 (a linear layer trained by Adam beside the closed form).

    Example:
        >>> from lens_linear.models.open.toy import toy_model
        >>> model = toy_model(n_layers=2, d_model=16, attn_only=False)
        >>> tokens = torch.randint(64, (40, 16), generator=torch.Generator().manual_seed(0))
        >>> found = adam_baseline(model, tokens, 0, steps=100)
        >>> 0 < float(found.r2[-1]) < found.closed_form  # on its way
        True
    """

    def compare(train: SiteRows, test: SiteRows, where: str) -> AdamBaseline:
        return adam_on_rows(
            train.x,
            train.y,
            test.x,
            test.y,
            ridge=ridge,
            steps=steps,
            learning_rate=learning_rate,
            batch=batch,
            seed=seed,
            where=where,
        )

    return probe_site(
        compare,
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
def adam_on_rows(
    x: Float[Tensor, "n d_in"],
    y: Float[Tensor, "n d_out"],
    x_test: Float[Tensor, "m d_in"],
    y_test: Float[Tensor, "m d_out"],
    *,
    ridge: Ridge = 0.0,
    steps: int = 2000,
    learning_rate: float = 1e-3,
    batch: int = 256,
    seed: int = 0,
    where: str = "rows",
) -> AdamBaseline:
    """The comparison of :func:`adam_baseline` on rows that are at hand.

    Args:
        x: training inputs.
        y: training outputs.
        x_test: test inputs.
        y_test: test outputs.
        ridge: of the closed form, or "loo".
        steps: of Adam.
        learning_rate: of Adam.
        batch: rows a step.
        seed: of the batches.
        where: what these rows are, for the repr.

    Returns:
        AdamBaseline: held-out R² by step, on the rows as they are and on standardised columns, beside
        the closed form.

    Raises:
        NotEnoughDataError: fewer than two test rows, or too few to fit.

    Example:
        >>> import torch
        >>> x, new = torch.randn(2, 300, 4, generator=torch.Generator().manual_seed(0)).double()
        >>> found = adam_on_rows(x, x.cumsum(1), new, new.cumsum(1), steps=20)
        >>> round(found.closed_form, 6), float(found.r2[-1]) < 0.5
        (1.0, True)
    """
    require_halves(x, y, x_test, y_test)
    seed = require_seed(seed)
    require_int("steps", steps, minimum=1)
    require_int("batch", batch, minimum=1)
    require_float("learning_rate", learning_rate, minimum=0.0, maximum=1e30)
    fit = Moments().update(x, y).fit(ridge=require_ridge(ridge))
    closed = r_squared(y_test, fit.predict(x_test), mean=fit.mean_y)
    sizes = spectrum(x).values
    condition = float(sizes[0] / sizes[sizes > 1e-6 * sizes[0]][-1])
    scored = _when(steps)
    mean, spread = to_compute(x).mean(0), to_compute(x).std(0)
    spread = torch.where(spread > 0, spread, torch.ones_like(spread))
    curves = []
    for centre, scale in ((torch.zeros_like(mean), torch.ones_like(mean)), (mean, spread)):
        train, test = (((to_compute(v) - centre) / scale).float() for v in (x, x_test))
        data = (train, test, y.float(), y_test, fit.mean_y)
        curves.append(_train(data, scored, learning_rate, batch, seed))
    return AdamBaseline(
        steps=scored,
        r2=curves[0],
        r2_standardized=curves[1],
        closed_form=closed,
        condition_number=condition,
        learning_rate=learning_rate,
        batch=batch,
        where=where,
        d_in=x.shape[1],
        n_fit=len(x),
        n_tokens=len(x_test),
        seed=seed,
        ridge=ridge,
    )


def _when(steps: int) -> tuple[int, ...]:
    """Steps to score at: doubling, then the last."""
    doubling = {2**k for k in range(steps.bit_length()) if 2**k < steps}
    return tuple(sorted({0, steps} | doubling))


def _train(
    data: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    scored: tuple[int, ...],
    learning_rate: float,
    batch: int,
    seed: int,
) -> Float[Tensor, " step"]:
    x, x_test, y, y_test, mean_y = data
    weight = x.new_zeros(x.shape[1], y.shape[1]).requires_grad_()
    bias = y.new_zeros(y.shape[1]).requires_grad_()
    optimizer = torch.optim.Adam([weight, bias], lr=learning_rate)
    generator = torch.Generator().manual_seed(seed)
    out = []
    for step in range(scored[-1] + 1):
        if step in scored:
            guess = x_test.double() @ weight.detach().double() + bias.detach().double()
            out.append(r_squared(y_test, guess, mean=mean_y))
        chosen = torch.randint(len(x), (batch,), generator=generator).to(x.device)
        with torch.enable_grad():
            loss = (x[chosen] @ weight + bias - y[chosen]).square().sum(1).mean()
            gradients = torch.autograd.grad(loss, [weight, bias])
        weight.grad, bias.grad = gradients
        optimizer.step()
    return torch.tensor(out, dtype=torch.float64)
