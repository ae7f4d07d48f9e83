"""From the residual stream to logits: the normalised stream, and the decoding that norms no second time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lens_linear.linalg.precision import without_autocast
from lens_linear.models.checked import CheckedModel, NormKind
from lens_linear.models.describe.weights import norm_affine, norm_scale


@dataclass(frozen=True, eq=False)
class Readout:
    """The last norm and the unembedding of a model, taken apart.

    Attributes:
        model: a bridge.
        kind: of the last norm.
        eps: of the last norm.
        gain: [d_model], its weight γ.
        shift: [d_model], its bias β.
    """

    model: CheckedModel
    kind: NormKind
    eps: float
    gain: Float[Tensor, " d_model"]
    shift: Float[Tensor, " d_model"]

    @classmethod
    def of(cls, model: CheckedModel) -> Readout:
        """Read the last norm of a model."""
        gain, shift = norm_affine(model, getattr(model.bridge, "ln_final", None), torch.float32)
        device = model.device
        return cls(model, model.final_norm, model.eps, gain.to(device), shift.to(device))

    def normalise(self, stream: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """``x / rms(x)``, centred first in LayerNorm models; x itself in models without a last norm."""
        # Streams of float16 models overflow when squared.
        stream = stream.to(torch.promote_types(stream.dtype, torch.float32))
        scale = norm_scale(stream, self.kind, self.eps)
        if self.kind == "layer":
            stream = stream - stream.mean(-1, keepdim=True)
        return stream / scale

    def affine(self, normed: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """``γ ⊙ z + β``: what the unembedding reads."""
        return self.gain.to(normed.dtype) * normed + self.shift.to(normed.dtype)

    @without_autocast()
    def decode(self, normed: Float[Tensor, "... d_model"]) -> Float[Tensor, "... vocab"]:
        """``(γ ⊙ z + β) W_U + b_U``, then the model's own bound of the logits; float32 or wider."""
        model: Any = self.model.bridge
        weight: Tensor = model.W_U
        logits: Tensor = self.affine(normed).to(weight.dtype) @ weight
        bias: Tensor | None = model.b_U
        logits = logits if bias is None else logits + bias
        adapter = getattr(model, "adapter", None)
        transform: Any = getattr(adapter, "apply_output_logits_transform", None)
        logits = logits if transform is None else transform(logits)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))
