"""Singular directions of a circuit, read in the vocabulary.

``M = Σ_i σ_i u_i v_iᵀ``: for an OV circuit, reading tokens along u_i writes tokens along v_i. The sign of a
pair (u_i, v_i) is free, so both ends are shown: tokens with large u_i go with tokens of large v_i, tokens
with large -u_i with tokens of large -v_i. Directions with nearly equal singular values are only determined
together: their single vectors mean nothing, and the result says which they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lens_linear._tl import FactoredMatrix
from lens_linear.checks import counted, require_instance, require_int
from lens_linear.linalg.spectra import Spectrum
from lens_linear.tables import Result


@dataclass(frozen=True, eq=False)
class CircuitSVD(Result):
    """The first singular directions of a circuit.

    Attributes:
        name: of the circuit.
        U: left directions, unit columns (OV: source tokens; QK: query tokens).
        S: singular values, largest first.
        V: right directions, unit columns (OV: output tokens; QK: key tokens).
        spectrum: all singular values.
        near_equal: runs of directions whose singular values differ by less than ``rtol``.
        rtol: relative gap below which two singular values count as near-equal.
        top: tokens listed at each end of a direction.
        row_labels, column_labels: text of the tokens, or None.
        sides: what rows and columns are.
    """

    _figure = "svd_directions"
    _columns = ("direction", "singular_value", "side", "rank", "token", "label", "loading")

    name: str
    U: Float[Tensor, "row k"]
    S: Float[Tensor, " k"]
    V: Float[Tensor, "column k"]
    spectrum: Spectrum
    near_equal: tuple[range, ...]
    rtol: float
    top: int
    row_labels: Sequence[str] | None = None
    column_labels: Sequence[str] | None = None
    sides: tuple[str, str] = ("row", "column")

    @property
    def warning(self) -> str | None:
        """A sentence about near-equal singular values, None when there are none among the first k."""
        if not self.near_equal:
            return None
        runs = ", ".join(
            f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in self.near_equal
        )
        alone = sum(map(len, self.near_equal)) == 1
        have = f"direction {runs} has a" if alone else f"directions {runs} have"
        return (
            f"{have} singular value{'' if alone else 's'} within {self.rtol:.0%} of a neighbour: only the "
            "space they span is determined, not the single directions"
        )

    def __repr__(self) -> str:
        share = float(self.S.square().sum() / self.spectrum.values.square().sum().clamp_min(1e-300))
        caution = f"; {self.warning}" if self.warning else ""
        return (
            f"CircuitSVD of {self.name}: {counted(len(self.S), 'direction')} with {share:.1%} of the squared "
            f"norm{caution}"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row a token listed: direction, singular_value, near_equal, sign, side, rank, token, loading.

        ``side`` is "row" (U) or "column" (V), ``sign`` the end of the direction, ``loading`` the token's
        entry times the sign, so that larger is further out.
        """
        close = {i for run in self.near_equal for i in run}
        rows: list[dict[str, Any]] = []
        sides = (("row", self.U, self.row_labels), ("column", self.V, self.column_labels))
        for direction in range(len(self.S)):
            for sign in (1, -1):
                for side, vectors, labels in sides:
                    loading = sign * vectors[:, direction]
                    best = loading.topk(min(self.top, len(loading)))
                    for rank, token in enumerate(best.indices.tolist()):
                        row = {
                            "direction": direction,
                            "singular_value": float(self.S[direction]),
                            "near_equal": direction in close,
                            "sign": sign,
                            "side": side,
                            "rank": rank,
                            "token": token,
                            "loading": float(best.values[rank]),
                        }
                        rows.append(row if labels is None else {**row, "label": labels[token]})
        return pd.DataFrame(rows)


def svd_readout(
    matrix: FactoredMatrix,
    k: int = 10,
    *,
    name: str = "circuit",
    top: int = 8,
    rtol: float = 0.05,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    sides: tuple[str, str] = ("row", "column"),
) -> CircuitSVD:
    """Take the k largest singular directions of ``A @ B`` from two thin QR factorisations.

    Args:
        matrix: ``A [rows, m] @ B [m, columns]``; never multiplied out.
        k: directions; at most ``m``, fewer are returned when there are fewer.
        name: of the circuit, for titles.
        top: tokens listed at each end.
        rtol: relative gap below which singular values are reported as near-equal.
        row_labels: text of the rows.
        column_labels: text of the columns.
        sides: what rows and columns are, for titles.

    Returns:
        CircuitSVD: ``.U``, ``.S``, ``.V`` with the tokens at each end, and which directions are near-equal.

    Raises:
        InvalidArgumentError: ``k`` or ``top`` below 1, or ``matrix`` is no factored matrix.

    Example:
        >>> import torch
        >>> from lens_linear._tl import FactoredMatrix
        >>> eye = torch.eye(4, dtype=torch.float64)
        >>> found = svd_readout(FactoredMatrix(eye * torch.tensor([5.0, 3.0, 3.0, 1.0]), eye), 3)
        >>> found.S.tolist(), found.near_equal
        ([5.0, 3.0, 3.0], (range(1, 3),))
    """
    require_instance("matrix", matrix, FactoredMatrix, advice="e.g. head.ov")
    k, top = require_int("k", k, minimum=1), require_int("top", top, minimum=1)
    left, right_t = torch.linalg.qr(matrix.A), torch.linalg.qr(matrix.B.T)
    u, s, vh = torch.linalg.svd(left.R @ right_t.R.T)
    size = min(u.shape[1], vh.shape[0])
    k = min(k, size)
    spectrum = Spectrum(s[:size], matrix.ldim, matrix.rdim, centered=False)
    U, V = left.Q @ u[:, :k], right_t.Q @ vh[:k].T
    # Which sign a library returns is an accident; the largest left entry is made positive.
    sign = torch.sign(U.gather(0, U.abs().argmax(0, keepdim=True)))
    near = tuple(
        run[: k - run.start] for run in spectrum.degenerate_groups(rtol=rtol) if run.start < k
    )
    return CircuitSVD(
        name,
        U * sign,
        s[:k],
        V * sign,
        spectrum,
        near,
        rtol,
        top,
        row_labels,
        column_labels,
        sides,
    )
