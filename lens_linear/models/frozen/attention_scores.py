"""True pre-softmax attention scores, rebuilt from queries and keys and checked against the pattern.

Native bridges keep the *softmaxed* pattern in ``hook_attn_scores``, so it is never read here.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_linear.checks import require_bool
from lens_linear.errors import UnsupportedModelError
from lens_linear.models.capture import require_model_tokens, run
from lens_linear.models.checked import ModelLike, checked
from lens_linear.models.describe.rotary import read_rotary
from lens_linear.models.describe.verify_weights import sample_tokens
from lens_linear.models.describe.weights import score_scale
from lens_linear.models.hooks import attached
from lens_linear.token_rows import TokenRows

_ENOUGH = 8  # positions that tell a wrong score from a right one


def attention_scores(
    model: ModelLike,
    tokens: Int[Tensor, "batch position"] | TokenRows,
    layer: int,
    *,
    windows: bool = True,
    dtype: torch.dtype = torch.float64,
) -> Float[Tensor, "batch head query key"]:
    """Return ``scale * q·k`` (rotated where the model rotates) before mask and softmax.

    Entries above the diagonal, and outside a sliding window, are filled in too; the mask is the caller's.

    Args:
        model: a bridge.
        tokens: ids.
        layer: which.
        windows: accept a layer that masks keys below the diagonal as well.
        dtype: of the scores.

    Raises:
        UnsupportedModelError: the masked softmax of these scores is not the model's own pattern
            (position biases, norms on queries and keys, sinks), so no exact score can be given.
    """
    model = checked(model)
    tokens = require_model_tokens(model, tokens)
    if tokens.shape[1] < _ENOUGH <= model.n_ctx:  # one key has attention 1 whatever its score
        attention_scores(model, sample_tokens(model)[None], layer, windows=windows)
    out = run(model, tokens, record=[(layer, "q"), (layer, "k"), (layer, "pattern")], logits=False)
    q = out[(layer, "q")].to("cpu", dtype).transpose(1, 2)
    k = out[(layer, "k")].to("cpu", dtype).transpose(1, 2)
    rotary = read_rotary(model, layer, tokens.shape[1], dtype=dtype)
    if rotary is not None:
        q, k = rotary.rotate(q), rotary.rotate(k)
    pattern = out[(layer, "pattern")].to("cpu", dtype)
    if pattern.shape[1] != q.shape[1] or q.shape[-1] != k.shape[-1] or q.shape[1] % k.shape[1]:
        raise UnsupportedModelError(
            f"layer {layer} of {model.name!r} has no queries and keys of its own for each head "
            "(latent attention), so its scores cannot be rebuilt; its patterns and outputs can be read"
        )
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = q @ k.transpose(-2, -1) * score_scale(model, layer)
    softcap = model.score_softcap
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    mask = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1) & model.is_causal
    # A window masks keys, whose attention is then exactly 0; it changes no score of the keys that are seen.
    unseen = mask | (pattern == 0) if require_bool("windows", windows) else mask
    rebuilt = scores.masked_fill(unseen, float("-inf")).softmax(-1)
    gap = float((rebuilt - pattern).abs().nan_to_num(nan=1.0).max())
    # Held against what the scores do at all: heads of a fresh model attend almost evenly, and would pass any
    # fixed limit with wrong scores. float32 measures gaps below 1e-7.
    even = torch.zeros_like(scores).masked_fill(unseen, float("-inf")).softmax(-1)
    spread = float((pattern - even).abs().nan_to_num(nan=0.0).max())
    exact = min(out[(layer, "q")].dtype.itemsize, out[(layer, "pattern")].dtype.itemsize) >= 4
    limit = 1e-6 + 1e-3 * spread if exact else 4e-3 + 5e-2 * spread
    if not gap <= limit:
        raise UnsupportedModelError(
            f"scores of layer {layer} of {model.name!r} do not give back its attention "
            f"pattern (largest gap {gap:.3g}): {attached(model)}it has no softmax, "
            f"{'' if windows else 'hides keys behind a window, '}biases scores by position, "
            "normalises queries and keys, or the like, so its QK circuits cannot be read exactly (its OV "
            "circuits can)"
        )
    return scores
