"""A two-layer attention-only model with an induction circuit set by hand: every number is known.

The residual stream has four parts side by side::

    [ token: vocab | position: n_ctx | previous token: vocab | output: vocab ]

Token and position are one-hot embeddings. Head L0H0, the previous-token head, scores ``sharpness_0`` for the
key one position back and 0 for every other key, and writes the token it finds into the third part. Head
L1H1, the induction head, scores ``sharpness_1 · m`` where m is how much of the key's third part is the
query's token, and writes the token it finds, times ``strength``, into the fourth part, which the unembedding
reads. L0H1 and L1H0 are idle: they attend equally to all keys and write nothing.

So the logits at position t are ``strength · Σ_j A_t,j onehot(token_j)`` and everything else has a closed form
too: patterns, scores, circuits, copying scores (1 for OV of L1H1), composition scores (K of L0H0 with L1H1
is ``1/sqrt(vocab)``, Q and V are 0).

>>> import torch
>>> built = build_induction(vocab=6, n_ctx=12)
>>> tokens = torch.tensor([[0, 3, 5, 1, 4, 0, 3, 5, 1]])
>>> built.model(tokens)[0, -1].argmax().item(), built.logits(tokens)[0, -1].argmax().item()
(4, 4)

Source: the mechanism of Elhage et al. 2021, "How induction heads work"; the weights are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_linear._tl import TransformerBridge
from lens_linear.checks import require_float, require_floats, require_int
from lens_linear.errors import InvalidArgumentError
from lens_linear.models.native import ModelSpec, bridge_from_module, native_module
from lens_linear.token_rows import TokenRows, require_tokens

PREVIOUS_TOKEN_HEAD = (0, 0)
INDUCTION_HEAD = (1, 1)


@dataclass(frozen=True, eq=False)
class InductionConstruction:
    """The hand-built model and its closed forms, which are computed from the formulas, not the weights.

    Attributes:
        model: the bridge; head L0H0 looks at the previous token, L1H1 is the induction head.
        vocab: tokens.
        n_ctx: longest sequence.
        sharpness: scores of the two heads at a full match.
        strength: logits that full attention to a token gives it.
    """

    model: TransformerBridge = field(repr=False)
    vocab: int
    n_ctx: int
    sharpness: tuple[float, float]
    strength: float

    def __repr__(self) -> str:
        return (
            f"InductionConstruction: 2 layers × 2 heads, vocabulary {self.vocab}, context {self.n_ctx}, "
            f"scores {self.sharpness[0]:g} and {self.sharpness[1]:g} at a match, strength "
            f"{self.strength:g} logits"
        )

    def previous_token_pattern(self, length: int) -> Float[Tensor, "query key"]:
        """Pattern of L0H0: ``e^β / (e^β + t)`` on the previous token, ``1 / (e^β + t)`` elsewhere."""
        length = require_int("length", length, minimum=1, maximum=self.n_ctx)
        scores = torch.zeros(length, length, dtype=torch.float64)
        scores[torch.arange(1, length), torch.arange(length - 1)] = self.sharpness[0]
        return _causal(scores)

    def induction_scores(
        self, tokens: Int[Tensor, "batch position"] | TokenRows
    ) -> Float[Tensor, "batch query key"]:
        """Pre-softmax scores of L1H1: ``γ Σ_i P_j,i [token_i = token_t]``, P the pattern of L0H0."""
        tokens = self._tokens(tokens)
        same = (tokens[:, :, None] == tokens[:, None]).double()  # [batch, t, i]
        return self.sharpness[1] * same @ self.previous_token_pattern(tokens.shape[1]).T

    def induction_pattern(
        self, tokens: Int[Tensor, "batch position"] | TokenRows
    ) -> Float[Tensor, "batch query key"]:
        """Pattern of L1H1: the causal softmax of :meth:`induction_scores`."""
        return _causal(self.induction_scores(tokens))

    def logits(
        self, tokens: Int[Tensor, "batch position"] | TokenRows
    ) -> Float[Tensor, "batch position vocab"]:
        """``strength · Σ_j A_t,j onehot(token_j)``, A the pattern of L1H1."""
        tokens = self._tokens(tokens)
        onehot = torch.nn.functional.one_hot(tokens, self.vocab).double()
        return self.strength * self.induction_pattern(tokens) @ onehot

    def _tokens(self, tokens: Tensor | TokenRows) -> Int[Tensor, "batch position"]:
        return require_tokens("tokens", tokens, n_vocab=self.vocab, n_ctx=self.n_ctx).cpu()


def build_induction(
    vocab: int = 32,
    n_ctx: int = 64,
    *,
    sharpness: tuple[float, float] = (12.0, 12.0),
    strength: float = 12.0,
) -> InductionConstruction:
    """Set the weights of a two-layer induction model by hand.

    Args:
        vocab: tokens, at least 2; an even sum ``3 vocab + n_ctx`` is needed for two heads.
        n_ctx: longest sequence. A head has ``(3 vocab + n_ctx) / 2`` dimensions and must hold a one-hot of
            all positions, so ``n_ctx`` is at most ``3 vocab``.
        sharpness: score of the previous-token head at the previous token, and of the induction head at a
            full match; large values make both patterns sharp.
        strength: logits that full attention to a token gives it.

    Returns:
        InductionConstruction: ``.model``, and ``.logits(tokens)`` in closed form.

    Raises:
        InvalidArgumentError: sizes that do not fit.

    Source: the mechanism of Elhage et al. 2021, "How induction heads work"; the weights are ours.

    Example:
        >>> build_induction(vocab=8, n_ctx=16)
        InductionConstruction: 2 layers × 2 heads, vocabulary 8, context 16, scores 12 and 12 at a match, strength 12 logits
    """  # noqa: E501
    vocab = require_int("vocab", vocab, minimum=2)
    n_ctx = require_int("n_ctx", n_ctx, minimum=2, maximum=3 * vocab)
    sharp = require_floats("sharpness", sharpness)
    if len(sharp) != 2:
        raise InvalidArgumentError(f"sharpness must be two scores, one a head, got {sharpness!r}")
    beta, gamma = sharp
    strength = require_float("strength", strength)
    if (3 * vocab + n_ctx) % 2:
        raise InvalidArgumentError(
            f"3 vocab + n_ctx must be even for two heads, got 3 x {vocab} + {n_ctx}; change n_ctx by 1"
        )
    d_model = 3 * vocab + n_ctx
    spec = ModelSpec(2, d_model, 2, vocab, n_ctx, attn_only=True, norm="none")
    module = native_module(spec)
    d_head = d_model // 2
    token, position = slice(0, vocab), slice(vocab, vocab + n_ctx)
    previous = slice(vocab + n_ctx, 2 * vocab + n_ctx)
    output = slice(2 * vocab + n_ctx, d_model)
    eye, shift = torch.eye(vocab), torch.eye(n_ctx)[:, 1:]
    root = d_head**0.25  # undoes the division by sqrt(d_head), half on each side
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.tok_embed.weight[:, token] = eye
        module.pos.weight[:, position] = torch.eye(n_ctx)  # type: ignore[union-attr]
        module.head.weight[:, output] = eye
        first, second = (layer.attn for layer in module.layers)
        # Linear layers hold [out, in]; head h owns rows h · d_head onwards of q, k, v.
        # Query at i and key at i - 1 meet in dimension i - 1: the key's own position, the query's shifted.
        first.q.weight[: n_ctx - 1, position] = root * shift.T * abs(beta) ** 0.5
        first.k.weight[: n_ctx - 1, position] = (
            root * torch.eye(n_ctx)[: n_ctx - 1] * abs(beta) ** 0.5 * (1 if beta >= 0 else -1)
        )
        first.v.weight[:vocab, token] = eye
        first.o.weight[previous, :vocab] = eye
        rows = slice(d_head, d_head + vocab)
        second.q.weight[rows, token] = root * eye * abs(gamma) ** 0.5
        second.k.weight[rows, previous] = root * eye * abs(gamma) ** 0.5 * (1 if gamma >= 0 else -1)
        second.v.weight[rows, token] = eye
        second.o.weight[output, rows] = strength * eye
    model = bridge_from_module(module, spec, name="induction construction")
    return InductionConstruction(model, vocab, n_ctx, (beta, gamma), strength)


def _causal(scores: Float[Tensor, "*batch query key"]) -> Tensor:
    mask = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(mask, float("-inf")).softmax(-1)
