"""How much a head reads what an earlier head wrote: composition scores with a random baseline.

``score = ‖W_OV W_in‖_F / (‖W_OV‖_F ‖W_in‖_F)`` with ``W_OV = W_V W_O`` of the writer and W_in of the reader:
``W_Q W_Kᵀ`` for Q-composition, ``W_K W_Qᵀ`` for K, ``W_V W_O`` for V. It is the share of what is written that
is read, between 0 and 1; about ``1 / sqrt(d_model)`` when writer and reader are unrelated. A raw score says
little by itself, because a reader with few large directions scores differently from one with many: each
score comes with the mean and spread of a baseline of its own, z, and its ratio to that mean. In trained
models the baseline's spread is small and most pairs pass any z, so pairs are ranked by ``ratio``, and a
sentence says how many lie above what the best of as many unrelated pairs reaches.

The norms are Frobenius inner products of Gram matrices, ``‖W_OV W_in‖² = ⟨W_OVᵀ W_OV, W_in W_inᵀ⟩``, taken
block
of rows by block of rows: a fifth of the work of multiplying the heads out. Pairs so nearly orthogonal that
rounding would show are multiplied out.

Source: Elhage et al. 2021, "Two-layer attention-only transformers" (composition scores, and the remark that
they need a random baseline).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_linear.checks import counted, head_name, require_choice, require_int, require_seed
from lens_linear.models.checked import CheckedModel, ModelLike, checked
from lens_linear.models.describe.weights import read_attention
from lens_linear.progress import watched
from lens_linear.tables import Result

Kind = Literal["Q", "K", "V"]
KINDS: tuple[Kind, ...] = ("Q", "K", "V")
Baseline = Literal["rotated", "gaussian"]
Precision = Literal["float64", "float32"]
LARGE = 3e11  # multiplications; float64 does about 1e10 a second on one core
TILE = 64  # rows and columns of all Gram matrices held at once
GRID = 1 << 20  # more than the levels, 64 to a factor of e, that a variance or a skewness spans
SMALL = 1e-3  # of the Cauchy-Schwarz bound: above it rounding stays below 1e-12 (float32: 1e-4)


@dataclass(frozen=True, eq=False)
class CompositionScores(Result):
    """Composition of every pair of heads of rising layers, per kind.

    Attributes:
        scores: [kind, writer layer, writer head, reader layer, reader head]; 0 where the reader does not
            stand above the writer.
        baseline_mean, baseline_sd: of the score of random pairs, the same shape.
        best_random: per kind, the largest ratio that as many unrelated pairs reach (its median).
        baseline: "rotated" keeps both heads' singular values and turns them against each other at random;
            "gaussian" draws all four matrices anew.
        n_random: draws behind the baseline.
        folded: whether norm weights were folded into the readers, and centring into both sides.
        precision: of the products, "float64" or (for very many heads) "float32".
        seed: of the draws.
    """

    _figure = "composition_map"
    _columns = ("kind", "writer", "reader", "score", "ratio", "above_random", "z")

    scores: Float[Tensor, "kind layer head layer head"]
    baseline_mean: Float[Tensor, "kind layer head layer head"]
    baseline_sd: Float[Tensor, "kind layer head layer head"]
    best_random: Float[Tensor, " kind"]
    baseline: Baseline
    n_random: int
    folded: bool
    precision: Precision
    seed: int

    @property
    def z(self) -> Float[Tensor, "kind layer head layer head"]:
        """``(score - baseline_mean) / baseline_sd``; 0 where there is no pair."""
        sd = self.baseline_sd
        return torch.where(sd > 0, (self.scores - self.baseline_mean) / sd.clamp_min(1e-300), 0.0)

    @property
    def ratio(self) -> Float[Tensor, "kind layer head layer head"]:
        """``score / baseline_mean``: 1 for unrelated heads; 0 where there is no pair."""
        mean = self.baseline_mean
        return torch.where(mean > 0, self.scores / mean.clamp_min(1e-300), 0.0)

    @property
    def n_pairs(self) -> int:
        """Pairs of heads of rising layers, of each kind."""
        layers, heads = self.scores.shape[1:3]
        return heads * heads * layers * (layers - 1) // 2

    def above_random(self) -> dict[Kind, int]:
        """Say per kind how many pairs have a larger ratio than the best random pair."""
        above = self.ratio > self.best_random[:, None, None, None, None]
        return {kind: int(above[i].sum()) for i, kind in enumerate(KINDS)}

    def __repr__(self) -> str:
        how = "folded" if self.folded else "raw"
        above = ", ".join(
            f"{kind} {n} (best random {float(best):.2f} ×)"
            for (kind, n), best in zip(self.above_random().items(), self.best_random, strict=True)
        )
        return (
            f"CompositionScores: {counted(self.n_pairs, 'pair')} of heads of "
            f"{counted(self.scores.shape[1], 'layer')}, "
            f"{how} weights, "
            f"{self.n_random} {self.baseline} draws; above the best random pair: {above}"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row a pair, largest ratio first: kind, writer, reader, score, baseline_mean, baseline_sd, z,
        ratio.

        Then ``above_random`` (larger than the best random pair's ratio) and the four indices.
        """
        return self._frame.copy()

    @cached_property
    def _frame(self) -> pd.DataFrame:
        n_layers, n_heads = self.scores.shape[1:3]
        layers = torch.arange(n_layers)
        pairs = (layers[:, None] < layers)[None, :, None, :, None].expand(self.scores.shape)
        ratio = self.ratio
        where = pairs.nonzero()
        where = where[ratio[pairs].argsort(descending=True, stable=True)]
        at = tuple(where.T)
        kind, w_layer, w_head, r_layer, r_head = (part.numpy() for part in at)
        names = np.array(
            [head_name(i, j) for i in range(n_layers) for j in range(n_heads)], dtype=object
        )
        return pd.DataFrame(
            {
                "kind": np.array(KINDS, dtype=object)[kind],
                "writer": names[w_layer * n_heads + w_head],
                "reader": names[r_layer * n_heads + r_head],
                "score": self.scores[at].numpy(),
                "baseline_mean": self.baseline_mean[at].numpy(),
                "baseline_sd": self.baseline_sd[at].numpy(),
                "z": self.z[at].numpy(),
                "ratio": ratio[at].numpy(),
                "above_random": (ratio[at] > self.best_random[where[:, 0]]).numpy(),
                "writer_layer": w_layer,
                "writer_head": w_head,
                "reader_layer": r_layer,
                "reader_head": r_head,
            }
        )


