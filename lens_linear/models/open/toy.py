"""Small seeded random models for lessons and tests: no download, no training, milliseconds."""

from __future__ import annotations

import dataclasses
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from lens_linear.checks import require_bool
from lens_linear.errors import InvalidArgumentError
from lens_linear.linalg.precision import own_modes
from lens_linear.models.native import ModelSpec, bridge_from_module, native_module


@own_modes()
def toy_model(
    *,
    n_layers: int = 2,
    d_model: int = 32,
    n_heads: int = 4,
    d_vocab: int = 64,
    n_ctx: int = 64,
    attn_only: bool = True,
    seed: int = 0,
    **shape: Any,
) -> TransformerBridge:
    """Return a random model in evaluation mode; the same seed gives the same weights.

    Args:
        n_layers: blocks.
        d_model: width of the residual stream.
        n_heads: heads a block.
        d_vocab: tokens.
        n_ctx: longest sequence.
        attn_only: leave out the MLPs.
        seed: of the weights; the global generator is not touched.
        **shape: ``norm``, ``activation``, ``gated``, ``d_mlp``, ``positions`` of
            :class:`~lens_linear.models.native.ModelSpec` (norm is "none" unless given).

    Returns:
        TransformerBridge in evaluation mode, without a tokenizer.

    Raises:
        InvalidArgumentError: sizes that do not fit, or an unknown word in ``shape``.

    Example:
        >>> toy_model(n_layers=1, d_vocab=10).W_E.shape
        torch.Size([10, 32])
    """
    values = {"norm": "none", **shape}
    words = {field.name for field in dataclasses.fields(ModelSpec)}
    if unknown := sorted(set(values) - words):
        raise InvalidArgumentError(
            f"shape must be words of ModelSpec, got {', '.join(unknown)}; choose among "
            "norm, activation, gated, d_mlp and positions"
        )
    attn_only = require_bool("attn_only", attn_only)
    spec = ModelSpec(n_layers, d_model, n_heads, d_vocab, n_ctx, attn_only=attn_only, **values)
    return bridge_from_module(native_module(spec, seed=seed), spec, name="toy")
