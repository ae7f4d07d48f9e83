"""How well one set of gain profiles predicts another: over layers, prompt by prompt and on average.

Rank agreement alone flatters: gains of most models grow with depth, so the layer's own number already
ranks them well. Every :class:`Agreement` therefore carries that baseline (``layer_order``), and the
``ceiling`` that a prediction without knowledge of the prompt cannot pass: the best mean Spearman that any
one ordering of the layers reaches at these prompts. By the rearrangement inequality it is the ordering of
the layers' mean unit ranks.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lens_linear.checks import counted, require_float_tensor
from lens_linear.errors import InvalidArgumentError
from lens_linear.linalg.precision import to_compute
from lens_linear.tables import Result


@dataclass(frozen=True, eq=False)
class Agreement(Result):
    """Agreement of predicted with exact gains over layers.

    Attributes:
        spearman: rank correlation over layers, mean over prompts; in [−1, 1], 0 for unrelated profiles.
        spearman_sd: its standard deviation over prompts.
        pearson: correlation over layers, mean over prompts.
        relative_error: ``‖G − Ĝ‖ / ‖G‖`` over all prompts and layers; 0 is exact, 1 is predicting 0.
        mean_spearman: rank correlation of the two mean profiles (what the paper reports).
        mean_pearson: correlation of the two mean profiles.
        mean_relative_error: relative error of the mean profile.
        ceiling: highest mean Spearman of any one profile (without ties) with each prompt's own.
        layer_order: mean Spearman of the layer number with each prompt's gains.
        n_prompts: prompts scored.
        n_layers: layers correlated over; correlations are NaN with one layer or a constant profile.
        paired: each prompt was predicted by itself (True), or one profile stood for all (False).
    """

    _columns = (
        *("spearman", "spearman_sd", "pearson", "relative_error"),
        *("mean_spearman", "mean_pearson", "mean_relative_error", "ceiling"),
    )

    spearman: float
    spearman_sd: float
    pearson: float
    relative_error: float
    mean_spearman: float
    mean_pearson: float
    mean_relative_error: float
    ceiling: float
    layer_order: float
    n_prompts: int
    n_layers: int
    paired: bool

    def __repr__(self) -> str:
        how = "each by its own prediction" if self.paired else "all by one profile"
        return (
            f"Agreement: Spearman {self.spearman:.3f}, Pearson {self.pearson:.3f}, relative error "
            f"{self.relative_error:.3f} over {counted(self.n_layers, 'layer')}, mean of "
            f"{counted(self.n_prompts, 'prompt')}, "
            f"{how} (ceiling of one profile {self.ceiling:.3f}, layer number alone "
            f"{self.layer_order:.3f})"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row, a column for every attribute."""
        return pd.DataFrame([asdict(self)])


def ranks(x: Float[Tensor, "*row layer"]) -> Float[Tensor, "*row layer"]:
    """Return ranks along the last axis, ties sharing the mean of theirs."""
    below = (x[..., :, None] > x[..., None, :]).sum(-1)
    equal = (x[..., :, None] == x[..., None, :]).sum(-1)
    return below + (equal + 1).to(torch.float64) / 2


def pearson(x: Float[Tensor, "*row layer"], y: Float[Tensor, "*row layer"]) -> Tensor:
    """Return the correlation along the last axis; NaN where either side is constant."""
    x, y = x - x.mean(-1, keepdim=True), y - y.mean(-1, keepdim=True)
    scale = x.norm(dim=-1) * y.norm(dim=-1)
    value = (x * y).sum(-1) / scale
    return torch.where(scale > 0, value.clamp(-1, 1), torch.full_like(value, float("nan")))


def spearman(x: Float[Tensor, "*row layer"], y: Float[Tensor, "*row layer"]) -> Tensor:
    """Return the rank correlation along the last axis; NaN where either side is constant."""
    return pearson(ranks(x), ranks(y))


def best_order(x: Float[Tensor, "row layer"]) -> Float[Tensor, " layer"]:
    """Return the one ranking of the layers whose mean rank correlation with the rows is highest.

    The mean over rows of ``corr(r, ranks(row))`` is the product of r with the mean of the rows' centred unit
    ranks; among all rankings r without ties it is largest for the one in the same order.

    Example:
        >>> best_order(torch.tensor([[1.0, 2.0, 3.0], [1.0, 3.0, 2.0], [1.0, 3.0, 2.0]])).tolist()
        [0.0, 2.0, 1.0]
    """
    centred = ranks(x) - (x.shape[-1] + 1) / 2
    size = centred.norm(dim=-1, keepdim=True)
    mean = torch.where(size > 0, centred / size, 0.0).mean(0)
    return mean.argsort(stable=True).argsort().to(x.dtype)


def compare_gains(
    predicted: Float[Tensor, "row layer"], exact: Float[Tensor, "prompt layer"]
) -> Agreement:
    """Score predicted gains: one row for each prompt, or one row for all of them.

    Spearman and Pearson over layers lie between -1 and 1 and are about 0 for unrelated profiles; the relative
    error is ``‖predicted - exact‖ / ‖exact‖``, 0 at best.

    Args:
        predicted: [prompt, layer], paired with ``exact``, or [1, layer].
        exact: [prompt, layer].

    Returns:
        Agreement.

    Raises:
        InvalidArgumentError: neither one row nor as many as ``exact`` has.

    Source: Nettasinghe & Joseph 2026, arXiv 2603.12541 (Spearman and Pearson over layers);
        baseline and ceiling are ours.

    Example:
        >>> exact = torch.tensor([[1.0, 2.0, 4.0], [1.0, 3.0, 2.0]])
        >>> round(compare_gains(torch.tensor([[1.0, 2.0, 3.0]]), exact).spearman, 3)
        0.75
    """
    predicted = to_compute(require_float_tensor("predicted", predicted, ndim=2))
    exact = to_compute(require_float_tensor("exact", exact, ndim=2))
    if predicted.shape[-1] != exact.shape[-1] or len(predicted) not in (1, len(exact)):
        raise InvalidArgumentError(
            f"predicted must have shape {tuple(exact.shape)} or one row of it, got "
            f"{tuple(predicted.shape)}; compare profiles of one model on the same prompts"
        )
    paired = len(predicted) == len(exact)
    predicted = predicted.to(exact.device).expand_as(exact)
    mean, mean_predicted = exact.mean(0), predicted.mean(0)
    rank = spearman(predicted, exact)
    ranked = rank[~rank.isnan()]
    order = torch.arange(exact.shape[1], dtype=exact.dtype, device=exact.device)
    return Agreement(
        spearman=float(rank.nanmean()),
        spearman_sd=float(ranked.std(correction=0)) if len(ranked) else math.nan,
        pearson=float(pearson(predicted, exact).nanmean()),
        relative_error=float((predicted - exact).norm() / exact.norm()),
        mean_spearman=float(spearman(mean_predicted, mean)),
        mean_pearson=float(pearson(mean_predicted, mean)),
        mean_relative_error=float((mean_predicted - mean).norm() / mean.norm()),
        ceiling=float(spearman(best_order(exact).expand_as(exact), exact).nanmean()),
        layer_order=float(spearman(order.expand_as(exact), exact).nanmean()),
        n_prompts=len(exact),
        n_layers=exact.shape[1],
        paired=paired,
    )
