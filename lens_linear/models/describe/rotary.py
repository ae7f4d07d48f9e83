"""Rotary positions read from the model itself: the cosines and sines it uses, and their convention."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lens_linear.checks import counted, require_int
from lens_linear.errors import UnsupportedModelError
from lens_linear.models.capture import Stop, forward_logits
from lens_linear.models.checked import CheckedModel, ModelLike, checked
from lens_linear.models.hooks import hooked


@dataclass(frozen=True, eq=False)
class Rotary:
    """The rotation of queries and keys in one layer.

    Args:
        cos: [position, rotary_dim].
        sin: [position, rotary_dim].
        adjacent: True pairs dimensions (2i, 2i+1), False pairs (i, i + rotary_dim/2).
    """

    cos: Float[Tensor, "position rotary_dim"]
    sin: Float[Tensor, "position rotary_dim"]
    adjacent: bool

    def __repr__(self) -> str:
        pairs = "adjacent" if self.adjacent else "half-split"
        return (
            f"Rotary: {counted(self.cos.shape[0], 'position')}, "
            f"{counted(self.cos.shape[1], 'dimension')}, {pairs} pairs"
        )

    def rotate(self, x: Float[Tensor, "*axes position d_head"]) -> Tensor:
        """Rotate vectors at positions 0, 1, 2, ... along the last axis but one."""
        n, rotary_dim = x.shape[-2], self.cos.shape[1]
        cos, sin = self.cos[:n].to(x.dtype), self.sin[:n].to(x.dtype)
        turned, rest = x[..., :rotary_dim], x[..., rotary_dim:]
        return torch.cat([turned * cos + self._quarter_turn(turned) * sin, rest], dim=-1)

    def _quarter_turn(self, x: Tensor) -> Tensor:
        if self.adjacent:
            return torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)
        first, second = x.chunk(2, dim=-1)
        return torch.cat([-second, first], dim=-1)

    def relative(self, offset: int, d_head: int) -> Float[Tensor, "d_head d_head"]:
        """Return R with ``q @ R @ k`` = score of a query ``offset`` positions after its key.

        R = M(offset) M(0)ᵀ, M(p) the rotation at position p for row vectors (x → x M(p)).
        """
        require_int("offset", offset, minimum=0, maximum=self.cos.shape[0] - 1)
        eye = torch.eye(d_head, dtype=self.cos.dtype)
        at = self.rotate(eye[:, None, :].expand(d_head, offset + 1, d_head))
        return at[:, offset] @ at[:, 0].T


def read_rotary(
    model: ModelLike, layer: int, n_positions: int, *, dtype: torch.dtype = torch.float64
) -> Rotary | None:
    """Read the rotation of one layer for positions 0 to ``n_positions - 1``; None without rotary.

    Raises:
        UnsupportedModelError: the model rotates in a way that could not be read.
    """
    model = checked(model)
    require_int("layer", layer, minimum=0, maximum=model.n_layers - 1)
    require_int("n_positions", n_positions, minimum=1, maximum=model.n_ctx)
    if model.positions != "rotary":
        return None
    native = getattr(model.bridge.original_model, "rotary", None)
    if native is not None and hasattr(native, "cos_cached"):
        cos, sin = native.cos_cached[:n_positions], native.sin_cached[:n_positions]
        return Rotary(cos.to(dtype).cpu(), sin.to(dtype).cpu(), adjacent=True)
    names = (f"blocks.{layer}.attn.hook_cos", f"blocks.{layer}.attn.hook_sin")
    if any(name not in model.bridge.hook_dict for name in names):
        raise UnsupportedModelError(
            f"layer {layer} of {model.name!r} has rotary positions but shows no cosines; "
            "its QK circuits cannot be read exactly (OV circuits can)"
        )
    seen: dict[str, Tensor] = {}

    def keep(name: str):  # type: ignore[no-untyped-def]
        def hook(tensor: Tensor) -> None:
            seen[name] = tensor.detach()
            if len(seen) == len(names):
                raise Stop

        return hook

    tokens = torch.zeros(1, n_positions, dtype=torch.long)
    hooks = [(name, keep(name)) for name in names]
    with torch.no_grad(), hooked(model, hooks), suppress(Stop):
        forward_logits(model, tokens)
    if any(name not in seen or seen[name].numel() % n_positions for name in names):
        return (
            None  # a layer without rotation (SmolLM3, Cohere 2), or one that rotates in its own way
        )
    cos, sin = (seen[name].to(dtype).cpu().reshape(n_positions, -1) for name in names)
    # Cohere lays its table out pair by pair, which says how it pairs dimensions.
    paired = torch.equal(cos[:, 0::2], cos[:, 1::2]) and cos.shape[1] > 2
    adjacent = paired or bool(getattr(model.cfg, "rotary_adjacent_pairs", False))
    return Rotary(cos, sin, adjacent=adjacent)


def require_fixed_rotation(model: CheckedModel) -> None:
    """Refuse a model whose rotation at one distance depends on how long the sequence is.

    Raises:
        UnsupportedModelError: its context reaches beyond the length at which the rotation changes.
    """
    config = model.stored_config
    words = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kind = words.get("rope_type", words.get("type")) if isinstance(words, dict) else None
    if kind not in ("longrope", "dynamic"):
        return
    original = words.get("original_max_position_embeddings") or getattr(
        config, "original_max_position_embeddings", None
    )
    changes = int(original or getattr(config, "max_position_embeddings", None) or model.n_ctx)
    if model.n_ctx > changes:
        raise UnsupportedModelError(
            f"model {model.name!r} turns queries and keys ({kind}) in another way in sequences "
            f"of more than {changes} tokens, so a QK circuit at an offset has no single value; load it with "
            f"n_ctx={changes}, or use qk_attribution on tokens"
        )
