"""One attention head as two circuits over the vocabulary: where it looks (QK) and what it writes (OV).

``QK = W_E W_Q W_Kᵀ W_Eᵀ · scale`` [query token, key token] is the pre-softmax score the tokens' own
embeddings give; ``OV = W_E W_V W_O W_U`` [source token, output token] is what attending to a token adds to
the logits above their mean over the vocabulary (``W_U`` is class-centred: the softmax sees nothing
else). Both are held as two thin factors. Works on any model whose attention can be read: grouped-query
heads, rotary positions, full models with MLPs (where the circuits are the part that skips the MLPs).

Norm weights, biases and centring are folded into the matrices; a norm's *scale*, one positive number a
token, is not, so scores of models with norms are right up to that factor. Biases of queries, keys and
values are left out unless asked for.

>>> from lens_linear.models.open.toy import toy_model
>>> head = head_circuit(toy_model(n_layers=2, seed=0), 1, 3)
>>> head.ov.shape, -1 <= head.copying_score <= 1
(torch.Size([64, 64]), True)

Source: Elhage et al. 2021, *A Mathematical Framework for Transformer Circuits*, "Splitting attention head
terms into circuits".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Self, TypeVar, overload

from jaxtyping import Float
from torch import Tensor

from lens_linear._tl import FactoredMatrix
from lens_linear.checks import (
    head_name,
    require_choice,
    require_head,
    require_instance,
    require_int,
    require_list,
)
from lens_linear.circuits.heads.embedding_scales import position_scales
from lens_linear.circuits.heads.factored import (
    MAX_BYTES,
    DiagonalAccuracy,
    TopPairs,
    copying_score,
    diagonal_accuracy,
    sum_of,
    top_pairs,
)
from lens_linear.circuits.heads.positional import PositionalQK, PositionSource
from lens_linear.circuits.heads.svd import CircuitSVD, svd_readout
from lens_linear.circuits.labels import require_labels
from lens_linear.errors import InvalidArgumentError, UnsupportedModelError
from lens_linear.models.checked import CheckedModel, ModelLike, checked
from lens_linear.models.describe.rotary import Rotary, read_rotary, require_fixed_rotation
from lens_linear.models.describe.verify_weights import sample_tokens
from lens_linear.models.describe.weights import AttentionWeights, ModelWeights, read_weights
from lens_linear.models.frozen.attention_scores import attention_scores
from lens_linear.models.frozen.windows import layer_window

Circuit = Literal["qk", "ov"]
SIDES: dict[Circuit, tuple[str, str]] = {"qk": ("query", "key"), "ov": ("source", "output")}


T = TypeVar("T")


class Held(cached_property[T]):
    """A cached property of a head that warns when the model's weights have changed since."""

    @overload
    def __get__(self, head: None, owner: type[Any] | None = None) -> Self: ...
    @overload
    def __get__(self, head: object, owner: type[Any] | None = None) -> T: ...
    def __get__(self, head: Any, owner: type[Any] | None = None) -> Any:
        if head is not None:
            head.warn_if_changed()
        return super().__get__(head, owner)

    def __set__(
        self, head: object, value: object
    ) -> None:  # or the cached value would hide __get__
        raise AttributeError("a head cannot be changed")


class QKCircuit(FactoredMatrix):
    """A QK circuit without rotation (content only); called with an offset, at that offset."""

    def __init__(self, head: HeadCircuit) -> None:
        matrix = head.qk_at(0)
        super().__init__(matrix.A, matrix.B)
        self._head = head

    def __call__(self, *, offset: int = 0) -> FactoredMatrix:
        """Return the circuit for a key ``offset`` positions before its query."""
        return self._head.qk_at(offset)


