"""From statistics and sums by sequence to the numbers of a profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor

from lens_linear.linalg import LinearFit, Moments
from lens_linear.linearity.measure.first_position import share_of
from lens_linear.linearity.measure.intervals import held_out_null, ratio_interval
from lens_linear.models.capture import SITES, Site
from lens_linear.stats.collect import SequenceSums
from lens_linear.stats.residuals import Reading
from lens_linear.stats.resume import Key

SCORES = ("block", "block_no_residual", "ffn", "attn")


@dataclass(frozen=True, eq=False)
class Scores:
    """R² by score and layer, with what they were made of.

    Attributes:
        values: [layer] by score; NaN where the model has no such site or its output does not vary.
        intervals: [layer, 2] by score; NaN in sample.
        sums: [2, layer, sequence] by score: residual and total sums of squares, NaN where there are none;
            empty in sample.
    """

    values: dict[str, Float[Tensor, " layer"]]
    intervals: dict[str, Float[Tensor, "layer 2"]]
    sums: dict[str, Float[Tensor, "2 layer sequence"]]


def joined(parts: Sequence[Tensor]) -> Tensor:
    """One tensor from parts that each know some entries: what is NaN in one stands in another."""
    return reduce(lambda whole, part: torch.where(whole.isnan(), part, whole), parts)


def held_out_scores(
    n_layers: int, sums: dict[Key, SequenceSums], confidence: float, seed: int
) -> Scores:
    """R² with intervals from sums by sequence; one draw of sequences serves all layers and scores."""
    n = len(next(iter(sums.values())).total) if sums else 0
    parts: dict[str, Tensor] = {
        score: torch.full((2, n_layers, n), torch.nan, dtype=torch.float64) for score in SCORES
    }
    for (layer, site), here in sums.items():
        parts[site][:, layer] = torch.stack([here.residual, here.total])
        if site == "block":
            update = torch.stack([here.residual, here.total_update])
            parts["block_no_residual"][:, layer] = update
        elif _rounding_alone(here, sums.get((layer, "block"))):
            parts[site][:, layer] = torch.nan
    both = torch.stack(list(parts.values()), 1)  # [2, score, layer, sequence]
    both[:, ~(both[1].sum(-1) > 0)] = torch.nan
    parts = dict(zip(SCORES, both.unbind(1), strict=True))
    residual, total = both.flatten(1, 2)
    known = ~total.isnan().any(1)
    ends = torch.full((len(total), 2), torch.nan, dtype=torch.float64)
    if bool(known.any()):
        ends[known] = ratio_interval(
            residual[known], total[known], confidence=confidence, seed=seed
        )
    values = 1 - both[0].sum(-1) / both[1].sum(-1)
    intervals = ends.reshape(len(SCORES), n_layers, 2)
    return Scores(
        dict(zip(SCORES, values, strict=True)), dict(zip(SCORES, intervals, strict=True)), parts
    )


def _rounding_alone(here: SequenceSums, block: SequenceSums | None) -> bool:
    """A site inside a block that adds nothing, and which itself writes nothing that the stream could hold."""
    if block is None or bool(block.total_update.any()):
        return False
    return float(here.total.sum()) <= 1e-12 * float(block.total.sum())


def in_sample_scores(n_layers: int, moments: dict[Key, Moments], reading: Reading) -> Scores:
    """R² of maps on the rows they were fitted on."""
    nan = torch.full((n_layers,), torch.nan, dtype=torch.float64)
    values = {score: nan.clone() for score in SCORES}
    for (layer, site), fit in reading.fits.items():
        values[site][layer] = fit.r_squared
        if site == "block":
            values["block_no_residual"][layer] = _without_residual(moments[layer, site], fit)
    for layer, site in reading.fits:
        block = moments.get((layer, "block"))
        if block is not None and bool(values["block_no_residual"][layer].isnan()):
            own = moments[layer, site].scatter_y.sum()
            if float(own) <= 1e-12 * float(block.scatter_y.sum()):
                values[site][layer] = torch.nan
    return Scores(values, {score: torch.stack([nan, nan], 1) for score in SCORES}, {})


def first_shares(
    n_layers: int,
    first: dict[Key, Moments],
    rest: dict[Key, Moments],
) -> dict[str, Float[Tensor, " layer"]]:
    """Share of a site's output variance that sits in the first position.

    ``Σ_first ‖y − ȳ‖² / Σ_all ‖y − ȳ‖²``, ȳ the mean over all positions; 1 / length when no position is
    special.
    """
    shares: dict[str, Tensor] = {
        s: torch.full((n_layers,), torch.nan, dtype=torch.float64) for s in SITES
    }
    for (layer, site), here in first.items():
        others = rest[layer, site]
        if not others.n:
            continue
        shares[site][layer] = share_of(here, others)
    return shares


def _without_residual(moments: Moments, fit: LinearFit) -> float:
    """In-sample R² of x → y − x: the best map is ``A − 1``, so the residual is the same."""
    update = moments.without_input()
    # The scatter of y − x is a difference of scatters of y and x, and carries their rounding.
    lost = float(update.scatter_y.sum()) <= 1e-15 * float(moments.scatter_y.sum())
    if lost or not update.varies:
        return float("nan")
    residual = (1 - fit.r_squared) * moments.scatter_y.sum()
    return float(1 - residual / update.scatter_y.sum())


def ranks(n_layers: int, fits: dict[Key, LinearFit]) -> dict[str, Tensor]:
    """Rank of the input by site and layer, -1 where nothing was fitted."""
    out: dict[str, Tensor] = {s: torch.full((n_layers,), -1, dtype=torch.int64) for s in SITES}
    for (layer, site), fit in fits.items():
        out[site][layer] = fit.rank
    return out


def solvers(n_layers: int, fits: dict[Key, LinearFit]) -> dict[str, tuple[str, ...]]:
    """What found each map, by site and layer; "" where nothing was fitted."""
    return {
        site: tuple(
            fits[layer, site].solver if (layer, site) in fits else "" for layer in range(n_layers)
        )
        for site in SITES
    }


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
