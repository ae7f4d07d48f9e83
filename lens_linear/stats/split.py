"""Whole sequences, never parts of one: seeded halves, shares of processes, views of rows.

A :class:`RowView` names some rows of a token tensor (or of a disk-backed stream) without copying them,
and stands where tokens stand.

>>> import torch
>>> train, test = halves(RowView(torch.arange(12).reshape(6, 2)), seed=0)
>>> len(train), len(test), sorted([*train.index.tolist(), *test.index.tolist()])
(3, 3, [0, 1, 2, 3, 4, 5])
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Int
from torch import Tensor

from lens_linear._tl import TransformerBridge
from lens_linear.checks import require_int, require_seed, require_tokens
from lens_linear.errors import InvalidArgumentError, NotEnoughDataError
from lens_linear.models.capture import TokenRows, require_model_tokens
from lens_linear.models.hooks import require_bridge


class RowView:
    """Some rows of ``tokens``, in rising order; slicing reads only the rows it needs.

    Args:
        tokens: ids [sequence, position], or a stream of such rows.
        index: which rows; all when None.
    """

    def __init__(self, tokens: TokenRows, index: Int[Tensor, " row"] | None = None) -> None:
        self.tokens = tokens
        self.index = torch.arange(len(tokens)) if index is None else index.sort().values

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: slice) -> Int[Tensor, "row position"]:
        index = self.index[rows]
        if len(index) == 0:
            return self.tokens[0:0]
        low, high = int(index[0]), int(index[-1])
        return torch.as_tensor(self.tokens[low : high + 1])[index - low]

    @property
    def length(self) -> int:
        """Tokens a row."""
        return int(self.tokens[0:1].shape[1])

    def after(self, done: int) -> RowView:
        """The same rows without the first ``done``."""
        return RowView(self.tokens, self.index[done:])

    def share(self, rank: int, world: int) -> RowView:
        """The rows of one process out of ``world``: every world-th, from ``rank`` on."""
        return RowView(self.tokens, self.index[rank::world])


def process() -> tuple[int, int]:
    """Return the rank of this process and how many there are (0 and 1 without ``torch.distributed``)."""
    if not dist.is_available() or not dist.is_initialized():
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def as_rows(
    model: TransformerBridge,
    tokens: Any,
    *,
    skip: int = 0,
    min_sequences: int = 1,
) -> RowView:
    """Accept tokens that fit the model: a tensor [sequence, position] or a stream of rows.

    Args:
        model: a bridge.
        tokens: ids; of a stream only the first row is checked here.
        skip: leading positions that will be left out; some must remain.
        min_sequences: rows needed.

    Raises:
        InvalidArgumentError: ids outside the vocabulary, rows longer than the context.
        NotEnoughDataError: too few rows, or none of their positions left.
    """
    model = require_bridge(model)
    require_int("skip", skip, minimum=0)
    require_int("min_sequences", min_sequences, minimum=1)
    if isinstance(tokens, RowView):
        view = tokens
    elif isinstance(tokens, Tensor) or not hasattr(tokens, "__getitem__"):
        view = RowView(require_model_tokens(model, tokens))
    elif isinstance(tokens, (list, tuple, str, bytes, dict)):
        require_tokens("tokens", tokens)
        raise InvalidArgumentError("tokens must be a tensor [sequence, position]")
    else:
        view = RowView(tokens)
        require_model_tokens(model, torch.as_tensor(tokens[0:1]))
    if len(view) < min_sequences:
        raise NotEnoughDataError(
            f"tokens has {len(view)} sequences but at least {min_sequences} are needed (they are "
            "split by whole sequences); pass more text, or shorter rows"
        )
    if view.length <= skip:
        raise NotEnoughDataError(
            f"skip={skip} leaves nothing of sequences of {view.length} tokens; pass a smaller skip"
        )
    return view


def halves(rows: RowView, *, seed: int) -> tuple[RowView, RowView]:
    """Two seeded random halves of the sequences; the first has one more when the number is odd."""
    seed = require_seed(seed)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    middle = (len(rows) + 1) // 2
    return (
        RowView(rows.tokens, rows.index[order[:middle]]),
        RowView(rows.tokens, rows.index[order[middle:]]),
    )