@dataclass(frozen=True, eq=False)
class HeadCircuit:
    """The QK and OV circuits of one head, in token space.

    It keeps the weights it was made with; once the model's have changed, its ``repr`` and a warning say so.

    Attributes:
        layer, head: which head.
        weights: of the model, folded unless the caller asked for raw ones.
        model: which they are of.
        labels: text of the vocabulary, or None.
    """

    layer: int
    head: int
    weights: ModelWeights = field(repr=False)
    model: CheckedModel = field(repr=False)
    labels: Sequence[str] | None = field(default=None, repr=False)
    verified: set[int] = field(default_factory=set, repr=False)  # layers whose scores were checked

    @property
    def name(self) -> str:
        """``L1H3`` for head 3 of layer 1."""
        return head_name(self.layer, self.head)

    def __repr__(self) -> str:
        rows, columns = self.weights.n_tokens, self.weights.n_outputs
        sizes = f"QK {rows} × {rows} and OV {rows} × {columns} tokens"
        note = self.weights.mark.note(self.model)
        return f"HeadCircuit {self.name}: {sizes}{self.weights.padding_note}{note}"

    def warn_if_changed(self) -> None:
        """Say it when the model no longer has the weights of this head."""
        self.weights.mark.warn(
            self.model, f"head {self.name}", "take the head anew", layers=[self.layer], stacklevel=4
        )

    @Held
    def qk(self) -> QKCircuit:
        """``W_E W_Q W_Kᵀ W_Eᵀ · scale``, [query token, key token], at offset 0; see :meth:`qk_at`."""
        return QKCircuit(self)

    def qk_at(self, offset: int, *, biases: bool = False) -> FactoredMatrix:
        """Return the QK circuit for a key ``offset`` positions before its query.

        ``W_E W_Q R(offset) W_Kᵀ W_Eᵀ · scale`` with R the relative rotation of rotary models; the same
        for every offset in other models.

        Args:
            offset: positions from the key to the query, 0 or more.
            biases: add b_Q to every query and b_K to every key.

        Raises:
            UnsupportedModelError: the scores of this layer are not ``scale · q·k`` of these queries and keys
                (another norm on queries, position biases); checked once a layer on a few tokens.
        """
        self._verify()
        offset = require_int("offset", offset, minimum=0, maximum=self.model.n_ctx - 1)
        queries, keys = (
            self._queries(self.weights.token_rows, biases),
            self._keys(self.weights.token_rows, biases),
        )
        rotary = self._rotary(offset + 1)
        if rotary is not None:
            queries = queries @ rotary.relative(offset, queries.shape[1]).to(queries.dtype)
        return FactoredMatrix(queries * self._attention.scale[self.layer], keys.T)

    @Held
    def ov(self) -> FactoredMatrix:
        """``W_E W_V W_O W_U``, [source token, output token]; W_U class-centred, so rows sum to 0."""
        at = self._attention
        values = self.weights.token_rows @ at.W_V[self.layer, self.head]
        return FactoredMatrix(values, at.W_O[self.layer, self.head] @ self.weights.token_outputs)

    @Held
    def copying_score(self) -> float:
        """``Σ Re λ / Σ |λ|`` of the OV circuit: 1 copies, -1 suppresses what it reads."""
        return copying_score(self.ov)

    @Held
    def qk_copying_score(self) -> float:
        """The same of the QK circuit: near 1 when tokens look for themselves."""
        return copying_score(self.qk)

    def copying_accuracy(self, *, ks: Sequence[int] = (1, 5)) -> DiagonalAccuracy:
        """Rank each token's own logit in what attending to the token adds."""
        return diagonal_accuracy(self.ov, ks=ks)

    def matching_accuracy(self, *, ks: Sequence[int] = (1, 5)) -> DiagonalAccuracy:
        """Rank each token as a key for itself as a query."""
        return diagonal_accuracy(self.qk, ks=ks)

    def top_pairs(
        self, circuit: Circuit = "ov", k: int = 100, *, max_bytes: int = MAX_BYTES
    ) -> TopPairs:
        """Return the k largest entries of a circuit, without multiplying it out."""
        return top_pairs(
            self.circuit(circuit),
            k,
            row_labels=self.labels,
            column_labels=self.column_labels(circuit),
            name=f"{self.name} {circuit.upper()}",
            sides=SIDES[circuit],
            max_bytes=max_bytes,
        )

    def svd(self, k: int = 10, *, circuit: Circuit = "ov", top: int = 8) -> CircuitSVD:
        """Read the k largest singular directions of a circuit in the vocabulary."""
        return svd_readout(
            self.circuit(circuit),
            k,
            name=f"{self.name} {circuit.upper()}",
            sides=SIDES[circuit],
            top=top,
            row_labels=self.labels,
            column_labels=self.column_labels(circuit),
        )

    def positional_qk(self, n_positions: int | None = None) -> PositionalQK:
        """Return the scores that positions give, [query position, key position].

        ``W_pos W_Q W_Kᵀ W_posᵀ · scale`` with learnt positions. In rotary models: the score of the average
        token at each pair of positions.

        Args:
            n_positions: how many; all of the context by default (256 at most in rotary models).

        Raises:
            UnsupportedModelError: the model has neither kind of positions, or its scores are not
                ``scale · q·k`` of these queries and keys.
        """
        self._verify()
        limit = self.model.n_ctx
        rows = self.weights.W_pos
        if n_positions is None:
            n_positions = limit if rows is not None else min(limit, 256)
        n = require_int("n_positions", n_positions, minimum=1, maximum=limit)
        if rows is not None:
            source: PositionSource = "position rows"
            queries, keys = self._queries(rows[:n], False), self._keys(rows[:n], False)
        elif (rotary := self._rotary(n)) is not None:
            source, mean = "mean content, rotated", self.weights.token_rows.mean(0, keepdim=True)
            queries = rotary.rotate(self._queries(mean, True).expand(n, -1))
            keys = rotary.rotate(self._keys(mean, True).expand(n, -1))
        else:
            raise UnsupportedModelError(
                f"model {self.model.name!r} adds no position rows and has no rotary positions, so there "
                "is no positional QK circuit; use .qk"
            )
        return PositionalQK(
            queries * self._attention.scale[self.layer],
            keys.T,
            source,
            position_scales(self.weights, n),
            self.name,
            causal=self.model.is_causal,
            window=layer_window(self.model, self.layer, n),
            softcap=self._attention.softcap,
        )

    def circuit(self, which: Circuit) -> FactoredMatrix:
        """Return ``.qk`` or ``.ov`` by name."""
        return self.ov if require_choice("circuit", which, ("qk", "ov")) == "ov" else self.qk

    def column_labels(self, which: Circuit) -> Sequence[str] | None:
        """Return the labels of a circuit's columns; None where the output vocabulary is another one."""
        same = which == "qk" or self.model.d_vocab == self.weights.W_U.shape[1]
        return self.labels if same else None

    @property
    def _attention(self) -> AttentionWeights:
        return require_attention(self.weights)

    def _verify(self) -> None:
        self.warn_if_changed()
        if self.layer not in self.verified:
            attention_scores(self.model, sample_tokens(self.model)[None], self.layer)
            self.verified.add(self.layer)

    def _queries(self, rows: Float[Tensor, "n d_model"], biases: bool) -> Tensor:
        at = self._attention
        out = rows @ at.W_Q[self.layer, self.head]
        return out + at.b_Q[self.layer, self.head] if biases else out

    def _keys(self, rows: Float[Tensor, "n d_model"], biases: bool) -> Tensor:
        at = self._attention
        out = rows @ at.W_K[self.layer, self.head]
        return out + at.b_K[self.layer, self.head] if biases else out

    def _rotary(self, n_positions: int) -> Rotary | None:
        require_fixed_rotation(self.model)
        return read_rotary(self.model, self.layer, n_positions, dtype=self.weights.W_E.dtype)


