"""Weights in one documented orientation, norms folded into a copy. The caller's model is not changed.

Row-vector convention, as in TransformerLens: ``x @ W``. With ``fold=True`` each norm's learnt weight and
bias, and LayerNorm's centring, are multiplied into the matrices that read the normalised stream, in
float64. What is left of a norm is one positive number per token, its *scale*, which is not folded::

    LN(x) @ W + b  ==  (x @ W_folded) / scale(x) + b_folded,   scale(x) = sqrt(var(x) + eps)

Copying scores and other signs of raw and folded weights can differ; ours are of folded weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from lens_linear.errors import UnsupportedModelError
from lens_linear.models.capture import run
from lens_linear.models.hooks import require_bridge

NormKind = Literal["none", "layer", "rms"]


@dataclass(frozen=True, eq=False)
class ModelWeights:
    """The matrices of a model's embedding, attention and unembedding, keys and values per query head.

    ``scale`` is what scores are multiplied by (1/sqrt(d_head) as a rule), ``softcap`` the bound of
    ``softcap * tanh(score / softcap)`` or None. Grouped-query keys and values are repeated to one per
    head; ``n_key_value_heads`` says how many there really are.
    """

    W_E: Float[Tensor, "vocab d_model"]
    W_pos: Float[Tensor, "n_ctx d_model"] | None
    W_U: Float[Tensor, "d_model vocab"]
    b_U: Float[Tensor, " vocab"]
    attention: "AttentionWeights | None"
    norm: NormKind
    eps: float
    folded: bool
    final_norm: NormKind  # the last norm's kind: TransformerLens' ``final_rms`` lets it differ

    def __repr__(self) -> str:
        layers, heads = (0, 0) if self.attention is None else self.attention.W_Q.shape[:2]
        how = "norms folded" if self.folded else "as stored"
        return f"ModelWeights: {layers} layers × {heads} heads, vocabulary {len(self.W_E)}, {how}"


@dataclass(frozen=True, eq=False)
class AttentionWeights:
    """Per-head matrices of all layers."""

    W_Q: Float[Tensor, "layer head d_model d_head"]
    W_K: Float[Tensor, "layer head d_model d_head"]
    W_V: Float[Tensor, "layer head d_model d_head"]
    W_O: Float[Tensor, "layer head d_head d_model"]
    b_Q: Float[Tensor, "layer head d_head"]
    b_K: Float[Tensor, "layer head d_head"]
    b_V: Float[Tensor, "layer head d_head"]
    b_O: Float[Tensor, "layer d_model"]
    scale: float
    softcap: float | None
    n_key_value_heads: int


def norm_kind(model: TransformerBridge) -> NormKind:
    """Say which norm the model has: "none", "layer" (centres, then divides) or "rms"."""
    name = model.cfg.normalization_type
    if name is None:
        return "none"
    if name.upper() in ("LN", "LNPRE"):
        return "layer"
    if name.upper() in ("RMS", "RMSPRE"):
        return "rms"
    raise UnsupportedModelError(f"norm {name!r} is not supported; only LayerNorm, RMSNorm or none")


def final_norm_kind(model: TransformerBridge) -> NormKind:
    """Say which norm stands before the unembedding; ``cfg.final_rms`` makes it RMS in any model."""
    return "rms" if getattr(model.cfg, "final_rms", False) else norm_kind(model)


def norm_scale(x: Float[Tensor, "*token d_model"], kind: NormKind, eps: float) -> Tensor:
    """Return the number each token's stream is divided by, [..., 1]; ones without a norm."""
    if kind == "none":
        return torch.ones_like(x[..., :1])
    if kind == "layer":
        x = x - x.mean(dim=-1, keepdim=True)
    return (x.pow(2).mean(dim=-1, keepdim=True) + eps).sqrt()


