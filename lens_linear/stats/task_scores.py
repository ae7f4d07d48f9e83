"""A task in front of a model: it is checked against the model's inputs and outputs, and answers are scored.

Scores are kept by row, because rows are what a split never cuts and what a standard error counts. The mean
weighs rows by their answers, so that it is the mean over answers also when rows differ in length.

>>> from lens_linear.models.open.toy import toy_model
>>> model = toy_model(n_layers=1, seed=0)
>>> task = require_task(model, Task([[3, 1, 4], [1, 5]], labels=[7, 8], metric="accuracy"))
>>> score_answers(task, torch.eye(64)[torch.tensor([[1, 2, 7], [3, 4, 0]])]).values.tolist()
[1.0, 0.0]
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_linear.checks import counted, shown
from lens_linear.errors import (
    InvalidArgumentError,
    LensLinearWarning,
    NonFiniteError,
    NotEnoughDataError,
    UnsupportedModelError,
)
from lens_linear.models.capture import require_model_rows
from lens_linear.models.checked import CheckedModel, ModelLike, checked
from lens_linear.text.task import Metric, Task

# Untrained models lie up to 0.04 nats above a uniform guess; what was asked the wrong thing lies far above.
_SLACK = 0.1


@dataclass(frozen=True, eq=False)
class RowScores:
    """A metric by row.

    Attributes:
        values: [row], float64, the mean over the row's answers (0 for a row without any).
        counts: [row], its answers.
    """

    values: Float[Tensor, " row"]
    counts: Int[Tensor, " row"]

    def __repr__(self) -> str:
        answers, rows = int(self.counts.sum()), len(self.counts)
        mean = f"{self.mean:.4g} ± {self.standard_error:.2g}"
        return f"RowScores: mean {mean}; {counted(answers, 'answer', ',')} in {counted(rows, 'row', ',')}"

    @classmethod
    def joined(cls, parts: Sequence[RowScores]) -> RowScores:
        """The scores of several groups of rows, one after the other."""
        return cls(torch.cat([p.values for p in parts]), torch.cat([p.counts for p in parts]))

    @property
    def mean(self) -> float:
        """Mean over all answers."""
        return float((self.values * self.counts).sum() / self.counts.sum())

    @property
    def standard_error(self) -> float:
        """Standard error of the mean over independent rows: s / √n for equal counts; NaN for one row."""
        n = len(self.values)
        if n < 2:
            return math.nan
        share = self.counts.double() / self.counts.sum()
        return float((share * (self.values - self.mean)).square().sum().mul(n / (n - 1)).sqrt())

    def minus(self, other: RowScores) -> RowScores:
        """Row by row, so that the standard error is that of a paired difference."""
        return RowScores(self.values - other.values, self.counts)


def require_task(
    model: ModelLike,
    tokens: Any,
    *,
    min_length: int = 1,
    scored: bool = False,
) -> Task:
    """Accept a Task, or tokens of any kind as the question for the next token, that fit the model.

    Args:
        model: a bridge.
        tokens: a Task, or ids as :mod:`lens_linear.token_rows` reads them.
        min_length: tokens that the longest row needs.
        scored: whether answers will be scored; the next token is no question for a model that sees it.

    Raises:
        InvalidArgumentError: ids outside the vocabulary, rows beyond the context, labels or names that are
            not outputs of the model.
        NotEnoughDataError: too few rows, or too short ones.
        UnsupportedModelError: ``scored``, and next tokens are asked of a model that sees later ones.
    """
    model = checked(model)
    rows = require_model_rows(model, tokens, min_length=min_length)
    if scored:
        require_open_question(model, tokens if isinstance(tokens, Task) else None)
    asked = tokens if isinstance(tokens, Task) else Task(rows.tokens, mask=rows.mask)
    if scored and not bool(asked.asked.any()):
        raise NotEnoughDataError(
            "tokens have one token a row, and a row of one token has no next one; pass longer rows"
        )
    if not isinstance(tokens, Task):
        return asked
    n = model.d_vocab_out
    if tokens.labels is not None and int(tokens.labels.max()) >= n:
        raise InvalidArgumentError(
            f"labels go up to {int(tokens.labels.max())} but {model.name!r} has outputs 0 to "
            f"{n - 1}; pass indices of its outputs"
        )
    if tokens.names is not None and len(tokens.names) != n:
        raise InvalidArgumentError(
            f"names must name each of the {n} outputs of {model.name!r}, got {len(tokens.names)}; "
            "pass one word an output"
        )
    return tokens


def require_open_question(model: CheckedModel, task: Task | None) -> None:
    """Refuse to ask a model for next tokens (no task asks for them too) that it sees when it answers.

    Raises:
        UnsupportedModelError: the model sees later tokens, and no labels say what else it answers.
    """
    if not model.is_causal and (task is None or task.is_next_token):
        refuse_seen_tokens(model.name)


def refuse_seen_tokens(name: str) -> NoReturn:
    """Say that next tokens are no question for the model of that name."""
    raise UnsupportedModelError(
        f"model {name!r} sees later tokens, so the next token is no question for it; say "
        "what it answers: lens_linear.Task(tokens, labels=..., positions=...)"
    )


def answer_values(
    task: Task, logits: Float[Tensor, "row position output"], *, metric: Metric | None = None
) -> Float[Tensor, " answer"]:
    """The metric of each answer, row by row (in the order of ``task.asked``), on the logits' device.

    Args:
        task: the question.
        logits: at every position of the task's tokens.
        metric: the task's own by default.

    Raises:
        NonFiniteError: NaN or infinite logits.
        UnsupportedModelError: the right answer is none of the model's outputs.
    """
    metric = task.metric if metric is None else metric
    parts = list(_answers(task, logits))
    if not parts:
        raise NotEnoughDataError(
            "tokens have nothing to predict: rows of one token have no next one; pass longer rows, or labels"
        )
    return torch.cat([_values(metric, *part) for part in parts])


def score_answers(
    task: Task, logits: Float[Tensor, "row position output"], *, metric: Metric | None = None
) -> RowScores:
    """:func:`answer_values` as means by row."""
    values = answer_values(task, logits, metric=metric).detach().double().cpu()
    row = task.asked.nonzero()[:, 0]
    counts = task.asked.sum(1)
    sums = torch.zeros(len(task), dtype=torch.float64).index_add_(0, row, values)
    return RowScores(sums / counts.clamp(min=1), counts)


def warn_if_not_next_token(task: Task, loss: float, model: ModelLike) -> None:
    """:func:`warn_if_worse_than_a_guess` of a model's own loss."""
    model = checked(model)
    name, n = model.name, model.d_vocab_out
    warn_if_worse_than_a_guess(task, loss, name, n, stacklevel=4)


