"""Error bars by resampling whole sequences: tokens of one sequence are not independent."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from lens_linear.checks import require_float, require_float_tensor, require_int, require_seed
from lens_linear.errors import InvalidArgumentError

_CELLS = 4_000_000  # numbers of resampling weights held at once (32 MB)


def ratio_interval(
    residual: Float[Tensor, "score sequence"],
    total: Float[Tensor, "score sequence"],
    *,
    confidence: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Float[Tensor, "score 2"]:
    """Bootstrap interval of ``1 − Σ residual / Σ total`` over sequences.

    Sequences are drawn with replacement, the same draw for every score, and the ratio of sums is taken
    anew; the interval is between the percentiles. It covers the choice of test text, not the choice of
    training half. It is too narrow for few sequences: of intervals at 95 %, 89 % held the score of endless
    text at 10 sequences, 91 % at 20, 94 % at 40, 95 % at 120 (planted data, rows correlated in sequences).

    Args:
        residual: sums of squared residuals by sequence.
        total: sums of squares about the training mean.
        confidence: coverage, in (0, 1).
        n_resamples: bootstrap samples.
        seed: of the draws.

    Returns:
        Lower and upper ends, NaN where there is one sequence or none varies.

    Source: Efron & Tibshirani 1993, *An Introduction to the Bootstrap*, 13.3 (percentile interval).
    """
    require_float("confidence", confidence, minimum=0.0, maximum=1.0)
    require_int("n_resamples", n_resamples, minimum=1)
    seed = require_seed(seed)
    residual = require_float_tensor("residual", residual, ndim=2).cpu()
    total = require_float_tensor("total", total, ndim=2).cpu()
    if residual.shape != total.shape:
        raise InvalidArgumentError(
            f"residual and total must have one shape [score, sequence], got {tuple(residual.shape)} and "
            f"{tuple(total.shape)}"
        )
    n = residual.shape[1]
    if n < 2:
        return torch.full((len(residual), 2), torch.nan, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    samples = []
    chunk = max(1, _CELLS // n)
    for start in range(0, n_resamples, chunk):
        count = min(chunk, n_resamples - start)
        drawn = torch.randint(n, (count, n), generator=generator)
        weights = torch.zeros(count, n, dtype=torch.float64)
        weights.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
        samples.append(1 - (residual @ weights.T) / (total @ weights.T))
    tail = (1 - confidence) / 2
    values = torch.cat(samples, dim=1)
    ends = torch.tensor([tail, 1 - tail], dtype=torch.float64)
    return torch.quantile(values, ends, dim=1).T


def held_out_null(n: int, rank: int) -> float:
    """Held-out R² expected of a y that is independent of x: ``−rank / (n − rank − 2)``.

    The map was fitted on ``n`` rows with an intercept. Its useless prediction adds the variance
    ``σ² (1 + 1/n) rank / (n − rank − 2)`` at a new normal x, against ``σ² (1 + 1/n)`` about the training
    mean; their ratio is the value above. It is exact for normal, independent rows (expectation of the
    sums); for tokens, which are neither, it is a guide. Minus infinity when ``n <= rank + 2``.

    Example:
        >>> held_out_null(102, 50)
        -1.0
    """
    return -rank / (n - rank - 2) if n > rank + 2 else float("-inf")
