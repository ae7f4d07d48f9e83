"""How many parameters a model, one of its blocks, or one of its FFNs holds."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from typing import Literal

from torch import nn

from lens_linear.checks import require_choice, require_int
from lens_linear.errors import UnsupportedModelError
from lens_linear.models.checked import ModelLike, checked


def n_parameters(model: ModelLike) -> int:
    """Parameters of the whole model; tied matrices count once, as do fused ones that the bridge splits."""
    model = checked(model)
    return _count(model.bridge)


def site_parameters(model: ModelLike, layer: int, site: Literal["block", "ffn"] = "block") -> int:
    """Parameters of one block (norms included) or of its FFN (without its norm).

    Raises:
        UnsupportedModelError: the block has no FFN.

    Example:
        >>> from lens_linear.models.open.toy import toy_model
        >>> site_parameters(toy_model(n_layers=1, d_model=8, attn_only=False), 0, "ffn")
        552
    """
    model = checked(model)
    n_layers = model.n_layers
    layer = require_int("layer", layer, minimum=0, maximum=n_layers - 1)
    require_choice("site", site, ("block", "ffn"))
    part = model.bridge.blocks[layer]
    if site == "block":
        return _count(part)
    if not hasattr(part, "mlp"):
        raise UnsupportedModelError(f"layer {layer} of {model.name!r} has no FFN; use site='block'")
    if part.mlp.name is None:
        # OPT and XGLM keep the two matrices in the block itself: their FFN is no module of its own.
        return sum(_count(matrix) for matrix in part.mlp.submodules.values())
    return _count(part.mlp)


def _count(part: nn.Module) -> int:
    copies = {id(p) for piece in _pieces(part) for p in piece.parameters()}
    return sum(p.numel() for p in part.parameters() if id(p) not in copies)


def _pieces(part: nn.Module) -> Iterator[nn.Module]:
    """Components that a bridge cut out of a fused matrix: copies, without a place in the original module.

    GPT-2's ``c_attn`` stays beside the q, k and v made of it; counting all four gave a random GPT-2 of
    44,064 parameters 53,568.
    """
    for component in part.modules():
        original = getattr(component, "original_component", None)
        if original is None:
            continue
        for piece in getattr(component, "submodules", {}).values():
            if piece.name is not None and not _has(original, piece.name):
                yield piece


def _has(module: nn.Module, path: str) -> bool:
    try:
        attrgetter(path)(module)
    except AttributeError:
        return False
    return True
