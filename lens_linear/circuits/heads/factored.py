"""Questions to a vocabulary × vocabulary matrix that is only held as a product of two thin ones.

A QK or OV circuit of a model with 50,000 tokens has 2.5 billion entries. It is kept as ``A @ B`` with
d_head columns, and read in blocks of rows whose size is set in bytes; answers do not depend on that size.

>>> import torch
>>> matrix = FactoredMatrix(torch.tensor([[1.0], [2.0], [-3.0]]), torch.tensor([[1.0, 0.0, 2.0]]))
>>> top_pairs(matrix, 2)[["row", "column", "value"]].values.tolist()
[[1.0, 2.0, 4.0], [0.0, 2.0, 2.0]]
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_linear._tl import FactoredMatrix
from lens_linear.checks import (
    counted,
    require_choice,
    require_finite,
    require_instance,
    require_int,
    require_ints,
    require_list,
)
from lens_linear.errors import FigureTooLargeError, InvalidArgumentError
from lens_linear.tables import Result

MAX_CELLS = 16_777_216  # 4096 × 4096: 128 MiB in float64
MAX_BYTES = 64 * 2**20
LARGE = 8192**2  # entries above which they are looked for in float32
MAX_EXTRA = 100_000
_PAD = 16
Order = Literal["largest", "smallest", "absolute"]


def dense(matrix: FactoredMatrix, *, what: str) -> Float[Tensor, "row column"]:
    """Multiply the matrix out.

    Raises:
        FigureTooLargeError: it would have more than 16.8 million entries.
    """
    require_instance("matrix", matrix, FactoredMatrix, advice="e.g. head.ov")
    rows, columns = matrix.ldim, matrix.rdim
    if rows * columns > MAX_CELLS:
        raise FigureTooLargeError(
            f"{what} would have {rows} x {columns} = {rows * columns} entries but the limit is "
            f"{MAX_CELLS}; take its largest entries, circuits.top_pairs(matrix, k), single rows, "
            "matrix.A[rows] @ matrix.B, or all of it where memory holds that, matrix.AB"
        )
    return matrix.A @ matrix.B


def row_blocks(
    matrix: FactoredMatrix, *, multiple: int = 1, max_bytes: int = MAX_BYTES
) -> Iterator[tuple[int, Float[Tensor, "block column"]]]:
    """Yield ``(first row, rows)``; a block takes at most ``max_bytes``, a multiple of rows as asked.

    The rows are overwritten by the next block.

    Raises:
        NonFiniteError: NaN or infinity in a factor: no order of entries would mean anything.
    """
    require_instance("matrix", matrix, FactoredMatrix, advice="e.g. head.ov")
    require_finite("matrix.A", matrix.A)
    require_finite("matrix.B", matrix.B)
    require_int("max_bytes", max_bytes, minimum=1)
    # Rows a little longer than a power of two and B by columns: 4.1 s for 49,152² entries, else 5.4.
    width = matrix.rdim + _PAD
    size = max(multiple, max_bytes // (width * matrix.A.element_size()) // multiple * multiple)
    room = matrix.A.new_empty(min(size, matrix.ldim), width)[:, : matrix.rdim]
    columns = matrix.B.detach().T.contiguous().T
    for start in range(0, matrix.ldim, size):
        part = matrix.A[start : start + size].detach()
        yield start, torch.matmul(part, columns, out=room[: len(part)])


@dataclass(frozen=True, eq=False)
class TopPairs(Result):
    """The entries of a matrix that stand out, best first.

    Attributes:
        row_ids, column_ids: where they are.
        entries: their values.
        order: what "best" means.
        matrix_shape: of the whole matrix.
        row_labels, column_labels: text of every row and column, or None.
        name: of the matrix.
        sides: what rows and columns are.
    """

    _figure = "top_pairs"

    row_ids: Int[Tensor, " k"]
    column_ids: Int[Tensor, " k"]
    entries: Float[Tensor, " k"]
    order: Order
    matrix_shape: tuple[int, int]
    row_labels: Sequence[str] | None = None
    column_labels: Sequence[str] | None = None
    name: str = "matrix"
    sides: tuple[str, str] = ("row", "column")

    def __repr__(self) -> str:
        rows, columns = self.matrix_shape
        return f"TopPairs: the {len(self.row_ids)} {self.order} entries of {rows} × {columns}"

    def to_dataframe(self) -> pd.DataFrame:
        """Columns row, column, value, and row_label, column_label where there are labels."""
        frame = pd.DataFrame(
            {
                "row": self.row_ids.numpy(),
                "column": self.column_ids.numpy(),
                "value": self.entries.double().numpy(),
            }
        )
        if self.row_labels is not None:
            frame["row_label"] = [self.row_labels[i] for i in self.row_ids.tolist()]
        if self.column_labels is not None:
            frame["column_label"] = [self.column_labels[i] for i in self.column_ids.tolist()]
        return frame


def top_pairs(
    matrix: FactoredMatrix,
    k: int = 100,
    *,
    order: Order = "largest",
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    name: str = "matrix",
    sides: tuple[str, str] = ("row", "column"),
    max_bytes: int = MAX_BYTES,
) -> TopPairs:
    """Find the k largest (smallest, or largest by size) entries without the whole matrix.

    Equal entries come in reading order. Large float64 matrices are searched in float32, and what was found is
    ranked in float64; the result is the same. Time is that of the product.

    Args:
        matrix: ``A [rows, m] @ B [m, columns]``.
        k: entries wanted; all of them when the matrix has fewer.
        order: which entries count as best.
        row_labels: text of the rows, carried into the table.
        column_labels: text of the columns.
        name: of the matrix, for titles.
        sides: what rows and columns are, for titles.
        max_bytes: size of one block of rows. The whole search takes about three times as much.

    Returns:
        TopPairs: ids and values of the entries, best first; acts as a table.

    Raises:
        InvalidArgumentError: ``k`` below 1, an unknown ``order``, or ``matrix`` is no factored matrix.

    Example:
        >>> import torch
        >>> from lens_linear._tl import FactoredMatrix
        >>> x = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
        >>> table = top_pairs(FactoredMatrix(x, x.T), 3)
        >>> bool((table["row"] == table["column"]).all())
        True
    """
    require_instance("matrix", matrix, FactoredMatrix, advice="pass e.g. view.head(0, 0).ov")
    k = require_int("k", k, minimum=1)
    require_choice("order", order, ("largest", "smallest", "absolute"))
    if matrix.ldim * matrix.rdim > LARGE and matrix.A.dtype == torch.float64:
        rows, columns, entries = _top_rechecked(matrix, k, order, max_bytes)
    else:
        rows, columns, entries = _top(matrix, k, order, max_bytes)
    return TopPairs(
        rows,
        columns,
        entries.detach(),
        order,
        (matrix.ldim, matrix.rdim),
        row_labels,
        column_labels,
        name,
        sides,
    )


def _top(
    matrix: FactoredMatrix, k: int, order: Order, max_bytes: int
) -> tuple[Tensor, Tensor, Tensor]:
    blocks = (
        (start, _keyed(block, order)) for start, block in row_blocks(matrix, max_bytes=max_bytes)
    )
    rows, columns = top_of_blocks(blocks, k)
    return rows, columns, (matrix.A[rows] * matrix.B.T[columns]).sum(-1)


def _top_rechecked(
    matrix: FactoredMatrix, k: int, order: Order, max_bytes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Look for the entries in float32, with room for its rounding, and rank what was found in float64.

    A float32 entry is off by at most ``bound``, about 2⁻²³ (m + 2) times the largest product of row and
    column norms. Entries outside the ``k + extra`` found lie below the last of these, so the ranking is
    exact once the k-th of the recomputed entries stands above it by the bound. Factors are searched at a
    largest number of 1: products of dead heads' weights, 1e-20 and less, would all be 0 in float32.
    """
    left = float(require_finite("matrix.A", matrix.A).abs().max()) or 1.0
    right = float(require_finite("matrix.B", matrix.B).abs().max()) or 1.0
    columns = matrix.B.T.div(right).to(torch.float32, memory_format=torch.contiguous_format).T
    rough = FactoredMatrix((matrix.A / left).float(), columns)
    norms = float(rough.A.norm(dim=1).max() * rough.B.norm(dim=0).max()) * left * right
    bound, extra = (matrix.mdim + 2) * 2.0**-23 * norms, max(64, k // 4)
    while True:
        wanted = min(k + extra, matrix.ldim * matrix.rdim)
        rows, columns, _ = _top(rough, wanted, order, max_bytes)
        entries = (matrix.A[rows] * matrix.B.T[columns]).sum(-1)
        keys = _keyed(entries.clone(), order)
        # Best first, equal ones in reading order.
        place = (rows * matrix.rdim + columns).argsort()
        best = place[keys[place].argsort(descending=True, stable=True)]
        kept = best[:k]
        last = float(keys.min()) + bound  # what was left out lies below this
        if wanted == matrix.ldim * matrix.rdim or float(keys[kept[-1]]) >= last:
            return rows[kept], columns[kept], entries[kept]
        if (
            extra > 64 * k + MAX_EXTRA
        ):  # a matrix of equal entries: nothing to tell apart in float32
            return _top(matrix, k, order, max_bytes)
        extra *= 8


def top_of_blocks(
    blocks: Iterable[tuple[int, Float[Tensor, "block column"]]], k: int
) -> tuple[Int[Tensor, " k"], Int[Tensor, " k"]]:
    """Return rows and columns of the k largest entries of a matrix that comes in blocks of rows.

    Best first, equal ones in reading order. Once k are found, only rows that reach the k-th are looked at.
    """
    values, where = torch.empty(0), torch.empty(0, dtype=torch.int64)
    width = 1
    for start, block in _begun_small(blocks):
        width = block.shape[1]
        rows = torch.arange(len(block))
        if len(values) == k:
            rows = (block.amax(dim=1) > values[-1]).nonzero().flatten()
            flat = block[rows].flatten()
            best = (flat > values[-1]).nonzero().flatten()
            best = best[first_largest(flat[best], k)] if len(best) > k else best
        else:
            flat = block.flatten()
            best = first_largest(flat, min(k, len(flat)))
        found = (start + rows[best // width]) * width + best % width
        values = torch.cat([values.to(flat.dtype), flat[best]])
        where = torch.cat([where, found])
        # Stable: what was found earlier stands in lower rows, so ties keep reading order.
        keep = values.argsort(descending=True, stable=True)[:k]
        values, where = values[keep], where[keep]
    return where // width, where % width


def _begun_small(blocks: Iterable[tuple[int, Tensor]]) -> Iterator[tuple[int, Tensor]]:
    """The same blocks, the first in two parts: after a few rows most entries can be passed over."""
    for start, block in blocks:
        few = len(block) // 8 if start == 0 else 0
        if few:
            yield start, block[:few]
        yield start + few, block[few:]


def _keyed(block: Tensor, order: Order) -> Tensor:
    if order == "absolute":
        return block.abs_()
    return block.neg_() if order == "smallest" else block


def first_largest(values: Float[Tensor, " n"], k: int) -> Int[Tensor, " k"]:
    """Return where the k largest values stand, in falling order; of equal ones the first places."""
    edge = values.topk(k).values[-1]
    above = (values > edge).nonzero().flatten()
    equal = (values == edge).nonzero().flatten()[: k - len(above)]
    above = above[values[above].argsort(descending=True, stable=True)]
    return torch.cat([above, equal])


def copying_score(matrix: FactoredMatrix) -> float:
    """Say how much a map from the vocabulary to itself returns what it reads.

    ``Σ Re λ / Σ |λ|`` over the eigenvalues λ of ``A B``, which are those of the small ``B A``.

    Between -1 (every λ negative real) and 1 (every λ positive real); near 0 for random factors; 0 for
    the zero matrix.

    Args:
        matrix: ``A [vocab, m] @ B [m, vocab]``.

    Returns:
        The score, a float.

    Raises:
        InvalidArgumentError: the matrix is not square, so it has no eigenvalues.

    Source: Elhage et al. 2021, "Copying: summarizing OV matrices via eigenvalues".

    Example:
        >>> import torch
        >>> from lens_linear._tl import FactoredMatrix
        >>> round(copying_score(FactoredMatrix(torch.eye(3), torch.diag(torch.tensor([2., 1., -1.])))), 3)
        0.5
    """
    return copying_of(eigenvalues(matrix))


def copying_of(values: Tensor) -> float:
    """Return ``Σ Re λ / Σ |λ|`` of eigenvalues; 0 when all are 0."""
    size = values.abs().sum()
    if float(size) == 0.0:
        return 0.0
    return max(-1.0, min(1.0, float(values.real.sum() / size)))


def eigenvalues(matrix: FactoredMatrix) -> Tensor:
    """Return the eigenvalues of ``A B`` that can differ from 0, from the small product ``B A``."""
    require_instance("matrix", matrix, FactoredMatrix, advice="e.g. head.ov")
    if matrix.ldim != matrix.rdim:
        raise InvalidArgumentError(
            f"matrix must be square to have eigenvalues, got {matrix.ldim} x {matrix.rdim}; input and "
            "output vocabularies differ in this model"
        )
    small = matrix.B @ matrix.A if matrix.mdim <= matrix.ldim else matrix.A @ matrix.B
    values: Tensor = torch.linalg.eigvals(small)
    return values


def sum_of(matrices: Sequence[FactoredMatrix]) -> FactoredMatrix:
    """Return ``Σ A_i B_i`` as one factored matrix, e.g. the OV circuit of several heads together.

    Args:
        matrices: factored matrices, all [rows, columns]; their inner sizes may differ.

    Returns:
        FactoredMatrix [rows, columns] whose inner size is the sum of theirs.

    Raises:
        InvalidArgumentError: no matrix, or something that is none.

    Example:
        >>> one = FactoredMatrix(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0, 0.0]]))
        >>> two = FactoredMatrix(torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0, 1.0]]))
        >>> sum_of([one, two]).AB.tolist()
        [[1.0, 0.0], [5.0, 1.0]]
    """
    matrices = require_list("matrices", matrices, of="factored matrices")
    for matrix in matrices:
        require_instance("matrices", matrix, FactoredMatrix, advice="e.g. head.ov")
    if not matrices:
        raise InvalidArgumentError("matrices must hold at least one matrix, got none; pass heads")
    return FactoredMatrix(
        torch.cat([matrix.A for matrix in matrices], dim=1),
        torch.cat([matrix.B for matrix in matrices], dim=0),
    )


@dataclass(frozen=True, eq=False)
class DiagonalAccuracy(Result):
    """How often a token's own entry is among the k largest of its row (or column).

    Attributes:
        ranks: per token, how many other entries are at least as large; 0 is best.
        by: "row" or "column".
        ks: the k of the table.
    """

    _figure = "diagonal_accuracy"

    ranks: Int[Tensor, " vocab"]
    by: Literal["row", "column"]
    ks: tuple[int, ...]

    def accuracy(self, k: int) -> float:
        """Share of tokens whose own entry is among the k largest."""
        return float((self.ranks < k).double().mean())

    @property
    def top1(self) -> float:
        """Share of tokens whose own entry is the largest."""
        return self.accuracy(1)

    @property
    def top5(self) -> float:
        """Share of tokens whose own entry is among the five largest."""
        return self.accuracy(5)

    def __repr__(self) -> str:
        n = len(self.ranks)
        return (
            f"DiagonalAccuracy: top-1 {self.top1:.1%}, top-5 {self.top5:.1%} of "
            f"{counted(n, 'token')} by {self.by}"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Columns k, accuracy, chance (k over the number of tokens)."""
        n = len(self.ranks)
        rows = [(k, self.accuracy(k), min(1.0, k / n)) for k in self.ks]
        return pd.DataFrame(rows, columns=["k", "accuracy", "chance"])


def diagonal_accuracy(
    matrix: FactoredMatrix,
    *,
    ks: Sequence[int] = (1, 5),
    by: Literal["row", "column"] = "row",
    max_bytes: int = MAX_BYTES,
) -> DiagonalAccuracy:
    """Rank each diagonal entry in its row (or column), in blocks.

    For an OV circuit ``by="row"`` asks: is the token itself what reading it raises most? Equal entries
    count against the diagonal, so a constant matrix scores 0. By chance k / vocabulary.

    Args:
        matrix: ``A [vocab, m] @ B [m, vocab]``; never multiplied out.
        ks: how many of the largest entries count, for the table.
        by: "row" or "column".
        max_bytes: size of one block of rows.

    Returns:
        DiagonalAccuracy: the rank of every diagonal entry, ``.top1``, ``.accuracy(k)`` (0 to 1).

    Raises:
        InvalidArgumentError: the matrix is not square, or ``ks`` or ``by`` is not one of the above.

    Example:
        >>> table = torch.tensor([[3.0, 1.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 5.0]])
        >>> found = diagonal_accuracy(FactoredMatrix(table, torch.eye(3)))
        >>> found.ranks.tolist(), round(found.top1, 3)
        ([0, 1, 0], 0.667)
    """
    require_instance("matrix", matrix, FactoredMatrix, advice="e.g. head.ov")
    if matrix.ldim != matrix.rdim:
        raise InvalidArgumentError(
            f"matrix must be square to have a diagonal, got {matrix.ldim} x {matrix.rdim}"
        )
    require_choice("by", by, ("row", "column"))
    counted = tuple(require_ints("ks", ks, minimum=1))
    turned = matrix if by == "row" else matrix.T
    ranks = []
    for start, block in row_blocks(turned, max_bytes=max_bytes):
        here = torch.arange(len(block))
        own = block[here, start + here]
        # The entry itself is always at least as large as itself.
        ranks.append((block >= own[:, None]).sum(dim=1) - 1)
    return DiagonalAccuracy(torch.cat(ranks), by, counted)
