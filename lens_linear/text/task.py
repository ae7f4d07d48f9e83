"""What a model is asked: tokens, where it answers, what is right, what is padding, how answers are scored.

Most analyses take tokens and score the next one everywhere. A model that was trained on something else
(is this row a palindrome, what is the sum) is asked by a :class:`Task`, accepted wherever tokens are.

>>> task = Task([[3, 1, 4, 0], [2, 7, 0]], labels=[1, 0], positions=-1, names=["no", "yes"])
>>> task
Task: 2 rows of 3 to 4 tokens, 2 answers at 1 position a row, among 'no', 'yes', scored by loss
>>> task.targets.tolist()  # -100 where nothing is asked
[[-100, -100, -100, 1], [-100, -100, 0, -100]]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lens_linear.checks import counted, require_list, shown
from lens_linear.errors import InvalidArgumentError
from lens_linear.token_rows import PaddedRows, read_token_rows

NOT_ASKED = -100  # as torch.nn.functional.cross_entropy has it

Metric = Literal["loss", "logit_difference", "accuracy"] | Callable[[Tensor, Tensor], Tensor]
METRICS = ("loss", "logit_difference", "accuracy")


@dataclass(frozen=True, eq=False)
class Task:
    """Tokens with the answers that are right; by default the next token at every position, without pads.

    Fields hold what was passed in one layout: rows are padded on the right, positions count from each
    row's first real token. So ``dataclasses.replace(task, metric="accuracy")`` works.

    Attributes:
        tokens: ids [row, position], int64. In: whatever :mod:`lens_linear.token_rows` reads (tensors and
            arrays of any integer dtype, lists of uneven rows, tokenizer output, a data set).
        labels: [row, answer], the right output of each answer; None asks for the next token. In: one a row,
            [row, position] with -100 where nothing is asked, or [row, answer] beside ``positions``. With
            ``metric="logit_difference"`` a last axis of two may hold the right and a wrong answer. Names
            stand for indices when ``names`` is given.
        positions: [row, answer], where the model answers; None is everywhere. In: one number or a list for
            all rows, or a tensor [row] or [row, answer]. They count columns of the tokens as passed;
            negative ones count back from the row's last real token.
        mask: bool [row, position], True for real tokens. In: 0 and 1, pads on either side.
        names: the model's outputs in words.
        metric: "loss" (nats an answer), "logit_difference" (right minus wrong answer; without one, minus the
            mean of all other outputs), "accuracy", or a function of (logits [answer, output], labels
            [answer]) that gives one number an answer (a single number is taken answer by answer).

    Raises:
        InvalidArgumentError: shapes that do not fit, positions outside a row, answers that are missing.
        NotEnoughDataError: no rows, or a row without a token.

    Example:
        >>> Task([[5, 6, 7], [5, 6, 7]], positions=[0, 1]).targets.tolist()  # next token, at two places
        [[6, 7, -100], [6, 7, -100]]
    """

    if TYPE_CHECKING:  # what may be passed; the fields hold what is written beside them

        def __init__(
            self,
            tokens: Any,
            labels: Any = None,
            positions: Any = None,
            mask: Any = None,
            names: Sequence[str] | None = None,
            metric: Metric = "loss",
        ) -> None: ...

    tokens: Int[Tensor, "row position"]
    labels: Int[Tensor, "row answer *pair"] | None = None
    positions: Int[Tensor, "row answer"] | None = None
    mask: Bool[Tensor, "row position"] = None  # type: ignore[assignment]
    names: tuple[str, ...] | None = None
    metric: Metric = "loss"

    def __post_init__(self) -> None:
        if isinstance(self.tokens, Task):
            raise InvalidArgumentError(
                "tokens is a Task already; use it as it is, or dataclasses.replace(task, metric=...)"
            )
        if not callable(self.metric) and not (
            isinstance(self.metric, str) and self.metric in METRICS
        ):
            raise InvalidArgumentError(
                f"metric must be one of {', '.join(map(repr, METRICS))} or a function of (logits, labels), "
                f"got {shown(self.metric)}"
            )
        rows = read_token_rows("tokens", self.tokens, mask=self.mask)
        tokens = rows.tokens.cpu()
        real = torch.ones_like(tokens, dtype=torch.bool) if rows.mask is None else rows.mask
        names = _read_names(self.names)
        lengths = real.sum(1)
        positions = _read_positions(self.positions, lengths, rows.left)
        labels = self.labels
        if labels is not None:
            labels, positions = _read_labels(
                _named(labels, names), rows, lengths, positions, self.metric
            )
        fields = {"tokens": tokens, "mask": real, "names": names, "positions": positions}
        for field, value in {**fields, "labels": labels}.items():
            object.__setattr__(self, field, value)
        _require_answers(self)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def lengths(self) -> Int[Tensor, " row"]:
        """Real tokens of each row."""
        return self.mask.sum(1)

    @property
    def is_next_token(self) -> bool:
        """Whether the right answer is the next token of the row."""
        return self.labels is None

    @cached_property
    def targets(self) -> Int[Tensor, "row position"]:
        """The right answer at each position, -100 where nothing is asked."""
        if self.labels is not None:
            right = self.labels[..., 0] if self.labels.ndim == 3 else self.labels
            return self._placed(right)
        following = torch.full_like(self.tokens, NOT_ASKED)
        following[:, :-1] = self.tokens[:, 1:].masked_fill(~self.mask[:, 1:], NOT_ASKED)
        if self.positions is None:
            return following
        return self._placed(following.gather(1, self.positions))

    @cached_property
    def wrong(self) -> Int[Tensor, "row position"] | None:
        """The wrong answer that the right one is compared with, where pairs were given."""
        if self.labels is None or self.labels.ndim < 3:
            return None
        return self._placed(self.labels[..., 1])

    @property
    def asked(self) -> Bool[Tensor, "row position"]:
        """Where the model answers."""
        return self.targets != NOT_ASKED

    def take(self, rows: Int[Tensor, " row"] | slice) -> Task:
        """The same question about some rows, without columns that hold pads only."""
        made = object.__new__(Task)
        mask = self.mask[rows]
        width = max(1, int(mask.sum(1).max())) if len(mask) else self.tokens.shape[1]
        labels = None if self.labels is None else self.labels[rows]
        if labels is not None and self.positions is None:
            labels = labels[:, :width]
        cut = {
            "tokens": self.tokens[rows][:, :width],
            "labels": labels,
            "positions": None if self.positions is None else self.positions[rows],
            "mask": mask[:, :width],
        }
        for name, value in {**cut, "names": self.names, "metric": self.metric}.items():
            object.__setattr__(made, name, value)
        return made

    def _placed(self, answers: Int[Tensor, "row answer"]) -> Int[Tensor, "row position"]:
        if self.positions is None:
            return answers
        empty = torch.full_like(self.tokens, NOT_ASKED)
        return empty.scatter(1, self.positions, answers)

    def __repr__(self) -> str:
        low, high = (int(end) for end in self.lengths.aminmax())
        asked = self.asked
        places = {int(count) for count in asked.sum(1)}
        where = f"{min(places)} to {max(places)}" if len(places) > 1 else f"{min(places)}"
        names = "" if self.names is None else f", among {', '.join(map(repr, self.names[:6]))}"
        return (
            f"Task: {counted(len(self), 'row')} of {low if low == high else f'{low} to {high}'} tokens, "
            f"{'next token, ' if self.is_next_token else ''}{counted(int(asked.sum()), 'answer', ',')} "
            f"at {where} "
            f"position{'' if places == {1} else 's'} a row{names}, scored by {self.metric_name}"
        )

    @property
    def metric_name(self) -> str:
        """The metric in a word."""
        if isinstance(self.metric, str):
            return self.metric.replace("_", " ")
        return str(getattr(self.metric, "__name__", type(self.metric).__name__))


def _read_names(names: Any) -> tuple[str, ...] | None:
    if names is None:
        return None
    words = tuple(str(word) for word in require_list("names", names, of="str"))
    if len(set(words)) != len(words) or not words:
        raise InvalidArgumentError(f"names must name each output once, got {shown(words)}")
    return words


def _whole(name: str, value: Any) -> Tensor:
    """Whole numbers of any container as int64."""
    try:
        found = value if isinstance(value, Tensor) else torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError, OverflowError, KeyError) as error:
        raise InvalidArgumentError(
            f"{name} must hold whole numbers in rows of one length, got {shown(value)}; e.g. "
            f"{name}=torch.tensor([1, 0])"
        ) from error
    if found.is_floating_point() or found.is_complex() or found.dtype is torch.bool:
        raise InvalidArgumentError(
            f"{name} must hold whole numbers, got dtype {found.dtype}; call .long() on them"
        )
    return found.long().cpu()


def _read_positions(value: Any, lengths: Tensor, left: Tensor) -> Tensor | None:
    """Positions [row, answer] from each row's start, checked against its length."""
    if value is None:
        return None
    per_row = hasattr(value, "ndim") and value.ndim > 0
    found = _whole("positions", value)
    n = len(lengths)
    if found.ndim == 0 or (found.ndim == 1 and not per_row):
        found = found.reshape(1, -1).expand(n, -1)
    elif found.ndim == 1:
        found = found[:, None]
    if found.ndim != 2 or len(found) != n or found.shape[1] == 0:
        raise InvalidArgumentError(
            f"positions must be one number, a list for all rows, or a tensor [row] or [row, answer] for "
            f"{n} rows, got shape {tuple(found.shape)}; e.g. positions=-1"
        )
    place = torch.where(found < 0, lengths[:, None] + found, found - left[:, None])
    bad = (place < 0) | (place >= lengths[:, None])
    if bool(bad.any()):
        row = int(bad.any(1).nonzero()[0])
        raise InvalidArgumentError(
            f"positions must lie on real tokens, but {found[row].tolist()} leaves row {row} of "
            f"{int(lengths[row])} tokens; negative ones count back from the last real token"
        )
    ordered = place.sort(1).values
    if bool((ordered[:, 1:] == ordered[:, :-1]).any()):
        raise InvalidArgumentError("positions names one place of a row twice; name each once")
    return place.contiguous()


