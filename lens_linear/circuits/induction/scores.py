"""Which heads are induction heads, and which only look like them.

The usual score measures attention one period back on random tokens repeated with *one* period. A model of a
single layer trained on that period scores 0.78 by learning the offset, and fails at every other period. Here
periods are mixed and every number stands beside its positional control: the same queries and the same
offset, in rows where the key there means nothing.

=================== ==================================================== ==================================
column              attention from ... to ...                            control
=================== ==================================================== ==================================
prefix_matching     a repeated token to the one after its previous       positional_control
                    occurrence
duplicate           a repeated token to its previous occurrence          duplicate_control
prev_token          any token to the one before it                       mean of offsets 0 and 2
offset_mass         any token to the one ``offset`` back, the best of    uniform attention
                    all offsets from 2 on, in rows that do not repeat
=================== ==================================================== ==================================

**Verdict.** Each of the four relations has an excess, attention minus control. The verdict is the relation
with the largest excess among those that hold; "none" where none does, and "undecided" where the rows do not
tell. Everything is compared with two standard errors over rows: above the threshold by as much it holds,
below by as much it does not, between it is undecided. So other random rows may turn a name into "undecided",
but not into another name.

* "induction": excess of prefix_matching at least 0.2 on average over the periods, at least half of that at
  most periods (the median), and the head raises the logit of the token it should copy, by its direct path:
  ``target_logit`` at least the smallest effect that counts, a tenth of the strongest such head's, but not
  under 0.01 nor over 0.1 logits (``.smallest_effect``);
* "duplicate-token": excess of duplicate at least 0.2;
* "previous-token": excess of prev_token at least 0.2, and neither offset 0 nor 2 draws more;
* "positional": excess of offset_mass at least 0.2 at some fixed offset from 2 on.

Uniform attention has excess 0 in all four. On 60 random models no excess passed 0.05. A
head that follows the period but looks at another token near the previous occurrence (as heads above ones
that look two or three tokens back can) does not match prefixes in this sense and has no verdict. The
thresholds are conventions: they stand at about a third of what clear heads of the bundled models show
(0.6 to 0.9), and they are arguments (:class:`~lens_linear.circuits.induction.verdicts.Thresholds`).

>>> from lens_linear.models.open.toy import toy_model
>>> set(induction_scores(toy_model(n_layers=2))["verdict"])
{'none'}

Sources: Elhage et al. 2021, "Induction heads"; Olsson et al. 2022, *In-context Learning and Induction
Heads*, for prefix matching and copying; mixed periods and controls are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_linear.checks import (
    counted,
    head_name,
    require_float,
    require_head,
    require_instance,
    require_seed,
)
from lens_linear.circuits.attention.components import HeadOutputs
from lens_linear.circuits.heads.factored import copying_of
from lens_linear.circuits.heads.head_circuit import require_attention
from lens_linear.circuits.induction.repeated_rows import (
    AttentionStats,
    RepeatedRows,
    draw_repeated,
    measure,
)
from lens_linear.circuits.induction.verdicts import (
    VERDICTS,
    Evidence,
    Thresholds,
    Verdict,
    decide,
    reason,
    smallest_effect,
)
from lens_linear.errors import UnsupportedModelError
from lens_linear.models.capture import batched, run
from lens_linear.models.checked import STILL_WORK, CheckedModel, ModelLike, checked
from lens_linear.models.describe.weights import (
    ModelWeights,
    norm_scale,
    read_weights,
    require_attention_layers,
)
from lens_linear.models.spots import Spot
from lens_linear.models.threads import few_threads
from lens_linear.tables import Result


@dataclass(frozen=True, eq=False)
class InductionScores(Result):
    """Scores of every head, with controls and a verdict.

    Attributes:
        stats: attention means per period and offset, [.., layer, head].
        copying: eigenvalue copying score of each OV circuit; NaN where input and output vocabularies
            differ, or the weights do not say what heads write (a norm or a projection follows the
            embedding, values are clipped or gated).
        target_logit: mean direct effect of the head on the logit of the token that really comes next in
            the second copy, minus its mean effect on all tokens (logits); what the bias ``b_V`` writes
            everywhere is left out. NaN where it cannot be read.
        target_logit_se: its standard error over rows; NaN for one row.
        thresholds: behind the verdicts.
        bos: token put first in every row, or None.
        seed: of the rows.
    """

    _figure = "head_scores"
    _columns = (
        "head",
        "verdict",
        "prefix_matching",
        "positional_control",
        "copying",
        "target_logit",
        "prev_token",
        "duplicate",
    )

    stats: AttentionStats = field(repr=False)
    copying: Float[Tensor, "layer head"] = field(repr=False)
    target_logit: Float[Tensor, "layer head"] = field(repr=False)
    target_logit_se: Float[Tensor, "layer head"] = field(repr=False)
    thresholds: Thresholds
    bos: int | None
    seed: int

    @property
    def excess(self) -> Float[Tensor, "relation layer head"]:
        """Attention minus control of induction, duplicate, previous token and fixed offset, in order."""
        stats = self.stats
        near, previous, far = stats.neighbours
        positional = (stats.by_offset[2:] - stats.uniform[2:, None, None]).amax(0)
        return torch.stack(
            [
                (stats.prefix - stats.prefix_control).mean(0),
                (stats.duplicate - stats.duplicate_control).mean(0),
                previous - (near + far) / 2,
                positional,
            ]
        )

    @property
    def _own_excess(self) -> Float[Tensor, "layer head"]:
        """Excess of the relation that the verdict names; the largest for "none"."""
        excess, index = self.excess, self._decided
        own = excess.gather(0, index.clamp(max=len(excess) - 1)[None])[0]
        return torch.where(index < len(excess), own, excess.amax(0))

    @property
    def best_offset(self) -> Int[Tensor, "layer head"]:
        """The fixed offset, from 2 on, that draws most attention above uniform."""
        return (self.stats.by_offset[2:] - self.stats.uniform[2:, None, None]).argmax(0) + 2

    @cached_property
    def verdicts(self) -> list[list[Verdict]]:
        """One verdict a head, [layer][head]."""
        return [[VERDICTS[i] for i in row] for row in self._decided.tolist()]

    @cached_property
    def _decided(self) -> Int[Tensor, "layer head"]:
        return decide(self._evidence, self.thresholds)

    @property
    def smallest_effect(self) -> float:
        """The ``target_logit`` that an induction head needs: a share of the strongest head's (logits)."""
        return smallest_effect(self._evidence, self.thresholds)

    @cached_property
    def reasons(self) -> list[list[str]]:
        """Why each head has its verdict, in words, [layer][head]."""
        return [
            [
                reason(self._evidence, self.thresholds, index, layer, head)
                for head, index in enumerate(row)
            ]
            for layer, row in enumerate(self._decided.tolist())
        ]

    @property
    def _evidence(self) -> Evidence:
        near, previous, far = self.stats.neighbours
        return Evidence(
            self.excess,
            torch.stack([*self.stats.excess_se, self._offset_se]),
            (self.stats.prefix - self.stats.prefix_control).quantile(0.5, dim=0),
            previous - torch.maximum(near, far),
            self.target_logit,
            self.target_logit_se,
        )

    @property
    def _offset_se(self) -> Float[Tensor, "layer head"]:
        return self.stats.by_offset_se.gather(0, self.best_offset[None])[0]

    def ranked(self) -> pd.DataFrame:
        """Every head: those that have a verdict first, then the others, each by falling excess."""
        frame = self.to_dataframe().sort_values("excess", ascending=False, kind="stable")
        order = (frame["verdict"] == "none").argsort(kind="stable")
        return frame.iloc[order].reset_index(drop=True)

    def named(self) -> pd.DataFrame:
        """The heads that have a verdict, largest excess first, with their reasons; all others left out."""
        frame = self.ranked()
        return frame[frame["verdict"] != "none"]

    def _in_view(self) -> pd.DataFrame:
        return self.ranked()

    def heads(self, verdict: Verdict) -> list[tuple[int, int]]:
        """Return the (layer, head) pairs with a verdict, largest excess first."""
        found = [
            (layer, head)
            for layer, row in enumerate(self.verdicts)
            for head, value in enumerate(row)
            if value == verdict
        ]
        return sorted(found, key=lambda at: -float(self._own_excess[at]))

    def __repr__(self) -> str:
        counts = {
            verdict: sum(row.count(verdict) for row in self.verdicts) for verdict in VERDICTS[:-1]
        }
        named = ", ".join(f"{n} {verdict}" for verdict, n in counts.items() if n) or "no named head"
        layers, heads = self.copying.shape
        return (
            f"InductionScores of {counted(layers * heads, 'head')}: {named}; "
            f"{counted(self.stats.n_rows, 'random row')}, "
            f"periods {', '.join(map(str, self.stats.periods))}"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row a head: head, layer, index, the scores of the module's table, copying, verdict, reason.

        ``excess`` is that of the verdict's relation, or the largest where there is none. :meth:`ranked`
        puts the strongest first, :meth:`named` leaves out the heads without a verdict.
        """
        stats = self.stats
        layers, heads = self.copying.shape
        best = self.best_offset
        columns = {
            "prefix_matching": stats.prefix.mean(0),
            "positional_control": stats.prefix_control.mean(0),
            "copying": self.copying,
            "target_logit": self.target_logit,
            "target_logit_se": self.target_logit_se,
            "prev_token": stats.neighbours[1],
            "duplicate": stats.duplicate.mean(0),
            "duplicate_control": stats.duplicate_control.mean(0),
            "offset": best,
            "offset_mass": stats.by_offset.gather(0, best[None])[0],
            "first_token": stats.first,
            "prefix_se": stats.prefix_se,
            "excess": self._own_excess,
        }
        frame = pd.DataFrame(
            {
                "head": [
                    head_name(layer, head) for layer in range(layers) for head in range(heads)
                ],
                "layer": [layer for layer in range(layers) for _ in range(heads)],
                "index": [head for _ in range(layers) for head in range(heads)],
                **{name: value.flatten().numpy() for name, value in columns.items()},
            }
        )
        frame["verdict"] = [verdict for row in self.verdicts for verdict in row]
        frame["reason"] = [reason for row in self.reasons for reason in row]
        return frame

    def period_table(
        self, layer: int | str | tuple[int, int], head: int | None = None
    ) -> pd.DataFrame:
        """One row a period for one head, named ``1, 3`` or ``"L1H3"``: both scores and their controls."""
        stats = self.stats
        n_layers, n_heads = self.copying.shape
        asked = layer if head is None else (layer, head)
        layer, head = require_head("head", asked, n_layers=n_layers, n_heads=n_heads)
        return pd.DataFrame(
            {
                "period": stats.periods,
                "prefix_matching": stats.prefix[:, layer, head].numpy(),
                "positional_control": stats.prefix_control[:, layer, head].numpy(),
                "duplicate": stats.duplicate[:, layer, head].numpy(),
                "duplicate_control": stats.duplicate_control[:, layer, head].numpy(),
            }
        )


def induction_scores(
    model: ModelLike,
    *,
    periods: Sequence[int] | None = None,
    rows_per_period: int = 8,
    bos: int | Literal["auto"] | None = "auto",
    thresholds: Thresholds | None = None,
    batch_size: int | None = None,
    seed: int = 0,
) -> InductionScores:
    """Score every head for induction, previous-token, duplicate-token and fixed-offset attention.

    Args:
        model: a bridge, with or without MLPs.
        periods: repeat periods to mix, at least two, from 3 on. By default six from 6 to 32, fewer and
            shorter where the context or the vocabulary is small.
        rows_per_period: random rows for each period.
        bos: token id put in front of every row; "auto" takes the tokenizer's, None puts none.
        thresholds: of the verdicts.
        batch_size: rows a forward pass; None takes what memory allows.
        seed: of the random tokens.

    Returns:
        A table, one row a head, with columns prefix_matching, copying, prev_token, duplicate,
        positional_control, verdict and others; see the module for what they mean.

    Raises:
        UnsupportedModelError: no attention, or a context or vocabulary too small for two periods.

    Source: Elhage et al. 2021, "Induction heads"; Olsson et al. 2022 for prefix matching and copying; mixed
        periods and controls are ours.

    Example:
        >>> from lens_linear.models.open.load import load
        >>> scores = induction_scores(load("attn-2l"))
        >>> bool((scores["verdict"] == "induction").any())
        True
    """
    model = checked(model)
    model.require_causal()
    with few_threads(model.d_model):
        weights = _weights(model)
    limits = Thresholds() if thresholds is None else thresholds
    require_instance("thresholds", limits, Thresholds, advice="e.g. Thresholds()")
    for name, value in vars(limits).items():
        require_float(f"thresholds.{name}", value, minimum=0.0, maximum=1.0)
    rows = draw_repeated(
        model, periods=periods, rows_per_period=rows_per_period, bos=bos, seed=require_seed(seed)
    )
    first = int(rows.tokens[0, 0]) if rows.start else None
    copying = torch.full((model.n_layers, model.n_heads), float("nan"), dtype=torch.float64)
    target, spread = copying.clone(), copying.clone()
    with few_threads(model.d_model):
        stats = measure(model, rows, batch_size=batch_size)
        if weights is not None:
            copying = _copying(weights)
            # A norm behind the attention that cannot be split leaves these NaN.
            with suppress(UnsupportedModelError):
                target, spread = _target_logit(model, HeadOutputs(model, weights), rows, batch_size)
    return InductionScores(stats, copying, target, spread, limits, first, seed)


def _weights(model: CheckedModel) -> ModelWeights | None:
    """Read the weights; None where they do not say what heads write, so that only patterns can be scored."""
    require_attention_layers(model)
    bare = [layer for layer in range(model.n_layers) if not model.has((layer, "pattern"))]
    if bare:
        raise UnsupportedModelError(
            f"model {model.name!r} must have attention in every layer, but layers {bare} show "
            f"none; {STILL_WORK}"
        )
    try:
        return read_weights(model)
    except UnsupportedModelError:
        return None


def _copying(weights: ModelWeights) -> Float[Tensor, "layer head"]:
    """Copying scores of all OV circuits; the vocabulary is summed over once for all heads."""
    attention = require_attention(weights)
    layers, heads = attention.W_O.shape[:2]
    scores = torch.full((layers, heads), float("nan"), dtype=torch.float64)
    if len(weights.W_E) == weights.W_U.shape[1]:
        through = attention.W_O.new_zeros(len(weights.W_U), len(weights.W_U))
        for some in torch.arange(weights.n_tokens).split(2048):
            through += weights.class_directions(some).T @ weights.W_E[some]
        values = torch.linalg.eigvals(attention.W_O @ through @ attention.W_V)
        for layer in range(layers):
            for head in range(heads):
                scores[layer, head] = copying_of(values[layer, head])
    return scores


def _target_logit(
    model: CheckedModel, heads: HeadOutputs, rows: RepeatedRows, batch_size: int | None
) -> tuple[Float[Tensor, "layer head"], Float[Tensor, "layer head"]]:
    """Direct effect of each head on the right next token in the second copy, and its standard error.

    What ``b_V`` writes is the same everywhere, whatever the head looks at, and is left out.
    """
    weights = heads.weights
    attention = require_attention(weights)
    n_layers, out_vocab = len(attention.W_O), weights.W_U.shape[1]
    spots: list[Spot] = [(layer, "z") for layer in range(n_layers)]
    spots.append((n_layers - 1, "resid_post"))
    repeating = rows.periods > 0
    periods = rows.periods[repeating]
    sums, counts = [], []  # by row
    for first, part in batched(rows.tokens[repeating], batch_size, model=model):
        out = run(model, part, record=spots, logits=False)
        own = periods[first : first + len(part)][:, None]
        at = torch.arange(part.shape[1] - 1)[None] - rows.start
        # Second copy, except its last token: what follows there is another copy or the end.
        inside = (at >= own) & (at < 2 * own - 1) & (part[:, 1:] < out_vocab)
        row, position = inside.nonzero().unbind(1)
        wanted = weights.class_directions(part[row, position + 1])
        stream = out[spots[-1]].to("cpu", torch.float64)[row, position]
        wanted = wanted / norm_scale(stream, weights.final_norm, weights.eps)
        found = torch.zeros(len(part), *attention.W_O.shape[:2], dtype=torch.float64)
        for layer in range(n_layers):
            z = out[(layer, "z")].to("cpu", torch.float64)[row, position]
            z = z.reshape(len(row), attention.W_O.shape[1], -1)
            reads = wanted / heads.post_scale(z, layer)
            z = z - attention.b_V[layer]
            each = torch.einsum("nhe,hed,nd->nh", z, attention.W_O[layer], reads)
            found[:, layer].index_add_(0, row, each)
        sums.append(found)
        counts.append(inside.sum(1))
    total, count = torch.cat(sums), torch.cat(counts).double()
    mean = total.sum(0) / count.sum().clamp_min(1)
    n = len(total)
    if n < 2:
        return mean, torch.full_like(mean, math.nan)
    apart = total - count[:, None, None] * mean
    return mean, (apart.square().sum(0) * n / (n - 1)).sqrt() / count.sum().clamp_min(1)
