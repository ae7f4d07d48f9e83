"""Where heads look on random tokens that repeat with mixed periods: the measurements behind verdicts.

Every number is attention at a fixed relation between query and key, averaged over many random rows. For each
relation the same positions are also read where the relation does not hold, which is what position alone
gives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_linear.checks import require_finite, require_int, require_ints, require_seed
from lens_linear.errors import InvalidArgumentError, UnsupportedModelError
from lens_linear.models.capture import batched, run
from lens_linear.models.checked import CheckedModel
from lens_linear.models.spots import Edit
from lens_linear.text.random_rows import repeated_tokens

MIN_QUERIES = 8
MIN_PERIOD = 3  # at 2 the token after the previous occurrence is the previous token


@dataclass(frozen=True, eq=False)
class RepeatedRows:
    """Random rows: some repeat with their own period, some do not repeat at all (period 0)."""

    tokens: Int[Tensor, "row position"]
    periods: Int[Tensor, " row"]
    start: int  # 1 when a beginning-of-sequence token stands first, else 0

    @property
    def choices(self) -> list[int]:
        """The periods that occur, without 0."""
        return sorted({p for p in self.periods.tolist() if p})

    def repeating(self) -> RepeatedRows:
        """The rows that repeat."""
        keep = self.periods > 0
        return RepeatedRows(self.tokens[keep], self.periods[keep], self.start)


@dataclass(frozen=True, eq=False)
class AttentionStats:
    """Mean attention per head, [.., layer, head]; ``period`` axes follow the periods of the rows.

    Attributes:
        prefix: from a repeated token to the token after its previous occurrence.
        prefix_control: the same positions and offset in rows where that key means nothing.
        duplicate: from a repeated token to its previous occurrence.
        duplicate_control: the same positions and offset in other rows.
        by_offset: rows that do not repeat: attention at offset 0, 1, 2, ..., over the queries that a
            repeat of that length would measure (at least the first eight that have such a key).
        uniform: what equal attention to all keys gives at those queries, per offset.
        neighbours: rows that do not repeat: attention at offset 0, 1 and 2 over all queries that have such
            a key.
        first: attention to the first position of the row, from the second half of the row.
        prefix_se: standard error of the mean of ``prefix`` over periods, from the spread over rows.
        excess_se: standard errors over rows of the excesses of prefix, duplicate and previous token (offset 1
            minus the mean of offsets 0 and 2); NaN where one row stands behind one of the means.
        by_offset_se: of ``by_offset``.
        n_rows: rows behind the means.
    """

    periods: tuple[int, ...]
    prefix: Float[Tensor, "period layer head"]
    prefix_control: Float[Tensor, "period layer head"]
    duplicate: Float[Tensor, "period layer head"]
    duplicate_control: Float[Tensor, "period layer head"]
    by_offset: Float[Tensor, "offset layer head"]
    uniform: Float[Tensor, " offset"]
    neighbours: Float[Tensor, "near layer head"]
    first: Float[Tensor, "layer head"]
    prefix_se: Float[Tensor, "layer head"]
    excess_se: Float[Tensor, "relation layer head"]
    by_offset_se: Float[Tensor, "offset layer head"]
    n_rows: int


def choose_periods(
    model: CheckedModel, periods: Sequence[int] | None, start: int, n_allowed: int
) -> list[int]:
    """Return periods whose two copies fit the context and whose tokens can all differ."""
    room = min((model.n_ctx - start) // 2, n_allowed // 2)
    if periods is not None:
        chosen = sorted(set(require_ints("periods", periods, minimum=MIN_PERIOD)))
        if len(chosen) < 2:
            raise InvalidArgumentError(
                f"periods must hold at least two different ones, got {list(periods)}: with one period a "
                "fixed offset cannot be told from induction; pass e.g. [8, 13, 21]"
            )
        if chosen[-1] > room:
            raise InvalidArgumentError(
                f"periods must be at most {room} here (two copies in a context of {model.n_ctx}, different "
                f"tokens out of {n_allowed}), got {chosen[-1]}; pass shorter ones"
            )
        return chosen
    longest = min(32, room)
    if longest < MIN_PERIOD + 1:
        raise UnsupportedModelError(
            f"model {model.name!r} has a context of {model.n_ctx} and {n_allowed} ordinary tokens, too "
            "few for two different repeat periods of at least 3; look at its patterns with attention_pattern"
        )
    # Closer together where they are short: a model may have been trained on short repeats only, and its
    # context be longer than anything it has seen.
    shortest = max(MIN_PERIOD, longest // 5)
    steps = torch.linspace(math.log(shortest), math.log(longest), 6, dtype=torch.float32)
    return sorted(set(steps.exp().round().int().tolist()))


def draw_repeated(
    model: CheckedModel,
    *,
    periods: Sequence[int] | None,
    rows_per_period: int,
    bos: int | Literal["auto"] | None,
    seed: int,
) -> RepeatedRows:
    """Draw rows for every period, and as many rows for two periods that do not repeat."""
    rows_per_period = require_int("rows_per_period", rows_per_period, minimum=1)
    bos = model.bos if isinstance(bos, str) and bos == "auto" else bos
    if bos is not None:
        bos = require_int("bos", bos, minimum=0, maximum=model.d_vocab - 1)
    seed = require_seed(seed)
    allowed = torch.tensor([i for i in range(model.n_tokens) if i != bos])
    start = int(bos is not None)
    chosen = choose_periods(model, periods, start, len(allowed))
    length = start + 2 * chosen[-1]
    n = rows_per_period * len(chosen)
    repeated = repeated_tokens(n, chosen, length, allowed, seed, bos=bos, distinct=True)
    plain = _distinct_rows(2 * rows_per_period, length, allowed, bos, seed)
    tokens = torch.cat([repeated.tokens, plain])
    kinds = torch.cat([repeated.periods, torch.zeros(len(plain), dtype=torch.int64)])
    return RepeatedRows(tokens, kinds, start)


def _distinct_rows(n: int, length: int, allowed: Tensor, bos: int | None, seed: int) -> Tensor:
    """Rows in which no token occurs twice."""
    generator = torch.Generator().manual_seed(seed + 1)
    body = length - int(bos is not None)
    keys = torch.rand(n, len(allowed), generator=generator, dtype=torch.float32)
    rows = allowed[keys.topk(body, dim=1).indices]
    if bos is None:
        return rows
    return torch.cat([torch.full((n, 1), bos), rows], dim=1)


def measure(
    model: CheckedModel, rows: RepeatedRows, *, batch_size: int | None = None
) -> AttentionStats:
    """Run the rows and average attention at every relation; one layer's patterns are held at a time."""
    n_layers = model.n_layers
    body = rows.tokens.shape[1] - rows.start
    seen: dict[int, Tensor] = {}

    def visit(layer: int) -> Edit:
        def read(pattern: Tensor) -> None:
            require_finite(f"the attention pattern of layer {layer} of {model.name!r}", pattern)
            seen[layer] = _row_table(pattern, rows.start, body)

        return ((layer, "pattern"), read)

    edits = [visit(layer) for layer in range(n_layers)]
    tables = []
    for _, part in batched(rows.tokens, batch_size, model=model):
        run(model, part, record=[(n_layers - 1, "pattern")], edits=edits, logits=False)
        tables.append(torch.stack([seen[layer] for layer in range(n_layers)], dim=1))
    table = torch.cat(tables)  # [row, layer, head, what, offset]
    return _summary(table, rows, body)