def composition_scores(
    model: ModelLike,
    *,
    fold: bool = False,
    baseline: Baseline = "rotated",
    n_random: int = 200,
    seed: int = 0,
) -> CompositionScores:
    """Score Q-, K- and V-composition of every pair of heads, each with its random baseline.

    ``score = ‖W_OV W_in‖_F / (‖W_OV‖_F ‖W_in‖_F)``, dimensionless, 0 to 1; about ``1 / sqrt(d_model)`` for
    unrelated heads, where z is about 0 and the ratio to the baseline about 1.

    Args:
        model: a bridge, with or without MLPs; grouped-query keys and values count once a query head.
        fold: fold norm weights and centring into the readers first, and centre what heads write where the
            norms centre. The default reads the weights as they are stored, which is what
            ``bridge.all_composition_scores`` does, so the two agree; with learnt norm weights the folded ones
            are what the reader really applies.
        baseline: what "unrelated" means. "rotated": the same two heads, turned against each other by a
            random rotation of the residual stream (the mean of score² is exactly 1 / d_model).
            "gaussian": four random matrices of the same shapes.
        n_random: draws.
        seed: of the draws.

    Returns:
        CompositionScores: acts as a table, largest ratio first, with columns kind, writer, reader, score,
        baseline_mean, baseline_sd, z, ratio, above_random. Empty for a model of one layer.

    Raises:
        UnsupportedModelError: the model has no attention that can be read.

    Source: Elhage et al. 2021, *A Mathematical Framework for Transformer Circuits*, "Two-layer
        attention-only transformers" (composition scores); the baselines are ours.

    Example:
        >>> from lens_linear.models.open.toy import toy_model
        >>> found = composition_scores(toy_model(n_layers=2), n_random=50)
        >>> len(found), bool(found["z"].abs().max() < 6)
        (48, True)
    """
    model = checked(model)
    require_choice("baseline", baseline, ("rotated", "gaussian"))
    n_random = require_int("n_random", n_random, minimum=2)
    generator = torch.Generator().manual_seed(require_seed(seed))
    precision = _precision(model)
    attention = read_attention(model, fold=fold, dtype=getattr(torch, precision))
    n_layers, n_heads, d_model = attention.W_Q.shape[:3]
    if fold and model.reading_norm == "layer":
        # What a LayerNorm takes away is written for nobody, by writers and by readers for V alike.
        written = attention.W_O - attention.W_O.mean(dim=-1, keepdim=True)
        attention = replace(attention, W_O=written)
    qk = _sides(attention.W_Q, attention.W_K.transpose(-2, -1))
    readers_v, writers = _sides(attention.W_V, attention.W_O)
    readers = (*qk, readers_v)
    earlier = torch.arange(n_layers)[:, None] < torch.arange(n_layers)
    mask = earlier[:, None, :, None].expand(n_layers, n_heads, n_layers, n_heads)
    if baseline == "rotated":
        ranks = writers.values.shape[-1], readers[0].values.shape[-1]
        corners = _corners(d_model, *ranks, n_random, generator)
        # What reads by query and what reads by key are two sides of one matrix: one spectrum.
        spectra = [reader.values for reader in readers[1:]]
        found = [_rotated(writers.values, values, corners) for values in spectra]
        squares = [
            _rotated_square(writers.values, values, d_model, mean)
            for values, (mean, _) in zip(spectra, found, strict=True)
        ]
    else:
        found = [_gaussian(attention.W_Q.shape, n_random, generator)] * 2
        squares = [_gamma_square(*pair) for pair in found]
    best = [_best_random(square, mask) for square in squares]
    found, best = [found[0], *found], [best[0], *best]
    means, sds = (
        torch.stack([pair[i].expand(mask.shape) for pair in found]) * mask for i in (0, 1)
    )
    return CompositionScores(
        _scores(writers, readers, mask),
        means,
        sds,
        torch.stack(best),
        baseline,
        n_random,
        fold,
        precision,
        seed,
    )


