"""Slow and fast memory in the heads of a trained model: regression or retrieval, and what the loss says.

A head's *slow* memory is its geometry, ``W_Q W_Kᵀ``, in the weights; its *fast* memory the keys and values
of the context. Where between linear and exponential memory does it read? Its readout is compared with the
two ends of the dial, made from its own scores, keys and values (one gain each, fitted on all queries):

    regression end   Σ_j (s_j - s̄)(v_j - v̄)        linear attention: what a β near 0 would read
    retrieval end    v_best - v̄                    the value of the highest score: a β without bound

Then the memories are exchanged and the model's own loss is read:

    other context    keys and values of another row of tokens, the head's own queries (fast)
    other values     its own pattern, values of another row (fast)
    turned geometry  queries turned by a random rotation: scores of the same size, other geometry (slow)
    no geometry      every visible key weighs the same (slow)
    linear           the regression end in place of the softmax
    retrieval        the retrieval end in place of the softmax

>>> from lens_linear.models.open.toy import toy_model
>>> tokens = torch.randint(64, (4, 16), generator=torch.Generator().manual_seed(0))
>>> trained_heads(toy_model(n_layers=1), tokens)["head"].tolist()
['L0H0', 'L0H1', 'L0H2', 'L0H3']

Source: Tan & Zhao 2026, arXiv 2604.13656 (slow and fast memory); the measures on trained heads are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_linear._tl import derive_generator
from lens_linear.checks import (
    counted,
    require_choice,
    require_heads,
    require_list,
    require_rows,
    require_seed,
)
from lens_linear.constructions.memory.trained_head import HeadReads, head_reads
from lens_linear.errors import InvalidArgumentError
from lens_linear.models.batch_memory import sequences_a_pass
from lens_linear.models.capture import require_model_tokens, run
from lens_linear.models.checked import CheckedModel, ModelLike, checked
from lens_linear.models.spots import Edit
from lens_linear.stats.task_scores import score_answers
from lens_linear.tables import Result
from lens_linear.text.task import Task
from lens_linear.token_rows import TokenRows

EXCHANGES = (
    "other context", "other values", "turned geometry", "no geometry", "linear", "retrieval",
)  # fmt: skip
_EVEN = 0.5  # share of the visible keys that weigh in: above it a head averages


@dataclass(frozen=True, eq=False)
class TrainedHeads(Result):
    """One row a head: where it reads between regression and retrieval, and what its memories carry."""

    _figure = "trained_heads"
    _columns = (
        "layer",
        "head",
        "effective_keys",
        "best_share",
        "regression_r2",
        "retrieval_r2",
        "kind",
        "loss_linear",
    )

    frame: pd.DataFrame
    model: str
    loss: float  # nats a token, nothing exchanged
    n_rows: int
    n_positions: int
    seed: int

    def __repr__(self) -> str:
        kinds = self.frame["kind"].value_counts()
        each = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        return (
            f"TrainedHeads of {self.model}: {counted(len(self.frame), 'head')} ({each}) on "
            f"{counted(self.n_rows, 'row')} of "
            f"{counted(self.n_positions, 'token')}, loss {self.loss:.3f} nats a token"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row a head.

        Columns: ``layer``, ``head``; ``effective_keys`` (exp of the pattern's entropy), ``best_share``
        (largest weight), ``first_share`` (weight of the first position), medians over queries;
        ``regression_r2``, ``retrieval_r2`` (share of the readout's variance that each end explains, at
        most 1; NaN where the readout does not vary, as that of equal values or equal scores); ``kind``:
        "averaging", "regression", "retrieval" or "between", also "averaging" where scores or values are
        all equal; and for each exchange the rise of the loss in nats a token (``loss_<exchange>``) with its
        standard error over rows (``_se``).
        """
        return self.frame.copy()


