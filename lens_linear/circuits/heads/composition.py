"""How much a head reads what an earlier head wrote: composition scores with a random baseline.

``score = ‖W_OV W_in‖_F / (‖W_OV‖_F ‖W_in‖_F)`` with ``W_OV = W_V W_O`` of the writer and W_in of the reader:
``W_Q W_Kᵀ`` for Q-composition, ``W_K W_Qᵀ`` for K, ``W_V W_O`` for V. It is the share of what is written that
is read, between 0 and 1; about ``1 / sqrt(d_model)`` when writer and reader are unrelated. A raw score says
little by itself, because a reader with few large directions scores differently from one with many: each
score comes with the mean and spread of a baseline of its own, and z.

Nothing of size d_model × d_model is formed. With ``W_OV = U diag(s) Xᵀ`` and ``W_in = Y diag(t) Wᵀ``,
``score² = Σ_ij s_i² (XᵀY)_ij² t_j² / (Σ s² Σ t²)``.

Source: Elhage et al. 2021, "Two-layer attention-only transformers" (composition scores, and the remark that
they need a random baseline).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lens_linear._tl import TransformerBridge
from lens_linear.checks import require_choice, require_int, require_seed
from lens_linear.models.describe.weights import AttentionWeights, read_attention
from lens_linear.tables import Result

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["Q", "K", "V"]
KINDS: tuple[Kind, ...] = ("Q", "K", "V")
Baseline = Literal["rotated", "gaussian"]


@dataclass(frozen=True, eq=False)
class CompositionScores(Result):
    """Composition of every pair of heads of rising layers, per kind.

    Attributes:
        scores: [kind, writer layer, writer head, reader layer, reader head]; 0 where the reader does not
            stand above the writer.
        baseline_mean, baseline_sd: of the score of random pairs, the same shape.
        baseline: "rotated" keeps both heads' singular values and turns them against each other at random;
            "gaussian" draws all four matrices anew.
        n_random: draws behind the baseline.
        folded: whether norm weights were folded into the readers.
        seed: of the draws.
    """

    _figure = "composition_map"

    scores: Float[Tensor, "kind layer head layer head"]
    baseline_mean: Float[Tensor, "kind layer head layer head"]
    baseline_sd: Float[Tensor, "kind layer head layer head"]
    baseline: Baseline
    n_random: int
    folded: bool
    seed: int
    _cache: dict[str, pd.DataFrame] = field(default_factory=dict, repr=False)

    @property
    def z(self) -> Float[Tensor, "kind layer head layer head"]:
        """``(score - baseline_mean) / baseline_sd``; 0 where there is no pair."""
        sd = self.baseline_sd
        return torch.where(sd > 0, (self.scores - self.baseline_mean) / sd.clamp_min(1e-300), 0.0)

    def __repr__(self) -> str:
        layers, heads = self.scores.shape[1:3]
        pairs = heads * heads * layers * (layers - 1) // 2
        how = "folded" if self.folded else "raw"
        return (
            f"CompositionScores: {pairs} pairs of heads of {layers} layers, {how} weights, z against "
            f"{self.n_random} {self.baseline} draws"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Columns kind, writer, reader, score, baseline_mean, baseline_sd, z, and the four indices."""
        import pandas as pd

        if "frame" not in self._cache:
            n_layers, n_heads = self.scores.shape[1:3]
            parts = torch.meshgrid(*(torch.arange(n) for n in self.scores.shape), indexing="ij")
            keep = parts[1] < parts[3]
            kind, w_layer, w_head, r_layer, r_head = (part[keep].tolist() for part in parts)
            names = [[f"L{layer}H{head}" for head in range(n_heads)] for layer in range(n_layers)]
            self._cache["frame"] = pd.DataFrame(
                {
                    "kind": [KINDS[i] for i in kind],
                    "writer": [names[i][j] for i, j in zip(w_layer, w_head, strict=True)],
                    "reader": [names[i][j] for i, j in zip(r_layer, r_head, strict=True)],
                    "score": self.scores[keep].numpy(),
                    "baseline_mean": self.baseline_mean[keep].numpy(),
                    "baseline_sd": self.baseline_sd[keep].numpy(),
                    "z": self.z[keep].numpy(),
                    "writer_layer": w_layer,
                    "writer_head": w_head,
                    "reader_layer": r_layer,
                    "reader_head": r_head,
                }
            )
        return self._cache["frame"].copy()


