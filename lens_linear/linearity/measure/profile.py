"""How linear is each block, FFN and attention layer of a model: one pass, held out, with its null.

For every layer the best affine map from what goes in to what comes out is fitted in closed form, and its
fraction of explained variance is reported. ``block`` maps the residual stream before a block to the
stream after it, so it contains the identity: a block that adds little scores near 1 whatever it computes.
``block_r2_no_residual`` scores the same map on what the block *adds*. ``ffn`` and ``attn`` map what the
sublayer reads (after its norm) to what it writes.

Sources: Razzhigaev et al. 2024, arXiv 2405.12250 (blocks); Whipp 2026, arXiv 2606.19379 (FFNs).

>>> import torch
>>> from lens_linear.models.open.toy import toy_model
>>> model = toy_model(n_layers=2, d_model=16, attn_only=False)
>>> tokens = torch.randint(64, (40, 16), generator=torch.Generator().manual_seed(0))
>>> linearity_profile(model, tokens).to_dataframe().index.tolist()
[0, 1]

Limits. A high score does not say that the block may be removed (see ``replacement_curve``), and a low one
does not say that what is missed matters. The first position often holds an outlier that carries most of
the variance: look at ``skip=1`` beside ``skip=0``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_linear._tl import TransformerBridge
from lens_linear.checks import require_choice, require_float, require_list, require_seed
from lens_linear.errors import InvalidArgumentError, UnsupportedModelError
from lens_linear.linalg import LinearFit, Moments, all_reduce_sum, to_compute
from lens_linear.linearity.measure.pooled_scores import (
    SCORES,
    nulls,
    ranks,
    scores_and_intervals,
)
from lens_linear.models.capture import SITES, Site, TokenRows
from lens_linear.stats.collect import (
    SequenceSums,
    collect_moments,
    common_sites,
    require_rows_for_fit,
    score_fits,
)
from lens_linear.stats.resume import Checkpoint, Key, fingerprint
from lens_linear.stats.split import RowView, as_rows, halves
from lens_linear.tables import Result

if TYPE_CHECKING:
    import pandas as pd

Fit = Literal["held-out", "in-sample"]


@dataclass(frozen=True, eq=False)
class LinearityProfile(Result):
    """Linearity by layer, with everything needed to read it; acts as its table.

    Attributes:
        model_name: as the model calls itself.
        fit: "held-out" (fitted on half of the sequences, scored on the other) or "in-sample".
        scores: R² by layer for "block", "block_no_residual", "ffn", "attn"; NaN where the model has no
            such site or its output does not vary.
        intervals: [layer, 2] for each of these: bootstrap ends over test sequences (NaN in-sample).
        ranks: numerical rank of the input by site, -1 where there is none; below d_model the
            fit is the minimum-norm one.
        null_r2: R² expected, by layer, of an output that is independent of the block's input.
        update_ratio: mean over tokens of ‖block output − input‖ / ‖input‖, dimensionless.
        n_tokens: rows the score was taken on.
        n_fit: rows the maps were fitted on.
        n_sequences: sequences scored.
        skip: leading positions left out.
        ridge: penalty of the fits.
        seed: of the halves and the resampling.
        confidence: coverage of the intervals.
    """

    _figure = "linearity_profile"

    model_name: str
    fit: Fit
    scores: Mapping[str, Float[Tensor, " layer"]]
    intervals: Mapping[str, Float[Tensor, "layer 2"]]
    ranks: Mapping[str, Int[Tensor, " layer"]]
    null_r2: Float[Tensor, " layer"]
    update_ratio: Float[Tensor, " layer"]
    n_tokens: int
    n_fit: int
    n_sequences: int
    skip: int
    ridge: float
    seed: int
    confidence: float

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return len(self.null_r2)

    def to_dataframe(self) -> pd.DataFrame:
        """One row per layer: the scores, null_r2, update_ratio, n_tokens.

        Scores are block_r2, block_r2_no_residual, ffn_r2, attn_r2. After these come n_fit, the ends
        of the intervals (``…_low``, ``…_high``) and the ranks.
        """
        import pandas as pd

        names = {score: _column(score) for score in SCORES}
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
        return frame.rename_axis("layer")

    def ranking(self, score: str = "block") -> list[int]:
        """Layers from the most to the least linear by one of the scores (NaN last)."""
        require_choice("score", score, SCORES)
        values = self.scores[score].nan_to_num(nan=-torch.inf)
        return values.argsort(descending=True, stable=True).tolist()

    def __repr__(self) -> str:
        def spread(score: str) -> str:
            values = self.scores[score]
            values = values[~values.isnan()]
            return f"{values.min():.3f} to {values.max():.3f}" if len(values) else "none"

        fitted = f", fitted on {self.n_fit:,}" if self.fit == "held-out" else ""
        return (
            f"LinearityProfile of {self.model_name}: {self.n_layers} layers, {self.fit} R² of blocks "
            f"{spread('block')} (without residual {spread('block_no_residual')}), FFN {spread('ffn')}, "
            f"attention {spread('attn')}; n = {self.n_tokens:,} tokens in {self.n_sequences} "
            f"sequences{fitted}, skip {self.skip}, null about {float(self.null_r2.mean()):.2g}"
        )


def _column(score: str) -> str:
    return "block_r2_no_residual" if score == "block_no_residual" else f"{score}_r2"


def linearity_profile(
    model: TransformerBridge,
    tokens: Int[Tensor, "sequence position"] | TokenRows,
    *,
    fit: Fit = "held-out",
    skip: int = 0,
    sites: Sequence[Site] = SITES,
    ridge: float = 0.0,
    seed: int = 0,
    confidence: float = 0.95,
    batch_size: int = 16,
    progress: bool = False,
    checkpoint: str | Path | None = None,
    save_every: int = 256,
) -> LinearityProfile:
    """Measure how linear every block, FFN and attention layer is, in one streaming pass.

    ``R² = 1 − Σ‖y − x A − b‖² / Σ‖y − ȳ‖²``, pooled over columns, (A, b) the least-squares map, ȳ the mean
    of y on the rows the map was fitted on.

    Dimensionless, at most 1. Held out, an output independent of the input scores about
    ``−d / (n − d − 2)``, n the rows fitted on, a little below 0; in sample ``rank / (n − 1)``, above 0.
    Both are in ``null_r2``. The in-sample block score is the paper's generalised Procrustes similarity.

    Held out, sequences are split into two random halves (never inside one); maps are fitted on one from
    streamed float64 statistics and scored on the other from residuals taken row by row.

    Under ``torch.distributed`` every process makes this call with the same arguments, works on its share
    of the sequences, and gets the numbers of all.

    Args:
        model: a bridge, in any precision; statistics are float64.
        tokens: ids [sequence, position], or a disk-backed stream of rows. Every sequence counts alike:
            there is no padding.
        fit: "held-out" or "in-sample".
        skip: leading positions left out of every sequence.
        sites: some of "block", "ffn", "attn"; sites the model lacks give NaN columns.
        ridge: penalty λ of ``‖Yc − Xc A‖² + λ ‖A‖²``, 0 for plain least squares.
        seed: of the halves and of the resampling.
        confidence: coverage of the bootstrap intervals (held-out only).
        batch_size: sequences a forward pass; the result does not depend on it.
        progress: show a bar with the time left.
        checkpoint: file that keeps the statistics on the way; if the process is killed, the same call
            goes on from it. Removed at the end.
        save_every: sequences between two writes of it.

    Returns:
        LinearityProfile; ``.to_dataframe()`` has one row per layer.

    Raises:
        NotEnoughDataError: ``n <= d + 1`` rows to fit on; the message says how many sequences are needed.
        NonFiniteError: NaN or infinite activations, naming the layer.
        InvalidArgumentError: bad argument, or tokens that do not fit the model.
        CorruptedFileError: the checkpoint is damaged or belongs to another question.

    Source: arXiv 2405.12250, section 3; arXiv 2606.19379 (R²_lin).

    Example:
        >>> import torch
        >>> from lens_linear.models.open.toy import toy_model
        >>> tokens = torch.randint(64, (20, 32), generator=torch.Generator().manual_seed(0))
        >>> profile = linearity_profile(toy_model(n_layers=1), tokens)  # attention only
        >>> bool(profile.to_dataframe().ffn_r2.isna().all())
        True
    """
    require_choice("fit", fit, ("held-out", "in-sample"))
    require_float("ridge", ridge, minimum=0.0)
    seed = require_seed(seed)
    held_out = fit == "held-out"
    rows = as_rows(model, tokens, skip=skip)
    sites = _usable(model, sites)
    require_rows_for_fit(
        len(rows), rows.n_tokens(skip) // len(rows), model.cfg.d_model, halved=held_out
    )
    train, test = halves(rows, seed=seed) if held_out else (rows, rows)
    question = ""
    if checkpoint is not None:
        knobs = {"fit": fit, "skip": skip, "sites": sites, "ridge": ridge, "seed": seed}
        question = fingerprint(model, rows, **knobs)
    keeper = Checkpoint(checkpoint, question, every=save_every)
    run = _Run(model, sites, skip, ridge, batch_size, progress, keeper)
    moments = run.moments(train, count_ratio=not held_out)
    fits = {key: m.fit(ridge=ridge) for key, m in moments.items() if m.varies}
    sums = run.sums(test, fits, moments) if held_out else None
    ratio = run.update_ratio()
    scores, intervals = scores_and_intervals(
        model.cfg.n_layers, moments, fits, sums, confidence=confidence, seed=seed
    )
    keeper.remove()
    return LinearityProfile(
        model_name=str(model.cfg.model_name),
        fit=fit,
        scores=scores,
        intervals=intervals,
        ranks=ranks(model.cfg.n_layers, fits),
        null_r2=nulls(model.cfg.n_layers, sites[0], fits, held_out=held_out),
        update_ratio=ratio,
        n_tokens=test.n_tokens(skip),
        n_fit=train.n_tokens(skip),
        n_sequences=len(test),
        skip=skip,
        ridge=ridge,
        seed=seed,
        confidence=confidence,
    )


def _usable(model: TransformerBridge, sites: Sequence[Site]) -> tuple[Site, ...]:
    if isinstance(sites, str) or not require_list("sites", sites, of="sites"):
        raise InvalidArgumentError(f"sites must be a list such as ['block', 'ffn'], got {sites!r}")
    for site in sites:
        require_choice("sites", site, SITES)
    usable = common_sites(model, tuple(site for site in SITES if site in sites))
    if not usable or model.cfg.n_layers == 0:
        raise UnsupportedModelError(
            f"model {model.cfg.model_name!r} has none of the sites {tuple(sites)} in every layer; "
            "choose others, or a model with layers"
        )
    return usable


class _Run:
    """The two phases of a profile, with the state that a checkpoint keeps."""

    def __init__(
        self,
        model: TransformerBridge,
        sites: tuple[Site, ...],
        skip: int,
        ridge: float,
        batch_size: int,
        progress: bool,
        keeper: Checkpoint,
    ) -> None:
        self.model, self.sites, self.skip, self.keeper = model, sites, skip, keeper
        self.batch_size, self.progress = batch_size, progress
        self.state = keeper.load()
        shape = (model.cfg.n_layers, 2)
        self.state.sums.setdefault("update_ratio", torch.zeros(shape, dtype=torch.float64))

    def _count(self, layer: int, site: Site, x: Tensor, y: Tensor) -> None:
        if site != "block":
            return
        x, y = to_compute(x), to_compute(y)
        before, added = x.norm(dim=-1), (y - x).norm(dim=-1)
        real = before > 0
        ratio = self.state.sums["update_ratio"]
        ratio[layer] += torch.stack([(added / before)[real].sum(), real.sum().double()]).cpu()

    def moments(self, rows: RowView, *, count_ratio: bool) -> dict[Key, Moments]:
        """Phase one: statistics of the rows the maps are fitted on."""
        return collect_moments(
            self.model,
            rows,
            sites=self.sites,
            skip=self.skip,
            batch_size=self.batch_size,
            progress=self.progress,
            checkpoint=self.keeper,
            state=self.state,
            also=self._count if count_ratio else None,
        )

    def sums(
        self, rows: RowView, fits: dict[Key, LinearFit], moments: dict[Key, Moments]
    ) -> dict[Key, SequenceSums]:
        """Phase two: residuals on the other rows."""
        return score_fits(
            self.model,
            rows,
            fits,
            {key: moments[key].mean_x for key in fits},
            skip=self.skip,
            batch_size=self.batch_size,
            progress=self.progress,
            checkpoint=self.keeper,
            state=self.state,
            also=self._count,
        )

    def update_ratio(self) -> Float[Tensor, " layer"]:
        """Mean of ‖y − x‖ / ‖x‖ over tokens; NaN without the block site."""
        sums = self.state.sums["update_ratio"]
        total, count = all_reduce_sum(sums).unbind(1)
        return torch.where(count > 0, total / count.clamp(min=1), torch.nan)