def warn_if_worse_than_a_guess(
    task: Task, loss: float, name: str, n_outputs: int, *, stacklevel: int = 3
) -> None:
    """Say it when a model predicts the next token worse than a uniform guess: it was asked the wrong thing.

    Only for plain tokens: a task with labels or positions says what is asked.
    """
    guess = math.log(n_outputs)
    if task.is_next_token and task.positions is None and loss > guess + _SLACK:
        warnings.warn(
            f"the next-token loss of {name!r} is {loss:.3f} nats, worse than a uniform guess over its "
            f"{n_outputs} outputs ({guess:.3f}); if it was trained to answer something else, say what "
            "is right: lens_linear.Task(tokens, labels=..., positions=...)",
            LensLinearWarning,
            stacklevel=stacklevel,
        )


def _answers(task: Task, logits: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Logits [answer, output], right and wrong answers of each row: never all rows' logits copied at once."""
    asked, targets, wrong = task.asked, task.targets, task.wrong
    if bool(asked.any()) and int(targets.max()) >= logits.shape[-1]:
        raise UnsupportedModelError(
            f"the model has {logits.shape[-1]} outputs but the answers go up to {int(targets.max())}; a "
            "next-token loss needs one vocabulary for both: pass lens_linear.Task(tokens, labels=...)"
        )
    for row in range(len(task)):
        place = asked[row]
        if not bool(place.any()):
            continue
        given = logits[row, : len(place)][place.to(logits.device)]
        if not bool(torch.isfinite(given).all()):
            raise NonFiniteError(
                "the logits hold NaN or infinity; load the model in a wider precision, or replace "
                "fewer layers"
            )
        given = given.to(torch.promote_types(given.dtype, torch.float32))
        right = targets[row][place].to(given.device)
        yield given, right, None if wrong is None else wrong[row][place].to(given.device)


def _values(metric: Metric, logits: Tensor, right: Tensor, wrong: Tensor | None) -> Tensor:
    if metric == "loss":
        return torch.nn.functional.cross_entropy(logits, right, reduction="none")
    if metric == "accuracy":
        return (logits.argmax(-1) == right).to(logits.dtype)
    at = logits.gather(1, right[:, None])[:, 0]
    if metric == "logit_difference":
        if wrong is not None:
            return at - logits.gather(1, wrong[:, None])[:, 0]
        return at - (logits.sum(1) - at) / max(1, logits.shape[1] - 1)
    try:
        made = torch.as_tensor(metric(logits, right), device=logits.device).to(logits.dtype)
    except Exception as reason:
        raise InvalidArgumentError(
            f"metric must give numbers for (logits [answer, output], labels [answer]), but {shown(metric)} "
            f"failed ({type(reason).__name__}: {reason}); mend it"
        ) from reason
    if made.ndim == 0:
        made = made.expand(len(right))
    if made.shape != right.shape or not bool(torch.isfinite(made).all()):
        raise InvalidArgumentError(
            f"metric must give one finite number, or one for each of {len(right)} answers, got shape "
            f"{tuple(made.shape)}; it is called with logits [answer, output] and labels [answer] of one row"
        )
    return made
