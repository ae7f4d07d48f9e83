"""Next-token loss of a model, with or without edits, by sequence."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lens_linear._tl import TransformerBridge
from lens_linear.checks import require_int
from lens_linear.errors import NonFiniteError, NotEnoughDataError, UnsupportedModelError
from lens_linear.models.capture import batched, model_device, run
from lens_linear.models.hooks import Edit, require_causal
from lens_linear.stats.split import RowView


def sequence_loss(
    model: TransformerBridge,
    rows: RowView,
    *,
    edits: Sequence[Edit] = (),
    batch_size: int = 8,
) -> Float[Tensor, " sequence"]:
    """Mean cross-entropy of the next token over each sequence, in nats per token.

    Args:
        model: a bridge.
        rows: sequences of at least two tokens.
        edits: hooks in place while it runs.
        batch_size: sequences a forward pass.

    Returns:
        [sequence], float64.

    Raises:
        NotEnoughDataError: sequences of one token have nothing to predict.
        NonFiniteError: the logits are not finite.
    """
    require_int("batch_size", batch_size, minimum=1)
    require_causal(model)
    if rows.length < 2:
        raise NotEnoughDataError("sequences need at least 2 tokens to have a next-token loss")
    parts = []
    for _, tokens in batched(rows, batch_size):
        logits = run(model, tokens.long(), edits=edits).logits
        if logits is None or not bool(torch.isfinite(logits).all()):
            raise NonFiniteError(
                "the logits hold NaN or infinity; load the model in a wider precision, or replace "
                "fewer layers"
            )
        if int(tokens.max()) >= logits.shape[-1]:
            raise UnsupportedModelError(
                f"model {model.cfg.model_name!r} predicts {logits.shape[-1]} tokens but these go up to "
                f"{int(tokens.max())}; a next-token loss needs one vocabulary for both"
            )
        target = tokens.long().to(model_device(model))[:, 1:].to(logits.device)
        nats = torch.nn.functional.cross_entropy(
            logits[:, :-1].float().flatten(0, 1), target.flatten(), reduction="none"
        )
        parts.append(nats.reshape(target.shape).double().mean(1).cpu())
    return torch.cat(parts)


def mean_loss(
    model: TransformerBridge,
    rows: RowView,
    *,
    edits: Sequence[Edit] = (),
    batch_size: int = 8,
) -> float:
    """Mean of :func:`sequence_loss` over sequences (all have the same length)."""
    return float(sequence_loss(model, rows, edits=edits, batch_size=batch_size).mean())


def perplexity(loss: float) -> float:
    """``exp(loss)``; infinite where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf
