"""A vocabulary × vocabulary circuit made small enough to look at: a window and an overview.

The *window* holds the rows and the columns with the largest entries. The *overview* cuts the whole matrix
into blocks and keeps each block's entry of largest size, with its sign. Both come from one pass over the
matrix in blocks of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from lens_linear._tl import FactoredMatrix
from lens_linear.checks import require_instance, require_int, require_list
from lens_linear.circuits.heads.factored import MAX_BYTES, row_blocks
from lens_linear.circuits.heads.head_circuit import SIDES, Circuit, HeadCircuit
from lens_linear.circuits.labels import TokenText
from lens_linear.errors import InvalidArgumentError
from lens_linear.tables import Result


@dataclass(frozen=True, eq=False)
class CircuitMap(Result):
    """A circuit as a window and an overview.

    Attributes:
        name: e.g. "L1H3 OV".
        row_name, column_name: what rows and columns are.
        window: entries of the chosen rows and columns, strongest first.
        rows, columns: their token ids.
        overview: [row block, column block], the entry of largest size with its sign.
        block_shape: rows and columns of one block.
        matrix_shape: of the whole circuit.
        row_labels, column_labels: text of the window's rows and columns.
    """

    _figure = "circuit_window"

    name: str
    row_name: str
    column_name: str
    window: Float[Tensor, "row column"] = field(repr=False)
    rows: Int[Tensor, " row"] = field(repr=False)
    columns: Int[Tensor, " column"] = field(repr=False)
    overview: Float[Tensor, "row_block column_block"] = field(repr=False)
    block_shape: tuple[int, int]
    matrix_shape: tuple[int, int]
    row_labels: tuple[str, ...] = field(repr=False)
    column_labels: tuple[str, ...] = field(repr=False)

    def __repr__(self) -> str:
        rows, columns = self.matrix_shape
        return (
            f"CircuitMap of {self.name}: {rows} × {columns} tokens as a {len(self.rows)} × "
            f"{len(self.columns)} window and {tuple(self.overview.shape)} blocks"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Columns row, column, value of the window, and row_label, column_label."""
        n = len(self.columns)
        cells = range(self.window.numel())
        return pd.DataFrame(
            {
                "row": [int(self.rows[i // n]) for i in cells],
                "column": [int(self.columns[i % n]) for i in cells],
                "value": self.window.flatten().numpy(),
                "row_label": [self.row_labels[i // n] for i in cells],
                "column_label": [self.column_labels[i % n] for i in cells],
            }
        )


def circuit_map(
    head: HeadCircuit, circuit: Circuit = "ov", *, k: int = 50, blocks: int = 200
) -> CircuitMap:
    """Cut a head's QK or OV circuit down to a k × k window and a blocks × blocks overview.

    Args:
        head: the head.
        circuit: "qk" or "ov".
        k: rows and columns of the window.
        blocks: blocks a side of the overview, at most.

    Returns:
        CircuitMap: ``.window`` [k, k] with its token ids, ``.overview``; scores for QK, logits for OV.

    Raises:
        InvalidArgumentError: an unknown circuit, ``k`` or ``blocks`` below 1, or no head.

    Example:
        >>> from lens_linear.circuits.heads.head_circuit import head_circuit
        >>> from lens_linear.models.open.toy import toy_model
        >>> circuit_map(head_circuit(toy_model(n_layers=1), 0, 0), k=10, blocks=16)
        CircuitMap of L0H0 OV: 64 × 64 tokens as a 10 × 10 window and (16, 16) blocks
    """
    require_instance(
        "head", head, HeadCircuit, advice="take it from lens_linear.head(model, 'L1H3')"
    )
    return map_of(
        head.circuit(circuit),
        name=f"{head.name} {circuit.upper()}",
        axes=SIDES[circuit],
        labels=(head.labels, head.column_labels(circuit)),
        k=k,
        blocks=blocks,
    )


def map_of(
    matrix: FactoredMatrix,
    *,
    name: str,
    axes: tuple[str, str] = ("row", "column"),
    labels: tuple[Sequence[str] | None, Sequence[str] | None] = (None, None),
    k: int = 50,
    blocks: int = 200,
    max_bytes: int = MAX_BYTES,
) -> CircuitMap:
    """Cut any factored matrix down to a window and an overview; see :func:`circuit_map`.

    Args:
        matrix: ``A [rows, m] @ B [m, columns]``; never multiplied out.
        name: of the matrix, for titles.
        axes: what rows and columns are.
        labels: text of every row and of every column, or None.
        k: rows and columns of the window: those with the largest entries.
        blocks: blocks a side of the overview, at most; each keeps its entry of largest size.
        max_bytes: size of one block of rows while reading the matrix.

    Returns:
        CircuitMap, in units of the matrix.

    Raises:
        InvalidArgumentError: labels that do not fit, ``k`` or ``blocks`` below 1, or no factored matrix.

    Example:
        >>> column, row = torch.tensor([[1.0], [2.0], [-3.0]]), torch.tensor([[1.0, 0.0, 2.0]])
        >>> found = map_of(FactoredMatrix(column, row), name="example", k=1, blocks=1)
        >>> found.window.tolist(), found.overview.tolist()
        ([[4.0]], [[-6.0]])
    """
    require_instance("matrix", matrix, FactoredMatrix, advice="e.g. head.ov")
    for pair, words in ((axes, "axes"), (labels, "labels")):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise InvalidArgumentError(
                f"{words} must be a pair, one for rows and one for columns, got {pair!r}"
            )
    rows_named, columns_named = map(_named, labels, (matrix.ldim, matrix.rdim))
    k = require_int("k", k, minimum=1)
    blocks = require_int("blocks", blocks, minimum=1)
    height, width = -(-matrix.ldim // blocks), -(-matrix.rdim // blocks)
    row_best, overview = [], []
    column_best = torch.full((matrix.rdim,), float("-inf"), dtype=matrix.A.dtype)
    for _, part in row_blocks(matrix, multiple=height, max_bytes=max_bytes):
        row_best.append(part.amax(dim=1))
        column_best = torch.maximum(column_best, part.amax(dim=0))
        overview.append(_pooled(part, height, width))
    rows = torch.cat(row_best).topk(min(k, matrix.ldim)).indices
    columns = column_best.topk(min(k, matrix.rdim)).indices
    return CircuitMap(
        name,
        *axes,
        (matrix.A[rows] @ matrix.B[:, columns]).detach(),
        rows,
        columns,
        torch.cat(overview),
        (height, width),
        (matrix.ldim, matrix.rdim),
        _texts(rows_named, rows),
        _texts(columns_named, columns),
    )


def _named(labels: Sequence[str] | None, size: int) -> Sequence[str] | None:
    if labels is None:
        return None
    if not isinstance(labels, TokenText):
        labels = require_list("labels", labels, of="str")
    if len(labels) != size:
        raise InvalidArgumentError(
            f"labels must name each of the {size} rows or columns, got {len(labels)}; pass one each"
        )
    return labels


def _pooled(part: Float[Tensor, "row column"], height: int, width: int) -> Tensor:
    """Return each block's entry of largest size; edge blocks may be smaller."""
    pad = (0, -part.shape[1] % width, 0, -part.shape[0] % height)
    padded = functional.pad(part, pad)  # zeros never beat an entry by size
    split = padded.view(padded.shape[0] // height, height, padded.shape[1] // width, width)
    high, low = split.amax(dim=(1, 3)), split.amin(dim=(1, 3))
    return torch.where(high >= -low, high, low)


def _texts(labels: Sequence[str] | None, ids: Int[Tensor, " n"]) -> tuple[str, ...]:
    return tuple(f"#{i}" if labels is None else str(labels[i]) for i in ids.tolist())
