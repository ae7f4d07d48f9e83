"""What a model does with a few tokens, to hold its weights against.

A bridge shows ``W_Q ... W_O`` whatever happens between them. Values that are clipped, gated, quantised or
normalised on the way would make circuits of those matrices wrong without a word, so every matrix is asked to
give back what was seen at its two ends.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_linear.errors import LensLinearWarning, UnsupportedModelError
from lens_linear.models.capture import run
from lens_linear.models.checked import STILL_WORK, CheckedModel
from lens_linear.models.hooks import attached
from lens_linear.models.spots import Spot, What

_WHATS: tuple[What, ...] = (
    "resid_pre",
    "attn_in",
    "q",
    "k",
    "v",
    "pattern",
    "z",
    "attn_raw",
    "attn_out",
)
# Largest gap relative to the largest entry. float32 measures up to 1e-6, half precision up to 2e-2.
_LIMITS = {torch.float64: 1e-5, torch.float32: 1e-4}
_HALF_LIMIT = 6e-2


@dataclass(frozen=True, eq=False)
class Probe:
    """One run over tokens of the whole vocabulary: everything seen on the way, in float64 on the CPU."""

    name: str
    tokens: Int[Tensor, " position"]
    seen: dict[Spot, Tensor]
    stream: Float[Tensor, "position d_model"] | None  # after the last block; None without blocks
    logits: Float[Tensor, "position vocab_out"]
    limit: float
    hooks: str = ""  # what the model had, in words

    def near(self, found: Tensor, wanted: Tensor) -> bool:
        """Say whether two tensors agree up to the model's own rounding."""
        return found.shape == wanted.shape and self.gap(found, wanted) <= self.limit

    @staticmethod
    def gap(found: Tensor, wanted: Tensor) -> float:
        """Largest difference, relative to the largest entry wanted."""
        largest = wanted.abs().max().clamp_min(1e-30)
        return float((found - wanted).abs().max() / largest)


def sample_tokens(model: CheckedModel) -> Int[Tensor, " position"]:
    """Return tokens of the whole vocabulary in mixed order, as many as the context takes.

    The first rows of a vocabulary are often never trained, and rows beyond the tokenizer never are.
    """
    n = min(32, model.n_ctx)
    spread = torch.linspace(0, model.n_tokens - 1, n, dtype=torch.float64).long()
    return spread[torch.randperm(n, generator=torch.Generator().manual_seed(0))]


def probe_model(model: CheckedModel) -> Probe:
    """Run a few tokens once and keep what attention reads, computes and writes in every layer."""
    n_layers = model.n_layers
    tokens = sample_tokens(model)
    spots: list[Spot] = [
        (layer, what) for layer in range(n_layers) for what in _WHATS if model.has((layer, what))
    ]
    if n_layers:
        spots.append((n_layers - 1, "resid_post"))
    hooks = attached(model)
    out = run(model, tokens[None], record=spots)
    dtype = out.logits.dtype
    seen = {spot: value[0].to("cpu", torch.float64) for spot, value in out.recorded.items()}
    return Probe(
        model.name,
        tokens,
        seen,
        seen.get((n_layers - 1, "resid_post")),
        out.logits[0].to("cpu", torch.float64),
        _LIMITS.get(dtype, _HALF_LIMIT),
        hooks,
    )


def require_attention_matrices(
    probe: Probe, weights: dict[str, Tensor], biases: dict[str, Tensor], *, n_layers: int
) -> None:
    """Check that the stored matrices are what the attention of every layer multiplies by.

    Args:
        probe: of the model.
        weights: "Q", "K", "V" [layer, head, d_model, d_head] and "O" [layer, head, d_head, d_model], as
            stored; keys and values may have fewer heads.
        biases: the same letters.
        n_layers: of the model.

    Raises:
        UnsupportedModelError: queries, keys, values or the output pass something else on the way.
    """
    for layer in range(n_layers):
        for step, found, wanted in _steps(probe, weights, biases, layer):
            if not probe.near(found, wanted):
                raise UnsupportedModelError(
                    f"the weights of layer {layer} of {probe.name!r} do not give back its {step} (relative "
                    f"gap {probe.gap(found, wanted) if found.shape == wanted.shape else float('inf'):.2g}): "
                    f"{probe.hooks}it clips, gates, quantises or normalises them, so single heads cannot be "
                    f"read from the weights; {STILL_WORK}"
                )


def warn_of_clipping(model: CheckedModel, probe: Probe) -> None:
    """Say it when a model clips queries, keys and values, and the few tokens tried stay below its bound.

    OLMo, MPT and DBRX have such a bound in their configurations; what is clipped is refused.
    """
    config = model.stored_config
    inner = getattr(config, "attn_config", None)
    bound = getattr(config, "clip_qkv", None) or getattr(inner, "clip_qkv", None)
    if not bound:
        return
    seen = [value.abs().max() for (_, what), value in probe.seen.items() if what in ("q", "k", "v")]
    largest = float(torch.stack(seen).max())
    warnings.warn(
        f"{probe.name!r} clips queries, keys and values at {bound:g}. None of {len(probe.tokens)} tokens of "
        f"its vocabulary reaches that (largest entry {largest:.3g}), so its circuits are those of the "
        "weights there; where a text goes beyond it they are not",
        LensLinearWarning,
        stacklevel=4,
    )


def _steps(
    probe: Probe, weights: dict[str, Tensor], biases: dict[str, Tensor], layer: int
) -> Sequence[tuple[str, Tensor, Tensor]]:
    def seen(what: What) -> Tensor:
        if (layer, what) not in probe.seen:
            raise UnsupportedModelError(
                f"layer {layer} of {probe.name!r} shows no {what!r}; head analyses need ordinary attention "
                f"in every layer; {STILL_WORK}"
            )
        return probe.seen[layer, what]

    reads, steps = seen("attn_in"), []
    heads: dict[str, Tensor] = {}
    for letter, what in (("Q", "q"), ("K", "k"), ("V", "v")):
        matrix, bias = weights[letter][layer].double(), biases[letter][layer].double()
        heads[letter] = torch.einsum("pd,hde->phe", reads, matrix) + bias
        own = seen(what)  # type: ignore[arg-type]
        steps.append((f"{what} vectors", heads[letter].flatten(1), own.flatten(1)))
    pattern = seen("pattern")
    values = heads["V"].repeat_interleave(len(pattern) // heads["V"].shape[1], dim=1)
    mixed = torch.einsum("hqk,khe->qhe", pattern, values)
    steps.append(("mixed values", mixed.flatten(1), seen("z").flatten(1)))
    z = seen("z").reshape(mixed.shape) if seen("z").numel() == mixed.numel() else mixed
    out = torch.einsum("phe,hed->pd", z, weights["O"][layer].double()) + biases["O"][layer].double()
    steps.append(("output", out, seen("attn_raw")))
    return steps
