"""Which parts of the residual stream make an attention score: components of the query × of the key.

A score is bilinear: ``score = scale · q·k`` with ``q = (Σ_a x_a) W_Q / s + b_Q`` over the components x_a of
the query's stream (embedding, heads and MLPs below), and the same for the key. So it is a sum over pairs of
components. The norm's scale s is held at its value; norm weights and centring are folded; the bias is a
component of its own. Rotary models: both sides are rotated first, which is linear.

>>> import torch
>>> from lens_linear.models.open.toy import toy_model
>>> found = qk_attribution(toy_model(n_layers=2), torch.arange(6), 1, 0)
>>> found.components[:3], tuple(found.scores.shape)
(('token', 'position', 'L0H0'), (7, 7, 1, 6, 6))
>>> found.max_error < 1e-6
True

Where a model bounds its scores (soft cap), the sum is the score before the bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_linear.checks import head_name, require_bool, require_choice, require_int
from lens_linear.circuits.attention.components import (
    HeadOutputs,
    stream_components,
    stream_spots,
)
from lens_linear.circuits.heads.head_circuit import place_of, require_attention
from lens_linear.circuits.labels import require_labels
from lens_linear.errors import FigureTooLargeError, InvalidArgumentError, UnsupportedModelError
from lens_linear.models.capture import Run, require_model_tokens, run
from lens_linear.models.checked import CheckedModel, ModelLike, NormKind, checked
from lens_linear.models.describe.rotary import read_rotary
from lens_linear.models.describe.weights import norm_scale, read_attention, read_weights
from lens_linear.models.frozen.attention_scores import attention_scores
from lens_linear.models.frozen.frozen_attention import norm_gap
from lens_linear.models.frozen.windows import layer_window, seen_keys
from lens_linear.tables import Result
from lens_linear.token_rows import TokenRows

MAX_CELLS = 50_000_000
_LIMITS = {torch.float64: 1e-7, torch.float32: 1e-3}
_HALF_LIMIT = 1e-1


@dataclass(frozen=True, eq=False)
class QKAttribution(Result):
    """The pre-softmax scores of one head as sums over pairs of components.

    Attributes:
        layer, head: which head.
        tokens: ids.
        components: names, in the order of the first two axes of :attr:`scores`; queries and keys share
            them. "bias" is b_Q on the query side and b_K on the key side. Float64 models with RMS norms
            have a "rounding of the norm" too: their norms are computed in float32.
        queries: each component's share of the query, scaled and rotated, [component, batch, position, d].
        keys: each component's share of the key.
        model_scores: the model's own scores before the softmax (bounded, where it has a soft cap).
        softcap: the bound the model puts on scores, or None.
        causal: whether a query sees keys up to itself only; else it sees all.
        window: how many keys a query sees, itself included, where it does not see all.
    """

    _figure = "qk_attribution"

    layer: int
    head: int
    tokens: Int[Tensor, "batch position"]
    components: tuple[str, ...]
    queries: Float[Tensor, "component batch position d_head"] = field(repr=False)
    keys: Float[Tensor, "component batch position d_head"] = field(repr=False)
    model_scores: Float[Tensor, "batch query key"] = field(repr=False)
    softcap: float | None = None
    labels: Sequence[str] | None = field(default=None, repr=False)
    causal: bool = True
    window: int | None = None

    @property
    def name(self) -> str:
        """``L1H3``."""
        return head_name(self.layer, self.head)

    def __repr__(self) -> str:
        batch, length = self.tokens.shape
        return (
            f"QKAttribution of {self.name}: {len(self.components)} × {len(self.components)} components, "
            f"{batch} × {length} tokens, largest error {self.max_error:.2g}"
        )

    @property
    def total(self) -> Float[Tensor, "batch query key"]:
        """The sum over all pairs of components: the pre-softmax score, later keys filled in too."""
        return self.queries.sum(0) @ self.keys.sum(0).transpose(-2, -1)

    @cached_property
    def max_error(self) -> float:
        """Largest difference between :attr:`total` (bounded, where the model does) and the model's own."""
        total = self.total
        if self.softcap is not None:
            total = self.softcap * torch.tanh(total / self.softcap)
        return float((total - self.model_scores).abs().max())

    @cached_property
    def scores(self) -> Float[Tensor, "component component batch query key"]:
        """Every pair of components at every query and key; ``.sum((0, 1))`` is the score.

        Raises:
            FigureTooLargeError: more than 50 million numbers; use :meth:`map` or fewer tokens.
        """
        n, (batch, length) = len(self.components), self.tokens.shape
        cells = n * n * batch * length * length
        if cells > MAX_CELLS:
            raise FigureTooLargeError(
                f"scores would have {n} x {n} x {batch} x {length} x {length} = {cells} entries but the "
                f"limit is {MAX_CELLS}; use .map(query, key), .mean_map() or fewer tokens"
            )
        return torch.einsum("abqd,cbkd->acbqk", self.queries, self.keys)

    def map(self, query: int, key: int, *, batch: int = 0) -> Float[Tensor, "component component"]:
        """Return the components × components map of one score; rows are the query's components."""
        batch = require_int("batch", batch, minimum=0, maximum=len(self.tokens) - 1)
        length = self.tokens.shape[1]
        query = require_int("query", query, minimum=-length, maximum=length - 1) % length
        key = require_int("key", key, minimum=-length, maximum=length - 1) % length
        if not bool(self._visible()[query, key]):
            low = int(self._visible()[query].nonzero()[0])
            raise InvalidArgumentError(
                f"key must stand where the query sees it, got key {key} of query {query} in "
                f"{'a causal model' if self.window is None else f'a window of {self.window}'}; pass a key of "
                f"at most {query}{'' if low == 0 else f' and at least {low}'}"
            )
        return self.queries[:, batch, query] @ self.keys[:, batch, key].T

    def mean_map(
        self, weights: Float[Tensor, "batch query key"] | None = None
    ) -> Float[Tensor, "component component"]:
        """Return the map averaged over queries and keys.

        Args:
            weights: how much each (query, key) counts, e.g. 1 at the induction keys; equal over all keys
                that a query sees by default. At least 0, not all 0.
        """
        mixed = torch.einsum("bqk,cbkd->cbqd", self._weights(weights), self.keys)
        return torch.einsum("abqd,cbqd->ac", self.queries, mixed)

    def mean_contrast(
        self, weights: Float[Tensor, "batch query key"] | None = None
    ) -> Float[Tensor, "component component"]:
        """Return :meth:`contrast` averaged over queries and keys: what makes the head look there on average.

        Args:
            weights: as in :meth:`mean_map`, e.g. 1 at the induction keys.
        """
        w = self._weights(weights)
        seen = self._visible().sum(1)  # keys of each query
        alone = (seen < 2).to(w)[None, :, None]
        # key - (sum of keys - key) / (seen - 1), for each query; a query of one key has no others.
        others = (seen - 1).clamp(min=1).to(w)[None, :, None]
        own = torch.einsum("bqk,cbkd->cbqd", w * (1 + (1 - alone) / others), self.keys)
        share = w.sum(-1, keepdim=True) * (1 - alone) / others
        every = torch.einsum("qk,cbkd->cbqd", self._visible().to(w), self.keys)
        return torch.einsum("abqd,cbqd->ac", self.queries, own - share * every)

    def by_writer(
        self,
        side: Literal["query", "key"] = "key",
        *,
        query: int,
        key: int,
        batch: int = 0,
        contrast: bool = False,
    ) -> pd.DataFrame:
        """Return one score split by what wrote one side of it: columns component, score, largest first.

        The scores sum to the head's score at (query, key).

        Args:
            side: "key" splits by what the key's stream is made of, "query" by the query's.
            query: position of the query.
            key: position of the key.
            batch: which sequence.
            contrast: split the score above the mean of the query's other keys instead.
        """
        require_choice("side", side, ("query", "key"))
        contrast = require_bool("contrast", contrast)
        table = (self.contrast if contrast else self.map)(query, key, batch=batch)
        scores = table.sum(0 if side == "key" else 1)
        frame = pd.DataFrame({"component": self.components, "score": scores.numpy()})
        return frame.sort_values(
            "score", key=abs, ascending=False, kind="stable", ignore_index=True
        )

    def _visible(self) -> Bool[Tensor, "query key"]:
        """Which keys a query sees."""
        length = self.tokens.shape[1]
        return seen_keys(length, length, causal=self.causal, window=self.window)

    def _weights(self, weights: Tensor | None) -> Float[Tensor, "batch query key"]:
        """Weights that sum to 1."""
        shape = (len(self.tokens), self.tokens.shape[1], self.tokens.shape[1])
        if weights is None:
            weights = self._visible().expand(shape)
        if not isinstance(weights, Tensor) or tuple(weights.shape) != shape:
            got = tuple(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
            raise InvalidArgumentError(
                f"weights must be a tensor {list(shape)} [batch, query, key], got {got}"
            )
        weights = weights.to(self.queries.dtype)
        if not bool((weights >= 0).all()) or not 0 < float(weights.sum()) < math.inf:
            raise InvalidArgumentError(
                "weights must be at least 0 and not all 0: they say how much each (query, key) counts; pass "
                "e.g. 1 at the pairs of interest and 0 elsewhere"
            )
        if bool(weights[:, ~self._visible()].any()):
            raise InvalidArgumentError(
                "weights must be 0 where the query does not see the key (later keys of a causal model, "
                "keys outside a window); pass weights.tril()"
                f"{'' if self.window is None else f'.triu({1 - self.window})'}"
            )
        return weights / weights.sum()

    def contrast(
        self, query: int, key: int, *, batch: int = 0
    ) -> Float[Tensor, "component component"]:
        """Return the map of one score minus the mean map over the query's other keys.

        The softmax sees differences between keys only: this is what makes the query look *there*. A query
        that sees one key alone has nothing to hold it against: its map comes back whole.
        """
        here = self.map(query, key, batch=batch)
        key %= self.tokens.shape[1]
        others = [k for k in self._visible()[query].nonzero()[:, 0].tolist() if k != key]
        if not others:
            return here
        mean_key = self.keys[:, batch, others].mean(1)
        return here - self.queries[:, batch, query] @ mean_key.T

    def to_dataframe(
        self, query: int | None = None, key: int | None = None, *, batch: int = 0
    ) -> pd.DataFrame:
        """Columns query_component, key_component, score, largest first.

        Of one (query, key) where both are given, of the mean over all keys that a query sees without them.
        """
        both = query is not None and key is not None
        if not both and (query is not None or key is not None):
            raise InvalidArgumentError(
                "query and key must be given together, got one of them; pass both, or neither for the mean "
                "over all keys that a query sees"
            )
        table = self.map(query, key, batch=batch) if both else self.mean_map()  # type: ignore[arg-type]
        n = len(self.components)
        frame = pd.DataFrame(
            {
                "query_component": [self.components[i // n] for i in range(n * n)],
                "key_component": [self.components[i % n] for i in range(n * n)],
                "score": table.flatten().numpy(),
            }
        )
        return frame.sort_values(
            "score", key=abs, ascending=False, kind="stable", ignore_index=True
        )


def qk_attribution(
    model: ModelLike,
    tokens: Int[Tensor, "*batch position"] | TokenRows,
    layer: int | str | tuple[int, int],
    head: int | None = None,
    *,
    labels: Sequence[str] | None = None,
) -> QKAttribution:
    """Attribute the pre-softmax scores of one head to pairs of residual-stream components.

    ``score[q, k] = Σ_a Σ_b  scale · (x_a W_Q / s_q) · (x_b W_K / s_k)``, exact up to rounding.

    Args:
        model: a bridge, with or without MLPs; norms, rotary positions and grouped-query heads included.
        tokens: ids [batch, position], or one row.
        layer: of the head; or the head's name, ``"L1H3"``, alone.
        head: query head within the layer.
        labels: text of the vocabulary; the tokenizer's by default.

    Returns:
        QKAttribution: ``.map(query, key)`` is the components × components map of one score,
        ``.scores`` all of them, ``.total`` their sum.

    Raises:
        UnsupportedModelError: the attributed scores do not sum to the model's own (queries or keys pass
            another norm, positions enter in another way).

    Source: Elhage et al. 2021, *A Mathematical Framework for Transformer Circuits*, "Splitting
        attention head terms into circuits" (scores as a bilinear form); components with norms are ours.

    Example:
        >>> import torch
        >>> from lens_linear.models.open.toy import toy_model
        >>> qk_attribution(toy_model(n_layers=2), torch.arange(6), 1, 0).max_error < 1e-6
        True
    """
    model = checked(model)
    tokens = require_model_tokens(model, tokens)
    weights = read_weights(model)
    attention = require_attention(weights)
    layer, head = place_of(model, layer, head)
    heads = HeadOutputs(model, weights)
    spots = [*stream_spots(model, layer), (layer, "attn_in")]
    out = run(model, tokens, record=spots, logits=False)
    found = stream_components(heads, out, tokens, layer)
    reads = found.parts / norm_scale(found.stream, weights.norm, weights.eps)
    queries = _with_bias(reads @ attention.W_Q[layer, head], attention.b_Q[layer, head])
    keys = _with_bias(reads @ attention.W_K[layer, head], attention.b_K[layer, head])
    names = [*found.names, "bias"]
    rounding = _rounding(model, found.stream, out, layer, weights.norm)
    if rounding is not None:
        raw = read_attention(model, fold=False)
        queries = torch.cat([queries, (rounding @ raw.W_Q[layer, head])[None]])
        keys = torch.cat([keys, (rounding @ raw.W_K[layer, head])[None]])
        names.append("rounding of the norm")
    rotary = read_rotary(model, layer, tokens.shape[1])
    if rotary is not None:
        queries, keys = rotary.rotate(queries), rotary.rotate(keys)
    own = attention_scores(model, tokens, layer)[:, head]
    result = QKAttribution(
        layer,
        head,
        tokens,
        tuple(names),
        queries * attention.scale[layer],
        keys,
        own,
        attention.softcap,
        require_labels(labels, model),
        model.is_causal,
        layer_window(model, layer, tokens.shape[1]),
    )
    limit = _LIMITS.get(out[(layer, "resid_pre")].dtype, _HALF_LIMIT)
    if not result.max_error <= limit * max(1.0, float(own.abs().max())):
        raise UnsupportedModelError(
            f"the attributed scores of {result.name} of {model.name!r} differ from its own by "
            f"{result.max_error:.3g}; it treats queries and keys in a way not known here; look at "
            "its pattern with circuits.attention_pattern"
        )
    return result


def _rounding(
    model: CheckedModel, stream: Tensor, out: Run, layer: int, kind: NormKind
) -> Tensor | None:
    """What the norm before the head gave beyond ``x / scale``; None where only float64 would show it.

    TransformerLens computes RMS norms in float32 whatever the model's precision.
    """
    read = out[(layer, "attn_in")]
    if read.dtype != torch.float64:
        return None
    norm = getattr(model.bridge.blocks[layer], "ln1", None)
    gap = norm_gap(model, norm, stream, read.to("cpu"), kind)
    size, limit = float(gap.abs().max()), 1e-5 * float(read.abs().max())
    return gap if 1e-12 < size <= limit else None


def _with_bias(
    parts: Float[Tensor, "component batch position d_head"], bias: Float[Tensor, " d_head"]
) -> Tensor:
    return torch.cat([parts, bias.expand(1, *parts.shape[1:])])
