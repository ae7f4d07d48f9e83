"""Each FFN as one affine layer, full or of low rank: parameters saved against loss.

A standard FFN holds about 8 d² weights, one affine layer d², a map of rank r only 2 d r.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from lens_linear.checks import require_int, require_layers, require_list
from lens_linear.errors import InvalidArgumentError, UnsupportedModelError
from lens_linear.linalg import LinearFit, Moments
from lens_linear.linalg.least_squares import Ridge, require_ridge
from lens_linear.linalg.memory import give_back, groups
from lens_linear.linearity.measure.first_position import DIFFERENT, both_readings, share_of
from lens_linear.linearity.measure.intervals import few_rows, held_out_null
from lens_linear.linearity.replace.affine_map import AffineMap, from_fit
from lens_linear.models.capture import row_ranges, run
from lens_linear.models.checked import CheckedModel, ModelLike, checked
from lens_linear.models.describe.parameter_counts import n_parameters, site_parameters
from lens_linear.models.spots import Spot, What
from lens_linear.models.stand_ins import BlockStandIns
from lens_linear.progress import sequence_bar
from lens_linear.stats.collect import collect_moments, first_key, require_rows_for_fit
from lens_linear.stats.model_scores import perplexity
from lens_linear.stats.resume import Key
from lens_linear.stats.split import RowView, as_rows, halves
from lens_linear.stats.task_scores import (
    RowScores,
    require_open_question,
    score_answers,
    warn_if_not_next_token,
)
from lens_linear.tables import Result
from lens_linear.text.task import Task
from lens_linear.token_rows import TokenRows


@dataclass(frozen=True, eq=False)
class CompressionTable(Result):
    """One FFN at a time as an affine layer; acts as its table.

    Attributes:
        rows: one mapping per layer and rank.
        base_loss: of the whole model on the test half, nats per token.
        parameters: of the whole model.
        model_name: as the model calls itself.
        d_model: inputs of each map.
        n_fit: rows fitted on.
        n_tokens: tokens the loss was taken on.
        seed: of the halves.
        ridge: penalty of the fits, or "loo".
    """

    _figure = "ffn_compression"
    _columns = (
        "layer",
        "rank",
        "ffn_r2",
        "null_r2",
        "times_fewer",
        "share_saved",
        "loss_increase",
        "loss_increase_se",
    )

    rows: tuple[dict[str, Any], ...]
    base_loss: float
    parameters: int
    model_name: str
    d_model: int
    n_fit: int
    n_tokens: int
    seed: int
    ridge: Ridge = 0.0

    def to_dataframe(self) -> pd.DataFrame:
        """One row per layer and rank.

        Columns: layer, rank, ffn_r2 (held out), ffn_r2_without_first (fitted and scored without the first
        position), ffn_first_share (of the output's variance), null_r2, ffn_parameters, map_parameters,
        times_fewer, share_saved (of the whole model), loss, loss_increase, loss_increase_se, perplexity,
        perplexity_increase, n_tokens, n_fit.
        """
        return pd.DataFrame(list(self.rows)).assign(n_tokens=self.n_tokens, n_fit=self.n_fit)

    @property
    def first_position(self) -> str:
        """A clause with both readings of the FFN where they differ most, if they do."""
        pairs = [(r["ffn_r2"], r["ffn_r2_without_first"], r["ffn_first_share"]) for r in self.rows]
        here, there, share = max(pairs, key=lambda pair: abs(pair[0] - pair[1]))
        differ = bool(abs(here - there) > DIFFERENT)
        return both_readings(share, "FFN R² of one layer", here, there, differ=differ)

    def __repr__(self) -> str:
        if not self.rows:
            return f"CompressionTable of {self.model_name}: no FFN whose output varies"
        best = min(self.rows, key=lambda row: float(row["loss"]))
        few = few_rows(self.n_fit, self.d_model, ridge=self.ridge)
        return (
            f"CompressionTable of {self.model_name}: {len(self.rows)} single-FFN replacements, cheapest is "
            f"layer {best['layer']} at rank {best['rank']} ({best['times_fewer']:.1f} times fewer "
            f"parameters, perplexity {best['perplexity_increase']:+.3f}); n = {self.n_tokens:,} test "
            f"tokens, fitted on {self.n_fit:,}{self.first_position}{few}"
        )


def ffn_compression(
    model: ModelLike,
    tokens: Int[Tensor, "sequence position"] | TokenRows | Task,
    *,
    ranks: Sequence[int | None] = (None,),
    layers: Sequence[int] | None = None,
    ridge: Ridge = 0.0,
    skip: int = 0,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
    max_memory: int | None = None,
) -> CompressionTable:
    """Replace one FFN at a time by its affine fit, at several ranks, and take the held-out loss.

    The loss is in nats a token; its rise is near 0 for an FFN that is linear, or that the model does not
    need.

    Args:
        model: a bridge with FFNs; unchanged.
        tokens: ids [sequence, position]; one half fits, the other gives R² and loss.
        ranks: ranks of the map; None is the full affine layer.
        layers: all by default.
        ridge: penalty of the fits, or "loo" for the one of least leave-one-out error.
        skip: leading positions left out of the fit.
        seed: of the halves.
        batch_size: sequences a forward pass; as many as memory allows by default.
        progress: show a bar.
        max_memory: bytes that statistics and maps may add, half of what is free by default. Layers that do
            not fit together are measured group after group, each in passes of its own.

    Returns:
        CompressionTable.

    Raises:
        NotEnoughDataError: too few rows.
        InsufficientMemoryError: one layer needs more than ``max_memory``.
        UnsupportedModelError: a layer has no FFN.

    Source: Whipp 2026, arXiv 2606.19379 (FFN to one linear layer).

    Example:
        >>> import torch
        >>> from lens_linear.models.open.toy import toy_model
        >>> model = toy_model(n_layers=2, d_model=16, attn_only=False)
        >>> tokens = torch.randint(64, (40, 16), generator=torch.Generator().manual_seed(0))
        >>> table = ffn_compression(model, tokens, ranks=(None, 2), layers=[1])
        >>> table["map_parameters"].tolist()  # 16 · 16 + 16, and 2 · 32 + 16
        [272, 80]
    """
    model = checked(model)
    require_ridge(ridge)
    rows = as_rows(model, tokens, skip=skip)
    chosen, ranks = _chosen(model, layers, ranks)
    require_rows_for_fit(rows, model.d_model, skip=skip, halved=True)
    train, test = halves(rows, seed=seed)
    # Statistics, maps with and without the first position, those of each rank; rows are added in a copy.
    square = 8.0 * model.d_model**2
    each, beside = (9 + 3 * len(ranks)) * square, 12 * square
    cut = groups(len(chosen), each, max_memory, model.device, what="one layer", beside=beside)
    out: list[dict[str, object]] = []
    with sequence_bar(len(test) * len(cut), "compressing", show=progress) as bar:
        for part in cut:
            layers = [chosen[i] for i in part]
            fitted = _collected(model, train, layers, skip, batch_size)
            maps = _maps(fitted, layers, ranks, ridge)
            tested: dict[Key, Moments] = defaultdict(Moments)
            give_back()
            base, losses = _losses(
                model,
                test,
                [m for m, *_ in maps],
                batch_size,
                partial(_of_group, bar, part.start // len(cut[0]) * len(test)),
                partial(_take_in, tested, skip),
            )
            unseen = {layer: _statistics(tested, layer) for layer in {m.first for m, *_ in maps}}
            for (m, rank, both), loss in zip(maps, losses, strict=True):
                out.append(_row(model, m, rank, _scores(unseen[m.first], *both), base, loss))
    warn_if_not_next_token(test.asked(slice(0, 1)), base.mean, model)
    return CompressionTable(
        rows=tuple(out),
        base_loss=base.mean,
        parameters=n_parameters(model),
        d_model=model.d_model,
        model_name=model.name,
        n_fit=train.n_tokens(skip),
        n_tokens=test.n_tokens(),
        seed=seed,
        ridge=ridge,
    )


def _chosen(
    model: CheckedModel, layers: Sequence[int] | None, ranks: Sequence[int | None]
) -> tuple[list[int], list[int | None]]:
    n_layers = model.n_layers
    chosen = list(range(n_layers)) if layers is None else require_layers("layers", layers, n_layers)
    ranks = require_list("ranks", ranks, of="ranks, None for full")
    if not chosen or not ranks:
        raise InvalidArgumentError("layers and ranks must each name at least one; leave them out")
    for rank in ranks:
        if rank is not None:
            require_int("ranks", rank, minimum=1, maximum=model.d_model)
    return chosen, ranks


Fitted = tuple[AffineMap, int | None, tuple[LinearFit, LinearFit]]


def _maps(
    fitted: dict[Key, Moments], layers: list[int], ranks: Sequence[int | None], ridge: Ridge
) -> list[Fitted]:
    """Layer by layer: the map of each rank, that rank, the fits with and without the first position."""
    maps: list[Fitted] = []
    for layer in layers:
        seen = _statistics(fitted, layer)
        if not seen[0].varies:
            continue
        fits = _fits(seen, ridge)
        for rank in ranks:
            both = fits if rank is None else (fits[0].truncate(rank), fits[1].truncate(rank))
            maps.append((from_fit("ffn", layer, layer, both[0]), rank, both))
    return maps


def _of_group(bar: Callable[[float], None], before: int, done: float) -> None:
    bar(before + done)


def _losses(
    model: CheckedModel,
    rows: RowView,
    maps: list[AffineMap],
    batch_size: int | None,
    on_rows: Callable[[int], None],
    visit: Callable[[int, Tensor, Tensor], None],
) -> tuple[RowScores, list[RowScores]]:
    """Loss of the model as it is, and with each map in place; blocks before a map run once for all.

    ``visit`` gets (layer, input, output) of each FFN that has a map, as the whole model runs it.
    """
    require_open_question(model, rows.task)
    stand_ins = _stand_ins(model, rows, max((m.first for m in maps), default=0))
    layers = sorted({m.first for m in maps})
    starts: tuple[What, ...] = ("resid_pre",) if stand_ins else ()
    spots: list[Spot] = [(n, at) for n in layers for at in (*starts, "ffn_in", "ffn_out")]
    base: list[RowScores] = []
    found: list[list[RowScores]] = [[] for _ in maps]
    for start, stop in row_ranges(rows, batch_size, model=model):
        task = rows.asked(slice(start, stop))
        seen = run(model, task.tokens, record=spots)
        base.append(score_answers(task, seen.logits, metric="loss"))
        for layer in layers:
            visit(layer, seen[(layer, "ffn_in")], seen[(layer, "ffn_out")])
        for m, scores in zip(maps, found, strict=True):
            if stand_ins is None:
                logits = run(model, task.tokens, edits=m.edits()).logits
            else:
                stream = seen[(m.first, "resid_pre")]
                logits = stand_ins.resume(task.tokens, stream, m.first, edits=m.edits())
            scores.append(score_answers(task, logits, metric="loss"))
        on_rows(stop)
    return RowScores.joined(base), [RowScores.joined(scores) for scores in found]


def _stand_ins(model: CheckedModel, rows: RowView, layer: int) -> BlockStandIns | None:
    """What lets a kept stream go on, where one row shows that this model's logits are then its own."""
    try:
        stand_ins = BlockStandIns(model)
    except UnsupportedModelError:
        return None
    tokens = rows.asked(slice(0, 1)).tokens
    whole = run(model, tokens, record=[(layer, "resid_pre")])
    again = stand_ins.resume(tokens, whole[(layer, "resid_pre")], layer)
    return stand_ins if torch.equal(whole.logits, again) else None


Statistics = tuple[Moments, Moments, float]


def _collected(
    model: CheckedModel, rows: RowView, layers: list[int], skip: int, batch_size: int | None
) -> dict[Key, Moments]:
    return collect_moments(
        model,
        rows,
        sites=("ffn",),
        layers=layers,
        skip=skip,
        batch_size=batch_size,
        first_apart=skip == 0,
    )


def _take_in(found: dict[Key, Moments], skip: int, layer: int, x: Tensor, y: Tensor) -> None:
    """Rows of one layer, those of the first position apart, as :func:`_collected` keeps them."""
    if skip == 0:
        found[first_key((layer, "ffn"))].update(x[:, 0], y[:, 0])
    start = max(skip, 1)
    found[layer, "ffn"].update(x[:, start:], y[:, start:])


def _statistics(found: dict[Key, Moments], layer: int) -> Statistics:
    """One layer's, taken out of ``found``: of all rows, of those after the first, the first's share."""
    rest, first = found.pop((layer, "ffn")), found.pop(first_key((layer, "ffn")), None)
    share = float(share_of(first, rest)) if first and rest.n else float("nan")
    return (rest + first if first else rest, rest, share)


def _fits(statistics: Statistics, ridge: Ridge) -> tuple[LinearFit, LinearFit]:
    """The map on all rows, and that without the first position (the same where too few rows are left)."""
    whole, rest, _ = statistics
    full = whole.fit(ridge=ridge)
    enough = rest.n > (rest.d_in or 0) + 1 and rest.varies
    return full, rest.fit(ridge=ridge) if enough else full


def _scores(seen: Statistics, fit: LinearFit, later: LinearFit) -> dict[str, float]:
    whole, rest, share = seen
    return {
        "ffn_r2": whole.score(fit),
        "ffn_r2_without_first": rest.score(later),
        "ffn_first_share": share,
        "null_r2": held_out_null(fit.n, fit.rank),
    }


def _row(
    model: CheckedModel,
    m: AffineMap,
    rank: int | None,
    r2: dict[str, float],
    base: RowScores,
    loss: RowScores,
) -> dict[str, object]:
    before = site_parameters(model, m.first, "ffn")
    increase = loss.minus(base)
    return {
        "layer": m.first,
        "rank": m.weight.shape[0] if rank is None else rank,
        **r2,
        "ffn_parameters": before,
        "map_parameters": m.n_parameters,
        "times_fewer": before / m.n_parameters,
        "share_saved": (before - m.n_parameters) / n_parameters(model),
        "loss": loss.mean,
        "loss_increase": increase.mean,
        "loss_increase_se": increase.standard_error,
        "perplexity": perplexity(loss.mean),
        "perplexity_increase": perplexity(loss.mean) - perplexity(base.mean),
    }
