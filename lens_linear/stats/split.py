"""Whole sequences, never parts of one: seeded halves, shares of processes, views of rows.

A :class:`RowView` names some rows of a token tensor (or of a disk-backed stream) without copying them,
and stands where tokens stand.

>>> import torch
>>> train, test = halves(RowView(torch.arange(12).reshape(6, 2)), seed=0)
>>> len(train), len(test), sorted([*train.index.tolist(), *test.index.tolist()])
(3, 3, [0, 1, 2, 3, 4, 5])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from lens_linear.checks import require_instance, require_int, require_seed
from lens_linear.errors import NotEnoughDataError
from lens_linear.models.capture import is_row_stream, require_model_rows, require_model_tokens
from lens_linear.models.checked import ModelLike, checked
from lens_linear.stats.task_scores import require_task
from lens_linear.text.task import Task
from lens_linear.token_rows import TokenRows, read_token_rows


class RowView:
    """Some rows of ``tokens``; slicing reads only the rows it needs.

    Rows go by rising index; rows of unequal length (of a :class:`~lens_linear.Task`) go by rising length, so
    that a piece of one length never holds a pad.

    Args:
        tokens: ids [sequence, position], a stream of such rows, or a Task.
        index: which rows; all when None.
    """

    def __init__(self, tokens: TokenRows | Task, index: Int[Tensor, " row"] | None = None) -> None:
        self.task = tokens if isinstance(tokens, Task) else None
        self.tokens: TokenRows
        self.tokens = tokens.tokens if isinstance(tokens, Task) else tokens
        self.index = torch.arange(len(tokens)) if index is None else index.sort().values
        uneven = self.task is not None and not bool(self.task.mask.all())
        self._all_lengths = self.task.lengths if self.task is not None and uneven else None
        if self._all_lengths is not None:
            self.index = self.index[self._all_lengths[self.index].argsort(stable=True)]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: slice) -> Int[Tensor, "row position"]:
        index = self.index[rows]
        if len(index) == 0:
            return torch.as_tensor(self.tokens[0:0])
        if self._all_lengths is not None:
            return self.tokens[index][:, : int(self._all_lengths[index].max())]  # type: ignore[index]
        low, high = int(index[0]), int(index[-1])
        return read_token_rows("tokens", self.tokens[low : high + 1]).tokens[index - low]

    @property
    def lengths(self) -> Int[Tensor, " row"] | None:
        """Tokens of each row; None when all have :attr:`length`."""
        return None if self._all_lengths is None else self._all_lengths[self.index]

    @property
    def length(self) -> int:
        """Tokens of the longest row."""
        lengths = self.lengths
        return int(self.tokens[0:1].shape[1]) if lengths is None else int(lengths.max())

    def n_tokens(self, skip: int = 0) -> int:
        """Real tokens of all rows, without the first ``skip`` of each."""
        lengths = self.lengths
        if lengths is None:
            return len(self) * max(0, self.length - skip)
        return int((lengths - skip).clamp(min=0).sum())

    def asked(self, rows: slice) -> Task:
        """What is asked of some rows: the task's question, or the next token."""
        if self.task is not None:
            return self.task.take(self.index[rows])
        return Task(self[rows])

    def take(self, which: Int[Tensor, " row"] | Sequence[int] | slice) -> RowView:
        """Those of these rows whose places are given."""
        return RowView(self.tokens if self.task is None else self.task, self.index[which])

    def share(self, rank: int, world: int) -> RowView:
        """The rows of one process out of ``world``: every world-th, from ``rank`` on."""
        return self.take(slice(rank, None, world))


def as_rows(
    model: ModelLike,
    tokens: Any,
    *,
    skip: int = 0,
) -> RowView:
    """Accept what a model is to be run on: ids of any kind, rows of unequal length, a Task, a stream of rows.

    Args:
        model: a bridge.
        tokens: ids as :mod:`lens_linear.token_rows` reads them; of a stream only the first row is checked
            here.
        skip: leading positions that will be left out; some must remain.

    Raises:
        InvalidArgumentError: ids outside the vocabulary, rows longer than the context.
        NotEnoughDataError: too few rows, or none of their positions left.
    """
    model = checked(model)
    require_int("skip", skip, minimum=0)
    if isinstance(tokens, RowView):
        view = tokens
    elif isinstance(tokens, Task):
        view = RowView(require_task(model, tokens))
    elif is_row_stream(tokens):
        view = RowView(tokens)
        require_model_tokens(model, tokens[0:1])
    else:
        rows = require_model_rows(model, tokens)
        view = RowView(rows.tokens if rows.mask is None else Task(rows.tokens, mask=rows.mask))
    if not len(view):
        raise NotEnoughDataError(
            "tokens has 0 sequences but at least 1 are needed (they are split by whole sequences); pass more "
            "text, or shorter rows"
        )
    shortest = view.length if view.lengths is None else int(view.lengths.min())
    if shortest <= skip:
        raise NotEnoughDataError(
            f"tokens must have rows longer than the {skip} positions at the start that are left out (skip), "
            f"got one of {shortest}; pass longer rows, leave short ones out, or take a smaller skip where "
            "there is one"
        )
    return view


def halves(rows: RowView, *, seed: int) -> tuple[RowView, RowView]:
    """Two seeded random halves of the sequences; the first has one more when the number is odd."""
    require_instance("rows", rows, RowView, advice="as_rows(model, tokens) makes one of tokens")
    seed = require_seed(seed)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    middle = (len(rows) + 1) // 2
    return rows.take(order[:middle]), rows.take(order[middle:])