def composition_scores(
    model: TransformerBridge,
    *,
    fold: bool = False,
    baseline: Baseline = "rotated",
    n_random: int = 200,
    seed: int = 0,
) -> CompositionScores:
    """Score Q-, K- and V-composition of every pair of heads, each with its random baseline.

    ``score = ‖W_OV W_in‖_F / (‖W_OV‖_F ‖W_in‖_F)``, dimensionless, 0 to 1; about ``1 / sqrt(d_model)`` for
    unrelated heads, where z is about 0.

    Args:
        model: a bridge, with or without MLPs; grouped-query keys and values count once a query head.
        fold: fold norm weights and centring into the readers first. The default reads the weights as they
            are stored, which is what ``bridge.all_composition_scores`` does, so the two agree; with
            learnt norm weights the folded ones are what the reader really applies.
        baseline: what "unrelated" means. "rotated": the same two heads, turned against each other by a
            random rotation of the residual stream (the mean of score² is exactly 1 / d_model).
            "gaussian": four random matrices of the same shapes.
        n_random: draws.
        seed: of the draws.

    Returns:
        A table with columns kind, writer, reader, score, baseline_mean, baseline_sd, z. Empty for a model
        of one layer.

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
    require_choice("baseline", baseline, ("rotated", "gaussian"))
    n_random = require_int("n_random", n_random, minimum=2)
    generator = torch.Generator().manual_seed(require_seed(seed))
    attention = read_attention(model, fold=fold)
    writers, readers = _writer(attention), [_reader(attention, kind) for kind in KINDS]
    n_layers, n_heads, d_model = attention.W_Q.shape[:3]
    earlier = torch.arange(n_layers)[:, None] < torch.arange(n_layers)
    mask = earlier[:, None, :, None].expand(n_layers, n_heads, n_layers, n_heads)
    scores = torch.stack([_scores(writers, reader) for reader in readers]) * mask
    if baseline == "rotated":
        found = [
            _rotated(writers[1], reader[1], d_model, n_random, generator) for reader in readers
        ]
    else:
        found = [_gaussian(attention.W_Q.shape, n_random, generator)] * len(readers)
    mean = torch.stack([pair[0].expand(mask.shape) for pair in found]) * mask
    sd = torch.stack([pair[1].expand(mask.shape) for pair in found]) * mask
    return CompositionScores(scores, mean, sd, baseline, n_random, fold, seed)


Side = tuple[Float[Tensor, "layer head d_model rank"], Float[Tensor, "layer head rank"]]


def _writer(attention: AttentionWeights) -> Side:
    """Return the right singular directions and values of ``W_V W_O``."""
    u, s = _left(attention.W_O.transpose(-2, -1), attention.W_V.transpose(-2, -1))
    return u, s


def _reader(attention: AttentionWeights, kind: Kind) -> Side:
    """Return the left singular directions and values of what a head reads with."""
    if kind == "Q":
        return _left(attention.W_Q, attention.W_K.transpose(-2, -1))
    if kind == "K":
        return _left(attention.W_K, attention.W_Q.transpose(-2, -1))
    return _left(attention.W_V, attention.W_O)


def _left(a: Tensor, b: Tensor) -> Side:
    """Left singular directions and values of ``a @ b`` from two thin QR factorisations."""
    q, r = torch.linalg.qr(a)
    r_b = torch.linalg.qr(b.transpose(-2, -1)).R
    u, s, _ = torch.linalg.svd(r @ r_b.transpose(-2, -1), full_matrices=False)
    return q @ u, s


def _scores(writer: Side, reader: Side) -> Float[Tensor, "layer head layer head"]:
    (x, s), (y, t) = writer, reader
    left, right = x * s[..., None, :], y * t[..., None, :]
    norms = s.norm(dim=-1)[:, :, None, None] * t.norm(dim=-1)
    raw = torch.zeros_like(norms)
    for layer in range(len(x) - 1):  # a layer of writers at a time, and only readers above it
        product = torch.einsum("hdi,lgdj->hlgij", left[layer], right[layer + 1 :])
        raw[layer, :, layer + 1 :] = product.square().sum((-2, -1)).sqrt()
    return torch.where(norms > 0, raw / norms.clamp_min(1e-300), 0.0)


def _rotated(
    s: Float[Tensor, "layer head i"],
    t: Float[Tensor, "layer head j"],
    d_model: int,
    n_random: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Mean and spread of the score of every pair after a random rotation between the two.

    XᵀRY for a random rotation R is the corner of a random orthonormal frame, whatever X and Y are, so one
    set of draws serves all pairs.
    """
    shares = [v.square() / v.square().sum(-1, keepdim=True).clamp_min(1e-300) for v in (s, t)]
    width, height = s.shape[-1], t.shape[-1]
    total = torch.zeros(*s.shape[:2], *t.shape[:2], dtype=s.dtype)
    squares = torch.zeros_like(total)
    for corner in _corners(d_model, width, height, n_random, generator):
        weighted = torch.einsum("lhi,nij->nlhj", shares[0], corner.square())
        drawn = torch.einsum("nlhj,mgj->nlhmg", weighted, shares[1]).clamp_min(0).sqrt()
        total += drawn.sum(0)
        squares += drawn.square().sum(0)
    return _moments(total, squares, n_random)


def _corners(
    d_model: int, width: int, height: int, n_random: int, generator: torch.Generator
) -> Iterator[Float[Tensor, "n width height"]]:
    size = max(1, 4_000_000 // (d_model * height))
    for start in range(0, n_random, size):
        n = min(size, n_random - start)
        drawn = torch.randn(n, d_model, height, generator=generator, dtype=torch.float64)
        yield torch.linalg.qr(drawn).Q[:, :width]


def _gaussian(
    shape: torch.Size, n_random: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    d_model, d_head = shape[2:]
    drawn = []
    for _ in range(n_random):
        v, o, q, k = (
            torch.randn(d_model, d_head, generator=generator, dtype=torch.float64) for _ in range(4)
        )
        x, s = _left(o, v.T)
        y, t = _left(q, k.T)
        product = (x * s).T @ (y * t)
        drawn.append(product.norm() / (s.norm() * t.norm()))
    values = torch.stack(drawn)
    return _moments(values.sum(), values.square().sum(), n_random)


def _moments(total: Tensor, squares: Tensor, n: int) -> tuple[Tensor, Tensor]:
    mean = total / n
    return mean, ((squares - n * mean.square()).clamp_min(0) / (n - 1)).sqrt()
