"""What a model scores on the task it is asked, with or without edits, row by row."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lens_linear.checks import counted
from lens_linear.models.capture import per_block, row_ranges, run
from lens_linear.models.checked import ModelLike, checked
from lens_linear.models.hooks import hooked
from lens_linear.models.spots import Edit
from lens_linear.stats.split import RowView, as_rows
from lens_linear.stats.task_scores import (
    RowScores,
    require_open_question,
    score_answers,
    warn_if_not_next_token,
)


@dataclass(frozen=True, eq=False)
class ModelScores:
    """Cross-entropy of the right answers in nats, and the task's own metric (the same for "loss")."""

    loss: RowScores
    metric: RowScores

    def __repr__(self) -> str:
        def words(one: RowScores) -> str:
            return f"{one.mean:.4g} ± {one.standard_error:.2g}"

        answers, rows = int(self.loss.counts.sum()), len(self.loss.counts)
        return (
            f"ModelScores: loss {words(self.loss)} nats, metric {words(self.metric)} (mean ± standard "
            f"error over rows); {counted(answers, 'answer', ',')} in {counted(rows, 'row', ',')}"
        )


def score_model(
    model: ModelLike,
    rows: Any,
    *,
    edits: Sequence[Edit] = (),
    batch_size: int | None = None,
    warn: bool = True,
    on_progress: Callable[[float], None] | None = None,
) -> ModelScores:
    """Score a model's answers on rows: the next token, or what the rows' task asks.

    Args:
        model: a bridge.
        rows: a Task, tokens [row, position], or what :func:`lens_linear.stats.as_rows` made of them.
        edits: hooks in place while it runs.
        batch_size: sequences a forward pass; as many as memory allows by default.
        warn: say it when the model as it is predicts the next token worse than a uniform guess.
        on_progress: called after every block with the share of the rows that is done.

    Returns:
        Losses and the task's metric by row, in the order of ``rows``.

    Raises:
        UnsupportedModelError: next tokens are asked of a model that sees later ones.
        NotEnoughDataError: rows of one token have no next one.
        NonFiniteError: the logits are not finite.

    Example:
        >>> from lens_linear.models.open.toy import toy_model
        >>> from lens_linear.stats.split import as_rows
        >>> model = toy_model(n_layers=1, seed=0)
        >>> score_model(model, as_rows(model, [[1, 2, 3], [4, 5]])).loss.counts.tolist()
        [1, 2]
    """
    model = checked(model)
    rows = rows if isinstance(rows, RowView) else as_rows(model, rows)
    require_open_question(model, rows.task)
    losses, metrics = [], []
    share = None if on_progress is None else lambda count: on_progress(count / len(rows))
    for start, stop in row_ranges(rows, batch_size, model=model):
        task = rows.asked(slice(start, stop))
        with hooked(model, per_block(model, share, start, stop)):
            logits = run(model, task.tokens, edits=edits).logits
        losses.append(score_answers(task, logits, metric="loss"))
        metrics.append(losses[-1] if task.metric == "loss" else score_answers(task, logits))
    loss = RowScores.joined(losses)
    if warn and not edits:
        warn_if_not_next_token(task, loss.mean, model)
    return ModelScores(loss, RowScores.joined(metrics))


def perplexity(loss: float) -> float:
    """``exp(loss)``; infinite where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf
