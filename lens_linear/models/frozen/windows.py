"""How far back a layer looks: sliding windows and local attention, read from what it really attends to."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from lens_linear.models.capture import run
from lens_linear.models.checked import CheckedModel

# Where configurations write the width down; layers that do not slide look everywhere all the same.
_WIDTHS = ("sliding_window", "window_size", "attention_chunk_size", "local_attention")


def layer_window(model: CheckedModel, layer: int, n_positions: int) -> int | None:
    """Return how many keys a query of a layer sees, itself included; None where it sees all of them.

    A width of the configuration holds where no head attends to anything further back. The model is run on
    ``n_positions`` tokens only where there is such a width.
    """
    config = model.stored_config
    named = {getattr(config, name, None) for name in _WIDTHS}
    widths = sorted(w for w in named if isinstance(w, int) and 0 < w < n_positions)
    if not widths:
        return None
    ids = torch.arange(n_positions) % model.n_tokens
    pattern = run(model, ids[None], record=[(layer, "pattern")], logits=False)[(layer, "pattern")]
    return next((w for w in widths if not bool(pattern.tril(-w).any())), None)


def seen_keys(
    n_queries: int, n_keys: int, *, causal: bool, window: int | None
) -> Bool[Tensor, "query key"]:
    """Say which keys a query sees."""
    seen = torch.ones(n_queries, n_keys, dtype=torch.bool)
    if causal:
        seen = seen.tril()
    return seen if window is None else seen.triu(1 - window).tril(window - 1)
