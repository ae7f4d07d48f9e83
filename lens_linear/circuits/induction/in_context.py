"""What a model gains from its context: the loss along the sequence, and in the second copy of repeats.

On random tokens that repeat, nothing can be predicted in the first copy, and everything in the second by a
model that finds the previous occurrence: the difference is the *in-context gain*, in nats a token. On text
the curve over the token index says the same more softly.

Source: Elhage et al. 2021, "Induction heads"; Olsson et al. 2022 for the loss by token index.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_linear.checks import counted
from lens_linear.circuits.induction.repeated_rows import RepeatedRows, draw_repeated
from lens_linear.errors import NotEnoughDataError, UnsupportedModelError
from lens_linear.models.capture import row_ranges, run
from lens_linear.models.checked import CheckedModel, ModelLike, checked
from lens_linear.models.spots import Edit
from lens_linear.stats.split import as_rows
from lens_linear.stats.task_scores import (
    answer_values,
    require_open_question,
    require_task,
    warn_if_not_next_token,
)
from lens_linear.tables import Result
from lens_linear.text.task import Task

Alignment = Literal["token index", "second copy"]

_FAR = 3.0  # times the loss of a guess; language models lose 1.6 to 1.8 times as much on random ids


@dataclass(frozen=True, eq=False)
class InContextLoss(Result):
    """Mean loss along the sequence.

    Attributes:
        points: index of the predicted token. "token index" counts from the start of the row (so it says how
            many tokens stand before the answer); "second copy" from the first token of the second copy, so
            that the first copy has negative indices.
        loss: mean over rows, nats.
        se: standard error of the mean over rows.
        n: rows behind each mean.
        first: mean loss of the first half of each row's answers, or of the first copy (its first token left
            out).
        second: of the second half, or of the second copy (its first token left out: nothing says where
            the repeat begins).
        aligned: what the index counts from.
    """

    _figure = "in_context_loss"

    points: Int[Tensor, " point"]
    loss: Float[Tensor, " point"]
    se: Float[Tensor, " point"]
    n: Int[Tensor, " point"]
    first: float
    second: float
    aligned: Alignment
    n_rows: int = field(default=0)

    @property
    def gain(self) -> float:
        """``first - second``, nats a token: what the context is worth."""
        return self.first - self.second

    def __repr__(self) -> str:
        halves = ("first half", "second half")
        copies = ("first copy", "second copy")
        one, two = halves if self.aligned == "token index" else copies
        return (
            f"InContextLoss over {counted(self.n_rows, 'row')}: {self.first:.3f} nats in the {one}, "
            f"{self.second:.3f} in the {two}, gain {self.gain:+.3f}"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Columns index, loss, se, n."""
        return pd.DataFrame(
            {
                "index": self.points.numpy(),
                "loss": self.loss.numpy(),
                "se": self.se.numpy(),
                "n": self.n.numpy(),
            }
        )


def in_context_loss(
    model: ModelLike,
    tokens: Any = None,
    *,
    periods: Sequence[int] | None = None,
    rows_per_period: int = 8,
    bos: int | Literal["auto"] | None = "auto",
    batch_size: int | None = None,
    seed: int = 0,
) -> InContextLoss:
    """Measure the loss along sequences: given ones by token index, or random repeats by copy.

    Nats a token. ``gain = first - second``: 0 for a model that does not use its context; on random repeats a
    model that copies perfectly gains about the log of the vocabulary.

    Args:
        model: a bridge.
        tokens: sequences of text, or a :class:`~lens_linear.Task`, whose answers are followed (by their
            cross-entropy, whatever its metric); None draws random tokens that repeat with mixed periods.
        periods: of the random repeats, as in :func:`~lens_linear.circuits.induction.scores.induction_scores`.
        rows_per_period: random rows for each period.
        bos: token put in front of random rows; "auto" takes the tokenizer's.
        batch_size: rows a forward pass; None takes what memory allows.
        seed: of the random tokens.

    Returns:
        InContextLoss: the loss by index with its standard error, ``.gain``; acts as a table.

    Raises:
        UnsupportedModelError: the model predicts fewer tokens than it reads, or its context is too small for
            two periods.
        NotEnoughDataError: rows of fewer than 3 tokens, or with fewer than two answers.
        InvalidArgumentError: ids that do not fit the model.

    Source: Elhage et al. 2021, "Induction heads"; Olsson et al. 2022 for the loss by token index.

    Example:
        >>> from lens_linear.models.open.load import load
        >>> in_context_loss(load("attn-2l")).gain > 2
        True
    """
    model = checked(model)
    task = None if tokens is None else require_task(model, tokens, min_length=3)
    require_open_question(model, task)
    if model.d_vocab_out < model.d_vocab and (task is None or task.is_next_token):
        raise UnsupportedModelError(
            f"model {model.name!r} reads {model.d_vocab} tokens and predicts {model.d_vocab_out}; a "
            "next-token loss needs one vocabulary: pass lens_linear.Task(tokens, labels=...)"
        )
    if task is not None:
        losses = answer_losses(model, task, batch_size=batch_size)
        warn_if_not_next_token(task, float(losses.nanmean()), model)
        return _by_index(losses)
    probe = draw_repeated(
        model, periods=periods, rows_per_period=rows_per_period, bos=bos, seed=seed
    ).repeating()
    found = _by_copy(answer_losses(model, Task(probe.tokens), batch_size=batch_size), probe)
    if found.second > _FAR * math.log(model.d_vocab_out):
        warn_if_not_next_token(require_task(model, probe.tokens), found.second, model)
    return found


