"""Where a head looks because of positions alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lens_linear._tl import FactoredMatrix
from lens_linear.circuits.heads.factored import MAX_CELLS, dense

if TYPE_CHECKING:
    import pandas as pd

PositionSource = Literal["position rows", "mean content, rotated"]


class PositionalQK(FactoredMatrix):
    """Scores [query position, key position] that positions give, as a factored matrix.

    With learnt positions: ``W_pos W_Q W_Kᵀ W_posᵀ · scale`` (norms folded, their scale not). With rotary
    positions: the score of the average token (biases included) at every pair of positions, which depends on
    their offset only.

    Attributes:
        name: of the head.
        source: which of the two this is.
        scales: typical norm scale of each position at layer 0, used by :attr:`pattern`; ones without norm.
    """

    def __init__(
        self,
        queries: Float[Tensor, "position d_head"],
        keys: Float[Tensor, "d_head position"],
        source: PositionSource,
        scales: Float[Tensor, " position"],
        name: str = "head",
    ) -> None:
        super().__init__(queries, keys)
        self.name = name
        self.source: PositionSource = source
        self.scales = scales

    def __repr__(self) -> str:
        n, m = self.ldim, self.rdim
        return f"PositionalQK of {self.name}: scores of {n} × {m} positions from {self.source}"

    @property
    def scores(self) -> Float[Tensor, "query key"]:
        """The matrix multiplied out; later keys are filled in too."""
        return dense(self, what="the positional QK matrix", max_cells=MAX_CELLS)

    @property
    def pattern(self) -> Float[Tensor, "query key"]:
        """Causal softmax of the scores over the typical norm scales; rows sum to 1.

        Exact for a head whose score has no content part; otherwise the pattern of a stream in which
        content favours no key.
        """
        scores = self.scores / (self.scales[:, None] * self.scales[None])
        mask = torch.ones(scores.shape, dtype=torch.bool).triu(1)
        return scores.masked_fill(mask, float("-inf")).softmax(-1)

    def offset_pattern(self) -> Float[Tensor, " offset"]:
        """Mean attention at offset 0, 1, 2, ... over the queries that have such a key."""
        pattern = self.pattern
        return torch.stack([pattern.diagonal(-offset).mean() for offset in range(self.ldim)])

    def to_dataframe(self) -> pd.DataFrame:
        """Columns query, key, score, attention (:attr:`pattern`) for keys up to their query."""
        import pandas as pd

        query, key = torch.tril_indices(self.ldim, self.rdim)
        columns: dict[str, Any] = {
            "query": query.numpy(),
            "key": key.numpy(),
            "score": self.scores[query, key].numpy(),
            "attention": self.pattern[query, key].numpy(),
        }
        return pd.DataFrame(columns)
