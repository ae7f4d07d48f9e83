"""Circuits of two heads together: virtual heads (V-composition) and composed QK circuits.

A *virtual head* moves information twice: the reader moves what the writer moved. Its pattern is the product
of the two patterns, its OV circuit ``W_E W_OV(writer) W_OV(reader) W_U``.

A *composed QK circuit* is where a reader looks because of what the writer wrote. With K-composition it is
``W_E W_Q (W_E W_OV(writer) W_K)ᵀ``: the query is matched with the *source* of the writer, which for an
induction head is the token before the key. Its diagonal is then the largest entry of each row.

Source: Elhage et al. 2021, "Virtual Attention Heads" and "How induction heads work".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_linear._tl import FactoredMatrix
from lens_linear.checks import require_choice, require_instance
from lens_linear.circuits.heads.factored import copying_score
from lens_linear.circuits.heads.head_circuit import SIDES, HeadCircuit, Held, require_attention
from lens_linear.circuits.heads.svd import CircuitSVD, svd_readout
from lens_linear.errors import InvalidArgumentError
from lens_linear.models.capture import require_model_tokens, run
from lens_linear.token_rows import TokenRows


@dataclass(frozen=True, eq=False)
class VirtualHead:
    """The V-composition of two heads, read as one head.

    Attributes:
        writer: the head that moves information first.
        reader: the head of a later layer that moves it on.
    """

    writer: HeadCircuit = field(repr=False)
    reader: HeadCircuit = field(repr=False)

    @property
    def name(self) -> str:
        """``L0H1→L1H2``."""
        return f"{self.writer.name}→{self.reader.name}"

    def __repr__(self) -> str:
        weights = self.reader.weights
        sizes = f"OV {self.writer.weights.n_tokens} × {weights.n_outputs} tokens"
        return f"VirtualHead {self.name}: {sizes}{weights.mark.note(self.reader.model)}"

    def warn_if_changed(self) -> None:
        """Say it when the model no longer has the weights of the two heads."""
        self.reader.weights.mark.warn(
            self.reader.model,
            f"virtual head {self.name}",
            "take its heads anew",
            layers=[self.writer.layer, self.reader.layer],
            stacklevel=4,
        )

    @Held
    def ov(self) -> FactoredMatrix:
        """``W_E W_OV(writer) W_OV(reader) W_U``, [source token, output token]; norm scales left out."""
        between = _out(self.writer) @ _value(self.reader)
        return FactoredMatrix(self.writer.ov.A, between @ self.reader.ov.B)

    @Held
    def copying_score(self) -> float:
        """``Σ Re λ / Σ |λ|`` of the virtual OV circuit."""
        return copying_score(self.ov)

    def svd(self, k: int = 10, *, top: int = 8) -> CircuitSVD:
        """Read the k largest singular directions of the virtual OV circuit in the vocabulary."""
        labels, columns = self.reader.labels, self.reader.column_labels("ov")
        return svd_readout(
            self.ov,
            k,
            name=f"{self.name} OV",
            sides=SIDES["ov"],
            top=top,
            row_labels=labels,
            column_labels=columns,
        )

    def pattern(
        self, tokens: Int[Tensor, "batch position"] | TokenRows
    ) -> Float[Tensor, "batch query key"]:
        """Return where the virtual head moves information from: reader's pattern @ writer's pattern."""
        model = self.reader.model
        tokens = require_model_tokens(model, tokens)
        writer, reader = self.writer, self.reader
        out = run(
            model,
            tokens,
            record=[(writer.layer, "pattern"), (reader.layer, "pattern")],
            logits=False,
        )
        first = out[(writer.layer, "pattern")][:, writer.head].to("cpu", torch.float64)
        second = out[(reader.layer, "pattern")][:, reader.head].to("cpu", torch.float64)
        return second @ first


def virtual_head(writer: HeadCircuit, reader: HeadCircuit) -> VirtualHead:
    """Return the V-composition of two heads of one model as a head of its own.

    ``OV = W_E W_OV(writer) W_OV(reader) W_U``, logits.

    Args:
        writer: the earlier head, from :func:`~lens_linear.circuits.heads.head_circuit.head_circuit`.
        reader: a head of a later layer of the same model.

    Returns:
        VirtualHead: ``.ov`` as a factored matrix, its copying score and singular directions.

    Raises:
        InvalidArgumentError: the reader does not stand above the writer.

    Source: Elhage et al. 2021, *A Mathematical Framework for Transformer Circuits*, "Virtual attention
        heads".

    Example:
        >>> from lens_linear.circuits.heads.head_circuit import head_circuit
        >>> from lens_linear.models.open.toy import toy_model
        >>> model = toy_model(n_layers=2)
        >>> virtual_head(head_circuit(model, 0, 1), head_circuit(model, 1, 2))
        VirtualHead L0H1→L1H2: OV 64 × 64 tokens
    """
    _require_order(writer, reader)
    return VirtualHead(writer, reader)


def composed_qk(
    writer: HeadCircuit, reader: HeadCircuit, kind: Literal["K", "Q"] = "K"
) -> FactoredMatrix:
    """Return where the reader looks because of what the writer wrote, [query token, key token].

    ``kind="K"``: the query side reads the query's own token, the key side reads what the writer moved to
    the key, so the column is the writer's source token. ``kind="Q"`` is the other way round. Norm scales
    and rotations are left out.

    Args:
        writer: the earlier head, from :func:`~lens_linear.circuits.heads.head_circuit.head_circuit`.
        reader: a head of a later layer of the same model.
        kind: "K" or "Q": the side of the reader that reads what was written.

    Returns:
        FactoredMatrix [query token, key token], scores before the softmax.

    Raises:
        InvalidArgumentError: the reader does not stand above the writer, or an unknown kind.

    Source: Elhage et al. 2021, *A Mathematical Framework for Transformer Circuits*, "How induction
        heads work".

    Example:
        >>> from lens_linear.circuits.heads.head_circuit import head_circuit
        >>> from lens_linear.constructions.induction_model import build_induction
        >>> model = build_induction(vocab=6, n_ctx=12).model  # scores 12 where the previous token matches
        >>> scores = composed_qk(head_circuit(model, 0, 0), head_circuit(model, 1, 1)).AB
        >>> scores[2].abs().round(decimals=3).tolist()
        [0.0, 0.0, 12.0, 0.0, 0.0, 0.0]
    """
    _require_order(writer, reader)
    require_choice("kind", kind, ("K", "Q"))
    at, here = require_attention(reader.weights), (reader.layer, reader.head)
    embedding = reader.weights.token_rows
    moved = writer.ov.A @ _out(writer)
    queries = (embedding if kind == "K" else moved) @ at.W_Q[here]
    keys = (moved if kind == "K" else embedding) @ at.W_K[here]
    return FactoredMatrix(queries * at.scale[reader.layer], keys.T)


def _out(head: HeadCircuit) -> Tensor:
    return require_attention(head.weights).W_O[head.layer, head.head]


def _value(head: HeadCircuit) -> Tensor:
    return require_attention(head.weights).W_V[head.layer, head.head]


def _require_order(writer: HeadCircuit, reader: HeadCircuit) -> None:
    for name, head in (("writer", writer), ("reader", reader)):
        require_instance(
            name, head, HeadCircuit, advice="take it from lens_linear.head(model, 'L1H3')"
        )
    if writer.layer >= reader.layer:
        raise InvalidArgumentError(
            f"reader must stand in a later layer than writer, got {writer.name} and {reader.name}; "
            "swap them or choose another reader"
        )
    if writer.model.bridge is not reader.model.bridge:
        raise InvalidArgumentError("writer and reader must be heads of the same model")
