"""Shared by the counting files: checked blocks of rows, and sparse counts that are merged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from lens_linear.token_rows import PaddedTokens, TokenRows, require_tokens

CHUNK_TOKENS = 1 << 20
_MAX_TABLE = 1 << 22
_FLUSH_EVENTS = 1 << 22


# One row is enough; a stream is read in pieces.
Rows = Int[Tensor, "*sequence position"] | TokenRows | PaddedTokens


def token_blocks(
    tokens: Rows, n_vocab: int, *, min_length: int
) -> Iterator[Int[Tensor, "sequence position"]]:
    """Checked rows of about a million tokens; ``tokens`` may be a stream that reads on slicing."""
    stream: Any = tokens
    is_stream = all(hasattr(stream, part) for part in ("shape", "__getitem__", "__len__"))
    if not is_stream or len(stream.shape) != 2 or len(stream) == 0:
        stream = require_tokens("tokens", tokens, n_vocab=n_vocab)
    rows = max(1, CHUNK_TOKENS // max(1, stream.shape[1]))
    for start in range(0, len(stream), rows):
        block = stream[start : start + rows]
        yield require_tokens("tokens", block, n_vocab=n_vocab, min_length=min_length).cpu()


class SparseCounts:
    """Counts of int64 keys in ``[0, n_keys)``, of which only those that occur are kept.

    Up to a few million possible keys are counted in a plain table. Above that, keys are gathered
    and merged a few million at a time, so the memory is that of the distinct keys, not of the
    events.
    """

    def __init__(
        self, n_keys: int, *, max_table: int = _MAX_TABLE, flush: int = _FLUSH_EVENTS
    ) -> None:
        self._table = torch.zeros(n_keys, dtype=torch.int64) if n_keys <= max_table else None
        self._keys = torch.zeros(0, dtype=torch.int64)
        self._counts = torch.zeros(0, dtype=torch.int64)
        self._waiting: list[Tensor] = []
        self._n_waiting = 0
        self._flush = flush

    def add(self, keys: Int[Tensor, " event"]) -> None:
        """Count each key once more for each time it stands in ``keys``."""
        self._waiting.append(keys)
        self._n_waiting += len(keys)
        if self._n_waiting >= self._flush:
            self._merge()

    def result(self) -> tuple[Int[Tensor, " key"], Int[Tensor, " key"]]:
        """Distinct keys in ascending order, and their counts."""
        self._merge()
        if self._table is not None:
            keys = self._table.nonzero().flatten()
            return keys, self._table[keys]
        return self._keys, self._counts

    def look_up(self, wanted: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
        """The count of each wanted key; 0 for one that never occurred."""
        self._merge()
        if self._table is not None:
            return self._table[wanted]
        if len(self._keys) == 0:
            return torch.zeros_like(wanted)
        where = torch.searchsorted(self._keys, wanted).clamp(max=len(self._keys) - 1)
        return torch.where(self._keys[where] == wanted, self._counts[where], 0)

    def _merge(self) -> None:
        if not self._waiting:
            return
        events = torch.cat(self._waiting)
        self._waiting, self._n_waiting = [], 0
        if self._table is not None:
            self._table += torch.bincount(events, minlength=len(self._table))
            return
        new, new_counts = events.unique(return_counts=True)
        joined, where = torch.cat([self._keys, new]).unique(return_inverse=True)
        total = torch.zeros(len(joined), dtype=torch.int64)
        self._counts = total.index_add_(0, where, torch.cat([self._counts, new_counts]))
        self._keys = joined
