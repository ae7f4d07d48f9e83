"""What a linearity profile says, layer by layer; made by ``linearity_profile``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_linear.checks import counted, require_choice
from lens_linear.linalg.least_squares import Ridge
from lens_linear.linearity.measure.first_position import DIFFERENT
from lens_linear.linearity.measure.intervals import few_rows, jackknife
from lens_linear.linearity.measure.pooled_scores import SCORES, Scores
from lens_linear.models.capture import SITES, Site
from lens_linear.tables import Result

Fit = Literal["held-out", "in-sample"]
SCORE_COLUMNS = {
    score: "block_r2_no_residual" if score == "block_no_residual" else f"{score}_r2"
    for score in SCORES
}
#: Every column of the table but those of one's own statistics.
COLUMNS = (
    *("layer", "null_r2", "update_ratio", "n_tokens", "n_fit"),
    *(f"{site}_{end}" for site in SITES for end in ("rank", "first_share")),
    *(
        f"{name}{reading}{end}"
        for name in SCORE_COLUMNS.values()
        for reading in ("", "_without_first")
        for end in ("", "_low", "_high")
    ),
)


@dataclass(frozen=True, eq=False)
class LayerStatistic:
    """A statistic of one's own by layer: see ``statistics=`` of ``linearity_profile``.

    Attributes:
        values: [layer], on the rows scored.
        left_out: [layer, group], on these without one tenth of the sequences at a time.
        fit_values: [layer], on the rows the maps were fitted on.
        site: whose input and output it was taken of.
        confidence: coverage of the intervals.
    """

    values: Float[Tensor, " layer"]
    left_out: Float[Tensor, "layer group"]
    fit_values: Float[Tensor, " layer"]
    site: Site
    confidence: float

    @property
    def intervals(self) -> Float[Tensor, "layer 2"]:
        """Ends by layer, from leaving out one tenth of the sequences at a time."""
        return jackknife(self.values, self.left_out, self.confidence)


@dataclass(frozen=True, eq=False)
class LinearityProfile(Result):
    """Linearity by layer, with everything needed to read it.

    Attributes:
        model_name: as the model calls itself.
        fit: "held-out" (fitted on half of the sequences, scored on the other) or "in-sample".
        scores: R² by layer for "block", "block_no_residual", "ffn", "attn"; NaN where the model has no
            such site or its output does not vary.
        intervals: [layer, 2] for each of these: bootstrap ends over test sequences (NaN in-sample).
        without_first: the same, fitted and scored without the first position of every sequence, from the
            same pass (``.values``, ``.intervals``); with ``skip`` above 0 it is the reading itself.
        first_share: by site and layer, the share of the output's variance that the first position holds:
            1 / length when it is like the others. NaN with ``skip`` above 0.
        sums: [2, layer, sequence] for each score: residual and total sums of squares (empty in-sample).
        ranks: numerical rank of the input by site, -1 where there is none; below d_model the
            fit is the minimum-norm one.
        solvers: by site and layer, what found the map (see :class:`~lens_linear.linalg.LinearFit`).
        null_r2: R² expected, by layer, of an output that is independent of the block's input.
        update_ratio: mean over tokens of ‖block output − input‖ / ‖input‖, dimensionless.
        statistics: one's own, by name.
        n_tokens: rows the score was taken on.
        n_fit: rows the maps were fitted on.
        n_sequences: sequences scored.
        tokens_sha256: of their token ids.
        d_model: inputs of each map.
        skip: leading positions left out.
        ridge: penalty of the fits, or "loo".
        seed: of the halves and the resampling.
        confidence: coverage of the intervals.
    """

    _figure = "linearity_profile"

    model_name: str
    fit: Fit
    scores: Mapping[str, Float[Tensor, " layer"]]
    intervals: Mapping[str, Float[Tensor, "layer 2"]]
    without_first: Scores
    first_share: Mapping[str, Float[Tensor, " layer"]]
    sums: Mapping[str, Float[Tensor, "2 layer sequence"]]
    ranks: Mapping[str, Int[Tensor, " layer"]]
    solvers: Mapping[str, tuple[str, ...]]
    null_r2: Float[Tensor, " layer"]
    update_ratio: Float[Tensor, " layer"]
    statistics: Mapping[str, LayerStatistic]
    n_tokens: int
    n_fit: int
    n_sequences: int
    tokens_sha256: str
    d_model: int
    skip: int
    ridge: Ridge
    seed: int
    confidence: float

    def _that_matter(self) -> tuple[str, ...]:
        return (
            *("block_r2", "block_r2_without_first", "block_first_share", "block_r2_no_residual"),
            *("ffn_r2", "attn_r2", "null_r2", "update_ratio", *self.statistics, "n_tokens"),
        )

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return len(self.null_r2)

    def to_dataframe(self) -> pd.DataFrame:
        """One row per layer: the scores, null_r2, update_ratio, n_tokens.

        Scores are block_r2, block_r2_no_residual, ffn_r2, attn_r2. After these come n_fit, the ends
        of the intervals (``…_low``, ``…_high``), the ranks, every score without the first position
        (``…_without_first``, with its interval), the first position's share of the variance by site
        (``…_first_share``) and statistics of one's own (``…``, ``…_low``, ``…_high``, ``…_fit``).
        """
        names = SCORE_COLUMNS
        columns = {names[score]: self.scores[score].numpy() for score in SCORES}
        columns["null_r2"] = self.null_r2.numpy()
        columns["update_ratio"] = self.update_ratio.numpy()
        frame = pd.DataFrame(columns)
        frame["n_tokens"], frame["n_fit"] = self.n_tokens, self.n_fit
        for score, name in names.items():
            low, high = self.intervals[score].unbind(1)
            frame[f"{name}_low"], frame[f"{name}_high"] = low.numpy(), high.numpy()
        for site, rank in self.ranks.items():
            frame[f"{site}_rank"] = rank.numpy()
        for score, name in names.items():
            low, high = self.without_first.intervals[score].unbind(1)
            frame[f"{name}_without_first"] = self.without_first.values[score].numpy()
            frame[f"{name}_without_first_low"] = low.numpy()
            frame[f"{name}_without_first_high"] = high.numpy()
        for site, share in self.first_share.items():
            frame[f"{site}_first_share"] = share.numpy()
        for name, found in self.statistics.items():
            low, high = found.intervals.unbind(1)
            frame[name], frame[f"{name}_low"] = found.values.numpy(), low.numpy()
            frame[f"{name}_high"], frame[f"{name}_fit"] = high.numpy(), found.fit_values.numpy()
        return frame.rename_axis("layer")

    def ranking(self, score: str = "block") -> list[int]:
        """Layers from the most to the least linear by one of the scores (NaN last)."""
        require_choice("score", score, SCORES)
        values = self.scores[score].nan_to_num(nan=-torch.inf)
        return values.argsort(descending=True, stable=True).tolist()

    def first_position_layers(self, score: str = "block") -> list[int]:
        """Layers whose score without the first position lies outside the interval of the score with it.

        In sample there is no interval: then those where the two differ by more than 0.01.
        """
        require_choice("score", score, SCORES)
        low, high = self.intervals[score].unbind(1)
        if self.fit == "in-sample":
            low, high = self.scores[score] - DIFFERENT, self.scores[score] + DIFFERENT
        other = self.without_first.values[score]
        return ((other < low) | (other > high)).nonzero()[:, 0].tolist()

    def _first_clause(self) -> str:
        """Both readings, where they differ by more than the interval."""
        parts = []
        for score, word in (("block", "blocks"), ("ffn", "FFN"), ("attn", "attention")):
            if self.first_position_layers(score):
                here, there = self.scores[score], self.without_first.values[score]
                parts.append(
                    f"{word} {float(here.nanmedian()):.3f} with it, {float(there.nanmedian()):.3f} without"
                )
        if not parts:
            return ""
        shares = self.first_share["block"]
        shares = shares[~shares.isnan()]
        share = (
            f" holds up to {float(shares.max()):.0%} of a block's variance" if len(shares) else ""
        )
        return f"; the first position{share}: median R² {', '.join(parts)}"

    @property
    def few_rows(self) -> str:
        """A clause that says when the maps had fewer than three rows an input, else nothing."""
        so = "far below" if self.fit == "held-out" else "far above"
        return few_rows(self.n_fit, self.d_model, ridge=self.ridge, so=f"the score is {so}")

    def _silent_clause(self) -> str:
        """Blocks whose output is their input up to rounding."""
        silent = self.scores["block_no_residual"].isnan() & ~self.scores["block"].isnan()
        layers = ", ".join(str(layer) for layer in silent.nonzero()[:, 0].tolist())
        return f"; layers that add nothing have no R² without residual: {layers}" if layers else ""

    def __repr__(self) -> str:
        def reach(values: Tensor, digits: str) -> str:
            known = sorted(values[~values.isnan()].tolist())
            return f"{known[0]:{digits}} to {known[-1]:{digits}}" if known else "none"

        def spread(score: str) -> str:
            return reach(self.scores[score], ".3f")

        own = "".join(
            f", {name} ({found.site}) {reach(found.values, '.4g')}"
            for name, found in self.statistics.items()
        )
        fitted = f", fitted on {self.n_fit:,}" if self.fit == "held-out" else ""
        return (
            f"LinearityProfile of {self.model_name}: {counted(self.n_layers, 'layer')}, {self.fit} R² "
            f"of blocks {spread('block')} (without residual {spread('block_no_residual')}), FFN "
            f"{spread('ffn')}, "
            f"attention {spread('attn')}{own}; n = {counted(self.n_tokens, 'token', ',')} in "
            f"{counted(self.n_sequences, 'sequence')}{fitted}, skip {self.skip}, null about "
            f"{float(self.null_r2.mean()):.2g}"
            f"{self._silent_clause()}{self._first_clause()}{self.few_rows}"
        )
