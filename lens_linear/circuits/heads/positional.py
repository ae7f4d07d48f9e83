"""Where a head looks because of positions alone."""

from __future__ import annotations

from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_linear._tl import FactoredMatrix
from lens_linear.circuits.heads.factored import dense
from lens_linear.models.frozen.windows import seen_keys
from lens_linear.tables import View

PositionSource = Literal["position rows", "mean content, rotated"]


class PositionalQK(View, FactoredMatrix):
    """Scores [query position, key position] that positions give, as a factored matrix.

    With learnt positions: ``W_pos W_Q W_Kᵀ W_posᵀ · scale`` (norms folded, their scale not). With rotary
    positions: the score of the average token (biases included) at every pair of positions, which depends on
    their offset only.

    Attributes:
        name: of the head.
        source: which of the two this is.
        scales: typical norm scale of each position at layer 0, used by :attr:`pattern`; ones without norm.
        causal: whether a query sees positions up to its own only.
        window: how many keys it sees, itself included; None is all.
        softcap: the bound the model puts on scores, or None.
    """

    _figure = "positional_qk"

    def __init__(
        self,
        queries: Float[Tensor, "position d_head"],
        keys: Float[Tensor, "d_head position"],
        source: PositionSource,
        scales: Float[Tensor, " position"],
        name: str = "head",
        *,
        causal: bool = True,
        window: int | None = None,
        softcap: float | None = None,
    ) -> None:
        super().__init__(queries, keys)
        self.name = name
        self.source: PositionSource = source
        self.scales = scales
        self.causal = causal
        self.window = window
        self.softcap = softcap

    def __repr__(self) -> str:
        n, m = self.ldim, self.rdim
        return f"PositionalQK of {self.name}: scores of {n} × {m} positions from {self.source}"

    @property
    def scores(self) -> Float[Tensor, "query key"]:
        """The matrix multiplied out; keys that a query does not see are filled in too."""
        return dense(self, what="the positional QK matrix")

    @property
    def pattern(self) -> Float[Tensor, "query key"]:
        """Softmax of the scores over the typical norm scales, over the keys a query sees; rows sum to 1.

        Exact for a head whose score has no content part; otherwise the pattern of a stream in which
        content favours no key.
        """
        return self._scaled.masked_fill(~self._seen, float("-inf")).softmax(-1)

    @property
    def _scaled(self) -> Float[Tensor, "query key"]:
        scores = self.scores / (self.scales[:, None] * self.scales[None])
        return scores if self.softcap is None else self.softcap * torch.tanh(scores / self.softcap)

    @property
    def _seen(self) -> Bool[Tensor, "query key"]:
        return seen_keys(self.ldim, self.rdim, causal=self.causal, window=self.window)

    def offset_pattern(self) -> Float[Tensor, " offset"]:
        """Mean attention at offset 0, 1, 2, ... over the queries that have such a key."""
        pattern = self.pattern
        return torch.stack([pattern.diagonal(-offset).mean() for offset in range(self.ldim)])

    def to_dataframe(self) -> pd.DataFrame:
        """Columns query, key, score, scaled_score, attention (:attr:`pattern`) for keys that a query sees.

        ``score`` leaves norm scales and bounds out; ``scaled_score`` is what the softmax of
        :attr:`pattern` sees.
        """
        query, key = self._seen.nonzero().T
        scores = self.scores[query, key]
        columns: dict[str, Any] = {
            "query": query.numpy(),
            "key": key.numpy(),
            "score": scores.numpy(),
            "scaled_score": self._scaled[query, key].numpy(),
            "attention": self.pattern[query, key].numpy(),
        }
        return pd.DataFrame(columns)
