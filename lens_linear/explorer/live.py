"""Everything the page needs to run an attention-only model itself: weights with norms folded, positions."""

from __future__ import annotations

from typing import Any

import torch

from lens_linear.circuits.induction.ablation import StandIns
from lens_linear.errors import UnsupportedModelError
from lens_linear.explorer.packing import Kind, pack
from lens_linear.models.capture import forward_logits
from lens_linear.models.checked import CheckedModel
from lens_linear.models.describe.rotary import read_rotary
from lens_linear.models.describe.weights import ModelWeights
from lens_linear.models.frozen.frozen_attention import require_attention_only


def why_not_live(model: CheckedModel, weights: ModelWeights | None) -> str | None:
    """Say why a page cannot run this model by itself; None if it can."""
    if weights is None:
        return "its embedding or unembedding cannot be read as one matrix each"
    try:
        require_attention_only(model)
        model.require_causal()
    except UnsupportedModelError as reason:
        return str(reason)
    attention = weights.attention
    if attention is not None and attention.softcap is not None:
        return "its attention scores are bounded"
    if model.d_vocab != model.d_vocab_out:
        return "it reads and writes two different vocabularies"
    return None


def live_arrays(
    model: CheckedModel,
    weights: ModelWeights,
    means: StandIns,
    precision: Kind,
) -> dict[str, Any]:
    """Pack folded weights, position rows or rotations, and the mean head outputs that ablation puts in.

    What reads the normalised stream is folded, so a layer is ``(x @ W) / scale(x) + b``.
    """
    arrays = {"W_E": pack(weights.W_E, precision), "W_U": pack(weights.W_U, precision)}
    arrays["b_U"] = pack(weights.b_U, "float32")
    if weights.W_pos is not None and bool(weights.W_pos.any()):
        arrays["W_pos"] = pack(weights.W_pos, precision)
    at = weights.attention
    if at is None:
        return arrays
    for name in ("W_Q", "W_K", "W_V", "W_O"):
        arrays[name] = pack(getattr(at, name), precision)
    for name in ("b_Q", "b_K", "b_V", "b_O", "scale"):
        arrays[name] = pack(getattr(at, name), "float32")
    rotary = read_rotary(model, 0, model.n_ctx)
    if rotary is not None:
        arrays["cos"] = pack(rotary.cos, "float32")
        arrays["sin"] = pack(rotary.sin, "float32")
    outputs = torch.zeros(at.b_V.shape) if means.values is None else means.values[:, 0, 0]
    arrays["mean_z"] = pack(outputs, "float32")
    return arrays


def live_facts(model: CheckedModel) -> dict[str, Any]:
    """Which pairs of dimensions a rotation turns; empty without rotary positions."""
    rotary = read_rotary(model, 0, 1) if model.n_layers else None
    return {} if rotary is None else {"rotary_adjacent": rotary.adjacent}


def sentinel(model: CheckedModel, ids: torch.Tensor) -> dict[str, Any]:
    """Logits of Python on one row of tokens, for the page to check itself against when it opens."""
    with torch.no_grad():
        logits = forward_logits(model, ids[None])[0].float()
    return {"ids": ids.tolist(), "logits": pack(logits[-4:], "float32")}