def _named(labels: Any, names: tuple[str, ...] | None) -> Any:
    """Words as indices into ``names``."""
    if hasattr(labels, "dtype") or not isinstance(labels, Sequence):
        return labels
    if isinstance(labels, str):
        labels = [labels]
    if not any(isinstance(label, str) for label in labels):
        return [
            _named(label, names) if isinstance(label, (list, tuple)) else label for label in labels
        ]
    if names is None or not all(label in names for label in labels):
        raise InvalidArgumentError(
            f"labels must be output indices, or words among names={names!r}, got {shown(labels)}"
        )
    return [names.index(label) for label in labels]


def _read_labels(
    value: Any, rows: PaddedRows, lengths: Tensor, positions: Tensor | None, metric: Metric
) -> tuple[Tensor, Tensor | None]:
    """Labels [row, answer] with their positions, or [row, position] in the layout of the padded rows."""
    n, k = len(lengths), 1 if positions is None else positions.shape[1]
    found = _whole("labels", _padded(value, lengths))
    if found.ndim <= 1:
        found = found.reshape(-1, 1) if found.numel() == n else found.reshape(1, -1)
    if metric == "logit_difference" and found.ndim == 2 and found.shape[1] == 2 and k == 1:
        found = found[:, None]  # the right and a wrong answer
    if positions is None and found.ndim >= 2 and found.shape[1] == 1:
        positions = (lengths - 1)[:, None]  # one answer a row comes after its last token
    fits = found.ndim == 2 or (found.ndim == 3 and found.shape[2] == 2)
    if not fits or len(found) != n or found.shape[1] not in (k, rows.width):
        raise InvalidArgumentError(
            f"labels must be one a row [{n}], one a position [{n}, {rows.width}] with {NOT_ASKED} where "
            f"nothing is asked, or one for each of the positions [{n}, {k}], got shape "
            f"{tuple(found.shape)}; pass one of these"
        )
    low = int(found[found != NOT_ASKED].min()) if bool((found != NOT_ASKED).any()) else 0
    if low < 0:
        raise InvalidArgumentError(
            f"labels must be output indices from 0, or {NOT_ASKED} where nothing is asked, got {low}"
        )
    if positions is not None and found.shape[1] == k:
        return found, positions
    column = torch.arange(int(lengths.max()))
    place = (rows.left[:, None] + column).clamp(max=rows.width - 1)
    outside = column >= lengths[:, None]
    if found.ndim == 3:
        place, outside = place[..., None].expand(-1, -1, 2), outside[..., None]
    moved = found.gather(1, place).masked_fill(outside, NOT_ASKED)
    if positions is None:
        return moved, None
    at = positions if found.ndim == 2 else positions[..., None].expand(-1, -1, 2)
    return moved.gather(1, at), positions


