"""Where a head looks because of positions alone."""

from __future__ import annotations

from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lens_linear._tl import FactoredMatrix
from lens_linear.circuits.heads.factored import MAX_CELLS, dense
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
    ) -> None:
        super().__init__(queries, keys)
        self.name = name
        self.source: PositionSource = source
        self.scales = scales
        self.causal = causal

    def __repr__(self) -> str:
        n, m = self.ldim, self.rdim
        return f"PositionalQK of {self.name}: scores of {n} × {m} positions from {self.source}"

    @property
    def scores(self) -> Float[Tensor, "query key"]:
        """The matrix multiplied out; later keys are filled in too."""
        return dense(self, what="the positional QK matrix", max_cells=MAX_CELLS)

    @property
    def pattern(self) -> Float[Tensor, "query key"]:
        """Softmax of the scores over the typical norm scales, causal in causal models; rows sum to 1.

        Exact for a head whose score has no content part; otherwise the pattern of a stream in which
        content favours no key.
        """
        scores = self.scores / (self.scales[:, None] * self.scales[None])
        mask = torch.ones(scores.shape, dtype=torch.bool).triu(1) & self.causal
        return scores.masked_fill(mask, float("-inf")).softmax(-1)

    def offset_pattern(self) -> Float[Tensor, " offset"]:
        """Mean attention at offset 0, 1, 2, ... over the queries that have such a key."""
        pattern = self.pattern
        return torch.stack([pattern.diagonal(-offset).mean() for offset in range(self.ldim)])

    def to_dataframe(self) -> pd.DataFrame:
        """Columns query, key, score, scaled_score, attention (:attr:`pattern`) for keys that a query sees.

        ``score`` leaves norm scales out; ``scaled_score`` is what the softmax of :attr:`pattern` sees.
        """
        query, key = torch.ones(self.ldim, self.rdim).nonzero().T
        if self.causal:
            query, key = torch.tril_indices(self.ldim, self.rdim)
        scores = self.scores[query, key]
        columns: dict[str, Any] = {
            "query": query.numpy(),
            "key": key.numpy(),
            "score": scores.numpy(),
            "scaled_score": (scores / (self.scales[query] * self.scales[key])).numpy(),
            "attention": self.pattern[query, key].numpy(),
        }
        return pd.DataFrame(columns)
