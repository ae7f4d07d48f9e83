"""Take heads away and see what is lost.

A head is ablated by replacing its ``z`` (the values it gathered, before W_O):

========== =====================================================================================
how        what stands in its place
========== =====================================================================================
"mean"     its mean over the rows of a reference text, at each position by itself: what the head
           always writes there stays, what it says about this context goes
"pooled"   one mean over rows and positions: what it says about the position goes too
"zero"     nothing
"resample" its values at the same position of another row of the reference, drawn at random
========== =====================================================================================

The reference is the caller's text. On random tokens a head does not write what it writes on language, so a
mean taken there takes away more than the context.

Sources: Wang et al. 2022, *Interpretability in the Wild*, section 2 (mean ablation); Chan et al. 2022,
*Causal Scrubbing* (resampling).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lens_linear._tl import TransformerBridge
from lens_linear.checks import (
    counted,
    head_name,
    require_choice,
    require_heads,
    require_seed,
)
from lens_linear.circuits.induction.in_context import answer_losses, copy_losses
from lens_linear.circuits.induction.repeated_rows import draw_repeated
from lens_linear.errors import InvalidArgumentError
from lens_linear.models.batch_memory import sequences_a_pass
from lens_linear.models.capture import run
from lens_linear.models.checked import CheckedModel, ModelLike, checked
from lens_linear.models.describe.weights import require_attention_layers
from lens_linear.models.hooks import edited as edited_model
from lens_linear.models.spots import Edit, Spot
from lens_linear.progress import watched
from lens_linear.stats.task_scores import (
    RowScores,
    require_task,
    score_answers,
    warn_if_not_next_token,
)
from lens_linear.tables import Result
from lens_linear.text.task import Task

Head = tuple[int, int]
How = Literal["mean", "pooled", "zero", "resample"]
# Two runs of one row agree to this share of its largest value.
_SAME = {torch.float64: 1e-9, torch.float32: 1e-4}
HOWS: tuple[How, ...] = ("mean", "pooled", "zero", "resample")


@dataclass(frozen=True, eq=False)
class AblationScores(Result):
    """A metric with each head taken away, one at a time.

    Attributes:
        before: of the whole model.
        without: of the model without the head.
        lost_se: standard error of ``lost`` over rows (paired); NaN for one row.
        how: what stood in the head's place.
        metric: "in-context gain" (nats a token), or the task's metric.
        lower_is_better: whether the metric is a loss.
        n_rows: rows behind the means.
    """

    _figure = "ablation_map"
    _columns = ("head", "before", "without", "lost", "lost_se")

    before: float
    without: Float[Tensor, "layer head"]
    lost_se: Float[Tensor, "layer head"]
    how: How
    metric: str
    lower_is_better: bool
    n_rows: int

    @property
    def lost(self) -> Float[Tensor, "layer head"]:
        """What the head is worth, in the metric's unit: positive where the model does worse without it."""
        change = self.without - self.before
        return change if self.lower_is_better else -change

    def __repr__(self) -> str:
        layer, head = divmod(int(self.lost.argmax()), self.lost.shape[1])
        clear = int((self.lost.abs() > 2 * self.lost_se).sum())
        return (
            f"AblationScores: {self.metric} {self.before:.3f}; without {head_name(layer, head)} "
            f"{float(self.without[layer, head]):.3f} ({self.how} ablation, {counted(self.n_rows, 'row')}); "
            f"{clear} of {counted(self.lost.numel(), 'head')} change it by more than two standard errors"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Columns head, layer, index, before, without, lost, lost_se; heads in order."""
        layers, heads = self.without.shape
        return pd.DataFrame(
            {
                "head": [head_name(i, j) for i in range(layers) for j in range(heads)],
                "layer": [i for i in range(layers) for _ in range(heads)],
                "index": [j for _ in range(layers) for j in range(heads)],
                "before": self.before,
                "without": self.without.flatten().numpy(),
                "lost": self.lost.flatten().numpy(),
                "lost_se": self.lost_se.flatten().numpy(),
            }
        )


@dataclass(frozen=True, eq=False)
class StandIns:
    """What stands in the place of heads' ``z``.

    Attributes:
        values: [layer, row, position, head, d_head]: one row of means, all rows to draw from, or None for
            zeros. Pooled means have one position.
        how: how they were made.
        seed: of the draws.
    """

    values: Float[Tensor, "layer row position head d_head"] | None
    how: How
    model: CheckedModel = field(repr=False)
    seed: int = 0

    def edits(self, heads: Sequence[Head]) -> list[Edit]:
        """Return the edits that replace the ``z`` of heads."""
        layers = sorted({layer for layer, _ in heads})
        return [((layer, "z"), self._edit(layer, heads)) for layer in layers]

    def _edit(self, layer: int, heads: Sequence[Head]) -> Callable[[Tensor], Tensor]:
        own = [head for at, head in heads if at == layer]
        generator = torch.Generator().manual_seed(self.seed)

        def edit(z: Tensor) -> Tensor:
            split = z.clone().reshape(*z.shape[:2], self.model.n_heads, -1)
            split[:, :, own] = self._chosen(layer, own, z, generator)
            return split.reshape(z.shape)

        return edit

    def _chosen(self, layer: int, own: list[int], z: Tensor, generator: torch.Generator) -> Tensor:
        if self.values is None:
            return z.new_zeros(())
        rows, length = self.values.shape[1], z.shape[1]
        if self.how != "pooled" and length > self.values.shape[2]:
            raise InvalidArgumentError(
                f"the reference tokens must reach as far as the tokens that are run, got "
                f"{self.values.shape[2]} "
                f"positions for {length}; pass longer reference tokens, or how='pooled'"
            )
        row = torch.zeros(len(z), dtype=torch.int64)
        if self.how == "resample":
            row = torch.randint(rows, (len(z),), generator=generator)
            others = torch.randint(1, max(rows, 2), (len(z),), generator=generator)
            here = z.reshape(*z.shape[:2], self.model.n_heads, -1)[:, :, own]
            same = _same_rows(here, self.values[layer, row][:, :length, own])
            row = torch.where(same, (row + others) % rows, row)
        return self.values[layer, row][:, :length, own].to(z)


def _same_rows(z: Tensor, drawn: Float[Tensor, "row position head d_head"]) -> Tensor:
    """Which rows that were drawn are the ones that are run: none must stand in for itself."""
    apart = (z.to(drawn) - drawn).abs().flatten(1).amax(1)
    return apart <= _SAME.get(z.dtype, 2e-2) * drawn.abs().flatten(1).amax(1)


def stand_ins(
    model: CheckedModel,
    how: How,
    reference: Task | None,
    *,
    batch_size: int | None = None,
    seed: int = 0,
) -> StandIns:
    """Run the reference and keep what may stand in the heads' place."""
    if how == "zero":
        return StandIns(None, how, model)
    if reference is None:
        raise InvalidArgumentError(
            f"tokens must be given for how={how!r}: text of the kind that the model is run on, whose mean "
            "stands in the heads' place; pass tokens=ll.tokenize(model, text), or how='zero'"
        )
    if how == "resample":
        if not bool(reference.mask.all()):
            raise InvalidArgumentError(
                "tokens must have rows of one length for how='resample', got padded ones; cut them, or "
                "use how='mean'"
            )
        rows = [z for _, z in _z_of_rows(model, reference, batch_size)]
        return StandIns(torch.cat(rows, dim=1), how, model, seed)
    if how == "mean" and len(reference) < 2:
        raise InvalidArgumentError(
            "tokens must hold at least 2 rows for how='mean': the mean over one row is the row itself; pass "
            "more text of the same kind as the reference, or how='pooled'"
        )
    means = mean_z(model, reference, batch_size=batch_size, pooled=how == "pooled")
    return StandIns(means[:, None], how, model)


def mean_z(
    model: CheckedModel,
    reference: Task,
    *,
    batch_size: int | None = None,
    pooled: bool = False,
) -> Float[Tensor, "layer position head d_head"]:
    """Mean of every head's ``z`` at each position over the rows that reach it (or over everything: one)."""
    width = reference.tokens.shape[1]
    total = torch.zeros(model.n_layers, width, model.n_heads, model.d_head, dtype=torch.float64)
    for mask, z in _z_of_rows(model, reference, batch_size):
        total[:, : z.shape[2]] += (z * mask[:, :, None, None]).sum(1)
    count = reference.mask.sum(0).double()
    if pooled:
        return total.sum(1, keepdim=True) / count.sum()
    return total / count[:, None, None]


def _z_of_rows(
    model: CheckedModel, task: Task, batch_size: int | None
) -> Iterator[tuple[Tensor, Float[Tensor, "layer row position head d_head"]]]:
    spots: list[Spot] = [(layer, "z") for layer in range(model.n_layers)]
    for part in task_batches(model, task, batch_size) if spots else ():
        out = run(model, part, record=spots, logits=False)
        z = torch.stack([out[spot].to("cpu", torch.float64) for spot in spots])
        yield part.mask, z.reshape(*z.shape[:3], model.n_heads, -1)


def task_batches(model: CheckedModel, task: Task, batch_size: int | None) -> Iterator[Task]:
    """Cut a task into pieces of ``batch_size`` rows, or of what memory allows."""
    size = sequences_a_pass(model, task.tokens.shape[1], batch_size)
    starts = range(0, len(task), size)
    for start in watched(starts, len(starts)):
        yield task.take(slice(start, start + size))


@contextmanager
def ablate_heads(
    model: ModelLike,
    heads: Any,
    tokens: Any = None,
    *,
    how: How = "mean",
    seed: int = 0,
) -> Iterator[TransformerBridge]:
    """Run the model without some heads for the length of a ``with`` block.

    Args:
        model: a bridge; whole again after the block, also after an error.
        heads: one head or several, as ``"L1H3"`` or (layer, head).
        tokens: the reference: text (ids, or a Task) of the kind that is run inside the block. Not needed for
            ``how="zero"``.
        how: what stands in the heads' place: "mean" (their mean over the reference at each position),
            "pooled" (one mean over all positions), "zero", or "resample" (another row's values).
        seed: of the rows drawn by "resample".

    Yields:
        The model itself, whose listed heads are replaced while the block lasts.

    Raises:
        InvalidArgumentError: no such head, an unknown ``how``, no reference, or one shorter than what is run.
        UnsupportedModelError: the model has no attention that can be read.

    Example:
        >>> from lens_linear.models.open.toy import toy_model
        >>> model, tokens = toy_model(), torch.arange(8)[None]
        >>> whole = model(tokens)
        >>> with ablate_heads(model, ["L0H1", "L1H2"], how="zero"):
        ...     without = model(tokens)
        >>> bool((whole - without).abs().max() > 0), bool((model(tokens) == whole).all())
        (True, True)
    """
    model = checked(model)
    named = require_heads("heads", heads, n_layers=model.n_layers, n_heads=model.n_heads)
    require_choice("how", how, HOWS)
    reference = None if tokens is None else require_task(model, tokens)
    replacement = stand_ins(model, how, reference, seed=require_seed(seed))
    with edited_model(model, replacement.edits(named)):
        yield model.bridge


def ablation_scores(
    model: ModelLike,
    tokens: Any = None,
    *,
    how: How = "mean",
    reference: Any = None,
    periods: Sequence[int] | None = None,
    rows_per_period: int = 4,
    bos: int | Literal["auto"] | None = "auto",
    batch_size: int | None = None,
    seed: int = 0,
) -> AblationScores:
    """Measure what every single head is worth to a task, or to copying from random repeats.

    ``lost`` is how much worse the metric gets without the head, in its own unit: nats an answer for a loss.
    Around 0 for a head that is not needed, negative for one that hinders. One forward pass over the rows for
    each head.

    Args:
        model: a bridge, with or without MLPs.
        tokens: a Task, or text whose next tokens are scored. None draws random tokens that repeat, and the
            metric is the in-context gain: the loss of the first copy minus that of the second.
        how: what stands in the head's place, see :func:`ablate_heads`.
        reference: text for the means; ``tokens`` itself by default, and for random repeats eight times as
            many others, drawn at ``seed + 1``.
        periods: of the random repeats, as in :func:`~lens_linear.circuits.induction.scores.induction_scores`.
        rows_per_period: random rows for each period.
        bos: token put in front of random rows; "auto" takes the tokenizer's.
        batch_size: rows a forward pass; None takes what memory allows.
        seed: of the random rows and draws.

    Returns:
        AblationScores: ``.lost`` [layer, head] with its standard error; acts as a table with one row a head.

    Raises:
        InvalidArgumentError: an unknown ``how``, or periods that do not fit.
        UnsupportedModelError: no attention, or a context or vocabulary too small.

    Source: Olsson et al. 2022, *In-context Learning and Induction Heads* (ablations of single heads); Wang et
        al. 2022, *Interpretability in the Wild* (means by position).

    Example:
        >>> from lens_linear.constructions.induction_model import build_induction
        >>> built = build_induction(vocab=12, n_ctx=24)  # L0H0 and L1H1 do it, the others write nothing
        >>> found = ablation_scores(built.model, how="zero", periods=(4, 6))
        >>> (found.lost > 1).tolist()
        [[True, False], [False, True]]
    """
    model = checked(model)
    require_attention_layers(model)
    require_choice("how", how, HOWS)
    seed = require_seed(seed)
    if tokens is None:
        rows = draw_repeated(
            model, periods=periods, rows_per_period=rows_per_period, bos=bos, seed=seed
        ).repeating()
        task, metric = require_task(model, rows.tokens, scored=True), "in-context gain"
        # Other random rows, and many: means over the scored ones would keep a share of each.
        more = draw_repeated(
            model,
            periods=periods,
            rows_per_period=8 * rows_per_period,
            bos=bos,
            seed=(seed + 1) % 2**32,
        )
        reference = more.repeating().tokens if reference is None else reference

        def score(edits: Sequence[Edit]) -> RowScores:
            losses = answer_losses(model, task, edits=edits, batch_size=batch_size)
            one, two = copy_losses(losses, rows)
            return RowScores(one - two, torch.ones(len(one), dtype=torch.int64))
    else:
        task = require_task(model, tokens, scored=True)
        metric = task.metric_name

        def score(edits: Sequence[Edit]) -> RowScores:
            return score_task(model, task, edits=edits, batch_size=batch_size)

    source = task if reference is None else require_task(model, reference)
    if how == "resample" and source is task and len(task) < 2:
        raise InvalidArgumentError(
            "tokens must hold at least 2 rows for how='resample': another row's values stand in; pass more "
            "rows, or a reference"
        )
    replacement = stand_ins(model, how, source, batch_size=batch_size, seed=seed)
    before = score([])
    if tokens is not None and metric == "loss":
        warn_if_not_next_token(task, before.mean, model)
    without = torch.zeros(model.n_layers, model.n_heads, dtype=torch.float64)
    spread = torch.full_like(without, math.nan)
    for layer in range(model.n_layers):
        for head in range(model.n_heads):
            after = score(replacement.edits([(layer, head)]))
            without[layer, head] = after.mean
            spread[layer, head] = after.minus(before).standard_error
    return AblationScores(before.mean, without, spread, how, metric, metric == "loss", len(task))


def score_task(
    model: CheckedModel,
    task: Task,
    *,
    edits: Sequence[Edit] = (),
    batch_size: int | None = None,
) -> RowScores:
    """Score a model's answers with edits in place, row by row."""
    parts = []
    for part in task_batches(model, task, batch_size):
        logits = run(model, part, edits=edits).logits
        parts.append(score_answers(part, logits))
    return RowScores.joined(parts)
