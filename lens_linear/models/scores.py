"""True pre-softmax attention scores, rebuilt from queries and keys and checked against the pattern.

Native bridges keep the *softmaxed* pattern in ``hook_attn_scores``, so it is never read here.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from lens_linear.errors import UnsupportedModelError
from lens_linear.models.capture import require_model_tokens, run
from lens_linear.models.rotary import read_rotary
from lens_linear.models.weights import _score_scale, _softcap


def attention_scores(
    model: TransformerBridge,
    tokens: Int[Tensor, "batch position"],
    layer: int,
    *,
    dtype: torch.dtype = torch.float64,
) -> Float[Tensor, "batch head query key"]:
    """Return ``scale * q·k`` (rotated where the model rotates) before mask and softmax.

    Entries above the diagonal are filled in too; the mask is the caller's.

    Raises:
        UnsupportedModelError: the masked softmax of these scores is not the model's own pattern
            (position biases, sliding windows), so no exact score can be given.
    """
    tokens = require_model_tokens(model, tokens)
    out = run(model, tokens, record=[(layer, "q"), (layer, "k"), (layer, "pattern")], logits=False)
    q = out[(layer, "q")].to("cpu", dtype).transpose(1, 2)
    k = out[(layer, "k")].to("cpu", dtype).transpose(1, 2)
    rotary = read_rotary(model, layer, tokens.shape[1], dtype=dtype)
    if rotary is not None:
        q, k = rotary.rotate(q), rotary.rotate(k)
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = q @ k.transpose(-2, -1) * _score_scale(model)
    softcap = _softcap(model.cfg)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    mask = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    rebuilt = scores.masked_fill(mask, float("-inf")).softmax(-1)
    own = out[(layer, "pattern")].to("cpu", dtype)
    gap = float((rebuilt - own).abs().max())
    # Held against what the scores do at all: heads of a fresh model attend almost evenly, and would pass any
    # fixed limit with wrong scores. float32 measures gaps below 1e-7.
    even = torch.zeros_like(scores).masked_fill(mask, float("-inf")).softmax(-1)
    spread = float((own - even).abs().max())
    exact = min(out[(layer, "q")].dtype.itemsize, out[(layer, "pattern")].dtype.itemsize) >= 4
    limit = 1e-6 + 1e-3 * spread if exact else 4e-3 + 5e-2 * spread
    if not gap <= limit:
        raise UnsupportedModelError(
            f"scores of layer {layer} of {model.cfg.model_name!r} do not give back its attention "
            f"pattern (largest gap {gap:.3g}); it masks or biases attention in a way not supported here"
        )
    return scores