def require_attention(weights: ModelWeights) -> AttentionWeights:
    """Accept weights of a model that has attention.

    Raises:
        UnsupportedModelError: the model has no layers.
    """
    if weights.attention is None:
        raise UnsupportedModelError(
            "the model has no attention layers, so it has no heads; use .bigrams() for its direct path"
        )
    return weights.attention


def place_of(
    model: CheckedModel, layer: int | str | tuple[int, int], head: int | None
) -> tuple[int, int]:
    """Return (layer, head) of ``"L1H3"``, ``(1, 3)`` or ``1, 3``."""
    if head is None and isinstance(layer, (str, tuple, list)):
        value: object = layer
    elif head is None:
        raise InvalidArgumentError(
            f"head must be given too, got layer {layer!r} alone; write e.g. 'L{layer}H0', or {layer}, 0"
        )
    else:
        value = (layer, head)
    return require_head("head", value, n_layers=model.n_layers, n_heads=model.n_heads)


def head_circuit(
    model: ModelLike,
    layer: int | str | tuple[int, int],
    head: int | None = None,
    *,
    fold: bool = True,
    weights: ModelWeights | None = None,
    labels: Sequence[str] | None = None,
    verified: set[int] | None = None,
) -> HeadCircuit:
    """Return the QK and OV circuits of one head of any model whose attention can be read.

    Args:
        model: a bridge; not changed.
        layer: of the head; or the head's name, ``"L1H3"``, alone.
        head: within the layer; a query head in grouped-query models.
        fold: fold norm weights, biases and centring into a copy of the weights.
        weights: read before, to save reading them again for every head (``fold`` is then ignored).
        labels: text of the vocabulary; the model's tokenizer by default, if it has one.
        verified: layers whose scores were checked before; several heads can share one set.

    Returns:
        HeadCircuit: ``.qk`` and ``.ov`` as factored matrices, ``.copying_score``, ``.svd(k)``.

    Raises:
        InvalidArgumentError: no such layer or head.
        UnsupportedModelError: no attention, or an embedding that is not a token row plus a position row.

    Source: Elhage et al. 2021, *A Mathematical Framework for Transformer Circuits*, "Splitting
        attention head terms into circuits".

    Example:
        >>> from lens_linear.models.open.toy import toy_model
        >>> head_circuit(toy_model(n_layers=1), "L0H0").svd(2).S.shape
        torch.Size([2])
    """
    model = checked(model)
    weights = read_weights(model, fold=fold) if weights is None else weights
    require_instance("weights", weights, ModelWeights, advice="leave it out, or pass view.weights")
    require_attention(weights)
    return HeadCircuit(
        *place_of(model, layer, head),
        weights,
        model,
        require_labels(labels, model, n_tokens=weights.n_tokens),
        set() if verified is None else verified,
    )


