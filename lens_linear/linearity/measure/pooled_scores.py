"""From statistics and sums by sequence to the numbers of a profile."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from lens_linear.linalg import LinearFit, Moments
from lens_linear.linearity.measure.intervals import held_out_null, ratio_interval
from lens_linear.models.capture import SITES, Site
from lens_linear.stats.collect import SequenceSums
from lens_linear.stats.resume import Key

SCORES = ("block", "block_no_residual", "ffn", "attn")


def scores_and_intervals(
    n_layers: int,
    moments: dict[Key, Moments],
    fits: dict[Key, LinearFit],
    sums: dict[Key, SequenceSums] | None,
    *,
    confidence: float,
    seed: int,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """R² by score and layer, and their intervals (NaN without ``sums``: in sample)."""
    nan = torch.full((n_layers,), torch.nan, dtype=torch.float64)
    scores = {score: nan.clone() for score in SCORES}
    intervals = {score: torch.stack([nan, nan], dim=1) for score in SCORES}
    for (layer, site), fit in fits.items():
        if sums is None:
            scores[site][layer] = fit.r_squared
            if site == "block":
                scores["block_no_residual"][layer] = _without_residual(moments[layer, site], fit)
            continue
        here = sums[layer, site]
        pairs: list[tuple[str, Tensor]] = [(site, here.total)]
        if site == "block":
            pairs.append(("block_no_residual", here.total_update))
        totals = torch.stack([total for _, total in pairs])
        residuals = here.residual.expand_as(totals)
        ends = ratio_interval(residuals, totals, confidence=confidence, seed=seed)
        for (score, total), interval in zip(pairs, ends, strict=True):
            if float(total.sum()) > 0:
                scores[score][layer] = 1 - here.residual.sum() / total.sum()
                intervals[score][layer] = interval
    return scores, intervals


def _without_residual(moments: Moments, fit: LinearFit) -> float:
    """In-sample R² of x → y − x: the best map is ``A − 1``, so the residual is the same."""
    update = moments.without_input()
    if not update.varies:
        return float("nan")
    residual = (1 - fit.r_squared) * moments.scatter_y.sum()
    return float(1 - residual / update.scatter_y.sum())


def ranks(n_layers: int, fits: dict[Key, LinearFit]) -> dict[str, Tensor]:
    """Rank of the input by site and layer, -1 where nothing was fitted."""
    out: dict[str, Tensor] = {s: torch.full((n_layers,), -1, dtype=torch.int64) for s in SITES}
    for (layer, site), fit in fits.items():
        out[site][layer] = fit.rank
    return out


def nulls(
    n_layers: int, site: Site, fits: dict[Key, LinearFit], *, held_out: bool
) -> Float[Tensor, " layer"]:
    """R² expected of an output that is independent of the site's input."""
    out = torch.full((n_layers,), torch.nan, dtype=torch.float64)
    for layer in range(n_layers):
        if (layer, site) in fits:
            fit = fits[layer, site]
            out[layer] = held_out_null(fit.n, fit.rank) if held_out else fit.null_r2
    return out