def _padded(labels: Any, lengths: Tensor) -> Any:
    """A list of uneven rows, one label a token, padded; anything else as it is."""
    if isinstance(labels, Tensor) or not isinstance(labels, Sequence):
        return labels
    sizes = [len(row) if hasattr(row, "__len__") else -1 for row in labels]
    if len(set(sizes)) < 2:
        return labels
    if sizes != lengths.tolist():
        raise InvalidArgumentError(
            f"labels must have one entry for each token of a row, or one a row, but their rows have "
            f"{shown(sizes)} entries for {shown(lengths.tolist())} tokens; pad them with {NOT_ASKED}"
        )
    rows = [_whole("labels", row) for row in labels]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=NOT_ASKED)


def _require_answers(task: Task) -> None:
    """Refuse questions without an answer; the plain next token may have rows that are too short."""
    if task.is_next_token and task.positions is None:
        return
    asked = task.asked
    if task.is_next_token and task.positions is not None:
        short = asked.sum(1) < task.positions.shape[1]
        if bool(short.any()):
            row = int(short.nonzero()[0])
            raise InvalidArgumentError(
                f"positions names the last token of row {row}, after which no token stands to be predicted; "
                "pass labels, or positions up to -2"
            )
    if not bool(asked.any()):
        raise InvalidArgumentError(
            f"labels asks for nothing: every entry is {NOT_ASKED} or stands on a pad; pass the right answers"
        )