head = head_circuit  # ``ll.head(model, "L1H3")``


def summed_ov(heads: Sequence[HeadCircuit]) -> FactoredMatrix:
    """Return the OV circuits of several heads added up, e.g. to ask whether they copy together.

    Args:
        heads: of one model, from :func:`head_circuit`.

    Returns:
        FactoredMatrix [source token, output token], logits.

    Raises:
        InvalidArgumentError: no head, or something that is none.

    Example:
        >>> from lens_linear.models.open.toy import toy_model
        >>> model = toy_model(n_layers=1)
        >>> heads = [head_circuit(model, 0, head) for head in range(4)]
        >>> total = sum(head.ov.AB for head in heads)
        >>> bool((summed_ov(heads).AB - total).abs().max() < 1e-9 * total.abs().max())
        True
    """
    return sum_of([head.ov for head in require_circuits(heads)])


def summed_qk(heads: Sequence[HeadCircuit]) -> FactoredMatrix:
    """Return the QK circuits of several heads added up (content only).

    Args:
        heads: of one model, from :func:`head_circuit`.

    Returns:
        FactoredMatrix [query token, key token], scores before the softmax.

    Raises:
        InvalidArgumentError: no head, or something that is none.

    Example:
        >>> from lens_linear.models.open.toy import toy_model
        >>> model = toy_model(n_layers=1)
        >>> heads = [head_circuit(model, 0, head) for head in range(4)]
        >>> total = sum(head.qk.A @ head.qk.B for head in heads)
        >>> bool((summed_qk(heads).AB - total).abs().max() < 1e-9 * total.abs().max())
        True
    """
    return sum_of([FactoredMatrix(head.qk.A, head.qk.B) for head in require_circuits(heads)])


def require_circuits(heads: Sequence[HeadCircuit]) -> list[HeadCircuit]:
    """Accept one head or more.

    Raises:
        InvalidArgumentError: no head, or something that is none.
    """
    found = require_list("heads", heads, of="heads")
    for head in found:
        require_instance("heads", head, HeadCircuit, advice="take them from head_circuit(...)")
    if not found:
        raise InvalidArgumentError(
            "heads must hold at least one head, got none; pass head_circuit(...)"
        )
    return found