def trained_heads(
    model: ModelLike,
    tokens: Int[Tensor, "batch position"] | TokenRows,
    *,
    heads: Sequence[tuple[int, int] | str] | None = None,
    exchanges: Sequence[str] = EXCHANGES,
    batch_size: int | None = None,
    seed: int = 0,
) -> TrainedHeads:
    """Place heads between regression and retrieval, and exchange their slow and fast memories.

    ``kind``: *averaging* where more than half of the visible keys weigh in (exp of the entropy, median), or
    the readout is the mean of the visible values whatever the weights; else *retrieval* or *regression*,
    whichever end explains more of the readout, if at least half of its variance; else *between*.

    Args:
        model: a causal bridge.
        tokens: ``[batch, position]`` ids, at least two rows of at least four.
        heads: ``(layer, head)`` pairs; None takes all.
        exchanges: which of ``EXCHANGES`` to run, one forward pass a head each; none is allowed.
        batch_size: rows a forward pass; as many as memory allows by default.
        seed: of the random rotation.

    Returns:
        TrainedHeads: one row a head; losses in nats a token.

    Raises:
        UnsupportedModelError: a head whose scores are not q·k over all earlier keys.
        InvalidArgumentError: an unknown exchange or head.
        NotEnoughDataError: one row only.

    Source: Tan & Zhao 2026, arXiv 2604.13656 (slow and fast memory); measures ours.

    Example:
        >>> from lens_linear.models.open.toy import toy_model
        >>> tokens = torch.randint(64, (4, 16), generator=torch.Generator().manual_seed(0))
        >>> found = trained_heads(toy_model(n_layers=1), tokens, heads=[(0, 2)], exchanges=("linear",))
        >>> found["kind"].tolist()  # untrained scores are small: all keys weigh alike
        ['averaging']
    """
    model = checked(model)
    tokens = require_model_tokens(model, tokens)
    require_rows("tokens", len(tokens), minimum=2, why="one context to exchange with another")
    if tokens.shape[1] < 4:
        raise InvalidArgumentError(
            f"tokens must have at least 4 positions, got {tokens.shape[1]}; pass longer rows"
        )
    batch_size, seed = sequences_a_pass(model, tokens.shape[1], batch_size), require_seed(seed)
    exchanges = require_list("exchanges", exchanges, of="names of exchanges")
    exchanges = [require_choice("exchanges", name, EXCHANGES) for name in exchanges]
    plain = row_losses(model, tokens, batch_size)
    rows = []
    asked = heads_by_layer(model, heads)
    reads = head_reads(model, tokens, list(asked), batch_size)
    for layer, chosen in asked.items():
        for head in chosen:
            found = _Head(reads[layer], head, seed)
            row = {"layer": layer, "head": f"L{layer}H{head}", **found.measures()}
            for name in exchanges:
                changed = row_losses(model, tokens, batch_size, layer, head, found.exchanged(name))
                rise, column = changed - plain, f"loss_{name.replace(' ', '_')}"
                row[column] = float(rise.mean())
                row[f"{column}_se"] = float(rise.std() / len(rise) ** 0.5)
            rows.append(row)
    return TrainedHeads(
        pd.DataFrame(rows),
        model.name,
        float(plain.mean()),
        len(tokens),
        tokens.shape[1],
        seed,
    )


def heads_by_layer(
    model: CheckedModel, heads: Sequence[tuple[int, int] | str] | None
) -> dict[int, list[int]]:
    """Layers in order, with the heads asked for in each."""
    layers, count = model.n_layers, model.n_heads
    if heads is None:
        return {layer: list(range(count)) for layer in range(layers)}
    chosen: dict[int, list[int]] = {}
    for layer, head in require_heads("heads", heads, n_layers=layers, n_heads=count):
        chosen.setdefault(layer, []).append(head)
    if not chosen:
        raise InvalidArgumentError("heads must name at least one head; pass heads=None for all")
    return dict(sorted(chosen.items()))


