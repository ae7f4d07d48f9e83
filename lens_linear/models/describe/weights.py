"""Weights in one documented orientation, norms folded into a copy. The caller's model is not changed.

Row-vector convention, as in TransformerLens: ``x @ W``. With ``fold=True`` each norm's learnt weight and
bias, and LayerNorm's centring, are multiplied into the matrices that read the normalised stream, in
float64. What is left of a norm is one positive number per token, its *scale*, which is not folded::

    LN(x) @ W + b  ==  (x @ W_folded) / scale(x) + b_folded,   scale(x) = sqrt(var(x) + eps)

Copying scores and other signs of raw and folded weights can differ; ours are of folded weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_linear.checks import counted, require_bool
from lens_linear.errors import NonFiniteError, UnsupportedModelError
from lens_linear.models.checked import STILL_WORK, CheckedModel, ModelLike, NormKind, checked
from lens_linear.models.describe.verify_weights import (
    Probe,
    probe_model,
    require_attention_matrices,
    warn_of_clipping,
)
from lens_linear.models.describe.weights_mark import WeightsMark
from lens_linear.models.native import quiet_transformer_lens

_UNSCALED = ("GPTNeoSelfAttention",)  # takes q·k as it is


@dataclass(frozen=True, eq=False)
class ModelWeights:
    """The matrices of a model's embedding, attention and unembedding, keys and values per query head.

    Grouped-query keys and values are repeated to one per head. ``norm`` is what stands before the attention.
    ``W_U`` gives the model's own logits; scores of circuits use ``class_centred``. Rows of a padded
    vocabulary that stand for no token are in ``W_E`` and ``W_U`` alone.
    """

    W_E: Float[Tensor, "vocab d_model"]
    W_pos: Float[Tensor, "n_ctx d_model"] | None
    W_U: Float[Tensor, "d_model vocab_out"]
    b_U: Float[Tensor, " vocab_out"]
    attention: "AttentionWeights | None"
    norm: NormKind
    eps: float
    folded: bool
    final_norm: NormKind  # the last norm's kind: TransformerLens' ``final_rms`` lets it differ
    n_tokens: int  # rows of the vocabulary that stand for tokens
    mark: WeightsMark  # of the model they were read from

    @property
    def token_rows(self) -> Float[Tensor, "token d_model"]:
        """``W_E`` without the rows that no token has."""
        return self.W_E[: self.n_tokens]

    @property
    def n_outputs(self) -> int:
        """Outputs that stand for tokens; all of them where the outputs are another vocabulary."""
        n = self.W_U.shape[1]
        return self.n_tokens if n == len(self.W_E) else n

    @property
    def token_outputs(self) -> Float[Tensor, "d_model token"]:
        """``class_centred`` without the outputs that no token has."""
        return self.class_centred[:, : self.n_outputs]

    @cached_property
    def class_centred(self) -> Float[Tensor, "d_model vocab_out"]:
        """``W_U`` less its mean over the output tokens: what the softmax can see of it.

        Adding the same number to all logits changes no probability, so ``W_U + u 1ᵀ`` is the same model.
        """
        return self.W_U - self.class_mean[:, None]

    @cached_property
    def class_mean(self) -> Float[Tensor, " d_model"]:
        """Mean of ``W_U`` over the output tokens, the part of it that no probability depends on."""
        return self.W_U[:, : self.n_outputs].mean(dim=1)

    def class_directions(self, tokens: Int[Tensor, "*place"]) -> Float[Tensor, "*place d_model"]:
        """Columns of ``class_centred``, without making the rest of it."""
        return self.W_U.T[tokens] - self.class_mean

    @property
    def padding_note(self) -> str:
        """``", 3 rows that no token has left out"``, or nothing."""
        n = len(self.W_E) - self.n_tokens
        return f", {n} row{'s' * (n > 1)} that no token has left out" if n else ""

    def __repr__(self) -> str:
        layers, heads = (0, 0) if self.attention is None else self.attention.W_Q.shape[:2]
        how = "norms folded" if self.folded else "as stored"
        return f"ModelWeights: {layers} layers × {heads} heads, vocabulary {len(self.W_E)}, {how}"


@dataclass(frozen=True, eq=False)
class AttentionWeights:
    """Per-head matrices of all layers.

    ``scale`` is what scores of a layer are multiplied by (1/sqrt(d_head) as a rule), ``softcap`` the bound of
    ``softcap * tanh(score / softcap)`` or None; ``n_key_value_heads`` says how many keys there really are.
    """

    W_Q: Float[Tensor, "layer head d_model d_head"]
    W_K: Float[Tensor, "layer head d_model d_head"]
    W_V: Float[Tensor, "layer head d_model d_head"]
    W_O: Float[Tensor, "layer head d_head d_model"]
    b_Q: Float[Tensor, "layer head d_head"]
    b_K: Float[Tensor, "layer head d_head"]
    b_V: Float[Tensor, "layer head d_head"]
    b_O: Float[Tensor, "layer d_model"]
    scale: Float[Tensor, " layer"]
    softcap: float | None
    n_key_value_heads: int

    def __repr__(self) -> str:
        layers, heads, d_model, d_head = self.W_Q.shape
        return (
            f"AttentionWeights: {layers} layers × {heads} heads, {counted(d_model, 'column')} to "
            f"{d_head} a head"
        )


def norm_scale(x: Float[Tensor, "*token d_model"], kind: NormKind, eps: float) -> Tensor:
    """Return the number each token's stream is divided by, [..., 1]; ones without a norm."""
    if kind == "none":
        return torch.ones_like(x[..., :1])
    if kind == "layer":
        x = x - x.mean(dim=-1, keepdim=True)
    return (x.pow(2).mean(dim=-1, keepdim=True) + eps).sqrt()


