"""What the residual stream is made of: embedding rows, every head's output, biases, MLP outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_linear.checks import head_name
from lens_linear.circuits.heads.head_circuit import require_attention
from lens_linear.errors import UnsupportedModelError
from lens_linear.models.capture import Run
from lens_linear.models.checked import CheckedModel
from lens_linear.models.describe.weights import ModelWeights, norm_scale, read_weights
from lens_linear.models.spots import Spot

# Largest relative gap between the stream and the sum of its parts. float32 measures up to 1e-6.
_LIMITS = {torch.float64: 1e-9, torch.float32: 1e-4}
_HALF_LIMIT = 5e-2


Kind = Literal["embedding", "position", "head", "bias", "ffn"]


@dataclass(frozen=True)
class Component:
    """One part of the residual stream: its name, what it is, and where (-1 where there is no such number)."""

    name: str
    kind: Kind
    layer: int = -1
    head: int = -1


@dataclass(frozen=True, eq=False)
class Components:
    """The parts of the residual stream at the input of one block, or at the end; they sum to it."""

    found: tuple[Component, ...]
    parts: Float[Tensor, "component batch position d_model"]
    stream: Float[Tensor, "batch position d_model"]

    @property
    def names(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(component.name for component in self.found)


class HeadOutputs:
    """Turns a run's ``z`` into what every head adds to the residual stream."""

    def __init__(self, model: CheckedModel, weights: ModelWeights) -> None:
        self.model = model
        self.weights = weights
        self._dtype = torch.float64 if weights.attention is None else weights.attention.W_O.dtype
        self._raw: ModelWeights | None = None
        if self.model.n_post_norm:
            if weights.final_norm != "rms":
                raise UnsupportedModelError(
                    f"model {self.model.name!r} centres its attention output with another norm; single "
                    "heads' outputs cannot be told apart exactly; use lens_linear.patch, which runs the "
                    "model itself"
                )
            self._raw = read_weights(model, fold=False, dtype=self._dtype)

    def of(self, z: Float[Tensor, "batch position head d_head"], layer: int) -> Tensor:
        """Return [head, batch, position, d_model]: what each head writes, b_O left out."""
        z = self._shaped(z)
        out = torch.einsum("bphe,hed->hbpd", z, require_attention(self.weights).W_O[layer])
        return out / self.post_scale(z, layer)

    def bias(self, z: Tensor, layer: int) -> Float[Tensor, "batch position d_model"]:
        """Return what b_O adds at every position."""
        z = self._shaped(z)
        bias = require_attention(self.weights).b_O[layer]
        return (bias / self.post_scale(z, layer)).expand(*z.shape[:2], -1)

    def _shaped(self, z: Tensor) -> Tensor:
        return z.to("cpu", self._dtype).reshape(*z.shape[:2], self.model.n_heads, -1)

    def post_scale(self, z: Tensor, layer: int) -> Float[Tensor, "*token 1"]:
        """Return what the norm behind the attention divides by; 1 where there is none."""
        if self._raw is None:
            return torch.ones(1, dtype=self._dtype)
        raw = require_attention(self._raw)
        written = torch.einsum("...he,hed->...d", z, raw.W_O[layer]) + raw.b_O[layer]
        return norm_scale(written, "rms", self.weights.eps)


def stream_spots(model: CheckedModel, layer: int) -> list[Spot]:
    """What must be recorded to split the stream at the input of ``layer`` (``n_layers``: at the end)."""
    spots: list[Spot] = [(b, "z") for b in range(layer)]
    if model.n_ffn:
        spots.extend((b, "ffn_out") for b in range(layer))
    return [*spots, stream_spot(model, layer)] if model.n_layers else []


def stream_spot(model: CheckedModel, layer: int) -> Spot:
    """Where the stream at the input of ``layer`` can be read; ``n_layers`` is the end."""
    return (layer, "resid_pre") if layer < model.n_layers else (layer - 1, "resid_post")


def stream_components(
    heads: HeadOutputs,
    out: Run,
    tokens: Int[Tensor, "batch position"],
    layer: int,
    *,
    at: tuple[Int[Tensor, " n"], Int[Tensor, " n"]] | None = None,
) -> Components:
    """Split the residual stream at the input of ``layer`` into its parts, and check the sum.

    Args:
        heads: of the model.
        out: a run that recorded :func:`stream_spots`.
        tokens: its ids.
        layer: ``n_layers`` for the stream at the end.
        at: rows and positions to keep, as one row; all by default.

    Raises:
        UnsupportedModelError: the parts do not add up to the stream.
    """
    weights, model, tokens = heads.weights, heads.model, tokens.cpu()

    def pick(x: Tensor) -> Tensor:
        return x if at is None else x[at[0].to(x.device), at[1].to(x.device)][None]

    found = [Component("token", "embedding")]
    parts = [weights.W_E[tokens] if at is None else weights.W_E[tokens[at]][None]]
    if weights.W_pos is not None:
        found.append(Component("position", "position"))
        rows = weights.W_pos[: tokens.shape[1]]
        parts.append(rows.expand_as(parts[0]) if at is None else rows[at[1]][None])
    for b in range(layer):
        z = pick(out[(b, "z")])
        found += [Component(head_name(b, h), "head", b, h) for h in range(model.n_heads)]
        parts += list(heads.of(z, b))
        if bool(require_attention(weights).b_O[b].any()):
            found.append(Component(f"L{b} b_O", "bias", b))
            parts.append(heads.bias(z, b))
        if (b, "ffn_out") in out.recorded:
            found.append(Component(f"L{b} MLP", "ffn", b))
            parts.append(pick(out[(b, "ffn_out")]).to("cpu", torch.float64))
    stacked = torch.stack(parts)
    seen = pick(out[stream_spot(model, layer)]) if model.n_layers else stacked.sum(0)
    stream = seen.to("cpu", torch.float64)
    gap = float((stacked.sum(0) - stream).abs().max() / stream.abs().max().clamp_min(1e-30))
    limit = _LIMITS.get(seen.dtype, _HALF_LIMIT)
    if not gap <= limit:
        raise UnsupportedModelError(
            f"the residual stream of {model.name!r} at layer {layer} is not the sum of its embedding, heads "
            f"and MLPs (relative gap {gap:.3g}); scores and logits cannot be attributed exactly; "
            "use lens_linear.patch, which runs the model itself"
        )
    return Components(tuple(found), stacked, stream)