def read_weights(
    model: TransformerBridge, *, fold: bool = True, dtype: torch.dtype = torch.float64
) -> ModelWeights:
    """Read (and by default fold) the weights of embedding, attention and unembedding into a copy.

    Args:
        model: a bridge; not changed.
        fold: multiply norm weights, biases and centring into the reading matrices.
        dtype: of the copy.

    Returns:
        ModelWeights, on the CPU.

    Raises:
        UnsupportedModelError: the embedding is not a sum of a token row and a position row, or a block
            has no attention that can be read.

    Example:
        >>> from lens_linear.models.toy import toy_model
        >>> read_weights(toy_model(norm="LN")).attention.W_Q.shape
        torch.Size([2, 4, 32, 8])
    """
    model = require_bridge(model)
    kind = norm_kind(model)

    get = _getter(model, dtype)
    unembedding, unembedding_bias = get("W_U"), get("b_U")
    embedding, positions = _embedding(model, get("W_E"), get("W_pos"))
    if unembedding is None:
        raise UnsupportedModelError(f"model {model.cfg.model_name!r} shows no unembedding W_U")
    if unembedding_bias is None:
        unembedding_bias = unembedding.new_zeros(unembedding.shape[1])
    if fold:
        unembedding, unembedding_bias = _fold(
            unembedding,
            unembedding_bias,
            *_affine(model, model.ln_final, dtype),
            final_norm_kind(model),
        )
    attention = None
    if model.cfg.n_layers:
        attention = _read_attention(model, get, kind if fold else None, dtype)
    return ModelWeights(
        embedding,
        positions,
        unembedding,
        unembedding_bias,
        attention,
        kind,
        float(model.cfg.eps),
        fold,
        final_norm_kind(model),
    )


def read_attention(
    model: TransformerBridge, *, fold: bool = True, dtype: torch.dtype = torch.float64
) -> AttentionWeights:
    """Read the attention weights alone: for models whose embedding passes a norm or a projection too.

    Raises:
        UnsupportedModelError: no layers, or a block has no attention that can be read.
    """
    model = require_bridge(model)
    if not model.cfg.n_layers:
        raise UnsupportedModelError(
            f"model {model.cfg.model_name!r} has no attention layers, so it has no heads"
        )
    kind = norm_kind(model) if fold else None
    return _read_attention(model, _getter(model, dtype), kind, dtype)


def _getter(model: TransformerBridge, dtype: torch.dtype) -> Callable[[str], Tensor | None]:
    def get(name: str) -> Tensor | None:
        try:
            value = getattr(model, name)
        except (AttributeError, ValueError):
            return None
        return None if value is None else value.detach().to("cpu", dtype)

    return get


def _read_attention(
    model: TransformerBridge, get: Any, kind: NormKind | None, dtype: torch.dtype
) -> AttentionWeights:
    cfg = model.cfg
    found = {name: get(name) for name in ("W_Q", "W_K", "W_V", "W_O")}
    missing = [name for name, value in found.items() if value is None]
    if missing or len(found["W_Q"]) != cfg.n_layers:
        raise UnsupportedModelError(
            f"model {cfg.model_name!r} shows no {missing or 'attention in some layers'}; "
            "head analyses need ordinary attention in every layer"
        )
    n_heads, groups = found["W_Q"].shape[1], found["W_K"].shape[1]
    biases: dict[str, Tensor] = {}
    for name in ("Q", "K", "V"):
        weight, bias = found[f"W_{name}"], get(f"b_{name}")
        biases[name] = (
            weight.new_zeros(*weight.shape[:2], weight.shape[3]) if bias is None else bias
        )
    b_O = get("b_O")
    if b_O is None:
        b_O = found["W_O"].new_zeros(cfg.n_layers, found["W_O"].shape[-1])
    if kind is not None:
        for layer, block in enumerate(model.blocks):
            affine = _affine(model, getattr(block, "ln1", None), dtype)
            for name in ("Q", "K", "V"):
                weight, bias = found[f"W_{name}"], biases[name]
                weight[layer], bias[layer] = _fold(weight[layer], bias[layer], *affine, kind)
            post = getattr(block, "ln1_post", None)
            if post is not None:
                # The post-norm's weight acts on what the head writes; its scale stays outside.
                weight_post = _affine(model, post, dtype)[0]
                found["W_O"][layer] = found["W_O"][layer] * weight_post
                b_O[layer] = b_O[layer] * weight_post
    repeat = n_heads // groups
    for name in ("K", "V"):
        found[f"W_{name}"] = found[f"W_{name}"].repeat_interleave(repeat, dim=1)
        biases[name] = biases[name].repeat_interleave(repeat, dim=1)
    return AttentionWeights(
        found["W_Q"],
        found["W_K"],
        found["W_V"],
        found["W_O"],
        biases["Q"],
        biases["K"],
        biases["V"],
        b_O,
        _score_scale(model),
        _softcap(cfg),
        groups,
    )


