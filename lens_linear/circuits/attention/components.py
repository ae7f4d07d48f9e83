"""What the residual stream is made of: embedding rows, every head's output, biases, MLP outputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_linear._tl import TransformerBridge
from lens_linear.circuits.heads.head_circuit import require_attention
from lens_linear.errors import UnsupportedModelError
from lens_linear.models.capture import Run, run
from lens_linear.models.describe.shape import ModelShape, model_shape
from lens_linear.models.describe.weights import ModelWeights, norm_scale, read_weights
from lens_linear.models.hooks import Spot

# Largest relative gap between the stream and the sum of its parts. float32 measures up to 1e-6.
_LIMITS = {torch.float64: 1e-9, torch.float32: 1e-4}
_HALF_LIMIT = 5e-2


@dataclass(frozen=True, eq=False)
class Components:
    """The parts of the residual stream at the input of one block; they sum to it."""

    names: tuple[str, ...]
    parts: Float[Tensor, "component batch position d_model"]
    stream: Float[Tensor, "batch position d_model"]


class HeadOutputs:
    """Turns a run's ``z`` into what every head adds to the residual stream."""

    def __init__(self, model: TransformerBridge, weights: ModelWeights) -> None:
        self.shape: ModelShape = model_shape(model)
        self.weights = weights
        self._raw: ModelWeights | None = None
        if self.shape.n_post_norm:
            if weights.final_norm != "rms":
                raise UnsupportedModelError(
                    f"model {self.shape.name!r} centres its attention output with another norm; single "
                    "heads' outputs cannot be told apart exactly"
                )
            self._raw = read_weights(model, fold=False)

    def of(self, z: Float[Tensor, "batch position head d_head"], layer: int) -> Tensor:
        """Return [head, batch, position, d_model]: what each head writes, b_O left out."""
        z = self._shaped(z)
        out = torch.einsum("bphe,hed->hbpd", z, require_attention(self.weights).W_O[layer])
        return out / self._post_scale(z, layer)

    def bias(self, z: Tensor, layer: int) -> Float[Tensor, "batch position d_model"]:
        """Return what b_O adds at every position."""
        z = self._shaped(z)
        bias = require_attention(self.weights).b_O[layer]
        return (bias / self._post_scale(z, layer)).expand(*z.shape[:2], -1)

    def _shaped(self, z: Tensor) -> Tensor:
        return z.to("cpu", torch.float64).reshape(*z.shape[:2], self.shape.n_heads, -1)

    def _post_scale(self, z: Tensor, layer: int) -> Tensor:
        if self._raw is None:
            return torch.ones(1, dtype=torch.float64)
        raw = require_attention(self._raw)
        written = torch.einsum("bphe,hed->bpd", z, raw.W_O[layer]) + raw.b_O[layer]
        return norm_scale(written, "rms", self.weights.eps)


def stream_components(
    model: TransformerBridge,
    weights: ModelWeights,
    tokens: Int[Tensor, "batch position"],
    layer: int,
) -> tuple[Components, Run]:
    """Split the residual stream at the input of ``layer`` into its parts, and check the sum.

    The run holds that stream and what the layer's attention reads, too.

    Raises:
        UnsupportedModelError: the parts do not add up to the stream.
    """
    heads = HeadOutputs(model, weights)
    below = range(layer)
    has_ffn = heads.shape.n_ffn > 0
    spots: list[Spot] = [(b, "z") for b in below]
    spots += [(b, "ffn_out") for b in below] if has_ffn else []
    spots += [(layer, "resid_pre"), (layer, "attn_in")]
    out = run(model, tokens, record=spots, logits=False)
    names, parts = ["token"], [weights.W_E[tokens.cpu()]]
    if weights.W_pos is not None:
        names.append("position")
        parts.append(weights.W_pos[: tokens.shape[1]].expand_as(parts[0]))
    for b in below:
        z = out[(b, "z")]
        names += [f"L{b}H{head}" for head in range(heads.shape.n_heads)]
        parts += list(heads.of(z, b))
        if bool(require_attention(weights).b_O[b].any()):
            names.append(f"L{b} b_O")
            parts.append(heads.bias(z, b))
        if has_ffn:
            names.append(f"L{b} MLP")
            parts.append(out[(b, "ffn_out")].to("cpu", torch.float64))
    stacked = torch.stack(parts)
    stream = out[(layer, "resid_pre")].to("cpu", torch.float64)
    gap = float((stacked.sum(0) - stream).abs().max() / stream.abs().max().clamp_min(1e-30))
    limit = _LIMITS.get(out[(layer, "resid_pre")].dtype, _HALF_LIMIT)
    if not gap <= limit:
        raise UnsupportedModelError(
            f"the residual stream of {heads.shape.name!r} at layer {layer} is not the sum of its "
            f"embedding, heads and MLPs (relative gap {gap:.3g}); scores cannot be attributed exactly"
        )
    return Components(tuple(names), stacked, stream), out
