"""What each layer already predicts: the logit lens, and a linear lens fitted in closed form.

The logit lens reads the stream after every layer through the final norm and the unembedding. The linear lens
first carries it to the last layer by the affine map that least squares gives on the package's stories.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_linear._tl import TransformerBridge
from lens_linear.linalg.moments import Moments
from lens_linear.models.capture import batched, residual_stream
from lens_linear.models.describe.weights import ModelWeights, norm_scale


@dataclass(frozen=True, eq=False)
class LinearLens:
    """Affine maps from the stream before each block to the stream after the last one.

    ``n_tokens`` rows were fitted; the first position of every sequence is left out, as its outlier would
    carry the fit.
    """

    weight: Float[Tensor, "layer d_model d_model"]
    bias: Float[Tensor, "layer d_model"]
    n_tokens: int
    ridge: float


def fit_linear_lens(
    model: TransformerBridge, tokens: Int[Tensor, "sequence position"], *, ridge: float = 1e-3
) -> LinearLens:
    """Fit one affine map a layer by least squares, all layers in one pass."""
    n_layers, width = int(model.cfg.n_layers), int(model.cfg.d_model)
    sums = [Moments(width, width) for _ in range(n_layers)]
    for _, part in batched(tokens, 8):
        streams = residual_stream(model, part)[:, :, 1:].flatten(1, 2)
        for layer, moments in enumerate(sums):
            moments.update(streams[layer], streams[-1])
    fits = [moments.fit(ridge=ridge * float(moments.sxx.diagonal().mean())) for moments in sums]
    weight = torch.stack([fit.weight for fit in fits])
    bias = torch.stack([fit.bias for fit in fits])
    return LinearLens(weight, bias, sums[0].n, ridge)


def lens_logits(
    weights: ModelWeights, streams: Float[Tensor, "layer position d_model"]
) -> Float[Tensor, "layer position vocab"]:
    """Read streams through the final norm and the unembedding."""
    scale = norm_scale(streams, weights.final_norm, weights.eps)
    return (streams / scale) @ weights.W_U + weights.b_U