@dataclass(frozen=True, eq=False)
class _Side:
    """One side of all pairs: ``factor factorᵀ`` is the Gram matrix of what is written or read.

    ``values`` are the singular values.
    """

    factor: Float[Tensor, "layer head d_model rank"]
    values: Float[Tensor, "layer head rank"]

    @property
    def norm(self) -> Float[Tensor, "layer head"]:
        """Frobenius norm of what is written or read."""
        norm: Tensor = self.values.norm(dim=-1)
        return norm

    @property
    def gram_norm(self) -> Float[Tensor, "layer head"]:
        """Frobenius norm of the Gram matrix."""
        norm: Tensor = self.values.square().norm(dim=-1)
        return norm


def _precision(model: CheckedModel) -> Precision:
    """Float32 products where float64 ones would take minutes."""
    pairs = len(KINDS) * (model.n_layers * model.n_heads) ** 2 / 2
    return "float32" if pairs * model.d_model**2 / 2 > LARGE else "float64"


def _sides(
    a: Float[Tensor, "layer head d_model rank"],
    b: Float[Tensor, "layer head rank d_model"],
) -> tuple[_Side, _Side]:
    """Both sides of ``a @ b``: ``a (b bᵀ)^(1/2)`` has its Gram matrix, and no more columns than ``a``."""
    grams = [(x.transpose(-2, -1) @ x).double() for x in (a, b.transpose(-2, -1))]
    roots = [_root(gram) for gram in grams]
    inner = roots[1] @ grams[0] @ roots[1]
    spectrum = torch.linalg.eigvalsh(inner).clamp_min(0).sqrt()
    return _Side(a @ roots[1].to(a), spectrum), _Side(
        b.transpose(-2, -1) @ roots[0].to(b), spectrum
    )


def _root(gram: Float[Tensor, "*batch rank rank"]) -> Float[Tensor, "*batch rank rank"]:
    """The symmetric root of a matrix without negative eigenvalues."""
    values, vectors = torch.linalg.eigh(gram)
    root: Tensor = vectors * values.clamp_min(0).sqrt()[..., None, :] @ vectors.transpose(-2, -1)
    return root


def _scores(
    writers: _Side, readers: Sequence[_Side], mask: Bool[Tensor, "layer head layer head"]
) -> Float[Tensor, "kind layer head layer head"]:
    """Scores of all pairs, from inner products of Gram matrices, tile by tile."""
    n_layers, n_heads, d_model, _ = writers.factor.shape
    left, rights = writers.factor.flatten(0, 1), [reader.factor.flatten(0, 1) for reader in readers]
    squares = torch.zeros(len(rights), len(left), len(left), dtype=torch.float64)
    row = torch.zeros(squares.shape, dtype=left.dtype)  # summed in float64 row by row of tiles
    room = torch.empty(2, len(left), min(TILE, d_model) ** 2, dtype=left.dtype)
    blocks = list(_blocks(n_layers, n_heads))
    tiles = range(0, d_model, TILE)
    for i in watched(tiles, len(tiles)):
        row.zero_()
        for j in range(i, d_model, TILE):
            written = _tile(left, i, j, room[0])
            # What stands right of the diagonal stands below it too.
            twice = 1 if i == j else 2
            for kind, right in enumerate(rights):
                read = _tile(right, i, j, room[1])
                for early, late in blocks:
                    row[kind, early, late].addmm_(written[early], read[late].T, alpha=twice)
        squares += row
    found = torch.zeros(len(rights), *mask.shape, dtype=torch.float64)
    for kind, reader in enumerate(readers):
        own = squares[kind].view(mask.shape)
        bound = writers.gram_norm[:, :, None, None] * reader.gram_norm
        _multiply_out(own, mask & (own < SMALL * bound), writers.factor, reader.factor)
        norms = writers.norm[:, :, None, None] * reader.norm
        found[kind] = torch.where(mask & (norms > 0), own.sqrt() / norms.clamp_min(1e-300), 0.0)
    return found


