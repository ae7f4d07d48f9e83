"""Where heads look on one sequence: the recorded pattern with the text of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_linear.checks import counted, require_int
from lens_linear.circuits.labels import require_labels
from lens_linear.errors import InvalidArgumentError
from lens_linear.models.capture import require_model_tokens, run
from lens_linear.models.checked import ModelLike, checked
from lens_linear.tables import Result
from lens_linear.token_rows import TokenRows


@dataclass(frozen=True, eq=False)
class AttentionPattern(Result):
    """Where the heads of a layer look on some tokens.

    Attributes:
        layer: of the heads.
        pattern: after the softmax, rows sum to 1.
        tokens: ids of the sequence.
        token_text: their text, or their ids as text.
    """

    _figure = "attention_heads"

    layer: int
    pattern: Float[Tensor, "head query key"] = field(repr=False)
    tokens: Int[Tensor, " position"]
    token_text: tuple[str, ...] = field(repr=False)

    def __repr__(self) -> str:
        heads, length = self.pattern.shape[:2]
        return f"AttentionPattern of layer {self.layer}: {counted(heads, 'head')}, {counted(length, 'token')}"

    def to_dataframe(self) -> pd.DataFrame:
        """Columns head, query, key, attention: keys up to their query, or all where later ones are seen."""
        listed = torch.ones_like(self.pattern)
        if not bool(self.pattern.triu(1).any()):  # else the model looks both ways
            listed = listed.tril()
        at = tuple(listed.nonzero().T)
        places = dict(zip(("head", "query", "key"), (index.numpy() for index in at), strict=True))
        return pd.DataFrame({**places, "attention": self.pattern[at].numpy()})


def attention_pattern(
    model: ModelLike,
    tokens: Int[Tensor, " position"] | TokenRows,
    layer: int,
    *,
    labels: Sequence[str] | None = None,
) -> AttentionPattern:
    """Record where the heads of a layer look on one sequence.

    Args:
        model: a bridge.
        tokens: ids of one sequence.
        layer: whose heads.
        labels: text of the vocabulary; the tokenizer's by default.

    Returns:
        AttentionPattern: ``.pattern`` [head, query, key], each row a distribution; acts as a table.

    Raises:
        InvalidArgumentError: several sequences, ids beyond the vocabulary, or no such layer.
        UnsupportedModelError: the model does not show its pattern.

    Example:
        >>> from lens_linear.constructions.induction_model import build_induction
        >>> model = build_induction(vocab=6, n_ctx=12).model  # L0H0 looks one token back
        >>> found = attention_pattern(model, torch.tensor([0, 3, 5, 1]), 0)
        >>> found.pattern[0].argmax(-1).tolist()
        [0, 0, 1, 2]
    """
    model = checked(model)
    rows = require_model_tokens(model, tokens)
    if len(rows) != 1:
        raise InvalidArgumentError(
            f"tokens must be one sequence, got {len(rows)}; pass tokens[0], or take the patterns of all from "
            f"models.run(model, tokens, record=[(layer, 'pattern')])"
        )
    layer = require_int("layer", layer, minimum=0, maximum=model.n_layers - 1)
    text = require_labels(labels, model)
    out = run(model, rows, record=[(layer, "pattern")], logits=False)[(layer, "pattern")]
    ids = rows[0].tolist()
    shown = tuple(str(text[i]) if text is not None else f"#{i}" for i in ids)
    return AttentionPattern(layer, out[0].to("cpu", torch.float64), rows[0], shown)
