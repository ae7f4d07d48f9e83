"""What the labels of a context are multiplied by: the hat matrix, or the smoother of other weights."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from lens_linear.errors import InvalidArgumentError
from lens_linear.tables import Result, cells

LEAST_SQUARES = ("unique", "minimum-norm", "ridge")
HOW = {
    "given": "weights given by hand",
    "trained": "weights trained by gradient descent",
    "edited": "weights trained by gradient descent and edited since",
    "other data": "weights or context are not (or no longer) of one set of data",
}


@dataclass(frozen=True, eq=False)
class HatMatrix(Result):
    """What the labels of the context are multiplied by: ``prediction = values @ Y``.

    On the context's own rows the diagonal is the *leverage*, and its sum the *effective degrees of
    freedom*. Least squares of those rows is a projection: leverage lies in [0, 1] and sums to the
    rank (plus 1 with an intercept). A ridge shrinks both: they sum to ``Σ λ / (λ + ridge)``. Other
    weights are a linear smoother too, whose leverage nothing bounds; ``solution`` says which it is.
    """

    _figure = "hat_matrix"

    values: Float[Tensor, "q n"]
    on_training_rows: bool  # the queries are the context's own rows
    rank: int  # directions of x that the scores depend on, without the intercept
    intercept: bool
    solution: str  # as ``OLSAttention.solution`` says it
    #: Checked: it is the hat matrix of least squares of the context, for all labels.
    least_squares: bool

    @property
    def leverage(self) -> Float[Tensor, " n"]:
        """How far the prediction at each row follows its own label.

        Raises:
            InvalidArgumentError: the queries are other rows, which have no label in the context.
        """
        if not self.on_training_rows:
            raise InvalidArgumentError(
                "leverage belongs to the context's own rows, and this matrix was taken at others; "
                "call hat() without x_new"
            )
        return self.values.diagonal()

    @property
    def degrees_of_freedom(self) -> float:
        """Sum of the leverage: the rank (plus an intercept) for least squares, less with a ridge."""
        return float(self.leverage.sum())

    def __repr__(self) -> str:
        q, n = self.values.shape
        kind = self.solution
        if kind not in LEAST_SQUARES:
            what = "least squares" if self.least_squares else "smoother matrix, no least squares"
            kind = f"{what}: {HOW[kind]}"
        text = f"HatMatrix ({kind}): {q} queries × {n} context rows, rank {self.rank}"
        if not self.on_training_rows:
            return text
        low, high = float(self.leverage.min()), float(self.leverage.max())
        return (
            f"{text}; leverage {low:.3g} to {high:.3g}, {self.degrees_of_freedom:.4g} effective "
            "degrees of freedom"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row a cell: ``query``, ``context``, ``weight`` (labels' unit per labels' unit)."""
        q, n = self.values.shape
        return cells({"query": range(q), "context": range(n)}, {"weight": self.values})