def read_weights(
    model: ModelLike, *, fold: bool = True, dtype: torch.dtype = torch.float64
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
        >>> from lens_linear.models.open.toy import toy_model
        >>> read_weights(toy_model(norm="LN")).attention.W_Q.shape
        torch.Size([2, 4, 32, 8])
    """
    model = checked(model)
    get, probe = _getter(model, dtype), probe_model(model)
    embedding, positions = _embedding(model, probe, get("W_E"), get("W_pos"))
    unembedding, unembedding_bias = _unembedding(
        model, probe, get, embedding, positions, fold=require_bool("fold", fold)
    )
    attention = None
    if model.n_layers:
        attention = _read_attention(model, probe, get, fold, dtype)
    return ModelWeights(
        embedding,
        positions,
        unembedding,
        unembedding_bias,
        attention,
        model.reading_norm,
        model.eps,
        fold,
        model.final_norm,
        min(model.n_tokens, len(embedding)),
        WeightsMark(model),
    )


def read_attention(
    model: ModelLike, *, fold: bool = True, dtype: torch.dtype = torch.float64
) -> AttentionWeights:
    """Read the attention weights alone: for models whose embedding passes a norm or a projection too.

    Raises:
        UnsupportedModelError: no layers, or a block has no attention that can be read.
    """
    model = checked(model)
    require_attention_layers(model)
    fold = require_bool("fold", fold)
    return _read_attention(model, probe_model(model), _getter(model, dtype), fold, dtype)


def require_attention_layers(model: CheckedModel) -> None:
    """Refuse a model without layers where heads are asked for."""
    if not model.n_layers:
        raise UnsupportedModelError(
            f"model {model.name!r} has no attention layers, so it has no heads; use "
            "AttentionOnly(model).bigrams()"
        )


def _getter(model: CheckedModel, dtype: torch.dtype) -> Callable[[str], Tensor | None]:
    def get(name: str) -> Tensor | None:
        try:
            value = getattr(model.bridge, name)
        except (AttributeError, ValueError, NotImplementedError):
            return None  # NotImplementedError: latent attention has no such matrices
        if not isinstance(value, Tensor):
            return None
        value = value.detach().to("cpu", dtype)
        if not bool(torch.isfinite(value.sum())) and not bool(torch.isfinite(value).all()):
            raise _not_finite(model.name, name, value, model.n_layers)
        return value

    return get


def _not_finite(model_name: str, name: str, value: Tensor, n_layers: int) -> NonFiniteError:
    """The error that says where a matrix holds NaN or infinity; stacked ones have a layer axis first."""
    where = ""
    if value.ndim >= 2 and len(value) == n_layers and name not in ("W_E", "W_U", "W_pos"):
        bad = [layer for layer in range(n_layers) if not bool(torch.isfinite(value[layer]).all())]
        where = f" of layer {bad[0]}"
    return NonFiniteError(
        f"{name}{where} of {model_name!r} holds NaN or infinity; check the file it came from, or load the "
        "model in a wider precision"
    )


def _read_attention(
    model: CheckedModel,
    probe: Probe,
    get: Callable[[str], Tensor | None],
    fold: bool,
    dtype: torch.dtype,
) -> AttentionWeights:
    found, biases = _stored_attention(model, get)
    require_attention_matrices(probe, found, biases, n_layers=model.n_layers)
    warn_of_clipping(model, probe)
    if fold:
        for layer in range(model.n_layers):
            _fold_layer(model, probe, layer, found, biases, dtype)
    n_heads, groups = found["Q"].shape[1], found["K"].shape[1]
    for part in (found, biases) if groups < n_heads else ():
        part |= {
            name: part[name].repeat_interleave(n_heads // groups, dim=1) for name in ("K", "V")
        }
    return AttentionWeights(
        found["Q"],
        found["K"],
        found["V"],
        found["O"],
        biases["Q"],
        biases["K"],
        biases["V"],
        biases["O"],
        torch.tensor(
            [score_scale(model, layer) for layer in range(model.n_layers)],
            dtype=torch.float64,
        ),
        model.score_softcap,
        groups,
    )


def _stored_attention(
    model: CheckedModel, get: Callable[[str], Tensor | None]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Matrices and biases by letter, as stored; zeros where there is no bias."""
    n_layers = model.n_layers
    with (
        quiet_transformer_lens()
    ):  # it warns where only some layers have attention, which is refused
        stored = {letter: get(f"W_{letter}") for letter in "QKVO"}
        given = {letter: get(f"b_{letter}") for letter in "QKVO"}
    found = {letter: value for letter, value in stored.items() if value is not None}
    missing = [f"W_{letter}" for letter in "QKVO" if letter not in found]
    if missing or len(found["Q"]) != n_layers:
        raise UnsupportedModelError(
            f"model {model.name!r} shows no {missing or 'attention in some layers'}; "
            f"head analyses need ordinary attention in every layer; {STILL_WORK}"
        )
    biases = {}
    for letter, weight in found.items():
        shape = weight.shape[:2] + weight.shape[3:] if letter != "O" else weight.shape[::3]
        bias = given[letter]
        biases[letter] = weight.new_zeros(shape) if bias is None else bias
    return found, biases


def _fold_layer(
    model: CheckedModel,
    probe: Probe,
    layer: int,
    found: dict[str, Tensor],
    biases: dict[str, Tensor],
    dtype: torch.dtype,
) -> None:
    """Multiply what stands before and behind the attention of one layer into its matrices, in place."""
    block, eps = model.bridge.blocks[layer], model.eps
    kind = model.reading_norm
    affine = norm_affine(model, getattr(block, "ln1", None), dtype)
    expected = normed(probe.seen[layer, "resid_pre"], kind, eps, *affine)
    _require_norm(
        probe, expected, probe.seen[layer, "attn_in"], f"before the attention of layer {layer}"
    )
    for name in ("Q", "K", "V"):
        found[name][layer], biases[name][layer] = _fold(
            found[name][layer], biases[name][layer], *affine, kind
        )
    raw, written = probe.seen[layer, "attn_raw"], probe.seen[layer, "attn_out"]
    post = getattr(block, "ln1_post", None)
    if post is None:
        # Granite multiplies what is written by a constant.
        factor = (raw * written).sum() / raw.square().sum().clamp_min(1e-30)
        factor = torch.ones_like(factor) if probe.near(raw, written) else factor
        expected, outer = raw * factor, factor.to(dtype)
    else:
        # The post-norm's weight acts on what the head writes; its scale stays outside.
        outer, shift = norm_affine(model, post, dtype)
        expected = normed(raw, model.norm, eps, outer, shift)
    _require_norm(probe, expected, written, f"behind the attention of layer {layer}")
    found["O"][layer] = found["O"][layer] * outer
    biases["O"][layer] = biases["O"][layer] * outer


def normed(x: Tensor, kind: NormKind, eps: float, weight: Tensor, bias: Tensor) -> Tensor:
    """What a norm should give, in the wider of the precisions of x and its weight."""
    centred = x - x.mean(dim=-1, keepdim=True) if kind == "layer" else x
    return centred / norm_scale(x, kind, eps) * weight + bias


def _require_norm(probe: Probe, found: Tensor, seen: Tensor, where: str) -> None:
    if not probe.near(found, seen):
        raise UnsupportedModelError(
            f"what stands {where} of {probe.name!r} is not the norm its configuration names (relative gap "
            f"{probe.gap(found, seen):.2g}), so it cannot be folded into the weights; "
            f"{probe.hooks}composition_scores reads them as they are stored"
        )


def norm_affine(model: CheckedModel, norm: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the norm's effective weight and bias (ones and zeros where it has none)."""
    d_model = model.d_model
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
        weight -= weight.mean(dim=-2, keepdim=True)
    return weight, bias


def score_scale(model: CheckedModel, layer: int) -> float:
    """Return the factor of q·k; asks the attention module before it trusts the configuration."""
    attention = model.bridge.blocks[layer].attn
    original = getattr(attention, "original_component", attention)
    if type(original).__name__ in _UNSCALED:
        return 1.0
    for name in ("scaling", "softmax_scale", "inv_norm_factor"):  # Hugging Face: a factor
        value = getattr(original, name, None)
        if isinstance(value, float) and value > 0:
            return value
    divisor = getattr(original, "scale", None)  # native: a divisor
    if isinstance(divisor, (int, float)) and divisor > 0 and hasattr(original, "kv_repeats"):
        return 1.0 / float(divisor)
    return 1.0 / math.sqrt(model.d_head)


def _embedding(
    model: CheckedModel, probe: Probe, tokens: Tensor | None, positions: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Check on the model itself that embedding = token row × factor + position row."""
    if tokens is None:
        raise UnsupportedModelError(f"model {probe.name!r} shows no embedding W_E; {STILL_WORK}")
    if not model.n_layers:
        return tokens, positions
    seen, rows = probe.seen[0, "resid_pre"], tokens[probe.tokens].double()
    if rows.shape == seen.shape:
        expected = rows if positions is None else rows + positions[: len(rows)].double()
        if probe.near(expected, seen):
            return tokens, positions
        if positions is None:
            factor = float((seen * rows).sum() / rows.pow(2).sum().clamp_min(1e-30))
            if probe.near(rows * factor, seen):
                return tokens * factor, None  # Gemma multiplies its embedding by sqrt(d_model)
    raise UnsupportedModelError(
        f"the embedding of {probe.name!r} is not a token row plus a position row (a norm or a "
        f"projection follows it), so token-space circuits cannot be read exactly; {probe.hooks}{STILL_WORK}"
    )


def _unembedding(
    model: CheckedModel,
    probe: Probe,
    get: Callable[[str], Tensor | None],
    embedding: Tensor,
    positions: Tensor | None,
    *,
    fold: bool,
) -> tuple[Tensor, Tensor]:
    """W_U and its bias; folded, the final norm is in them, and the model itself shows that logits come so."""
    weight, bias = get("W_U"), get("b_U")
    if weight is None:
        raise UnsupportedModelError(f"model {model.name!r} shows no unembedding W_U; {STILL_WORK}")
    if bias is None:
        bias = weight.new_zeros(weight.shape[1])
    if not fold:
        return weight, bias
    kind, norm = model.final_norm, getattr(model.bridge, "ln_final", None)
    weight, bias = _fold(weight, bias, *norm_affine(model, norm, weight.dtype), kind)
    stream = probe.stream
    if stream is None:
        rows = embedding[probe.tokens]
        stream = (rows if positions is None else rows + positions[: len(rows)]).double()
    scale = norm_scale(stream, kind, model.eps)
    logits = stream / scale @ weight.double() + bias.double()
    cap = model.logit_softcap
    if probe.near(cap * torch.tanh(logits / cap) if cap else logits, probe.logits):
        return weight, bias
    if cap is None:
        factor = float((probe.logits * logits).sum() / logits.square().sum().clamp_min(1e-30))
        if probe.near(logits * factor, probe.logits):
            return weight * factor, bias * factor  # Cohere and Granite scale their logits
    raise UnsupportedModelError(
        f"the logits of {probe.name!r} are not its last residual stream through one norm and W_U, so "
        f"token-space circuits cannot be read exactly; {probe.hooks}{STILL_WORK}"
    )