def _blocks(n_layers: int, n_heads: int) -> Iterator[tuple[slice, slice]]:
    """Heads of early and of late layers, in few large blocks that cover each pair of rising layers once."""
    waiting = [(0, n_layers)]
    while waiting:
        first, last = waiting.pop()
        middle = (first + last) // 2
        if last - first > 3:
            waiting += [(first, middle), (middle, last)]
            early, late = (first, middle), (middle, last)
        else:
            early, late = (first, last - 1), (first + 1, last)
        if late[0] < late[1]:
            yield slice(*(n_heads * x for x in early)), slice(*(n_heads * x for x in late))


def _tile(
    factor: Float[Tensor, "head d_model rank"], i: int, j: int, room: Float[Tensor, "head room"]
) -> Float[Tensor, "head cell"]:
    """Some rows and columns of each head's ``factor factorᵀ``, in memory that is used again."""
    rows, columns = factor[:, i : i + TILE], factor[:, j : j + TILE]
    shape = len(factor), rows.shape[1], columns.shape[1]
    out = room.flatten()[: math.prod(shape)].view(shape)
    return torch.bmm(rows, columns.transpose(1, 2), out=out).flatten(1)


def _multiply_out(
    squares: Float[Tensor, "layer head layer head"],
    which: Bool[Tensor, "layer head layer head"],
    left: Float[Tensor, "layer head d_model rank"],
    right: Float[Tensor, "layer head d_model rank"],
) -> None:
    """Compute ``‖leftᵀ right‖²`` anew, in place, where rounding may have spoilt it; such pairs are few."""
    for part in which.nonzero().split(256):
        i, h, j, g = part.unbind(1)
        product = left[i, h].transpose(-2, -1).double() @ right[j, g].double()
        squares[i, h, j, g] = product.square().sum((-2, -1))


@dataclass(frozen=True, eq=False)
class _Square:
    """The squared score of unrelated pairs, as a share of its mean: variance, skewness; and ``root``, the
    square of the mean score as such a share.
    """

    variance: Float[Tensor, "*pair"]
    skewness: Float[Tensor, "*pair"]
    root: Float[Tensor, "*pair"]


def _gamma_square(mean: Tensor, sd: Tensor) -> _Square:
    """That of a gamma distribution whose root has this mean and spread, up to the next order (1/8)."""
    apart = (sd / mean.clamp_min(1e-300)).square()
    variance = 1 / (1 / (4 * apart.clamp_min(1e-30)) + 1 / 8)
    return _Square(variance, 2 * variance.sqrt(), 1 / (1 + apart))


def _rotated_square(
    writer: Float[Tensor, "layer head i"],
    reader: Float[Tensor, "layer head j"],
    d_model: int,
    mean: Float[Tensor, "layer head layer head"],
) -> _Square:
    """Exact moments over rotations R of ``tr(A R B Rᵀ)``, whose k-th is ``Σ C(A) C(B) / C(1)`` over the zonal
    polynomials C of degree k (James 1964); A and B have the squared singular values as eigenvalues.
    """
    sides = []
    for values in (writer, reader):
        shares = values.square() / values.square().sum(-1, keepdim=True).clamp_min(1e-300)
        sides.append(_zonal(*(shares.pow(k).sum(-1) for k in (2, 3))))
    ones = _zonal(torch.tensor(1 / d_model).double(), torch.tensor(1 / d_model**2).double())
    second, third = (torch.zeros_like(mean), torch.zeros_like(mean))
    for total, k in ((second, 0), (third, 1)):
        for a, b, one in zip(*(side[k] for side in (*sides, ones)), strict=True):
            if float(one) > 1e-12:
                total += a[:, :, None, None] * b / one
    variance = (second - 1).clamp_min(0)
    skewness = (third - 3 * second + 2) / variance.clamp_min(1e-30).pow(1.5)
    return _Square(variance, skewness, mean.square() * d_model)