def _row_table(pattern: Tensor, start: int, body: int) -> Float[Tensor, "row head what offset"]:
    """Per row and head, attention at each offset, averaged over four windows of queries.

    Window 0, for an induction offset p - 1: queries p .. 2p - 1. Window 1, for a duplicate offset p:
    queries p .. 2p - 1. Window 2: every query that has such a key. Window 3: as window 0, but at least
    eight queries. Positions count after the first token when that is a beginning-of-sequence token.
    """
    pattern = pattern.to("cpu", torch.float64)
    shape = pattern.shape[:2]
    found = torch.full((*shape, 4, body), float("nan"), dtype=torch.float64)
    inner = pattern[:, :, start:, start:]
    for offset in range(body):
        band = inner.diagonal(-offset, dim1=-2, dim2=-1)  # entry i is query offset + i
        period = offset + 1
        if 2 * period <= body:
            found[:, :, 0, offset] = band[..., 1 : 1 + period].mean(-1)
        if 2 * offset <= body:
            found[:, :, 1, offset] = band[..., :offset].mean(-1)
        found[:, :, 2, offset] = band.mean(-1)
        found[:, :, 3, offset] = band[..., : max(period, MIN_QUERIES) + 1][..., 1:].mean(-1)
    # Offset 0 of window 0 is free: it holds the attention to the very first position.
    found[:, :, 0, 0] = pattern[:, :, body // 2 + start :, 0].mean(-1)
    return found


def _summary(table: Tensor, rows: RepeatedRows, body: int) -> AttentionStats:
    choices, kinds = rows.choices, rows.periods
    prefix = _own_and_control(table, rows, window=0, back=1)
    duplicate = _own_and_control(table, rows, window=1, back=0)
    alone = table[kinds == 0]
    peak = alone[..., 2, 1] - (alone[..., 2, 0] + alone[..., 2, 2]) / 2
    plain = alone.mean(0)  # [layer, head, what, offset]
    # Beyond the longest period too: a model that knows one period only may know a longer one.
    far = max(body // 2, body - MIN_QUERIES)
    uniform = torch.zeros(far, dtype=torch.float64)
    for offset in range(far):
        queries = torch.arange(offset + 1, min(offset + 1 + max(offset + 1, MIN_QUERIES), body))
        uniform[offset] = (1 / (queries.double() + 1 + rows.start)).mean()
    n = len(choices)
    both = [part.variance.sum(0) + part.control_variance.sum(0) for part in (prefix, duplicate)]
    return AttentionStats(
        tuple(choices),
        prefix.own,
        prefix.control,
        duplicate.own,
        duplicate.control,
        plain[:, :, 3, :far].permute(2, 0, 1),
        uniform,
        plain[:, :, 2, :3].permute(2, 0, 1),
        table[:, :, :, 0, 0].mean(0),
        prefix.variance.sum(0).sqrt() / n,
        torch.stack([*(each.sqrt() / n for each in both), _variance_of_mean(peak).sqrt()]),
        _variance_of_mean(alone[:, :, :, 3, :far]).sqrt().permute(2, 0, 1),
        len(table),
    )


@dataclass(frozen=True, eq=False)
class _Relation:
    """Means at each period over rows where a relation holds and where it does not, and their variances."""

    own: Float[Tensor, "period layer head"]
    control: Float[Tensor, "period layer head"]
    variance: Float[Tensor, "period layer head"]
    control_variance: Float[Tensor, "period layer head"]


def _own_and_control(table: Tensor, rows: RepeatedRows, *, window: int, back: int) -> _Relation:
    """Read a window of every row at offset ``period - back``, in rows of that period and in others."""
    found: list[list[Tensor]] = [[], [], [], []]
    for period in rows.choices:
        offset = period - back
        # In a row of period r the key means something too where r divides the offset, or the offset + 1.
        free = torch.tensor(
            [not r or bool(offset % r and (offset + 1) % r) for r in rows.periods.tolist()]
        )
        own = rows.periods == period
        at = table[:, :, :, window, offset]
        for place, which in enumerate((own, free & ~own)):
            found[place].append(at[which].mean(0))
            found[place + 2].append(_variance_of_mean(at[which]))
    return _Relation(*(torch.stack(part) for part in found))


def _variance_of_mean(values: Float[Tensor, "row ..."]) -> Float[Tensor, "..."]:
    """Squared standard error of the mean over rows; NaN for one row."""
    if len(values) < 2:
        return torch.full_like(values[0], math.nan)
    return values.var(0) / len(values)