class _Head:
    """One head's scores, pattern, values and the ends of its dial, on all rows of tokens."""

    def __init__(self, reads: HeadReads, head: int, seed: int) -> None:
        self.q, self.k, self.v = reads.of(head)
        self.scale, self.labels = reads.scale, (seed, "trained heads", head)
        length = self.q.shape[1]
        self.visible = torch.ones(length, length, dtype=torch.bool).tril()
        self.scores = self._scores(self.q, self.k)
        self.pattern = self._softmax(self.scores)
        even = self.visible.double()
        self.even = (even / even.sum(1, keepdim=True)).expand_as(self.pattern)

    def measures(self) -> dict[str, float | str]:
        """Where the head reads between its two ends."""
        rows = slice(3, None)  # queries that see a few keys
        pattern = self.pattern[:, rows]
        entropy = -(pattern * pattern.clamp_min(1e-300).log()).sum(-1)
        share = entropy.exp() / self.visible.sum(1)[rows]
        unit = self.v.abs().amax().clamp_min(torch.finfo(self.v.dtype).tiny)
        centred = ((self.pattern - self.even) @ self.v)[:, rows] / unit  # squares of 1e-170 are 0
        # Below it a readout is the mean and rounding.
        least = product_rounding(self.even, self.v / unit)
        regression = _explained(centred, self._linear()[:, rows], least)
        retrieval = _explained(centred, self._best()[:, rows], least)
        if middle(share) > _EVEN or math.isnan(regression):
            kind = "averaging"
        elif max(regression, retrieval) < 0.5:
            kind = "between"
        else:
            kind = "regression" if regression > retrieval else "retrieval"
        return {
            "effective_keys": middle(entropy.exp()),
            "best_share": middle(pattern.amax(-1)),
            "first_share": middle(pattern[..., 0]),
            "regression_r2": regression,
            "retrieval_r2": retrieval,
            "kind": kind,
        }

    def exchanged(self, name: str) -> Float[Tensor, "batch position d_head"]:
        """What the head reads out after one exchange."""
        other_k, other_v = self.k.roll(1, 0), self.v.roll(1, 0)
        if name == "other context":
            return self._softmax(self._scores(self.q, other_k)) @ other_v
        if name == "other values":
            return self.pattern @ other_v
        if name == "turned geometry":
            d = self.q.shape[-1]
            draw = torch.randn(d, d, generator=derive_generator(*self.labels), dtype=torch.float64)
            turn, _ = torch.linalg.qr(draw)
            return self._softmax(self._scores(self.q @ turn, self.k)) @ self.v
        mean = self.even @ self.v
        if name == "no geometry":
            return mean
        if name == "retrieval":
            return mean + self._best()
        return (
            mean
            + nearest_factor((self.pattern - self.even) @ self.v, self._linear()) * self._linear()
        )

    def _linear(self) -> Float[Tensor, "batch position d_head"]:
        """Centred linear attention over the visible keys, without its gain."""
        scores = self.scores.masked_fill(~self.visible, 0.0)
        mean = (self.even * scores).sum(-1, keepdim=True)
        return (self.even * (scores - mean)) @ self.v

    def _best(self) -> Float[Tensor, "batch position d_head"]:
        """The value of the highest score, minus the visible mean."""
        best = self.pattern.argmax(-1)[..., None].expand(-1, -1, self.v.shape[-1])
        return self.v.gather(1, best) - self.even @ self.v

    def _scores(self, q: Tensor, k: Tensor) -> Float[Tensor, "batch query key"]:
        return self.scale * q @ k.transpose(1, 2)

    def _softmax(self, scores: Tensor) -> Float[Tensor, "batch query key"]:
        return scores.masked_fill(~self.visible, -torch.inf).softmax(-1)


def middle(values: Tensor) -> float:
    """The median, of an even number the mean of the middle two."""
    return float(values.flatten().quantile(0.5))


def nearest_factor(want: Tensor, have: Tensor) -> float:
    """The one factor that brings ``have`` nearest to ``want``; 0 where ``have`` is 0."""
    size = float(have.abs().amax())
    if size == 0:
        return 0.0
    unit = have / size  # squares of 1e-170 are 0
    return float((want * unit).sum() / unit.square().sum()) / size


def product_rounding(weights: Tensor, values: Tensor) -> float:
    """How much of ``‖weights @ values‖`` may be rounding."""
    return 64 * torch.finfo(values.dtype).eps * float((weights.abs() @ values.abs()).norm())


def _explained(want: Tensor, have: Tensor, least: float) -> float:
    """Share of ``‖want‖²`` that ``have`` explains with the best gain; 1 is all, 0 none, NaN of nothing."""
    size = float(want.norm())
    if size <= least:
        return math.nan
    return 1 - float((want - nearest_factor(want, have) * have).norm() / size) ** 2


def row_losses(
    model: CheckedModel,
    tokens: Tensor,
    batch_size: int,
    layer: int = 0,
    head: int = 0,
    z: Float[Tensor, "batch position d_head"] | None = None,
) -> Float[Tensor, " row"]:
    """Each row's next-token loss, with the head's readout replaced if one is given."""
    parts = []
    for i, rows in enumerate(tokens.split(batch_size)):
        edits: list[Edit] = []
        if z is not None:
            here = z[i * batch_size : (i + 1) * batch_size]
            edits = [((layer, "z"), partial(_with_readout, head=head, z=here))]
        parts.append(score_answers(Task(rows), run(model, rows, edits=edits).logits).values)
    return torch.cat(parts)


def _with_readout(x: Tensor, head: int, z: Tensor) -> Tensor:
    x = x.clone()
    x.view(*x.shape[:2], -1, z.shape[-1])[:, :, head] = z.to(x)
    return x