def _zonal(second: Tensor, third: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Zonal polynomials of degree 2 and 3 of eigenvalues that sum to 1, from their sums of powers."""
    return ((1 + 2 * second) / 3, 2 * (1 - second) / 3), (
        (1 + 6 * second + 8 * third) / 15,
        3 * (1 + second - 2 * third) / 5,
        (1 - 3 * second + 2 * third) / 3,
    )


def _best_random(square: _Square, mask: Bool[Tensor, "layer head layer head"]) -> Tensor:
    """Median of the largest ratio among as many unrelated pairs as there are.

    The squared score of a random pair is a weighted sum of squares, which a shifted gamma distribution with
    its variance and skewness describes (Hall, Buckley and Eagleson). Pairs are grouped by these: the search
    goes over what is left.
    """
    if not bool(mask.any()):
        return torch.zeros((), dtype=torch.float64)
    columns = (square.variance, square.skewness, square.root)
    variance, skewness, root = (x.expand(mask.shape)[mask] for x in columns)
    usable = (variance > 1e-12) & (root > 0)
    if not bool(usable.any()):
        return torch.ones((), dtype=torch.float64)
    both = torch.stack([variance, skewness.clamp_min(1e-2)])[:, usable]
    levels = (both.log() * 64).round()
    # One number for both is found again many times as fast as a column of two.
    keys, which, counts = (levels[0] * GRID + levels[1]).unique(
        return_inverse=True, return_counts=True
    )
    groups = levels.new_empty(2, len(keys))
    groups[:, which] = levels
    variance, skewness = (groups / 64).exp()
    root = torch.zeros_like(variance).index_add_(0, which, root[usable]) / counts
    freedom = 8 / skewness.square()
    low, high = torch.ones((), dtype=torch.float64), torch.full((), 100.0, dtype=torch.float64)
    for _ in range(60):  # bisection: expected pairs above the ratio = ln 2
        middle = (low + high) / 2
        above = (middle.square() * root - 1) / (variance / (2 * freedom)).sqrt()
        tail = torch.special.gammaincc(freedom / 2, (above + freedom).clamp_min(0) / 2)
        low, high = (middle, high) if float((counts * tail).sum()) > math.log(2) else (low, middle)
    return high


def _rotated(
    s: Float[Tensor, "layer head i"],
    t: Float[Tensor, "layer head j"],
    corners: Sequence[Float[Tensor, "n i j"]],
) -> tuple[Tensor, Tensor]:
    """Mean and spread of the score of every pair after a random rotation between the two.

    XᵀRY for a random rotation R is the corner of a random orthonormal frame, whatever X and Y are, so one
    set of draws serves all pairs.
    """
    shares = [v.square() / v.square().sum(-1, keepdim=True).clamp_min(1e-300) for v in (s, t)]
    right = shares[1].flatten(0, 1)
    total = torch.zeros(*s.shape[:2], len(right), dtype=s.dtype)
    squares, n_random = torch.zeros_like(total), 0
    for chunk in watched(corners, len(corners)):
        n_random += len(chunk)
        for corner in chunk:
            drawn = (shares[0] @ corner @ right.T).clamp_min_(0)
            squares += drawn
            total += drawn.sqrt_()
    shape = (*s.shape[:2], *t.shape[:2])
    return _moments(total.view(shape), squares.view(shape), n_random)


def _corners(
    d_model: int, width: int, height: int, n_random: int, generator: torch.Generator
) -> list[Float[Tensor, "n width height"]]:
    """Squared corners of random orthonormal frames."""
    size = max(1, 4_000_000 // (d_model * height))
    found = []
    for start in range(0, n_random, size):
        n = min(size, n_random - start)
        drawn = torch.randn(n, d_model, height, generator=generator, dtype=torch.float64)
        found.append(torch.linalg.qr(drawn).Q[:, :width].square())
    return found


def _gaussian(
    shape: torch.Size, n_random: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    d_model, d_head = shape[2:]
    drawn = []
    for _ in range(n_random):
        v, o, q, k = (
            torch.randn(d_model, d_head, generator=generator, dtype=torch.float64) for _ in range(4)
        )
        written, read = _sides(o, v.T)[0], _sides(q, k.T)[0]
        product = written.factor.T @ read.factor
        drawn.append(product.norm() / (written.norm * read.norm))
    values = torch.stack(drawn)
    return _moments(values.sum(), values.square().sum(), n_random)


def _moments(total: Tensor, squares: Tensor, n: int) -> tuple[Tensor, Tensor]:
    mean = total / n
    return mean, ((squares - n * mean.square()).clamp_min(0) / (n - 1)).sqrt()
