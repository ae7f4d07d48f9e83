"""One forward pass of an attention-only model with everything held that makes it nonlinear.

With its attention patterns and norm scales held at their values, an attention-only transformer is a linear
map of its embeddings. This file runs the model once and hands out what that map needs.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from lens_linear.checks import counted
from lens_linear.errors import UnsupportedModelError
from lens_linear.models.capture import require_model_rows, run
from lens_linear.models.checked import CheckedModel, ModelLike, NormKind, checked
from lens_linear.models.describe.weights import (
    ModelWeights,
    norm_affine,
    norm_scale,
    normed,
    read_weights,
)
from lens_linear.models.hooks import hooked
from lens_linear.models.native import quiet_transformer_lens
from lens_linear.models.spots import Spot
from lens_linear.token_rows import PaddedTokens, TokenRows

_FINAL = "ln_final.hook_out"
# Largest gap between a norm's output and x / scale that still counts as rounding. Half precision
# measures 4e-3 and float32 3e-7; a norm of another kind is off by 1e-1 and more.
_LIMITS = {torch.float64: 1e-5, torch.float32: 1e-4}
_HALF_LIMIT = 3e-2


@dataclass(frozen=True, eq=False)
class FrozenRun:
    """What one run holds still, and what it gave.

    Attributes:
        weights: norms folded, in the dtype of the computation.
        tokens: ids.
        embedding: token rows.
        positions: position rows, None where the model adds none.
        patterns: per layer, [batch, head, query, key].
        scales: per layer and last the final norm's, [batch, position, 1]; ones without norms.
        rounding: what a norm's output differs from ``x / scale`` by, times the matrices that read it:
            per layer the extra values [batch, position, head, d_head], last the extra logits. None where
            there is nothing to correct. Only float64 runs need it: TransformerLens computes RMS norms in
            float32 whatever the model's precision.
        logits: the model's own.
    """

    weights: ModelWeights
    tokens: Int[Tensor, "batch position"]
    embedding: Float[Tensor, "batch position d_model"]
    positions: Float[Tensor, "position d_model"] | None
    patterns: list[Tensor]
    scales: list[Tensor]
    rounding: list[Tensor | None]
    logits: Float[Tensor, "batch position vocab_out"]

    def __repr__(self) -> str:
        rows, length = self.tokens.shape
        return (
            f"FrozenRun: attention of {counted(len(self.patterns), 'layer')} on {counted(rows, 'row')} "
            f"of {counted(length, 'token')}"
        )


def in_double(model: ModelLike) -> TransformerBridge:
    """Return a float64 copy of a model; the model itself is not changed."""
    bridge = checked(model).bridge
    with quiet_transformer_lens():
        double: TransformerBridge = copy.deepcopy(bridge)
        double.to(torch.float64, print_details=False)
    double.cfg.dtype = torch.float64  # TransformerLens leaves it as it was
    double.eval()
    return double


def freeze_attention(
    model: ModelLike,
    tokens: Int[Tensor, "batch position"] | PaddedTokens | TokenRows,
    *,
    dtype: torch.dtype = torch.float64,
) -> FrozenRun:
    """Run an attention-only model once and keep its patterns, norm scales and logits.

    Args:
        model: a bridge without MLPs.
        tokens: ids, or a Task; pads are masked.
        dtype: of everything handed out; the run itself keeps the model's own precision.

    Raises:
        UnsupportedModelError: MLPs, norms behind the attention, bounded logits, or a norm that does not
            divide by the scale it says it does.
    """
    model = checked(model)
    require_attention_only(model)
    rows = require_model_rows(model, tokens)
    tokens = rows.tokens
    weights = read_weights(model, dtype=dtype)
    layers = range(model.n_layers)
    spots: list[Spot] = [(layer, "resid_pre") for layer in layers]
    spots.extend((layer, "attn_in") for layer in layers)
    spots.extend((layer, "pattern") for layer in layers)
    if model.n_layers:
        spots.append((model.n_layers - 1, "resid_post"))
    final: list[Tensor] = []

    def keep(tensor: Tensor) -> None:
        final.append(tensor.detach())

    with hooked(model, [(_FINAL, keep)]):
        out = run(model, tokens, record=spots, attention_mask=rows.mask)

    def get(spot: Spot) -> Tensor:
        return out[spot].to("cpu", dtype)

    embedding = weights.W_E[tokens.cpu()]
    positions = None if weights.W_pos is None else weights.W_pos[: tokens.shape[1]]
    streams = [get((layer, "resid_pre")) for layer in layers]
    if model.n_layers:
        streams.append(get((model.n_layers - 1, "resid_post")))
    else:
        streams.append(embedding if positions is None else embedding + positions)
    reads = [get((layer, "attn_in")) for layer in layers] + [final[0].to("cpu", dtype)]
    kinds: list[NormKind] = [*(weights.norm for _ in layers), weights.final_norm]
    norms = [getattr(model.bridge.blocks[layer], "ln1", None) for layer in layers] + [
        model.bridge.ln_final
    ]
    scales = [norm_scale(x, kind, weights.eps) for x, kind in zip(streams, kinds, strict=True)]
    gaps = []
    for x, read, kind, norm in zip(streams, reads, kinds, norms, strict=True):
        gaps.append(norm_gap(model, norm, x, read, kind))
    _require_rounding(model, gaps, reads)
    return FrozenRun(
        weights,
        tokens,
        embedding,
        positions,
        [get((layer, "pattern")) for layer in layers],
        scales,
        _corrections(model, gaps, dtype),
        out.logits.detach().to("cpu", dtype),
    )


def norm_gap(
    model: ModelLike,
    norm: Any,
    stream: Float[Tensor, "*token d_model"],
    read: Float[Tensor, "*token d_model"],
    kind: NormKind,
) -> Float[Tensor, "*token d_model"]:
    """Return what a norm gave minus ``stream / scale · weight + bias``: its rounding, if all is well.

    Args:
        model: a bridge.
        norm: its module, None where there is none.
        stream: what the norm read.
        read: what it gave.
        kind: of the norm.
    """
    model = checked(model)
    return read - normed(stream, kind, model.eps, *norm_affine(model, norm, stream.dtype))


def require_attention_only(model: CheckedModel) -> None:
    """Refuse a model whose logits are not a linear map of its embeddings once attention is frozen.

    Raises:
        UnsupportedModelError: the message says what stands in the way, and what works instead.
    """
    if model.n_ffn:
        raise UnsupportedModelError(
            f"model {model.name!r} must be attention-only, but {model.n_ffn} of its {model.n_layers} "
            "blocks have an MLP; use an attention-only model such as load('attn-2l'), or the head-level "
            "tools, which take any model: circuits.head_circuit, composition_scores, induction_scores, "
            "qk_attribution"
        )
    if model.n_post_norm:
        raise UnsupportedModelError(
            f"model {model.name!r} must add its heads' outputs unchanged, but {model.n_post_norm} of its "
            f"{model.n_layers} blocks pass them through another norm; use head or "
            "composition_scores"
        )
    if model.logit_softcap is not None:
        raise UnsupportedModelError(
            f"model {model.name!r} bounds its logits at {model.logit_softcap:g}, so they are no sum of "
            "paths; use a model without output_logits_soft_cap"
        )


def _require_rounding(model: CheckedModel, gaps: list[Tensor], reads: list[Tensor]) -> None:
    limit = _LIMITS.get(model.dtype, _HALF_LIMIT)
    for index, (gap, read) in enumerate(zip(gaps, reads, strict=True)):
        relative = float(gap.abs().max() / read.abs().max().clamp_min(1e-30))
        if not relative <= limit:
            where = "the final norm" if index == len(gaps) - 1 else f"the norm of layer {index}"
            raise UnsupportedModelError(
                f"{where} of {model.name!r} is not the {model.cfg.normalization_type!r} norm "
                f"its configuration names (largest relative gap {relative:.3g}); its paths would be wrong; "
                "use lens_linear.patch, which runs the model itself"
            )


def _corrections(
    model: CheckedModel, gaps: list[Tensor], dtype: torch.dtype
) -> list[Tensor | None]:
    """Turn gaps of normalised streams into extra values and logits, where float64 would show them."""
    double = model.dtype == torch.float64 and dtype == torch.float64
    if not double or all(float(gap.abs().max()) < 1e-12 for gap in gaps):
        return [None] * len(gaps)
    raw = read_weights(model, fold=False, dtype=dtype)
    found: list[Tensor | None] = []
    for layer, gap in enumerate(gaps[:-1]):
        if raw.attention is not None:
            found.append(torch.einsum("bpd,hde->bphe", gap, raw.attention.W_V[layer]))
    return [*found, gaps[-1] @ raw.W_U]