def copy_losses(
    losses: Float[Tensor, "row position"], rows: RepeatedRows
) -> tuple[Float[Tensor, " row"], Float[Tensor, " row"]]:
    """Mean loss of every row's first and second copy, each without its first token."""
    losses = losses[:, : rows.tokens.shape[1] - 1]  # nothing follows the last token
    # Entry t of the losses predicts token t + 1, which is token t + 1 - start of the repeating part.
    index = torch.arange(losses.shape[1])[None] + 1 - rows.start
    period = rows.periods[:, None]
    first = (index >= 1) & (index < period)
    second = (index > period) & (index < 2 * period)
    return (
        (losses * first).sum(1) / first.sum(1),
        (losses * second).sum(1) / second.sum(1),
    )


def _by_copy(losses: Tensor, rows: RepeatedRows) -> InContextLoss:
    first, second = copy_losses(losses, rows)
    index = torch.arange(losses.shape[1])[None] + 1 - rows.start
    relative = (index - rows.periods[:, None]).expand_as(losses)
    inside = (index >= 1) & (index < 2 * rows.periods[:, None])
    points, values = [], []
    for point in torch.unique(relative[inside]).tolist():
        points.append(point)
        values.append(losses[inside & (relative == point)])
    return _curve(
        points, values, float(first.mean()), float(second.mean()), "second copy", len(losses)
    )


def answer_losses(
    model: CheckedModel,
    task: Task,
    *,
    batch_size: int | None = None,
    edits: Sequence[Edit] = (),
) -> Float[Tensor, "row position"]:
    """Loss of every answer in float64, where it is given; NaN where nothing is asked."""
    rows = as_rows(model, task)
    found = torch.full((len(rows), rows.length), float("nan"), dtype=torch.float64)
    for start, stop in row_ranges(rows, batch_size, model=model):
        part = rows.asked(slice(start, stop))
        out = run(model, part.tokens, edits=edits).logits
        if bool(part.asked.any()):
            losses = answer_values(part, out.to("cpu", torch.float64), metric="loss")
            found[start:stop, : part.tokens.shape[1]][part.asked] = losses
    return found


def _by_index(losses: Float[Tensor, "row position"]) -> InContextLoss:
    """The curve over how many tokens stand before the answer; each row's answers cut into halves."""
    asked = ~losses.isnan()
    earlier = asked & (asked.cumsum(1) <= asked.sum(1, keepdim=True) // 2)
    if not bool(earlier.any()):
        raise NotEnoughDataError(
            "tokens must ask for two answers or more in some row, so that there is an earlier and a later "
            "half, but the Task asks for one in each; pass labels or positions at several places"
        )
    columns = asked.any(0).nonzero().flatten().tolist()
    values = [losses[asked[:, at], at] for at in columns]
    first, second = float(losses[earlier].mean()), float(losses[asked & ~earlier].mean())
    points = [at + 1 for at in columns]
    return _curve(points, values, first, second, "token index", len(losses))


def _curve(
    points: list[int],
    values: list[Tensor],
    first: float,
    second: float,
    aligned: Alignment,
    n_rows: int,
) -> InContextLoss:
    n = torch.tensor([len(v) for v in values])
    se = [v.std() / len(v) ** 0.5 if len(v) > 1 else torch.tensor(float("nan")) for v in values]
    mean = torch.stack([v.mean() for v in values])
    index = torch.tensor(points)
    return InContextLoss(index, mean, torch.stack(se).double(), n, first, second, aligned, n_rows)
