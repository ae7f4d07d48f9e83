"""How much of a later layer is an affine function of an earlier one: all pairs, one pass, held out.

Boundary 0 is the embedding, boundary l the residual stream after block l - 1. Entry (i, j) is the
fraction of the variance of boundary j that the best affine map from boundary i explains. The row above
the diagonal is the block profile; far from it one reads how many blocks one map could replace.

>>> import torch
>>> from lens_linear.models.open.toy import toy_model
>>> tokens = torch.randint(64, (40, 16), generator=torch.Generator().manual_seed(0))
>>> result = layer_map(toy_model(n_layers=2, d_model=16), tokens)
>>> result.shape, bool(result[0, 1] > result[0, 2])
((3, 3), True)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_linear.checks import counted, require_choice, require_layers
from lens_linear.errors import InvalidArgumentError
from lens_linear.linalg import LinearFit, Moments, all_reduce_sum, process, to_compute
from lens_linear.linalg.least_squares import Ridge, require_ridge
from lens_linear.linalg.memory import groups
from lens_linear.linalg.precision import compute_device
from lens_linear.linearity.measure.first_position import DIFFERENT, both_readings, share_of
from lens_linear.linearity.measure.intervals import few_rows, held_out_null
from lens_linear.linearity.measure.pooled_scores import joined
from lens_linear.linearity.measure.profile_result import Fit
from lens_linear.models.capture import row_ranges, run
from lens_linear.models.checked import CheckedModel, ModelLike, checked
from lens_linear.models.spots import Spot
from lens_linear.progress import sequence_bar
from lens_linear.stats.collect import require_rows_for_fit
from lens_linear.stats.split import RowView, as_rows, halves
from lens_linear.tables import Result
from lens_linear.text.task import Task
from lens_linear.token_rows import TokenRows


@dataclass(frozen=True, eq=False)
class LayerMap(Result):
    """R² of the best affine map between layer boundaries; acts as its matrix (``m[i, j]``).

    Attributes:
        values: [boundary, boundary], row = from, column = to; 1 on the diagonal, NaN below it.
        boundaries: which layer boundaries, 0 = embedding.
        model_name: as the model calls itself.
        fit: "held-out" or "in-sample".
        n_tokens: rows scored.
        n_fit: rows fitted on.
        d_model: inputs of each map.
        null_r2: R² expected of a boundary that is independent of the other.
        skip: leading positions left out.
        ridge: penalty of the fits, or "loo" for the one of least leave-one-out error.
        seed: of the halves.
        without_first: [boundary, boundary], fitted and scored without the first position, from the same
            pass; ``values`` again where it is left out.
        first_share: [boundary], share of the variance fitted that the first position holds; NaN there.
    """

    _figure = "layer_map"

    values: Float[Tensor, "boundary boundary"]
    boundaries: tuple[int, ...]
    model_name: str
    fit: Fit
    n_tokens: int
    n_fit: int
    d_model: int
    null_r2: float
    skip: int
    ridge: Ridge
    seed: int
    without_first: Float[Tensor, "boundary boundary"]
    first_share: Float[Tensor, " boundary"]

    @property
    def first_position(self) -> str:
        """A clause with both readings of neighbours, where they differ."""
        here, there = (v.diagonal(1).median() for v in (self.values, self.without_first))
        share = self.first_share.nan_to_num(nan=0.0).max()
        what = "median R² between neighbours"
        differ = bool((self.values - self.without_first).diagonal(1).abs().max() > DIFFERENT)
        return both_readings(float(share), what, float(here), float(there), differ=differ)

    @property
    def shape(self) -> tuple[int, int]:
        """As of a matrix."""
        return len(self.boundaries), len(self.boundaries)

    def __len__(self) -> int:
        return len(self.boundaries)

    def __getitem__(self, index: Any) -> Tensor:
        return self.values[index]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.values.numpy(), dtype=dtype)

    def to_dataframe(self) -> pd.DataFrame:
        """The matrix, rows "from" and columns "to", both by layer boundary."""
        frame = pd.DataFrame(self.values.numpy(), index=list(self.boundaries))
        frame.columns = pd.Index(list(self.boundaries), name="to")
        return frame.rename_axis("from")

    def __repr__(self) -> str:
        above = [float(self.values[i, i + 1]) for i in range(len(self) - 1)]
        fitted = f", fitted on {self.n_fit:,}" if self.fit == "held-out" else ""
        so = f"the score is far {'below' if self.fit == 'held-out' else 'above'}"
        few = few_rows(self.n_fit, self.d_model, ridge=self.ridge, so=so)
        return (
            f"LayerMap of {self.model_name}: {self.fit} R² between {len(self)} layer boundaries, "
            f"{float(self.values[0, -1]):.3f} from first to last, {min(above):.3f} to {max(above):.3f} "
            f"between neighbours, null about {self.null_r2:.2g}; n = "
            f"{counted(self.n_tokens, 'token', ',')}{fitted}"
            f"{self.first_position}{few}"
        )


def layer_map(
    model: ModelLike,
    tokens: Int[Tensor, "sequence position"] | TokenRows | Task,
    *,
    fit: Fit = "held-out",
    boundaries: Sequence[int] | None = None,
    skip: int = 0,
    ridge: Ridge = 0.0,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
    max_memory: int | None = None,
) -> LayerMap:
    """Fraction of each later layer boundary that is an affine function of each earlier one.

    ``R²[i, j] = 1 − Σ‖x_j − x_i A_ij − b_ij‖² / Σ‖x_j − x̄_j‖²`` for i < j, maps fitted in closed form.

    Dimensionless, at most 1; an independent x_j would score about ``−d / (n − d − 2)`` held out.

    Memory: four d × d matrices for every pair (L²/2 of them, float64). What ``max_memory`` does not hold
    is done in several passes, some of the earlier boundaries each. It does not grow with tokens.

    Args:
        model: a bridge.
        tokens: ids [sequence, position], or a stream of rows.
        fit: "held-out" (halves of the sequences) or "in-sample".
        boundaries: layer boundaries to compare, 0 = embedding; all by default.
        skip: leading positions left out.
        ridge: penalty of the fits, or "loo" for the one of least leave-one-out error.
        seed: of the halves.
        batch_size: sequences a forward pass; as many as memory allows by default;
            all boundaries of one batch are held at once.
        progress: show a bar.
        max_memory: bytes that statistics and maps may add, half of what is free by default.

    Returns:
        LayerMap: ``.values`` [layers + 1, layers + 1], NaN below the diagonal.

    Raises:
        NotEnoughDataError: ``n <= d + 1`` rows to fit on.
        NonFiniteError: NaN or infinite activations, naming the layer.
        InsufficientMemoryError: the maps from one boundary need more than ``max_memory``.

    Source: after Razzhigaev et al. 2024, arXiv 2405.12250, section 3, for all pairs.

    Example:
        >>> import torch
        >>> from lens_linear.models.open.toy import toy_model
        >>> model = toy_model(n_layers=2, d_model=16, attn_only=False)
        >>> tokens = torch.randint(64, (60, 16), generator=torch.Generator().manual_seed(0))
        >>> tuple(layer_map(model, tokens).values.shape)
        (3, 3)
    """
    model = checked(model)
    require_choice("fit", fit, ("held-out", "in-sample"))
    require_ridge(ridge)
    rows = as_rows(model, tokens, skip=skip)
    chosen = list(range(model.n_layers + 1))
    if boundaries is not None:
        chosen = require_layers("boundaries", boundaries, model.n_layers + 1)
    if len(chosen) < 2:
        raise InvalidArgumentError(
            f"boundaries must name at least two layer boundaries, got {chosen}; e.g. [0, 1]"
        )
    held_out = fit == "held-out"
    require_rows_for_fit(rows, model.d_model, skip=skip, halved=held_out)
    train, test = halves(rows, seed=seed) if held_out else (rows, rows)
    walk = _Walk(model, chosen, skip, batch_size, progress)
    n, width = len(chosen), model.d_model
    each = 8.0 * width**2 * (4 * n + 2)  # of the first boundary, which has most to map to
    cut = groups(n - 1, each, max_memory, model.device, what="one boundary of this map")
    parts: list[list[Tensor]] = []
    for sources in cut:
        readings, own = _fit_pairs(walk, train, sources, ridge, keep_core=not held_out)
        if not parts:
            shares, example = own, readings[0][0]
            null = held_out_null(example.n, example.rank) if held_out else example.null_r2
        rows_of = _held_out(walk, test, sources, readings) if held_out else None
        parts.append(rows_of or [_in_sample(n, sources, fits) for fits in readings])
        del readings
    found = [_upper(joined(both)) for both in zip(*parts, strict=False)]
    return LayerMap(
        values=found[0],
        without_first=found[-1],
        first_share=shares,
        boundaries=tuple(chosen),
        model_name=model.name,
        fit=fit,
        n_tokens=test.n_tokens(skip),
        n_fit=train.n_tokens(skip),
        d_model=model.d_model,
        null_r2=null,
        skip=skip,
        ridge=ridge,
        seed=seed,
    )


@dataclass(frozen=True, eq=False)
class _Walk:
    """Streams the residual stream at chosen boundaries, one batch at a time."""

    model: CheckedModel
    boundaries: list[int]
    skip: int
    batch_size: int | None
    progress: bool

    def __call__(self, rows: RowView, what: str, use: Callable[[list[Tensor]], None]) -> None:
        """Call ``use`` with the states of a batch, [sequence, position, d_model] by boundary."""
        mine = rows.share(*process())
        spots: list[Spot] = [
            (b - 1, "resid_post") if b else (0, "resid_pre") for b in self.boundaries
        ]
        with sequence_bar(len(mine), what, show=self.progress) as bar:
            for start, stop in row_ranges(mine, self.batch_size, model=self.model, logits=False):
                seen = run(self.model, mine[start:stop], record=spots, logits=False)
                # A model spread over devices has its boundaries on several: bring them together.
                device = compute_device(seen[spots[-1]].device)
                use([seen[spot][:, self.skip :].to(device) for spot in spots])
                bar(stop)


def _fit_pairs(
    walk: _Walk, rows: RowView, sources: range, ridge: Ridge, *, keep_core: bool
) -> tuple[list[list[LinearFit]], Float[Tensor, " boundary"]]:
    """For every one of ``sources``, one fit to all later boundaries side by side.

    One scatter of x then serves all its targets: a third of the work of one ``Moments`` per pair.

    Returns:
        The fits on all positions, and, where the first is among them, those without it; its share of the
        variance by boundary.
    """
    apart = walk.skip == 0
    moments = {i: (Moments(), Moments()) for i in sources}
    own = [(Moments(), Moments()) for _ in walk.boundaries]  # what every boundary itself varies by
    blank = torch.zeros(1, dtype=torch.float32)

    def use(states: list[Tensor]) -> None:
        cuts = (slice(int(apart), None), slice(0, int(apart)))
        for i, state in enumerate(states):
            later = torch.cat(states[i + 1 :], dim=2) if i in moments else None
            for k, cut in enumerate(cuts):
                x = state[:, cut]
                own[i][k].update(blank.to(x).expand(*x.shape[:2], 1), x)
                if later is not None:
                    moments[i][k].update(x, later[:, cut])

    walk(rows, "fitting pairs", use)
    whole: list[LinearFit] = []
    rest: list[LinearFit] = []
    for i in sources:
        after, first = (m.all_reduce_() for m in moments.pop(i))  # what is fitted need not be kept
        both = after + first if apart else after
        if not both.varies:
            raise InvalidArgumentError(
                "the residual stream does not vary over these tokens; pass different tokens"
            )
        usable = apart and after.n > walk.model.d_model + 1 and after.varies
        for fits, part in ((whole, both), *([(rest, after)] if usable else [])):
            fit = part.fit(ridge=ridge)
            fits.append(fit if keep_core else replace(fit, core=fit.core[:0].clone()))
    shares = [
        float(share_of(first.all_reduce_(), after.all_reduce_()))
        if apart and after.n
        else float("nan")
        for after, first in own
    ]
    readings = [whole, rest] if len(rest) == len(whole) else [whole]
    return readings, torch.tensor(shares, dtype=torch.float64)


def _targets(fit: LinearFit) -> list[slice]:
    width = fit.weight.shape[0]
    return [slice(k, k + width) for k in range(0, fit.weight.shape[1], width)]


def _held_out(
    walk: _Walk, rows: RowView, sources: range, readings: list[list[LinearFit]]
) -> list[Tensor]:
    """R² of every pair, for each set of fits; the second is scored without the first position."""
    n = len(walk.boundaries)
    residual = torch.full((len(readings), n, n), torch.nan, dtype=torch.float64)
    residual[:, sources] = 0
    total = torch.zeros(len(readings), n, dtype=torch.float64)

    def use(batch: list[Tensor]) -> None:
        for k, fits in enumerate(readings):
            states = [to_compute(state[:, k:]).flatten(0, 1) for state in batch]
            for j, part in enumerate(_targets(fits[0]), start=sources.start + 1):
                total[k, j] += float((states[j] - fits[0].mean_y[part]).square().sum())
            for i, fit in zip(sources, fits, strict=True):
                guess = fit.predict(states[i])
                for j, part in enumerate(_targets(fit), start=i + 1):
                    residual[k, i, j] += float((states[j] - guess[:, part]).square().sum())

    walk(rows, "scoring pairs", use)
    residual, total = all_reduce_sum(residual), all_reduce_sum(total)
    values = 1 - residual / total[:, None]
    return [torch.where(t > 0, v, torch.nan) for v, t in zip(values, total, strict=True)]


def _in_sample(n: int, sources: range, fits: list[LinearFit]) -> Tensor:
    out = torch.full((n, n), torch.nan, dtype=torch.float64)
    for i, fit in zip(sources, fits, strict=True):
        explained = fit.core.square().sum(0) + fit.ridge * fit.weight.square().sum(0)
        for j, part in enumerate(_targets(fit), start=i + 1):
            out[i, j] = explained[part].sum() / fit.scatter_y[part].sum()
    return out


def _upper(values: Tensor) -> Float[Tensor, "boundary boundary"]:
    """The same above the diagonal, 1 on it, NaN below."""
    below = torch.ones_like(values, dtype=torch.bool).tril(-1)
    values = values.masked_fill(below, torch.nan)
    return values.fill_diagonal_(1.0)
