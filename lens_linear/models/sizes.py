"""How many parameters a model, one of its blocks, or one of its FFNs holds."""

from __future__ import annotations

from typing import Literal

from transformer_lens.model_bridge import TransformerBridge

from lens_linear._checks import require_choice, require_int
from lens_linear.errors import UnsupportedModelError
from lens_linear.models.hooks import require_bridge


def n_parameters(model: TransformerBridge) -> int:
    """Parameters of the whole model; tied matrices count once."""
    return sum(p.numel() for p in require_bridge(model).parameters())


def site_parameters(
    model: TransformerBridge, layer: int, site: Literal["block", "ffn"] = "block"
) -> int:
    """Parameters of one block (norms included) or of its FFN (without its norm).

    Raises:
        UnsupportedModelError: the block has no FFN.

    Example:
        >>> from lens_linear.models.toy import toy_model
        >>> site_parameters(toy_model(n_layers=1, d_model=8, attn_only=False), 0, "ffn")
        552
    """
    n_layers = require_bridge(model).cfg.n_layers
    layer = require_int("layer", layer, minimum=0, maximum=n_layers - 1)
    require_choice("site", site, ("block", "ffn"))
    part = model.blocks[layer]
    if site == "ffn":
        if not hasattr(part, "mlp"):
            raise UnsupportedModelError(
                f"layer {layer} of {model.cfg.model_name!r} has no FFN; use site='block'"
            )
        part = part.mlp
    return sum(p.numel() for p in part.parameters())