def _affine(model: TransformerBridge, norm: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the norm's effective weight and bias (ones and zeros where it has none)."""
    d_model = model.cfg.d_model
    weight = bias = None
    if norm is not None:
        parameters = {name.split(".")[-1]: value for name, value in norm.named_parameters()}
        weight, bias = parameters.get("weight"), parameters.get("bias")
    if weight is None:
        effective = torch.ones(d_model, dtype=dtype)
    else:
        effective = weight.detach().to("cpu", dtype).clone()
        if getattr(model.cfg, "rmsnorm_uses_offset", False):
            effective += 1
    shift = torch.zeros(d_model, dtype=dtype)
    return effective, shift if bias is None else bias.detach().to("cpu", dtype).clone()


def _fold(
    weight: Float[Tensor, "*head d_model out"],
    bias: Float[Tensor, "*head out"],
    norm_weight: Float[Tensor, " d_model"],
    norm_bias: Float[Tensor, " d_model"],
    kind: NormKind,
) -> tuple[Tensor, Tensor]:
    """Fold weight, bias and (for LayerNorm) centring of a norm into the matrix that reads it."""
    bias = bias + torch.einsum("d,...do->...o", norm_bias, weight)
    weight = norm_weight[:, None] * weight
    if kind == "layer":
        weight = weight - weight.mean(dim=-2, keepdim=True)
    return weight, bias


def _score_scale(model: TransformerBridge) -> float:
    """Return the factor of q·k; asks the attention module before it trusts the configuration."""
    attention = model.blocks[0].attn
    original = getattr(attention, "original_component", attention)
    scaling = getattr(original, "scaling", None)  # Hugging Face: a factor
    if isinstance(scaling, float) and scaling > 0:
        return scaling
    if type(original).__name__ == "GPTNeoSelfAttention":
        return 1.0  # GPT-Neo leaves its scores unscaled and has no attribute that says so
    divisor = getattr(original, "scale", None)  # native: a divisor
    if isinstance(divisor, (int, float)) and divisor > 0 and hasattr(original, "kv_repeats"):
        return 1.0 / float(divisor)
    return float(model.cfg.d_head) ** -0.5


def _softcap(cfg: Any) -> float | None:
    value = float(getattr(cfg, "attn_scores_soft_cap", -1.0) or -1.0)
    return value if value > 0 else None


def _embedding(
    model: TransformerBridge, tokens: Tensor | None, positions: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Check on the model itself that embedding = token row × factor + position row."""
    if tokens is None:
        raise UnsupportedModelError(f"model {model.cfg.model_name!r} shows no embedding W_E")
    if not model.cfg.n_layers:
        return tokens, positions
    length = min(4, model.cfg.n_ctx)
    ids = torch.arange(length)[None] % model.cfg.d_vocab
    seen = run(model, ids, record=[(0, "resid_pre")], logits=False)[(0, "resid_pre")]
    seen = seen[0].to("cpu", tokens.dtype)
    rows = tokens[ids[0]]
    expected = rows if positions is None else rows + positions[:length]
    tolerance = 2e-2 if seen.abs().max() == 0 or model.cfg.dtype != torch.float32 else 1e-4
    if torch.allclose(seen, expected, rtol=tolerance, atol=tolerance * float(seen.abs().max())):
        return tokens, positions
    if positions is None:
        factor = float((seen * rows).sum() / rows.pow(2).sum().clamp_min(1e-30))
        if torch.allclose(seen, rows * factor, rtol=1e-2, atol=1e-2 * float(seen.abs().max())):
            return tokens * factor, None  # Gemma multiplies its embedding by sqrt(d_model)
    raise UnsupportedModelError(
        f"the embedding of {model.cfg.model_name!r} is not a token row plus a position row (a norm or a "
        "projection follows it); token-space circuits cannot be read exactly for this model"
    )
